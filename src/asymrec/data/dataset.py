"""Dataset: the two tables as rows and sequences, with the users' own ids at its edge."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.config import DataConfig
from asymrec.data.columns import common_keys, find_column, id_keys, normal_keys
from asymrec.data.ids import Ids
from asymrec.data.interactions import read_interactions
from asymrec.data.rows import listed
from asymrec.data.sequences import Sequences
from asymrec.data.splits import Split
from asymrec.data.splits import split as _split
from asymrec.data.tables import Source, find_table, read_table
from asymrec.errors import DataError, RunError, one_line
from asymrec.files import atomic, recover

FORMAT = 1
_TITLES = (
    *("title", "name", "item_name", "product_name", "product_title", "movie_title", "artist", "track", "headline"),
    *("text", "keywords", "description"),
)
_TITLE_LENGTH = 80


class Dataset:
    """Users, items and every user's sequence.

    n_users, n_items: int. user_ids, item_ids: pyarrow arrays in the type they came in; users are in order of their ids, items in
    the order of the item table. items: pyarrow.Table with every column, row i is item i. interactions: pyarrow.Table of the
    columns that are not user, item, time or position, in the order of `sequences` (None when there are none).
    sequences: Sequences of every user. time_unit: `s`, `ms`, `us`, `ns`, or None without times. notes: what the reader decided.
    """

    def __init__(
        self,
        users: Ids,
        items: pa.Table,
        item_column: str,
        sequences: Sequences,
        interactions: pa.Table | None = None,
        time_unit: str | None = None,
        notes: Iterable[str] = (),
        item_keys: pa.Array | None = None,
    ) -> None:
        self.items = items
        self.item_column = item_column
        self.sequences = sequences
        self.interactions = interactions
        self.time_unit = time_unit
        self.notes = list(notes)
        self._users = users
        self._items = Ids(_one_array(items[item_column]), "item", item_keys)

    @classmethod
    def read(
        cls,
        source: Any,
        items: Any = None,
        *,
        config: DataConfig | None = None,
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        position: str | None = None,
        drop_unknown: bool = False,
        drop_duplicates: bool = False,
        drop_incomplete: bool = False,
    ) -> Dataset:
        """Read a folder with `interactions.*` and `items.*`, or interactions and `items` as paths, pyarrow.Tables or DataFrames.

        user, item, time, position: column names, on top of those in `config`; found by name when not given.
        drop_unknown: leave out interactions with items that the item table does not hold, instead of refusing them.
        drop_duplicates: leave out interactions whose user, item and time an earlier row has, instead of a note.
        drop_incomplete: leave out interactions without a user, an item, a time or a position, instead of refusing them.
        The item table's id column has the interactions' name, or one that ids of items have, or is `id`, or is the only one that holds
        the interactions' items, each once; the last is said aloud (`notes`).
        Raises DataError in one line with the file, the column and the first bad row.
        """
        config = config or DataConfig()
        columns = {"user": user, "item": item, "time": time, "position": position}
        columns = {role: name if name is not None else getattr(config, role) for role, name in columns.items()}
        if items is None:
            if not isinstance(source, (str, Path)):
                raise DataError("items: the item table is missing; give it as Dataset.read(interactions, items)")
            folder = Path(source)
            if not folder.exists():
                raise DataError(f"{folder}: no such folder")
            if not folder.is_dir():
                raise DataError(f"{folder}: not a folder; with two files, name the item table as well")
            source, items = find_table(folder, "interactions"), find_table(folder, "items")
        found, catalogue = read_table(source, "interactions"), read_table(items, "items")

        in_interactions = find_column(found, "item", columns["item"])
        found = found.of_ids(in_interactions)
        in_items, told = _id_column(catalogue, found, in_interactions)
        catalogue = catalogue.of_ids(in_items)
        keys = id_keys(catalogue, in_items)
        _refuse_duplicates(catalogue, in_items, keys)
        values = Ids(_one_array(catalogue.table[in_items]), "item", keys)
        drop = {"unknown": drop_unknown, "duplicates": drop_duplicates, "incomplete": drop_incomplete}
        drop = {name: asked or getattr(config, f"drop_{name}") for name, asked in drop.items()}
        read = read_interactions(found, values, catalogue.name, columns, drop)
        table = catalogue.table.unify_dictionaries().combine_chunks()
        notes = [*found.notes, *catalogue.notes, *told, *read.notes]
        return cls(read.users, table, in_items, read.sequences, read.rest, read.time_unit, notes, keys)

    @property
    def n_users(self) -> int:
        return len(self._users)

    @property
    def n_items(self) -> int:
        return len(self._items)

    @property
    def user_ids(self) -> pa.Array:
        return self._users.values

    @property
    def item_ids(self) -> pa.Array:
        return self._items.values

    def user_rows(self, ids: Iterable) -> np.ndarray:
        """int32 [len(ids)]. Raises UnknownIdError with the first unknown id and how many there are."""
        return self._users.rows(ids)

    def find_users(self, ids: Iterable) -> np.ndarray:
        """As `user_rows`, with -1 for an id that is not there."""
        return self._users.known(ids)

    def find_items(self, ids: Iterable) -> np.ndarray:
        """As `item_rows`, with -1 for an id that is not there."""
        return self._items.known(ids)

    def item_rows(self, ids: Iterable) -> np.ndarray:
        """int32 [len(ids)]. Raises UnknownIdError with the first unknown id and how many there are."""
        return self._items.rows(ids)

    def titles(self) -> list[str]:
        """A name to show for each item: the first of `title_columns` that has one, cut to 80 characters, else the id."""
        return item_titles(self.items, self.item_column, self.title_columns)

    @cached_property
    def title_columns(self) -> list[str]:
        """Columns of the item table that name an item, by what they are called; where none is, the text that tells most items apart."""
        columns = {column.lower(): column for column in self.items.column_names if _is_text(self.items[column].type)}
        if named := [columns[name] for name in _TITLES if name in columns]:
            return named
        texts = [column for column in columns.values() if column != self.item_column]
        apart = {column: len(pc.unique(self.items[column])) for column in texts}
        found = [column for column in texts if apart[column] > self.n_items / 2]
        return sorted(found, key=apart.get, reverse=True)[:1]

    def with_items(self, items: Any) -> Dataset:
        """The same users and sequences over more items, which come after the others.

        items: a table or frame with columns of the item table, any but the id may be left out. Raises DataError: a column that the item
        table does not have or of another type, an id that is null, there already, or given twice.
        """
        table, column = self.item_table(read_table(items, "items").table), self.item_column
        new = Source("items", table)
        _refuse_duplicates(new, column, id_keys(new, column))
        both = pa.concat_tables([self.items, table]).unify_dictionaries().combine_chunks()
        keys = id_keys(Source("items", both), column)
        again = pc.is_in(keys.slice(self.n_items), value_set=keys.slice(0, self.n_items)).to_numpy(zero_copy_only=False)
        if again.any():
            row = int(again.argmax())
            raise new.error(f"item id {table[column][row].as_py()!r} is there already", column, row)
        return self._over(both, keys)

    def over(self, items: pa.Table) -> Dataset:
        """The same users, sequences and items, with these columns of the items, row by row."""
        return self._over(items, self._items.keys)

    def _over(self, items: pa.Table, keys: pa.Array) -> Dataset:
        return Dataset(self._users, items, self.item_column, self.sequences, self.interactions, self.time_unit, self.notes, keys)

    def item_table(self, items: pa.Table) -> pa.Table:
        """A table as a piece of the item table: its columns in their order and types, nulls where one is left out. Raises DataError."""
        schema = self.items.schema
        if unknown := [name for name in items.column_names if name not in schema.names]:
            raise DataError(f"items: the item table has no column '{unknown[0]}'; there are {', '.join(schema.names)}")
        columns = []
        for field in schema:
            if field.name not in items.column_names:
                columns.append(pa.nulls(items.num_rows, field.type))
                continue
            try:
                columns.append(items[field.name].cast(field.type))
            except pa.ArrowException as error:
                raise DataError(f"items, column '{field.name}': {one_line(error)}") from None
        return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema], schema.metadata)).cast(schema)

    def split(self, name: str = "leave-last-out", validation_share: float = 0.1, test_share: float = 0.1, seed: int = 0) -> Split:
        """`leave-last-out`, `untied` or `time`; see `asymrec.data.splits.split`."""
        return _split(self.sequences, name, validation_share, test_share, seed)

    def __repr__(self) -> str:
        return f"Dataset({self.n_users:,} users, {self.n_items:,} items, {len(self.sequences.items):,} interactions)"

    def save(self, folder: str | Path) -> None:
        """Write the data set to a folder, whole or not at all. Raises RunError where it cannot be written."""
        with atomic(folder) as temporary:
            temporary.mkdir()
            about = {"format": FORMAT, "item_column": self.item_column, "time_unit": self.time_unit, "notes": self.notes}
            (temporary / "dataset.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            tables = {"items": self.items, "users": pa.table({"user": self.user_ids}), "context": self.interactions}
            for name, table in tables.items():
                if table is not None:
                    with pa.OSFile(str(temporary / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                        writer.write_table(table)
            arrays = {"offsets": self.sequences.offsets, "items": self.sequences.items, "times": self.sequences.times}
            for name, array in arrays.items():
                if array is not None:
                    np.save(temporary / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> Dataset:
        """Read what `save` has written; with mmap the sequences and tables stay on the disk until they are touched.

        Raises RunError: no such folder, a missing or damaged file, a later format.
        """
        folder = Path(folder)
        recover(folder)
        if not (folder / "dataset.json").exists():
            raise RunError(f"{folder}: no saved data set there (dataset.json is missing)")
        name = "dataset.json"
        try:
            about = json.loads((folder / name).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise RunError(f"{folder}: data set of format {about['format']}; this version reads format {FORMAT}")
            arrays, tables = {}, {}
            for name in ("offsets.npy", "items.npy", "times.npy"):
                if about["time_unit"] is not None or name != "times.npy":
                    arrays[name] = np.load(folder / name, mmap_mode="r" if mmap else None, allow_pickle=False)
            for name in ("items.arrow", "users.arrow", "context.arrow"):
                if name != "context.arrow" or (folder / name).exists():
                    opened = pa.memory_map(str(folder / name)) if mmap else pa.OSFile(str(folder / name))
                    tables[name] = pa.ipc.open_file(opened).read_all()
                    tables[name].validate()
            name = "offsets.npy"
            sequences = Sequences(arrays["offsets.npy"], arrays["items.npy"], arrays.get("times.npy"))
            users = Ids(_one_array(tables["users.arrow"]["user"]), "user")
            sizes = {len(array) for key, array in arrays.items() if key != "offsets.npy"}
            if len(sequences) != len(users) or sizes != {int(sequences.offsets[-1])}:
                raise ValueError("the lengths do not agree")
            items = tables["items.arrow"]
            return cls(users, items, about["item_column"], sequences, tables.get("context.arrow"), about["time_unit"], about["notes"])
        except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, pa.ArrowException) as error:
            raise RunError(f"{folder / name}: damaged or missing ({one_line(error)})") from None


def item_titles(items: pa.Table, item_column: str, title_columns: list[str]) -> list[str]:
    """As `Dataset.titles`, of any piece of its item table."""
    named: list[str | None] = [None] * items.num_rows
    for column in title_columns:
        cells = (" ".join(cell.split()) if cell else None for cell in items[column].to_pylist())
        named = [have or _cut(cell) for have, cell in zip(named, cells)]
    return [have or str(own) for have, own in zip(named, items[item_column].to_pylist())]


def _id_column(catalogue: Source, interactions: Source, in_interactions: str) -> tuple[str, list[str]]:
    """The item table's column of ids, and what is to be told of it. Raises DataError."""
    columns = catalogue.table.column_names
    if in_interactions in columns:
        return in_interactions, []
    named = [find_column(catalogue, "item", required=False), *(name for name in columns if name.lower() == "id")]
    known = [name for name in named if name]
    if len(known) == 1:
        return known[0], []
    wanted = pc.unique(id_keys(interactions, in_interactions))
    found = [name for name in known or columns if _holds(catalogue, name, wanted)]
    if known:  # `id` beside `product`, say, which may be its name
        return (found or known)[0], []
    if len(found) == 1:
        return found[0], [f"column '{found[0]}' of {catalogue.name} holds the items of column '{in_interactions}': taken for their ids"]
    hint = f"give it the name that the interactions have, '{in_interactions}'"
    raise catalogue.error(f"no column of the item id among {listed(columns)}; {hint}")


def _holds(source: Source, column: str, wanted: pa.Array) -> bool:
    """Whether a column has each of the ids, and none of its own twice."""
    try:
        keys = normal_keys(source.of_ids(column).table[column])
    except (pa.ArrowException, TypeError):
        return False
    keys, wanted = common_keys(keys, wanted)
    return not keys.null_count and len(pc.unique(keys)) == len(keys) and pc.all(pc.is_in(wanted, value_set=keys)).as_py()


def _refuse_duplicates(source: Source, column: str, keys: pa.Array) -> None:
    encoded = keys.dictionary_encode()
    if (extra := len(keys) - len(encoded.dictionary)) == 0:
        return
    codes = encoded.indices.to_numpy()
    first = np.full(len(encoded.dictionary), len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    row = int(np.flatnonzero(first[codes] < np.arange(len(codes)))[0])
    own = source.table[column][row].as_py()
    raise source.error(f"duplicate item id {own!r}, first in row {first[codes[row]] + 1:,} ({extra:,} rows are duplicates)", column, row)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
    return column.combine_chunks()


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _TITLE_LENGTH else text[: _TITLE_LENGTH - 1].rstrip() + "…"
