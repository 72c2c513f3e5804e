"""Plans, the one that tests of the bench share, and cells without a process of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import yaml
from small import SETTINGS, here

PLAN = {
    "output": "out",
    "data": {"shop": "shop"},
    "models": [
        "popularity",
        {"name": "counts", "settings": {"window": 20}, "space": {"recency": [0.3, 0.6, 0.9]}},
        {"name": "asymrec", "settings": SETTINGS, "space": {"learning_rate": [2e-3, 8e-3]}},
    ],
    "protocols": ["standard", "untied"],
    "seeds": {"standard": [0, 1], "untied": [0]},
    "tuning": {"trials": 2},
    "jobs": 2,
    "headline": {"model": "counts", "rivals": ["popularity", "asymrec"]},
}


def written(folder: Path, **plan: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return path


def planned(folder: Path, **more: object) -> Path:
    return written(folder, **{key: value for key, value in (PLAN | more).items() if value is not None})


class _Fit:
    """A fit's process, as far as the bench looks at it, that runs inside this one."""

    def __init__(self, arguments: list[str], stderr: TextIO, **_: Any):
        done = here(*arguments[3:])  # after `python -m asymrec`
        stderr.write(done.stderr)
        stderr.flush()
        self.code = done.returncode

    def poll(self) -> int:
        return self.code


@contextmanager
def fits_here() -> Iterator[None]:
    """Cells are fitted inside this process, which takes less time than to start one. What a process is for (several at once, kills,
    memory) is tested with true ones, in test_bench.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymrec.bench.run.subprocess", SimpleNamespace(Popen=_Fit, DEVNULL=subprocess.DEVNULL))
        yield
