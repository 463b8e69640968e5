"""Attention by PyTorch's flash kernel of the CPU, and of packed rows: no scores are held, there or back.

As on CUDA (`flash`), a packed row's tokens see their own conversation, which is one call, and all the slots, which is
another. Each tells the log of its sum of exponentials; with those as weights the two become the whole, and given the
whole's results and logs, the kernel's gradients of a part are those of the whole.

Shapes: T tokens of a packed row, S conversations in it, C tokens of the longest, P slots, N query heads, G key/value
heads, R = N / G, H head size, X of either.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable


def attend_by_cpu_flash(
    q_NTH: torch.Tensor,
    k_GTH: torch.Tensor,
    v_GTH: torch.Tensor,
    slot_keys_GPH: torch.Tensor,
    slot_values_GPH: torch.Tensor,
    index_SC: torch.Tensor,
    back_T: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """[N, T, H], differentiable in keys, values and queries, once.

    `index_SC` tells where in the row the c-th token of a conversation stands, padding its last one again; `back_T`
    where among all [S * C] each token of the row stands.
    """
    given = (q_NTH, k_GTH, v_GTH, slot_keys_GPH, slot_values_GPH, index_SC, back_T, scale)
    return cast(torch.Tensor, _Attention.apply(*given))


class _Attention(torch.autograd.Function):
    """Of the row's own conversations and of the slots, together."""

    @staticmethod
    def forward(ctx: Any, q_NTH: torch.Tensor, *rest: Any) -> torch.Tensor:
        k_GTH, v_GTH, slot_keys_GPH, slot_values_GPH, index_SC, back_T, scale = rest
        slots = (slot_keys_GPH.contiguous(), slot_values_GPH.contiguous())
        found = forward(*_own(q_NTH, k_GTH, v_GTH, index_SC), True, scale)
        out_NTH, log_NT = (_packed(part, back_T) for part in found)
        if slots[0].shape[1]:
            found = forward(_by_group(q_NTH, len(k_GTH), False), slots[0][None], slots[1][None], False, scale)
            of_slots_NTH, log_of_slots_NT = found[0].reshape(out_NTH.shape), found[1].reshape(log_NT.shape)
            share_NT1 = torch.sigmoid(log_NT - log_of_slots_NT).unsqueeze(-1)
            out_NTH = torch.lerp(of_slots_NTH.float(), out_NTH.float(), share_NT1).to(q_NTH.dtype)
            log_NT = torch.logaddexp(log_NT, log_of_slots_NT)
        ctx.save_for_backward(q_NTH, k_GTH, v_GTH, *slots, index_SC, back_T, out_NTH, log_NT)
        ctx.scale = scale
        return out_NTH

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_NTH: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        q_NTH, k_GTH, v_GTH, *slots, index_SC, back_T, out_NTH, log_NT = ctx.saved_tensors
        whole, num_groups = (grad_NTH.contiguous(), out_NTH, log_NT), len(k_GTH)
        of_q, of_k, of_v = None, None, None
        if any(ctx.needs_input_grad[:3]):  # in the first layer there is nothing to train but slots
            of_q, of_k, of_v = _of_own(whole, q_NTH, k_GTH, v_GTH, index_SC, back_T, ctx.scale)
        if not slots[0].shape[1]:
            return of_q, of_k, of_v, *(torch.zeros_like(part) for part in slots), None, None, None
        # a thread of the kernel has a head of keys, so where there are more threads each head of queries is apart
        apart = num_groups < torch.get_num_threads()
        *whole, q = (_by_group(part, num_groups, apart) for part in (*whole, q_NTH))
        keys, values = (part.expand(len(q), -1, -1, -1) for part in slots)
        more_q, *of_slots = backward(whole, q, keys, values, False, ctx.scale)
        if of_q is not None:
            more_q = more_q.transpose(0, 1) if apart else more_q
            of_q = of_q + more_q.reshape(of_q.shape)
        return of_q, of_k, of_v, *(part.sum(0) for part in of_slots), None, None, None


def _of_own(
    whole: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    q_NTH: torch.Tensor,
    k_GTH: torch.Tensor,
    v_GTH: torch.Tensor,
    index_SC: torch.Tensor,
    back_T: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values by what tokens see of their own conversation."""
    grad_NTH, out_NTH, log_NT = whole
    zeros = grad_NTH.new_zeros(len(grad_NTH), index_SC.numel(), grad_NTH.shape[-1])  # of padding
    grad_SNCH = zeros.index_copy_(1, back_T, grad_NTH).unflatten(1, index_SC.shape).transpose(0, 1)
    padded = (grad_SNCH, _padded(out_NTH, index_SC), _padded(log_NT, index_SC))
    found = backward(padded, *_own(q_NTH, k_GTH, v_GTH, index_SC), True, scale)
    of_q, *of_kv = (_packed(part, back_T) for part in found)
    of_k, of_v = (part.unflatten(0, (len(k_GTH), -1)).sum(1) for part in of_kv)
    return of_q, of_k, of_v


def _padded(part_XT: torch.Tensor, index_SC: torch.Tensor) -> torch.Tensor:
    """Tokens of the row [X, T, ...] as conversations beside each other [S, X, C, ...]."""
    return part_XT.index_select(1, index_SC.flatten()).unflatten(1, index_SC.shape).transpose(0, 1)


def _packed(part_SXC: torch.Tensor, back_T: torch.Tensor) -> torch.Tensor:
    """The other way round."""
    return part_SXC.transpose(0, 1).flatten(1, 2).index_select(1, back_T)


def _own(
    q_NTH: torch.Tensor, k_GTH: torch.Tensor, v_GTH: torch.Tensor, index_SC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [S, N, C, H] of the conversations."""
    repeats = len(q_NTH) // len(k_GTH)
    # index_select gives new tensors, so heads are without gaps
    k_SNCH, v_SNCH = (_padded(part, index_SC).repeat_interleave(repeats, 1) for part in (k_GTH, v_GTH))
    return _padded(q_NTH, index_SC), k_SNCH, v_SNCH


def _by_group(part_NT: torch.Tensor, num_groups: int, apart: bool) -> torch.Tensor:
    """What belongs to heads of queries [N, T, ...], by the heads of keys that these see.

    That is [1, G, R * T, ...], or with `apart` [R, G, T, ...].
    """
    part_GRT = part_NT.unflatten(0, (num_groups, -1))
    return (part_GRT.transpose(0, 1) if apart else part_GRT.flatten(1, 2)[None]).contiguous()


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_causal: bool,
    scale: float,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Results [E, X, Q, H] and logs [E, X, Q] of queries over keys and values [E, X, K, H].

    The numbers of a head must be beside each other in all of them, which the kernel takes for granted. A mask that is
    given is added to the scores [E, X, Q, K]; the log of a row of which it hides all is 0.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
    )


def backward(
    whole: Sequence[torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values, given those of the whole's results, the results and logs."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        whole[0], q, k, v, *whole[1:], 0.0, is_causal, scale=scale
    )
