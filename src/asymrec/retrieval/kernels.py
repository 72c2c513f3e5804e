"""Compiled loops of exact retrieval. Imported on first use only: numba takes a third of a second.

The k best of a query are kept in a binary heap whose root is the worst of them: lowest score, and among equal scores the
largest row. Candidates must come in ascending order of rows; then a candidate that only ties the root always loses, so
`score > root` is the whole test and the smaller row wins every tie.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled

BLOCK = 32  # queries scored together: two AVX-512 vectors, and a [48 * 256, 32] table still fits a 2 MB cache


@compiled
def _worse(score, row, other_score, other_row):
    return score < other_score or (score == other_score and row > other_row)


@compiled
def _replace_root(scores, rows, size, score, row):
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], rows[child + 1], scores[child], rows[child]):
            child += 1
        if not _worse(scores[child], rows[child], score, row):
            break
        scores[at] = scores[child]
        rows[at] = rows[child]
        at = child
    scores[at] = score
    rows[at] = row


@compiled
def _holds(items, low, high, row):
    """Is `row` in the ascending items[low:high]?"""
    end = high
    while low < high:
        middle = (low + high) // 2
        if items[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low < end and items[low] == row


@compiled
def keep(scores, rows, best_scores, best_rows, offsets, excluded):
    """Offers candidates to the heaps of all queries: scores [n, b] (a candidate a line), rows [n] ascending, heaps [b, k].

    `excluded[offsets[u] : offsets[u + 1]]`, ascending, are the rows that query u must not get.
    Returns False when a score is NaN.
    """
    n, b = scores.shape
    k = best_scores.shape[1]
    for start in range(0, b, BLOCK):
        stop = min(b, start + BLOCK)
        bar = best_scores[start:stop, 0].copy()
        block = scores[:, start:stop]
        for i in range(n):
            better = False
            for u in range(stop - start):
                better |= not (block[i, u] <= bar[u])  # true for NaN as well
            if better:
                for u in range(stop - start):
                    score = block[i, u]
                    if score > bar[u]:
                        query = start + u
                        if not _holds(excluded, offsets[query], offsets[query + 1], rows[i]):
                            _replace_root(best_scores[query], best_rows[query], k, score, rows[i])
                            bar[u] = best_scores[query, 0]
                    elif score != score:
                        return False
    return True


@compiled
def keep_lines(scores, best_scores, best_rows):
    """The same for scores [b, n] that lie a query a line, without a filter."""
    b, n = scores.shape
    k = best_scores.shape[1]
    for query in range(b):
        line = scores[query]
        bar = best_scores[query, 0]
        for start in range(0, n, BLOCK):
            stop = min(n, start + BLOCK)
            better = False
            for i in range(start, stop):
                better |= not (line[i] <= bar)
            if better:
                for i in range(start, stop):
                    score = line[i]
                    if score > bar:
                        _replace_root(best_scores[query], best_rows[query], k, score, i)
                        bar = best_scores[query, 0]
                    elif score != score:
                        return False
    return True


@compiled
def order(best_scores, best_rows):
    """Turns heaps [b, k] into lists from best to worst, in place: the root goes last, again and again."""
    b, k = best_scores.shape
    for query in range(b):
        for size in range(k - 1, 0, -1):
            score = best_scores[query, size]
            row = best_rows[query, size]
            best_scores[query, size] = best_scores[query, 0]
            best_rows[query, size] = best_rows[query, 0]
            _replace_root(best_scores[query], best_rows[query], size, score, row)


@compiled
def transpose(tables, divisor, out):
    """out[j, u] = tables[u, j] / divisor; tables [b, m], out [m, at least b]. Sixteen columns at a time: whole cache lines both ways."""
    b, m = tables.shape
    for start in range(0, m, 16):
        stop = min(m, start + 16)
        for u in range(b):
            for j in range(start, stop):
                out[j, u] = tables[u, j] / divisor


@compiled
def lookup(tables, codes, out):
    """out[i, u] = sum over heads of tables[u, h, codes[i, h]], heads in order; tables [b, H, K], codes [n, H], out [n, b].

    Four items at a time, so that four chains of additions are under way. For a few queries; for many `embedding_bag` is faster.
    """
    n, heads = codes.shape
    whole = n - n % 4
    for u in range(tables.shape[0]):
        table = tables[u]
        for i in range(0, whole, 4):
            a = b = c = d = np.float32(0)
            for h in range(heads):
                a += table[h, codes[i, h]]
                b += table[h, codes[i + 1, h]]
                c += table[h, codes[i + 2, h]]
                d += table[h, codes[i + 3, h]]
            out[i, u] = a
            out[i + 1, u] = b
            out[i + 2, u] = c
            out[i + 3, u] = d
        for i in range(whole, n):
            a = np.float32(0)
            for h in range(heads):
                a += table[h, codes[i, h]]
            out[i, u] = a


@compiled
def _visit(table, codes, row, state, line, visited, count, best_scores, best_rows):
    """Scores an item that was not seen yet, writes it down and offers it to the beam. Returns how many have been visited."""
    heads = codes.shape[1]
    whole = heads - heads % 4
    a = b = c = d = np.float32(0)  # four chains of additions
    for h in range(0, whole, 4):
        a += table[h, codes[row, h]]
        b += table[h + 1, codes[row, h + 1]]
        c += table[h + 2, codes[row, h + 2]]
        d += table[h + 3, codes[row, h + 3]]
    for h in range(whole, heads):
        a += table[h, codes[row, h]]
    score = (a + b) + (c + d)
    state[row] = 1
    line[row] = score
    visited[count] = row
    if _worse(best_scores[0], best_rows[0], score, row):
        _replace_root(best_scores, best_rows, len(best_rows), score, row)
    return count + 1


@compiled
def _walk(table, codes, neighbours, start, steps, state, line, visited):
    """One query's walk: visited[:count] are the rows it came to, line[row] their scores. Returns count.

    table [H, K], codes [n, H], neighbours [n, k], start: the first beam, distinct; state uint8 [n], 0 when called: 1 is visited, 2
    visited and its neighbours too. The beam is a heap whose root is its worst item.
    """
    beam = len(start)
    best_scores = np.full(beam, np.float32(-np.inf), np.float32)
    best_rows = np.full(beam, -1, np.int32)
    count = 0
    for row in start:
        count = _visit(table, codes, row, state, line, visited, count, best_scores, best_rows)
    for _ in range(steps):
        before = best_rows.copy()
        new = False
        for row in before:
            if row >= 0 and state[row] == 1:
                state[row] = 2
                new = True
                for other in neighbours[row]:
                    if state[other] == 0:
                        count = _visit(table, codes, other, state, line, visited, count, best_scores, best_rows)
        if not new:
            break
    return count


@compiled
def score_graph(tables, codes, neighbours, start, steps, out):
    """Walks for all queries, tables [b, H, K]; the scores of what they visit into out [b, n]."""
    state = np.zeros(len(codes), np.uint8)
    visited = np.empty(len(codes), np.int32)
    for query in range(len(tables)):
        count = _walk(tables[query], codes, neighbours, start, steps, state, out[query], visited)
        for row in visited[:count]:
            state[row] = 0


@compiled
def search_graph(tables, codes, neighbours, start, steps, offsets, excluded, allowed, best_scores, best_rows, counts):
    """Walks for all queries; of what they visit, the best that are allowed (bool [n]) and not excluded (as in `keep`) into the heaps
    [b, k]; how many items each visited into counts [b]."""
    state = np.zeros(len(codes), np.uint8)
    visited = np.empty(len(codes), np.int32)
    line = np.empty(len(codes), np.float32)
    k = best_scores.shape[1]
    for query in range(len(tables)):
        count = _walk(tables[query], codes, neighbours, start, steps, state, line, visited)
        counts[query] = count
        for row in visited[:count]:
            state[row] = 0
            if not allowed[row] or _holds(excluded, offsets[query], offsets[query + 1], row):
                continue
            if _worse(best_scores[query, 0], best_rows[query, 0], line[row], row) and line[row] > -np.inf:
                _replace_root(best_scores[query], best_rows[query], k, line[row], row)
