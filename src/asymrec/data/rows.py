"""Where in a column something is wrong, and what Arrow says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def first_bad(column: pa.ChunkedArray | pa.Array, convert: Callable[[Any], Any]) -> int:
    """The first row at which `convert` fails, for a column on which it is known to fail: by halving, not row by row."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            convert(column.slice(low, middle - low))
        except pa.ArrowException:
            high = middle
        else:
            low = middle
    return low


def first_true(mask: Any) -> int:
    """The first row of a boolean column that is true, -1 when none is."""
    return pc.index(mask, pa.scalar(True)).as_py()


def listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
