"""Wide linear layers on an AMD processor, multiplied by oneDNN for the time of a call.

PyTorch multiplies float32 by Intel's MKL on a CPU. On AMD's processors that is slow where a few rows meet a large
matrix, as in decoding; below a million numbers oneDNN's own overhead is more than it gains. The weights stay as they
are: nothing is copied or laid out anew, and a change of them counts from the next call on. Layers that somebody else
gave a `forward` of their own keep it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cartridges.provenance import processor

MIN_NUMBERS = 1 << 20  # in the weights


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """What the layer makes of `x`, up to rounding."""
    weight, bias = layer.weight, layer.bias
    is_float = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if not is_float or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():  # of which oneDNN's tells nothing
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def has_onednn() -> bool:
    """Whether PyTorch can multiply so here."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class WideLinears:
    """The wide linear layers of a model; none on other processors, or where PyTorch has no oneDNN."""

    def __init__(self, hf: nn.Module) -> None:
        is_wanted = has_onednn() and "AMD" in processor()
        self.layers: list[Any] = [
            part
            for part in (hf.modules() if is_wanted else ())
            if type(part) is nn.Linear and part.weight.numel() >= MIN_NUMBERS
        ]

    @contextmanager
    def by_onednn(self) -> Iterator[None]:
        """Meanwhile the layers multiply by oneDNN."""
        put = [(vars(layer), partial(linear, layer)) for layer in self.layers]
        try:
            for own, forward in put:
                own.setdefault("forward", forward)
            yield
        finally:
            for own, forward in put:
                if own.get("forward") is forward:
                    del own["forward"]
