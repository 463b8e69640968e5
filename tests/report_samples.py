"""Small results and manifests by hand, for the tests of the report."""

import dataclasses
import itertools
import math

from cartridges.cartridge import LayerShape, Manifest, ModelIdentity
from cartridges.ledger import Ledger
from cartridges.results import MethodResult, Reply, Results
from cartridges.verdict import verdict

NUM = 40
BYTES_PER_SLOT = 2 * 2 * 2 * 16 * 4  # bytes a number, keys and values, heads, head size, layers
BASIC = {"full_context": 36, "no_context": 4, "truncated-64": 10, "untrained-64": 6, "cartridge-64": 34}


def wilson(right, num):
    """Bounds by solving |p - right/num| = z sqrt(p(1-p)/num) for p."""
    z, mean = 1.959964, right / num
    a, b, c = 1 + z * z / num, -(2 * mean + z * z / num), mean * mean
    root = math.sqrt(b * b - 4 * a * c)
    return ((-b - root) / (2 * a), (-b + root) / (2 * a))


def a_row(method, right=None, num=NUM, **changes):
    kind, _, size = method.partition("-")
    slots = int(size) if size.isdigit() else 0
    tokens = {"full_context": 2000, "truncated": slots}.get(kind, 0)
    label = {"full_context": "full context", "no_context": "no context"}.get(method, f"{kind}, {slots} slots")
    row = MethodResult(
        method=method,
        label=label,
        num_slots=slots,
        num_questions=num,
        accuracy=None if right is None else right / num,
        ci95=None if right is None else wilson(right, num),
        kl_per_token={"full_context": 0.0, "cartridge": 0.214}.get(kind, 1.75),
        top1_agreement={"full_context": 1.0, "cartridge": 0.9077}.get(kind, 0.45),
        kv_bytes=(tokens or slots) * BYTES_PER_SLOT,
        prompt_tokens=tokens,
        build_s=100.0 if kind == "cartridge" else 0.0,
        question_s=0.9 if kind == "full_context" else 0.4,
    )
    return dataclasses.replace(row, **changes)


def some_results(rights=BASIC, num=NUM, with_replies=True, **changes):
    """Every method is right on the first so many questions."""
    replies = [
        Reply(f"q{i}?", f"a{i}", "lookup", {m: f"a{i}" if i < r else "no idea" for m, r in rights.items()}, scores)
        for i in range(num)
        if (scores := {m: float(i < r) for m, r in rights.items()}) or True
    ]
    rows = [a_row(method, right, num) for method, right in rights.items()]
    results = Results(rows, "full_context", replies=replies if with_replies else [])
    return dataclasses.replace(results, **changes)


def changed(results, method, **changes):
    rows = [dataclasses.replace(row, **changes) if row.method == method else row for row in results.methods]
    return dataclasses.replace(results, methods=rows)


def a_manifest(num_slots=64, model_id="Qwen/Qwen3-0.6B", name="ward"):
    identity = ModelIdentity(
        model_id=model_id,
        architecture="qwen3",
        fingerprint="f",
        weights_digest="w",
        tokenizer_digest="t",
        rope={},
        layers=[LayerShape(num_kv_heads=2, head_size=16)] * 4,
        vocab_size=100,
    )
    return Manifest(name=name, model=identity, num_slots=num_slots, num_frozen=1, digest="cd" * 32)


LEDGER = Ledger([("synthesize", 5000, 700, 60.0), ("train 64 slots", 3000, 0, 40.0), ("evaluate", 0, 0, 25.0)])


def parsed_table(text):
    """The first table of a Markdown text: a dict by column for each row."""
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), text[text.index("| method") :].splitlines()))
    cells = [[cell.strip().strip("*").replace("\\", "") for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def words(results, ledger=LEDGER):
    headline, items = verdict(results, ledger)
    return " ".join([headline, *items])
