"""An adapter as a LoRA in the form of PEFT, which vLLM and others load too.

All matrices get one rank, since servers know no other, and a scale of 1. The rank is the smallest whose singular values
keep a share of every delta's energy, unless one is given; what is cut off is reported. An output bias is written as
`lora_bias`, which PEFT loads and vLLM refuses.

Shapes: O outputs, I inputs, R rank.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cartridges.adapter import Patch, ThoughtAdapter
from cartridges.adapting import linear_of
from cartridges.errors import InputError
from cartridges.mlp import decoder_blocks
from cartridges.model import Model
from cartridges.moments import factors
from cartridges.run_folder import disk_errors_told, write_json, write_whole

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FULL_ENERGY = 1.0 - 1e-12


@dataclass(frozen=True)
class LoraReport:
    """What was written: the rank of all matrices, and of each what it lost, |D - D_R| / |D|."""

    rank: int
    errors: dict[str, float]
    has_bias: bool
    num_bytes: int

    @property
    def largest_error(self) -> float:
        """Of any matrix."""
        return max(self.errors.values(), default=0.0)


def export_lora(
    adapter: ThoughtAdapter,
    model: Model,
    folder: Path,
    rank: int | None = None,
    energy: float = FULL_ENERGY,
    max_rank: int | None = None,
) -> LoraReport:
    """Write the adapter into `folder` as a LoRA of `rank`, or of the smallest that keeps `energy` of every delta.

    A smallest rank above `max_rank`, if given, is cut to that; the report tells what is lost.

    Raises InputError for a rank below 1 or an energy outside (0, 1], FormatError for an adapter of another model.
    """
    from safetensors.torch import save

    if (rank is not None and rank < 1) or not 0 < energy <= 1:
        raise InputError(f"given rank={rank} and energy={energy}, expected a rank of at least 1, energy in (0, 1]")
    adapter.check_fits(model.identity)
    blocks = decoder_blocks(model)
    paths = {id(module): name for name, module in model.hf.named_modules()}
    placed = {paths[id(linear_of(model, blocks, patch))]: patch for patch in adapter.patches}
    deltas = {path: delta.double() for path, patch in placed.items() if (delta := patch.whole()) is not None}
    spectra = {path: torch.linalg.svdvals(delta) for path, delta in deltas.items()}
    size = rank or max((_rank_of(spectrum_R, energy) for spectrum_R in spectra.values()), default=1)
    size = min(size, max_rank or size)
    tensors: dict[str, torch.Tensor] = {}
    for path, patch in placed.items():
        left, right = _padded(patch, deltas.get(path), size)
        tensors[f"base_model.model.{path}.lora_A.weight"] = right.float().contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = left.float().contiguous()
        if _has_bias(adapter):
            bias = patch.bias if patch.bias is not None else torch.zeros(patch.num_outputs)
            tensors[f"base_model.model.{path}.lora_B.bias"] = bias.float().contiguous()
    errors = {path: float(s[size:].norm() / s.norm()) if float(s.norm()) else 0.0 for path, s in spectra.items()}
    folder = Path(folder)
    with disk_errors_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = save(tensors, {"format": "pt"})
        write_whole(folder / TENSORS, content)
        config = lora_config(adapter, sorted(placed), size)
        write_json(folder / CONFIG, config)
    return LoraReport(size, errors, _has_bias(adapter), len(content))


def lora_config(adapter: ThoughtAdapter, paths: list[str], rank: int) -> dict[str, Any]:
    """PEFT's configuration; the modules are named in full, as layers without a patch have no tensors."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.manifest.model.model_id,
        "revision": adapter.manifest.model.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": _has_bias(adapter),
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": paths,
    }


def _has_bias(adapter: ThoughtAdapter) -> bool:
    return any(patch.bias is not None for patch in adapter.patches)


def _rank_of(spectrum_R: torch.Tensor, energy: float) -> int:
    """How many singular values hold so much of the sum of squares; at least 1."""
    squares = spectrum_R.square()
    if not float(squares.sum()):
        return 1
    missing = 1 - squares.cumsum(0) / squares.sum()
    return min(len(squares), int((missing > 1 - energy).sum()) + 1)


def _padded(patch: Patch, delta: torch.Tensor | None, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [O, R] and [R, I]; with zeros where there is less."""
    left, right = torch.zeros(patch.num_outputs, rank), torch.zeros(rank, patch.num_inputs)
    if delta is not None:
        found_left, found_right = factors(delta, rank)
        left[:, : found_left.shape[1]], right[: found_right.shape[0]] = found_left, found_right
    return left, right
