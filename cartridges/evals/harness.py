"""The verb `measure`: the questions of a task asked of what a method made, greedily, each written down as it comes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import InterruptedRun
from cartridges.evals.method import Answerer, Workshop, built
from cartridges.evals.record import Answer, AnswerFile, Record
from cartridges.evals.task import Task
from cartridges.log import progress
from cartridges.model import weights_digest
from cartridges.provenance import commit
from cartridges.questions import Item
from cartridges.run_folder import StopSignals

NUM_TOGETHER = 64  # questions between two writes to the file of answers


def prompt_of(engine: Engine, system: str, item: Item) -> tuple[list[int], int]:
    """The ids that ask, and how many of them are a prefix that other questions share."""
    chat = engine.model.chat
    messages = [{"role": "system", "content": system}] if system else []
    ids = chat.prompt([*messages, {"role": "user", "content": item.question}])
    shared = chat.system_prefix(system) if system else []
    return ids, len(shared) if ids[: len(shared)] == shared else 0


def made_of(answerer: Answerer, systems: Sequence[str]) -> str:
    """A digest of what answers: the slots, the system texts, and the weights where the method changed the model."""
    told = [answerer.cartridge.digest if answerer.cartridge else "", *systems, str(answerer.kept_bytes)]
    if answerer.engine is not None:
        told.append(weights_digest(answerer.engine.model.hf))  # its identity may still be that of the unchanged model
    return _digest(told)


def model_of(engine: Engine) -> str:
    """A digest of the model that methods begin with: its weights and its tokenizer."""
    identity = engine.model.identity
    return _digest([identity.weights_digest, identity.tokenizer_digest])


def _digest(told: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def measure(
    task: Task, name: str, answerer: Answerer, engine: Engine, folder: Path, label: str = "", num_slots: int = 0
) -> Record:
    """Ask every item that the file `folder/name.jsonl` does not hold yet, and give the record of all.

    An empty reply is an answer that scores as wrong, and is counted. Raises InputError for a file of another run,
    InterruptedRun after the questions during which SIGINT or SIGTERM came.
    """
    used = answerer.engine or engine
    systems = [answerer.system(item) for item in task.items]
    stamp = {
        "task": task.name,
        "task_digest": task.digest,
        "method": name,
        "model": model_of(engine),
        "made_of": made_of(answerer, systems),
        "commit": commit(),
    }
    file = AnswerFile(folder / f"{name}.jsonl", stamp, len(task.items))
    todo = sorted((n for n in range(len(task.items)) if n not in file.answers), key=lambda n: (systems[n], n))
    with progress(f"asking {label or name}", len(task.items)) as bar, StopSignals() as stop:
        bar.advance(len(file.answers))
        for first in range(0, len(todo), NUM_TOGETHER):
            asked = todo[first : first + NUM_TOGETHER]
            for answer in answered(task, asked, systems, answerer, used):
                file.add(answer)
            bar.advance(len(asked))
            if stop.asked and first + NUM_TOGETHER < len(todo):
                raise InterruptedRun(f"stopped with {len(file.answers)} answers in {file.path}; give the command again")
    file.log.close()
    answers = file.ordered()
    if answerer.kept_bytes is not None:
        kept = answerer.kept_bytes
    elif answerer.cartridge:
        bias = answerer.cartridge.bias or []
        kept = engine.model.kv_bytes(answerer.cartridge.num_slots) + sum(part.nbytes for part in bias)
    else:
        kept = engine.model.kv_bytes(round(sum(answer.prompt_tokens for answer in answers) / len(answers)))
    slots = answerer.cartridge.num_slots if answerer.cartridge else num_slots
    return Record(stamp, answers, label or name, slots, kept, answerer.build_s, list(answerer.notes))


def answered(
    task: Task, asked: Sequence[int], systems: Sequence[str], answerer: Answerer, engine: Engine
) -> list[Answer]:
    """The answers to the items with these numbers."""
    prompts = [prompt_of(engine, systems[number], task.items[number]) for number in asked]
    requests = [
        Request(tuple(ids), task.max_new_tokens, shared_len=shared_len, cartridge=answerer.cartridge)
        for ids, shared_len in prompts
    ]
    found = []
    for number, (ids, _), result in zip(asked, prompts, engine.generate(requests), strict=True):
        item = task.items[number]
        score = item.score(result.text)
        assert score is not None, "a task has golds for every item"
        num_question = len(prompt_of(engine, "", item)[0])
        is_cut = result.finish_reason == "length"
        found.append(Answer(number, result.text, score, len(ids) - num_question, is_cut))
    return found


def run(task: Task, method: str, workshop: Workshop, label: str = "") -> Record:
    """Build the method and measure it on the task."""
    answerer = built(method, workshop)
    return measure(task, method, answerer, workshop.engine, workshop.folder / "answers", label, workshop.num_slots)
