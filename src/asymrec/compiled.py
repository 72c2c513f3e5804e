"""How the project's loops are compiled. Imported by kernels only: numba takes a third of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable | None = None, **options: Any) -> Callable:
    """numba's njit, releasing the interpreter lock; kept on disk, or compiled anew each time where no folder can be written."""
    if function is None:
        return lambda wrapped: compiled(wrapped, **options)
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(nogil=True, **options)(function)
