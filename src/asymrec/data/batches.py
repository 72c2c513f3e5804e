"""Batches without padding: unequal histories packed side by side into rows of one width.

Histories are placed by best-fit decreasing: the longest first, each into the fullest row that still has room for it. On
histories of mean length 8 and width 50 a few per cent of the places stay empty, where one history a row leaves more than 80 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asymrec.data.sequences import Sequences


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """n histories in R rows of W places.

    items: int64 [R, W], -1 where empty. segment: int32 [R, W], the history (0 .. n-1) that a place belongs to, -1 where empty.
    position: int32 [R, W], the place inside the history from 0, the oldest kept; 0 where empty.
    row, start, length: int64 [n], where history i is: `items[row[i], start[i]:start[i] + length[i]]`; an empty history has row -1.
    times: int64 [R, W], 0 where empty; None where the sequences have none.
    """

    items: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    row: np.ndarray
    start: np.ndarray
    length: np.ndarray
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def padding(self) -> float:
        """The share of the places that are empty."""
        return 1.0 - float(self.length.sum()) / max(1, self.items.size)

    @property
    def places(self) -> np.ndarray:
        """int64 [total]: where in the flattened rows each kept item stands, history after history, oldest first."""
        first = self.row * self.items.shape[1] + self.start - (np.cumsum(self.length) - self.length)
        return np.repeat(first, self.length) + np.arange(self.length.sum())


def pack(sequences: Sequences, rows: np.ndarray | None, width: int) -> PackedBatch:
    """Pack the sequences `rows` (int [n]; None: all), each cut to its most recent `width` items. Deterministic."""
    offsets, items = sequences.offsets, sequences.items
    rows = np.arange(len(sequences)) if rows is None else np.asarray(rows, dtype=np.int64)
    stops = np.asarray(offsets[1:][rows])
    length = np.minimum(stops - offsets[:-1][rows], width)
    row, start = place(length, width)
    count = int(row.max(initial=-1)) + 1

    total = int(length.sum())
    inside = np.arange(total) - np.repeat(np.cumsum(length) - length, length)
    flat = np.repeat(row * width + start, length) + inside
    kept = np.repeat(stops - length, length) + inside
    packed = PackedBatch(
        items=np.full((count, width), -1, np.int64),
        segment=np.full((count, width), -1, np.int32),
        position=np.zeros((count, width), np.int32),
        row=row,
        start=start,
        length=length,
        times=None if sequences.times is None else np.zeros((count, width), np.int64),
    )
    packed.items.reshape(-1)[flat] = items[kept]
    packed.segment.reshape(-1)[flat] = np.repeat(np.arange(len(rows), dtype=np.int32), length)
    packed.position.reshape(-1)[flat] = inside
    if packed.times is not None:
        packed.times.reshape(-1)[flat] = sequences.times[kept]
    return packed


def place(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where histories of these lengths (int [n], each 0 .. width) go: row and start, int64 [n]; row -1 for an empty one."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if width < 1 or (len(lengths) and not (lengths.min() >= 0 and lengths.max() <= width)):
        raise ValueError(f"lengths must be from 0 to the width {width}")
    row, start = np.full(len(lengths), -1, np.int64), np.zeros(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    order = order[: int((lengths > 0).sum())]
    rows, starts = [], []
    rooms: list[list[int]] = [[] for _ in range(width + 1)]  # room left -> rows with that much
    open_rooms = 0  # bit r is set where rooms[r] is not empty: the tightest fit is the lowest bit from the length up
    count = 0
    for length in lengths[order].tolist():
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            here = rooms[room].pop()
            if not rooms[room]:
                open_rooms ^= 1 << room
        else:
            here, room = count, width
            count += 1
        rows.append(here)
        starts.append(width - room)
        if room > length:
            rooms[room - length].append(here)
            open_rooms |= 1 << (room - length)
    row[order], start[order] = rows, starts
    return row, start


def epoch_batches(sizes: np.ndarray, batch: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows 0 .. n-1 shuffled into batches of about `batch` in the sum of their sizes (int [n]), so that every batch costs the same.

    The same for the same (seed, epoch), whatever was drawn before: a resumed run sees the batches it would have seen.
    """
    if batch < 1:
        raise ValueError("a batch needs a size of at least 1")
    order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    begin = np.cumsum(sizes[order]) - sizes[order]
    return np.split(order, np.flatnonzero(np.diff(begin // batch)) + 1) if len(order) else []
