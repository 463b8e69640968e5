"""The verb `pocket train`: from nothing to a tokenizer and weights, resumable to the last digit.

A run folder holds `config.yaml`, `manifest.json` (where the run comes from), `tokenizer/`, `metrics.jsonl`,
`checkpoint.pt` (weights and optimiser state, read back with weights-only loading) and in the end `curves.png` and
`model/`, loadable by plain transformers. A process that dies at any moment, by `kill -9` too, leaves a run that goes on
from its last checkpoint; a polite stop (SIGINT, SIGTERM) saves one.
"""

import hashlib
import io
import math
import shutil
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cartridges.errors import CartridgesError, ConfigError, FormatError, InputError, InterruptedRun, lacks_memory
from cartridges.log import Bar, MetricsLog, plot_curves, progress
from cartridges.pocket import MANIFEST
from cartridges.pocket.attention import register
from cartridges.pocket.batches import Batch, ChatEncoder
from cartridges.pocket.recipe import PocketConfig, Shape
from cartridges.pocket.step import Optimizers, accuracy_by_kind, build_model, make_loss
from cartridges.pocket.tokenizer import sample_texts, train_tokenizer
from cartridges.pocket.workers import BatchMaker, batches_from
from cartridges.precision import check_resumed, precision_of
from cartridges.provenance import provenance
from cartridges.run_folder import (
    LOCK,
    StopSignals,
    claim,
    disk_errors_told,
    resume_command,
    write_json,
    write_whole,
    write_whole_folder,
)

TOKENIZER_CONTEXTS = 3000
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass
class Recent:
    """What the steps since the last line of the metrics gave.

    Saved with the checkpoint, so that a run stopped between two lines writes the line that it would have written.
    """

    losses: list[tuple[float, float]] = field(default_factory=list)  # all targets, answers alone
    tally: dict[str, list[int]] = field(default_factory=dict)
    speeds: dict[str, list[float]] = field(default_factory=dict)  # by length of row: steps, tokens, seconds

    def add(self, losses: tuple[float, float], kinds: dict[str, tuple[int, int]], shape: Shape, step_s: float) -> None:
        self.losses.append(losses)
        for kind, counts in kinds.items():
            self.tally[kind] = [
                so_far + more for so_far, more in zip(self.tally.get(kind, (0, 0)), counts, strict=True)
            ]
        so_far = self.speeds.get(str(shape.length), [0, 0, 0.0])
        now = (1, shape.rows * shape.length, step_s)
        self.speeds[str(shape.length)] = [old + new for old, new in zip(so_far, now, strict=True)]

    @property
    def right(self) -> float:
        """The fraction of the turns that was answered right."""
        return sum(right for right, _ in self.tally.values()) / max(1, sum(num for _, num in self.tally.values()))

    def metrics(self) -> dict[str, float]:
        return {
            "loss": sum(loss for loss, _ in self.losses) / len(self.losses),
            "answer_loss": sum(loss for _, loss in self.losses) / len(self.losses),
            "right": self.right,
            **{f"right_{kind}": right / num_all for kind, (right, num_all) in sorted(self.tally.items())},
            **{f"steps_at_{length}": steps for length, (steps, _, _) in self.speeds.items()},
            **{f"tokens_per_s_at_{length}": tokens / seconds for length, (_, tokens, seconds) in self.speeds.items()},
        }


class Run:
    """One training run in a folder: created, stepped, saved, found again. `open_run` makes it."""

    def __init__(self, folder: Path, config: PocketConfig, device: str | None = None, lock: TextIO | None = None):
        self.folder, self.config, self.lock = folder, config, lock
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = self.open_tokenizer()
        self.encoder = ChatEncoder(self.tokenizer)
        self.model = build_model(config, self.tokenizer)
        cast(torch.nn.Module, self.model).to(self.device)
        self.model.set_attn_implementation(register())
        self.optimizers = Optimizers(self.model, config)
        self.multiply_in(precision_of("auto", torch.float32, self.device))
        self.step = 0
        self.recent = Recent()

    def multiply_in(self, precision: str) -> None:
        """Have products in bf16 or fp32 from here on."""
        self.precision, in_bf16 = precision, precision == "bf16"
        self.optimizers.in_bf16 = in_bf16
        self.loss_of = make_loss(self.model, self.config, self.device, in_bf16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self.lock:
            self.lock.close()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def exported(self) -> Path:
        """The folder of the model, there at the end of the run."""
        return self.folder / "model"

    @property
    def is_trained(self) -> bool:
        return self.step == self.config.num_steps

    @property
    def is_finished(self) -> bool:
        """Trained, and all that is made at the end is there."""
        ends = [self.folder / "curves.png", *(self.exported / name for name in MODEL_FILES)]
        return self.is_trained and all(path.exists() for path in ends)

    def open_tokenizer(self) -> PreTrainedTokenizerFast:
        path = self.folder / "tokenizer"
        if not (path / "tokenizer.json").exists():
            num_contexts = TOKENIZER_CONTEXTS if self.config.vocab_size > 512 else TOKENIZER_CONTEXTS // 30
            trained = train_tokenizer(self.config.vocab_size, sample_texts(num_contexts))
            write_whole_folder(path, trained.save_pretrained)
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        except Exception as error:  # what tokenizers and transformers raise for bad files has no common base
            raise FormatError(
                f"the tokenizer in {path} cannot be read ({type(error).__name__}); delete that folder to make it anew"
            ) from error
        if len(tokenizer) > self.config.vocab_size:
            raise FormatError(
                f"the tokenizer in {path} has {len(tokenizer)} entries, expected at most "
                f"vocab_size={self.config.vocab_size}; restore config.yaml or give another folder"
            )
        return tokenizer

    def made_with(self) -> dict[str, Any]:
        """What a checkpoint belongs to, and is of no use without."""
        tokenizer = (self.folder / "tokenizer" / "tokenizer.json").read_bytes()
        return {"config": self.config.model_dump(mode="json"), "tokenizer": hashlib.sha256(tokenizer).hexdigest()}

    def save(self) -> None:
        """Write the checkpoint so that at every moment a whole one exists."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "recent": asdict(self.recent),
            "precision": self.precision,
            "made_with": self.made_with(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self.checkpoint, content.getbuffer())

    def load(self) -> None:
        """Go on from the checkpoint, in the precision that the run began in.

        Raises FormatError where it is damaged or belongs to another configuration, ConfigError where that precision
        cannot be had here.
        """
        try:
            with zipfile.ZipFile(self.checkpoint) as archive:  # torch does not look at the checksums
                if damaged := archive.testzip():
                    raise ValueError(f"checksum of {damaged}")
            self._take(torch.load(self.checkpoint, map_location=self.device, weights_only=True))
        except (OSError, MemoryError, CartridgesError):
            raise
        except Exception as error:  # what zipfile, pickle and torch raise for bad files has no common base
            raise FormatError(
                f"cannot resume from {self.checkpoint}: it is damaged ({type(error).__name__}); "
                "restore it, or delete it to begin anew"
            ) from error

    def _take(self, state: dict[str, Any]) -> None:
        made_with, now = state.get("made_with", {}), self.made_with()
        if other := differing(made_with.get("config", now["config"]), now["config"]):
            raise FormatError(
                f"{self.checkpoint} was made with another {other} than {self.folder / 'config.yaml'} says; "
                "restore that file, or give another folder"
            )
        if made_with.get("tokenizer", now["tokenizer"]) != now["tokenizer"]:
            raise FormatError(
                f"{self.checkpoint} was made with another tokenizer than {self.folder / 'tokenizer'}; "
                "restore that folder, or delete the checkpoint to begin anew"
            )
        self.multiply_in(check_resumed(self.folder, state.get("precision", self.precision), self.device))
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        if not (isinstance(state["step"], int) and 0 <= state["step"] <= self.config.num_steps):
            raise ValueError(f"step {state['step']!r}")
        self.step, self.recent = state["step"], Recent(**state.get("recent", {}))

    def train_step(self, batch: Batch) -> tuple[float, float, dict[str, tuple[int, int]]]:
        """One step on its batch; gives the loss, the loss on answers alone (nats a token), the accuracy by kind."""
        if not batch.weights_M.any():
            length = self.config.shape_at(self.step).length
            raise CartridgesError(
                f"the batch of step {self.step} has nothing to learn in rows of {length} tokens; give longer rows"
            )
        tensors = [
            torch.from_numpy(array).to(self.device)
            for array in (batch.inputs_BT, batch.positions_M, batch.targets_M, batch.weights_M)
        ]
        loss, loss_M, right_M = self.loss_of(*tensors)
        loss.backward()
        self.optimizers.step(self.config.lr_ratio(self.step))
        answers_M = torch.from_numpy(batch.turns_M > 0).to(self.device)
        value = loss.item()
        if not math.isfinite(value):
            raise CartridgesError(f"the loss became {value} at step {self.step}; lower muon_lr and adam_lr, begin anew")
        self.step += 1
        answer_loss = (loss_M * answers_M).sum().item() / max(1, int(answers_M.sum()))
        return value, answer_loss, accuracy_by_kind(batch, right_M)

    def export(self, path: Path) -> None:
        """Write bf16 weights, configuration and tokenizer the Hugging Face way."""
        model = build_model(self.config, self.tokenizer)
        model.load_state_dict(self.model.state_dict())
        model.bfloat16()
        transformers_logging.disable_progress_bar()

        def fill(folder: Path) -> None:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        write_whole_folder(path, fill)

    def write_manifest(self) -> None:
        """Where the run comes from, for the model card; written once."""
        presets = (name for name in PocketConfig.presets if PocketConfig.resolve(name) == self.config)
        about = {
            "preset": next(presets, None),
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "device": self.device.type,
            **provenance(),
        }
        write_json(self.folder / MANIFEST, about)


def differing(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The keys under which two dicts differ, as text; empty where they are equal."""
    return ", ".join(sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)))


def known_config(folder: Path) -> PocketConfig | None:
    """The configuration of the run in `folder`; None where there is no run yet."""
    path = folder / "config.yaml"
    if not path.exists():
        strangers = sorted(p.name for p in folder.iterdir() if p.name != LOCK) if folder.is_dir() else []
        if [name for name in strangers if not name.endswith(".partial")]:
            raise InputError(
                f"{folder} holds other files ({strangers[0]}) and no config.yaml of a run; give a new or empty folder"
            )
        return None
    try:
        return PocketConfig.load(path)
    except ConfigError as error:
        raise FormatError(f"{path} is damaged: {error}; restore it, or give another folder") from error


def open_run(folder: Path, config: PocketConfig | None, device: str | None = None) -> Run:
    """A new run with `config`, or the one that `folder` holds, to be resumed, if `config` is None or the same.

    The folder is held until the run is closed or the process ends; another one gets an InputError meanwhile.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("given the device cuda, but torch sees no CUDA device here; give --device cpu or auto")
    with disk_errors_told(folder):
        known = known_config(folder)
        if known is None and config is None:
            raise InputError(f"{folder} holds no run to resume; give a preset to begin one")
        if known and config and (other := differing(config.model_dump(), known.model_dump())):
            raise InputError(
                f"{folder} holds a run with another {other}; give another folder, or resume it as it is with: "
                f"{resume_command('pocket train', folder)}"
            )
        lock = claim(folder)
        try:
            config = known_config(folder) or config
            assert config is not None
            if not (folder / "config.yaml").exists():
                write_whole(folder / "config.yaml", config.to_yaml().encode())
            run = Run(folder, config, device, lock)
            if not (folder / MANIFEST).exists():
                run.write_manifest()
            if run.checkpoint.exists():
                run.load()
        except BaseException:
            lock.close()
            raise
        return run


def train(run: Run, num_workers: int = 0) -> Path:
    """Train to the end and export; gives the folder of the model. A stop at any moment loses no saved step.

    Batches are made ahead by `num_workers` other processes, or by this one with 0; the run is the same.
    """
    with disk_errors_told(run.folder):
        if not run.is_trained:
            with MetricsLog(run.folder / "metrics.jsonl") as metrics:
                metrics.truncate_after(run.step)
                with (
                    progress("training pocket", run.config.num_steps) as bar,
                    StopSignals() as stop,
                    batches_from(BatchMaker(run.encoder, run.config), run.step, num_workers) as batches,
                ):
                    bar.advance(run.step, "resumed" if run.step else "starting")
                    loop(run, batches, metrics, bar, stop)
            shutil.rmtree(run.exported, ignore_errors=True)  # of a run begun anew; must not outlive the next line
            run.save()
        if not run.is_finished:
            plot_curves(
                run.folder / "metrics.jsonl",
                run.folder / "curves.png",
                {"loss (nats per token)": ["loss", "answer_loss"], "turns answered right": ["right", "right_lookup"]},
            )
            run.export(run.exported)
    return run.exported


def loop(run: Run, batches: Iterator[Batch], metrics: MetricsLog, bar: Bar, stop: StopSignals) -> None:
    """Step until the end; log sums over `log_every` steps, save every `checkpoint_every`.

    The line of a step is written before its checkpoint, so a checkpoint never lacks a line, and lines that are ahead of
    the checkpoint are dropped when the run goes on.
    """
    config = run.config
    while not run.is_trained:
        shape, started = config.shape_at(run.step), time.monotonic()
        loss, answer_loss, kinds = told_step(run, next_batch(run, batches, stop))
        run.recent.add((loss, answer_loss), kinds, shape, time.monotonic() - started)
        note = ""
        if run.step % config.log_every == 0 or run.is_trained:
            metrics.append(step=run.step, **run.recent.metrics())
            note = f"length {shape.length} loss {loss:.3f} right {run.recent.right:.1%}"
            run.recent = Recent()
        bar.advance(1, note)
        if stop.asked and not run.is_trained:
            raise interrupted(run)
        if run.step % config.checkpoint_every == 0:
            run.save()


def interrupted(run: Run) -> InterruptedRun:
    """What to raise once the run is saved, which this does."""
    run.save()
    told = f"stopped at step {run.step} of {run.config.num_steps}"
    return InterruptedRun(f"{told}; go on with: {resume_command('pocket train', run.folder)}")


def next_batch(run: Run, batches: Iterator[Batch], stop: StopSignals) -> Batch:
    """The batch of the step; a stop that reached the processes that make batches, too, is a stop."""
    try:
        return next(batches)
    except BrokenProcessPool as error:
        told = f"a process that makes batches died before step {run.step}; give the same command with fewer --workers"
        raise (interrupted(run) if stop.asked else CartridgesError(told)) from error


def told_step(run: Run, batch: Batch) -> tuple[float, float, dict[str, tuple[int, int]]]:
    """A step, with the errors of the machine told in one line."""
    try:
        return run.train_step(batch)
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed

        if lacks_memory(error):
            raise CartridgesError(f"step {run.step} does not fit into memory; give fewer rows in shapes") from error
        if isinstance(error, BackendCompilerFailed):
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise CartridgesError(
                f"torch.compile failed ({first_line}); install a C++ compiler, or begin anew with compile=false"
            ) from error
        raise
