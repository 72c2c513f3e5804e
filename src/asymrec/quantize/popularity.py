"""Codes of what training says of an item besides its content: how often it was taken, and when. AsymRec (arXiv 2605.14512) has none.

    popularity    log2(1 + f) of its f interactions, to the half
    first         its first interaction, the mean of all and the last: which part of the items of training, in that order, it belongs to,
    mean          once of 32 parts and once of 256, two codes each; of no more than K, and where K is 32 or less there is one code each
    last

Codes of content cannot tell which of two like items is bought more, or which one is no longer sold: a model with a vector for each item
learns it, one that sums shared codes has to be told. Without times the order of the file is not a time, and there is popularity alone.

Of an item that nobody took yet nothing is known: it is as popular as the middle one of those that were taken, and as young as the youngest.
"""

from __future__ import annotations

import numpy as np

from asymrec.data import Sequences

PARTS = (32, 256)  # of time, at most: what few items share is told apart, and learns from what many do
LEVELS = 64  # of popularity, at most: to 4 billion interactions


def popularity_codes(train: Sequences, n_items: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n_items, C] and the codes of an item that comes later, int32 [C]; C is 7 or 4, or 1 without times; all are below `words`.

    Args:
        train: the sequences of training, and nothing else; at least one interaction.
        words: K, codewords of a place.
    """
    counts = np.bincount(train.items, minlength=n_items)
    taken = np.flatnonzero(counts)
    level = np.round(2 * np.log2(1 + counts)).clip(0, min(words, LEVELS) - 1)
    level[counts == 0] = np.round(np.median(level[taken]))
    columns, coming = [level], [np.round(np.median(level[taken]))]
    if train.times is not None:
        times = train.times - train.times.min()  # small numbers, exact as float64
        first = np.full(n_items, times.max())
        np.minimum.at(first, train.items, times)
        last = np.zeros(n_items, times.dtype)
        np.maximum.at(last, train.items, times)
        mean = np.bincount(train.items, times, n_items) / np.maximum(counts, 1)
        for parts in sorted({min(words, most) for most in PARTS}):
            for when in (first, mean, last):
                part = np.searchsorted(np.quantile(when[taken], np.arange(1, parts) / parts), when)
                part[counts == 0] = parts - 1
                columns.append(part)
                coming.append(parts - 1)
    return np.stack(columns, 1).astype(np.int32), np.array(coming, np.int32)
