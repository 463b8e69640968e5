"""Who is read next, and who waits: lengths, rows and runs only, no tensors.

Each step every reply that is under way gets one token, and what is left of the step's budget goes to prompts, in
chunks, in the order they came. What starts like an earlier text stands behind its run; a shared beginning that nobody
has read yet is read by a sequence of its own, while those that share it wait. Where a growing row finds no room, the
newest sequence is put back, to be read again later.

The rows of one size are numbered without gaps: the last one moves to where another one left.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cartridges.engine.blocks import BLOCK, Blocks, Run, Span, chain, cost, path_to, row_size

if TYPE_CHECKING:
    from cartridges.cartridge import Cartridge

MAX_ROWS = 256
MAX_STEP_TOKENS = {"cpu": 1024, "cuda": 8192}
AHEAD = {"cpu": 0, "cuda": 192}  # tokens to come that a row has room for at first, as growing ends a run of graphs


class Storage(Protocol):
    """Where the rows are."""

    def set_num_rows(self, size: int, num_rows: int) -> None: ...
    def copy(self, source: tuple[int, int], target: tuple[int, int], length: int) -> None: ...
    def copy_rows(self, size: int, rows: list[int], target: tuple[int, int], length: int) -> None: ...
    def take(self, size: int, row: int, length: int) -> Any: ...


@dataclass(eq=False)
class Sequence:
    """Ids to be read, and told of from number `wanted_from` on. `task` is who takes what is told.

    The first `shared_len` ids are shared with others. One that is `live` has somebody waiting for each of its tokens;
    it also uses what it finds of earlier texts, and leaves its own to be found. `start` ids are behind the path, and
    `num_read` more in the own row.
    """

    ids: list[int]
    wanted_from: int
    cartridge: "Cartridge | None" = None
    shared_len: int = 0
    live: bool = False
    task: Any = None
    fills: bytes | None = None
    path: tuple[Span, ...] = ()
    start: int = 0
    num_read: int = 0
    size: int = 0
    row: int = 0
    number: int = 0
    num_cached: int = 0
    reads_prefix: bool = False
    limit: int = 0  # the most ids that it will have, where more will come
    is_alone: bool = False  # there was no room for it behind what it would use again
    shared_key: bytes = b""  # once it is known

    @property
    def num_behind(self) -> int:
        """How many tokens and slots its row stands behind."""
        return sum(num for _, num in self.path)

    @property
    def num_unread(self) -> int:
        return len(self.ids) - self.start - self.num_read

    @property
    def root(self) -> bytes:
        """Where its chain of keys starts. A cartridge without digest is known for as long as it is held."""
        if self.cartridge is None:
            return b""
        return (self.cartridge.digest or f"without digest, at {id(self.cartridge)}").encode()

    @property
    def lasting(self) -> bool:
        return self.cartridge is None or bool(self.cartridge.digest)


def shared_key(sequence: Sequence) -> bytes:
    """What the run of exactly the shared beginning is known by."""
    if not sequence.shared_key:
        sequence.shared_key = b"shared" + chain(sequence.root, sequence.ids[: sequence.shared_len])[-1][1]
    return sequence.shared_key


@dataclass
class Chunk:
    """The next `num_new` ids of a sequence, from number `first` on; the last `num_wanted` of them are told of."""

    sequence: Sequence
    num_new: int
    first: int = field(init=False)
    num_wanted: int = field(init=False)

    def __post_init__(self) -> None:
        """As the sequence stands now; reading the chunk does not change it."""
        self.first = self.sequence.start + self.sequence.num_read
        self.num_wanted = max(0, self.num_new - max(0, self.sequence.wanted_from - self.first))


@dataclass
class Scheduler:
    """The sequences that run and wait, over the books of `blocks` and the tensors of `storage`."""

    blocks: Blocks
    storage: Storage
    load: Callable[["Cartridge"], Any]
    max_rows: int
    max_step_tokens: int
    max_wanted: int
    ahead: int = 0
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)
    rows: dict[int, list[Sequence]] = field(default_factory=dict)
    num_preemptions: int = 0
    admitting: Sequence | None = None  # the one that `admit` looks at, for who catches what it raises
    _number: int = 0

    def need(self, num_slots: int, prefix_len: int, num_own: int) -> int:
        """The room that a sequence takes at most."""
        return cost(num_slots) + max(cost(prefix_len) + row_size(num_own), row_size(prefix_len))

    def add(self, sequence: Sequence) -> None:
        """Put a new one at the end of the line."""
        self._number += 1
        sequence.number = self._number
        self.waiting.append(sequence)

    @property
    def is_live(self) -> bool:
        """Whether somebody waits for each token of a sequence that runs."""
        return any(sequence.live and sequence.fills is None for sequence in self.running)

    def admit(self) -> list[Sequence]:
        """Let in who fits, in order. Gives new sequences that read shared beginnings.

        Where nobody waits for each token, nothing is let in behind one who waits for such a beginning, so that the
        steps are the same whatever was read before.
        """
        readers: list[Sequence] = []
        in_progress = {sequence.fills for sequence in self.running if sequence.fills}
        for sequence in list(self.waiting):
            self.admitting = sequence
            if len(self.running) >= self.max_rows:
                break
            if not self._find(sequence, reuse=sequence.live and not sequence.is_alone):
                break
            if sequence.start < sequence.shared_len:
                key = shared_key(sequence)
                if key not in in_progress:
                    reader = self._reader(sequence, key)
                    if not self._place(reader, len(reader.ids) - reader.start):
                        if self.running or readers or sequence.is_alone:
                            break
                        sequence.is_alone = True
                        return self.admit()
                    sequence.reads_prefix, sequence.num_cached = True, reader.start
                    in_progress.add(key)
                    readers.append(reader)
                if self.is_live and sequence.live:
                    continue
                break
            if not self._place(sequence, len(sequence.ids) - sequence.start, self._ahead(sequence)):
                if self.running or readers or sequence.is_alone:
                    break
                sequence.is_alone = True  # what it would use again holds more than it uses
                return self.admit()
            if not sequence.reads_prefix:
                sequence.num_cached = sequence.start
            self.waiting.remove(sequence)
        self.admitting = None
        return readers

    def _find(self, sequence: Sequence, reuse: bool) -> bool:
        """Set the path as far as there are runs for it; false where there is no room for its cartridge.

        Without `reuse`, a run is used for the whole of the shared beginning, or not.
        """
        blocks, root = self.blocks, sequence.root
        span, start = None, 0
        if sequence.cartridge is not None:
            if root not in blocks.found:
                own = row_size(sequence.shared_len or len(sequence.ids))
                if not blocks.has_room(cost(sequence.cartridge.num_slots) + own):  # told before anything is copied
                    return False
                kv, owner = self.load(sequence.cartridge), None if sequence.lasting else sequence.cartridge
                run = Run(sequence.cartridge.num_slots, None, kv, sequence.lasting, owner)
                if not blocks.add(run, {root: run.length}):
                    return False
            span = blocks.found[root]
        links = [(sequence.shared_len, shared_key(sequence))] if sequence.shared_len else []
        if reuse:
            limit = min(sequence.wanted_from, len(sequence.ids) - 1)
            links = sorted([*links, *chain(root, sequence.ids[:limit])], key=lambda link: link[0])
        for num, key in links:
            if key in blocks.found:
                span, start = blocks.found[key], num
        sequence.path, sequence.start = path_to(span), start
        return True

    def _reader(self, sequence: Sequence, key: bytes) -> Sequence:
        ids = sequence.ids[: sequence.shared_len]
        reader = Sequence(ids, len(ids), sequence.cartridge, live=sequence.live, fills=key)
        reader.path, reader.start = sequence.path, sequence.start
        return reader

    def _ahead(self, sequence: Sequence) -> int:
        """How many tokens to come its row should have room for at first."""
        return min(self.ahead, max(0, sequence.limit - len(sequence.ids)))

    def _place(self, sequence: Sequence, length: int, ahead: int = 0) -> bool:
        """Pin its path and give it a row, if there is room; one with room ahead, if nothing has to go for that."""
        self.blocks.pin(sequence.path)
        if self.blocks.free < row_size(length + ahead):
            ahead = 0
        if not self.blocks.has_room(row_size(length + ahead)):
            self.blocks.unpin(sequence.path)
            sequence.path, sequence.start = (), 0
            return False
        self._open(sequence, row_size(length + ahead))
        self.running.append(sequence)
        return True

    def _open(self, sequence: Sequence, size: int) -> None:
        table = self.rows.setdefault(size, [])
        sequence.size, sequence.row = size, len(table)
        table.append(sequence)
        self.blocks.used += size
        self.storage.set_num_rows(size, len(table))

    def _close(self, sequence: Sequence) -> None:
        size, table = sequence.size, self.rows[sequence.size]
        last = table[-1]
        if last is not sequence:
            self.storage.copy((size, last.row), (size, sequence.row), last.num_read)
            table[sequence.row], last.row = last, sequence.row
        table.pop()
        if not table:
            del self.rows[size]
        self.blocks.used -= size
        self.storage.set_num_rows(size, len(table))

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self._close(sequence)
        self.blocks.unpin(sequence.path)
        self.running.remove(sequence)
        sequence.path, sequence.start, sequence.num_read = (), 0, 0
        if not self.running and not self.waiting:
            self.blocks.sweep()

    def keep(self, sequence: Sequence, whole: bool) -> None:
        """Keep the row of a sequence as a run that others find: as it is if `whole`, else its full blocks."""
        stop = sequence.start + sequence.num_read
        if not whole:
            stop -= stop % BLOCK
        length = stop - sequence.start
        lengths = {key: num - sequence.start for num, key in chain(sequence.root, sequence.ids[:stop])}
        if whole and sequence.fills:
            lengths[sequence.fills] = length
        lengths = {key: num for key, num in lengths.items() if num > 0 and key not in self.blocks.found}
        if not lengths:
            return
        run = Run(length, sequence.path[-1] if sequence.path else None, None, sequence.lasting)
        self.blocks.used -= sequence.size  # the row goes next
        has_room = self.blocks.add(run, lengths)
        self.blocks.used += sequence.size
        if has_room:
            try:
                run.kv = self.storage.take(sequence.size, sequence.row, length)
            except Exception:
                self.blocks.drop(run)
                raise

    def plan(self) -> list[Chunk]:
        """What the next step reads: first those that get a token, then prompts."""
        for size in list(self.rows):
            self._grow_together(size)
        for sequence in list(self.running):
            if sequence.size:
                self._grow(sequence)
        single = [sequence for sequence in self.running if sequence.num_unread <= 1]
        prompts = [sequence for sequence in self.running if sequence.num_unread > 1]
        budget, wanted = self.max_step_tokens, self.max_wanted
        chunks: list[Chunk] = []
        for num, sequence in enumerate([*single, *prompts]):
            if budget <= 0 and num >= len(single):
                break
            chunk = self._chunk(sequence, max(budget, 1), wanted)
            if chunk.num_wanted > wanted and chunks:
                continue
            chunks.append(chunk)
            budget -= chunk.num_new
            wanted -= chunk.num_wanted
        return chunks

    def _chunk(self, sequence: Sequence, budget: int, wanted: int) -> Chunk:
        chunk = Chunk(sequence, min(sequence.num_unread, budget))
        if chunk.num_wanted > max(1, wanted):
            return Chunk(sequence, chunk.num_new - chunk.num_wanted + max(1, wanted))
        return chunk

    def _grow_together(self, size: int) -> None:
        """Where all rows of a size need to be larger, and there is room, copy them at once."""
        table = self.rows[size]
        if len(table) < 2 or any(one.num_read + one.num_unread <= size for one in table):
            return
        larger = {row_size(one.num_read + one.num_unread) for one in table}
        if len(larger) > 1 or not self.blocks.has_room(len(table) * (max(larger) - size)):
            return
        members = [one for one in self.running if one.size == size]
        rows, length = [one.row for one in members], max(one.num_read for one in members)
        for one in members:
            self._open(one, max(larger))
        try:
            self.storage.copy_rows(size, rows, (members[0].size, members[0].row), length)
        except Exception:  # as of memory
            for one, row in reversed(list(zip(members, rows, strict=True))):
                self._go_back(one, size, row)
            raise
        del self.rows[size]
        self.blocks.used -= size * len(members)
        self.storage.set_num_rows(size, 0)

    def _grow(self, sequence: Sequence) -> None:
        """See that the next token has room in its row, whoever has to give way."""
        needed = sequence.num_read + sequence.num_unread
        if needed <= sequence.size or sequence not in self.running:  # it may have given way itself
            return
        needed = row_size(needed)
        while needed > sequence.size:
            if self.blocks.has_room(needed - sequence.size):
                old, row, length = sequence.size, sequence.row, sequence.num_read
                self._open(sequence, needed)
                try:
                    self.storage.copy((old, row), (sequence.size, sequence.row), length)
                except Exception:  # as of memory
                    self._go_back(sequence, old, row)
                    raise
                self._forget(sequence, old, row)
                return
            newest = max(
                (one for one in self.running if one.fills is None), key=lambda one: one.number, default=sequence
            )
            self.preempt(newest)
            if newest is sequence:
                return

    def _forget(self, sequence: Sequence, size: int, row: int) -> None:
        """Close the row that a sequence has left for a larger one."""
        larger = (sequence.size, sequence.row)
        sequence.size, sequence.row = size, row
        self._close(sequence)
        sequence.size, sequence.row = larger

    def _go_back(self, sequence: Sequence, size: int, row: int) -> None:
        """Close the last row of its size, which could not be filled; the sequence has the smaller one still."""
        self._close(sequence)
        sequence.size, sequence.row = size, row

    def preempt(self, sequence: Sequence) -> None:
        """Put a sequence back, before all that wait; what was told of it stays told."""
        sequence.wanted_from = max(sequence.wanted_from, sequence.start + sequence.num_read)
        self.num_preemptions += 1
        self.leave(sequence)
        self.waiting.appendleft(sequence)

    def paths(self) -> Iterator[tuple[Span, ...]]:
        """The paths that are pinned."""
        return (sequence.path for sequence in self.running)

    def check(self) -> None:
        """Prove the books."""
        self.blocks.check((one.size for one in self.running), list(self.paths()))
        for size, table in self.rows.items():
            assert table and all((one.size, one.row) == (size, row) for row, one in enumerate(table))
            assert all(one.num_read <= size for one in table)
        assert sorted(map(id, self.running)) == sorted(id(one) for table in self.rows.values() for one in table)
