"""The judge of attention: one conversation at a time behind slots, by transformers' own cache and masks."""

import torch
from transformers import DynamicCache

from cartridges.model import Model


def logits_behind(model: Model, keys: list[torch.Tensor], values: list[torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of `ids` behind slots [G, P, H]; differentiable in the slots."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key[None], value[None], layer)
    return model.hf(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0]


def logits_of(model: Model, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of plain text, with no cache."""
    return model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
