"""What the quantizers share that split an item's codes between two branches (FlexCode, arXiv 2511.20673).

A vector is [semantic | collaborative | popularity features]: the last four columns are the features, in which the first is
log(1 + interactions) and the last 1 / sqrt(1 + interactions); the `collaborative_width` before them are the collaborative vector, zero
for an item that has none. An allocation, by default the router's (`router.py`), gives the share of codes that are collaborative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymrec.config import FlexCodeConfig
from asymrec.errors import VectorError
from asymrec.quantize.base import Quantizer, matrix
from asymrec.quantize.router import FEATURES, allocated, tenths
from asymrec.tensors import without_prefix

BRANCHES = ("semantic", "collaborative")


class TwoBranches(Quantizer):
    """A subclass sets `config`, writes `budget` and `_new`, and keeps each branch's tensors under its name."""

    config: FlexCodeConfig
    _tensors: dict[str, Tensor]
    _made: tuple[dict[str, Tensor] | None, dict[str, Quantizer]] = None, {}  # tensors, and the branches made of them

    @property
    def budget(self) -> int:
        """What is split: codes, or facets."""
        raise NotImplementedError

    def _new(self, name: str) -> Quantizer:
        """A branch before its fit."""
        raise NotImplementedError

    @property
    def width(self) -> int | None:
        return len(self._tensors["semantic.mean"]) + self.config.collaborative_width + FEATURES if self._tensors else None

    def share(self, vectors: Any) -> np.ndarray:
        """float32 [n]: alpha, the collaborative share; 0 without a collaborative vector. Raises as `encode`."""
        _, collaborative, features = self._parts(torch.from_numpy(matrix(vectors, self._fitted_width())))
        return allocated(self.config, features, collaborative.any(1), self._tensors).numpy()

    def split(self, vectors: Any) -> np.ndarray:
        """int64 [n]: how much of the budget is collaborative. Raises as `encode`."""
        return np.floor(self.share(vectors) * self.budget + 0.5).astype(np.int64)

    def compared(self, vectors: np.ndarray) -> np.ndarray:
        """The features are no part of what the codes are to keep."""
        return vectors[:, :-FEATURES]

    def _parts(self, x: Any) -> tuple[Any, Any, Any]:
        """A matrix's three parts, views of it."""
        features = x.shape[1] - FEATURES
        collaborative = features - self.config.collaborative_width
        return x[:, :collaborative], x[:, collaborative:features], x[:, features:]

    def _check_parts(self, vectors: np.ndarray) -> None:
        """Raises VectorError: no column for the semantic part."""
        if vectors.shape[1] <= self.config.collaborative_width + FEATURES:
            wanted = f"more than {self.config.collaborative_width} collaborative columns and {FEATURES} features"
            raise VectorError(f"vectors have width {vectors.shape[1]}, expected {wanted}")

    def _branch(self, name: str) -> Any:
        """A branch as a quantizer of its own; made once for the tensors there are."""
        if self._made[0] is not self._tensors:
            self._made = self._tensors, {name: self._new(name).restore(without_prefix(name, self._tensors)) for name in BRANCHES}
        return self._made[1][name]

    def _levels(self, features: Tensor, split: np.ndarray) -> Tensor:
        """[budget + 1, 4]: the mean features of the items of each split, of all where a split has no item."""
        split = torch.from_numpy(split)
        found = [features[split == count] for count in range(self.budget + 1)]
        return torch.stack([(part if len(part) else features).mean(0) for part in found])

    def _tenths(self, vectors: np.ndarray) -> list[dict[str, float]]:
        return tenths(np.expm1(vectors[:, -FEATURES]), self.share(vectors), self.split(vectors))
