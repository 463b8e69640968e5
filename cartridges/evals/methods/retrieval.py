"""Retrieval: for each question the pieces of the corpus that fit it best, as many as the budget holds.

`bm25` ranks by words (Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75), `embeddings` by the mean of the model's own
last hidden states, `embeddings_with(name)` by a Hugging Face encoder. The text of the whole corpus must be kept
besides, in storage and not in memory: it is not counted.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cartridges.chunking import ChunkConfig, Chunker
from cartridges.evals.method import Answerer, Workshop
from cartridges.model import Model
from cartridges.questions import Item
from cartridges.sharing import alone

K1, B = 1.2, 0.75
PIECE_LEN = 96  # tokens; smaller pieces for budgets that hold less than two
Rank = Callable[[str], list[int]]


def bm25(workshop: Workshop) -> Answerer:
    """The best pieces by BM25."""
    texts = pieces(workshop)
    return picking(workshop, texts, Bm25(texts).rank)


def embeddings(workshop: Workshop) -> Answerer:
    """The best pieces by cosine of the model's own mean hidden states, less their mean over the pieces."""
    model = workshop.engine.model
    return by_vectors(workshop, lambda texts: own_vectors(model, texts))


def embeddings_with(name: str) -> Callable[[Workshop], Answerer]:
    """A method that ranks by the encoder `name` of the hub or a folder, mean-pooled."""

    def method(workshop: Workshop) -> Answerer:
        from transformers import AutoModel, AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        encoder: Any = AutoModel.from_pretrained(name).eval()

        @torch.no_grad()
        def vectors(texts: Sequence[str]) -> np.ndarray:
            found = []
            for text in texts:
                read = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
                found.append(encoder(**read).last_hidden_state[0].mean(0).float().numpy())
            return np.stack(found)

        return by_vectors(workshop, vectors)

    return method


def pieces(workshop: Workshop) -> list[str]:
    """The corpus cut at its own borders, so that the budget holds at least one piece."""
    longest = max(12, min(PIECE_LEN, workshop.text_room()))
    config = ChunkConfig(kind="structure", min_len=longest // 3, max_len=longest)
    return [chunk.text for chunk in Chunker(workshop.corpus, config, workshop.engine.model.tokenizer).cover()]


def picking(workshop: Workshop, texts: list[str], rank: Rank) -> Answerer:
    """For each question the texts by rank that fit the budget, in the order of the corpus."""
    lengths = [len(workshop.engine.model.ids(text)) + 2 for text in texts]
    room = min(workshop.text_room(), workshop.room)

    def system(item: Item) -> str:
        chosen, used = [], 0
        for number in rank(item.question):
            if used + lengths[number] <= room:
                chosen.append(number)
                used += lengths[number]
        return "\n\n".join(texts[number] for number in sorted(chosen))

    return Answerer(system)


def by_vectors(workshop: Workshop, vectors: Callable[[Sequence[str]], np.ndarray]) -> Answerer:
    """Pieces by cosine."""
    texts = pieces(workshop)
    found = vectors(texts)
    middle = found.mean(0)

    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows - middle
        return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)

    known = unit(found)
    return picking(workshop, texts, lambda text: list(np.argsort(-(known @ unit(vectors([text]))[0]), kind="stable")))


@torch.no_grad()
def own_vectors(model: Model, texts: Sequence[str]) -> np.ndarray:
    """The mean last hidden state of each text, [len(texts), D]."""
    decoder: Any = model.hf.get_decoder()
    found = []
    for text in texts:
        ids = torch.tensor([model.ids(text)], device=model.device)
        with alone(model.hf.config):
            found.append(decoder(input_ids=ids, use_cache=False).last_hidden_state[0].mean(0).float().cpu().numpy())
    return np.stack(found)


class Bm25:
    """Okapi BM25 over a few texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.counts = [Counter(words(text)) for text in texts]
        self.lengths = [sum(counts.values()) for counts in self.counts]
        self.mean_len = sum(self.lengths) / max(1, len(texts))
        self.holders = Counter(word for counts in self.counts for word in counts)

    def score(self, number: int, asked: Sequence[str]) -> float:
        """How well text `number` fits the words."""
        counts, total = self.counts[number], 0.0
        scale = K1 * (1 - B + B * self.lengths[number] / max(1.0, self.mean_len))
        for word in asked:
            rarity = math.log(1 + (len(self.counts) - self.holders[word] + 0.5) / (self.holders[word] + 0.5))
            total += rarity * counts[word] * (K1 + 1) / (counts[word] + scale)
        return total

    def rank(self, text: str) -> list[int]:
        """The texts' numbers, best first."""
        asked = words(text)
        return sorted(range(len(self.counts)), key=lambda number: -self.score(number, asked))


def words(text: str) -> list[str]:
    """Words in lower case."""
    return re.findall(r"\w+", text.lower())
