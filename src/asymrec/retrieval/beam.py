"""Beam search over a trie of real items: an item's codes are written one after another, the best beginnings are kept.

At each level every kept prefix is followed by the codes that some item has there, its score is the sum of the log-probabilities of its
codes, and each query keeps its `width` best prefixes; among equal scores the smaller codes win, so nothing is left to chance. What is
found is always an item, and with as many prefixes kept as the catalogue has it is every item: exhaustive search. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asymrec.retrieval.trie import Trie

Step = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]


def beam_search(trie: Trie, step: Step, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` best ids for each of n queries.

    Args:
        trie: of the catalogue's codes.
        step: called once a level with (parents, tokens) -> float [m, K], log-probabilities of the next code after each of m
            prefixes. parents: int64 [m], which prefix of the call before each one goes on from; tokens: int64 [m], the code that
            was added. At first the prefixes are the n empty ones: parents 0 .. n-1, tokens None. m is n times an equal number;
            prefixes of one query stand together.
        width: prefixes kept for a query, at least 1.
    Returns:
        leaves int64 [n, at most width], numbers on the last level of the trie, best first, -1 where a query has fewer; and their
        scores float32, -inf there.
    """
    if width < 1:
        raise ValueError(f"the beam must be at least 1 wide, not {width}")
    nodes, scores = np.zeros((n, 1), np.int64), np.zeros((n, 1), np.float32)
    parents, tokens = np.arange(n), None
    for level in range(trie.depth):
        ahead = step(parents, tokens)
        alive = np.flatnonzero(nodes >= 0)
        owners, children = trie.children(level, nodes.reshape(-1)[alive])
        owners = alive[owners]
        reached = scores.reshape(-1)[owners] + ahead[owners, trie.tokens[level][children]].astype(np.float32)
        if np.isnan(reached).any():
            raise ValueError("NaN among the log-probabilities")
        chosen, place = _best(owners // nodes.shape[1], reached, n, width)
        shape = n, int(place[:, 1].max(initial=0)) + 1
        nodes, scores, parents = np.full(shape, -1), np.full(shape, -np.inf, np.float32), np.repeat(np.arange(n) * nodes.shape[1], shape[1])
        at = place[:, 0] * shape[1] + place[:, 1]
        nodes.reshape(-1)[at], scores.reshape(-1)[at], parents[at] = children[chosen], reached[chosen], owners[chosen]
        tokens = np.where(nodes < 0, 0, trie.tokens[level][nodes]).reshape(-1)
    best = np.lexsort((nodes, -scores), axis=1)
    return np.take_along_axis(nodes, best, 1), np.take_along_axis(scores, best, 1)


def _best(queries: np.ndarray, scores: np.ndarray, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` highest scores of each query, the earlier among equal ones.

    queries: int [c], ascending. Returns their places in `scores`, ascending, and for each one (query, number within it) [chosen, 2].
    """
    order = np.lexsort((-scores, queries))  # stable: earlier candidates first
    counts = np.bincount(queries, minlength=n)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.sort(order[rank < width])
    counts = np.minimum(counts, width)
    return chosen, np.stack((queries[chosen], np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)), 1)
