"""Compiled passes of writing beams on a processor. Imported only when a search runs on one.

Arrays are float32, or bfloat16 as uint16 (`scalars.py`). One thread each: searches for different users run side by side.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled
from asymrec.nn.scalars import load, stored


@compiled(fastmath=True)
def add_norm(x, y, out, eps):  # pragma: no cover - compiled
    """x float32 [n, width] gets y added; out becomes x divided by its root mean square."""
    n, width = x.shape
    for i in range(n):
        row, added, normed = x[i], y[i], out[i]
        total = np.float32(0)
        for j in range(width):
            row[j] += load(added[j])
            total += row[j] * row[j]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        for j in range(width):
            normed[j] = stored(row[j] * factor, normed)


@compiled(fastmath=True)
def attend(qkv, first, lines, bias, out):  # pragma: no cover - compiled
    """Each prefix's last token attends to the prefix.

    qkv: [rows, 3 * heads * head_width], queries, keys and values of all tokens; the prefixes' last ones from row `first` on.
    lines: int32 [m, tokens], the rows of each prefix's tokens. bias: float32 [heads, tokens]. out: [m, heads * head_width].
    """
    m, tokens = lines.shape
    heads, inner = len(bias), out.shape[1]
    size = inner // heads
    query, attended, shares = np.empty(inner, np.float32), np.empty(inner, np.float32), np.empty((tokens, heads), np.float32)
    for i in range(m):
        row = qkv[first + i]
        for j in range(inner):
            query[j] = load(row[j])
        for token in range(tokens):
            row = qkv[lines[i, token]]
            for head in range(heads):
                start, total = head * size, np.float32(0)
                for j in range(size):
                    total += query[start + j] * load(row[inner + start + j])
                shares[token, head] = total + bias[head, token]
        for head in range(heads):
            largest = shares[0, head]
            for token in range(1, tokens):
                largest = max(largest, shares[token, head])
            total = np.float32(0)
            for token in range(tokens):
                shares[token, head] = np.exp(shares[token, head] - largest)
                total += shares[token, head]
            for token in range(tokens):
                shares[token, head] /= total
        attended[:] = np.float32(0)
        for token in range(tokens):
            row = qkv[lines[i, token]]
            for head in range(heads):
                start, share = head * size, shares[token, head]
                for j in range(size):
                    attended[start + j] += share * load(row[2 * inner + start + j])
        written = out[i]
        for j in range(inner):
            written[j] = stored(attended[j], written)
