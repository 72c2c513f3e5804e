"""Parquet: one file, or a folder of files that are parts of one table, as Spark, Hive and others write them.

Parts are read in the order of the numbers in their names (part-2 before part-10), a column that some of them lack is null there, and what
the names of folders tell (`day=07/`) is a column if the files do not have it, of text where it is not written as a number is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from asymrec.data.delimited import typed
from asymrec.errors import DataError, one_line

SUFFIXES = (".parquet", ".parq", ".pq")


def read_parquet(path: Path) -> pa.Table:
    """Raises DataError: not Parquet, a folder without it, parts whose columns have types that do not go together."""
    import pyarrow.parquet as pq

    try:
        if path.is_dir():
            return _read_parts(path)
        return pq.ParquetFile(path, memory_map=True).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as parquet ({one_line(error)})") from None


def _read_parts(folder: Path) -> pa.Table:
    import pyarrow.parquet as pq

    files = [file for file in _files(folder) if not _hidden(file.relative_to(folder))]
    files = sorted([file for file in files if file.name.lower().endswith(SUFFIXES)] or files, key=lambda file: _natural(file, folder))
    if not files:
        raise DataError(f"{folder}: a folder without parquet files")
    tables: list[pa.Table] = []
    keys: dict[str, None] = {}
    for file in files:
        table = pq.ParquetFile(file, memory_map=True).read()
        for name, value in _told(file.relative_to(folder)).items():
            if name not in table.column_names:
                table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
                keys[name] = None
        tables.append(table)
    tables = _alike(tables, [file.relative_to(folder).as_posix() for file in files], folder)
    whole = pa.concat_tables(tables, promote_options="permissive")
    for name in keys:
        whole = whole.set_column(whole.column_names.index(name), name, typed(whole[name]))
    return whole


def _alike(tables: list[pa.Table], names: list[str], folder: Path) -> list[pa.Table]:
    """The parts with types that go together. Raises DataError: those of a column do not."""
    types: dict[str, list[tuple[pa.DataType, str]]] = {}
    for table, part in zip(tables, names):
        for field in table.schema:
            types.setdefault(field.name, []).append((field.type, part))
    for column, found in types.items():
        first, its_part = found[0]
        if all(kind == first for kind, _ in found):
            continue
        plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind, _ in found]
        for kind, (_, part) in zip(plain, found):
            try:
                pa.unify_schemas([pa.schema([(column, plain[0])]), pa.schema([(column, kind)])], promote_options="permissive")
            except pa.ArrowException:
                told = f"{kind} here, {plain[0]} in {its_part}"
                raise DataError(f"{folder / part}, column '{column}': {told}") from None
        tables = [_plain(table, column) for table in tables]
    return tables


def _plain(table: pa.Table, column: str) -> pa.Table:
    """With the column's own values where it is dictionary-encoded."""
    at = table.schema.get_field_index(column)
    if at < 0 or not pa.types.is_dictionary(table.schema.field(at).type):
        return table
    return table.set_column(at, column, table[column].cast(table.schema.field(at).type.value_type))


def _files(folder: Path) -> Iterator[Path]:
    """Of a folder and those in it, links followed, each folder once."""
    known: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in known:
            folders.clear()
            continue
        known.add(real)
        yield from (Path(place, file) for file in files)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _natural(file: Path, folder: Path) -> list[tuple[int, int, str]]:
    """A key that sorts digits as numbers."""
    pieces = re.findall(r"\d+|\D+", str(file.relative_to(folder)))
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces]


def _told(file: Path) -> dict[str, str | None]:
    """Column and value of each folder `column=value` that a part lies in."""
    from urllib.parse import unquote

    pairs = [part.split("=", 1) for part in file.parts[:-1] if "=" in part]
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for name, value in pairs}
