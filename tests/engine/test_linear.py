"""Wide linear layers by oneDNN: the same numbers up to rounding, and no trace left in the model."""

import pytest
import torch
from torch import nn

from cartridges.engine import linear
from cartridges.engine.engine import Engine
from cartridges.engine.linear import MIN_NUMBERS, WideLinears, has_onednn
from tests.architectures import tiny
from tests.reference import logits_of

pytestmark = pytest.mark.skipif(not has_onednn(), reason="PyTorch has no linear layer by oneDNN here")


@pytest.fixture(autouse=True)
def amd(monkeypatch):
    monkeypatch.setattr(linear, "processor", lambda: "AMD EPYC")


@pytest.fixture
def model():
    torch.manual_seed(0)
    wide = nn.Linear(64, MIN_NUMBERS // 64)
    return nn.Sequential(nn.Linear(32, 64, bias=False), wide).requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 1, 32), (1, 40, 32), (3, 5, 32)])
def test_the_same_numbers_up_to_rounding(model, shape):
    x, wide = torch.randn(shape), WideLinears(model)
    assert wide.layers == [model[1]]
    expected = model(x)
    with torch.no_grad(), wide.by_onednn():
        found = model(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_engine_says_the_same_by_it(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(linear, "MIN_NUMBERS", 96 * 64)
    model, calls = tiny("llama", tiny_tokenizer), []
    ids, multiply = list(range(10, 40)), linear.linear
    monkeypatch.setattr(linear, "linear", lambda layer, x: calls.append(layer) or multiply(layer, x))
    found = Engine(model).distributions(ids[:20], ids[20:])
    torch.testing.assert_close(found, logits_of(model, ids).log_softmax(-1)[19:-1], atol=1e-4, rtol=1e-4)
    mlp = model.hf.model.layers[0].mlp
    assert {mlp.up_proj, mlp.down_proj, model.hf.lm_head} <= set(calls)
    assert model.hf.model.layers[0].self_attn.q_proj not in calls


def test_a_forward_of_somebody_else_is_kept(model):
    """One that is set after the layers were looked at, as hooks are; and one that is set meanwhile."""
    x, wide, expected = torch.randn(1, 4, 32), WideLinears(model), torch.tensor(7.0)
    model[1].forward = lambda x: expected
    with wide.by_onednn():
        assert model(x) is expected
    assert model(x) is expected
    del model[1].forward
    with wide.by_onednn():
        model[1].forward = lambda x: expected
    assert model(x) is expected


def test_calls_may_overlap(model):
    one, two = (WideLinears(model).by_onednn() for _ in range(2))
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    two.__exit__(None, None, None)
    assert "forward" not in vars(model[1])


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_gradients_are_not_lost(model, of):
    x = torch.randn(1, 4, 32, requires_grad=of == "inputs")
    model.requires_grad_(of == "weights")
    asked = x if of == "inputs" else model[1].weight
    (expected,) = torch.autograd.grad(model(x).square().sum(), asked)
    with WideLinears(model).by_onednn():
        found = model(x).square().sum()
    assert torch.equal(torch.autograd.grad(found, asked)[0], expected)


@torch.no_grad()
def test_a_change_of_the_weights_counts(model):
    x, wide = torch.randn(1, 4, 32), WideLinears(model)
    with wide.by_onednn():
        before = model(x)
    model[1].weight.data.mul_(2)
    model[1].bias = None
    expected = model(x)
    with wide.by_onednn():
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.1


def test_nothing_is_left_behind(model):
    wide = WideLinears(model)
    with pytest.raises(RuntimeError), torch.no_grad(), wide.by_onednn():
        model(torch.randn(1, 4, 31))
    assert "forward" not in vars(model[1])
    model(torch.randn(1, 4, 32, requires_grad=True)).sum().backward()


@torch.no_grad()
def test_other_numbers_go_the_usual_way(model):
    wide = WideLinears(model)
    with wide.by_onednn(), torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(1, 4, 32)).dtype == torch.bfloat16
    model.to(torch.float64)
    x = torch.randn(1, 4, 32, dtype=torch.float64)
    expected = model(x)
    with wide.by_onednn():
        assert torch.equal(model(x), expected)
    assert WideLinears(nn.Linear(8, 8)).layers == []


def test_other_processors_keep_to_mkl(model, monkeypatch):
    monkeypatch.setattr(linear, "processor", lambda: "Intel(R) Xeon(R) Processor")
    assert WideLinears(model).layers == []
