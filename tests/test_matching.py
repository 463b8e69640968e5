"""One head: OMP against the highest attention, weights and values against brute force."""

import pytest
import torch

from cartridges.matching import (
    LOG_WEIGHTS,
    Head,
    fit_values,
    fit_weights,
    mass_error,
    mean_attention,
    peak_attention,
    pursued,
    strongest,
    whole_attention,
)


def make_head(seed=0, num_queries=300, num_tokens=60, size=8, **options):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return Head(draw(num_queries, size), draw(num_tokens, size), draw(num_tokens, size), draw(num_queries), **options)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_slots", [4, 12, 30])
def test_pursuit_matches_the_mass_no_worse_than_the_highest_attention(seed, num_slots):
    head = make_head(seed)
    errors = []
    for chosen in (pursued(head, num_slots, [0]), strongest(mean_attention(head), num_slots, [0])):
        assert chosen[0] == 0 and len(set(chosen.tolist())) == num_slots and chosen.equal(chosen.sort().values)
        errors.append(mass_error(head, chosen, fit_weights(head.weights_nT[:, chosen], 1)))
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("num_kept", [0, 1, 3])
def test_weights_are_the_best_within_their_bounds(num_kept):
    """The conditions of the optimum: no slope inside the bounds, and none that leads back in at them."""
    head = make_head(2)
    columns = head.weights_nT[:, pursued(head, 10, range(num_kept))]
    weights = fit_weights(columns, num_kept, num_steps=5000).double().requires_grad_()
    gap = columns.double() @ weights - 1
    norms = columns.double().square().sum(0)
    loss = gap.square().sum() + 1e-3 * (norms * (weights - 1).square()).sum()
    (slope,) = torch.autograd.grad(loss, weights)
    low, high = (torch.tensor(bound).exp() for bound in LOG_WEIGHTS)
    assert weights[:num_kept].eq(1).all()
    for weight, value, norm in zip(weights[num_kept:], slope[num_kept:], norms[num_kept:], strict=True):
        at_low, at_high = weight <= low * 1.001, weight >= high * 0.999
        limit = 1e-4 * norm
        assert (value >= -limit) if at_low else (value <= limit) if at_high else (value.abs() <= limit)


def test_all_tokens_need_no_weights_and_no_other_values():
    head = make_head(3)
    chosen = torch.arange(60)
    weights = fit_weights(head.weights_nT, 1)
    torch.testing.assert_close(weights, torch.ones(60), atol=1e-4, rtol=0)
    torch.testing.assert_close(fit_values(head, chosen, weights, 1), head.v_TH, atol=1e-3, rtol=0)


def test_values_lower_the_error_of_the_answer_and_kept_ones_stay():
    head = make_head(4)
    chosen = pursued(head, 12, [0])
    weights = fit_weights(head.weights_nT[:, chosen], 1)
    values = fit_values(head, chosen, weights, 1)
    mixed = (head.scores_nT[:, chosen] + weights.log()).softmax(-1)
    wanted = head.weights_nT @ head.v_TH
    assert (mixed @ values - wanted).square().mean() < 0.7 * (mixed @ head.v_TH[chosen] - wanted).square().mean()
    assert values[0].equal(head.v_TH[0])


def test_attention_is_that_of_a_softmax_over_context_and_own_text():
    head = make_head(5, softcap=2.0)
    scores = 2.0 * torch.tanh(head.q_nH @ head.k_TH.T / 2.0)
    whole = torch.cat([scores, head.own_lse_n[:, None]], 1).softmax(-1)[:, :-1]
    torch.testing.assert_close(peak_attention(head), whole.max(0).values)
    torch.testing.assert_close(whole_attention(head), whole.square().mean(0).sqrt())
    torch.testing.assert_close(mean_attention(head), scores.softmax(-1).square().mean(0).sqrt())


def test_what_a_query_does_not_see_counts_for_nothing():
    hidden = torch.zeros(300, 60, dtype=torch.bool)
    hidden[:, :50] = True
    head = make_head(6, hidden_nT=hidden)
    assert pursued(head, 6, []).min() >= 50 and strongest(peak_attention(head), 6, []).min() >= 50
    assert fit_values(head, torch.tensor([52, 55]), torch.ones(2), 0).isfinite().all()
