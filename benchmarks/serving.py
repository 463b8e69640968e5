"""Answers behind cartridges: our engine beside Hugging Face's `generate` with PEFT's CARTRIDGE, and full context.

    python benchmarks/serving.py                       # pocket, minutes; writes results/serving_pocket.json
    python benchmarks/serving.py --model qwen3-0.6b    # random weights of that shape
    python benchmarks/serving.py --quick               # seconds, to see that it works

1. Many requests at once behind one cartridge, and behind several: tokens/s of `Engine.generate` and of `generate` with
   PEFT, which takes one cartridge a batch. All prompts have one length and all replies have one, so nothing is padded,
   which is the kindest to fixed batches. Both read greedily, and must write the same tokens before anything is timed.
2. Decoding behind full contexts and behind cartridges of several sizes, within one budget of keys and values: the
   largest batch that fits, up to `--batch`. Cartridges are shared by all or one each; full contexts are one each.
   Reading the prompts is not in these times.
3. The time to the first token: of a cartridge that lies on disk, one that was loaded, one that was used before, and of
   the text itself, unread and read before; and what attaching a loaded cartridge to a request takes.

Methods take turns, repetition by repetition, so that whatever else the machine does meets them all alike.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cartridges.cartridge import Cartridge, Manifest
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import CartridgesError
from cartridges.log import progress
from cartridges.model import Model, load_model
from cartridges.provenance import package_version, provenance
from cartridges.rng import rng_of

try:
    from peft_generate import PeftGenerator
except ImportError:
    print("error: PEFT, with which this compares, is not installed; pip install 'peft>=0.21'", file=sys.stderr)
    sys.exit(2)

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, Any]] = {  # random weights: speed does not depend on what they are
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
}
NEVER = frozenset([-1])  # stop ids that no model gives
PROMPT_LEN = 48


def random_model(shape: str) -> Model:
    """A model of that shape in bfloat16, with pocket's tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from cartridges.pocket import WEIGHTS

    torch.manual_seed(0)
    hf = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape])).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(folder)
        return load_model(folder, dtype=torch.bfloat16)


def random_ids(model: Model, num: int, *name: object) -> tuple[int, ...]:
    """So many token ids, the same for the same name."""
    rng, most = rng_of("serving", *name), min(model.identity.vocab_size, 1000)
    return tuple(rng.randrange(300, most) for _ in range(num))


def random_cartridge(model: Model, num_slots: int, seed: int = 0) -> Cartridge:
    """Slots of no text."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(layer.num_kv_heads, num_slots, layer.head_size) for layer in model.identity.layers]
    keys, values = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    manifest = Manifest(model=model.identity, num_slots=num_slots, num_frozen=0)
    return Cartridge(keys, values, manifest).to(model.device, model.dtype).sealed()


def requests_of(model: Model, cartridges: Sequence[Cartridge | None], num: int, num_new: int) -> list[Request]:
    """`num` requests with prompts of their own, dealt to the cartridges in turn."""
    return [
        Request(random_ids(model, PROMPT_LEN, i), num_new, cartridge=cartridges[i % len(cartridges)], stop_ids=NEVER)
        for i in range(num)
    ]


def seconds(call: Callable[[], Any], model: Model) -> float:
    """How long it takes."""
    wait = torch.cuda.synchronize if model.device.type == "cuda" else time.perf_counter
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def check_same(engine: Engine, peft: PeftGenerator, cartridge: Cartridge) -> float:
    """The share of equal tokens of both sides. Raises CartridgesError where they differ in float32."""
    requests = requests_of(engine.model, [cartridge], 4, 16)
    mine = [result.token_ids for result in engine.generate(requests)]
    theirs = peft.generate(cartridge, [request.prompt_ids for request in requests], 16)
    equal = sum(a == b for one, two in zip(mine, theirs, strict=True) for a, b in zip(one, two, strict=True)) / 64
    if equal < 1 and engine.model.dtype == torch.float32:
        raise CartridgesError(f"both sides should write the same tokens, but only {equal:.0%} are equal")
    return equal


def concurrent(model: Model, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Part 1: a row for each number of cartridges."""
    engine, peft = Engine(model), PeftGenerator(model, given.slots)
    rows: list[dict[str, Any]] = []
    for num_cartridges in given.cartridges:
        cartridges = [random_cartridge(model, given.slots, seed) for seed in range(num_cartridges)]
        equal = check_same(engine, peft, cartridges[0])
        requests = requests_of(model, cartridges, given.requests, given.new_tokens)

        def ours(requests: list[Request] = requests) -> None:
            engine.generate(requests)

        def theirs(requests: list[Request] = requests, cartridges: list[Cartridge] = cartridges) -> None:
            for cartridge in cartridges:
                prompts = [request.prompt_ids for request in requests if request.cartridge is cartridge]
                peft.generate(cartridge, prompts, given.new_tokens)

        found: dict[str, list[float]] = {"engine": [], "generate + PEFT": []}
        with progress(f"{num_cartridges} cartridges", given.repetitions + 1) as bar:
            for number in range(given.repetitions + 1):
                for name, call in (("engine", ours), ("generate + PEFT", theirs)):
                    took = seconds(call, model)
                    if number:  # the first one warms up
                        found[name].append(round(given.requests * given.new_tokens / took, 1))
                bar.advance(1)
        rows.append(
            {
                "cartridges": num_cartridges,
                "tokens_per_s": {name: round(median(each), 1) for name, each in found.items()},
                "ratio": round(median(found["engine"]) / median(found["generate + PEFT"]), 2),
                "equal_tokens": equal,
                "all": found,
            }
        )
    return rows


def decode_speed(engine: Engine, requests: Sequence[Request]) -> float | None:
    """Tokens/s while all of them are being written: from the last one's first token to the first one's last.

    None where there is no such time.
    """
    told: list[list[float]] = [[] for _ in requests]
    handles = [
        engine.submit(request, lambda event, times=times: times.append(time.perf_counter()))
        for request, times in zip(requests, told, strict=True)
    ]
    for handle in handles:
        handle.result()
    begin, end = max(times[0] for times in told), min(times[-1] for times in told)
    return sum(begin < at <= end for times in told for at in times) / (end - begin) if end > begin else None


def by_context(model: Model, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Part 2: a row for each context length and each size of cartridge."""
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
            speed = round(median(speeds), 1) if None not in speeds else None
            row = {"kind": kind, "length": length, "batch": batch, "tokens_per_s": speed}
            rows.append({**row, "kv_mb": round((batch * own + held) * kv_bytes / 1e6, 1)})
            bar.advance(1, kind)
    return rows


def first_token(model: Model, given: argparse.Namespace) -> dict[str, float]:
    """Part 3, in milliseconds, medians."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, progress("first tokens", given.repetitions) as bar:
        random_cartridge(model, given.slots).save(Path(folder) / "cartridge")
        for number in range(given.repetitions):
            for name, took in one_of_each(model, Path(folder) / "cartridge", given.text_tokens, number).items():
                found.setdefault(name, []).append(1000 * took)
            bar.advance(1)
    return {name: round(median(each), 3) for name, each in found.items()}


def one_of_each(model: Model, folder: Path, num_text: int, number: int) -> dict[str, float]:
    """Seconds to the first token, in an engine of its own that has read nothing of it."""
    engine, found = Engine(model), {}
    text = random_ids(model, min(num_text, model.window - PROMPT_LEN - 1), "text", number)

    def ask(name: str, cartridge: Cartridge | None = None, before: tuple[int, ...] = ()) -> float:
        prompt = before + random_ids(model, PROMPT_LEN, name, number)
        request = Request(prompt, 1, cartridge=cartridge, shared_len=len(before), stop_ids=NEVER)
        return seconds(lambda: engine.submit(request).result(), model)

    ask("warm up")
    started = time.perf_counter()
    cartridge = Cartridge.load(folder)
    load_s = time.perf_counter() - started
    found["cartridge, on disk"] = load_s + ask("disk", cartridge)
    found["cartridge, used before"] = ask("used", cartridge)
    found[f"text of {len(text)} tokens, unread"] = ask("unread", None, text)
    found[f"text of {len(text)} tokens, read before"] = ask("read", None, text)
    found["no context"] = ask("none")
    request = Request(random_ids(model, PROMPT_LEN, "attach", number), 1, cartridge=cartridge, stop_ids=NEVER)
    started = time.perf_counter()
    handle = engine.submit(request)
    found["handing in a request behind a loaded cartridge"] = time.perf_counter() - started
    handle.result()
    engine.close()
    return found


def show(result: dict[str, Any]) -> None:
    """Print what was found."""
    for row in result["concurrent"]:
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in row["tokens_per_s"].items())
        print(f"{result['requests']} requests, {row['cartridges']} cartridges: {speeds} tokens/s, {row['ratio']:.2f}x")
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
    parser.add_argument("--slots", type=int, default=16 if quick else 128)
    parser.add_argument("--requests", type=int, default=4 if quick else 32, help="at once")
    parser.add_argument("--new-tokens", type=int, default=4 if quick else 64)
    parser.add_argument("--cartridges", type=int, nargs="+", default=[1, 2] if quick else [1, 4, 32])
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
        settings = {name: getattr(given, name) for name in "slots requests new_tokens batch budget repetitions".split()}
        result = {
            **about,
            "threads": torch.get_num_threads(),
            "model": given.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompt_tokens": PROMPT_LEN,
            **settings,
            "concurrent": alone(lambda: concurrent(model, given)),
            "by_context": alone(lambda: by_context(model, given)),
            "first_token_ms": alone(lambda: first_token(model, given)),
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
