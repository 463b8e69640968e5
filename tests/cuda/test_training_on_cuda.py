"""Training on a CUDA device: packed rows by flash kernels give what written-out attention does."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from cartridges import attention
from cartridges.attention import PackedPrefix, attend, attend_once, packed_hidden
from cartridges.flash import attend_by_flash
from tests.engine.judges import ids_of, make_cartridge

LENGTHS = (5, 200, 1, 130, 64)


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("heads", [(8, 2), (4, 4)])
@pytest.mark.parametrize("num_slots", [0, 1, 100, 2048])
def test_kernels_and_their_gradients(num_slots, heads, head_size):
    torch.manual_seed(0)
    num_tokens = sum(LENGTHS)
    shapes = [(heads[0], num_tokens), *[(heads[1], num_tokens)] * 2, *[(heads[1], num_slots)] * 2]
    given = [
        torch.randn(*shape, head_size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes
    ]
    row, weights = PackedPrefix([given[3]], [given[4]], LENGTHS), torch.randn_like(given[0])
    exact = [part.detach().float().requires_grad_() for part in given]
    exact_row = PackedPrefix([exact[3]], [exact[4]], LENGTHS)
    found = attend_by_flash(*given, row.spans, head_size**-0.5)
    expected = attend_once(*exact, exact_row, head_size**-0.5)
    assert relative(found, expected) < 0.01
    gradients = torch.autograd.grad((found * weights).sum(), given, materialize_grads=True)
    wanted = torch.autograd.grad((expected * weights.float()).sum(), exact, materialize_grads=True)
    assert all(relative(*pair) < 0.015 for pair in zip(gradients, wanted, strict=True) if pair[0].numel())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_row_through_the_model_is_as_exact_as_without_kernels(model, monkeypatch, checkpointing):
    cartridge, num_tokens = make_cartridge(model, 100), sum(LENGTHS)
    ids_T = torch.tensor(ids_of(model, 1, num_tokens), device="cuda")
    weights_TD = torch.randn(num_tokens, model.hf.config.hidden_size, device="cuda")

    def found(model):
        keys, values = (
            [part.float().requires_grad_() for part in parts] for parts in (cartridge.keys, cartridge.values)
        )
        with attend(model, checkpointing):
            hidden = packed_hidden(model, ids_T, PackedPrefix(keys, values, LENGTHS))
            return [hidden, *torch.autograd.grad((hidden.float() * weights_TD).sum(), [*keys, *values])]

    by_kernels = found(model)
    monkeypatch.setattr(attention, "has_flash", lambda *about: False)
    without = found(model)
    exact = found(replace(model, hf=deepcopy(model.hf).float()))
    assert not torch.equal(by_kernels[0], without[0])
    for one, two, right in zip(by_kernels, without, exact, strict=True):
        assert relative(one, right) < 1.5 * relative(two, right) + 0.005
