"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def facts(device: str = "auto") -> dict[str, Any]:
    """Processor, threads and versions; nothing that names the machine or its owner."""
    import numpy
    import torch

    from asymrec.device import choose_device

    chosen = choose_device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen)
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def peak_memory() -> int | None:
    """The most memory this process has held, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def free_memory() -> int | None:
    """Bytes that a process could still take without pushing others out; None where the system does not tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def keep_memory() -> None:
    """Let freed memory be used again instead of going back to the system at once, whose fresh pages cost more than the arithmetic on
    them: a fifth of a training step. `release_memory` gives it back where that is wanted. Linux's C library only."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError, AttributeError):  # another C library
        mallopt, (trim, pad, mapped) = ctypes.CDLL(None).mallopt, (-1, -2, -3)
        mallopt(mapped, 1 << 25)  # the most that it takes: larger pieces are mapped by themselves
        mallopt(trim, (1 << 31) - 1)
        mallopt(pad, 1 << 26)


def release_memory() -> None:
    """Give freed memory back to the system. glibc keeps it, and the holes that batches of many shapes leave add up to gigabytes."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
