"""Arguments that several commands take: paths and KEY=VALUE overrides in one list, and servers elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.clients.remote import RemoteClient

Command = TypeVar("Command", bound=Callable[..., Any])


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


def server_options(command: Command) -> Command:
    """Adds --url, --dialect, --served-name and --api-key-file, which `connected` takes."""
    dialects = click.Choice(["openai", "vllm", "sglang", "tokasaurus"])
    options = (
        click.option("--url", "urls", multiple=True, help="A server that answers instead; may be repeated."),
        click.option("--dialect", type=dialects, default="vllm", show_default=True, help="Ours speak vllm."),
        click.option("--served-name", default="", help="What the servers call the model; by default they are asked."),
        click.option("--api-key-file", type=click.Path(path_type=Path), help="File with the servers' key."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def connected(
    urls: Sequence[str], dialect: str, served_name: str, api_key_file: Path | None, model: str
) -> "RemoteClient | None":
    """The client of the servers; None where none is named. Raises InputError where none of them answers."""
    if not urls:
        return None
    from cartridges.clients.remote import connect

    return connect(urls, dialect, model, api_key=read_key(api_key_file), served_name=served_name)


def read_key(path: Path | None) -> str:
    """The first line of a file; "" without one. Raises InputError for an empty file."""
    if path is None:
        return ""
    lines = path.read_text(encoding="utf-8").split()
    if not lines:
        raise InputError(f"{path} is empty, expected a key in its first line")
    return lines[0]
