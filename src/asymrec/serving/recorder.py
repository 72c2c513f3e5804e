"""Events to the disk: those that come together share one commit, and nobody is answered before it.

One fsync takes as long for a hundred events as for one, so a thread takes all that wait and commits once.
"""

from __future__ import annotations

import asyncio
import queue
import time

from asymrec.serving.engine import Users
from asymrec.serving.metrics import Metrics
from asymrec.serving.store import Event, Store
from asymrec.serving.worker import Busy, Worker

TOGETHER = 2000  # events of one commit, at most what one request may bring more


class Recorder(Worker):
    def __init__(self, store: Store, users: Users, metrics: Metrics, waiting: int = 1024):
        self.store, self.users, self.metrics = store, users, metrics
        super().__init__("recorder", waiting)

    async def record(self, events: list[Event]) -> int:
        """Returns when they are on the disk, how many were new. Raises Busy, Taken, and whatever the store does: then none is there."""
        future = self.loop.create_future()
        try:
            self.jobs.put_nowait((events, future))
        except queue.Full:
            raise Busy from None
        return await future

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            jobs = [job]
            while jobs[-1] is not None and sum(len(events) for events, _ in jobs) < TOGETHER:
                try:
                    jobs.append(self.jobs.get_nowait())
                except queue.Empty:
                    break
            stopping = jobs[-1] is None
            jobs = [each for each in jobs if each is not None]
            requests, begun = [events for events, _ in jobs], time.perf_counter()
            answers: list[int | Exception]
            try:
                answers = self.store.add_events(requests)
                self.metrics.events.inc(sum(answer for answer in answers if isinstance(answer, int)))
            except Exception as failed:  # a full disk, a database that went away: all who wait are told, the next may have more luck
                answers = [failed] * len(jobs)
            self.users.forget({event.user for events in requests for event in events})
            self.metrics.commits.observe(time.perf_counter() - begun)
            self.loop.call_soon_threadsafe(_tell, [future for _, future in jobs], answers)
            if stopping:
                return


def _tell(futures: list[asyncio.Future], answers: list[int | Exception]) -> None:
    for future, answer in zip(futures, answers):
        if not future.done():
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)
