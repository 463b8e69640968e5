"""Attention by PyTorch's flash kernels of CUDA, in bfloat16 or float16: scores are never held, keys never converted.

Of all that PyTorch offers on CUDA they are those that tell the log of the sum of exponentials and take rows of which
only a beginning is filled. Scores and their softmax are float32 within; results are in the model's dtype.

Shapes: T tokens, B rows of R, C columns, P tokens of a run, N query heads, G key/value heads, H head size.
"""

import torch

from cartridges.engine.parts import Part
from cartridges.flash import Spans, forward


def of_rows(
    q_TNH: torch.Tensor,
    k_RGCH: torch.Tensor,
    v_RGCH: torch.Tensor,
    first_q: torch.Tensor,
    first_k: torch.Tensor,
    used: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None = None,
    causal: bool = True,
) -> Part:
    """What tokens see of their rows: [T, N, H] and logs [T, N].

    Row b's tokens are those from `first_q[b]` to `first_q[b + 1]`, at most `longest`. Its columns begin at `first_k[b]`
    of all rows' behind one another, and `used[b]` of them are seen; all int32. Where `causal`, the last of the tokens
    stands in the last of these columns, and each sees up to itself. Keys and values lie [R, C, G, H] in memory.
    """
    keys, values = (held.transpose(1, 2).view(-1, held.shape[1], held.shape[3]) for held in (k_RGCH, v_RGCH))
    spans = Spans(first_q, first_k, longest, k_RGCH.shape[2], causal)
    out_TNH, log_NT = forward(q_TNH, keys, values, spans, scale, window, used)
    return out_TNH, log_NT.T


def of_run(q_TNH: torch.Tensor, k_GPH: torch.Tensor, v_GPH: torch.Tensor, scale: float) -> Part:
    """What tokens see of a run that is wholly before them: [T, N, H] and logs [T, N]. It is split where T is small."""
    out_1TNH, log_1NT, *_ = torch.ops.aten._flash_attention_forward(
        q_TNH[None],
        k_GPH.transpose(0, 1)[None],
        v_GPH.transpose(0, 1)[None],
        None,
        None,
        q_TNH.shape[0],
        k_GPH.shape[1],
        0.0,
        False,
        False,
        scale=scale,
    )
    return out_1TNH[0], log_1NT[0].T
