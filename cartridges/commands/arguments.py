"""Arguments that several commands take: paths and KEY=VALUE overrides in one list."""

from collections.abc import Sequence
from pathlib import Path

from cartridges.errors import InputError


def parted(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths, and what has the form KEY=VALUE and is no existing path. Raises InputError for an empty argument."""
    if not all(arguments):
        raise InputError("given an empty argument, expected a path or KEY=VALUE")
    overrides = [text for text in arguments if "=" in text and not _exists(text)]
    return [Path(text) for text in arguments if text not in overrides], overrides


def split_overrides(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The same where at least one path is needed. Raises InputError where none is left."""
    paths, overrides = parted(arguments)
    if not paths:
        raise InputError(f"given {' '.join(arguments)!r}, expected at least one path beside KEY=VALUE")
    return paths, overrides


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than any name may be
        return False
