"""The verb `train`: conversations to a cartridge, by context distillation (arXiv 2506.06266, section 4.2).

The model is frozen; keys and values of the slots behind the frozen ones are the parameters, in float32, and if asked
their bias. A run folder
holds `config.yaml`, `manifest.json`, `metrics.jsonl`, `curves.png`, `checkpoint.pt` (weights-only loading) and in the
end `cartridge/`. A run that dies at any moment goes on from its last checkpoint with the same curve.

Shapes: L layers, P slots, G key/value heads, H head size, M targets.
"""

import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cartridges.attention import PackedPrefix, attend, packed_hidden
from cartridges.cartridge import MANIFEST, Cartridge
from cartridges.corpus import Corpus
from cartridges.dataset import SPLIT, Dataset
from cartridges.errors import CartridgesError, ConfigError, FormatError, InterruptedRun, lacks_memory
from cartridges.initialization import initialize
from cartridges.log import Bar, MetricsLog, plot_curves, progress
from cartridges.losses import distillation_loss, next_token_loss
from cartridges.model import Model
from cartridges.packing import PackedRow, RowTensors, to_tensors
from cartridges.precision import NAMES, autocast_bf16, precision_of
from cartridges.preflight import accelerator_of, check_checkpoint, check_run, resumed_precision
from cartridges.provenance import provenance
from cartridges.recipe import TrainConfig
from cartridges.rows import RowPlan
from cartridges.run_folder import StopSignals, claim, disk_errors_told, write_json, write_whole
from cartridges.slots import Slots

CARTRIDGE, CHECKPOINT, METRICS = "cartridge", "checkpoint.pt", "metrics.jsonl"
CURVES, CONFIG = "curves.png", "config.yaml"


@dataclass
class Progress:
    """What a run has done so far, besides its parameters."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    last_loss: float = math.inf
    num_worse: int = 0  # held-out measurements since the best one
    recent: list[tuple[float, float, int]] = field(default_factory=list)  # loss, gradient norm, tokens of each step


class Run:
    """One training run in a folder."""

    def __init__(
        self,
        dataset: Dataset | None,
        model: Model,
        corpus: Corpus | None,
        config: TrainConfig,
        out: Path,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.config, self.out, self.accelerator = model, config, Path(out), accelerator
        self.plan = RowPlan.of(dataset, model, corpus, config)
        training = dataset.split(config.holdout_share, config.seed)[0] if dataset else None
        start = initialize(model, corpus, config.slots, config.initialize, config.frozen_slots, training)
        self.dataset_digest = dataset.digest if dataset else ""
        self.slots = Slots(start, model.device, config.train_bias)
        self.optimizer = self.make_optimizer(len(start.keys))
        width = model.head.weight_VD.shape[1]
        self.precision = precision_of(config.precision, model.dtype, model.device, width)
        self.done = Progress()
        self.best: list[torch.Tensor] | None = None
        num_layers = len(start.keys)
        held = {"keys": self.slots.trained[num_layers : 2 * num_layers], "values": self.slots.trained[:num_layers]}
        for parameter in held.get(config.trained, []):
            parameter.requires_grad_(False)

    def make_optimizer(self, num_layers: int) -> torch.optim.Adam:
        """Adam, with a group of its own for the values; each group keeps its top rate."""
        config, trained = self.config, self.slots.trained
        values = trained[num_layers : 2 * num_layers]
        others = [*trained[:num_layers], *trained[2 * num_layers :]]
        tops = ((others, config.lr), (values, config.lr * config.values_lr_ratio))
        groups = [{"params": params, "lr": top, "top_lr": top} for params, top in tops]
        return torch.optim.Adam(groups, betas=(config.beta1, config.beta2))

    @property
    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 products where the configuration says so; of a model that is itself in bfloat16 they are anyway."""
        return autocast_bf16(self.model.device, self.model.dtype == torch.float32 and self.precision == "bf16")

    @property
    def is_trained(self) -> bool:
        stopped_early = 0 < self.config.patience <= self.done.num_worse
        return self.done.step >= self.plan.num_steps or stopped_early

    def loss_of(self, row: PackedRow) -> torch.Tensor:
        """The sum of the loss over the row's targets, in nats."""
        tensors: RowTensors = to_tensors(row, self.model.device)
        head = self.model.head
        with self.autocast:
            keys, values, bias = self.slots.whole()
            hidden_TD = packed_hidden(self.model, tensors.ids_T, PackedPrefix(keys, values, row.lengths, bias))
            hidden_MD = hidden_TD[tensors.target_positions_M]
            capped: dict[str, Any] = {"softcap": head.softcap, "scale": head.scale}
            if self.config.objective == "distill":
                return distillation_loss(
                    hidden_MD, head.weight_VD, tensors.teacher_ids_MK, tensors.teacher_logprobs_MK, **capped
                )
            return next_token_loss(hidden_MD, head.weight_VD, tensors.target_ids_M, **capped)

    def train_step(self) -> None:
        """One optimiser step over the rows of the step, shared out over the processes."""
        started, config = time.monotonic(), self.config
        rows = self.plan.step_rows(self.done.step)
        num_targets = sum(row.num_targets for row in rows)
        total = torch.zeros((), device=self.model.device)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for row in rows[rank::world]:
            loss = self.loss_of(row) / num_targets
            loss.backward()
            total += loss.detach()
        self.share_gradients()
        value = float(self.summed(total))
        norm = float(torch.nn.utils.clip_grad_norm_(self.slots.trained, config.clip or math.inf))
        if not (math.isfinite(value) and math.isfinite(norm)):
            ratio = config.values_lr_ratio
            raise CartridgesError(
                f"the loss became {value} (gradient norm {norm}) at step {self.done.step}; give a lower lr than "
                f"{config.lr}, {f'a lower values_lr_ratio than {ratio}, ' if ratio > 1 else ''}or precision=fp32, and "
                "begin anew"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["top_lr"] * config.lr_ratio(self.done.step, self.plan.num_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        num_tokens = sum(len(row.ids_T) for row in rows)
        self.done.step += 1
        self.done.num_tokens += num_tokens
        self.done.recent.append((value, norm, num_tokens))
        self.done.seconds += time.monotonic() - started

    def share_gradients(self) -> None:
        """Add up what the processes found; one without rows adds nothing."""
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.slots.trained:
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self.summed(grad)

    @torch.no_grad()
    def heldout_loss(self) -> float:
        """The mean loss over all held-out targets, in nats a token."""
        rows, total = self.plan.heldout_rows, torch.zeros((), device=self.model.device)
        for row in rows[self.accelerator.process_index :: self.accelerator.num_processes]:
            total += self.loss_of(row)
        return float(self.summed(total)) / sum(row.num_targets for row in rows)

    def measure(self) -> dict[str, float]:
        """The held-out loss, remembered with the slots if it is the best so far; nothing without held-out rows."""
        if not self.plan.heldout_rows:
            return {}
        started = time.monotonic()
        loss = self.done.last_loss = self.heldout_loss()
        if loss < self.done.best_loss:
            self.done.best_loss, self.done.best_step, self.done.num_worse = loss, self.done.step, 0
            self.best = self.slots.state()
        else:
            self.done.num_worse += 1
        self.done.seconds += time.monotonic() - started
        return {"heldout_loss": loss}

    def told(self, measured: dict[str, float]) -> dict[str, float]:
        """A line of the metrics: means over the steps since the last one."""
        losses, norms, tokens = zip(*self.done.recent, strict=True)
        lr = self.config.lr * self.config.lr_ratio(self.done.step - 1, self.plan.num_steps)
        self.done.recent = []
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            **measured,
            "lr": lr,
            "values_lr": lr * self.config.values_lr_ratio,
            "num_tokens": sum(tokens),
            "seconds": round(self.done.seconds, 3),
        }

    def is_stopped(self, asked: bool) -> bool:
        """Whether any of the processes was asked to stop, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        return bool(self.summed(torch.tensor(float(asked), device=self.model.device)) > 0)

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        reduced: Any = self.accelerator.reduce(tensor, "sum") if self.accelerator.num_processes > 1 else tensor
        return reduced

    def made_with(self) -> dict[str, Any]:
        """What a checkpoint belongs to, and is of no use without."""
        start = self.slots.cartridge.manifest  # by what it is made of: its bits may differ on another machine
        return {
            "config": self.config.model_dump(mode="json"),
            "dataset": self.dataset_digest,
            "split": SPLIT if self.dataset_digest and self.config.holdout_share else "",
            "corpus": start.corpus_digest,
            "model": start.model.weights_digest,
            "initializer": start.initializer,
        }

    def save(self) -> None:
        """Write the checkpoint, so that at every moment a whole one exists; by the first process alone."""
        if not self.accelerator.is_main_process:
            return
        content = io.BytesIO()
        state = {
            "made_with": json.dumps(self.made_with(), sort_keys=True),
            "slots": self.slots.state(),
            "frozen": self.slots.frozen,
            "precision": self.precision,
            "dtype": NAMES.get(self.model.dtype, str(self.model.dtype)),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "done": vars(self.done),
        }
        torch.save(state, content)
        write_whole(self.out / CHECKPOINT, content.getbuffer())

    def load(self) -> None:
        """Go on from the checkpoint, in the precision that the run began in.

        Raises FormatError where it is damaged or of another version, ConfigError where it is another run's.
        """
        path = self.out / CHECKPOINT
        try:
            state = torch.load(path, map_location=self.model.device, weights_only=True)
            check_checkpoint(path, state, self.made_with(), len(self.optimizer.param_groups))
            self.precision = resumed_precision(self.out, state, self.model, self.precision)
            self.slots.load(state["slots"])
            self.slots.frozen = state["frozen"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.best, self.done = state["best"], Progress(**state["done"])
        except (CartridgesError, OSError):
            raise
        except Exception as error:  # what zipfile, pickle and torch raise for bad files has no common base
            raise FormatError(
                f"cannot resume from {path}: it is damaged ({type(error).__name__}); delete it to begin anew"
            ) from error

    def finished(self, name: str) -> Cartridge:
        """The cartridge: the best slots by held-out loss where the configuration keeps those, else the last."""
        if self.best is not None and self.config.keep_best:
            self.slots.load(self.best)
        keys, values, bias = ([tensor.detach().cpu() for tensor in part or ()] for part in self.slots.whole())
        kept_best = self.best is not None and self.config.keep_best
        metrics = {
            "steps": self.done.step,
            "kept_step": self.done.best_step if kept_best else self.done.step,
            "num_tokens": self.done.num_tokens,
            "seconds": round(self.done.seconds, 2),
        }
        if self.plan.heldout_rows:
            metrics["heldout_loss"] = self.done.best_loss if kept_best else self.done.last_loss
        told = {
            "name": name,
            "dataset_digest": self.dataset_digest,
            "training": {**self.config.model_dump(mode="json"), "precision": self.precision, "split": SPLIT},
            "metrics": metrics,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        manifest = self.slots.cartridge.manifest.model_copy(update=told)
        whole = Cartridge(keys, values, manifest, bias or None)
        return whole.to("cpu", getattr(torch, self.config.save_dtype)).sealed()


def train(
    dataset: Dataset | None,
    model: Model,
    corpus: Corpus | None = None,
    config: TrainConfig | None = None,
    out: Path | str = "runs/train",
    name: str = "",
    **values: Any,
) -> Cartridge:
    """Train a cartridge in the run folder `out`, or go on with the run it holds, or give what it ended with.

    `values` are fields of the configuration, over the preset that fits the model, where no `config` is given. `corpus`
    is needed to initialise from it and for the objective "text", which needs no dataset. Raises InputError,
    ConfigError where `out` holds another run, InterruptedRun when stopped, CartridgesError when the loss is no number.
    """
    if config is not None and values:
        raise ConfigError(f"given a config and {', '.join(sorted(values))}; give one or the other")
    config = config or TrainConfig.resolve(model.profile, values=values)
    out = Path(out)
    check_run(dataset, model, config, out)
    # bf16 is asked for by autocast, so that float32 masters and the frozen model stay as they are
    accelerator = accelerator_of(model, config, out)
    is_main = accelerator.is_main_process
    with disk_errors_told(out), claim(out) if is_main else nullcontext():
        run = Run(dataset, model, corpus, config, out, accelerator)
        if (out / CHECKPOINT).exists():
            run.load()
        elif is_main:
            shutil.rmtree(out / CARTRIDGE, ignore_errors=True)  # of a run begun anew
            config.save(out / CONFIG)
            about = {"slots": config.slots, "precision": run.precision, "dataset": run.dataset_digest}
            about["model"] = model.identity.model_id
            write_json(out / "manifest.json", {**about, **provenance()})
        if config.trackers:
            flat = {
                key: value
                for key, value in config.model_dump(mode="json").items()
                if not isinstance(value, dict | list)
            }
            accelerator.init_trackers("cartridges", flat)
        if not run.is_trained:
            with (
                memory_told(config),
                attend(model, config.checkpointing),
                metrics_of(run) as metrics,
                StopSignals() as stop,
                progress(f"training {config.slots} slots", run.plan.num_steps, is_main) as bar,
            ):
                bar.advance(run.done.step, "resumed" if run.done.step else "starting")
                loop(run, metrics, bar, stop)
            run.save()
        if is_main and not (out / CARTRIDGE / MANIFEST).exists():
            plot_curves(out / METRICS, out / CURVES, {"loss (nats per token)": ["loss", "heldout_loss"]})
            run.finished(name or out.name).save(out / CARTRIDGE)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return Cartridge.load(out / CARTRIDGE)


@contextmanager
def metrics_of(run: Run) -> Iterator[MetricsLog | None]:
    """The metrics of the run, without lines that are ahead of its checkpoint; None beside the first process."""
    if not run.accelerator.is_main_process:
        yield None
        return
    with MetricsLog(run.out / METRICS) as metrics:
        metrics.truncate_after(run.done.step or -1)
        yield metrics


@contextmanager
def memory_told(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory, on whichever device, into a CartridgesError that says what takes less."""
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error):
            less = "a lower row_len" if config.checkpointing else "a lower row_len, then checkpointing=true"
            raise CartridgesError(
                f"a row of {config.row_len} tokens behind {config.slots} slots does not fit into memory; give {less}"
            ) from error
        raise


def loop(run: Run, metrics: MetricsLog | None, bar: Bar, stop: StopSignals) -> None:
    """Step until the end; a line of the metrics is written before the checkpoint that it belongs to."""
    config = run.config
    if not run.done.step and (measured := run.measure()) and metrics:
        metrics.append(step=0, **measured)
    while not run.is_trained:
        run.train_step()
        step, last = run.done.step, run.done.step >= run.plan.num_steps
        measured = run.measure() if last or step % config.eval_every == 0 else {}
        if measured or last or step % config.log_every == 0:
            told = run.told(measured)
            if metrics:
                metrics.append(step=step, **told)
            if config.trackers:
                run.accelerator.log(told, step=step)
            bar.advance(0, " ".join(f"{key} {told[key]:.4f}" for key in ("loss", "heldout_loss") if key in told))
        bar.advance(1)
        if run.is_stopped(stop.asked) and not run.is_trained:
            run.save()
            raise InterruptedRun(
                f"stopped at step {step} of {run.plan.num_steps} in {run.out}; give the same command again to go on"
            )
        if step % config.save_every == 0:
            run.save()
