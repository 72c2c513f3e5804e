"""Which items follow which: counts of pairs inside sequences."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from asymrec.data.sequences import Sequences

PAIRS_AT_ONCE = 1 << 23  # pairs of places looked at together: about 300 MiB


def followers(sequences: Sequences, n_items: int, window: int, gap: float) -> sparse.csr_matrix:
    """How often item b came after item a, float64 [n_items, n_items], a line an earlier item and a column a later one.

    A pair d places apart, d at most `window`, counts `gap` ** (d - 1).
    """
    window = max(1, min(window, int(sequences.lengths.max(initial=0)) - 1))
    ends = np.repeat(sequences.offsets[1:], sequences.lengths)
    ahead, values = np.arange(1, window + 1), gap ** np.arange(window)
    table = sparse.csr_matrix((n_items, n_items))
    step = max(1, PAIRS_AT_ONCE // window)
    for start in range(0, len(ends), step):
        places = np.arange(start, min(start + step, len(ends)))
        row, distance = np.nonzero(places[:, None] + ahead < ends[places, None])
        earlier, later = sequences.items[places[row]], sequences.items[places[row] + ahead[distance]]
        table = table + sparse.csr_matrix((values[distance], (earlier, later)), shape=table.shape)
    return table
