"""Claim a: self-study matches the full context at a fraction of its bytes; all methods at equal bytes."""

from cartridges.errors import InputError
from cartridges.evals.finding import Finding, lead, point, share
from cartridges.evals.lab import Lab
from cartridges.evals.method import METHODS
from cartridges.evals.record import Record
from cartridges.evals.task import Task

SIZED = {
    "cartridge": "cartridge",
    "untrained": "first tokens as slots, untrained",
    "truncated": "truncated context",
    "summary": "summary by the model",
    "bm25": "retrieval, BM25",
    "embeddings": "retrieval, own embeddings",
    "attention_matching": "attention matching",
    "eviction": "eviction by attention",
}
ONCE = {"next_token": "next-token on conversations", "raw_text": "next-token on raw text", "lora": "LoRA"}
ONCE |= {"adapter": "adapter of any size", "adapter_at_budget": "adapter"}
TARGETS = {20: 0.97, 50: 0.93, 100: 0.85}
TITLE = "Self-study matches the full context with far fewer bytes"
PUBLISHED = (
    "arXiv 2506.06266: the quality of full context with 38.6x less memory on average; attention matching "
    "(2602.16284) 62-65 on QuALITY at 2%, trained 59.9, full 71.5"
)


def capacity(lab: Lab) -> Finding:
    """Accuracy against bytes on ward look-ups of the test split."""
    finding = Finding("capacity", TITLE, PUBLISHED, x_label="times fewer bytes than the full context", log_x=True)
    task = lab.task()
    full = lab.run(task, "full_context", "full context", lab.num_tokens(task.corpus))
    none = lab.run(task, "no_context", "no context", 0)
    oracle = lab.run(task, "document", "the right document", 0)
    finding.rows += [record.row(full) for record in (full, oracle, none)]
    missing = [name for name in SIZED if name not in METHODS]
    if missing:
        finding.notes.append(f"not in this build, and so not measured: {', '.join(missing)}")
    reached: dict[int, dict[str, Record]] = {factor: {} for factor in lab.config.factors}
    for factor in lab.config.factors:
        num_slots = lab.slots_for(task.corpus, factor)
        at_twenty = factor == 20 or len(lab.config.factors) == 1
        methods = {**SIZED, **ONCE} if at_twenty else SIZED
        for name, label in methods.items():
            if name in missing:
                continue
            try:
                record = lab.run(task, name, f"{label}, {factor}x", num_slots)
            except InputError as error:
                finding.notes.append(f"{label} at {factor}x: {error}")
                continue
            row = {**record.row(full), "factor": factor}
            finding.rows.append(row)
            finding.curves.setdefault(label, []).append(point(factor, row))
            reached[factor][name] = record
            if name == "cartridge" and factor in TARGETS:
                add_share(finding, "cartridge", factor, record, full)
                if lab.config.thorough > 1 and at_twenty:
                    add_thorough(finding, lab, task, full, factor)
    add_leads(finding, reached)
    finding.notes.append(
        f"the study's seed prompts are of the kinds {', '.join(lab.config.seed_kinds or ['all'])}, as look-ups are "
        "asked; this was chosen on validation documents. What other kinds give other questions is another table"
    )
    finding.about = {"task": task.name, "num_tokens": lab.num_tokens(task.corpus), "num_items": len(task.items)}
    return finding


def add_share(finding: Finding, what: str, factor: int, record: Record, full: Record) -> None:
    """The target of this size."""
    finding.checks.append(share(f"{what} over full context at {factor}x", TARGETS[factor], record, full))


def add_thorough(finding: Finding, lab: Lab, task: Task, full: Record, factor: int) -> None:
    """A second cartridge of this size, with several times the conversations and the steps."""
    times = lab.config.thorough
    num_slots = lab.slots_for(task.corpus, factor)
    data = lab.study(task.corpus, num_conversations=times * lab.config.num_conversations)
    made = lab.train(data, task.corpus, num_slots, max_steps=times * lab.config.steps)
    label = f"cartridge, {times} times the study"
    record = lab.measure(task, lab.answers(made, data), f"thorough-{num_slots}", f"{label}, {factor}x")
    record.num_slots = num_slots
    row = {**record.row(full), "factor": factor}
    finding.rows.append(row)
    finding.curves.setdefault(label, []).append(point(factor, row))
    add_share(finding, label, factor, record, full)


def add_leads(finding: Finding, reached: dict[int, dict[str, Record]]) -> None:
    """The cartridge against the best other method of each size from 20x on."""
    for factor, records in reached.items():
        others = [record for name, record in records.items() if name != "cartridge"]
        if factor >= 20 and "cartridge" in records and others:
            best = max(others, key=lambda record: record.accuracy)
            what = f"cartridge minus the best other at {factor}x ({best.label})"
            finding.checks.append(lead(what, records["cartridge"], best))
