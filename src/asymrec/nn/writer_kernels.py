"""Compiled passes of writing beams on a processor, in float32 and bfloat16. Imported only when a search runs on one.

Arrays come as bits, uint32 of a float32 and uint16 of a bfloat16, and are shifted left by `shift`, 0 or 16, into the bits of a float32
to be computed with. One thread each: searches for different users run side by side.
"""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled
from asymrec.nn.fused_kernels import _rounded


@compiled(fastmath=True)
def add_norm(x, y, out, eps, shift):  # pragma: no cover - compiled
    """x float32 [n, width] gets y added; out becomes x divided by its root mean square."""
    n, width = x.shape
    bits = np.empty(width, np.uint32)
    value = bits.view(np.float32)
    for i in range(n):
        row, added, normed = x[i], y[i], out[i]
        for j in range(width):
            bits[j] = np.uint32(added[j]) << shift
        total = np.float32(0)
        for j in range(width):
            row[j] += value[j]
            total += row[j] * row[j]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        for j in range(width):
            value[j] = row[j] * factor
        if shift:
            for j in range(width):
                normed[j] = _rounded(bits[j])
        else:
            for j in range(width):
                normed[j] = bits[j]


@compiled(fastmath=True)
def attend(qkv, first, lines, bias, out, shift):  # pragma: no cover - compiled
    """Each prefix's last token attends to the prefix.

    qkv: [rows, 3 * heads * head_width], queries, keys and values of all tokens; the prefixes' last ones from row `first` on.
    lines: int32 [m, tokens], the rows of each prefix's tokens. bias: float32 [heads, tokens]. out: [m, heads * head_width].
    """
    m, tokens = lines.shape
    heads, inner = len(bias), out.shape[1]
    size = inner // heads
    bits, shares = np.empty((3, inner), np.uint32), np.empty((tokens, heads), np.float32)
    value = bits.view(np.float32)
    query, other, attended = value[0], value[1], value[2]
    for i in range(m):
        row = qkv[first + i]
        for j in range(inner):
            bits[0, j] = np.uint32(row[j]) << shift
        for token in range(tokens):
            row = qkv[lines[i, token]]
            for j in range(inner):
                bits[1, j] = np.uint32(row[inner + j]) << shift
            for head in range(heads):
                start, total = head * size, np.float32(0)
                for j in range(size):
                    total += query[start + j] * other[start + j]
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
            for j in range(inner):
                bits[1, j] = np.uint32(row[2 * inner + j]) << shift
            for head in range(heads):
                start, share = head * size, shares[token, head]
                for j in range(size):
                    attended[start + j] += share * other[start + j]
        written = out[i]
        if shift:
            for j in range(inner):
                written[j] = _rounded(bits[2, j])
        else:
            for j in range(inner):
                written[j] = bits[2, j]
