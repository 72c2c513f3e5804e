"""Are two systems really different? The paired bootstrap over users (Efron and Tibshirani, 1993; for retrieval: Sakai, 2006).

Users are drawn with replacement, the same for both systems, and the mean of the differences is taken; this is repeated. Drawing n users
is drawing, from a multinomial, how often each *distinct* difference occurs, which is the same distribution and needs few numbers where
most users have the same difference (mostly 0), as with one target a user.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from asymrec.errors import EvaluationError
from asymrec.evaluation.protocol import Evaluation

CHUNK = 1 << 22  # drawn numbers held at once


@dataclass(frozen=True)
class Comparison:
    """a minus b. `low`, `high`: the 95 % interval of the difference; `p`: two-sided; `users`: in both; `left_out`: in one only."""

    metric: str
    history: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    users: int
    left_out: int

    def dict(self) -> dict[str, float | int | str]:
        return asdict(self)


def paired_bootstrap(
    a: Evaluation, b: Evaluation, metric: str = "ndcg@10", samples: int = 10_000, seed: int = 0, *, history: str = "kept"
) -> Comparison:
    """Compares two evaluations over the users that both have.

    p is twice the share of samples on the far side of 0, at least 2 / (samples + 1). Swapping a and b changes signs only.
    Raises EvaluationError: no user in common, or a user whose targets differ (another split); unknown metric.
    """
    users, rows_a, rows_b = np.intersect1d(a.users, b.users, return_indices=True)
    if not users.size:
        raise EvaluationError("the two evaluations have no user in common")
    _check_targets(a, b, users, rows_a, rows_b)
    of_a, of_b = a.per_user(metric, history)[rows_a], b.per_user(metric, history)[rows_b]
    means = _resample(of_a - of_b, samples, np.random.default_rng(seed))
    low, high = np.percentile(means, (2.5, 97.5))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Comparison(
        metric=metric,
        history=history,
        a=float(of_a.mean()),
        b=float(of_b.mean()),
        difference=float((of_a - of_b).mean()),
        low=float(low),
        high=float(high),
        p=float(min(1.0, 2 * (1 + beyond) / (samples + 1))),
        users=len(users),
        left_out=len(a.users) + len(b.users) - 2 * len(users),
    )


def _resample(differences: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Means of `samples` draws of n differences with replacement: float64 [samples]."""
    values, first, counts = np.unique(differences, return_index=True, return_counts=True)
    # by first mention, not by value: then the same seed draws the same users whichever system comes first
    order = np.argsort(first)
    values, shares = values[order], counts[order] / len(differences)
    chunk = max(1, CHUNK // len(values))
    parts = [generator.multinomial(len(differences), shares, size=min(chunk, samples - at)) @ values for at in range(0, samples, chunk)]
    return np.concatenate(parts) / len(differences)


def _check_targets(a: Evaluation, b: Evaluation, users: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray) -> None:
    def sorted_targets(evaluation: Evaluation, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.diff(evaluation.offsets)[rows]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        targets = evaluation.targets[np.repeat(evaluation.offsets[rows], sizes) + within]
        owner = np.repeat(np.arange(len(rows)), sizes)
        return sizes, targets[np.lexsort((targets, owner))]

    (sizes_a, targets_a), (sizes_b, targets_b) = sorted_targets(a, rows_a), sorted_targets(b, rows_b)
    different = sizes_a != sizes_b
    if not different.any():
        different = np.add.reduceat((targets_a != targets_b).astype(np.int64), np.cumsum(sizes_a) - sizes_a) > 0
    if different.any():
        first = users[different.argmax()]
        raise EvaluationError(f"{int(different.sum())} users have other targets in the two evaluations, the first is user row {first}")
