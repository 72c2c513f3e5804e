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

from asymrec.data.rows import first_bad
from asymrec.errors import DataError, one_line

_HEAD = 1 << 20  # bytes in which the header is looked for


def read_delimited(path: Path) -> tuple[pa.Table, dict[str, pa.ChunkedArray], tuple[str, ...]]:
    """The table; its columns of floats as the file writes them; what was decided about quotes.

    Raises DataError: not UTF-8, a row of another length than the header, a quote that is not closed.
    """
    delimiter = _delimiter(path)
    quoted, notes = _decide(path, delimiter)
    table = _read(path, _names(path, delimiter, quoted), delimiter, quoted)
    found = pa.table([typed(values) for values in table.columns], table.column_names)
    return found, {field.name: values for field, values in zip(found.schema, table.columns) if pa.types.is_floating(field.type)}, notes


def _decide(path: Path, delimiter: str) -> tuple[bool, tuple[str, ...]]:
    """Whether quotes are quotes, and what is to be told of it. Raises DataError."""
    with _content(path) as content:
        quotes = _quotes(content, delimiter.encode())
        at = quotes.across if quotes.stray is None and delimiter == "\t" else quotes.stray  # few texts have tabs and several lines
        if at is None:
            return True, ()
        line = 1 + sum(1 for _ in re.compile(rb"\r\n?|\n").finditer(content, 0, at))
    if not quotes.closed and _fits(path, delimiter):
        return False, (f"{path}: quotes are characters like others (the one in line {line:,} closes no cell)",)
    if quotes.stray is None:
        return True, ()
    told = "opens a cell and closes none: quote the whole cell, and double the quotes inside"
    raise DataError(f"{path}, line {line:,}: a quote {told}")


@dataclass
class _Quotes:
    """closed: whether a cell is quoted from end to end, in one line. across: where the first one opens that goes over lines. stray: the
    first that opens a cell and is closed inside one, or never; what comes after it is not known."""

    closed: bool = False
    across: int | None = None
    stray: int | None = None


def _quotes(content: Any, delimiter: bytes) -> _Quotes:
    """Inside a cell that does not begin with one, a quote is a character."""
    edge = rb"[^" + re.escape(delimiter) + rb"\r\n]"  # what does not end a cell
    line, lines = rb'"[^"\r\n]*(?:""[^"\r\n]*)*"', rb'"[^"]*(?:""[^"]*)*"'
    begins = rb"(?:\A\xef\xbb\xbf|(?<!" + edge + rb"))"
    cells = re.compile(begins + rb"(?:" + line + rb"(?!" + edge + rb")|(" + lines + rb")(?!" + edge + rb')|("))')
    found = _Quotes()
    for cell in cells.finditer(content):
        if cell.lastindex is None:
            found.closed = True
        elif cell.lastindex == 1:
            found.across = cell.start() if found.across is None else found.across
        else:
            found.stray = cell.start(2)
            break
    return found


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


@contextmanager
def _content(path: Path) -> Iterator[Any]:
    """The bytes of a file, to be searched."""
    if _is_gzip(path):
        try:
            yield gzip.decompress(path.read_bytes())
        except EOFError:
            raise DataError(f"{path}: not readable as gzip (it ends too early)") from None
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _fits(path: Path, delimiter: str) -> bool:
    """Whether each line has as many cells as the header where quotes are plain characters."""
    try:
        _csv(path, dict.fromkeys(_names(path, delimiter, quoted=False), pa.binary()), delimiter, quoted=False)
    except pa.ArrowException:
        return False
    return True


def _csv(path: Path, types: dict[str, pa.DataType], delimiter: str, quoted: bool, note: Any = None, names_alone: bool = False) -> Any:
    """note: is told of a row of the wrong length; then one thread reads, for it counts the rows. names_alone: a reader that has read the
    header."""
    from pyarrow import csv

    with pa.input_stream(str(path), compression="gzip" if _is_gzip(path) else None) as file:
        return (csv.open_csv if names_alone else csv.read_csv)(
            file,
            read_options=csv.ReadOptions(use_threads=note is None, block_size=1 << 24),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted, invalid_row_handler=note
            ),
            convert_options=csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True, check_utf8=True
            ),
        )


def _names(path: Path, delimiter: str, quoted: bool) -> list[str]:
    """The columns' names, as Arrow has them. Raises DataError."""
    try:
        with _csv(path, {}, delimiter, quoted, note=lambda _: "skip", names_alone=True) as reader:
            return reader.schema.names
    except pa.ArrowException as error:
        raise DataError(f"{path}: not readable as CSV ({one_line(error)})") from None


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


def _delimiter(path: Path) -> str:
    """The one of comma, tab, semicolon and bar that the first line which is not blank holds most of, outside quotes."""
    with (gzip.open if _is_gzip(path) else open)(path, "rb") as file:
        try:
            head = file.read(_HEAD)
        except EOFError:
            raise DataError(f"{path}: not readable as gzip (it ends too early)") from None
    line = next((line for line in re.split(rb"[\r\n]", head.removeprefix(b"\xef\xbb\xbf")) if line.strip()), b"")
    try:
        first = line.decode("utf-8", "ignore" if len(line) > _HEAD - 4 else "strict")  # the end of so long a line may be half a character
    except UnicodeDecodeError:
        raise DataError(f"{path}: the header is not UTF-8 text") from None
    if not first:
        raise DataError(f"{path}: the table is empty")
    if "\0" in first:
        raise DataError(f"{path}: not readable as CSV (binary data)")
    return max(",\t;|", key=re.sub('"[^"]*"', "", first).count)


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
