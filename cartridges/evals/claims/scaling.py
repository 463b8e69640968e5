"""Claim g: quality against the number of conversations and steps, coverage, and the length of chunks."""

from cartridges.evals.finding import Finding, lead, point
from cartridges.evals.lab import Lab

TITLE = "More study, better cartridge"
PUBLISHED = (
    "arXiv 2506.06266: quality grows with self-study compute; 2606.32002: coverage of the corpus saturates early"
)


def scaling(lab: Lab) -> Finding:
    """One thing changed at a time, everything else at the preset's size."""
    finding = Finding("scaling", TITLE, PUBLISHED, x_label="conversations", log_x=True)
    task = lab.task()
    num_slots = lab.slots_for(task.corpus, 20)
    most = lab.config.num_conversations
    sizes = sorted({max(64, most // part // 64 * 64) for part in (8, 3, 1)})
    arms = [(f"{num} conversations", {"num_conversations": num}, {}) for num in sizes]
    arms += [
        (f"chunks of {low} to {high} tokens", {"chunk": {"kind": "structure", "min_len": low, "max_len": high}}, {})
        for low, high in ((30, 120), (300, 1200))
    ]
    arms += [(f"{steps} steps", {}, {"max_steps": steps}) for steps in steps_of(lab.config.steps)]
    reached = {}
    for label, study, training in arms:
        data = lab.study(task.corpus, **study)
        made = lab.train(data, task.corpus, num_slots, **training)
        record = lab.measure(task, lab.answers(made, data), "scaling-" + label.replace(" ", "-"), label)
        told = data.manifest.get("coverage", {})
        row = record.row() | {
            "conversations": len(data.conversations),
            "steps": made.manifest.metrics["steps"],
            "heldout_loss": round(made.manifest.metrics["heldout_loss"], 4),
            "characters_covered": told.get("character_ratio"),
            "salient_covered": told.get("salient_ratio"),
        }
        finding.rows.append(row)
        reached[label] = record
        if "num_conversations" in study:
            finding.curves.setdefault("by conversations", []).append(point(len(data.conversations), row))
    most_of, least_of = (reached[f"{num} conversations"] for num in (sizes[-1], sizes[0]))
    finding.checks.append(lead(f"{sizes[-1]} conversations minus {sizes[0]}", most_of, least_of))
    finding.about = {"task": task.name, "num_slots": num_slots, "num_items": len(task.items)}
    return finding


def steps_of(steps: int) -> list[int]:
    """A third of the steps; the preset's own are those of the largest number of conversations."""
    return [max(2, steps // 3)]
