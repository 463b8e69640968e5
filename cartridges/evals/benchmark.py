"""The verb `bench`: one task, several methods at one budget, a table with paired intervals against a reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from cartridges.config import Config
from cartridges.engine.engine import Engine
from cartridges.errors import InputError, OtherRun, TooLong, unknown_name
from cartridges.evals.finding import Finding
from cartridges.evals.harness import model_of, run
from cartridges.evals.method import METHODS, Workshop, own_methods
from cartridges.evals.record import Record
from cartridges.evals.task import Task
from cartridges.provenance import commit, provenance
from cartridges.recipe import TrainConfig
from cartridges.run_folder import check_stamp
from cartridges.study_plan import SynthesizeConfig
from cartridges.synthesis import synthesize

RESULTS, STAMP = "results.json", "bench.json"


class BenchConfig(Config):
    """What is compared; `task` are the options of the task's loader."""

    methods: list[str] = Field(
        default=["no_context", "full_context", "truncated", "bm25", "cartridge"],
        min_length=1,
        description="in this order",
    )
    slots: int = Field(default=1024, gt=1, description="the budget, in keys and values of so many tokens")
    task: dict[str, Any] = Field(default={}, description="options of the task, as path=FILE")
    synthesize: SynthesizeConfig = SynthesizeConfig.resolve()
    train: TrainConfig = TrainConfig.resolve()

    presets = {
        "default": {},
        "pocket": {
            "slots": 64,
            "synthesize": SynthesizeConfig.presets["pocket"],
            "train": TrainConfig.presets["pocket"],
        },
    }


def check_methods(names: list[str]) -> None:
    """Raises InputError for an unknown name, and for one given twice, whose answers would be counted twice."""
    known = {**METHODS, **own_methods}
    for number, name in enumerate(names):
        if name not in known:
            raise InputError(unknown_name("method", name, known))
        if name in names[:number]:
            raise InputError(f"given the method {name} twice, expected each once")


def bench(
    task: Task, engine: Engine, config: BenchConfig, out: Path, say: Callable[[str], None] = lambda text: None
) -> Finding:
    """Measure every method in the folder `out`; the first is the reference. Writes `results.json`.

    A method that cannot work at this size or window is told of in the notes. Raises OtherRun where `out` holds answers
    of another size, task, model or commit; InputError where the first method does not work, unless what it reads is too
    long for the window: the next one that works is then the reference, and its note says so.
    """
    check_methods(config.methods)
    if not any((out / "answers").glob("*.jsonl")):
        (out / STAMP).unlink(missing_ok=True)  # nothing came of it
    told = {"task": task.digest, "slots": config.slots, "model": model_of(engine), "commit": commit()}
    check_stamp(out / STAMP, told)
    chat = engine.model.chat
    longest = max(len(chat.prompt([{"role": "user", "content": item.question}])) for item in task.items)
    shop = Workshop(
        engine,
        task.corpus,
        out,
        config.slots,
        lambda: synthesize(task.corpus, engine, config.synthesize, out / "study"),
        config.train,
        task.max_new_tokens,
        longest,
        study_config=config.synthesize,
    )
    finding = Finding("bench", f"{task.name}, {config.slots} slots", task.published or "nothing", y_label=task.metric)
    reference: Record | None = None
    for number, method in enumerate(config.methods):
        say(f"{method}: building and asking {len(task.items)} questions")
        try:
            record = run(task, method, shop)
        except OtherRun:
            raise
        except InputError as error:
            if not number and not isinstance(error, TooLong):
                raise InputError(
                    f"the first method, {method}, is the reference and cannot be measured: {error}; or name another "
                    "method first"
                ) from error
            finding.notes.append(f"{method}: {error}")
            continue
        reference = reference or record
        finding.rows.append(record.row(reference))
    if reference is None:
        raise InputError(f"none of the methods could be measured: {'; '.join(finding.notes)}")
    if reference.method != config.methods[0]:
        finding.notes[0] += f"; so the reference is {reference.method}, the first method that could be measured"
    finding.about = {"task": task.name, "digest": task.digest, "metric": task.metric, "reference": reference.method}
    finding.provenance = provenance()
    finding.save(out / RESULTS)
    return finding
