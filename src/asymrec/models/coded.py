"""What models share that score an item by its codes: in a large catalogue the best items are searched by codes (`retrieval/index.py`).

Scores are those of `scores` but for the order in which float32 sums: a model that compares states with one vector an item, the sum of
its code vectors brought to length 1, gives the index each item's 1 / length and bias.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asymrec.data import Sequences
from asymrec.models.catalogue import CatalogueModel
from asymrec.retrieval.filters import Bitmap
from asymrec.retrieval.index import CodeIndex

SEARCHED = 50_000  # items from which a search beats scoring them all, where it is fast
AT_ONCE = 256  # histories whose tables exist at one time


class CodedModel(CatalogueModel):
    """A model writes `tables`, and `own` where its items have a factor and a summand of their own."""

    _index: CodeIndex | None = None

    def tables(self, histories: Sequences) -> Tensor:
        """Of every codeword of the next item, float32 [n, H, K]: an item scores the mean over its codes. No history is empty."""
        raise NotImplementedError

    def own(self, codes: Tensor) -> np.ndarray | None:
        """Of items by their codes, int [n, H]: float32 [n, 2], what the mean is multiplied by, and what is added; None where nothing is."""
        return None

    def _codes(self) -> Tensor:
        """What the catalogue is written as, int [n_items, H]."""
        return self._prepared["codes"]

    def searches(self) -> bool:
        """Whether the items' order is that of codes at all."""
        return True

    def _fast(self) -> bool:
        """Whether a search takes less than a product with the items' vectors: sums of bytes by plain loops do not."""
        from asymrec.retrieval import scan  # compiled: imported by who needs it

        return not self._compares_items() or (scan.VBMI and max(self.quantizer.codebook_sizes) <= 256)

    def best(self, histories: Sequences, k: int, barred: np.ndarray | None, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        again = self.network.repeat is not None and not exclude_seen  # items of a history have another score than their codes say
        searches = len(self._popularity) >= SEARCHED and self.searches() and self._fast()
        if not searches or again or not histories.lengths.all() or not len(histories):
            return super().best(histories, k, barred, exclude_seen)
        if self._index is None:
            codes, sizes = self._codes(), self.quantizer.codebook_sizes
            sizes += sizes[-1:] * (codes.shape[1] - len(sizes))
            self._index = CodeIndex(codes, sizes, self.own(codes))
        deny = None if barred is None else Bitmap(barred)
        found = []
        for start in range(0, len(histories), AT_ONCE):
            part = histories.take(np.arange(start, min(start + AT_ONCE, len(histories))))
            with torch.inference_mode():
                tables = self.tables(part)
            found.append(self._index.search(tables, k, exclude=part if exclude_seen else None, deny=deny))
        return tuple(np.concatenate(parts) for parts in zip(*found))

    def _freeze(self) -> None:
        self._index = None
        super()._freeze()

    def extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> CodedModel:
        model = super().extended(vectors, codes)
        if self._index is not None:
            written = self._written(torch.from_numpy(codes), len(codes))
            model._index = self._index.add(written, self.own(written))
        return model
