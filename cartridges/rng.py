"""Random generators by name: the same key gives the same draws in every process."""

import random

GOLDEN = (5**0.5 - 1) / 2


def rng_of(*key: object) -> random.Random:
    """A random generator of its own for each key; the same for the same key in every process."""
    return random.Random("/".join(map(str, key)))


def spread(number: int, start: float) -> float:
    """Point `number` of a sequence in [0, 1) of which any run of neighbours is spread evenly.

    Each point is the one before, moved by the golden ratio around the circle (a Kronecker sequence).
    """
    return (start + number * GOLDEN) % 1.0
