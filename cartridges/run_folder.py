"""What the folder of a run promises: one process at a time writes in it, and a file is there whole or not at all.

A process that dies at any moment releases the folder and leaves at most `*.partial`, which the next one writes anew.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from cartridges.errors import FormatError, InputError, OtherRun

LOCK = ".lock"
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def resume_command(verb: str, folder: Path) -> str:
    """What to type to go on with the run of the command `verb` in `folder`."""
    return f"cartridges {verb} {shlex.quote(str(folder))}"


class StopSignals:
    """While entered, SIGINT and SIGTERM only set `asked`, so that no step is cut in two; a second one interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored under nohup and in scripts
                    self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def check_stamp(path: Path, told: Mapping[str, Any]) -> None:
    """Write into the file `path` what its folder is for.

    Raises OtherRun where it says something else, FormatError where it cannot be read.
    """
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} cannot be read; give another folder, or delete this one") from error
        differing = [f"{key} {before.get(key)!r} (now {told[key]!r})" for key in told if before.get(key) != told[key]]
        if differing:
            raise OtherRun(f"{path.parent} holds a run with {', '.join(differing)}; give another folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(told))


def claim(folder: Path) -> TextIO:
    """Make `folder` and hold it until the result is closed or the process dies.

    Raises InputError where another process holds it, or where it is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        raise InputError(f"given {folder}, expected a folder; {file} is a file") from error
    lock = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise InputError(
            f"{folder} is in use by process {holder or '(unknown)'}; wait for its end or give another folder"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that at every moment the old or the new one is there."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _named(error, path) from error


def json_bytes(content: Any, indent: int | None = 1) -> bytes:
    """JSON with a line feed; half surrogates, as in names of files that are no UTF-8, in JSON's own escapes."""
    return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_whole` writes."""
    write_whole(path, json_bytes(content))


def write_whole_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a folder, and put it at `path` when it is whole; an older one there is replaced."""
    partial, old = (path.with_name(path.name + ending) for ending in (".partial", ".old"))
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        partial.mkdir()
        fill(partial)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _named(error, path) from error
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors_told(folder: Path) -> Iterator[None]:
    """Turn a disk that is full or closed to us into an InputError with the way out."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or folder
        raise InputError(f"{where}: {error.strerror or error}; mend that and give the same command again") from error


def _named(error: Exception, path: Path) -> Exception:
    """The error with the name of the file; a library in Rust tells a full disk in its message alone."""
    told = _RUST_ERROR.search(str(error))
    number = (error.errno or errno.EIO) if isinstance(error, OSError) else int(told[1]) if told else None
    return error if number is None else OSError(number, os.strerror(number), str(path))
