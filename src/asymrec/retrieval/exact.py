"""Exact retrieval: every item is scored, the k best are kept, no approximation. Knows arrays only, no model.

An item with codes c_1 .. c_H scores the mean over heads of tables[h, c_h], the head's log-probability of the item's own code.
For many queries that is one `embedding_bag` over the transposed tables, 32 queries wide so that a table stays in the processor's
cache; for a few it is a compiled lookup. The k best are kept while chunks of scores are still in cache, so the full matrix
[queries, items] is never held. Order: higher score first, among equal scores the smaller row; -inf means "not allowed".

Arrays in are numpy or torch, arrays out are numpy.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

BLOCK = 32  # queries scored together: two AVX-512 vectors, and a table of 48 * 256 lines (1.5 MB) stays in cache
GROUP = 256  # queries whose tables are transposed at once, so that items' codes are read once for all of them
FEW = 8  # queries below which the compiled lookup beats embedding_bag
CHUNK = 8192  # items scored before their scores are offered: 1 MB a block of queries


def score_codes(tables: Any, codes: Any) -> np.ndarray:
    """Mean over heads of tables[b, h, codes[i, h]].

    tables: float [b, H, K]; codes: int [n, H], each below K. Returns float32 [b, n].
    """
    tables = _tables(tables)
    b, heads, codewords = tables.shape
    codes = _codes(codes, (codewords,) * heads)
    out = np.empty((b, len(codes)), np.float32)
    scorer = _CodeScorer(codes, heads, codewords, b)
    for group in range(0, b, GROUP):
        scorer.use(tables[group : group + GROUP])
        for start in range(0, len(codes), CHUNK):
            stop = min(start + CHUNK, len(codes))
            for query, scores in scorer(slice(start, stop)):
                out[group + query : group + query + scores.shape[1], start:stop] = scores.T
    return out


def top_k(scores: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of each line of scores [b, n]: rows int32 [b, k], scores float32 [b, k], best first.

    Among equal scores the smaller row comes first. Where fewer than k scores are above -inf: row -1, score -inf.
    Raises ValueError: NaN among the scores.
    """
    from asymrec.retrieval import kernels

    scores = _floats(scores, 2, "scores")
    best = _Best(len(scores), k)
    if not kernels.keep_lines(scores, best.scores, best.rows):
        raise ValueError("NaN among the scores")
    return best.lists()


def search_dense(
    states: Any, items: Any, k: int, exclude: Any = None, only: Any = None, deny: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of highest inner product with each state.

    states: float [b, d]; items: float [n, d]; the rest and the result as in `CodeIndex.search`.
    """
    states, items = _floats(states, 2, "states"), _floats(items, 2, "items")
    if states.shape[1] != items.shape[1]:
        raise ValueError(f"states are {states.shape[1]} wide, items {items.shape[1]}")
    rows = _candidates(len(items), only, deny)
    best = _Best(len(states), k, exclude, len(items))
    items, queries = torch.from_numpy(items), torch.from_numpy(states).T
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        best.offer((items[_run(part)] @ queries).numpy(), part)
    return best.lists()


class CodeIndex:
    """The codes of a catalogue, ready to be searched exactly.

    codes: int [n, H]; codebook_sizes: H sizes, code h of every item is below codebook_sizes[h]. Held as uint8 or uint16.
    """

    def __init__(self, codes: Any, codebook_sizes: tuple[int, ...]):
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        self.codes = _codes(codes, self.codebook_sizes)

    def __len__(self) -> int:
        return len(self.codes)

    def search(self, tables: Any, k: int, exclude: Any = None, only: Any = None, deny: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query by the mean over heads of tables[b, h, codes[i, h]].

        tables: float [b, H, K], K at least the largest codebook size. exclude: CSR (`.offsets` [b + 1], `.items`), the rows that
        query b must not get. only, deny: rows that all queries may, or may not, get.
        Returns rows int32 [b, k] (-1 where fewer than k remain) and scores float32 [b, k] (there -inf), best first.
        Raises ValueError: shapes that do not fit, rows out of range, NaN among the scores.
        """
        tables = _tables(tables)
        b, heads, codewords = tables.shape
        largest = max(self.codebook_sizes)
        if heads != len(self.codebook_sizes) or codewords < largest:
            raise ValueError(f"tables [b, {heads}, {codewords}] do not fit {len(self.codebook_sizes)} codebooks of up to {largest}")
        rows = _candidates(len(self), only, deny)
        scorer = _CodeScorer(self.codes, heads, codewords, b)

        def collect(rows: np.ndarray) -> _Best:
            best = _Best(b, k, exclude, len(self))
            for group in range(0, b, GROUP):
                scorer.use(tables[group : group + GROUP])
                for start in range(0, len(rows), CHUNK):
                    part = rows[start : start + CHUNK]
                    for query, scores in scorer(_run(part)):
                        best.offer(scores, part, group + query)
            return best

        threads = torch.get_num_threads() if b < FEW and rows.size >= 16 * CHUNK else 1  # embedding_bag has threads of its own
        if threads == 1:
            return collect(rows).lists()
        with ThreadPoolExecutor(threads) as pool:
            return _merge([best.lists() for best in pool.map(collect, np.array_split(rows, threads))])


class _CodeScorer:
    """Scores runs of items for up to GROUP queries: yields (first query, scores [items, queries]) block by block."""

    def __init__(self, codes: np.ndarray, heads: int, codewords: int, queries: int):
        self.codes, self.heads, self.few = codes, np.float32(heads), queries < FEW
        self.base = np.arange(0, heads * codewords, codewords, dtype=np.int32)
        # the blocks of a group share one memory: new pages for each would cost more than the transposition
        self.memory = [] if self.few else [torch.zeros(heads * codewords, BLOCK) for _ in range(0, min(queries, GROUP), BLOCK)]

    def use(self, tables: np.ndarray) -> None:
        if self.few:
            self.tables = tables / self.heads
            return
        from asymrec.retrieval import kernels

        self.blocks = []
        for first, memory in zip(range(0, len(tables), BLOCK), self.memory):
            block = tables[first : first + BLOCK].reshape(-1, self.base.size * tables.shape[2])
            kernels.transpose(block, self.heads, memory.numpy())
            self.blocks.append((first, len(block), memory))

    def __call__(self, run: slice | np.ndarray):
        from asymrec.retrieval import kernels

        codes = self.codes[run]
        if self.few:
            scores = np.empty((len(codes), len(self.tables)), np.float32)
            kernels.lookup(self.tables, codes, scores)
            yield 0, scores
        else:
            lines = torch.from_numpy(codes + self.base)
            for first, width, table in self.blocks:
                yield first, embedding_bag(lines, table, mode="sum").numpy()[:, :width]


class _Best:
    """The k best of each of b queries so far. Rows must be offered in ascending order."""

    def __init__(self, b: int, k: int, exclude: Any = None, n: int = 0):
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self.scores = np.full((b, k), -np.inf, np.float32)
        self.rows = np.full((b, k), -1, np.int32)
        self.offsets, self.excluded = np.zeros(1, np.int64), np.zeros(0, np.int64)
        if exclude is not None:
            self.offsets, items = np.ascontiguousarray(exclude.offsets, np.int64), np.asarray(exclude.items, np.int64)
            if len(self.offsets) != b + 1:
                raise ValueError(f"exclude has {len(self.offsets) - 1} lists for {b} queries")
            # one sort by (query, row) instead of one sort a query
            queries = np.repeat(np.arange(b), np.diff(self.offsets))
            items = items[self.offsets[0] : self.offsets[-1]]
            self.offsets = self.offsets - self.offsets[0]
            self.excluded = np.sort(queries * np.int64(n) + _in_range(items, n, "exclude")) - queries * np.int64(n)

    def offer(self, scores: np.ndarray, rows: np.ndarray, query: int = 0) -> None:
        """scores [items, queries] of the rows [items], for the queries from `query` on."""
        from asymrec.retrieval import kernels

        span = slice(query, query + scores.shape[1])
        offsets = self.offsets[query : query + scores.shape[1] + 1] if len(self.offsets) > 1 else self.offsets
        if not kernels.keep(scores, rows, self.scores[span], self.rows[span], offsets, self.excluded):
            raise ValueError("NaN among the scores")

    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        from asymrec.retrieval import kernels

        kernels.order(self.scores, self.rows)
        return self.rows, self.scores


def _merge(lists: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = (np.concatenate(parts, axis=1) for parts in zip(*lists))
    best = np.lexsort((rows, -scores), axis=1)[:, : lists[0][0].shape[1]]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)


def _candidates(n: int, only: Any, deny: Any) -> np.ndarray:
    """The rows that may be found, ascending, int32."""
    allowed = np.full(n, only is None)
    if only is not None:
        allowed[_in_range(only, n, "only")] = True
    if deny is not None:
        allowed[_in_range(deny, n, "deny")] = False
    return np.flatnonzero(allowed).astype(np.int32)


def _in_range(rows: Any, n: int, name: str) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    if rows.size and not (rows.min() >= 0 and rows.max() < n):
        raise ValueError(f"{name} holds rows outside 0 .. {n - 1}")
    return rows


def _run(rows: np.ndarray) -> slice | np.ndarray:
    """Ascending rows as a slice where there are no gaps, so that numpy and torch need not copy."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


def _floats(values: Any, dims: int, name: str) -> np.ndarray:
    values = torch.as_tensor(values).detach().to("cpu", torch.float32).contiguous().numpy()
    if values.ndim != dims:
        raise ValueError(f"{name} must have {dims} dimensions, not {values.ndim}")
    return values


def _tables(tables: Any) -> np.ndarray:
    return _floats(tables, 3, "tables")


def _codes(codes: Any, sizes: tuple[int, ...]) -> np.ndarray:
    """Codes [n, H] in the smallest type that holds them; ValueError where one does not fit its codebook."""
    codes = np.asarray(codes.detach().cpu() if isinstance(codes, torch.Tensor) else codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise ValueError(f"codes must be [n, {len(sizes)}], not {list(codes.shape)}")
    if codes.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, not {codes.dtype}")
    if len(codes) and (codes.min() < 0 or (codes.max(axis=0) >= np.asarray(sizes)).any()):
        raise ValueError("a code lies outside its codebook")
    return np.ascontiguousarray(codes, np.uint8 if max(sizes) <= 256 else np.uint16 if max(sizes) <= 65536 else np.int32)
