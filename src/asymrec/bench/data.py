"""The data sets of a plan: looked at once before the first fit, and known again by their bytes.

What need not be tried, a data set that cannot be read or a protocol that it cannot have, is kept in `OUTPUT/DATA/data.json` for the
tables, until the data set is another one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from asymrec.bench.plan import SPLITS, Cell, Plan
from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.data.tables import find_table
from asymrec.errors import AsymrecError, DataError
from asymrec.files import atomic, checksum


def fingerprint(folder: Path, files: Iterable[Path] = ()) -> str | None:
    """Of the bytes of the two tables and of further files; None where one of them is not at hand."""
    digest = hashlib.sha256()
    try:
        for path in (find_table(folder, "interactions"), find_table(folder, "items"), *files):
            digest.update(b"file")
            parts = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
            for part in parts:
                about = part.stat()
                digest.update(f"{part.relative_to(path)} {_checksum(part, about.st_size, about.st_mtime_ns)}".encode())
    except (DataError, OSError):
        return None
    return digest.hexdigest()[:32]


@cache
def _checksum(path: Path, size: int, modified: int) -> str:
    return checksum(path)


def fingerprint_of(plan: Plan, cell: Cell) -> str | None:
    """Of all that the cell's fit reads."""
    folder = plan.data[cell.data].path
    return fingerprint(folder, cell.vector_files(folder))


def look(plan: Plan, name: str) -> dict[str, dict[str, str]]:
    """Read a data set, and keep what is found against it, protocol -> {"state", "error", "place"}; all protocols where it cannot be read.

    state: `failed`, or `not possible` for a protocol that needs times where there are none.
    """
    tables, found = plan.data[name], {}
    try:
        if not tables.path.exists():
            raise DataError(missing(plan, name))
        dataset = Dataset.read(tables.path, config=Recipe.of(None, **tables.reading).data)
    except (AsymrecError, OSError) as error:
        found = {protocol: {"state": "failed", "error": str(error), "place": name} for protocol in SPLITS}
    else:
        for protocol, split in SPLITS.items():
            state = "failed"
            try:
                if protocol != "standard" and dataset.sequences.times is None:
                    state = "not possible"
                    raise DataError("the interactions have no times")
                if protocol != "time":  # its shares may be a model's
                    dataset.split(split)
            except DataError as error:
                found[protocol] = {"state": state, "error": str(error), "place": f"{name} {protocol}"}
    path = plan.output / name / "data.json"
    if found:
        hidden = {protocol: record | {"error": without_paths(plan, record["error"])} for protocol, record in found.items()}
        about = {"fingerprint": fingerprint(tables.path), "reading": tables.reading, "against": hidden}
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
    return found


def missing(plan: Plan, name: str) -> str:
    return f"there is no {plan.data[name].path}; say where with --data {name}=FOLDER or --root FOLDER"


def against(plan: Plan, cell: Cell) -> dict[str, str]:
    """What `look` found against the cell's data set and protocol, as the cell's record; nothing where the data set is another by now."""
    if cell.entry.columns:
        return {}
    try:
        kept = json.loads((plan.output / cell.data / "data.json").read_text(encoding="utf-8"))
        if kept["reading"] == cell.reading and fingerprint(plan.data[cell.data].path) in (None, kept["fingerprint"]):
            return kept["against"].get(cell.protocol, {})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def without_paths(plan: Plan, text: str) -> str:
    """The text without the places of this machine: data sets by name, the output and the user's home by a word."""
    places = {str(tables.path): name for name, tables in plan.data.items()}
    places |= {str(tables.path.resolve()): name for name, tables in plan.data.items()}
    places |= {str(plan.output): "OUTPUT", str(plan.output.resolve()): "OUTPUT", sys.prefix: "PYTHON", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    return text
