"""From waiting requests to answers: one thread takes what has come together and makes one call of the model for all of it.

The queue is bounded: who comes when it is full is told to come again, at once, instead of waiting for what will be too late. While the
model works the next requests gather, so a batch grows with the load by itself; only under load is there a short wait for more.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from asymrec.data import Sequences
from asymrec.errors import AsymrecError, RunError
from asymrec.models.base import SCORES_AT_ONCE
from asymrec.retrieval.exact import top_k
from asymrec.serving.metrics import Metrics
from asymrec.serving.snapshot import Snapshot
from asymrec.serving.store import Store
from asymrec.serving.worker import Busy, Worker

log = logging.getLogger("asymrec.serving")
REASONS = 2  # items of the history that explain one recommendation


class Late(Exception):
    """No answer in time."""


@dataclass(frozen=True)
class Ask:
    """One recommendation. user: id as text, or history: item ids, oldest first; both: the history follows what is known of the user.
    times: of the history's items, in the run's unit; None: not known."""

    user: str | None
    history: list[Any]
    times: list[int] | None = None
    k: int = 10
    exclude_seen: bool = True
    only: list[Any] | None = None
    deny: list[Any] = field(default_factory=list)
    where: list[dict[str, Any]] = field(default_factory=list)
    reasons: bool = True
    codes: bool = False
    rank: bool | None = None  # None: where there is a ranker


@dataclass(frozen=True)
class _Job:
    ask: Ask
    future: asyncio.Future
    until: float


class Engine(Worker):
    """Args: snapshot, called for each batch; batch, the most requests of one call; wait, seconds for more to come when there is load;
    waiting, how many may queue."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], users: Users, metrics: Metrics, *, batch: int = 64, wait: float = 0.002, waiting: int = 512
    ):
        self.snapshot, self.users, self.metrics = snapshot, users, metrics
        self.batch, self.wait = batch, wait
        super().__init__("model", waiting)

    async def ask(self, asks: list[Ask], timeout: float) -> list[dict[str, Any] | AsymrecError]:
        """An answer, or the error, for each. Raises Busy: not all can be taken. Late."""
        if self.jobs.qsize() + len(asks) > self.jobs.maxsize:
            raise Busy
        until = time.monotonic() + timeout
        jobs = [_Job(ask, self.loop.create_future(), until) for ask in asks]
        for job in jobs:
            self.jobs.put_nowait(job)
        _, late = await asyncio.wait([job.future for job in jobs], timeout=timeout)
        if late:
            for future in late:
                future.cancel()
            raise Late
        return [job.future.result() for job in jobs]

    # The model's thread

    def _work(self) -> None:
        several, running = False, True
        while running:
            batch = [self.jobs.get()]
            limit = max(1, min(self.batch, SCORES_AT_ONCE // self.snapshot().n))
            until = time.monotonic() + (self.wait if several else 0)
            while batch[-1] is not None and len(batch) < limit:
                try:
                    left = until - time.monotonic()
                    batch.append(self.jobs.get(timeout=left) if left > 0 else self.jobs.get_nowait())
                except queue.Empty:
                    break
            if batch[-1] is None:
                batch.pop()
                running = False
            now = time.monotonic()
            batch = [job for job in batch if job.until > now and not job.future.cancelled()]
            several = len(batch) > 1
            self.metrics.queue.set(self.jobs.qsize())
            if not batch:
                continue
            try:
                answers = self.answer([job.ask for job in batch])
            except Exception:  # whatever it is must not end the thread, nor be the end of others
                log.exception("a batch of %d requests failed", len(batch))
                answers = [self._alone(job.ask) for job in batch]
            self.metrics.batch.observe(len(batch))
            self.loop.call_soon_threadsafe(_deliver, batch, answers)

    def _alone(self, ask: Ask) -> dict[str, Any] | Exception:
        try:
            return self.answer([ask])[0]
        except Exception as error:
            return error

    def answer(self, asks: list[Ask]) -> list[dict[str, Any] | AsymrecError]:
        snapshot, begun = self.snapshot(), time.perf_counter()
        asks = [ask if ask.user is None else replace(ask, user=snapshot.run.user_key(ask.user)) for ask in asks]
        events = self.users.events([ask.user for ask in asks if ask.user is not None])
        answers: list[Any] = [None] * len(asks)
        known: list[tuple[int, Ask, np.ndarray, np.ndarray | None]] = []
        for at, ask in enumerate(asks):
            try:
                rows, times = history(snapshot, ask, events)
                known.append((at, ask, rows, times))
            except AsymrecError as error:
                answers[at] = error
        for timed in (False, True):
            part = [one for one in known if (snapshot.model.reads_times and one[3] is not None) == timed]
            if not part:
                continue
            histories = Sequences.of([rows for _, _, rows, _ in part], [times for *_, times in part] if timed else None)
            lists = []
            for (at, ask, rows, _), found in zip(part, _retrieved(snapshot, [ask for _, ask, *_ in part], histories)):
                if isinstance(found, AsymrecError):
                    answers[at] = found
                else:
                    lists.append(_List(at, ask, rows, *found))
            _rank(snapshot, [one for one in lists if _ranked(snapshot, one.ask)])
            for one in lists:
                answers[one.at] = _answer(snapshot, one)
        self.metrics.model.observe(time.perf_counter() - begun)
        return answers


class Users:
    """Events of users, with a memory of the latest where this server alone writes the store."""

    def __init__(self, store: Store, metrics: Metrics, kept: int = 20_000):
        self.store, self.metrics, self.kept = store, metrics, 0 if store.shared else kept
        self._known: OrderedDict[str, list[tuple[str, int]]] = OrderedDict()
        self._changes, self._lock = 0, threading.Lock()

    def events(self, users: list[str]) -> dict[str, list[tuple[str, int]]]:
        with self._lock:
            found = {user: self._known[user] for user in users if user in self._known}
            changes = self._changes
        missing = [user for user in users if user not in found]
        self.metrics.cache.labels("hit").inc(len(users) - len(missing))
        if missing:
            self.metrics.cache.labels("miss").inc(len(missing))
            read = self.store.events_of(missing)
            found |= read
            with self._lock:
                if self._changes == changes:  # else what was read may be old by now
                    self._known |= read
                    while len(self._known) > self.kept:
                        self._known.popitem(last=False)
        return found

    def forget(self, users: set[str]) -> None:
        with self._lock:
            self._changes += 1
            for user in users:
                self._known.pop(user, None)


def history(snapshot: Snapshot, ask: Ask, events: dict[str, list[tuple[str, int]]]) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of an ask's history, the oldest first, and their times where all are known.

    Raises UnknownIdError: user or item. DataError: times in another unit than the run's.
    """
    dataset, rows, times = snapshot.run.dataset, [], [] if not ask.history or ask.times is not None else None
    for when in ask.times or []:
        snapshot.run.check_time(when, "times:")
    if ask.user is not None:
        stored = [(snapshot.rows[item], when) for item, when in events[ask.user] if item in snapshot.rows]
        row = snapshot.run.user_row(ask.user)
        if row is None and not events[ask.user] and not ask.history:
            dataset.user_rows([ask.user])  # raises, naming it
        if row is not None:
            rows += _current(snapshot, dataset.sequences[row])
            if times is not None and dataset.sequences.times is not None:
                times += dataset.sequences.times[dataset.sequences.offsets[row] : dataset.sequences.offsets[row + 1]].tolist()
        rows += [each for each, _ in stored]
        if times is not None:
            times += [when for _, when in stored]
    rows += [snapshot.row(item) for item in ask.history]
    if times is not None:
        times += ask.times or []
    timed = times is not None and dataset.sequences.times is not None
    return np.array(rows, np.int32), np.maximum.accumulate(np.array(times, np.int64)) if timed and len(times) == len(rows) else None


def _current(snapshot: Snapshot, rows: np.ndarray) -> list[int]:
    """Rows of the run's own sequences, where an item that was put anew has another row by now."""
    return [snapshot.rows[str(snapshot.ids[row])] for row in rows.tolist()]


@dataclass
class _List:
    """What was retrieved for an ask, best first; and the ranker's probabilities, where it was asked."""

    at: int
    ask: Ask
    history: np.ndarray
    rows: np.ndarray
    scores: np.ndarray  # retrieval's
    final: np.ndarray | None = None
    probabilities: np.ndarray | None = None


def _ranked(snapshot: Snapshot, ask: Ask) -> bool:
    return snapshot.run.pipeline is not None and ask.rank is not False


def _retrieved(snapshot: Snapshot, asks: list[Ask], histories: Sequences) -> list[tuple[np.ndarray, np.ndarray] | AsymrecError]:
    """For each ask the best allowed items and their scores, as many as are asked for or are to be ranked; or what is wrong with it."""
    found: list[Any] = [None] * len(asks)
    allowed: dict[int, np.ndarray] = {}
    for at, ask in enumerate(asks):
        try:
            allowed[at] = _allowed(snapshot, ask)
        except AsymrecError as error:
            found[at] = error
    model = snapshot.model
    if model.complete and allowed:
        for at, scores in zip(allowed, np.asarray(model.scores(histories.take(np.array(list(allowed)))), np.float32)):
            scores = np.where(allowed[at], scores, -np.inf)
            if asks[at].exclude_seen:
                scores[histories[at]] = -np.inf
            found[at] = top_k(scores[None], min(_wanted(snapshot, asks[at]), snapshot.n))
    else:  # a search of each ask's own items, of all asks together that want the same
        alike: dict[tuple[int, bool, bytes], list[int]] = {}
        for at, own in allowed.items():
            alike.setdefault((_wanted(snapshot, asks[at]), asks[at].exclude_seen, np.packbits(own).tobytes()), []).append(at)
        for (wanted, exclude_seen, _), group in alike.items():
            own = allowed[group[0]]
            best, values = model.best(histories.take(np.array(group)), min(wanted, snapshot.n), None if own.all() else ~own, exclude_seen)
            for line, at in enumerate(group):
                found[at] = best[line : line + 1], values[line : line + 1]
    return [one if isinstance(one, AsymrecError) else (one[0][one[0] >= 0], one[1][one[0] >= 0]) for one in found]


def _wanted(snapshot: Snapshot, ask: Ask) -> int:
    return max(ask.k, snapshot.run.pipeline.candidates) if _ranked(snapshot, ask) else ask.k


def _allowed(snapshot: Snapshot, ask: Ask) -> np.ndarray:
    """bool [n]: what an ask may be given, but for its history. Raises AsymrecError: what is asked cannot be."""
    if ask.rank and snapshot.run.pipeline is None:
        raise RunError("there is no ranker: what is served is a run, not a pipeline")
    allowed = snapshot.mask(ask.where)
    if ask.only is not None:
        only = np.zeros(snapshot.n, bool)
        only[[snapshot.row(item) for item in ask.only]] = True
        allowed = allowed & only
    if ask.deny:
        allowed = allowed.copy()
        allowed[[snapshot.row(item) for item in ask.deny]] = False
    return allowed


def _rank(snapshot: Snapshot, lists: list[_List]) -> None:
    """Order the lists by both scores; the ranker is called once for all. An item that it never saw is ranked by its other fields."""
    if not lists:
        return
    pipeline, dataset = snapshot.run.pipeline, snapshot.run.dataset
    found = (None if one.ask.user is None else snapshot.run.user_row(one.ask.user) for one in lists)
    users = np.array([-1 if row is None else row for row in found])
    own = np.where(users < 0, 0, dataset.sequences.lengths[np.maximum(users, 0)])
    shape = len(lists), max(len(one.rows) for one in lists)
    rows, scores = np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)
    for line, one in enumerate(lists):
        rows[line, : len(one.rows)], scores[line, : len(one.rows)] = one.rows, one.scores
    logits = pipeline.logits(Sequences.of([one.history for one in lists]), rows, users, own, snapshot.items)
    final = pipeline.blend(scores, logits)
    for line, one in enumerate(lists):
        order = np.argsort(-final[line, : len(one.rows)], kind="stable")
        one.rows, one.scores, one.final = one.rows[order], one.scores[order], final[line][order]
        one.probabilities = 1 / (1 + np.exp(-logits[line][order].astype(np.float64)))


def _answer(snapshot: Snapshot, found: _List) -> dict[str, Any]:
    ask, best = found.ask, found.rows[: found.ask.k]
    shown = found.scores if found.final is None else found.final
    items = [{"item": snapshot.ids[row], "title": snapshot.title(row), "score": float(value)} for row, value in zip(best.tolist(), shown)]
    if found.final is not None:
        for item, score, probability in zip(items, found.scores, found.probabilities):
            item |= {"retrieval": float(score), "ranker": float(probability)}
    if ask.reasons:
        for item, why in zip(items, _reasons(snapshot, best, found.history)):
            item["reasons"] = why
    if ask.codes:
        for item, row in zip(items, best.tolist()):
            item["codes"] = snapshot.codes(row)
    return {"version": snapshot.version, "history": len(found.history), "ranked": found.final is not None, "items": items}


def _reasons(snapshot: Snapshot, best: np.ndarray, rows: np.ndarray) -> list[list[dict[str, Any]]]:
    """Of each recommendation the items of the history that are nearest to it by vector."""
    distinct = np.unique(rows)
    if snapshot.units is None or not len(distinct) or not len(best):
        return [[] for _ in best]
    units = snapshot.units.rows.numpy()
    cosine = units[best] @ units[distinct].T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :REASONS]
    return [
        [
            {"item": snapshot.ids[row], "title": snapshot.title(row), "similarity": round(float(value), 4)}
            for row, value in zip(whom, values)
        ]
        for whom, values in zip(distinct[nearest].tolist(), np.take_along_axis(cosine, nearest, 1))
    ]


def _deliver(batch: list[_Job], answers: list[Any]) -> None:
    for job, answer in zip(batch, answers):
        if job.future.done():
            continue
        if isinstance(answer, Exception) and not isinstance(answer, AsymrecError):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
