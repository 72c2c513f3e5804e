"""Compiled element-wise passes of a Transformer's step for processors. Imported only when a step runs on one.

Arrays are float32, or bfloat16 as uint16 (`scalars.py`), all of a call alike but for those that are said to be float32.

Dropout draws nothing: element i is kept where a hash of (seed, i) is at least `threshold`, a share of 2^32. So the backward pass
makes the mask of the forward pass again, and no mask is stored.

Each works on the rows, or blocks of rows, begin .. end - 1 and is called by `threads.by_rows`.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled
from asymrec.nn.scalars import exp, hashed, load, stored


@compiled
def dropout(begin, end, x, out, seed, threshold, scale):  # pragma: no cover - compiled
    """out = scale * x where kept, else 0; [n, width] both."""
    width = x.shape[1]
    for i in range(begin, end):
        row, line = x[i], out[i]
        first = np.uint32(np.uint32(i) * np.uint32(width))
        for j in range(width):
            value = load(row[j]) * scale
            kept = hashed(seed, np.uint32(first + np.uint32(j))) >= threshold
            line[j] = stored(value if kept else np.float32(0), line)


@compiled(fastmath=True)
def relu(begin, end, u, seed, threshold):  # pragma: no cover - compiled
    """In place: u [n, width] where it is positive and kept, else 0."""
    width = u.shape[1]
    for i in range(begin, end):
        row = u[i]
        first = np.uint32(np.uint32(i) * np.uint32(width))
        for j in range(width):
            value = load(row[j])
            kept = (value > np.float32(0)) & (hashed(seed, np.uint32(first + np.uint32(j))) >= threshold)
            row[j] = stored(value if kept else np.float32(0), row)


@compiled(fastmath=True)
def relu_gradient(begin, end, gradient, u):  # pragma: no cover - compiled
    """In place: the gradient where u, what `relu` left, is not 0."""
    width = u.shape[1]
    for i in range(begin, end):
        row, left = gradient[i], u[i]
        for j in range(width):
            value, there = load(row[j]), load(left[j]) != np.float32(0)
            row[j] = stored(value if there else np.float32(0), row)


@compiled(fastmath=True)
def softmax(begin, end, scores, bias, out, seed, threshold):  # pragma: no cover - compiled
    """scores [n, heads, k, q] become softmax over k of scores + bias [heads, k, q], in place; out the same where kept, else 0.

    Keys come before queries so that maxima and sums run over whole lines, not along them. bias is float32.
    """
    _, heads, k, q = scores.shape
    for i in range(begin, end):
        value, line = np.empty((k, q), np.float32), np.empty(q, np.float32)
        for head in range(heads):
            score, kept = scores[i, head], out[i, head]
            first = np.uint32(np.uint32(i * heads + head) * np.uint32(k * q))
            line[:] = np.float32(-3e38)
            for row in range(k):
                for j in range(q):
                    value[row, j] = load(score[row, j]) + bias[head, row, j]
                    line[j] = max(line[j], value[row, j])
            for row in range(k):
                for j in range(q):
                    value[row, j] = exp(value[row, j] - line[j])
            line[:] = np.float32(0)
            for row in range(k):
                for j in range(q):
                    line[j] += value[row, j]
            for j in range(q):
                line[j] = np.float32(1) / line[j]
            for row in range(k):
                for j in range(q):
                    score[row, j] = stored(value[row, j] * line[j], score)
                start = np.uint32(first + np.uint32(row * q))
                for j in range(q):
                    share = load(score[row, j])
                    kept[row, j] = stored(share if hashed(seed, np.uint32(start + np.uint32(j))) >= threshold else np.float32(0), kept)


@compiled(fastmath=True)
def softmax_gradient(begin, end, gradient, probability, kept, by_bias):  # pragma: no cover - compiled
    """In place: the gradient of `kept` [n, heads, k, q] becomes that of the scores; by_bias, float32 [blocks, heads, k, q], gets sums
    over n."""
    n, heads, k, q = probability.shape
    blocks = len(by_bias)
    for block in range(begin, end):
        part, line = np.empty((k, q), np.float32), np.empty(q, np.float32)
        for i in range(block * n // blocks, (block + 1) * n // blocks):
            for head in range(heads):
                d, p, m, total = gradient[i, head], probability[i, head], kept[i, head], by_bias[block, head]
                line[:] = np.float32(0)
                for row in range(k):
                    for j in range(q):
                        part[row, j] = load(m[row, j]) * load(d[row, j])
                        line[j] += part[row, j]
                for row in range(k):
                    for j in range(q):
                        part[row, j] -= load(p[row, j]) * line[j]
                        total[row, j] += part[row, j]
                    for j in range(q):
                        d[row, j] = stored(part[row, j], d)


@compiled(fastmath=True)
def add_norm(begin, end, x, y, weight, normed, inverse, eps, seed, threshold, scale):  # pragma: no cover - compiled
    """In place: x float32 [n, width] gets scale * y where kept; normed = x * inverse * weight, inverse [n] = 1 / root mean square of x.

    weight [width] and inverse are float32."""
    width = x.shape[1]
    for i in range(begin, end):
        row, added, out = x[i], y[i], normed[i]
        first = np.uint32(np.uint32(i) * np.uint32(width))
        total = np.float32(0)
        for j in range(width):
            value = load(added[j]) * scale
            kept = hashed(seed, np.uint32(first + np.uint32(j))) >= threshold
            row[j] += value if kept else np.float32(0)
            total += row[j] * row[j]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        inverse[i] = factor
        for j in range(width):
            out[j] = stored(row[j] * factor * weight[j], out)


@compiled(fastmath=True)
def add_norm_gradient(
    begin, end, x, weight, inverse, by_normed, by_x, by_y, by_weight, seed, threshold, scale
):  # pragma: no cover - compiled
    """In place: by_x [n, width], the gradient of the sum x, gets what comes through the norm; by_y becomes that of y, and by_weight
    [blocks, width] gets sums over rows. All but by_normed and by_y are float32."""
    n, width = x.shape
    blocks = len(by_weight)
    for block in range(begin, end):
        slope = np.empty(width, np.float32)
        weights = by_weight[block]
        for i in range(block * n // blocks, (block + 1) * n // blocks):
            row, given, passed, out, factor = x[i], by_normed[i], by_x[i], by_y[i], inverse[i]
            first = np.uint32(np.uint32(i) * np.uint32(width))
            mean = np.float32(0)
            for j in range(width):
                slope[j] = load(given[j])
                weights[j] += slope[j] * row[j] * factor
                slope[j] *= weight[j]
                mean += slope[j] * row[j]
            mean *= factor * factor / np.float32(width)
            for j in range(width):
                passed[j] += factor * (slope[j] - row[j] * mean)
            for j in range(width):
                value = passed[j] * scale
                kept = hashed(seed, np.uint32(first + np.uint32(j))) >= threshold
                out[j] = stored(value if kept else np.float32(0), out)
