"""What is committed beside a published table, and its way back: a table that others, or another machine, can go on with.

A folder of its own:

- `table.md`, `table.csv`, `table.html`;
- `cells/DATA_PROTOCOL_MODEL_seed-N.json` for every cell that has ended, trials too: all that is known of it, no path of the machine;
- `ranks/DATA_PROTOCOL.parquet`: a line a target, and for every cell of the tables its rank, up to DEPTH. No figure of a table looks
  further down, and so cut they are small enough to be committed. Whose targets they are, and what, only the data set says, which is
  nobody's to publish; a digest tells whether it is the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from asymrec.bench.data import without_paths
from asymrec.bench.figures import Findings, Row
from asymrec.bench.plan import Cell, Plan
from asymrec.bench.run import DONE, SETTLED, agrees, alone, facts, read, settled, state
from asymrec.bench.table import write_tables
from asymrec.data import Dataset
from asymrec.errors import DataError, EvaluationError, RunError
from asymrec.evaluation import Evaluation
from asymrec.evaluation.protocol import PROTOCOLS, distinct
from asymrec.files import atomic
from asymrec.results import split_of

FILES = {"table.md", "table.csv", "table.html", "cells", "ranks"}
DIGITS = 6
DIGEST = "asymrec.targets"
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
    taken, left, asked = [], [], {}
    with alone(plan.output):
        for cell in (*plan.trials_of(plan.cells()), *plan.cells()):  # what is fitted with what its trials chose comes after them
            if not (folder / _log_of(cell)).exists() or state(plan, cell) in DONE:
                continue
            if (ready := settled(plan, cell) if cell.trial is None else cell) is None:
                left.append((cell, "its trials are not all there"))
            elif why := _take(plan, ready, folder, asked):
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


def _take(plan: Plan, cell: Cell, folder: Path, asked: dict[str, Asked]) -> str:
    """Make the cell's folder out of its log and ranks; the reason where it cannot be taken, and nothing is written then.

    asked: keeps what was asked of a data set and protocol for their next cell.
    """
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
            place = _ranks_of(cell)
            if not (found := _read_ranks(folder / place, cell)):
                return "its ranks are not in the export"
            if not plan.data[cell.data].path.exists():
                return "its data set is not there, which says whose ranks they are"
            if place not in asked:
                asked[place] = _asked(plan, cell)
            if found.pop("digest") != asked[place].digest:
                return "it was tested on other targets than the data set has"
            if any(len(one) != len(asked[place].targets) for one in found.values()):
                raise ValueError("its ranks are not as many as its targets")
            ranks = Evaluation(log["metrics"], asked[place].users, asked[place].offsets, asked[place].targets, found)
            if abs(ranks.per_user("ndcg@10").mean() - figure) > 1e-5:
                raise ValueError("its figures are not those of its ranks")
    except DataError as error:
        return f"its data set cannot be read: {error}"
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


@dataclass(frozen=True)
class Asked:
    """What a protocol asks of a data set: users [n], offsets [n + 1] and targets [t], as an `Evaluation` has them."""

    users: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    @property
    def digest(self) -> str:
        parts = (np.asarray(part, np.int64).tobytes() for part in (self.users, self.offsets, self.targets))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _asked(plan: Plan, cell: Cell) -> Asked:
    recipe = cell.recipe()
    test = split_of(Dataset.read(plan.data[cell.data].path, config=recipe.data), recipe).test
    targets = distinct(test.targets)
    return Asked(test.users, targets.offsets, targets.items)


def _write_ranks(path: Path, rows: list[Row]) -> None:
    """The ranks of a data set and protocol; its rows have the same users and targets, or they could not have been compared."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = Asked(rows[0].users.users, rows[0].users.offsets, rows[0].users.targets).digest
    columns = {
        _column(cell, history): np.minimum(ranks, DEPTH + 1).astype(np.int8)
        for row in rows
        for cell, part in zip(row.cells, row.users.parts)
        for history, ranks in part.ranks.items()
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({DIGEST: digest}), path, compression="zstd", compression_level=19)


def _read_ranks(path: Path, cell: Cell) -> dict[str, Any]:
    """A cell's ranks, history -> int32 [targets], and the "digest" of whose they are; nothing where there are none."""
    import pyarrow.parquet as pq

    names = {history: _column(cell, history) for history in PROTOCOLS}
    if not path.exists() or not set(names.values()) <= set(pq.read_schema(path).names):
        return {}
    table = pq.read_table(path, columns=list(names.values()))
    found: dict[str, Any] = {history: table[name].to_numpy().astype(np.int32) for history, name in names.items()}
    return found | {"digest": table.schema.metadata[DIGEST.encode()].decode()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
