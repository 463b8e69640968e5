"""Steps one after the other: where the same sequences get a token each again, the step is the one before, moved by one.

That is most of decoding, and making a step anew takes longer than moving it.
"""

from collections.abc import Sequence as Many

import torch

from cartridges.engine.blocks import Span
from cartridges.engine.rows import Store
from cartridges.engine.scheduler import Chunk, Sequence
from cartridges.engine.step import Step, make_step

Mark = tuple[Sequence, tuple[Span, ...], int, int, int]


class Steps:
    """The steps of one store. The last one, and all that it reads, is held until `forget`."""

    def __init__(self, store: Store, device: torch.device, ragged: bool) -> None:
        self.store, self.device, self.ragged = store, device, ragged
        self.num_moved = 0
        self.forget()

    def forget(self) -> None:
        """Let go of what the last step reads."""
        self._step: Step | None = None
        self._marks: list[Mark] = []
        self._order: list[int] = []

    def make(self, chunks: Many[Chunk]) -> tuple[Step, list[Chunk]]:
        """As `make_step`. A step is good until the next one is made."""
        if (step := self._step) is not None and self._goes_on(chunks):
            ordered = [chunks[place] for place in self._order]
            step.move([chunk.sequence.ids[chunk.first] for chunk in ordered])
            self.num_moved += 1
        else:
            step, ordered = make_step(chunks, self.store, self.device, self.ragged)
            places = {id(chunk): place for place, chunk in enumerate(chunks)}
            self._order = [places[id(chunk)] for chunk in ordered]
        self._marks = [
            (one.sequence, one.sequence.path, one.sequence.size, one.sequence.row, one.first) for one in chunks
        ]
        self._step = step if all(chunk.num_new == chunk.num_wanted == 1 for chunk in chunks) else None
        return step, ordered

    def _goes_on(self, chunks: Many[Chunk]) -> bool:
        """Whether they are the next tokens of those of the last step, of all of them and nothing else."""
        return len(chunks) == len(self._marks) and all(
            chunk.sequence is sequence
            and chunk.sequence.path is path
            and chunk.sequence.size == size
            and chunk.sequence.row == row
            and chunk.first == first + 1
            and chunk.num_new == chunk.num_wanted == 1
            for chunk, (sequence, path, size, row, first) in zip(chunks, self._marks, strict=True)
        )
