"""What was spent, and when it pays."""

import itertools
import json
import math

import pytest

from cartridges.errors import FormatError
from cartridges.ledger import Ledger, break_even, is_needed
from tests.report_samples import LEDGER, changed, some_results, words


@pytest.mark.parametrize(
    ("build_s", "reading_s", "cartridge_s"), [(100, 0.9, 0.4), (1, 3, 2), (0, 1, 0.5), (7, 0.75, 0.5), (3, 2, 1)]
)
def test_break_even_is_where_a_count_finds_it(build_s, reading_s, cartridge_s):
    found = next(n for n in itertools.count(1) if build_s + n * cartridge_s < n * reading_s)
    assert break_even(build_s, reading_s, cartridge_s) == found


@pytest.mark.parametrize(
    "seconds", [(100, 0.4, 0.4), (100, 0.3, 0.4), (0, 0.4, 0.4), (math.inf, 2, 1), (1, math.nan, 1), (1e308, 1e-308, 0)]
)
def test_break_even_may_never_come(seconds):
    assert break_even(*seconds) is None


def test_what_pays_is_counted_from_the_ledger():
    ledger = Ledger([*LEDGER.entries, ("train 128 slots", 1, 1, 5000.0)])
    assert ledger.build_s(64) == 60 + 40
    assert ledger.seconds == 5125
    assert break_even(100, 0.9, 0.4) == 201
    assert "The 64-slot cartridge pays after 201 queries: making it took 100 s" in words(some_results(), ledger)
    dearer = Ledger([("synthesize", 0, 0, 1000.0)])
    assert "making it took 1,000 s (16.7 min)" in words(some_results(), dearer)
    assert is_needed("synthesize", 64) and is_needed("train", 64) and not is_needed("evaluate", 64)


def test_never_paying_and_not_knowing_are_said():
    slow = changed(some_results(), "cartridge-64", question_s=0.9)
    assert "In seconds the 64-slot cartridge never pays: a query takes 0.900 s with it and 0.900 s" in words(slow)
    unknown = changed(some_results(), "cartridge-64", build_s=0.0)
    assert "pays is not known: what it took to make was not recorded" in words(unknown, Ledger())
    untimed = changed(some_results(), "cartridge-64", question_s=0.0)
    assert "pays is not known: queries were not timed" in words(untimed)


def test_a_ledger_survives_json():
    again = Ledger.from_dict(json.loads(json.dumps(LEDGER.to_dict())))
    assert again == LEDGER
    with pytest.raises(FormatError, match=r"a cost ledger cannot be read \(KeyError: 'seconds'\).*build again"):
        Ledger.from_dict({"entries": [{"step": "x", "num_tokens_read": 1, "num_tokens_written": 2}]})
