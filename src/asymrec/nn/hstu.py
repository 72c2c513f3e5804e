"""HSTU's decoder, "Actions Speak Louder than Words" (Zhai et al., ICML 2024, arXiv 2402.17152), over packed histories.

In words: of the normed state, one linear layer and a SiLU make a gate U, values V, queries Q and keys K. A place takes from each
earlier one, and from itself, its value times SiLU(<query, key> + bias of their distance + bias of the time between them), divided by
the number of places seen; nothing sums to one, there is no softmax. The result is normed, multiplied by the gate, goes through a
second linear layer and is added to the state. There is no feed-forward part, and no position but in the biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.decoder import causal_mask
from asymrec.nn.fused import dropout

UNKNOWN, AT_ONCE = 0, 1  # buckets of time: times are not known; no time between the two
STEPS = 2  # buckets an octave
OCTAVES = (-16, 24)  # around the unit: with a minute for unit, from 1 ms to 30 years
BUCKETS = 2 + STEPS * (OCTAVES[1] - OCTAVES[0]) + 1


def time_buckets(times: Tensor, unit: Tensor) -> Tensor:
    """times int64 [R, W], unit a positive number of the same unit -> int64 [R, W, W], the bucket of query's (second) minus key's time.

    Logarithmic, half octaves of difference / unit, so that seconds and milliseconds have the same buckets. What is negative counts as 0.
    """
    between = (times.unsqueeze(2) - times.unsqueeze(1)).float() / unit
    step = torch.round(STEPS * (between.log2() - OCTAVES[0])).clamp(0, BUCKETS - 3)
    return torch.where(between > 0, step + 2, AT_ONCE).long()


def looked_up(table: Tensor, index: Tensor) -> Tensor:
    """table [heads, n], index int64 [R, W, W] -> [R, heads, W, W]; in the table's precision, for a gradient sums over very many places."""
    return table.index_select(1, index.flatten()).view(-1, *index.shape).transpose(0, 1)


class Block(nn.Module):
    """One layer, [R, W, width] in and out. head_width: width / heads when None."""

    def __init__(self, width: int, heads: int, dropout: float, history: int, head_width: int | None = None):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        inner = heads * (head_width or width // heads)
        self.norm = nn.LayerNorm(width)
        self.uvqk = nn.Linear(width, 4 * inner)
        # together 1: a layer starts close to the mean of what it sees, where the SiLU has a slope
        self.distance = nn.Parameter(torch.full((heads, history), 0.5))
        self.time = nn.Parameter(torch.full((heads, BUCKETS), 0.5))
        self.norm_taken = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, share: Tensor, distance: Tensor, time: Tensor) -> Tensor:
        """share: float [R, 1, W, W], 1 / places seen where query (third) sees key (fourth), else 0. distance: int64 [1, W, W]. time:
        int64 [R, W, W], or [1, 1, 1] for all."""
        rows, places, _ = x.shape
        u, v, q, k = F.silu(self.uvqk(self.norm(x))).view(rows, places, 4, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = looked_up(self.distance, distance) + looked_up(self.time, time)
        weights = F.silu(q @ k.transpose(2, 3) + bias.to(q.dtype)) * share.to(q.dtype)
        taken = self.norm_taken((weights @ v).transpose(1, 2).flatten(2)) * u.transpose(1, 2).flatten(2)
        drop = self.dropout if self.training else 0.0
        return x + dropout(self.out(dropout(taken, drop)), drop)


class HSTUDecoder(nn.Module):
    """Item states [R, W, width] with segment int [R, W] and times int64 [R, W], or None where they are not known -> [R, W, width].

    Args:
        width, layers, heads, dropout, head_width: as in `Decoder`.
        history: most places of a row.
        unit: what times are measured in; a typical difference.
        forget: share of the histories whose times are dropped in training, so that the bucket of unknown times is learned.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        history: int,
        head_width: int | None = None,
        unit: float = 1.0,
        forget: float = 0.1,
    ):
        super().__init__()
        self.register_buffer("unit", torch.tensor(unit, dtype=torch.float32))
        self.blocks = nn.ModuleList(Block(width, heads, dropout, history, head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout, self.forget = dropout, forget
        for block in self.blocks:
            nn.init.normal_(block.uvqk.weight, std=0.5 * width**-0.5)
            nn.init.normal_(block.out.weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, x: Tensor, segment: Tensor, times: Tensor | None = None) -> Tensor:
        mask = causal_mask(segment)
        share = mask / mask.sum(3, keepdim=True)
        place = torch.arange(segment.shape[1], device=x.device)
        distance = (place.unsqueeze(1) - place).clamp_min(0).unsqueeze(0)
        if times is None:
            time = torch.full((1, 1, 1), UNKNOWN, device=x.device)
        else:
            time = time_buckets(times, self.unit)
            if self.training and self.forget:
                forgotten = torch.rand(int(segment.max()) + 1, device=x.device) < self.forget
                time = time.masked_fill(forgotten[segment.clamp_min(0)].unsqueeze(2), UNKNOWN)
        x = dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, share, distance, time)
        return self.norm(x)
