"""The engine against two judges: Hugging Face's own `generate`, one request at a time, and one forward pass over the
whole text. There, each request stands alone: no padding, no shared prefix, and for the second judge no cache.
"""

import random

import torch
from transformers import DynamicCache

from cartridges.cartridge import Cartridge, Manifest
from cartridges.engine.request import Request
from cartridges.model import prefix_kv
from tests.architectures import WINDOW
from tests.reference import logits_behind, logits_of

NEVER = frozenset([-1])  # stop ids that no model gives


def ids_of(model, seed, num):
    rng = random.Random(seed)
    return tuple(rng.randrange(5, model.identity.vocab_size) for _ in range(num))


def make_cartridge(model, num_slots, seed=100, noise=0.1, sealed=True):
    """Slots that are near those of a text, but of no text."""
    torch.manual_seed(seed)
    keys, values = (
        [part + noise * part.std() * torch.randn_like(part) for part in parts]
        for parts in prefix_kv(model, list(ids_of(model, seed, num_slots)))
    )
    cartridge = Cartridge(keys, values, Manifest(model=model.identity, num_slots=num_slots, num_frozen=0))
    return cartridge.sealed() if sealed else cartridge


def judge_logprobs(model, request, token_ids):
    """Logprobs [T, V] of one forward pass over prompt and reply; row t tells of the id behind t."""
    ids = [*request.prompt_ids, *token_ids]
    if request.cartridge is None:
        return logits_of(model, ids).log_softmax(-1)
    return logits_behind(model, request.cartridge.keys, request.cartridge.values, ids).log_softmax(-1)


def judge_generate(model, request):
    """The new ids of Hugging Face's greedy `generate`."""
    cache, num_slots = DynamicCache(config=model.hf.config), request.num_slots
    if request.cartridge is not None:
        for layer, (keys, values) in enumerate(zip(request.cartridge.keys, request.cartridge.values, strict=True)):
            cache.update(keys[None], values[None], layer)
    ids = torch.tensor(
        [[0] * num_slots + list(request.prompt_ids)], device=model.device
    )  # it drops what the cache already holds
    stop_ids = sorted(model.chat.stop_ids if request.stop_ids is None else request.stop_ids)
    found = model.hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=stop_ids,
        pad_token_id=0,
    )
    return found[0, ids.shape[1] :].tolist()


def mixed_requests(model, prefix_len, cartridge, max_new_tokens=10, **options):
    """Prompts of many lengths with the first `prefix_len` ids in common, some shorter than a window, some longer."""
    prefix = ids_of(model, 7, prefix_len)
    return [
        Request(
            prefix + ids_of(model, seed, length),
            max_new_tokens=max_new_tokens,
            shared_len=prefix_len,
            cartridge=cartridge,
            **options,
        )
        for seed, length in enumerate([1, 3, 2 * WINDOW, WINDOW - 1, 5, 3 * WINDOW + 2])
    ]


def in_small_steps(engine, num_tokens):
    """The engine, with steps of a few tokens, whose books are checked after each."""
    engine.batching.scheduler.max_step_tokens = num_tokens
    return checked(engine)


def checked(engine):
    """The engine, with its books checked after each step."""
    step = engine.batching.step

    def step_and_check():
        step()
        engine.check()

    engine.batching.step = step_and_check
    return engine
