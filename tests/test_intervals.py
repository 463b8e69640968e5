"""Intervals against published formulas."""

import pytest

from cartridges.intervals import interval


def test_intervals_are_wilsons():
    # R: binom::binom.wilson(8, 10), and (0, 20)
    assert interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval([0.0] * 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_the_interval_of_graded_scores_is_normal():
    low, high = interval([0.5, 0.7, 0.9, 0.7])
    assert (low + high) / 2 == pytest.approx(0.7)
    assert high - low == pytest.approx(2 * 1.959964 * 0.1633 / 2, abs=1e-3)
