"""Pieces of a Transformer's step that are one pass over memory instead of many: ReLU, softmax, attention and normalisation, each with
its dropout.

In training on a processor they are compiled (`fused_kernels.py`); there, drawing a random number for every element of a feed-forward
layer costs as much as multiplying its matrices. Elsewhere they are torch's own operations, without dropout just as quick
and safe to use from several threads. Random numbers come from torch's generator in both cases, one seed a call in the first.

`masked_relu` and `masked_softmax` set elements to 0 and do not enlarge the others by 1 / (1 - p): whoever multiplies them with a weight
divides that by `1 - p` instead, which is the same and touches a matrix of weights and not one of activations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asymrec.threads import by_rows

EPSILON = 1e-6  # of the normalisation, as in T5
BLOCKS = 64  # parts in which a gradient is summed over rows: a fixed number, so that the sum does not depend on the threads


def in_kernels(device: torch.device, precision: torch.dtype) -> bool:
    """Whether compiled loops take the place of torch's operations."""
    return device.type == "cpu" and precision in (torch.float32, torch.bfloat16)


def _compiled(device: torch.device, precision: torch.dtype) -> bool:
    return in_kernels(device, precision) and torch.is_grad_enabled()


def raw(x: Tensor) -> np.ndarray:
    """The memory of a tensor as kernels take it: float32, or bfloat16 as uint16, for numpy has no bfloat16."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _drawn(p: float) -> tuple[np.uint32, np.uint32]:
    """Seed and threshold of the kernels' dropout."""
    seed = int(torch.randint(1 << 32, ())) if p else 0
    return np.uint32(seed), np.uint32(round(p * 2**32))


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout`, x [..., width]; float32 and bfloat16 on a processor without a random number for each element."""
    if not training or not p or not in_kernels(x.device, x.dtype):
        return F.dropout(x, p, training)
    return _Dropout.apply(x, p, *_drawn(p))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, seed, threshold):
        ctx.how = seed, threshold, np.float32(1 / (1 - p))
        return _dropped(x, *ctx.how)

    @staticmethod
    def backward(ctx, upstream):
        return _dropped(upstream, *ctx.how), None, None, None


def _dropped(x: Tensor, *how: np.generic) -> Tensor:
    from asymrec.nn.fused_kernels import dropout

    x = x.detach().contiguous()
    out = torch.empty_like(x)
    lines = (raw(part.flatten(0, -2)) for part in (x, out))
    by_rows(dropout, x.numel() // x.shape[-1], *lines, *how)
    return out


def masked_relu(u: Tensor, p: float) -> Tensor:
    """u [n, width] where positive, and of that a share p set to 0. May overwrite u."""
    if _compiled(u.device, u.dtype):
        return _MaskedRelu.apply(u, p)
    return F.relu(u) if not p else F.relu(u) * (torch.rand_like(u) >= p)


class _MaskedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, p):
        from asymrec.nn.fused_kernels import relu

        ctx.mark_dirty(u)
        by_rows(relu, len(u), raw(u), *_drawn(p))
        ctx.save_for_backward(u)
        return u

    @staticmethod
    def backward(ctx, upstream):
        from asymrec.nn.fused_kernels import relu_gradient

        (u,) = ctx.saved_tensors
        upstream = upstream.contiguous()
        by_rows(relu_gradient, len(u), raw(upstream), raw(u))
        return upstream, None


def masked_softmax(scores: Tensor, bias: Tensor, p: float) -> Tensor:
    """Softmax over the keys of scores + bias, a share p set to 0. May overwrite scores.

    scores: [n, heads, keys, queries], contiguous: keys first, where sums run over whole lines. bias: float32 [heads, keys, queries].
    """
    if _compiled(scores.device, scores.dtype):
        return _MaskedSoftmax.apply(scores, bias, p)
    shares = (scores.float() + bias).softmax(-2).to(scores.dtype)
    return shares if not p else shares * (torch.rand_like(shares) >= p)


def _softmax(scores: Tensor, bias: Tensor, p: float) -> Tensor:
    """What is left after dropout; scores become the shares before it."""
    from asymrec.nn.fused_kernels import softmax

    kept = torch.empty_like(scores)
    by_rows(softmax, len(scores), raw(scores), bias.detach().numpy(), raw(kept), *_drawn(p))
    return kept


def _softmax_gradient(upstream: Tensor, shares: Tensor, kept: Tensor) -> Tensor:
    """The gradient of the bias; upstream becomes that of the scores."""
    from asymrec.nn.fused_kernels import softmax_gradient

    by_bias = torch.zeros(min(len(shares), BLOCKS), *shares.shape[1:])
    by_rows(softmax_gradient, len(by_bias), raw(upstream), raw(shares), raw(kept), by_bias.numpy())
    return by_bias.sum(0)


class _MaskedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, bias, p):
        kept = _softmax(scores, bias.contiguous(), p)
        ctx.save_for_backward(scores, kept)
        return kept

    @staticmethod
    def backward(ctx, upstream):
        upstream = upstream.contiguous()
        by_bias = _softmax_gradient(upstream, *ctx.saved_tensors)
        return upstream, by_bias, None


def self_attention(qkv: Tensor, runs: list[tuple[int, int]], heads: int, bias: Tensor, p: float) -> Tensor:
    """Attention inside sequences that lie end to end, [tokens, heads * head_width], a share p of it set to 0 as in `masked_softmax`.

    qkv: [tokens, 3 * heads * head_width], queries, keys and values. runs: (how many sequences, tokens in each), in order.
    bias: float32 [heads, keys, queries], at least as long as the longest sequence; added to the logits.
    """
    if _compiled(qkv.device, qkv.dtype):
        return _SelfAttention.apply(qkv, runs, heads, bias, p)
    attended = []
    for part, (count, length) in zip(qkv.split([count * length for count, length in runs]), runs):
        q, k, v = part.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        shares = masked_softmax(k @ q.transpose(-1, -2), bias[:, :length, :length], p)
        attended.append((shares.transpose(-1, -2) @ v).transpose(1, 2).reshape(count * length, -1))
    return torch.cat(attended)


class _SelfAttention(torch.autograd.Function):
    """The same with each run's queries, keys and values copied once and every result written where it belongs."""

    @staticmethod
    def forward(ctx, qkv, runs, heads, bias, p):
        out, saved, start = qkv.new_empty(len(qkv), qkv.shape[1] // 3), [], 0
        for count, length in runs:
            lines = slice(start, start + count * length)
            start = lines.stop
            parts = qkv[lines].view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
            q, k, v = parts
            shares = torch.bmm(k, q.transpose(1, 2)).view(count, heads, length, length)
            kept = _softmax(shares, bias[:, :length, :length].contiguous(), p)
            attended = torch.bmm(kept.flatten(0, 1).transpose(1, 2), v)
            out[lines].view(count, length, heads, -1).copy_(attended.view(count, heads, length, -1).transpose(1, 2))
            saved += parts, shares, kept
        ctx.save_for_backward(*saved)
        ctx.runs, ctx.heads, ctx.bias = runs, heads, bias.shape
        return out

    @staticmethod
    def backward(ctx, upstream):
        by_qkv, by_bias, start = upstream.new_empty(len(upstream), 3 * upstream.shape[1]), torch.zeros(ctx.bias), 0
        for number, (count, length) in enumerate(ctx.runs):
            lines = slice(start, start + count * length)
            start = lines.stop
            parts, shares, kept = ctx.saved_tensors[3 * number : 3 * number + 3]
            q, k, v = parts
            given = upstream[lines].view(count, length, ctx.heads, -1).transpose(1, 2).reshape(q.shape)
            slope = torch.bmm(v, given.transpose(1, 2))
            by_bias[:, :length, :length] += _softmax_gradient(slope.view(kept.shape), shares, kept)
            back = torch.stack((torch.bmm(slope.transpose(1, 2), k), torch.bmm(slope, q), torch.bmm(kept.view(slope.shape), given)))
            by_qkv[lines].view(count, length, 3, ctx.heads, -1).copy_(back.view(3, count, ctx.heads, length, -1).permute(1, 3, 0, 2, 4))
        return by_qkv, None, None, by_bias, None


def add_norm(x: Tensor | None, y: Tensor, weight: Tensor, p: float, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """x + dropout(y), and that divided by its root mean square and times weight: float32 and `precision`, [n, width] both.

    x: float32 [n, width], the stream; None where it begins with y. y: what is added to it. weight: [width].
    """
    if _compiled(y.device, precision):
        return _AddNorm.apply(x, y.to(precision), weight, p)
    total = F.dropout(y.float(), p) if x is None else x + F.dropout(y, p)
    return total, F.rms_norm(total, weight.shape, weight, EPSILON).to(precision)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, weight, p):
        from asymrec.nn.fused_kernels import add_norm

        total = torch.zeros(y.shape) if x is None else x.clone()
        normed, inverse = torch.empty_like(y), total.new_empty(len(y))
        ctx.dropout = (*_drawn(p), np.float32(1 / (1 - p)))
        ctx.begins = x is None
        arrays = total.numpy(), raw(y.contiguous()), weight.detach().numpy(), raw(normed), inverse.numpy()
        by_rows(add_norm, len(total), *arrays, np.float32(EPSILON), *ctx.dropout)
        ctx.save_for_backward(total, weight, inverse)
        return total, normed

    @staticmethod
    def backward(ctx, by_total, by_normed):
        from asymrec.nn.fused_kernels import add_norm_gradient

        total, weight, inverse = ctx.saved_tensors
        by_normed = by_normed.contiguous()
        by_x, by_y, by_weight = by_total.clone(), torch.empty_like(by_normed), torch.zeros(BLOCKS, len(weight))
        arrays = total.numpy(), weight.detach().numpy(), inverse.numpy(), raw(by_normed), by_x.numpy(), raw(by_y), by_weight.numpy()
        by_rows(add_norm_gradient, BLOCKS, *arrays, *ctx.dropout)
        return None if ctx.begins else by_x, by_y, by_weight.sum(0), None
