"""Who is read together, who leaves when, and what is kept, in limits that are kept to."""

import pytest

from cartridges.engine import batching
from cartridges.engine.batching import Batching
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.runner import Runner
from cartridges.errors import CartridgesError
from tests.architectures import WINDOW
from tests.engine.judges import (
    NEVER,
    checked,
    ids_of,
    in_small_steps,
    judge_generate,
    make_cartridge,
    mixed_requests,
)


def watched(monkeypatch):
    """The sizes of all chunks of each call of the model."""
    calls, read = [], Runner.read

    def watch(runner, chunks):
        calls.append([chunk.num_new for chunk in chunks])
        return read(runner, chunks)

    monkeypatch.setattr(Runner, "read", watch)
    return calls


def test_rows_leave_at_their_stop_id_or_length(model, monkeypatch):
    cartridge = make_cartridge(model, WINDOW + 1)
    requests = mixed_requests(model, WINDOW, cartridge, 40, stop_ids=NEVER)
    lengths = [2, 40, 5, 9, 3, 4]
    whole = [result.token_ids for result in Engine(model).generate(requests)]
    stopped = [
        # the first stops at an id of its own; where that id came before, it stops there
        Request(**{**vars(request), "max_new_tokens": length, "stop_ids": frozenset(whole[i][2:3] if i == 0 else [-1])})
        for i, (request, length) in enumerate(zip(requests, lengths, strict=True))
    ]
    calls, done = watched(monkeypatch), []
    results = checked(Engine(model)).generate(stopped, on_done=done.append)
    assert sum(done) == 6 and len(done) > 2
    assert [len(call) for call in calls[2:]] == sorted((len(call) for call in calls[2:]), reverse=True)
    assert calls[-1] == [1], "the straggler ends alone"
    for i, (result, length) in enumerate(zip(results, lengths, strict=True)):
        expected = whole[i][:length]
        if i == 0 and whole[0][2] in expected:
            expected = expected[: expected.index(whole[0][2]) + 1]
        assert result.token_ids == expected


def test_different_prefixes_and_cartridges_are_decoded_in_one_call(model, monkeypatch):
    slots = [make_cartridge(model, num, seed=num) for num in (5, WINDOW + 3)]
    requests = [
        Request(ids_of(model, 50 + i % 3, 12) + ids_of(model, i, 2 + i), 8, shared_len=12, cartridge=cartridge)
        for i, cartridge in enumerate([*slots, None] * 3)
    ]
    calls = watched(monkeypatch)
    results = checked(Engine(model)).generate([Request(**{**vars(one), "stop_ids": NEVER}) for one in requests])
    assert calls[-7:] == [[1] * 9] * 7
    for request, result in zip(requests, results, strict=True):
        assert result.token_ids == judge_generate(model, Request(**{**vars(request), "stop_ids": NEVER}))


def test_prompts_are_read_in_chunks_beside_those_that_are_under_way(model, monkeypatch):
    requests = [Request(ids_of(model, i, length), 12, stop_ids=NEVER) for i, length in enumerate([3, 45, 20])]
    calls = watched(monkeypatch)
    results = in_small_steps(Engine(model), 8).generate(requests)
    assert max(map(sum, calls)) <= 8
    # each call after the first has a token for the first reply until that has ended
    assert all(call.count(1) >= 1 for call in calls[1:12])
    assert [result.token_ids for result in results] == [judge_generate(model, request) for request in requests]


def test_who_finds_no_room_waits_or_is_put_back(model):
    requests = [Request(ids_of(model, i, 20), 60, stop_ids=NEVER) for i in range(6)]
    engine = checked(Engine(model, kv_tokens_total=64 * 4))
    results = engine.generate(requests)
    assert engine.stats().num_preemptions > 0
    assert [result.token_ids for result in results] == [judge_generate(model, request) for request in requests]
    assert engine.stats().kv_tokens_used == 0


def test_what_was_told_before_a_preemption_is_told_once(qwen):
    options = {"stop_ids": NEVER, "top_k_logprobs": 3, "prompt_logprobs_from": 5}
    requests = [Request(ids_of(qwen, i, 40), 60, 1.0, i, **options) for i in range(5)]
    small = in_small_steps(Engine(qwen, kv_tokens_total=64 * 4), 16)
    whole = Engine(qwen).generate(requests)
    for result, expected in zip(small.generate(requests), whole, strict=True):
        assert result.token_ids == expected.token_ids
        assert result.logprobs.ids.shape == (60, 3) and result.prompt_logprobs.ids.shape == (35, 3)
        assert (result.logprobs.ids == expected.logprobs.ids).all()
        assert (result.prompt_logprobs.ids == expected.prompt_logprobs.ids).all()
    assert small.stats().num_preemptions > 0


def test_what_a_preempted_reply_had_written_is_not_told_as_cached(qwen):
    request = Request(ids_of(qwen, 0, 20), 60, stop_ids=NEVER)  # alike, so that who is put back finds its own words
    engine = Engine(qwen, kv_tokens_total=64 * 4)
    results = [handle.result(60) for handle in [engine.submit(request) for _ in range(6)]]
    assert engine.stats().num_preemptions > 0
    assert max(result.num_cached_tokens for result in results) < 20
    engine.close()


def test_no_more_rows_than_allowed(qwen, monkeypatch):
    monkeypatch.setattr(batching, "MAX_ROWS", 40)
    calls = watched(monkeypatch)
    requests = [Request(ids_of(qwen, seed, 1 + seed % 17), 4, stop_ids=NEVER) for seed in range(100)]
    results = checked(Engine(qwen)).generate(requests)
    assert max(map(len, calls)) == 40 and len(calls) < 16
    assert [one.token_ids for one in results[::9]] == [judge_generate(qwen, request) for request in requests[::9]]


def test_logits_are_made_for_targets_alone(qwen, monkeypatch):
    kept, read = [], Runner.read

    def watch(runner, chunks):
        logits, chunks = read(runner, chunks)
        kept.append(len(logits))
        return logits, chunks

    monkeypatch.setattr(Runner, "read", watch)
    in_small_steps(Engine(qwen), 8).distributions(ids_of(qwen, 1, 18), ids_of(qwen, 2, 11))
    assert kept == [1, 1, 7, 4]  # 28 ids, of which the last 11 tell of targets


def test_a_shared_beginning_is_read_once_and_kept_within_bounds(qwen):
    prefix = ids_of(qwen, 1, 20)
    requests = [Request(prefix + ids_of(qwen, seed, 3), 2, shared_len=20) for seed in range(2, 5)]
    engine = checked(Engine(qwen))
    assert [result.num_cached_tokens for result in engine.generate(requests)] == [0, 20, 20]
    assert [result.num_cached_tokens for result in engine.generate(requests)] == [20, 20, 20]
    assert {result.num_prompt_tokens for result in engine.generate(requests)} == {23}
    assert engine.stats().kv_tokens_used == 32  # whole blocks
    small = checked(Engine(qwen, kv_tokens_total=64 + 2 * 32))
    cached = [
        small.generate([Request(ids_of(qwen, seed, 25), 1, shared_len=20)])[0].num_cached_tokens
        for seed in (3, 4, 3, 5, 3, 4, 5)
    ]
    assert cached == [0, 0, 20, 0, 20, 0, 0], "what was not used for longest goes"
    assert small.stats().kv_tokens_used <= 128


def test_cartridges_are_not_mixed_up(qwen):
    prompt = ids_of(qwen, 1, 6)
    one, two = make_cartridge(qwen, 9, seed=1), make_cartridge(qwen, 9, seed=2)
    requests = [Request(prompt, 8, cartridge=slots, stop_ids=NEVER, shared_len=4) for slots in (one, two, None, one)]
    results = checked(Engine(qwen)).generate(requests)
    assert [result.token_ids for result in results] == [judge_generate(qwen, request) for request in requests]
    assert len({tuple(result.token_ids) for result in results}) == 3


def test_a_loaded_cartridge_is_used_where_it_lies(qwen):
    slots, engine = make_cartridge(qwen, 9), checked(Engine(qwen))
    engine.generate([Request(ids_of(qwen, 1, 6), 2, cartridge=slots)])
    (run,) = engine.batching.scheduler.blocks.runs
    assert [keys.data_ptr() for keys, _ in run.kv] == [keys.data_ptr() for keys in slots.keys]


def test_a_cartridge_without_digest_is_read_as_it_is_now(qwen):
    slots = make_cartridge(qwen, 9, sealed=False)
    request = Request(ids_of(qwen, 1, 6), 8, cartridge=slots, stop_ids=NEVER, shared_len=3)
    engine = checked(Engine(qwen))
    before = engine.generate([request])[0].token_ids
    for values in slots.values:
        values.mul_(-1)
    after = engine.generate([request])[0].token_ids
    assert after == judge_generate(qwen, request) != before
    assert not engine.batching.scheduler.blocks.runs


def test_a_failing_call_ends_those_in_it_and_no_others(qwen, monkeypatch):
    engine, request = checked(Engine(qwen)), Request(ids_of(qwen, 1, 6), 4, shared_len=3, stop_ids=NEVER)
    read = Batching._read

    def fail(batching, chunks):
        monkeypatch.setattr(batching.runner, "read", lambda chunks: 1 / 0)
        read(batching, chunks)
        monkeypatch.undo()

    monkeypatch.setattr(Batching, "_read", fail)
    handle = engine.submit(request)
    try:
        handle.result(20)
    except Exception as error:
        assert "the request failed (ZeroDivisionError: division by zero)" in str(error)
    assert handle.failed
    assert engine.submit(request).result(20).token_ids == judge_generate(qwen, request)
    engine.close()
    engine.check()


def test_a_beginning_that_cannot_be_kept_fails_those_who_share_it_alone(qwen, monkeypatch):
    engine = checked(Engine(qwen))
    alone, sharing = Request(ids_of(qwen, 1, 6), 40, stop_ids=NEVER), Request(ids_of(qwen, 2, 30), 5, shared_len=20)

    def take(*args):
        raise MemoryError("no memory")

    monkeypatch.setattr(engine.runner.store, "take", take)
    with engine._turn:
        good = engine.submit(alone)
        engine.batching.step()
        bad = engine.submit(sharing)
    with pytest.raises(CartridgesError, match="MemoryError: no memory"):
        bad.result(60)
    assert good.result(60).token_ids == judge_generate(qwen, alone)
    engine.close()
