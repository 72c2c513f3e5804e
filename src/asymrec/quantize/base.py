"""The contract of every quantizer.

A quantizer turns an item's vector of width d into a row of `n_codes` integers, column h of them in `0 .. codebook_sizes[h] - 1`,
and such a row back into a vector. It keeps scikit-learn's manners: the constructor only stores settings, `fit` returns self and
forgets any earlier fit, equal seeds give equal codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from asymrec.errors import QuantizerError, VectorError


class Quantizer:
    """Base of the quantizers. A subclass writes `_fit`, `_encode`, `_decode`, `_alternatives`, `tensors` and `restore`."""

    distinct: bool = True
    remedy: ClassVar[str] = "raise facets, levels or codewords, or set distinct=false"  # where the ids are too few
    codebook_sizes: tuple[int, ...]

    @property
    def n_codes(self) -> int:
        return len(self.codebook_sizes)

    @property
    def meaning(self) -> int:
        """How many leading codes tell what an item is; the others only tell items apart that share those."""
        return self.n_codes

    @property
    def code_shape(self) -> tuple[int, int]:
        """(facets, levels) whose product is n_codes, facet-major: how a report lays the codebooks out."""
        return self.n_codes, 1

    @property
    def width(self) -> int | None:
        """d of the vectors it was fitted on; None before."""
        raise NotImplementedError

    def fit(self, vectors: Any, weights: Any = None) -> Quantizer:
        """Learns from the rows given; a caller passes the items of training, and encodes any item later.

        Args: vectors [n, d]; weights [n], how much each row counts (not negative; a row of weight 0 is as if it were not there).
        Raises VectorError: not finite (first bad row), not a matrix. QuantizerError: fewer than 2 rows, all rows equal.
        """
        vectors = matrix(vectors)
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float64)
            if weights.shape != (len(vectors),):
                raise QuantizerError(f"weights have shape {weights.shape}, expected ({len(vectors)},)")
            bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
            if len(bad):
                raise QuantizerError(f"weights: row {bad[0]} is {weights[bad[0]]}, expected a finite number, not negative")
            vectors, weights = vectors[weights > 0], weights[weights > 0]
        if len(vectors) < 2:
            raise QuantizerError(f"a quantizer needs at least 2 items to fit, got {len(vectors)}")
        if not (vectors != vectors[0]).any():
            raise QuantizerError(f"all {len(vectors)} vectors are equal: there is nothing to quantize")
        self._fit(vectors, np.ones(len(vectors)) if weights is None else weights / weights.mean())
        return self

    def encode(self, vectors: Any) -> np.ndarray:
        """[n, d] -> codes int32 [n, n_codes]. A row's codes depend on that row alone.

        Raises VectorError: not finite (first bad row), wrong width. QuantizerError: not fitted.
        """
        return self._encode(matrix(vectors, self._fitted_width()))

    def decode(self, codes: Any) -> np.ndarray:
        """Codes [n, n_codes] -> float32 [n, d]. Raises QuantizerError: wrong shape, code out of range (first bad row), not fitted."""
        self._fitted_width()
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.n_codes:
            raise QuantizerError(f"codes have shape {codes.shape}, expected (n, {self.n_codes})")
        if codes.dtype.kind not in "iu":
            raise QuantizerError(f"codes must be integers, not {codes.dtype}")
        bad = ((codes < 0) | (codes >= np.asarray(self.codebook_sizes))).any(axis=1)
        if bad.any():
            raise QuantizerError(f"codes: row {bad.argmax()} is out of the codebooks' range")
        return self._decode(codes)

    def catalogue(self, vectors: Any, codes: np.ndarray | None = None) -> np.ndarray:
        """The codes of a whole catalogue, int32 [n, n_codes]: as `encode`, and with `distinct` no two rows alike.

        Of the items with an identical id the first row keeps its codes, each later one gets the cheapest change that is free.
        Pass `codes` when `encode(vectors)` is at hand. Raises as `encode`; QuantizerError: more items than ids.
        """
        from asymrec.quantize.distinct import make_distinct

        vectors = matrix(vectors, self._fitted_width())
        codes = self._encode(vectors) if codes is None else codes
        return make_distinct(codes, vectors, self._alternatives, self.remedy) if self.distinct else codes

    def beside(self, held: np.ndarray, vectors: Any, hashed: np.ndarray | None = None) -> np.ndarray:
        """The codes of items that join a catalogue, int32 [m, n_codes]: as `encode`, and with `distinct` no row is one of its codes `held`
        [n, n_codes] or of another new item; who is there keeps his.

        hashed: `distinct.hashes(held)` where it is at hand; then the time is that of looking through n numbers once or twice.
        Raises as `encode`; QuantizerError: more items than ids.
        """
        from asymrec.quantize.distinct import hashes, join

        vectors = matrix(vectors, self._fitted_width())
        codes = self._encode(vectors)
        if not self.distinct:
            return codes
        return join(codes, hashes(held) if hashed is None else hashed, vectors, self._alternatives, self.remedy)

    def report(self, vectors: Any, codes: np.ndarray | None = None) -> dict[str, Any]:
        """How good the codes of a catalogue are, ready for JSON: see `report.py`. `codes` defaults to `catalogue(vectors)`."""
        from asymrec.quantize.report import report

        return report(self, matrix(vectors, self._fitted_width()), codes)

    def tensors(self) -> dict[str, Tensor]:
        """All that a fit learned; `restore` takes it back into a quantizer of the same settings."""
        raise NotImplementedError

    def restore(self, tensors: dict[str, Tensor]) -> Quantizer:
        raise NotImplementedError

    def _require(self, tensors: dict[str, Tensor], names: Iterable[str]) -> None:
        """Raises QuantizerError: a tensor is not there."""
        if missing := [name for name in names if name not in tensors]:
            raise QuantizerError(f"tensors of {type(self).__name__}: '{missing[0]}' is missing")

    def _require_shapes(self, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises QuantizerError: a tensor has another shape."""
        for name, shape in shapes.items():
            if (found := tuple(tensors[name].shape)) != shape:
                raise QuantizerError(f"tensors of {type(self).__name__}: '{name}' has shape {found}, expected {shape}")

    def compared(self, vectors: np.ndarray) -> np.ndarray:
        """The columns of vectors [n, d] that codes are to keep: all, if a kind of quantizer does not say otherwise."""
        return vectors

    def usage(self, codes: np.ndarray) -> tuple[list[np.ndarray], tuple[int, int]]:
        """How many items have each codeword, int [K] of each codebook, and the (facets, levels) that a report lays them out in."""
        return [np.bincount(column, minlength=size) for column, size in zip(codes.T, self.codebook_sizes)], self.code_shape

    def details(self, vectors: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """What this kind of quantizer adds to the report."""
        return {}

    def _fit(self, vectors: np.ndarray, weights: np.ndarray) -> None:
        raise NotImplementedError

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _alternatives(self, vector: np.ndarray, codes: np.ndarray) -> Iterator[tuple[int, ...]]:
        """Other code rows for one vector, the least loss first (as nearly as is cheap); all ids there are, if asked on."""
        raise NotImplementedError

    def _fitted_width(self) -> int:
        if self.width is None:
            raise QuantizerError(f"{type(self).__name__} is not fitted: call fit or restore first")
        return self.width


def matrix(vectors: Any, width: int | None = None) -> np.ndarray:
    """float32 [n, d], checked. Raises VectorError: not a matrix of numbers, wrong width, not finite (first bad row)."""
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().to(torch.float32).numpy()
    try:
        with np.errstate(over="ignore"):
            vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError):
        raise VectorError("vectors must be a matrix of numbers [items, width]") from None
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise VectorError(f"vectors have shape {vectors.shape}, expected (items, width)")
    if width is not None and vectors.shape[1] != width:
        raise VectorError(f"vectors have width {vectors.shape[1]}, the quantizer was fitted on width {width}")
    for start in range(0, len(vectors), 65536):  # in pieces: a mask of everything would cost a quarter of the vectors' memory
        finite = np.isfinite(vectors[start : start + 65536]).all(axis=1)
        if not finite.all():
            raise VectorError(f"vectors: row {start + int(finite.argmin())} is not finite")
    return vectors
