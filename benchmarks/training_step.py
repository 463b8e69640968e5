"""One training step of a cartridge: packed rows, as `cartridges train` has them, beside PEFT's CARTRIDGE tuner.

    python benchmarks/training_step.py           # pocket, minutes; writes results/training_step.json
    python benchmarks/training_step.py --quick   # seconds, to see that it works
    python benchmarks/training_step.py --model llama-3.1-8b --slots 2048 --lengths 100 500 --context 2048  # on CUDA

Both train the same slots (the first one frozen) on the same conversations, targets and loss, with the same autocast,
threads and Adam, on one and the same Hugging Face model. Ours is `train.Run.train_step`, PEFT's is in `peft_tuner.py`,
after its own example. Loss and gradient are compared before the timing, where the teacher is stored.

Each side has several settings and is judged by its fastest: ours the preset's row length and others, PEFT batches
of several sizes, beyond its example sorted by length, and both of transformers' attentions. Gradients are accumulated.
PEFT's batches are made beforehand, our rows within the time. Tokens/s count neither padding nor slots. Settings take
turns, step by step, so that whatever else the machine does meets them all alike; medians count.

PEFT's example stores no teacher: in every step the plain model reads the context and each conversation behind it. That
is measured besides, "teacher in the step", with `--context` tokens; ours and the other rows have the teacher stored, as
self-study wrote it, and what that took is in no row. It differs from the example in what is alike on all sides here
(one optimiser step for all conversations, loss on targets alone, no Trainer, batches of 8 too), most of which is to
PEFT's advantage. The more context, the larger the difference; over E epochs self-study's one pass counts 1/E.

Peak memory is what a step allocates beyond what is there before it (model, slots, gradients, moments, batches): on CUDA
by `max_memory_allocated`, else by torch's profiler, which sees every allocation and release of the CPU allocator.

Shapes: T tokens of a conversation, M targets, K teacher top-k.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from serving_requests import SHAPES, random_model

from cartridges.attention import attend
from cartridges.conversation import Conversation, TopK
from cartridges.dataset import Dataset
from cartridges.errors import CartridgesError, InputError
from cartridges.log import progress
from cartridges.model import Model, load_model
from cartridges.provenance import package_version, provenance
from cartridges.recipe import TrainConfig
from cartridges.training import Run

try:
    from peft_tuner import Batch, PeftTuner, padded
except ImportError:
    print(
        "error: PEFT, with which this compares, is not installed or too old; pip install 'peft>=0.21'", file=sys.stderr
    )
    sys.exit(2)

RESULTS = Path(__file__).parent / "results"
LENGTHS, NUM_TOP, TOP_MASS = [25, 100], 20, 0.99  # of random conversations, as self-study on pocket writes them
ROW_LENS = {"cpu": (2048, 512, 256), "cuda": (8192, 2048, 512)}  # besides the preset's, where that is another
CHECKED = 4  # conversations of a batch in the comparison before the timing
BATCH_SIZES = (32, 16, 8, 4)
EXAMPLE_SIZES = (8, 1)  # PEFT's example has 1
OURS, PEFT, IN_STEP = "packed rows", "PEFT", "PEFT, teacher in the step"
# of the losses, in nats a target, and of the gradients, by their norm: the largest differences, in float32 and else
EXACT, ROUNDED = (1e-3, 1e-3), (1e-2, 0.15)


@dataclass
class Setting:
    """One way to make the step: `step` gives the mean loss of a target and runs within `ready`, which is not timed."""

    side: str
    name: str
    step: Callable[[], float]
    ready: Callable[[], AbstractContextManager[None]]
    num_computed: int  # tokens that go through the model, padding included


def random_conversations(num: int, vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[Conversation]:
    """Random tokens of which the latter half are targets, with random teachers."""
    rng = np.random.default_rng(0)
    conversations = []
    for index, num_tokens in enumerate(rng.integers(lengths[0], lengths[1] + 1, num)):
        positions_M = np.arange(num_tokens // 2, num_tokens)
        ids_MK = np.stack([rng.choice(vocab_size, NUM_TOP, replace=False) for _ in positions_M])
        weights_MK = np.exp(2.0 * rng.standard_normal(ids_MK.shape))
        probs_MK = -np.sort(-weights_MK / weights_MK.sum(1, keepdims=True) * TOP_MASS)
        ids_T, teacher = rng.integers(0, vocab_size, num_tokens), TopK(ids_MK, np.log(probs_MK))
        said = [{"role": "user", "content": "random"}]
        conversations.append(Conversation(index, said, ids_T, positions_M, teacher, "", 0, 0, "random", 0, 0))
    return conversations


def read_conversations(folder: Path, num: int, vocab_size: int) -> list[Conversation]:
    """The first `num` of a dataset. Raises InputError where it has fewer, FormatError where they do not fit."""
    conversations = list(Dataset.load(folder).conversations[:num])
    if len(conversations) < num:
        raise InputError(f"given {folder} with {len(conversations)} conversations, expected at least {num}")
    for conversation in conversations:
        conversation.check(vocab_size)
    return conversations


def make_run(model: Model, data: Dataset, precision: str | None, slots: int, row_len: int, num_steps: int) -> Run:
    """A training run of which every step sees all conversations; its slots start as this file's own text."""
    values: dict[str, Any] = {
        "slots": slots,
        **({"precision": precision} if precision else {}),
        "holdout_share": 0.0,
        "max_steps": num_steps,
        "row_len": row_len,
        "rows_per_step": len(data.conversations),  # at least as many as there are rows
        "initialize": {"kind": "text", "text": Path(__file__).read_text(encoding="utf-8") * (1 + slots // 1024)},
    }
    config = TrainConfig.resolve(model.profile, values=values)
    return Run(data, model, None, config, Path(), Accelerator(cpu=model.device.type == "cpu"))


def our_setting(run: Run, num_tokens: int) -> Setting:
    """The step as `cartridges train` makes it."""

    def step() -> float:
        run.train_step()
        return run.done.recent[-1][0]

    name = f"{len(run.plan.step_rows(0))} x {run.config.row_len} tokens"
    return Setting(OURS, name, step, lambda: attend(run.model), num_tokens)


def peft_setting(
    tuner: PeftTuner, batches: Sequence[Batch], attention: str, context_ids: torch.Tensor | None = None
) -> Setting:
    """The step on these batches with one of transformers' attentions; given a context, the teacher reads it."""

    @contextmanager
    def ready() -> Iterator[None]:
        hf: Any = tuner.run.model.hf
        before = hf.config._attn_implementation
        hf.set_attn_implementation(attention)
        yield
        hf.set_attn_implementation(before)

    name = f"{len(batches)} x {len(batches[0].ids_BT)} conversations, {attention}"
    num_computed = sum(batch.ids_BT.numel() for batch in batches)
    side = PEFT
    if context_ids is not None:
        side, num_computed = IN_STEP, 2 * num_computed + len(context_ids) * sum(len(batch.ids_BT) for batch in batches)
    return Setting(side, name, lambda: tuner.step(batches, context_ids), ready, num_computed)


def check_equal(run: Run, tuner: PeftTuner, batches: Sequence[Batch]) -> dict[str, float]:
    """Loss and gradient of both on untrained slots, without autocast. Raises CartridgesError where they differ."""
    timed, run.precision = run.precision, "fp32"
    with attend(run.model):
        rows = run.plan.step_rows(0)
        our_loss, gradients = summed((run.loss_of(row) for row in rows), run.slots.trained)
    peft_loss, (theirs,) = summed((tuner.loss_of(batch) for batch in batches), tuner.trained)
    run.precision = timed
    num_targets = sum(batch.num_targets for batch in batches)
    gradient_difference = ((tuner.flat(gradients) - theirs).norm() / theirs.norm()).item()
    told = {"ours": our_loss / num_targets, "peft": peft_loss / num_targets}
    told["relative_gradient_difference"] = gradient_difference
    allowed = EXACT if run.model.dtype == torch.float32 else ROUNDED
    if not (abs(told["ours"] - told["peft"]) <= allowed[0] and gradient_difference <= allowed[1]):
        raise CartridgesError(f"the sides should do the same, but differ by more than {allowed}: {told}")
    return told


def summed(losses: Iterable[torch.Tensor], trained: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """The sum of losses and its gradients, of which one loss at a time is held."""
    total, gradients = 0.0, [torch.zeros_like(each) for each in trained]
    for loss in losses:
        for gradient, more in zip(gradients, torch.autograd.grad(loss, trained), strict=True):
            gradient += more
        total += loss.item()
    return total, gradients


def batches_of(conversations: Sequence[Conversation], size: int, device: torch.device) -> list[Batch]:
    """Padded batches of so many conversations that follow one another."""
    starts = range(0, len(conversations), size)
    return [padded(conversations[start : start + size], device) for start in starts]


def settings_of(
    runs: Sequence[Run], data: Dataset, num_context: int, example_sizes: Sequence[int] = EXAMPLE_SIZES
) -> tuple[list[Setting], dict[str, float]]:
    """All that is measured, and the losses before it. A teacher in the step reads `num_context` tokens."""
    device, ordered = runs[0].model.device, sorted(data.conversations, key=lambda conversation: conversation.num_tokens)
    tuner = PeftTuner(runs[0])
    losses = check_equal(runs[0], tuner, batches_of(ordered, CHECKED, device))
    num_tokens = sum(conversation.num_tokens for conversation in ordered)
    settings = [our_setting(each, num_tokens) for each in runs]
    context_ids = torch.arange(num_context, device=device) % runs[0].model.identity.vocab_size
    for sizes, context in ((BATCH_SIZES, None), (example_sizes, context_ids)):
        for size in sorted({min(size, len(ordered)) for size in sizes}, reverse=True):
            batches = batches_of(ordered, size, device)
            settings += [peft_setting(tuner, batches, attention, context) for attention in ("sdpa", "eager")]
    return settings, losses


def seconds_of(setting: Setting) -> float:
    """How long one step takes."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else time.perf_counter
    with setting.ready():
        wait()
        started = time.perf_counter()
        setting.step()
        wait()
        return time.perf_counter() - started


def peak_bytes_of(setting: Setting, device: torch.device) -> int:
    """The most that one step held of what it allocated itself."""
    with setting.ready():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            setting.step()
            return torch.cuda.max_memory_allocated(device) - before
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
            setting.step()
    results: Any = recorded.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def measure(settings: Sequence[Setting], num_tokens: int, num_steps: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a setting: the median of its tokens/s, `all` of them, and the peak memory of a step.

    Nothing of that is in the rows of those for which the device has too little memory.
    """
    speeds: list[list[float]] = [[] for _ in settings]
    too_large: set[int] = set()
    rows: list[dict[str, Any]] = []
    with progress("measuring training steps", len(settings) * (num_steps + 2)) as bar:
        for _ in range(num_steps + 1):
            for place, (setting, found) in enumerate(zip(settings, speeds, strict=True)):
                try:
                    if place not in too_large:
                        found.append(round(num_tokens / seconds_of(setting), 1))
                except torch.OutOfMemoryError:
                    too_large.add(place)
                    torch.cuda.empty_cache()
                bar.advance(1, f"{setting.side}, {setting.name}")
        for place, (setting, timed) in enumerate(zip(settings, speeds, strict=True)):
            told: dict[str, Any] = {"side": setting.side, "setting": setting.name}
            if place not in too_large:
                timed = timed[1:]  # the first one warms up
                told |= {"tokens_per_s": round(median(timed), 1), "all": timed}
                told["peak_mb"] = round(peak_bytes_of(setting, device) / 1e6, 1)
            rows.append({**told, "num_computed_tokens": setting.num_computed})
            bar.advance(1, "peak memory")
    return rows


def fastest(rows: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """That of those that were measured. Raises CartridgesError where the device was too small for all of them."""
    if not (measured := [row for row in rows if "all" in row]):
        raise CartridgesError(
            f"all settings of {side} are too large for this device; give a smaller model or --lengths"
        )
    return max(measured, key=lambda row: row["tokens_per_s"])


def compared(rows: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """The fastest of ours by the fastest of `side`: the ratio of medians, and the range over the repetitions."""
    mine, theirs = (fastest([row for row in rows if row["side"] == each], each) for each in (OURS, side))
    ratios = [a / b for a, b in zip(mine["all"], theirs["all"], strict=True)]
    return {
        "fastest": {row["side"]: row["setting"] for row in (mine, theirs)},
        "speed_ratio": round(mine["tokens_per_s"] / theirs["tokens_per_s"], 3),
        "speed_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "memory_ratio": round(mine["peak_mb"] / theirs["peak_mb"], 3),
    }


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is found, with how it was found. Raises CartridgesError."""
    name, num = arguments.model, arguments.conversations
    model = random_model(name) if name in SHAPES else load_model(name)
    vocab_size, folder = model.identity.vocab_size, arguments.dataset
    lengths = arguments.lengths
    talks = read_conversations(folder, num, vocab_size) if folder else random_conversations(num, vocab_size, lengths)
    data, num_steps = Dataset.from_conversations(talks), arguments.repetitions + 2
    preset = TrainConfig.resolve(model.profile).row_len
    row_lens = dict.fromkeys((preset, *ROW_LENS["cuda" if model.device.type == "cuda" else "cpu"]))
    runs = [make_run(model, data, arguments.precision, arguments.slots, row_len, num_steps) for row_len in row_lens]
    settings, losses = settings_of(runs, data, arguments.context, arguments.example_batches)
    lengths = sorted(conversation.num_tokens for conversation in talks)
    rows = measure(settings, sum(lengths), arguments.repetitions, model.device)
    about: dict[str, Any] = provenance()
    about["versions"]["peft"] = package_version("peft")
    return {
        **about,
        "threads": torch.get_num_threads(),
        "model": model.identity.model_id,
        "dtype": f"{str(model.dtype).removeprefix('torch.')}, autocast {runs[0].precision}",
        "slots": arguments.slots,
        "data": f"dataset {data.digest[:12]}" if folder else "random",
        "conversations": len(talks),
        "tokens": sum(lengths),
        "targets": sum(conversation.num_targets for conversation in talks),
        "lengths": {"shortest": lengths[0], "median": median(lengths), "longest": lengths[-1]},
        "repetitions": arguments.repetitions,
        "untrained_loss": losses,
        "context": arguments.context,
        **compared(rows, PEFT),
        "teacher_in_step": compared(rows, IN_STEP),
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print a line for each setting, and the ratio."""
    print(f"{'one training step':48} {'tokens/s (median)':>20} {'peak memory, MB':>18}")
    for row in result["rows"]:
        known = f"{row['tokens_per_s']:20.0f} {row['peak_mb']:18.0f}" if "all" in row else f"{'too large':>20}"
        print(f"{row['side'] + ', ' + row['setting']:48} {known}")
    for side, found in (
        (PEFT, result),
        (f"{IN_STEP}, {result['context']} tokens of context", result["teacher_in_step"]),
    ):
        low, high = found["speed_ratio_range"]
        print(
            f"by {side}, fastest by fastest: {found['speed_ratio']:.2f} times the tokens/s ({low:.2f} to {high:.2f}), "
            f"{found['memory_ratio']:.2f} times the peak memory"
        )


def main() -> int:
    """Measure, print, write; gives the exit code."""
    quick = "--quick" in sys.argv
    parser = argparse.ArgumentParser(description="One training step: packed rows beside PEFT's CARTRIDGE tuner.")
    parser.add_argument("--quick", action="store_true", help="seconds; writes only where --out says")
    parser.add_argument("--model", default="pocket", help=f"a folder or hub name, or random: {', '.join(SHAPES)}")
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--conversations", type=int, default=4 if quick else 32, help="of one step")
    parser.add_argument("--dataset", type=Path, help="take its first conversations; by default random ones")
    parser.add_argument("--lengths", type=int, nargs=2, default=LENGTHS, metavar="TOKENS", help="of random ones")
    parser.add_argument(
        "--context", type=int, default=32 if quick else 256, help="tokens that a teacher in the step reads"
    )
    parser.add_argument(
        "--example-batches", type=int, nargs="+", default=EXAMPLE_SIZES, metavar="SIZE", help="of a teacher in the step"
    )
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), help="of autocast; by default the preset's")
    parser.add_argument("--repetitions", type=int, default=2 if quick else 7, help="timed steps of each setting")
    parser.add_argument("--out", type=Path, help="by default results/training_step.json, or with a model's name")
    arguments = parser.parse_args()
    name = arguments.model.rstrip("/").rpartition("/")[2]
    default = RESULTS / f"training_step{'' if name == 'pocket' else f'_{name}'}.json"
    arguments.out = arguments.out or (None if quick else default)
    for name in ("conversations", "context", "repetitions", "example_batches"):
        given = getattr(arguments, name)
        if (least := min(given) if isinstance(given, Sequence) else given) < 1:
            parser.error(f"--{name.replace('_', '-')}: given {least}, expected at least 1")
    RESULTS.mkdir(exist_ok=True)
    if arguments.out and not arguments.out.parent.is_dir():
        parser.error(f"--out: there is no folder {arguments.out.parent}")
    try:
        result = benchmark(arguments)
    except CartridgesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
