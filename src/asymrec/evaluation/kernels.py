"""The compiled loops over all scores. Imported on first use only: numba takes a third of a second."""

from __future__ import annotations

import numpy as np

from asymrec.compiled import compiled
from asymrec.evaluation.metrics import MISSED


@compiled
def place(scores, target_offsets, targets, seen_offsets, seen, kept, removed):
    """Ranks of all targets, into kept (every item competes) and removed (seen items do not). `metrics.ranks` defines them.

    scores [b, n]; CSR of targets, distinct in a row; CSR of seen items, repeats allowed. Returns -1, or where the first NaN is
    in the flattened scores.
    """
    b, n = scores.shape
    gone = np.zeros(n, np.bool_)
    for row in range(b):
        line = scores[row]
        # int32 sums of comparisons: the compiler turns both loops into full-width vector code
        broken = np.int32(0)
        for j in range(n):
            broken += np.int32(line[j] != line[j])
        if broken:
            for j in range(n):
                if line[j] != line[j]:
                    return row * n + j
        for e in range(seen_offsets[row], seen_offsets[row + 1]):
            gone[seen[e]] = True
        for t in range(target_offsets[row], target_offsets[row + 1]):
            score = line[targets[t]]
            if score == -np.inf:
                kept[t] = MISSED
                removed[t] = MISSED
                continue
            above = np.int32(0)
            for j in range(n):
                above += np.int32(line[j] >= score)
            seen_above = 0
            for e in range(seen_offsets[row], seen_offsets[row + 1]):
                if gone[seen[e]]:
                    seen_above += line[seen[e]] >= score
                    gone[seen[e]] = False  # a repeated item counts once
            for e in range(seen_offsets[row], seen_offsets[row + 1]):
                gone[seen[e]] = True
            tied = 0
            tied_unseen = 0
            for other in range(t + 1, target_offsets[row + 1]):
                if line[targets[other]] == score:
                    tied += 1
                    tied_unseen += not gone[targets[other]]
            kept[t] = above - tied
            removed[t] = MISSED if gone[targets[t]] else above - seen_above - tied_unseen
        for e in range(seen_offsets[row], seen_offsets[row + 1]):
            gone[seen[e]] = False
    return -1


@compiled
def best_of_groups(scores, groups, best):
    """scores [b, n], groups [n] -> into best [b, groups] what is higher than what stands there."""
    for row in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            if scores[row, j] > best[row, groups[j]]:
                best[row, groups[j]] = scores[row, j]
