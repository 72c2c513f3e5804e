"""What is committed beside a published table: the tables and one compact JSON a cell, without ranks and without a path of the machine.

A folder of its own: `table.md`, `table.csv`, `table.html`, `cells/DATA_PROTOCOL_MODEL_seed-N.json`, and the same for trials.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from asymrec.bench.data import without_paths
from asymrec.bench.figures import Findings
from asymrec.bench.plan import Cell, Plan
from asymrec.bench.run import SETTLED, facts, read, settled
from asymrec.bench.table import write_tables
from asymrec.errors import RunError
from asymrec.files import atomic

FILES = {"table.md", "table.csv", "table.html", "cells"}
DIGITS = 6


def export(plan: Plan, folder: str | Path) -> Findings:
    """Write the folder, whole or not at all. Raises RunError: it is there and holds something else."""
    folder = Path(folder)
    strange = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if strange:
        raise RunError(f"{folder} holds {strange[0]}, which is no part of an export: give a folder of its own")
    tests = [cell for before in plan.cells() if (cell := settled(plan, before)) is not None]
    with atomic(folder) as temporary:
        (temporary / "cells").mkdir(parents=True)
        found = write_tables(plan, temporary)
        for cell in (*plan.trials_of(plan.cells()), *tests):
            if (log := _log(plan, cell)) is not None:
                name = "_".join(cell.place.parts) + ".json"
                (temporary / "cells" / name).write_text(without_paths(plan, log) + "\n", encoding="utf-8")
    return found


def _log(plan: Plan, cell: Cell) -> str | None:
    """All that is known of a cell that has ended, as one line; None for one that has not, or was not tried."""
    record = read(plan, cell)
    if record["state"] not in SETTLED or "place" in record:
        return None
    log: dict[str, Any] = dict(record)
    if record["state"] == "finished":
        place = plan.output / cell.place
        found = facts(plan, cell)
        found["dataset"]["name"] = cell.data
        known = ("asymrec", "dataset", "environment", "seconds", "parameters", "validation", "codebook")
        log |= {name: found[name] for name in known if name in found}
        log["metrics"] = found["metrics"][cell.entry.model]
        log["recipe"] = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
        log["curve"] = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return json.dumps(_rounded(log), ensure_ascii=False, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
