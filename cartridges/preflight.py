"""What is looked at before a training run begins: its devices and trackers, and whether data, model and folder fit."""

from pathlib import Path

import torch
from accelerate import Accelerator

from cartridges.dataset import Dataset
from cartridges.errors import ConfigError, InputError
from cartridges.model import Model
from cartridges.recipe import TrainConfig


def accelerator_of(model: Model, config: TrainConfig, out: Path) -> Accelerator:
    """Devices and trackers. Raises ConfigError for a tracker that is not there."""
    try:
        made = Accelerator(
            cpu=model.device.type == "cpu",
            log_with=[*config.trackers] or None,
            project_dir=out if config.trackers else None,
        )
    except ValueError as error:
        raise ConfigError(f"given trackers={config.trackers}: {error}") from error
    if len(made.log_with) < len(config.trackers):
        raise ConfigError(f"given trackers={config.trackers}, but not all of them are installed; pip install them")
    if model.device.type != "cpu" and made.device != model.device and made.num_processes > 1:
        raise InputError(
            f"process {made.process_index} has its model on {model.device}, expected {made.device}; load it there"
        )
    return made


def check_run(dataset: Dataset | None, model: Model, config: TrainConfig, out: Path) -> None:
    """Refuse a dataset of another tokenizer, a folder that holds a dataset, and precision that cannot be had."""
    if any(out.glob("shard-*.parquet")):
        raise InputError(f"{out} holds a dataset, which a training run would overwrite; give another folder")
    if config.precision == "fp32" and model.dtype != torch.float32:
        raise InputError(f"given precision=fp32 and a model in {model.dtype}; load the model as float32")
    if config.patience and not config.holdout_share:
        raise ConfigError(f"given patience={config.patience} and holdout_share=0, expected some held-out conversations")
    if dataset is None:
        return
    made_with = dataset.manifest.get("model") or {}
    digest = dataset.manifest.get("tokenizer_digest") or made_with.get("tokenizer_digest")
    if digest and digest != model.identity.tokenizer_digest:
        raise InputError(
            f"the dataset was written with the tokenizer of {made_with.get('model_id', 'another model')}, given "
            f"{model.identity.model_id}; synthesize with this model, or train with that one"
        )
    largest = max((int(talk.token_ids.max()) for talk in dataset.conversations), default=0)
    if largest >= model.identity.vocab_size:
        raise InputError(
            f"the dataset has the token id {largest}, the vocabulary of {model.identity.model_id} ends at "
            f"{model.identity.vocab_size - 1}; train with the model that wrote it"
        )
