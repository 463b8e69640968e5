"""Intervals against published formulas and exact distributions."""

import numpy as np
import pytest

from cartridges.errors import InputError
from cartridges.intervals import difference, interval, mean_of, ratio, student


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


def test_the_interval_of_many_graded_scores_is_normal():
    low, high = interval([0.5, 0.7, 0.9, 0.7] * 250)
    assert (low + high) / 2 == pytest.approx(0.7, abs=1e-3)
    assert high - low == pytest.approx(2 * 1.96 * 0.1414 / 1000**0.5, rel=0.02)


def test_one_graded_score_tells_nothing_of_its_spread():
    for score in (0.01, 0.3, 0.5, 0.99):
        assert interval([score]) == (0.0, 1.0)
        assert difference([(score, 0.0)])[1:] == difference([(0.0, score)])[1:] == (-1.0, 1.0)
    assert difference([(0.6, 0.3)]) == pytest.approx((0.3, -1.0, 1.0))


def test_graded_scores_that_are_all_alike_are_no_certainty():
    low, high = interval([0.6] * 3)
    assert low < 0.3 and high > 0.9
    mean, low, high = difference([(0.6, 0.3)] * 3)
    assert mean == pytest.approx(0.3) and low < 0 and high > 0.6
    assert difference([(0.6, 0.3)] * 30)[1] > 0, "thirty times the same lead is one"
    found, low, high = ratio_of([(0.6, 0.3)] * 3)
    assert found == pytest.approx(2) and low < 1 and high > 3


def test_one_graded_score_among_binary_ones_changes_little():
    binary, mixed = pairs([1] * 20, [1] * 20), [*pairs([1] * 19, [1] * 19), (0.99, 0.99)]
    assert difference(mixed)[1:] == pytest.approx(difference(binary)[1:], abs=0.02)
    assert ratio_of(mixed)[1:] == pytest.approx(ratio_of(binary)[1:], abs=0.02)
    assert interval([1.0] * 19 + [0.99])[0] < 0.93


@pytest.mark.parametrize("num", [3, 10, 30])
def test_intervals_of_graded_scores_hold_their_level(num):
    """Against scores mostly of one value, where the spread that is seen says least."""
    rng = np.random.default_rng(0)
    drawn = rng.choice([1.0, 0.75, 0.0], p=[0.7, 0.2, 0.1], size=(2, 2000, num)).tolist()
    bounds = [interval(scores) for scores in drawn[0]]
    assert sum(low <= 0.85 <= high for low, high in bounds) > 0.93 * len(bounds)
    gaps = [difference(list(zip(a, b, strict=True)))[1:] for a, b in zip(*drawn, strict=True)]
    assert sum(low <= 0 <= high for low, high in gaps) > 0.93 * len(gaps)


def test_students_t_is_the_published_one():
    # NIST/SEMATECH e-Handbook 1.3.6.7.2, 0.975
    published = {
        1: 12.706,
        2: 4.303,
        3: 3.182,
        7: 2.365,
        9: 2.262,
        12: 2.179,
        20: 2.086,
        25: 2.060,
        40: 2.021,
        100: 1.984,
    }
    for freedom, value in published.items():
        assert student(freedom) == pytest.approx(value, abs=0.0025)
    assert student(10**9) == pytest.approx(1.959964, abs=1e-6)


def test_right_or_wrong_scores_have_the_figures_of_the_published_tables():
    """Those of 31 and 36 of 40, as they were when the tables were made."""
    scores = pairs([1] * 31 + [0] * 9, [1] * 36 + [0] * 4)
    assert difference(scores) == pytest.approx((-0.125, -0.22753696411610413, -0.010558273979133934), rel=1e-12)
    assert interval([ours for ours, _ in scores]) == pytest.approx((0.6249690312905765, 0.8768390873572685), rel=1e-12)
    assert ratio_of(scores) == pytest.approx((0.8611111111, 0.7363638426, 0.9725652678), abs=1e-3)


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


def test_the_ratio_of_graded_scores_has_a_width():
    found, low, high = ratio_of([(0.5, 1.0)] * 9)
    assert found == pytest.approx(0.5) and low < 0.47 and high > 0.6
