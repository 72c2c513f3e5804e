"""MSP, multi-expert semantic projection: how AsymRec reads an item (arXiv 2605.14512).

h_i = sum_e alpha_{i,e} f_e(x_i), where x_i is the item's continuous vector, f_e a two-layer MLP and alpha_i the softmax of a
linear gate over the E experts. Every expert is always used: no top-k, no balancing loss, and no code is looked up.

Not in the paper, our choice: f_e is Linear, GELU, Linear with an inner width of d_model, and x is standardised first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MSP(nn.Module):
    """Item vectors [n, d] -> [n, width].

    Args:
        d: width of the item vectors.
        width: d_model.
        experts: E.
        inner: width of each expert's inner layer; d_model when None.
    """

    def __init__(self, d: int, width: int, experts: int = 3, inner: int | None = None):
        super().__init__()
        inner = inner or width
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.gate = nn.Linear(d, experts)
        # The experts' first layers are one matrix, and so are their second: two products for all of them.
        self.first = nn.Linear(d, experts * inner)
        self.second = nn.Parameter(torch.empty(experts, inner, width))
        self.bias = nn.Parameter(torch.zeros(experts, width))
        self.experts, self.width = experts, width
        nn.init.normal_(self.first.weight, std=d**-0.5)
        nn.init.zeros_(self.first.bias)
        nn.init.normal_(self.second, std=inner**-0.5)

    def standardise(self, vectors: Tensor) -> None:
        """Take mean and spread of each dimension from the training items' vectors [n, d].

        A dimension in which they are all alike is not read: nothing is learned of it, and an item that differs there, which only came
        after the training, would be read as nothing else.
        """
        spread = vectors.std(0, correction=int(len(vectors) > 1))
        self.mean.copy_(vectors.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * self.scale
        alpha = F.softmax(self.gate(x), -1)  # [n, E]
        inner = F.gelu(self.first(x)).unflatten(1, (self.experts, -1))
        # The gate is applied before the second layer, so that sum over experts and second layer are one product.
        gated = (inner * alpha.unsqueeze(-1)).flatten(1)
        return gated @ self.second.view(-1, self.width) + alpha @ self.bias
