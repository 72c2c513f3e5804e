"""Exact retrieval: every item is scored, the k best are kept, no approximation. Knows arrays only, no model.

An item with codes c_1 .. c_H scores the mean over heads of tables[h, c_h], the head's log-probability of the item's own code.
For many queries that is one `embedding_bag` over the transposed tables, 32 queries wide so that a table stays in the processor's
cache; for a few it is a compiled lookup. The k best are kept while chunks of scores are still in cache, so the full matrix
[queries, items] is never held. Order: higher score first, among equal scores the smaller row; -inf means "not allowed".

Arrays in are numpy or torch, arrays out are numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from asymrec.retrieval.filters import Bitmap, as_bitmap, in_range
from asymrec.threads import spread

BLOCK = 32  # queries scored together: two AVX-512 vectors, and a table of 48 * 256 lines (1.5 MB) stays in cache
GROUP = 256  # queries whose tables are transposed at once, so that items' codes are read once for all of them
FEW = 8  # queries below which the compiled lookup beats embedding_bag
CHUNK = 8192  # items scored before their scores are offered: 1 MB a block of queries


def score_codes(tables: Any, codes: Any) -> np.ndarray:
    """Mean over heads of tables[b, h, codes[i, h]].

    tables: float [b, H, K]; codes: int [n, H], each below K. Returns float32 [b, n].
    """
    tables = as_tables(tables)
    b, heads, codewords = tables.shape
    codes = as_codes(codes, (codewords,) * heads)
    out = np.empty((b, len(codes)), np.float32)

    def fill(queries: slice) -> None:
        part = out[queries]
        for query, items, scores in _code_scores(tables[queries], codes, np.arange(len(codes), dtype=np.int32)):
            part[query : query + scores.shape[1], items[0] : items[-1] + 1] = scores.T

    spread(fill, shares(b))
    return out


def top_k(scores: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of each line of scores [b, n]: rows int32 [b, k], scores float32 [b, k], best first.

    Among equal scores the smaller row comes first. Where fewer than k scores are above -inf: row -1, score -inf.
    Raises ValueError: NaN among the scores.
    """
    from asymrec.retrieval import kernels

    scores = floats(scores, 2, "scores")
    best = Best(len(scores), k)
    if not kernels.keep_lines(scores, best.scores, best.rows):
        raise ValueError("NaN among the scores")
    return best.lists()


def search_dense(states: Any, items: Any, k: int, exclude: Any = None, only: Any = None, deny: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The k items of highest inner product with each state.

    states: float [b, d]; items: float [n, d]; the rest and the result as in `CodeIndex.search`.
    """
    states, items = floats(states, 2, "states"), floats(items, 2, "items")
    if states.shape[1] != items.shape[1]:
        raise ValueError(f"states are {states.shape[1]} wide, items {items.shape[1]}")
    rows = allowed_rows(len(items), only, deny)
    best = Best(len(states), k, Barred.of(exclude, len(states), len(items)))
    items, queries = torch.from_numpy(items), torch.from_numpy(states).T
    for part in _chunks(rows):
        best.offer((items[_run(part)] @ queries).numpy(), part)
    return best.lists()


def _code_scores(tables: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (first query, rows [i], scores [i, q]) over all queries, and for each query over ascending rows."""
    from asymrec.retrieval import kernels

    b, heads, codewords = tables.shape
    divisor = np.float32(heads)
    if b < FEW:
        tables = tables / divisor
        for part in _chunks(rows):
            scores = np.empty((len(part), b), np.float32)
            kernels.lookup(tables, codes[_run(part)], scores)
            yield 0, part, scores
        return
    flat, base = tables.reshape(b, heads * codewords), np.arange(0, heads * codewords, codewords, dtype=np.int32)
    # one memory for all groups: new pages for each would cost more than the transposition
    memory = torch.zeros(-(-min(b, GROUP) // BLOCK), heads * codewords, BLOCK)
    for group in range(0, b, GROUP):
        blocks = [(first, flat[first : min(first + BLOCK, group + GROUP)]) for first in range(group, min(group + GROUP, b), BLOCK)]
        for (_, block), table in zip(blocks, memory):
            kernels.transpose(block, divisor, table.numpy())
        for part in _chunks(rows):
            lines = torch.from_numpy(codes[_run(part)] + base)
            for (first, block), table in zip(blocks, memory):
                yield first, part, embedding_bag(lines, table, mode="sum").numpy()[:, : len(block)]


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def shares(b: int) -> list[slice]:
    """Queries for each thread: whole blocks."""
    share = max(1, -(-b // torch.get_num_threads() // BLOCK)) * BLOCK if b >= FEW else FEW
    return [slice(start, min(start + share, b)) for start in range(0, b, share)] or [slice(0, 0)]


class Barred:
    """What each query must not get, as ascending rows in CSR."""

    def __init__(self, offsets: np.ndarray, rows: np.ndarray):
        self.offsets, self.rows = offsets, rows

    @classmethod
    def of(cls, exclude: Any, b: int, n: int) -> Barred:
        if exclude is None:
            return cls(np.zeros(b + 1, np.int64), np.zeros(0, np.int64))
        offsets = np.asarray(exclude.offsets, np.int64)
        if len(offsets) != b + 1:
            raise ValueError(f"exclude has {len(offsets) - 1} lists for {b} queries")
        rows = in_range(exclude.items, n, "exclude")[offsets[0] : offsets[-1]]
        first = np.repeat(np.arange(b) * np.int64(n), np.diff(offsets))
        return cls(offsets - offsets[0], np.sort(first + rows) - first)  # one sort by (query, row) instead of one a query

    def of_queries(self, queries: slice) -> Barred:
        return Barred(self.offsets[queries.start : queries.stop + 1], self.rows)


class Best:
    """The k best of each of b queries so far. Rows must be offered in ascending order."""

    def __init__(self, b: int, k: int, barred: Barred | None = None):
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self.scores = np.full((b, k), -np.inf, np.float32)
        self.rows = np.full((b, k), -1, np.int32)
        self.barred = barred

    def offer(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """scores [i, b] of the rows [i]."""
        from asymrec.retrieval import kernels

        if not kernels.keep(scores, rows, self.scores, self.rows, self.barred.offsets, self.barred.rows):
            raise ValueError("NaN among the scores")

    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        from asymrec.retrieval import kernels

        kernels.order(self.scores, self.rows)
        return self.rows, self.scores


def merge(lists: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = (np.concatenate(parts, axis=1) for parts in zip(*lists))
    best = np.lexsort((rows, -scores), axis=1)[:, : lists[0][0].shape[1]]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)


def allowed_rows(n: int, only: Any, deny: Any) -> np.ndarray:
    """The rows that may be found, ascending, int32; only and deny: rows, a `Bitmap`, or None."""
    allowed = Bitmap.all(n) if only is None else as_bitmap(only, n, "only")
    return (allowed if deny is None else allowed - as_bitmap(deny, n, "deny")).rows()


def _run(rows: np.ndarray) -> slice | np.ndarray:
    """Ascending rows as a slice where there are no gaps, so that numpy and torch need not copy."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


def floats(values: Any, dims: int, name: str) -> np.ndarray:
    values = torch.as_tensor(values).detach().to("cpu", torch.float32).contiguous().numpy()
    if values.ndim != dims:
        raise ValueError(f"{name} must have {dims} dimensions, not {values.ndim}")
    return values


def as_tables(tables: Any) -> np.ndarray:
    return floats(tables, 3, "tables")


def as_codes(codes: Any, sizes: tuple[int, ...]) -> np.ndarray:
    """Codes [n, H] in the smallest type that holds them; ValueError where one does not fit its codebook."""
    codes = np.asarray(codes.detach().cpu() if isinstance(codes, torch.Tensor) else codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise ValueError(f"codes must be [n, {len(sizes)}], not {list(codes.shape)}")
    if codes.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, not {codes.dtype}")
    if len(codes) and (codes.min() < 0 or (codes.max(axis=0) >= np.asarray(sizes)).any()):
        raise ValueError("a code lies outside its codebook")
    return np.ascontiguousarray(codes, np.uint8 if max(sizes) <= 256 else np.uint16 if max(sizes) <= 65536 else np.int32)
