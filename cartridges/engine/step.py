"""One forward call as tensors: the new tokens of all sequences in one row, and what each of them sees.

Tokens are ordered so that those behind the same run stand together, at every depth of their paths. What they see of
their own stands in rows; the tokens that read alike are bundled.

Shapes: T tokens of the call, B rows of a bundle, t tokens of each of them (padded), C columns, P tokens of a span.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import Self, cast

import torch

from cartridges.engine.parts import LEAST
from cartridges.engine.rows import KV, Rows, Store
from cartridges.engine.scheduler import Chunk
from cartridges.engine.slabs import Slots

Mask = torch.Tensor | None  # float32, added to scores: 0 or LEAST


@dataclass
class Group:
    """The tokens `start` to `stop` stand behind the first `length` tokens of a run, which begin at `offset`.

    `kv` is None where they stand behind nothing.
    """

    start: int
    stop: int
    kv: KV | Slots | None = None
    length: int = 0
    offset: int = 0


@dataclass
class Bundle:
    """New tokens of some rows, B x t = `shape`: token i of row b is the one in column `columns_B[b] + i` of it.

    `tokens` are their places among the tokens of the call, [B * t]; where a row has fewer, its last one again.
    """

    held: Rows
    rows: torch.Tensor | slice
    tokens: torch.Tensor | slice
    shape: tuple[int, int]
    columns_B: torch.Tensor
    least: int  # of `columns_B`
    greatest: int
    last: int  # the greatest column of a new token

    def move(self) -> None:
        """Each row has one more column."""
        self.columns_B += 1
        self.least, self.greatest, self.last = self.least + 1, self.greatest + 1, self.last + 1


@dataclass
class Ragged:
    """Tokens that see rows, as many of each as there are, for the kernels that take them so.

    `tokens` are their places among the tokens of the call, row by row. `numbers` [3, B + 1], int32: where each row's
    tokens begin among them, where its columns begin among those of all rows, and how many of these count.
    """

    held: Rows
    tokens: torch.Tensor | slice
    numbers: torch.Tensor
    longest: int  # the most tokens of a row

    @classmethod
    def of(cls, held: Rows, tokens: list[int], seen: Many[tuple[int, int, int]], device: torch.device) -> Self:
        """`seen` tells for each row its place, how many columns of it count and how many tokens see it."""
        rows, used, nums = zip(*seen, strict=True)
        numbers = [[0, *accumulate(nums)], [*(row * held.size for row in rows), 0], [*used, 0]]
        on_device = torch.tensor(numbers, dtype=torch.int32, device=device)
        return cls(held, _indices(tokens, device), on_device, max(nums))

    @cached_property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three of `numbers`, the last one without its end."""
        return self.numbers[0], self.numbers[1], self.numbers[2, :-1]

    def move(self) -> None:
        """Each row has one more column."""
        self.numbers[2] += 1


@dataclass
class Together:
    """Groups that follow one another, behind runs in rows of one size, and the same for the kernels that take it so."""

    groups: list[Group]
    ragged: Ragged


@dataclass
class Write:
    """Where the new keys and values of the tokens `tokens` go; None for all."""

    held: Rows
    tokens: torch.Tensor | None
    rows: torch.Tensor
    columns: torch.Tensor


@dataclass
class Step:
    """What the attention of one forward call gets.

    `places_T` tells for each token its place in the tokens of all bundles behind one another; None where it is its own.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    positions: list[int]
    wanted: torch.Tensor
    depths: list[list[Group | Together]]
    bundles: Many[Bundle | Ragged]
    places_T: torch.Tensor | None
    writes: list[Write]
    layers: set[int] = field(default_factory=set)
    depends_on_positions: bool = False  # whether what a layer computes depends on how far the tokens are
    _sights: dict[tuple[int, int, int | None, int], tuple[int, Mask]] = field(default_factory=dict)

    @property
    def is_ragged(self) -> bool:
        """Whether it is for the kernels of `flash`."""
        return isinstance(self.bundles[0], Ragged)

    def move(self, ids: list[int]) -> None:
        """Make it the next step of the same sequences, which read a token each."""
        self.ids_T = torch.tensor(ids, device=self.ids_T.device)
        self.positions_T += 1
        self.positions = [position + 1 for position in self.positions]
        for bundle in self.bundles:
            bundle.move()
        for write in self.writes:
            write.columns += 1
        self.layers.clear()
        self._sights.clear()

    def write(self, layer: int, k_TGH: torch.Tensor, v_TGH: torch.Tensor) -> None:
        """Store the new keys and values of a layer."""
        self.layers.add(layer)
        for write in self.writes:
            k, v = (k_TGH, v_TGH) if write.tokens is None else (k_TGH[write.tokens], v_TGH[write.tokens])
            write.held.write(layer, write.rows, write.columns, k, v)

    def sight_of_group(self, group: Group, start: int, stop: int, window: int | None, repeats: int) -> tuple[int, Mask]:
        """What the tokens `start` to `stop` see of a span in layers that see `window` tokens.

        They see nothing before the first number given, and of the rest what the mask [1, 1, t * R, P] tells.
        """
        if window is None:
            return 0, None
        self.depends_on_positions = True
        key = (id(group), start, window, repeats)
        if key not in self._sights:
            nearest, furthest = min(self.positions[start:stop]), max(self.positions[start:stop])
            first = min(group.length, max(0, nearest - window + 1 - group.offset))
            mask = None
            if furthest - (group.offset + first) >= window:
                device = self.positions_T.device
                slots_P = torch.arange(group.offset + first, group.offset + group.length, device=device)
                hidden_tP = self.positions_T[start:stop, None] - slots_P >= window
                mask = _mask(hidden_tP.repeat_interleave(repeats, 0))[None, None]
            self._sights[key] = first, mask
        return self._sights[key]

    def sight_of_bundle(
        self, bundle: Bundle, start: int, stop: int, window: int | None, repeats: int
    ) -> tuple[int, int, Mask]:
        """What the tokens `start` to `stop` of each row see of the row: from and to, and a mask [B, 1, R * t, C].

        Where t = 1 the mask is [B, 1, 1, C].
        """
        last = min(bundle.last, bundle.greatest + stop - 1)
        first = 0 if window is None else max(0, bundle.least + start - window + 1)
        key = (id(bundle), start, window, repeats)
        if key not in self._sights:
            mask = None
            if stop - start > 1 or bundle.least != bundle.greatest:
                device = self.positions_T.device
                seeing_Bt1 = (bundle.columns_B[:, None] + torch.arange(start, stop, device=device))[:, :, None]
                seen_C = torch.arange(first, last + 1, device=device)
                hidden_BtC = seen_C > seeing_Bt1
                if window is not None:
                    hidden_BtC = hidden_BtC | (seeing_Bt1 - seen_C >= window)
                mask = _mask(hidden_BtC if stop - start == 1 else hidden_BtC.repeat(1, repeats, 1))[:, None]
            self._sights[key] = first, mask
        return first, last + 1, self._sights[key][1]


def _mask(hidden: torch.Tensor) -> torch.Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, LEAST)


def make_step(
    chunks: Many[Chunk], store: Store, device: torch.device, ragged: bool = False
) -> tuple[Step, list[Chunk]]:
    """The step that reads these chunks, and the chunks in the order of its tokens.

    With `ragged` the tokens of the rows are not padded, but as the kernels of `flash` take them.
    """
    chunks = _ordered(chunks)
    starts, ids, positions, wanted = [], [], [], []
    for chunk in chunks:
        starts.append(len(ids))
        first, behind = chunk.first, chunk.sequence.num_behind + chunk.sequence.num_read
        wanted += range(len(ids) + chunk.num_new - chunk.num_wanted, len(ids) + chunk.num_new)
        ids += chunk.sequence.ids[first : first + chunk.num_new]
        positions += range(behind, behind + chunk.num_new)
    bundles, places, writes = _own(chunks, starts, store, device, ragged)
    step = Step(
        torch.tensor(ids, device=device),
        torch.tensor(positions, device=device),
        positions,
        torch.tensor(wanted or [len(ids) - 1], device=device),
        _depths(chunks, starts, device, ragged),
        bundles,
        places,
        writes,
    )
    return step, chunks


def _ordered(chunks: Many[Chunk]) -> list[Chunk]:
    """Those behind the same runs beside each other; among them those of rows of one size, in the order of the rows.

    Where all stand behind the same, the tokens of one size's rows are then in the order of the rows.
    """
    places: dict[tuple[int, ...], int] = {}

    def place(chunk: Chunk) -> tuple[tuple[int, ...], int, int]:
        path = tuple(part for run, num in chunk.sequence.path for part in (id(run), num))
        known = tuple(places.setdefault(path[:end], len(places)) for end in range(2, len(path) + 1, 2))
        return known, chunk.sequence.size, chunk.sequence.row

    return sorted(chunks, key=place)


def _depths(chunks: Many[Chunk], starts: Many[int], device: torch.device, ragged: bool) -> list[list[Group | Together]]:
    """For each depth of the paths the groups, one after the other, that together are all tokens."""
    depths: list[list[Group]] = [[] for _ in range(max(len(chunk.sequence.path) for chunk in chunks))]
    for chunk, start in zip(chunks, starts, strict=True):
        offset, stop = 0, start + chunk.num_new
        for depth, groups in enumerate(depths):
            group = Group(start, stop)
            if depth < len(chunk.sequence.path):
                run, num = chunk.sequence.path[depth]
                group = Group(start, stop, run.kv, num, offset)
                offset += num
            before = groups[-1] if groups else None
            if before and before.kv is group.kv and before.length == group.length:
                before.stop = stop
            else:
                groups.append(group)
    return [_together(groups, device) if ragged else [*groups] for groups in depths]


def _together(groups: list[Group], device: torch.device) -> list[Group | Together]:
    """Those that follow one another in rows of one size as one."""
    found: list[Group | Together] = []
    for rows, alike in groupby(groups, lambda group: group.kv.rows if isinstance(group.kv, Slots) else None):
        members = list(alike)
        if rows is None or len(members) < 2:
            found += members
            continue
        slots = [cast(Slots, member.kv) for member in members]
        seen = [
            (each.row, member.length, member.stop - member.start) for each, member in zip(slots, members, strict=True)
        ]
        tokens = list(range(members[0].start, members[-1].stop))
        found.append(Together(members, Ragged.of(rows, tokens, seen, device)))
    return found


def _own(
    chunks: Many[Chunk], starts: Many[int], store: Store, device: torch.device, ragged: bool
) -> tuple[list[Bundle | Ragged], torch.Tensor | None, list[Write]]:
    by_kind: dict[tuple[int, int], list[tuple[Chunk, int]]] = {}
    by_size: dict[int, list[tuple[Chunk, int]]] = {}
    for chunk, start in zip(chunks, starts, strict=True):
        kind = min(chunk.num_new, 2) if ragged else (chunk.num_new - 1).bit_length()
        by_kind.setdefault((chunk.sequence.size, kind), []).append((chunk, start))
        by_size.setdefault(chunk.sequence.size, []).append((chunk, start))
    bundles, found = [], []
    for (size, _), members in by_kind.items():
        bundle, tokens = (_ragged if ragged else _bundle)(store.sizes[size], members, device)
        bundles.append(bundle)
        found += tokens
    places_T = None
    if found != list(range(len(found))):
        places = dict(zip(reversed(found), range(len(found) - 1, -1, -1), strict=True))
        places_T = torch.tensor([places[token] for token in range(len(places))], device=device)
    writes = []
    for size, members in by_size.items():
        tokens, rows, columns = [], [], []
        for chunk, start in members:
            tokens += range(start, start + chunk.num_new)
            rows += [chunk.sequence.row] * chunk.num_new
            columns += range(chunk.sequence.num_read, chunk.sequence.num_read + chunk.num_new)
        index = None if len(by_size) == 1 else torch.tensor(tokens, device=device)
        writes.append(
            Write(store.sizes[size], index, torch.tensor(rows, device=device), torch.tensor(columns, device=device))
        )
    return bundles, places_T, writes


def _bundle(held: Rows, members: list[tuple[Chunk, int]], device: torch.device) -> tuple[Bundle, list[int]]:
    """The bundle of some chunks, each told with the place of its first token, and the places of its tokens."""
    members = sorted(members, key=lambda member: member[0].sequence.row)
    longest = max(chunk.num_new for chunk, _ in members)
    tokens = [start + min(i, chunk.num_new - 1) for chunk, start in members for i in range(longest)]
    columns = [chunk.sequence.num_read for chunk, _ in members]
    bundle = Bundle(
        held,
        _indices([chunk.sequence.row for chunk, _ in members], device),
        _indices(tokens, device),
        (len(members), longest),
        torch.tensor(columns, device=device),
        min(columns),
        max(columns),
        max(chunk.sequence.num_read + chunk.num_new - 1 for chunk, _ in members),
    )
    return bundle, tokens


def _ragged(held: Rows, members: list[tuple[Chunk, int]], device: torch.device) -> tuple[Ragged, list[int]]:
    """As `_bundle`, without padding."""
    members = sorted(members, key=lambda member: member[0].sequence.row)
    tokens = [start + i for chunk, start in members for i in range(chunk.num_new)]
    seen = [(chunk.sequence.row, chunk.sequence.num_read + chunk.num_new, chunk.num_new) for chunk, _ in members]
    return Ragged.of(held, tokens, seen, device), tokens


def _indices(numbers: list[int], device: torch.device) -> torch.Tensor | slice:
    """As a slice where they are consecutive, so that taking them copies nothing."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers, device=device)
