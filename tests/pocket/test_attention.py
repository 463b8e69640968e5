"""Block-wise causal attention against a dense one in float64."""

import pytest
import torch

from cartridges.pocket import attention
from cartridges.pocket.attention import BLOCK, LONGEST_IN_BLOCKS, training_attention

NUM_ROWS, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 2, 4, 2, 16
LENGTHS = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 44]


def tensors(length: int, num_heads: int = NUM_HEADS, num_kv_heads: int = NUM_KV_HEADS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(NUM_ROWS, heads, length, HEAD_SIZE) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return training_attention(torch.nn.Module(), query, key, value, None, HEAD_SIZE**-0.5)[0]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The textbook: every score, a mask, a softmax, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.empty_like(query)
    for head in range(query.shape[1]):
        group = head // (query.shape[1] // key.shape[1])
        scores_BTT = query[:, head] @ key[:, group].transpose(-1, -2) * HEAD_SIZE**-0.5
        ahead = torch.ones(scores_BTT.shape[-2:], dtype=torch.bool).triu(1)
        out[:, head] = scores_BTT.masked_fill(ahead, -torch.inf).softmax(-1) @ value[:, group]
    return out.transpose(1, 2)


@pytest.fixture(params=["blocks", "flash"])
def path(request, monkeypatch):
    """Short rows go in blocks, long ones to the kernel of torch; either is tried at every length."""
    monkeypatch.setattr(attention, "LONGEST_IN_BLOCKS", LONGEST_IN_BLOCKS if request.param == "blocks" else 0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (3, 1)])
def test_it_is_the_dense_one(path, length, heads):
    inputs = tensors(length, *heads)
    torch.testing.assert_close(ours(*inputs).double(), dense(*inputs), rtol=0, atol=1e-5)  # float32


@pytest.mark.parametrize("length", [BLOCK + 1, 300])
def test_its_gradients_are_those_of_the_dense_one(path, length):
    gradients = []
    for function in (ours, dense):
        inputs = [part.requires_grad_() for part in tensors(length)]
        function(*inputs).double().square().sum().backward()
        gradients.append([part.grad for part in inputs])
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [BLOCK, 300])
def test_autocast_computes_in_bf16(path, length):
    inputs = tensors(length)
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(*inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), dense(*inputs), rtol=0, atol=0.03)  # 8 bits of mantissa, values up to 4


@pytest.mark.parametrize("seen", [1, BLOCK - 1, BLOCK, BLOCK + 3, 250])
def test_later_tokens_change_nothing(path, seen):
    inputs = tensors(300)
    changed = [part.clone() for part in inputs]
    for part in changed:
        part[:, :, seen:] = 100.0
    torch.testing.assert_close(ours(*changed)[:, :seen], ours(*inputs)[:, :seen], rtol=0, atol=1e-6)


def test_rows_longer_than_the_limit_take_the_other_path():
    inputs = tensors(LONGEST_IN_BLOCKS + 1)
    torch.testing.assert_close(ours(*inputs).double(), dense(*inputs), rtol=0, atol=1e-5)


def test_a_model_takes_it_by_name(tiny_model):
    ids = torch.arange(150)[None] % 500
    before = tiny_model.config._attn_implementation
    expected = tiny_model(ids).logits
    tiny_model.set_attn_implementation(attention.register())
    try:
        torch.testing.assert_close(tiny_model(ids).logits, expected, rtol=0, atol=1e-4)
    finally:
        tiny_model.set_attn_implementation(before)
