"""The output side of AsymRec (arXiv 2605.14512): from the decoder's state to the M*L codes of the next item.

Two ways to learn the same discrete target:

- `FacetHeads`, the paper's: M*L parallel two-layer MLPs, each with a softmax over its K codewords; the loss is the mean
  cross-entropy over heads, an item's score the mean log-probability of its codes. Where the paper is silent we follow RPG
  (arXiv 2506.05781): cosine logits divided by a temperature, the second layer's rows being the codewords.
- `CatalogueHead`, ours: heads are linear, so that an item's score, the sum over heads of <state, embedding of its code>, is one
  product with the sum of its code embeddings. That sum is normalised and the softmax runs over the items of the catalogue, not
  over codewords: probability is not spent on code combinations that no item has. The target is still MHQ's code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.losses import CodeSum, heads_cross_entropy


class CatalogueHead(nn.Module):
    """States [n, width] against every item, through its codes.

    Args:
        codes: int [items, H].
        words: K.
        width: d_model.
        temperature: divides the cosine.
    """

    def __init__(self, codes: Tensor, words: int, width: int, temperature: float):
        super().__init__()
        heads = codes.shape[1]
        self.embedding = nn.Parameter(torch.randn(heads, words, width) * (heads * width) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(heads, words, 1))
        self.sum = CodeSum(codes, words)
        self.temperature = temperature

    def items(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of all items, or of some rows: vectors of length 1 [items, width] and biases [items]."""
        return F.normalize(self.sum(self.embedding, rows), dim=-1), self.sum(self.bias, rows).squeeze(-1)

    def query(self, states: Tensor) -> Tensor:
        """What is multiplied with the items' vectors: unit length over temperature."""
        return F.normalize(states.float(), dim=-1) / self.temperature

    def facet_loss(self, states: Tensor, codes: Tensor, precision: torch.dtype) -> Tensor:
        """The same linear heads under the paper's loss: mean cross-entropy over heads; codes int64 [n, H] of the targets."""
        query = self.query(states).expand(len(self.embedding), -1, -1)
        return heads_cross_entropy(query, self.embedding, codes.T.contiguous(), precision)


class FacetHeads(nn.Module):
    """States [n, width] -> H = M*L softmaxes over K codewords.

    Args:
        heads: H.
        words: K.
        width: d_model.
        inner: width of each head's inner layer and of its codewords.
        temperature: divides the cosine.
    """

    def __init__(self, heads: int, words: int, width: int, inner: int, temperature: float):
        super().__init__()
        self.first = nn.Linear(width, heads * inner)  # all heads' first layers are one product
        nn.init.normal_(self.first.weight, std=width**-0.5)
        nn.init.zeros_(self.first.bias)
        self.second = nn.Parameter(torch.randn(heads, words, inner) * inner**-0.5)
        self.temperature = temperature

    def queries(self, states: Tensor) -> Tensor:
        """[n, width] -> each head's inner state, unit length over temperature, [H, n, inner]."""
        inner = self.first(states).view(len(states), len(self.second), -1).transpose(0, 1)
        return F.normalize(F.gelu(inner).float(), dim=-1) / self.temperature

    def loss(self, states: Tensor, codes: Tensor, precision: torch.dtype) -> Tensor:
        """Mean cross-entropy over heads and places; states [n, width], codes int64 [n, H] of the targets."""
        words = F.normalize(self.second, dim=-1)
        return heads_cross_entropy(self.queries(states), words, codes.T.contiguous(), precision)

    def log_probabilities(self, states: Tensor) -> Tensor:
        """[n, width] -> float32 [n, H, K]."""
        logits = torch.bmm(self.queries(states), F.normalize(self.second, dim=-1).transpose(1, 2))
        return logits.float().log_softmax(-1).transpose(0, 1)


