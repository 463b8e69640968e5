"""Attention by PyTorch's flash kernels of CUDA, and of packed rows: no scores are held, and slots are not repeated.

A packed row's tokens see their own conversation, which is one call, and all the slots, which is another. Each tells the
log of its sum of exponentials; with those as weights the two become the whole. The way back is one call each, too:
given the whole's results and logs, the kernel's gradients of a part are those of the whole. Scores and their softmax
are float32 within, results in the dtype of what is given.

Shapes: T tokens of a packed row, S conversations, P slots, N query heads, G key/value heads, H head size.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch

MAX_HEAD_SIZE = 256


def has_flash(device: torch.device, dtype: torch.dtype, head_sizes: Iterable[int]) -> bool:
    """Whether there are such kernels for these numbers: of CUDA, from Ampere on, for heads of up to 256."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or torch.version.hip is not None:
        return False
    if not torch.backends.cuda.is_flash_attention_available() or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return all(size % 8 == 0 and size <= MAX_HEAD_SIZE for size in head_sizes)


class Spans(NamedTuple):
    """Which tokens see which: those between two of `first_q` the keys between two of `first_k`, int32 [S + 1] both."""

    first_q: torch.Tensor
    first_k: torch.Tensor
    longest_q: int
    longest_k: int
    is_causal: bool


def spans_of(lengths: Sequence[int], num_slots: int, device: torch.device) -> list[Spans]:
    """Which of a row's tokens see which: of their own conversation what is before, and all the slots."""
    num_tokens, longest = sum(lengths), max(lengths)
    first_S = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    spans = [Spans(first_S, first_S, longest, longest, True)]
    if num_slots:
        ends = torch.tensor([[0, num_tokens], [0, num_slots]], dtype=torch.int32, device=device)
        spans.append(Spans(ends[0], ends[1], num_tokens, num_slots, False))
    return spans


def attend_by_flash(
    q_NTH: torch.Tensor,
    k_GTH: torch.Tensor,
    v_GTH: torch.Tensor,
    slot_keys_GPH: torch.Tensor,
    slot_values_GPH: torch.Tensor,
    spans: Sequence[Spans],
    scale: float,
) -> torch.Tensor:
    """[N, T, H], differentiable in all that is given; `spans` are those of the row."""
    given = (part.transpose(0, 1) for part in (q_NTH, k_GTH, v_GTH, slot_keys_GPH, slot_values_GPH))
    return cast(torch.Tensor, _Attention.apply(*given, spans, scale)).transpose(0, 1)


class _Attention(torch.autograd.Function):
    """Of one or two parts, each with its keys and values."""

    @staticmethod
    def forward(ctx: Any, q_TNH: torch.Tensor, *rest: Any) -> torch.Tensor:
        *given, spans, scale = rest
        pairs = list(zip(given[::2], given[1::2], strict=True))[: len(spans)]
        parts = [forward(q_TNH, *pair, span, scale) for pair, span in zip(pairs, spans, strict=True)]
        log_NT = torch.stack([log for _, log in parts]).logsumexp(0)
        shares = [out * (log - log_NT).exp().T.unsqueeze(-1) for out, log in parts]
        out_TNH = cast(torch.Tensor, sum(shares)).to(q_TNH.dtype)
        ctx.save_for_backward(q_TNH, out_TNH, log_NT, *(part for pair in pairs for part in pair))
        ctx.spans, ctx.scale, ctx.num_given = spans, scale, len(given)
        return out_TNH

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_TNH: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        q_TNH, out_TNH, log_NT, *given = ctx.saved_tensors
        pairs = zip(given[::2], given[1::2], strict=True)
        whole = (grad_TNH.contiguous(), out_TNH, log_NT)
        found = [backward(whole, q_TNH, *pair, span, ctx.scale) for pair, span in zip(pairs, ctx.spans, strict=True)]
        of_given = [gradient for _, *gradients in found for gradient in gradients]
        missing = [None] * (ctx.num_given - len(of_given) + 2)
        return cast(torch.Tensor, sum(of_q for of_q, *_ in found)), *of_given, *missing


def forward(
    q_TNH: torch.Tensor,
    k_KGH: torch.Tensor,
    v_KGH: torch.Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    used_S: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What queries see of K keys: results [T, N, H] and logs [N, T].

    Where that is causal, the last of a span's queries stands at the last of its keys. Of each span's keys only the
    first `used_S`, int32 [S], count, if they are given.
    """
    out_TNH, log_NT, *_ = torch.ops.aten._flash_attention_forward(
        q_TNH,
        k_KGH,
        v_KGH,
        spans.first_q,
        spans.first_k,
        spans.longest_q,
        spans.longest_k,
        0.0,  # dropout
        spans.is_causal,
        False,
        scale=scale,
        window_size_left=None if window is None else window - 1,
        seqused_k=used_S,
    )
    return out_TNH, log_NT


def backward(
    whole: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    q_TNH: torch.Tensor,
    k_KGH: torch.Tensor,
    v_KGH: torch.Tensor,
    spans: Spans,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values, given those of the whole's results [T, N, H], the results and logs."""
    grad_TNH, out_TNH, log_NT = whole
    unused = torch.zeros(2, dtype=torch.uint64, device=q_TNH.device)  # where nothing is dropped out
    return torch.ops.aten._flash_attention_backward(
        grad_TNH,
        q_TNH,
        k_KGH,
        v_KGH,
        out_TNH,
        log_NT,
        spans.first_q,
        spans.first_k,
        spans.longest_q,
        spans.longest_k,
        0.0,
        spans.is_causal,
        unused,
        unused[:0],
        scale=scale,
    )
