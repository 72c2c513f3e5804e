"""Cross-entropies whose logits never exist all at once, and the sum of code embeddings that the catalogue's one needs.

Each computes its gradients together with the loss, a chunk at a time, while the chunk's logits are still in the cache;
backward only scales them. Memory is one chunk of logits, and no logit is computed twice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asymrec.nn.fused import in_kernels, raw
from asymrec.threads import by_rows

CHUNK = 1 << 22  # logits at a time: 16 MiB in float32, about what stays in a processor's last-level cache
ROWS, MOST = 224, 1 << 24  # but no fewer places than this, up to so many logits: products with few rows are slow
COLUMNS = 1024  # of a product with the table at a time
NEVER = -1e4  # a logit whose probability is 0 beside any other


class Pairs(NamedTuple):
    """Distinct (row, column) pairs in order of row: which items each place has already seen."""

    rows: Tensor  # int64 [pairs]
    columns: Tensor  # int64 [pairs]


def _gradient(
    logits: Tensor, targets: Tensor, bias: Tensor | None = None, at_target: Tensor | None = None, seen: Pairs | None = None,
    repeat: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Logits [n, items] without `bias` -> summed loss, softmax minus one-hot in the same precision, gradient of `repeat`."""
    precision = logits.dtype
    logits = logits.float() if bias is None else logits.float() + bias
    if seen is not None:
        logits[seen] += repeat
    goal = targets.unsqueeze(1)
    if at_target is not None:
        logits.scatter_add_(1, goal, at_target.unsqueeze(1))
    logits -= logits.amax(1, keepdim=True)
    at_goal = logits.gather(1, goal)
    probability = logits.exp_()
    total = probability.sum(1, keepdim=True)
    loss = (total.log() - at_goal).sum()
    probability /= total
    probability.scatter_add_(1, goal, torch.full_like(at_goal, -1.0))
    return loss, probability.to(precision), None if seen is None else probability[seen].sum()


def _gradient_compiled(
    logits: Tensor, targets: Tensor, bias: Tensor | None = None, at_target: Tensor | None = None, seen: Pairs | None = None,
    repeat: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The same as `_gradient` in one pass over the logits, which it overwrites."""
    from asymrec.nn.kernels import softmax_gradient

    n = len(logits)
    starts = np.zeros(n + 1, np.int64)
    columns = np.zeros(0, np.int64)
    if seen is not None:
        np.cumsum(np.bincount(seen.rows.numpy(), minlength=n), out=starts[1:])
        columns = seen.columns.numpy()
    shift = np.zeros(n, np.float32) if at_target is None else at_target.numpy()
    loss, d_repeat = np.empty(n, np.float32), np.empty(n, np.float32)
    by = np.float32(0 if repeat is None else repeat.detach().item())
    added = np.zeros(logits.shape[1], np.float32) if bias is None else bias.detach().float().numpy()
    by_rows(softmax_gradient, n, raw(logits), added, targets.numpy(), shift, starts, columns, by, loss, d_repeat)
    return torch.tensor(loss.sum()), logits, torch.tensor(d_repeat.sum())


def _logits(states: Tensor, table: Tensor) -> Tensor:
    """states @ table.T. MKL multiplies wide float32 products slowly; some columns at a time are faster, to the same bits."""
    if states.dtype != torch.float32 or states.device.type != "cpu":
        return states @ table.T
    out = states.new_empty(len(states), len(table))
    for start in range(0, len(table), COLUMNS):
        part = slice(start, start + COLUMNS)
        torch.mm(states, table[part].T, out=out[:, part])
    return out


def gradient_for(device: torch.device, precision: torch.dtype):
    return _gradient_compiled if in_kernels(device, precision) else _gradient


def _add(total: Tensor, part: Tensor) -> None:
    """total += part; bfloat16 without a float32 copy first, whose memory would be fresh each time."""
    if not in_kernels(part.device, part.dtype):
        total += part
        return
    from asymrec.nn.kernels import add_rows

    by_rows(add_rows, len(part), total.numpy(), raw(part))


def _add_columns(total: Tensor, part: Tensor) -> None:
    """total += part.sum(0), in the same way."""
    if not in_kernels(part.device, part.dtype):
        total += part.sum(0, dtype=torch.float32)
        return
    from asymrec.nn.kernels import add_columns

    by_rows(add_columns, part.shape[1], total.numpy(), raw(part))


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, targets, bias, at_target, seen, repeat, precision):
        n, items = len(states), len(table)
        chunk = max(1, CHUNK // items, min(ROWS, MOST // items))
        low_states, low_table = states.to(precision), table.to(precision)
        loss = states.new_zeros((), dtype=torch.float32)
        d_states = torch.empty_like(states)
        d_table = torch.zeros_like(table, dtype=torch.float32)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        d_repeat = None if repeat is None else torch.zeros_like(repeat)
        starts = list(range(0, n, chunk))
        gradient = gradient_for(states.device, precision)
        if seen is not None:
            cuts = torch.searchsorted(seen.rows, torch.tensor([*starts, n], device=states.device)).tolist()
        for number, start in enumerate(starts):
            part = slice(start, min(start + chunk, n))
            logits = _logits(low_states[part], low_table)
            pairs = None
            if seen is not None:
                these = slice(cuts[number], cuts[number + 1])
                pairs = Pairs(seen.rows[these] - start, seen.columns[these])
            shift = None if at_target is None else at_target[part]
            part_loss, probability, part_repeat = gradient(logits, targets[part], bias, shift, pairs, repeat)
            loss += part_loss
            if d_bias is not None:
                _add_columns(d_bias, probability)
            if d_repeat is not None:
                d_repeat += part_repeat
            d_states[part] = probability @ low_table
            _add(d_table, probability.T @ low_states[part])
        ctx.save_for_backward(d_states, d_table, d_bias, d_repeat)
        ctx.count = n
        return loss / n

    @staticmethod
    def backward(ctx, upstream):
        scaled = [None if d is None else d * (upstream / ctx.count) for d in ctx.saved_tensors]
        return scaled[0], scaled[1], None, scaled[2], None, None, scaled[3], None


def catalogue_cross_entropy(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    at_target: Tensor | None = None,
    seen: Pairs | None = None,
    repeat: Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Mean over n places of -log softmax(states @ table.T + bias [+ at_target at the target] [+ repeat at seen pairs])[target].

    Args:
        states: [n, width]; any scale or temperature is already in it.
        table: [items, width].
        targets: int64 [n].
        bias: [items].
        at_target: [n], added to each place's logit of its own target; a constant.
        seen: pairs (place, item) whose logits get `repeat`.
        repeat: scalar.
        precision: of the matrix products; sums and exponentials are float32.
    """
    with torch.autocast(states.device.type, enabled=False):
        return _CatalogueCrossEntropy.apply(states.float(), table.float(), targets, bias, at_target, seen, repeat, precision)


class Candidates(NamedTuple):
    """The items that stand for the catalogue in one step of a sampled softmax."""

    rows: np.ndarray  # int64 [c], ascending
    correction: np.ndarray  # float32 [c], -log of the chance to be among them
    slot: np.ndarray  # int64 [items], the place of an item among them, -1 where it is not


def sample_candidates(targets: np.ndarray, counts: np.ndarray, negatives: int) -> Candidates:
    """The step's targets and `negatives` uniform draws.

    A logit plus the correction makes the sum of exponentials over the candidates that over the catalogue in expectation (Bengio &
    Senecal, 2008). A place's own target is there by certainty, not by chance: take the correction off again where it is the target.

    Args:
        targets: int64 [n].
        counts: int64 [items], how often each is a target in training.
        negatives: drawn with replacement from torch's generator, which the loop seeds by step: a resumed run draws the same.
    """
    n = len(counts)
    rows = np.union1d(targets, torch.randint(n, (negatives,)).numpy())
    missed = (1 - counts[rows] / counts.sum()) ** len(targets) * (1 - 1 / n) ** negatives
    slot = np.full(n, -1, np.int64)
    slot[rows] = np.arange(len(rows))
    return Candidates(rows, -np.log1p(-missed).astype(np.float32), slot)


class _HeadsCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, tables, codes, precision, among):
        heads, n, _ = states.shape
        words = tables.shape[1]
        chunk = max(1, CHUNK // (n * words))
        loss = states.new_zeros((), dtype=torch.float32)
        d_states = torch.empty_like(states)
        d_tables = torch.empty_like(tables)
        gradient = gradient_for(states.device, precision)
        for start in range(0, heads, chunk):
            part = slice(start, min(start + chunk, heads))
            low_states, low_tables = states[part].to(precision), tables[part].to(precision)
            logits = torch.bmm(low_states, low_tables.transpose(1, 2))
            if among is not None:
                logits.masked_fill_(~among[part], NEVER)
            part_loss, probability, _ = gradient(logits.view(-1, words), codes[part].reshape(-1))
            loss += part_loss
            probability = probability.view_as(logits)
            d_states[part] = torch.bmm(probability, low_tables)
            d_tables[part] = torch.bmm(probability.transpose(1, 2), low_states)
        ctx.save_for_backward(d_states, d_tables)
        ctx.count = heads * n
        return loss / (heads * n)

    @staticmethod
    def backward(ctx, upstream):
        d_states, d_tables = ctx.saved_tensors
        return d_states * (upstream / ctx.count), d_tables * (upstream / ctx.count), None, None, None


def heads_cross_entropy(
    states: Tensor, tables: Tensor, codes: Tensor, precision: torch.dtype = torch.float32, among: Tensor | None = None
) -> Tensor:
    """Mean over H heads and n places of -log softmax(states[h] @ tables[h].T)[codes[h]].

    Args:
        states: [H, n, width], each head's state; any scale or temperature is already in it.
        tables: [H, K, width], each head's codewords.
        codes: int64 [H, n], the target item's codes.
        precision: of the matrix products.
        among: bool [H, n, K], the codewords that the softmax runs over, the targets' own among them; None: all.
    """
    with torch.autocast(states.device.type, enabled=False):
        return _HeadsCrossEntropy.apply(states.float(), tables.float(), codes, precision, among)


class CodeSum(torch.nn.Module):
    """The sum of each item's code embeddings, [H, K, width] -> [items, width].

    Forward gathers rows by item; backward gathers by code through the inverted lists, so neither scatters and both are
    deterministic.

    Args:
        codes: int [items, H].
        words: K.
    """

    def __init__(self, codes: Tensor, words: int):
        super().__init__()
        flat = codes.long() + torch.arange(codes.shape[1], device=codes.device) * words
        self.register_buffer("flat", flat.int(), persistent=False)
        self.words = words
        self._inverted: tuple[Tensor, Tensor] | None = None  # made by the first training step: whoever only scores does without

    def forward(self, table: Tensor, rows: Tensor | None = None) -> Tensor:
        """rows: int64, some items instead of all."""
        if rows is not None:
            return F.embedding_bag(self.flat[rows], table.flatten(0, 1), mode="sum")
        if not (torch.is_grad_enabled() and table.requires_grad):
            return F.embedding_bag(self.flat, table.flatten(0, 1), mode="sum")
        if self._inverted is None or self._inverted[0].device != self.flat.device:
            self._inverted = self._lists()
        return _CodeSum.apply(table.flatten(0, 1), self.flat, *self._inverted)

    def _lists(self) -> tuple[Tensor, Tensor]:
        """The items of each code one after another, and where each code's begin."""
        flat, heads = self.flat.reshape(-1), self.flat.shape[1]
        counts = torch.bincount(flat, minlength=heads * self.words)
        return (torch.argsort(flat, stable=True) // heads).int(), (counts.cumsum(0) - counts).int()


class _CodeSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, flat, owners, starts):
        ctx.save_for_backward(owners, starts)
        return F.embedding_bag(flat, table, mode="sum")

    @staticmethod
    def backward(ctx, upstream):
        owners, starts = ctx.saved_tensors
        return F.embedding_bag(owners, upstream.contiguous(), starts, mode="sum"), None, None, None
