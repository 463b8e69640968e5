"""The model that wrote a dataset: loaded again, and held against the one that is to learn from it."""

from collections.abc import Mapping
from typing import Any

from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.model import Model, load_model


def load_writer(dataset: Dataset, name: str | None, device: str, label: str = "the dataset") -> Model:
    """The model that wrote the dataset, in the revision that did, or the one called `name` instead.

    Raises InputError where nothing tells which one it was, and as `load_model` does.
    """
    told = _told_of(dataset)
    source = name or str(told.get("model_id") or "")
    if not source:
        raise InputError(f"{label} does not tell which model wrote it; name it with --model")
    return load_model(source, device, revision=None if name else told.get("revision"))


def check_writer(dataset: Dataset, model: Model, way_out: str, label: str = "the dataset") -> None:
    """Raises InputError, with `way_out` at its end, where the dataset was written with another tokenizer."""
    told = _told_of(dataset)
    digest = dataset.manifest.get("tokenizer_digest") or told.get("tokenizer_digest")
    if digest and digest != model.identity.tokenizer_digest:
        raise InputError(
            f"{label} was written with the tokenizer of {told.get('model_id', 'another model')}, given "
            f"{model.identity.model_id}; {way_out}"
        )


def _told_of(dataset: Dataset) -> Mapping[str, Any]:
    return dataset.manifest.get("model") or {}
