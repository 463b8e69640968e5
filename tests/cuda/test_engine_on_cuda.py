"""The engine on a CUDA device, in bfloat16 by flash kernels and graphs, and in float32 without them."""

import threading

import pytest
import torch

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from tests.architectures import ARCHITECTURES, tiny
from tests.engine.judges import (
    NEVER,
    ids_of,
    in_small_steps,
    judge_generate,
    judge_logprobs,
    make_cartridge,
    mixed_requests,
)
from tests.engine.kernels import of_rows, of_run, record


def many(model, num_new=40):
    """Of several lengths, behind two cartridges and none."""
    cartridges = [None, *(make_cartridge(model, slots, slots) for slots in (100, 6))]
    return [
        Request(ids_of(model, seed, 3 + 11 * seed), num_new, cartridge=cartridges[seed % 3], stop_ids=NEVER)
        for seed in range(7)
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("prefix_len", "num_slots"), [(0, 0), (17, 0), (0, 19), (5, 5)])
def test_float32_equals_generate(tiny_tokenizer, name, prefix_len, num_slots):
    model = tiny(name, tiny_tokenizer)
    requests = mixed_requests(
        model, prefix_len, make_cartridge(model, num_slots) if num_slots else None, stop_ids=NEVER
    )
    expected = [judge_generate(model, request) for request in requests]
    model.hf.to("cuda")
    engine = in_small_steps(Engine(model), 7)
    assert [found.token_ids for found in engine.generate(requests)] == expected
    assert not engine.runner.has_flash


def test_bfloat16_is_as_close_to_float32_as_one_forward_pass_is(model):
    requests = many(model)
    engine = Engine(model)
    found = engine.generate([Request(**{**vars(one), "top_k_logprobs": 8}) for one in requests])
    assert engine.runner.has_flash and engine.runner.graphs.num_replayed
    for request, one in zip(requests, found, strict=True):
        expected = judge_logprobs(model, request, one.token_ids)[len(request.prompt_ids) - 1 : -1].float()
        told = torch.tensor(one.logprobs.logprobs, device="cuda")
        known = expected.gather(1, torch.tensor(one.logprobs.ids.astype("int64"), device="cuda"))
        assert (told - known).abs().max() < 0.1 and (told - known).abs().mean() < 0.02


def test_replays_are_what_launches_are(model, monkeypatch):
    requests = many(model)
    with_graphs = Engine(model)
    found = with_graphs.generate(requests)
    monkeypatch.setattr("cartridges.engine.graphs.NUM_EAGER", 10**9)
    without = Engine(model)
    expected = without.generate(requests)
    assert with_graphs.runner.graphs.num_replayed > 10 and not without.runner.graphs.num_replayed
    assert not with_graphs.runner.graphs.is_broken
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_the_kernels_are_what_the_slow_ones_are(model, monkeypatch):
    requests = many(model, 12)
    found = Engine(model).generate(requests)
    monkeypatch.setattr("cartridges.engine.flash.of_rows", of_rows)
    monkeypatch.setattr("cartridges.engine.flash.of_run", of_run)
    monkeypatch.setattr("cartridges.engine.graphs.Graphs._record", record)
    expected = Engine(model).generate(requests)
    told = [torch.tensor([id for one in each for id in one.token_ids]) for each in (found, expected)]
    assert (told[0] == told[1]).float().mean() > 0.8  # in bfloat16 what is likeliest may be another


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_windows_in_bfloat16(tiny_tokenizer, name):
    model = tiny(name, tiny_tokenizer)
    model.hf.to("cuda", torch.bfloat16)
    requests = many(model, 30)
    found = Engine(model).generate(requests)
    for request, one in zip(requests, found, strict=True):
        expected = judge_logprobs(model, request, one.token_ids)[len(request.prompt_ids) - 1 : -1].float()
        chosen = expected.gather(1, torch.tensor(one.token_ids, device="cuda")[:, None])[:, 0]
        assert (expected.amax(-1) - chosen).max() < 0.1  # each is the likeliest, or nearly


def test_cartridges_that_come_while_graphs_are_made(model):
    engine, errors = Engine(model), []
    engine.shelf.add("first", make_cartridge(model, 20))
    folders = [make_cartridge(model, 30, seed).to(torch.device("cpu")) for seed in range(8)]

    def load():
        try:
            for cartridge in folders:
                engine.shelf.add("other", cartridge)
                engine.submit(Request(ids_of(model, 1, 4), 6, cartridge=cartridge, stop_ids=NEVER)).result()
        except Exception as error:
            errors.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    requests = [
        Request(ids_of(model, seed, 5), 80, cartridge=engine.shelf.get(["first"]), stop_ids=NEVER) for seed in range(4)
    ]
    handles = [engine.submit(request) for request in requests]
    found = [handle.result().token_ids for handle in handles]
    loading.join()
    engine.close()
    assert not errors and not engine.runner.graphs.is_broken and engine.runner.graphs.num_replayed
    assert all(len(tokens) == 80 for tokens in found)
    engine.check()
