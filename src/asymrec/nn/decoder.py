"""A causal Transformer over packed histories: pre-norm blocks as in GPT-2, learned positions.

Several histories stand in one row of the batch; `segment` says which place belongs to which, and attention stays inside a
segment and behind its own place. So a batch of histories with a mean length of 7 costs 7 places a history and not 50.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.fused import dropout


def causal_mask(segment: Tensor) -> Tensor:
    """segment int [R, W] (-1: empty place) -> bool [R, 1, W, W], True where query (third) may see key (fourth).

    An empty place sees itself, so that its softmax is defined; nothing else sees it.
    """
    width = segment.shape[1]
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    return (same & torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()).unsqueeze(1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, drop: float) -> Tensor:
    """Softmax attention [R, heads, W, head_width], a share `drop` of the weights left out.

    Torch's own draws a random number for each weight on a processor, which costs more than the attention.
    """
    if not drop or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    return dropout(weights.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype), drop) @ v


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); [R, W, width] in and out. head_width: width / heads when None."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, head_width: int | None = None):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        inner = heads * (head_width or width // heads)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, places, _ = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(rows, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        attended = attention(q, k, v, mask, drop)
        x = x + dropout(self.out(attended.transpose(1, 2).flatten(2)), drop)
        return x + dropout(self.down(F.gelu(self.up(self.norm_ffn(x)))), drop)


class Decoder(nn.Module):
    """Item states [R, W, width] with segment and position int [R, W] -> [R, W, width]."""

    def __init__(self, width: int, layers: int, heads: int, ffn: int, dropout: float, history: int, head_width: int | None = None):
        super().__init__()
        self.position = nn.Embedding(history, width)
        self.blocks = nn.ModuleList(Block(width, heads, ffn, dropout, head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout
        self.apply(self._start)
        for block in self.blocks:  # GPT-2: branches that add to the stream start smaller the deeper the stream
            for layer in (block.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5)

    @staticmethod
    def _start(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, segment: Tensor, position: Tensor) -> Tensor:
        x = dropout(x + self.position(position), self.dropout, self.training)
        mask = causal_mask(segment)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
