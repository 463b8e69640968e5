"""What a model's attention is, and whether others can take it over, found by reading one token.

Training and the engine put attention functions of their own into the model, under the names that transformers has for
that. Not every model asks for one where it attends, hands on what a function needs, or tells it all that it does.

Shapes: N query heads, G key/value heads, H head size.
"""

from contextvars import ContextVar
from typing import Any, cast

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedModel,
)

from cartridges.cartridge import LayerShape
from cartridges.errors import InputError

NAME = "cartridges_probe"
_MASKED: ContextVar[set[int] | None] = ContextVar("windows of the masks asked for", default=None)


def _noted(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cartridges_calls: list[tuple[int | None, int | None]] | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of query [1, N, 1, H] over itself, which is its value [1, G, 1, H]; notes layer and window."""
    if cartridges_calls is not None:
        cartridges_calls.append((getattr(module, "layer_idx", None), sliding_window))
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None


def _no_mask(*args: object, local_size: int | None = None, **kwargs: object) -> None:
    """One token sees itself; no mask is made, but its window noted."""
    masked = _MASKED.get()
    if masked is not None and local_size:
        masked.add(local_size)


AttentionInterface.register(NAME, _noted)
AttentionMaskInterface.register(NAME, cast(Any, _no_mask))


@torch.no_grad()
def layer_shapes(hf: PreTrainedModel, model_id: str) -> list[LayerShape]:
    """The shape of each layer's cache. Raises InputError for a model whose attention cannot be taken over."""
    cache, calls, masked, problem = DynamicCache(), [], set[int](), ""
    config, decoder = hf.config.get_text_config(), cast(Any, hf.get_decoder())
    before: Any = hf.config._attn_implementation
    token = torch.zeros(1, 1, dtype=torch.long, device=hf.device)
    noting = _MASKED.set(masked)
    try:
        hf.set_attn_implementation(NAME)
        read = decoder(input_ids=token, past_key_values=cache, use_cache=True, cartridges_calls=calls)
    except Exception as error:  # models differ in how they refuse keywords, caches and other implementations
        first_line = (str(error).strip().splitlines() or [""])[0][:120]
        raise InputError(
            f"{model_id} cannot be read with attention of our own ({type(error).__name__}: {first_line})"
        ) from error
    finally:
        _MASKED.reset(noting)
        hf.set_attn_implementation(before)
    shapes = _cached(cache, [window for _, window in calls], config.num_hidden_layers, model_id)
    longest = getattr(config, "max_position_embeddings", None) or 1 << 31
    untold = {window for window in masked if window < longest} - {window for _, window in calls}
    if [layer for layer, _ in calls] != list(range(len(shapes))):
        problem = f"{len(shapes)} layers ask for attention {len(calls)} times"
    elif untold:
        problem = f"only its mask knows of the window of {min(untold)}"
    elif getattr(read, "last_hidden_state", None) is None:
        problem = "its decoder gives no last hidden state"
    if problem:
        raise InputError(f"{model_id} attends in a way of its own, which is not supported: {problem}")
    return shapes


def _cached(cache: DynamicCache, windows: list[int | None], num_layers: int, model_id: str) -> list[LayerShape]:
    shapes = []
    cached: list[Any] = list(cache.layers)
    for index, layer in enumerate(cached):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or keys.ndim != 4 or values is None or keys.shape != values.shape:
            raise InputError(f"layer {index} of {model_id} keeps no plain keys and values; its kind is not supported")
        window = windows[index] if index < len(windows) else None
        shapes.append(LayerShape(num_kv_heads=keys.shape[1], head_size=keys.shape[3], window=window))
    if len(shapes) != num_layers:
        raise InputError(f"{model_id} caches {len(shapes)} of {num_layers} layers; shared layers are not supported")
    return shapes
