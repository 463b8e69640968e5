"""Tokens per second of a training step of the pocket model, by row length and attention implementation.

    python benchmarks/pocket_training.py           # preset small, minutes; writes results/pocket_training.json
    python benchmarks/pocket_training.py --quick   # preset tiny, seconds, to see that it works

A step is the recipe's own: forward, backward and both optimisers, on batches of about the same number of tokens at
every length. Making the batch is not timed, as it is the same for all. The implementations take turns, step by step, so
that whatever else the machine does meets them all alike; the median counts.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from cartridges.errors import CartridgesError
from cartridges.log import progress
from cartridges.pocket.attention import register
from cartridges.pocket.batches import ChatEncoder, make_batch
from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.step import Optimizers, build_model, make_loss
from cartridges.pocket.tokenizer import sample_texts, train_tokenizer
from cartridges.provenance import provenance

RESULT = Path(__file__).parent / "results" / "pocket_training.json"
ATTENTIONS = ("sdpa", "eager", register())
LENGTHS = (256, 512, 1024, 2048, 4096)
QUICK_LENGTHS = (128, 320)
TOKENS_PER_BATCH = 12_288  # as in every phase of preset small
QUICK_TOKENS_PER_BATCH = 640
TOKENIZER_CONTEXTS = 100
CONTEXT_RATIO = 0.65

Step = Callable[[], None]


def make_step(
    config: PocketConfig, attention: str, tokenizer: PreTrainedTokenizerFast, length: int, num_rows: int
) -> Step:
    """A training step of a fresh model on one batch, the same for every `attention`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config, tokenizer)
    torch.nn.Module.to(model, device)
    model.set_attn_implementation(attention)
    optimizers, loss_of = Optimizers(model, config), make_loss(model, config, device)
    num_targets = int(num_rows * length * config.target_share)
    batch = make_batch(ChatEncoder(tokenizer), ("benchmark",), num_rows, length, num_targets, CONTEXT_RATIO)
    arrays = (batch.inputs_BT, batch.positions_M, batch.targets_M, batch.weights_M)
    tensors = [torch.from_numpy(array).to(device) for array in arrays]

    def step() -> None:
        loss, _, _ = loss_of(*tensors)
        loss.backward()
        optimizers.step(1.0)
        loss.item()  # waits for a CUDA device

    return step


def seconds_of(step: Step) -> float:
    """How long one step takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(quick: bool, num_steps: int) -> list[dict[str, object]]:
    """One row for each length and attention: the median of its tokens/s, and `all` of them."""
    config = PocketConfig.resolve("tiny" if quick else "small")
    tokenizer = train_tokenizer(config.vocab_size, sample_texts(TOKENIZER_CONTEXTS))
    lengths = QUICK_LENGTHS if quick else LENGTHS
    num_tokens = QUICK_TOKENS_PER_BATCH if quick else TOKENS_PER_BATCH
    rows: list[dict[str, object]] = []
    with progress("measuring training steps", len(lengths) * len(ATTENTIONS) * (num_steps + 1)) as bar:
        for length in lengths:
            torch.compiler.reset()  # else the compiler's limit of variants is met, and the rest runs uncompiled
            num_rows = max(1, num_tokens // length)
            steps = {attention: make_step(config, attention, tokenizer, length, num_rows) for attention in ATTENTIONS}
            seconds: dict[str, list[float]] = {attention: [] for attention in ATTENTIONS}
            for number in range(num_steps + 1):
                for attention, step in steps.items():
                    taken = seconds_of(step)
                    if number:  # the first one compiles
                        seconds[attention].append(taken)
                    bar.advance(1, f"length {length}, {attention}")
            for attention in ATTENTIONS:
                speeds = [num_rows * length / taken for taken in seconds[attention]]
                rows.append(
                    {
                        "length": length,
                        "rows": num_rows,
                        "attention": attention,
                        "tokens_per_s": round(median(speeds), 1),
                        "all": [round(speed, 1) for speed in speeds],
                    }
                )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print lengths down, implementations across."""
    table = Table(title="training, tokens/s (median)", title_justify="left")
    table.add_column("tokens in a row", justify="right")
    for attention in ATTENTIONS:
        table.add_column(attention, justify="right")
    for length in dict.fromkeys(row["length"] for row in rows):
        speeds = {row["attention"]: row["tokens_per_s"] for row in rows if row["length"] == length}
        table.add_row(str(length), *(f"{speeds[attention]:.0f}" for attention in ATTENTIONS))
    Console().print(table)


def main() -> int:
    """Measure, print, write; gives the exit code."""
    parser = argparse.ArgumentParser(description="Tokens per second of a training step, by length and attention.")
    parser.add_argument("--quick", action="store_true", help="preset tiny, seconds; writes only where --out says")
    parser.add_argument("--steps", type=int, help="timed steps for each cell (default 5; quick: 3)")
    parser.add_argument(
        "--out", type=Path, help=f"result file (default results/{RESULT.name} beside this file, but for --quick)"
    )
    arguments = parser.parse_args()
    num_steps = arguments.steps if arguments.steps is not None else 3 if arguments.quick else 5
    out = arguments.out or (None if arguments.quick else RESULT)
    if num_steps < 1:
        parser.error(f"--steps: given {num_steps}, expected at least 1")
    RESULT.parent.mkdir(exist_ok=True)
    if out and not out.parent.is_dir():
        parser.error(f"--out: there is no folder {out.parent}")
    about = provenance()
    try:
        rows = measure(arguments.quick, num_steps)
    except CartridgesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(rows)
    if out:
        settings = {"preset": "tiny" if arguments.quick else "small", "steps": num_steps}
        settings["threads"] = torch.get_num_threads()
        out.write_text(json.dumps({**about, **settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
