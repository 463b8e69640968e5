"""Sums are judged by the tokens themselves: numpy's least squares on the stacked rows."""

import pytest
import torch

from cartridges.errors import InputError
from cartridges.moments import Moments, factors

NUM, INPUTS, OUTPUTS = 60, 7, 5


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    a = torch.randn(NUM, INPUTS, dtype=torch.float64) * torch.tensor([3.0, 1, 1, 1, 0.5, 0.2, 0.1])
    t = a @ torch.randn(INPUTS, OUTPUTS, dtype=torch.float64) + torch.randn(NUM, OUTPUTS, dtype=torch.float64) + 0.7
    return a, t, torch.rand(NUM, dtype=torch.float64) + 0.5


@pytest.fixture
def moments(tokens):
    a, t, weight = tokens
    found = Moments(INPUTS, OUTPUTS)
    for part in range(0, NUM, 13):  # as they stream by
        found.add(*(x[part : part + 13] for x in (a, t, weight)))
    return found


def left(tokens, solution):
    """The weighted sum of squares that a solution misses, token by token."""
    a, t, weight = tokens
    found = torch.zeros_like(t) if solution.delta is None else a @ solution.delta.T
    found = found if solution.bias is None else found + solution.bias
    return float(weight @ (t - found).square().sum(1))


def judge(tokens, lam, with_bias):
    """Ridge as least squares with more rows: sqrt(lambda) for each input, none for the bias."""
    a, t, weight = tokens
    root = weight.sqrt()[:, None]
    rows = torch.cat([a, torch.ones(NUM, 1, dtype=a.dtype)], 1) if with_bias else a
    more = lam**0.5 * torch.eye(INPUTS, rows.shape[1], dtype=a.dtype)
    lines = torch.cat([rows * root, more]), torch.cat([t * root, torch.zeros(INPUTS, OUTPUTS, dtype=a.dtype)])
    found = torch.linalg.lstsq(*lines).solution.T
    return (found[:, :-1], found[:, -1]) if with_bias else (found, None)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
def test_ridge_is_least_squares(tokens, moments, ridge, with_bias):
    a, _, weight = tokens
    found = moments.ridge(ridge, with_bias, "layer 3")
    lam = ridge * float((weight[:, None] * a.square()).sum()) / INPUTS
    delta, bias = judge(tokens, lam, with_bias)
    torch.testing.assert_close(found.delta, delta)
    assert (found.bias is None) == (bias is None)
    if bias is not None:
        torch.testing.assert_close(found.bias, bias)
    assert found.residual == pytest.approx(left(tokens, found), rel=1e-9)
    assert found.total == pytest.approx(float(tokens[2] @ tokens[1].square().sum(1)))


@pytest.mark.parametrize("ridge", [0.01, 0.3, 3.0])
def test_the_residual_is_what_the_ridge_term_predicts(tokens, moments, ridge):
    a, t, weight = tokens
    found = moments.ridge(ridge, False, "layer 3")
    missed = t - a @ found.delta.T
    lam = found.ridge_term / float(found.delta.square().sum())
    torch.testing.assert_close((missed * weight[:, None]).T @ a, lam * found.delta)
    explained = float((found.delta * moments.ta_OI).sum())
    assert found.residual == pytest.approx(found.total - explained - found.ridge_term, rel=1e-9)


def test_a_rank_is_the_best_of_its_rank_for_these_tokens(tokens, moments):
    whole = moments.ridge(0.0, False, "layer 3")
    before = whole.residual
    for rank in (4, 3, 2, 1):
        found = moments.ridge(0.0, False, "layer 3", rank)
        assert torch.linalg.matrix_rank(found.delta) == rank
        a, _, weight = tokens
        weighted = (a @ whole.delta.T) * weight.sqrt()[:, None]
        cut = float(torch.linalg.svdvals(weighted)[rank:].square().sum())
        assert found.residual == pytest.approx(whole.residual + cut, rel=1e-9)
        assert found.residual > before
        before = found.residual


def test_bias_and_rank_one_are_means(tokens, moments):
    a, t, weight = tokens
    mean_a, mean_t = (weight @ a) / weight.sum(), (weight @ t) / weight.sum()
    bias = moments.mean_bias()
    torch.testing.assert_close(bias.bias, mean_t)
    one = moments.rank_one("layer 3")
    torch.testing.assert_close(one.delta @ mean_a, mean_t)
    assert torch.linalg.matrix_rank(one.delta) == 1
    for found in (bias, one):
        assert found.residual == pytest.approx(left(tokens, found), rel=1e-9)
        assert found.unexplained_ratio == pytest.approx(found.residual / found.total)


def test_sums_do_not_grow(moments, tokens):
    before = moments.num_bytes
    moments.add(*tokens)
    assert moments.num_bytes == before == 8 * (INPUTS**2 + INPUTS * OUTPUTS + INPUTS + OUTPUTS + 1)


def test_singular_sums_are_refused():
    a, t = torch.randn(3, INPUTS), torch.randn(3, OUTPUTS)
    few = Moments(INPUTS, OUTPUTS)
    few.add(a, t, torch.ones(3))
    with pytest.raises(InputError, match="statistics of layer 3 are singular: 3 tokens for 7 inputs, with ridge=0;"):
        few.ridge(0.0, False, "layer 3")
    assert few.ridge(1e-3, False, "layer 3").unexplained_ratio < 0.05
    opposite = Moments(INPUTS, OUTPUTS)
    opposite.add(torch.cat([a, -a]), torch.cat([t, t]), torch.ones(6))
    with pytest.raises(InputError, match="statistics of layer 3 are singular: its mean input is 0"):
        opposite.rank_one("layer 3")


def test_no_tokens_and_no_numbers_are_refused():
    empty = Moments(INPUTS, OUTPUTS)
    with pytest.raises(InputError, match="layer 3 saw no answer tokens, expected some"):
        empty.check("layer 3")
    empty.add(torch.full((1, INPUTS), float("inf")), torch.zeros(1, OUTPUTS), torch.ones(1))
    with pytest.raises(InputError, match="statistics of layer 3 are no finite numbers"):
        empty.check("layer 3")


def test_factors_are_the_nearest_matrix():
    torch.manual_seed(0)
    delta = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
    parts = factors(delta, OUTPUTS)
    torch.testing.assert_close(parts[0] @ parts[1], delta)
    near = factors(delta, 2)
    assert float((near[0] @ near[1] - delta).norm()) == pytest.approx(float(torch.linalg.svdvals(delta)[2:].norm()))
