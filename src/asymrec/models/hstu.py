"""HSTU, "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations" (Zhai et al.,
ICML 2024, arXiv 2402.17152).

In words: SASRec with another decoder (`nn/hstu.py`): attention without a softmax, its weights a SiLU of query times key plus what is
learned for the distance and the time between the two, its result multiplied by a gate; no feed-forward layers, no other positions.

What differs from the paper:
- places are divided by how many a place sees, not by the longest length; a norm follows, so that only its epsilon could tell them
  apart, and a history has the same state whatever stands beside it;
- biases are learned for each head;
- time is what lies between two items of the history. The authors' code takes the time of the query's next item, the target's, which
  is not known when a recommendation is asked for;
- buckets of time are half octaves of the median time between two interactions, so that the unit of the data does not matter;
- times of a tenth of the histories, drawn anew each step, are dropped in training: the bucket of unknown times is learned, and
  histories may come without times;
- both linear layers have biases, and dropout is on the gated result too;
- reading (a LayerNorm included), loss, scores and training are those of our SASRec.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asymrec.data import Dataset, Sequences, Split
from asymrec.data.batches import PackedBatch, pack
from asymrec.models.sasrec import Network, SASRec
from asymrec.nn.hstu import HSTUDecoder

WEIGHTS_AT_ONCE = 1 << 24  # of attention, at one time where users are scored: 64 MiB


class TimedNetwork(Network):
    """The decoder is told times and no positions."""

    def context(self, batch: PackedBatch) -> tuple[np.ndarray, ...]:
        return (batch.segment,) if batch.times is None else (batch.segment, batch.times)


class HSTU(SASRec):
    """Settings as in `asymrec.config`, by name: `HSTU(width=128, layers=4, epochs=40, seed=1)`; `ffn` means nothing here."""

    name = "hstu"
    uses = SASRec.uses - {"ffn"}
    reads_times = True
    _unit = 1.0  # of time; a saved network brings its own

    def _begin(self, dataset: Dataset, split: Split) -> Split:
        self._unit = typical_time(split.train)
        return split

    def _network(self, n_items: int) -> Network:
        net = self.recipe.network
        decoder = HSTUDecoder(net.width, net.layers, net.heads, net.dropout, self.history, net.head_width, self._unit)
        return TimedNetwork(self._table(n_items), decoder, self.recipe.training.temperature, net.repeat)

    def _last_states(self, histories: Sequences) -> Tensor:
        step, states = max(1, WEIGHTS_AT_ONCE // (self.recipe.network.heads * self.history**2)), []
        for start in range(0, len(histories), step):
            batch = pack(histories, np.arange(start, min(start + step, len(histories))), self.history)
            ends = torch.from_numpy(np.cumsum(batch.length) - 1)
            states.append(self.network(batch, self._inputs)[ends.to(self.device)])
        return torch.cat(states)


def typical_time(sequences: Sequences) -> float:
    """The median of the positive times between neighbours; 1 where there are none."""
    if sequences.times is None:
        return 1.0
    between = np.diff(sequences.times)[np.diff(sequences.owners) == 0]
    return float(np.median(between[between > 0])) if (between > 0).any() else 1.0
