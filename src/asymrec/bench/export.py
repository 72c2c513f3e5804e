"""What is committed beside a published table, and its way back: a table that others, or another machine, can go on with.

A folder of its own:

- `table.md`, `table.csv`, `table.html`;
- `cells/DATA_PROTOCOL_MODEL_seed-N.json` for every cell that has ended, trials too: all that is known of it, no path of the machine;
- `ranks/DATA_PROTOCOL.parquet`: a line a user, its targets, and for every cell of the tables the ranks of these targets, up to DEPTH.
  No figure of a table looks further down, and so cut they are small enough to be committed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from asymrec.bench.data import without_paths
from asymrec.bench.figures import Findings, Row
from asymrec.bench.plan import Cell, Plan
from asymrec.bench.run import DONE, SETTLED, agrees, alone, facts, read, settled, state
from asymrec.bench.table import write_tables
from asymrec.errors import EvaluationError, RunError
from asymrec.evaluation import Evaluation
from asymrec.evaluation.protocol import PROTOCOLS
from asymrec.files import atomic

FILES = {"table.md", "table.csv", "table.html", "cells", "ranks"}
DIGITS = 6
DEPTH = 20  # a target further down, or not in the ranking, has the rank DEPTH + 1
KNOWN = ("asymrec", "dataset", "environment", "seconds", "parameters", "validation", "codebook")  # of `facts`, all but the metrics


def export(plan: Plan, folder: str | Path) -> Findings:
    """Write the folder, whole or not at all. Raises RunError: it is there and holds something else."""
    folder = Path(folder)
    strange = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if strange:
        raise RunError(f"{folder} holds {strange[0]}, which is no part of an export: give a folder of its own")
    tests = [cell for before in plan.cells() if (cell := settled(plan, before)) is not None]
    with atomic(folder) as temporary:
        (temporary / "cells").mkdir(parents=True)
        (temporary / "ranks").mkdir()
        found = write_tables(plan, temporary)
        for cell in (*plan.trials_of(plan.cells()), *tests):
            if (log := _log(plan, cell)) is not None:
                (temporary / _log_of(cell)).write_text(without_paths(plan, log) + "\n", encoding="utf-8")
        for rows in found.rows.values():
            _write_ranks(temporary / _ranks_of(rows[0].cells[0]), rows)
    return found


def take(plan: Plan, folder: str | Path) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """Take over from an export the cells of the plan that are not done, as if they had been run here.

    Returns those that were taken, and those that were not with the reason: fitted with other settings or other data than the plan's,
    or by a version that exported no ranks. Raises RunError: no export; damaged; another bench at work on the output.
    """
    folder = Path(folder)
    if not (folder / "cells").is_dir():
        raise RunError(f"{folder} is no export of a bench: it has no folder 'cells'")
    taken, left = [], []
    with alone(plan.output):
        for cell in (*plan.trials_of(plan.cells()), *plan.cells()):  # what is fitted with what its trials chose comes after them
            if not (folder / _log_of(cell)).exists() or state(plan, cell) in DONE:
                continue
            if (ready := settled(plan, cell) if cell.trial is None else cell) is None:
                left.append((cell, "its trials are not all there"))
            elif why := _take(plan, ready, folder):
                left.append((cell, why))
            else:
                taken.append(cell)
    return taken, left


def _log_of(cell: Cell) -> str:
    return f"cells/{'_'.join(cell.place.parts)}.json"


def _ranks_of(cell: Cell) -> str:
    return f"ranks/{cell.data}_{cell.protocol}.parquet"


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
        log |= {name: found[name] for name in KNOWN if name in found}
        log["metrics"] = found["metrics"][cell.entry.model]
        log["recipe"] = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
        log["curve"] = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return json.dumps(_rounded(log), ensure_ascii=False, separators=(",", ":"))


def _take(plan: Plan, cell: Cell, folder: Path) -> str:
    """Make the cell's folder out of its log and ranks; the reason where it cannot be taken, and nothing is written then."""
    path = folder / _log_of(cell)
    ranks = None
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        finished = log["state"] == "finished"
        if log["state"] not in DONE:
            return f"it {log['state']}"
        if not agrees(plan, cell, log, log.get("recipe")):
            return "it was fitted with other settings, or on other data, than it would be now"
        record = {name: value for name, value in log.items() if name not in (*KNOWN, "metrics", "recipe", "curve")}
        files = {}
        if finished:
            record["seconds"] = sum(log["seconds"].values())
            found = {name: log[name] for name in (*KNOWN, "peak_memory_mib") if name in log}
            files["metrics.json"] = json.dumps(found | {"metrics": {cell.entry.model: log["metrics"]}}, indent=1)
            files["config.yaml"] = yaml.safe_dump(log["recipe"], sort_keys=False)
            files["log.jsonl"] = "".join(json.dumps(entry) + "\n" for entry in log["curve"])
            figure = log["metrics"]["kept"]["ndcg@10"] + 0.0
        files["cell.json"] = json.dumps(record, indent=1)
        if finished and cell.trial is None:
            ranks = _read_ranks(folder / _ranks_of(cell), cell, log["metrics"])
            if ranks is None:
                return "its ranks are not in the export"
            if abs(ranks.per_user("ndcg@10").mean() - figure) > 1e-5:
                raise ValueError("its figures are not those of its ranks")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EvaluationError) as error:
        raise RunError(f"{path} is damaged: {type(error).__name__} {error}") from None
    with atomic(plan.output / cell.place) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_text(content, encoding="utf-8")
        if ranks is not None:
            (temporary / "ranks").mkdir()
            ranks.save(temporary / "ranks" / f"{cell.entry.model}.parquet")
    return ""


def _column(cell: Cell, history: str) -> str:
    return f"{cell.entry.name} seed-{cell.seed} {history}"


def _write_ranks(path: Path, rows: list[Row]) -> None:
    """The ranks of a data set and protocol; its rows have the same users and targets, or they could not have been compared."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = rows[0].users
    lists = {"targets": about.targets}
    for row in rows:
        for cell, part in zip(row.cells, row.users.parts):
            lists |= {_column(cell, history): np.minimum(ranks, DEPTH + 1).astype(np.int8) for history, ranks in part.ranks.items()}
    offsets = pa.array(about.offsets, pa.int32())
    columns = {"user": pa.array(about.users)} | {
        name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in lists.items()
    }
    pq.write_table(pa.table(columns), path, compression="zstd", compression_level=19)


def _read_ranks(path: Path, cell: Cell, metrics: dict[str, Any]) -> Evaluation | None:
    """A cell's ranks out of those of its data set and protocol; None where it has none there."""
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    names = {history: _column(cell, history) for history in PROTOCOLS}
    known = set(pq.read_schema(path).names)
    if not set(names.values()) <= known:
        return None
    table = pq.read_table(path, columns=["user", "targets", *names.values()])
    lists = {name: table[name].combine_chunks() for name in ("targets", *names.values())}
    flat = {name: column.flatten().to_numpy().astype(np.int32) for name, column in lists.items()}
    sizes = lists["targets"].value_lengths().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return Evaluation(metrics, table["user"].to_numpy(), offsets, flat["targets"], {history: flat[name] for history, name in names.items()})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
