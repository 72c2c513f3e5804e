"""T5, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (Raffel et al., arXiv 1910.10683): encoder and
decoder of a sequence-to-sequence Transformer, as TIGER uses them.

Pre-norm blocks without any bias; the norm divides by the root mean square and subtracts nothing; attention logits are not scaled but
get a learned number for each head and bucket of the distance between key and query, which all layers share; ReLU; dropout on
embeddings, on each branch, inside the feed-forward layer, on attention and at the end.

Sequences of unequal length cost what their tokens cost. They lie end to end, the shortest first, so that every layer but attention
sees one matrix [tokens, width] without padding, and attention sees one rectangle for each run of equal lengths: no mask is needed.
Cross-attention has few queries and many keys, so keys and values are never computed: <W_q x, W_k h> = <W_k^T W_q x, h>, the queries are
brought into the space of the encoder's states by one product, and what they attended to comes back through W_o W_v. It is the same
model, trained in the same parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.decoder import Runs
from asymrec.nn.fused import add_norm, masked_relu, masked_softmax, self_attention

BUCKETS, MAX_DISTANCE = 32, 128


def relative_buckets(queries: int, keys: int, both_ways: bool) -> Tensor:
    """int64 [queries, keys]: the bucket of the distance from each query to each key.

    Half of the buckets hold one distance each, the other half ever more, on a logarithmic scale up to MAX_DISTANCE. both_ways: half
    of all buckets are for keys after the query; otherwise such keys fall into bucket 0.
    """
    distance = torch.arange(queries).unsqueeze(1) - torch.arange(keys)  # how far back the key lies
    buckets, first = BUCKETS, 0
    if both_ways:
        buckets //= 2
        first = (distance < 0) * buckets
        distance = distance.abs()
    return first + bucketed(distance.clamp_min(0), buckets)


def bucketed(distance: Tensor, buckets: int) -> Tensor:
    """Distances int64, not negative -> their buckets of so many, see `relative_buckets`."""
    single = buckets // 2
    far = (distance.clamp_min(1) / single).log() / math.log(MAX_DISTANCE / single) * (buckets - single)
    return torch.where(distance < single, distance, (single + far.long()).clamp_max(buckets - 1))


def padded(states: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """States [tokens, width] of the runs' sequences -> [n, longest, width], and float32 [n, longest], -inf where there is no token.

    For cross-attention, whose few queries make padding cheap and many small products dear.
    """
    counts, lengths = torch.tensor(runs, device=states.device).unbind(1)
    lengths = lengths.repeat_interleave(counts).unsqueeze(1)
    places = torch.arange(runs[-1][1], device=states.device)
    there = places < lengths
    rows = torch.where(there, lengths.cumsum(0) - lengths + places, 0)
    return F.embedding(rows, states), torch.where(there, 0.0, -torch.inf)


class SelfAttention(nn.Module):
    """[tokens, width] in and out; the runs' sequences attend each to itself."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        with torch.no_grad():
            self.qkv.weight[: heads * head_width] *= head_width**-0.5  # T5: the start replaces the scaling of the logits
        nn.init.normal_(self.out.weight, std=(heads * head_width) ** -0.5)

    def forward(self, x: Tensor, runs: Runs, bias: Tensor) -> Tensor:
        """bias: [heads, keys, queries], for as many tokens as the longest sequence has, -inf where a query may not see a key."""
        p = self.dropout if self.training else 0.0
        return F.linear(self_attention(self.qkv(x), runs, self.heads, bias, p), self.out.weight / (1 - p))


class CrossAttention(nn.Module):
    """Queries [n * q, width], q of them for each of n sequences, attend to that sequence's encoder states."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm = nn.Parameter(torch.ones(width))
        self.query, self.key, self.value = (nn.Parameter(torch.empty(heads, head_width, width)) for _ in range(3))
        self.out = nn.Parameter(torch.empty(heads, width, head_width))
        nn.init.normal_(self.query, std=(width * head_width) ** -0.5)
        for weight in (self.key, self.value):
            nn.init.normal_(weight, std=width**-0.5)
        nn.init.normal_(self.out, std=(heads * head_width) ** -0.5)

    def forward(self, x: Tensor, states: Tensor, missing: Tensor) -> Tensor:
        """states: [n, longest, width]; missing: float32 [n, longest], see `padded`."""
        p = self.dropout if self.training else 0.0
        with torch.autocast(x.device.type, enabled=False):
            there = (self.key.transpose(1, 2) @ self.query).flatten(0, 1)  # [heads * width, width]
            back = (self.out @ self.value / (1 - p)).transpose(0, 1).flatten(1)  # [width, heads * width]
        queries = F.linear(x, there).view(len(states), -1, states.shape[2])
        scores = states @ queries.transpose(1, 2)
        shares = masked_softmax(scores.unsqueeze(0), missing.unsqueeze(2).expand_as(scores), p).squeeze(0)
        return F.linear((shares.transpose(1, 2) @ states).view(len(x), -1), back)


class FeedForward(nn.Module):
    """[n, width] in and out."""

    def __init__(self, width: int, ffn: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm = nn.Parameter(torch.ones(width))
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)
        nn.init.normal_(self.up.weight, std=width**-0.5)
        nn.init.normal_(self.down.weight, std=ffn**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        p = self.dropout if self.training else 0.0
        return F.linear(masked_relu(self.up(x), p), self.down.weight / (1 - p))


class Stack(nn.Module):
    """Layers of self-attention, cross-attention where asked for, and feed-forward: encoder or decoder."""

    def __init__(self, width: int, layers: int, heads: int, head_width: int, ffn: int, dropout: float, decoder: bool):
        super().__init__()
        self.decoder, self.dropout = decoder, dropout
        self.distance = nn.Parameter(torch.randn(heads, BUCKETS) * width**-0.5)
        self.attention = nn.ModuleList(SelfAttention(width, heads, head_width, dropout) for _ in range(layers))
        self.cross = nn.ModuleList(CrossAttention(width, heads, head_width, dropout) for _ in range(layers if decoder else 0))
        self.feed = nn.ModuleList(FeedForward(width, ffn, dropout) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(width))

    def bias(self, tokens: int) -> Tensor:
        """float32 [heads, keys, queries] for a sequence of tokens; in a decoder -inf for keys after the query."""
        buckets = relative_buckets(tokens, tokens, both_ways=not self.decoder).T.to(self.distance.device)
        bias = self.distance[:, buckets]
        if self.decoder:
            bias = bias.masked_fill(torch.ones_like(buckets, dtype=torch.bool).tril(-1), -torch.inf)
        return bias

    def forward(self, x: Tensor, runs: Runs, states: Tensor | None = None, missing: Tensor | None = None) -> Tensor:
        """
        Args:
            x: [tokens, width], embeddings of the runs' sequences.
            states, missing: a decoder's: the encoder's, `padded`. x's sequences are in their order, equally many for each.
        Returns:
            States [tokens, width].
        """
        p = self.dropout if self.training else 0.0
        precision = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        bias = self.bias(max(length for _, length in runs))
        x, normed = add_norm(None, x, self.attention[0].norm, p, precision)
        for number, (attention, feed) in enumerate(zip(self.attention, self.feed)):
            branch = attention(normed, runs, bias)
            if self.decoder:
                x, normed = add_norm(x, branch, self.cross[number].norm, p, precision)
                branch = self.cross[number](normed, states, missing)
            x, normed = add_norm(x, branch, feed.norm, p, precision)
            after = self.attention[number + 1].norm if number + 1 < len(self.feed) else self.norm
            x, normed = add_norm(x, feed(normed), after, p, precision)
        return F.dropout(normed, p, self.training)
