"""Graph-constrained decoding, RPG's way to score a part of the catalogue only (arXiv 2506.05781). Knows arrays only, no model.

Every item is a node and points to the items whose codes are most like its own. A search starts at a few items drawn at random, scores
all that they point to, keeps the best, and goes on from these; only items are ever scored, never a combination of codes that no item
has. The cost is that of the items visited, whatever the size of the catalogue; what is found is an approximation.

What differs from the paper: the items kept from one step compete with those of the next, and what a walk has scored on its way may be
returned, not only what it keeps at the end. All queries start at the same items, so a query's answer does not depend on its batch.

Arrays in are numpy or torch, arrays out are numpy.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from asymrec.retrieval.exact import Barred, as_tables, floats, shares
from asymrec.retrieval.index import CodeIndex
from asymrec.threads import spread

AT_ONCE = 1024  # items whose neighbours are looked for together


class CodeGraph:
    """Items with codes, and for each its nearest neighbours.

    Args:
        index: the codes of the catalogue, n items.
        neighbours: int [n, k], rows of the index.
    """

    def __init__(self, index: CodeIndex, neighbours: Any):
        neighbours = np.asarray(neighbours)
        if neighbours.ndim != 2 or len(neighbours) != len(index):
            raise ValueError(f"neighbours must be [{len(index)}, k], not {list(neighbours.shape)}")
        if neighbours.size and not (neighbours.min() >= 0 and neighbours.max() < len(index)):
            raise ValueError(f"neighbours outside 0 .. {len(index) - 1}")
        self.index, self.codes, self.neighbours = index, index.codes, np.ascontiguousarray(neighbours, np.int32)

    @classmethod
    def build(cls, index: CodeIndex, similarity: Any, k: int) -> CodeGraph:
        """Each item's k most similar items; n^2 H look-ups, exact.

        similarity: float [H, K, K], how alike two words of codebook h are; two items are as alike as their words are on average. The
        inner products of code embeddings, as in the paper, or an identity matrix for each codebook: the number of codes shared.
        k: at least 1; n - 1 where there are not more.
        """
        if k < 1:
            raise ValueError(f"an item needs at least 1 neighbour, not {k}")
        similarity, n, codes = floats(similarity, 3, "similarity"), len(index), index.codes
        if k >= n - 1:
            everyone = np.arange(n, dtype=np.int32)
            return cls(index, np.stack([np.delete(everyone, i) for i in range(n)]))
        heads = np.arange(similarity.shape[0])
        found = []
        for start in range(0, n, AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, n))
            itself = SimpleNamespace(offsets=np.arange(len(rows) + 1), items=rows)
            found.append(index.search(similarity[heads, codes[rows]], k, exclude=itself)[0])
        return cls(index, np.concatenate(found))

    def search(
        self,
        tables: Any,
        k: int,
        beam: int,
        steps: int,
        seed: int = 0,
        exclude: Any = None,
        only: Any = None,
        deny: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k best of the items that a walk visits, by the mean over heads of tables[b, h, codes[i, h]].

        tables: float [b, H, K]. beam: items kept from step to step, and drawn by the seed to start with. steps: how often their
        neighbours are scored; a walk that finds nothing better ends earlier. exclude, only, deny: as in `CodeIndex.search`; a walk
        may pass items that must not be found.
        Returns rows int32 [b, k] (-1 where fewer than k were visited), scores float32 [b, k] (there -inf), best first, and the number
        of items visited int32 [b]. Raises ValueError: shapes that do not fit, rows out of range, NaN among the tables.
        """
        from asymrec.retrieval import kernels

        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        tables, start = self._ready(tables, beam, steps, seed)
        b, n = len(tables), len(self.index)
        barred = Barred.of(exclude, b, n)
        allowed = self.index.allowed(only, deny).mask()
        rows, scores, visited = np.full((b, k), -1, np.int32), np.full((b, k), -np.inf, np.float32), np.empty(b, np.int32)

        def part(queries: slice) -> None:
            own, lists = barred.of_queries(queries), (scores[queries], rows[queries])
            nodes = self.codes, self.neighbours, start, steps
            kernels.search_graph(tables[queries], *nodes, own.offsets, own.rows, allowed, *lists, visited[queries])
            kernels.order(*lists)

        spread(part, shares(b))
        return rows, scores, visited

    def scores(self, tables: Any, beam: int, steps: int, seed: int = 0) -> np.ndarray:
        """The same walks: float32 [b, n], -inf for the items that were not visited or are retired."""
        from asymrec.retrieval import kernels

        tables, start = self._ready(tables, beam, steps, seed)
        out = np.full((len(tables), len(self.index)), -np.inf, np.float32)
        spread(
            lambda queries: kernels.score_graph(tables[queries], self.codes, self.neighbours, start, steps, out[queries]),
            shares(len(tables)),
        )
        out[:, ~self.index.alive.mask()] = -np.inf
        return out

    def _ready(self, tables: Any, beam: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Tables divided by the number of heads, and the rows to start from."""
        tables, sizes = as_tables(tables), self.index.codebook_sizes
        if tables.shape[1] != len(sizes) or tables.shape[2] < max(sizes):
            raise ValueError(f"tables {list(tables.shape)} do not fit {len(sizes)} codebooks of up to {max(sizes)}")
        if np.isnan(tables).any():
            raise ValueError("NaN among the tables")
        if beam < 1 or steps < 0:
            raise ValueError(f"a walk needs a beam of at least 1 and no negative steps, not {beam} and {steps}")
        return tables / np.float32(len(sizes)), np.random.default_rng(seed).permutation(len(self.index))[:beam].astype(np.int32)
