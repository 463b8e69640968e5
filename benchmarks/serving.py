"""Answers behind cartridges: our engine beside Hugging Face's `generate` with PEFT's CARTRIDGE, and full context.

    python benchmarks/serving.py                       # pocket, minutes; writes results/serving_pocket.json
    python benchmarks/serving.py --model qwen3-0.6b    # random weights of that shape
    python benchmarks/serving.py --quick               # seconds, to see that it works

1. Many requests at once behind one cartridge, and behind several, of several sizes: tokens/s of `Engine.generate` and
   of `generate` with PEFT, which takes one cartridge a batch. All prompts have one length and all replies have one, so
   nothing is padded, which is the kindest to fixed batches. Both read greedily, and must write the same tokens before
   anything is timed.
2. The same, mixed: four cartridges that are asked unevenly, prompts and replies of many lengths. With PEFT, the
   requests of a cartridge are a batch, padded at the left and masked, which runs to its longest reply, as nobody knows
   before how long replies get. Only tokens that were wanted count. Here both must write the same tokens in the very
   requests that are timed. All are there from the beginning: those that come later would wait for PEFT's next batch.
3. Decoding behind full contexts and behind cartridges of several sizes, within one budget of keys and values: the
   largest batch that fits, up to `--batch`. Cartridges are shared by all or one each; full contexts are one each.
   Reading the prompts is not in these times.
4. The time to the first token: of a cartridge that lies on disk, one that was loaded, one that was used before, and of
   the text itself, unread and read before; and what attaching a loaded cartridge to a request takes.

Methods take turns, repetition by repetition, so that whatever else the machine does meets them all alike.
"""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from serving_requests import NEVER, PROMPT_LEN, SHAPES, random_cartridge, random_ids, random_model, requests_of
from serving_speed import decode_speed, first_tokens

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import CartridgesError
from cartridges.log import progress
from cartridges.model import Model, load_model
from cartridges.provenance import package_version, provenance

try:
    from serving_peft import concurrent, mixed
except ImportError:
    print("error: PEFT, with which this compares, is not installed; pip install 'peft>=0.21'", file=sys.stderr)
    sys.exit(2)

RESULTS = Path(__file__).parent / "results"


def by_context(model: Model, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Part 3: a row for each context length and each size of cartridge."""
    rows: list[dict[str, Any]] = []
    kv_bytes = sum(2 * layer.num_kv_heads * layer.head_size for layer in model.identity.layers) * model.dtype.itemsize
    kinds = [("full context", length) for length in given.contexts]
    kinds += [(kind, slots) for slots in given.sizes for kind in ("cartridge each", "one cartridge")]
    with progress("decoding", len(kinds)) as bar:
        for kind, length in kinds:
            own = PROMPT_LEN + given.new_tokens + (0 if kind == "one cartridge" else length)
            held = length if kind == "one cartridge" else 0
            if PROMPT_LEN + given.new_tokens + length > model.window:
                bar.advance(1)
                continue
            batch = max(1, min(given.batch, (given.budget - held) // own))
            # room for rows to grow: what is asked for is what fits the budget, not how it is cut
            engine = Engine(model, kv_tokens_total=4 * max(given.budget, own))
            if kind == "full context":
                requests = [
                    Request(random_ids(model, length + PROMPT_LEN, kind, i), given.new_tokens, stop_ids=NEVER)
                    for i in range(batch)
                ]
            else:
                num = 1 if kind == "one cartridge" else batch
                cartridges = [random_cartridge(model, length, seed) for seed in range(num)]
                requests = requests_of(model, cartridges, batch, given.new_tokens)
            _, *speeds = [decode_speed(engine, requests) for _ in range(given.repetitions + 1)]
            engine.close()
            known = [speed for speed in speeds if speed is not None]
            speed = round(median(known), 1) if len(known) == len(speeds) else None
            row = {"kind": kind, "length": length, "batch": batch, "tokens_per_s": speed}
            rows.append({**row, "kv_mb": round((batch * own + held) * kv_bytes / 1e6, 1)})
            bar.advance(1, kind)
    return rows


def show(result: dict[str, Any]) -> None:
    """Print what was found."""
    for kind, row in [*(("", row) for row in result["concurrent"]), *(("mixed ", row) for row in result["mixed"])]:
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in row["tokens_per_s"].items())
        asked = f"{result['requests']} {kind}requests, {row['cartridges']} cartridges of {row['slots']} slots"
        print(f"{asked}: {speeds} tokens/s, {row['ratio']:.2f}x")
    for row in result["by_context"]:
        speed = "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}"
        name = f"{row['kind']:16} {row['length']:6} tokens  batch {row['batch']:3}"
        print(f"{name}  {speed:>9} tokens/s  {row['kv_mb']:8.1f} MB")
    for name, took in result["first_token_ms"].items():
        print(f"{name:52} {took:9.2f} ms")


def alone(part: Callable[[], Any]) -> Any:
    """Run a part in a thread that ends with it, as `cartridges serve` loads its model.

    Each thread that multiplied keeps a pool of OpenMP threads; with two of them, waiting threads sleep at once, and the
    engine's own thread takes twice as long.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(part).result()


def main() -> int:
    """Measure, print, write; gives the exit code."""
    quick = "--quick" in sys.argv
    parser = argparse.ArgumentParser(description="Answers behind cartridges, beside PEFT and full context.")
    parser.add_argument("--quick", action="store_true", help="seconds; writes only where --out says")
    parser.add_argument("--model", default="pocket", help=f"a folder or hub name, or random: {', '.join(SHAPES)}")
    parser.add_argument(
        "--slots", type=int, nargs="+", default=[16, 32] if quick else [128, 512, 2048], help="sizes in parts 1 and 2"
    )
    parser.add_argument("--requests", type=int, default=4 if quick else 32, help="at once")
    parser.add_argument("--new-tokens", type=int, default=4 if quick else 64)
    parser.add_argument("--cartridges", type=int, nargs="+", default=[1, 2] if quick else [1, 4, 32])
    parser.add_argument("--mixed-cartridges", type=int, default=4)
    parser.add_argument("--mixed-prompts", type=int, nargs=2, default=[4, 12] if quick else [16, 96], metavar="TOKENS")
    parser.add_argument("--mixed-replies", type=int, nargs=2, default=[2, 6] if quick else [8, 128], metavar="TOKENS")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64] if quick else [1024, 2048, 4096, 8000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16] if quick else [128, 512, 2048])
    parser.add_argument("--batch", type=int, default=4 if quick else 64, help="at most")
    parser.add_argument("--budget", type=int, default=1024 if quick else 16384, help="tokens of keys and values")
    parser.add_argument("--text-tokens", type=int, default=64 if quick else 2755, help="that the cartridge stands for")
    parser.add_argument("--repetitions", type=int, default=1 if quick else 5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or (None if quick else RESULTS / f"serving_{given.model.rsplit('/', 1)[-1]}.json")
    try:
        model = alone(lambda: random_model(given.model) if given.model in SHAPES else load_model(given.model))
        about: dict[str, Any] = provenance()
        about["versions"]["peft"] = package_version("peft")
        settings = {name: getattr(given, name) for name in "requests new_tokens batch budget repetitions".split()}
        result = {
            **about,
            "threads": torch.get_num_threads(),
            "model": given.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompt_tokens": PROMPT_LEN,
            **settings,
            "slots": given.slots[0],  # of part 4
            "concurrent": alone(lambda: concurrent(model, given)),
            "mixed": alone(lambda: mixed(model, given)),
            "by_context": alone(lambda: by_context(model, given)),
            "first_token_ms": alone(lambda: first_tokens(model, given.slots[0], given.text_tokens, given.repetitions)),
        }
    except CartridgesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
