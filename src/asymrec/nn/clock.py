"""When the last item of a history was taken, told to the state after it. AsymRec (arXiv 2605.14512) and SASRec know orders, no times.

In words: the interactions of training, in the order of their times, are cut into 32 parts of equal size and into 256; a learned vector
of the part that a time lies in, one of 32 and one of 256, is added to the state. An item knows by codes of its own how old it is and how
often it was taken (`quantize/popularity.py`); the state now knows which of those are taken at its time. A time after all of training lies
in the last parts.

It is the time of an item that the history holds, never of the one that is to be foretold. Times of a tenth of the histories, drawn anew
each step, are dropped in training, so that a history may come without.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.data import Sequences

PARTS = (32, 256)  # what few interactions share is told apart, and learns from what many do
UNKNOWN = torch.iinfo(torch.int64).min  # a time that is not known
FORGET = 0.1


def time_edges(train: Sequences) -> np.ndarray:
    """int64 [sum of PARTS - 1]: where each part but the first begins, the 32's first; none where training has no times."""
    if train.times is None or not len(train.times):
        return np.empty(0, np.int64)
    times = np.sort(train.times)
    return np.concatenate([times[np.arange(1, parts) * len(times) // parts] for parts in PARTS])


class Clock(nn.Module):
    """Times int64 [n], UNKNOWN where there is none -> what is added to the states after them, [n, width], 0 where there is none.

    Args:
        edges: as `time_edges` gives them.
        width: of a state.
    """

    def __init__(self, edges: Tensor, width: int):
        super().__init__()
        self.register_buffer("edges", edges, persistent=False)
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(parts, width) * 0.02) for parts in PARTS)

    def forward(self, times: Tensor, owners: Tensor | None = None) -> Tensor:
        """owners: int64 [n], from 0, whose times are dropped together in training; None: each its own."""
        if self.training:
            count = len(times) if owners is None else int(owners.max()) + 1
            dropped = torch.rand(count, device=times.device) < FORGET
            times = times.masked_fill(dropped if owners is None else dropped[owners], UNKNOWN)
        edges = self.edges.split([parts - 1 for parts in PARTS])
        found = [F.embedding((times.unsqueeze(1) >= begin).sum(1), table) for begin, table in zip(edges, self.parts)]
        return sum(found) * (times != UNKNOWN).unsqueeze(1)
