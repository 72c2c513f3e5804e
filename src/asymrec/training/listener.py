"""How a fit tells what it does."""

from __future__ import annotations


class Listener:
    """Told of a fit's progress; this one says nothing. The command line has one that draws it."""

    def stage(self, text: str) -> None:
        """A part of the fit begins."""

    def step(self, number: int, of: int, loss: float) -> None:
        """Step `number` of an epoch's `of` is done; `loss` is the epoch's mean so far."""

    def epoch(self, log: list[dict]) -> None:
        """An epoch is done; the log has a dict for each, the last is the newest."""
