"""One forward call as tensors: the new tokens of all sequences in one row, and what each of them sees.

Tokens are ordered so that those behind the same run stand together, at every depth of their paths. What they see of
their own stands in rows; the tokens that read alike are bundled.

Shapes: T tokens of the call, B rows of a bundle, t tokens of each of them (padded), C columns, P tokens of a span.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch

from cartridges.engine.rows import KV, Rows, Store
from cartridges.engine.scheduler import Chunk


@dataclass
class Group:
    """The tokens `start` to `stop` stand behind the first `length` tokens of a run, which begin at `offset`."""

    start: int
    stop: int
    kv: KV
    length: int
    offset: int


@dataclass
class Bundle:
    """New tokens of some rows: token `tokens_Bt[b, i]` is the one in column `columns_B[b] + i` of row `rows[b]`.

    `valid` tells of those that are no padding: places among B x t, None where all are.
    """

    held: Rows
    rows: torch.Tensor | slice
    tokens_Bt: torch.Tensor
    columns_B: torch.Tensor
    least: int  # of `columns_B`
    greatest: int
    last: int  # the greatest column of a new token
    valid: torch.Tensor | None


@dataclass
class Write:
    """Where the new keys and values of the tokens `tokens` go; None for all."""

    held: Rows
    tokens: torch.Tensor | None
    rows: torch.Tensor
    columns: torch.Tensor


@dataclass
class Step:
    """What the attention of one forward call gets."""

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    positions: list[int]
    wanted: torch.Tensor
    depths: list[list[Group]]
    bundles: list[Bundle]
    writes: list[Write]
    layers: set[int] = field(default_factory=set)
    _hidden: dict[tuple[int, int, int | None], tuple[int, torch.Tensor | None]] = field(default_factory=dict)

    def write(self, layer: int, k_TGH: torch.Tensor, v_TGH: torch.Tensor) -> None:
        """Store the new keys and values of a layer."""
        self.layers.add(layer)
        for write in self.writes:
            k, v = (k_TGH, v_TGH) if write.tokens is None else (k_TGH[write.tokens], v_TGH[write.tokens])
            write.held.write(layer, write.rows, write.columns, k, v)

    def sight_of_group(
        self, group: Group, start: int, stop: int, window: int | None
    ) -> tuple[int, torch.Tensor | None]:
        """What the tokens `start` to `stop` see of a span in layers that see `window` tokens.

        They see nothing before the first number given; of the rest, `hidden` [t, 1, 1, P] is true where one does not
        see. None where all see all.
        """
        if window is None:
            return 0, None
        key = (id(group), start, window)
        if key not in self._hidden:
            nearest, furthest = min(self.positions[start:stop]), max(self.positions[start:stop])
            first = min(group.length, max(0, nearest - window + 1 - group.offset))
            hidden = None
            if furthest - (group.offset + first) >= window:
                device = self.positions_T.device
                slots = torch.arange(group.offset + first, group.offset + group.length, device=device)
                hidden = (self.positions_T[start:stop, None] - slots >= window)[:, None, None, :]
            self._hidden[key] = first, hidden
        return self._hidden[key]

    def sight_of_bundle(
        self, bundle: Bundle, start: int, stop: int, window: int | None
    ) -> tuple[int, int, torch.Tensor | None]:
        """What the tokens `start` to `stop` of each row see of the row: from and to, hidden [B, 1, 1, t, C]."""
        last = min(bundle.last, bundle.greatest + stop - 1)
        first = 0 if window is None else max(0, bundle.least + start - window + 1)
        key = (id(bundle), start, window)
        if key not in self._hidden:
            hidden = None
            if stop - start > 1 or bundle.least != bundle.greatest:
                device = self.positions_T.device
                seeing_Bt1 = (bundle.columns_B[:, None] + torch.arange(start, stop, device=device))[:, :, None]
                seen_C = torch.arange(first, last + 1, device=device)
                hidden = seen_C > seeing_Bt1
                if window is not None:
                    hidden = hidden | (seeing_Bt1 - seen_C >= window)
                hidden = hidden[:, None, None]
            self._hidden[key] = first, hidden
        return first, last + 1, self._hidden[key][1]


def make_step(chunks: Many[Chunk], store: Store, device: torch.device) -> tuple[Step, list[Chunk]]:
    """The step that reads these chunks, and the chunks in the order of its tokens."""
    chunks = _ordered(chunks)
    starts, ids, positions, wanted = [], [], [], []
    for chunk in chunks:
        starts.append(len(ids))
        first, behind = chunk.first, chunk.sequence.num_behind + chunk.sequence.num_read
        wanted += range(len(ids) + chunk.num_new - chunk.num_wanted, len(ids) + chunk.num_new)
        ids += chunk.sequence.ids[first : first + chunk.num_new]
        positions += range(behind, behind + chunk.num_new)
    bundles, writes = _own(chunks, starts, store, device)
    step = Step(
        torch.tensor(ids, device=device),
        torch.tensor(positions, device=device),
        positions,
        torch.tensor(wanted or [len(ids) - 1], device=device),
        _depths(chunks, starts),
        bundles,
        writes,
    )
    return step, chunks


def _ordered(chunks: Many[Chunk]) -> list[Chunk]:
    """Those behind the same runs beside each other, otherwise in the order given."""
    places: dict[tuple[int, ...], int] = {}

    def place(chunk: Chunk) -> tuple[int, ...]:
        path = tuple(part for run, num in chunk.sequence.path for part in (id(run), num))
        return tuple(places.setdefault(path[:end], len(places)) for end in range(2, len(path) + 1, 2))

    return sorted(chunks, key=place)


def _depths(chunks: Many[Chunk], starts: Many[int]) -> list[list[Group]]:
    depths: list[list[Group]] = []
    for chunk, start in zip(chunks, starts, strict=True):
        offset = 0
        for depth, (run, num) in enumerate(chunk.sequence.path):
            if depth == len(depths):
                depths.append([])
            groups, stop = depths[depth], start + chunk.num_new
            if groups and groups[-1].kv is run.kv and groups[-1].length == num and groups[-1].stop == start:
                groups[-1].stop = stop
            else:
                groups.append(Group(start, stop, run.kv, num, offset))
            offset += num
    return depths


def _own(
    chunks: Many[Chunk], starts: Many[int], store: Store, device: torch.device
) -> tuple[list[Bundle], list[Write]]:
    by_kind: dict[tuple[int, int], list[tuple[Chunk, int]]] = {}
    by_size: dict[int, list[tuple[Chunk, int]]] = {}
    for chunk, start in zip(chunks, starts, strict=True):
        by_kind.setdefault((chunk.sequence.size, (chunk.num_new - 1).bit_length()), []).append((chunk, start))
        by_size.setdefault(chunk.sequence.size, []).append((chunk, start))
    bundles = [_bundle(store.sizes[size], members, device) for (size, _), members in by_kind.items()]
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
    return bundles, writes


def _bundle(held: Rows, members: list[tuple[Chunk, int]], device: torch.device) -> Bundle:
    members = sorted(members, key=lambda member: member[0].sequence.row)
    rows = [chunk.sequence.row for chunk, _ in members]
    longest = max(chunk.num_new for chunk, _ in members)
    tokens, valid = [], []
    for chunk, start in members:
        valid += range(len(tokens) * longest, len(tokens) * longest + chunk.num_new)
        tokens.append([start + min(i, chunk.num_new - 1) for i in range(longest)])
    columns = [chunk.sequence.num_read for chunk, _ in members]
    together = rows == list(range(rows[0], rows[0] + len(rows)))
    return Bundle(
        held,
        slice(rows[0], rows[0] + len(rows)) if together else torch.tensor(rows, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(columns, device=device),
        min(columns),
        max(columns),
        max(chunk.sequence.num_read + chunk.num_new - 1 for chunk, _ in members),
        None if len(valid) == len(rows) * longest else torch.tensor(valid, device=device),
    )
