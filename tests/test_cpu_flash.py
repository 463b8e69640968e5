"""Packed rows by the CPU's flash kernel: results and gradients are those of written-out scores, which are not held."""

import pytest
import torch

from cartridges import attention
from cartridges.attention import PackedPrefix, attend, attend_once, packed_hidden
from cartridges.cpu_flash import attend_by_cpu_flash
from tests.architectures import tiny
from tests.engine.judges import ids_of, make_cartridge

LENGTHS = (5, 60, 1, 33, 100)
SCALE = 0.2


def parts_of(heads, num_slots, head_size=16):
    torch.manual_seed(0)
    num_tokens = sum(LENGTHS)
    shapes = [(heads[0], num_tokens), *[(heads[1], num_tokens)] * 2, *[(heads[1], num_slots)] * 2]
    return [torch.randn(*shape, head_size, requires_grad=True) for shape in shapes]


def by_kernel(parts, row):
    return attend_by_cpu_flash(*parts, row.index_SC, row.back_T, SCALE)


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (8, 1)])
@pytest.mark.parametrize("num_slots", [0, 1, 77])
@pytest.mark.parametrize("num_threads", [1, 8])
def test_the_same_as_with_scores(heads, num_slots, num_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)  # by which the work is dealt out
    parts = parts_of(heads, num_slots)
    row, weights = PackedPrefix([parts[3]], [parts[4]], LENGTHS), torch.randn_like(parts[0])
    found, expected = by_kernel(parts, row), attend_once(*parts, row, SCALE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients, wanted = (torch.autograd.grad((whole * weights).sum(), parts) for whole in (found, expected))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    if num_slots:  # as in the first layer
        slots = torch.autograd.grad(
            by_kernel([part.detach() for part in parts[:3]] + parts[3:], row).mul(weights).sum(), parts[3:]
        )
        assert all(torch.equal(one, other) for one, other in zip(slots, gradients[3:], strict=True))


@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
def test_whatever_lies_behind_one_another(heads):
    parts = parts_of(heads, 9)
    given = [part.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_() for part in parts]
    row = PackedPrefix([parts[3]], [parts[4]], LENGTHS)
    assert given[3].stride(-1) != 1
    found, expected = by_kernel(given, row), by_kernel(parts, row)
    assert torch.equal(found, expected)
    # the gradient of a sum is one number, expanded
    gradients, wanted = (torch.autograd.grad(whole.sum(), of) for whole, of in ((found, given), (expected, parts)))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_no_scores_are_held():
    parts = parts_of((4, 2), 500)
    row, held = PackedPrefix([parts[3]], [parts[4]], LENGTHS), []

    def keep(tensor):
        held.append(tensor.numel())
        return tensor

    def num_held(call):
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            call()
        return max(held)

    assert num_held(lambda: by_kernel(parts, row)) <= max(part.numel() for part in parts)
    assert num_held(lambda: attend_once(*parts, row, SCALE)) >= 4 * sum(LENGTHS) * 500


@pytest.mark.parametrize(
    ("dtype", "fewest"), [(torch.float32, 0), (torch.bfloat16, attention.MIN_SCORES[torch.bfloat16])]
)
def test_a_model_uses_it_where_it_is_as_fast(tiny_tokenizer, monkeypatch, dtype, fewest):
    model = tiny("llama", tiny_tokenizer)
    model.hf.to(dtype)
    cartridge, used = make_cartridge(model, 12).to("cpu", dtype), []
    prefix = PackedPrefix(cartridge.keys, cartridge.values, LENGTHS)
    ids_T = torch.tensor(ids_of(model, 1, sum(LENGTHS)))

    def spy(*given):
        used.append(True)
        return attend_by_cpu_flash(*given)

    monkeypatch.setattr(attention, "attend_by_cpu_flash", spy)
    with attend(model), torch.no_grad():
        found = packed_hidden(model, ids_T, prefix)
        assert bool(used) == (fewest == 0)
        monkeypatch.setattr(attention, "MIN_SCORES", {} if used else {dtype: 0})
        other = packed_hidden(model, ids_T, prefix)
    assert used and len(used) == model.num_layers
    assert ((found - other).float().norm() / other.float().norm()).item() < (1e-5 if dtype == torch.float32 else 0.03)
