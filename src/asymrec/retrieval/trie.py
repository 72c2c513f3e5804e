"""The codes of a catalogue as a tree of prefixes: what may follow when an item's codes are written one after another.

The idea of STATIC (arXiv 2602.22647), a prefix tree flattened to a compressed sparse matrix, with a matrix for each level instead of
one for all: items sorted by their codes make every level a sorted array of distinct prefixes, and a node's children a range of the
level below. The tree is two arrays a level, built by one sort. Nodes are numbered along each level in the order of their codes.

Sorted are words of 64 bits that hold as many codes as they have room for: for codes of 256 codewords, eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asymrec.errors import RunError, one_line
from asymrec.files import atomic, recover


class Trie:
    """All prefixes of the items' codes.

    Args:
        codes: int [n, H], not negative; items may share their codes.
        rows: int [n], ascending, the items' rows in the catalogue where `codes` are only some of them; by default 0 .. n-1.
        whole: the trie of the whole catalogue, where `codes` are only some of them and it matters what could follow without that.
    Raises ValueError: no codes, not integers, negative ones, rows that do not fit.

    depth: H. Level 0 is the root alone, level H are the leaves.
    tokens[level]: unsigned int [nodes of level + 1], the last code of each prefix of level + 1 codes.
    starts[level]: int32 (int64 from 2^31 nodes on) [nodes of level + 1]: the children of node i, on the next level, are starts[i] up to
    starts[i + 1]. starts[H] are those of each leaf's items in `rows`, ascending within a leaf.
    whole, numbers[level]: the trie of the whole catalogue, this one by default, and the number there of each node, int64 [nodes of level].
    """

    def __init__(self, codes: Any, rows: Any = None, whole: Trie | None = None):
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size or codes.min() < 0:
            raise ValueError(f"codes must be integers from 0 [items, n_codes], not {codes.dtype} {list(codes.shape)}")
        n = len(codes)
        kind = np.int32 if n < 1 << 31 else np.int64
        rows = np.arange(n, dtype=kind) if rows is None else np.asarray(rows, np.int64)
        if len(rows) != n or (np.diff(rows) <= 0).any():
            raise ValueError(f"rows must be ascending, one for each of {n} items")
        order, columns = _sorted(codes)
        self.tokens: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        new = np.arange(n) == 0  # where a prefix is another one than the line before's
        first = np.zeros(1, np.int64)
        for column in columns:
            new[1:] |= column[1:] != column[:-1]
            number = np.cumsum(new, dtype=kind)
            self.starts.append(np.append(number[first] - 1, number[-1]))
            first = np.flatnonzero(new)
            self.tokens.append(column[first])
        self.starts.append(np.append(first, n).astype(kind))
        self.rows = rows[order]
        self._whole = whole

    @property
    def whole(self) -> Trie:
        return self._whole or self

    @cached_property
    def numbers(self) -> list[np.ndarray]:
        if self._whole is None:
            return [np.arange(len(starts) - 1) for starts in self.starts[:-1]]
        some, numbers = self.rows, []  # an item below each node
        for level in reversed(range(self.depth)):
            some = some[self.starts[level + 1][:-1]]
            numbers.append(self.whole.prefixes[some[self.starts[level][:-1]], level])
        return numbers[::-1]

    @property
    def depth(self) -> int:
        return len(self.tokens)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Of each level: all its codes are below this."""
        return tuple(int(tokens.max()) + 1 for tokens in self.tokens)

    @cached_property
    def single(self) -> list[np.ndarray]:
        """single[level]: bool [nodes of level], below which nodes there is one id alone."""
        below = np.ones(len(self), bool)
        found = []
        for starts in self.starts[-2::-1]:
            below = (np.diff(starts) == 1) & below[starts[:-1]]
            found.append(below)
        return found[::-1]

    def __len__(self) -> int:
        """How many distinct ids there are."""
        return len(self.tokens[-1])

    def children(self, level: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may follow nodes (int [m], numbers on `level`): for each child, int64 [c], which of the m it belongs to and its number
        on the next level, in the order of nodes and of codes."""
        starts, stops = (self.starts[level][nodes + end].astype(np.int64) for end in (0, 1))
        counts = stops - starts
        owners = np.repeat(np.arange(len(nodes)), counts)
        return owners, np.arange(len(owners)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)

    @cached_property
    def prefixes(self) -> np.ndarray:
        """int64 [n, H]: of each item, in the order of `rows` ascending, which node each of its codes comes after, on that code's level."""
        nodes = np.repeat(np.arange(len(self)), np.diff(self.starts[-1]))
        out = np.empty((len(nodes), self.depth), np.int64)
        for level in reversed(range(self.depth)):
            nodes = np.repeat(np.arange(len(self.starts[level]) - 1), np.diff(self.starts[level]))[nodes]
            out[:, level] = nodes
        return out[np.argsort(self.rows, kind="stable")]

    def items(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of leaves (int [m], numbers on the last level): for each item which of the m it belongs to, and its row."""
        owners, places = self.children(self.depth, leaves)
        return owners, self.rows[places]

    def save(self, folder: str | Path) -> None:
        """Write the arrays to a folder, whole or not at all. Raises RunError where it cannot be written."""
        with atomic(folder) as temporary:
            temporary.mkdir()
            for level, tokens in enumerate(self.tokens):
                np.save(temporary / f"tokens{level}.npy", tokens, allow_pickle=False)
            for level, starts in enumerate(self.starts):
                np.save(temporary / f"starts{level}.npy", starts, allow_pickle=False)
            np.save(temporary / "rows.npy", self.rows, allow_pickle=False)

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> Trie:
        """Read what `save` wrote; with mmap the arrays stay on the disk until they are touched. Raises RunError: damaged or missing."""
        folder, trie = Path(folder), cls.__new__(cls)
        trie._whole = None
        recover(folder)
        name = "rows.npy"

        def read(file: str) -> np.ndarray:
            nonlocal name
            name = file
            return np.load(folder / file, mmap_mode="r" if mmap else None, allow_pickle=False)

        try:
            trie.rows = read("rows.npy")
            depth = len(list(folder.glob("tokens*.npy")))
            trie.tokens = [read(f"tokens{level}.npy") for level in range(depth)]
            trie.starts = [read(f"starts{level}.npy") for level in range(depth + 1)]
            nodes = [1, *map(len, trie.tokens), len(trie.rows)]
            if not depth or any(len(s) != own + 1 or s[0] or s[-1] != below for s, own, below in zip(trie.starts, nodes, nodes[1:])):
                raise ValueError("the lengths do not agree")
        except (OSError, ValueError, IndexError, EOFError) as error:
            raise RunError(f"{folder / name}: damaged or missing ({one_line(error)})") from None
        return trie


def _sorted(codes: np.ndarray) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The stable order of lines of codes [n, H], and the columns in that order, each in the smallest type that holds it."""
    widths = [max(1, int(largest).bit_length()) for largest in codes.max(0)]
    words, room = [], 0  # of a word: its codes' columns
    for place, width in enumerate(widths):
        if width > room:
            words.append([])
            room = 64
        words[-1].append(place)
        room -= width
    keys = []
    for places in words:
        key = codes[:, places[0]].astype(np.uint64)
        for place in places[1:]:
            key <<= np.uint64(widths[place])
            key |= codes[:, place].astype(np.uint64)
        keys.append(key)
    order = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])

    def columns() -> Iterator[np.ndarray]:
        for key, places in zip(keys, words):
            key = key[order]
            shift = sum(widths[place] for place in places)
            for place in places:
                shift -= widths[place]
                part = (key >> np.uint64(shift)) & np.uint64((1 << widths[place]) - 1)
                yield part.astype(np.min_scalar_type((1 << widths[place]) - 1))

    return order, columns()
