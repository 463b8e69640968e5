"""Tiny random models of the architectures that cartridges are proven on, each behind the same tiny tokenizer."""

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cartridges.model import Model, identify
from cartridges.template import ChatFormat

WINDOW = 8
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 1024,
}
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def tiny(name: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **overrides: object) -> Model:
    """A random model with weights large enough that what it reads matters."""
    config_class, model_class, special = ARCHITECTURES[name]
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(seed)
    hf = model_class(config_class(**{**SHAPE, "vocab_size": len(tokenizer), **ids, **special, **overrides}))
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    hf.eval().requires_grad_(False)
    chat = ChatFormat(tokenizer)
    return Model(hf, tokenizer, chat, identify(hf, chat, f"tiny-{name}", None), 1024)
