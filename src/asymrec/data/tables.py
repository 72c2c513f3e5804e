"""Tables from files, frames and Arrow, all as `pyarrow.Table`, with errors that name the file, the column and the first bad row.

CSV has no types. A column whose every filled cell is an integer that prints back as it was read becomes integers, a column of
numbers becomes floats, all else stays text: `007` is text, and so is the whole column it stands in. An empty cell is null.
Rows are counted as data rows from 1, without the header.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.errors import DataError

WHOLE = r"^\s*-?\d{1,15}(\.0*)?\s*$"  # as pandas writes whole numbers where one is missing
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Source:
    """A table and the name that messages call it by (its path, or `interactions` / `items` for one in memory)."""

    name: str
    table: pa.Table
    written: dict[str, pa.ChunkedArray] = field(default_factory=dict)  # columns of a CSV file that became floats, as the file has them

    def of_ids(self, column: str) -> Source:
        """With a column of ids as the file has them, where they are not whole numbers: `1.10` and `1.1` are two ids, and one of 21 digits
        is no float."""
        text = self.written.get(column)
        if text is None or pc.all(pc.match_substring_regex(text, WHOLE)).as_py():
            return self
        return replace(self, table=self.table.set_column(self.table.column_names.index(column), column, text))

    def error(self, message: str, column: str | None = None, row: int | None = None) -> DataError:
        """A DataError that begins with the place; `row` counts from 0 and is told from 1."""
        place = self.name
        place += f", column '{column}'" if column is not None else ""
        place += f", row {row + 1:,}" if row is not None else ""
        return DataError(f"{place}: {message}")


def find_table(folder: Path, name: str) -> Path:
    """The file `name`.parquet, .csv, .csv.gz, .tsv or .tsv.gz in a folder; DataError when there is none or more than one."""
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").exists()]
    if not found:
        raise DataError(f"{folder}: no {name}.parquet or {name}.csv there")
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


def first_bad(column: pa.ChunkedArray | pa.Array, convert: Callable[[Any], Any]) -> int:
    """The first row at which `convert` fails, for a column on which it is known to fail: by halving, not row by row."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            convert(column.slice(low, middle - low))
        except pa.ArrowException:
            high = middle
        else:
            low = middle
    return low


def first_true(mask: Any) -> int:
    """The first row of a boolean column that is true, -1 when none is."""
    return pc.index(mask, pa.scalar(True)).as_py()


def _read_file(path: Path) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    """The table, and what of it is written otherwise than it is held, see `Source`."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return _read_parquet(path), {}
        if name.endswith(SUFFIXES):
            if path.is_dir():
                raise DataError(f"{path}: is a folder")
            return _read_csv(path)
    except gzip.BadGzipFile as error:
        raise DataError(f"{path}: not readable as gzip ({error})") from None
    except OSError as error:
        if isinstance(error, pa.ArrowException):
            raise DataError(f"{path}: not readable ({_line(error)})") from None
        raise DataError(f"{path}: not readable ({error.strerror or _line(error)})") from None
    raise DataError(f"{path}: expected a file called *.parquet, *.csv, *.csv.gz, *.tsv or *.tsv.gz")


def _without_views(table: pa.Table) -> pa.Table:
    """Columns of Arrow's view types as the plain large ones: the same values, and every function takes them."""
    for place, column in enumerate(table.schema):
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            plain = pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary()
            table = table.set_column(place, column.name, table.column(place).cast(plain))
    return table


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        if path.is_dir():
            return pq.read_table(path)
        return pq.ParquetFile(path, memory_map=True).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as parquet ({_line(error)})") from None


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
            raise DataError(f"{name}, column '{column}': values of mixed or unknown types ({_line(error)})") from None
    return pa.table(columns)


def _read_csv(path: Path) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    from pyarrow import csv

    header, delimiter = _header(path)
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    def read(types: dict[str, pa.DataType], threads: bool) -> pa.Table:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=threads, block_size=1 << 24),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=None if threads else note),
            convert_options=csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True, check_utf8=True
            ),
        )

    text = dict.fromkeys(header, pa.string())
    try:
        table = read(text, threads=True)
    except pa.ArrowException as error:
        try:  # again on one thread, which counts the rows, and as bytes, which every cell is
            raw = read(dict.fromkeys(header, pa.binary()), threads=False)
        except pa.ArrowException:
            if ragged:
                bad = ragged[0]
                row = f", row {bad.number - 1:,}" if bad.number else ""
                raise DataError(f"{path}{row}: {bad.actual_columns} cells where the header has {bad.expected_columns}") from None
            raise DataError(f"{path}: not readable as CSV ({_line(error)})") from None
        for column in raw.column_names:
            try:
                raw[column].cast(pa.string())
            except pa.ArrowException:
                row = first_bad(raw[column], lambda part: part.cast(pa.string()))
                raise DataError(f"{path}, column '{column}', row {row + 1:,}: not UTF-8 text") from None
        raise DataError(f"{path}: not readable as CSV ({_line(error)})") from None
    typed = pa.table({column: _typed(values) for column, values in zip(table.column_names, table.columns)})
    return typed, {name: table[name] for name in typed.column_names if pa.types.is_floating(typed.schema.field(name).type)}


def _header(path: Path) -> tuple[list[str], str]:
    """The column names and the delimiter: the one of comma, tab, semicolon and bar that the first line holds most of, outside quotes."""
    import csv

    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        try:
            line = file.readline(1 << 20)
        except EOFError:
            raise DataError(f"{path}: not readable as gzip (it ends too early)") from None
    try:
        first = line.decode("utf-8-sig").splitlines()[0] if line.strip() else ""  # a CR alone ends a line too
    except UnicodeDecodeError:
        raise DataError(f"{path}: the header is not UTF-8 text") from None
    if not first.strip():
        raise DataError(f"{path}: the table is empty")
    if "\0" in first:
        raise DataError(f"{path}: not readable as CSV (binary data)")
    delimiter = max(",\t;|", key=re.sub('"[^"]*"', "", first).count)
    names = next(csv.reader([first], delimiter=delimiter))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}, column '{twice[0]}': two columns have this name")
    return names, delimiter


def _typed(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text cells as int64 where each prints back as it was, as float64 where all are numbers, else as they are."""
    if values.null_count == len(values):
        return values
    try:
        numbers = values.cast(pa.int64())
        if pc.all(pc.equal(numbers.cast(pa.string()), values)).as_py():
            return numbers
        return values  # such as 007: a name made of digits
    except pa.ArrowException:
        pass
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowException:
        return values
    return numbers if bool(np.isfinite(numbers.drop_null().to_numpy()).all()) else values


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
