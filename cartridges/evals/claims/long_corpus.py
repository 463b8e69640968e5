"""Claim d: a corpus of several windows, against truncation, retrieval and an oracle that reads the right document."""

from dataclasses import replace

from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from cartridges.evals.finding import Check, Finding, point, share
from cartridges.evals.lab import Lab
from cartridges.evals.method import built

TITLE = "A corpus larger than the model's window"
PUBLISHED = "arXiv 2506.06266: effective context from 128k to 484k tokens on MTOB, +11.0 chrF over the truncated book"


def long_corpus(lab: Lab) -> Finding:
    """Corpora of several windows for a model that is held to one, with cartridges 20 times smaller than the corpus."""
    finding = Finding("long_corpus", TITLE, PUBLISHED, x_label="windows of corpus", log_x=True)
    window = lab.config.window
    held = Engine(replace(lab.model, window=window))
    room = window - 288  # what questions, replies and the chat format leave of the window
    record = None
    for num in lab.config.windows:
        task = lab.task(num_tokens=num * room)
        num_slots = min(lab.slots_for(task.corpus, 20), window // 2)
        times = min(num, lab.config.most_study)
        data = lab.study(task.corpus, num_conversations=times * lab.config.num_conversations)
        rows = {}
        for method, label in (("truncated", "truncated to the window"), ("bm25", "retrieval, BM25, equal bytes")):
            budget = room if method == "truncated" else num_slots
            shop = lab.workshop(task, budget, held)
            rows[label] = lab.measure(task, built(method, shop), f"{method}-{budget}-w{window}", label, held)
        try:
            oracle = lab.run(task, "document", "the right document", 0)
        except InputError as error:
            finding.notes.append(f"{num} windows: {error}")
            continue
        made = lab.train(data, task.corpus, num_slots, max_steps=times * lab.config.steps)
        label = "cartridge, 20x fewer than the whole text"
        record = lab.measure(task, lab.answers(made, data), f"cartridge-{num_slots}-w{window}", label, held)
        rows = {"the right document": oracle, label: record, **rows}
        for name, measured in rows.items():
            row = {**measured.row(oracle), "windows": num, "corpus_tokens": lab.num_tokens(task.corpus)}
            finding.rows.append(row)
            finding.curves.setdefault(name, []).append(point(num, row))
        if num == max(lab.config.windows):
            finding.checks.append(share(f"cartridge over the right document, {num} windows", 0.90, record, oracle))
            cut = rows["truncated to the window"].accuracy
            finding.checks.append(Check(f"truncation, {num} windows", 0.25, cut, at_least=False))
    finding.notes.append(
        f"conversations and steps are in proportion to the windows, up to {lab.config.most_study} times those of one"
    )
    finding.notes.append(
        f"the bundled model has a window of {lab.model.window:,} tokens and is held to {window:,} here, so that "
        "several windows of corpus can be studied on a laptop; it reads no worse for that"
    )
    finding.about = {"window": window, "num_items": record and len(record.answers)}
    return finding
