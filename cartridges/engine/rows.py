"""Keys and values of the rows of one batch: one prefix that all of them stand behind, held once, and each row's own.

Own keys and values stand in columns. Rows are padded on the left, so that the newest token of every row is in the last
column; the token in column c of a row with p columns of padding stands at position P + c - p.

Shapes: B rows, T new columns, C columns written so far, P tokens of the prefix, G key/value heads, H head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

BLOCK = 64  # columns by which the storage grows


@dataclass
class Prefix:
    """Keys and values [G, P, H] of every layer, at positions 0..P-1; none at all is an empty prefix."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


@dataclass
class Sight:
    """What the new tokens see in layers of one kind.

    They see nothing before `prefix_start` of the prefix and `own_start` of the columns. Of the rest, `hidden`
    [B, 1, T, (P - prefix_start) + (C - own_start)] is true where a token does not see; None where all see all.
    """

    prefix_start: int
    own_start: int
    hidden: torch.Tensor | None


class Rows:
    """The state of a batch. `extend`, run the model on the new columns, and so on; `keep` drops rows that ended."""

    def __init__(self, prefix: Prefix, paddings: Sequence[int], device: torch.device) -> None:
        self.prefix = prefix
        self.paddings = list(paddings)
        self.device = device
        self.start = self.length = 0  # the new columns are start..length-1
        self.capacity = 0
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._paddings_B1 = torch.tensor([self.paddings], device=device).T
        self._sights: dict[int | None, Sight] = {}

    def extend(self, num_columns: int) -> torch.Tensor:
        """Make room for `num_columns` more; gives their positions [B, T]. Padding stands where the text starts."""
        self.start, self.length = self.length, self.length + num_columns
        self.capacity = max(self.capacity, -(-self.length // BLOCK) * BLOCK)
        self._sights.clear()
        return self.prefix.length + (self._columns(self.start)[None] - self._paddings_B1).clamp(min=0)

    def _columns(self, start: int) -> torch.Tensor:
        return torch.arange(start, self.length, device=self.device)

    def write(self, layer: int, k_BGTH: torch.Tensor, v_BGTH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new columns of a layer; gives keys and values of all columns, [B, G, C, H]."""
        held = self.layers.get(layer)
        if held is None or held[0].shape[2] < self.length:
            shape = (*k_BGTH.shape[:2], self.capacity)
            grown = (k_BGTH.new_empty(*shape, k_BGTH.shape[3]), v_BGTH.new_empty(*shape, v_BGTH.shape[3]))
            if held is not None:
                for new, old in zip(grown, held, strict=True):
                    new[:, :, : self.start] = old[:, :, : self.start]
            held = self.layers[layer] = grown
        keys, values = held
        keys[:, :, self.start : self.length] = k_BGTH
        values[:, :, self.start : self.length] = v_BGTH
        return keys[:, :, : self.length], values[:, :, : self.length]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.device)
        self.paddings = [self.paddings[row] for row in rows]
        self._paddings_B1 = self._paddings_B1[index]
        self.layers = {layer: (keys[index], values[index]) for layer, (keys, values) in self.layers.items()}

    def sight(self, window: int | None) -> Sight:
        """What the new tokens see in layers that see `window` tokens, themselves included; None for all."""
        if window not in self._sights:
            self._sights[window] = self._look(window)
        return self._sights[window]

    def _look(self, window: int | None) -> Sight:
        num_slots, num_new = self.prefix.length, self.length - self.start
        least, most = min(self.paddings), max(self.paddings)
        prefix_start, own_start = 0, min(least, self.start)
        if window is not None:
            nearest = num_slots + max(0, self.start - most)  # position of the new token that is furthest back
            prefix_start = min(num_slots, max(0, nearest - window + 1))
            own_start = max(own_start, self.start - window + 1)
        furthest = num_slots + self.length - 1 - least
        past_prefix = window is not None and prefix_start < num_slots and furthest - prefix_start >= window
        past_own = window is not None and self.length - 1 - own_start >= window
        if num_new == 1 and most <= own_start:  # then the prefix is seen by all or by none
            return Sight(prefix_start, own_start, None)
        seeing_T1, seen_C = self._columns(self.start)[:, None], self._columns(own_start)[None]
        hidden = (seen_C < self._paddings_B1)[:, None, :]
        if num_new > 1:
            hidden = hidden | (seen_C > seeing_T1)
        if window is not None and past_own:
            hidden = hidden | (seeing_T1 - seen_C >= window)
        if prefix_start < num_slots:
            slots = torch.arange(prefix_start, num_slots, device=self.device)
            if window is not None and past_prefix:
                positions_BT1 = num_slots + (seeing_T1[None] - self._paddings_B1[:, :, None]).clamp(min=0)
                hidden_slots = positions_BT1 - slots >= window
            else:
                hidden_slots = hidden.new_zeros(1, 1, len(slots))
            num_rows = len(self.paddings)
            hidden_slots = hidden_slots.expand(num_rows, num_new, -1)
            hidden = torch.cat([hidden_slots, hidden.expand(num_rows, num_new, -1)], -1)
        return Sight(prefix_start, own_start, hidden[:, None])
