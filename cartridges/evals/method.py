"""A method: a function from a workshop (engine, corpus, budget) to something that answers.

`METHODS` names them, as "module:function"; `own_methods` takes those that are not part of this package. What a method
keeps is counted in bytes: keys and values of what it reads or of its slots, or the bytes of changed weights.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cartridges.cartridge import Cartridge
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.engine.engine import Engine
from cartridges.errors import InputError, unknown_name
from cartridges.evals.task import loaded
from cartridges.questions import Item
from cartridges.recipe import TrainConfig
from cartridges.study_plan import SynthesizeConfig

METHODS: dict[str, str] = {
    "no_context": "cartridges.evals.methods.context:no_context",
    "full_context": "cartridges.evals.methods.context:full_context",
    "document": "cartridges.evals.methods.context:right_document",
    "truncated": "cartridges.evals.methods.context:truncated",
    "summary": "cartridges.evals.methods.summary:summary",
    "bm25": "cartridges.evals.methods.retrieval:bm25",
    "embeddings": "cartridges.evals.methods.retrieval:embeddings",
    "eviction": "cartridges.evals.methods.compacted:eviction",
    "attention_matching": "cartridges.evals.methods.compacted:attention_matching",
    "cartridge": "cartridges.evals.methods.trained:cartridge",
    "next_token": "cartridges.evals.methods.trained:next_token",
    "raw_text": "cartridges.evals.methods.trained:raw_text",
    "untrained": "cartridges.evals.methods.trained:untrained",
    "lora": "cartridges.evals.methods.lora:lora",
    "adapter": "cartridges.evals.methods.adapter:adapter",
    "adapter_at_budget": "cartridges.evals.methods.adapter:adapter_at_budget",
}
own_methods: dict[str, Callable[["Workshop"], "Answerer"]] = {}


@dataclass
class Answerer:
    """What a method made: for each question a system text, slots, or a changed model.

    `kept_bytes` is what is kept of the corpus where that is neither text nor slots; `build_s` the seconds spent.
    """

    system: Callable[[Item], str] = lambda item: ""
    cartridge: Cartridge | None = None
    engine: Engine | None = None
    kept_bytes: int | None = None
    build_s: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass
class Workshop:
    """What methods build from: `num_slots` is the budget, in tokens of keys and values.

    `study` gives the conversations of self-study, which several methods share, and `study_config` tells how they were
    made where that is not the model's preset; `folder` keeps what was built, so that nothing is built twice.
    """

    engine: Engine
    corpus: Corpus
    folder: Path
    num_slots: int
    study: Callable[[], Dataset]
    train: TrainConfig
    max_new_tokens: int = 160
    longest_question: int = 64
    study_config: SynthesizeConfig | None = None

    @property
    def room(self) -> int:
        """Tokens that a system text may have beside a question and a reply."""
        return self.engine.model.window - self.longest_question - self.max_new_tokens - 64

    def first_tokens(self, text: str, num_tokens: int) -> str:
        """The beginning of a text that so many tokens hold."""
        model = self.engine.model
        return model.chat.decode(model.ids(text)[: max(0, num_tokens)])

    def text_room(self) -> int:
        """Tokens of the corpus that fit the budget, beside what stands around a system text."""
        return self.num_slots - len(self.engine.model.chat.system_prefix("x"))


def built(name: str, workshop: Workshop) -> Answerer:
    """Let the method `name` build. Raises InputError for an unknown name, and what the method raises."""
    known: dict[str, Any] = {**METHODS, **own_methods}
    if name not in known:
        raise InputError(unknown_name("method", name, known))
    started = time.monotonic()
    answerer: Answerer = loaded(known[name])(workshop)
    answerer.build_s = answerer.build_s or time.monotonic() - started
    return answerer
