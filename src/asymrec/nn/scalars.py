"""What compiled kernels do with single numbers. Imported by kernels only.

A kernel's arrays are float32, or bfloat16 as uint16, for numpy has no bfloat16: it is the upper half of a float32. Either is computed
with in float32: `load` reads it, `stored` makes it. All are compiled into the kernel that names them, in loops that work on several
numbers at once. A kernel that is kept on disk does not know of changes here: touch its file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

_LOG2E = np.float32(1.4426950408889634)
# 2^x on [-1/2, 1/2] by its Taylor series: relative error below 2e-7
_C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in (0.6931471806, 0.2402265070, 0.0555041087, 0.0096181291, 0.0013333558, 0.0001540353))


@intrinsic
def _float_of(typing: Any, bits: types.Type) -> Any:
    """The float32 that has these bits, uint32."""
    return types.float32(types.uint32), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], ir.FloatType())


@intrinsic
def _bits_of(typing: Any, value: types.Type) -> Any:
    return types.uint32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], ir.IntType(32))


def load(number: Any) -> np.float32:
    """float32, or bfloat16 as uint16 -> float32."""


@overload(load, inline="always")
def _load(number):
    if number == types.uint16:
        return lambda number: _float_of(np.uint32(number) << np.uint32(16))
    return lambda number: number


def stored(value: np.float32, array: np.ndarray) -> Any:
    """float32 -> what `array` has its numbers as; to nearest even, as torch rounds."""


@overload(stored, inline="always")
def _stored(value, array):
    if array.dtype == types.uint16:
        return lambda value, array: _rounded(_bits_of(value))
    return lambda value, array: value


@njit(inline="always")
def _rounded(bits):  # pragma: no cover - compiled
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(inline="always")
def exp(x):  # pragma: no cover - compiled
    """e^x, between 2^-126 and 2^126."""
    x = min(max(x * _LOG2E, np.float32(-126)), np.float32(126))
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    part = np.float32(1) + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    return part * _float_of(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23))


@njit(inline="always")
def hashed(seed, index):  # pragma: no cover - compiled
    """uint32 of (seed, index): two rounds of multiply and shift (after Wellons, "Prospecting for Hash Functions", 2018)."""
    x = np.uint32((index + seed) * np.uint32(0x9E3779B1))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))
