import random
import re
from collections import Counter
from itertools import product

import pytest

from cartridges.errors import InputError
from cartridges.pocket.names import CODAS, NUCLEI, ONSETS, SPLITS, Names, split_of

ENTITIES = ["word", "person", "town", "drug", "illness", "product", "error", "firm", "function"]
SUFFIXES = {"Group", "Labs", "Works", "Trade"}


def names_of(split: str, seed: int = 0) -> Names:
    return Names(random.Random(seed), split)


def invented_words(name: str) -> list[str]:
    return [word for word in re.split(r"[ _]", name.removesuffix("Error")) if word not in SUFFIXES]


def test_known_words_keep_their_split():
    assert [split_of(word) for word in ("bakon", "bako", "bakos")] == ["train", "validation", "test"]


def test_case_does_not_change_the_split():
    words = ["".join(parts) for parts in product("bdfg", "aeiou", "kmpz", "ai", CODAS)]
    assert [split_of(word.capitalize()) for word in words] == [split_of(word) for word in words]


def test_splits_have_about_eight_one_and_one_tenths():
    sizes = Counter(split_of("".join(parts)) for parts in product(ONSETS, NUCLEI, ONSETS, NUCLEI, CODAS))
    assert [round(sizes[split] / sizes.total(), 2) for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.015)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("entity", ENTITIES)
def test_every_word_of_a_name_is_of_its_split(entity, split):
    names = names_of(split)
    words = [word for _ in range(20) for word in invented_words(getattr(names, entity)())]
    assert {split_of(word) for word in words} == {split}


@pytest.mark.parametrize("entity", [*ENTITIES, "code", "date"])
def test_no_name_comes_twice(entity):
    names = names_of("train")
    drawn = [getattr(names, entity)() for _ in range(200)]
    assert len(set(drawn)) == len(drawn)


def test_no_word_comes_twice_in_names_of_different_kinds():
    names = names_of("train")
    words = [word for _ in range(50) for entity in ENTITIES for word in invented_words(getattr(names, entity)())]
    assert len(set(words)) == len(words)


def test_used_names_are_not_drawn():
    first = [names_of("test").word()]
    assert Names(random.Random(0), "test", used=first).word() != first[0]


def test_running_out_of_names_is_told():
    names = names_of("train")
    with pytest.raises(InputError, match=r"no unused name is left after 1 of them; ask for a smaller world"):
        for _ in range(2):
            names.unique(lambda: "same")


def test_words_begin_with_two_open_syllables():
    names = names_of("train")
    stem = re.compile("[bdfghkmpvz][aeiou]" * 2)
    assert all(stem.match(names.word()) for _ in range(200))


def test_numbers_have_three_digits_and_their_unit():
    names = names_of("train")
    assert all(re.fullmatch(r"[1-9]\d\d mg", names.number("mg")) for _ in range(200))


def test_dates_stay_in_their_years():
    names = names_of("train")
    assert {int(names.date(2005, 2007).split()[-1]) for _ in range(100)} == {2005, 2006, 2007}


def test_the_year_of_a_context_does_not_change():
    names = names_of("train")
    assert len({names.year for _ in range(20)}) == 1
