"""Sequences of unequal length in three flat arrays (CSR), as every user's history is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Sequences:
    """n sequences of item rows.

    offsets: int64 [n + 1], from 0 to total. items: int32 [total]. times: int64 [total], or None.
    Sequence i is `items[offsets[i]:offsets[i + 1]]`. The arrays may be memory-mapped and are never changed.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def of(cls, sequences: Iterable, times: Iterable | None = None) -> Sequences:
        """From arrays or lists of item rows, one for each sequence, and times of the same lengths when given."""
        items, offsets = _flat(sequences, np.int32)
        if times is None:
            return cls(offsets, items)
        when, other = _flat(times, np.int64)
        if not np.array_equal(offsets, other):
            raise ValueError("times must have the lengths of the sequences")
        return cls(offsets, items, when)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """int32 [length of sequence i]."""
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"sequence {i} of {n}")
        i %= n
        return self.items[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """int64 [total]: the sequence that each interaction is in."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def first_times(self, n_items: int) -> np.ndarray:
        """int64 [n_items]: when each item was first taken, the largest number where it never was. The sequences have times."""
        first = np.full(n_items, np.iinfo(np.int64).max)
        np.minimum.at(first, self.items, self.times)
        return first

    def take(self, rows: np.ndarray) -> Sequences:
        """The sequences `rows` (int [m]), in that order; rows may come twice."""
        rows = np.asarray(rows, dtype=np.int64)
        return self.between(self.offsets[:-1][rows], self.offsets[1:][rows])

    def last(self, n: int) -> Sequences:
        """Each sequence cut to its last n interactions."""
        if n < 0:
            raise ValueError("n must not be negative")
        starts, stops = self.offsets[:-1], self.offsets[1:]
        return self.between(np.maximum(starts, stops - n), stops)

    def between(self, starts: np.ndarray, stops: np.ndarray) -> Sequences:
        """Sequence i becomes the flat interactions starts[i] up to stops[i] (int64 [m] each, starts <= stops)."""
        lengths = stops - starts
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.arange(offsets[-1])
        places += np.repeat(starts - offsets[:-1], lengths)
        return Sequences(offsets, self.items[places], None if self.times is None else self.times[places])


def _flat(parts: Iterable, kind: type) -> tuple[np.ndarray, np.ndarray]:
    arrays = [np.asarray(part, dtype=kind).reshape(-1) for part in parts]
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return (np.concatenate(arrays) if arrays else np.empty(0, kind)), offsets
