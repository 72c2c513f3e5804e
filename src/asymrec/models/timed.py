"""What models share that are told when a history's last item was taken: `time_codes` (`nn/clock.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymrec.data import Sequences
from asymrec.models.catalogue import CatalogueModel
from asymrec.nn.clock import Clock, time_edges
from asymrec.training.listener import Listener

EDGES = "time_edges"


class Timed(CatalogueModel):
    """Stands before another model among the bases of a class, which gives its network `_clock()`."""

    def _prepare(self, vectors: np.ndarray | None, train: Sequences, listener: Listener) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super()._prepare(vectors, train, listener)
        if self.recipe.network.time_codes:
            tensors[EDGES] = torch.from_numpy(time_edges(train))
        return tensors, values

    def _clock(self) -> Clock | None:
        return Clock(self._prepared[EDGES], self.recipe.network.width) if self.reads_times else None

    @property
    def reads_times(self) -> bool:
        """Of the fitted model: whether there were times to learn from."""
        return self.recipe.network.time_codes and len(self._prepared.get(EDGES, ())) > 0

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        if EDGES not in tensors:
            self._was_fitted_with(time_codes=False)
        super().restore(tensors, vectors, codes)
