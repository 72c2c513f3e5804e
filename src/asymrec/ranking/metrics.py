"""How good probabilities are: do positives stand first (AUC, GAUC), and do they say what happens (log loss, calibration)?

AUC: the chance that a positive has a higher probability than a negative, half for a tie. GAUC (Zhu et al., arXiv 1706.06978, "DIN"):
AUC within a user, averaged over users who have both kinds, weighted by their impressions. Calibration: predicted over observed
positives, and the mean gap between the two in bins of equally many impressions (expected calibration error).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from asymrec.errors import EvaluationError

BINS = 20
LEAST = 1e-7  # a probability of 0 counts as this


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """labels 0 or 1 [n], scores [n]. NaN where one kind is missing. Raises EvaluationError: a score that is NaN."""
    labels, scores = _checked(labels, scores)
    positives = float(labels.sum())
    if positives in (0.0, len(labels)):
        return float("nan")
    return float((rankdata(scores)[labels].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def user_aucs(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users with both kinds, the AUC of each, and how many impressions each has."""
    labels, scores = _checked(labels, scores)
    order = np.lexsort((scores, users))
    labels, scores, users = labels[order], scores[order], users[order]
    begin = np.r_[True, users[1:] != users[:-1]]
    group = np.cumsum(begin) - 1
    starts = np.flatnonzero(begin)
    ranks = _run_means(np.r_[True, begin[1:] | (scores[1:] != scores[:-1])]) - starts[group]
    sizes = np.bincount(group)
    positives = np.bincount(group, labels)
    sums = np.bincount(group, np.where(labels, ranks, 0.0))
    both = (positives > 0) & (positives < sizes)
    sizes, positives, sums = sizes[both], positives[both], sums[both]
    return users[starts][both], (sums - positives * (positives + 1) / 2) / (positives * (sizes - positives)), sizes


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """NaN where no user has both kinds."""
    _, values, sizes = user_aucs(labels, scores, users)
    return float(np.average(values, weights=sizes)) if len(values) else float("nan")


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean -log of the probability of what happened, in nats."""
    labels, probabilities = _checked(labels, probabilities)
    right = np.where(labels, probabilities, 1 - probabilities).clip(LEAST, 1)
    return float(-np.log(right).mean())


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> dict[str, object]:
    """ratio: predicted over observed positives, NaN where there is none. error: mean |predicted - observed| over bins. curve:
    (predicted, observed) a bin. Equal probabilities fall into one bin."""
    labels, probabilities = _checked(labels, probabilities)
    order = np.argsort(probabilities, kind="stable")
    wanted = np.arange(1, bins) * len(order) // bins
    edges = np.unique(np.searchsorted(probabilities[order], probabilities[order][wanted], side="left"))
    parts = [part for part in np.split(order, edges) if len(part)]
    curve = [(float(probabilities[part].mean()), float(labels[part].mean())) for part in parts]
    error = sum(len(part) * abs(p - o) for part, (p, o) in zip(parts, curve)) / len(labels)
    observed = labels.mean()
    return {"ratio": float(probabilities.mean() / observed) if observed else float("nan"), "error": float(error), "curve": curve}


def measure(labels: np.ndarray, probabilities: np.ndarray, users: np.ndarray) -> dict[str, float]:
    """auc, gauc, log_loss, calibration_ratio, calibration_error, impressions, positives (their share)."""
    found = calibration(labels, probabilities)
    return {
        "auc": auc(labels, probabilities),
        "gauc": gauc(labels, probabilities, users),
        "log_loss": log_loss(labels, probabilities),
        "calibration_ratio": found["ratio"],
        "calibration_error": found["error"],
        "impressions": len(labels),
        "positives": float(np.mean(labels)),
    }


@dataclass(frozen=True)
class Difference:
    """AUC of a minus AUC of b on the same impressions, and the 95 % interval."""

    difference: float
    low: float
    high: float


def compare(labels: np.ndarray, a: np.ndarray, b: np.ndarray, users: np.ndarray, draws: int = 1000, seed: int = 0) -> Difference:
    """Paired bootstrap of the AUC over users: a user's impressions are drawn together, for they are not independent.

    a, b: scores [n], or [runs, n] of several seeds, whose mean AUC is compared.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    weights_of, users = np.unique(users, return_inverse=True)
    random = np.random.default_rng(seed)
    sides = [[_Weighted(labels, scores) for scores in runs] for runs in (a, b)]
    found = np.empty(draws)
    for draw in range(draws):
        weights = np.bincount(random.integers(len(weights_of), size=len(weights_of)), minlength=len(weights_of))[users]
        first, second = (np.mean([run.auc(weights) for run in side]) for side in sides)
        found[draw] = first - second
    low, high = np.nanquantile(found, (0.025, 0.975))
    means = [float(np.mean([auc(labels, run) for run in runs])) for runs in (a, b)]
    return Difference(means[0] - means[1], float(low), float(high))


class _Weighted:
    """AUC with a weight for each impression, sorted once."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        labels, scores = _checked(labels, scores)
        self.order = np.argsort(scores, kind="stable")
        self.labels = labels[self.order]
        self.runs = np.cumsum(np.r_[True, np.diff(scores[self.order]) != 0]) - 1

    def auc(self, weights: np.ndarray) -> float:
        weights = weights[self.order].astype(float)
        positive = np.bincount(self.runs, weights * self.labels)
        negative = np.bincount(self.runs, weights * ~self.labels)
        below = np.cumsum(negative) - negative / 2
        total = positive.sum() * negative.sum()
        return float((positive * below).sum() / total) if total else float("nan")


def _run_means(begins: np.ndarray) -> np.ndarray:
    """bool [n], True where a run of equals begins -> the mean of its members' places, counted from 1, for each."""
    starts = np.flatnonzero(begins)
    stops = np.r_[starts[1:], len(begins)]
    return np.repeat((starts + 1 + stops) / 2, stops - starts)


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1 or not len(labels):
        raise EvaluationError(f"labels {labels.shape} and scores {scores.shape} must be two rows of one length")
    if np.isnan(scores).any():
        raise EvaluationError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    if not np.isin(labels, (0, 1)).all():
        raise EvaluationError("labels must be 0 or 1")
    return labels.astype(bool), scores
