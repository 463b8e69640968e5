"""A conversation: what the student sees, and what the teacher, who also read a chunk, expects at each of its targets.

M target rows, T tokens of the student, K most probable tokens of each row. No tensors, no files: see `dataset`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cartridges.errors import FormatError, half_pair
from cartridges.template import Message

if TYPE_CHECKING:
    from cartridges.template import ChatFormat

_NOT_A_WORD = re.compile(r"[\W_]+")
MASS_SLACK = 1e-3  # how far rounding may lift probabilities over 1, and log-probabilities over 0
COUNTS = ("index", "start", "stop", "num_prompt_tokens", "num_new_tokens")
MAX_TEXT_SHOWN = 400  # characters of a message in a preview


@dataclass(frozen=True, eq=False)
class TopK:
    """The K most probable tokens of each row.

    ids: int32 [M, K], distinct in a row.
    logprobs: float32 [M, K], natural logarithms of the full softmax at temperature 1, sorted descending. What a row
    lacks to 1 is the mass of all other tokens.
    """

    ids: np.ndarray
    logprobs: np.ndarray

    def __post_init__(self) -> None:
        """Bring both to their types. Raises FormatError where that would change a value."""
        object.__setattr__(self, "ids", _as_int32("top-k ids", self.ids, num_axes=2))
        logprobs = np.asarray(self.logprobs)
        if logprobs.dtype.kind not in "fiu":
            raise FormatError(f"top-k logprobs are of type {logprobs.dtype}, expected numbers")
        object.__setattr__(self, "logprobs", logprobs.astype(np.float32, copy=False))

    def __len__(self) -> int:
        """The number of rows, M."""
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        """Whether shapes and all values are the same."""
        if not isinstance(other, TopK):
            return NotImplemented
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.logprobs, other.logprobs)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    @classmethod
    def empty(cls, num_top: int) -> Self:
        """No rows of K = `num_top`."""
        return cls(np.empty((0, num_top), np.int32), np.empty((0, num_top), np.float32))

    @classmethod
    def concat(cls, parts: Sequence["TopK"]) -> Self:
        """The rows of all parts, in order. Raises FormatError where there is no part, or where they differ in K."""
        nums = sorted({part.num_top for part in parts})
        if len(nums) != 1:
            raise FormatError(f"given top-k rows of K = {nums or 'nothing'}, expected at least one part, all of one K")
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.logprobs for part in parts]))

    @property
    def num_top(self) -> int:
        """K."""
        return self.ids.shape[1]

    @property
    def mass(self) -> np.ndarray:
        """The probability that the K tokens of each row hold together, float64 [M]."""
        return np.exp(self.logprobs.astype(np.float64)).sum(axis=1)

    def take(self, rows: "Sequence[int] | np.ndarray | slice") -> "TopK":
        """The given rows, in the given order."""
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.dtype == bool else rows.astype(np.int64)
        return TopK(self.ids[rows], self.logprobs[rows])

    def check(self, vocab_size: int | None = None) -> None:
        """Raise FormatError where the rows are no top-k of probabilities over `vocab_size` tokens."""
        if self.ids.shape != self.logprobs.shape or self.num_top < 1:
            raise FormatError(
                f"top-k ids are {list(self.ids.shape)} and logprobs {list(self.logprobs.shape)}, "
                "expected both [M, K] with K of at least 1"
            )
        _check_ids("top-k ids", self.ids, vocab_size)
        sorted_ids = np.sort(self.ids, axis=1)
        twice = (sorted_ids[:, 1:] == sorted_ids[:, :-1]).any(axis=1)
        _check_rows(twice, self.ids, "names a token twice", "distinct ids")
        finite = np.isfinite(self.logprobs).all(axis=1)
        _check_rows(~finite, self.logprobs, "is not finite", "logarithms of probabilities")
        ascending = (self.logprobs[:, 1:] > self.logprobs[:, :-1]).any(axis=1)
        _check_rows(ascending, self.logprobs, "is not sorted", "logprobs from high to low")
        _check_rows(self.logprobs[:, 0] > MASS_SLACK, self.logprobs, "is above 0", "logprobs of at most 0")
        _check_rows(self.mass > 1 + MASS_SLACK, self.logprobs, "sums to more than 1", "probabilities")


def normalised(text: str) -> str:
    """What two messages share that ask the same in other clothes: case, spaces and punctuation left out."""
    return _NOT_A_WORD.sub(" ", text.casefold()).strip()


def opening(messages: Sequence[Message], index: int) -> str:
    """What conversation `index` begins with; two that have it in common ask for the same."""
    return normalised(messages[0]["content"]) if messages else f"{index}"


@dataclass(eq=False)
class Conversation:
    """One conversation of a dataset.

    messages: what the student sees, by role: no chunk, no system text that the teacher alone had.
    token_ids: int32 [T], the same as the student's ids.
    target_positions: int32 [M], strictly increasing and at least 1; row m of `teacher` is the distribution of
    `token_ids[target_positions[m]]` given all before it.
    document, start, stop: the chunk that the teacher read, in characters; "", 0, 0 where there was none.
    num_prompt_tokens, num_new_tokens: what all calls of the teacher for this conversation read and wrote.
    """

    index: int
    messages: list[Message]
    token_ids: np.ndarray
    target_positions: np.ndarray
    teacher: TopK
    document: str
    start: int
    stop: int
    seed_kind: str
    num_prompt_tokens: int
    num_new_tokens: int

    def __post_init__(self) -> None:
        """Bring the arrays to their types. Raises FormatError where that would change a value."""
        self.token_ids = _as_int32("token ids", self.token_ids, num_axes=1)
        self.target_positions = _as_int32("target positions", self.target_positions, num_axes=1)
        for name in COUNTS:
            if isinstance(count := getattr(self, name), np.integer):
                setattr(self, name, int(count))

    def __eq__(self, other: object) -> bool:
        """Whether all fields hold the same."""
        if not isinstance(other, Conversation):
            return NotImplemented
        return (
            self._described() == other._described()
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.target_positions, other.target_positions)
            and self.teacher == other.teacher
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        """For people: where it comes from, its size and its messages."""
        chunk = f"{self.document} [{self.start}:{self.stop}]" if self.document else "no document"
        size = f"{self.num_tokens} tokens, {self.num_targets} targets"
        mass = f", top {self.teacher.num_top} hold {self.teacher.mass.mean():.1%}" if self.num_targets else ""
        lines = [f"conversation {self.index}: {self.seed_kind}, {chunk}, {size}{mass}"]
        for message in self.messages:
            text = message["content"]
            more = f" … {len(text) - MAX_TEXT_SHOWN} more characters" if len(text) > MAX_TEXT_SHOWN else ""
            lines.append(f"  {message['role']}: " + f"{text[:MAX_TEXT_SHOWN]}{more}".replace("\n", "\n    "))
        return "\n".join(lines)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def num_targets(self) -> int:
        """M."""
        return len(self.target_positions)

    @property
    def digest(self) -> str:
        """The sha256 of all that it holds, in hex; the same however it is stored."""
        shape = [self.num_tokens, *self.teacher.ids.shape]
        text = json.dumps([self._described(), shape], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        digest = hashlib.sha256(f"{len(text)}:{text}".encode())
        for array, kind in (
            (self.token_ids, "<i4"),
            (self.target_positions, "<i4"),
            (self.teacher.ids, "<i4"),
            (self.teacher.logprobs, "<f4"),
        ):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()

    def student_text(self, chat: "ChatFormat") -> str:
        """All that the student reads, special tokens included."""
        return chat.decode(self.token_ids.tolist(), with_special=True)

    def check(self, vocab_size: int | None = None) -> None:
        """Raise FormatError, with the number of the conversation, where something in it cannot be."""
        try:
            self._check_description()
            if self.num_tokens < 1:
                raise FormatError("has no tokens, expected at least one")
            _check_ids("token ids", self.token_ids, vocab_size)
            positions = self.target_positions
            if self.num_targets and (np.diff(positions) <= 0).any():
                raise FormatError("has target positions that do not increase, expected each above the one before")
            if self.num_targets and not (positions[0] >= 1 and positions[-1] < self.num_tokens):
                raise FormatError(
                    f"has target positions from {positions[0]} to {positions[-1]}, "
                    f"expected them within 1 to {self.num_tokens - 1}"
                )
            if len(self.teacher) != self.num_targets:
                raise FormatError(f"has {len(self.teacher)} teacher rows for {self.num_targets} target positions")
            self.teacher.check(vocab_size)
        except FormatError as error:
            raise FormatError(f"conversation {self.index}: {error}; make it anew") from error

    def _described(self) -> dict[str, Any]:
        """Everything but the arrays."""
        arrays = ("token_ids", "target_positions", "teacher")
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in arrays}

    def _check_description(self) -> None:
        for name in COUNTS:
            count = getattr(self, name)
            if type(count) is not int or not 0 <= count < 2**63:
                raise FormatError(f"{name} is {count!r}, expected a whole number of at least 0")
        if self.start > self.stop:
            raise FormatError(f"its chunk starts at {self.start} and stops at {self.stop}, expected start <= stop")
        if not self.messages:
            raise FormatError("has no messages, expected at least one")
        for number, message in enumerate(self.messages):
            if not isinstance(message, dict) or sorted(message) != ["content", "role"]:
                raise FormatError(f"message {number} is {str(message)[:80]!r}, expected 'role' and 'content' alone")
        texts = {"document": self.document, "seed_kind": self.seed_kind}
        texts |= {
            f"{key} of message {n}": text for n, message in enumerate(self.messages) for key, text in message.items()
        }
        for name, text in texts.items():
            if not isinstance(text, str):
                raise FormatError(f"{name} is {text!r}, expected a text")
            if broken := half_pair(text):
                raise FormatError(f"{name} has {broken}")


def _as_int32(name: str, values: Any, num_axes: int) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":  # an empty list
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu" or array.ndim != num_axes:
        raise FormatError(
            f"{name} are {array.dtype} of shape {list(array.shape)}, expected whole numbers on {num_axes} axes"
        )
    if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min):
        raise FormatError(f"{name} reach from {array.min()} to {array.max()}, expected numbers that fit into int32")
    return array.astype(np.int32, copy=False)


def _check_ids(name: str, ids: np.ndarray, vocab_size: int | None) -> None:
    if ids.size and (ids.min() < 0 or (vocab_size is not None and ids.max() >= vocab_size)):
        limit = f"0 to {vocab_size - 1}, the vocabulary" if vocab_size is not None else "0 and above"
        raise FormatError(f"{name} reach from {ids.min()} to {ids.max()}, expected {limit}")


def _check_rows(wrong_M: Any, values_MK: np.ndarray, what: str, expected: str) -> None:
    if wrong_M.any():
        row = int(wrong_M.argmax())
        raise FormatError(f"teacher row {row} {what} ({values_MK[row][:5].tolist()}), expected {expected}")
