"""Random generators by name: the same key gives the same draws in every process."""

import random


def rng_of(*key: object) -> random.Random:
    """A random generator of its own for each key; the same for the same key in every process."""
    return random.Random("/".join(map(str, key)))
