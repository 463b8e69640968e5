"""A dataset: conversations in Parquet shards, and a manifest that says where they come from.

A folder holds `shard-00000.parquet` and so on, each there whole or not at all, and `manifest.json`. One row is one
conversation; the [M, K] arrays of its teacher are stored flat, with K beside them. Rows are read in groups when they
are first asked for, and kept. Whatever the shards, the order is that of the conversations' numbers.
"""

import hashlib
import json
import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from cartridges.conversation import Conversation, TopK
from cartridges.errors import FormatError, InputError
from cartridges.run_folder import write_json, write_whole

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SCHEMA_VERSION = 1
VERSION_KEY = b"cartridges.conversations"
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 128
SHARD_NAME = re.compile(r"shard-(\d+)\.parquet")
PARQUET_MAGIC = b"PAR1"
SCALARS = ("index", "document", "start", "stop", "seed_kind", "num_prompt_tokens", "num_new_tokens")
MAKE_ANEW = "delete it, and synthesize into this folder again to make it anew"


@cache
def _schema() -> "pa.Schema":
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = {
        "index": pa.int64(),
        "messages": pa.list_(message),
        "token_ids": pa.list_(pa.int32()),
        "target_positions": pa.list_(pa.int32()),
        "teacher_k": pa.int32(),
        "teacher_ids": pa.list_(pa.int32()),
        "teacher_logprobs": pa.list_(pa.float32()),
        "document": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "seed_kind": pa.string(),
        "num_prompt_tokens": pa.int64(),
        "num_new_tokens": pa.int64(),
    }
    return pa.schema(list(columns.items()), metadata={VERSION_KEY: str(SCHEMA_VERSION)})


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
        write_whole(self.path(number), _encoded(conversations))
        return self.path(number)

    def shards(self) -> list[int]:
        """The numbers of the finished shards. Raises FormatError where one is damaged."""
        found = _shard_paths(self.folder)
        for path in found.values():
            _Shard(path)
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
        conversations = _Stored([_Shard(file) for file in files])
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
            shard.groups.clear()

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

        On which side one falls depends on its number and `seed` alone, so it stays there when others are added.
        Conversations about one chunk may fall on both sides. Raises InputError.
        """
        if not 0 <= holdout_ratio <= 1:
            raise InputError(f"given holdout_ratio={holdout_ratio}, expected a number from 0 to 1")
        is_held_out = [_lot(seed, index) < holdout_ratio for index in self._indices()]
        sides = ([row for row, held_out in enumerate(is_held_out) if held_out == side] for side in (False, True))
        train, heldout = (Dataset(_View(self.conversations, rows), self.manifest) for rows in sides)
        return train, heldout

    def _indices(self) -> list[int]:
        held = self.conversations
        return held.indices if isinstance(held, _Rows) else [conversation.index for conversation in held]


class _Rows(Sequence[Conversation]):
    """A sequence of conversations whose items are found by `_at`, and whose numbers are known without reading them."""

    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

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


class _View(_Rows):
    """Some conversations of a sequence."""

    def __init__(self, whole: Sequence[Conversation], rows: list[int]) -> None:
        self.whole, self.rows = whole, rows
        known = whole.indices if isinstance(whole, _Rows) else None
        self.indices = [known[row] if known else whole[row].index for row in rows]

    def _at(self, row: int) -> Conversation:
        return self.whole[self.rows[row]]


class _Stored(_Rows):
    """The conversations of several shards, by number."""

    def __init__(self, shards: list["_Shard"]) -> None:
        _check_distinct({str(shard.path): shard.indices for shard in shards})
        places = sorted(
            (index, shard, row) for shard, one in enumerate(shards) for row, index in enumerate(one.indices)
        )
        self.shards = shards
        self.indices = [index for index, _, _ in places]
        self.places = [(shard, row) for _, shard, row in places]

    def _at(self, row: int) -> Conversation:
        shard, row_in_shard = self.places[row]
        return self.shards[shard].conversation(row_in_shard)


class _Shard:
    """One Parquet file of conversations; its numbers are read at once, its row groups when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises FormatError where the file is damaged, or holds something else."""
        self.path = path
        self.groups: dict[int, list[Conversation]] = {}
        with _open_parquet(path) as file:
            _check_schema(file.schema_arrow)
            counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            self.first_rows = [0, *accumulate(counts)]
            column = file.read(columns=["index"]).column("index")
            if column.null_count:
                raise FormatError("has missing values in the column index, expected numbers")
            self.indices: list[int] = column.to_numpy().tolist()

    def conversation(self, row: int) -> Conversation:
        group = bisect_right(self.first_rows, row) - 1
        if group not in self.groups:
            with _open_parquet(self.path) as file:
                self.groups[group] = _decoded(file.read_row_group(group, columns=_schema().names))
        return self.groups[group][row - self.first_rows[group]]


@contextmanager
def _open_parquet(path: Path) -> "Iterator[pq.ParquetFile]":
    """The open file, with what is raised for bad ones told in one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as source:
            if source.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
                raise FormatError("is no Parquet file; expected one that a dataset was written to")
            source.seek(0)
            with pq.ParquetFile(source, page_checksum_verification=True) as file:
                yield file
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path} cannot be read: {error.strerror}; give another, or mend that") from error
        raise FormatError(f"{path} is damaged, perhaps cut short ({type(error).__name__}); {MAKE_ANEW}") from error


def _check_schema(schema: "pa.Schema") -> None:
    version = (schema.metadata or {}).get(VERSION_KEY, str(SCHEMA_VERSION).encode()).decode()
    if version != str(SCHEMA_VERSION):
        raise FormatError(
            f"is of schema version {version}, expected {SCHEMA_VERSION}; "
            "read it with the version of cartridges that wrote it"
        )
    expected = _schema()
    if missing := [name for name in expected.names if name not in schema.names]:
        raise FormatError(f"lacks the columns {', '.join(missing)}; expected a dataset of conversations")
    for field in expected:
        if (given := schema.field(field.name).type) != field.type:
            raise FormatError(f"has the column {field.name} of type {given}, expected {field.type}")


def _encoded(conversations: Sequence[Conversation]) -> memoryview:
    """The content of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def nested(arrays: list[np.ndarray], kind: "pa.DataType", dtype: type) -> "pa.ListArray":
        offsets = np.cumsum([0, *(array.size for array in arrays)])
        if offsets[-1] > np.iinfo(np.int32).max:
            raise InputError(
                f"given a shard of {offsets[-1]} teacher entries, expected fewer than 2**31; write smaller shards"
            )
        flat = np.concatenate([np.empty(0, dtype), *(array.ravel() for array in arrays)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, kind))

    columns: dict[str, Any] = {name: [getattr(each, name) for each in conversations] for name in SCALARS}
    columns["messages"] = [each.messages for each in conversations]
    columns["token_ids"] = nested([each.token_ids for each in conversations], pa.int32(), np.int32)
    columns["target_positions"] = nested([each.target_positions for each in conversations], pa.int32(), np.int32)
    columns["teacher_k"] = [each.teacher.num_top for each in conversations]
    columns["teacher_ids"] = nested([each.teacher.ids for each in conversations], pa.int32(), np.int32)
    columns["teacher_logprobs"] = nested([each.teacher.logprobs for each in conversations], pa.float32(), np.float32)
    sink = pa.BufferOutputStream()
    options = {"compression": "zstd", "use_dictionary": ["document", "seed_kind"], "write_page_checksum": True}
    pq.write_table(pa.Table.from_pydict(columns, schema=_schema()), sink, row_group_size=ROWS_PER_GROUP, **options)
    return memoryview(sink.getvalue())


def _decoded(table: "pa.Table") -> list[Conversation]:
    """The conversations of a table, checked. Raises FormatError."""
    flat: dict[str, list[np.ndarray]] = {}
    for name in ("token_ids", "target_positions", "teacher_ids", "teacher_logprobs"):
        column: Any = table.column(name).combine_chunks()
        values = column.flatten()
        if column.null_count or values.null_count:
            raise FormatError(f"has missing values in the column {name}, expected numbers")
        ends = np.cumsum(column.value_lengths().to_numpy())
        flat[name] = np.split(values.to_numpy().copy(), ends[:-1])  # Arrow's own memory cannot be written
    scalars = table.select([*SCALARS, "messages", "teacher_k"]).to_pylist()
    conversations = []
    for row, fields in enumerate(scalars):
        num_top = fields.pop("teacher_k")
        ids, logprobs = flat["teacher_ids"][row], flat["teacher_logprobs"][row]
        if not num_top or num_top < 1 or len(ids) % num_top or len(ids) != len(logprobs):
            raise FormatError(
                f"conversation {fields['index']} has {len(ids)} teacher ids and {len(logprobs)} logprobs, "
                f"expected as many of each, in rows of teacher_k={num_top}"
            )
        arrays: dict[str, Any] = {name: flat[name][row] for name in ("token_ids", "target_positions")}
        teacher = TopK(ids.reshape(-1, num_top), logprobs.reshape(-1, num_top))
        conversation = Conversation(**fields, **arrays, teacher=teacher)
        conversation.check()
        conversations.append(conversation)
    return conversations


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


def _lot(seed: int, index: int) -> float:
    """A number from 0 to below 1 drawn for a conversation."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:6], "big") / 2**48
