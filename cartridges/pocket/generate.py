"""Replies of a causal language model to many messages about one text: the text is read once, the messages in batches.

Shapes: B rows, T tokens of a message (padded on the left), P tokens of the shared prefix.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]
MAX_ROWS = 32
CUT = " [cut]"  # behind a reply that did not end by itself


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message], reply: bool) -> list[int]:
    """Token ids of the chat, with the head of the assistant's reply if `reply`."""
    ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=reply, return_dict=False)
    return list(ids)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    messages: Sequence[str],
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The model's replies to each of `messages`, each alone behind the `system` text (none if empty).

    Greedy at temperature 0, else sampled with `seed`. A reply that does not end within `max_new_tokens` ends in CUT.
    """
    prefix = prompt_ids(tokenizer, [{"role": "system", "content": system}], reply=False) if system else []
    cache = DynamicCache()
    if prefix:
        model(input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, logits_to_keep=1)
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": message}], reply=True) for message in messages]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    generator = torch.Generator(device=model.device).manual_seed(seed)
    replies = [""] * len(prompts)
    for start in range(0, len(order), MAX_ROWS):
        rows = order[start : start + MAX_ROWS]
        shared = copy.deepcopy(cache)
        if prefix:
            shared.batch_repeat_interleave(len(rows))
        ids = decode([prompts[row] for row in rows], len(prefix), shared, model, max_new_tokens, temperature, generator)
        for row, reply in zip(rows, ids, strict=True):
            text = str(tokenizer.decode(reply, skip_special_tokens=True))
            replies[row] = text + CUT if len(reply) == max_new_tokens else text
    return replies


def decode(
    prompts: list[list[int]],
    prefix_len: int,
    cache: DynamicCache,
    model: PreTrainedModel,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> list[list[int]]:
    """New token ids of each row, up to its end token, behind a cache of `prefix_len` tokens."""
    device, num_rows, longest = model.device, len(prompts), max(map(len, prompts))
    pad, end = model.config.pad_token_id or 0, model.config.eos_token_id
    inputs_BT = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    mask = torch.cat([torch.ones(num_rows, prefix_len, dtype=seen.dtype, device=device), seen], 1)
    positions = prefix_len + (seen.cumsum(1) - 1).clamp(min=0)
    new_tokens: list[list[int]] = [[] for _ in prompts]
    running = [True] * num_rows
    for _ in range(max_new_tokens):
        logits_BV = model(
            input_ids=inputs_BT, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        if temperature > 0:
            chosen = torch.multinomial((logits_BV.float() / temperature).softmax(-1), 1, generator=generator)
        else:
            chosen = logits_BV.argmax(-1, keepdim=True)
        for row, token in enumerate(chosen[:, 0].tolist()):
            running[row] = running[row] and token != end
            if running[row]:
                new_tokens[row].append(token)
        if not any(running):
            break
        inputs_BT, positions = chosen, positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return new_tokens
