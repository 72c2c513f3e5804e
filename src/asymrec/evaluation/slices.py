"""On what, and for whom: the same ranks by the kind of the held-out item and by the length of the history.

A slice of items takes the targets of that kind alone, at the ranks they have in the whole catalogue; its users are those who have such
a target. `cold_only` is the exception: there cold items are ranked among cold items.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np

from asymrec.evaluation import metrics as m

GROUPS = ("head", "mid", "tail", "cold")
FREQUENCIES = (0, 3, 6, 11, 21)  # where the bins of an item's training interactions start
LENGTHS = (0, 1, 6, 11, 21, 51, 101, 201)  # where the bins of history length start


def all_slices(ranks: dict, cold_ranks: dict, targets: Any, train_counts: np.ndarray, lengths: np.ndarray, ks: tuple[int, ...]) -> dict:
    """Every kind of slice: {"popularity": {"head": {"users", "items", "interactions", "kept": {...}, "removed": {...}}, ...}, ...}.

    ranks: protocol -> int [targets]; cold_ranks: the same of the cold targets alone, as `within` gives them; targets: CSR;
    lengths: int [users], of the histories.
    """
    counts = np.asarray(train_counts, np.int64)
    cold = counts == 0
    warmth = _by_item(ranks, targets, cold.astype(np.int8), ("warm", "cold"), counts, ks)
    rows = np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets))
    warmth["cold_only"] = _sizes(cold, counts) | _figures(cold_ranks, rows[cold[targets.items]], ks)
    frequency = np.searchsorted(FREQUENCIES, counts, side="right") - 1
    return {
        "popularity": _by_item(ranks, targets, popularity_groups(counts), GROUPS, counts, ks),
        "warmth": warmth,
        "frequency": _by_item(ranks, targets, frequency, bins(FREQUENCIES), counts, ks),
        "history": _by_history(ranks, targets.offsets, lengths, ks),
    }


def popularity_groups(train_counts: np.ndarray) -> np.ndarray:
    """The group of every item, an index into GROUPS: int8 [n_items].

    Items in order of training interactions, most first (equal counts: the smaller row first). An item is head, mid or tail when the
    interactions of the items before it make up less than one third, less than two thirds, or more of all; cold has none in training.
    """
    counts = np.asarray(train_counts, np.int64)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    groups = np.empty(len(counts), np.int8)
    groups[order] = np.minimum(3 * before // max(counts.sum(), 1), 2)
    groups[counts == 0] = GROUPS.index("cold")
    return groups


def within(scores: np.ndarray, targets: Any, histories: Any, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks among the chosen items alone, of the targets that are chosen, with seen items in the ranking and without them.

    scores: float32 [b, n]; targets: CSR of b rows, distinct in a row; histories: CSR of b rows with `take`; chosen: bool [n], not
    all false. Returns int32 [chosen targets] twice, in the order of the targets. See `metrics.ranks` for ties.
    """
    own = _restricted(targets, chosen)
    rows = np.flatnonzero(np.diff(own.offsets))
    own.offsets = np.r_[0, own.offsets[1:][rows]]
    seen = _restricted(histories.take(rows), chosen)
    return m.kept_and_removed(scores[np.ix_(rows, np.flatnonzero(chosen))], own, seen)


def bins(starts: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the bins that start there: (0, 1, 6) -> ("0", "1-5", "6+")."""
    closed = (str(first) if following == first + 1 else f"{first}-{following - 1}" for first, following in pairwise(starts))
    return (*closed, f"{starts[-1]}+")


def _restricted(rows: Any, chosen: np.ndarray) -> Any:
    """CSR with the chosen items alone, numbered anew from 0."""
    items = np.asarray(rows.items)[rows.offsets[0] : rows.offsets[-1]]
    inside = chosen[items]
    before = np.r_[0, np.cumsum(inside)]
    number = np.cumsum(chosen) - 1
    return SimpleNamespace(offsets=before[rows.offsets - rows.offsets[0]], items=number[items[inside]])


def _by_item(ranks: dict, targets: Any, kinds: np.ndarray, names: tuple[str, ...], counts: np.ndarray, ks: tuple[int, ...]) -> dict:
    """kinds: int [n_items], an index into names."""
    rows = np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets))
    slices = {}
    for index, name in enumerate(names):
        inside = kinds[targets.items] == index
        chosen = {protocol: values[inside] for protocol, values in ranks.items()}
        slices[name] = _sizes(kinds == index, counts) | _figures(chosen, rows[inside], ks)
    return slices


def _by_history(ranks: dict, offsets: np.ndarray, lengths: np.ndarray, ks: tuple[int, ...]) -> dict[str, Any]:
    """Bins of the history's length; those without a user are left out."""
    own = np.searchsorted(LENGTHS, lengths, side="right") - 1
    rows = np.repeat(np.arange(len(lengths)), np.diff(offsets))
    slices = {}
    for index, name in enumerate(bins(LENGTHS)):
        inside = own[rows] == index
        if inside.any():
            slices[name] = _figures({protocol: values[inside] for protocol, values in ranks.items()}, rows[inside], ks)
    return slices


def _sizes(chosen: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    return {"items": int(chosen.sum()), "interactions": int(counts[chosen].sum())}


def _figures(ranks: dict, rows: np.ndarray, ks: tuple[int, ...]) -> dict[str, Any]:
    """How many users, and their means. rows: the user of each rank, ascending."""
    offsets = np.r_[np.flatnonzero(np.diff(rows, prepend=-1)), len(rows)]
    found: dict[str, Any] = {"users": len(offsets) - 1}
    return found | ({protocol: m.means(values, offsets, ks) for protocol, values in ranks.items()} if len(rows) else {})
