"""Identical ids: finding them, and giving each item its own.

An item's id is its row of codes. Items with an identical id cannot be told apart by a model that generates ids. They keep the order
of rows: the first keeps its codes, each later one gets the first alternative that no item has, the least loss first. The result
depends on the codes and vectors alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from asymrec.errors import QuantizerError

LEADERS = 32  # different vectors of one id that each get an enumeration of their own


def identical(codes: np.ndarray) -> list[np.ndarray]:
    """Groups of rows with an identical id, each ascending, by their first row; ids that one row has are left out."""
    hashed = hashes(codes)
    order = np.argsort(hashed, kind="stable")
    ranked = hashed[order]
    same = ranked[1:] == ranked[:-1]
    starts = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)) == -1) + 1
    groups = []
    for start, end in zip(starts, ends):
        rows = order[start:end]
        ids: dict[bytes, list[int]] = {}  # an equal hash is not yet an equal id
        for row in rows:
            ids.setdefault(codes[row].tobytes(), []).append(row)
        groups += [np.array(members) for members in ids.values() if len(members) > 1]
    return sorted(groups, key=lambda rows: rows[0])


def make_distinct(
    codes: np.ndarray, vectors: np.ndarray, alternatives: Callable[[np.ndarray, np.ndarray], Iterator[Sequence[int]]], remedy: str
) -> np.ndarray:
    """A copy of the codes [n, h] in which no two rows are alike; `alternatives(vector, codes)` yields further ids, best first.
    remedy: what the error says would help.

    Seconds at 1 M items: one sort of 64-bit hashes, then a loop over the items to be changed only.
    Raises QuantizerError: there are not enough ids.
    """
    groups = identical(codes)
    codes = codes.copy()
    if not groups:
        return codes
    taken, fresh, factors = np.sort(hashes(codes)), set(), _factors(codes.shape[1])

    def held(hashed: np.uint64) -> bool:
        place = taken.searchsorted(hashed)
        return place < len(taken) and taken[place] == hashed

    for rows in groups:
        enumerations: dict[int, Iterator[Sequence[int]]] = {}  # by leader: items of the same vector go on where the last one stopped
        for row, leader in sorted(_leaders(rows, vectors)):
            if leader not in enumerations:
                enumerations[leader] = alternatives(vectors[leader], codes[rows[0]])
            if (free := _first_free(enumerations[leader], held, fresh, factors)) is None:
                raise QuantizerError(f"{len(codes)} items cannot have distinct ids: {remedy}")
            codes[row] = free
    return codes


def join(
    codes: np.ndarray,
    hashed: np.ndarray,
    vectors: np.ndarray,
    alternatives: Callable[[np.ndarray, np.ndarray], Iterator[Sequence[int]]],
    remedy: str,
) -> np.ndarray:
    """A copy of the codes [m, h] of items that join a catalogue: no row is one that is there already, no two are alike.

    An item whose id is taken gets the first alternative that is free. hashed: uint64 [n], `hashes` of the catalogue's codes. vectors
    [m, d], alternatives, remedy: as in `make_distinct`. Raises QuantizerError: there are not enough ids.
    """
    codes, own, fresh, factors = codes.copy(), hashes(codes), set(), _factors(codes.shape[1])
    ranked = np.unique(own)
    near = ranked[np.minimum(ranked.searchsorted(hashed), len(ranked) - 1)] if len(own) else hashed[:0]
    clashes = np.isin(own, near[near == hashed[: len(near)]])
    enumerations: dict[bytes, Iterator[Sequence[int]]] = {}  # items of one vector go on where the last one stopped
    for row in range(len(codes)):
        if not clashes[row] and own[row] not in fresh:
            fresh.add(own[row])
            continue
        same = codes[row].tobytes() + vectors[row].tobytes()
        if same not in enumerations:
            enumerations[same] = alternatives(vectors[row], codes[row])
        if (free := _first_free(enumerations[same], lambda found: (hashed == found).any(), fresh, factors)) is None:
            raise QuantizerError(f"{len(hashed) + len(codes)} items cannot have distinct ids: {remedy}")
        codes[row] = free
    return codes


def _first_free(
    candidates: Iterator[Sequence[int]], held: Callable[[np.uint64], bool], fresh: set[np.uint64], factors: np.ndarray
) -> Sequence[int] | None:
    """The next candidate whose hash is neither `held` nor `fresh`, where it is put; None where there is none."""
    for candidate in candidates:
        hashed = np.asarray(candidate, dtype=np.uint64) @ factors
        if hashed not in fresh and not held(hashed):
            fresh.add(hashed)
            return candidate
    return None


def combinations(parts: Sequence[Iterator[tuple[float, tuple[int, ...]]]]) -> Iterator[tuple[int, ...]]:
    """One choice from each part, joined, in the order of rising total cost when each part's own costs rise. Each comes once."""
    parts = [_Lazy(part) for part in parts]
    first = (0,) * len(parts)
    heap = [(0.0, first, 0)]  # a state is reached only by raising its last raised place, so from one parent
    while heap:
        cost, state, last = heapq.heappop(heap)
        yield tuple(code for part, rank in zip(parts, state) for code in part[rank][1])
        for place in range(last, len(parts)):
            here, after = parts[place][state[place]], parts[place][state[place] + 1]
            if after is not None:
                raised = (*state[:place], state[place] + 1, *state[place + 1 :])
                heapq.heappush(heap, (cost + after[0] - here[0], raised, place))


class _Lazy:
    """An iterator that remembers, read by rank; None past its end."""

    def __init__(self, source: Iterator[tuple[float, tuple[int, ...]]]):
        self.source, self.seen = source, []

    def __getitem__(self, rank: int) -> tuple[float, tuple[int, ...]] | None:
        while len(self.seen) <= rank:
            following = next(self.source, None)
            if following is None:
                return None
            self.seen.append(following)
        return self.seen[rank]


def differ(vectors: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which rows are another vector, not the same one with another rounding (an encoder's last digits depend on the batch)."""
    return np.abs(vectors - other).max(axis=1) > 1e-4 * np.abs(other).max()


def _leaders(rows: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[int, int]]:
    """(row, the first row of its group with the same vector) for each row but the first; after many leaders the last serves all."""
    left = rows
    for count in range(LEADERS):
        if len(left) == 0:
            return
        other = differ(vectors[left], vectors[left[0]])
        if count == LEADERS - 1:
            other[:] = False
        yield from ((int(row), int(left[0])) for row in left[~other] if row != rows[0])
        left = left[other]


def hashes(codes: np.ndarray) -> np.ndarray:
    """uint64 [n]: a random linear form of each row, modulo 2^64."""
    found = np.zeros(len(codes), dtype=np.uint64)
    for column, factor in enumerate(_factors(codes.shape[1])):  # a column at a time: no 64-bit copy of all codes
        found += codes[:, column].astype(np.uint64) * factor
    return found


@cache
def _factors(columns: int) -> np.ndarray:
    return np.random.default_rng(2**31).integers(0, 2**64, size=columns, dtype=np.uint64) | np.uint64(1)
