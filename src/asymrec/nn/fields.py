"""Fields of a table as embeddings: categories, lists of categories, codes, vectors, numbers; one width for all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Periodic(nn.Module):
    """A number by learned waves, "On Embeddings for Numerical Features in Tabular Deep Learning" (Gorishniy et al., arXiv 2203.05556), PLR.

    In words: sines and cosines of 2 pi c x for `waves` learned frequencies c, then a linear map and a ReLU. Differs: a number that is
    not there has the embedding 0, as nothing has in every other kind.
    """

    def __init__(self, waves: int, width: int, spread: float = 0.3):
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(waves) * spread)
        self.linear = nn.Linear(2 * waves, width)

    def forward(self, column: Tensor) -> Tensor:
        """float32 [..., 2], the number and 1 where it is there, else 0 -> [..., width]."""
        angle = 2 * torch.pi * self.frequency * column[..., :1]
        return F.relu(self.linear(torch.cat([angle.sin(), angle.cos()], -1))) * column[..., 1:]


class FieldEmbeddings(nn.Module):
    """Encoded fields of the same rows -> [rows, fields, width].

    Args:
        kinds: kind of each field, as in the schema of a ranker; None stands for a plain number of a category.
        sizes: how many numbers a field has (vector, text: its width; periodic: its waves).
        width: of every embedding.
    Number 0 is nothing: its embedding stays 0. Lists are averaged over what is there, codes are summed.
    """

    def __init__(self, kinds: list[str], sizes: list[int], width: int):
        super().__init__()
        self.kinds, self.width = kinds, width
        self.tables = nn.ModuleList(_table(kind, size, width) for kind, size in zip(kinds, sizes))
        for table in self.tables:
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.05)
                with torch.no_grad():
                    table.weight[0] = 0

    def forward(self, columns: list[Tensor]) -> Tensor:
        """columns: of each field int64 [rows], int64 [rows, places] or float32 [rows, d]; periodic: float32 [rows, 2]."""
        parts = []
        for kind, table, column in zip(self.kinds, self.tables, columns):
            if kind in ("vector", "text", "periodic"):
                parts.append(table(column))
            elif kind == "values":
                there = (column > 0).sum(-1, keepdim=True).clamp_min(1)
                parts.append(F.embedding(column, table.weight, padding_idx=0).sum(-2) / there)
            elif kind == "code":
                parts.append(table(column).sum(-2))
            else:
                parts.append(table(column))
        return torch.stack(parts, -2)


def _table(kind: str, size: int, width: int) -> nn.Module:
    if kind == "periodic":
        return Periodic(size, width)
    return nn.Linear(size, width, bias=False) if kind in ("vector", "text") else nn.Embedding(size, width, padding_idx=0)
