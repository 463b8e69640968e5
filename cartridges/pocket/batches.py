"""Training batches: rows of fixed length, each one lesson, with a loss weight at every position that is learned.

Shapes: B rows, T tokens, M targets. A batch is a function of its key alone, so a run resumes exactly.
Chat pieces are tokenized apart and joined; special tokens split text, so this equals `apply_chat_template`.
"""

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from cartridges.pocket.lessons import Lesson, draw_lesson
from cartridges.pocket.tokenizer import END, START
from cartridges.pocket.world import rng_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANSWER_WEIGHT = 1.0
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


def encode_lesson(encoder: ChatEncoder, lesson: Lesson, length: int, kinds: list[str]) -> tuple[list[int], list[int]]:
    """Token ids and turn numbers (0 outside of answers) of a lesson cut at `length`; kinds grows by its turns."""
    ids = encoder.message("system", lesson.system) if lesson.system else []
    turns = [0] * len(ids)
    while len(ids) < length:
        turn = lesson.next_turn()
        kinds.append(turn.kind)
        question = encoder.message("user", turn.user) + encoder.heads["assistant"]
        answer = [*encoder.encode(turn.assistant), encoder.end]
        ids += question + answer + encoder.newline
        turns += [0] * len(question) + [len(kinds) - 1] * len(answer) + [0] * len(encoder.newline)
    return ids[:length], turns[:length]


def draw_row(
    encoder: ChatEncoder, rng: Random, length: int, num_tokens: int, kinds: list[str]
) -> tuple[list[int], list[int]]:
    """A lesson as a row; where its documents leave no room for an answer, a shorter one, down to a sixteenth."""
    ids: list[int] = []
    turns: list[int] = []
    known = len(kinds)
    for attempt in range(5):
        ids, turns = encode_lesson(encoder, draw_lesson(rng, "train", num_tokens >> attempt), length, kinds)
        if any(turns):
            return ids, turns
        del kinds[known:]
    return ids, turns


def make_batch(
    encoder: ChatEncoder, key: tuple[object, ...], num_rows: int, length: int, num_targets: int, context_share: float
) -> Batch:
    """The batch named by `key`: `num_rows` lessons of the training split of `length` tokens each, [B, T].

    Documents take between a quarter and `context_share` of a row, about. Of answers that do not fit into `num_targets`
    (M) a sample is learned, and no text beside them.
    """
    inputs, targets, turns, kinds = [], [], [], ["text"]
    rng = rng_of("batch", *key)
    for _ in range(num_rows):
        ids, row_turns = draw_row(encoder, rng, length + 1, int(length * rng.uniform(0.25, context_share)), kinds)
        inputs.append(ids[:-1])
        targets.append(ids[1:])
        turns.append(row_turns[1:])
    turns_flat = np.array(turns).reshape(-1)
    sampler = np.random.default_rng(rng.getrandbits(64))
    answers = np.flatnonzero(turns_flat)
    texts = np.flatnonzero((turns_flat == 0) & (sampler.random(turns_flat.size) < TEXT_SHARE))
    answers = answers if answers.size <= num_targets else np.sort(sampler.choice(answers, num_targets, replace=False))
    texts = texts[: num_targets - answers.size]
    padding = np.zeros(num_targets - answers.size - texts.size, dtype=np.int64)
    positions = np.concatenate([answers, texts, padding])
    weights = np.repeat(
        np.array([ANSWER_WEIGHT, TEXT_WEIGHT / TEXT_SHARE, 0.0], dtype=np.float32),
        [answers.size, texts.size, padding.size],
    )
    return Batch(
        np.array(inputs), positions, np.array(targets).reshape(-1)[positions], weights, turns_flat[positions], kinds
    )
