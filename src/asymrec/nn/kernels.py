"""Compiled pieces of the training step for processors. Imported only when a step runs on one.

Arrays are float32, or bfloat16 as uint16 (`scalars.py`), where they are not said to be float32.

Each works on the rows (or columns) begin .. end - 1 and is called by `threads.by_rows`.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled
from asymrec.nn.scalars import exp, load, stored

COLUMNS = 2048  # whose sums stay in the core's first cache


@compiled(fastmath=True)
def softmax_gradient(
    begin, end, logits, bias, goal, shift, seen_start, seen_column, repeat, loss, repeat_gradient
):  # pragma: no cover - compiled
    """In place: logits become softmax minus one-hot of the goal; a row never leaves the core's cache.

    Args:
        logits: [n, items].
        bias: float32 [items], added to the logits.
        goal: int64 [n].
        shift: float32 [n], added to the logit of the goal.
        seen_start, seen_column: int64 CSR, columns of each row whose logit gets `repeat`.
        loss, repeat_gradient: float32 [n], filled.
    """
    items = logits.shape[1]
    for i in range(begin, end):
        value, row = np.empty(items, np.float32), logits[i]
        for j in range(items):
            value[j] = load(row[j]) + bias[j]
        for s in range(seen_start[i], seen_start[i + 1]):
            value[seen_column[s]] += repeat
        value[goal[i]] += shift[i]
        top = np.float32(-3e38)
        for j in range(items):
            top = max(top, value[j])
        at_goal = value[goal[i]] - top
        total = np.float32(0)
        for j in range(items):
            value[j] = exp(value[j] - top)
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
        for j in range(items):
            row[j] = stored(value[j], row)


@compiled(fastmath=True)
def residual_forward(begin, end, x, inner, bias, temperature, query, unit, scale):  # pragma: no cover - compiled
    """y = x + SiLU(inner + bias), unit = y / |y|, query = unit / temperature; the slope of SiLU takes the place of `inner`.

    Args:
        x: float32 [n, width].
        inner, query: [heads, n, width].
        bias: float32 [heads, width].
        unit: float32 [heads, n, width]; scale: float32 [heads, n], 1 / (|y| temperature); both filled.
    """
    heads, _, width = inner.shape
    for i in range(begin, end):
        z, gate = np.empty(width, np.float32), np.empty(width, np.float32)
        for h in range(heads):
            row, out, asked = inner[h, i], unit[h, i], query[h, i]
            for j in range(width):  # short loops, for long ones are not made to work on several numbers at once
                z[j] = load(row[j]) + bias[h, j]
            for j in range(width):
                gate[j] = exp(-z[j])
            total = np.float32(0)
            for j in range(width):
                gate[j] = np.float32(1) / (np.float32(1) + gate[j])
                y = x[i, j] + z[j] * gate[j]
                out[j] = y
                total += y * y
            for j in range(width):
                row[j] = stored(gate[j] * (np.float32(1) + z[j] * (np.float32(1) - gate[j])), row)
            length = np.float32(1) / max(np.sqrt(total), np.float32(1e-12))
            scale[h, i] = length / temperature
            for j in range(width):
                out[j] *= length
                asked[j] = stored(out[j] / temperature, asked)


@compiled(fastmath=True)
def residual_backward(begin, end, d_query, unit, scale, slope, d_x):  # pragma: no cover - compiled
    """Gradient of `query` above -> gradient of `inner`, in the place of the slope; what reaches x past the block is added to d_x.

    unit, scale and d_x are float32."""
    heads, _, width = slope.shape
    for i in range(begin, end):
        for h in range(heads):
            row, out, given = slope[h, i], unit[h, i], d_query[h, i]
            along = np.float32(0)
            for j in range(width):
                along += load(given[j]) * out[j]
            for j in range(width):
                d = (load(given[j]) - out[j] * along) * scale[h, i]
                d_x[i, j] += d
                row[j] = stored(d * load(row[j]), row)


@compiled
def add_rows(begin, end, total, part):  # pragma: no cover - compiled
    """total += part, in one pass; [n, width] both, total float32."""
    width = part.shape[1]
    for i in range(begin, end):
        line, own = part[i], total[i]
        for j in range(width):
            own[j] += load(line[j])


@compiled
def add_columns(begin, end, total, part):  # pragma: no cover - compiled
    """total += the sum of part [n, width] over rows, in the columns begin .. end - 1; total float32 [width]."""
    for start in range(begin, end, COLUMNS):
        count = min(COLUMNS, end - start)
        for i in range(len(part)):
            line, own = part[i, start : start + count], total[start : start + count]
            for j in range(count):
                own[j] += load(line[j])
