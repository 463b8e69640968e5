"""Measuring: every item once, also after an interruption; nothing of another run, commit or task is mixed in."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from cartridges.engine.engine import Engine
from cartridges.errors import FormatError, InputError
from cartridges.evals import harness
from cartridges.evals.harness import measure
from cartridges.evals.method import Answerer
from cartridges.evals.record import Record, check_together
from tests.architectures import tiny


class Once:
    """An engine that counts what it is asked, and dies after so many batches."""

    def __init__(self, engine, num_batches=99):
        self.model, self.inner, self.num_left, self.asked = engine.model, engine, num_batches, 0

    def generate(self, requests):
        if not self.num_left:
            raise KeyboardInterrupt
        self.num_left -= 1
        self.asked += len(requests)
        return self.inner.generate(requests)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(harness, "NUM_TOGETHER", 4)


@pytest.fixture
def short(task):
    return replace(task, max_new_tokens=8)


def test_every_item_is_answered_and_priced(engine, short, tmp_path):
    record = measure(short, "reader", Answerer(lambda item: "The ward has nine beds."), engine, tmp_path)
    assert [answer.item for answer in record.answers] == list(range(len(short.items)))
    row = record.row(record)
    assert row["num"] == len(short.items) and row["difference"][0] == 0.0
    assert 0 < row["prompt_tokens"] < 60 and record.kv_bytes == engine.model.kv_bytes(row["prompt_tokens"])


def test_a_run_that_died_goes_on_with_the_same_answers(engine, short, tmp_path):
    whole = measure(short, "alone", Answerer(), engine, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        measure(short, "alone", Answerer(), Once(engine, 2), tmp_path / "cut")
    path = tmp_path / "cut" / "alone.jsonl"
    path.write_text(path.read_text() + '{"item": 11, "rep')  # died within a line
    again = Once(engine)
    assert measure(short, "alone", Answerer(), again, tmp_path / "cut").answers == whole.answers
    assert again.asked == len(short.items) - 8


def test_answers_of_another_run_are_refused(engine, short, tmp_path, monkeypatch):
    measure(short, "alone", Answerer(), engine, tmp_path)
    with pytest.raises(InputError, match="holds answers of another run: made_of"):
        measure(short, "alone", Answerer(lambda item: "text"), engine, tmp_path)
    monkeypatch.setattr(harness, "commit", lambda: "another")
    with pytest.raises(InputError, match=r"commit .* give another folder, or delete it"):
        measure(short, "alone", Answerer(), engine, tmp_path)


def test_answers_of_another_model_of_the_same_shape_are_refused(engine, short, tmp_path, tiny_tokenizer):
    other = Engine(tiny("qwen3", tiny_tokenizer, seed=1))
    measure(short, "alone", Answerer(), engine, tmp_path)
    with pytest.raises(InputError, match=r"holds answers of another run: model '.*' \(now '.*'\); give another folder"):
        measure(short, "alone", Answerer(), other, tmp_path)
    identity = engine.model.identity.model_copy(update={"tokenizer_digest": "another"})
    retold = Once(engine)
    retold.model = replace(engine.model, identity=identity)
    with pytest.raises(InputError, match="another run: model"):
        measure(short, "alone", Answerer(), retold, tmp_path)


def test_answers_of_weights_changed_otherwise_are_refused(engine, short, tmp_path):
    """Both changes have the same size, and their models the identity of the one that was changed."""

    def changed(seed):
        model = replace(engine.model, hf=copy.deepcopy(engine.model.hf))
        torch.manual_seed(seed)
        weight = model.hf.get_decoder().layers[-1].mlp.down_proj.weight
        weight += 0.1 * torch.randn_like(weight)
        return Answerer(engine=Engine(model), kept_bytes=100)

    first = measure(short, "lora", changed(1), engine, tmp_path)
    assert measure(short, "lora", changed(1), engine, tmp_path).answers == first.answers
    with pytest.raises(InputError, match="holds answers of another run: made_of"):
        measure(short, "lora", changed(2), engine, tmp_path)


def test_an_item_counted_twice_is_refused(engine, short, tmp_path):
    measure(short, "alone", Answerer(), engine, tmp_path)
    path = tmp_path / "alone.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(FormatError, match=r"given item .* twice"):
        measure(short, "alone", Answerer(), engine, tmp_path)
    path.write_text("\n".join([lines[0], json.dumps({"item": 0})]) + "\n")
    with pytest.raises(FormatError, match="line 2 is no answer"):
        measure(short, "alone", Answerer(), engine, tmp_path)


class Silent:
    """An engine that answers with nothing."""

    def __init__(self, engine):
        self.model, self.inner = engine.model, engine

    def generate(self, requests):
        return [replace(result, text="  ") for result in self.inner.generate(requests)]


def test_empty_replies_are_wrong_and_counted(engine, short, tmp_path):
    row = measure(short, "silent", Answerer(), Silent(engine), tmp_path).row()
    assert row["accuracy"] == 0.0 and row["num_empty"] == row["num"] == len(short.items)


def test_commits_and_tasks_are_not_mixed_in_one_table(engine, short, tmp_path):
    one = measure(short, "alone", Answerer(), engine, tmp_path)
    check_together([one, one])
    other = Record({**one.stamp, "commit": "another"}, one.answers)
    with pytest.raises(InputError, match="given results of different commits"):
        other.row(one)
    with pytest.raises(InputError, match="given results of different tasks"):
        Record({**one.stamp, "task_digest": "another"}, one.answers).row(one)
    with pytest.raises(InputError, match="given results of different questions"):
        Record(one.stamp, one.answers[:-1]).row(one)
