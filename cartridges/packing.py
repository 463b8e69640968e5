"""Packed rows: several conversations end to end in one row of tokens, and what is learned from them.

A row is not padded and not cut: its conversations are kept apart by their lengths, each of them starts anew behind the
cartridge. It holds views of the conversations and is put together when it is asked for, so that the rows of an epoch
cost next to nothing.

Shapes: T tokens of a row, M targets of a row, K teacher top-k.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cartridges.conversation import Conversation
from cartridges.errors import InputError


@dataclass(frozen=True, eq=False)
class Piece:
    """One conversation of a row. `target_positions_M` are those of the target tokens themselves, at least 1."""

    ids_T: np.ndarray
    target_positions_M: np.ndarray
    teacher_ids_MK: np.ndarray
    teacher_logprobs_MK: np.ndarray
    num_dropped_targets: int = 0  # they lay beyond the length at which the conversation was cut


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Conversations end to end. The arrays are made anew at each access."""

    pieces: Sequence[Piece]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each conversation, in order."""
        return [len(piece.ids_T) for piece in self.pieces]

    @property
    def ids_T(self) -> np.ndarray:
        """Token ids, int32."""
        return np.concatenate([piece.ids_T for piece in self.pieces]).astype(np.int32, copy=False)

    @property
    def target_positions_M(self) -> np.ndarray:
        """Where in the row the hidden state stands that predicts each target: one before the target. int64."""
        starts = np.cumsum([0, *self.lengths[:-1]])
        positions = [piece.target_positions_M + start - 1 for start, piece in zip(starts, self.pieces, strict=True)]
        return np.concatenate(positions).astype(np.int64, copy=False)

    @property
    def target_ids_M(self) -> np.ndarray:
        """The target tokens, int32."""
        return self.ids_T[self.target_positions_M + 1]

    @property
    def teacher_ids_MK(self) -> np.ndarray:
        """Ids of the teacher's likeliest tokens, int32; where another conversation of the row has more of them, 0."""
        return self._side_by_side([piece.teacher_ids_MK for piece in self.pieces], 0).astype(np.int32, copy=False)

    @property
    def teacher_logprobs_MK(self) -> np.ndarray:
        """Their natural logprobs, float32; where another conversation has more of them, -inf: the entry is absent."""
        padded = self._side_by_side([piece.teacher_logprobs_MK for piece in self.pieces], -np.inf)
        return padded.astype(np.float32, copy=False)

    @property
    def num_targets(self) -> int:
        """M."""
        return sum(len(piece.target_positions_M) for piece in self.pieces)

    @property
    def num_dropped_targets(self) -> int:
        """Targets that lay beyond the length at which their conversations were cut."""
        return sum(piece.num_dropped_targets for piece in self.pieces)

    @staticmethod
    def _side_by_side(parts_MK: list[np.ndarray], filler: float) -> np.ndarray:
        widest = max(part.shape[1] for part in parts_MK)
        padded = [
            np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=filler)
            if part.shape[1] < widest
            else part
            for part in parts_MK
        ]
        return np.concatenate(padded)


@dataclass(frozen=True, eq=False)
class RowTensors:
    """A packed row on a device: ids and positions int64, logprobs float32."""

    ids_T: torch.Tensor
    lengths: list[int]
    target_positions_M: torch.Tensor
    target_ids_M: torch.Tensor
    teacher_ids_MK: torch.Tensor
    teacher_logprobs_MK: torch.Tensor


def to_tensors(row: PackedRow, device: torch.device | str) -> RowTensors:
    """The row's arrays as tensors on `device`."""
    arrays = (row.ids_T, row.target_positions_M, row.target_ids_M, row.teacher_ids_MK)
    ids_T, target_positions_M, target_ids_M, teacher_ids_MK = (
        torch.tensor(array).to(device=device).long() for array in arrays
    )
    teacher_logprobs_MK = torch.tensor(row.teacher_logprobs_MK).to(device)
    return RowTensors(ids_T, row.lengths, target_positions_M, target_ids_M, teacher_ids_MK, teacher_logprobs_MK)


def pack(conversations: Sequence[Conversation], row_len: int, max_len: int | None = None) -> list[PackedRow]:
    """Rows of at most `row_len` tokens: each conversation, in the given order, goes into the first row with room.

    A longer conversation has a row of its own. Those of more than `max_len` tokens are cut there, and the targets
    beyond are counted in the row's `num_dropped_targets`. Raises InputError.
    """
    if row_len < 1:
        raise InputError(f"given row_len={row_len}, expected a row of at least 1 token")
    if max_len is not None and max_len < 2:
        raise InputError(f"given max_len={max_len}, expected at least 2 tokens, as the first one is never a target")
    pieces = [_cut(conversation, max_len) for conversation in conversations]
    plan = _first_fit([len(piece.ids_T) for piece in pieces], row_len)
    return [PackedRow([pieces[index] for index in row]) for row in plan]


def epoch_rows(
    conversations: Sequence[Conversation], row_len: int, seed: int, epoch: int, max_len: int | None = None
) -> list[PackedRow]:
    """The rows of one epoch: conversations packed in an order drawn by (seed, epoch), and the rows shuffled."""
    rng = random.Random(f"epoch_rows/{seed}/{epoch}")
    order = list(range(len(conversations)))
    rng.shuffle(order)
    rows = pack([conversations[index] for index in order], row_len, max_len)
    rng.shuffle(rows)  # the last rows are those with room left
    return rows


def pack_text(ids: Sequence[int] | np.ndarray, row_len: int) -> list[PackedRow]:
    """Rows of at most `row_len` consecutive ids of one text, with every position but the first a target.

    A row begins with the last id of the one before, so that each id but the text's first is a target once. The teacher
    is sure of the target, which makes the distillation loss the next-token loss. Raises InputError.
    """
    ids_all = np.asarray(ids, dtype=np.int32)
    if row_len < 2:
        raise InputError(f"given row_len={row_len}, expected at least 2 tokens: one to predict from and one to predict")
    if ids_all.ndim != 1 or len(ids_all) < 2:
        raise InputError(f"given a text of {ids_all.size} tokens, expected at least 2; give a longer text")
    rows = []
    for start in range(0, len(ids_all) - 1, row_len - 1):
        ids_T = ids_all[start : start + row_len]
        targets_M1 = ids_T[1:, None]
        piece = Piece(ids_T, np.arange(1, len(ids_T)), targets_M1, np.zeros(targets_M1.shape, dtype=np.float32))
        rows.append(PackedRow([piece]))
    return rows


def _cut(conversation: Conversation, max_len: int | None) -> Piece:
    """Views of the conversation's first `max_len` tokens and of the targets among them."""
    positions_M, teacher = conversation.target_positions, conversation.teacher
    num_targets = len(positions_M) if max_len is None else int(np.searchsorted(positions_M, max_len))
    return Piece(
        conversation.token_ids[:max_len],
        positions_M[:num_targets],
        teacher.ids[:num_targets],
        teacher.logprobs[:num_targets],
        len(positions_M) - num_targets,
    )


def _first_fit(lengths: Sequence[int], row_len: int) -> list[list[int]]:
    """For each row the indices of its conversations, ascending."""
    rows: list[list[int]] = []
    room = np.full(len(lengths), row_len)
    shortest, first = min(lengths, default=0), 0  # rows before `first` have no room for any
    for index, length in enumerate(lengths):
        needed = min(length, row_len)  # a longer one needs an empty row
        row = first + int((room[first : len(rows) + 1] >= needed).argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        room[row] -= needed
        while first < len(rows) and room[first] < shortest:
            first += 1
    return rows
