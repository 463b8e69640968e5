"""Where products in bfloat16 are worth it: processors without instructions for them are many times slower at it.

On an AVX2 processor torch's bfloat16 matrix product takes about fifty times as long as in float32, so what is asked for
as "auto" is float32 there. On any CPU the products of a narrow model are so small that casting costs what they gain.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cartridges.errors import ConfigError

MIN_WIDTH = 512  # of hidden states, for bfloat16 on a CPU
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    device = torch.device(device)
    kind = device.type
    if kind == "cuda":
        with torch.cuda.device(device):  # which torch asks is the current one
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


def precision_of(asked: str, dtype: torch.dtype, device: torch.device | str, width: int = MIN_WIDTH) -> str:
    """That of matrix products where `asked` is bf16, fp32 or auto: of a model not in float32 its own.

    `width` is that of the model's hidden states.
    """
    if dtype != torch.float32:
        return NAMES.get(dtype, str(dtype).removeprefix("torch."))
    if asked == "auto":
        is_narrow = width < MIN_WIDTH and torch.device(device).type == "cpu"
        return "bf16" if has_fast_bf16(device) and not is_narrow else "fp32"
    return asked


def check_resumed(folder: Path, precision: str, device: torch.device | str) -> str:
    """The precision that the run in `folder` began in, to go on in. Raises ConfigError where it cannot be had here."""
    kind = torch.device(device).type
    if precision == "bf16" and not torch.amp.is_autocast_available(kind):
        raise ConfigError(f"{folder} holds a run in bf16, which the device {kind} has not; go on with it on another")
    return precision


def autocast_bf16(device: torch.device | str, wanted: bool) -> AbstractContextManager[object]:
    """Matrix products in bfloat16, results and parameters as they are; nothing where that is not wanted."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if wanted else nullcontext()
