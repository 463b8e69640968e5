import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cartridges.conversation import Conversation, TopK
from cartridges.dataset import Dataset, DatasetWriter
from cartridges.errors import FormatError, InputError
from cartridges.shards import ROWS_PER_GROUP, VERSION_KEY
from tests.conversations import make, refused, written


@pytest.fixture
def conversations():
    return [make(index) for index in range(40)]


@pytest.fixture
def folder(tmp_path, conversations):
    return written(tmp_path / "data", conversations)


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


def test_those_that_ask_the_same_are_on_one_side_of_a_split(conversations, tmp_path):
    for talk in conversations:
        asked = f"Who is  № {talk.index % 7}?" if talk.index % 2 else f"who IS № {talk.index % 7}...\n"
        talk.messages[0] = {"role": "user", "content": asked}
    DatasetWriter(tmp_path).write_shard(0, conversations)
    for dataset in (Dataset.load(tmp_path), Dataset.from_conversations(conversations)):
        for seed in (0, 1):
            train, heldout = ({talk.index % 7 for talk in side.conversations} for side in dataset.split(0.5, seed))
            assert train and heldout and not train & heldout


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
