"""The living catalogue: a run's items and every change since, one immutable version after another.

A change is placed (text embedded, vector quantized by the frozen codebooks), written to the store, and becomes the version that readers
get, in that order: what was acknowledged is on the disk, and what is on the disk is what is served. Rolling back is a change too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa

from asymrec.errors import AsymrecError, DataError, PlacingError, UnknownIdError, one_line
from asymrec.serving.cells import UUID, as_column, as_id, fits, is_binary, misfit
from asymrec.serving.snapshot import Put, Run, Snapshot
from asymrec.serving.store import Change, Store

log = logging.getLogger("asymrec.serving")
PLACED_AT_ONCE = 1024  # texts embedded together
LONGEST = 1e12  # of vectors


class Catalogue:
    """Raises DataError, PlacingError: a change in the store that the run cannot place. RunError: as `swap`."""

    def __init__(self, run: Run, store: Store):
        self.store = store
        self._turn = RLock()  # of writers in this process; other servers wait in the store
        self.snapshot = self._replayed(run)
        store.count_in(run.time_unit)

    # Writing

    def put(self, items: Iterable[tuple[Any, dict[str, Any]]]) -> Snapshot:
        """Add items, or describe known ones anew: (id, columns of the item table). Returns the version that has them, on the disk.

        Raises DataError: columns or types that the item table does not have, an id twice. PlacingError: no text or vector.
        """
        items = list(items)
        return self._put(lambda _: items) if items else self.snapshot

    def patch(self, item: str, columns: dict[str, Any]) -> Snapshot:
        """Change some columns of an item. Raises UnknownIdError: not there, or retired; else as `put`."""

        def described(snapshot: Snapshot) -> list[tuple[Any, dict[str, Any]]]:
            row = snapshot.row(item)
            if not snapshot.live[row]:
                raise UnknownIdError(f"item {item!r} is retired: put it anew")
            return [(snapshot.ids[row], snapshot.record(row) | columns)]

        self.follow()
        return self._put(described)

    def _put(self, asked: Callable[[Snapshot], list[tuple[Any, dict[str, Any]]]]) -> Snapshot:
        """asked: the items, given the version before. They are placed before the turn, which is not to wait for an encoder; anew in it
        only if another writer has changed what they are made of, or another run came."""

        def placed(snapshot: Snapshot) -> tuple[Run, list[tuple[Any, dict[str, Any]]], dict[str, Put], pa.Table]:
            items = asked(snapshot)
            _refuse_misfits(snapshot.run, items)
            return snapshot.run, items, *place(snapshot.run, items)

        run, items, puts, described = placed(self.snapshot)
        with self._turn:
            with self.store.writing() as writing:
                self._catch_up(writing.connection, writing.version)
                if self.snapshot.run is not run or asked(self.snapshot) != items:
                    run, items, puts, described = placed(self.snapshot)
                records = {str(own): record for own, record in items}
                coded = _coded(self.snapshot, puts)
                change = [Change("put", item, records[item], vector=put.vector, codes=put.codes) for item, put in coded.items()]
                after = self.snapshot.changed(writing.version + 1, coded, described, set())
                writing.add(run.identity, change)
            self.snapshot = after
            return after

    def retire(self, items: Iterable[str]) -> Snapshot:
        """From now on these are not recommended; in histories they stay. Raises UnknownIdError."""
        items = list(dict.fromkeys(items))
        with self._turn:
            with self.store.writing() as writing:
                self._catch_up(writing.connection, writing.version)
                for item in items:
                    if not self.snapshot.live[self.snapshot.row(item)]:
                        raise UnknownIdError(f"item {item!r} is retired already")
                writing.add(self.snapshot.run.identity, [Change("retire", item) for item in items])
                after = self.snapshot.changed(writing.version + 1, {}, self.snapshot.table[:0], set(items))
            self.snapshot = after
            return after

    def roll_back(self, version: int) -> Snapshot:
        """Make the catalogue what it was at a version, as a new version. Raises UnknownIdError: no such version."""
        with self._turn:
            with self.store.writing() as writing:
                self._catch_up(writing.connection, writing.version)
                if not 0 <= version <= writing.version:
                    raise UnknownIdError(f"there is no version {version}: the latest is {writing.version}")
                run = self.snapshot.run
                writing.add(run.identity, [Change("rollback", target=version)])
                after = self._replayed(run, writing.connection)
            self.snapshot = after
            return after

    # Following

    def follow(self) -> None:
        """Take over what other servers have written."""
        if self.store.shared and self.store.version() > self.snapshot.version:
            with self._turn:
                self._catch_up(None, self.store.version())

    def swap(self, run: Run) -> Snapshot:
        """Serve another run from now on, with every change since the first. Raises PlacingError: it cannot place a changed item. RunError:
        its times are counted in another unit than the store's events."""
        prepared = self._replayed(run)
        with self._turn:
            if prepared.version != self.store.version():  # changed while the run was read
                prepared = self._replayed(run)
            self.store.count_in(run.time_unit)
            self.snapshot = prepared
            return prepared

    def warm_up(self) -> None:
        """Read the text encoder now, so that the first new item need not wait for it."""
        snapshot = self.snapshot
        with suppress(AsymrecError):  # a run that cannot place items says so when one comes
            snapshot.run.model.new_vectors(snapshot.run.dataset.items.slice(0, 1))

    def _catch_up(self, connection: Any, version: int) -> None:
        if version <= self.snapshot.version:
            return
        run = self.snapshot.run
        new = self.store.changes(run.identity, after=self.snapshot.version, connection=connection)
        if any(change.kind == "rollback" for change in new):
            self.snapshot = self._replayed(run, connection)
        else:
            self.snapshot = self._applied(self.snapshot, new, connection)

    def _replayed(self, run: Run, connection: Any = None) -> Snapshot:
        """The run's own items, then all changes in the store that still count. connection: of who has the turn."""
        known = self.store.changes(run.identity, connection=connection)
        try:
            snapshot = self._applied(Snapshot.of(run), surviving(known), connection)
        except PlacingError as error:
            hint = "serve a run whose model can place them, or give another store"
            raise PlacingError(f"the store {self.store.name} holds items that were put into an earlier run, and {error}: {hint}") from None
        return replace(snapshot, version=known[-1].version if known else 0)

    def _applied(self, snapshot: Snapshot, changes: list[Change], connection: Any) -> Snapshot:
        if not changes:
            return snapshot
        run, version = snapshot.run, changes[-1].version
        final = {change.item: change for change in changes}  # of each item the last word
        retired = {item for item, change in final.items() if change.kind == "retire"}
        puts = list({change.item: change for change in changes if change.kind == "put"}.values())  # of the retired too: histories hold them
        known = [change for change in puts if change.vector is not None]
        if known:
            described = item_lines(run, [(change.item, change.record) for change in known])
            ids = map(as_id, described[run.dataset.item_column].to_pylist())
            placed = {change.item: Put(own, change.vector, change.codes) for own, change in zip(ids, known)}
            snapshot = snapshot.changed(version, placed, described, set())
        if missing := [change for change in puts if change.vector is None]:  # another run was served when they came
            made, described = place(run, [(change.item, change.record) for change in missing])
            made = _coded(snapshot, made)
            log.info("placed %d items of the store", len(missing))
            kept = [replace(change, vector=made[change.item].vector, codes=made[change.item].codes) for change in missing]
            self.store.keep_placements(run.identity, kept, connection)
            snapshot = snapshot.changed(version, made, described, set())
        return snapshot.changed(version, {}, snapshot.table[:0], retired)


def _coded(snapshot: Snapshot, puts: dict[str, Put]) -> dict[str, Put]:
    """The puts with codes: an item whose vector is the one it had keeps its own, others get distinct ones."""
    own = snapshot.model.catalogue()[1]
    if own is None:
        return puts
    kept = {item for item, put in puts.items() if snapshot.keeps(item, put)}
    new = [item for item in puts if item not in kept]
    codes = dict(zip(new, snapshot.model.new_codes(np.stack([puts[item].vector for item in new])))) if new else {}
    codes |= {item: own[snapshot.rows[item]] for item in kept}
    return {item: replace(put, codes=codes[item]) for item, put in puts.items()}


def surviving(changes: list[Change]) -> list[Change]:
    """The changes that make up the last version: a rollback undoes all that came after its target."""
    kept: list[Change] = []
    latest = math.inf
    for change in reversed(changes):  # from the end, what was undone is passed over without a look, rollbacks among it
        if change.version > latest:
            continue
        if change.kind == "rollback":
            latest = change.target
        else:
            kept.append(change)
    return kept[::-1]


def place(run: Run, items: list[tuple[Any, dict[str, Any]]]) -> tuple[dict[str, Put], pa.Table]:
    """Items by their id as text, with vectors and without codes yet; and their lines of the item table. Raises DataError, PlacingError."""
    described = item_lines(run, items)
    starts = range(0, len(items), PLACED_AT_ONCE)
    vectors = np.concatenate([run.model.new_vectors(described.slice(start, PLACED_AT_ONCE)) for start in starts])
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if (lengths > LONGEST).any():  # scores would not be numbers
        raise PlacingError(f"item {str(items[int(lengths.argmax())][0])[:80]!r}: its vector is of length {lengths.max():.3g}")
    ids = map(as_id, described[run.dataset.item_column].to_pylist())
    return {str(own): Put(own, vector) for own, vector in zip(ids, vectors)}, described


def item_lines(run: Run, items: list[tuple[Any, dict[str, Any]]]) -> pa.Table:
    """Items as a piece of the run's item table. Raises DataError."""
    column = run.dataset.item_column
    schema = run.dataset.items.schema
    if len({str(own) for own, _ in items}) < len(items):
        raise DataError("an item id is given twice")
    names = dict.fromkeys(name for _, record in items for name in record)
    if unknown := [name for name in names if name not in schema.names or name == column]:
        known = ", ".join(name for name in schema.names if name != column)
        raise DataError(f"items have no column '{unknown[0][:80]}'; there are {known}")
    arrays = {column: _ids(run, [own for own, _ in items])}
    for name in names:
        arrays[name] = _column(name, [record.get(name) for _, record in items], schema.field(name).type)
    return run.dataset.item_table(pa.table(arrays))


def _column(name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    """Raises DataError: a value that is none of this type, the first of them; values that are too many for it."""
    try:
        return as_column(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
        if len(values) == 1:
            raise misfit(name, values[0], kind) from None
        for value in values:
            _column(name, [value], kind)
        raise DataError(f"column '{name}' ({kind}) cannot take all these values: {one_line(error)}") from None


def _refuse_misfits(run: Run, items: list[tuple[Any, dict[str, Any]]]) -> None:
    """Raises DataError: a value that is none of its column's type."""
    schema = run.dataset.items.schema
    for _, record in items:
        for name, value in record.items():
            if name in schema.names and not fits(value, schema.field(name).type):
                raise misfit(name, value, schema.field(name).type)


def _ids(run: Run, ids: list[Any]) -> pa.Array:
    kind = run.dataset.item_ids.type
    try:
        texts = [str(own) for own in ids]
        if pa.types.is_integer(kind):
            found = pa.array([int(text) for text in texts], type=kind)
        else:
            found = as_column(texts, kind) if is_binary(kind) or kind == UUID else pa.array(texts).cast(kind)
        if [str(as_id(each)) for each in found.to_pylist()] != texts:
            raise ValueError("not written as the run's own are")
        return found
    except (pa.ArrowException, ValueError, OverflowError):
        raise DataError(f"item ids of this run are of type {kind}, which {str(ids[0])[:80]!r} is not") from None
