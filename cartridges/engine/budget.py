"""How many tokens of keys and values an engine holds if nothing is said."""

from pathlib import Path

import psutil
import torch

from cartridges.model import Model

KV_TOKENS = 65536
MIN_TOKENS = 1024
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def default_kv_tokens(model: Model) -> int:
    """65,536 tokens, or twice the window where that is more, but at most what half of the free memory holds.

    Half, as rows are copied as they grow, and a step needs memory itself. Never less than 1,024.
    """
    most = max(KV_TOKENS, 2 * model.window)
    token_bytes = model.kv_bytes(1) * model.dtype.itemsize // 2
    return max(MIN_TOKENS, min(most, free_bytes(model.device) // (2 * token_bytes)))


def free_bytes(device: torch.device) -> int:
    """What may still be taken of the memory of `device`, what PyTorch merely keeps for later included."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    held = psutil.Process().memory_info().rss
    for path in LIMITS:
        limit = path.read_text().strip() if path.exists() else "max"
        if limit.isdecimal():
            free = min(free, max(0, int(limit) - held))
    return free
