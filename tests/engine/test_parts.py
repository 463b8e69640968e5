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


def test_scores_are_capped():
    torch.manual_seed(0)
    q, k, v = (10 * torch.randn(1, 2, num, 16) for num in (4, 9, 9))
    expected = (0.5 * torch.tanh(q @ k.transpose(2, 3) / 4 / 0.5)).softmax(-1) @ v
    torch.testing.assert_close(part(q, k, v, 0.25, softcap=0.5)[0], expected)
    assert (part(q, k, v, 0.25)[0] - expected).abs().max() > 0.1, "the cap matters here"
