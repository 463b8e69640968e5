"""Paired bootstrap intervals: both methods answered the same questions, so questions are drawn anew, not replies.

Percentile intervals at 95% (Efron and Tibshirani 1993, section 13.3). They tell how far other questions about the same
corpus could move a figure; other corpora, seeds and models are not in them.
"""

from collections.abc import Sequence

import numpy as np

from cartridges.errors import InputError

NUM_DRAWS = 4000


def mean(scores: Sequence[float]) -> float:
    """The mean of scores. Raises InputError where there are none: a metric on nothing is no number."""
    if not len(scores):
        raise InputError("given no scores, expected at least one; the task has no items that something scores")
    return float(sum(scores) / len(scores))


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean of `ours - theirs` with its bounds. Raises InputError where they are not of the same questions."""
    _check_paired(ours, theirs)
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    low, high = np.percentile(gaps[_draws(len(gaps), seed)].mean(1), (2.5, 97.5))
    return float(gaps.mean()), float(low), float(high)


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> tuple[float, float, float] | None:
    """The mean of `ours` over that of `theirs` with its bounds; None where theirs is 0. Raises InputError."""
    _check_paired(ours, theirs)
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    if not b.mean():
        return None
    draws = _draws(len(a), seed)
    above, below = a[draws].mean(1), b[draws].mean(1)
    low, high = np.percentile(above[below > 0] / below[below > 0], (2.5, 97.5))
    return float(a.mean() / b.mean()), float(low), float(high)


def _draws(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num, (NUM_DRAWS, num))


def _check_paired(ours: Sequence[float], theirs: Sequence[float]) -> None:
    mean(ours)
    if len(ours) != len(theirs):
        raise InputError(f"given {len(ours)} and {len(theirs)} scores, expected those of the same questions")
