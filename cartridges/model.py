"""Loading any Hugging Face decoder, unmodified, with what a cartridge must know of it.

Shapes: L layers, T tokens, G key/value heads, H head size, V vocabulary, D model dim.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cartridges.cartridge import ModelIdentity
from cartridges.errors import FormatError, InputError
from cartridges.pocket import WEIGHTS
from cartridges.pocket.model import check_files
from cartridges.pocket.tokenizer import OPTIONS, SPECIALS
from cartridges.probe import layer_shapes
from cartridges.sharing import alone
from cartridges.template import ChatFormat

POCKET = "pocket"
MAX_POCKET_VOCAB = 4096
NUM_SAMPLED = 64  # values of each tensor that `weights_digest` covers
# Entries of a configuration that change what a cached key or value means, besides shapes.
MEANINGFUL = (
    "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "vocab_size rope_parameters rope_theta rope_scaling sliding_window layer_types use_sliding_window "
    "attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar rms_norm_eps tie_word_embeddings"
).split()


@dataclass
class Head:
    """How hidden states become logits: scale * cap(hidden @ weight.T), weight [V, D]."""

    weight_VD: torch.Tensor
    softcap: float | None
    scale: float


@dataclass
class Model:
    """A frozen decoder with its tokenizer, chat format and identity. `profile` names the presets that fit it."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    identity: ModelIdentity
    window: int
    profile: str = "default"

    @property
    def device(self) -> torch.device:
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def num_layers(self) -> int:
        return len(self.identity.layers)

    def ids(self, text: str) -> list[int]:
        """The token ids of plain text, without special ones around it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def kv_bytes(self, num_tokens: int) -> int:
        """Bytes of the keys and values of so many tokens or slots, at two bytes a number."""
        return self.identity.kv_bytes(num_tokens)

    @cached_property
    def head(self) -> Head:
        """The projection on the vocabulary. Raises InputError for one with a bias."""
        config = self.hf.config.get_text_config()
        layer: Any = self.hf.get_output_embeddings()
        if getattr(layer, "bias", None) is not None:
            raise InputError(f"{self.identity.model_id} has a bias in its output layer, which is not supported")
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(layer.weight, getattr(config, "final_logit_softcapping", None), float(scale))


def load_model(
    name: str | Path = POCKET, device: str | None = None, dtype: str = "auto", revision: str | None = None
) -> Model:
    """The bundled model ("pocket"), a folder, or a model of the Hugging Face Hub.

    `device` "auto" is CUDA where there is one. `dtype` "auto" is float32 on a CPU and the checkpoint's own on CUDA.
    Raises InputError where there is no decoder under that name, FormatError where its files are damaged.
    """
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"given the device {device}, but torch sees no CUDA device here; use cpu")
    path = WEIGHTS if str(name) == POCKET else Path(name)
    if path == WEIGHTS:
        check_files(path)
    source = str(path) if path.is_dir() else str(name)
    is_local = str(name).startswith((".", "/", "~")) or str(name).endswith("/") or str(name).count("/") != 1
    if not path.is_dir() and (path.exists() or is_local):
        raise InputError(
            f"no model at {name}; expected {POCKET!r}, a folder with config.json, or a hub name such as org/model"
        )
    transformers_logging.disable_progress_bar()
    model_id = POCKET if path == WEIGHTS else str(path.resolve()) if path.is_dir() else str(name)
    with ThreadPoolExecutor(1) as pool:
        # Each thread that multiplies keeps a pool of OpenMP threads; with two pools on few cores waiting threads sleep
        # at once, and whoever multiplies waits for them to wake. So the caller's thread is left without one.
        return pool.submit(_load, source, model_id, device, dtype, revision).result()


def _load(source: str, model_id: str, device: str, dtype: str, revision: str | None) -> Model:
    hf, tokenizer = _read(source, device, dtype, revision)
    chat = ChatFormat(tokenizer)
    config = hf.config.get_text_config()
    window = int(getattr(config, "max_position_embeddings", None) or 2**31)
    identity = identify(hf, chat, model_id, revision or getattr(hf.config, "_commit_hash", None))
    return Model(hf, tokenizer, chat, identity, window, profile_of(tokenizer))


def load_for(identity: ModelIdentity, name: str | None = None, device: str = "auto") -> Model:
    """The model that an artifact was made with, or the one called `name` instead."""
    revision = identity.revision if name is None else None
    return load_model(name or identity.model_id, device, revision=revision)


def _read(
    source: str, device: str, dtype: str, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    wanted: Any = ("float32" if device == "cpu" else "auto") if dtype == "auto" else dtype
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        _check_decoder(source, config)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=wanted, output_loading_info=True
        )
    except InputError:
        raise
    except Exception as error:  # what transformers, tokenizers and safetensors raise for bad files has no common base
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(f"the model {source} cannot be loaded ({type(error).__name__}: {first_line})") from error
    hf: Any
    hf, info = loaded
    if dtype == "auto" and hf.dtype == torch.float16:  # whose range is too small for gradients
        hf.to(torch.bfloat16)
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise FormatError(f"the model {source} is incomplete: {len(info[kind])} {kind}; copy it again")
    hf.to(device)
    hf.eval()
    hf.requires_grad_(False)
    return hf, tokenizer


def _check_decoder(source: str, config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder or type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(f"{source} is a {config.model_type} model, expected a decoder (a causal language model)")


def profile_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Which presets fit: "pocket" for the bundled model, or one trained anew, by its tokenizer; else "default"."""
    backend: Any = tokenizer
    added = set(backend.get_added_vocab())
    is_pocket = set(SPECIALS) <= added <= {*SPECIALS, *OPTIONS} and len(backend) <= MAX_POCKET_VOCAB
    return POCKET if is_pocket else "default"


def identify(hf: PreTrainedModel, chat: ChatFormat, model_id: str, revision: str | None) -> ModelIdentity:
    """What a cartridge must know of the model."""
    config = hf.config.get_text_config()
    entries = config.to_dict()
    meaningful = {name: entries[name] for name in MEANINGFUL if entries.get(name) is not None}
    rope = entries.get("rope_parameters") or {"rope_theta": entries.get("rope_theta")}
    return ModelIdentity(
        model_id=model_id,
        revision=revision,
        architecture=config.model_type,
        fingerprint=hashlib.sha256(json.dumps(meaningful, sort_keys=True, default=str).encode()).hexdigest(),
        weights_digest=weights_digest(hf),
        tokenizer_digest=chat.digest,
        rope=json.loads(json.dumps(rope, default=str)),
        layers=layer_shapes(hf, model_id),
        vocab_size=config.vocab_size,
    )


def weights_digest(hf: PreTrainedModel) -> str:
    """The sha256 of a sample of every parameter's values, as bfloat16, so the same in whatever dtype it is loaded."""
    found = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // NUM_SAMPLED)][:NUM_SAMPLED].to("cpu", torch.bfloat16).contiguous()
        found.update(f"{name} {tuple(parameter.shape)}".encode() + sample.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def prefix_kv(model: Model, ids: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys and values [G, T, H] of every layer after reading `ids`, complete in sliding layers too."""
    if not ids:
        raise InputError("given no tokens for a prefix, expected at least one")
    cache = DynamicCache()
    ids_1T = torch.tensor([ids], device=model.device)
    with alone(model.hf.config):
        model.hf(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = list(cache.layers)
    return [layer.keys[0].clone() for layer in layers], [layer.values[0].clone() for layer in layers]
