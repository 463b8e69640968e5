"""Cartridges as a caller may hold them in memory, and engines that share a model."""

import threading

import pytest
import torch

from cartridges.cartridge import Cartridge
from cartridges.engine.attention import NAME, configs_of, engine_attention
from cartridges.engine.engine import Engine
from cartridges.errors import FormatError
from tests.architectures import tiny
from tests.engine.judges import ids_of, make_cartridge
from tests.reference import biased_logits_behind

NUM_SLOTS = 12  # more than the window of the models that have one


def assert_judged(model, cartridge):
    prompt, target = ids_of(model, 1, 15), ids_of(model, 2, 4)
    expected = biased_logits_behind(model, cartridge, [*prompt, *target]).log_softmax(-1)[len(prompt) - 1 : -1]
    found = Engine(model).distributions(prompt, target, cartridge)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=["llama", "gemma3"])
def model(request, tiny_tokenizer):
    return tiny(request.param, tiny_tokenizer)


def test_slots_may_be_views(model):
    plain = make_cartridge(model, NUM_SLOTS)
    keys, values = (
        [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in part] for part in (plain.keys, plain.values)
    )
    assert keys[0].stride(-1) > 1
    assert_judged(model, Cartridge(keys, values, plain.manifest))


@pytest.mark.parametrize("bias", [-1e4, -1e32, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("on_all", [False, True])
def test_a_bias_may_be_huge(model, bias, on_all):
    plain = make_cartridge(model, NUM_SLOTS)
    biases = [torch.full((2, NUM_SLOTS), bias) for _ in range(2)]
    if not on_all:
        for tensor in biases:
            tensor[:, ::3] = 0.5
    assert_judged(model, Cartridge(plain.keys, plain.values, plain.manifest, biases))


def test_a_bias_that_is_no_number_ends_the_request(model):
    plain = make_cartridge(model, NUM_SLOTS)
    biases = [torch.zeros(2, NUM_SLOTS), torch.full((2, NUM_SLOTS), -torch.inf)]
    engine, prompt = Engine(model), ids_of(model, 1, 15)
    with pytest.raises(FormatError, match="has a bias in layer 1 that is infinite or no number"):
        engine.distributions(prompt, prompt[:2], Cartridge(plain.keys, plain.values, plain.manifest, biases))
    assert engine.distributions(prompt, prompt[:2], plain).isfinite().all()


def test_calls_of_two_threads_may_overlap(model):
    """Each enters while the other is under way; the one that came first ends first."""
    configs, before = configs_of(model.hf), model.hf.config._attn_implementation
    entered, ended, names = threading.Event(), threading.Event(), []

    def other():
        with engine_attention(configs):
            entered.set()
            ended.wait(10)
            names.append(model.hf.config._attn_implementation)

    thread = threading.Thread(target=other)
    with engine_attention(configs):
        thread.start()
        assert entered.wait(10)
    assert model.hf.config._attn_implementation == NAME
    ended.set()
    thread.join()
    assert names == [NAME] and model.hf.config._attn_implementation == before


def test_two_engines_may_share_a_model_in_two_threads(model):
    before, prompt, target = model.hf.config._attn_implementation, ids_of(model, 1, 15), ids_of(model, 2, 4)
    expected = Engine(model).distributions(prompt, target)
    found = []

    def ask():
        engine = Engine(model)
        for _ in range(10):
            found.append(engine.distributions(prompt, target))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for each in found:
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)
    assert model.hf.config._attn_implementation == before
