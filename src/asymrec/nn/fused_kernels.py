"""Compiled element-wise passes of a Transformer's step for processors, over bfloat16. Imported only when a step runs on one.

A bfloat16 is the upper half of a float32: arrays of it come as uint16, and are shifted into the bits of a float32 to be computed with.

Dropout draws nothing: element i is kept where a hash of (seed, i) is at least `threshold`, a share of 2^32. So the backward pass
makes the mask of the forward pass again, and no mask is stored. The hash is two rounds of multiply and shift (after Wellons,
"Prospecting for Hash Functions", 2018).

Each works on the rows, or blocks of rows, begin .. end - 1 and is called by `threads.by_rows`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from asymrec.compiled import compiled

_LOG2E = np.float32(1.4426950408889634)
_C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in (0.6931471806, 0.2402265070, 0.0555041087, 0.0096181291, 0.0013333558, 0.0001540353))


@njit(inline="always")
def _hash(seed, index):  # pragma: no cover - compiled
    x = np.uint32((index + seed) * np.uint32(0x9E3779B1))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(inline="always")
def _rounded(bits):  # pragma: no cover - compiled
    """float32 -> bfloat16, to nearest even as torch rounds."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def dropout(begin, end, x, out, seed, threshold, scale):  # pragma: no cover - compiled
    """out = scale * x where kept, else 0; float32, or bfloat16 as uint16, [n, width] both."""
    width = x.shape[1]
    bits = np.empty(width, np.uint32)
    value = bits.view(np.float32)
    for i in range(begin, end):
        first = np.uint32(np.uint32(i) * np.uint32(width))
        if x.itemsize == 4:
            for j in range(width):
                kept = _hash(seed, np.uint32(first + np.uint32(j))) >= threshold
                out[i, j] = x[i, j] * scale if kept else np.float32(0)
        else:
            for j in range(width):
                bits[j] = np.uint32(x[i, j]) << np.uint32(16)
            for j in range(width):
                value[j] *= scale
            for j in range(width):
                kept = _hash(seed, np.uint32(first + np.uint32(j))) >= threshold
                out[i, j] = _rounded(bits[j]) if kept else np.uint16(0)


@compiled(fastmath=True)
def relu(begin, end, u, seed, threshold):  # pragma: no cover - compiled
    """In place: u [n, width] where it is positive and kept, else 0."""
    width = u.shape[1]
    for i in range(begin, end):
        row = u[i]
        first = np.uint32(np.uint32(i) * np.uint32(width))
        for j in range(width):
            kept = (row[j] < np.uint16(0x8000)) & (_hash(seed, np.uint32(first + np.uint32(j))) >= threshold)
            row[j] = row[j] if kept else np.uint16(0)


@compiled(fastmath=True)
def relu_gradient(begin, end, gradient, u):  # pragma: no cover - compiled
    """In place: the gradient where u, what `relu` left, is not 0."""
    width = u.shape[1]
    for i in range(begin, end):
        for j in range(width):
            gradient[i, j] = gradient[i, j] if u[i, j] != np.uint16(0) else np.uint16(0)


@compiled(fastmath=True)
def softmax(begin, end, scores, bias, out, seed, threshold):  # pragma: no cover - compiled
    """scores [n, heads, k, q] become softmax over k of scores + bias [heads, k, q], in place; out the same where kept, else 0.

    Keys come before queries so that maxima and sums run over whole lines, not along them.
    """
    _, heads, k, q = scores.shape
    for i in range(begin, end):
        bits, power = np.empty((k, q), np.uint32), np.empty((k, q), np.uint32)
        value, factor, line = bits.view(np.float32), power.view(np.float32), np.empty(q, np.float32)
        for head in range(heads):
            score, kept = scores[i, head], out[i, head]
            first = np.uint32(np.uint32(i * heads + head) * np.uint32(k * q))
            line[:] = np.float32(-3e38)
            for row in range(k):
                for j in range(q):
                    bits[row, j] = np.uint32(score[row, j]) << np.uint32(16)
                for j in range(q):
                    value[row, j] += bias[head, row, j]
                    line[j] = max(line[j], value[row, j])
            for row in range(k):
                for j in range(q):
                    x = max((value[row, j] - line[j]) * _LOG2E, np.float32(-126))
                    whole = np.floor(x + np.float32(0.5))
                    f = x - whole
                    value[row, j] = np.float32(1) + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
                    power[row, j] = np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23)
            line[:] = np.float32(0)
            for row in range(k):
                for j in range(q):
                    value[row, j] *= factor[row, j]
                    line[j] += value[row, j]
            for j in range(q):
                line[j] = np.float32(1) / line[j]
            for row in range(k):
                for j in range(q):
                    value[row, j] *= line[j]
                for j in range(q):
                    score[row, j] = _rounded(bits[row, j])
                start = np.uint32(first + np.uint32(row * q))
                for j in range(q):
                    kept[row, j] = score[row, j] if _hash(seed, np.uint32(start + np.uint32(j))) >= threshold else np.uint16(0)


@compiled(fastmath=True)
def softmax_gradient(begin, end, gradient, probability, kept, by_bias):  # pragma: no cover - compiled
    """In place: the gradient of `kept` [n, heads, k, q] becomes that of the scores; by_bias [blocks, heads, k, q] gets sums over n."""
    n, heads, k, q = probability.shape
    blocks = len(by_bias)
    for block in range(begin, end):
        slope_bits, share_bits, part_bits = np.empty(q, np.uint32), np.empty(q, np.uint32), np.empty((k, q), np.uint32)
        slope, share, part = slope_bits.view(np.float32), share_bits.view(np.float32), part_bits.view(np.float32)
        line = np.empty(q, np.float32)
        for i in range(block * n // blocks, (block + 1) * n // blocks):
            for head in range(heads):
                d, p, m, total = gradient[i, head], probability[i, head], kept[i, head], by_bias[block, head]
                line[:] = np.float32(0)
                for row in range(k):
                    for j in range(q):
                        slope_bits[j] = np.uint32(d[row, j]) << np.uint32(16)
                        part_bits[row, j] = np.uint32(m[row, j]) << np.uint32(16)
                    for j in range(q):
                        part[row, j] *= slope[j]
                        line[j] += part[row, j]
                for row in range(k):
                    for j in range(q):
                        share_bits[j] = np.uint32(p[row, j]) << np.uint32(16)
                    for j in range(q):
                        part[row, j] -= share[j] * line[j]
                        total[row, j] += part[row, j]
                    for j in range(q):
                        d[row, j] = _rounded(part_bits[row, j])


@compiled(fastmath=True)
def add_norm(begin, end, x, y, weight, normed, inverse, eps, seed, threshold, scale):  # pragma: no cover - compiled
    """In place: x float32 [n, width] gets scale * y where kept; normed = x * inverse * weight, inverse [n] = 1 / root mean square of x."""
    width = x.shape[1]
    for i in range(begin, end):
        bits = np.empty(width, np.uint32)
        value = bits.view(np.float32)
        row, added, out = x[i], y[i], normed[i]
        first = np.uint32(np.uint32(i) * np.uint32(width))
        for j in range(width):
            bits[j] = np.uint32(added[j]) << np.uint32(16)
        total = np.float32(0)
        for j in range(width):
            row[j] += value[j] * scale if _hash(seed, np.uint32(first + np.uint32(j))) >= threshold else np.float32(0)
            total += row[j] * row[j]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        inverse[i] = factor
        for j in range(width):
            value[j] = row[j] * factor * weight[j]
        for j in range(width):
            out[j] = _rounded(bits[j])


@compiled(fastmath=True)
def add_norm_gradient(
    begin, end, x, weight, inverse, by_normed, by_x, by_y, by_weight, seed, threshold, scale
):  # pragma: no cover - compiled
    """In place: by_x float32 [n, width], the gradient of the sum x, gets what comes through the norm; by_y becomes that of y, and
    by_weight [blocks, width] gets sums over rows."""
    n, width = x.shape
    blocks = len(by_weight)
    for block in range(begin, end):
        bits, down = np.empty(width, np.uint32), np.empty(width, np.uint32)
        slope, value = bits.view(np.float32), down.view(np.float32)
        weights = by_weight[block]
        for i in range(block * n // blocks, (block + 1) * n // blocks):
            row, given, passed, out, factor = x[i], by_normed[i], by_x[i], by_y[i], inverse[i]
            first = np.uint32(np.uint32(i) * np.uint32(width))
            for j in range(width):
                bits[j] = np.uint32(given[j]) << np.uint32(16)
            mean = np.float32(0)
            for j in range(width):
                weights[j] += slope[j] * row[j] * factor
                slope[j] *= weight[j]
                mean += slope[j] * row[j]
            mean *= factor * factor / np.float32(width)
            for j in range(width):
                passed[j] += factor * (slope[j] - row[j] * mean)
            for j in range(width):
                value[j] = passed[j] * scale if _hash(seed, np.uint32(first + np.uint32(j))) >= threshold else np.float32(0)
            for j in range(width):
                out[j] = _rounded(down[j])
