"""Claim c, continued: fewer tokens of the read context as the slots that training starts from, and alone."""

from itertools import pairwise
from typing import Any

from cartridges.evals.finding import Check, Finding
from cartridges.evals.lab import Lab

TITLE = "A compacted context as a start, and instead of training"
PUBLISHED = "arXiv 2602.16284, QuALITY at 1-2% of the slots: attention matching 62-65, trained 59.9, full context 71.5"
STARTS = {
    "first tokens": "first_tokens",
    "eviction by attention": "kv_eviction",
    "attention matching": "attention_matching",
}
# The preset's rates are far above the published one, and may undo any start.
RATES: dict[str, dict[str, Any]] = {"preset's rates": {}, "published rate": {"lr": 0.02, "values_lr_ratio": 1.0}}
Curve = list[tuple[int, float]]  # steps, and the held-out loss after so many


def initializers(lab: Lab) -> Finding:
    """Held-out loss over steps from each start, and how soon each is where first tokens end."""
    finding = Finding("initializers", TITLE, PUBLISHED, x_label="steps", y_label="held-out loss, nats a token")
    task = lab.task()
    num_slots = lab.slots_for(task.corpus, 20)
    data = lab.study(task.corpus)
    alone = lab.run(task, "attention_matching", "attention matching alone", num_slots)
    finding.rows.append(alone.row())
    trained_s = 0.0
    for rate, values in RATES.items():
        goal: float | None = None
        for start, kind in STARTS.items():
            arm = {**values, "initialize": {"kind": kind}}
            made = lab.train(data, task.corpus, num_slots, **arm)
            curve = lab.heldout_curve(data, task.corpus, num_slots, **arm)
            label = f"trained from {start}, {rate}"
            record = lab.measure(task, lab.answers(made, data), f"from-{kind}-{made.digest[:8]}", label)
            trained_s = trained_s or record.build_s
            goal = curve[-1][1] if goal is None else goal
            reached = steps_to(curve, goal)
            told = {
                "loss_at_start": curve[0][1],
                "heldout_loss": curve[-1][1],
                "steps_to_loss_of_first_tokens": reached,
            }
            finding.rows.append(record.row() | told)
            finding.curves[f"{start}, {rate}"] = [[step, loss, loss, loss] for step, loss in curve]
            if start == "attention matching":
                ratio = reached / curve[-1][0] if reached is not None else None
                what = f"steps from attention matching over those from first tokens, same held-out loss, {rate}"
                finding.checks.append(Check(what, 0.5, ratio and round(ratio, 4), at_least=False))
    ratio = round(alone.build_s / trained_s, 4) if trained_s else None
    finding.checks.append(Check("seconds of attention matching alone over study and training", 0.05, ratio, False))
    finding.about = {"task": task.name, "num_slots": num_slots, "num_items": len(task.items)}
    return finding


def steps_to(curve: Curve, goal: float) -> float | None:
    """After how many steps the loss is down to `goal`, between two measurements in proportion; None if it never is."""
    if curve[0][1] <= goal:
        return float(curve[0][0])
    for (before, high), (after, low) in pairwise(curve):
        if low <= goal:
            return round(before + (after - before) * (high - goal) / (high - low), 1)
    return None
