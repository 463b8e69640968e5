"""Draws are functions of seed and place; entries are those of the full softmax."""

import numpy as np
import pytest
import torch

from cartridges.engine import sampler
from cartridges.engine.sampler import choose, keep_top_p, top_k, uniform
from cartridges.errors import CartridgesError


def test_uniform_numbers_are_fixed_for_all_time():
    # Recorded once; a change would silently change every conversation that was drawn with a seed.
    assert [uniform(0, 0), uniform(0, 1), uniform(1, 0)] == [
        0.3859926107094097,
        0.29868916236736043,
        0.48055380340761744,
    ]
    assert uniform(-5, 3) != uniform(5, 3)


def test_uniform_numbers_are_uniform():
    numbers = np.array([uniform(seed, place) for seed in range(100) for place in range(100)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert (((counts - 500) ** 2) / 500).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.04


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 4.0, 4.9]])
    assert choose(logits, [0.0, 0.0], [1, 2], [0, 0]) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    logits = torch.tensor([1.0, -float("inf"), 0.0, 2.0, -1.0])
    num = 20_000
    drawn = choose(logits.expand(num, -1), [temperature] * num, list(range(num)), [7] * num)
    shares = np.bincount(drawn, minlength=5) / num
    expected = (logits / temperature).softmax(0).numpy()
    assert shares[1] == 0
    # five standard deviations of a share
    assert (abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / num) + 1e-12).all()


def test_what_has_no_probability_is_never_drawn(monkeypatch):
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf")]])
    for number in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr("cartridges.engine.sampler.uniform", lambda seed, place, number=number: number)
        assert choose(logits, [1.0], [0], [0]) == [1]


def test_a_draw_depends_on_its_own_row_alone():
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    temperatures, seeds, places = [0.7, 0.0, 1.3, 1.0, 0.0, 0.2], [3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]
    together = choose(logits, temperatures, seeds, places)
    alone = [choose(logits[[i]], [temperatures[i]], [seeds[i]], [places[i]])[0] for i in range(6)]
    assert together == alone


def test_tiny_temperatures_do_not_overflow():
    logits = torch.tensor([[1000.0, 999.0, -1000.0]])
    assert choose(logits, [1e-8], [0], [0]) == [0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_stop_the_run(bad):
    with pytest.raises(CartridgesError, match="the model gave logits that are no finite numbers; load it in float32"):
        choose(torch.tensor([[0.0, bad]]), [0.0], [0], [0])


def test_top_k_is_of_the_full_softmax():
    torch.manual_seed(0)
    logits = 5 * torch.randn(4, 30)
    ids, logprobs = top_k(logits, 3)
    whole = logits.double().log_softmax(-1).numpy()
    order = np.argsort(-whole, axis=1)[:, :3]
    assert ids.dtype == np.int32 and logprobs.dtype == np.float32
    assert (ids == order).all()
    np.testing.assert_allclose(logprobs, np.take_along_axis(whole, order, 1), atol=1e-6)
    _, everything = top_k(logits, 30)
    np.testing.assert_allclose(np.exp(everything).sum(1), 1, atol=1e-5)


def test_top_k_of_bfloat16_is_not_rounded_again():
    logits = torch.linspace(0, 3, 20).to(torch.bfloat16)[None]
    _, logprobs = top_k(logits, 20)
    np.testing.assert_allclose(np.exp(logprobs.astype(np.float64)).sum(), 1, atol=1e-6)


def test_draws_are_among_the_likeliest_alone():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    num = 4000

    def shares(p, k):
        drawn = choose(logits.expand(num, -1), [1.0] * num, list(range(num)), [0] * num, [p] * num, [k] * num)
        return np.bincount(drawn, minlength=4) / num

    for p, k, expected in [
        (1.0, 2, [0, 4 / 7, 0, 3 / 7]),
        (1.0, 1, [0, 1, 0, 0]),
        (0.65, 0, [0, 4 / 7, 0, 3 / 7]),  # 0.4 alone is too little
        (0.3, 0, [0, 1, 0, 0]),
        (0.95, 3, [0, 4 / 9, 2 / 9, 3 / 9]),
        (1.0, 9, [0.1, 0.4, 0.2, 0.3]),
    ]:
        np.testing.assert_allclose(shares(p, k), expected, atol=0.04)


@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
def test_top_p_keeps_the_fewest_that_have_so_much(spread):
    """Also where rows have different limits, and where they spread over hundreds of tokens."""
    torch.manual_seed(0)
    likely_BV = (spread * torch.randn(9, 500, dtype=torch.float64)).exp()
    top_ps = [0.3, 1.0, 0.9, 0.95, 0.999, 1.0, 0.5, 0.9, 1e-9]
    kept_BV = likely_BV.clone()
    keep_top_p(kept_BV, top_ps)
    for likely_V, kept_V, top_p in zip(likely_BV, kept_BV, top_ps, strict=True):
        ordered = sorted(likely_V.tolist(), reverse=True)
        num = next(n for n in range(1, 501) if sum(ordered[:n]) >= top_p * sum(ordered) - 1e-9 or n == 500)
        assert kept_V[likely_V >= ordered[num - 1]].equal(likely_V[likely_V >= ordered[num - 1]])
        assert (kept_V > 0).sum() == num


def test_many_rows_are_drawn_in_parts(monkeypatch):
    logits, seeds = torch.randn(11, 50), range(11)
    rows = ([0.7, 0.0, 1.3] * 4)[:11]
    args = (logits, rows, seeds, [3] * 11, [0.9] * 11, [7, 0, 20] * 4)
    whole = choose(*args)
    monkeypatch.setattr(sampler, "MAX_DRAWN", 3 * 50)
    assert choose(*args) == whole
