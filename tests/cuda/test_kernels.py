"""PyTorch's flash kernels do what `tests/engine/kernels.py` says they are documented to do."""

import pytest
import torch

from cartridges.engine import flash
from tests.engine import kernels

HEADS = [(8, 2), (4, 4), (32, 8)]


def close(found, expected):
    torch.testing.assert_close(found[0].float(), expected[0].float(), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(found[1], expected[1], atol=2e-3, rtol=2e-3)


def randn(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("news", [[1, 1, 1], [1], [4, 1, 9], [130, 3, 1, 64]])
def test_rows(news, window, heads, head_size):
    torch.manual_seed(0)
    num_rows, size = len(news) + 2, 256
    held = [randn(num_rows, size, heads[1], head_size).transpose(1, 2) for _ in "kv"]
    rows = torch.randperm(num_rows)[: len(news)].tolist()
    used = [new + 17 * place for place, new in enumerate(news)]
    starts = [sum(news[:place]) for place in range(len(news) + 1)]
    numbers = [
        torch.tensor(each, dtype=torch.int32, device="cuda") for each in (starts, [*(r * size for r in rows), 0])
    ]
    given = (randn(sum(news), heads[0], head_size), *held, *numbers)
    rest = (torch.tensor(used, dtype=torch.int32, device="cuda"), max(news), head_size**-0.5, window)
    close(flash.of_rows(*given, *rest), kernels.of_rows(*given, *rest))


@pytest.mark.parametrize("num_rows", [3, 40])
def test_long_rows_are_split(num_rows):
    torch.manual_seed(0)
    held = [randn(num_rows, 8192, 8, 128).transpose(1, 2) for _ in "kv"]
    starts = torch.arange(num_rows + 1, dtype=torch.int32, device="cuda")
    used = torch.randint(1, 8192, (num_rows,), dtype=torch.int32, device="cuda")
    given = (randn(num_rows, 32, 128), *held, starts, starts * 8192, used, 1, 128**-0.5)
    close(flash.of_rows(*given), kernels.of_rows(*given))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("num_slots", [1, 100, 2048, 5000])
@pytest.mark.parametrize("num_tokens", [1, 3, 64, 300])
def test_runs(num_tokens, num_slots, heads):
    torch.manual_seed(0)
    keys, values = (randn(heads[1], num_slots + 3, 128)[:, :num_slots] for _ in "kv")
    given = (randn(1, heads[0], num_tokens, 128)[0].transpose(0, 1), keys, values, 128**-0.5)
    close(flash.of_run(*given), kernels.of_run(*given))
