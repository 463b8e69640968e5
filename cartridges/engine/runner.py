"""The one place that calls the model: chunks of sequences in, logits out, keys and values into their rows.

Shapes: M tokens that are told of, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cartridges.cartridge import Cartridge
from cartridges.engine.attention import configs_of, engine_attention
from cartridges.engine.graphs import Graphs
from cartridges.engine.linear import WideLinears
from cartridges.engine.rows import KV, Store
from cartridges.engine.scheduler import Chunk
from cartridges.engine.slabs import Slabs, Slots
from cartridges.engine.steady import Steps
from cartridges.engine.step import Step
from cartridges.errors import InputError
from cartridges.flash import has_flash
from cartridges.model import Model

MAX_LOGITS = 1 << 27  # numbers in the logits of one call: 512 MiB


class Runner:
    """A model with its attention swapped for the time of each call; `autocast_bf16` multiplies in bfloat16 on a CPU.

    On CUDA in half precision attention is by flash kernels, and steps of decoding by CUDA graphs.
    """

    def __init__(self, model: Model, autocast_bf16: bool = False) -> None:
        self.model = model
        self.autocast_bf16 = autocast_bf16
        self.store = Store(model.num_layers)
        self._configs = configs_of(model.hf)
        self._wide = WideLinears(model.hf)
        self.is_async = model.device.type == "cuda"  # whether `read` comes back while the device still works
        sizes = {layer.head_size for layer in model.identity.layers}
        caps = [getattr(config, "attn_logit_softcapping", None) for config in self._configs]
        self.has_flash = has_flash(model.device, model.dtype, sizes) and not any(caps)
        self.slabs = Slabs()
        self.steps = Steps(self.store, model.device, self.has_flash)
        self.graphs = Graphs(model.hf, model.device, self._forward) if self.has_flash else None

    @torch.inference_mode()
    def read(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, list[Chunk]]:
        """Read chunks; gives float32 logits [M, V] behind all wanted ids, and the chunks in the order of the rows.

        The logits are good until the next call.
        """
        step, chunks = self.steps.make(chunks)
        return self.graphs.run(step) if self.graphs else self._forward(step), chunks

    def _forward(self, step: Step) -> torch.Tensor:
        hf: Any = self.model.hf
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=self.autocast_bf16 and self.model.device.type == "cpu")
        with engine_attention(self._configs), self._wide.by_onednn(), bf16:
            found = hf(
                input_ids=step.ids_T[None],
                position_ids=step.positions_T[None],
                use_cache=False,
                logits_to_keep=step.wanted,
                engine_step=step,
            )
        if len(step.layers) != self.model.num_layers:
            raise InputError(
                f"{len(step.layers)} of {self.model.num_layers} layers of {self.model.identity.model_id} attend to "
                "keys and values; the engine runs models in which all do"
            )
        return found.logits[0].float()

    def load(self, cartridge: Cartridge) -> KV | Slots:
        """A cartridge's slots for this model; no copy on a CPU where they are there and in its dtype.

        Raises FormatError for a bias that is infinite or no number.
        """
        cartridge.check_bias()
        whole = cartridge.to(self.model.device, self.model.dtype)
        if self.has_flash and whole.bias is None:
            return self.slabs.put([keys.detach() for keys in whole.keys], [values.detach() for values in whole.values])
        if whole.bias is None:
            return [(keys.detach(), values.detach()) for keys, values in zip(whole.keys, whole.values, strict=True)]
        layers = zip(whole.keys, whole.values, whole.bias, strict=True)
        return [(keys.detach(), values.detach(), bias.detach().float()) for keys, values, bias in layers]
