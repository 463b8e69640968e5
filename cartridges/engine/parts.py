"""One part of attention: what queries make of some keys and values, in the two ways there are.

On a CPU in float32 it is one call of PyTorch's own kernel, which tells the log of the sum of exponentials; elsewhere,
and where models cap their scores, it is matrix products and a softmax in float32, in pieces that bound the scores.

Shapes: E independent problems (rows, or 1), G key/value heads, S queries of each of them, C keys, H head size.
"""

import torch

LEAST = torch.finfo(torch.float32).min  # the score of what is not seen, so that rows that see nothing give numbers

Part = tuple[torch.Tensor, torch.Tensor]  # results [..., H] and logs of the sums of exponentials [...]


def part(
    q_EGSH: torch.Tensor,
    k_EGCH: torch.Tensor,
    v_EGCH: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """Results [E, G, S, H] and logs [E, G, S], float32; `mask`, float32 and broadcast to [E, G, S, C], is added."""
    is_float = all(tensor.dtype == torch.float32 for tensor in (q_EGSH, k_EGCH, v_EGCH))
    if is_float and q_EGSH.device.type == "cpu" and softcap is None:
        # flash attention of the CPU; of all that PyTorch offers the one that gives the logs
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_EGSH, k_EGCH, v_EGCH, attn_mask=mask, scale=scale
        )
    scores_EGSC = ((q_EGSH.float() * scale) @ k_EGCH.float().transpose(2, 3)).float()
    if softcap is not None:
        scores_EGSC.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores_EGSC += mask
    best_EGS1 = scores_EGSC.amax(-1, keepdim=True)
    sums_EGS1 = scores_EGSC.sub_(best_EGS1).exp_().sum(-1, keepdim=True)
    return (scores_EGSC @ v_EGCH.float()).float() / sums_EGS1, (best_EGS1 + sums_EGS1.log()).squeeze(-1)


def merged(parts: list[Part]) -> torch.Tensor:
    """The whole [..., H] of parts that saw different keys: each weighs as much as its sum of exponentials."""
    if len(parts) == 1:
        return parts[0][0]
    if len(parts) == 2:
        (one, log_one), (two, log_two) = parts
        return torch.lerp(one, two, torch.sigmoid(log_two - log_one).unsqueeze(-1))
    weights_D = torch.stack([log for _, log in parts]).softmax(0).unsqueeze(-1)
    return (torch.stack([out for out, _ in parts]) * weights_D).sum(0)
