"""The number that is added to the scores of items that a history already holds, fitted on the validation part after every epoch of
training, with everything else fixed.

Where the softmax runs over items, the number is a weight among others while the model is trained (`models/catalogue.py`), and this sets
it anew: in training every interaction speaks, most of them those of few users, and of a row that stands there twice. A loss over codes
cannot learn it at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asymrec.data import Examples, Sequences
from asymrec.models.base import SCORES_AT_ONCE

USERS = 4096  # of the validation that are looked at, at most
AT_ONCE = 256  # of them whose scores are read together


def seen_weight(scores: Callable[[Sequences], np.ndarray], validation: Examples, n_items: int, seed: int) -> float:
    """What is added to the scores of items that the history already holds: r / a of `calibrated`, whose arguments these are."""
    scale, weight = calibrated(scores, validation, n_items, seed)
    return weight / scale


def calibrated(scores: Callable[[Sequences], np.ndarray], validation: Examples, n_items: int, seed: int) -> tuple[float, float]:
    """a and r of p(item) = softmax(a score + r [seen]), by maximum likelihood of the validation's targets, everything else fixed.

    The scale a is there because scores need not be logits: the mean over an item's codes is not. One more target, half of it
    seen, is imagined, so that r is finite where nobody comes back, and where everybody does. (1, 0) where there is nothing to fit on.

    Args:
        scores: histories, none empty -> float32 [n, n_items], finite.
        seed: of the users that are drawn where the scores of all would be more than `SCORES_AT_ONCE`.
    """
    from scipy.optimize import minimize  # half a second that only a fit is to wait for
    from scipy.special import expit

    known = np.flatnonzero(validation.histories.lengths)
    if not len(known):
        return 1.0, 0.0
    chosen = np.random.default_rng(seed).permutation(known)[: max(1, min(USERS, SCORES_AT_ONCE // n_items))]
    parts = [validation.take(chosen[start : start + AT_ONCE]) for start in range(0, len(chosen), AT_ONCE)]
    samples = [Sample.of(scores(part.histories), part) for part in parts]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        values, slopes = zip(*(sample.loss(*parameters) for sample in samples))
        imagined = 0.5 * (np.logaddexp(0, parameters[1]) + np.logaddexp(0, -parameters[1]))
        slope = sum(slopes) + np.array([0, expit(parameters[1]) - 0.5])
        return (sum(values) + imagined) / len(chosen), slope / len(chosen)

    scale, weight = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=((1e-3, None), (None, None))).x
    return float(scale), float(weight)


class Sample(NamedTuple):
    """Some users of the validation, each target counting 1 / (targets of its user)."""

    scores: Tensor  # [n, n_items]
    seen: tuple[Tensor, Tensor]  # distinct (user, item) of the histories
    at_target: float  # sum of the targets' scores
    repeats: float  # sum of the targets that are seen

    @classmethod
    def of(cls, scores: np.ndarray, part: Examples) -> Sample:
        n_items, targets = scores.shape[1], part.targets
        keys = np.unique(part.histories.owners * n_items + part.histories.items)
        goals, share = targets.owners * n_items + targets.items, 1 / np.repeat(targets.lengths, targets.lengths)
        at_target = float((scores.reshape(-1)[goals] * share).sum())
        users, items = (torch.from_numpy(places) for places in np.divmod(keys, n_items))
        return cls(torch.from_numpy(scores), (users, items), at_target, float(share[np.isin(goals, keys)].sum()))

    def loss(self, scale: float, weight: float) -> tuple[float, np.ndarray]:
        """Sum of -log p over the targets, and its gradient by scale and weight; one product of the logits' size is all that is made."""
        logits = self.scores * scale
        logits[self.seen] += weight
        highest = logits.amax(1, keepdim=True)
        odds = logits.sub_(highest).exp_()
        total = odds.sum(1)
        expected = torch.linalg.vecdot(odds, self.scores) / total
        again = odds[self.seen] / total[self.seen[0]]
        slope = np.array([float(expected.sum(dtype=torch.float64)) - self.at_target, float(again.sum(dtype=torch.float64)) - self.repeats])
        nats = float((total.log() + highest.squeeze(1)).sum(dtype=torch.float64))
        return nats - scale * self.at_target - weight * self.repeats, slope
