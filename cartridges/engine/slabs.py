"""Cartridges' slots where flash kernels are: those of about one size beside each other, in one tensor for each layer.

So one kernel reads what many requests stand behind, each behind another cartridge. Slots are copied here when a
cartridge is first used, and stay until its run goes; requests that stand behind them copy nothing. A free row is for
the next cartridge of that size; the memory goes back with the last of them.

Shapes: P slots, G key/value heads, H head size.
"""

import threading
import weakref
from collections.abc import Sequence

import torch

from cartridges.engine.blocks import cost
from cartridges.engine.rows import Rows


class Slots:
    """Slots in a row: for each layer keys and values [G, P, H]."""

    def __init__(self, rows: Rows, row: int, length: int) -> None:
        self.rows, self.row, self.length = rows, row, length

    def __len__(self) -> int:
        return len(self.rows.layers)

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if layer >= len(self):
            raise IndexError(layer)
        keys, values = self.rows.layers[layer]
        return keys[self.row, :, : self.length], values[self.row, :, : self.length]


class Slabs:
    """The rows of every size, and which of them are free."""

    def __init__(self) -> None:
        self.slabs: dict[int, tuple[Rows, list[int]]] = {}
        self._lock = threading.RLock()  # rows are given back by whichever thread drops the last reference

    def put(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Slots:
        """A copy of a cartridge's keys and values, each [G, P, H], that lasts as long as what is returned is held."""
        length = keys[0].shape[1]
        with self._lock:
            rows, free = self.slabs.setdefault(cost(length), (Rows(cost(length), doubles=False), []))
            if not free:
                free.append(rows.num_rows)
                rows.num_rows += 1
            row = free.pop()
            slots = Slots(rows, row, length)
            weakref.finalize(slots, self._release, rows, free, row)
            self.slabs[rows.size] = rows, free  # should the last other one have gone just now
            for layer, parts in enumerate(zip(keys, values, strict=True)):
                rows.fill(layer, row, *parts)
        return slots

    def _release(self, rows: Rows, free: list[int], row: int) -> None:
        with self._lock:
            free.append(row)
            if len(free) == rows.num_rows and self.slabs.get(rows.size, (None,))[0] is rows:
                del self.slabs[rows.size]
