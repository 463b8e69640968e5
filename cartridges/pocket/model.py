"""Loading the pocket model, or any folder in the same form, with every fault told in one line.

The weights are ordinary: `AutoModelForCausalLM.from_pretrained(cartridges.pocket.WEIGHTS)` gives the same model.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from cartridges.errors import FormatError, InputError
from cartridges.pocket import MANIFEST, WEIGHTS
from cartridges.run_folder import file_digest


def check_files(path: Path) -> None:
    """Refuse a folder that is missing, is no model, or whose files are not those that its manifest lists."""
    if not path.is_dir():
        raise InputError(f"no model at {path}; give a folder that holds config.json and model.safetensors")
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (path / name).exists()]
    if missing:
        raise InputError(f"{path} is no model folder: {', '.join(missing)} missing")
    manifest = path / MANIFEST
    if not manifest.exists():
        return
    try:
        digests = json.loads(manifest.read_text())["sha256"]
        damaged = [name for name, digest in digests.items() if file_digest(path / name) != digest]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise FormatError(
            f"{manifest} cannot be read ({type(error).__name__}); install or copy the model again"
        ) from error
    if damaged:
        raise FormatError(
            f"{path / damaged[0]} is damaged (its sha256 is not the manifest's); install or copy it again"
        )


def load(path: Path = WEIGHTS, device: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in `path`, ready to read, on `device` (default: CUDA where there is one), and its tokenizer.

    Raises InputError where there is no model and FormatError where its files are damaged.
    """
    path = Path(path)
    check_files(path)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("given device 'cuda', but torch sees no CUDA device here; use cpu")
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, output_loading_info=True)
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # what transformers, tokenizers and safetensors raise for bad files has no common base
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise FormatError(f"the model in {path} cannot be read ({type(error).__name__}: {first_line})") from error
    faults = [
        f"{len(keys)} tensors {name.removesuffix('_keys')}"
        for name in ("missing_keys", "mismatched_keys")
        if (keys := info[name])
    ]
    if faults:
        raise FormatError(f"the model in {path} is incomplete: {', '.join(faults)}; copy it again")
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer
