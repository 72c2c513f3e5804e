"""Metrics of recommendation over the whole catalogue, all from the ranks of the targets. Knows arrays only.

    recall@k  the share of a user's targets with rank <= k
    ndcg@k    sum of 1 / log2(rank + 1) over targets with rank <= k, over the same sum when the first min(targets, k) places are hits
              (Järvelin and Kekäläinen, 2002)
    mrr@k     1 / rank of the best placed target when that rank is <= k, else 0

and, of what is shown rather than of who is right,

    coverage@k  the share of the catalogue that stands in at least one list of k
    novelty@k   mean over recommended items of -log2 of the item's share of the training interactions
    gini@k      inequality of items' exposure: 0 when all items are shown equally often, near 1 when a few take all places
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asymrec.errors import EvaluationError

MISSED = 2**31 - 1  # the rank of a target that is not in the ranking at all


def ranks(scores: Any, targets: Any, exclude: Any = None) -> np.ndarray:
    """The rank of every target among all items, or among all items but the excluded ones: int32 [targets], from 1.

    scores: float [b, n], numpy or torch; -inf says "never". targets: CSR (`.offsets` [b + 1], `.items`), at least one in a row,
    distinct in a row. exclude: CSR of b rows, or None.

    A target's rank is 1 + the number of other items with a score at least as high: ties are never in the target's favour. Among
    several targets of one row that tie, the first listed comes first, so the ranks of a row are distinct and are those of a real
    ranking, the worst that the scores allow. A target that is excluded or scored -inf has the rank MISSED: it stays in the count.
    Raises EvaluationError: NaN, shapes that do not fit, rows out of range, a row without targets or with one twice.
    """
    kept, removed = kept_and_removed(scores, targets, exclude)
    return kept if exclude is None else removed


def kept_and_removed(scores: Any, targets: Any, seen: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Both protocols in one pass: the ranks with the seen items in the ranking, and with them removed. See `ranks`."""
    from asymrec.evaluation import kernels

    scores = as_scores(scores)
    b, n = scores.shape
    target_offsets, targets = _csr(targets, b, n, "targets")
    sizes = np.diff(target_offsets)
    if b and sizes.min() < 1:
        raise EvaluationError(f"row {int(sizes.argmin())} has no target")
    keys = np.sort(np.repeat(np.arange(b), sizes) * np.int64(n) + targets)
    if (repeated := np.flatnonzero(keys[1:] == keys[:-1])).size:
        row, item = divmod(int(keys[repeated[0]]), n)
        raise EvaluationError(f"row {row} has item {item} twice among its targets")
    seen_offsets, seen = (np.zeros(b + 1, np.int64), np.zeros(0, np.int64)) if seen is None else _csr(seen, b, n, "seen items")
    kept, removed = np.empty(len(targets), np.int32), np.empty(len(targets), np.int32)
    if (where := kernels.place(scores, target_offsets, targets, seen_offsets, seen, kept, removed)) >= 0:
        raise EvaluationError(f"the score of item {where % n} in row {where // n} is NaN")
    return kept, removed


def per_user(ranks: np.ndarray, offsets: np.ndarray, ks: Sequence[int] = (5, 10, 20)) -> dict[str, np.ndarray]:
    """Each user's metrics: {"recall@5": float64 [users], "ndcg@5": ..., "mrr@5": ..., ...}.

    ranks: int [targets], offsets: int64 [users + 1], at least one target a user.
    """
    starts, sizes = offsets[:-1], np.diff(offsets)
    if not len(sizes):
        return {f"{name}@{k}": np.zeros(0) for k in ks for name in ("recall", "ndcg", "mrr")}
    ranks = np.asarray(ranks, np.float64)
    discount, best = 1 / np.log2(ranks + 1), np.minimum.reduceat(ranks, starts)
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(ks) + 2)))
    metrics = {}
    for k in ks:
        hit = ranks <= k
        metrics[f"recall@{k}"] = np.add.reduceat(hit.astype(np.float64), starts) / sizes
        metrics[f"ndcg@{k}"] = np.add.reduceat(discount * hit, starts) / ideal[np.minimum(sizes, k) - 1]
        metrics[f"mrr@{k}"] = np.where(best <= k, 1 / best, 0.0)
    return metrics


def means(ranks: np.ndarray, offsets: np.ndarray, ks: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """`per_user` averaged over users."""
    return {name: float(values.mean()) for name, values in per_user(ranks, offsets, ks).items()}


def best_of_groups(scores: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """The highest score in each group of items: float32 [b, n_groups], -inf for an empty group.

    scores: float32 [b, n]; groups: int64 [n], from 0 to n_groups - 1.
    """
    from asymrec.evaluation import kernels

    best = np.full((len(scores), n_groups), -np.inf, np.float32)
    kernels.best_of_groups(scores, groups, best)
    return best


def exposure(lists: np.ndarray, n_items: int, k: int) -> np.ndarray:
    """How often each item stands in the first k of the lists: int64 [n_items]. lists: int [b, at least k], -1 for an empty place."""
    shown = lists[:, :k]
    return np.bincount(shown[shown >= 0], minlength=n_items)


def coverage(exposure: np.ndarray) -> float:
    """The share of items that are shown at all."""
    return float((exposure > 0).mean())


def novelty(exposure: np.ndarray, train_counts: np.ndarray) -> float:
    """Mean over what is shown of -log2 p(item), in bits; p is the share of training interactions, one added to each item's count
    so that an item without any is rare and not infinitely rare. 0 when nothing is shown."""
    bits = -np.log2((train_counts + 1) / (train_counts.sum() + len(train_counts)))
    return float(exposure @ bits / max(exposure.sum(), 1))


def gini(exposure: np.ndarray) -> float:
    """Gini coefficient of exposure over all items; 0 when nothing is shown."""
    n, total = len(exposure), exposure.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(exposure) / (n * total)) if total else 0.0


def effective_rank(matrix: Any) -> float:
    """exp of the entropy of the normalised singular values of a matrix [a, b] (Roy and Vetterli, 2007): how many directions it uses.

    1 when all rows are multiples of one (every user gets the same list), min(a, b) when all directions weigh the same, 0 for zeros.
    """
    matrix = np.asarray(as_scores(matrix), np.float64)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    values = values[values > 1e-7 * values.max()]  # below that, rounding of the squares
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(values) else 0.0


def as_scores(scores: Any) -> np.ndarray:
    """Scores from numpy or torch, any device, any float type: float32 [b, n], rows contiguous."""
    if hasattr(scores, "detach"):
        scores = scores.detach().float().cpu().numpy()
    scores = np.ascontiguousarray(scores, np.float32)
    if scores.ndim != 2:
        raise EvaluationError(f"scores must have two dimensions, [users, items], not {scores.ndim}")
    return scores


def _csr(rows: Any, b: int, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    offsets, items = np.asarray(rows.offsets, np.int64), np.asarray(rows.items, np.int64)
    if len(offsets) != b + 1:
        raise EvaluationError(f"{len(offsets) - 1} rows of {name} for {b} rows of scores")
    items = items[offsets[0] : offsets[-1]]
    if items.size and not (items.min() >= 0 and items.max() < n):
        raise EvaluationError(f"{name} hold an item outside 0 .. {n - 1}")
    return offsets - offsets[0], items
