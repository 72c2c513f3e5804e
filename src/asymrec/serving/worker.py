"""A thread that works off a bounded queue: the model's and the recorder's."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any


class Busy(Exception):
    """The queue is full."""


class Worker:
    """A subclass writes `_work`, which takes from `jobs` until a None comes and answers on `loop`. name: of the thread; waiting: how many
    may queue."""

    def __init__(self, name: str, waiting: int):
        self.jobs: queue.Queue[Any] = queue.Queue(waiting)
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    def stop(self) -> None:
        """Work off all that was accepted, then end."""
        self.jobs.put(None)
        self.thread.join()

    def _work(self) -> None:
        raise NotImplementedError
