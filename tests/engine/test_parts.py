"""Parts of attention, in both ways of computing them, against attention over all keys at once."""

import pytest
import torch

from cartridges.engine.parts import LEAST, merged, part


def whole(q, k, v, mask):
    scores = q @ k.transpose(2, 3) / 4
    return (scores + (0 if mask is None else mask)).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the CPU's own kernel; the general way
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cuts", [(9,), (5, 9), (2, 5, 9)])
def test_parts_make_the_whole(cuts, masked, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, num, 16) for num in (4, 9, 9))
    mask = torch.zeros(3, 1, 1, 9).masked_fill(torch.rand(3, 1, 1, 9) < 0.3, LEAST) if masked else None
    expected = whole(q, k, v, mask)
    parts = [
        part(
            q.to(dtype),
            k[:, :, start:stop].to(dtype),
            v[:, :, start:stop].to(dtype),
            0.25,
            mask[..., start:stop] if masked else None,
        )
        for start, stop in zip((0, *cuts), cuts, strict=False)
    ]
    torch.testing.assert_close(merged(parts), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_others", [1, 2])
def test_a_part_that_saw_nothing_has_no_weight(num_others):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, num, 16) for num in (4, 9, 9))
    seen = part(q, k, v, 0.25)
    nothing = (torch.zeros(3, 2, 4, 16), torch.full((3, 2, 4), -torch.inf))
    torch.testing.assert_close(merged([seen, *[nothing] * num_others]), seen[0])
    hidden = part(q, k, v, 0.25, torch.full((1, 1, 1, 9), LEAST))
    torch.testing.assert_close(merged([seen, hidden]), seen[0])


WAYS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the CPU's own kernel; the general way


@pytest.mark.parametrize("strided", range(3))
def test_gaps_between_the_numbers_of_a_head_are_read_over(strided):
    torch.manual_seed(0)
    plain = [torch.randn(3, 2, num, 16) for num in (4, 9, 9)]
    gaps = list(plain)
    gaps[strided] = plain[strided].transpose(2, 3).contiguous().transpose(2, 3)
    for found, expected in zip(part(*gaps, 0.25), part(*plain, 0.25), strict=True):
        torch.testing.assert_close(found, expected)


@WAYS
@pytest.mark.parametrize("num_keys", [9, 600])
def test_a_row_that_sees_nothing_gives_nothing(dtype, num_keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, num, 16) for num in (4, num_keys, num_keys))
    mask = torch.zeros(1, 1, 4, num_keys)
    mask[:, :, 1] = -torch.inf
    out, log = part(*(tensor.to(dtype) for tensor in (q, k, v)), 0.25, mask)
    assert (out[:, :, 1] == 0).all() and (log[:, :, 1] == -torch.inf).all()
    rest = [0, 2, 3]
    torch.testing.assert_close(out[:, :, rest], whole(q[:, :, rest], k, v, None), atol=1e-6, rtol=1e-5)
    other = part(q, k, v, 0.25)
    torch.testing.assert_close(merged([(out, log), other])[:, :, 1], other[0][:, :, 1])


@WAYS
def test_a_log_of_nought_is_not_taken_for_nothing(dtype):
    """One score of 0: the sum of exponentials is 1."""
    q, k, v = torch.zeros(1, 1, 2, 16), torch.ones(1, 1, 3, 16), torch.rand(1, 1, 3, 16)
    mask = torch.tensor([0, -torch.inf, -torch.inf])[None, None, None]
    out, log = part(*(tensor.to(dtype) for tensor in (q, k, v)), 0.25, mask)
    assert (log == 0).all() and torch.equal(out, v[:, :, :1].expand_as(out))


@WAYS
def test_huge_biases_are_only_biases(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, num, 16) for num in (4, 9, 9))
    mask = torch.full((1, 1, 1, 9), -1e32)
    out, log = part(*(tensor.to(dtype) for tensor in (q, k, v)), 0.25, mask)
    assert out.isfinite().all() and (log == -1e32).all()
    seen = part(q, k, v, 0.25)
    torch.testing.assert_close(merged([(out, log), seen]), seen[0])
    mask[..., 3:5] = 0
    out, _ = part(*(tensor.to(dtype) for tensor in (q, k, v)), 0.25, mask)
    torch.testing.assert_close(out, whole(q, k[:, :, 3:5], v[:, :, 3:5], None), atol=1e-6, rtol=1e-5)


@WAYS
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_autocast_rounds_nothing(dtype, softcap):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, num, 16).to(dtype) for num in (4, 9, 9))
    expected = part(q, k, v, 0.25, softcap=softcap)
    with torch.autocast("cpu", torch.bfloat16):
        found = part(q, k, v, 0.25, softcap=softcap)
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16, "it is on again"
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_scores_are_capped():
    torch.manual_seed(0)
    q, k, v = (10 * torch.randn(1, 2, num, 16) for num in (4, 9, 9))
    expected = (0.5 * torch.tanh(q @ k.transpose(2, 3) / 4 / 0.5)).softmax(-1) @ v
    torch.testing.assert_close(part(q, k, v, 0.25, softcap=0.5)[0], expected)
    assert (part(q, k, v, 0.25)[0] - expected).abs().max() > 0.1, "the cap matters here"
