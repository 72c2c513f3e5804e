"""A causal Transformer over packed histories: pre-norm blocks as in GPT-2, learned positions.

Several histories stand in one row of the batch; `segment` says which place belongs to which, and attention stays inside a
segment and behind its own place. So a batch of histories with a mean length of 7 costs 7 places a history and not 50.

Where only the state after a history's last item is wanted (`Decoder.last`), histories lie end to end instead, the shortest first, and
attention sees one rectangle for each run of equal lengths; of the last block only that place is computed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.fused import dropout

Runs = list[tuple[int, int]]  # sequences by ascending length: (how many, places in each)


def runs_of(lengths: np.ndarray, places: int = 1) -> Runs:
    """Of sequences by ascending length, int [n], each item of which takes so many places."""
    lengths, counts = np.unique(lengths, return_counts=True)
    return list(zip(counts.tolist(), (lengths * places).tolist()))


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
        return self._after(x, attended.transpose(1, 2).flatten(2), drop)

    def _after(self, x: Tensor, attended: Tensor, drop: float = 0.0) -> Tensor:
        x = x + dropout(self.out(attended), drop)
        return x + dropout(self.down(F.gelu(self.up(self.norm_ffn(x)))), drop)

    def over(self, x: Tensor, runs: Runs, ends: Tensor | None = None) -> Tensor:
        """The same without dropout, for sequences end to end [places, width]; with ends, int [n], of their last places alone."""
        qkv, attended = self.qkv(self.norm_attention(x)), []
        for part, (count, length) in zip(qkv.split([count * length for count, length in runs]), runs):
            q, k, v = part.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if ends is not None:
                q = q[:, :, -1:]
            found = F.scaled_dot_product_attention(q, k, v, is_causal=ends is None)
            attended.append(found.transpose(1, 2).reshape(-1, qkv.shape[1] // 3))
        return self._after(x if ends is None else x[ends], torch.cat(attended))


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

    def last(self, x: Tensor, runs: Runs) -> Tensor:
        """Item states of sequences end to end [places, width] -> the state after each sequence's last item, without dropout [n, width]."""
        counts, lengths = np.array(runs).T
        lengths = np.repeat(lengths, counts)
        stops = np.cumsum(lengths)
        positions, ends = np.arange(len(x)) - np.repeat(stops - lengths, lengths), stops - 1
        return self._last(x + self.position(torch.from_numpy(positions).to(x.device)), runs, torch.from_numpy(ends).to(x.device))

    def last_of_one(self, x: Tensor) -> Tensor:
        """The same for one sequence [places, width], without a step that depends on its length: for an exported graph."""
        return self._last(x + self.position.weight[: x.shape[0]], [(1, x.shape[0])], torch.tensor([-1]))

    def _last(self, x: Tensor, runs: Runs, ends: Tensor) -> Tensor:
        for block in self.blocks[:-1]:
            x = block.over(x, runs)
        return self.norm(self.blocks[-1].over(x, runs, ends))
