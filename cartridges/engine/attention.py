"""Attention of one call over shared runs and own rows: what several tokens stand behind is read once for all of them.

It is registered with transformers and gets its step through the model's keyword arguments, like the attention for
training, so the model is unmodified, and transformers makes no mask and keeps no cache. Global is only which models'
attention is swapped for the time of a call, counted where calls overlap. Each part gives its result and the log of the
sum of its exponentials; with those as weights the parts become the whole.

Shapes: T tokens of the call, B rows of a bundle, t tokens of each, C columns or P slots seen, N query heads,
G key/value heads, R = N / G, H head size.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from cartridges.engine import flash
from cartridges.engine.parts import LEAST, Part, merged, part
from cartridges.engine.step import Bundle, Group, Ragged, Step, Together
from cartridges.errors import InputError

NAME = "cartridges_engine"
MAX_SCORES = 1 << 22  # numbers in the scores held at once: 16 MiB
MAX_QUERIES = 128
_SWAPPING = threading.Lock()
_SWAPPED: dict[int, tuple[Any, str, int]] = {}  # configurations by id, with the name before and the calls under way


class Layer(NamedTuple):
    """What a layer says of its attention."""

    number: int
    scale: float
    window: int | None
    softcap: float | None


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
    for unknown in ("s_aux", "position_bias"):
        if kwargs.get(unknown) is not None:
            raise InputError(f"models with {unknown} in their attention are not supported by the engine")
    layer = Layer(
        cast(Any, module.layer_idx), query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap
    )
    if engine_step.is_ragged and softcap is not None:
        raise InputError("models that cap their scores are not for the flash kernels")
    engine_step.write(layer.number, key[0].transpose(0, 1), value[0].transpose(0, 1))
    q_TGRH = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
    own = _joined([_of_bundle(engine_step, bundle, layer, q_TGRH) for bundle in engine_step.bundles])
    if engine_step.places_T is not None:
        own = own[0][engine_step.places_T], own[1][engine_step.places_T]
    behind = (
        _joined([_of_group(engine_step, group, layer, q_TGRH) for group in groups]) for groups in engine_step.depths
    )
    return merged([own, *behind]).flatten(1, 2)[None].to(query.dtype), None


def _joined(parts: list[Part]) -> Part:
    """Those of some tokens [., G, R, H] and [., G, R] behind one another."""
    if len(parts) == 1:
        return parts[0]
    outs, logs = zip(*parts, strict=True)
    return torch.cat(outs), torch.cat(logs)


def _of_bundle(step: Step, bundle: Bundle | Ragged, layer: Layer, q_TGRH: torch.Tensor) -> Part:
    """What the tokens of a bundle see of their own rows: [B * t, G, R, H] and [B * t, G, R], padding included."""
    if isinstance(bundle, Ragged):
        return _of_ragged(bundle, layer, q_TGRH, causal=True)
    num_rows, num_new = bundle.shape
    num_kv_heads, repeats, _ = q_TGRH.shape[1:]
    if num_new == 1:
        first, last, mask = step.sight_of_bundle(bundle, 0, 1, layer.window, repeats)
        keys, values = (held[bundle.rows, :, first:last] for held in bundle.held.layers[layer.number])
        return part(q_TGRH[bundle.tokens], keys, values, layer.scale, mask, layer.softcap)
    keys, values = (held[bundle.rows, :, : bundle.last + 1] for held in bundle.held.layers[layer.number])
    q_BGRtH = q_TGRH[bundle.tokens].unflatten(0, bundle.shape).permute(0, 2, 3, 1, 4)
    block = max(1, min(MAX_QUERIES, MAX_SCORES // (num_rows * num_kv_heads * repeats * (bundle.last + 1))))
    parts: list[Part] = []
    for start in range(0, num_new, block):
        stop = min(start + block, num_new)
        first, last, mask = step.sight_of_bundle(bundle, start, stop, layer.window, repeats)
        q_BGSH = q_BGRtH[:, :, :, start:stop].flatten(2, 3)
        seen = (keys[:, :, first:last], values[:, :, first:last])
        out_BGSH, log_BGS = part(q_BGSH, *seen, layer.scale, mask, layer.softcap)
        out_BGRtH, log_BGRt = (found.unflatten(2, (repeats, stop - start)) for found in (out_BGSH, log_BGS))
        parts.append((out_BGRtH.permute(3, 0, 1, 2, 4), log_BGRt.permute(3, 0, 1, 2)))
    out_tBGRH, log_tBGR = _joined(parts)
    return out_tBGRH.transpose(0, 1).flatten(0, 1), log_tBGR.transpose(0, 1).flatten(0, 1)


def _of_group(step: Step, group: Group | Together, layer: Layer, q_TGRH: torch.Tensor) -> Part:
    """What the tokens of a group, or several, see of the runs they stand behind: [t, G, R, H] and [t, G, R]."""
    if isinstance(group, Together):
        if layer.window is not None:
            return _joined([_of_group(step, each, layer, q_TGRH) for each in group.groups])
        return _of_ragged(group.ragged, layer, q_TGRH, causal=False)
    num_kv_heads, repeats, _ = q_TGRH.shape[1:]
    if group.kv is None:
        return _nothing(q_TGRH[group.start : group.stop])
    keys, values, *bias = group.kv[layer.number]
    if step.is_ragged and layer.window is None and not bias:
        q_tNH = q_TGRH[group.start : group.stop].flatten(1, 2)
        seen = (keys[:, : group.length], values[:, : group.length])
        return _by_heads(flash.of_run(q_tNH, *seen, layer.scale), q_TGRH)
    block = max(1, MAX_SCORES // (num_kv_heads * repeats * group.length))
    parts: list[Part] = []
    for start in range(group.start, group.stop, block):
        stop = min(start + block, group.stop)
        first, mask = step.sight_of_group(group, start, stop, layer.window, repeats)
        q_tGRH = q_TGRH[start:stop]
        if first >= group.length:
            parts.append(_nothing(q_tGRH))
            continue
        if bias:
            bias_G1P = bias[0][None, :, None, first : group.length]
            mask = bias_G1P if mask is None else bias_G1P.masked_fill(mask < 0, LEAST)
        q_1GSH = q_tGRH.transpose(0, 1).flatten(1, 2)[None]
        seen = (keys[None, :, first : group.length], values[None, :, first : group.length])
        out_1GSH, log_1GS = part(q_1GSH, *seen, layer.scale, mask, layer.softcap)
        out_GtRH, log_GtR = (found[0].unflatten(1, (stop - start, repeats)) for found in (out_1GSH, log_1GS))
        parts.append((out_GtRH.transpose(0, 1), log_GtR.transpose(0, 1)))
    return _joined(parts)


def _of_ragged(ragged: Ragged, layer: Layer, q_TGRH: torch.Tensor, causal: bool) -> Part:
    """What tokens see of rows: [t, G, R, H] and [t, G, R]."""
    q_tNH, held = q_TGRH[ragged.tokens].flatten(1, 2), ragged.held.layers[layer.number]
    first_q, first_k, used = ragged.rows
    numbers = (first_q, first_k, used, ragged.longest)
    return _by_heads(flash.of_rows(q_tNH, *held, *numbers, layer.scale, layer.window, causal), q_TGRH)


def _by_heads(found: Part, q_TGRH: torch.Tensor) -> Part:
    """A part [t, N, H] and [t, N] in the form of the others."""
    return found[0].unflatten(1, q_TGRH.shape[1:3]), found[1].unflatten(1, q_TGRH.shape[1:3])


def _nothing(q_tGRH: torch.Tensor) -> Part:
    """What tokens have of keys that they do not see."""
    out_tGRH = torch.zeros_like(q_tGRH, dtype=torch.float32)
    return out_tGRH, torch.full_like(out_tGRH[..., 0], -torch.inf)


def _no_mask(*args: object, **kwargs: object) -> None:
    """The step says what each token sees; no mask is made."""


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, cast(Any, _no_mask))


def configs_of(hf: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configurations of a model's layers, where they look the name of their attention up."""
    return list({id(config): config for part in hf.modules() if (config := getattr(part, "config", None))}.values())


@contextmanager
def engine_attention(configs: Iterable[Any]) -> Iterator[None]:
    """Meanwhile the layers with these configurations use `grouped_attention`.

    Only the name in the configurations changes: once a call must cost nothing. Calls on one model may overlap, of
    several engines in several threads; the name is restored when the last of them ends.
    """
    entered: list[Any] = []
    try:
        with _SWAPPING:
            for config in configs:
                _, name, num_calls = _SWAPPED.get(id(config), (config, config._attn_implementation or "eager", 0))
                _SWAPPED[id(config)] = (config, name, num_calls + 1)
                config._attn_implementation = NAME
                entered.append(config)
        yield
    finally:
        with _SWAPPING:
            for config in entered:
                _, name, num_calls = _SWAPPED.pop(id(config))
                if num_calls > 1:
                    _SWAPPED[id(config)] = (config, name, num_calls - 1)
                else:
                    config._attn_implementation = name
