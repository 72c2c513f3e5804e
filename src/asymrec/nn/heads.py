"""The output side of AsymRec (arXiv 2605.14512): from the decoder's state to the M*L codes of the next item.

Two ways to learn the same discrete target:

- `FacetHeads`, the paper's: M*L parallel two-layer MLPs, each with a softmax over its K codewords; the loss is the mean
  cross-entropy over heads, an item's score the mean log-probability of its codes. Where the paper is silent we follow RPG
  (arXiv 2506.05781): cosine logits divided by a temperature, the second layer's rows being the codewords.
- `CatalogueHead`, ours: heads are linear, so that an item's score, the sum over heads of <state, embedding of its code>, is one
  product with the sum of its code embeddings. That sum is normalised and the softmax runs over the items of the catalogue, not
  over codewords: probability is not spent on code combinations that no item has. The target is still MHQ's code.
  A code's embedding is a learned one plus a linear map of its codeword, one map for all codes of a facet: codes of like content begin
  alike, and a rare code learns from the others. Codes behind those of the content have no codeword.
  An optimiser that moves every weight by one size, as AdamW does, moves a sum of H embeddings H times as far as a vector of its own. So
  the learned embeddings and biases of the content's codes are used at a rate of what is stored: the map, which all items share, is learned
  before what each code has for itself, and histories are known by heart later.

And one without codes, `VectorHead`: it compares with the items' own continuous vectors, the paper's ablation "continuous output".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.losses import CodeSum, heads_cross_entropy


def scaled(x: Tensor, temperature: float | None) -> Tensor:
    """What makes a product with unit vectors a cosine over temperature; x itself where there is none."""
    return x.float() if temperature is None else F.normalize(x.float(), dim=-1) / temperature


def unit(x: Tensor, temperature: float | None) -> Tensor:
    """The other side of that product: length 1, or x itself where there is no temperature."""
    return x if temperature is None else F.normalize(x, dim=-1)


class CatalogueHead(nn.Module):
    """States [n, width] against every item, through its codes.

    Args:
        codes: int [items, H].
        words: K.
        width: d_model.
        temperature: divides the cosine; None: inner products.
        codewords: float32 [M, L, K, d], what the first M * L codes stand for; None: embeddings are learned alone.
        content: how many codes, the first ones, are of the content; None: all.
        rate: what the stored embeddings and biases of these are multiplied with.
    """

    def __init__(
        self,
        codes: Tensor,
        words: int,
        width: int,
        temperature: float | None,
        codewords: Tensor | None = None,
        content: int | None = None,
        rate: float = 1.0,
    ):
        super().__init__()
        heads = codes.shape[1]
        rates = torch.ones(heads, 1, 1)
        rates[:content] = rate
        self.register_buffer("rates", rates)
        self.embedding = nn.Parameter(torch.randn(heads, words, width) * (heads * width) ** -0.5 / rates)
        self.bias = nn.Parameter(torch.zeros(heads, words, 1))
        self.map = None
        if codewords is not None:
            facets, _, _, d = codewords.shape
            self.register_buffer("codewords", codewords.flatten(1, 2), persistent=False)
            self.map = nn.Parameter(torch.randn(facets, d, width) * (facets * d * width) ** -0.5)  # both parts start at one size
        self.sum = CodeSum(codes, words)
        self.temperature = temperature

    def embeddings(self) -> Tensor:
        """Of all codes, [H, K, width]."""
        with torch.autocast(self.embedding.device.type, enabled=False):
            learned = self.embedding * self.rates
            if self.map is None:
                return learned
            known = torch.bmm(self.codewords, self.map).view(-1, *learned.shape[1:])
            return torch.cat((learned[: len(known)] + known, learned[len(known) :]))

    def biases(self) -> Tensor:
        """Of all codes, [H, K, 1]."""
        return self.bias * self.rates

    def vectors(self, rows: Tensor | None = None) -> Tensor:
        """The sum of an item's code embeddings, of all items or of some rows: [items, width]."""
        return self.sum(self.embeddings(), rows)

    def items(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of all items, or of some rows: vectors of length 1 [items, width] and biases [items]."""
        return unit(self.vectors(rows), self.temperature), self.sum(self.biases(), rows).squeeze(-1)

    def query(self, states: Tensor) -> Tensor:
        """What is multiplied with the items' vectors."""
        return scaled(states, self.temperature)

    def facet_loss(self, states: Tensor, codes: Tensor, precision: torch.dtype) -> Tensor:
        """The same linear heads under the paper's loss: mean cross-entropy over heads; codes int64 [n, H] of the targets."""
        query = self.query(states).expand(len(self.embedding), -1, -1)
        return heads_cross_entropy(query, self.embeddings(), codes.T.contiguous(), precision)


class VectorHead(nn.Module):
    """States [n, width] against every item's own vector, through one linear layer.

    Args:
        vectors: float32 [items, d], centred; fixed.
        width: d_model.
        temperature: divides the cosine; None: inner products.
    """

    def __init__(self, vectors: Tensor, width: int, temperature: float | None):
        super().__init__()
        self.register_buffer("vectors", unit(vectors, temperature), persistent=False)
        self.out = nn.Linear(width, vectors.shape[1])
        self.temperature = temperature

    def items(self, rows: Tensor | None = None) -> tuple[Tensor, None]:
        return self.vectors if rows is None else self.vectors[rows], None

    def query(self, states: Tensor) -> Tensor:
        return scaled(self.out(states), self.temperature)


class FacetHeads(nn.Module):
    """States [n, width] -> H = M*L softmaxes over K codewords.

    Args:
        heads: H.
        words: K.
        width: d_model.
        inner: width of each head's inner layer and of its codewords; None: no inner layer, linear heads.
        temperature: divides the cosine; None: inner products.
    """

    def __init__(self, heads: int, words: int, width: int, inner: int | None, temperature: float | None):
        super().__init__()
        self.first = None
        if inner is not None:
            self.first = nn.Linear(width, heads * inner)  # all heads' first layers are one product
            nn.init.normal_(self.first.weight, std=width**-0.5)
            nn.init.zeros_(self.first.bias)
        size = width if inner is None else inner
        self.second = nn.Parameter(torch.randn(heads, words, size) * size**-0.5)
        self.temperature = temperature

    def queries(self, states: Tensor) -> Tensor:
        """[n, width] -> what each head multiplies with its codewords, [H, n, inner]."""
        if self.first is None:
            return scaled(states, self.temperature).expand(len(self.second), -1, -1)
        inner = self.first(states).view(len(states), len(self.second), -1).transpose(0, 1)
        return scaled(F.gelu(inner), self.temperature)

    def loss(self, states: Tensor, codes: Tensor, precision: torch.dtype) -> Tensor:
        """Mean cross-entropy over heads and places; states [n, width], codes int64 [n, H] of the targets."""
        words = unit(self.second, self.temperature)
        return heads_cross_entropy(self.queries(states), words, codes.T.contiguous(), precision)

    def log_probabilities(self, states: Tensor) -> Tensor:
        """[n, width] -> float32 [n, H, K]."""
        logits = torch.bmm(self.queries(states), unit(self.second, self.temperature).transpose(1, 2))
        return logits.float().log_softmax(-1).transpose(0, 1)
