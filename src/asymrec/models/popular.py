"""What models share that are told how often and since when an item was taken in training: `popularity_codes` (`quantize/popularity.py`).

A fitted model keeps the codes of its items, and those of an item that comes later, beside what it was prepared with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymrec.data import Sequences
from asymrec.models.catalogue import CatalogueModel
from asymrec.models.growing import Growing
from asymrec.quantize.popularity import popularity_codes
from asymrec.training.listener import Listener

CODES, OF_NEW = "popularity_codes", "popularity_codes_of_new"


class ToldPopularity(CatalogueModel):
    """Stands before another model among the bases of a class."""

    def _told(self) -> int | None:
        """How many words a code has; None where the settings want no codes."""
        raise NotImplementedError

    def _prepare(self, vectors: np.ndarray, train: Sequences, listener: Listener) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super()._prepare(vectors, train, listener)
        if words := self._told():
            tensors |= zip((CODES, OF_NEW), map(torch.from_numpy, popularity_codes(train, len(vectors), words)))
        return tensors, values

    def _written(self, codes: Tensor | None, count: int) -> Tensor | None:
        of_new = self._prepared.get(OF_NEW)
        return beside(super()._written(codes, count), None if of_new is None else of_new.expand(count, -1))

    def _extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> ToldPopularity:
        model = super()._extended(vectors, codes)
        if CODES in self._prepared:
            of_new = self._prepared[OF_NEW].expand(len(vectors), -1)
            model._grown[CODES] = self._grown.get(CODES, Growing(self._prepared[CODES])).then(of_new)
            model._prepared[CODES] = model._grown[CODES].rows
        return model

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        if self._told() and CODES not in tensors:
            self._was_fitted_with(popularity_codes=False)
        super().restore(tensors, vectors, codes)


def beside(codes: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Codes int [n, H] and further ones of the same items in one; None where there are neither."""
    parts = [part for part in (codes, more) if part is not None]
    return torch.cat(parts, 1) if parts else None
