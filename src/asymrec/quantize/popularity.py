"""Codes of what training says of an item besides its content: how often it was taken, and since when. AsymRec (arXiv 2605.14512) has none.

    popularity    log2(1 + f) of its f interactions, to the half
    age           which part of the items of training, in the order of their first interactions, it belongs to: a code for 32 parts and one
                  for 256, none of more than K parts; where K is 32 or less there is the first alone

The last interaction, or the mean of all, are not told: in training an item's last is never before the one that is to be foretold, for
that is among them, which is not so of a test.

Codes of content cannot tell which of two like items is bought more, or which is the newer: a model with a vector for each item
learns it, one that sums shared codes has to be told. Without times the order of the file is not a time, and there is popularity alone.

Of an item that nobody took yet nothing is known: it is as popular as the middle one of those that were taken, and as young as the youngest.
"""

from __future__ import annotations

import numpy as np

from asymrec.data import Sequences

PARTS = (32, 256)  # of time, at most: what few items share is told apart, and learns from what many do
LEVELS = 64  # of popularity, at most: to 4 billion interactions


def popularity_codes(train: Sequences, n_items: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n_items, C] and the codes of an item that comes later, int32 [C]; C is 3 or 2, or 1 without times; all are below `words`.

    Args:
        train: the sequences of training, and nothing else; at least one interaction.
        words: K, codewords of a place.
    """
    counts = np.bincount(train.items, minlength=n_items)
    taken = np.flatnonzero(counts)
    level = np.round(2 * np.log2(1 + counts)).clip(0, min(words, LEVELS) - 1)
    columns, coming = [level], [np.round(np.median(level[taken]))]
    if train.times is not None:
        first = train.first_times(n_items)
        for parts in sorted({min(words, most) for most in PARTS}):
            columns.append(np.searchsorted(np.quantile(first[taken], np.arange(1, parts) / parts), first))
            coming.append(parts - 1)
    codes = np.stack(columns, 1).astype(np.int32)
    codes[counts == 0] = coming
    return codes, np.array(coming, np.int32)
