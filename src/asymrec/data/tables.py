"""Tables from files, frames and Arrow, all as `pyarrow.Table`, with errors that name the file, the column and the first bad row.

Rows are counted as data rows from 1, without the header.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.data.delimited import read_delimited
from asymrec.data.parts import read_parquet
from asymrec.data.rows import listed
from asymrec.errors import DataError, one_line

WHOLE = r"^\s*-?\d{1,15}(\.0*)?\s*$"  # as pandas writes whole numbers where one is missing
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Source:
    """A table and the name that messages call it by (its path, or `interactions` / `items` for one in memory)."""

    name: str
    table: pa.Table
    written: dict[str, pa.ChunkedArray] = field(default_factory=dict)  # columns of a CSV file that became floats, as the file has them
    notes: tuple[str, ...] = ()  # what reading it decided
    rows: np.ndarray | None = None  # int64, where each row stood before some were left out

    def of_ids(self, column: str) -> Source:
        """With a column of ids as the file has them, where they are not whole numbers: `1.10` and `1.1` are two ids, and one of 21 digits
        is no float."""
        text = self.written.get(column)
        if text is None or pc.all(pc.match_substring_regex(text, WHOLE)).as_py():
            return self
        return replace(self, table=self.table.set_column(self.table.column_names.index(column), column, text))

    def keeping(self, kept: np.ndarray) -> Source:
        """Only the rows of a mask, bool [rows]; messages go on counting all."""
        mask = pa.array(kept)
        written = {name: values.filter(mask) for name, values in self.written.items()}
        rows = np.arange(len(kept)) if self.rows is None else self.rows
        return replace(self, table=self.table.filter(mask), written=written, rows=rows[kept])

    def error(self, message: str, column: str | None = None, row: int | None = None) -> DataError:
        """A DataError that begins with the place; `row` counts from 0 and is told from 1."""
        place = self.name
        place += f", column '{column}'" if column is not None else ""
        if row is not None:
            place += f", row {(row if self.rows is None else int(self.rows[row])) + 1:,}"
        return DataError(f"{place}: {message}")


def find_table(folder: Path, name: str) -> Path:
    """The file `name`.parquet, .csv, .csv.gz, .tsv or .tsv.gz in a folder; DataError when there is none or more than one."""
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").exists()]
    if not found:
        near = sorted(file.name for file in folder.iterdir() if file.name.lower().startswith(name))
        there = f" (but {listed(near)}, and what is read is {name} with one of {', '.join(SUFFIXES)})" if near else ""
        raise DataError(f"{folder}: no {name}.parquet or {name}.csv there{there}")
    if len(found) > 1:
        raise DataError(f"{folder}: both {found[0].name} and {found[1].name} are there; name the files, or leave one")
    return found[0]


def read_table(source: Any, name: str) -> Source:
    """Read a path (.parquet, .csv, .tsv, the latter two also .gz), a pyarrow.Table or a pandas.DataFrame.

    name: what to call a table that has no path. Raises DataError: no such file, not readable as what it is called, no rows.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        found = Source(str(path), *_read_file(path))
    elif isinstance(source, pa.Table):
        found = Source(name, source)
    elif hasattr(source, "columns") and hasattr(source, "dtypes"):
        found = Source(name, _from_pandas(source, name))
    else:
        raise DataError(f"{name}: expected a path, a pyarrow.Table or a pandas.DataFrame, got {type(source).__name__}")
    names = found.table.column_names
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise found.error("two columns have this name", twice[0])
    if not found.table.num_rows:
        raise found.error("the table is empty")
    return replace(found, table=_without_views(found.table))


def _read_file(path: Path) -> tuple[pa.Table, dict[str, pa.ChunkedArray], tuple[str, ...]]:
    """The table, what of it is written otherwise than it is held, and notes, see `Source`."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return read_parquet(path), {}, ()
        if name.endswith(SUFFIXES):
            if path.is_dir():
                raise DataError(f"{path}: is a folder")
            return read_delimited(path)
    except gzip.BadGzipFile as error:
        raise DataError(f"{path}: not readable as gzip ({error})") from None
    except OSError as error:
        if isinstance(error, pa.ArrowException):
            raise DataError(f"{path}: not readable ({one_line(error)})") from None
        raise DataError(f"{path}: not readable ({error.strerror or one_line(error)})") from None
    raise DataError(f"{path}: expected a file called *.parquet, *.csv, *.csv.gz, *.tsv or *.tsv.gz")


def _without_views(table: pa.Table) -> pa.Table:
    """Columns of Arrow's view types as the plain large ones: the same values, and every function takes them."""
    for place, column in enumerate(table.schema):
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            plain = pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary()
            table = table.set_column(place, column.name, table.column(place).cast(plain))
    return table


def _from_pandas(frame: Any, name: str) -> pa.Table:
    if not len(frame):
        raise DataError(f"{name}: the table is empty")
    columns = {}
    for position, column in enumerate(frame.columns):
        if not isinstance(column, str):
            raise DataError(f"{name}: column names must be text, found {column!r}")
        if column in columns:
            raise DataError(f"{name}, column '{column}': two columns have this name")
        try:
            columns[column] = pa.array(frame.iloc[:, position], from_pandas=True)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{name}, column '{column}': values of mixed or unknown types ({one_line(error)})") from None
    return pa.table(columns)
