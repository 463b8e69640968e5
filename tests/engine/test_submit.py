"""Requests handed in one by one: events, ends of every kind, and nothing left behind."""

import contextlib
import random
import threading

import pytest
import torch

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import CartridgesError, InputError
from tests.engine.judges import (
    NEVER,
    checked,
    ids_of,
    in_small_steps,
    judge_generate,
    judge_logprobs,
    make_cartridge,
)


@pytest.fixture()
def engine(qwen):
    engine = checked(Engine(qwen))
    yield engine
    engine.close()
    engine.check()
    assert not engine.batching.scheduler.running and not engine.batching.scheduler.waiting
    assert engine.batching.scheduler.blocks.used == engine.batching.scheduler.blocks.pinned == 0


def test_events_are_the_result_in_pieces(engine, qwen):
    request = Request(ids_of(qwen, 1, 9), 30, 0.8, 3, top_k_logprobs=4, cartridge=make_cartridge(qwen, 5))
    events = []
    result = engine.submit(request, events.append).result(60)
    (expected,) = engine.generate([request])
    assert result.token_ids == expected.token_ids == [token for event in events for token in event.token_ids]
    assert result.text == expected.text == "".join(event.text for event in events)
    assert result.chosen_logprobs == [number for event in events for number in event.chosen_logprobs]
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [result.finish_reason]
    rows = [row for event in events for row in event.logprobs.ids.tolist()]
    assert rows == result.logprobs.ids.tolist()


def test_chosen_logprobs_are_of_the_full_softmax(qwen):
    request = Request(ids_of(qwen, 2, 7), 12, 1.5, 1, top_k=5, top_p=0.9, stop_ids=NEVER)
    (result,) = Engine(qwen).generate([request])
    rows = judge_logprobs(qwen, request, result.token_ids)[len(request.prompt_ids) - 1 : -1]
    expected = rows.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(result.chosen_logprobs), expected, atol=1e-5, rtol=1e-5)
    assert all(
        float(row[token]) >= float(row.topk(5).values[-1]) for row, token in zip(rows, result.token_ids, strict=True)
    )


def test_stop_strings_end_a_reply(engine, qwen):
    request = Request(ids_of(qwen, 3, 6), 60, 1.0, 7, stop_ids=NEVER)
    (free,) = engine.generate([request])
    stop = free.text[len(free.text) // 2 :][:3]
    events = []
    result = engine.submit(Request(**{**vars(request), "stop": (stop, "never there")}), events.append).result(60)
    assert result.finish_reason == "stop" and result.text == free.text[: free.text.index(stop)]
    assert "".join(event.text for event in events) == result.text
    assert len(result.token_ids) < len(free.token_ids)


def test_finished_texts_are_used_again(engine, qwen):
    slots, prompt = make_cartridge(qwen, 7), ids_of(qwen, 4, 50)
    first = engine.submit(Request(prompt, 20, cartridge=slots, stop_ids=NEVER)).result(60)
    longer = (*prompt, *first.token_ids, *ids_of(qwen, 5, 9))
    for cartridge, num_cached in ((slots, 64), (None, 0)):  # of 69 ids that were read
        request = Request(longer, 10, cartridge=cartridge, stop_ids=NEVER)
        result = engine.submit(request).result(60)
        assert result.token_ids == judge_generate(qwen, request) and result.num_cached_tokens == num_cached
    assert engine.stats().num_cached_tokens == 64


def test_an_abort_ends_a_reply_with_what_there_is(engine, qwen):
    events, third = [], threading.Event()

    def hear(event):
        events.append(event)
        if len(events) == 3:
            handle.abort()
            third.set()

    started = threading.Event()
    with engine._turn:  # no step before `handle` is there
        handle = engine.submit(Request(ids_of(qwen, 1, 6), 1000, stop_ids=NEVER), hear)
        started.set()
    result = handle.result(60)
    assert third.is_set() and result.finish_reason == events[-1].finish_reason == "abort"
    assert len(result.token_ids) == 3
    handle.abort()  # once more does nothing


def test_one_that_fails_does_not_touch_others(engine, qwen):
    def fail(event):
        raise ValueError("nobody listens")

    requests = [Request(ids_of(qwen, i, 6 + i), 12, stop_ids=NEVER) for i in range(3)]
    with engine._turn:
        good = [engine.submit(request) for request in requests]
        bad = engine.submit(requests[0], fail)
    with pytest.raises(CartridgesError, match="ValueError: nobody listens"):
        bad.result(60)
    assert [handle.result(60).token_ids for handle in good] == [judge_generate(qwen, one) for one in requests]


def test_logits_that_are_no_numbers_end_their_request_alone(engine, qwen):
    broken = make_cartridge(qwen, 5)
    broken.values[0][:] = float("nan")
    requests = [
        Request(ids_of(qwen, i, 6), 12, cartridge=slots, stop_ids=NEVER) for i, slots in enumerate([None, broken])
    ]
    with engine._turn:
        good, bad = (engine.submit(request) for request in requests)
    with pytest.raises(CartridgesError, match="the model gave logits that are no finite numbers"):
        bad.result(60)
    assert good.result(60).token_ids == judge_generate(qwen, requests[0])
    again = engine.submit(requests[0]).result(60)
    assert again.token_ids == judge_generate(qwen, requests[0])


def test_what_cannot_be_answered_is_refused_at_once(qwen):
    engine = Engine(qwen, kv_tokens_total=128)
    cases = [
        (Request((5,), top_p=0.0), "has top_p=0.0, expected a number above 0, up to 1"),
        (Request((5,), top_p=float("nan")), "has top_p=nan"),
        (Request((5,), top_k=-1), "has top_k=-1, expected 0 .off. or more"),
        (Request((5,), stop=("",)), "stop strings of up to 0 characters, expected at most 16 of 1 to 1024"),
        (Request((5,), stop=("a",) * 17), "has 17 stop strings"),
        (Request((5,) * 100, 100), "needs room for 256 tokens, expected at most 128; raise kv_tokens_total"),
    ]
    for request, message in cases:
        with pytest.raises(InputError, match=message):
            engine.submit(request)
    assert engine.stats().num_waiting == 0


def test_closing_lets_finish_or_aborts(qwen):
    engine = Engine(qwen)
    short = engine.submit(Request(ids_of(qwen, 1, 6), 5, stop_ids=NEVER))
    engine.close(drain_seconds=60)
    assert short.result(0).finish_reason == "length"
    long = engine.submit(Request(ids_of(qwen, 1, 6), 1000, stop_ids=NEVER))
    engine.close()
    assert long.result(0).finish_reason == "abort"
    assert engine.submit(Request(ids_of(qwen, 1, 6), 2, stop_ids=NEVER)).result(60).token_ids
    engine.close()


def test_whatever_comes_in_whatever_order_nothing_is_lost(qwen):
    """Many requests in little room, aborted at random, from several threads; the books are right after every step."""
    engine = in_small_steps(Engine(qwen, kv_tokens_total=640), 24)
    slots = [None, make_cartridge(qwen, 5, seed=1), make_cartridge(qwen, 20, seed=2)]
    handles = {}

    def hand_in(seed):
        rng = random.Random(seed)
        for i in range(12):
            prompt = ids_of(qwen, rng.randrange(3), 40)[: rng.randint(1, 40)] + ids_of(qwen, seed * 100 + i, 3)
            shared = rng.choice([0, 0, min(16, len(prompt) - 1)])
            request = Request(
                prompt, rng.randint(1, 50), shared_len=shared, cartridge=rng.choice(slots), stop_ids=NEVER
            )
            handle = engine.submit(request)
            handles[handle] = request
            if rng.random() < 0.3:
                handle.abort()

    threads = [threading.Thread(target=hand_in, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [handle.result(120) for handle in handles]  # all of them, for the judge is the same model
    for request, result in zip(handles.values(), results, strict=True):
        expected = judge_generate(qwen, request)
        assert result.token_ids == (expected if result.finish_reason != "abort" else expected[: len(result.token_ids)])
    engine.close()
    engine.check()
    assert engine.batching.scheduler.blocks.used == engine.batching.scheduler.blocks.pinned == 0


def test_a_row_that_moves_keeps_what_the_same_step_read(qwen):
    """A shared beginning ends in the step in which the last row of its size is read; that row moves to its place."""
    engine = checked(Engine(qwen))
    shared = Request((*ids_of(qwen, 3, 30), *ids_of(qwen, 4, 5)), 8, shared_len=30, stop_ids=NEVER)
    requests = [shared, *(Request(ids_of(qwen, seed, 50), 8, stop_ids=NEVER) for seed in (5, 6))]
    with engine._turn:  # all of them come in with one step, in the company of one under way
        first = engine.submit(Request(ids_of(qwen, 1, 5), 900, stop_ids=NEVER))
        for _ in range(2):
            engine.batching.step()
        handles = [engine.submit(request) for request in requests]
    results = [handle.result(60).token_ids for handle in handles]
    first.abort()
    engine.close()
    assert results == [judge_generate(qwen, request) for request in requests]


def test_others_get_their_turn_while_the_thread_works(qwen):
    engine = Engine(qwen)
    long = engine.submit(Request(ids_of(qwen, 1, 5), 900, stop_ids=NEVER))
    for number in range(3):
        engine.generate([Request(ids_of(qwen, number, 5), 1, stop_ids=NEVER)])
        engine.check()
    assert not long.done
    long.abort()
    engine.close()


def test_distributions_that_end_do_not_touch_those_half_read(qwen):
    engine = in_small_steps(Engine(qwen), 24)
    targets = [(ids_of(qwen, seed, length), ids_of(qwen, seed + 50, 4), None, 0) for seed, length in ((1, 9), (2, 30))]
    for (prompt, target, _, _), found in zip(targets, engine.distributions_batch(targets), strict=True):
        expected = judge_logprobs(qwen, Request(prompt, 0), target[:-1])[len(prompt) - 1 :]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_nothing_is_kept_of_what_has_ended_while_others_go_on(engine, qwen):
    long = engine.submit(Request(ids_of(qwen, 8, 5), 900, stop_ids=NEVER))
    for number in range(40):
        engine.submit(Request(ids_of(qwen, 20 + number, 4), 2, stop_ids=NEVER)).result(60)
    assert not long.done and len(engine._submitted) < 20
    long.abort()


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(engine, qwen, monkeypatch):
    from cartridges.engine import batching

    choosing, failures = batching.choose, [MemoryError("no memory"), MemoryError("no memory")]

    def choose(*args):
        if failures:
            raise failures.pop()
        return choosing(*args)

    request = Request(ids_of(qwen, 3, 6), 5, stop_ids=NEVER)
    (expected,) = engine.generate([request])
    monkeypatch.setattr(batching, "choose", choose)
    for _ in range(2):
        with pytest.raises(CartridgesError, match="MemoryError: no memory"):
            engine.submit(request).result(60)
    assert engine.submit(request).result(60).token_ids == expected.token_ids


def test_a_call_that_is_given_up_leaves_the_engine_whole(qwen):
    """Rows of one size whose requests leave one by one, outside of any step."""
    engine = Engine(qwen)
    requests = [Request(ids_of(qwen, seed, 6), 2 if seed == 1 else 40, stop_ids=NEVER) for seed in range(5)]

    def give_up(num):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests, give_up)
    engine.check()
    assert engine.stats().num_running == 0
    assert [result.token_ids for result in engine.generate(requests)] == [judge_generate(qwen, one) for one in requests]


def test_what_cannot_be_kept_for_later_is_no_failure(qwen, monkeypatch):
    engine, request = Engine(qwen), Request(ids_of(qwen, 3, 40), 5, stop_ids=NEVER)
    (expected,) = engine.generate([request])

    def take(*args):
        raise MemoryError("no memory")

    monkeypatch.setattr(engine.runner.store, "take", take)
    for _ in range(2):
        result = engine.submit(request).result(60)
        assert (result.token_ids, result.num_cached_tokens) == (expected.token_ids, 0)
    engine.check()


def test_a_cartridge_that_cannot_be_loaded_ends_its_own_request(qwen, monkeypatch):
    """One that is behind another in the line, which waits for a beginning that is being read."""
    engine, bad = in_small_steps(Engine(qwen), 8), make_cartridge(qwen, 7)
    loading = engine.batching.scheduler.load

    def load(cartridge):
        if cartridge is bad:
            raise MemoryError("no memory")
        return loading(cartridge)

    monkeypatch.setattr(engine.batching.scheduler, "load", load)
    shared = ids_of(qwen, 9, 40)
    asked = [Request((*shared, seed), 4, shared_len=len(shared), stop_ids=NEVER) for seed in (5, 6)]
    with engine._turn:  # all are there before the first step
        good = [engine.submit(request) for request in asked]
        failing = engine.submit(Request(ids_of(qwen, 2, 6), 4, cartridge=bad, stop_ids=NEVER))
    with pytest.raises(CartridgesError, match="MemoryError: no memory"):
        failing.result(60)
    assert [handle.result(60).token_ids for handle in good] == [judge_generate(qwen, request) for request in asked]


def test_who_stands_behind_one_that_cannot_be_loaded_is_answered(engine, qwen, monkeypatch):
    bad, loading = make_cartridge(qwen, 7), engine.batching.scheduler.load

    def load(cartridge):
        if cartridge is bad:
            raise MemoryError("no memory")
        return loading(cartridge)

    monkeypatch.setattr(engine.batching.scheduler, "load", load)
    asked = [Request(ids_of(qwen, seed, 6), 4, stop_ids=NEVER) for seed in (5, 6)]
    with engine._turn:  # all are there before the first step
        failing = engine.submit(Request(ids_of(qwen, 2, 6), 4, cartridge=bad, stop_ids=NEVER))
        good = [engine.submit(request) for request in asked]
    with pytest.raises(CartridgesError, match="MemoryError: no memory"):
        failing.result(60)
    assert [handle.result(60).token_ids for handle in good] == [judge_generate(qwen, request) for request in asked]


def test_a_beginning_that_nobody_waits_for_any_more_is_left(qwen):
    """While another reply is under way, and only where none of those who share the beginning is left."""
    engine = in_small_steps(Engine(qwen), 8)
    shared = ids_of(qwen, 9, 200)
    asked = [Request((*shared, seed), 4, shared_len=len(shared), stop_ids=NEVER) for seed in (5, 6)]
    with engine._turn:
        other = engine.submit(Request(ids_of(qwen, 1, 6), 30, stop_ids=NEVER))
        engine.batching.step()
        handles = [engine.submit(request) for request in asked]
        scheduler = engine.batching.scheduler
        for handle, num_readers in zip([None, *handles], (1, 1, 0), strict=True):
            if handle:
                handle.abort()
            engine.batching.step()
            assert sum(bool(one.fills) for one in scheduler.running) == num_readers
    assert [handle.result(60).finish_reason for handle in [other, *handles]] == ["length", "abort", "abort"]
    engine.close()
    engine.check()


def test_nothing_is_handed_in_once_it_closes(qwen):
    """Whatever is taken while another thread closes the engine ends; the rest is refused."""
    for _ in range(20):
        engine, taken = Engine(qwen), []
        closing = threading.Thread(target=engine.close)
        taken.append(engine.submit(Request(ids_of(qwen, 1, 6), 3, stop_ids=NEVER)))
        closing.start()
        with contextlib.suppress(InputError):
            while closing.is_alive():
                taken.append(engine.submit(Request(ids_of(qwen, 1, 6), 3, stop_ids=NEVER)))
        closing.join(60)
        assert all(handle.result(10).finish_reason in ("abort", "length") for handle in taken)
