"""The scheduler where memory fails, and where there is just room enough."""

import gc
import weakref

import pytest

from cartridges.engine.blocks import Blocks
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.scheduler import Scheduler, Sequence
from cartridges.errors import CartridgesError
from tests.engine.judges import NEVER, checked, ids_of, in_small_steps, judge_generate


class Nowhere:
    """Rows of which the tensors do not matter."""

    def set_num_rows(self, size, num_rows):
        pass

    def copy(self, source, target, length):
        pass

    def copy_rows(self, size, rows, target, length):
        pass

    def take(self, size, row, length):
        return None


@pytest.mark.parametrize("num", [1, 3])  # one row grows by itself, several alike together
def test_rows_that_cannot_grow_are_given_back(qwen, monkeypatch, num):
    engine = Engine(qwen)
    copy_rows = engine.runner.store.copy_rows
    requests = [Request(ids_of(qwen, seed, 60), 20, stop_ids=NEVER) for seed in range(num)]

    def fail(size, rows, target, length):
        if size != target[0]:
            raise MemoryError("no memory")
        copy_rows(size, rows, target, length)

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.store, "copy_rows", fail)
        with pytest.raises(CartridgesError, match="MemoryError: no memory"):
            engine.generate(requests)
    engine.check()
    assert engine.batching.scheduler.blocks.used == 0 and not engine.runner.store.sizes
    found = checked(engine).generate(requests)
    assert [result.token_ids for result in found] == [judge_generate(qwen, request) for request in requests]


def test_a_row_that_cannot_grow_stays_as_it_is():
    class Full(Nowhere):
        def copy(self, *args):
            raise MemoryError

        copy_rows = copy

    for num in (1, 3):
        scheduler = Scheduler(Blocks(4096), Full(), lambda cartridge: None, 8, 1024, 1024)
        sequences = [Sequence(list(range(60)), 59) for _ in range(num)]
        for sequence in sequences:
            scheduler.add(sequence)
        assert scheduler.admit() == []
        for sequence in sequences:
            sequence.num_read, sequence.ids = 60, list(range(65))
        with pytest.raises(MemoryError):
            scheduler.plan()
        scheduler.check()
        assert [(one.size, one.row) for one in sequences] == [(64, row) for row in range(num)]


def test_a_beginning_that_finds_no_room_behind_a_kept_text_is_read_alone(qwen):
    """The kept text shares one block with it; 96 tokens of that and a row of 256 are more than there are."""
    engine = checked(Engine(qwen, kv_tokens_total=288))
    common = ids_of(qwen, 1, 16)
    engine.submit(Request(common + ids_of(qwen, 2, 80), 4, stop_ids=NEVER)).result(60)
    request = Request(common + ids_of(qwen, 3, 194), 4, shared_len=200, stop_ids=NEVER)
    assert engine.submit(request).result(60).token_ids == judge_generate(qwen, request)
    engine.close()


def test_a_hint_that_takes_more_room_than_there_is_is_let_be(qwen):
    engine, request = checked(Engine(qwen, kv_tokens_total=128)), Request(ids_of(qwen, 1, 60), 68, shared_len=50)
    request = Request(**{**vars(request), "stop_ids": NEVER})
    for found in (engine.submit(request).result(60), *engine.generate([request])):
        assert found.token_ids == judge_generate(qwen, request)
    engine.close()


def test_what_a_shared_beginning_finds_is_told_as_cached(qwen):
    engine, text = checked(Engine(qwen)), ids_of(qwen, 1, 70)
    engine.submit(Request(text[:40], 1, stop_ids=NEVER)).result(60)
    with engine._turn:  # all come in with one step
        handles = [engine.submit(Request(text, 2, shared_len=69, stop_ids=NEVER)) for _ in range(3)]
    assert [handle.result(60).num_cached_tokens for handle in handles] == [32, 69, 69]
    engine.close()


def test_a_beginning_is_not_read_on_when_nobody_waits_for_it(qwen, monkeypatch):
    engine = in_small_steps(Engine(qwen), 16)
    read, calls, handles = engine.batching.runner.read, [], []

    def counted(chunks):
        calls.append(chunks)
        if len(calls) == 2:
            for handle in handles:
                handle.abort()
        return read(chunks)

    monkeypatch.setattr(engine.batching.runner, "read", counted)
    monkeypatch.setattr(engine, "start", lambda: None)  # steps are made here
    ids = tuple(ids_of(qwen, 7, 400))
    handles += [engine.submit(Request(ids, 4, seed=seed, shared_len=400)) for seed in (0, 1)]
    for _ in range(40):
        engine.batching.step()
    assert len(calls) == 2 and all(handle.result().finish_reason == "abort" for handle in handles)
    engine.check()
    assert engine.stats().kv_tokens_used == 0


def test_a_cartridge_without_digest_is_held_as_long_as_it_is_known():
    """It is known by its address, which another one could have after it."""

    class Unsealed:
        num_slots, digest = 5, ""

    scheduler = Scheduler(Blocks(4096), Nowhere(), lambda cartridge: None, 8, 1024, 1024)
    other, sequence = Sequence([1, 2, 3], 2, live=True), Sequence(list(range(30)), 29, Unsealed(), 20, live=True)
    owner = weakref.ref(sequence.cartridge)
    scheduler.add(other)
    scheduler.add(sequence)
    (reader,) = scheduler.admit()
    reader.num_read = 20
    scheduler.keep(reader, whole=True)
    scheduler.leave(reader)
    scheduler.leave(sequence)  # before it could use what was read for it
    scheduler.check()
    del reader, sequence
    gc.collect()
    assert len(scheduler.blocks.runs) == 2 and owner() is not None
    scheduler.leave(other)
    gc.collect()
    assert not scheduler.blocks.runs and owner() is None
