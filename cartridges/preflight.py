"""What is looked at before a training run begins or goes on: its devices and trackers, and whether data, model, folder
and checkpoint fit.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cartridges.dataset import Dataset
from cartridges.errors import ConfigError, FormatError, InputError
from cartridges.model import Model
from cartridges.precision import NAMES, check_resumed
from cartridges.recipe import TrainConfig
from cartridges.writer import check_writer


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
    check_writer(dataset, model, "synthesize with this model, or train with that one")
    largest = max((int(talk.token_ids.max()) for talk in dataset.conversations), default=0)
    if largest >= model.identity.vocab_size:
        raise InputError(
            f"the dataset has the token id {largest}, the vocabulary of {model.identity.model_id} ends at "
            f"{model.identity.vocab_size - 1}; train with the model that wrote it"
        )


def check_checkpoint(path: Path, state: dict[str, Any], made_with: dict[str, Any], num_groups: int) -> None:
    """Refuse a checkpoint of another version of the package, or of a run that is made with something else."""
    old, now = json.loads(state["made_with"]), json.loads(json.dumps(made_with))
    newer = TrainConfig.resolve().model_dump(mode="json")  # fields that an older run did not have
    old["config"] = {**newer, **old["config"]}
    is_older = len(state["optimizer"]["param_groups"]) < num_groups or (now["split"] and "split" not in old)
    old.setdefault("split", "")
    if is_older or old["config"].keys() - now["config"].keys():
        raise FormatError(
            f"cannot resume from {path}: {'an older' if is_older else 'another'} version of cartridges wrote it; "
            "go on with that version, or delete it to begin anew"
        )
    differing = sorted(key for key in now if old.get(key) != now[key])
    if differing:
        fields = [f"config ({name})" for name in sorted(newer) if old["config"][name] != now["config"][name]]
        told = ", ".join([name for name in differing if name != "config"] + fields)
        raise ConfigError(f"{path.parent} holds a run with another {told}; give another folder")


def resumed_precision(folder: Path, state: dict[str, Any], model: Model, chosen: str) -> str:
    """The precision that a checkpoint's run began in, whatever is `chosen` here; an older one does not tell.

    Raises ConfigError where it cannot be had with this model on this device.
    """
    dtype = NAMES.get(model.dtype, str(model.dtype))
    if (began := state.get("dtype", dtype)) != dtype:
        raise ConfigError(
            f"{folder} holds a run of the model in {began}, given it in {dtype}; load it in {began}, or give another "
            "folder"
        )
    began = state.get("precision", chosen)
    return check_resumed(folder, began, model.device) if model.dtype == torch.float32 else began
