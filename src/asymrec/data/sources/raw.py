"""What the converters share: lines of downloads, k-core, the folder that is written."""

from __future__ import annotations

import ast
import csv
import gzip
import html
import json
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asymrec.errors import DataError, RunError
from asymrec.files import atomic

TABLES = ("interactions", "items", "users")


def records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and content of each line of a file of JSON or of Python literals (as the older releases are), or of a CSV file with
    a header; plain or gzipped. Raises DataError, naming file and line."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        yield from enumerate(csv.DictReader(line for _, line in lines(path)), 2)
        return
    for number, line in lines(path):
        if line.strip():
            yield number, parsed(path, number, line)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line; plain or gzipped, UTF-8. Raises DataError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig") as file:
            yield from enumerate(file, 1)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    """One line as a mapping. Raises DataError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
    if not isinstance(found, dict):
        raise DataError(f"{path} line {number}: neither a JSON object nor a Python mapping: {line[:60].strip()}")
    return found


@dataclass
class Log:
    """Interactions as they are read: ids become numbers in order of first sight, so that a row takes 20 bytes."""

    users: dict[Any, int] = field(default_factory=dict)
    items: dict[Any, int] = field(default_factory=dict)
    rows: tuple[array, array, array, array] = field(default_factory=lambda: (array("i"), array("i"), array("q"), array("f")))

    def add(self, user: Any, item: Any, time: int, rating: float) -> None:
        values = (self.users.setdefault(user, len(self.users)), self.items.setdefault(item, len(self.items)), time, rating)
        for column, value in zip(self.rows, values):
            column.append(value)

    def table(self, core: int) -> pa.Table:
        """user_id, item_id, timestamp and, where there is one, rating, of the rows that `ordered` keeps. Raises DataError: none."""
        user, item, time, rating = (np.array(column) for column in self.rows)
        kept = ordered(user, item, time, core)
        columns = {"user_id": _ids(self.users, user[kept]), "item_id": _ids(self.items, item[kept]), "timestamp": time[kept]}
        return pa.table(columns | ({} if np.isnan(rating).all() else {"rating": rating[kept]}))


def _ids(known: dict[Any, int], rows: np.ndarray) -> pa.Array:
    return pa.array(list(known)).take(pa.array(rows))


def ordered(user: np.ndarray, item: np.ndarray, time: np.ndarray, core: int) -> np.ndarray:
    """The rows to keep, in order: a user's earliest of each item, of users and items with `core` of these at least; by user, then by time,
    those of one time as they stand in the file. Raises DataError: none is left."""
    rows = np.lexsort((time, user))
    pairs = user[rows].astype(np.int64) * (int(item.max(initial=0)) + 1) + item[rows]
    rows = rows[np.sort(np.unique(pairs, return_index=True)[1])]
    rows = rows[k_core(user[rows], item[rows], core)]
    if not len(rows):
        raise DataError(f"of {len(user):,} interactions none is left" + (f" in the {core}-core" if core else ""))
    return rows


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """Which interactions remain when users and items with fewer than k are left out until none is: bool [n]."""
    keep = np.ones(len(user), bool)
    while True:
        users, items = np.bincount(user[keep], minlength=1), np.bincount(item[keep], minlength=1)
        again = keep.copy()
        again[keep] = (users[user[keep]] >= k) & (items[item[keep]] >= k)
        if again.sum() == keep.sum():
            return keep
        keep = again


def plain(text: Any) -> str | None:
    """Text without entities, tags and doubled blanks; None where nothing is left, or where a crawler took a page's script for a title."""
    if isinstance(text, (list, tuple)):
        text = " ".join(str(part) for part in text)
    if not isinstance(text, str) or "getTime(" in text:
        return None
    return " ".join(re.sub(r"</?[a-zA-Z][^<>]*>", " ", html.unescape(text)).split()) or None


def sentences(title: str | None, **named: str | list[str] | None) -> str | None:
    """ "Title. Brand: OPI. Categories: Makeup, Nails.": what is missing is left out; None where all is."""
    parts = [title] if title else []
    parts += [f"{name.capitalize()}: {value if isinstance(value, str) else ', '.join(value)}" for name, value in named.items() if value]
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts) or None


def described(path: Path, key: str, wanted: Iterable[str], row: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Id -> row of those items of a metadata file that are wanted; the first of an id that comes twice. Lines of others are not parsed."""
    wanted, found = set(wanted), {}
    sight = re.compile(rf"""u?["']{key}["']:\s*u?["']([^"']+)["']""")
    for number, line in lines(path):
        # the key may stand in a text or a part of the line as well; of lines that hold it once no more is read than its place
        seen = [match[1] for match in islice(sight.finditer(line), line.count(key))]
        if (seen and all(name not in wanted or name in found for name in seen)) or not line.strip():
            continue
        content = parsed(path, number, line)
        name = str(content.get(key))
        if name in wanted and name not in found:
            found[name] = row(content)
    return found


def chosen(files: list[Path], names: tuple[str, str], key: str) -> tuple[Path, Path]:
    """The file whose lines have this key, then the other one. Raises DataError: not two files, or not one of each kind."""
    kinds: dict[bool, list[Path]] = {True: [], False: []}
    for path in files:
        first = next(records(path), None)
        if first is None:
            raise DataError(f"{path} is empty")
        kinds[key in first[1]].append(path)
    if len(kinds[True]) != 1 or len(kinds[False]) != 1:
        found = (
            "; ".join(f"{path} {'has' if has else 'lacks'} '{key}'" for has, paths in kinds.items() for path in paths) or "none is given"
        )
        raise DataError(f"two files are needed, {names[0]} (each line with '{key}') and {names[1]}: {found}")
    return kinds[True][0], kinds[False][0]


def number(path: Path, line: int, record: Mapping[str, Any], key: str) -> float:
    """A number of a record, of a size that times and ratings have. Raises DataError, naming file and line."""
    try:
        found = float(record[key])
        if abs(found) < 1 << 53:  # and no NaN
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(f"{path} line {line}: '{key}' should be a number, found {record.get(key)!r}")


def write(folder: str | Path, tables: Mapping[str, pa.Table], title: str, notes: Iterable[str]) -> str:
    """Write the tables and a README of these notes to a new or empty folder, whole or not at all; returns the notes as lines.

    Raises RunError: the folder cannot be written, or holds anything else.
    """
    import pyarrow.parquet as pq

    notes = list(notes)
    refuse_full(Path(folder))
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name, table in tables.items():
            pq.write_table(table, temporary / f"{name}.parquet", compression="zstd")
        (temporary / "README.md").write_text("\n\n".join([f"# {title}", *notes]) + "\n", encoding="utf-8")
    return "\n".join(notes)


def refuse_full(folder: Path) -> None:
    """A folder with anything else in it would be replaced as a whole: refuse that before the work. Raises RunError."""
    ours = {"README.md", *(f"{name}.parquet" for name in TABLES)}
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, expected a new or empty folder")
    if folder.is_dir() and (others := sorted({entry.name for entry in folder.iterdir()} - ours)):
        raise RunError(f"{folder}: holds other files ({', '.join(others[:3])}); name a new or empty folder")


def sizes(tables: Mapping[str, pa.Table], core: int) -> str:
    """A line of what is written."""
    import pyarrow.compute as pc

    users, items = (pc.count_distinct(tables["interactions"][name]).as_py() for name in ("user_id", "item_id"))
    filtered = f", the {core}-core of the download" if core else ""
    return f"{users:,} users, {items:,} items, {tables['interactions'].num_rows:,} interactions{filtered}."
