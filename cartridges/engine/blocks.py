"""Who holds how much of a fixed budget of keys and values, and which runs of them can be used again. No tensors.

A run is what was kept of a text, or a cartridge's slots, stored once however many requests stand behind it. Runs
stand behind other runs, so a request's prefix is a path of spans: a run, and how much of it is used. They are found by
a chain of hashes which starts from the cartridge's digest and has a link for each block of ids.

At all times free + used + pinned + cached = total: `used` are the requests' own rows, `pinned` the runs that requests
stand behind, `cached` the others, of which the least recently used go when room is needed.
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCK = 16
ROW = 64  # the smallest row

Span = tuple["Run", int]


def row_size(length: int) -> int:
    """The size of the row that holds so many tokens: powers of two at first, then multiples."""
    size = ROW
    while size < length and size < 1024:
        size *= 2
    return size if size >= length else -(-length // 1024) * 1024


def largest_row(room: int) -> int:
    """The size of the largest row that so much room has place for; 0 where there is none."""
    if room >= 1024:
        return room // 1024 * 1024
    return 1 << room.bit_length() - 1 if room >= ROW else 0


def cost(length: int) -> int:
    """What a run of so many tokens takes of the budget."""
    return -(-length // BLOCK) * BLOCK


def chain(root: bytes, ids: Sequence[int]) -> list[tuple[int, bytes]]:
    """For each block of `ids`, the last of which may be short: the number of ids up to its end, and their key."""
    links, key = [], root
    for start in range(0, len(ids), BLOCK):
        part = array("q", ids[start : start + BLOCK])
        key = hashlib.blake2b(key + part.tobytes(), digest_size=16).digest()
        links.append((start + len(part), key))
    return links


@dataclass(eq=False)
class Run:
    """Keys and values of `length` tokens, behind `parent`. `lasting` is false where nothing would tell of a change.

    `owner` is what its keys know by its address, which is nobody else's as long as it is held.
    """

    length: int
    parent: Span | None
    kv: Any
    lasting: bool = True
    owner: Any = None
    num_users: int = 0
    num_children: int = 0
    last_used: int = 0
    keys: list[bytes] = field(default_factory=list)


def path_to(span: Span | None) -> tuple[Span, ...]:
    """The spans up to this one, the first of them first."""
    path: list[Span] = []
    while span is not None:
        path.append(span)
        span = span[0].parent
    return tuple(reversed(path))


class Blocks:
    """The budget, the runs, and the keys by which they are found."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = self.pinned = self.cached = 0
        self.runs: list[Run] = []
        self.found: dict[bytes, Span] = {}
        self._clock = 0

    @property
    def free(self) -> int:
        return self.total - self.used - self.pinned - self.cached

    def has_room(self, num_tokens: int) -> bool:
        """Whether so much is free, once cached runs are let go as needed. None goes where all together are too few."""
        if self.free + self.cached < num_tokens:
            return False
        while self.free < num_tokens:
            idle = [run for run in self.runs if not run.num_users and not run.num_children]
            if not idle:
                return False
            self.drop(min(idle, key=lambda run: run.last_used))
        return True

    def add(self, run: Run, lengths: Mapping[bytes, int]) -> bool:
        """Keep a run, to be found by keys, each with how much of it is meant; false where there is no room for it."""
        ancestors = [ancestor for ancestor, _ in path_to(run.parent)]
        for ancestor in ancestors:  # lest they go to make room
            ancestor.num_children += 1
        room = self.has_room(cost(run.length))
        for ancestor in ancestors:
            ancestor.num_children -= 1
        if not room:
            return False
        run.keys = [key for key in lengths if key not in self.found]
        self.found.update((key, (run, lengths[key])) for key in run.keys)
        self.cached += cost(run.length)
        self.runs.append(run)
        self._touch(run)
        if run.parent:
            run.parent[0].num_children += 1
        return True

    def drop(self, run: Run) -> None:
        """Forget a run that nobody stands behind."""
        assert not run.num_users and not run.num_children
        for key in run.keys:
            del self.found[key]
        self.runs.remove(run)
        self.cached -= cost(run.length)
        if run.parent:
            run.parent[0].num_children -= 1

    def pin(self, path: Sequence[Span]) -> None:
        """Stand behind a path."""
        for run, _ in path:
            if not run.num_users:
                self.cached -= cost(run.length)
                self.pinned += cost(run.length)
            run.num_users += 1
            self._touch(run)

    def unpin(self, path: Sequence[Span]) -> None:
        """Leave a path. What does not last goes with its last user."""
        for run, _ in reversed(path):
            run.num_users -= 1
            if not run.num_users:
                self.pinned -= cost(run.length)
                self.cached += cost(run.length)
                if not run.lasting and not run.num_children:
                    self.drop(run)

    def sweep(self) -> None:
        """Forget all that does not last; for when nobody waits for it."""
        for run in reversed(list(self.runs)):
            if not run.lasting and not run.num_users and not run.num_children:
                self.drop(run)

    def _touch(self, run: Run) -> None:
        self._clock += 1
        run.last_used = self._clock

    def check(self, rows: Iterable[int], paths: Sequence[Sequence[Span]]) -> None:
        """Prove the books against the sizes of all rows and the paths of all who stand behind runs."""
        users: dict[int, int] = {}
        for path in paths:
            for run, num in path:
                assert 0 < num <= run.length
                users[id(run)] = users.get(id(run), 0) + 1
        assert set(users) <= {id(run) for run in self.runs}, "a path through a run that was dropped"
        for run in self.runs:
            assert run.num_users == users.get(id(run), 0), "a run with another number of users"
            children = [child for child in self.runs if child.parent and child.parent[0] is run]
            assert run.num_children == len(children), "a run with another number of children"
            assert all(self.found[key][0] is run for key in run.keys)
        assert sum(len(run.keys) for run in self.runs) == len(self.found)
        assert self.used == sum(rows)
        assert self.pinned == sum(cost(run.length) for run in self.runs if run.num_users)
        assert self.cached == sum(cost(run.length) for run in self.runs if not run.num_users)
        assert self.free >= 0 and self.free + self.used + self.pinned + self.cached == self.total
