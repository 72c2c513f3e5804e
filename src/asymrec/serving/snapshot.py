"""One version of the catalogue, never changed once it is served: readers hold it while a writer makes the next.

Items are rows of the model, in the order in which they came; a row is never used again. What describes an item (its columns, its title)
is a line of a table of its own, because a new price is a new line and not a new row. All that grows is shared between versions.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from asymrec.data import Dataset
from asymrec.data.columns import unit_of
from asymrec.data.dataset import item_titles
from asymrec.errors import ConfigError, DataError, PlacingError, UnknownIdError
from asymrec.files import checksum
from asymrec.models import Recommender
from asymrec.models.base import read_manifest
from asymrec.models.growing import Growing
from asymrec.pipeline import Pipeline, is_pipeline, read_pipeline
from asymrec.retrieval.exact import top_k
from asymrec.serving.cells import UUID, as_column, as_id, cell, is_list

SAME = 1e-3  # vectors, of about length 1, that differ by less are of one item: only what describes it has changed
CHUNKS = 256  # pieces of the table that are put together again
MASKS = 256  # of filters that are kept


@dataclass(frozen=True)
class Run:
    """A fitted model as it is served, alone or before a ranker."""

    name: str
    identity: str  # what its vectors and codes depend on
    model: Recommender
    dataset: Dataset
    pipeline: Pipeline | None = None  # whose retrieval is `model`
    ranked: str = ""  # what the ranker depends on

    @property
    def time_unit(self) -> str:
        """What its times and those of events are counted in; seconds where it has none."""
        return self.dataset.time_unit or "s"

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The first and the last of the run's own times."""
        times = self.dataset.sequences.times
        return (0, 0) if times is None or not len(times) else (int(times.min()), int(times.max()))

    def may_count(self, time: int) -> bool:
        """Whether a number may be a time in the run's unit: by its size, as where tables are read, or by the run's own."""
        return unit_of(time) in (None, self.time_unit) or self._span[0] <= time <= self._span[1]

    def check_time(self, time: int, what: str) -> None:
        """Raises DataError, which begins with `what`: not a time in the run's unit."""
        if not self.may_count(time):
            raise DataError(f"{what} {time} is not in the run's unit, {self.time_unit} (since 1970)")

    def user_row(self, user: str) -> int | None:
        """None for a user whom the run does not hold."""
        (row,) = self.dataset.find_users([user])
        return None if row < 0 else int(row)

    def user_key(self, user: str) -> str:
        """What events of a user are kept by: the id as the run writes it, which may be asked for in other writing (7.0 for 7)."""
        row = self.user_row(user)
        return user if row is None else str(as_id(self.dataset.user_ids[row].as_py()))

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """A run folder, or a pipeline's. Raises RunError: neither, damaged, of another format."""
        folder = Path(folder)
        name = folder.resolve().name
        if not is_pipeline(folder):
            model = Recommender.load(folder)
            return cls(name, checksum(folder / "manifest.json")[:32], model, model.dataset)
        pipeline = Pipeline.load(folder)
        identity = checksum(folder / "retrieval" / "manifest.json")[:32]
        return cls(name, identity, pipeline.retrieval, pipeline.dataset, pipeline, checksum(folder / "pipeline.json"))


def check_run(folder: Path) -> None:
    """Raises RunError, before anything is read or made: neither a run nor a pipeline, or not finished."""
    if is_pipeline(folder):
        read_pipeline(folder)
    elif not (folder / "manifest.json").is_file():
        read_manifest(folder)  # says what is wrong


@dataclass(frozen=True)
class Snapshot:
    """version: of the catalogue, 0 is the run's own. model: knows `n` rows. ids: of the rows, in their own type; may be longer than n.
    rows: an id as text -> its row. lines: int64 [n], each row's line of `table`. live: bool [n], whether a row may be recommended.
    units: float32 [n, d], the items' vectors, as far as they say what an item is, at length 1; None where the model has none."""

    run: Run
    version: int
    model: Recommender
    ids: list[Any]
    rows: dict[str, int]
    lines: np.ndarray
    live: np.ndarray
    table: pa.Table
    titles: list[str]
    units: Growing | None
    masks: _Masks = field(default_factory=lambda: _Masks(), compare=False)

    @classmethod
    def of(cls, run: Run) -> Snapshot:
        """Version 0: what was fitted."""
        dataset, n = run.dataset, run.dataset.n_items
        ids = [as_id(value) for value in dataset.item_ids.to_pylist()]
        vectors = run.model.catalogue()[0]
        units = None if vectors is None else Growing(_units(run.model, vectors))
        rows = {str(own): row for row, own in enumerate(ids)}
        return cls(run, 0, run.model, ids, rows, np.arange(n), np.ones(n, bool), dataset.items, dataset.titles(), units)

    @property
    def n(self) -> int:
        return len(self.lines)

    @cached_property
    def n_live(self) -> int:
        return int(self.live.sum())

    @cached_property
    def items(self) -> pa.Table:
        """The line of each row, as the run's ranker reads them; the fitted table itself as long as it is that."""
        pipeline = self.run.pipeline
        if self.table is self.run.dataset.items:
            return pipeline.items
        return pipeline.readable(self.table.take(pa.array(self.lines)), self.model)

    def row(self, item: Any) -> int:
        """Raises UnknownIdError. A retired item has a row as well: it may stand in histories."""
        row = self.rows.get(str(item))
        if row is None:
            raise UnknownIdError(f"unknown item id {str(item)[:80]!r}")
        return row

    def title(self, row: int) -> str:
        return self.titles[self.lines[row]]

    def record(self, row: int) -> dict[str, Any]:
        """All columns of an item but its id, as JSON knows them."""
        line, own = self.table.slice(int(self.lines[row]), 1), self.run.dataset.item_column
        return {name: cell(line[name]) for name in line.column_names if name != own}

    def codes(self, row: int) -> list[list[int]] | None:
        """[facets][levels]; None for a model without codes."""
        codes = self.model.catalogue()[1]
        return None if codes is None else codes[row].reshape(self.run.model.quantizer.code_shape).tolist()

    def nearest(self, row: int, k: int) -> list[tuple[int, float]]:
        """The k live items of highest cosine with an item, itself left out. Raises PlacingError: the model has no vectors."""
        if self.units is None:
            raise PlacingError(f"model '{self.model.name}' has no item vectors to be similar by")
        units = self.units.rows.numpy()
        cosine = np.where(self.live, units @ units[row], -np.inf)
        cosine[row] = -np.inf
        (best,), (values,) = top_k(cosine[None], k)
        return [(int(other), float(value)) for other, value in zip(best, values) if other >= 0]

    def search(self, text: str, limit: int) -> list[int]:
        """Live rows with words in the title that begin as all those of the text do, or with that id; titles that begin so first."""
        words = _words(text).split()
        if not words:
            return []
        found = []
        for row in np.flatnonzero(self.live).tolist():
            title = self.titles[self.lines[row]].lower()
            if not all(word in title for word in words):
                continue
            title = _words(title)
            if all(f" {word}" in f" {title}" for word in words):
                found.append((not title.startswith(words[0]), len(title), row))
        exact = self.rows.get(text.strip())
        first = [exact] if exact is not None and self.live[exact] else []
        return (first + [row for *_, row in sorted(found) if row != exact])[:limit]

    def mask(self, where: list[dict[str, Any]]) -> np.ndarray:
        """bool [n]: the live rows that meet every condition on their columns. Raises ConfigError."""
        if not where:
            return self.live
        return self.masks.get(self, json.dumps(where, sort_keys=True), where)

    # The next version

    def changed(self, version: int, puts: dict[str, Put], described: pa.Table, retired: set[str]) -> Snapshot:
        """Puts, whose lines of the item table are `described`, then the retired. A put that `keeps` its row only has a new line."""
        rows, lines, live = dict(self.rows), self.lines.copy(), self.live.copy()
        new = {item: put for item, put in puts.items() if not self.keeps(item, put)}
        model, units, ids = self.model, self.units, self.ids
        if new:
            vectors = np.stack([put.vector for put in new.values()])
            codes = None if self.model.catalogue()[1] is None else np.stack([put.codes for put in new.values()])
            model, units = self.model.extended(vectors, codes), self.units.then(_units(self.model, vectors))
            ids = self.ids if len(self.ids) == self.n else self.ids[: self.n]  # a branch of the history has a list of its own
            ids.extend(put.id for put in new.values())
            for number, item in enumerate(new):
                if item in rows:
                    live[rows[item]] = False
                rows[item] = self.n + number
            lines, live = np.concatenate([lines, np.zeros(len(new), np.int64)]), np.concatenate([live, np.ones(len(new), bool)])
        table, titles = self.table, self.titles
        if puts:
            titles = titles if len(titles) == table.num_rows else titles[: table.num_rows]
            titles.extend(item_titles(described, self.run.dataset.item_column, self.run.dataset.title_columns))
            for number, item in enumerate(puts):
                lines[rows[item]], live[rows[item]] = table.num_rows + number, True
            table = pa.concat_tables([table, described])
            if table.column(0).num_chunks > CHUNKS:
                table = table.combine_chunks()
        for item in retired:
            if item in rows:
                live[rows[item]] = False
        grown = {"model": model, "ids": ids, "rows": rows, "lines": lines, "live": live, "table": table, "titles": titles, "units": units}
        return replace(self, version=version, masks=_Masks(), **grown)

    def keeps(self, item: str, put: Put) -> bool:
        """Whether a put is of an item with that very vector, and codes where it has any yet."""
        row = self.rows.get(item)
        if row is None:
            return False
        (own,) = _units(self.model, put.vector[None])
        if (self.units.rows[row] - own).abs().max() >= SAME:
            return False
        codes = self.model.catalogue()[1]  # who has placed it anew gave it others, which every server is to have
        return put.codes is None or bool((codes[row] == put.codes).all())


@dataclass(frozen=True)
class Put:
    """An item to be added or described anew. id: in its own type; vector, codes: as the run places it, codes None of models without."""

    id: Any
    vector: np.ndarray
    codes: np.ndarray | None = None


class _Masks:
    """The filters of one version that were asked for last."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self.lock = Lock()

    def get(self, snapshot: Snapshot, key: str, where: list[dict[str, Any]]) -> np.ndarray:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        fits = snapshot.live.copy()
        for condition in where:
            fits &= _fits(snapshot.table, condition)[snapshot.lines]
        with self.lock:
            self.kept[key] = fits
            if len(self.kept) > MASKS:
                self.kept.popitem(last=False)
        return fits


def _fits(table: pa.Table, condition: dict[str, Any]) -> np.ndarray:
    """bool [lines]: which lines meet a condition; a null meets `none_of` alone, a list what any of its entries meets."""
    name = condition["column"]
    if name not in table.column_names:
        raise ConfigError(f"items have no column '{name[:80]}'; there are {', '.join(table.column_names)}")
    column, kind = table[name], table.schema.field(name).type
    nested = is_list(kind)
    values = pc.list_flatten(column) if nested else column
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    held = values.type
    if held == UUID:  # Arrow compares the bytes alone
        values = values.cast(held.storage_type)
    fits = np.ones(len(values), bool)
    try:
        for wanted in ("any_of", "none_of"):
            if condition.get(wanted) is not None:
                fits &= pc.is_in(values, value_set=_cells(condition[wanted], held)).fill_null(False).to_numpy()
        for bound, compare in (("at_least", pc.greater_equal), ("at_most", pc.less_equal)):
            if condition.get(bound) is not None:
                fits &= compare(values, _comparable(condition[bound], held)).fill_null(False).to_numpy()
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError):  # the last: too large for any number
        raise ConfigError(f"column '{name}' holds {kind}: it cannot be compared with what is given") from None
    if nested:
        counts = pc.list_value_length(column).fill_null(0).to_numpy()
        parents = np.repeat(np.arange(len(column)), counts)
        fits = np.bincount(parents[fits], minlength=len(column)) > 0
    return ~fits if condition.get("none_of") is not None else fits


def _cells(given: list[Any], kind: pa.DataType) -> pa.Array:
    """Values of JSON in the type of a column."""
    own = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_temporal, pa.types.is_decimal)
    if any(is_one(kind) for is_one in own):
        found = []
        for value in given:
            comparable = _comparable(value, kind)
            with suppress(pa.ArrowInvalid):  # 2.5 or 300 among whole numbers of 8 bits: no cell is that
                found.append(comparable.cast(kind))
        return pa.array(found, kind)
    return as_column(given, kind).storage if kind == UUID else pa.array(given).cast(kind)


def _comparable(value: Any, kind: pa.DataType) -> pa.Scalar:
    """A value of JSON as what a column of this type can be compared with, if anything. Times are ISO text, or count since 1970 as the
    column does; without a zone they are UTC."""
    if isinstance(value, bool) or pa.types.is_boolean(kind):
        if not (isinstance(value, bool) and pa.types.is_boolean(kind)):
            raise TypeError  # 1 is no truth, and true no number
        return pa.scalar(value)
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return pa.scalar(Decimal(str(value)))  # exact: 19.99 is not the float nearest to it, and 2.5 lies between two whole numbers
    if pa.types.is_floating(kind):
        return pa.scalar(float(value), kind)
    if isinstance(value, str) and pa.types.is_timestamp(kind):
        for zone in ("UTC", None):  # Arrow wants a zone in the text, or none
            with suppress(pa.ArrowInvalid):
                return pa.scalar(value).cast(pa.timestamp(kind.unit, zone)).cast(kind)
    if not isinstance(value, str) and pa.types.is_temporal(kind):
        return pa.scalar(value).cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    return pa.scalar(value).cast(kind) if isinstance(value, str) else pa.scalar(value)


def _words(text: str) -> str:
    """Lower case, with one space for whatever stands between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _units(model: Recommender, vectors: np.ndarray) -> torch.Tensor:
    """What the vectors say of what items are, at length 1."""
    vectors = model.described(vectors)
    return torch.from_numpy(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
