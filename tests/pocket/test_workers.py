"""Batches made by other processes: the same ones, in order, and nobody left behind."""

import os
import signal
from multiprocessing import active_children

import pytest

from cartridges.errors import CartridgesError
from cartridges.pocket.batches import ChatEncoder
from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.train import Run, open_run, train
from cartridges.pocket.workers import BatchMaker, batches_from
from tests.pocket.equality import same

CONFIG = PocketConfig.resolve("tiny")


@pytest.fixture(scope="module")
def make(tiny_tokenizer) -> BatchMaker:
    return BatchMaker(ChatEncoder(tiny_tokenizer), CONFIG)


def test_they_are_those_that_are_made_when_asked_for(make):
    with batches_from(make, 3) as asked, batches_from(make, 3, num_workers=2) as ahead:
        for step in range(3, CONFIG.num_steps):
            mine, made = next(asked), next(ahead)
            assert same(mine, made) and same(made, make(step))
            assert not same(made, make(step - 1))
            assert 1 <= len(active_children()) <= 2
        for batches in (asked, ahead):
            with pytest.raises(StopIteration):
                next(batches)
    assert active_children() == []


def test_workers_end_where_the_run_does_not(make):
    with pytest.raises(ZeroDivisionError), batches_from(make, 0, num_workers=2) as batches:
        next(batches)
        raise ZeroDivisionError
    assert active_children() == []


def test_a_worker_that_dies_is_one_line(tmp_path, monkeypatch):
    real, killed = Run.train_step, []

    def train_step(run, batch):
        if run.step == 2:
            for child in active_children():
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)
        return real(run, batch)

    monkeypatch.setattr(Run, "train_step", train_step)
    config = PocketConfig.resolve("tiny", None, ["phases=[{steps: 40, shapes: [{length: 256, rows: 2}]}]"])
    with open_run(tmp_path / "run", config, "cpu") as run:
        with pytest.raises(CartridgesError, match=r"^a process that makes batches died before step \d+; give"):
            train(run, num_workers=2)
        assert killed and 2 < run.step < 40
    assert active_children() == []
    monkeypatch.undo()
    with open_run(tmp_path / "run", None, "cpu") as run:
        train(run, num_workers=1)
        assert run.is_finished
