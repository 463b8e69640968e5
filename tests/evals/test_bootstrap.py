"""Paired intervals: exact where they can be, wider alone than in pairs, and no number on nothing."""

import pytest

from cartridges.errors import InputError
from cartridges.evals.bootstrap import difference, mean, ratio


def test_equal_scores_differ_by_nothing():
    assert difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == (0.0, 0.0, 0.0)
    assert ratio([1.0, 1.0], [1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_the_interval_covers_the_mean_and_has_the_width_of_theory():
    ours, theirs = [1.0] * 60 + [0.0] * 40, [0.0] * 100
    gap, low, high = difference(ours, theirs)
    assert gap == pytest.approx(0.6) and low < 0.6 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.6 * 0.4 / 100) ** 0.5, rel=0.1)  # 4,000 draws: a few per cent


def test_pairs_narrow_the_interval():
    theirs = [float(n % 2) for n in range(200)]
    ours = [1.0, *theirs[1:]]
    _, low, high = difference(ours, theirs)
    assert high - low < 0.03


def test_a_ratio_to_nothing_is_none():
    assert ratio([1.0], [0.0]) is None


def test_no_items_are_no_number():
    with pytest.raises(InputError, match="given no scores, expected at least one"):
        mean([])
    with pytest.raises(InputError, match="given 2 and 1 scores, expected those of the same questions"):
        difference([1.0, 0.0], [1.0])
