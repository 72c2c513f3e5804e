"""The codes of a catalogue as a tree of prefixes: what may follow when an item's codes are written one after another.

Items sorted by their codes make every level of the tree a sorted array of distinct prefixes, and a node's children a range of the
level below: the tree is two arrays a level, built by one sort. Nodes are numbered along each level in the order of their codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Trie:
    """All prefixes of the items' codes.

    Args:
        codes: int [n, H]; items may share their codes.
        rows: int [n], ascending, the items' rows in the catalogue where `codes` are only some of them; by default 0 .. n-1.
    Raises ValueError: no codes, not integers, rows that do not fit.

    depth: H. tokens[level]: int64 [nodes of level + 1], the last code of each prefix of level + 1 codes. Level 0 is the root alone.
    """

    def __init__(self, codes: Any, rows: Any = None):
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size:
            raise ValueError(f"codes must be integers [items, n_codes], not {codes.dtype} {list(codes.shape)}")
        rows = np.arange(len(codes)) if rows is None else np.asarray(rows, np.int64)
        if len(rows) != len(codes) or (np.diff(rows) <= 0).any():
            raise ValueError(f"rows must be ascending, one for each of {len(codes)} items")
        self.depth = codes.shape[1]
        order = np.lexsort(codes.T[::-1])
        codes = codes[order]
        self.tokens: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []  # of each level: where a node's children begin on the next
        new = np.arange(len(codes)) == 0  # where a prefix is another one than the line before's
        first = np.zeros(1, np.int64)
        for column in codes.T:
            new[1:] |= column[1:] != column[:-1]
            self._starts.append(np.append((np.cumsum(new) - 1)[first], np.count_nonzero(new)))
            first = np.flatnonzero(new)
            self.tokens.append(column[first].astype(np.int64))
        self._starts.append(np.append(first, len(codes)))
        self._rows = rows[order]

    def __len__(self) -> int:
        """How many distinct ids there are."""
        return len(self.tokens[-1])

    def children(self, level: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may follow nodes (int [m], numbers on `level`): for each child, int64 [c], which of the m it belongs to and its number
        on the next level, in the order of nodes and of codes."""
        starts = self._starts[level]
        counts = starts[nodes + 1] - starts[nodes]
        owners = np.repeat(np.arange(len(nodes)), counts)
        return owners, np.arange(len(owners)) + np.repeat(starts[nodes] - (np.cumsum(counts) - counts), counts)

    def items(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of leaves (int [m], numbers on the last level): for each item which of the m it belongs to, and its row."""
        owners, places = self.children(self.depth, leaves)
        return owners, self._rows[places]
