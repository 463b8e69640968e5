"""Attention of a batch whose rows stand behind one prefix: the prefix is read once for all of them, never repeated.

It is registered with transformers and gets its batch through the model's keyword arguments, like the attention for
training, so the model is unmodified, there is no global state, and transformers makes no mask and keeps no cache.

Shapes: B rows, T new tokens, C columns of the rows' own, P tokens of the prefix, N query heads, G key/value heads,
R = N / G, H head size, S = P + C.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from cartridges.engine.rows import Rows
from cartridges.errors import InputError

NAME = "cartridges_engine"
MAX_SCORES = 1 << 22  # numbers in the scores held at once: 16 MiB
MAX_QUERIES = 128


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    engine_rows: Rows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of query [B, N, T, H] over the prefix and what the rows hold, new key and value [B, G, T, H] included.

    Gives [B, T, N, H]. Scores and their softmax are float32 whatever the model's dtype. Raises InputError for models
    whose attention has a part that is not known here.
    """
    if engine_rows is None:
        raise InputError("this model does not hand keyword arguments to its attention; the engine cannot run it")
    for part in ("s_aux", "position_bias"):
        if kwargs.get(part) is not None:
            raise InputError(f"models with {part} in their attention are not supported by the engine")
    layer: Any = module.layer_idx
    prefix, num_new = engine_rows.prefix, query.shape[2]
    sight = engine_rows.sight(sliding_window)
    own_keys, own_values = (held[:, :, sight.own_start :].float() for held in engine_rows.write(layer, key, value))
    slots = None
    if sight.prefix_start < prefix.length:
        first = sight.prefix_start
        slots = (prefix.keys[layer][:, first:].float(), prefix.values[layer][:, first:].float())
    num_heads, num_kv_heads = query.shape[1], key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q_BGRTH = (query.float() * scale).unflatten(1, (num_kv_heads, num_heads // num_kv_heads))
    num_slots = prefix.length - sight.prefix_start
    num_seen = num_slots + own_keys.shape[2]
    step = max(1, min(MAX_QUERIES, MAX_SCORES // (query.shape[0] * num_heads * num_seen)))
    out = []
    for start in range(0, num_new, step):
        stop = min(start + step, num_new)
        num_own = own_keys.shape[2] - (num_new - stop)  # columns later than the last query of this step
        hidden = None if sight.hidden is None else sight.hidden[:, :, start:stop, : num_slots + num_own]
        own = (own_keys[:, :, :num_own], own_values[:, :, :num_own])
        out.append(_attend(q_BGRTH[:, :, :, start:stop], slots, own, hidden, softcap))
    out_BGRTH = out[0] if len(out) == 1 else torch.cat(out, 3)
    return out_BGRTH.flatten(1, 2).transpose(1, 2).to(query.dtype).contiguous(), None


def _attend(
    q_BGRTH: torch.Tensor,
    slots_GPH: tuple[torch.Tensor, torch.Tensor] | None,
    own_BGCH: tuple[torch.Tensor, torch.Tensor],
    hidden: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    num_rows, num_kv_heads, repeats, num_new, _ = q_BGRTH.shape
    keys, values = own_BGCH
    scores = q_BGRTH.flatten(2, 3) @ keys.transpose(2, 3)
    num_slots = 0
    if slots_GPH is not None:
        num_slots = slots_GPH[0].shape[1]
        to_slots = q_BGRTH.transpose(0, 1).flatten(1, 3) @ slots_GPH[0].transpose(1, 2)
        to_slots = to_slots.view(num_kv_heads, num_rows, repeats * num_new, num_slots).transpose(0, 1)
        scores = torch.cat([to_slots, scores], -1)
    scores = scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if hidden is not None:
        by_head = scores.view(num_rows, num_kv_heads * repeats, num_new, -1)
        by_head.masked_fill_(hidden, torch.finfo(torch.float32).min)
    weights = scores.softmax(-1)
    out = weights[..., num_slots:] @ values
    if slots_GPH is not None:
        on_slots = weights[..., :num_slots].transpose(0, 1).flatten(1, 2)
        out = out + (on_slots @ slots_GPH[1]).view(num_kv_heads, num_rows, repeats * num_new, -1).transpose(0, 1)
    return out.unflatten(2, (repeats, num_new))


def _no_mask(*args: object, **kwargs: object) -> None:
    """The rows say what each token sees; no mask is made."""


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, cast(Any, _no_mask))


@contextmanager
def engine_attention(hf: PreTrainedModel) -> Iterator[None]:
    """Meanwhile the model's layers use `shared_prefix_attention`."""
    before = hf.config._attn_implementation or "eager"
    if before == NAME:  # already within
        yield
        return
    hf.set_attn_implementation(NAME)
    try:
        yield
    finally:
        hf.set_attn_implementation(before)
