"""The compiled step of beam search: from the prefixes of each query to its best prefixes one code longer.

A query's candidates come in the order of their codes, and the best so far are kept in a binary heap whose root is the worst of them:
lowest score, and among equal scores the latest. A candidate that only ties the root always loses, so the smaller codes win every tie.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled
from asymrec.retrieval.kernels import _worse


@compiled
def _sift(scores, nodes, parents, at, size, score, node, parent):  # pragma: no cover - compiled
    """Put an element where it belongs at or below `at`."""
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], nodes[child + 1], scores[child], nodes[child]):
            child += 1
        if not _worse(scores[child], nodes[child], score, node):
            break
        scores[at], nodes[at], parents[at] = scores[child], nodes[child], parents[child]
        at = child
    scores[at], nodes[at], parents[at] = score, node, parent


@compiled
def follow(starts, tokens, nodes, scores, lines, ahead, next_nodes, next_scores, next_parents):  # pragma: no cover - compiled
    """The best children of each query's prefixes, in the order of their codes.

    starts, tokens: of the trie's level. nodes, scores: [n, w] prefixes of each query in the order of their codes, node -1 where there
    is none. lines: [n, w], which line of `ahead` [lines of a query * n, K] has the log-probabilities of the next code; -1: they are 0.
    next_nodes, next_scores, next_parents: [n, width], filled: children, their scores and the line that their parent has in `ahead`; -1
    and -inf where there are fewer, and the query's first line there and where a parent has none.
    Returns the most prefixes of a query, or -1 where a score is NaN.
    """
    n, kept = nodes.shape
    width, most = next_nodes.shape[1], 0
    for query in range(n):
        best_nodes, best_scores, best_parents = next_nodes[query], next_scores[query], next_parents[query]
        size, first = 0, query * (len(ahead) // n)
        for place in range(kept):
            node, line = nodes[query, place], lines[query, place]
            if node < 0:
                continue
            score, parent = scores[query, place], max(line, first)
            for child in range(starts[node], starts[node + 1]):
                reached = score + ahead[line, tokens[child]] if line >= 0 else score
                if np.isnan(reached):
                    return -1
                if size < width:
                    best_nodes[size], best_scores[size], best_parents[size] = child, reached, parent
                    size += 1
                    if size == width:
                        for at in range(width // 2 - 1, -1, -1):
                            _sift(best_scores, best_nodes, best_parents, at, width, best_scores[at], best_nodes[at], best_parents[at])
                elif reached > best_scores[0]:
                    _sift(best_scores, best_nodes, best_parents, 0, width, reached, child, parent)
        order = np.argsort(best_nodes[:size])
        best_nodes[:size], best_scores[:size], best_parents[:size] = best_nodes[order], best_scores[order], best_parents[order]
        best_nodes[size:], best_scores[size:], best_parents[size:] = -1, -np.inf, first
        most = max(most, size)
    return most


@compiled
def totals(starts, tokens, nodes, lines, ahead):  # pragma: no cover - compiled
    """float32 [n, w]: the logarithm of the sum of exponentials of what a node's line of `ahead` (see `follow`) has for the codes that
    follow the node in a trie's level; 0 where it has no line."""
    n, kept = nodes.shape
    out = np.zeros((n, kept), np.float32)
    for query in range(n):
        for place in range(kept):
            node, line = nodes[query, place], lines[query, place]
            if line < 0:
                continue
            most = np.float32(-np.inf)
            for child in range(starts[node], starts[node + 1]):
                most = max(most, ahead[line, tokens[child]])
            total = np.float32(0)
            for child in range(starts[node], starts[node + 1]):
                total += np.exp(ahead[line, tokens[child]] - most)
            out[query, place] = most + np.log(total)
    return out
