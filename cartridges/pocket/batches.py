"""Training batches: rows of fixed length, each one lesson, with a loss weight at every position that is learned.

Shapes: B rows, T tokens, M targets. A batch is a function of its key alone, so a run resumes exactly.
Chat pieces are tokenized apart and joined; special tokens split text, so this equals `apply_chat_template`.
"""

import re
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from cartridges.pocket.lessons import Lesson, Turn, draw_lesson
from cartridges.pocket.tokenizer import END, START
from cartridges.rng import rng_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANSWER_WEIGHT = 1.0
# The few tokens in which an answer concludes decide it, and are a small part of all: they count more, the more so where
# one token decides and what leads to it is easy.
CONCLUSION_WEIGHT = 2.0
CONCLUSION_WEIGHTS = {"multiple_choice": 4.0, "comparison": 6.0, "count": 6.0, "translation": 3.0, "reverse": 4.0}
CONCLUSIONS = {"multiple_choice": re.compile(r" \([A-D]\)\.$"), "comparison": re.compile(r" (more|less) than ")}
UNCONCLUDED = {"ask", "json", "yaml", "summary", "creative", "unknown"}
# What is not an answer is learned a little: it is how the model first finds out about repetition. It is learned at a
# sample of the positions only, with weight in proportion, to save the vocabulary projection.
TEXT_WEIGHT = 0.05
TEXT_SHARE = 0.125


class ChatEncoder:
    """Token ids of chat messages, piece by piece."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self.backend = tokenizer.backend_tokenizer
        (start,), (self.end,) = self.encode(START), self.encode(END)
        self.newline = self.encode("\n")
        self.heads = {role: [start, *self.encode(role), *self.newline] for role in ("system", "user", "assistant")}

    def encode(self, text: str) -> list[int]:
        """Ids of a piece that begins and ends at special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def message(self, role: str, text: str) -> list[int]:
        """A whole message, from its start token to the line break after its end token."""
        return [*self.heads[role], *self.encode(text), self.end, *self.newline]


@dataclass(frozen=True)
class Batch:
    """Inputs [B, T]; for each of M targets its flat position in B*T, its token id, its weight and its turn.

    A target is the token after its position. `turns_M` numbers the exchanges of the batch from 1, and is 0 for text
    outside of answers; `kinds[turn]` is the kind of the exchange. Padding targets have weight 0.
    """

    inputs_BT: np.ndarray
    positions_M: np.ndarray
    targets_M: np.ndarray
    weights_M: np.ndarray
    turns_M: np.ndarray
    kinds: list[str]


@dataclass
class Row:
    """Token ids, and for each the number of the turn it answers in (0 outside of answers) and its weight there."""

    ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: list[int], turn: int = 0, weight: float = 0.0) -> None:
        """Put `ids` at the end."""
        self.ids += ids
        self.turns += [turn] * len(ids)
        self.weights += [weight] * len(ids)

    def cut(self, length: int) -> "Row":
        """The first `length` tokens."""
        return Row(self.ids[:length], self.turns[:length], self.weights[:length])


def encode_lesson(encoder: ChatEncoder, lesson: Lesson, length: int, kinds: list[str]) -> Row:
    """A lesson cut at `length` tokens; kinds grows by its turns."""
    row = Row()
    if lesson.system:
        row.add(encoder.message("system", lesson.system))
    while len(row.ids) < length:
        turn = lesson.next_turn()
        kinds.append(turn.kind)
        row.add(encoder.message("user", turn.user) + encoder.heads["assistant"])
        head, tail = split_conclusion(turn)
        row.add(encoder.encode(head), len(kinds) - 1, ANSWER_WEIGHT)
        row.add(encoder.encode(tail), len(kinds) - 1, CONCLUSION_WEIGHTS.get(turn.kind, CONCLUSION_WEIGHT))
        row.add([encoder.end], len(kinds) - 1, ANSWER_WEIGHT)
        row.add(encoder.newline)
    return row.cut(length)


def split_conclusion(turn: Turn) -> tuple[str, str]:
    """An answer up to where it decides, and the rest; cut before a space, so that the tokens stay the same.

    It decides after its last "is", or where CONCLUSIONS says. A message that the model asks, a record, a summary and a
    rhyme decide nothing.
    """
    if turn.kind in UNCONCLUDED:
        return turn.assistant, ""
    if turn.kind in CONCLUSIONS:
        found = CONCLUSIONS[turn.kind].search(turn.assistant)
        cut = found.start() if found else len(turn.assistant)
    else:
        cut = turn.assistant.rfind(" is ") + len(" is")
    return turn.assistant[:cut], turn.assistant[cut:]


def draw_row(encoder: ChatEncoder, rng: Random, length: int, num_tokens: int, kinds: list[str]) -> Row:
    """A lesson as a row; where its documents leave no room for an answer, a shorter one, down to a sixteenth."""
    row = Row()
    known = len(kinds)
    for attempt in range(5):
        row = encode_lesson(encoder, draw_lesson(rng, "train", num_tokens >> attempt), length, kinds)
        if any(row.turns):
            return row
        del kinds[known:]
    return row


def make_batch(
    encoder: ChatEncoder, key: tuple[object, ...], num_rows: int, length: int, num_targets: int, context_share: float
) -> Batch:
    """The batch named by `key`: `num_rows` lessons of the training split of `length` tokens each, [B, T].

    Documents take between a quarter and `context_share` of a row, about. Of answers that do not fit into `num_targets`
    (M) a sample is learned, and no text beside them.
    """
    kinds = ["text"]
    rng = rng_of("batch", *key)
    rows = [
        draw_row(encoder, rng, length + 1, int(length * rng.uniform(0.25, context_share)), kinds)
        for _ in range(num_rows)
    ]
    ids = np.array([row.ids for row in rows])
    turns_flat = np.array([row.turns[1:] for row in rows]).reshape(-1)
    weights_flat = np.array([row.weights[1:] for row in rows], dtype=np.float32).reshape(-1)
    sampler = np.random.default_rng(rng.getrandbits(64))
    answers = np.flatnonzero(turns_flat)
    texts = np.flatnonzero((turns_flat == 0) & (sampler.random(turns_flat.size) < TEXT_SHARE))
    answers = answers if answers.size <= num_targets else np.sort(sampler.choice(answers, num_targets, replace=False))
    texts = texts[: num_targets - answers.size]
    padding = np.zeros(num_targets - answers.size - texts.size, dtype=np.int64)
    positions = np.concatenate([answers, texts, padding])
    weights = np.concatenate(
        [
            weights_flat[answers],
            np.full(texts.size, TEXT_WEIGHT / TEXT_SHARE, dtype=np.float32),
            np.zeros(padding.size, dtype=np.float32),
        ]
    )
    targets = ids[:, 1:].reshape(-1)[positions]
    return Batch(ids[:, :-1].copy(), positions, targets, weights, turns_flat[positions], kinds)
