"""Claim h: memory, throughput, the cost of building and the number of questions after which it has paid.

Throughput is of this package's own engine in this process, all requests at once, slots already in memory; what servers
reach is measured by the serving benchmarks.
"""

import time

from cartridges.engine.request import Request
from cartridges.evals.finding import Check, Finding
from cartridges.evals.harness import prompt_of
from cartridges.evals.lab import Lab
from cartridges.evals.method import Answerer, built
from cartridges.synthesis import study_seconds

TITLE = "Memory, throughput, cost and break-even"
PUBLISHED = (
    "arXiv 2506.06266: 38.6x less memory, 26.4x higher peak throughput (random slots in memory, 128 decoded tokens); "
    "about 4 H100-hours to train"
)
NUM_REQUESTS, NUM_NEW = 16, 32


def cost(lab: Lab) -> Finding:
    """Equal questions behind the full context and behind cartridges of several sizes."""
    finding = Finding("cost", TITLE, PUBLISHED)
    task = lab.task()
    text = built("full_context", lab.workshop(task, lab.num_tokens(task.corpus)))
    full = timed(lab, task.items, text)
    finding.rows.append({"label": "full context", **full})
    for factor in lab.config.factors:
        num_slots = lab.slots_for(task.corpus, factor)
        data = lab.study(task.corpus)
        made = lab.train(data, task.corpus, num_slots)
        ours = timed(lab, task.items, lab.answers(made, data))
        saved = full["question_s"] - ours["question_s"]
        build_s = round(study_seconds(data) + float(made.manifest.metrics["seconds"]), 1)
        row = {
            "label": f"cartridge, {factor}x",
            **ours,
            "bytes_ratio": round(full["kv_bytes"] / ours["kv_bytes"], 2),
            "times_throughput": round(ours["tokens_per_s"] / full["tokens_per_s"], 2),
            "study_s": round(study_seconds(data), 1),
            "train_s": made.manifest.metrics["seconds"],
            "break_even_questions": round(build_s / saved) if saved > 0 else None,
        }
        finding.rows.append(row)
        if factor == 20:
            finding.checks.append(Check("times fewer bytes", 20.0, row["bytes_ratio"]))
    finding.notes.append(
        "break-even counts seconds on this machine: those of study and training over what each question saves when the "
        "full context is read anew for it. With a prefix cache that keeps the context, less is saved"
    )
    finding.notes.append(
        "requests of one batch share the context or the slots in memory, as the engine stores a prefix once; a server "
        "whose requests do not share gains more"
    )
    finding.about = {"num_requests": NUM_REQUESTS, "num_new_tokens": NUM_NEW, "num_tokens": lab.num_tokens(task.corpus)}
    return finding


def timed(lab: Lab, items: tuple, answerer: Answerer) -> dict[str, float]:
    """Bytes, seconds of one question alone (median of three) and tokens a second of many at once."""
    asked = [prompt_of(lab.engine, answerer.system(item), item) for item in items[:NUM_REQUESTS]]

    def seconds(requests: list[Request]) -> float:
        started = time.perf_counter()
        lab.engine.generate(requests)
        return time.perf_counter() - started

    def request(ids: list[int], shared: int) -> Request:
        return Request(tuple(ids), NUM_NEW, shared_len=shared, cartridge=answerer.cartridge, stop_ids=frozenset())

    alone = sorted(seconds([request(ids, 0)]) for ids, _ in asked[:3])
    together = seconds([request(ids, shared) for ids, shared in asked])
    shared_len = asked[0][1]
    slots = answerer.cartridge.num_slots if answerer.cartridge else 0
    return {
        "kv_bytes": lab.model.kv_bytes(slots or shared_len),
        "num_slots": slots,
        "question_s": round(alone[len(alone) // 2], 4),
        "tokens_per_s": round(len(asked) * NUM_NEW / together, 1),
    }
