"""Claim f: what a cartridge does to questions off its corpus, and to questions that the corpus does not answer."""

from cartridges.evals.finding import Finding, lead, loss
from cartridges.evals.lab import Lab
from cartridges.evals.tasks.pocket import general_task

TITLE = "Off the corpus: harm, and saying so"
PUBLISHED = (
    "Apple 2026 (Cartridges++): a cartridge harms answers outside its corpus and abstains on unanswerable questions in "
    "at most 10% of cases, full context 36-98%; 5% general conversations in training fix much"
)


def off_corpus(lab: Lab) -> Finding:
    """Cartridges trained with and without general conversations: general knowledge, abstention, look-ups."""
    finding = Finding("off_corpus", TITLE, PUBLISHED)
    lookups, missing = lab.task(), lab.task(("unanswerable",))
    num_slots = lab.slots_for(lookups.corpus, 20)
    shares = {"15% general conversations": 0.15, "5% general conversations": 0.05, "none": 0.0}
    data = {label: lab.study(lookups.corpus, general_share=share) for label, share in shares.items()}
    asked = {
        talk.messages[0]["content"] for dataset in data.values() for talk in dataset.conversations if not talk.document
    }
    general = general_task(lab.config.num_items, lab.config.seed, tuple(sorted(asked)))
    tasks = {"general knowledge": general, "unanswerable": missing, "look-ups": lookups}
    alone = {name: lab.run(task, "no_context", "no context", 0) for name, task in tasks.items()}
    full = {name: lab.run(tasks[name], "full_context", "full context", 0) for name in ("unanswerable", "look-ups")}
    for name in tasks:
        for record in (alone[name], *([full[name]] if name in full else [])):
            finding.rows.append({**record.row(), "asked": name})
    reached = {}
    for label, dataset in data.items():
        made = lab.train(dataset, lookups.corpus, num_slots)
        for name, task in tasks.items():
            record = lab.measure(task, lab.answers(made, dataset), f"off-{shares[label]}", f"cartridge, {label}")
            reference = full.get(name, alone[name])
            finding.rows.append({**record.row(reference), "asked": name})
            reached[label, name] = record
    first = "15% general conversations"
    kept, without = reached[first, "general knowledge"], reached["none", "general knowledge"]
    finding.checks += [
        loss("general knowledge lost, 15% general", 0.02, alone["general knowledge"], kept),
        lead("general knowledge, 15% general minus none", kept, without),
    ]
    finding.notes.append(
        "self-study asks nothing that its text does not answer, so it shows no example of saying so; what general "
        "questions of the table ask for was asked for in no conversation, in whatever words"
    )
    finding.about = {"task": lookups.name, "num_slots": num_slots, "num_items": len(lookups.items)}
    return finding
