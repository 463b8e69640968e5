"""95% intervals of a mean: Wilson's for right-or-wrong scores, the normal one for others."""

import math
from collections.abc import Sequence

Z = 1.959964


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Bounds of the mean of scores in [0, 1], at 95%; the scores are taken for independent."""
    count, mean = len(scores), sum(scores) / len(scores)
    if all(value in (0.0, 1.0) for value in scores):
        center = (mean + Z * Z / (2 * count)) / (1 + Z * Z / count)
        half = Z / (1 + Z * Z / count) * math.sqrt(mean * (1 - mean) / count + Z * Z / (4 * count * count))
    else:
        center, half = mean, Z * math.sqrt(sum((value - mean) ** 2 for value in scores) / max(1, count - 1) / count)
    return max(0.0, center - half), min(1.0, center + half)
