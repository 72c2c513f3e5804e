"""Models without training: what a learned one must beat.

- `popularity`: an item's count in training.
- `itemknn` (Sarwar et al., WWW 2001; Deshpande & Karypis, TOIS 2004): the cosine between two items' columns of the user-item
  matrix, the `NEIGHBOURS` nearest of each item kept; an item's score is the sum of its similarities to the history. Differs in that a
  history's items count less the longer ago they are, by a factor of `RECENCY` an item, as in session-kNN.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from asymrec.data import Dataset, Sequences, Split
from asymrec.models.base import Recommender

NEIGHBOURS = 200
RECENCY = 0.8
ROWS_AT_ONCE = 1024


class Popularity(Recommender):
    name = "popularity"

    def _fit(self, dataset: Dataset, split: Split) -> None:
        self.counts = split.train_counts(dataset.n_items).astype(np.float32)

    def scores(self, histories: Sequences) -> np.ndarray:
        return np.tile(self.counts, (len(histories), 1))

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": torch.from_numpy(self.counts)}

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        self.counts = tensors["counts"].numpy()


class ItemKNN(Recommender):
    name = "itemknn"

    def _fit(self, dataset: Dataset, split: Split) -> None:
        train, n = split.train, dataset.n_items
        seen = sparse.csr_matrix((np.ones(len(train.items), np.float32), (train.owners, train.items)), shape=(len(train), n))
        seen.data[:] = 1  # a repeated item is one
        norms = np.sqrt(np.asarray(seen.sum(0)).ravel())
        columns = (seen @ sparse.diags_array(1 / np.maximum(norms, 1))).tocsc().astype(np.float32)
        blocks = []
        for start in range(0, n, ROWS_AT_ONCE):  # the whole product would hold every pair of items at once
            block = (columns[:, start : start + ROWS_AT_ONCE].T @ columns).tocsr()
            blocks.append(_nearest(block, start))
        self.similar = sparse.vstack(blocks).tocsr()

    def scores(self, histories: Sequences) -> np.ndarray:
        age = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.items))
        shape = len(histories), self.similar.shape[0]
        weights = sparse.csr_matrix(((RECENCY**age).astype(np.float32), histories.items, histories.offsets), shape=shape)
        return (weights @ self.similar).toarray()

    def tensors(self) -> dict[str, Tensor]:
        return {
            "values": torch.from_numpy(self.similar.data),
            "columns": torch.from_numpy(self.similar.indices.astype(np.int32)),
            "starts": torch.from_numpy(self.similar.indptr.astype(np.int64)),
        }

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        n = len(tensors["starts"]) - 1
        self.similar = sparse.csr_matrix((tensors["values"].numpy(), tensors["columns"].numpy(), tensors["starts"].numpy()), shape=(n, n))


def _nearest(block: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
    """Keep each line's NEIGHBOURS largest, without the item itself; equal ones by the smaller row."""
    owners = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    other = block.indices != owners + first
    owners, columns, values = owners[other], block.indices[other], block.data[other]
    order = np.lexsort((columns, -values, owners))
    owners, columns, values = owners[order], columns[order], values[order]
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    kept = place < NEIGHBOURS
    return sparse.csr_matrix((values[kept], (owners[kept], columns[kept])), shape=block.shape)
