"""Models without training: what a learned one must beat. All but popularity are a table of items by items; an item's score is the
sum, over the history, of its entries in the lines of the history's items, where an item counts `recency` ** (items after it).

- `popularity`: an item's count in training.
- `itemknn` (Sarwar et al., WWW 2001; Deshpande & Karypis, TOIS 2004): the cosine between two items' columns of the user-item
  matrix, the `neighbours` nearest of each item kept. Plain with `recency=1`; by default later items count more, as in session-kNN.
- `counts`: how often b came after a. Every pair a before b, d apart with d at most `window`, adds `gap` ** (d - 1) to T[a, b]; in the
  end T[a, b] is divided by ((n_a + 1) (n_b + 1)) ** `discount`, n the items' counts in training. A Markov chain over skips, as FPMC and
  the sequential rules of session-based work have it (Ludewig & Jannach, UMUAI 2018), with popularity taken back in part.
  `directed=False` adds T transposed: pairs whatever their order.
- `ease` (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, https://arxiv.org/abs/1905.03375): every item's
  column of the binary user-item matrix X is predicted from the other columns by ridge regression, all at once in closed form:
  P = (X^T X + ridge I)^-1, B[i, j] = -P[i, j] / P[j, j], zero on the diagonal. Differs in that the history is weighted by `recency`
  when scores are taken; the fit knows no order.
"""

from __future__ import annotations

from copy import copy
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from asymrec import machine
from asymrec.data import Dataset, Sequences, Split
from asymrec.data.pairs import followers
from asymrec.errors import ConfigError, DataError
from asymrec.models.base import Recommender

ROWS_AT_ONCE = 1024


class Popularity(Recommender):
    name = "popularity"

    def _fit(self, dataset: Dataset, split: Split) -> None:
        self.counts = split.train_counts(dataset.n_items).astype(np.float32)

    def scores(self, histories: Sequences) -> np.ndarray:
        return np.tile(self.counts, (len(histories), 1))

    def widened(self, count: int) -> Popularity:
        model = copy(self)
        model.counts = np.pad(self.counts, (0, count))
        return model

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": torch.from_numpy(self.counts)}

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        self.counts = tensors["counts"].numpy()


class ItemTable(Recommender):
    """A model that is a table [n_items, n_items]; a line says what an item of the history speaks for. Where the whole history speaks for
    nothing, or there is none, items are scored by their counts in training."""

    table: sparse.csr_matrix | np.ndarray
    counts: np.ndarray  # float32 [n_items]

    def _fit(self, dataset: Dataset, split: Split) -> None:
        self.counts = split.train_counts(dataset.n_items).astype(np.float32)
        self.table = self._table(split.train, dataset.n_items)

    def _table(self, train: Sequences, n_items: int) -> sparse.csr_matrix | np.ndarray:
        raise NotImplementedError

    def scores(self, histories: Sequences) -> np.ndarray:
        found = _weights(histories, self.recipe.classic.recency, self.table.shape[0]) @ self.table
        found = found if isinstance(found, np.ndarray) else found.toarray()
        found[~found.any(1)] = self.counts
        return found


class SparseTable(ItemTable):
    """The table is sparse, float32."""

    table: sparse.csr_matrix

    def widened(self, count: int) -> SparseTable:
        model, n = copy(self), self.table.shape[0] + count
        model.counts = np.pad(self.counts, (0, count))
        starts = np.concatenate([self.table.indptr, np.full(count, self.table.indptr[-1], self.table.indptr.dtype)])
        model.table = sparse.csr_matrix((self.table.data, self.table.indices, starts), shape=(n, n))
        return model

    def tensors(self) -> dict[str, Tensor]:
        return {
            "values": torch.from_numpy(self.table.data),
            "columns": torch.from_numpy(self.table.indices.astype(np.int32)),
            "starts": torch.from_numpy(self.table.indptr.astype(np.int64)),
            "counts": torch.from_numpy(self.counts),
        }

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        n = len(tensors["starts"]) - 1
        self.counts = _counts(tensors, n)
        self.table = sparse.csr_matrix((tensors["values"].numpy(), tensors["columns"].numpy(), tensors["starts"].numpy()), shape=(n, n))


class ItemKNN(SparseTable):
    """Settings: `neighbours`, `recency`."""

    name = "itemknn"
    uses = Recommender.uses | {"neighbours", "recency"}
    space: ClassVar[dict] = {"recency": [0.6, 0.8, 1.0], "neighbours": [50, 100, 200, 500]}

    def _table(self, train: Sequences, n_items: int) -> sparse.csr_matrix:
        seen, n = _seen(train, n_items), n_items
        norms = np.sqrt(np.asarray(seen.sum(0)).ravel())
        columns = (seen @ sparse.diags_array(1 / np.maximum(norms, 1))).tocsc().astype(np.float32)
        blocks = []
        for start in range(0, n, ROWS_AT_ONCE):  # the whole product would hold every pair of items at once
            block = (columns[:, start : start + ROWS_AT_ONCE].T @ columns).tocsr()
            blocks.append(_nearest(block, start, self.recipe.classic.neighbours))
        return sparse.vstack(blocks).tocsr()


class Counts(SparseTable):
    """Settings: `window`, `gap`, `discount`, `directed`, `recency`."""

    name = "counts"
    uses = Recommender.uses | {"window", "gap", "discount", "directed", "recency"}
    defaults: ClassVar[dict] = {"recency": 0.6}
    space: ClassVar[dict] = {"recency": [0.4, 0.6, 0.8], "gap": [0.8, 0.9], "discount": [0.3, 0.5]}

    def _table(self, train: Sequences, n_items: int) -> sparse.csr_matrix:
        classic = self.recipe.classic
        table = followers(train, n_items, classic.window, classic.gap)
        if not classic.directed:
            table = table + table.T
        scale = sparse.diags_array((self.counts + 1.0) ** -classic.discount)
        return (scale @ table @ scale).tocsr().astype(np.float32)


class EASE(ItemTable):
    """Settings: `ridge`, `recency`. The table is dense, float32 [n_items, n_items], and so is the Cholesky factorization it comes from:
    against float64 its entries differ by 2e-6 at most on MovieLens-1M and Beauty (the largest are .27 and .09), validation NDCG@10 by
    1e-5, at half the memory and, on Beauty, half the time.

    The defaults are one choice for all data, by validation NDCG@10 on MovieLens-100K and Beauty over ridge 100 to 1000 and recency .4 to
    .8: the best product of the four figures (history kept / removed), .0654 / .1156 and .0471 / .0579. Smaller ridge and recency suit
    Beauty (250, .5: .0483 / .0589), larger ones MovieLens with the history removed (500, .9: .1250); with recency 1, the paper's,
    MovieLens has .0151 / .0792.

    Raises (`fit`): DataError when so many items need more memory than is free. ConfigError when `ridge` is too small for float32.
    """

    name = "ease"
    uses = Recommender.uses | {"ridge", "recency"}
    defaults: ClassVar[dict] = {"recency": 0.6}
    space: ClassVar[dict] = {"recency": [0.4, 0.6, 0.8], "ridge": [100.0, 250.0, 500.0, 1000.0]}

    def _table(self, train: Sequences, n_items: int) -> np.ndarray:
        from scipy.linalg import lapack

        n, ridge = n_items, self.recipe.classic.ridge
        need, free = _memory(n), machine.free_memory()
        if free is not None and need > free:
            raise DataError(f"ease needs {need / 2**30:.1f} GiB for {n:,} items, {free / 2**30:.1f} GiB are free: take itemknn or counts")
        seen = _seen(train, n)
        columns = seen.tocsc()
        gram = np.empty((n, n), np.float32)
        for start in range(0, n, ROWS_AT_ONCE):
            gram[start : start + ROWS_AT_ONCE] = (columns[:, start : start + ROWS_AT_ONCE].T @ seen).toarray()
        gram.flat[:: n + 1] += ridge
        # in place, for this is the matrix that fills the memory; to LAPACK our lines are columns, so its upper triangle is our lower
        factor, failed = lapack.spotrf(gram.T, lower=0, clean=0, overwrite_a=1)
        if failed or factor.diagonal().min() ** 2 < 0.99 * ridge:  # no pivot is below the ridge, but by rounding
            raise ConfigError(f"setting 'classic.ridge': {ridge:g} is too small, X^T X + ridge I has no inverse in float32")
        table = lapack.spotri(factor, lower=0, overwrite_c=1)[0].T
        for start in range(0, n, ROWS_AT_ONCE):
            stop = start + ROWS_AT_ONCE
            corner = np.tril(table[start:stop, start:stop])
            table[start:stop, start:stop] = corner + np.tril(corner, -1).T
            table[start:stop, stop:] = table[stop:, start:stop].T
        table /= -table.diagonal()
        np.fill_diagonal(table, 0)
        return table

    def tensors(self) -> dict[str, Tensor]:
        return {"table": torch.from_numpy(self.table), "counts": torch.from_numpy(self.counts)}

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        self.table = tensors["table"].numpy()
        self.counts = _counts(tensors, len(self.table))


def _counts(tensors: dict[str, Tensor], n_items: int) -> np.ndarray:
    """Of training; none in runs of before they were kept."""
    return tensors["counts"].numpy() if "counts" in tensors else np.zeros(n_items, np.float32)


def _memory(n: int) -> int:
    """Bytes that a fit of `ease` takes: the table, which the inverse is computed in, and blocks of lines."""
    return 4 * n * (n + 4 * ROWS_AT_ONCE)


def _weights(histories: Sequences, recency: float, n_items: int) -> sparse.csr_matrix:
    """float32 [len(histories), n_items]: `recency` to the power of an item's age, 0 for the last; a repeated item stands there twice."""
    age = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.items))
    values = (recency**age).astype(np.float32)
    return sparse.csr_matrix((values, histories.items, histories.offsets), shape=(len(histories), n_items))


def _seen(train: Sequences, n_items: int) -> sparse.csr_matrix:
    """The binary user-item matrix, float32 [len(train), n_items]."""
    seen = sparse.csr_matrix((np.ones(len(train.items), np.float32), (train.owners, train.items)), shape=(len(train), n_items))
    seen.data[:] = 1  # a repeated item is one
    return seen


def _nearest(block: sparse.csr_matrix, first: int, neighbours: int) -> sparse.csr_matrix:
    """Keep each line's largest, as many as `neighbours`, without the item itself; equal ones by the smaller row."""
    owners = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    other = block.indices != owners + first
    owners, columns, values = owners[other], block.indices[other], block.data[other]
    order = np.lexsort((columns, -values, owners))
    owners, columns, values = owners[order], columns[order], values[order]
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    kept = place < neighbours
    return sparse.csr_matrix((values[kept], (owners[kept], columns[kept])), shape=block.shape)
