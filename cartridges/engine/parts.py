"""One part of attention: what queries make of some keys and values, in the two ways there are.

On a CPU in float32 it is one call of PyTorch's own kernel, which tells the log of the sum of exponentials; elsewhere,
and where models cap their scores, it is matrix products and a softmax in float32, in pieces that bound the scores. Both
ways a row that sees nothing, all of its mask being -inf, gives zeros and the log -inf. CUDA's kernels are in `flash`.

Shapes: E independent problems (rows, or 1), G key/value heads, S queries of each of them, C keys, H head size.
"""

import torch

from cartridges import cpu_flash

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
    device_type = q_EGSH.device.type
    if torch.is_autocast_enabled(device_type):  # which would round the scores
        with torch.autocast(device_type, enabled=False):
            return part(q_EGSH, k_EGCH, v_EGCH, scale, mask, softcap)
    if device_type == "cpu" and softcap is None and all(map(_is_plain, (q_EGSH, k_EGCH, v_EGCH))):
        return _by_kernel(q_EGSH, k_EGCH, v_EGCH, scale, mask)
    scores_EGSC = (q_EGSH.float() * scale) @ k_EGCH.float().transpose(2, 3)
    if softcap is not None:
        scores_EGSC.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores_EGSC += mask
    best_EGS1 = scores_EGSC.amax(-1, keepdim=True).clamp_(min=LEAST)
    sums_EGS1 = scores_EGSC.sub_(best_EGS1).exp_().sum(-1, keepdim=True)
    # the sum is at least the 1 of the best score, or 0 where nothing is seen
    return (scores_EGSC @ v_EGCH.float()) / sums_EGS1.clamp(min=1), (best_EGS1 + sums_EGS1.log()).squeeze(-1)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the CPU's kernel reads it right: in float32, and heads without gaps, which it takes for granted."""
    return tensor.dtype == torch.float32 and tensor.stride(-1) == 1


def _by_kernel(
    q_EGSH: torch.Tensor, k_EGCH: torch.Tensor, v_EGCH: torch.Tensor, scale: float, mask: torch.Tensor | None
) -> Part:
    out_EGSH, log_EGS = cpu_flash.forward(q_EGSH, k_EGCH, v_EGCH, False, scale, mask)
    if mask is not None and not log_EGS.all():  # that of a row that sees nothing is 0 here
        log_EGS = log_EGS.masked_fill(mask.amax(-1) == -torch.inf, -torch.inf)
    return out_EGSH, log_EGS


def merged(parts: list[Part]) -> torch.Tensor:
    """The whole [..., H] of parts that saw different keys: each weighs as much as its sum of exponentials."""
    if len(parts) == 1:
        return parts[0][0]
    if len(parts) == 2:
        (one, log_one), (two, log_two) = parts
        return torch.lerp(one.float(), two.float(), torch.sigmoid(log_two - log_one).unsqueeze(-1))
    weights_D = torch.stack([log for _, log in parts]).softmax(0).unsqueeze(-1)
    return (torch.stack([out.float() for out, _ in parts]) * weights_D).sum(0)
