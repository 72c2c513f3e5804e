"""What the server must not lose: users' events, changes of the catalogue, API keys. SQLite by default, PostgreSQL by a URL.

Whatever a method has returned from is on the disk (SQLite: WAL with synchronous=FULL), so a caller may acknowledge it. One server at a
time has an SQLite file; any number share a PostgreSQL database. Writers of the catalogue take turns by a lock on one row, which makes
versions gapless and in order for everybody who follows them.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from asymrec.errors import AsymrecError, RunError
from asymrec.serving.tables import catalogue, changes, events, keys, placements

SQLITE = b"SQLite format 3\0"  # how such a file begins
KEPT = 1000  # latest events of a user that are read
PLACED_AT_ONCE = 2000
PATIENCE = 30  # seconds for an SQLite file that another process writes
TRIES = 5  # of a transaction that the database ends for another's sake


@dataclass(frozen=True)
class Event:
    user: str
    item: str
    time: int  # in the unit of the data set
    event: str | None = None


class Taken(AsymrecError):
    """An event's own id is that of another event already."""


@dataclass(frozen=True)
class Change:
    """One line of the catalogue's history."""

    kind: str  # put, retire, rollback
    item: str | None = None
    record: dict[str, Any] | None = None
    target: int | None = None
    vector: np.ndarray | None = None  # float32 [d] of a put, as the run places it; None where it has not yet
    codes: np.ndarray | None = None
    version: int = 0
    line: int = 0
    made: int = 0


class Store:
    """Raises RunError: no such store, or another server has it.

    Args:
        url: as SQLAlchemy reads it, `sqlite:///file` or `postgresql://user:password@host/name`.
        serves: as the one server of an SQLite file; else only to look after keys beside one that may be running.
    """

    def __init__(self, url: str, serves: bool = True):
        self._lock: int | None = None
        try:
            parsed = sa.make_url(url)
        except ArgumentError:
            hint = "such as sqlite:///store.sqlite or postgresql://host/name"
            raise RunError(f"'{_hidden(url)}' is not the URL of a store, {hint}") from None
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise RunError(f"a store is SQLite or PostgreSQL, not '{parsed.get_backend_name()}'")
        self.shared = parsed.get_backend_name() == "postgresql"  # other servers may write it too
        if self.shared and "+" not in parsed.drivername:
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.name = parsed.render_as_string(hide_password=True)
        try:
            if self.shared:
                self.engine = sa.create_engine(parsed, pool_pre_ping=True, pool_size=8)
            else:
                self._take(parsed.database, serves)
                self.engine = sa.create_engine(parsed, connect_args={"timeout": PATIENCE})
                sa.event.listen(self.engine, "connect", _durable)
            self._migrate()
        except (SQLAlchemyError, NoSuchModuleError, OSError, ImportError) as error:
            self.close()
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise RunError(f"cannot open the store {self.name}: {reason}") from None
        self._insert = (postgresql if self.shared else sqlite).insert

    def _take(self, path: str | None, serves: bool) -> None:
        """One server at a time for a file: its memory of users and items is right only while nobody else writes."""
        if not path or path == ":memory:":
            raise RunError("the store must be a file: sqlite:///PATH")
        if not Path(path).resolve().parent.is_dir():
            raise RunError(f"cannot open the store {self.name}: there is no folder {Path(path).resolve().parent}")
        file = Path(path)
        if file.is_file() and file.stat().st_size and file.open("rb").read(len(SQLITE)) != SQLITE:
            raise RunError(f"cannot open the store {self.name}: {path} is something else than an SQLite file")
        if not serves:
            return
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "several servers share a PostgreSQL one (--store postgresql://...)"
            raise RunError(f"another server has the store {path}; {hint}") from None

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self.engine.begin() as connection:
            if self.shared:  # two servers that start at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305226)"))
            else:  # the driver begins no transaction for tables: a start that is interrupted would leave half of them
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def ping(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    # Events

    def add_events(self, requests: list[list[Event]]) -> list[int | Taken]:
        """Store the events of several requests in one transaction; those that are there already by their own id are left out. A request
        has events, and no two different ones with one id.

        Returns of each request how many were new; or Taken, and nothing of it is stored: an id is that of an event with another user or
        item, one that is there or one of a request before.
        """
        refused: dict[int, Taken] = {}
        tries = 0
        while True:
            agreeing, later = _divided({number: request for number, request in enumerate(requests) if number not in refused})
            try:
                counts, taken = self._add(agreeing) if agreeing else ({}, {})
            except OperationalError as error:  # two servers were sent the same ids in another order, and wait for one another
                tries += 1
                if tries == TRIES or getattr(error.orig, "sqlstate", None) not in ("40P01", "40001"):
                    raise
                continue
            refused |= taken
            if not taken:
                answers = refused | later | counts
                return [answers[number] for number in range(len(requests))]

    def _add(self, requests: dict[int, list[Event]]) -> tuple[dict[int, int], dict[int, Taken]]:
        """How many of each were new, and none refused; or the refused, and nothing is stored."""
        rows = [vars(event) for request in requests.values() for event in request]
        with self.engine.connect() as connection, connection.begin() as transaction:
            if all(row["event"] is None for row in rows):
                connection.execute(events.insert(), rows)
                return {number: len(request) for number, request in requests.items()}, {}
            statement = self._insert(events).on_conflict_do_nothing(index_elements=["event"]).returning(events.c.event)
            added = set(connection.execute(statement, rows).scalars())
            if known := {row["event"] for row in rows} - added - {None}:
                held = {event: what for event, *what in connection.execute(_BY_ID, {"ids": list(known)})}
                taken = {number: found for number, request in requests.items() if (found := _taken(request, held))}
                if taken:
                    transaction.rollback()
                    return {}, taken
        counts = {}
        for number, request in requests.items():
            own = {event.event for event in request if event.event is not None}
            counts[number] = sum(event.event is None for event in request) + len(own & added)
            added -= own  # the same id once more is none
        return counts, {}

    def events_of(self, users: Iterable[str]) -> dict[str, list[tuple[str, int]]]:
        """(item, time) of each user's latest events, the oldest first."""
        wanted, found = list(dict.fromkeys(users)), defaultdict(list)
        with self.engine.connect() as connection:
            if len(wanted) == 1:
                query = _LATEST.order_by(events.c.time.desc(), events.c.number.desc()).limit(KEPT)
                lines = [(wanted[0], *line) for line in connection.execute(query, {"one": wanted[0]})][::-1]
            else:
                lines = connection.execute(_OF_ALL, {"many": wanted}).all()
        for user, item, when in lines:
            found[user].append((item, when))
        return {user: found[user][-KEPT:] for user in wanted}

    def count_in(self, unit: str) -> None:
        """From now on events' times are in this unit. Raises RunError: there are events in another."""
        with self.engine.connect() as connection:
            if connection.execute(sa.select(catalogue.c.time_unit)).scalar_one() == unit:
                return
        with self.writing() as writing:
            held = writing.connection.execute(sa.select(catalogue.c.time_unit)).scalar_one()
            if held not in (None, unit) and writing.connection.execute(sa.select(sa.exists().select_from(events))).scalar_one():
                raise RunError(f"the events of the store {self.name} count time in {held}, the run in {unit}: give it another store")
            writing.connection.execute(catalogue.update().values(time_unit=unit))

    def forget(self, user: str) -> int:
        with self.engine.begin() as connection:
            return connection.execute(events.delete().where(events.c.user == user)).rowcount

    # The catalogue

    def version(self) -> int:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(catalogue.c.version)).scalar_one()

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """The turn to write the next version: nobody else writes until the block ends; committed when it ends well."""
        with self.engine.connect() as connection, connection.begin():
            if self.shared:
                version = connection.execute(sa.select(catalogue.c.version).with_for_update()).scalar_one()
            else:  # SQLite's own way to lock: a write comes first
                connection.execute(catalogue.update().values(version=catalogue.c.version))
                version = connection.execute(sa.select(catalogue.c.version)).scalar_one()
            yield Writing(connection, version)

    def changes(self, run: str, after: int = 0, connection: sa.Connection | None = None) -> list[Change]:
        """All changes past a version, in order, with what `run` makes of them where that is known."""
        places = sa.and_(placements.c.run == run, placements.c.version == changes.c.version, placements.c.line == changes.c.line)
        query = (
            sa.select(changes, placements.c.vector, placements.c.codes)
            .select_from(changes.outerjoin(placements, places))
            .where(changes.c.version > after)
            .order_by(changes.c.version, changes.c.line)
        )
        if connection is None:
            with self.engine.connect() as connection:
                lines = connection.execute(query).all()
        else:
            lines = connection.execute(query).all()
        return [
            Change(
                **{name: getattr(line, name) for name in ("kind", "item", "target", "version", "line", "made")},
                record=None if line.record is None else json.loads(line.record),
                vector=None if line.vector is None else np.frombuffer(line.vector, "<f4"),
                codes=None if line.codes is None else np.frombuffer(line.codes, "<i4"),
            )
            for line in lines
        ]

    def versions(self, limit: int) -> list[dict[str, Any]]:
        """The latest versions, newest first: {"version", "made", "put", "retired", "rollback"}."""
        kind = changes.c.kind
        query = (
            sa.select(
                changes.c.version,
                sa.func.min(changes.c.made).label("made"),
                sa.func.sum(sa.case((kind == "put", 1), else_=0)).label("put"),
                sa.func.sum(sa.case((kind == "retire", 1), else_=0)).label("retired"),
                sa.func.max(changes.c.target).label("rollback"),
            )
            .group_by(changes.c.version)
            .order_by(changes.c.version.desc())
            .limit(limit)
        )
        with self.engine.connect() as connection:
            return [
                {"version": v, "made": made, "put": int(put), "retired": int(gone), "rollback": back}
                for v, made, put, gone, back in connection.execute(query)
            ]

    def keep_placements(self, run: str, placed: list[Change], connection: sa.Connection | None = None) -> None:
        """Remember what a run makes of changes that are there already; piece by piece, or by the connection of who has the turn."""
        for start in range(0, len(placed), PLACED_AT_ONCE):
            with self.engine.begin() if connection is None else nullcontext(connection) as through:
                rows = [_placement(run, change) for change in placed[start : start + PLACED_AT_ONCE]]
                through.execute(self._insert(placements).on_conflict_do_nothing(), rows)

    # Keys

    def add_key(self, key: str, name: str, scopes: str, digest: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(keys.insert(), {"key": key, "name": name, "scopes": scopes, "digest": digest, "made": now()})

    def find_key(self, key: str) -> tuple[str, str, str] | None:
        """name, scopes and digest."""
        with self.engine.connect() as connection:
            line = connection.execute(sa.select(keys.c.name, keys.c.scopes, keys.c.digest).where(keys.c.key == key)).one_or_none()
            return None if line is None else tuple(line)

    def list_keys(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            query = sa.select(keys.c.key, keys.c.name, keys.c.scopes, keys.c.made).order_by(keys.c.made)
            return [dict(line._mapping) for line in connection.execute(query)]

    def remove_key(self, key: str) -> bool:
        with self.engine.begin() as connection:
            return connection.execute(keys.delete().where(keys.c.key == key)).rowcount > 0


class Writing:
    """The transaction of one who has the turn. version: the latest one."""

    def __init__(self, connection: sa.Connection, version: int):
        self.connection, self.version = connection, version

    def add(self, run: str, new: list[Change]) -> list[Change]:
        """Write the changes as the next version; returns them with their numbers."""
        version, made = self.version + 1, now()
        numbered = [Change(**vars(change) | {"version": version, "line": line, "made": made}) for line, change in enumerate(new)]
        fields = ("version", "line", "kind", "item", "target", "made")
        record = [{name: getattr(change, name) for name in fields} | {"record": _json(change.record)} for change in numbered]
        self.connection.execute(changes.insert(), record)
        placed = [_placement(run, change) for change in numbered if change.vector is not None]
        if placed:
            self.connection.execute(placements.insert(), placed)
        self.connection.execute(catalogue.update().values(version=version))
        return numbered


_LATEST = sa.select(events.c.item, events.c.time).where(events.c.user == sa.bindparam("one"))
_OF_ALL = (
    sa.select(events.c.user, events.c.item, events.c.time)
    .where(events.c.user.in_(sa.bindparam("many", expanding=True)))
    .order_by(events.c.user, events.c.time, events.c.number)
)


_BY_ID = sa.select(events.c.event, events.c.user, events.c.item).where(events.c.event.in_(sa.bindparam("ids", expanding=True)))


def _divided(requests: dict[int, list[Event]]) -> tuple[dict[int, list[Event]], dict[int, Taken]]:
    """Those that have no id of another event among them, and those that have one of a request before, as long as that is not refused."""
    agreeing: dict[int, list[Event]] = {}
    refused: dict[int, Taken] = {}
    held: dict[str, list[str]] = {}
    for number, request in requests.items():
        if taken := _taken(request, held):
            refused[number] = taken
        else:
            agreeing[number] = request
            held |= {event.event: [event.user, event.item] for event in request if event.event is not None}
    return agreeing, refused


def _taken(request: list[Event], held: dict[str, list[str]]) -> Taken | None:
    """held: user and item of ids."""
    for event in request:
        if event.event in held and held[event.event] != [event.user, event.item]:
            return Taken(f"event id {event.event[:80]!r} is that of another event already: nothing of this request was stored")
    return None


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _placement(run: str, change: Change) -> dict[str, Any]:
    codes = None if change.codes is None else np.ascontiguousarray(change.codes, "<i4").tobytes()
    vector = np.ascontiguousarray(change.vector, "<f4").tobytes()
    return {"run": run, "version": change.version, "line": change.line, "vector": vector, "codes": codes}


def _json(record: dict[str, Any] | None) -> str | None:
    return None if record is None else json.dumps(record)  # ASCII: no text in it can be one that a database refuses


def _durable(connection: Any, _: Any) -> None:
    """A commit is on the disk when it returns."""
    cursor, until = connection.cursor(), time.monotonic() + PATIENCE
    for pragma in (f"busy_timeout={1000 * PATIENCE}", "journal_mode=WAL", "synchronous=FULL"):
        while True:
            try:
                cursor.execute(f"PRAGMA {pragma}")
                break
            except sqlite3.OperationalError as error:  # for another who changes the journal SQLite does not wait by itself
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
    cursor.close()


def _hidden(url: str) -> str:
    """A URL that may hold a password, for a message."""
    return url.split("@")[-1][:80]
