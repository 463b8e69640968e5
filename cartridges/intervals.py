"""95% intervals: of a mean, and of what two methods make of the same questions.

They tell how far other questions about the same corpus could move a figure; other corpora, seeds and models are not in
them. Few right-or-wrong scores that are all alike do not pass for certainty.
"""

import math
from collections.abc import Sequence

import numpy as np

from cartridges.errors import InputError

Z = 1.959964
NUM_DRAWS = 4000
_OUTCOMES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # of a pair of right-or-wrong scores


def mean_of(scores: Sequence[float]) -> float:
    """The mean of scores. Raises InputError where there are none: a metric on nothing is no number."""
    if not len(scores):
        raise InputError("given no scores, expected at least one; the task has no items that something scores")
    return float(sum(scores) / len(scores))


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Bounds of the mean of scores in [0, 1], at 95%; the scores are taken for independent."""
    count, mean = len(scores), sum(scores) / len(scores)
    if all(value in (0.0, 1.0) for value in scores):
        center = (mean + Z * Z / (2 * count)) / (1 + Z * Z / count)
        half = Z / (1 + Z * Z / count) * math.sqrt(mean * (1 - mean) / count + Z * Z / (4 * count * count))
    elif count == 1:
        return 0.0, 1.0
    else:
        center, half = mean, Z * math.sqrt(sum((value - mean) ** 2 for value in scores) / max(1, count - 1) / count)
    return max(0.0, center - half), min(1.0, center + half)


def difference(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The mean of a - b over pairs of scores in [0, 1], with its 95% bounds.

    For right-or-wrong scores half a pair is added to each of the four outcomes (Agresti and Min 2005), so that few
    pairs without a difference do not pass for certainty.
    """
    count, gaps = len(pairs), [a - b for a, b in pairs]
    mean = sum(gaps) / count
    if all(score in (0.0, 1.0) for pair in pairs for score in pair):
        num_won, num_lost, total = gaps.count(1.0) + 0.5, gaps.count(-1.0) + 0.5, count + 2
        center = (num_won - num_lost) / total
        half = Z * math.sqrt((num_won + num_lost) / total - center**2) / math.sqrt(total)
    else:
        center, half = mean, Z * math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / max(1, count - 1) / count)
    return mean, min(mean, max(-1.0, center - half)), max(mean, min(1.0, center + half))


def ratio(pairs: Sequence[tuple[float, float]], seed: int = 0) -> tuple[float, float, float] | None:
    """The mean of a over that of b, over pairs of scores in [0, 1], with its 95% bounds; None where b is 0 in all.

    Bayesian bootstrap (Rubin 1981): the pairs are weighed at random. To right-or-wrong scores half a pair is added for
    each of the four outcomes, as in `difference`.
    """
    scores = np.asarray(pairs, float)
    means = scores.mean(0)
    if not means[1]:
        return None
    weights = np.ones(len(scores))
    if np.isin(scores, (0.0, 1.0)).all():
        scores, weights = np.concatenate([scores, _OUTCOMES]), np.concatenate([weights, np.full(len(_OUTCOMES), 0.5)])
    above, below = (np.random.default_rng(seed).dirichlet(weights, NUM_DRAWS) @ scores).T
    found = float(means[0] / means[1])
    low, high = np.percentile(above / below, (2.5, 97.5))
    return found, min(found, float(low)), max(found, float(high))
