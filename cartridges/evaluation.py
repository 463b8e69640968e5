"""The verb `evaluate`: cartridges and adapters beside no context, a truncated one, and reading everything.

Every method answers the same questions, greedily. Closeness compares next-token distributions with those of the
reference, which reads everything, at the tokens of the reference's own replies. Where the corpus does not fit into the
window, the reference reads the one document that answers the question, and the results say so.

Shapes: M target tokens, V vocabulary.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pydantic import Field

from cartridges.adapter import ThoughtAdapter
from cartridges.adapting import applied
from cartridges.cartridge import Cartridge
from cartridges.config import Config
from cartridges.corpus import Corpus
from cartridges.engine.engine import AskedTarget, Engine
from cartridges.engine.request import Request, Result
from cartridges.errors import ConfigError, InputError
from cartridges.evals.harness import prompt_of
from cartridges.initialization import COMPACTED, InitializeConfig, initialize
from cartridges.intervals import interval
from cartridges.log import Bar, progress
from cartridges.provenance import provenance
from cartridges.questions import Item
from cartridges.results import (
    ADAPTER,
    CARTRIDGE,
    DOCUMENT,
    FULL,
    NONE,
    TRUNCATED,
    UNTRAINED,
    WINDOW,
    MethodResult,
    Reply,
    Results,
)
from cartridges.rng import rng_of

NUM_TIMED, NUM_TIMED_TOKENS = 3, 24  # questions asked alone, and tokens of each reply, for seconds per question


class EvaluateConfig(Config):
    """How questions are asked."""

    max_new_tokens: int = Field(default=160, gt=0, description="of a reply")
    max_items: int = Field(default=400, gt=0, description="a sample of the questions where there are more")
    untrained: bool = Field(default=True, description="measure the slots as they were before training, too")
    seed: int = Field(default=0, ge=0, description="of that sample")


@dataclass
class Method:
    """One way to answer: a system text for each question, slots, or other weights."""

    name: str
    label: str
    system_of: Mapping[str, str]  # by the document of a question; "" for all others
    cartridge: Cartridge | None = None
    num_slots: int = 0
    build_s: float = 0.0
    adapter: ThoughtAdapter | None = None

    def system(self, item: Item) -> str:
        return self.system_of.get(item.document, self.system_of[""])


@dataclass
class Answered:
    """What one method said: results by question, mean KL and agreement against the reference, seconds alone."""

    results: list[Result]
    kl_per_token: float | None = None
    top1_agreement: float | None = None
    question_s: float = 0.0
    prompt_tokens: int = 0


@dataclass
class Evaluation:
    """One evaluation: the engine, the corpus, the questions and the cartridges and adapters, by label."""

    engine: Engine
    corpus: Corpus
    items: list[Item]
    cartridges: Mapping[str, Cartridge]
    config: EvaluateConfig
    adapters: Mapping[str, ThoughtAdapter] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def corpus_ids(self) -> list[int]:
        return self.engine.model.ids(self.corpus.text)

    @cached_property
    def room(self) -> int:
        """Tokens that a system text may have beside the longest question and a reply."""
        model = self.engine.model
        longest = max(len(model.chat.prompt([{"role": "user", "content": item.question}])) for item in self.items)
        return model.window - longest - self.config.max_new_tokens - 64

    @property
    def corpus_fits(self) -> bool:
        return len(self.corpus_ids) <= self.room

    def first_tokens(self, num_tokens: int) -> str:
        """The corpus' beginning, as text."""
        return self.engine.model.chat.decode(self.corpus_ids[: max(0, num_tokens)])

    def methods(self) -> list[Method]:
        """All that are compared, the reference first."""
        found: list[Method] = []
        documents = {document.path: document.text for document in self.corpus}
        strange = sorted({item.document for item in self.items} - set(documents))
        known = not strange
        fitting = all(self.num_tokens(documents[item.document]) <= self.room for item in self.items if known)
        if self.corpus_fits:
            found.append(Method(FULL, "full context", {"": self.corpus.text}))
        if known and fitting and len(documents) > 1:
            found.append(Method(DOCUMENT, "the right document", {**documents, "": ""}))
        elif strange and len(documents) > 1 and any(item.document for item in self.items):
            self.notes.append(self.without_documents(strange))
        if not found:
            found.append(Method(WINDOW, "context cut to the window", {"": self.first_tokens(self.room)}))
            why = "the questions do not all name their documents" if not known else "the document is as long"
            self.notes.append(
                f"the corpus has {len(self.corpus_ids)} tokens, more than the window leaves ({self.room}), and {why}: "
                "the reference reads the corpus' beginning alone, so closeness to it says little"
            )
        elif not self.corpus_fits:
            self.notes.append(
                f"the corpus has {len(self.corpus_ids)} tokens, more than the window leaves ({self.room}): the "
                "reference reads the one document that answers the question"
            )
        found.append(Method(NONE, "no context", {"": ""}))
        for num_slots in sorted({cartridge.num_slots for cartridge in self.cartridges.values()}):
            text = self.first_tokens(num_slots - len(self.engine.model.chat.system_prefix("x")))
            if not text:
                self.notes.append(f"{num_slots} tokens are too few for any text of the corpus; truncated is left out")
                continue
            label = f"first {num_slots} tokens as text"
            found.append(Method(f"{TRUNCATED}-{num_slots}", label, {"": text}, num_slots=num_slots))
        for label, cartridge in self.cartridges.items():
            if self.config.untrained and not label.endswith("untrained"):
                found += self.untrained(label, cartridge)
            metrics = cartridge.manifest.metrics
            seconds = float(metrics.get("build_s", metrics.get("seconds", 0.0)))
            if "build_s" not in metrics:
                self.notes.append(f"the build seconds of cartridge {label} are those of training alone")
            size = cartridge.num_slots
            found.append(Method(f"cartridge-{label}", f"cartridge, {size} slots", {"": ""}, cartridge, size, seconds))
        for label, adapter in self.adapters.items():
            metrics, size_mb = adapter.manifest.metrics, 2 * adapter.num_numbers / 1e6
            seconds = float(metrics.get("build_s", metrics.get("seconds", 0.0)))
            told = f"adapter {label}, {size_mb:.3g} MB of weights"
            found.append(Method(f"{ADAPTER}-{label}", told, {"": ""}, build_s=seconds, adapter=adapter))
        return found

    def foreign(self) -> list[str]:
        """Which artifacts tell of other corpora than this one."""
        told = {f"the cartridge {label}": [made.manifest.corpus_digest] for label, made in self.cartridges.items()}
        told |= {f"the adapter {label}": made.manifest.corpus_digests for label, made in self.adapters.items()}
        return [label for label, digests in told.items() if any(digests) and self.corpus.digest not in digests]

    def without_documents(self, strange: Sequence[str]) -> str:
        """Why no method reads the right document, where some of the questions name one."""
        if named := [name for name in strange if name]:
            return f"a question names the document {named[0]!r}, which is none of the corpus; the right one is left out"
        nameless = sum(not item.document for item in self.items)
        return f"{nameless} of {len(self.items)} questions name no document; the right one is left out"

    def adapted(self, method: Method) -> AbstractContextManager[None]:
        """Meanwhile the model is as the method wants it. Prompts of adapters share nothing that was read before."""
        return applied(self.engine.model, method.adapter) if method.adapter else nullcontext()

    def distributions(self, method: Method, targets: list[AskedTarget]) -> Iterator[torch.Tensor]:
        """Those of the engine; the model is adapted just while it reads, as methods take turns."""
        stream = self.engine.distributions_batch(targets)
        for _ in targets:
            with self.adapted(method):
                row_MV = next(stream)
            yield row_MV

    def untrained(self, label: str, cartridge: Cartridge) -> list[Method]:
        """The cartridge as it was before training, where its corpus is at hand to make it anew."""
        manifest = cartridge.manifest
        if manifest.corpus_digest != self.corpus.digest or manifest.initializer.get("kind") in (None, "cartridge"):
            self.notes.append(f"the untrained form of {label} cannot be made anew from this corpus, and is left out")
            return []
        try:
            config = InitializeConfig.told_by(manifest.initializer)
        except ConfigError as error:  # of a version that knew other kinds or fields
            self.notes.append(f"the untrained form of {label} cannot be made anew ({error}), and is left out")
            return []
        if config.kind in COMPACTED and config.compact.queries == "self_study":
            self.notes.append(
                f"the untrained form of {label} was matched to the conversations of its training, which are not at "
                "hand here, and is left out"
            )
            return []
        size = cartridge.num_slots
        start = initialize(self.engine.model, self.corpus, size, config, manifest.num_frozen)
        return [Method(f"{UNTRAINED}-{label}", f"untrained, {size} slots", {"": ""}, start, size)]

    def num_tokens(self, text: str) -> int:
        return len(self.engine.model.ids(text))

    def prompt(self, method: Method, item: Item) -> tuple[list[int], int]:
        """The ids that ask, and how many of them are a prefix shared with other questions."""
        return prompt_of(self.engine, method.system(item), item)

    def request(self, method: Method, item: Item) -> Request:
        ids, shared_len = self.prompt(method, item)
        return Request(
            tuple(ids),
            max_new_tokens=self.config.max_new_tokens,
            shared_len=shared_len,
            cartridge=method.cartridge,
        )

    def answer(self, method: Method, items: Sequence[Item], bar: Bar) -> Answered:
        """Ask everything, compare with the reference's replies, and time some questions alone."""
        order = sorted(range(len(items)), key=lambda index: method.system(items[index]))
        requests = [self.request(method, items[index]) for index in order]
        with self.adapted(method):
            found = self.engine.generate(requests, lambda num: bar.advance(num, method.label))
        results = [result for _, result in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]
        answered = Answered(results)
        alone = [len(self.prompt(method, item)[0]) for item in items]
        asked = [len(self.engine.model.chat.prompt([{"role": "user", "content": item.question}])) for item in items]
        answered.prompt_tokens = round(sum(a - b for a, b in zip(alone, asked, strict=True)) / len(items))
        answered.question_s = self.seconds_alone(method, items)
        return answered

    def seconds_alone(self, method: Method, items: Sequence[Item]) -> float:
        """The median seconds of one question and a reply of the same length for all methods.

        Nothing is shared with other questions, and nothing kept from before.
        """
        taken = []
        for item in items[:NUM_TIMED]:
            ids, _ = self.prompt(method, item)
            request = Request(tuple(ids), NUM_TIMED_TOKENS, cartridge=method.cartridge, stop_ids=frozenset())
            with self.adapted(method):
                started = time.perf_counter()
                self.engine.generate([request])
                taken.append(time.perf_counter() - started)
        return sorted(taken)[len(taken) // 2]

    def compare(self, methods: list[Method], items: Sequence[Item], reference: list[Result], bar: Bar) -> list[Any]:
        """For each method (mean KL in nats, top-1 agreement) against the first one, at the tokens of its replies."""
        order = sorted(range(len(items)), key=lambda index: [method.system(items[index]) for method in methods])
        order = [index for index in order if reference[index].token_ids]
        sums = [[0.0, 0] for _ in methods]
        num_tokens = sum(len(reference[index].token_ids) for index in order)
        streams = []
        for method in methods:
            targets = []
            for index in order:
                ids, shared_len = self.prompt(method, items[index])
                targets.append((ids, reference[index].token_ids, method.cartridge, shared_len))
            streams.append(self.distributions(method, targets))
        for rows in zip(*streams, strict=True):
            teacher_MV = rows[0]
            for total, student_MV in zip(sums, rows, strict=True):
                total[0] += float((teacher_MV.exp() * (teacher_MV - student_MV)).sum())
                total[1] += int((teacher_MV.argmax(-1) == student_MV.argmax(-1)).sum())
            bar.advance(1, "comparing distributions")
        return [(kl / num_tokens, agreed / num_tokens) for kl, agreed in sums] if num_tokens else [None] * len(methods)

    def table(self, methods: list[Method], items: Sequence[Item]) -> tuple[list[MethodResult], list[list[Result]]]:
        """A row for each method, the first being the reference, and all replies."""
        with progress("asking every method", len(items) * (len(methods) + 1)) as bar:
            answers = [self.answer(method, items, bar) for method in methods]
            closeness = self.compare(methods, items, answers[0].results, bar)
        rows = []
        for method, answered, close in zip(methods, answers, closeness, strict=True):
            scores = [item.score(result.text) for item, result in zip(items, answered.results, strict=True)]
            known = [score for score in scores if score is not None]
            tokens = answered.prompt_tokens
            slots = method.cartridge.num_slots if method.cartridge else 0
            rows.append(
                MethodResult(
                    method.name,
                    method.label,
                    method.num_slots,
                    len(items),
                    sum(known) / len(known) if known else None,
                    interval(known) if known else None,
                    close[0] if close else None,
                    close[1] if close else None,
                    self.engine.model.kv_bytes(slots or tokens),
                    tokens,
                    method.build_s,
                    answered.question_s,
                )
            )
        return rows, [answered.results for answered in answers]


def evaluate(
    engine: Engine,
    corpus: Corpus,
    items: Sequence[Item],
    cartridges: Mapping[str, Cartridge],
    config: EvaluateConfig | None = None,
    general: Sequence[Item] = (),
    adapters: Mapping[str, ThoughtAdapter] | None = None,
) -> Results:
    """Ask `items` of every method, and `general` questions, off the corpus, of the model alone and each artifact.

    Raises InputError where there is nothing to ask, FormatError for a cartridge or an adapter of another model.
    """
    config = config or EvaluateConfig.resolve()
    if not items:
        raise InputError(
            "given no questions, expected at least one; give a file of questions or hold out conversations"
        )
    adapters = adapters or {}
    for artifact in (*cartridges.values(), *adapters.values()):
        artifact.check_fits(engine.model.identity)
    sample = sorted(rng_of("evaluate", config.seed).sample(range(len(items)), min(len(items), config.max_items)))
    run = Evaluation(engine, corpus, [items[index] for index in sample], cartridges, config, adapters)
    if len(items) > config.max_items:
        run.notes.append(f"{config.max_items} of {len(items)} questions, drawn at random, were asked (max_items)")
    run.notes += [f"{label} was not made of these documents, or they have changed since" for label in run.foreign()]
    methods = run.methods()
    rows, replies = run.table(methods, run.items)
    told = [
        Reply(
            item.question,
            item.answer,
            item.kind,
            {method.name: found[index].text for method, found in zip(methods, replies, strict=True)},
            {
                method.name: score
                for method, found in zip(methods, replies, strict=True)
                if (score := item.score(found[index].text)) is not None
            },
        )
        for index, item in enumerate(run.items)
    ]
    off_corpus: list[MethodResult] = []
    if general and (cartridges or adapters):
        made = (NONE, CARTRIDGE, ADAPTER)
        alone = [method for method in methods if method.name.startswith(made)]
        off_corpus, _ = run.table(alone, general)
    about = {
        "model_id": engine.model.identity.model_id,
        "window": engine.model.window,
        "num_documents": len(corpus),
        "num_tokens": len(run.corpus_ids),
        "documents": [document.path for document in corpus],
        "digest": corpus.digest,
        "num_cut": sum(result.finish_reason == "length" for found in replies for result in found),
    }
    return Results(rows, methods[0].name, off_corpus, told, run.notes, about, provenance())
