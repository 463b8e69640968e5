"""Attention of one call over shared runs and own rows: what several tokens stand behind is read once for all of them.

It is registered with transformers and gets its step through the model's keyword arguments, like the attention for
training, so the model is unmodified, there is no global state, and transformers makes no mask and keeps no cache. Each
part gives its result and the log of the sum of its exponentials; with those as weights the parts become the whole.

Shapes: T tokens of the call, B rows of a bundle, t tokens of each, C columns or P slots seen, D parts, N query heads,
G key/value heads, R = N / G, H head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from cartridges.engine.step import Bundle, Group, Step
from cartridges.errors import InputError

NAME = "cartridges_engine"
MAX_SCORES = 1 << 22  # numbers in the scores held at once: 16 MiB
MAX_QUERIES = 128

Part = tuple[torch.Tensor, torch.Tensor]  # results [..., H] and logs of the sums of exponentials [...]


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    engine_step: Step | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of query [1, N, T, H] over what the step's tokens see, new key and value [1, G, T, H] included.

    Gives [1, T, N, H]. Scores and their softmax are float32 whatever the model's dtype. Raises InputError for models
    whose attention has a part that is not known here.
    """
    if engine_step is None:
        raise InputError("this model does not hand keyword arguments to its attention; the engine cannot run it")
    for part in ("s_aux", "position_bias"):
        if kwargs.get(part) is not None:
            raise InputError(f"models with {part} in their attention are not supported by the engine")
    layer: Any = module.layer_idx
    engine_step.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q_TGRH = (query[0].float() * scale).transpose(0, 1).unflatten(1, (key.shape[1], -1))
    num_parts = 1 + len(engine_step.depths)
    out_DTGRH = q_TGRH.new_empty(num_parts, *q_TGRH.shape)
    lse_DTGR = q_TGRH.new_empty(num_parts, *q_TGRH.shape[:3])
    for bundle in engine_step.bundles:
        _read_rows(engine_step, bundle, layer, q_TGRH, (out_DTGRH[0], lse_DTGR[0]), sliding_window, softcap)
    for depth, groups in enumerate(engine_step.depths, 1):
        into = (out_DTGRH[depth], lse_DTGR[depth])
        if sum(group.stop - group.start for group in groups) < query.shape[2]:
            into[0].zero_()
            into[1].fill_(-torch.inf)
        for group in groups:
            _read_run(engine_step, group, layer, q_TGRH, into, sliding_window, softcap)
    out_TGRH = out_DTGRH[0]
    if num_parts > 1:
        out_TGRH = (out_DTGRH * lse_DTGR.softmax(0).unsqueeze(-1)).sum(0)
    return out_TGRH.flatten(1, 2)[None].to(query.dtype), None


def _read_rows(
    step: Step,
    bundle: Bundle,
    layer: int,
    q_TGRH: torch.Tensor,
    into: Part,
    window: int | None,
    softcap: float | None,
) -> None:
    """What the tokens of a bundle see of their own rows, put in their places of `into`."""
    num_rows, num_new = bundle.tokens_Bt.shape
    num_kv_heads, repeats, _ = q_TGRH.shape[1:]
    keys, values = (held[:, :, : bundle.last + 1][bundle.rows] for held in bundle.held.layers[layer])
    block = max(1, min(MAX_QUERIES, MAX_SCORES // (num_rows * num_kv_heads * repeats * (bundle.last + 1))))
    parts: list[Part] = []
    for start in range(0, num_new, block):
        stop = min(start + block, num_new)
        first, last, hidden = step.sight_of_bundle(bundle, start, stop, window)
        q_BGRtH = q_TGRH[bundle.tokens_Bt[:, start:stop]].permute(0, 2, 3, 1, 4)
        q_BGSH = q_BGRtH.reshape(num_rows, num_kv_heads, repeats * (stop - start), -1)
        scores_BGSC = _capped(q_BGSH @ keys[:, :, first:last].float().transpose(2, 3), softcap)
        if hidden is not None:
            seen = scores_BGSC.view(num_rows, num_kv_heads, repeats, stop - start, -1)
            seen.masked_fill_(hidden, torch.finfo(torch.float32).min)
        out, lse = _weighed(scores_BGSC, values[:, :, first:last].float())
        shape = (num_rows, num_kv_heads, repeats, stop - start)
        parts.append((out.view(*shape, -1).permute(0, 3, 1, 2, 4), lse.view(shape).permute(0, 3, 1, 2)))
    tokens = bundle.tokens_Bt.flatten()
    for place in range(2):
        found = parts[0][place] if len(parts) == 1 else torch.cat([part[place] for part in parts], 1)
        found = found.flatten(0, 1)
        if bundle.valid is not None:
            found = found[bundle.valid]
        into[place][tokens if bundle.valid is None else tokens[bundle.valid]] = found


def _read_run(
    step: Step,
    group: Group,
    layer: int,
    q_TGRH: torch.Tensor,
    into: Part,
    window: int | None,
    softcap: float | None,
) -> None:
    """What the tokens of a group see of the run they stand behind, put in their places of `into`."""
    num_kv_heads, repeats, _ = q_TGRH.shape[1:]
    keys, values, *bias = group.kv[layer]
    block = max(1, MAX_SCORES // (num_kv_heads * repeats * group.length))
    for start in range(group.start, group.stop, block):
        stop = min(start + block, group.stop)
        first, hidden = step.sight_of_group(group, start, stop, window)
        if first >= group.length:
            into[0][start:stop] = 0
            into[1][start:stop] = -torch.inf
            continue
        q_GSH = q_TGRH[start:stop].transpose(0, 1).reshape(num_kv_heads, (stop - start) * repeats, -1)
        scores_GSP = _capped(q_GSH @ keys[:, first : group.length].float().transpose(1, 2), softcap)
        if bias:
            scores_GSP.add_(bias[0][:, None, first : group.length])
        if hidden is not None:
            seen = scores_GSP.view(num_kv_heads, stop - start, repeats, -1).transpose(0, 1)
            seen.masked_fill_(hidden, torch.finfo(torch.float32).min)
        out, lse = _weighed(scores_GSP, values[:, first : group.length].float())
        shape = (num_kv_heads, stop - start, repeats)
        into[0][start:stop] = out.view(*shape, -1).transpose(0, 1)
        into[1][start:stop] = lse.view(shape).transpose(0, 1)


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    scores = scores.float()
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _weighed(scores: torch.Tensor, values: torch.Tensor) -> Part:
    """The values weighed by the softmax of the scores, which are used up, and the log of its sum."""
    best = scores.amax(-1, keepdim=True)
    sums = scores.sub_(best).exp_().sum(-1, keepdim=True)
    return (scores @ values).float() / sums, (best + sums.log()).squeeze(-1)


def _no_mask(*args: object, **kwargs: object) -> None:
    """The step says what each token sees; no mask is made."""


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, cast(Any, _no_mask))


@contextmanager
def engine_attention(hf: PreTrainedModel) -> Iterator[None]:
    """Meanwhile the model's layers use `grouped_attention`.

    Only the name in the configurations changes, which is where layers look it up: once a call must cost nothing.
    """
    configs: dict[int, Any] = {id(part.config): part.config for part in hf.modules() if hasattr(part, "config")}
    before = [config._attn_implementation or "eager" for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs.values(), before, strict=True):
            config._attn_implementation = name
