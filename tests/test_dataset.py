import hashlib
import json
import random
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cartridges.conversation import Conversation, TopK
from cartridges.dataset import ROWS_PER_GROUP, VERSION_KEY, Dataset, DatasetWriter
from cartridges.errors import FormatError, InputError


def make(index: int, num_top: int = 3, num_targets: int | None = None) -> Conversation:
    rng = np.random.default_rng(index)
    num_targets = int(rng.integers(0, 6)) if num_targets is None else num_targets
    ids = np.array([rng.permutation(50)[:num_top] for _ in range(num_targets)], np.int32).reshape(-1, num_top)
    logprobs = -np.sort(rng.uniform(2, 9, size=(num_targets, num_top)), axis=1)
    return Conversation(
        index=index,
        messages=[{"role": "user", "content": f"Who is № {index}?\n"}, {"role": "assistant", "content": "Nobody. 🙂"}],
        token_ids=rng.integers(0, 50, size=num_targets + 2),
        target_positions=np.arange(num_targets) + 2,
        teacher=TopK(ids, logprobs),
        document="" if index % 3 == 0 else f"docs/{index % 5}.md",
        start=index,
        stop=index + 100,
        seed_kind="question",
        num_prompt_tokens=2**33 + index,
        num_new_tokens=num_targets,
    )


@pytest.fixture
def conversations():
    return [make(index) for index in range(40)]


@pytest.fixture
def folder(tmp_path, conversations):
    """Three shards, written out of order, of conversations out of order."""
    writer = DatasetWriter(tmp_path / "data")
    mixed = random.Random(0).sample(conversations, len(conversations))
    for number in (2, 0, 11):
        writer.write_shard(number, [mixed.pop() for _ in range(13 if number else 14)])
    assert not mixed
    Dataset.save_manifest(writer.folder, {"num_kept": 40, "model": {"model_id": "pocket – é"}})
    return writer.folder


def refused(kind, action, *given, **options) -> str:
    with pytest.raises(kind) as caught:
        action(*given, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(folder, conversations):
    dataset = Dataset.load(folder)
    assert list(dataset.conversations) == conversations
    assert dataset.manifest == {"num_kept": 40, "model": {"model_id": "pocket – é"}}
    assert DatasetWriter(folder).shards() == [0, 2, 11]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("manifest.json", "shard-00000.parquet", "shard-00002.parquet", "shard-00011.parquet")
    ]


def test_the_conversations_are_like_a_list(folder, conversations):
    loaded = Dataset.load(folder).conversations
    assert len(loaded) == 40
    assert (loaded[0], loaded[-1], loaded[7]) == (conversations[0], conversations[-1], conversations[7])
    assert loaded[5:30:7] == conversations[5:30:7]
    assert conversations[9] in loaded
    with pytest.raises(IndexError):
        loaded[40]


def test_arrays_can_be_written_to_and_have_their_types(folder):
    conversation = next(each for each in Dataset.load(folder).conversations if each.num_targets)
    conversation.token_ids[0] = 1
    conversation.teacher.logprobs[0, 0] = -0.5
    kinds = [conversation.token_ids, conversation.target_positions, conversation.teacher.ids]
    assert [array.dtype for array in kinds] == [np.int32] * 3 and conversation.teacher.logprobs.dtype == np.float32


def test_rows_are_read_when_asked_for_and_then_kept(tmp_path):
    num = 2 * ROWS_PER_GROUP + 1
    path = DatasetWriter(tmp_path).write_shard(0, [make(index) for index in range(num)])
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    loaded = Dataset.load(tmp_path).conversations
    first = loaded[0]
    assert all(loaded[row].index == row for row in (ROWS_PER_GROUP - 1, ROWS_PER_GROUP, num - 1))
    path.unlink()
    assert loaded[0] is first and loaded[ROWS_PER_GROUP + 3].index == ROWS_PER_GROUP + 3


@pytest.mark.parametrize("name", ["", "manifest.json", "shard-00002.parquet"])
def test_ways_to_name_a_dataset(folder, name):
    dataset = Dataset.load(folder / name)
    assert len(dataset.conversations) == (13 if "shard" in name else 40)
    assert bool(dataset.manifest) is ("shard" not in name)


def test_shards_alone_are_a_dataset(folder, conversations):
    (folder / "manifest.json").unlink()
    assert Dataset.load(folder).manifest == {}
    assert list(Dataset.load(folder).conversations) == conversations


def test_the_digest_is_of_the_content_alone(folder, conversations, tmp_path):
    digest = Dataset.load(folder).digest
    assert Dataset.from_conversations(conversations[::-1], {"other": 1}).digest == digest
    Dataset.from_conversations(conversations).save(tmp_path / "other", shard_len=7)
    assert len(DatasetWriter(tmp_path / "other").shards()) == 6
    assert Dataset.load(tmp_path / "other").digest == digest
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    pq.write_table(table, tmp_path / "one.parquet", compression="gzip", row_group_size=3, version="1.0")
    assert Dataset.load(tmp_path / "one.parquet").digest == digest
    assert Dataset.from_conversations(conversations[:-1]).digest != digest
    changed = [*conversations[:-1], make(39, num_targets=7)]
    assert Dataset.from_conversations(changed).digest != digest


def test_the_digest_as_it_is_defined():
    """Should this fail, then digests in datasets and cartridges written before do no longer fit."""
    teacher = TopK([[7, 8]], [[-0.5, -2.0]])
    one = Conversation(4, [{"role": "user", "content": "é"}], [1, 2], [1], teacher, "a.md", 0, 9, "q", 12, 3)
    text = (
        '[{"document":"a.md","index":4,"messages":[{"content":"\\u00e9","role":"user"}],"num_new_tokens":3,'
        '"num_prompt_tokens":12,"seed_kind":"q","start":0,"stop":9},[2,1,2]]'
    )
    content = f"{len(text)}:{text}".encode() + struct.pack("<2i1i2i2f", 1, 2, 1, 7, 8, -0.5, -2.0)
    assert one.digest == hashlib.sha256(content).hexdigest()
    two = make(5)
    both = bytes.fromhex(one.digest) + bytes.fromhex(two.digest)
    assert Dataset.from_conversations([two, one]).digest == hashlib.sha256(both).hexdigest()


def test_an_order_of_many_shards_by_number(tmp_path):
    writer = DatasetWriter(tmp_path)
    for number in (100000, 99999):
        writer.write_shard(number, [make(number)])
    assert writer.shards() == [99999, 100000]
    assert writer.path(7).name == "shard-00007.parquet"


def test_a_shard_is_replaced_whole_or_not_at_all(folder):
    writer = DatasetWriter(folder)
    before = writer.path(2).read_bytes()
    (folder / "shard-00004.parquet.partial").write_bytes(before[:100])
    bad = make(50, num_targets=0)
    bad.token_ids = bad.token_ids[:0]
    assert "conversation 50: has no tokens" in refused(FormatError, writer.write_shard, 2, [make(60), bad])
    assert writer.path(2).read_bytes() == before
    assert writer.shards() == [0, 2, 11]
    writer.write_shard(2, [])
    assert writer.shards() == [0, 2, 11]
    Dataset.save_manifest(folder, {})
    assert len(Dataset.load(folder).conversations) == 27


def test_k_may_differ_between_conversations(tmp_path):
    given = [make(0, num_top=1), make(1, num_top=20, num_targets=4), make(2, num_top=2, num_targets=0), make(3)]
    DatasetWriter(tmp_path).write_shard(0, given)
    assert [each.teacher.num_top for each in Dataset.load(tmp_path).conversations] == [1, 20, 2, 3]
    assert list(Dataset.load(tmp_path).conversations) == given


def test_plain_tools_can_read_a_shard(folder, conversations):
    table = pq.read_table(folder / "shard-00000.parquet")
    assert table.schema.metadata[VERSION_KEY] == b"1"
    assert str(table.schema.field("teacher_ids").type).startswith("list<") and "int32" in str(table.schema)
    row = table.to_pylist()[0]
    same = conversations[row["index"]]
    assert row["messages"] == same.messages
    assert np.array_equal(np.reshape(row["teacher_ids"], (-1, row["teacher_k"])), same.teacher.ids)
    assert pq.ParquetFile(folder / "shard-00000.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_preview(folder):
    dataset = Dataset.load(folder)
    assert dataset.preview(2).startswith("2 of 40 conversations\n\nconversation 0: question, no document, ")
    assert "conversation 20: " in dataset.preview(2) and "user: Who is № 20?" in dataset.preview(2)
    assert dataset.preview(99).count("assistant: Nobody. 🙂") == 40
    assert refused(InputError, dataset.preview, 0) == "given 0 conversations to show, expected at least 1"


def test_split_parts_all_by_lot(folder, conversations):
    for dataset in (Dataset.load(folder), Dataset.from_conversations(conversations)):
        train, heldout = dataset.split(0.25, seed=1)
        assert sorted([*train.conversations, *heldout.conversations], key=lambda each: each.index) == conversations
        assert [each.index for each in train.conversations] == sorted(each.index for each in train.conversations)
        assert 3 <= len(heldout.conversations) <= 20
        assert train.manifest == dataset.manifest
        again, other = dataset.split(0.25, seed=1)[1], dataset.split(0.25, seed=2)[1]
        assert list(again.conversations) == list(heldout.conversations) != list(other.conversations)
        assert len({dataset.digest, train.digest, heldout.digest, other.digest}) == 4


def test_the_sides_of_a_split_are_datasets_of_their_own(conversations, tmp_path):
    whole = Dataset.from_conversations(conversations, {"num_kept": 40, "dataset_digest": "of all", "seconds": 2})
    for name, side in zip(("train", "heldout"), whole.split(0.3, seed=0), strict=True):
        side.save(tmp_path / name)
        told = {"num_kept": len(side.conversations), "dataset_digest": side.digest, "seconds": 2}
        assert Dataset.load(tmp_path / name).manifest == told


def test_split_is_stable_when_the_dataset_grows(conversations):
    small = Dataset.from_conversations(conversations[:20]).split(0.3, 0)[1]
    large = Dataset.from_conversations(conversations).split(0.3, 0)[1]
    wider = Dataset.from_conversations(conversations).split(0.5, 0)[1]
    assert [each for each in large.conversations if each.index < 20] == list(small.conversations)
    assert {each.index for each in large.conversations} < {each.index for each in wider.conversations}


def test_split_of_a_split_and_its_ends(folder):
    dataset = Dataset.load(folder)
    train, _ = dataset.split(0.3, 0)
    inner, outer = train.split(0.5, 9)
    assert len(inner.conversations) + len(outer.conversations) == len(train.conversations)
    assert [len(side.conversations) for side in dataset.split(0, 0)] == [40, 0]
    assert [len(side.conversations) for side in dataset.split(1, 0)] == [0, 40]
    assert dataset.split(1, 0)[0].digest
    for wrong in (-0.1, 1.5, float("nan")):
        assert "expected a number from 0 to 1" in refused(InputError, dataset.split, wrong, 0)


def test_the_share_held_out_is_about_what_was_asked_for():
    train, heldout = Dataset([make(index, num_targets=0) for index in range(2000)], {}).split(0.1, 3)
    assert abs(len(heldout.conversations) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert len(train.conversations) + len(heldout.conversations) == 2000


def test_paths_without_a_dataset(tmp_path):
    assert "there is none there" in refused(InputError, Dataset.load, tmp_path / "nothing")
    assert refused(InputError, Dataset.load, tmp_path) == (
        f"given {tmp_path}, expected the folder of a dataset; it holds no shard-*.parquet"
    )
    DatasetWriter(tmp_path).write_shard(0, [])
    assert "its 1 file(s) hold no conversations" in refused(InputError, Dataset.load, tmp_path)
    assert "given no conversations" in refused(InputError, Dataset.from_conversations, [])
    (tmp_path / "file").write_text("")
    assert "expected a folder" in refused(InputError, DatasetWriter, tmp_path / "file")
    assert "expected a folder" in refused(InputError, DatasetWriter, tmp_path / "file" / "data")


def test_a_save_into_another_dataset_is_refused(folder, conversations):
    assert "expected a folder without shards" in refused(
        InputError, Dataset.from_conversations(conversations).save, folder
    )


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


def test_two_conversations_of_one_number_are_told(folder):
    writer = DatasetWriter(folder)
    assert "two conversations 7 in this shard" in refused(FormatError, writer.write_shard, 3, [make(7), make(7)])
    assert "two conversations 7 in the list" in refused(FormatError, Dataset.from_conversations, [make(7), make(7)])
    twin = Dataset.load(writer.path(11)).conversations[0]
    writer.write_shard(12, [twin])
    assert refused(FormatError, Dataset.load, folder) == (
        f"there are two conversations {twin.index} in {writer.path(11)} and {writer.path(12)}; "
        "expected distinct numbers; remove one of them"
    )


def test_two_shards_of_one_number_are_told(folder):
    one, other = folder / "shard-00002.parquet", folder / "shard-2.parquet"
    other.write_bytes(DatasetWriter(folder).write_shard(12, [make(99)]).read_bytes())
    told = refused(FormatError, Dataset.load, folder)
    assert told == f"there are two shards 2 in {one} and {other}; expected distinct numbers; remove one of them"


def test_a_missing_shard_of_a_finished_dataset_is_told(folder):
    (folder / "shard-00002.parquet").unlink()
    assert "holds 27 conversations, its manifest.json says 40; restore" in refused(FormatError, Dataset.load, folder)


def test_a_damaged_manifest_is_told(folder):
    bad = {"{": "is damaged (JSONDecodeError)", "[" * 200_000: "is damaged (RecursionError)", "[]": "holds a list"}
    for content, expected in bad.items():
        (folder / "manifest.json").write_text(content)
        assert expected in refused(FormatError, Dataset.load, folder)


def test_a_manifest_is_written_whole(folder):
    about = {"a": "é", "command": "cartridges synthesize docs\udcff"}  # the name of a file need not be Unicode
    Dataset.save_manifest(folder, about)
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8")) == about


def test_reading_needs_no_torch(folder):
    program = "import sys, cartridges.dataset as d; print(d.Dataset.load(d.Path(sys.argv[1])).preview(1)); "
    program += "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    program = "import sys, cartridges.dataset, cartridges.template; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
