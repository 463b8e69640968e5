"""Where products in bfloat16 are worth it: processors without instructions for them are many times slower at it.

On an AVX2 processor torch's bfloat16 matrix product takes about fifty times as long as in float32, so what is asked for
as "auto" is float32 there.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    found: Any = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        found.get("amx_bf16")
        or found.get("avx512_bf16")
        or found.get("bf16")  # ARM
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )


def autocast_bf16(device: torch.device | str, wanted: bool) -> AbstractContextManager[object]:
    """Matrix products in bfloat16, results and parameters as they are; nothing where that is not wanted."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if wanted else nullcontext()
