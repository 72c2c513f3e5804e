"""Beam search over a trie of real items: an item's codes are written one after another, the best beginnings are kept.

At each level every kept prefix is followed by the codes that some item has there, its score is the sum of the log-probabilities of its
codes, and each query keeps its `width` best prefixes; among equal scores the smaller codes win, so nothing is left to chance. What is
found is always an item, and with as many prefixes kept as the catalogue has it is every item: exhaustive search. Where a probability is
a share among the codes that follow, a prefix of one id alone is as good as written: what remains of it has probability 1 and is not asked
for. Knows arrays only.
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
            prefixes of one query stand together. Not called again when all prefixes are as good as written.
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
    parents, tokens = np.arange(n).reshape(n, 1), None  # of each prefix: the line of `step` it goes on from, and its last code
    whole = trie.whole
    for level, (starts, codes) in enumerate(zip(trie.starts, trie.tokens)):
        asked = nodes >= 0
        if among:
            numbers = trie.numbers[level][nodes]
            asked &= ~whole.single[level][numbers]
        lines, chosen = _lines(asked)
        ahead = np.empty((0, 0), np.float32)
        if chosen.size:
            size = (whole if among else trie).sizes[level]
            ahead = step(parents.ravel()[chosen], None if tokens is None else tokens.ravel()[chosen])
            ahead = np.ascontiguousarray(ahead, np.float32)
            if len(ahead) != chosen.size or ahead.shape[1] < size:
                raise ValueError(f"log-probabilities must be [{chosen.size}, at least {size}], not {list(ahead.shape)}")
        if among:
            scores = scores - totals(whole.starts[level], whole.tokens[level], numbers, lines, ahead)
        shape = n, min(width, len(codes))
        reached = np.empty(shape, np.int64), np.empty(shape, np.float32), np.empty(shape, np.int64)
        most = follow(starts, codes, nodes, scores, lines, ahead, *reached)
        if most < 0:
            raise ValueError("NaN among the log-probabilities")
        nodes, scores, parents = (np.ascontiguousarray(part[:, :most]) for part in reached)
        tokens = np.where(nodes < 0, 0, codes[nodes]).astype(np.int64)
    best = np.lexsort((nodes, -scores), axis=1)
    return np.take_along_axis(nodes, best, 1), np.take_along_axis(scores, best, 1)


def _lines(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """asked: bool [n, w], which prefixes of each query are gone on with. Which line of `step` each one is, int64 [n, w], -1 for none; and
    for each line which of the n * w it is: as many lines for each query, filled up with prefixes that are asked for nothing."""
    n, kept = asked.shape
    counts = asked.sum(1)
    most = int(counts.max(initial=0))
    lines = np.where(asked, np.arange(n)[:, None] * most + asked.cumsum(1) - 1, -1)
    chosen = np.argsort(~asked, axis=1, kind="stable")[:, :most] + np.arange(n)[:, None] * kept
    return lines, chosen.ravel()
