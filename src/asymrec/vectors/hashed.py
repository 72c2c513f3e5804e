"""Text vectors without a language model: hashed n-grams, TF-IDF, truncated SVD.

Deerwester et al., "Indexing by Latent Semantic Analysis" (1990), over hashed features (Weinberger et al., arXiv 0902.2206): a text is
its words, pairs of words and four-letter pieces of words, weighted (1 + log tf) * idf; its vector is that row times the top right
singular vectors, scaled to length 1. Differs in that the singular vectors come from at most 20,000 of the texts, evenly spaced, by
the randomised method of Halko et al. (arXiv 0909.4061) with a fixed seed. The same texts give the same vectors; other texts give
another space, so these vectors are not kept in the cache and a new item cannot be placed among old ones.
"""

from __future__ import annotations

import itertools
import re
import zlib

import numpy as np
from scipy import sparse

from asymrec.errors import VectorError

WIDTH = 256
FEATURES = 1 << 16
FITTED = 20_000
OVERSAMPLED, POWERS = 32, 2


def encode(texts: list[str]) -> np.ndarray:
    """float32 [n, min(256, n)], each of length 1 (0 where a text holds no word). Raises VectorError: none holds one."""
    return _embed(*_features(texts))


def encode_tokens(tokens: list[list[str]]) -> np.ndarray:
    """The same for items that are lists of tokens, each a feature as it stands: attributes, codes."""
    found = [np.unique(np.array([_bucket(token) for token in line], np.int64), return_counts=True) for line in tokens]
    offsets = np.concatenate([[0], np.cumsum([len(buckets) for buckets, _ in found])])
    return _embed(offsets, np.concatenate([buckets for buckets, _ in found]), np.concatenate([times for _, times in found]))


def _embed(offsets: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    n = len(offsets) - 1
    if not len(columns):
        raise VectorError("no text holds a word that a vector could be made of")
    rows = np.repeat(np.arange(n), np.diff(offsets))
    idf = np.log((1 + n) / (1 + np.bincount(columns, minlength=FEATURES))) + 1
    weights = (1 + np.log(counts)) * idf[columns]
    norms = np.sqrt(np.bincount(rows, weights**2, minlength=n))
    matrix = sparse.csr_array((weights / np.maximum(norms, 1e-12)[rows], columns, offsets), shape=(n, FEATURES))
    matrix = matrix[:, np.unique(columns)]  # a small catalogue fills few of the buckets
    sample = np.linspace(0, n - 1, min(n, FITTED)).astype(np.int64)
    vectors = matrix @ _right_vectors(matrix[sample], min(WIDTH, n))
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _right_vectors(matrix: sparse.csr_array, width: int) -> np.ndarray:
    """The top right singular vectors float64 [features, width] of a sparse matrix, orthonormal, signs fixed.

    In double precision: what rounding differs from run to run is gone when the result is cut to single.
    """
    rank = min(width + OVERSAMPLED, matrix.shape[0])
    transposed = matrix.T.tocsr()
    basis = np.linalg.qr(matrix @ np.random.default_rng(0).standard_normal((matrix.shape[1], rank)))[0]
    for _ in range(POWERS):
        basis = np.linalg.qr(matrix @ (transposed @ basis))[0]
    projected = transposed @ basis  # [features, rank]; its left singular vectors, by the small Gram matrix
    squares, turn = np.linalg.eigh(projected.T @ projected)
    squares, turn = squares[::-1][:width], turn[:, ::-1][:, :width]
    vectors = projected @ (turn / np.sqrt(squares.clip(min=1e-9)))
    return vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0))


def _features(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashed features of each text as CSR: offsets, columns (ascending in a text), counts."""
    known: dict[str, list[int]] = {}

    def of_word(word: str) -> list[int]:
        if word not in known:
            padded = f" {word} "
            known[word] = [_bucket(word), *(_bucket("#" + padded[i : i + 4]) for i in range(len(padded) - 3))]
        return known[word]

    offsets, columns, counts = [0], [], []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        found = [bucket for word in words for bucket in of_word(word)]
        found += [_bucket(f"{first} {second}") for first, second in itertools.pairwise(words)]
        buckets, times = np.unique(np.array(found, np.int64), return_counts=True)
        columns.append(buckets)
        counts.append(times)
        offsets.append(offsets[-1] + len(buckets))
    return np.array(offsets), np.concatenate(columns), np.concatenate(counts)


def _bucket(ngram: str) -> int:
    return zlib.crc32(ngram.encode()) % FEATURES
