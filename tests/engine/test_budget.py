from types import SimpleNamespace

import psutil
import pytest
import torch

from cartridges.engine import budget
from cartridges.engine.budget import KV_TOKENS, default_kv_tokens
from cartridges.engine.engine import Engine


def placed(model, device):
    """A model of the same shape that says it is on another device."""
    return SimpleNamespace(
        device=torch.device(device), dtype=torch.float32, window=model.window, kv_bytes=model.kv_bytes
    )


def test_a_cuda_device_bounds_the_budget(qwen, monkeypatch):
    token_bytes = qwen.kv_bytes(1) * 2  # in float32

    def tell(free, reserved=300, allocated=100):
        found = {"mem_get_info": (free * token_bytes, 1 << 40)}
        found |= {"memory_reserved": reserved * token_bytes, "memory_allocated": allocated * token_bytes}
        for name, value in found.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
        return default_kv_tokens(placed(qwen, "cuda"))

    assert tell(10**9) == default_kv_tokens(qwen) == max(KV_TOKENS, 2 * qwen.window)
    assert tell(3800) == 2000, "half of what is free or merely kept for later"
    assert tell(0, 100) == 1024, "the least that is of use"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_what_is_free_here_bounds_the_budget(device, qwen, monkeypatch):
    monkeypatch.setattr(budget, "LIMITS", ())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000 * qwen.kv_bytes(1) * 2))
    assert default_kv_tokens(placed(qwen, device)) == 2000
    if device == "cpu":
        assert Engine(qwen).stats().kv_tokens_total == 2000
        assert Engine(qwen, kv_tokens_total=4096).stats().kv_tokens_total == 4096, "who says so knows"


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    limit, cpu = tmp_path / "memory.max", torch.device("cpu")
    monkeypatch.setattr(budget, "LIMITS", (tmp_path / "missing", limit))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9000))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=500)))
    for text, free in (("max\n", 9000), ("7500\n", 7000), ("400\n", 0), ("9223372036854771712\n", 9000)):
        limit.write_text(text)
        assert budget.free_bytes(cpu) == free
