"""Where to compute, and how precisely."""

from __future__ import annotations

import platform
import time
from functools import cache

import torch

from asymrec.errors import ConfigError

PRECISIONS = (torch.float32, torch.bfloat16)


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
    """Whether this processor multiplies bfloat16 matrices at least 1.3 times faster than float32: measured once, in milliseconds.

    Processor time, the least of several turns: other work on the machine must not change the answer, for results depend on it. Where
    there is no instruction for it, a single product takes a tenth of a second, and nothing is measured.
    """
    if platform.machine().lower() in ("x86_64", "amd64") and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    pairs = {precision: (torch.ones(256, 512, dtype=precision), torch.ones(512, 512, dtype=precision)) for precision in PRECISIONS}
    best = dict.fromkeys(PRECISIONS, float("inf"))
    for turn in range(12):
        for precision, (a, b) in pairs.items():
            start = time.process_time()
            a @ b
            if turn > 1:  # the first products choose their kernels
                best[precision] = min(best[precision], time.process_time() - start)
    return best[torch.float32] > 1.3 * best[torch.bfloat16]
