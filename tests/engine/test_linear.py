"""Wide linear layers by oneDNN: the same numbers up to rounding, and no trace left in the model."""

import pytest
import torch
from torch import nn

from cartridges.engine import linear
from cartridges.engine.linear import MIN_NUMBERS, WideLinears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")


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
    with wide.by_onednn():
        found = model(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


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
    with pytest.raises(RuntimeError), wide.by_onednn():
        model(torch.randn(1, 4, 31))
    assert "forward" not in vars(model[1])
    model(torch.randn(1, 4, 32, requires_grad=True)).sum().backward()


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
