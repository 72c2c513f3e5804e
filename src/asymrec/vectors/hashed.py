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
import warnings
import zlib

import numpy as np
import torch

WIDTH = 256
FEATURES = 1 << 16
FITTED = 20_000
OVERSAMPLED, POWERS = 32, 2


def encode(texts: list[str]) -> np.ndarray:
    """float32 [n, min(256, n)], each of length 1 (0 where a text holds no word)."""
    offsets, columns, counts = _features(texts)
    rows = np.repeat(np.arange(len(texts)), np.diff(offsets))
    idf = np.log((1 + len(texts)) / (1 + np.bincount(columns, minlength=FEATURES))) + 1
    weights = (1 + np.log(counts)) * idf[columns]
    norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(texts)))
    weights = (weights / np.maximum(norms, 1e-12)[rows]).astype(np.float32)

    def lines(start: int, stop: int) -> torch.Tensor:
        span = slice(offsets[start], offsets[stop])
        return _csr(offsets[start : stop + 1] - offsets[start], columns[span], weights[span], FEATURES)

    if len(texts) <= FITTED:
        basis = _right_vectors(offsets, columns, weights, min(WIDTH, len(texts)))
    else:
        sample = np.linspace(0, len(texts) - 1, FITTED).astype(np.int64)
        lengths = np.diff(offsets)[sample]
        part = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in sample])
        basis = _right_vectors(np.concatenate([[0], np.cumsum(lengths)]), columns[part], weights[part], WIDTH)
    blocks = [lines(start, min(start + FITTED, len(texts))) @ basis for start in range(0, len(texts), FITTED)]
    return torch.nn.functional.normalize(torch.cat(blocks), dim=1).numpy()


def _right_vectors(offsets: np.ndarray, columns: np.ndarray, weights: np.ndarray, width: int) -> torch.Tensor:
    """The top right singular vectors [FEATURES, width] of a sparse matrix, orthonormal, signs fixed."""
    n = len(offsets) - 1
    matrix = _csr(offsets, columns, weights, FEATURES)
    by_column = np.argsort(columns, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=FEATURES))])
    transposed = _csr(starts, np.repeat(np.arange(n), np.diff(offsets))[by_column], weights[by_column], n)
    rank = min(width + OVERSAMPLED, n)
    basis = torch.linalg.qr(matrix @ torch.randn(FEATURES, rank, generator=torch.Generator().manual_seed(0)))[0]
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ (transposed @ basis))[0]
    projected = transposed @ basis  # [FEATURES, rank]; its left singular vectors, by the small Gram matrix
    squares, turn = torch.linalg.eigh((projected.T @ projected).double())
    squares, turn = squares.flip(0)[:width], turn.flip(1)[:, :width]
    vectors = projected @ (turn / squares.clamp(min=1e-9).sqrt()).float()
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def _csr(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray, width: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "sparse CSR is in beta"
        return torch.sparse_csr_tensor(
            torch.from_numpy(offsets),
            torch.from_numpy(columns),
            torch.from_numpy(values),
            (len(offsets) - 1, width),
            check_invariants=False,
        )


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
