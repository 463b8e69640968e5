"""The feed-forward part of a decoder layer, whatever the architecture calls its matrices.

A block computes `x' = z + down(h)`, where `h` is the gated or plain hidden of the MLP and `z` the residual beside it.
An adapter patches its Linears: those that read the residual, or the one that writes into it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cartridges.errors import InputError
from cartridges.model import Model
from cartridges.sharing import alone

OUTPUTS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2")
PROBE_TOLERANCE = 0.05  # of the probe's norm; bfloat16 rounds the block's output by less


class Reached(Exception):
    """Ends a forward pass where nothing further is needed; never leaves this package."""


@dataclass
class Mlp:
    """Layer number `index`: the block, and the Linears of its MLP by their names within the block."""

    index: int
    block: nn.Module
    output_name: str
    output: nn.Linear
    inputs: dict[str, nn.Linear]

    def linear(self, module: str) -> nn.Linear:
        """The Linear of that name."""
        return self.output if module == self.output_name else self.inputs[module]


def decoder_blocks(model: Model) -> list[nn.Module]:
    """The decoder layers in order. Raises InputError where the model keeps them in no list called `layers`."""
    layers: Any = getattr(model.hf.get_decoder(), "layers", None)
    if layers is None or len(layers) != model.num_layers:
        raise InputError(f"{model.identity.model_id} keeps its layers in no plain list; adapters do not support it")
    return list(layers)


def mlp_of(model: Model, index: int) -> Mlp:
    """The MLP of layer `index`. Raises InputError for a layer that does not exist, and for MLPs of another kind."""
    blocks = decoder_blocks(model)
    if not 0 <= index < len(blocks):
        raise InputError(
            f"given layer {index}, expected 0 to {len(blocks) - 1}, the layers of {model.identity.model_id}"
        )
    named = {
        name: part
        for name, part in blocks[index].named_modules()
        if "mlp" in name.split(".")[0] and isinstance(part, nn.Linear) and name.count(".") == 1
    }
    outputs = [name for name in named if name.rpartition(".")[2] in OUTPUTS]
    if len(outputs) != 1 or len(named) < 2:
        told = ", ".join(named) or "none"
        raise InputError(
            f"layer {index} of {model.identity.model_id} has an MLP of the Linears {told}, expected one of "
            f"{', '.join(OUTPUTS)} and those before it; adapters do not support its kind"
        )
    (output_name,) = outputs
    inputs = {name: part for name, part in named.items() if name != output_name}
    return Mlp(index, blocks[index], output_name, named[output_name], inputs)


def module_path(model: Model, mlp: Mlp, module: str) -> str:
    """The name of a Linear within the whole model, such as "model.layers.3.mlp.down_proj"."""
    prefix = next(name for name, part in model.hf.named_modules() if part is mlp.block)
    return f"{prefix}.{module}"


def block_output(found: Any) -> torch.Tensor:
    """What a block returned, as a tensor [..., D]."""
    return found[0] if isinstance(found, tuple) else found


@torch.no_grad()
def check_residual(model: Model, mlp: Mlp) -> None:
    """Raises InputError unless what the MLP's last Linear gives is added to the residual as it is.

    Found out by adding a probe there: with a norm or a factor behind the MLP, the block's output moves otherwise.
    """
    seen: list[torch.Tensor] = []
    probe_D: torch.Tensor | None = None

    def shift(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        return None if probe_D is None else output + probe_D

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(block_output(output)[0].float())
        raise Reached

    ids = torch.arange(1, 3, device=model.device)[None]
    handles = [mlp.output.register_forward_hook(shift), mlp.block.register_forward_hook(keep)]
    try:
        for _ in range(2):
            try:
                with alone(model.hf.config):
                    model.hf.get_decoder()(input_ids=ids, use_cache=False)
            except Reached:
                scale = seen[0].square().mean().sqrt().clamp(min=1e-3)
                drawn = torch.randn(seen[0].shape[-1], generator=torch.Generator().manual_seed(0))
                probe_D = (drawn.to(model.device) * scale).to(model.dtype)
    finally:
        for handle in handles:
            handle.remove()
    assert probe_D is not None
    wanted = probe_D.float().expand_as(seen[0])
    if (seen[1] - seen[0] - wanted).norm() > PROBE_TOLERANCE * wanted.norm():
        raise InputError(
            f"layer {mlp.index} of {model.identity.model_id} does not add its MLP's output to the residual as it is "
            "(such as with a norm behind it); adapters do not support its kind"
        )
