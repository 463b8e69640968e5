"""The noun corpus: the documents that a cartridge stands for, read from files and folders.

A text file is one document, whatever its kind; `.json` and `.jsonl` may hold several. A file that cannot be a document
is skipped and named in `skipped`, one that had to be guessed or mended in `decoded_as` and `replaced`; `summary()`
counts them all. Paths are relative to the folder given, lines end in a line feed, the same files give the same corpus.
"""

import difflib
import errno
import fnmatch
import hashlib
import heapq
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from cartridges.errors import InputError, unknown_name
from cartridges.log import track

MAX_FILE_BYTES = 50_000_000
HIDDEN = {"__pycache__", "node_modules"}  # and all names that start with a dot
TEXT_FIELDS = ("text", "content", "body")
NAME_FIELDS = ("path", "id", "title")
NUM_NAMES_SHOWN = 5

# the longer marks first: that of UTF-32 begins with that of UTF-16
BOMS = [(b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")]
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1a\x1b") | {127})
MAX_HIGH_SHARE = 0.4  # of bytes above 127 in a Western text; Cyrillic and East Asian encodings have more
_SURROGATE = re.compile(r"[\ud800-\udfff]")

WAYS_OUT = {  # how files that were skipped for a reason can be read after all
    "binary": "save texts as UTF-8 and turn PDF, Word and the like into text first",
    "too large": "give a max_file_bytes above {:,}",
    "no permission": "make them readable",
    "malformed JSON": "mend the JSON",
    "hidden": "give hidden files by name",
}


@dataclass(frozen=True)
class Document:
    """One text, with a name that no other document of its corpus has."""

    path: str
    text: str


@dataclass(repr=False)
class Corpus:
    """Documents in a fixed order, and what became of the files that are none."""

    documents: list[Document]
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason -> paths
    decoded_as: dict[str, list[str]] = field(default_factory=dict)  # encoding other than plain UTF-8 -> paths
    replaced: dict[str, int] = field(default_factory=dict)  # path -> characters that were none, now U+FFFD

    def __post_init__(self) -> None:
        """Refuse two documents of one name."""
        seen: set[str] = set()
        for document in self.documents:
            if document.path in seen:
                raise InputError(f"given two documents named {document.path!r}, expected names that differ; rename one")
            seen.add(document.path)

    @classmethod
    def from_path(
        cls,
        *paths: str | Path,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> Self:
        """Read files and folders, in the order given, a folder's files sorted by path.

        `include` and `exclude` are patterns of the shell (`*.md`, `guide/*`, `**/api/*.py`), held against a file's
        path below its root, its name, and those of the folders it is in. With several roots, paths begin with the
        name of the root. Raises InputError where a path does not exist, a pattern fits nothing or no text is left.
        """
        roots = list(dict.fromkeys(_existing(path) for path in paths))
        if not roots:
            raise InputError("given no path, expected at least one file or folder of documents")
        reader = _Reader(include, exclude, max_file_bytes)
        files = [file for root, label in zip(roots, _labels(roots), strict=True) for file in reader.find(root, label)]
        shown = _listed([str(path) for path in paths])
        for pattern in sorted(reader.unused):
            raise InputError(f"given the include pattern {pattern!r}, expected one that fits a file of {shown}")
        for label, file in track(files, "reading documents"):
            reader.read(label, file)
        reader.check(shown)
        return cls(reader.documents, reader.skipped, reader.decoded_as, dict(+reader.replaced))

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> Self:
        """One document for each name, in the order given."""
        reader = _Reader()
        for path, text in texts.items():
            if not isinstance(path, str) or not isinstance(text, str):
                given = f"{type(path).__name__} {path!r} with {type(text).__name__}"
                raise InputError(f"given {given}, expected a name and a text, both str")
            reader.add(path, text)
        reader.check("the texts given")
        return cls(reader.documents, reader.skipped, replaced=dict(+reader.replaced))

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        return f"Corpus({self.summary()})"

    def document(self, path: str) -> Document:
        """The document of that name."""
        if path not in self._by_path:
            raise InputError(unknown_name("document", path, self._by_path))
        return self._by_path[path]

    @cached_property
    def _by_path(self) -> dict[str, Document]:
        return {document.path: document for document in self.documents}

    @property
    def text(self) -> str:
        """All documents, in order, with an empty line between them."""
        return "\n\n".join(document.text for document in self.documents)

    @property
    def num_chars(self) -> int:
        """Characters of all documents."""
        return sum(len(document.text) for document in self.documents)

    @cached_property
    def digest(self) -> str:
        """The sha256, in hex, of the paths and texts in their order; not of where they were read from."""
        hashed = hashlib.sha256()
        for document in self.documents:
            for part in (document.path.encode(), document.text.encode()):
                hashed.update(len(part).to_bytes(8, "big") + part)
        return hashed.hexdigest()

    def summary(self) -> str:
        """One line: '12 documents, 34,567 characters; skipped: 2 binary'."""
        parts = [f"{_counted(len(self), 'document')}, {_counted(self.num_chars, 'character')}"]
        if self.skipped:
            parts.append("skipped: " + ", ".join(f"{len(paths):,} {reason}" for reason, paths in self.skipped.items()))
        if self.decoded_as:
            parts.append(
                "decoded: " + ", ".join(f"{len(paths):,} as {code}" for code, paths in self.decoded_as.items())
            )
        if self.replaced:
            parts.append("replaced: " + _counted(sum(self.replaced.values()), "broken character"))
        return "; ".join(parts)


def _counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}" + ("" if num == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMES_SHOWN]) + (", ..." if len(names) > NUM_NAMES_SHOWN else "")


def _existing(path: str | Path) -> Path:
    """The absolute path of a file or folder that exists; links in it are kept, as their names are shown."""
    expected = f"given {str(path)!r}, expected a file or folder of documents"
    if not str(path):
        raise InputError(f"{expected}; the name is empty")
    given = Path(path)
    try:
        given.stat()
    except FileNotFoundError as error:
        if given.is_symlink():
            raise InputError(f"{expected}; it is a broken link to '{given.readlink()}'") from error
        nearest: list[str] = []
        with suppress(OSError):
            nearest = difflib.get_close_matches(given.name, [other.name for other in given.parent.iterdir()], n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"{expected}; there is none there{hint}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{expected}; it cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    return Path(os.path.abspath(given))  # noqa: PTH100 (takes ".." away and keeps links)


def _labels(roots: Sequence[Path]) -> list[str]:
    """What the paths of each root begin with: nothing for a folder alone, else as much of its end as tells it apart."""
    if len(roots) == 1 and roots[0].is_dir():
        return [""]
    parts = [[part for part in root.parts if part != root.anchor] or ["root"] for root in roots]
    choices = (["/".join(names[-depth:]) for names in parts] for depth in range(1, max(map(len, parts)) + 1))
    return next(labels for labels in choices if len(set(labels)) == len(labels))


def _patterns(given: Sequence[str]) -> dict[str, re.Pattern[str]]:
    """Regular expressions of shell patterns, `**/` standing for any folders or none."""
    found: dict[str, re.Pattern[str]] = {}
    for pattern in [given] if isinstance(given, str) else given:
        plain = pattern.removeprefix("./").rstrip("/")
        found[pattern] = re.compile("|".join(map(fnmatch.translate, (plain, plain.replace("**/", "")))))
    return found


class _Reader:
    """Finds the files below the roots and turns them into documents, each file once."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = (), max_file_bytes: int = 0) -> None:
        self.include, self.exclude = _patterns(include), _patterns(exclude)
        self.max_file_bytes = max_file_bytes
        self.documents: list[Document] = []
        self.skipped: dict[str, list[str]] = {}
        self.decoded_as: dict[str, list[str]] = {}
        self.replaced: Counter[str] = Counter()
        self.unused = set(self.include)  # patterns that fitted no file yet
        self._read: set[Path] = set()  # files and folders, by their real paths
        self._taken: set[str] = set()

    def check(self, source: str) -> None:
        """Raise InputError where no document was found, with what was there instead."""
        if not self.documents and not self.skipped:
            found = "no file in it" + (" that the exclude patterns leave" if self.exclude else "")
            raise InputError(f"{source}: {found}, expected text, Markdown, code or JSON")
        if self.documents:
            return
        told = ", ".join(f"{len(paths)} {reason} ({_listed(paths)})" for reason, paths in self.skipped.items())
        ways_out = "; ".join(dict.fromkeys(WAYS_OUT.get(reason, "give other files") for reason in self.skipped))
        raise InputError(f"{source}: no text left to read, skipped: {told}; {ways_out.format(self.max_file_bytes)}")

    def skip(self, reason: str, path: str) -> None:
        """Count a file, or a part of one, that is no document."""
        self.skipped.setdefault(reason, []).append(_clean(path)[0])

    def find(self, root: Path, label: str) -> list[tuple[str, Path]]:
        """The files of a root, sorted, with the paths of their documents. Links are followed last, after all else."""
        found: list[tuple[str, Path]] = []
        prefix = f"{label}/" if label and root.is_dir() else label.removesuffix(root.name)
        waiting = [(False, "" if root.is_dir() else root.name, root.resolve())]  # is it a link, path below root, where
        while waiting:
            is_link, below, path = heapq.heappop(waiting)
            shown = (prefix + below).rstrip("/") or "."
            try:
                status = path.stat()
                real = path.resolve() if is_link else path
                is_folder = stat.S_ISDIR(status.st_mode)
                entries = [(entry.is_symlink(), entry) for entry in real.iterdir()] if is_folder else []
            except OSError as error:
                self.skip(_reason(error), shown)
                continue
            if not is_folder and (self._is_excluded(below) or not self._is_included(below)):
                continue
            if reason := self._refused(real, status, is_circle=is_link and is_folder and path.is_relative_to(real)):
                self.skip(reason, shown)
                continue
            self._read.add(real)
            if not is_folder:
                found.append((shown, real))
            for entry_is_link, entry in sorted(entries):
                name = f"{below}/{entry.name}" if below else entry.name
                if entry.name.startswith(".") or entry.name in HIDDEN:
                    self.skip("hidden", prefix + name)
                elif not self._is_excluded(name):
                    heapq.heappush(waiting, (entry_is_link, name, entry))
        return sorted(found, key=lambda file: file[0].split("/"))

    def _is_excluded(self, below: str) -> bool:
        return any(rule.match(name) for name in (below, below.rpartition("/")[2]) for rule in self.exclude.values())

    def _is_included(self, below: str) -> bool:
        parts = below.split("/")
        names = {"/".join(parts[: depth + 1]) for depth in range(len(parts))} | set(parts)
        fitting = [key for key, pattern in self.include.items() if any(map(pattern.match, names))]
        self.unused.difference_update(fitting)
        return bool(fitting) or not self.include

    def _refused(self, real: Path, status: os.stat_result, is_circle: bool) -> str:
        """Why not to read a file or folder, "" where there is no reason."""
        is_folder = stat.S_ISDIR(status.st_mode)
        reasons = {
            "link in a circle": is_circle,
            "already read": real in self._read,
            "no regular file": not is_folder and not stat.S_ISREG(status.st_mode),
            "too large": not is_folder and status.st_size > self.max_file_bytes,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def read(self, path: str, file: Path) -> None:
        """Add the documents of one file."""
        path = _clean(path)[0]
        try:
            decoded = _decoded(file.read_bytes())
        except OSError as error:
            return self.skip(_reason(error), path)
        if decoded is None:
            return self.skip("binary", path)
        text, encoding, self.replaced[path] = decoded
        if encoding != "utf-8":
            self.decoded_as.setdefault(encoding, []).append(path)
        kind = Path(path).suffix.lower() if text.strip() else "empty"
        if kind == ".json":
            self._add_json(path, text)
        elif kind in (".jsonl", ".ndjson"):
            for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
                if line.strip():
                    self._add_json(path, line, number)
        else:
            self.add(path, text)

    def _add_json(self, path: str, text: str, line_number: int = 0) -> None:
        """Add the documents of a JSON file, or of one line of a file of JSON Lines."""
        try:
            value = json.loads(text)
            is_list = isinstance(value, list) and value and all(_text_field(item) is not None for item in value)
            items = value if is_list and not line_number else [value]
            texts = [_as_text(item) for item in items]
        except (ValueError, RecursionError) as error:  # also for numbers and nestings beyond what Python takes
            return self.skip("malformed JSON", f"{path}:{line_number or getattr(error, 'lineno', 1)}")
        if items is not value and not line_number:
            return self.add(path, texts[0])
        for number, (item, content) in enumerate(zip(items, texts, strict=True), start=line_number or 1):
            self.add(self._name(path, item, number), content)

    def add(self, path: str, text: str) -> None:
        """Add one document, its line ends and characters mended."""
        path = _clean(path)[0]
        text, num_replaced = _clean(text.replace("\r\n", "\n").replace("\r", "\n"))
        if not text.strip():
            return self.skip("empty", path)
        self._taken.add(path)
        self.documents.append(Document(path, text))
        self.replaced[path] += num_replaced

    def _name(self, path: str, value: Any, number: int) -> str:
        """`path:name` where the value has a name, else `path:number`; with the number behind it where it is taken."""
        given = [value[key] for key in NAME_FIELDS if key in value] if isinstance(value, dict) else []
        names = [" ".join(str(name).split()) for name in given if isinstance(name, str | int)]
        path = _clean(f"{path}:{next(filter(None, names), number)}")[0]
        while path in self._taken:
            path = f"{path}:{number}"
        return path


def _reason(error: OSError) -> str:
    """Why a file could not be opened; one that is in its folder and yet not found is a link."""
    reasons = {errno.ELOOP: "link in a circle", errno.ENOENT: "broken link"}
    return reasons.get(error.errno or 0, "no permission" if isinstance(error, PermissionError) else "unreadable")


def _clean(text: str) -> tuple[str, int]:
    """Text with U+FFFD for each lone surrogate, and their number."""
    return _SURROGATE.subn("\ufffd", text)


def _decoded(content: bytes) -> tuple[str, str, int] | None:
    """Text, encoding and the number of characters replaced; None for what is no text."""
    for bom, encoding in BOMS:
        if content.startswith(bom):
            with suppress(UnicodeDecodeError):
                return content.decode(encoding), encoding, 0
            return None
    if b"\0" in content or content.startswith(b"%PDF-"):
        return None
    utf8 = "utf-8-sig" if content.startswith(b"\xef\xbb\xbf") else "utf-8"
    try:
        return content.decode(utf8), utf8, 0
    except UnicodeDecodeError:
        if len(content.translate(None, CONTROL_BYTES)) < len(content):
            return None
    damaged = content.decode(utf8, "replace")
    num_bad = damaged.count("\ufffd")
    if len(damaged) - len(damaged.encode("ascii", "ignore")) > 2 * num_bad:  # most of what is not ASCII is right
        return damaged, utf8, num_bad
    if len(content) - len(content.decode("ascii", "ignore")) > MAX_HIGH_SHARE * len(b"".join(content.split())):
        return None
    try:
        return content.decode("cp1252"), "cp1252", 0
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1", 0


def _text_field(value: Any) -> str | None:
    """The text that a JSON value is or holds, if any."""
    if isinstance(value, dict):
        return next((value[key] for key in TEXT_FIELDS if isinstance(value.get(key), str)), None)
    return value if isinstance(value, str) else None


def _as_text(value: Any) -> str:
    """The text of a JSON value, or the whole of it as indented JSON; "" where it is empty."""
    if (text := _text_field(value)) is not None:
        return text
    return "" if value in (None, {}, []) else json.dumps(value, ensure_ascii=False, indent=2)
