"""The verb `initialize`: what the slots hold before training. Published results are best with the corpus' first tokens.

Shapes: P slots, G key/value heads, H head size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from pydantic import Field, model_validator

from cartridges.cartridge import Cartridge, Manifest
from cartridges.compact import CompactConfig, Method, compact
from cartridges.config import Config
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.model import Model, prefix_kv
from cartridges.rng import rng_of

COMPACTED: tuple[Method, ...] = get_args(Method)  # the kinds that `compact` makes
PIECE_LEN = 32  # tokens of each sampled piece of kind "chunks"


class InitializeConfig(Config):
    """Where the slots' first values come from."""

    kind: Literal["first_tokens", "text", "chunks", "random", "cartridge", "attention_matching", "kv_eviction"] = Field(
        default="first_tokens",
        description="of the corpus; a text; sampled chunks; random vectors; a cartridge; compacted",
    )
    text: str = Field(default="", description="what is read, for kind text")
    cartridge: Path | None = Field(default=None, description="the folder of kind cartridge")
    compact: CompactConfig = CompactConfig.resolve()
    seed: int = Field(default=0, ge=0, description="of sampled chunks and random vectors")

    @classmethod
    def told_by(cls, initializer: Mapping[str, Any]) -> Self:
        """The configuration that a manifest's `initializer` was written for. Raises ConfigError for another entry.

        That of a compacted context holds the fields of `compact` beside its kind.
        """
        if initializer.get("kind") in COMPACTED:
            told = {key: value for key, value in initializer.items() if key in CompactConfig.model_fields}
            return cls.resolve(values={"kind": initializer["kind"], "compact": told})
        return cls.resolve(values={key: value for key, value in initializer.items() if key in cls.model_fields})

    @model_validator(mode="after")
    def _source_given(self) -> Self:
        if self.kind == "text" and not self.text.strip():
            raise ValueError("given initialize.kind=text and no initialize.text, expected the text to read")
        if self.kind == "cartridge" and self.cartridge is None:
            raise ValueError("given initialize.kind=cartridge and no initialize.cartridge, expected its folder")
        return self


def initialize(
    model: Model,
    corpus: Corpus | None,
    num_slots: int,
    config: InitializeConfig,
    num_frozen: int = 1,
    dataset: Dataset | None = None,
) -> Cartridge:
    """A cartridge of `num_slots` that nothing has trained yet, in float32.

    `dataset` has the conversations for the kind attention_matching with compact.queries=self_study. Raises InputError
    where there are more slots than tokens to fill them, or fewer than frozen ones.
    """
    if not 0 <= num_frozen <= num_slots:
        raise InputError(f"given {num_frozen} frozen slots of {num_slots}, expected at most as many as there are slots")
    if num_slots >= model.window:
        raise InputError(f"given {num_slots} slots, expected fewer than the model's window of {model.window} tokens")
    if config.kind in COMPACTED:
        if corpus is None:
            raise InputError(f"given no corpus, expected one to initialise from with kind {config.kind}")
        return compact(model, corpus, num_slots, config.kind, config.compact, num_frozen, dataset)
    bias = None
    if config.kind == "cartridge":
        keys, values, bias, about = _of_cartridge(model, config, num_slots)
    else:
        ids, about = _ids(model, corpus, num_slots, config)
        keys, values = prefix_kv(model, ids)
        if config.kind == "random":
            generator = torch.Generator().manual_seed(config.seed)
            keys, values = ([_like(tensor, generator) for tensor in part] for part in (keys, values))
    manifest = Manifest(
        model=model.identity,
        num_slots=num_slots,
        num_frozen=num_frozen,
        initializer={**config.model_dump(mode="json", exclude_defaults=True), "kind": config.kind, **about},
        corpus_digest=corpus.digest if corpus else "",
    )
    return Cartridge([k.float() for k in keys], [v.float() for v in values], manifest, bias).sealed()


def _ids(
    model: Model, corpus: Corpus | None, num_slots: int, config: InitializeConfig
) -> tuple[list[int], dict[str, Any]]:
    """The tokens whose keys and values the slots take, as a system message would begin, and how many there were."""
    text = config.text if config.kind == "text" else corpus.text if corpus else ""
    if not text:
        raise InputError(f"given no corpus, expected one to initialise from with kind {config.kind}")
    head = model.chat.context_head()
    ids = model.ids(text)
    if len(head) + len(ids) < num_slots:
        raise InputError(
            f"given {num_slots} slots for a text of {len(ids)} tokens; give at most {len(head) + len(ids)} slots, "
            "or read the text itself: it is cheaper"
        )
    if config.kind == "chunks":
        rng = rng_of("initialize", config.seed)
        pieces = [ids[start : start + PIECE_LEN] for start in range(0, len(ids), PIECE_LEN)]
        rng.shuffle(pieces)
        ids = [token for piece in pieces for token in piece]
    return (head + ids)[:num_slots], {"num_text_tokens": len(ids)}


def _of_cartridge(
    model: Model, config: InitializeConfig, num_slots: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None, dict[str, Any]]:
    assert config.cartridge is not None
    source = Cartridge.load(config.cartridge, str(model.device))
    source.check_fits(model.identity)
    if source.num_slots != num_slots:
        raise InputError(
            f"given {num_slots} slots and {config.cartridge}, which has {source.num_slots}; "
            f"give slots={source.num_slots}"
        )
    return source.keys, source.values, source.bias, {"digest": source.digest}


def _like(slots_GPH: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal vectors with the mean and deviation of each head's dimensions; the first slot, the sink, is kept."""
    noise = torch.randn(slots_GPH.shape, generator=generator).to(slots_GPH)
    drawn = slots_GPH.mean(1, keepdim=True) + noise * slots_GPH.std(1, keepdim=True, correction=0)
    return torch.cat([slots_GPH[:, :1], drawn[:, 1:]], 1)
