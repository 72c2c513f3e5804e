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


def beam_search(trie: Trie, step: Step, n: int, width: int, among: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The `width` best ids for each of n queries.

    Args:
        trie: of the catalogue's codes.
        step: called once a level with (parents, tokens) -> float32 [m, K], log-probabilities of the next code after each of m
            prefixes. parents: int64 [m], which prefix of the call before each one goes on from; tokens: int64 [m], the code that
            was added. At first the prefixes are the n empty ones: parents 0 .. n-1, tokens None. m is n times an equal number;
            prefixes of one query stand together.
        width: prefixes kept for a query, at least 1.
        among: what `step` gives are logits; a code's probability is its share among the codes that some item of the whole catalogue
            has there (`trie.whole`, whatever part of it is searched).
    Returns:
        leaves int64 [n, at most width], numbers on the last level of the trie, best first, -1 where a query has fewer; and their
        scores float32, -inf there.
    Raises ValueError: width below 1, NaN among the log-probabilities, not one for each prefix and code.
    """
    from asymrec.retrieval.beam_kernels import follow, totals

    if width < 1:
        raise ValueError(f"the beam must be at least 1 wide, not {width}")
    nodes, scores = np.zeros((n, 1), np.int64), np.zeros((n, 1), np.float32)
    parents, tokens = np.arange(n), None
    whole = trie.whole
    for level, (starts, codes) in enumerate(zip(trie.starts, trie.tokens)):
        size = (whole if among else trie).sizes[level]
        ahead = np.ascontiguousarray(step(parents, tokens), np.float32)
        if len(ahead) != len(parents) or ahead.shape[1] < size:
            raise ValueError(f"log-probabilities must be [{len(parents)}, at least {size}], not {list(ahead.shape)}")
        if among:
            numbers = np.where(nodes < 0, -1, trie.numbers[level][nodes])
            scores = scores - totals(whole.starts[level], whole.tokens[level], numbers, ahead)
        shape = n, min(width, len(codes))
        reached = np.empty(shape, np.int64), np.empty(shape, np.float32), np.empty(shape, np.int64)
        most = follow(starts, codes, nodes, scores, ahead, *reached)
        if most < 0:
            raise ValueError("NaN among the log-probabilities")
        nodes, scores, parents = (np.ascontiguousarray(part[:, :most]) for part in reached)
        parents = parents.reshape(-1)
        tokens = np.where(nodes < 0, 0, codes[nodes]).reshape(-1).astype(np.int64)
    best = np.lexsort((nodes, -scores), axis=1)
    return np.take_along_axis(nodes, best, 1), np.take_along_axis(scores, best, 1)
