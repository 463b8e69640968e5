"""The parameters of training: what of the slots is trained, in float32, beside what stays as it is.

Shapes: P slots, G key/value heads, H head size.
"""

import torch

from cartridges.cartridge import Cartridge


class Slots:
    """Per layer the frozen and the trained part of keys and values, and of a bias where there is one.

    With `train_bias` the bias is trained too, from 0 where the cartridge has none; else it stays as it is.
    """

    def __init__(self, cartridge: Cartridge, device: torch.device, train_bias: bool = False):
        frozen = cartridge.num_frozen
        self.cartridge = cartridge
        bias = cartridge.bias
        if bias is None and train_bias:
            bias = [keys.new_zeros(keys.shape[:2], dtype=torch.float32) for keys in cartridge.keys]
        tensors = [tensor.float().to(device) for tensor in (*cartridge.keys, *cartridge.values)]
        kept = [] if train_bias or bias is None else [tensor.float().to(device) for tensor in bias]
        tensors += [tensor.float().to(device) for tensor in bias or ()] if train_bias else []
        self.frozen = [tensor[:, :frozen].clone() for tensor in tensors] + kept
        self.trained = [torch.nn.Parameter(tensor[:, frozen:].clone()) for tensor in tensors]

    def whole(self) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None]:
        """Keys and values [G, P, H] of every layer, and the bias [G, P], None where there is none."""
        pairs = zip(self.frozen[: len(self.trained)], self.trained, strict=True)
        tensors = [torch.cat(pair, 1) for pair in pairs] + self.frozen[len(self.trained) :]
        num = len(self.cartridge.keys)
        return tensors[:num], tensors[num : 2 * num], tensors[2 * num :] or None

    def state(self) -> list[torch.Tensor]:
        """A copy of the trained parts."""
        return [parameter.detach().clone() for parameter in self.trained]

    def load(self, state: list[torch.Tensor]) -> None:
        """Take over what `state` gave; ValueError where the shapes differ."""
        if [part.shape for part in state] != [parameter.shape for parameter in self.trained]:
            raise ValueError("slots of other shapes")
        with torch.no_grad():
            for parameter, part in zip(self.trained, state, strict=True):
                parameter.copy_(part)
