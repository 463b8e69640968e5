"""The verb `pocket eval`: how well a model reads, knows and asks, on documents of a split it was not trained on.

Each question is asked alone (greedy) behind its context; a cell is one family, kind and context length. Intervals are
Wilson's at 95% for right-or-wrong scores and normal ones for chrF; they take questions for independent, though several
are about one document.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from cartridges.engine.engine import Engine
from cartridges.errors import InputError, unknown_name
from cartridges.intervals import interval
from cartridges.log import progress
from cartridges.pocket.families import FAMILIES
from cartridges.pocket.generate import CUT, generate
from cartridges.pocket.knowledge import ask_general, draw_general, draw_unknown, general_facts
from cartridges.pocket.lessons import fill_context, relations_by_kind
from cartridges.pocket.names import SPLITS, Names
from cartridges.pocket.questions import Question, draw
from cartridges.pocket.scoring import score
from cartridges.pocket.seeds import QUESTION_SHARES, SEED_PROMPTS, USE_CASES, bound
from cartridges.pocket.understand import understand
from cartridges.pocket.world import Context, Fact
from cartridges.rng import rng_of

DOCUMENT, TWO, NONE = "document", "two documents", "none"
SHORTEST, LONGEST = 300, 800  # tokens of "one document in context"
DOCUMENT_SIZES = {"ward": 4, "firm": 4, "code": 7, "tongue": 5, "haystack": 5}
QUESTIONS = {
    "lookup": 10,
    "reverse": 4,
    "two_hop": 4,
    "comparison": 4,
    "count": 4,
    "multiple_choice": 4,
    "json": 3,
    "yaml": 3,
    "summary": 3,
    "creative": 2,
    "translation": 8,
    "unanswerable": 5,
    "general": 3,
}
LENGTHS = (1000, 2000, 4000)


@dataclass
class Cell:
    """Scores in [0, 1] of one kind of question on one family at one context length."""

    family: str
    kind: str
    length: str
    scores: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.scores)

    @property
    def text(self) -> str:
        """The mean in percent and half the width of the interval: "97.5 ±1.2"."""
        low, high = self.interval
        return f"{self.mean:.1%} ±{(high - low) * 50:.1f}"


@dataclass(frozen=True)
class Target:
    """A line of the summary: which cells it pools, and what the bundled model has to reach."""

    name: str
    kinds: tuple[str, ...]
    length: str
    least: float


TARGETS = (
    Target("lookup, one document in context (300-800 tokens)", ("lookup",), DOCUMENT, 0.99),
    Target("lookup at 2,000 tokens of context", ("lookup",), "2000", 0.98),
    Target("lookup at 4,000 tokens of context", ("lookup",), "4000", 0.95),
    Target("two hops", ("two_hop",), DOCUMENT, 0.90),
    Target("comparison", ("comparison",), DOCUMENT, 0.90),
    Target("comparison across two documents", ("comparison",), TWO, 0.90),
    Target("count", ("count",), DOCUMENT, 0.90),
    Target("multiple choice", ("multiple_choice",), DOCUMENT, 0.97),
    Target("JSON and YAML parse and hold the right values", ("json", "yaml"), DOCUMENT, 0.97),
    Target("unanswerable: says so", ("unanswerable",), DOCUMENT, 0.95),
    Target("general knowledge, no context", ("general",), NONE, 0.99),
    Target("general knowledge, with an unrelated document", ("general",), DOCUMENT, 0.98),
    Target("asked for a question: well-formed and answerable", ("ask",), DOCUMENT, 0.97),
    Target("facts of a chunk that 1,000 messages at temperature 1 touch", ("coverage",), DOCUMENT, 0.95),
    Target("translation of unseen sentences (chrF / 100)", ("translation",), DOCUMENT, 0.90),
)


@dataclass(frozen=True)
class Line:
    """A target with what was measured: the mean of `num` scores and its 95% bounds."""

    name: str
    least: float
    mean: float
    low: float
    high: float
    num: int


class Report:
    """All cells of an evaluation, and the lines made of them."""

    def __init__(self) -> None:
        self.num_cut = 0  # replies that did not end by themselves
        self.cells: dict[tuple[str, str, str], Cell] = {}

    def add(self, family: str, kind: str, length: str, value: float) -> None:
        self.cells.setdefault((family, kind, length), Cell(family, kind, length)).scores.append(value)

    def pooled(self, kinds: tuple[str, ...], length: str, family: str = "") -> list[float]:
        return [
            value
            for cell in self.cells.values()
            if cell.kind in kinds and cell.length == length and family in ("", cell.family)
            for value in cell.scores
        ]

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(cell.family for cell in self.cells.values()))

    def kinds_by_length(self) -> dict[str, list[str]]:
        """The kinds measured at each context length, in the order of measuring."""
        found: dict[str, dict[str, None]] = {}
        for cell in self.cells.values():
            found.setdefault(cell.length, {})[cell.kind] = None
        return {length: list(kinds) for length, kinds in found.items()}

    def lines(self) -> Iterator[Line]:
        """One line for each target that was measured."""
        for target in TARGETS:
            if scores := self.pooled(target.kinds, target.length):
                mean = sum(scores) / len(scores)
                yield Line(target.name, target.least, mean, *interval(scores), num=len(scores))

    def to_json(self) -> dict[str, object]:
        cells = [
            {
                "family": cell.family,
                "kind": cell.kind,
                "length": cell.length,
                "mean": cell.mean,
                "low": cell.interval[0],
                "high": cell.interval[1],
                "num": len(cell.scores),
            }
            for cell in self.cells.values()
        ]
        return {"num_cut": self.num_cut, "targets": [asdict(line) for line in self.lines()], "cells": cells}


class Evaluation:
    """One evaluation: a model, a split, a seed and how much of everything is asked (`scale` 1 is the full table)."""

    def __init__(self, engine: Engine, split: str, seed: int, scale: float) -> None:
        self.engine = engine
        self.split, self.seed, self.scale = split, seed, scale
        self.report = Report()

    def scaled(self, count: int) -> int:
        return max(1, round(count * self.scale))

    def num_tokens(self, text: str) -> int:
        return len(self.engine.model.ids(text))

    def document(self, family: str, index: int, num_documents: int = 1) -> Context:
        """A context of 300 to 800 tokens."""
        size = max(1, DOCUMENT_SIZES[family] // num_documents)
        rng = rng_of("eval", self.split, self.seed, family, num_documents, index)
        for _ in range(1000):
            names = Names(rng, self.split)
            drawn = max(1, size + rng.randint(-1, 2))
            context = Context([FAMILIES[family](rng, names, drawn) for _ in range(num_documents)], names)
            if SHORTEST <= self.num_tokens(context.text) <= LONGEST:
                return context
        raise InputError(
            f"no {family} document has {SHORTEST} to {LONGEST} tokens with this tokenizer; give a model with pocket's"
        )

    def replies(self, text: str, messages: list[str], temperature: float = 0.0) -> list[str]:
        """The model's replies, with those counted that did not end."""
        found = generate(self.engine, text, messages, temperature=temperature, seed=self.seed)
        self.report.num_cut += sum(reply.endswith(CUT) for reply in found)
        return found

    def ask(self, family: str, length: str, context: Context, counts: dict[str, int], index: int) -> None:
        """Ask `counts` questions of each kind, or fewer, no two on the same facts, and score the replies.

        Of two documents, comparisons are asked that need both. Beside a tongue stand other documents to fill a length:
        questions are about the tongue.
        """
        about = Context(context.documents[:1], context.names) if context.grammar else context
        questions: dict[tuple[object, ...], Question] = {}
        for kind, count in counts.items():
            rng = rng_of("questions", self.split, self.seed, family, length, index, kind)
            for _ in range(2 * count):
                question = draw_general(rng) if kind == "general" else draw(rng, about, kind)
                if question is None or (length == TWO and kind == "comparison" and in_one(context, question)):
                    continue
                key = (kind, frozenset(question.needs) or question.text)
                if sum(known == kind for known, _ in questions) < count:
                    questions.setdefault(key, question)
        found = self.replies(context.text, [question.text for question in questions.values()])
        for question, reply in zip(questions.values(), found, strict=True):
            self.report.add(family, question.kind, length, score(question, reply))

    def documents(self) -> Iterator[Callable[[], None]]:
        for family in FAMILIES:
            for index in range(self.scaled(20)):
                yield lambda family=family, index=index: self.one_document(family, index)
            for index in range(self.scaled(6)):
                yield lambda family=family, index=index: self.ask(
                    family,
                    TWO,
                    self.document(family, index, 2),
                    {"lookup": 6, "comparison": 8},
                    index,
                )

    def one_document(self, family: str, index: int) -> None:
        context = self.document(family, index)
        self.ask(family, DOCUMENT, context, QUESTIONS, index)
        rng = rng_of("seeds", self.split, self.seed, family, index)
        prompts = [bound(rng.choice(prompts), rng.choice(context.passages)) for prompts in SEED_PROMPTS.values()]
        for kind, message in zip(SEED_PROMPTS, self.replies(context.text, prompts), strict=True):
            self.report.add(family, "ask", DOCUMENT, float(fits(kind, message, understand(message, context))))

    def long_contexts(self) -> Iterator[Callable[[], None]]:
        counts = {"lookup": 15, "two_hop": 3, "multiple_choice": 3, "unanswerable": 3, "general": 3}
        for family in FAMILIES:
            for length in LENGTHS:
                for index in range(self.scaled(5)):
                    context = self.long_context(family, length, index)
                    yield lambda f=family, n=length, c=context, i=index: self.ask(f, str(n), c, counts, i)

    def long_context(self, family: str, length: int, index: int) -> Context:
        """As close to `length` tokens as whole documents come, from below."""
        best = fill_context(rng_of("long", self.split, self.seed, family, length, index, 0), family, self.split, 300)
        best_len = self.num_tokens(best.text)
        for attempt in range(24):
            rng = rng_of("long", self.split, self.seed, family, length, index, attempt)
            context = fill_context(rng, family, self.split, round(length * (1.15 - 0.03 * attempt)))
            num_tokens = self.num_tokens(context.text)
            if best_len < num_tokens <= length:
                best, best_len = context, num_tokens
            if best_len > 0.95 * length:
                break
        return best

    def without_context(self) -> Iterator[Callable[[], None]]:
        def general() -> None:
            facts = general_facts()[:: max(1, round(1 / self.scale))]
            self.ask_alone([ask_general(rng_of("general", self.seed, f.subject, f.relation.noun), f) for f in facts])

        def unknown() -> None:
            rng = rng_of("unknown", self.split, self.seed)
            relations = relations_by_kind(rng, self.split)
            self.ask_alone([draw_unknown(rng, self.split, relations) for _ in range(self.scaled(200))])

        yield general
        yield unknown

    def ask_alone(self, questions: list[Question]) -> None:
        """Ask without any context."""
        for question, reply in zip(questions, self.replies("", [q.text for q in questions]), strict=True):
            self.report.add(NONE, question.kind, NONE, score(question, reply))

    def coverage(self) -> Iterator[Callable[[], None]]:
        """1,000 messages at temperature 1 about a chunk of about 30 facts: which facts do they touch?"""
        for family in FAMILIES:
            yield lambda family=family: self.cover(family)

    def cover(self, family: str) -> None:
        """A fact is touched where the answer to a message states it; rhymes, which state any one, do not count.

        As in self-study, messages are bound to the passages of the text in turn.
        """
        context = self.chunk_of_thirty(family)
        kinds = [kind for _ in range(self.scaled(200)) for kind in SEED_PROMPTS]
        prompts = []
        for index, kind in enumerate(kinds):
            passage = context.passages[index // len(SEED_PROMPTS) % len(context.passages)]
            prompts.append(bound(rng_of("cover", index).choice(SEED_PROMPTS[kind]), passage))
        touched: set[Fact] = set()
        for kind, message in zip(kinds, self.replies(context.text, prompts, temperature=1.0), strict=True):
            question = understand(message, context)
            self.report.add(family, "ask at temperature 1", DOCUMENT, float(fits(kind, message, question)))
            if question and question.kind != "creative":
                touched |= {fact for fact in question.needs if fact.value.strip("-") in question.answer}
        for fact in context.facts:
            self.report.add(family, "coverage", DOCUMENT, float(fact in touched))

    def chunk_of_thirty(self, family: str) -> Context:
        drawn = (self.document(family, index, 2 if family == "haystack" else 1) for index in range(1000, 1040))
        return min(drawn, key=lambda context: abs(len(context.facts) - 30))


ASKED_FOR = {
    "structuring": {"json", "yaml"},
    "summarization": {"summary"},
    "creative": {"creative"},
    "use_case": {"lookup"},
    "question": {*QUESTION_SHARES},
}


def fits(seed_kind: str, message: str, question: Question | None) -> bool:
    """Whether a message was understood, and is of the kind that its seed prompt asked for."""
    if question is None or question.kind not in ASKED_FOR[seed_kind]:
        return False
    return message.startswith(USE_CASES) == (seed_kind == "use_case")


def in_one(context: Context, question: Question) -> bool:
    """Whether one document of the context tells all that the question needs."""
    return any(set(question.needs) <= set(document.facts) for document in context.documents)


def check_split(split: str) -> None:
    """Raises InputError unless `split` is one."""
    if split not in SPLITS:
        raise InputError(unknown_name("split", split, SPLITS))


def evaluate(engine: Engine, split: str = "test", seed: int = 0, scale: float = 1.0) -> Report:
    """Measure everything. `scale` below 1 asks fewer questions, for wider intervals in less time."""
    check_split(split)
    run = Evaluation(engine, split, seed, scale)
    parts = [*run.documents(), *run.long_contexts(), *run.without_context(), *run.coverage()]
    with progress("measuring pocket", len(parts)) as bar:
        for part in parts:
            part()
            bar.advance()
    return run.report
