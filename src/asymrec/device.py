"""Where to compute, and how precisely."""

from __future__ import annotations

import time
from functools import cache

import torch

from asymrec.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: cuda, else mps, else cpu. Raises ConfigError where the named one is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device multiplies it faster than float32, else float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and fast_bfloat16() else torch.float32


@cache
def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices at least 1.3 times faster than float32: measured once, in milliseconds."""
    best = {}
    for precision in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 512, dtype=precision)
        b = torch.ones(512, 512, dtype=precision)
        a @ b  # the first product chooses its kernel
        best[precision] = min(_seconds(a, b) for _ in range(7))
    return best[torch.float32] > 1.3 * best[torch.bfloat16]


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start
