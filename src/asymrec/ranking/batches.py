"""Impressions as streams: one history, and the impressions that stand on it.

Impressions of one user in one context share a stream. Each target sees of the history only what lay before it, so that in training
one pass over the history serves many targets. Histories are padded on the left: their ends stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asymrec.ranking.examples import Impressions


@dataclass(frozen=True)
class Streams:
    """Which impressions share a stream: `order[offsets[i]:offsets[i + 1]]` are those of stream i."""

    order: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Batch:
    """B streams of up to T behaviours and K targets.

    users int64 [B]; context name -> [B, ...]; items, actions int64 [B, T], oldest first; lengths int64 [B], the last so many of T are
    there; targets int64 [B, K]; cuts int64 [B, K], target j sees the behaviours before place cuts[j]; present bool [B, K], False
    for a place without target; labels float32 [B, K, tasks] or None; rows int64 [present targets], the impressions.
    """

    users: Tensor
    context: dict[str, Tensor]
    items: Tensor
    actions: Tensor
    lengths: Tensor
    targets: Tensor
    cuts: Tensor
    present: Tensor
    labels: Tensor | None
    rows: np.ndarray

    def to(self, device: torch.device) -> Batch:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        context = {name: value.to(device) for name, value in self.context.items()}
        return Batch(**(vars(self) | moved | {"context": context}))


def streams(impressions: Impressions, contexts: np.ndarray, targets: int, span: int) -> Streams:
    """Put together what may share a stream.

    contexts: int [n], impressions of one number have the same context. targets: at most so many a stream. span: how many behaviours
    the latest target of a stream may see that the earliest does not; 0: all see the same.
    """
    ends, begins = impressions.ends, impressions.begins
    order = np.lexsort((ends, contexts, begins, impressions.users))
    keys = np.stack([impressions.users[order], begins[order], contexts[order]], 1)
    fresh = np.r_[True, (keys[1:] != keys[:-1]).any(1)]
    sorted_ends = ends[order].tolist()
    offsets, first, count = [], 0, 0
    for place, new in enumerate(fresh.tolist()):
        if new or count == targets or sorted_ends[place] - first > span:
            offsets.append(place)
            first, count = sorted_ends[place], 0
        count += 1
    return Streams(order, np.array([*offsets, len(order)], np.int64))


def collate(
    impressions: Impressions, found: Streams, chosen: np.ndarray, history: int, actions: np.ndarray | None, context: dict[str, Tensor]
) -> Batch:
    """The streams `chosen` (int [B]) as a batch.

    history: the earliest target of a stream sees so many behaviours at most. actions: int64, of each flat interaction. context: name ->
    a row for each impression.
    """
    starts, stops = found.offsets[:-1][chosen], found.offsets[1:][chosen]
    sizes = stops - starts
    owner = np.repeat(np.arange(len(chosen)), sizes)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = found.order[np.repeat(starts, sizes) + place]
    earliest, latest = impressions.ends[found.order[starts]], impressions.ends[found.order[stops - 1]]
    begins = np.maximum(impressions.begins[found.order[starts]], earliest - history) if history else latest
    lengths = latest - begins
    width = int(lengths.max(initial=0))

    sequences = impressions.tables.dataset.sequences
    flat = latest[:, None] - width + np.arange(width)
    there = flat >= begins[:, None]
    flat = np.where(there, flat, 0)
    items = np.where(there, sequences.items[flat], 0)
    acts = np.zeros_like(items) if actions is None else np.where(there, actions[flat], 0)

    shape = (len(chosen), int(sizes.max()))
    targets, present = np.zeros(shape, np.int64), np.zeros(shape, bool)
    cuts = np.full(shape, width, np.int64)
    targets[owner, place], present[owner, place] = impressions.items[rows], True
    if history:
        cuts[owner, place] = width - (latest[owner] - impressions.ends[rows])
    labels = None
    if impressions.labels is not None:
        labels = np.zeros((*shape, impressions.labels.shape[1]), np.float32)
        labels[owner, place] = impressions.labels[rows]
    heads = torch.from_numpy(found.order[starts])
    tensors = [torch.from_numpy(np.asarray(array, np.int64)) for array in (items, acts, lengths, targets, cuts)]
    users = torch.from_numpy(impressions.users[found.order[starts]].astype(np.int64))
    about = {name: values[heads] for name, values in context.items()}
    return Batch(users, about, *tensors, torch.from_numpy(present), None if labels is None else torch.from_numpy(labels), rows)
