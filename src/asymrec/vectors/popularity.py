"""What is known of an item besides what it is: how often, how long, how steadily it was taken. FlexCode's router reads it
(arXiv 2511.20673); the paper names the four and not their formulas, which are ours.

    popularity    log(1 + f), f interactions of the item in training
    age           log(1 + days from its first interaction in training to the last of all)
    sparsity      share of the BUCKETS spans of time, of equally many interactions each, in which it was not taken
    uncertainty   1 / sqrt(1 + f)

Without times the order of the file is not a time: age and sparsity are 0 for all, and tell nothing.
"""

from __future__ import annotations

import numpy as np

from asymrec.data import Sequences

NAMES = ("popularity", "age", "sparsity", "uncertainty")
BUCKETS = 10
DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def popularity_features(train: Sequences, n_items: int, time_unit: str | None) -> np.ndarray:
    """float32 [n_items, 4], in the order of NAMES.

    Args:
        train: the sequences of training, and nothing else.
        time_unit: of their times, as `Dataset.time_unit`; None where there are none.
    """
    counts = np.bincount(train.items, minlength=n_items)
    age, sparsity = np.zeros(n_items), np.zeros(n_items)
    if time_unit is not None and train.times is not None and len(train.times):
        first, seen = train.first_times(n_items), counts > 0
        age[seen] = np.log1p((train.times.max() - first[seen]) / DAY[time_unit])
        edges = np.quantile(train.times, np.arange(1, BUCKETS) / BUCKETS)
        taken = np.zeros((n_items, BUCKETS), bool)
        taken[train.items, np.searchsorted(edges, train.times, side="right")] = True
        sparsity = 1 - taken.mean(1)
    return np.stack([np.log1p(counts), age, sparsity, 1 / np.sqrt(1 + counts)], 1).astype(np.float32)


def cold(count: int, time_unit: str | None) -> np.ndarray:
    """float32 [count, 4]: the features of items that nobody took yet."""
    return np.tile(np.array([0.0, 0.0, float(time_unit is not None), 1.0], np.float32), (count, 1))
