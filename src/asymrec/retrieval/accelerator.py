"""The search over codes in plain torch, for tables on an accelerator: the same rows and scores as on the processor.

Scores are summed head after head in float32, as there. `torch.topk` promises nothing about equal scores: where more items than places
reach the k-th best score, all who do are sorted by (score, row).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymrec.retrieval.exact import Barred
from asymrec.retrieval.filters import Bitmap

AT_ONCE = 1 << 26  # scores that exist at one time: 256 MiB


def search_codes(
    tables: Tensor, columns: Tensor, k: int, exclude: Any, allowed: Bitmap, own: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `CodeIndex.search`; tables [b, H, K], columns uint8 or int32 [H, n], the codes, and own float32 [n, 2] on one device."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    (b, heads, _), n, device = tables.shape, columns.shape[1], tables.device
    rows, scores = np.full((b, k), -1, np.int32), np.full((b, k), -np.inf, np.float32)
    barred = Barred.of(exclude, b, n)
    barring = torch.from_numpy(~allowed.mask()).to(device)
    tables, most = tables.float() / heads, min(k, n)
    step = max(1, AT_ONCE // max(1, n))
    for start in range(0, b, step):
        part = tables[start : start + step]
        lines = torch.zeros(len(part), n, device=device)
        for head in range(heads):
            lines += part[:, head][:, columns[head].int()]
        if own is not None:
            lines = lines * own[:, 0] + own[:, 1]
        if bool((lines.isnan() | (lines == torch.inf)).any()):
            raise ValueError("NaN or +inf among the scores")
        lines.masked_fill_(barring, -torch.inf)
        theirs = barred.of_queries(slice(start, start + len(part)))
        owners = np.repeat(np.arange(len(part)), np.diff(theirs.offsets))
        items = theirs.rows[theirs.offsets[0] : theirs.offsets[-1]]
        lines[torch.from_numpy(owners).to(device), torch.from_numpy(items).to(device)] = -torch.inf
        found, values, ties = _best(lines, most)
        rows[start : start + len(part), :most], scores[start : start + len(part), :most] = found, values
        for query in ties:
            near = torch.nonzero(lines[query] >= float(values[query, -1])).squeeze(1)
            best = near[torch.argsort(lines[query, near], descending=True, stable=True)[:most]]
            rows[start + query, :most], scores[start + query, :most] = best.cpu().numpy(), lines[query, best].cpu().numpy()
    return rows, scores


def _best(lines: Tensor, most: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Rows [b, most] and scores, best first, among equal ones the smaller row; and the queries whose last place several items have a claim
    to, of which `torch.topk` takes any."""
    if not most:
        return np.zeros((len(lines), 0), np.int32), np.zeros((len(lines), 0), np.float32), []
    found = lines.topk(most, sorted=False).indices.sort(1).values
    values, order = lines.gather(1, found).sort(dim=1, descending=True, stable=True)
    claims = (lines >= values[:, -1:]).sum(1) > most
    ties = torch.nonzero(claims & (values[:, -1] > -torch.inf)).squeeze(1).tolist()
    found = found.gather(1, order).masked_fill_(values == -torch.inf, -1)
    return found.cpu().numpy(), values.cpu().numpy(), ties
