"""CSV and TSV files as Arrow tables.

CSV has no types. A column whose every filled cell is an integer that prints back as it was read becomes integers, a column of
numbers becomes floats, all else stays text: `007` is text, and so is the whole column it stands in. An empty cell is null.

Nor does it say whether a quote is one. They are where every quote that opens a cell is closed at a cell's end, with quotes inside
doubled. Where that does not hold, a stray quote would swallow the rows up to the next one: quotes are then plain characters if no cell
is quoted rightly and each line has all its cells, and else the line is refused.
"""

from __future__ import annotations

import gzip
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.data.rows import first_bad, one_line
from asymrec.errors import DataError


def read_delimited(path: Path) -> tuple[pa.Table, dict[str, pa.ChunkedArray], tuple[str, ...]]:
    """The table; its columns of floats as the file writes them; what was decided about quotes.

    Raises DataError: not UTF-8, a row of another length than the header, two columns of one name, a quote that is not closed.
    """
    header, delimiter = _header(path)
    with _content(path) as content:
        quotes = _quotes(content, delimiter.encode())
        notes: tuple[str, ...] = ()
        plain = (quotes.stray is not None or (quotes.across and delimiter == "\t")) and not quotes.closed and _fits(path, header, delimiter)
        if plain:
            at = quotes.across if quotes.stray is None else quotes.stray
            notes = (f"{path}: quotes are characters like others (the one in line {_line_of(content, at):,} closes no cell)",)
        elif quotes.stray is not None:
            told = "opens a cell and closes none: quote the whole cell, and double the quotes inside"
            raise DataError(f"{path}, line {_line_of(content, quotes.stray):,}: a quote {told}")
    table = _read(path, header, delimiter, quoted=not plain)
    found = pa.table({column: typed(values) for column, values in zip(table.column_names, table.columns)})
    return found, {name: table[name] for name in found.column_names if pa.types.is_floating(found.schema.field(name).type)}, notes


@dataclass
class _Quotes:
    """closed: cells quoted from end to end, in one line. across: where the first one opens that goes over lines. stray: the first that
    opens a cell and is closed inside one, or never; what comes after it is not known."""

    closed: int = 0
    across: int | None = None
    stray: int | None = None


def _quotes(content: Any, delimiter: bytes) -> _Quotes:
    found, place = _Quotes(), content.find(b'"')
    before, after = (b"\n", b"\r", delimiter, b"\xef\xbb\xbf"[2:]), (b"\n", b"\r", delimiter, b"")
    while place >= 0:
        if place and content[place - 1 : place] not in before:  # inside a cell that is not quoted, a quote is a character
            place = content.find(b'"', place + 1)
            continue
        end = content.find(b'"', place + 1)
        while end >= 0 and content[end + 1 : end + 2] == b'"':
            end = content.find(b'"', end + 2)
        if end < 0 or content[end + 1 : end + 2] not in after:
            found.stray = place
            return found
        if content.find(b"\n", place, end) >= 0 or content.find(b"\r", place, end) >= 0:
            found.across = place if found.across is None else found.across
        else:
            found.closed += 1
        place = content.find(b'"', end + 1)
    return found


@contextmanager
def _content(path: Path) -> Iterator[Any]:
    """The bytes of a file, to be searched."""
    if path.name.lower().endswith(".gz"):
        try:
            yield gzip.decompress(path.read_bytes())
        except EOFError:
            raise DataError(f"{path}: not readable as gzip (it ends too early)") from None
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _line_of(content: Any, place: int) -> int:
    before = content[:place]
    return 1 + (before.count(b"\n") or before.count(b"\r"))


def _fits(path: Path, header: list[str], delimiter: str) -> bool:
    """Whether each line has as many cells as the header where quotes are plain characters."""
    try:
        _csv(path, dict.fromkeys(header, pa.binary()), delimiter, quoted=False)
    except pa.ArrowException:
        return False
    return True


def _csv(path: Path, types: dict[str, pa.DataType], delimiter: str, quoted: bool, note: Any = None) -> pa.Table:
    """note: is told of a row of the wrong length; then one thread reads, for it counts the rows."""
    from pyarrow import csv

    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=note is None, block_size=1 << 24),
        parse_options=csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted, invalid_row_handler=note
        ),
        convert_options=csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True, check_utf8=True
        ),
    )


def _read(path: Path, header: list[str], delimiter: str, quoted: bool) -> pa.Table:
    """Every column as text."""
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        return _csv(path, dict.fromkeys(header, pa.string()), delimiter, quoted)
    except pa.ArrowException as error:
        try:  # again on one thread, which counts the rows, and as bytes, which every cell is
            raw = _csv(path, dict.fromkeys(header, pa.binary()), delimiter, quoted, note)
        except pa.ArrowException:
            if ragged:
                bad = ragged[0]
                row = f", row {bad.number - 1:,}" if bad.number else ""
                raise DataError(f"{path}{row}: {bad.actual_columns} cells where the header has {bad.expected_columns}") from None
            raise DataError(f"{path}: not readable as CSV ({one_line(error)})") from None
        for column in raw.column_names:
            try:
                raw[column].cast(pa.string())
            except pa.ArrowException:
                row = first_bad(raw[column], lambda part: part.cast(pa.string()))
                raise DataError(f"{path}, column '{column}', row {row + 1:,}: not UTF-8 text") from None
        raise DataError(f"{path}: not readable as CSV ({one_line(error)})") from None


def _header(path: Path) -> tuple[list[str], str]:
    """The column names and the delimiter: the one of comma, tab, semicolon and bar that the first line holds most of, outside quotes."""
    import csv

    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        try:
            line = next((line for line in iter(lambda: file.readline(1 << 20), b"") if line.strip()), b"")  # lines may be blank before it
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


def typed(values: pa.ChunkedArray) -> pa.ChunkedArray:
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
