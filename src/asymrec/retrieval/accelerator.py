"""The search over codes in plain torch, for tables on an accelerator: the same rows and scores as on the processor.

Scores are summed head after head in float32, as there. `torch.topk` promises nothing about equal scores, so it only finds how high
the k-th best is; who reaches that is sorted by (score, row).
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
    tables: Tensor, codes: Tensor, k: int, exclude: Any, allowed: Bitmap, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `CodeIndex.search`; tables [b, H, K] and codes int [n, H] on one device."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    (b, heads, _), n, device = tables.shape, len(codes), tables.device
    rows, scores = np.full((b, k), -1, np.int32), np.full((b, k), -np.inf, np.float32)
    barred = Barred.of(exclude, b, n)
    may = torch.from_numpy(allowed.mask()).to(device)
    columns, tables = codes.T.long(), tables.float() / heads
    factor, summand = (None, None) if own is None else torch.from_numpy(own).to(device).T
    step = max(1, AT_ONCE // max(1, n))
    for start in range(0, b, step):
        part = tables[start : start + step]
        line = torch.zeros(len(part), n, device=device)
        for head in range(heads):
            line += part[:, head][:, columns[head]]
        if factor is not None:
            line = line * factor + summand
        if bool((line.isnan() | (line == torch.inf)).any()):
            raise ValueError("NaN or +inf among the scores")
        line[:, ~may] = -torch.inf
        theirs = barred.of_queries(slice(start, start + len(part)))
        owners = np.repeat(np.arange(len(part)), np.diff(theirs.offsets))
        items = theirs.rows[theirs.offsets[0] : theirs.offsets[-1]]
        line[torch.from_numpy(owners).to(device), torch.from_numpy(items).to(device)] = -torch.inf
        for query, values in enumerate(line):
            least = values.topk(min(k, n)).values[-1] if n else torch.tensor(torch.inf)
            near = torch.nonzero((values >= least) & (values > -torch.inf)).squeeze(1)
            best = near[torch.argsort(values[near], descending=True, stable=True)[:k]]
            rows[start + query, : len(best)] = best.cpu().numpy()
            scores[start + query, : len(best)] = values[best].cpu().numpy()
    return rows, scores
