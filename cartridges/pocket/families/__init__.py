"""The families of documents, one a file. A family is a function from (rng, names, size) to a document."""

from collections.abc import Callable
from random import Random

from cartridges.errors import InputError, unknown_name
from cartridges.pocket.families.code import code
from cartridges.pocket.families.firm import firm
from cartridges.pocket.families.haystack import haystack
from cartridges.pocket.families.tongue import tongue
from cartridges.pocket.families.ward import ward
from cartridges.pocket.names import SPLITS, Names
from cartridges.pocket.world import Context, Document
from cartridges.rng import rng_of

FAMILIES: dict[str, Callable[[Random, Names, int], Document]] = {
    "ward": ward,
    "firm": firm,
    "code": code,
    "tongue": tongue,
    "haystack": haystack,
}


def make_context(family: str, split: str, seed: object, num_documents: int = 1, size: int = 2) -> Context:
    """Documents of one family that share no name with each other.

    `size` counts what a document is about: patients, firms, functions in threes, words in tens, needles in twos.
    Raises InputError for an unknown family or split.
    """
    if family not in FAMILIES:
        raise InputError(unknown_name("family", family, FAMILIES))
    if split not in SPLITS:
        raise InputError(unknown_name("split", split, SPLITS))
    rng = rng_of(family, split, seed)
    names = Names(rng, split)
    return Context([FAMILIES[family](rng, names, size) for _ in range(num_documents)], names)
