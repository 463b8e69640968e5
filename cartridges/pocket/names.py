"""Invented names and values, drawn so that no two splits can ever share one.

A word belongs to the split that a hash of its letters says, so "train, validation and test share no entity" holds by
construction for every seed. Numbers, codes and dates are not entities and are not split.
"""

import random
import zlib
from collections.abc import Callable, Iterable
from functools import cached_property

from cartridges.errors import InputError

SPLITS = ("train", "validation", "test")

ONSETS = "b d f g h k m p v z".split()  # no onset is a coda, so a syllable ends in one place
NUCLEI = "a e i o u".split()
CODAS = ("", "n", "r", "s", "l", "x")
MONTHS = "January February March April May June July August September October November December".split()
DRUG_ENDINGS = ("ol", "ine", "ide", "ax")
ILLNESS_ENDINGS = ("itis", "osis", "emia")
TOWN_ENDINGS = ("ford", "berg", "stad", "mouth")
CODE_LETTERS = "ABCDEFGHKLMNPRST"


def split_of(word: str) -> str:
    """The one split that `word`, in any case, belongs to: eight tenths train, one tenth each validation and test."""
    bucket = zlib.crc32(word.lower().encode()) % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


class Names:
    """Draws names of one split, each at most once, so that one object serves all documents of one context.

    `used` are names never to be drawn, and grows. A draw raises InputError when no unused name is found.
    """

    def __init__(self, rng: random.Random, split: str, used: Iterable[str] = ()):
        self.rng = rng
        self.split = split
        self.used = set(used)

    def unique(self, draw: Callable[[], str]) -> str:
        """The first drawn value that this context does not have yet."""
        for _ in range(10_000):
            value = draw()
            if value not in self.used:
                self.used.add(value)
                return value
        raise InputError(f"no unused name is left after {len(self.used)} of them; ask for a smaller world")

    def word(self, *endings: str) -> str:
        """A word of the split, all lower case: two open syllables and one of `endings`, or else a coda."""

        def draw() -> str:
            rng = self.rng
            while True:
                stem = rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(ONSETS) + rng.choice(NUCLEI)
                word = stem + rng.choice(endings or CODAS)
                if split_of(word) == self.split:
                    return word

        return self.unique(draw)

    def person(self) -> str:
        return f"{self.word().capitalize()} {self.word().capitalize()}"

    def town(self) -> str:
        return self.word(*TOWN_ENDINGS).capitalize()

    def drug(self) -> str:
        return self.word(*DRUG_ENDINGS)

    def illness(self) -> str:
        return self.word(*ILLNESS_ENDINGS)

    def product(self) -> str:
        return self.word().capitalize()

    def error(self) -> str:
        return self.word().capitalize() + "Error"

    def firm(self) -> str:
        return f"{self.word().capitalize()} {self.rng.choice(('Group', 'Labs', 'Works', 'Trade'))}"

    def function(self) -> str:
        return f"{self.word()}_{self.word()}"

    def code(self) -> str:
        return self.unique(lambda: f"{self.rng.choice(CODE_LETTERS)}-{self.rng.randint(100, 999)}")

    def date(self, first: int = 1930, last: int = 2025) -> str:
        rng = self.rng
        return self.unique(lambda: f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(first, last)}")

    def number(self, unit: str = "", low: int = 100, high: int = 999) -> str:
        """Three digits, so that the higher of two numbers is told digit by digit, and a unit. May come twice."""
        value = str(self.rng.randint(low, high))
        return f"{value} {unit}" if unit else value

    @cached_property
    def year(self) -> int:
        """The year in which the documents of this context are written, so that their figures can be compared."""
        return self.rng.randint(2016, 2025)
