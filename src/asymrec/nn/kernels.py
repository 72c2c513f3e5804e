"""Compiled pieces of the training step for processors. Imported only when a step runs on one.

Each works on the rows (or columns) begin .. end - 1 and is called by `threads.by_rows`.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled

_LOG2E = np.float32(1.4426950408889634)
# exp2 on [-1/2, 1/2] by its Taylor series: relative error below 2e-7, far under bfloat16's 4e-3.
_C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in (0.6931471806, 0.2402265070, 0.0555041087, 0.0096181291, 0.0013333558, 0.0001540353))

COLUMNS = 2048  # whose sums stay in the core's first cache


@compiled(fastmath=True)
def softmax_gradient(
    begin, end, logits, bias, goal, shift, seen_start, seen_column, repeat, loss, repeat_gradient
):  # pragma: no cover - compiled
    """In place: bfloat16 logits [n, items] become softmax minus one-hot of the goal; a row never leaves the core's cache.

    Args:
        logits: uint16 [n, items], the bits of bfloat16.
        bias: float32 [items], added to the logits.
        goal: int64 [n].
        shift: float32 [n], added to the logit of the goal.
        seen_start, seen_column: int64 CSR, columns of each row whose logit gets `repeat`.
        loss, repeat_gradient: float32 [n], filled.
    """
    items = logits.shape[1]
    for i in range(begin, end):
        bits = np.empty(items, np.uint32)
        value = bits.view(np.float32)
        power = np.empty(items, np.uint32)
        factor = power.view(np.float32)
        row = logits[i]
        for j in range(items):
            bits[j] = np.uint32(row[j]) << np.uint32(16)
        for j in range(items):
            value[j] += bias[j]
        for s in range(seen_start[i], seen_start[i + 1]):
            value[seen_column[s]] += repeat
        value[goal[i]] += shift[i]
        top = np.float32(-3e38)
        for j in range(items):
            top = max(top, value[j])
        at_goal = value[goal[i]] - top
        total = np.float32(0)
        for j in range(items):
            x = max((value[j] - top) * _LOG2E, np.float32(-126))
            whole = np.floor(x + np.float32(0.5))
            f = x - whole
            value[j] = np.float32(1) + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
            power[j] = np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23)
        for j in range(items):
            value[j] *= factor[j]
            total += value[j]
        share = np.float32(1) / total
        for j in range(items):
            value[j] *= share
        value[goal[i]] -= np.float32(1)
        gradient = np.float32(0)
        for s in range(seen_start[i], seen_start[i + 1]):
            gradient += value[seen_column[s]]
        repeat_gradient[i] = gradient
        loss[i] = np.log(total) - at_goal
        for j in range(items):  # round to nearest even, as torch does
            row[j] = np.uint16((bits[j] + np.uint32(0x7FFF) + ((bits[j] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled(fastmath=True)
def residual_forward(begin, end, x, inner, bias, temperature, query, unit, scale):  # pragma: no cover - compiled
    """y = x + SiLU(inner + bias), unit = y / |y|, query = unit / temperature; the slope of SiLU takes the place of `inner`.

    Args:
        x: float32 [n, width].
        inner, query: uint16 [heads, n, width], the bits of bfloat16.
        bias: float32 [heads, width].
        unit: float32 [heads, n, width]; scale: float32 [heads, n], 1 / (|y| temperature); both filled.
    """
    heads, _, width = inner.shape
    for i in range(begin, end):
        bits = np.empty(width, np.uint32)
        z = bits.view(np.float32)
        power = np.empty(width, np.uint32)
        factor = power.view(np.float32)
        rest = np.empty(width, np.float32)
        for h in range(heads):
            row, out, asked = inner[h, i], unit[h, i], query[h, i]
            for j in range(width):
                bits[j] = np.uint32(row[j]) << np.uint32(16)
            for j in range(width):  # exp(-z) = rest * factor
                z[j] += bias[h, j]
                t = min(max(-z[j] * _LOG2E, np.float32(-126)), np.float32(126))
                whole = np.floor(t + np.float32(0.5))
                f = t - whole
                rest[j] = np.float32(1) + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
                power[j] = np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23)
            total = np.float32(0)
            for j in range(width):
                gate = np.float32(1) / (np.float32(1) + rest[j] * factor[j])
                y = x[i, j] + z[j] * gate
                z[j] = gate * (np.float32(1) + z[j] * (np.float32(1) - gate))
                out[j] = y
                total += y * y
            for j in range(width):
                row[j] = np.uint16((bits[j] + np.uint32(0x7FFF) + ((bits[j] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
            length = np.float32(1) / max(np.sqrt(total), np.float32(1e-12))
            scale[h, i] = length / temperature
            for j in range(width):
                out[j] *= length
                z[j] = out[j] / temperature
            for j in range(width):
                asked[j] = np.uint16((bits[j] + np.uint32(0x7FFF) + ((bits[j] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled(fastmath=True)
def residual_backward(begin, end, d_query, unit, scale, slope, d_x):  # pragma: no cover - compiled
    """Gradient of `query` above -> gradient of `inner`, in the place of the slope; what reaches x past the block is added to d_x."""
    heads, _, width = slope.shape
    for i in range(begin, end):
        bits = np.empty(width, np.uint32)
        d = bits.view(np.float32)
        other = np.empty(width, np.uint32)
        bend = other.view(np.float32)
        for h in range(heads):
            row, out, given = slope[h, i], unit[h, i], d_query[h, i]
            for j in range(width):
                bits[j] = np.uint32(given[j]) << np.uint32(16)
                other[j] = np.uint32(row[j]) << np.uint32(16)
            along = np.float32(0)
            for j in range(width):
                along += d[j] * out[j]
            for j in range(width):
                d[j] = (d[j] - out[j] * along) * scale[h, i]
                d_x[i, j] += d[j]
                d[j] *= bend[j]
            for j in range(width):
                row[j] = np.uint16((bits[j] + np.uint32(0x7FFF) + ((bits[j] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def add_rounded(begin, end, total, part):  # pragma: no cover - compiled
    """total += part, in one pass; total float32 [n, width], part uint16 [n, width], the bits of bfloat16."""
    width = part.shape[1]
    bits = np.empty(width, np.uint32)
    value = bits.view(np.float32)
    for i in range(begin, end):
        for j in range(width):
            bits[j] = np.uint32(part[i, j]) << np.uint32(16)
        for j in range(width):
            total[i, j] += value[j]


@compiled
def add_columns(begin, end, total, part):  # pragma: no cover - compiled
    """total += the sum of part over rows, in the columns begin .. end - 1; total float32 [width], part as above."""
    bits = np.empty(COLUMNS, np.uint32)
    value = bits.view(np.float32)
    for start in range(begin, end, COLUMNS):
        count = min(COLUMNS, end - start)
        for i in range(len(part)):
            line, own = part[i, start : start + count], total[start : start + count]
            for j in range(count):
                bits[j] = np.uint32(line[j]) << np.uint32(16)
            for j in range(count):
                own[j] += value[j]
