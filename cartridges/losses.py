"""Losses on final hidden states, without a tensor of M x V logits.

Hidden states are projected on the vocabulary a chunk of targets at a time. While a chunk's logits are there, they give
the loss and are turned in place into its gradient, of which only the [M, D] of the hidden states is kept: one buffer
of logits (a second for the slope of a cap), two matrix products, nothing computed twice. The vocabulary matrix is
frozen.

With the teacher's p over its K entries and r = 1 - sum p for the rest of its mass, the student's q over the same
entries and r_q for its rest, both out of the softmax over all of V, a target's loss is the Kullback-Leibler divergence

    sum_k p_k (log p_k - log q_k) + r (log r - log r_q)

and its gradient by a logit is q_v - p_v at an entry and q_v (1 - r / r_q) elsewhere. r_q comes from the logits outside
of the entries, never from 1 - sum q, so both stay exact where the student's mass lies within the entries.

Shapes: M targets, C targets of a chunk, D model dim, V vocabulary, K teacher top-k.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from cartridges.errors import InputError

MAX_CHUNK_BYTES = 64 * 2**20
MIN_CHUNK_LEN = 16


def default_chunk_len(vocab_size: int) -> int:
    """Targets in a chunk: as many as have at most 64 MB of float32 logits, and no fewer than 16."""
    return max(MIN_CHUNK_LEN, MAX_CHUNK_BYTES // (4 * vocab_size))


def distillation_loss(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    teacher_ids_MK: torch.Tensor,
    teacher_logprobs_MK: torch.Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_len: int | None = None,
    rest_bucket: bool = True,
    weights_M: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divergence of the student from the teacher in nats, a scalar: the sum over targets, times `weights_M` if given.

    The student's logits are `scale` times the projection, then capped as softcap * tanh(logits / softcap); the product
    is computed in the dtype of autocast, or else of `hidden_MD`, and all that follows in float32. The ids of a target
    are distinct; entries with the logprob -inf are absent, whatever their id. Without `rest_bucket` only the sum over
    entries is taken. Gradients go to `hidden_MD` alone. Raises InputError.
    """
    num_targets = _check_projection(hidden_MD, weight_VD, chunk_len)
    _check_teacher(teacher_ids_MK, teacher_logprobs_MK, num_targets, vocab_size=len(weight_VD))
    if weights_M is not None and weights_M.shape != (num_targets,):
        raise InputError(f"given weights of shape {tuple(weights_M.shape)}, expected ({num_targets},), one a target")
    if softcap is not None and softcap <= 0:
        raise InputError(f"given the softcap {softcap}, expected a positive number, or None for logits without a cap")
    constants = {"weight_VD": weight_VD, "teacher_logprobs_MK": teacher_logprobs_MK, "weights_M": weights_M}
    for name, constant in constants.items():
        if torch.is_grad_enabled() and constant is not None and constant.requires_grad:
            raise InputError(
                f"{name} requires a gradient, and only hidden_MD gets one; freeze it: requires_grad_(False)"
            )
    chunking = _Chunking(
        chunk_len=chunk_len or default_chunk_len(len(weight_VD)),
        dtype=_matmul_dtype(hidden_MD),
        softcap=softcap,
        scale=scale,
        rest_bucket=rest_bucket,
        needs_gradient=torch.is_grad_enabled() and hidden_MD.requires_grad,
    )
    return _ChunkedLoss.apply(hidden_MD, weight_VD, teacher_ids_MK, teacher_logprobs_MK, weights_M, chunking)


def next_token_loss(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_M: torch.Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_len: int | None = None,
    weights_M: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of the target ids in nats, a scalar: the sum over targets. Arguments as in `distillation_loss`."""
    ids_M1 = targets_M[..., None]
    certain_M1 = torch.zeros(ids_M1.shape, device=hidden_MD.device)
    return distillation_loss(
        hidden_MD,
        weight_VD,
        ids_M1,
        certain_M1,  # a teacher that is sure of the target
        softcap=softcap,
        scale=scale,
        chunk_len=chunk_len,
        weights_M=weights_M,
    )


@torch.no_grad()
def argmax_M(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, *, chunk_len: int | None = None) -> torch.Tensor:
    """The student's likeliest ids, int64 [M]; a positive scale and a softcap leave them as they are."""
    num_targets = _check_projection(hidden_MD, weight_VD, chunk_len)
    chunk_len = chunk_len or default_chunk_len(len(weight_VD))
    dtype = _matmul_dtype(hidden_MD)
    weight_VD = weight_VD.to(dtype)
    ids_M = torch.empty(num_targets, dtype=torch.int64, device=hidden_MD.device)
    for start in range(0, num_targets, chunk_len):
        rows = slice(start, start + chunk_len)
        ids_M[rows] = (hidden_MD[rows].to(dtype) @ weight_VD.T).argmax(1)
    return ids_M


@dataclass(frozen=True)
class _Chunking:
    """How logits are made and taken, apart from the tensors. `dtype` is that of the matrix products."""

    chunk_len: int
    dtype: torch.dtype
    softcap: float | None
    scale: float
    rest_bucket: bool
    needs_gradient: bool


class _ChunkedLoss(torch.autograd.Function):
    """The loss, with its gradient computed on the way and kept until the backward pass asks for it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: torch.Tensor,
        weight_VD: torch.Tensor,
        ids_MK: torch.Tensor,
        logprobs_MK: torch.Tensor,
        weights_M: torch.Tensor | None,
        chunking: _Chunking,
    ) -> torch.Tensor:
        exact = torch.promote_types(chunking.dtype, torch.float32)
        weight_VD = weight_VD.to(chunking.dtype)
        ids_MK, logprobs_MK = ids_MK.long(), logprobs_MK.to(exact)
        num_targets = len(hidden_MD)
        loss = torch.zeros((), dtype=exact, device=hidden_MD.device)
        gradient_MD = torch.empty_like(hidden_MD) if chunking.needs_gradient else None
        num_buffered = min(chunking.chunk_len, num_targets)
        buffer_CV = torch.empty(num_buffered, len(weight_VD), dtype=exact, device=hidden_MD.device)
        for start in range(0, num_targets, chunking.chunk_len):
            rows = slice(start, min(start + chunking.chunk_len, num_targets))
            logits_CV = buffer_CV[: rows.stop - rows.start]
            _project(hidden_MD[rows].to(chunking.dtype), weight_VD, logits_CV)
            loss_C = _loss_through_cap(logits_CV, ids_MK[rows], logprobs_MK[rows], chunking)
            loss += (loss_C if weights_M is None else loss_C * weights_M[rows]).sum()
            if gradient_MD is not None:
                factor = chunking.scale if weights_M is None else chunking.scale * weights_M[rows, None]
                gradient_MD[rows] = factor * (logits_CV.to(chunking.dtype) @ weight_VD)
        ctx.save_for_backward(gradient_MD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, outer: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (gradient_MD,) = ctx.saved_tensors
        return (gradient_MD * outer).to(gradient_MD.dtype), None, None, None, None, None


def _project(hidden_CD: torch.Tensor, weight_VD: torch.Tensor, logits_CV: torch.Tensor) -> None:
    """Fill `logits_CV`, which is float32 where the product may be of fewer bits."""
    if hidden_CD.dtype == logits_CV.dtype:
        torch.mm(hidden_CD, weight_VD.T, out=logits_CV)
    else:
        logits_CV.copy_(hidden_CD @ weight_VD.T)


def _loss_through_cap(
    logits_CV: torch.Tensor, ids_CK: torch.Tensor, logprobs_CK: torch.Tensor, chunking: _Chunking
) -> torch.Tensor:
    """The loss of each target [C]; turns bare logits in place into the gradient by scaled ones, if that is needed."""
    if chunking.softcap is None:
        if chunking.scale != 1.0:
            logits_CV *= chunking.scale
        return _loss_of_chunk(logits_CV, ids_CK, logprobs_CK, chunking)
    logits_CV.mul_(chunking.scale / chunking.softcap).tanh_()
    slope_CV = logits_CV.square().neg_().add_(1.0) if chunking.needs_gradient else None
    logits_CV *= chunking.softcap
    loss_C = _loss_of_chunk(logits_CV, ids_CK, logprobs_CK, chunking)
    if slope_CV is not None:
        logits_CV *= slope_CV
    return loss_C


def _loss_of_chunk(
    logits_CV: torch.Tensor, ids_CK: torch.Tensor, logprobs_CK: torch.Tensor, chunking: _Chunking
) -> torch.Tensor:
    """The loss of each target [C]; turns `logits_CV` in place into the gradient by them, if that is needed."""
    present_CK = logprobs_CK != -torch.inf
    entries_CK = logits_CV.gather(1, ids_CK).masked_fill_(~present_CK, -torch.inf)
    # From here the buffer holds the rest of the vocabulary alone. Of an id given both as an entry and as an absent one
    # the minimum is taken, so that absent entries leave no mark.
    marks_CK = torch.full_like(logprobs_CK, torch.inf).masked_fill_(present_CK, -torch.inf)
    logits_CV.scatter_reduce_(1, ids_CK, marks_CK, "amin")
    rest_max_C = logits_CV.amax(1)
    has_rest_C = rest_max_C != -torch.inf  # false where the entries are the whole vocabulary
    rest_max_C = rest_max_C.where(has_rest_C, 0.0)
    logits_CV.sub_(rest_max_C[:, None]).exp_()
    rest_sum_C = logits_CV.sum(1)  # at least 1, or 0 where there is no rest

    # Relative to the greatest logit, so that the logarithm of a probability near 1 keeps its digits.
    peak_C = torch.maximum(entries_CK.amax(1), rest_max_C.where(has_rest_C, -torch.inf))
    entries_CK -= peak_C[:, None]
    log_rest_C = rest_max_C - peak_C + rest_sum_C.log()
    normaliser_C = torch.logaddexp(entries_CK.logsumexp(1), log_rest_C)
    log_q_CK = entries_CK - normaliser_C[:, None]
    log_rest_q_C = log_rest_C - normaliser_C

    p_CK = logprobs_CK.exp()
    loss_C = (p_CK * (logprobs_CK - log_q_CK)).where(present_CK, 0.0).sum(1)
    rest_C = torch.zeros_like(loss_C)
    if chunking.rest_bucket:
        rest_C = _rest_of(logprobs_CK).where(has_rest_C, 0.0)
        loss_C += torch.xlogy(rest_C, rest_C) - (rest_C * log_rest_q_C).where(has_rest_C, 0.0)
    if chunking.needs_gradient:
        mass_C = p_CK.sum(1) + rest_C
        logits_CV *= ((mass_C * log_rest_q_C.exp() - rest_C) / rest_sum_C.clamp(min=1.0))[:, None]
        at_entries_CK = (mass_C[:, None] * log_q_CK.exp() - p_CK).where(present_CK, 0.0)
        logits_CV.scatter_add_(1, ids_CK, at_entries_CK)
    return loss_C


def _rest_of(logprobs_CK: torch.Tensor) -> torch.Tensor:
    """1 - sum p [C], never below 0, with all digits where the likeliest entry has nearly all the mass."""
    sorted_CK = logprobs_CK.sort(1, descending=True).values
    return (-torch.expm1(sorted_CK[:, 0]) - sorted_CK[:, 1:].exp().sum(1)).clamp(min=0.0)


def _matmul_dtype(hidden_MD: torch.Tensor) -> torch.dtype:
    kind = hidden_MD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_MD.dtype


def _check_projection(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, chunk_len: int | None) -> int:
    """The number of targets M."""
    if hidden_MD.ndim != 2 or weight_VD.ndim != 2 or hidden_MD.shape[1] != weight_VD.shape[1]:
        raise InputError(
            f"given hidden states of shape {tuple(hidden_MD.shape)} and a vocabulary matrix of shape "
            f"{tuple(weight_VD.shape)}, expected [M, D] and [V, D] with the same D"
        )
    if chunk_len is not None and chunk_len < 1:
        raise InputError(f"given the chunk_len {chunk_len}, expected at least 1, or None for the default")
    return len(hidden_MD)


def _check_teacher(ids_MK: torch.Tensor, logprobs_MK: torch.Tensor, num_targets: int, vocab_size: int) -> None:
    if ids_MK.ndim != 2 or ids_MK.shape != logprobs_MK.shape or len(ids_MK) != num_targets or ids_MK.shape[1] < 1:
        raise InputError(
            f"given teacher ids of shape {tuple(ids_MK.shape)} and logprobs of shape {tuple(logprobs_MK.shape)}, "
            f"expected both [M, K] with M={num_targets}, as there are hidden states, and K at least 1"
        )
    if ids_MK.shape[1] > vocab_size:
        raise InputError(
            f"given K={ids_MK.shape[1]} teacher entries a target, expected at most the vocabulary's V={vocab_size}; "
            "was the data made with another model?"
        )
    if num_targets and not (0 <= (low := int(ids_MK.min())) <= (high := int(ids_MK.max())) < vocab_size):
        wrong = low if low < 0 else high
        raise InputError(
            f"given the token id {wrong}, expected ids from 0 to {vocab_size - 1}, as the vocabulary matrix has "
            f"{vocab_size} rows; was the data made with another model?"
        )
