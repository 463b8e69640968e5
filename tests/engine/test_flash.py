"""Steps as CUDA's flash kernels and graphs take them give the replies of the judges. The kernels and the recording
themselves are stood in for by slow ones that do what is documented; tests/cuda has the real ones.
"""

import gc
import time
import weakref

import pytest
import torch

from cartridges.engine.engine import Engine
from cartridges.engine.graphs import NUM_EAGER
from cartridges.engine.request import Request
from cartridges.engine.rows import Store
from cartridges.engine.scheduler import AHEAD
from tests.architectures import WINDOW, tiny
from tests.engine.judges import NEVER, ids_of, in_small_steps, judge_generate, make_cartridge, mixed_requests
from tests.engine.kernels import emulate, record


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    emulate(monkeypatch)


@pytest.mark.parametrize(("prefix_len", "num_slots"), [(0, 0), (17, 0), (0, 19), (5, 5)])
def test_greedy_replies_equal_those_of_requests_alone(model, prefix_len, num_slots):
    cartridge = make_cartridge(model, num_slots) if num_slots else None
    requests = mixed_requests(model, prefix_len, cartridge, stop_ids=NEVER)
    engine = in_small_steps(Engine(model), 7)
    for request, result in zip(requests, engine.generate(requests), strict=True):
        assert result.token_ids == judge_generate(model, request)


def test_many_cartridges_are_read_together(model):
    cartridges = [make_cartridge(model, num_slots, num_slots) for num_slots in (3, 19, 4, 300)]
    requests = [
        Request(ids_of(model, seed, 3 + seed), 14, cartridge=[*cartridges, None][seed % 5], stop_ids=NEVER)
        for seed in range(8)
    ]
    engine = in_small_steps(Engine(model), 9)
    for request, result in zip(requests, engine.generate(requests), strict=True):
        assert result.token_ids == judge_generate(model, request)
    assert sorted(engine.runner.slabs.slabs) == [16, 32, 304]  # they are kept for later requests


@pytest.mark.parametrize(("cap", "kinds"), [(30.0, "Bundle"), (None, "Ragged")])
def test_models_that_cap_their_scores_are_not_for_the_kernels(tiny_tokenizer, cap, kinds):
    model = tiny("gemma3", tiny_tokenizer, attn_logit_softcapping=cap)
    engine, seen = Engine(model), set()
    forward = engine.runner._forward

    def note(step):
        seen.update(type(bundle).__name__ for bundle in step.bundles)
        return forward(step)

    engine.runner._forward = note
    if engine.runner.graphs:
        engine.runner.graphs.forward = note
    engine.generate([Request(ids_of(model, 1, 5), 3)])
    assert seen == {kinds}


def test_like_steps_are_replayed_and_others_are_not(qwen):
    engine, cartridges = Engine(qwen), [make_cartridge(qwen, 6, seed) for seed in (1, 2)]
    requests = [
        Request(ids_of(qwen, seed, 5 + seed), 30 + 10 * (seed % 3), cartridge=cartridges[seed % 2], stop_ids=NEVER)
        for seed in range(5)
    ]
    assert [found.token_ids for found in engine.generate(requests)] == [judge_generate(qwen, one) for one in requests]
    assert engine.runner.graphs.num_replayed > 30 - 2 * NUM_EAGER
    num_before = engine.runner.graphs.num_replayed
    more = [Request(ids_of(qwen, 9, 4), 1 + NUM_EAGER, cartridge=cartridges[0], stop_ids=NEVER)]
    assert engine.generate(more)[0].token_ids == judge_generate(qwen, more[0])
    assert engine.runner.graphs.num_replayed == num_before


def test_while_a_hook_is_on_the_model_nothing_is_recorded_or_replayed(qwen):
    engine, request = Engine(qwen), Request(ids_of(qwen, 1, 5), 20, stop_ids=NEVER)
    plain = engine.generate([request])[0].token_ids
    num_before, calls = engine.runner.graphs.num_replayed, []
    assert num_before
    handle = qwen.hf.get_decoder().layers[0].mlp.register_forward_hook(lambda *about: calls.append(1) or about[-1] + 1)
    try:
        hooked = engine.generate([request])[0].token_ids
        assert len(calls) == 20 and engine.runner.graphs.num_replayed == num_before
        assert hooked == judge_generate(qwen, request) != plain
    finally:
        handle.remove()
    assert engine.generate([request])[0].token_ids == plain


@pytest.mark.parametrize("has_bias", [False, True])
def test_weights_that_are_exchanged_are_noticed(qwen, has_bias):
    engine, request = Engine(qwen), Request(ids_of(qwen, 1, 5), 30, stop_ids=NEVER)
    plain = engine.generate([request])[0].token_ids
    layer = qwen.hf.get_decoder().layers[0].mlp.down_proj
    before = layer.weight, layer.bias
    torch.manual_seed(0)
    if has_bias:
        layer.bias = torch.nn.Parameter(torch.randn(len(layer.weight)), requires_grad=False)
    else:
        layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)
    try:
        assert engine.generate([request])[0].token_ids == judge_generate(qwen, request) != plain
    finally:
        layer.weight, layer.bias = before
    assert engine.generate([request])[0].token_ids == plain


def test_steps_are_moved_and_rows_grow_together(qwen, monkeypatch):
    copied = []
    copy_rows = Store.copy_rows
    monkeypatch.setattr(Store, "copy_rows", lambda store, *about: copied.append(about) or copy_rows(store, *about))
    engine = Engine(qwen)
    requests = [Request(ids_of(qwen, seed, 10), 200, stop_ids=NEVER) for seed in range(4)]
    found = engine.generate(requests)
    assert [one.token_ids for one in found] == [judge_generate(qwen, one) for one in requests]
    assert engine.runner.steps.num_moved >= 190
    grown = [(size, len(rows), target[0]) for size, rows, target, _ in copied if size != target[0]]
    assert grown == [(64, 4, 128), (128, 4, 256)]


def test_rows_with_room_ahead_do_not_grow(qwen, monkeypatch):
    monkeypatch.setitem(AHEAD, "cpu", 192)
    monkeypatch.setattr(Store, "copy_rows", None)
    engine = Engine(qwen)
    requests = [Request(ids_of(qwen, seed, 10), num, stop_ids=NEVER) for seed, num in enumerate((200, 40, 3))]
    handles = [engine.submit(request) for request in requests]
    found = [handle.result().token_ids for handle in handles]
    engine.close()
    assert found == [judge_generate(qwen, request) for request in requests]


@pytest.mark.parametrize("ahead", [0, 192])
def test_what_fits_alone_is_answered_whatever_was_kept(qwen, monkeypatch, ahead):
    monkeypatch.setitem(AHEAD, "cpu", ahead)
    engine, shared = Engine(qwen, kv_tokens_total=592), ids_of(qwen, 9, 32)
    engine.submit(Request(shared + ids_of(qwen, 1, 370), 1, shared_len=16, stop_ids=NEVER)).result(60)
    request = Request(shared + ids_of(qwen, 2, 20), 150, shared_len=16, stop_ids=NEVER)
    found = engine.submit(request).result(60)
    engine.close()
    engine.check()
    assert found.token_ids == judge_generate(qwen, request)


def test_nothing_is_held_for_those_that_have_left(qwen):
    engine, cartridge = Engine(qwen), make_cartridge(qwen, 6, sealed=False)
    held = weakref.ref(cartridge)
    engine.generate([Request(ids_of(qwen, 1, 5), 12, cartridge=cartridge, stop_ids=NEVER)])
    pieces = engine.stream(Request(ids_of(qwen, 2, 5), 500, cartridge=cartridge, stop_ids=NEVER))
    next(pieces)
    pieces.close()
    handle = engine.submit(Request(ids_of(qwen, 3, 5), 500, cartridge=cartridge, stop_ids=NEVER))
    handle.abort()
    handle.result(60)
    engine.close()
    del cartridge, handle, pieces
    gc.collect()
    assert held() is None and not engine.runner.slabs.slabs and not engine.runner.store.sizes


def test_a_cartridge_without_digest_is_not_copied_while_it_waits(qwen, monkeypatch):
    engine, loads = Engine(qwen, kv_tokens_total=256), []
    load = engine.runner.load
    engine.batching.scheduler.load = lambda cartridge: loads.append(1) or load(cartridge)
    cartridge = make_cartridge(qwen, 40, sealed=False)
    first = Request(ids_of(qwen, 1, 5), 120, stop_ids=NEVER)
    second = Request(ids_of(qwen, 2, 70), 10, cartridge=cartridge, stop_ids=NEVER)
    found = engine.generate([first, second])
    assert [one.token_ids for one in found] == [judge_generate(qwen, one) for one in (first, second)]
    assert len(loads) == 1


def test_rows_that_grow_while_graphs_are_there(qwen):
    engine = Engine(qwen)
    handles = []
    for seed in range(6):
        request = Request(ids_of(qwen, seed, 3 + 5 * seed), 70, stop_ids=NEVER)
        handles.append((request, engine.submit(request)))
        time.sleep(0.05)  # so that it joins others that decode
    found = [(request, handle.result().token_ids) for request, handle in handles]
    engine.close()  # judges use the same model
    for request, token_ids in found:
        assert token_ids == judge_generate(qwen, request)
    assert engine.runner.graphs.num_replayed


def test_without_memory_for_a_graph_the_next_one_is_tried(qwen, monkeypatch):
    tries = []

    def fail(graphs, step):
        tries.append(1)
        if len(tries) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(graphs, step)

    monkeypatch.setattr("cartridges.engine.graphs.Graphs._record", fail)
    engine, request = Engine(qwen), Request(ids_of(qwen, 1, 5), 40, stop_ids=NEVER)
    assert engine.generate([request])[0].token_ids == judge_generate(qwen, request)
    assert len(tries) == 3 and engine.runner.graphs.num_replayed and not engine.runner.graphs.is_broken


def test_a_model_that_cannot_be_recorded_goes_on_without_graphs(qwen, monkeypatch, caplog):
    def fail(graphs, step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("cartridges.engine.graphs.Graphs._record", fail)
    engine, request = Engine(qwen), Request(ids_of(qwen, 1, 5), 20, stop_ids=NEVER)
    assert engine.generate([request])[0].token_ids == judge_generate(qwen, request)
    assert engine.runner.graphs.is_broken and not engine.runner.graphs.num_replayed
    assert sum("without CUDA graphs" in record.message for record in caplog.records) == 1


def test_windows_before_which_a_run_lies_are_not_recorded(tiny_tokenizer):
    mistral = tiny("mistral", tiny_tokenizer)
    engine, cartridge = Engine(mistral), make_cartridge(mistral, 4)
    behind = Request(ids_of(mistral, 1, 5), 3 * WINDOW, cartridge=cartridge, stop_ids=NEVER)
    assert engine.generate([behind])[0].token_ids == judge_generate(mistral, behind)
    assert not engine.runner.graphs.num_replayed
    alone = Request(ids_of(mistral, 1, 5), 3 * WINDOW, stop_ids=NEVER)
    assert engine.generate([alone])[0].token_ids == judge_generate(mistral, alone)
    assert engine.runner.graphs.num_replayed
