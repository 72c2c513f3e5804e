"""Items that a network has vectors for: a learned one each, what is made of their content, what codes tell of them, or their sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymrec.nn.heads import scaled, unit
from asymrec.nn.losses import CodeSum
from asymrec.nn.msp import MSP


class ItemTable(nn.Module):
    """Item rows -> vectors [n, width].

    Args:
        n_items, width: of the table.
        vectors: float32 [n_items, d], the items' content; a two-layer network of it is added to the learned vector. None: by id alone.
        trained: int [m], the items of training, whose mean and spread the content is standardised by.
        codes: int [n_items, C], below `words`, whose learned vectors are added; None: there are none.
    """

    def __init__(
        self,
        n_items: int,
        width: int,
        vectors: Tensor | None = None,
        trained: Tensor | None = None,
        codes: Tensor | None = None,
        words: int = 0,
    ):
        super().__init__()
        self.embedding = nn.Embedding(n_items, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.content = None
        if vectors is not None:
            self.register_buffer("vectors", vectors, persistent=False)
            self.content = MSP(vectors.shape[1], width, experts=1)
            self.content.standardise(vectors[trained])
            nn.init.normal_(self.content.second, std=0.02 * width**-0.5)  # all parts start at one size
        self.codes = None
        if codes is not None:
            self.codes = nn.Parameter(torch.randn(codes.shape[1], words, width) * 0.02 * codes.shape[1] ** -0.5)
            self.sum = CodeSum(codes, words)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """rows: int64 [n]; all items when None."""
        item = self.embedding.weight if rows is None else self.embedding(rows)
        if self.content is not None:
            item = item + self.content(self.vectors if rows is None else self.vectors[rows]).float()
        return item if self.codes is None else item + self.sum(self.codes, rows)


class ItemHead(nn.Module):
    """States [n, width] against every item's vector in the table that the network reads items from.

    Args:
        table: of the items.
        temperature: divides the cosine; None: inner products.
    """

    def __init__(self, table: ItemTable, temperature: float | None):
        super().__init__()
        self.table = table
        self.bias = nn.Parameter(torch.zeros(table.embedding.num_embeddings))
        self.temperature = temperature

    def items(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of all items, or of some rows: vectors [items, width] and biases [items]."""
        return unit(self.table(rows), self.temperature), self.bias if rows is None else self.bias[rows]

    def query(self, states: Tensor) -> Tensor:
        return scaled(states, self.temperature)
