"""The judge of attention: one conversation at a time behind slots, by transformers' own cache and masks."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from cartridges.cartridge import Cartridge
from cartridges.model import Model


def logits_behind(model: Model, keys: list[torch.Tensor], values: list[torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of `ids` behind slots [G, P, H]; differentiable in the slots."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key[None], value[None], layer)
    return model.hf(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True).logits[0]


def logits_of(model: Model, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of plain text, with no cache."""
    return model.hf(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]


def biased_logits_behind(model: Model, cartridge: Cartridge, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of `ids` behind a cartridge with or without a bias, by attention written out, with dense masks."""
    name, num_slots = "test_biased", cartridge.num_slots

    def dense(module, query, key, value, mask, scaling=None, sliding_window=None, **options):
        layer, repeats = module.layer_idx, query.shape[1] // key.shape[1]
        keys = torch.cat([cartridge.keys[layer].to(key)[None], key], 2).repeat_interleave(repeats, 1)
        values = torch.cat([cartridge.values[layer].to(value)[None], value], 2).repeat_interleave(repeats, 1)
        scores = (query @ keys.transpose(2, 3) * scaling).float()
        if cartridge.bias is not None:
            scores[..., :num_slots] += cartridge.bias[layer].repeat_interleave(repeats, 0)[None, :, None]
        distance = torch.arange(num_slots, keys.shape[2])[:, None] - torch.arange(keys.shape[2])
        hidden = (distance < 0) | (distance >= (sliding_window or 1 << 30))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(value)
        return (weights @ values).transpose(1, 2), None

    AttentionInterface.register(name, dense)
    AttentionMaskInterface.register(name, lambda *args, **options: None)
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation(name)
    try:
        positions = torch.arange(num_slots, num_slots + len(ids))[None]
        with torch.no_grad():
            return model.hf(
                input_ids=torch.tensor([ids], device=model.device), position_ids=positions, use_cache=False
            ).logits[0]
    finally:
        model.hf.set_attn_implementation(before)
