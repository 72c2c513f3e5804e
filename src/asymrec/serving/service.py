"""All that a server is made of, and its threads: the model's, the recorder's, and the one that watches the store and the run folder."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import HTTPException

from asymrec.errors import AsymrecError, UnknownIdError
from asymrec.serving import schemas
from asymrec.serving.catalogue import Catalogue
from asymrec.serving.cells import as_id
from asymrec.serving.engine import Ask, Engine, Users, history
from asymrec.serving.metrics import Metrics
from asymrec.serving.recorder import Recorder
from asymrec.serving.security import Keys
from asymrec.serving.snapshot import Run
from asymrec.serving.store import Store

log = logging.getLogger("asymrec.serving")


@dataclass(frozen=True)
class Settings:
    """keys: whether requests need one. hosts: names, in small letters, that are answered to, all where empty. batch, wait (s), waiting: of
    the engine. timeout: seconds for a recommendation. largest: bytes of a body; pace: seconds it may take. at_once: requests worked on.
    watch: seconds between looks at the store and the run folder."""

    keys: bool = False
    hosts: tuple[str, ...] = ()
    batch: int = 64
    wait: float = 0.002
    waiting: int = 512
    timeout: float = 5.0
    largest: int = 8 << 20
    pace: float = 20.0
    at_once: int = 1024
    watch: float = 1.0


class Service:
    """Raises RunError and others of the run and the store: nothing is served then."""

    def __init__(self, folder: str | Path, store: Store, settings: Settings | None = None):
        self.folder, self.store, self.settings = Path(folder), store, settings or Settings()
        self.metrics, self.stopping = Metrics(), threading.Event()
        self._seen = self._last = self._stamp()
        self.catalogue = Catalogue(Run.load(self.folder), store)
        self.users = Users(store, self.metrics)
        limits = {"batch": self.settings.batch, "wait": self.settings.wait, "waiting": self.settings.waiting}
        self.engine = Engine(lambda: self.catalogue.snapshot, self.users, self.metrics, **limits)
        self.recorder = Recorder(store, self.users, self.metrics)
        self.keys = Keys(store, self.settings.keys)
        self.watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.engine.answer([Ask(None, [self.catalogue.snapshot.ids[0]])])  # what is compiled at the first call is compiled now

    def start(self) -> None:
        self.engine.start()
        self.recorder.start()
        self.watcher.start()

    def stop(self) -> None:
        self.stopping.set()
        self.engine.stop()
        self.recorder.stop()
        self.watcher.join()
        self.store.close()

    def check(self) -> None:
        if self.stopping.is_set() or not (self.engine.thread.is_alive() and self.recorder.thread.is_alive()):
            raise HTTPException(503, "not ready")
        self.store.ping()

    def observe(self) -> None:
        snapshot = self.catalogue.snapshot
        self.metrics.items.set(snapshot.n_live)
        self.metrics.version.set(snapshot.version)
        self.metrics.queue.set(self.engine.jobs.qsize())

    # Users

    def find_users(self, search: str, limit: int) -> list[str | int]:
        ids = self.catalogue.snapshot.run.dataset.user_ids
        try:
            rows = np.flatnonzero(pc.starts_with(ids.cast(pa.large_string()), search).fill_null(False))[:limit]
        except pa.ArrowException:  # ids that are no text, such as bytes
            rows = [row for row, own in enumerate(ids.to_pylist()) if str(as_id(own)).startswith(search)][:limit]
        return [as_id(ids[int(row)].as_py()) for row in rows]

    def user(self, user: str) -> schemas.User:
        snapshot = self.catalogue.snapshot
        user = snapshot.run.user_key(user)
        events = self.store.events_of([user])
        rows, times = history(snapshot, Ask(user, []), events)
        when = times.tolist() if times is not None else [None] * len(rows)
        past = [schemas.Past(item=snapshot.ids[row], title=snapshot.title(row), time=t) for row, t in zip(rows.tolist(), when)]
        return schemas.User(user=user, history=past, stored=sum(item in snapshot.rows for item, _ in events[user]))

    def forget(self, user: str) -> int:
        user = self.catalogue.snapshot.run.user_key(user)
        deleted = self.store.forget(user)
        self.users.forget({user})
        if not deleted and not self.users.events([user])[user] and self.catalogue.snapshot.run.user_row(user) is None:
            raise UnknownIdError(f"unknown user id {user[:80]!r}")
        return deleted

    # The run folder and other servers

    def _watch(self) -> None:
        try:
            self.catalogue.warm_up()
        except Exception:  # the first new item will say what it is
            log.exception("the text encoder is not read before the first new item")
        while not self.stopping.wait(self.settings.watch):
            try:
                self.catalogue.follow()
            except Exception:  # a database that went away comes back
                log.exception("cannot follow the store")
            self.look_for_a_run()

    def look_for_a_run(self) -> None:
        """Serve the folder's new run, once it is whole and every change has its place in it; until then, and if not, the old one.

        A folder that is copied comes file by file: it is read when nothing has changed since the last look, and again after a change."""
        stamp, last = self._stamp(), self._last
        self._last = stamp
        if not stamp or stamp == self._seen or stamp != last:
            return
        self._seen = stamp
        try:
            run = Run.load(self.folder)
            served = self.catalogue.snapshot.run
            if (run.identity, run.ranked) == (served.identity, served.ranked):
                return
            self.catalogue.swap(run)
        except AsymrecError as error:
            log.error("the new run in %s is not served: %s", self.folder.name, error)
        except Exception:
            log.exception("the new run in %s is not served", self.folder.name)
        else:
            self.metrics.swaps.inc()
            log.info("now serving the new run in %s", self.folder.name)

    def _stamp(self) -> frozenset[tuple[str, int, int, int]]:
        """Of every file of the run; empty where the folder is not there."""
        stamp = set()
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):  # moved away meanwhile
                    found = os.stat(path := os.path.join(folder, name))
                    stamp.add((path, found.st_ino, found.st_mtime_ns, found.st_size))
        return frozenset(stamp)
