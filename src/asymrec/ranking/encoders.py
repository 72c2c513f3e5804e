"""Columns as whole numbers: vocabularies and quantiles from the training part, with a place for what it did not hold.

Number 0 is nothing (null, an empty place, a code beyond those of the table that was fitted), 1 is rare or unseen, known values follow.
A periodic number is kept as a number, in units of its spread in training, and beside it whether it is there. Vectors are in units of
their mean length in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.data.columns import normal_keys
from asymrec.errors import DataError
from asymrec.ranking.schema import Field

NOTHING, UNSEEN, KNOWN = 0, 1, 2


class Encoder:
    """One field's numbers.

    size: how many numbers there are (vector, text: the width; periodic: the waves). places: how many a row has (1 but for values and code).
    """

    def __init__(self, field: Field, values: list[str] | None = None, edges: list[float] | None = None, sizes: list[int] | None = None):
        self.field, self.values, self.edges, self.sizes = field, values, edges, sizes

    @property
    def size(self) -> int:
        if self.field.kind in ("vector", "text"):
            return self.sizes[0]
        if self.field.kind == "periodic":
            return self.field.waves
        if self.field.kind == "code":
            return 1 + sum(self.sizes)
        return KNOWN + len(self.values) if self.edges is None else 2 + len(self.edges)

    @classmethod
    def fit(cls, field: Field, column: pa.ChunkedArray, counts: np.ndarray) -> Encoder:
        """counts: int [rows], how often training holds each row of the column; a row of count 0 teaches nothing.

        Raises DataError: a column that is not of the field's kind.
        """
        if field.kind == "numeric":
            seen = as_numbers(field.name, column)[counts > 0]
            quantiles = np.nanquantile(seen, np.arange(1, field.bins) / field.bins) if np.isfinite(seen).any() else []
            return cls(field, edges=np.unique(quantiles).tolist())
        if field.kind == "periodic":
            numbers = as_numbers(field.name, column)
            seen = np.repeat(numbers, counts)
            seen = seen[np.isfinite(seen)]
            spread = float(seen.std()) if len(seen) else 0.0
            return cls(field, edges=[float(seen.mean()) if len(seen) else 0.0, spread or 1.0])
        if field.kind in ("vector", "text"):
            vectors = _vectors(field, column)
            lengths = np.linalg.norm(vectors[counts > 0], axis=1)
            return cls(field, edges=[float(lengths.mean()) if lengths.any() else 1.0], sizes=[vectors.shape[1]])
        if field.kind == "code":
            return cls(field, sizes=(_codes(field, column).max(0) + 1).tolist())
        words, owners = _words(field, column)
        encoded = words.dictionary_encode()
        numbers = encoded.indices.fill_null(0).to_numpy()
        weights = np.where(words.is_valid().to_numpy(zero_copy_only=False), counts[owners], 0)
        often = np.bincount(numbers, weights=weights, minlength=len(encoded.dictionary))
        kept = np.flatnonzero(often >= field.floor)
        return cls(field, values=sorted(encoded.dictionary.take(pa.array(kept)).to_pylist()))

    def encode(self, column: pa.ChunkedArray) -> np.ndarray:
        """int64 [rows], int64 [rows, longest | codes] of values and code, float32 [rows, width] of vector and text,
        float32 [rows, 2] of periodic: the number, and 1 where it is there."""
        field = self.field
        if field.kind == "periodic":
            numbers = (as_numbers(field.name, column) - self.edges[0]) / self.edges[1]
            return np.stack([np.nan_to_num(numbers), np.isfinite(numbers)], 1).astype(np.float32)
        if field.kind == "numeric":
            numbers = as_numbers(field.name, column)
            return np.where(np.isnan(numbers), NOTHING, 1 + np.searchsorted(self.edges, numbers, side="right"))
        if field.kind in ("vector", "text"):
            found = _vectors(field, column)
            if found.shape[1] != self.size:
                raise DataError(f"field '{field.name}': vectors of width {found.shape[1]}, training had {self.size}")
            return found / np.float32(self.edges[0])
        if field.kind == "code":
            return self._code_numbers(_codes(field, column))
        words, owners = _words(field, column)
        found = pc.index_in(words, pa.array(self.values, pa.large_string()))
        numbers = pc.if_else(words.is_valid(), pc.fill_null(pc.add(found.cast(pa.int64()), KNOWN), UNSEEN), NOTHING).to_numpy()
        if field.kind == "category":
            return numbers
        place = np.arange(len(owners)) - np.searchsorted(owners, owners)
        kept = place < field.longest
        out = np.zeros((len(column), field.longest), np.int64)
        out[owners[kept], place[kept]] = numbers[kept]
        return out

    def _code_numbers(self, codes: np.ndarray) -> np.ndarray:
        if codes.shape[1] != len(self.sizes):
            raise DataError(f"field '{self.field.name}': {codes.shape[1]} codes, training had {len(self.sizes)}")
        known = (codes >= 0) & (codes < self.sizes)
        return np.where(known, 1 + codes + np.r_[0, np.cumsum(self.sizes)[:-1]], NOTHING)

    def state(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"field": self.field.model_dump(mode="json"), "values": self.values, "edges": self.edges, "sizes": self.sizes}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Encoder:
        return cls(Field(**state["field"]), state["values"], state["edges"], state["sizes"])


def _words(field: Field, column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Every category as large_string, and the row that each stands in."""
    array = _plain(column)
    if isinstance(array.type, pa.BaseExtensionType) or pa.types.is_binary(array.type) or pa.types.is_fixed_size_binary(array.type):
        array = pa.array([None if key is None else key.hex() for key in normal_keys(array).to_pylist()], pa.large_string())  # UUIDs, bytes
    owners = np.arange(len(array))
    if field.kind == "values":
        if not hasattr(array.type, "value_type"):
            raise DataError(f"field '{field.name}': kind `values` wants lists, found {array.type}")
        owners, array = pc.list_parent_indices(array).to_numpy(), pc.list_flatten(array)
    try:
        return array.cast(pa.large_string()), owners
    except (pa.ArrowException, NotImplementedError):
        raise DataError(f"field '{field.name}': {array.type} cannot be categories") from None


def as_numbers(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """float64 [rows], NaN for null."""
    try:  # whole numbers of more digits than a float64 has are rounded
        numbers = _plain(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, NotImplementedError):
        raise DataError(f"field '{name}': {column.type} is no number") from None
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _vectors(field: Field, column: pa.ChunkedArray) -> np.ndarray:
    """float32 [rows, width]; a null is 0."""
    array = _plain(column)
    if field.kind == "text":
        from asymrec.vectors.text import text_vectors

        return text_vectors([text or "" for text in array.cast(pa.string()).to_pylist()], field.encoder, progress=False)
    found = _matrix(field, array, 0.0).astype(np.float32)
    if (bad := ~np.isfinite(found).all(1)).any():
        raise DataError(f"field '{field.name}': row {bad.argmax()} holds a number that is not finite")
    return found


def _codes(field: Field, column: pa.ChunkedArray) -> np.ndarray:
    """int64 [rows, codes]; a row without is -1."""
    return _matrix(field, _plain(column), -1).astype(np.int64)


def _matrix(field: Field, array: pa.Array, empty: float) -> np.ndarray:
    if not hasattr(array.type, "value_type"):
        raise DataError(f"field '{field.name}': kind `{field.kind}` wants lists, found {array.type}")
    lengths = set(pc.list_value_length(array.drop_null()).to_pylist())
    if len(lengths) != 1:
        raise DataError(f"field '{field.name}': lists of {sorted(lengths)[:3]} numbers, one length is wanted")
    flat = pc.list_flatten(array)
    if flat.null_count:
        raise DataError(f"field '{field.name}': a null inside a list")
    out = np.full((len(array), lengths.pop()), empty)
    out[array.is_valid().to_numpy(zero_copy_only=False)] = flat.to_numpy(zero_copy_only=False).reshape(-1, out.shape[1])
    return out


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of no rows
        array = pa.concat_arrays(array.chunks)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
