"""What of training a cartridge can be chosen. Defaults follow the paper; preset "pocket" fits the small model."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from cartridges.config import Config
from cartridges.initialization import InitializeConfig


class TrainConfig(Config):
    """One training run. A step is `rows_per_step` packed rows of `row_len` tokens."""

    model_config = ConfigDict(allow_inf_nan=False)
    slots: int = Field(default=1024, gt=0, description="keys and values of so many tokens")
    frozen_slots: int = Field(default=1, ge=0, description="slots that stay as initialised; the first keeps the sink")
    train_bias: bool = Field(default=False, description="a bias for each slot's attention scores is trained too")
    initialize: InitializeConfig = InitializeConfig.resolve()
    objective: Literal["distill", "next_token", "text"] = Field(
        default="distill", description="the teacher's distributions; the conversations' tokens; or the corpus' own text"
    )
    trained: Literal["both", "keys", "values"] = Field(
        default="both", description="which part of the slots; the rest stays"
    )
    lr: float = Field(
        default=2e-2, gt=0, le=1e18, description="of keys and of a bias, and times values_lr_ratio of values"
    )
    values_lr_ratio: float = Field(
        default=1.0, gt=0, le=1e18, description="values are larger than keys and may move further"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="of Adam")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="of Adam")
    warmup_steps: int = Field(default=20, ge=0, description="in which the rate rises")
    final_lr_ratio: float = Field(default=0.02, ge=0, le=1, description="of lr, at the end of the linear decay")
    epochs: int = Field(default=1, gt=0, description="over the conversations")
    max_steps: int | None = Field(default=None, gt=0, description="instead of epochs")
    row_len: int = Field(default=4096, gt=7, description="tokens of a packed row")
    rows_per_step: int = Field(default=8, gt=0, description="gradients of so many rows are accumulated")
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 for no limit")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="of matrix products; auto: bf16 where the device is fast at it"
    )
    checkpointing: bool = Field(default=False, description="recompute activations in the backward pass, to save memory")
    holdout_share: float = Field(default=0.05, ge=0, lt=1, description="of the conversations, to find the best step")
    eval_every: int = Field(default=50, gt=0, description="steps, for the held-out loss")
    patience: int = Field(default=0, ge=0, description="stop after so many worse measurements in a row; 0 for never")
    keep_best: bool = Field(
        default=True, description="the slots that did best on held-out conversations; else the last"
    )
    save_every: int = Field(default=100, gt=0, description="steps, for a checkpoint")
    save_dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="of the finished cartridge")
    log_every: int = Field(default=10, gt=0, description="steps, for a line of the metrics")
    trackers: list[str] = Field(default=[], description="of accelerate: wandb, tensorboard, trackio, ...")
    seed: int = Field(default=0, ge=0, description="of the order of rows, and of what is held out")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "pocket": {
            "slots": 128,
            "initialize": {"kind": "random"},
            "lr": 0.05,
            "values_lr_ratio": 8.0,
            "beta1": 0.8,
            "beta2": 0.9,
            "epochs": 2,
            "row_len": 512,
            "rows_per_step": 1,
            "clip": 0.0,
            "eval_every": 100,
        },
    }

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.frozen_slots >= self.slots:
            raise ValueError(
                f"given slots={self.slots} and frozen_slots={self.frozen_slots}, expected at least one slot to train"
            )
        return self

    def lr_ratio(self, step: int, num_steps: int) -> float:
        """The rate of step `step` (from 0) as a fraction of `lr`: linear warm-up, then linear decay."""
        warm = (step + 1) / max(1, self.warmup_steps)
        left = (num_steps - step) / max(1, num_steps - min(self.warmup_steps, num_steps - 1))
        return min(1.0, warm, max(self.final_lr_ratio, left))
