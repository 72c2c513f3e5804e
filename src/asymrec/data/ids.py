"""Users' own ids at the edge, rows inside: one `Ids` for the users and one for the items of a data set."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.data.columns import bytes_of, normal_keys
from asymrec.errors import ConfigError, UnknownIdError

_FEW = 10_000


class Ids:
    """Ids of rows 0 .. n-1.

    values: pyarrow array in the type the ids came in. keys: the same in the form they are compared in (`columns.normal_keys`).
    """

    def __init__(self, values: pa.Array, noun: str, keys: pa.Array | None = None) -> None:
        self.values = values
        self.noun = noun
        self.keys = normal_keys(values) if keys is None else keys
        self._rows: dict[Any, int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, ids: Iterable) -> np.ndarray:
        """int32 [len(ids)]: the row of each id.

        Ids may come as their own type or as text (`"42"` for 42, hexadecimal or UUID text for bytes).
        Raises UnknownIdError with the first unknown id and how many there are.
        """
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise ConfigError(f"expected several {self.noun} ids, got {ids!r}")
        if isinstance(ids, (pa.Array, pa.ChunkedArray)) and normal_keys(ids).type == self.keys.type:
            found = self.find(normal_keys(ids))
        else:
            ids = ids.to_pylist() if isinstance(ids, (pa.Array, pa.ChunkedArray)) else ids.tolist() if hasattr(ids, "tolist") else list(ids)
            found = self._find_few([self._key(each) for each in ids])
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            first = ids[int(unknown[0])]
            first = first.as_py() if isinstance(first, pa.Scalar) else first
            more = f" ({len(unknown):,} of the {len(found):,} given are unknown)" if len(found) > 1 else ""
            raise UnknownIdError(f"unknown {self.noun} id {first!r}{more}")
        return found

    def known(self, ids: Iterable) -> np.ndarray:
        """int32 [len(ids)]: as `rows`, with -1 for an id that is not there."""
        return self._find_few([self._key(each) for each in ids])

    def find(self, keys: pa.Array) -> np.ndarray:
        """int32 [len(keys)]: the row of each key, -1 for those that are not there."""
        if len(keys) > _FEW:
            return pc.index_in(keys, self.keys).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        return self._find_few(keys.to_pylist())

    def _find_few(self, keys: list) -> np.ndarray:
        if self._rows is None:  # a request for one user must not hash the whole catalogue again
            self._rows = {key: row for row, key in enumerate(self.keys.to_pylist())}
        return np.fromiter((self._rows.get(key, -1) for key in keys), np.int32, len(keys))

    def _key(self, given: Any) -> Any:
        """One id in the form of the keys; None where it cannot be one of them."""
        kind = self.keys.type
        if given is None:
            return None
        try:
            if pa.types.is_int64(kind):
                given = re.sub(r"\.0+$", "", given.strip()) if isinstance(given, str) else given  # ids that pandas keeps as floats
                number = int(given)
                alike = str(number) == given if isinstance(given, str) else number == given
                return number if alike and -(2**63) <= number < 2**63 else None
            if pa.types.is_large_binary(kind):
                if isinstance(given, uuid.UUID):
                    return given.bytes
                if isinstance(given, str):
                    return bytes_of(given)
                return bytes(given) if isinstance(given, (bytes, bytearray)) else None
            if isinstance(given, (str, int)) and not isinstance(given, bool):
                return str(given)
            return str(normal_keys(pa.array([given]))[0].as_py())
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            return None
