"""Intervals against published formulas and exact distributions."""

import pytest

from cartridges.errors import InputError
from cartridges.intervals import difference, interval, mean_of, ratio


def ratio_of(scores: list[tuple[float, float]]) -> tuple[float, float, float]:
    found = ratio(scores)
    assert found
    return found


def pairs(ours: list[int], theirs: list[int]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(ours, theirs, strict=True)]


def test_intervals_are_wilsons():
    # R: binom::binom.wilson(8, 10), and (0, 20)
    assert interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval([0.0] * 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_the_interval_of_graded_scores_is_normal():
    low, high = interval([0.5, 0.7, 0.9, 0.7])
    assert (low + high) / 2 == pytest.approx(0.7)
    assert high - low == pytest.approx(2 * 1.959964 * 0.1633 / 2, abs=1e-3)
    assert interval([0.5]) == (0.0, 1.0), "one graded score tells nothing of its spread"


def test_no_scores_are_no_number():
    with pytest.raises(InputError, match="given no scores, expected at least one"):
        mean_of([])


def test_the_ratio_of_a_proportion_to_certainty_has_its_width():
    # theirs is always right, so the ratio is a proportion, of about the distribution Beta(60, 140)
    found, low, high = ratio_of(pairs([1] * 60 + [0] * 140, [1] * 200))
    assert found == pytest.approx(0.3)
    assert (low, high) == pytest.approx((0.242, 0.368), abs=0.01)


def test_pairs_narrow_the_ratio():
    halves = [n % 2 for n in range(200)]
    _, low, high = ratio_of(pairs([1, *halves[1:]], halves))
    _, other_low, other_high = ratio_of(pairs([1, *halves[1:]], [1 - half for half in halves]))
    assert high - low < 0.1 < other_high - other_low


def test_scores_that_are_all_alike_are_no_certainty():
    assert ratio_of(pairs([0] * 80, [1] * 80))[2] > 0.02
    _, low, high = ratio_of(pairs([1] * 3, [1] * 3))
    assert low < 0.8 and high > 1.0
    assert difference(pairs([1] * 3, [1] * 3))[1] < -0.2


def test_a_reference_that_is_seldom_right_leaves_the_ratio_open():
    found, low, high = ratio_of(pairs([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
    assert found == 5.0 and low < 2 and high > 15


def test_a_ratio_to_nothing_is_none():
    assert ratio(pairs([1], [0])) is None


def test_ratios_of_graded_scores_are_of_the_scores_alone():
    assert ratio_of([(0.5, 1.0)] * 9) == pytest.approx((0.5, 0.5, 0.5))
