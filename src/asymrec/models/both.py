"""What models share that have, beside an item's content, its collaborative vector and how popular it is (FlexCode, arXiv 2511.20673).

Their vectors are [semantic | collaborative | popularity features], as `quantize/branches.py` reads them. The
collaborative vectors come from a factorization of neighbours' counts (`vectors/collaborative.py`), or of a SASRec by id
(`collaborative_source=sasrec`), of training interactions alone. A new item has none, and so semantic codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from asymrec.config import Recipe
from asymrec.data import Dataset, Sequences, Split
from asymrec.errors import ConfigError
from asymrec.models.sasrec import SASRec
from asymrec.models.trained import Trained
from asymrec.quantize.router import FEATURES
from asymrec.training.listener import Listener
from asymrec.vectors.collaborative import collaborative_vectors
from asymrec.vectors.popularity import cold, popularity_features


class BothViews(Trained):
    """Stands before a trained model among the bases of a class. Raises ConfigError: `vectors.collaborative` is set as well."""

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        if self.recipe.vectors.collaborative:
            raise ConfigError(f"{self.name} has collaborative vectors of its own (collaborative_width): vectors.collaborative must be 0")

    def _begin(self, dataset: Dataset, split: Split) -> Split:
        self._source = dataset, split  # of what `_prepare` makes
        return super()._begin(dataset, split)

    def _end(self, split: Split) -> None:
        del self._source
        super()._end(split)

    def _prepare(self, vectors: np.ndarray, train: Sequences, listener: Listener) -> tuple[dict[str, Tensor], dict[str, Any]]:
        dataset, _ = self._source
        features = popularity_features(train, dataset.n_items, dataset.time_unit)
        return super()._prepare(np.concatenate([vectors, self._collaborative(listener), features], 1), train, listener)

    def _collaborative(self, listener: Listener) -> np.ndarray:
        """float32 [n_items, collaborative_width]; 0 for items that training says nothing of."""
        (dataset, split), width = self._source, self.recipe.flexcode.collaborative_width
        listener.stage(f"collaborative vectors of {dataset.n_items:,} items ({self.recipe.flexcode.collaborative_source})")
        if self.recipe.flexcode.collaborative_source == "linear":
            return collaborative_vectors(split.train, dataset.n_items, width)
        training = self.recipe.training
        heads = max(head for head in (1, 2, 4) if width % head == 0)
        by_id = SASRec(width=width, heads=heads, ffn=4 * width, seed=training.seed, device=training.device, precision=training.precision)
        by_id.fit(dataset, split, listener=listener)
        with torch.no_grad():
            table = by_id.network.head.table(torch.arange(dataset.n_items, device=by_id.device)).float().cpu().numpy()
        return np.where((split.train_counts(dataset.n_items) > 0)[:, None], table, 0).astype(np.float32)

    def described(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[:, : vectors.shape[1] - self.recipe.flexcode.collaborative_width - FEATURES]

    def new_vectors(self, items: pa.Table) -> np.ndarray:
        made = super().new_vectors(items)
        nothing = np.zeros((len(made), self.recipe.flexcode.collaborative_width), np.float32)
        return np.concatenate([made, nothing, cold(len(made), self.dataset.time_unit)], 1)
