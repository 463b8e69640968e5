"""The recipe of the pocket model: its shape, its curriculum of lengths and its learning rates, as presets.

`bundled` is that of the bundled weights but for what their card tells, for a CUDA device; `small` trains a model of
their size on two cores of a CPU, on a thirtieth of the tokens.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from cartridges.config import Config
from cartridges.rng import rng_of


class Shape(Config):
    """The batch of one step: rows of one length."""

    model_config = ConfigDict(allow_inf_nan=False)
    length: int = Field(gt=15, description="tokens of a row")
    rows: int = Field(gt=0)
    context_share: float = Field(default=0.65, gt=0.3, lt=1, description="largest part of a row that documents take")
    weight: float = Field(default=1.0, gt=0, description="how often the shape is drawn among those of its phase")


class Phase(Config):
    """A part of the training, each of whose steps draws one of the shapes."""

    model_config = ConfigDict(allow_inf_nan=False)
    steps: int = Field(gt=0)
    shapes: list[Shape] = Field(min_length=1)


LENGTHS: tuple[Mapping[str, Any], ...] = (
    {"length": 256},
    {"length": 512, "weight": 10},
    {"length": 1024, "weight": 5, "context_share": 0.75},
    {"length": 2432, "weight": 3, "context_share": 0.88},
    {"length": 4480, "weight": 1.5, "context_share": 0.92},
    {"length": 8192, "weight": 0.75, "context_share": 0.94},
)


def curriculum(steps: tuple[int, int], rows: tuple[int, ...]) -> list[dict[str, Any]]:
    """Short rows until reading has been learned, then a mixture of longer ones; `rows` of a batch by LENGTHS."""
    short, *mixture = [{**shape, "rows": num} for shape, num in zip(LENGTHS, rows, strict=False)]
    return [{"steps": steps[0], "shapes": [short]}, {"steps": steps[1], "shapes": mixture}]


class PocketConfig(Config):
    """What of a run can be chosen; the lessons themselves and their weights are code (`lessons.py`, `batches.py`)."""

    model_config = ConfigDict(allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**63)
    vocab_size: int = Field(default=2048, ge=300)
    num_layers: int = Field(default=5, gt=0)
    hidden_size: int = Field(default=256, gt=0)
    mlp_size: int = Field(default=640, gt=0)
    num_heads: int = Field(default=4, gt=0)
    num_kv_heads: int = Field(default=2, gt=0)
    head_size: int = Field(default=64, gt=0, multiple_of=2, description="64 fits vLLM's CPU kernels")
    window: int = Field(default=8192, gt=0, description="max_position_embeddings")
    rope_theta: float = Field(default=100_000.0, gt=0)
    phases: list[Phase] = Field(min_length=1)
    target_share: float = Field(default=0.4, gt=0, le=1, description="positions of a batch that carry loss, at most")
    muon_lr: float = Field(default=0.02, gt=0, description="for matrices")
    adam_lr: float = Field(default=3e-3, gt=0, description="for embeddings and norms")
    warmup_steps: int = Field(default=50, ge=0)
    decay_share: float = Field(
        default=0.7, gt=0, le=1, description="last part of the run, where rates fall to final_lr_ratio"
    )
    final_lr_ratio: float = Field(default=0.02, ge=0, le=1)
    checkpoint_every: int = Field(default=100, gt=0)
    log_every: int = Field(default=10, gt=0)
    compile: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "num_layers": 2,
            "hidden_size": 64,
            "mlp_size": 128,
            "num_heads": 1,
            "num_kv_heads": 1,
            "vocab_size": 512,
            "phases": [
                {"steps": 6, "shapes": [{"length": 256, "rows": 2}]},
                {"steps": 4, "shapes": [{"length": 320, "rows": 2}, {"length": 256, "rows": 2}]},
            ],
            "warmup_steps": 2,
            "checkpoint_every": 4,
            "log_every": 1,
            "compile": False,
        },
        "small": {"phases": curriculum((600, 1650), (48, 24, 12, 5, 3))},
        "bundled": {
            "phases": curriculum((1200, 7500), (384, 192, 96, 40, 22, 12)),
            "warmup_steps": 100,
            "checkpoint_every": 1000,
            "log_every": 50,
        },
        "base": {
            "num_layers": 8,
            "hidden_size": 384,
            "mlp_size": 1024,
            "num_heads": 6,
            "num_kv_heads": 2,
            "phases": curriculum((1500, 4600), (192, 96, 48, 20, 12)),
        },
    }

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"given num_heads={self.num_heads} and num_kv_heads={self.num_kv_heads}, "
                "expected a multiple of num_kv_heads as num_heads"
            )
        shapes = [shape for phase in self.phases for shape in phase.shapes]
        longest = max(shape.length for shape in shapes)
        if longest > self.window:
            raise ValueError(f"given a phase of length {longest}, expected at most the window, {self.window}")
        for shape in shapes:
            if shape.rows * shape.length * self.target_share < 1:
                raise ValueError(
                    f"given target_share={self.target_share}, expected at least one target in the "
                    f"{shape.rows * shape.length} tokens of a batch"
                )
        return self

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def shape_at(self, step: int) -> Shape:
        """The shape of step `step` (from 0); long rows are mixed with short ones, so that they meet high rates too."""
        phase, rng = self.phase_at(step), rng_of("shape", self.seed, step)
        return rng.choices(phase.shapes, [shape.weight for shape in phase.shapes])[0]

    def phase_at(self, step: int) -> Phase:
        """The phase of step `step` (from 0). Raises IndexError beyond the last."""
        left = step
        for phase in self.phases:
            if left < phase.steps:
                return phase
            left -= phase.steps
        raise IndexError(step)

    def lr_ratio(self, step: int) -> float:
        """Warm-up, constant, then linear decay; a fraction of the top rates."""
        decay_steps = max(1, round(self.num_steps * self.decay_share))
        left = (self.num_steps - step) / decay_steps
        return min(1.0, (step + 1) / max(1, self.warmup_steps), max(self.final_lr_ratio, left))
