"""Packed rows by flash kernels: parts become the whole, there and back.

The kernels are stood in for by slow ones that do what is documented; tests/cuda has the real ones.
"""

import pytest
import torch

from cartridges import attention, flash
from cartridges.attention import PackedPrefix, attend_once, cartridge_attention
from cartridges.engine.flash import of_rows, of_run
from cartridges.flash import attend_by_flash, has_flash

LENGTHS = (5, 9, 1, 13)


def probabilities(q_TNH, k_KGH, spans, scale, log_NT=None):
    """[N, T, K], against the whole's sums where their logs are given."""
    keys = k_KGH.repeat_interleave(q_TNH.shape[1] // k_KGH.shape[1], 1)
    scores = torch.einsum("tnh,knh->ntk", q_TNH, keys) * scale
    seen = torch.zeros(scores.shape[1:], dtype=torch.bool)
    for (q_start, q_stop), (k_start, k_stop) in zip(
        *(zip(first[:-1].tolist(), first[1:].tolist(), strict=True) for first in (spans.first_q, spans.first_k)),
        strict=True,
    ):
        assert q_stop - q_start <= spans.longest_q and k_stop - k_start <= spans.longest_k
        block = torch.ones(q_stop - q_start, k_stop - k_start, dtype=torch.bool)
        seen[q_start:q_stop, k_start:k_stop] = block.tril() if spans.is_causal else block
    scores = scores.masked_fill(~seen, -torch.inf)
    log_NT = scores.logsumexp(-1) if log_NT is None else log_NT
    return (scores - log_NT[..., None]).exp(), log_NT


def forward(q_TNH, k_KGH, v_KGH, spans, scale):
    p_NTK, log_NT = probabilities(q_TNH, k_KGH, spans, scale)
    values = v_KGH.repeat_interleave(q_TNH.shape[1] // v_KGH.shape[1], 1)
    return torch.einsum("ntk,knh->tnh", p_NTK, values), log_NT


def backward(whole, q_TNH, k_KGH, v_KGH, spans, scale):
    """Written out, as flash attention's paper has it."""
    grad_TNH, out_TNH, log_NT = whole
    repeats = q_TNH.shape[1] // k_KGH.shape[1]
    p_NTK, _ = probabilities(q_TNH, k_KGH, spans, scale, log_NT)
    keys, values = (part.repeat_interleave(repeats, 1) for part in (k_KGH, v_KGH))
    of_p = torch.einsum("tnh,knh->ntk", grad_TNH, values)
    of_scores = p_NTK * (of_p - (grad_TNH * out_TNH).sum(-1).T[..., None]) * scale
    of_k, of_v = torch.einsum("ntk,tnh->knh", of_scores, q_TNH), torch.einsum("ntk,tnh->knh", p_NTK, grad_TNH)
    of_k, of_v = (part.unflatten(1, (-1, repeats)).sum(2) for part in (of_k, of_v))
    return torch.einsum("ntk,knh->tnh", of_scores, keys), of_k, of_v


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(flash, "forward", forward)
    monkeypatch.setattr(flash, "backward", backward)


@pytest.mark.parametrize("num_slots", [0, 6])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
def test_parts_become_the_whole_there_and_back(emulated, heads, num_slots):
    torch.manual_seed(0)
    num_tokens = sum(LENGTHS)
    shapes = [(heads[0], num_tokens, 8), *[(heads[1], num_tokens, 8)] * 2, *[(heads[1], num_slots, 8)] * 2]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    row, weights = PackedPrefix([given[3]], [given[4]], LENGTHS), torch.randn(shapes[0], dtype=torch.float64)
    results = []
    for way in (attend_by_flash, attend_once):
        out = way(*given, row.spans if way is attend_by_flash else row, 0.3)
        results.append([out, *torch.autograd.grad((out * weights).sum(), given, materialize_grads=True)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # the other's softmax is in float32


@pytest.mark.parametrize(
    ("options", "is_asked"),
    [({}, True), ({"sliding_window": 19}, True), ({"sliding_window": 18}, False), ({"softcap": 20.0}, False)],
)
def test_only_plain_attention_is_theirs(monkeypatch, options, is_asked):
    monkeypatch.setattr(attention, "has_flash", lambda *about: True)
    asked = []
    monkeypatch.setattr(attention, "attend_by_flash", lambda q, *rest: asked.append(1) or q)
    row, module = PackedPrefix([torch.randn(2, 6, 8)], [torch.randn(2, 6, 8)], LENGTHS), torch.nn.Module()
    module.layer_idx = 0
    parts = [torch.randn(1, heads, sum(LENGTHS), 8) for heads in (4, 2, 2)]
    cartridge_attention(module, *parts, None, cartridge_row=row, **options)
    biased = PackedPrefix(row.keys, row.values, LENGTHS, [torch.zeros(2, 6)])
    assert bool(asked) == is_asked
    asked.clear()
    cartridge_attention(module, *parts, None, cartridge_row=biased, **options)
    assert not asked


@pytest.mark.parametrize(
    ("device", "dtype", "size"), [("cpu", torch.bfloat16, 64), ("cuda", torch.float32, 64), ("cuda", torch.half, 300)]
)
def test_numbers_that_the_kernels_do_not_take(monkeypatch, device, dtype, size):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert has_flash(torch.device("cuda"), torch.bfloat16, [64, 256])
    assert not has_flash(torch.device(device), dtype, [64, size])


def test_calls_are_of_the_form_that_pytorch_takes():
    """Nothing is computed on this device; what the operations take, and the shapes of what they give, are known."""

    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, device="meta", dtype=dtype)

    first, query, slots = empty(4, dtype=torch.int32), empty(20, 8, 64), empty(2, 6, 64)
    spans = flash.Spans(first, first, 9, 9, True)
    keys, logs = empty(20, 2, 64), empty(8, 20, dtype=torch.float32)
    for used, window in ((None, None), (empty(3, dtype=torch.int32), 5)):
        found = flash.forward(query, keys, keys, spans, 0.1, window, used)
        assert [tensor.shape for tensor in found] == [query.shape, logs.shape]
    gradients = flash.backward((query, query, logs), query, keys, keys, spans, 0.1)
    assert [tensor.shape for tensor in gradients] == [query.shape, keys.shape, keys.shape]
    rows = empty(3, 16, 2, 64).transpose(1, 2)
    for found in (of_run(query, slots, slots, 0.1), of_rows(query, rows, rows, first, first, first[1:], 9, 0.1)):
        assert [tensor.shape for tensor in found] == [query.shape, logs.T.shape]
