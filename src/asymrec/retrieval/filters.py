"""Which items may be found, one bit an item. Predicates are made once and combined for nothing:

    in_stock & (category == 7) & ~adult

is three bitmaps and two passes over n / 64 words. A search reads the words beside the codes, so a filter costs it no time.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Bitmap:
    """A set of item rows. Immutable; `&`, `|`, `~` and `-` give new ones.

    Args:
        allowed: bool [n], in row order: a predicate on the item table, `stock > 0`, `counts >= 5`.

    words: uint64 [ceil(n / 64)], row r is bit r % 64 of word r // 64; bits from n on are 0.
    """

    __slots__ = ("n", "words")

    def __init__(self, allowed: Any):
        allowed = np.asarray(allowed)
        if allowed.ndim != 1 or allowed.dtype != np.bool_:
            raise ValueError(f"a predicate must be bool [n], not {allowed.dtype} {list(allowed.shape)}")
        self.n = len(allowed)
        packed = np.zeros(-(-self.n // 64) * 8, np.uint8)
        packed[: -(-self.n // 8)] = np.packbits(allowed, bitorder="little")
        self.words = packed.view("<u8")

    @classmethod
    def of_rows(cls, rows: Any, n: int, name: str = "rows") -> Bitmap:
        """The given rows (int, any order) of n. Raises ValueError, with what they are called: a row outside 0 .. n - 1."""
        allowed = np.zeros(n, np.bool_)
        allowed[in_range(rows, n, name)] = True
        return cls(allowed)

    @classmethod
    def all(cls, n: int) -> Bitmap:
        return cls(np.ones(n, np.bool_))

    @classmethod
    def _of(cls, words: np.ndarray, n: int) -> Bitmap:
        made = cls.__new__(cls)
        made.words, made.n = words, n
        return made

    def __len__(self) -> int:
        return self.n

    def __and__(self, other: Bitmap) -> Bitmap:
        return self._of(self.words & self._fitting(other).words, self.n)

    def __or__(self, other: Bitmap) -> Bitmap:
        return self._of(self.words | self._fitting(other).words, self.n)

    def __sub__(self, other: Bitmap) -> Bitmap:
        return self._of(self.words & ~self._fitting(other).words, self.n)

    def __invert__(self) -> Bitmap:
        return self.all(self.n) - self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitmap) and self.n == other.n and bool((self.words == other.words).all())

    __hash__ = None

    def mask(self) -> np.ndarray:
        """bool [n]."""
        return np.unpackbits(self.words.view(np.uint8), count=self.n, bitorder="little").view(np.bool_)

    def rows(self) -> np.ndarray:
        """int32, ascending."""
        return np.flatnonzero(self.mask()).astype(np.int32)

    def count(self) -> int:
        """How many rows are in it."""
        return int(np.bitwise_count(self.words).sum())

    def resized(self, n: int) -> Bitmap:
        """The same rows of n, at least as many as now: the new ones are not in it."""
        if n < self.n:
            raise ValueError(f"a bitmap of {self.n} rows cannot shrink to {n}")
        words = np.zeros(-(-n // 64), np.uint64)
        words[: len(self.words)] = self.words
        return self._of(words, n)

    def _fitting(self, other: Bitmap) -> Bitmap:
        if other.n != self.n:
            raise ValueError(f"bitmaps of {self.n} and {other.n} rows do not go together")
        return other


def in_range(rows: Any, n: int, name: str) -> np.ndarray:
    """int64 rows. Raises ValueError: one outside 0 .. n - 1."""
    rows = np.asarray(rows, np.int64)
    if rows.size and not (rows.min() >= 0 and rows.max() < n):
        raise ValueError(f"{name} holds rows outside 0 .. {n - 1}")
    return rows


def as_bitmap(rows: Any, n: int, name: str) -> Bitmap:
    """A bitmap as it is, if of n rows; rows as a bitmap. Raises ValueError."""
    if isinstance(rows, Bitmap):
        if rows.n != n:
            raise ValueError(f"{name} is a bitmap of {rows.n} rows, the catalogue has {n}")
        return rows
    return Bitmap.of_rows(rows, n, name)
