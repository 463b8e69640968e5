"""The files of the pocket model, or of any folder in the same form, with every fault told in one line.

The weights are ordinary: `AutoModelForCausalLM.from_pretrained(cartridges.pocket.WEIGHTS)` gives the model.
"""

import json
from pathlib import Path

from cartridges.errors import FormatError, InputError
from cartridges.pocket import MANIFEST
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
