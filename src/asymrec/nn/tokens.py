"""TokenFormer's layers (arXiv 2604.13737): a stream of static, behaviour and target tokens, attended within masks.

In words: I = X + sigmoid(norm(X) W_g) * Attention(norm(X)), the gate from the layer's input (NLIR); then I + SwiGLU(norm(I)).
Who sees whom, with M static tokens before the behaviours:

    full layer       a token sees the tokens before it and itself
    window of w      columns see columns, no further back than w - 1 places; static tokens see the static ones before them, however many
    targets          see what stands before their place (`cuts`), and themselves; never one another

Targets stand on one stream of behaviours, each at its own place, so that one pass serves all of them: in training many impressions
of a user, in serving all candidates. What no later layer and no target can see is not computed: a window of w needs w - 1 columns
before the earliest target, the last layer no column at all, and static tokens end with the last full layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = 3  # columns in windows, from which computing them by blocks is faster than by one masked square


@dataclass
class Stream:
    """static [B, M, d]; columns [B, T, d], padded on the left; targets [B, K, d].

    places int64 [B, T] and target_places int64 [B, K]: for RoPE (static tokens stand at 0). valid bool [B, T]. cuts int64 [B, K]:
    target j sees the columns before cuts[j].
    """

    static: Tensor
    columns: Tensor
    targets: Tensor
    places: Tensor
    target_places: Tensor
    valid: Tensor
    cuts: Tensor


def reach(windows: list[int | None], earliest: int, columns: int) -> list[int]:
    """The first column that each layer must take in, and last the first that comes out (none: `columns`).

    windows: of each layer, None for full. earliest: the least cut of all targets.
    """
    start, starts = columns, [columns]
    for window in reversed(windows):
        start = 0 if window is None else max(0, min(start, earliest) - window + 1)
        starts.append(start)
    return starts[::-1]


class Rotary:
    """RoPE (arXiv 2104.09864): pairs of dimensions turned by angles that grow with the place."""

    def __init__(self, places: Tensor, width: int, base: float = 10_000.0):
        rates = base ** (-torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width)
        angles = places.unsqueeze(1).unsqueeze(-1) * rates  # [B, 1, N, width / 2]
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, x: Tensor, keep: slice | Tensor = slice(None)) -> Tensor:
        """x [B, heads, N, width]; keep: which of the places x stands at."""
        cos, sin = self.cos[:, :, keep], self.sin[:, :, keep]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Attention of a Stream; queries for what is kept only.

    Args:
        window: None for a full layer, else w.
        bands: by blocks where there are many columns; False: by a masked square always.
    """

    def __init__(self, width: int, heads: int, window: int | None, bands: bool = True):
        super().__init__()
        self.heads, self.window, self.bands = heads, window, bands
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, s: Stream, static: bool, start: int) -> Tensor:
        """x [B, M + T + K, d], the stream side by side -> [B, (M if static) + (T - start) + K, d]."""
        M, T = s.static.shape[1], s.columns.shape[1]
        keep = kept(M, x.shape[1], static, start, x.device)
        rotary = Rotary(everywhere(s), x.shape[-1] // self.heads)
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k = rotary(k)
        q = rotary(self.query(x[:, keep]).unflatten(-1, (self.heads, -1)).transpose(1, 2), keep)
        K = s.targets.shape[1]
        head, tail = q[:, :, : q.shape[2] - K], q[:, :, q.shape[2] - K :]
        parts = []
        if head.shape[2]:
            parts.append(self._prefix(head, k[:, :, : M + T], v[:, :, : M + T], s, static, start))
        parts.append(self._targets(tail, k, v, s, M, T))
        return self.out(torch.cat(parts, 2).transpose(1, 2).flatten(2))

    def _prefix(self, q: Tensor, k: Tensor, v: Tensor, s: Stream, static: bool, start: int) -> Tensor:
        M, T = s.static.shape[1], s.columns.shape[1]
        if self.window is None:
            mask = prefix_mask(M, s.valid)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :, kept(M, M + T, static, start, q.device)])
        parts = []
        if static and M:
            alone = torch.ones(M, M, dtype=torch.bool, device=q.device).tril()
            parts.append(F.scaled_dot_product_attention(q[:, :, :M], k[:, :, :M], v[:, :, :M], attn_mask=alone))
            q = q[:, :, M:]
        if start < T:
            k, v = k[:, :, M:], v[:, :, M:]
            attend = by_blocks if self.bands and T - start >= BLOCKS * self.window else by_square
            parts.append(attend(q, k, v, s.valid, self.window))
        return torch.cat(parts, 2)

    def _targets(self, q: Tensor, k: Tensor, v: Tensor, s: Stream, M: int, T: int) -> Tensor:
        """Targets see the columns before their cut and themselves: their own key is one more logit, not a square of all targets."""
        begin = M if self.window is not None else 0
        column = torch.arange(T, device=q.device)
        cuts = s.cuts.unsqueeze(-1)
        seen = s.valid.unsqueeze(1) & (column < cuts)
        if self.window is not None:
            seen &= column > cuts - self.window
        else:
            seen = F.pad(seen, (M, 0), value=True)
        scale = q.shape[-1] ** -0.5
        logits = (q @ k[:, :, begin : M + T].transpose(-1, -2) * scale).masked_fill(~seen.unsqueeze(1), float("-inf"))
        own = (q * k[:, :, M + T :]).sum(-1, keepdim=True) * scale
        weights = torch.cat([logits, own], -1).softmax(-1)
        return weights[..., :-1] @ v[:, :, begin : M + T] + weights[..., -1:] * v[:, :, M + T :]


def kept(M: int, total: int, static: bool, start: int, device: torch.device) -> Tensor:
    """Places of the stream that a layer puts out: static tokens or none, columns from `start`, all that follows."""
    return torch.cat([torch.arange(M if static else 0, device=device), torch.arange(M + start, total, device=device)])


def everywhere(s: Stream) -> Tensor:
    """int64 [B, N]: the place of every token; static ones stand at 0."""
    return torch.cat([s.places.new_zeros(len(s.places), s.static.shape[1]), s.places, s.target_places], 1)


def after(s: Stream, x: Tensor, static: bool, start: int) -> Stream:
    """The stream that a layer puts out: x [B, kept, d]."""
    M = s.static.shape[1] if static else 0
    columns, targets = x[:, M:].split([s.columns.shape[1] - start, s.targets.shape[1]], 1)
    return Stream(x[:, :M], columns, targets, s.places[:, start:], s.target_places, s.valid[:, start:], s.cuts - start)


def prefix_mask(M: int, valid: Tensor) -> Tensor:
    """bool [B, 1, M + T, M + T], True where query (third) may see key (fourth). An empty column sees itself, nobody sees it."""
    N = M + valid.shape[1]
    causal = torch.ones(N, N, dtype=torch.bool, device=valid.device).tril()
    there = F.pad(valid, (M, 0), value=True).unsqueeze(1)
    return (causal & there | torch.eye(N, dtype=torch.bool, device=valid.device)).unsqueeze(1)


def by_square(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int) -> Tensor:
    """The last q.shape[2] columns within their window, by one masked product; k, v [B, heads, T, width], valid [B, T]."""
    T = k.shape[2]
    back = torch.arange(T - q.shape[2], T, device=q.device).unsqueeze(1) - torch.arange(T, device=q.device)
    mask = ((back >= 0) & (back < window) & valid.unsqueeze(1)) | (back == 0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))


def by_blocks(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int) -> Tensor:
    """The same: a block of `window` queries sees its own keys and those of the block before, so cost grows with T, not T²."""
    B, _, n, _ = q.shape
    T, blocks = k.shape[2], -(-n // window)
    q = F.pad(q, (0, 0, blocks * window - n, 0)).unflatten(2, (blocks, window))
    front = (blocks + 1) * window - T
    k, v, there = (k, v, valid) if front <= 0 else (F.pad(k, (0, 0, front, 0)), F.pad(v, (0, 0, front, 0)), F.pad(valid, (front, 0)))
    k, v, there = (part[..., -(blocks + 1) * window :, :] for part in (k, v, there.unsqueeze(-1)))
    k, v = (part.unfold(2, 2 * window, window).transpose(-1, -2) for part in (k, v))  # [B, heads, blocks, 2 window, width]
    there = there.squeeze(-1).unfold(1, 2 * window, window)  # [B, blocks, 2 window]
    own, other = torch.arange(window, device=q.device).unsqueeze(1) + window, torch.arange(2 * window, device=q.device)
    back = own - other
    mask = ((back >= 0) & (back < window) & there.unsqueeze(2)) | (back == 0)  # [B, blocks, window, 2 window]
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.flatten(0, 1).unsqueeze(1))
    return found.unflatten(0, (B, blocks)).transpose(1, 2).flatten(2, 3)[:, :, blocks * window - n :]


class TokenLayer(nn.Module):
    """One layer: attention, gated or not, then SwiGLU; RMSNorm before each.

    Args:
        gate: NLIR. W_g starts at 0 and its bias at 1, so that the layer starts as a plain one with 0.73 of the attention.
        ffn: inner width of SwiGLU.
        dropout: on what either branch adds.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, window: int | None, gate: bool, bands: bool = True):
        super().__init__()
        self.norm_attention, self.norm_ffn = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, window, bands)
        self.gate = nn.Linear(width, width) if gate else None
        self.up, self.down = nn.Linear(width, 2 * ffn, bias=False), nn.Linear(ffn, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        if gate:
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)

    def forward(self, s: Stream, static: bool, start: int) -> Stream:
        """static: whether static tokens are needed further on; start: the first column that is."""
        M = s.static.shape[1]
        x = torch.cat([s.static, s.columns, s.targets], 1)
        normed = self.norm_attention(x)
        attended = self.attention(normed, s, static, start)
        keep = kept(M, x.shape[1], static, start, x.device)
        if self.gate is not None:
            attended = torch.sigmoid(self.gate(normed[:, keep])) * attended
        x = x[:, keep] + self.dropout(attended)
        inner, value = self.up(self.norm_ffn(x)).chunk(2, -1)
        x = x + self.dropout(self.down(F.silu(inner) * value))
        return after(s, x, static, start)


class TokenLayers(nn.Module):
    """Layers over a Stream -> targets [B, K, width], normed.

    Args:
        layers: each takes a Stream, whether static tokens are needed further on, and the first column that is, and gives a Stream.
        windows: of each layer; None: full.
    """

    def __init__(self, layers: list[nn.Module], windows: list[int | None], width: int):
        super().__init__()
        self.windows, self.layers = windows, nn.ModuleList(layers)
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, s: Stream) -> Tensor:
        T = s.columns.shape[1]
        starts = reach(self.windows, int(s.cuts.min()), T)
        first = starts[0]
        if first:
            s = Stream(s.static, s.columns[:, first:], s.targets, s.places[:, first:], s.target_places, s.valid[:, first:], s.cuts - first)
        for at, layer in enumerate(self.layers):
            static = any(window is None for window in self.windows[at + 1 :])
            s = layer(s, static, starts[at + 1] - starts[at])
        return self.norm(s.targets)
