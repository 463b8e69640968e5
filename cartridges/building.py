"""The verb `build`: a folder of documents to trained, measured cartridges with their report, in one run folder.

`conversations/` is the self-study, `slots-128/` a training run with its `cartridge/`, `results.json` what was
measured, `README.md` and `report.html` the report. Each step takes up what it finds, so a build that was stopped
goes on and a finished one does nothing twice.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, model_validator

from cartridges.cartridge import Cartridge
from cartridges.clients.base import Client
from cartridges.config import Config
from cartridges.conversation import opening
from cartridges.corpus import Corpus
from cartridges.dataset import SPLIT, Dataset
from cartridges.engine.engine import Engine
from cartridges.errors import ConfigError, FormatError, InputError
from cartridges.evaluation import EvaluateConfig, evaluate
from cartridges.find import SOURCE
from cartridges.model import Model
from cartridges.pocket.items import item_of
from cartridges.pocket.knowledge import ask_general, unasked
from cartridges.questions import Item
from cartridges.recipe import TrainConfig
from cartridges.report import Ledger, write_report
from cartridges.results import RESULTS, Results
from cartridges.rng import rng_of
from cartridges.run_folder import disk_errors_told, json_bytes, write_json, write_whole
from cartridges.seeds import load_seeds
from cartridges.study_plan import SynthesizeConfig
from cartridges.synthesis import check_same, study_seconds, synthesize
from cartridges.training import train

CONVERSATIONS = "conversations"
Say = Callable[[str], None]


class BuildConfig(Config):
    """Everything a build can be told: one part a step."""

    slots: list[Annotated[int, Field(gt=1)]] = Field(
        default=[1024], min_length=1, description="a cartridge of each size is built"
    )
    synthesize: SynthesizeConfig = SynthesizeConfig.resolve()
    train: TrainConfig = TrainConfig.resolve()
    evaluate: EvaluateConfig = EvaluateConfig.resolve()
    max_general: int = Field(
        default=100, ge=0, description="questions off the corpus, for the harm that a cartridge does"
    )

    presets = {
        name: {
            "slots": [TrainConfig.resolve(name).slots],
            "synthesize": SynthesizeConfig.presets[name],
            "train": TrainConfig.presets[name],
        }
        for name in ("default", "pocket")
    }

    elsewhere = {"train.slots": "slots=[N] in a build, for one cartridge or several"}

    @model_validator(mode="before")
    @classmethod
    def _largest_is_trained(cls, values: Any) -> Any:
        """What else is told of the training has to fit the sizes that are built, and not the preset's."""
        slots, run = (values.get(key) for key in ("slots", "train"))
        if isinstance(run, dict) and slots and isinstance(slots, list) and all(type(size) is int for size in slots):
            return {**values, "train": {**run, "slots": max(slots)}}
        return values

    def train_config(self, num_slots: int) -> TrainConfig:
        """The configuration of one size."""
        return TrainConfig.resolve(values={**self.train.model_dump(), "slots": num_slots})


@dataclass
class Build:
    """What a build gave."""

    folder: Path
    results: Results
    cartridges: dict[int, Cartridge] = field(default_factory=dict)
    dataset: Dataset | None = None

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def plan_lines(corpus: Corpus, model: Model, config: BuildConfig, num_items: int) -> list[str]:
    """What is going to be done, in a few lines."""
    num_tokens = len(model.ids(corpus.text))
    full = model.kv_bytes(num_tokens)
    sizes = ", ".join(f"{size} slots ({num_tokens / size:.0f}x fewer)" for size in config.slots)
    asked = f"{num_items} questions of your file" if num_items else "held-out conversations"
    return [
        f"corpus: {corpus.summary()}, {num_tokens:,} tokens",
        f"model: {model.identity.model_id}, window {model.window:,}; reading it all keeps {full / 1e6:,.1f} MB",
        f"cartridge: {sizes}",
        f"study: {config.synthesize.num_conversations:,} conversations, {config.train.epochs} epochs; then {asked}",
    ]


def build(
    corpus: Corpus,
    engine: Engine,
    out: Path,
    config: BuildConfig | None = None,
    items: Sequence[Item] = (),
    say: Say = lambda text: None,
    source: Mapping[str, Sequence[str]] = MappingProxyType({"documents": ()}),
    teacher: Client | None = None,
) -> Build:
    """Synthesize, train every size, evaluate, report; `say` hears what happens and why.

    `items` are questions to measure with; without them held-out conversations are. `source` tells where the corpus is
    from (`documents`, `include`, `exclude`), so that it can be read again. `teacher` writes the conversations instead
    of the engine. Raises InputError, ConfigError where `out` holds a build of something else, InterruptedRun when
    stopped: the same call then goes on.
    """
    out, model = Path(out), engine.model
    config = config or BuildConfig.resolve(model.profile)
    items = list(items)
    check_sizes(corpus, model, config)
    if not items and not config.train.holdout_share:
        raise InputError("given no questions and train.holdout_share=0, expected one of them to measure with")
    with disk_errors_told(out):
        claim_source(out, corpus, source)
        check_extension(out, config)
        say("1/4 self-study: the model writes conversations about pieces of the corpus")
        dataset = synthesize(corpus, teacher or engine, config.synthesize, out / CONVERSATIONS)
        if not items and not heldout_items(dataset, config.train):
            raise InputError(
                f"none of {len(dataset.conversations)} conversations about the corpus is held out to measure with; "
                "give --questions FILE, more conversations, or a higher train.holdout_share"
            )
        cartridges: dict[int, Cartridge] = {}
        for number, size in enumerate(config.slots, start=1):
            of_all = f" ({number} of {len(config.slots)})" if len(config.slots) > 1 else ""
            say(f"2/4 training {size} slots to answer as the model that has read the piece{of_all}")
            run = config.train_config(size)
            cartridges[size] = train(dataset, model, corpus, run, out / f"slots-{size}", name=out.name)
        say("3/4 measuring: the same questions with no context, with the corpus, and with the cartridge")
        results = measured(out, corpus, engine, dataset, cartridges, items, config)
        say("4/4 writing the report")
        report(out, results, cartridges, dataset)
    return Build(out, results, cartridges, dataset)


def check_sizes(corpus: Corpus, model: Model, config: BuildConfig) -> None:
    """Refuse, before any work, sizes that the corpus or the window cannot fill."""
    num_tokens = len(model.ids(corpus.text))
    for size in config.slots:
        if size > num_tokens:
            raise InputError(
                f"given {size} slots for a corpus of {num_tokens} tokens; give fewer slots, or read the corpus itself: "
                "it is cheaper"
            )
        study = config.synthesize
        talk = study.rounds * (study.question.max_new_tokens + study.answer.max_new_tokens)
        longest = max(talk, config.evaluate.max_new_tokens)
        if size + longest > model.window:
            raise InputError(
                f"given {size} slots and conversations of up to {longest} tokens, expected at most the window of "
                f"{model.window} together; give fewer slots or shorter conversations"
            )
        config.train_config(size)
    _ = model.head  # refuses a model that training cannot project


def check_extension(out: Path, config: BuildConfig) -> None:
    """Refuse other conversations than those that finished cartridges were trained on."""
    known = out / CONVERSATIONS / "config.yaml"
    if known.exists() and any(out.glob("slots-*/checkpoint.pt")):
        begun = SynthesizeConfig.load(known)
        check_same(begun, config.synthesize, known.parent)
        before, given = begun.num_conversations, config.synthesize.num_conversations
        if before != given:
            raise ConfigError(
                f"{out} was trained on {before} conversations, given {given}; "
                "give another --out, or delete its slots-* folders to train anew"
            )


def claim_source(out: Path, corpus: Corpus, source: Mapping[str, Sequence[str]]) -> None:
    """Remember what the folder is built from, or refuse a folder that was built from something else."""
    path = out / SOURCE
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))["corpus_digest"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} cannot be read; give another folder, or delete this one") from error
        if known != corpus.digest:
            raise ConfigError(f"{out} was built from other documents, or they have changed; give another --out")
        return
    if out.is_dir() and (other := sorted(path.name for path in out.iterdir() if not path.name.endswith(".partial"))):
        raise InputError(f"{out} holds other files ({other[0]}); give a new or empty folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    about = {"corpus_digest": corpus.digest, **source, "summary": corpus.summary()}
    write_json(path, about)


def heldout_items(dataset: Dataset, trained: Cartridge | TrainConfig) -> list[Item]:
    """What the training of a cartridge, or one of this configuration, holds out, as questions that nothing scores.

    Questions about the corpus alone, each once. Raises InputError for a cartridge that no training made, or one of an
    older version, which held out others.
    """
    told = trained.manifest.training if isinstance(trained, Cartridge) else {**trained.model_dump(), "split": SPLIT}
    if told.get("split") != SPLIT:
        raise InputError(
            "given a cartridge that was not trained, or by an older version, expected one of `train`; "
            "what was held out for it is not known: train anew"
        )
    _, heldout = dataset.split(told["holdout_share"], told["seed"])
    talks = [talk for talk in heldout.conversations if talk.document]
    first = {opening(talk.messages, talk.index): talk for talk in reversed(talks)}
    return [
        Item(talk.messages[0]["content"], talk.messages[1]["content"], document=talk.document, kind=talk.seed_kind)
        for talk in sorted(first.values(), key=lambda talk: talk.index)
    ]


def general_items(model: Model, dataset: Dataset, limit: int) -> list[Item]:
    """Questions off the corpus that no conversation asked; with known answers for the bundled model.

    Of the bundled model's facts those are left out that a conversation asked for in other words, too.
    """
    asked = {talk.messages[0]["content"] for talk in dataset.conversations if not talk.document}
    if model.profile == "pocket":
        rng = rng_of("build", "general")
        facts = unasked(asked)
        found = [item_of(ask_general(rng, fact)) for fact in rng.sample(facts, len(facts))]
    else:
        found = [Item(prompt, "", kind="general") for prompt in load_seeds("default").general]
    return [item for item in found if item.question not in asked][:limit]


def measured(
    out: Path,
    corpus: Corpus,
    engine: Engine,
    dataset: Dataset,
    cartridges: dict[int, Cartridge],
    items: list[Item],
    config: BuildConfig,
) -> Results:
    """The results in the folder if they are of these very cartridges and questions, else new ones."""
    path, stamp_path = out / RESULTS, out / "measured.json"
    asked = items or heldout_items(dataset, next(iter(cartridges.values())))
    stamp = {
        "cartridges": [cartridge.digest for cartridge in cartridges.values()],
        "items": [asdict(item) for item in asked],
        "config": config.evaluate.model_dump(mode="json"),
        "max_general": config.max_general,
    }
    content = json_bytes(stamp, indent=None)
    if path.exists() and stamp_path.exists() and stamp_path.read_bytes() == content:
        try:
            return Results.load(path)
        except FormatError:
            stamp_path.unlink()
    study_s = study_seconds(dataset)
    for size, cartridge in cartridges.items():
        cartridge.manifest.metrics["build_s"] = round(study_s + cartridge.manifest.metrics["seconds"], 2)
        cartridge.manifest.write(out / f"slots-{size}" / "cartridge")
    general = general_items(engine.model, dataset, config.max_general)
    named = {str(size): cartridge for size, cartridge in cartridges.items()}
    started = time.monotonic()
    results = evaluate(engine, corpus, asked, named, config.evaluate, general)
    results.about["seconds"] = round(time.monotonic() - started, 2)
    results.about["questions"] = "given" if items else "held-out conversations"
    stamp_path.unlink(missing_ok=True)  # so that no other results are ever taken for what it tells of
    results.save(path)
    write_whole(stamp_path, content)
    return results


def report(out: Path, results: Results, cartridges: dict[int, Cartridge], dataset: Dataset) -> None:
    """Write the report, and beside every cartridge its card."""
    study = dataset.manifest
    tokens = study.get("num_tokens", {})
    read, written = (int(tokens.get(key, 0)) for key in ("prompt", "new")) if isinstance(tokens, dict) else (0, 0)
    entries = [("synthesize", read, written, study_seconds(dataset))]
    for size, cartridge in cartridges.items():
        metrics = cartridge.manifest.metrics
        entries.append((f"train {size} slots", int(metrics["num_tokens"]), 0, float(metrics["seconds"])))
    entries.append(("evaluate", 0, 0, float(results.about.get("seconds", 0.0))))
    manifests = [cartridge.manifest for cartridge in cartridges.values()]
    metrics_paths = [out / f"slots-{size}" / "metrics.jsonl" for size in cartridges]
    write_report(out, results, manifests, Ledger(entries), study.get("coverage", {}), study, metrics_paths)
    card = (out / "README.md").read_bytes()
    for size in cartridges:
        folder = out / f"slots-{size}" / "cartridge"
        write_whole(folder / "README.md", card)
        for picture in out.glob("*.png"):
            write_whole(folder / picture.name, picture.read_bytes())
