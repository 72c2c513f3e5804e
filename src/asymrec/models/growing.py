"""Tables that grow by rows at their end, while those who hold an earlier state go on reading it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

SPARE = 4  # a new buffer has room for a quarter more rows, and some


class Growing:
    """A tensor [n, ...] whose successor shares its memory: rows that come are written behind those that are there, and no row is copied
    as long as there is room. A second successor of one state gets memory of its own.
    """

    def __init__(self, rows: Tensor, shared: dict | None = None):
        self.rows = rows
        self._shared = shared or {"buffer": rows, "used": len(rows)}

    def then(self, more: Tensor) -> Growing:
        """The same rows and `more` [m, ...] after them; this one stays as it is."""
        n, total, shared = len(self.rows), len(self.rows) + len(more), self._shared
        if shared["used"] != n or total > len(shared["buffer"]):
            buffer = torch.empty((total + total // SPARE + 64, *self.rows.shape[1:]), dtype=self.rows.dtype, device=self.rows.device)
            buffer[:n] = self.rows
            shared = {"buffer": buffer, "used": n}
        shared["buffer"][n:total] = more
        shared["used"] = total
        return Growing(shared["buffer"][:total], shared)


def twin(module: nn.Module) -> nn.Module:
    """A module of the same parameters and parts, in which these may be exchanged without the original's knowing."""
    other = copy.copy(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        other.__dict__[kind] = dict(getattr(module, kind))
    return other
