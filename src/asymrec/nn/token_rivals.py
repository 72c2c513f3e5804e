"""Layers of other papers over TokenFormer's stream, to compare with: full causal attention, targets that do not see one another.

HSTULayer, "Actions Speak Louder than Words" (arXiv 2402.17152). In words: SiLU of one linear map of the normed input gives a gate U,
values V, queries Q, keys K; a token takes the mean over what it sees of V times SiLU(<q, k> + bias of the distance); that, normed, times
U, through a second linear map, is added to the input. No softmax, no feed-forward part. Differs: distances fall into logarithmic buckets,
without a bias of the time between; <q, k> is divided by the root of a head's width; the norm is RMS as in the other token models.

MixedLayer, after OneTrans (arXiv 2510.26104). In words: behaviours, which are many and alike, share one set of matrices; each field
token, and the target, has matrices of its own, in attention and feed-forward both. Differs: field tokens stand before the behaviours, as
in the stream of all our token models, and no queries are left out in upper layers (its pyramid).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.t5 import BUCKETS, bucketed
from asymrec.nn.tokens import Rotary, Stream, after, everywhere, kept, prefix_mask


def full_mask(s: Stream) -> Tensor:
    """bool [B, 1, N, N] of the whole stream, N = M + T + K: who (third) sees whom (fourth). An empty column sees itself alone."""
    M, T, K = s.static.shape[1], s.columns.shape[1], s.targets.shape[1]
    before = F.pad(prefix_mask(M, s.valid)[:, 0], (0, K))
    column = torch.arange(T, device=s.cuts.device)
    seen = F.pad(s.valid.unsqueeze(1) & (column < s.cuts.unsqueeze(-1)), (M, 0), value=True)
    own = torch.eye(K, dtype=torch.bool, device=s.cuts.device).expand(len(s.cuts), K, K)
    return torch.cat([before, torch.cat([seen, own], 2)], 1).unsqueeze(1)


def distance_buckets(places: Tensor) -> Tensor:
    """places int64 [B, N] -> int64 [B, N, N]: T5's buckets of how far back the key (third) lies of the query; none is negative."""
    return bucketed((places.unsqueeze(2) - places.unsqueeze(1)).clamp_min(0), BUCKETS)


class HSTULayer(nn.Module):
    """As `TokenLayer`, without a feed-forward part."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_taken = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.uvqk, self.out = nn.Linear(width, 4 * width), nn.Linear(width, width)
        # together 1: a layer starts close to the mean of what it sees, where the SiLU has a slope
        self.bias = nn.Parameter(torch.ones(heads, BUCKETS))
        self.dropout = nn.Dropout(dropout)

    def forward(self, s: Stream, static: bool, start: int) -> Stream:
        M = s.static.shape[1]
        x = torch.cat([s.static, s.columns, s.targets], 1)
        keep = kept(M, x.shape[1], static, start, x.device)
        u, v, q, k = F.silu(self.uvqk(self.norm(x))).unflatten(-1, (4, self.heads, -1)).permute(2, 0, 3, 1, 4)
        u, q = u[:, :, keep], q[:, :, keep]
        mask = full_mask(s)[:, :, keep].to(x.dtype)
        bias = self.bias[:, distance_buckets(everywhere(s))[:, keep]].transpose(0, 1)
        weights = F.silu(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias) * mask / mask.sum(-1, keepdim=True)
        taken = self.norm_taken((weights @ v).transpose(1, 2).flatten(2)) * u.transpose(1, 2).flatten(2)
        return after(s, x[:, keep] + self.dropout(self.out(taken)), static, start)


class MixedLinear(nn.Module):
    """A linear map of its own for each of M static tokens and for targets, one for all columns."""

    def __init__(self, static: int, inner: int, outer: int):
        super().__init__()
        self.static = nn.Parameter(torch.randn(static, inner, outer) * inner**-0.5)
        self.columns, self.targets = nn.Linear(inner, outer, bias=False), nn.Linear(inner, outer, bias=False)

    def forward(self, x: Tensor, M: int, T: int) -> Tensor:
        """x [B, M + T + K, inner], M being 0 or all static tokens -> [B, M + T + K, outer]."""
        static, columns, targets = x.split([M, T, x.shape[1] - M - T], 1)
        parts = [torch.einsum("bmi,mio->bmo", static, self.static)] if M else []
        return torch.cat([*parts, self.columns(columns), self.targets(targets)], 1)


class MixedLayer(nn.Module):
    """As `TokenLayer`, with matrices of their own for the tokens of fields and targets.

    Args:
        static: M.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, static: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_ffn = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.out = MixedLinear(static, width, 3 * width), MixedLinear(static, width, width)
        self.up, self.down = MixedLinear(static, width, 2 * ffn), MixedLinear(static, ffn, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, s: Stream, static: bool, start: int) -> Stream:
        M, T = s.static.shape[1], s.columns.shape[1]
        x = torch.cat([s.static, s.columns, s.targets], 1)
        keep = kept(M, x.shape[1], static, start, x.device)
        q, k, v = self.qkv(self.norm_attention(x), M, T).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rotary = Rotary(everywhere(s), q.shape[-1])
        q, k = rotary(q[:, :, keep], keep), rotary(k)
        taken = F.scaled_dot_product_attention(q, k, v, attn_mask=full_mask(s)[:, :, keep]).transpose(1, 2).flatten(2)
        M, T = M if static else 0, T - start
        x = x[:, keep] + self.dropout(self.out(taken, M, T))
        inner, value = self.up(self.norm_ffn(x), M, T).chunk(2, -1)
        return after(s, x + self.dropout(self.down(F.silu(inner) * value, M, T)), static, start)
