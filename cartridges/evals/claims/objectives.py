"""Claim b: next-token training does not do what distillation does; hard labels, seed prompts, the speaker's tokens."""

from cartridges.evals.finding import Finding, lead
from cartridges.evals.lab import MIXED, Lab

TITLE = "Distillation on self-study, not next-token training"
PUBLISHED = (
    "arXiv 2506.06266: distillation over next-token on the same data +8.3 chrF on MTOB and +3.7 on LongHealth; five "
    "kinds of seed prompts over one +7.9 chrF and about +5"
)


def objectives(lab: Lab) -> Finding:
    """The same slots and steps, with other losses and other conversations."""
    finding = Finding("objectives", TITLE, PUBLISHED)
    task = lab.task(MIXED)
    num_slots = lab.slots_for(task.corpus, 20)
    data = lab.study(task.corpus, seed_kinds=None)
    one_kind = lab.study(task.corpus, seed_kinds=["question"])
    with_questions = lab.study(task.corpus, seed_kinds=None, question_logprobs=True)
    arms = {
        "distilled": ("distillation, five kinds of seed prompts", data, {}),
        "hard": ("next-token on the same conversations", data, {"objective": "next_token"}),
        "text": ("next-token on the raw text", None, {"objective": "text"}),
        "one-kind": ("distillation, one kind of seed prompt", one_kind, {}),
        "questions": ("distillation, speaker A's tokens too", with_questions, {}),
    }
    full = lab.run(task, "full_context", "full context", lab.num_tokens(task.corpus))
    records = {}
    for name, (label, dataset, values) in arms.items():
        made = lab.train(dataset, task.corpus, num_slots, **values)
        records[name] = lab.measure(task, lab.answers(made, dataset), f"{name}-{num_slots}", label)
    base = records["distilled"]
    finding.rows = [full.row(base), *(record.row(base) for record in records.values())]
    for name, label in (("hard", "hard labels"), ("text", "raw text"), ("one-kind", "one kind of seed prompt")):
        finding.checks.append(lead(f"distillation minus {label}", base, records[name]))
    finding.notes.append("differences and ratios are against distillation with five kinds of seed prompts")
    finding.about = {"task": task.name, "kinds": MIXED, "num_slots": num_slots, "num_items": len(task.items)}
    return finding
