"""What the benchmarks that run others' code share: a turn of one side, by an interpreter that may be another one."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any


def run_side(label: str, interpreter: str, script: str, *arguments: str) -> dict[str, Any]:
    """One turn in a process of its own, on one thread; its last line of output is what it found."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run([interpreter, "-W", "ignore", script, *arguments], env=os.environ | one, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{label} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
