"""Parquet: one file, or a folder of files that are parts of one table, as Spark, Hive and others write them.

Parts are read in the order of the numbers in their names (part-2 before part-10), a column that some of them lack is null there, and what
the names of folders tell (`day=07/`) is a column, of text where it is not written as a number is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from asymrec.data.delimited import typed
from asymrec.data.rows import one_line
from asymrec.errors import DataError

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

    files = [file for file in folder.rglob("*") if file.is_file() and not _hidden(file.relative_to(folder))]
    files = sorted([file for file in files if file.name.lower().endswith(SUFFIXES)] or files, key=lambda file: _natural(file, folder))
    if not files:
        raise DataError(f"{folder}: a folder without parquet files")
    tables: list[pa.Table] = []
    types: dict[str, tuple[pa.DataType, Path]] = {}
    keys: list[str] = []
    for file in files:
        table = pq.ParquetFile(file, memory_map=True).read()
        for name, value in _told(file.relative_to(folder)):
            table = table.set_column(table.num_columns, name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
            keys += [name] * (name not in keys)
        for field in table.schema:
            kind, first = types.setdefault(field.name, (field.type, file))
            if kind != field.type and not pa.types.is_null(kind) and not pa.types.is_null(field.type):
                both = f"{field.type} here, {kind} in {first.relative_to(folder)}"
                try:
                    pa.unify_schemas([pa.schema([(field.name, kind)]), pa.schema([field])], promote_options="permissive")
                except pa.ArrowException:
                    raise DataError(f"{file}, column '{field.name}': {both}") from None
        tables.append(table)
    whole = pa.concat_tables(tables, promote_options="permissive")
    for name in keys:
        whole = whole.set_column(whole.column_names.index(name), name, typed(whole[name]))
    return whole


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _natural(file: Path, folder: Path) -> list[tuple[int, int, str]]:
    """A key that sorts digits as numbers."""
    pieces = re.findall(r"\d+|\D+", str(file.relative_to(folder)))
    return [(0, int(piece), piece) if piece.isdigit() else (1, 0, piece) for piece in pieces]


def _told(file: Path) -> list[tuple[str, str | None]]:
    """Column and value of each folder `column=value` that a part lies in."""
    from urllib.parse import unquote

    pairs = [part.split("=", 1) for part in file.parts[:-1] if "=" in part]
    return [(name, None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)) for name, value in pairs]
