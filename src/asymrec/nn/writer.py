"""T5's encoder and decoder (`t5.py`) when nothing is learned any more: a history is read once, and many beginnings of what may follow
it are gone on with, token by token.

- The beginnings are rows: every linear layer sees one matrix of all beginnings of all histories, and no padding.
- Keys and values of the encoder's states are computed once a history, for all layers by one product. All beginnings of a history are
  queries of one attention, so that it is a product of matrices.
- Keys and values of a beginning's own tokens are never copied: all tokens written so far lie in one table, and a beginning is a list
  of its rows.
- What the first layer makes of a token before it looks at others depends on the token alone: a table made beforehand.
- The norms' weights are multiplied into the layers that follow them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asymrec.nn.decoder import Runs
from asymrec.nn.fused import EPSILON, in_kernels, raw, self_attention
from asymrec.nn.t5 import Stack


class Layer:
    """A layer's weights [in, out] in one precision, the norms' multiplied in; of an encoder's without `query` and `back`."""

    def __init__(self, stack: Stack, number: int, precision: torch.dtype):
        attention, feed = stack.attention[number], stack.feed[number]
        self.qkv, self.out = _ready(attention.qkv.weight * attention.norm, precision), _ready(attention.out.weight, precision)
        self.up, self.down = _ready(feed.up.weight * feed.norm, precision), _ready(feed.down.weight, precision)
        if stack.decoder:
            cross = stack.cross[number]
            self.query = _ready(cross.query.flatten(0, 1) * cross.norm, precision)
            self.back = _ready(cross.out.transpose(0, 1).flatten(1), precision)


class Writer:
    """
    Args:
        encoder, decoder: in their present weights, which are copied.
        table: float32 [tokens, width], the embeddings of the tokens that both read.
        longest: tokens that are read and written at most.
        precision: of products; sums and norms are float32.
    """

    @torch.no_grad()
    def __init__(self, encoder: Stack, decoder: Stack, table: Tensor, longest: tuple[int, int], precision: torch.dtype):
        self.table, self.precision = table.detach().clone(), precision
        self.heads = encoder.attention[0].heads
        layers = range(len(encoder.feed))
        self.encoder, self.decoder = ([Layer(stack, number, precision) for number in layers] for stack in (encoder, decoder))
        normed = F.rms_norm(self.table, self.table.shape[1:], eps=EPSILON).to(precision)
        self.first = [normed @ layers[0].qkv for layers in (self.encoder, self.decoder)]
        weights = [weight.flatten(0, 1) * encoder.norm for cross in decoder.cross for weight in (cross.key, cross.value)]
        self.keys_values = _ready(torch.cat(weights), precision)
        self.read_bias, self.write_bias = encoder.bias(longest[0]), decoder.bias(longest[1])
        self.norm = decoder.norm.detach().clone()

    def begin(self, tokens: Tensor, runs: Runs, rows: int) -> Beams:
        """Read the runs' sequences (tokens int64 [total], end to end, by ascending length); then go on from the beginning of each.

        rows: beginnings that will be gone on with at most, over all tokens and sequences.
        """
        x, qkv = F.embedding(tokens, self.table), F.embedding(tokens, self.first[0])
        normed = x
        for number, layer in enumerate(self.encoder):
            qkv = normed @ layer.qkv if number else qkv
            normed = _add_norm(x, self_attention(qkv, runs, self.heads, self.read_bias, 0.0) @ layer.out)
            normed = _add_norm(x, (normed @ layer.up).relu_() @ layer.down)
        return Beams(self, normed @ self.keys_values, runs, rows)


class Beams:
    """Beginnings of what follows n sequences, as many for each; at first the n empty ones."""

    def __init__(self, writer: Writer, keys_values: Tensor, runs: Runs, rows: int):
        layers, heads = len(writer.decoder), writer.heads
        self.writer, self.runs, self.n = writer, runs, sum(count for count, _ in runs)
        self.attended = []  # of each run: keys and values of each layer, [layers, 2, count * heads, length, head_width]
        for part, (count, length) in zip(keys_values.split([count * length for count, length in runs]), runs):
            part = part.view(count, length, layers, 2, heads, -1).permute(2, 3, 0, 4, 1, 5)
            self.attended.append(part.reshape(layers, 2, count * heads, length, -1))
        width = writer.decoder[0].qkv.shape[1]
        self.tokens = [keys_values.new_empty(rows, width) for _ in range(layers)]  # queries, keys and values of all that was written
        self.lines, self.used = np.empty((self.n, 0), np.int32), 0

    def step(self, parents: np.ndarray, tokens: Tensor) -> Tensor:
        """Add a token to beginnings.

        parents: int [m], the beginnings of the call before that are gone on with, sequence by sequence, as many of each.
        tokens: int64 [m]. Returns the decoder's states float32 [m, width].
        """
        writer, stop = self.writer, self.used + len(parents)
        self.lines = np.concatenate((self.lines[parents], np.arange(self.used, stop, dtype=np.int32)[:, None]), 1)
        length = self.lines.shape[1]
        bias = writer.write_bias[:, :length, length - 1].contiguous()
        x, normed = F.embedding(tokens, writer.table), None
        for number, layer in enumerate(writer.decoder):
            written = self.tokens[number]
            if number:
                torch.mm(normed, layer.qkv, out=written[self.used : stop])
            else:
                torch.index_select(writer.first[1], 0, tokens, out=written[self.used : stop])
            normed = _add_norm(x, _attend(written, self.used, self.lines, bias) @ layer.out)
            normed = _add_norm(x, self._cross(number, normed @ layer.query) @ layer.back)
            normed = _add_norm(x, (normed @ layer.up).relu_() @ layer.down)
        self.used = stop
        return normed.float() * writer.norm

    def _cross(self, number: int, queries: Tensor) -> Tensor:
        """[m, heads * head_width] in and out: each beginning attends to its sequence, in layer `number`."""
        out, heads = torch.empty_like(queries), self.writer.heads
        shape = (self.n, len(queries) // self.n, heads, -1)
        start, queries, attended = 0, queries.view(shape), out.view(shape)
        for (count, _), parts in zip(self.runs, self.attended):
            keys, values = parts[number]
            q = queries[start : start + count].transpose(1, 2).flatten(0, 1)
            shares = torch.bmm(keys, q.transpose(1, 2)).softmax(1)  # keys first: sums run over whole lines
            found = torch.bmm(shares.transpose(1, 2), values)
            attended[start : start + count] = found.view(count, heads, *found.shape[1:]).transpose(1, 2)
            start += count
        return out


def _ready(weight: Tensor, precision: torch.dtype) -> Tensor:
    """[out, in] -> [in, out]: read in the order of memory where few lines are multiplied with it."""
    return weight.T.to(precision).contiguous()


def _add_norm(x: Tensor, y: Tensor) -> Tensor:
    """x float32 [n, width] gets y [n, width] added in place; returned is x divided by its root mean square, in y's precision."""
    if not in_kernels(x.device, y.dtype):
        return F.rms_norm(x.add_(y), x.shape[1:], eps=EPSILON).to(y.dtype)
    from asymrec.nn.writer_kernels import add_norm

    out = torch.empty_like(y)
    add_norm(x.numpy(), raw(y), raw(out), np.float32(EPSILON))
    return out


def _attend(qkv: Tensor, first: int, lines: np.ndarray, bias: Tensor) -> Tensor:
    """See `writer_kernels.attend`."""
    (m, tokens), heads = lines.shape, len(bias)
    if not in_kernels(qkv.device, qkv.dtype):
        q = qkv[first : first + m].view(m, 3, heads, 1, -1)[:, 0]
        k, v = qkv[torch.from_numpy(lines).to(qkv.device)].view(m, tokens, 3, heads, -1)[:, :, 1:].permute(2, 0, 3, 1, 4)
        shares = ((q @ k.transpose(2, 3)).float() + bias.unsqueeze(1)).softmax(-1).to(v.dtype)
        return (shares @ v).flatten(1)
    from asymrec.nn.writer_kernels import attend

    out = qkv.new_empty(m, qkv.shape[1] // 3)
    attend(raw(qkv), first, lines, bias.numpy(), raw(out))
    return out
