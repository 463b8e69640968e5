"""Answering at real sizes on CUDA, with random weights: what contexts and cartridges cost there.

    python benchmarks/serving_cuda.py                          # llama-3.1-8b; writes results/serving_cuda_<model>.json
    python benchmarks/serving_cuda.py --model qwen3-4b
    python benchmarks/serving_cuda.py --quick --model DIR      # anywhere, to see that it works

1. Decoding, through the whole engine, behind full contexts, behind a cartridge each and behind one shared cartridge:
   the largest batch that fits the memory, up to `--batch`, as published measurements have it. Tokens/s are counted
   while all replies are being written. Contexts are filled with random keys and values instead of being read: reading
   them is not in these times, and what decoding costs does not depend on what they are.
2. The same with one batch for all, `--same`: behind a prefix of which each request has its own copy, and behind a
   shared one.
3. One layer's attention to what stands before: a shared run read once, and rows of which each request has its own, as
   the engine does both; bytes that must be read by the time, beside what a copy within the device reaches. Enough runs
   and rows take turns that none stays in the cache.
4. The time to the first token: of a cartridge on disk, of one that was loaded, of one used before, and of text.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from serving_requests import NEVER, PROMPT_LEN, SHAPES, random_cartridge, random_ids, random_model, requests_of
from serving_speed import decode_speed, first_tokens

from cartridges.engine import flash
from cartridges.engine.blocks import row_size
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.scheduler import Chunk
from cartridges.errors import CartridgesError
from cartridges.log import progress
from cartridges.model import Model, load_model
from cartridges.provenance import provenance

RESULTS = Path(__file__).parent / "results"
LEFT_FREE = 8 << 30  # bytes, for what a step holds for a while
ALLOCATED = 0.97  # of the device's memory, at most; into the rest libraries load kernels when they first need them
MAX_BYTES = 8 << 30  # of rows in part 3
FULL, EACH, SHARED = "full context", "cartridge each", "one cartridge"


def fill(engine: Engine) -> None:
    """Have what it reads filled with random keys and values, except for steps of decoding, which it makes.

    Nothing is kept for later requests, so that each has its context to itself, in every repetition.
    """
    runner, model = engine.runner, engine.model
    read = runner.read
    engine.batching.scheduler.keep = lambda sequence, whole: None

    def filled(chunks: Sequence[Chunk]) -> tuple[torch.Tensor, list[Chunk]]:
        if all(chunk.num_new == 1 for chunk in chunks):
            return read(chunks)
        zero = torch.zeros(1, dtype=torch.long, device=model.device)
        for size in {chunk.sequence.size for chunk in chunks}:
            rows = runner.store.sizes[size]
            for number, layer in enumerate(model.identity.layers):
                one = zero.new_zeros((1, layer.num_kv_heads, layer.head_size), dtype=model.dtype)
                rows.write(number, zero, zero, one, one)
                for held in rows.layers[number]:
                    held.normal_()
        num_wanted = sum(chunk.num_wanted for chunk in chunks)
        return torch.zeros(num_wanted, model.identity.vocab_size, device=model.device), list(chunks)

    runner.read = filled


def give_back() -> None:
    """Give all memory back that nothing holds any more; engines hold themselves in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def batch_that_fits(model: Model, kind: str, length: int, given: argparse.Namespace) -> int:
    """The most requests that there is memory for."""
    free = torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else 1 << 30
    own = row_size(PROMPT_LEN + given.new_tokens + (length if kind == FULL else 0))
    own += 9 * length // 4 if kind == EACH else 0  # the cartridge itself, where it is read from, and room to grow
    room = free - LEFT_FREE - model.kv_bytes(length if kind == SHARED else 0) if free > LEFT_FREE else free
    return max(1, min(given.batch, room // model.kv_bytes(own)))


def decoding(model: Model, kind: str, length: int, batch: int, given: argparse.Namespace) -> dict[str, Any]:
    """A row of parts 1 and 2: tokens/s of all repetitions, and what is held."""
    num_cartridges = {FULL: 0, EACH: batch, SHARED: 1}[kind]
    cartridges = [random_cartridge(model, length, seed, sealed=False) for seed in range(num_cartridges)]
    if kind == FULL:
        ids = random_ids(model, length + PROMPT_LEN, kind)
        requests = [Request(ids, given.new_tokens, stop_ids=NEVER) for _ in range(batch)]
    else:
        requests = requests_of(model, cartridges, batch, given.new_tokens)
    num_tokens = batch * row_size(len(requests[0].prompt_ids) + given.new_tokens) + num_cartridges * length
    engine = Engine(model, kv_tokens_total=4 * num_tokens)
    fill(engine)
    engine.batching.scheduler.max_step_tokens = sum(len(each.prompt_ids) for each in requests)  # filled in one step
    speeds = [decode_speed(engine, requests) for _ in range(given.warm_ups + given.repetitions)][given.warm_ups :]
    engine.close()
    graphs = engine.runner.graphs
    return {
        "kind": kind,
        "length": length,
        "batch": batch,
        "tokens_per_s": round(mean(speed for speed in speeds if speed), 1),
        "all": [round(speed, 1) for speed in speeds if speed],
        "kv_gb": round(model.kv_bytes(num_tokens) / 1e9, 3),
        "steps_by_graph": graphs.num_replayed if graphs else 0,
    }


def by_context(model: Model, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Part 1, row by row."""
    kinds = [(FULL, length) for length in given.contexts]
    kinds += [(EACH, slots) for slots in given.each] + [(SHARED, slots) for slots in given.shared]
    with progress("decoding", len(kinds)) as bar:
        for kind, length in kinds:
            give_back()
            length = min(length, model.window - PROMPT_LEN - given.new_tokens)
            yield decoding(model, kind, length, batch_that_fits(model, kind, length, given), given)
            bar.advance(1, kind)


def in_one_batch(model: Model, given: argparse.Namespace) -> dict[str, Any]:
    """Part 2."""
    batch, length = given.same
    rows: dict[str, dict[str, Any]] = {}
    for kind in (FULL, SHARED):
        give_back()
        rows[kind] = decoding(model, kind, length, batch, given)
    return {"rows": list(rows.values()), "ratio": round(rows[SHARED]["tokens_per_s"] / rows[FULL]["tokens_per_s"], 2)}


def copy_speed(num_bytes: int) -> float:
    """GB/s of a copy within the device, what is read and what is written."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * num_bytes / milliseconds([lambda: target.copy_(source)]) / 1e6


def milliseconds(calls: Sequence[Callable[[], object]], repetitions: int = 20) -> float:
    """The median over repetitions of what a call takes on the device, where the calls follow one another."""
    took = []
    for number in range(repetitions + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize()
        if number >= 2:
            took.append(begin.elapsed_time(end) / len(calls))
    return median(took)


def graphed(calls: Sequence[Callable[[], object]]) -> list[Callable[[], object]]:
    """One call that makes all of them, so that what is timed is not how fast Python launches."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return [graph.replay]


def shared_calls(query: torch.Tensor, heads: tuple[int, int], length: int) -> list[Callable[[], object]]:
    """Each behind a run of its own, of all requests together, so many that the device's cache holds none."""
    run_bytes = 2 * heads[0] * length * heads[1] * query.element_size()
    runs = [
        [torch.randn(heads[0], length, heads[1], device=query.device, dtype=query.dtype) for _ in "kv"]
        for _ in range(max(2, (256 << 20) // run_bytes))
    ]
    return [partial(flash.of_run, query, *run, heads[1] ** -0.5) for run in runs]


def each_calls(query: torch.Tensor, heads: tuple[int, int], length: int) -> list[Callable[[], object]]:
    """Each over rows of its own, one of each request, so many that the device's cache holds none."""
    batch = len(query)
    row_bytes = 2 * heads[0] * length * heads[1] * query.element_size()
    starts = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
    used = torch.full_like(starts[:-1], length)
    rows = [
        [torch.randn(batch, length, *heads, device=query.device, dtype=query.dtype).transpose(1, 2) for _ in "kv"]
        for _ in range(max(2, (256 << 20) // (batch * row_bytes)))
    ]
    return [partial(flash.of_rows, query, *row, starts, starts * length, used, 1, heads[1] ** -0.5) for row in rows]


def attention(model: Model, given: argparse.Namespace) -> dict[str, Any]:
    """Part 3."""
    layer, num_heads = model.identity.layers[0], model.hf.config.num_attention_heads
    heads, rows = (layer.num_kv_heads, layer.head_size), []
    for batch in given.attention_batches:
        for length in given.attention_lengths:
            run_bytes = model.kv_bytes(length) // model.num_layers
            if batch * run_bytes > MAX_BYTES:
                continue
            query = torch.randn(batch, num_heads, layer.head_size, device=model.device, dtype=model.dtype)
            row: dict[str, Any] = {"batch": batch, "length": length}
            for name, make, num_bytes in (
                ("shared", shared_calls, run_bytes),
                ("each", each_calls, batch * run_bytes),
            ):
                calls = make(query, heads, length)
                took = milliseconds(graphed(calls)) / len(calls)
                row |= {f"{name}_ms": round(took, 4), f"{name}_gb_per_s": round(num_bytes / took / 1e6, 1)}
                del calls
            rows.append({**row, "ratio": round(row["each_ms"] / row["shared_ms"], 2)})
    return {"copy_gb_per_s": round(copy_speed(4 << 30), 1), "rows": rows}


def first_token(model: Model, given: argparse.Namespace) -> dict[str, float]:
    """Part 4, in milliseconds."""
    return first_tokens(model, given.slots, given.text_tokens, 3)


def told(result: dict[str, Any], name: str, part: Any, out: Path | None) -> None:
    """Print a part and write all that is known."""
    print(f"{name}: {json.dumps(part)}", flush=True)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure, print, write; gives the exit code."""
    quick = "--quick" in sys.argv
    parser = argparse.ArgumentParser(description="Answering at real sizes on CUDA.")
    parser.add_argument("--quick", action="store_true", help="seconds; writes only where --out says")
    parser.add_argument("--model", default="llama-3.1-8b", help=f"a folder, or random: {', '.join(SHAPES)}")
    lengths: dict[str, Any] = {"type": int, "nargs": "+", "metavar": "TOKENS"}
    parser.add_argument("--contexts", **lengths, default=[64] if quick else [1024, 8192, 65536, 131072])
    parser.add_argument("--each", **lengths, default=[16] if quick else [512, 2048, 8192])
    parser.add_argument("--shared", **lengths, default=[16] if quick else [128, 2048, 8192])
    parser.add_argument("--batch", type=int, default=4 if quick else 256, help="at most")
    parser.add_argument(
        "--same", type=int, nargs=2, default=[2, 32] if quick else [64, 4096], metavar=("BATCH", "TOKENS")
    )
    parser.add_argument("--attention-batches", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--attention-lengths", **lengths, default=[512, 4096, 16384])
    parser.add_argument("--slots", type=int, default=16 if quick else 2048, help="of the first tokens' cartridge")
    parser.add_argument("--text-tokens", type=int, default=64 if quick else 32768)
    parser.add_argument("--new-tokens", type=int, default=6 if quick else 128)
    parser.add_argument("--warm-ups", type=int, default=1 if quick else 3)
    parser.add_argument("--repetitions", type=int, default=1 if quick else 5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or (None if quick else RESULTS / f"serving_cuda_{given.model.rsplit('/', 1)[-1]}.json")
    try:
        has_cuda = torch.cuda.is_available()
        if not has_cuda and not quick:
            raise CartridgesError("this measures CUDA devices, and torch sees none here; --quick only tries it out")
        if has_cuda:
            torch.cuda.set_per_process_memory_fraction(ALLOCATED)
        model = random_model(given.model) if given.model in SHAPES else load_model(given.model)
        settings = "batch new_tokens warm_ups repetitions slots".split()
        result: dict[str, Any] = {
            **provenance(),
            "model": given.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompt_tokens": PROMPT_LEN,
            **{name: getattr(given, name) for name in settings},
        }
        for name, part in (("first_token_ms", first_token), ("attention", attention), ("same_batch", in_one_batch)):
            if has_cuda or part is not attention:
                result[name] = part(model, given)
                told(result, name, result[name], out)
        result["by_context"] = []
        for row in by_context(model, given):
            result["by_context"].append(row)
            told(result, "by_context", row, out)
    except CartridgesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
