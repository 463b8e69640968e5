"""Both sides of a conversation, judged by the chat template itself."""

import shutil
from dataclasses import replace

import pytest

from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.pairs import Batch, Source, Views, batches
from cartridges.template import ChatFormat
from tests.adapters import CORPUS, STUDY, TEXT, both_ids, conversation, source
from tests.architectures import tiny


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("llama", tiny_tokenizer)


@pytest.mark.parametrize("document", ["ward.txt", "firm.txt", ""])
def test_the_teacher_reads_the_chunk_and_the_student_does_not(model, document):
    talk = conversation(model, 3, document=document)
    pair = Views(source(model), model).pair(talk)
    teacher, student = both_ids(model, talk)
    assert [*pair.prefix_ids, *pair.teacher_ids] == teacher
    assert pair.student_ids == student
    assert bool(pair.prefix_ids) == bool(document)
    assert pair.student_positions == [place - 1 for place in talk.target_positions]
    for mine, theirs in zip(pair.student_positions, pair.teacher_positions, strict=True):
        assert student[mine + 1 :] == teacher[len(pair.prefix_ids) + theirs + 1 :]


def test_all_tokens_are_those_that_both_read(model):
    talk = conversation(model, 3)
    pair = Views(source(model), model, "conversation").pair(talk)
    first = pair.student_positions[0]
    assert pair.student_positions == list(range(first, len(pair.student_ids)))
    assert pair.teacher_ids[pair.teacher_positions[0] :] == pair.student_ids[first:]
    assert pair.teacher_positions[0] >= 0
    question = model.chat.decode(pair.student_ids[first:])
    assert talk.messages[0]["content"] in question


def test_thinking_conversations_are_read_with_their_own_format(model):
    talk = conversation(model, 3)
    strange = replace(talk, token_ids=[7, 7, 7, *talk.token_ids[3:]])
    views = Views(source(model), model)
    assert views.pair(strange) is None
    assert [chat.thinking for chat in views.formats] == [False, True]
    assert isinstance(views.formats[0], ChatFormat)


def test_neighbours_go_together(model):
    given = source(model, 16)
    found = list(batches([Views(given, model)], 10_000))
    assert [sorted(pair.index for pair in batch.pairs) for batch in found] == [
        list(range(8)),
        list(range(8, 12)),
        list(range(12, 16)),
    ]
    assert [bool(batch.prefix_ids) for batch in found] == [True, True, False]
    short = list(batches([Views(given, model)], 60))
    assert sum(len(batch.pairs) for batch in short) == 16 and len(short) > 3
    assert all(batch.num_tokens <= 60 or len(batch.pairs) == 1 for batch in short)
    assert sum(len(batch.pairs) for batch in batches([Views(given, model)] * 2, 60, limit=5)) == 10
    assert Batch(()).num_tokens == 0


def test_weights_are_those_of_the_source_and_of_general_ones(model):
    views = Views(source(model, weight=2.0), model, general_weight=0.5)
    assert views.pair(conversation(model, 1)).weight == 2.0
    assert views.pair(conversation(model, 1, document="")).weight == 1.0
    assert Views(source(model), model, general_weight=0.0).pair(conversation(model, 1, document="")) is None


def test_what_was_read_from_disk_is_let_go(model, tmp_path):
    source(model, 12).dataset.save(tmp_path / "data", shard_len=4)
    given = Source(Dataset.load(tmp_path / "data"), CORPUS, STUDY)
    shards = given.dataset.conversations.shards
    assert sum(len(batch.pairs) for batch in batches([Views(given, model)], 60)) == 12
    assert len(shards) == 3 and not any(shard.groups for shard in shards)


def test_documents_are_found_and_checked(model, tmp_path):
    (tmp_path / "docs").mkdir()
    for document in CORPUS:
        (tmp_path / "docs" / document.path).write_text(document.text)
    digest = Corpus.from_path(tmp_path / "docs").digest
    manifest = {"corpus_digest": digest, "model": model.identity.model_dump(mode="json")}
    made = Dataset.from_conversations([conversation(model, 1)], manifest)
    made.save(tmp_path / "data")
    found = Source.load(tmp_path / "data", [tmp_path / "docs"], 2.0)
    assert found.corpus.digest == digest and (found.weight, found.study) == (2.0, None)
    (tmp_path / "docs" / "ward.txt").write_text(TEXT + "More. ")
    with pytest.raises(InputError, match=r"the documents given for .*data are not those that it was written about"):
        Source.load(tmp_path / "data", [tmp_path / "docs"])
    shutil.rmtree(tmp_path / "docs")
    with pytest.raises(InputError, match=r"nothing tells which documents .*data is about; name them with --docs"):
        Views(Source.load(tmp_path / "data"), model).pair(conversation(model, 1))
    with pytest.raises(InputError, match=r"unknown document 'ward\.txt'"):
        Views(Source(made, Corpus.from_texts({"a.txt": "b"}), STUDY), model).pair(conversation(model, 1))


def test_another_tokenizer_is_refused(model):
    given = source(model)
    given.dataset.manifest = {"tokenizer_digest": "0" * 64}
    with pytest.raises(InputError, match="the dataset was written with the tokenizer of another model, given tiny-lla"):
        Views(given, model)


def test_a_chunk_beyond_the_window_is_refused(model):
    long = Corpus.from_texts({"ward.txt": "The ward has nine beds and one door. " * 400})
    talk = replace(conversation(model, 1), stop=len(long.text))
    with pytest.raises(InputError, match=r"conversation 1 of the dataset has \d+ tokens with its chunk, expected"):
        Views(Source(source(model).dataset, long, STUDY), model).pair(talk)
