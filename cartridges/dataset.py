"""A dataset: conversations in Parquet shards, and a manifest that says where they come from.

A folder holds `shard-00000.parquet` and so on, each there whole or not at all, and `manifest.json`. Rows are read in
groups when they are first asked for, and kept. Whatever the shards, the order is that of the conversations' numbers.
"""

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

from cartridges.conversation import Conversation, opening
from cartridges.errors import FormatError, InputError
from cartridges.run_folder import write_json, write_whole
from cartridges.shards import Shard, encoded

MANIFEST = "manifest.json"
SPLIT = "by the words of the first message"  # what was trained with sides that were drawn otherwise does not mix
SHARD_NAME = re.compile(r"shard-(\d+)\.parquet")


class DatasetWriter:
    """Writes the shards of a dataset into a folder, in any order."""

    def __init__(self, folder: Path) -> None:
        """Make `folder`. Raises InputError where it is a file."""
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"given {folder} for a dataset, expected a folder; it is, or lies in, a file") from error

    def path(self, number: int) -> Path:
        """Where the shard `number` is, or will be."""
        return self.folder / f"shard-{number:05d}.parquet"

    def write_shard(self, number: int, conversations: Sequence[Conversation]) -> Path:
        """Write a shard, which may be empty; an older one of that number is replaced at once or not at all.

        Raises FormatError where a conversation is malformed or two have one number.
        """
        for conversation in conversations:
            conversation.check()
        _check_distinct({"this shard": [conversation.index for conversation in conversations]})
        write_whole(self.path(number), encoded(conversations))
        return self.path(number)

    def shards(self) -> list[int]:
        """The numbers of the finished shards. Raises FormatError where one is damaged."""
        found = _shard_paths(self.folder)
        for path in found.values():
            Shard(path)
        return list(found)


class Dataset:
    """Conversations in the order of their numbers, and what is known of their making.

    conversations: read from disk when first asked for.
    manifest: what `save_manifest` wrote; {} where nothing did.
    """

    def __init__(self, conversations: Sequence[Conversation], manifest: Mapping[str, Any]) -> None:
        """Hold conversations that are sorted and of distinct numbers; see `load` and `from_conversations`."""
        self.conversations = conversations
        self.manifest = dict(manifest)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The dataset in a folder, in one `.parquet` file, or around a `manifest.json`.

        Raises InputError where there is none, FormatError where it is damaged or of another format.
        """
        path = Path(path)
        path = path.parent if path.name == MANIFEST else path
        if not path.exists():
            raise InputError(f"given {path}, expected the folder of a dataset or a .parquet file; there is none there")
        files = list(_shard_paths(path).values()) if path.is_dir() else [path]
        if not files:
            raise InputError(f"given {path}, expected the folder of a dataset; it holds no shard-*.parquet")
        manifest = _read_manifest(path / MANIFEST) if path.is_dir() else {}
        conversations = _Stored([Shard(file) for file in files])
        if not len(conversations):
            raise InputError(f"given {path}, expected a dataset; its {len(files)} file(s) hold no conversations")
        expected = manifest.get("num_kept", len(conversations))
        if expected != len(conversations):
            raise FormatError(
                f"{path} holds {len(conversations)} conversations, its {MANIFEST} says {expected}; restore the shards "
                "that are missing, or synthesize into this folder again"
            )
        return cls(conversations, manifest)

    @classmethod
    def from_conversations(
        cls, conversations: Sequence[Conversation], manifest: Mapping[str, Any] | None = None
    ) -> Self:
        """A dataset in memory. Raises InputError where it is empty, FormatError where a conversation is malformed."""
        if not conversations:
            raise InputError("given no conversations, expected at least one")
        for conversation in conversations:
            conversation.check()
        _check_distinct({"the list": [conversation.index for conversation in conversations]})
        return cls(sorted(conversations, key=lambda conversation: conversation.index), manifest or {})

    @staticmethod
    def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
        """Write the manifest of the dataset in `folder`; where it gives `num_kept`, `load` counts."""
        write_json(Path(folder) / MANIFEST, manifest)

    def save(self, folder: Path, shard_len: int = 1024) -> None:
        """Write shards and the manifest, with their own count and digest. Raises InputError where there are shards."""
        writer = DatasetWriter(folder)
        if writer.shards():
            raise InputError(f"given {folder}, expected a folder without shards; give another, or delete them")
        for number, first in enumerate(range(0, len(self.conversations), shard_len)):
            writer.write_shard(number, self.conversations[first : first + shard_len])
        own = {"num_kept": len(self.conversations), "dataset_digest": self.digest}
        self.save_manifest(writer.folder, {key: own.get(key, value) for key, value in self.manifest.items()})

    @cached_property
    def digest(self) -> str:
        """The sha256 of all conversations, in hex; the same however they are stored. Reads everything."""
        digests = (bytes.fromhex(conversation.digest) for conversation in self.conversations)
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def release(self) -> None:
        """Forget what was read from disk; it is read again when asked for."""
        for shard in getattr(self.conversations, "shards", ()):
            shard.release()

    def preview(self, num_shown: int) -> str:
        """`num_shown` conversations, spread over the dataset, as text. Raises InputError where that is less than 1."""
        if num_shown < 1:
            raise InputError(f"given {num_shown} conversations to show, expected at least 1")
        num_all = len(self.conversations)
        num_shown = min(num_shown, num_all)
        shown = [str(self.conversations[place * num_all // num_shown]) for place in range(num_shown)]
        return "\n\n".join([f"{num_shown} of {num_all} conversations", *shown])

    def split(self, holdout_ratio: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """The conversations to train on and those held out, about `holdout_ratio` of all; either may be empty.

        On which side one falls depends on its first message and `seed` alone: it stays there when others are added, and
        those that ask the same are on one side. Conversations about one chunk may fall on both. Raises InputError.
        """
        if not 0 <= holdout_ratio <= 1:
            raise InputError(f"given holdout_ratio={holdout_ratio}, expected a number from 0 to 1")
        is_held_out = [_lot(seed, text) < holdout_ratio for text in _openings(self.conversations)]
        sides = ([row for row, held_out in enumerate(is_held_out) if held_out == side] for side in (False, True))
        train, heldout = (Dataset(_View(self.conversations, rows), self.manifest) for rows in sides)
        return train, heldout


class _Rows(Sequence[Conversation]):
    """A sequence of conversations whose items are found by `_at`, and whose openings are known without reading all."""

    @overload
    def __getitem__(self, place: int) -> Conversation: ...
    @overload
    def __getitem__(self, place: slice) -> list[Conversation]: ...
    def __getitem__(self, place: int | slice) -> Conversation | list[Conversation]:
        if isinstance(place, slice):
            return [self._at(row) for row in range(*place.indices(len(self)))]
        return self._at(range(len(self))[place])

    @abstractmethod
    def _at(self, row: int) -> Conversation: ...

    @abstractmethod
    def openings(self) -> list[str]: ...


class _View(_Rows):
    """Some conversations of a sequence."""

    def __init__(self, whole: Sequence[Conversation], rows: list[int]) -> None:
        self.whole, self.rows = whole, rows

    def __len__(self) -> int:
        return len(self.rows)

    def _at(self, row: int) -> Conversation:
        return self.whole[self.rows[row]]

    def openings(self) -> list[str]:
        known = _openings(self.whole)
        return [known[row] for row in self.rows]


class _Stored(_Rows):
    """The conversations of several shards, by number."""

    def __init__(self, shards: list[Shard]) -> None:
        _check_distinct({str(shard.path): shard.indices for shard in shards})
        places = sorted(
            (index, shard, row) for shard, one in enumerate(shards) for row, index in enumerate(one.indices)
        )
        self.shards = shards
        self.places = [(shard, row) for _, shard, row in places]

    def __len__(self) -> int:
        return len(self.places)

    def _at(self, row: int) -> Conversation:
        shard, row_in_shard = self.places[row]
        return self.shards[shard].conversation(row_in_shard)

    def openings(self) -> list[str]:
        return [self.shards[shard].openings[row] for shard, row in self.places]


def _openings(conversations: Sequence[Conversation]) -> list[str]:
    """What each begins with."""
    if isinstance(conversations, _Rows):
        return conversations.openings()
    return [opening(talk.messages, talk.index) for talk in conversations]


def _shard_paths(folder: Path) -> dict[int, Path]:
    """The shards of a folder by their numbers, ascending. Raises FormatError where two have one number."""
    found = sorted((int(name[1]), path) for path in folder.iterdir() if (name := SHARD_NAME.fullmatch(path.name)))
    _check_distinct({str(path): [number] for number, path in found}, "shards")
    return dict(found)


def _check_distinct(indices: Mapping[str, Sequence[int]], what: str = "conversations") -> None:
    """Raise FormatError where two of `what` have one number; `indices` are by where they stand."""
    seen: dict[int, str] = {}
    for where, numbers in indices.items():
        for number in numbers:
            if number in seen:
                places = f"in {where}" if seen[number] == where else f"in {seen[number]} and {where}"
                raise FormatError(
                    f"there are two {what} {number} {places}; expected distinct numbers; remove one of them"
                )
            seen[number] = where


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged ({type(error).__name__}); restore it, or delete it") from error
    if not isinstance(manifest, dict):
        raise FormatError(f"{path} holds a {type(manifest).__name__}, expected an object; restore it, or delete it")
    return manifest


def _lot(seed: int, text: str) -> float:
    """A number from 0 to below 1 drawn for a text."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48
