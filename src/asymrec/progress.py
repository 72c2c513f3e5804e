"""A fit's progress on stderr, a moving line on a terminal and one plain line an epoch anywhere else; and its seconds."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from asymrec.training.listener import Listener


class Progress(Listener):
    """Use as a context manager, so that the moving line is taken away whatever happens."""

    def __init__(self) -> None:
        self.bar = self.task = None
        self.epochs: int | None = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def stage(self, text: str) -> None:
        self._close()
        if text.startswith("resume"):
            self.epochs = None  # until the first epoch tells
        print(text, file=sys.stderr, flush=True)

    def step(self, number: int, of: int, loss: float) -> None:
        if not sys.stderr.isatty():
            return
        if self.bar is None:
            self._open()
        epoch = "" if self.epochs is None else f"epoch {self.epochs + 1}, "
        self.bar.update(self.task, completed=number, total=of, description=f"{epoch}loss {loss:.3f}")

    def epoch(self, log: list[dict]) -> None:
        self._close()
        self.epochs, last = len(log), log[-1]
        best = ", the best so far" if last["best"] else ""
        figure = f"NDCG@10 {last['ndcg@10']:.4f}" if "ndcg@10" in last else f"AUC {last['auc']:.4f}"  # of a recommender, of a ranker
        print(
            f"epoch {last['epoch']:>3}  loss {last['loss']:.4f}  validation {figure}  {last['seconds']:.1f} s{best}",
            file=sys.stderr,
            flush=True,
        )

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=None)
        self.bar.start()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Clock(Listener):
    """Passes everything on and adds up the seconds of each stage, named by its first word, over interruptions as well."""

    def __init__(self, listener: Listener):
        self.listener, self.seconds, self.path = listener, {}, None
        self.name, self.since = None, time.perf_counter()

    def keep_at(self, path: Path) -> None:
        self.path = path
        with suppress(OSError, ValueError, AttributeError):
            for name, value in json.loads(path.read_text(encoding="utf-8")).items():
                self.seconds[name] = self.seconds.get(name, 0.0) + value

    def stage(self, text: str) -> None:
        self._add()
        self.name = text.split()[0]
        self.listener.stage(text)

    def step(self, number: int, of: int, loss: float) -> None:
        self.listener.step(number, of, loss)

    def epoch(self, log: list[dict]) -> None:
        self._add()
        self.listener.epoch(log)

    def _add(self) -> None:
        now = time.perf_counter()
        if self.name:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self.since
        self.since = now
        if self.path:
            with suppress(OSError):  # a lost figure is no reason to lose the fit
                self.path.write_text(json.dumps(self.seconds), encoding="utf-8")
