"""Collaborative vectors: what the training interactions say of an item, from the items that come before and after it.

In words: T[a, b] counts how often b came within `WINDOW` places after a, less the further apart; M[a, b] = max(0, log(T[a, b] Z /
(T[a, .] T[., b]^0.75))), Z the sum of T[., b]^0.75 over b, is the positive pointwise mutual information with the power that keeps rare
items from ruling it; its truncated singular value decomposition M = U S V^T gives item a the vector (U[a], V[a]) sqrt(S): how it is
followed, and how it follows. Levy & Goldberg ("Neural Word Embedding as Implicit Matrix Factorization", NIPS 2014) show that item2vec
learns the same; this takes seconds.

An item without a pair in training has the zero vector, so a new item joins by its other views alone.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from asymrec.data import Sequences
from asymrec.data.pairs import followers

WINDOW, GAP = 10, 0.8
POWER = 0.75
DENSE = 64  # items up to which the matrix is decomposed whole: a truncated decomposition wants more of them than directions
NOTHING = 1e-6  # share of the largest singular value below which one is rounding


def collaborative_vectors(train: Sequences, n_items: int, width: int) -> np.ndarray:
    """float32 [n_items, width], half of it from what follows and half from what comes before.

    Args:
        train: the sequences of training, and nothing else.
        width: even; the last entries are zero where the items have fewer directions.
    """
    from scipy.sparse.linalg import svds

    table = followers(train, n_items, WINDOW, GAP).tocoo()
    half = width // 2
    vectors = np.zeros((n_items, 2 * half), np.float32)
    if not table.nnz:
        return vectors
    lines = np.asarray(table.sum(1)).ravel()
    columns = np.asarray(table.sum(0)).ravel() ** POWER
    information = np.log(table.data * columns.sum() / (lines[table.row] * columns[table.col]))
    matrix = sparse.csr_matrix((np.maximum(information, 0), (table.row, table.col)), shape=table.shape)
    matrix.eliminate_zeros()
    if not matrix.nnz:  # no pair is more frequent than chance
        return vectors
    if n_items <= max(half + 2, DENSE):
        left, values, right = np.linalg.svd(matrix.toarray())
        left, right = left[:, :half], right[:half]
        values = values[:half]
    else:
        left, values, right = svds(matrix, k=half, v0=np.ones(n_items))
    order = np.argsort(-values)
    order = order[values[order] > NOTHING * values.max()]
    left, values, right = left[:, order], values[order], right[order].T
    # rows without a pair are zero but for rounding
    left = np.where(np.diff(matrix.indptr)[:, None] > 0, left, 0)
    right = np.where(np.bincount(matrix.indices, minlength=n_items)[:, None] > 0, right, 0)
    kept = len(values)
    flip = np.sign(left[np.abs(left).argmax(0), np.arange(kept)])  # the sign of a pair of singular vectors is free
    vectors[:, :kept] = left * (flip * np.sqrt(values))
    vectors[:, half : half + kept] = right * (flip * np.sqrt(values))
    return vectors
