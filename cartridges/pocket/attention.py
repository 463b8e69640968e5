"""Causal attention for training on a CPU, in blocks of queries, so that half of the score matrix is never computed.

For rows without padding only. Faster in short rows than `scaled_dot_product_attention`, whose flash kernel wins in long
ones; `benchmarks/pocket_training.py` measures both.

Shapes: B rows, N query heads, G key/value heads, R = N / G, T tokens, H head size.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

BLOCK = 128
LONGEST_IN_BLOCKS = 1024
NAME = "pocket_training"


def training_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of query [B, N, T, H] over key and value [B, G, T, H]; gives [B, T, N, H]."""
    num_rows, num_heads, length, head_size = query.shape
    num_kv_heads = key.shape[1]
    repeats = num_heads // num_kv_heads
    dtype = torch.bfloat16 if torch.is_autocast_enabled(query.device.type) else query.dtype
    if query.device.type != "cpu" or length > LONGEST_IN_BLOCKS:
        key, value = (part.to(dtype).repeat_interleave(repeats, dim=1) for part in (key, value))
        out = F.scaled_dot_product_attention(query.to(dtype), key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None
    query_BGRTH = (query * scaling).to(dtype).view(num_rows, num_kv_heads, repeats, length, head_size)
    key_BGHT = key.to(dtype)[:, :, None].transpose(-1, -2)
    value_BGTH = value.to(dtype)[:, :, None]
    triangle = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=query.device).tril()
    blocks = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = torch.matmul(
            query_BGRTH[..., start:end, :], key_BGHT[..., :end].expand(-1, -1, repeats, -1, -1)
        ).float()
        seen = F.pad(triangle[: end - start, : end - start], (start, 0), value=True)
        weights = scores.masked_fill(~seen, -1e9).softmax(-1).to(dtype)
        blocks.append(torch.matmul(weights, value_BGTH[..., :end, :].expand(-1, -1, repeats, -1, -1)))
    out_BNTH = torch.cat(blocks, -2).view(num_rows, num_heads, length, head_size)
    return out_BNTH.transpose(1, 2), None


def register() -> str:
    """Make the function known to transformers; gives its name for `attn_implementation`."""
    AttentionInterface.register(NAME, training_attention)
    return NAME
