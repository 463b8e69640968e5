"""Claim h: memory, throughput, the cost of building and the number of questions after which it has paid.

Throughput is of this package's own engine in this process, all requests at once, slots already in memory; what servers
reach is measured by the serving benchmarks.
"""

import time
from collections.abc import Mapping, Sequence
from statistics import median

from cartridges.engine.request import Request
from cartridges.evals.finding import Check, Finding
from cartridges.evals.harness import prompt_of
from cartridges.evals.lab import Lab
from cartridges.evals.method import Answerer, built
from cartridges.ledger import break_even
from cartridges.synthesis import study_seconds

TITLE = "Memory, throughput, cost and break-even"
PUBLISHED = (
    "arXiv 2506.06266: 38.6x less memory, 26.4x higher peak throughput (random slots in memory, 128 decoded tokens); "
    "about 4 H100-hours to train"
)
NUM_REQUESTS, NUM_NEW, NUM_ROUNDS = 16, 32, 9


def cost(lab: Lab) -> Finding:
    """Equal questions behind the full context and behind cartridges of several sizes."""
    finding = Finding("cost", TITLE, PUBLISHED)
    task = lab.task()
    data = lab.study(task.corpus)
    made = {factor: lab.train(data, task.corpus, lab.slots_for(task.corpus, factor)) for factor in lab.config.factors}
    text = built("full_context", lab.workshop(task, lab.num_tokens(task.corpus)))
    arms = {"full context": text, **{f"cartridge, {factor}x": lab.answers(made[factor], data) for factor in made}}
    timed = times(lab, task.items, arms)
    full = timed["full context"]
    finding.rows.append({"label": "full context", **full})
    study_s = round(study_seconds(data), 1)
    for factor, cartridge in made.items():
        label = f"cartridge, {factor}x"
        ours, train_s = timed[label], float(cartridge.manifest.metrics["seconds"])
        row = {
            "label": label,
            **ours,
            "bytes_ratio": round(full["kv_bytes"] / ours["kv_bytes"], 2),
            "times_throughput": round(ours["tokens_per_s"] / full["tokens_per_s"], 2),
            "study_s": study_s,
            "train_s": train_s,
            "break_even_questions": break_even(study_s + train_s, full["question_s"], ours["question_s"]),
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
    finding.notes.append(f"seconds and tokens/s are medians of {NUM_ROUNDS} rounds in which all take turns")
    finding.about = {"num_requests": NUM_REQUESTS, "num_new_tokens": NUM_NEW, "num_tokens": lab.num_tokens(task.corpus)}
    return finding


def times(lab: Lab, items: tuple, arms: Mapping[str, Answerer]) -> dict[str, dict[str, float]]:
    """Of each arm bytes, seconds of one question alone and tokens a second of many at once.

    All take turns, so that what else the machine does meets them alike; the first round warms up and does not count.
    """
    asked: dict[str, list[tuple[list[int], int]]] = {
        label: [prompt_of(lab.engine, arm.system(item), item) for item in items[:NUM_REQUESTS]]
        for label, arm in arms.items()
    }

    def seconds(label: str, prompts: Sequence[tuple[list[int], int]]) -> float:
        slots = arms[label].cartridge
        requests = [
            Request(tuple(ids), NUM_NEW, shared_len=shared, cartridge=slots, stop_ids=frozenset())
            for ids, shared in prompts
        ]
        started = time.perf_counter()
        lab.engine.generate(requests)
        return time.perf_counter() - started

    alone: dict[str, list[float]] = {label: [] for label in arms}
    together: dict[str, list[float]] = {label: [] for label in arms}
    for number in range(NUM_ROUNDS + 1):
        for label, prompts in asked.items():
            ids, _ = prompts[number % len(prompts)]
            took = seconds(label, [(ids, 0)]), seconds(label, prompts)
            if number:
                alone[label].append(took[0])
                together[label].append(took[1])
    found = {}
    for label, arm in arms.items():
        slots = arm.cartridge.num_slots if arm.cartridge else 0
        found[label] = {
            "kv_bytes": lab.model.kv_bytes(slots or asked[label][0][1]),
            "num_slots": slots,
            "question_s": round(median(alone[label]), 4),
            "tokens_per_s": round(len(asked[label]) * NUM_NEW / median(together[label]), 1),
        }
    return found
