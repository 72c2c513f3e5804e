"""The output side of RPG (arXiv 2506.05781): one residual block a code, and a softmax over that code's words.

In words: head h turns the decoder's state x into y_h = x + SiLU(W_h x + b_h) and compares it with its codewords by their cosine over
a temperature; the loss is the mean cross-entropy over heads and places. W_h starts at zero, so that all heads start as x itself.

Layer after layer this keeps H activations of [places, width] several times over, and reading and writing them takes longer than the
products. Here loss and gradients of one head are computed together while its activations are in the cache, and nothing is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.nn.fused import in_kernels, raw
from asymrec.nn.losses import gradient_for
from asymrec.threads import by_rows

CHUNK = 1 << 20  # activations at a time: on a batch of the usual size one head


class ResidualHeads(nn.Module):
    """States [n, width] -> H softmaxes over K codewords, whose tables [H, K, width] belong to somebody else.

    Args:
        heads: H.
        width: d_model.
        temperature: divides the cosine.
    """

    def __init__(self, heads: int, width: int, temperature: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))
        self.temperature = temperature

    def loss(self, states: Tensor, tables: Tensor, codes: Tensor, precision: torch.dtype) -> Tensor:
        """Mean cross-entropy over heads and places; states [n, width], codes int64 [n, H] of the targets.

        precision: of the matrix products; sums and exponentials are float32.
        """
        words, codes = F.normalize(tables.float(), dim=-1), codes.T.contiguous()
        with torch.autocast(states.device.type, enabled=False):
            return _ResidualCrossEntropy.apply(states.float(), self.weight, self.bias, words, codes, self.temperature, precision)

    def log_probabilities(self, states: Tensor, tables: Tensor) -> Tensor:
        """[n, width] -> float32 [n, H, K]."""
        inner = torch.matmul(states, self.weight.transpose(1, 2)) + self.bias.unsqueeze(1)  # [H, n, width]
        query = F.normalize((states + F.silu(inner)).float(), dim=-1) / self.temperature
        return torch.bmm(query, F.normalize(tables, dim=-1).transpose(1, 2)).float().log_softmax(-1).transpose(0, 1)


class _ResidualCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, words, codes, temperature, precision):
        heads, size, width = words.shape
        n = len(states)
        chunk = max(1, CHUNK // (n * max(size, width)))
        softmax = gradient_for(states.device, precision)
        block = _CompiledBlock if in_kernels(states.device, precision) else _Block
        low_states, ones = states.to(precision), states.new_ones(1, n, dtype=precision)
        loss = states.new_zeros(())
        d_states = torch.zeros_like(states)
        d_weight, d_bias, d_words = torch.empty_like(weight), torch.empty_like(bias), torch.empty_like(words)
        for start in range(0, heads, chunk):
            part = slice(start, min(start + chunk, heads))
            low_weight, low_words = weight[part].to(precision), words[part].to(precision)
            everyone = low_states.expand(len(low_weight), -1, -1)
            head = block(states, torch.bmm(everyone, low_weight.transpose(1, 2)), bias[part], temperature)
            logits = torch.bmm(head.query, low_words.transpose(1, 2))
            part_loss, probability, _ = softmax(logits.view(-1, size), codes[part].reshape(-1))
            loss += part_loss
            probability = probability.view_as(logits)
            d_words[part] = torch.bmm(probability.transpose(1, 2), head.query)
            d_inner = head.back(torch.bmm(probability, low_words), d_states)
            d_weight[part] = torch.bmm(d_inner.transpose(1, 2), everyone)
            d_bias[part] = torch.matmul(ones, d_inner).squeeze(1)  # a product sums bfloat16 faster than `sum` does
            for d in torch.bmm(d_inner, low_weight):
                d_states += d
        ctx.save_for_backward(d_states, d_weight, d_bias, d_words)
        ctx.count = heads * n
        return loss / ctx.count

    @staticmethod
    def backward(ctx, upstream):
        share = upstream / ctx.count
        return *(d * share for d in ctx.saved_tensors), None, None, None


class _Block:
    """y = x + SiLU(inner + bias) of some heads, query = y / |y| / temperature; x [n, width], inner and query [heads, n, width], bias
    [heads, width]."""

    def __init__(self, x: Tensor, inner: Tensor, bias: Tensor, temperature: float):
        z = inner.float() + bias.unsqueeze(1)
        gate = z.sigmoid()
        self.slope = gate * (1 + z * (1 - gate))
        y = x + z * gate
        self.scale = 1 / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        self.unit = y * self.scale
        self.scale /= temperature
        self.query = (self.unit / temperature).to(inner.dtype)

    def back(self, d_query: Tensor, d_x: Tensor) -> Tensor:
        """Gradient of the queries -> gradient of `inner`; what reaches x past the block is added to d_x."""
        d = d_query.float()
        d_y = (d - self.unit * (self.unit * d).sum(-1, keepdim=True)) * self.scale
        d_x += d_y.sum(0)
        return (d_y * self.slope).to(d_query.dtype)


class _CompiledBlock:
    """The same in one pass forward and one backward over bfloat16; the slope replaces `inner`, then its gradient the slope."""

    def __init__(self, x: Tensor, inner: Tensor, bias: Tensor, temperature: float):
        from asymrec.nn import kernels

        self.inner, self.query = inner, torch.empty_like(inner)
        self.unit, self.scale = np.empty(inner.shape, np.float32), np.empty(inner.shape[:2], np.float32)
        arrays = x.numpy(), raw(inner), bias.numpy(), np.float32(temperature), raw(self.query), self.unit, self.scale
        by_rows(kernels.residual_forward, len(x), *arrays)

    def back(self, d_query: Tensor, d_x: Tensor) -> Tensor:
        from asymrec.nn import kernels

        by_rows(kernels.residual_backward, len(d_x), raw(d_query), self.unit, self.scale, raw(self.inner), d_x.numpy())
        return self.inner
