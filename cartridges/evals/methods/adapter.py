"""Transmutation: the same conversations as changes of weights in closed form, at any size and at the budget's bytes."""

import copy
import dataclasses
import time

from cartridges.adapting import merge
from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from cartridges.evals.method import Answerer, Workshop
from cartridges.model import Model
from cartridges.pairs import Source
from cartridges.synthesis import study_seconds
from cartridges.transmutation import TransmuteConfig, chosen_layers, transmute


def adapter(workshop: Workshop) -> Answerer:
    """Whole matrices, whatever their size."""
    return _merged(workshop, None)


def adapter_at_budget(workshop: Workshop) -> Answerer:
    """Cut to the largest rank that takes no more bytes (two a number) than the slots. Raises InputError."""
    return _merged(workshop, rank_for(workshop.engine.model, workshop.engine.model.kv_bytes(workshop.num_slots)))


def rank_for(model: Model, num_bytes: int) -> int:
    """The largest rank of every layer's change that fits. Raises InputError where not even rank 1 does."""
    mlps = chosen_layers(model, TransmuteConfig.resolve(model.profile))
    each = 2 * sum(sum(mlp.output.weight.shape) for mlp in mlps)
    if (rank := num_bytes // each) < 1:
        raise InputError(f"given {num_bytes} bytes for an adapter, expected at least {each}, those of rank 1")
    return rank


def _merged(workshop: Workshop, rank: int | None) -> Answerer:
    dataset, started = workshop.study(), time.monotonic()
    changed = dataclasses.replace(workshop.engine.model, hf=copy.deepcopy(workshop.engine.model.hf))
    config = TransmuteConfig.resolve(changed.profile, values={"rank": rank})
    made = transmute([Source(dataset, workshop.corpus, workshop.study_config)], changed, config)
    merge(changed, made)
    seconds = time.monotonic() - started + study_seconds(dataset)
    return Answerer(engine=Engine(changed), kept_bytes=2 * made.num_numbers, build_s=seconds)
