"""What the measurements of answering ask for: models, cartridges and requests that stand for no text."""

from collections.abc import Sequence
from typing import Any

import torch

from cartridges.cartridge import Cartridge, Manifest
from cartridges.engine.request import Request
from cartridges.model import Model, identify
from cartridges.precision import has_fast_bf16
from cartridges.rng import rng_of
from cartridges.template import ChatFormat

QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40960}
SHAPES: dict[str, dict[str, Any]] = {  # random weights: speed does not depend on what they are
    "qwen3-0.6b": {
        **QWEN3,
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        **QWEN3,
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
}
NEVER = frozenset([-1])  # stop ids that no model gives
PROMPT_LEN = 48


def random_model(shape: str) -> Model:
    """A model of that shape with pocket's tokenizer, in bfloat16 where the device is fast at it, else in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from cartridges.pocket import WEIGHTS

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    config = AutoConfig.for_model(**SHAPES[shape])
    with device:
        hf: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    hf.eval().requires_grad_(False)
    chat = ChatFormat(AutoTokenizer.from_pretrained(WEIGHTS))
    identity = identify(hf, chat, f"random {shape}", None)
    return Model(hf, chat.tokenizer, chat, identity, config.max_position_embeddings)


def random_ids(model: Model, num: int, *name: object) -> tuple[int, ...]:
    """So many token ids, the same for the same name."""
    rng, most = rng_of("serving", *name), min(model.identity.vocab_size, 1000)
    return tuple(rng.randrange(300, most) for _ in range(num))


def random_cartridge(model: Model, num_slots: int, seed: int = 0, sealed: bool = True) -> Cartridge:
    """Slots of no text, made where the model is."""
    generator = torch.Generator(model.device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "device": model.device, "dtype": model.dtype}
    shapes = [(layer.num_kv_heads, num_slots, layer.head_size) for layer in model.identity.layers]
    keys, values = ([torch.randn(shape, **options) for shape in shapes] for _ in range(2))
    cartridge = Cartridge(keys, values, Manifest(model=model.identity, num_slots=num_slots, num_frozen=0))
    return cartridge.sealed() if sealed else cartridge


def requests_of(model: Model, cartridges: Sequence[Cartridge | None], num: int, num_new: int) -> list[Request]:
    """`num` requests with prompts of their own, dealt to the cartridges in turn."""
    return [
        Request(random_ids(model, PROMPT_LEN, i), num_new, cartridge=cartridges[i % len(cartridges)], stop_ids=NEVER)
        for i in range(num)
    ]


def mixed_requests_of(
    model: Model, cartridges: Sequence[Cartridge], num: int, prompt_lens: Sequence[int], num_new: Sequence[int]
) -> list[Request]:
    """`num` requests, lengths drawn from the two ranges; each cartridge is asked half as often as the one before."""
    rng = rng_of("serving", "mixed", num)
    chosen = rng.choices(range(len(cartridges)), [2.0**-place for place in range(len(cartridges))], k=num)
    return [
        Request(
            random_ids(model, rng.randint(*prompt_lens), "mixed", i),
            rng.randint(*num_new),
            cartridge=cartridges[place],
            stop_ids=NEVER,
        )
        for i, place in enumerate(chosen)
    ]
