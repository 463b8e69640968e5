"""One Parquet file of conversations: what is damaged or another's is told in one line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cartridges.dataset import Dataset, DatasetWriter
from cartridges.errors import FormatError
from cartridges.shards import VERSION_KEY, Shard
from tests.conversations import make, refused, written


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "data", [make(index) for index in range(40)])


def test_openings_are_read_without_the_rest(folder):
    shard = Shard(folder / "shard-00002.parquet")
    assert shard.openings == [f"who is {index}" for index in shard.indices] and not shard.groups


def test_a_message_without_content_is_told(folder):
    def emptied(table):
        messages = [[{"role": "user", "content": None}] for _ in range(len(table))]
        kind = table.schema.field("messages").type
        return table.set_column(table.schema.get_field_index("messages"), "messages", pa.array(messages, kind))

    path = folder / "shard-00000.parquet"
    pq.write_table(emptied(pq.read_table(path)), path)
    message = refused(FormatError, lambda: Dataset.load(path).split(0.5, 0))
    assert "has a message without content, expected text" in message


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_shard_cut_short_is_told(folder, share):
    path = folder / "shard-00002.parquet"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for action in (Dataset.load, lambda folder: DatasetWriter(folder).shards()):
        message = refused(FormatError, action, folder)
        assert message.startswith(f"{path} is damaged, perhaps cut short (Arrow")
        assert message.endswith("delete it, and synthesize into this folder again to make it anew")


def test_a_flipped_bit_is_told(folder):
    path = folder / "shard-00002.parquet"
    content = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    column = next(each for each in columns if each.path_in_schema.startswith("teacher_logprobs"))
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    path.write_bytes(content)
    message = refused(FormatError, lambda: Dataset.load(folder).digest)
    assert message.startswith(f"{path} is damaged")


def test_what_is_no_parquet_is_told(tmp_path):
    for content in (b"", b"hello, this is text"):
        path = tmp_path / "shard-00000.parquet"
        path.write_bytes(content)
        assert refused(FormatError, Dataset.load, path) == (
            f"{path}: is no Parquet file; expected one that a dataset was written to"
        )


def rewritten(folder, change) -> str:
    path = folder / "shard-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return refused(FormatError, lambda: list(Dataset.load(path).conversations)).removeprefix(f"{path}: ")


def replaced(name, values):
    def change(table):
        return table.set_column(table.schema.get_field_index(name), name, values(table))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda table: table.drop_columns(["teacher_ids", "stop"]),
            "lacks the columns teacher_ids, stop; expected a dataset of conversations",
        ),
        (
            lambda table: pa.table({"text": ["a"]}),
            "lacks the columns index, messages, token_ids, target_positions, teacher_k, teacher_ids, teacher_logprobs, "
            "document, start, stop, seed_kind, num_prompt_tokens, num_new_tokens; expected a dataset of conversations",
        ),
        (
            replaced("index", lambda table: table["index"].cast(pa.int32())),
            "has the column index of type int32, expected int64",
        ),
        (
            lambda table: table.replace_schema_metadata({VERSION_KEY: b"9"}),
            "is of schema version 9, expected 1; read it with the version of cartridges that wrote it",
        ),
        (
            replaced("index", lambda table: pa.array([None] * len(table), pa.int64())),
            "has missing values in the column index, expected numbers",
        ),
        (
            replaced("token_ids", lambda table: pa.array([[None]] * len(table), pa.list_(pa.int32()))),
            "has missing values in the column token_ids, expected numbers",
        ),
        (
            replaced("document", lambda table: pa.array([None] * len(table), pa.string())),
            "document is None, expected a text; make it anew",
        ),
        (
            replaced("teacher_k", lambda table: pa.array([64] * len(table), pa.int32())),
            "logprobs, expected as many of each, in rows of teacher_k=64",
        ),
        (
            replaced("target_positions", lambda table: pa.array([[0]] * len(table), pa.list_(pa.int32()))),
            "has target positions from 0 to 0, expected them within 1 to",
        ),
    ],
)
def test_other_content_is_told(folder, change, expected):
    assert expected in rewritten(folder, change)


def test_more_columns_do_no_harm(folder):
    path = folder / "shard-00000.parquet"
    table = pq.read_table(path)
    digest = Dataset.load(path).digest
    pq.write_table(table.append_column("score", pa.array([0.5] * len(table))), path)
    assert Dataset.load(path).digest == digest
