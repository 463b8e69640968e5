"""95% intervals: of a mean, and of what two methods make of the same questions.

They tell how far other questions about the same corpus could move a figure; other corpora, seeds and models are not in
them. Few scores that are all alike do not pass for certainty: half an observation of each right-or-wrong outcome is
added to them. Right-or-wrong scores have the formulas of their own; graded ones take Student's t.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cartridges.errors import InputError

Z = 1.959964
NUM_DRAWS = 4000
# Degrees of freedom: the 97.5% point of Student's t.
_STUDENT = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 8: 2.306, 10: 2.2281, 15: 2.1314}
_STUDENT |= {30: 2.0423, 60: 2.0003, math.inf: Z}
_OUTCOMES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # of a pair of right-or-wrong scores


def mean_of(scores: Sequence[float]) -> float:
    """The mean of scores. Raises InputError where there are none: a metric on nothing is no number."""
    if not len(scores):
        raise InputError("given no scores, expected at least one; the task has no items that something scores")
    return float(sum(scores) / len(scores))


def student(freedom: float) -> float:
    """The 97.5% point of Student's t, within 0.002 of it: between the table's lines by the inverse of `freedom`."""
    return float(np.interp(1 / freedom, [1 / df for df in reversed(_STUDENT)], list(reversed(_STUDENT.values()))))


def is_binary(scores: Iterable[float]) -> bool:
    """Whether all scores are right or wrong, none by degrees."""
    return all(score in (0.0, 1.0) for score in scores)


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Bounds of the mean of scores in [0, 1], at 95%; the scores are taken for independent.

    Wilson's for right-or-wrong scores; to graded ones half a right and half a wrong one are added.
    """
    count, mean = len(scores), sum(scores) / len(scores)
    if is_binary(scores):
        center = (mean + Z * Z / (2 * count)) / (1 + Z * Z / count)
        half = Z / (1 + Z * Z / count) * math.sqrt(mean * (1 - mean) / count + Z * Z / (4 * count * count))
    else:
        total = count + 1
        center = (sum(scores) + 0.5) / total
        variance = (sum(score * score for score in scores) + 0.5) / total - center**2
        half = student(total - 1) * math.sqrt(variance / total)
    return max(0.0, center - half), min(1.0, center + half)


def difference(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The mean of a - b over pairs of scores in [0, 1], with its 95% bounds.

    Half a pair is added to each of the four right-or-wrong outcomes (Agresti and Min 2005), so that few pairs without
    a difference, or with the same one, do not pass for certainty.
    """
    count, gaps = len(pairs), [a - b for a, b in pairs]
    mean, total = sum(gaps) / count, count + 2
    center = sum(gaps) / total  # the outcomes' own gaps are 0, -1, 1 and 0
    variance = (sum(gap * gap for gap in gaps) + 1) / total - center**2
    factor = Z if is_binary(score for pair in pairs for score in pair) else student(total - 1)
    half = factor * math.sqrt(variance) / math.sqrt(total)
    return mean, min(mean, max(-1.0, center - half)), max(mean, min(1.0, center + half))


def ratio(pairs: Sequence[tuple[float, float]], seed: int = 0) -> tuple[float, float, float] | None:
    """The mean of a over that of b, over pairs of scores in [0, 1], with its 95% bounds; None where b is 0 in all.

    Bayesian bootstrap (Rubin 1981): the pairs are weighed at random. Half a pair is added for each of the four
    right-or-wrong outcomes, as in `difference`.
    """
    scores = np.asarray(pairs, float)
    means = scores.mean(0)
    if not means[1]:
        return None
    weights = np.concatenate([np.ones(len(scores)), np.full(len(_OUTCOMES), 0.5)])
    scores = np.concatenate([scores, _OUTCOMES])
    above, below = (np.random.default_rng(seed).dirichlet(weights, NUM_DRAWS) @ scores).T
    found = float(means[0] / means[1])
    low, high = np.percentile(above / below, (2.5, 97.5))
    return found, min(found, float(low)), max(found, float(high))
