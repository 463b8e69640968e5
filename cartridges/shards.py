"""A shard of a dataset: one Parquet file of conversations.

One row is one conversation; the [M, K] arrays of its teacher are stored flat, with K beside them.

Shapes: M targets, K entries of a distribution.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartridges.conversation import Conversation, TopK, opening
from cartridges.errors import FormatError, InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SCHEMA_VERSION = 1
VERSION_KEY = b"cartridges.conversations"
ROWS_PER_GROUP = 128
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


class Shard:
    """One file; its numbers are read at once, its row groups when asked for."""

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

    @cached_property
    def openings(self) -> list[str]:
        """What each conversation begins with; read without the rest of it."""
        with _open_parquet(self.path) as file:
            column = file.read(columns=["messages"]).column("messages").to_pylist()
            for said, index in zip(column, self.indices, strict=True):
                if any(not message or message["content"] is None for message in said or []):
                    raise FormatError(f"conversation {index} has a message without content, expected text")
        return [opening(said or [], index) for said, index in zip(column, self.indices, strict=True)]

    def release(self) -> None:
        """Forget what was read; it is read again when asked for."""
        self.groups.clear()
        self.__dict__.pop("openings", None)

    def conversation(self, row: int) -> Conversation:
        """The conversation in row `row` of the file. Raises FormatError where its group is damaged."""
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


def encoded(conversations: Sequence[Conversation]) -> memoryview:
    """The content of a file. Raises InputError where it would be too large for Parquet."""
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
