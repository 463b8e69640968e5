"""Steps as CUDA's flash kernels and graphs take them give the replies of the judges. The kernels and the recording
themselves are stood in for by slow ones that do what is documented; tests/cuda has the real ones.
"""

import time

import pytest

from cartridges.engine.engine import Engine
from cartridges.engine.graphs import NUM_EAGER
from cartridges.engine.request import Request
from tests.architectures import WINDOW, tiny
from tests.engine.judges import NEVER, ids_of, in_small_steps, judge_generate, make_cartridge, mixed_requests
from tests.engine.kernels import emulate


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
    assert sorted(engine.runner.slabs.slabs) == [256, 512]  # they are kept for later requests


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


def test_a_graph_is_not_replayed_once_a_hook_is_on_the_model(qwen):
    engine, request = Engine(qwen), Request(ids_of(qwen, 1, 5), 20, stop_ids=NEVER)
    plain = engine.generate([request])[0].token_ids
    layer = qwen.hf.get_decoder().layers[0].mlp
    handle = layer.register_forward_hook(lambda module, given, out: out + 1.0)
    try:
        hooked = engine.generate([request])[0].token_ids
        assert hooked == judge_generate(qwen, request) != plain
    finally:
        handle.remove()
    assert engine.generate([request])[0].token_ids == plain


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
