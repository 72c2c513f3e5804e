"""What a ranker reads: fields of the user, the item and the context, the behaviours before, and what counts as a label.

Written in YAML, or inferred from the tables, printed, and edited:

    user:    [{name: user_id, kind: category}, {name: age, kind: numeric, bins: 16}]
    item:    [{name: item_id, kind: category}, {name: categories, kind: values}]
    context: [{name: weather, kind: category}]
    history: {length: 50, action: rating}
    labels:  [{column: rating, at_least: 4}]        # none: an interaction is a positive, negatives are drawn
"""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import Field as Setting
from pydantic import ValidationError, model_validator

from asymrec.config import Section
from asymrec.data import Dataset
from asymrec.data.columns import common_keys, find_column, id_keys, normal_keys
from asymrec.data.tables import SUFFIXES, find_table, read_table
from asymrec.errors import ConfigError, DataError

CATEGORIES = 64  # whole numbers of at most so many different values are categories, others numeric
_LABELS = ("label", "click", "clicked", "is_click", "like", "rating", "stars", "score", "overall")
# whole numbers whose name ends with such a word are names, however many there are
_NAMES = {"id", "code", "city", "country", "region", "state", "zip", "postcode", "category", "brand", "type", "device", "os", "language"}
_OUTCOMES = (
    *("count", "plays", "playtime", "hours", "watch_time", "watch_ratio", "duration", "dwell_time", "price_paid", "quantity"),
    *("helpful", "helpful_vote", "helpful_votes", "votes", "vote", "likes", "review", "review_text", "reviewtext", "summary"),
)


class Field(Section):
    """One column as a feature."""

    name: str = Setting(description="column of the table")
    kind: Literal["category", "numeric", "periodic", "values", "vector", "text", "code"] = Setting(
        description="category; numeric (quantile bins); periodic: a number by learned waves, smooth where bins have steps; values: a list "
        "of categories; vector: a list of numbers; text: a sentence encoder's vector; code: a list of an item's discrete codes, MHQ's for "
        "example"
    )
    floor: int = Setting(2, ge=1, description="category, values: what training holds less often is read as rare")
    bins: int = Setting(16, ge=2, description="numeric: quantiles")
    waves: int = Setting(16, ge=1, description="periodic: frequencies")
    longest: int = Setting(8, ge=1, description="values: how many are read of a row")
    encoder: str = Setting("hashed", description="text: as in the settings of item vectors")


class History(Section):
    """The behaviours before an impression."""

    length: int = Setting(50, ge=0, description="the latest so many are read; 0: none")
    action: str | None = Setting(None, description="column of the interactions that says what was done, such as a rating")


class Label(Section):
    """One task: 1 where the column reaches a value."""

    column: str = Setting(description="column of the interactions")
    at_least: float = Setting(1.0, description="the least value that is a positive")


class Schema(Section):
    """All that a ranker reads. Raises ConfigError, by `of` and `read`: an unknown key (the nearest is named), an impossible value."""

    user: tuple[Field, ...] = ()
    item: tuple[Field, ...] = ()
    context: tuple[Field, ...] = ()
    history: History = History()
    labels: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def _once(self) -> Schema:
        for owner in ("user", "item", "context"):
            names = [field.name for field in getattr(self, owner)]
            if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
                raise ValueError(f"{owner}: field '{twice}' stands there twice")
        told = {label.column for label in self.labels}
        if known := next((field.name for field in self.context if field.name in told), None):
            raise ValueError(f"context: field '{known}' is the label, which is not known before")
        return self

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Schema:
        return checked(cls, tree, "schema")

    @classmethod
    def read(cls, path: str | Path) -> Schema:
        """From a YAML file."""
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the schema {path}: {' '.join(str(error).split())}") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: expected user, item, context, history, labels")
        return cls.of(tree)

    def yaml(self) -> str:
        tree = self.model_dump(mode="json", exclude_defaults=True)
        tree["history"] = self.history.model_dump(mode="json")
        return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)

    @classmethod
    def infer(cls, tables: Tables) -> Schema:
        """By names and types: ids and columns of few values are categories, other numbers numeric, lists values or vectors.

        Text of which most is said once is left out, and so is what by its name is known only after the impression (`count`, `votes`,
        ratings); of other names this cannot be told, so look at what a schema reads.
        The label is the first of the columns called label, click, rating or the like: 1 of 0 and 1, 4 and more of up to 5, else the
        upper fifth of the range, told by the roundest number that parts these values so; it is the action of the history as well.
        """
        dataset, context = tables.dataset, tables.dataset.interactions
        names = {} if context is None else {name.lower(): name for name in context.column_names}
        label = next((names[name] for name in _LABELS if name in names and _is_label(context[names[name]].type)), None)
        left_out = {label} | {names[name] for name in (*_LABELS, *_OUTCOMES) if name in names}
        return cls(
            user=_fields(tables.users, tables.users.column_names[0]),
            item=_fields(dataset.items, dataset.item_column),
            context=() if context is None else _fields(context.drop_columns([n for n in context.column_names if n in left_out]), None),
            history=History(action=label),
            labels=() if label is None else (Label(column=label, at_least=_threshold(context[label])),),
        )


class Tables:
    """A Dataset and a table of its users, row i is user i, the id first."""

    def __init__(self, dataset: Dataset, users: pa.Table | None = None):
        self.dataset = dataset
        self.users = users if users is not None else pa.table({"user_id": dataset.user_ids})
        if self.users.num_rows != dataset.n_users:
            raise DataError(f"users: {self.users.num_rows:,} rows for {dataset.n_users:,} users")

    @classmethod
    def read(cls, folder: str | Path, **options: Any) -> Tables:
        """A folder with interactions.*, items.* and, where there is one, users.*; options as of `Dataset.read`.

        A user without a row in users.* has nulls there, and `notes` of the data set say how many there are. Raises DataError: among others,
        users.* has an id that is null or has two rows, or none of the users.
        """
        dataset = Dataset.read(folder, **options)
        return cls.beside(dataset, folder)

    @classmethod
    def beside(cls, dataset: Dataset, folder: str | Path) -> Tables:
        """A data set that was read, with users.* of its folder where there is one; as `read`."""
        folder = Path(folder)
        if not any((folder / f"users{suffix}").exists() for suffix in SUFFIXES):
            return cls(dataset)
        source = read_table(find_table(folder, "users"), "users")
        column = find_column(source, "user")
        source = source.of_ids(column)
        keys, own = common_keys(id_keys(source, column), normal_keys(dataset.user_ids))
        first = pc.index_in(keys, keys, skip_nulls=True).fill_null(len(keys)).to_numpy()
        if len(again := np.flatnonzero(first < np.arange(len(keys)))):
            row = int(again[0])
            told = f"duplicate user id {source.table[column][row].as_py()!r}, first in row {first[row] + 1:,}"
            raise source.error(f"{told} ({len(again):,} rows are duplicates)", column, row)
        rows, others = pc.index_in(own, keys), [name for name in source.table.column_names if name != column]
        if rows.null_count == len(rows):
            raise source.error("none of the users of the interactions has a row", column)
        if rows.null_count:
            dataset.notes.append(f"{rows.null_count:,} of {len(rows):,} users have no row in {source.name}: nothing is known of them")
        return cls(dataset, pa.table({column: dataset.user_ids} | {name: source.table[name].take(rows) for name in others}))

    def column(self, owner: str, name: str) -> pa.ChunkedArray:
        """A column of `user`, `item` or `context`. Raises ConfigError: the schema names one that is not there."""
        table = {"user": self.users, "item": self.dataset.items, "context": self.dataset.interactions}[owner]
        known = [] if table is None else table.column_names
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"schema: no {owner} column '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"there are {known}"))
        return table[name]

    def save(self, folder: Path) -> None:
        """Into an existing folder, as `dataset/` and `users.parquet`."""
        self.dataset.save(folder / "dataset")
        pq.write_table(self.users, folder / "users.parquet", compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> Tables:
        return cls(Dataset.load(folder / "dataset"), pq.read_table(folder / "users.parquet"))


def checked(section: type[Section], tree: dict[str, Any], what: str) -> Any:
    """A section from plain values. Raises ConfigError that names the key, and for an unknown one the nearest."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if not place:
            raise ConfigError(f"{what}: {first['msg'].removeprefix('Value error, ')}") from None
        if first["type"] == "extra_forbidden":
            known = (
                list(section.model_fields) if len(first["loc"]) == 1 else [*Field.model_fields, *History.model_fields, *Label.model_fields]
            )
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{what}: unknown key '{place}'; {hint}") from None
        raise ConfigError(f"{what}: '{place}': {first['msg']} (got {first['input']!r})") from None


def _fields(table: pa.Table, id_column: str | None) -> tuple[Field, ...]:
    return tuple(Field(name=name, kind=kind) for name in table.column_names if (kind := _kind(table[name], name, name == id_column)))


def _kind(column: pa.ChunkedArray, name: str, is_id: bool) -> str | None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    filled = len(column) - column.null_count
    if is_id or pa.types.is_boolean(kind):
        return "category"
    if not filled:
        return None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if not pa.types.is_floating(kind.value_type):
            return "values"
        return "vector" if len(pc.unique(pc.list_value_length(column.drop_null()))) == 1 else None
    if _is_number(kind):
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
        named = bool(words) and words[-1].lower() in _NAMES
        return "category" if pa.types.is_integer(kind) and (named or len(pc.unique(column)) <= CATEGORIES) else "numeric"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "category" if len(pc.unique(column)) <= filled / 2 else None
    return None


def _is_label(kind: pa.DataType) -> bool:
    return _is_number(kind) or pa.types.is_boolean(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _threshold(column: pa.ChunkedArray) -> float:
    values = np.unique(column.drop_null().to_numpy().astype(float))
    values = values[np.isfinite(values)]
    if set(values) <= {0.0, 1.0}:
        return 1.0
    if 4 < values[-1] <= 5:
        return 4.0
    upper = values >= values[0] + 0.8 * (values[-1] - values[0])
    return _roundest(max(values[~upper], default=-math.inf), float(values[upper][0]))


def _roundest(below: float, least: float) -> float:
    """The number of fewest decimals above `below` and at most `least`, such as 0.6 instead of 0.6000000000000001."""
    rounded = (math.floor(least * 10**places) / 10**places for places in range(16))
    return next((float(one) for one in rounded if below < one <= least), least)
