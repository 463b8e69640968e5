"""Attention matching of one key/value head (arXiv 2602.16284): which keys stay, for how many each stands, their values.

A context of T tokens answers a query q by the mass Z = sum_i exp(q k_i) and the mean value
O = sum_i exp(q k_i) v_i / Z; what is attended to besides it does not matter to either. P slots do the same when, over
reference queries, sum_j w_j exp(q k_j) is near Z, and the mean of their values, weighed with w_j exp(q k_j), is near
O. Here masses are taken relative to Z, so that a query of high scores counts no more than one of low ones. The weights
w are found by bounded least squares, the values by least squares; both are drawn a little towards what they were in the
context, so that all tokens kept give the context itself. log w is the bias of the slot.

Shapes: n queries (tokens times the heads that share the key/value head), T tokens of the context, P slots, H head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

LOG_WEIGHTS = (-7.0, 5.0)  # bounds of the bias: no slot vanishes for training, none takes over for an unseen query
WEIGHT_RIDGE = 1e-3  # pull of each weight towards 1, over its own column
VALUE_RIDGE = 1e-3  # pull of the values towards those in the context, over the mean column
NUM_FIT_STEPS, NUM_REFIT_STEPS = 400, 40
NUM_OMP_ROUNDS = 64  # of so many, each takes its share of the slots


@dataclass
class Head:
    """Scaled queries [n, H], keys and values [T, H] of one head, all in float32; `hidden` [n, T] are not seen.

    `own_lse_n` is the log of the mass that each query gives to the text it stands in, beside the context.
    """

    q_nH: torch.Tensor
    k_TH: torch.Tensor
    v_TH: torch.Tensor
    own_lse_n: torch.Tensor
    hidden_nT: torch.Tensor | None = None
    softcap: float | None = None

    @cached_property
    def scores_nT(self) -> torch.Tensor:
        scores_nT = self.q_nH @ self.k_TH.T
        if self.softcap is not None:
            scores_nT = self.softcap * torch.tanh(scores_nT / self.softcap)
        return scores_nT if self.hidden_nT is None else scores_nT.masked_fill(self.hidden_nT, -torch.inf)

    @cached_property
    def weights_nT(self) -> torch.Tensor:
        """Attention within the context: rows sum to 1."""
        return self.scores_nT.softmax(-1)

    @cached_property
    def share_n(self) -> torch.Tensor:
        """Which part of a query's whole attention the context gets."""
        return (self.scores_nT.logsumexp(-1) - self.own_lse_n).sigmoid()


def mean_attention(head: Head) -> torch.Tensor:
    """The root of the mean square of the attention that each token gets within the context, [T]."""
    return head.weights_nT.square().mean(0).sqrt()


def whole_attention(head: Head) -> torch.Tensor:
    """As `mean_attention`, of attention that the text around the query takes its part of; comparable between heads."""
    return (head.weights_nT * head.share_n[:, None]).square().mean(0).sqrt()


def peak_attention(head: Head) -> torch.Tensor:
    """The most that any query gives to each token, [T], as KVzip (arXiv 2505.23416) scores them."""
    return (head.weights_nT * head.share_n[:, None]).amax(0)


def strongest(importance_T: torch.Tensor, num: int, kept: Sequence[int]) -> torch.Tensor:
    """The places of the `num` tokens of greatest importance, in order; `kept` are among them."""
    importance_T = importance_T.clone()
    importance_T[list(kept)] = torch.inf
    return importance_T.topk(num).indices.sort().values


def pursued(head: Head, num: int, kept: Sequence[int]) -> torch.Tensor:
    """The places of `num` tokens, in order, by orthogonal matching pursuit on the mass; `kept` are among them.

    Each round takes those whose weight, on its own, would lower the squared error of the mass most, and fits all
    weights again. Where the tokens of highest attention then match the mass better, which happens, they are taken.
    """
    low, high = (torch.tensor(bound).exp().item() for bound in LOG_WEIGHTS)
    columns_nT, kept = head.weights_nT, list(kept)
    norms_T = columns_nT.square().sum(0).clamp_min(1e-30)
    chosen = torch.tensor(kept, dtype=torch.long, device=columns_nT.device)
    weights_P = torch.ones(len(kept), device=columns_nT.device)
    per_round = -(-num // NUM_OMP_ROUNDS)
    while len(chosen) < num:
        left_n = 1 - columns_nT[:, chosen] @ weights_P
        slope_T = left_n @ columns_nT
        step_T = (slope_T / norms_T).clamp(low, high)
        gain_T = 2 * step_T * slope_T - step_T.square() * norms_T
        gain_T[chosen] = -torch.inf
        new = gain_T.topk(min(per_round, num - len(chosen))).indices
        chosen, weights_P = torch.cat([chosen, new]), torch.cat([weights_P, step_T[new] * 0 + low])
        weights_P = fit_weights(columns_nT[:, chosen], len(kept), weights_P, NUM_REFIT_STEPS)
    sets = (chosen.sort().values, strongest(mean_attention(head), num, kept))
    return min(sets, key=lambda places: mass_error(head, places, fit_weights(columns_nT[:, places], len(kept))))


def fit_weights(
    columns_nP: torch.Tensor, num_kept: int, start_P: torch.Tensor | None = None, num_steps: int = NUM_FIT_STEPS
) -> torch.Tensor:
    """Weights [P] within bounds for which the columns' sum is nearest 1 in every row; the first `num_kept` stay 1.

    By accelerated projected gradient, each weight scaled by the norm of its column.
    """
    num_slots = columns_nP.shape[1]
    start_P = columns_nP.new_ones(num_slots) if start_P is None else start_P
    gram_PP = (columns_nP.T @ columns_nP).double()
    scale_P = gram_PP.diagonal().clamp_min(1e-30).sqrt()
    gram_PP = gram_PP / scale_P[:, None] / scale_P + WEIGHT_RIDGE * torch.eye(num_slots).to(gram_PP)
    aim_P = columns_nP.double().sum(0) / scale_P + WEIGHT_RIDGE * scale_P
    low_P, high_P = (bound_P * scale_P for bound_P in torch.tensor(LOG_WEIGHTS).exp().to(gram_PP))
    low_P[:num_kept] = high_P[:num_kept] = scale_P[:num_kept]
    rate = 1 / gram_PP.abs().sum(0).max()
    found_P = ahead_P = (start_P.double() * scale_P).clamp(low_P, high_P)
    momentum = 1.0
    for _ in range(num_steps):
        before_P, before = found_P, momentum
        found_P = (ahead_P - rate * (gram_PP @ ahead_P - aim_P)).clamp(low_P, high_P)
        momentum = (1 + (1 + 4 * before**2) ** 0.5) / 2
        if (found_P - before_P) @ (ahead_P - found_P) > 0:  # it overshoots: begin to gather speed anew
            momentum = before = 1.0
        ahead_P = found_P + (before - 1) / momentum * (found_P - before_P)
    return (found_P / scale_P).float()


def fit_values(head: Head, chosen: torch.Tensor, weights_P: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Values [P, H] with which the chosen slots' mean is nearest the context's; the first `num_kept` stay."""
    mixed_nP = (head.scores_nT[:, chosen] + weights_P.log()).softmax(-1).nan_to_num().double()
    values_PH = head.v_TH[chosen].double()
    left_nH = (head.weights_nT @ head.v_TH).double() - mixed_nP @ values_PH
    free_nP = mixed_nP[:, num_kept:]
    if free_nP.shape[1]:
        gram_PP = free_nP.T @ free_nP
        gram_PP.diagonal().add_(VALUE_RIDGE * gram_PP.diagonal().mean() + 1e-12)
        values_PH[num_kept:] += torch.linalg.solve(gram_PP, free_nP.T @ left_nH)
    return values_PH.float()


def mass_error(head: Head, chosen: torch.Tensor, weights_P: torch.Tensor) -> float:
    """The mean square of the relative error of the mass: what `pursued` and `fit_weights` make small."""
    return float((head.weights_nT[:, chosen] @ weights_P - 1).square().mean())
