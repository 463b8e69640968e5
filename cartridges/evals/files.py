"""Data sets on disk or on the hub: a local path as it is, or one file of a repository of the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

from cartridges.errors import CartridgesError, FormatError, InputError

HUB = "hf://"  # "hf://datasets/owner/name/path/in/it"


def local_file(place: str | Path, what: str) -> Path:
    """The file, fetched first where `place` begins with hf://datasets/. Raises InputError where there is none."""
    text = str(place)
    if text.startswith(HUB):
        kind, owner, name, *rest = [*text.removeprefix(HUB).split("/"), "", "", ""]
        inside = "/".join(part for part in rest if part)
        if kind != "datasets" or not (owner and name and inside):
            raise InputError(f"given {text} for {what}, expected hf://datasets/OWNER/NAME/FILE")
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(f"{owner}/{name}", inside, repo_type="dataset"))
        except Exception as error:  # what the hub raises has no common base
            raise CartridgesError(
                f"cannot fetch {text} ({type(error).__name__}); give the path of a local copy as {what}"
            ) from error
    path = Path(text)
    if not path.is_file():
        raise InputError(f"given {path} for {what}, expected a file; there is none there")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises FormatError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({type(error).__name__}); fetch it again") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. Raises FormatError, with the line where it is one that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a string of JSON may hold other line ends as they are
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); fetch it again") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise FormatError(f"{path}, line {number}: given {line[:60]!r}, expected a JSON object; mend or remove it")
        rows.append(row)
    return rows


def field(row: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a row. Raises FormatError where it is missing or odd."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise FormatError(f"{where}: given {value!r:.60} as {key!r}, expected {expected}; is this the right file?")
    return value
