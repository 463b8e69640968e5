"""Claim e: cartridges trained apart, together: as they are, with one sink, and with keys turned to their old distance.

Shapes: G key/value heads, P slots, H head size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from cartridges.cartridge import Cartridge
from cartridges.compose import compose
from cartridges.corpus import Corpus
from cartridges.errors import InputError
from cartridges.evals.finding import Finding, lead, point
from cartridges.evals.lab import Lab
from cartridges.evals.method import Answerer
from cartridges.evals.record import Answer, Record
from cartridges.evals.task import Task

TITLE = "Cartridges trained apart, put together"
PUBLISHED = (
    "arXiv 2506.06266: two trained apart can be concatenated; 2606.04557: 20 stacked as they are 26.0 (no context "
    "37.5), trained beside others 77.8 (oracle 79.0); 2608.30647: one sink recovers about half"
)
ONE_SINK, TURNED, AS_THEY_ARE, ALONE = "one sink", "one sink, keys turned", "as they are", "each alone"


def stacked(parts: Sequence[Cartridge], one_sink: bool) -> Cartridge:
    """The slots of all parts behind each other with their keys untouched; without the sinks of all but the first."""
    skipped = [part.num_frozen if one_sink and number else 0 for number, part in enumerate(parts)]

    def joined(name: str, layer: int) -> torch.Tensor:
        pairs = zip(parts, skipped, strict=True)
        return torch.cat([getattr(part, name)[layer][:, skip:] for part, skip in pairs], 1)

    if any(part.bias is not None for part in parts):
        raise InputError("given cartridges with a bias, expected such without; stacking them is for the claim alone")
    num_layers = len(parts[0].keys)
    keys, values = ([joined(name, layer) for layer in range(num_layers)] for name in ("keys", "values"))
    manifest = parts[0].manifest.model_copy(
        update={"num_slots": keys[0].shape[1], "name": "stacked", "digest": "", "parents": [p.digest for p in parts]}
    )
    return Cartridge(keys, values, manifest).sealed()


def each_alone(lab: Lab, task: Task, parts: Sequence[Cartridge]) -> Record:
    """Each question asked of the cartridge of its own document, as one record."""
    found: list[Answer] = []
    label, stamp = f"{len(parts)} documents, {ALONE}", {}
    for document, part in zip(task.corpus, parts, strict=True):
        numbers = [number for number, item in enumerate(task.items) if item.document == document.path]
        if not numbers:
            continue
        own = Task(f"{task.name}-{document.path}", Corpus([document]), tuple(task.items[n] for n in numbers))
        record = lab.measure(own, lab.answers(part), "alone", label)
        found += [replace(answer, item=numbers[answer.item]) for answer in record.answers]
        stamp = {**record.stamp, "task_digest": task.digest, "method": f"alone-{len(parts)}"}
    slots = max(part.num_slots for part in parts)
    return Record(stamp, sorted(found, key=lambda a: a.item), label, slots, lab.model.kv_bytes(slots))


def composition(lab: Lab) -> Finding:
    """One cartridge a document, each 10 times smaller; questions about all documents with all of them loaded."""
    finding = Finding("composition", TITLE, PUBLISHED, x_label="cartridges together")
    most = max(lab.config.num_composed)
    share = max(120, lab.config.num_tokens // 4)
    whole = lab.task(num_tokens=most * share, num_documents=most)
    documents = list(whole.corpus)
    made: list[Answerer] = []
    for document in documents:
        corpus = Corpus([document])
        data = lab.study(corpus, num_conversations=max(64, lab.config.num_conversations // 2))
        trained = lab.train(data, corpus, lab.slots_for(corpus, 10), max_steps=max(3, lab.config.steps // 2))
        made.append(lab.answers(trained, data))
    for num in lab.config.num_composed:
        paths = [document.path for document in documents[:num]]
        items = tuple(replace(item) for item in whole.items if item.document in paths)
        task = Task(f"{whole.name}-first{num}", Corpus(documents[:num]), items)
        parts = [answerer.cartridge for answerer in made[:num] if answerer.cartridge]
        build_s = sum(answerer.build_s for answerer in made[:num])
        forms = {
            TURNED: compose(parts, lab.model),
            ONE_SINK: stacked(parts, one_sink=True),
            AS_THEY_ARE: stacked(parts, one_sink=False),
        }
        oracle = lab.run(task, "document", "the right document", 0)
        alone = replace(each_alone(lab, task, parts), build_s=build_s)
        records = {ALONE: alone}
        for label, cartridge in forms.items():
            name = f"{label.replace(' ', '-').replace(',', '')}-{num}"
            answerer = Answerer(cartridge=cartridge, build_s=build_s)
            records[label] = lab.measure(task, answerer, name, f"{num} together, {label}")
        finding.rows.append({**oracle.row(), "num_together": num})
        for label, record in records.items():
            row = {**record.row(alone), "num_together": num}
            finding.rows.append(row)
            finding.curves.setdefault(label, []).append(point(num, row))
        what = f"{num} together, keys turned minus as they are"
        finding.checks.append(lead(what, records[TURNED], records[AS_THEY_ARE]))
    finding.notes.append(
        "all are trained alone; the bytes of each are a tenth of its document's. What training beside others does is "
        "not measured here"
    )
    finding.notes.append("seconds are those of all parts' study and training; putting them together takes none")
    finding.about = {"documents": len(documents), "slots": [a.cartridge.num_slots for a in made if a.cartridge]}
    return finding
