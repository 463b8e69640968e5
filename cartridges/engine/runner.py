"""The one place that calls the model: token ids in, logits out, keys and values into the rows of the batch.

Shapes: B rows, T columns, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cartridges.engine.attention import engine_attention
from cartridges.engine.rows import Prefix, Rows
from cartridges.errors import InputError
from cartridges.model import Model

MAX_FORWARD_TOKENS = 4096  # in one call, padding included; longer texts are read in several
MAX_LOGITS = 1 << 27  # numbers in the logits of one call, where more than the last column's are wanted: 512 MiB


class Runner:
    """A model with its attention swapped for the time of each call; `autocast_bf16` multiplies in bfloat16 on a CPU."""

    def __init__(self, model: Model, autocast_bf16: bool = False) -> None:
        self.model = model
        self.autocast_bf16 = autocast_bf16

    @torch.inference_mode()
    def forward(self, ids_BT: torch.Tensor, rows: Rows, num_kept: int) -> torch.Tensor:
        """Run the next T columns of `rows`; gives float32 logits [B, num_kept, V] of the last `num_kept` >= 1."""
        positions_BT = rows.extend(ids_BT.shape[1])
        hf: Any = self.model.hf
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=self.autocast_bf16 and self.model.device.type == "cpu")
        with engine_attention(hf), bf16:
            found = hf(
                input_ids=ids_BT,
                position_ids=positions_BT,
                use_cache=False,
                logits_to_keep=num_kept,
                engine_rows=rows,
            )
        if len(rows.layers) != self.model.num_layers:
            raise InputError(
                f"{len(rows.layers)} of {self.model.num_layers} layers of {self.model.identity.model_id} attend to "
                "keys and values; the engine runs models in which all do"
            )
        return found.logits.float()

    def read(self, rows: Rows, ids_BT: torch.Tensor, kept_from: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Read all columns, in as many calls as it takes.

        Yields logits [B, t, V] of the columns from `kept_from` on, each with the number of its first column.
        """
        num_rows, num_columns = ids_BT.shape
        start = 0
        while start < num_columns:
            most = MAX_FORWARD_TOKENS // num_rows
            if start + most > kept_from + 1:
                most = min(most, MAX_LOGITS // (num_rows * self.model.identity.vocab_size))
            stop = min(num_columns, start + max(1, most))
            num_kept = max(1, stop - max(start, kept_from))
            logits = self.forward(ids_BT[:, start:stop], rows, num_kept)
            if stop > kept_from:
                yield stop - num_kept, logits
            start = stop

    def open(self, prefix: Prefix, texts: Sequence[Sequence[int]]) -> tuple[Rows, torch.Tensor]:
        """A batch with nothing read yet, and the ids [B, T] of `texts`, padded on the left, that it shall read."""
        longest = max(map(len, texts))
        paddings = [longest - len(text) for text in texts]
        ids = [[0] * padding + list(text) for padding, text in zip(paddings, texts, strict=True)]
        device = self.model.device
        return Rows(prefix, paddings, device), torch.tensor(ids, device=device)

    @torch.inference_mode()
    def lengthen(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """The prefix with `ids` behind it."""
        rows, ids_1T = self.open(prefix, [ids])
        for _ in self.read(rows, ids_1T, len(ids) - 1):
            pass
        own = [tuple(held[0, :, : len(ids)] for held in rows.layers[layer]) for layer in range(self.model.num_layers)]
        if not prefix.length:
            return Prefix([keys.clone() for keys, _ in own], [values.clone() for _, values in own])
        return Prefix(
            [torch.cat([before, keys.to(before.dtype)], 1) for before, (keys, _) in zip(prefix.keys, own, strict=True)],
            [torch.cat([before, new.to(before.dtype)], 1) for before, (_, new) in zip(prefix.values, own, strict=True)],
        )
