import pytest
import torch

from cartridges.pocket.step import orthogonalized_in_float32


def stepped(start: torch.Tensor, gradient: torch.Tensor, in_float32: bool) -> torch.Tensor:
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([parameter], lr=0.02, weight_decay=0.0)
    parameter.grad = gradient.clone()
    with orthogonalized_in_float32(in_float32):
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_muon_goes_the_same_way_in_float32(shape):
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    told, widened = (stepped(start, gradient, in_float32) - start for in_float32 in (False, True))
    assert 0 < (told - widened).norm() < 0.05 * told.norm()
    values = torch.linalg.svdvals(widened / 0.02)
    assert 0.4 < values.min() < values.max() < 2.0  # about orthogonal, as its source says


def test_torch_is_as_before_afterwards():
    module = __import__("torch.optim._muon", fromlist=["_muon"])
    before = module._zeropower_via_newtonschulz
    with pytest.raises(RuntimeError), orthogonalized_in_float32(True):
        raise RuntimeError
    assert module._zeropower_via_newtonschulz is before
