"""Claim c: initialisation, the frozen sink, which part is trained, the learning rate. On validation documents."""

from typing import Any

from cartridges.evals.finding import Finding, lead
from cartridges.evals.lab import Lab
from cartridges.evals.record import Record
from cartridges.evals.tasks.pocket import general_task

TITLE = "What of the recipe matters"
PUBLISHED = (
    "arXiv 2506.06266, LongHealth on 3B: first corpus tokens 55.3, unrelated text 51.3, random 29.9; the first slot "
    "frozen, or off-corpus ability collapses. 2508.17032: values move ten times more than keys. Learning rate 2e-2"
)
OTHER_TEXT = "The old road came back to the quiet garden in spring. A grey cat looked at the harbour for a while. "


def recipe(lab: Lab) -> Finding:
    """One choice changed at a time; held-out loss, accuracy, and general knowledge for the sink."""
    finding = Finding("recipe", TITLE, PUBLISHED)
    task = lab.task(split="validation")
    num_slots = lab.slots_for(task.corpus, 20)
    data = lab.study(task.corpus)
    asked = tuple(talk.messages[0]["content"] for talk in data.conversations if not talk.document)
    general = general_task(lab.config.num_items, avoid=asked)
    text = {"kind": "text", "text": OTHER_TEXT * (1 + num_slots // 16)}
    arms: dict[str, dict[str, Any]] = {
        "random slots first, as pocket's preset": {},
        "first corpus tokens first": {"initialize": {"kind": "first_tokens"}},
        "sampled pieces of the corpus first": {"initialize": {"kind": "chunks"}},
        "unrelated text first": {"initialize": text},
        "no frozen sink": {"frozen_slots": 0},
        "values only": {"trained": "values"},
        "keys only": {"trained": "keys"},
        "a fifth of the learning rate": {"lr": 0.01},
        "three times the learning rate": {"lr": 0.15},
        "keys and values at one rate, 0.2": {"lr": 0.2, "values_lr_ratio": 1.0},
    }
    base = None
    asked_of: dict[str, Record] = {}
    off_corpus: dict[str, Record] = {}
    for number, (label, values) in enumerate(arms.items()):
        made = lab.train(data, task.corpus, num_slots, max_steps=max(2, lab.config.steps // 2), **values)
        answers = lab.answers(made, data)
        record = lab.measure(task, answers, f"recipe-{number}", label)
        base = base or record
        kept = lab.measure(general, answers, f"recipe-{number}-{made.digest[:8]}", label)
        asked_of[label], off_corpus[label] = record, kept
        row = record.row(base)
        row |= {"heldout_loss": round(made.manifest.metrics["heldout_loss"], 4), "general": round(kept.accuracy, 4)}
        finding.rows.append(row)
    first, random, no_sink = "first corpus tokens first", "random slots first, as pocket's preset", "no frozen sink"
    finding.checks += [
        lead("first corpus tokens minus random", asked_of[first], asked_of[random]),
        lead("general knowledge, frozen sink minus none", off_corpus[random], off_corpus[no_sink]),
    ]
    finding.notes.append("half of the other claims' steps each, as what counts is the difference between rows")
    finding.notes.append("made on validation documents, as these are choices; other tables are of test documents")
    finding.about = {"task": task.name, "num_slots": num_slots, "num_items": len(task.items)}
    return finding
