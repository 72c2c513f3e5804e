"""AsymRec, "Asymmetric Generative Recommendation via Multi-Expert Projection and Multi-Faceted Hierarchical Quantization"
(arXiv 2605.14512).

In words: an item is read as its continuous vector, projected by a dense mixture of experts (MSP, `nn/msp.py`); a causal
Transformer reads the history; the next item is written as M*L discrete codes (MHQ, `quantize/mhq.py`). The quantizer is fitted
first and frozen, then the recommender learns the codes of the next item at every place of every history.

What differs from the paper:
- `objective=catalogue` (default): the softmax runs over items instead of over each head's codewords, see `nn/heads.py`.
  `objective=heads` is the paper's; the preset `paper` sets all of its choices.
- `repeat`: one learned number is added to the logit of every item that the history already holds, so that the model itself
  learns whether users come back to the same item. Without it a data set in which nobody does costs the ranking its first places.
- Retrieval is exact: every item is scored, where the paper searches a graph.
- Biases of codes, averaged weights and the settings the paper leaves open are ours; `docs/configuration.md` lists them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asymrec.config import Recipe
from asymrec.data import Dataset, Sequences, Split
from asymrec.data.batches import PackedBatch, epoch_batches, pack
from asymrec.device import choose_device, choose_precision
from asymrec.errors import DataError, VectorError
from asymrec.evaluation.protocol import evaluate
from asymrec.models.base import Recommender
from asymrec.nn.decoder import Decoder
from asymrec.nn.heads import CatalogueHead, FacetHeads
from asymrec.nn.losses import Candidates, Pairs, catalogue_cross_entropy, sample_candidates
from asymrec.nn.msp import MSP
from asymrec.quantize import MHQ
from asymrec.retrieval.exact import score_codes
from asymrec.training.checkpoint import Checkpoint, without_prefix
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET, train
from asymrec.vectors import item_vectors

EPOCHS, STEPS, MOST_EPOCHS = 12, 800, 100  # the schedule where none is given: so many epochs, more where they would be few steps
VALIDATION_USERS = 20_000  # more would not move the choice of the epoch: NDCG@10's standard error is then below .002


class Network(nn.Module):
    """MSP, decoder and head over a fixed catalogue.

    Args:
        recipe: sections network, quantizer (for K) and training (for the objective).
        vectors: float32 [n_items, d].
        codes: int [n_items, M*L].
    """

    def __init__(self, recipe: Recipe, vectors: Tensor, codes: Tensor):
        super().__init__()
        net, training = recipe.network, recipe.training
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("codes", codes.int(), persistent=False)
        self.msp = MSP(vectors.shape[1], net.width, net.experts)
        self.norm = nn.LayerNorm(net.width)
        self.decoder = Decoder(net.width, net.layers, net.heads, net.ffn, net.dropout, net.history)
        words = recipe.quantizer.codewords
        if training.objective == "catalogue":
            self.head = CatalogueHead(codes, words, net.width, training.temperature)
        else:
            self.head = FacetHeads(codes.shape[1], words, net.width, net.inner, training.temperature)
        self.again = nn.Parameter(torch.zeros(())) if net.repeat else None
        self.temperature = training.temperature
        self.history = net.history

    @property
    def repeat(self) -> Tensor | None:
        """What an item that the history holds gets on top of its logit; learned in units of the cosine, as the logit is."""
        return None if self.again is None else self.again / self.temperature

    def forward(self, batch: PackedBatch) -> Tensor:
        """A packed batch -> the state after each item of its histories, [total, width], history after history."""
        items = torch.from_numpy(batch.items).to(self.vectors.device)
        # each distinct item goes through MSP once, however often it stands in the batch; empty places read some item unseen
        distinct, where = torch.unique(items.clamp_min(0), return_inverse=True)
        read = self.norm(self.msp(self.vectors[distinct]).float())
        segment = torch.from_numpy(batch.segment).to(items.device)
        position = torch.from_numpy(batch.position).to(items.device)
        states = self.decoder(read[where], segment, position)
        return states.flatten(0, 1)[torch.from_numpy(batch.places).to(items.device)].float()


class AsymRec(Recommender):
    """Settings as in `asymrec.config`, by name: `AsymRec(width=256, facets=16, epochs=40, seed=1)`."""

    name = "asymrec"
    network: Network
    quantizer: MHQ
    log: list[dict]
    report: dict[str, Any]

    def _fit(
        self,
        dataset: Dataset,
        split: Split,
        vectors: np.ndarray | None = None,
        checkpoint: str | None = None,
        resume: bool = False,
        listener: Listener = QUIET,
    ) -> None:
        """Quantize the catalogue, then train.

        Args:
            vectors: float [n_items, d] in row order of the item table; by default what `recipe.vectors` describes.
            checkpoint: folder for an interrupted fit to go on from.
            resume: go on from `checkpoint` where it holds something; otherwise what it holds is replaced.
            listener: told of stages, steps and epochs.
        Raises:
            VectorError: wrong shape, not finite. QuantizerError: the codes lost the vectors' information. DataError: no
            training sequence of two items.
        """
        recipe = self.recipe
        prepared = Checkpoint(f"{checkpoint}/prepared") if checkpoint else None
        state = Checkpoint(f"{checkpoint}/training") if checkpoint else None
        if checkpoint and not resume:
            prepared.clear()
            state.clear()
        pieces = _pieces(split.train, recipe.network.history)
        if not len(pieces):
            raise DataError("nothing to train on: no user has two interactions in the training part")
        counts = split.train_counts(dataset.n_items)
        self.quantizer = MHQ(seed=recipe.training.seed, **recipe.quantizer.model_dump())
        found = prepared.load() if prepared else None
        if found:
            tensors, values = found
            vectors, codes, self.report = tensors.pop("vectors").numpy(), tensors.pop("codes").numpy(), values["report"]
            self.quantizer.restore(tensors)
        else:
            vectors = item_vectors(dataset, recipe.vectors) if vectors is None else _checked(vectors, dataset.n_items)
            listener.stage(f"quantize {dataset.n_items:,} items into {recipe.quantizer.facets} x {recipe.quantizer.levels} codes")
            self.quantizer.fit(vectors[counts > 0])
            codes = self.quantizer.catalogue(vectors)
            self.report = self.quantizer.report(vectors, codes)
            if prepared:
                tensors = {"vectors": torch.from_numpy(vectors), "codes": torch.from_numpy(codes)} | self.quantizer.tensors()
                prepared.save(tensors, {"report": self.report})

        device = choose_device(recipe.training.device)
        self.precision = choose_precision(recipe.training.precision, device)
        torch.manual_seed(recipe.training.seed)
        self._catalogue = vectors, codes
        self.network = Network(recipe, torch.from_numpy(vectors), torch.from_numpy(codes))
        self.network.msp.standardise(torch.from_numpy(vectors[counts > 0]))
        self.network.to(device)
        self._popularity = np.log1p(counts).astype(np.float32)
        step = _Step(self.network, recipe, counts, self.precision)
        validation = split.validation
        if len(validation.users) > VALIDATION_USERS:
            chosen = np.random.default_rng(recipe.training.seed).permutation(len(validation.users))[:VALIDATION_USERS]
            validation = validation.take(np.sort(chosen))

        def batches(epoch: int) -> list[Sequences]:
            seed, targets = recipe.training.seed, pieces.lengths - 1
            return [pieces.take(rows) for rows in epoch_batches(targets, recipe.training.batch, seed=seed, epoch=epoch)]

        def validate() -> dict[str, float]:
            with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                self._freeze()
                metrics = evaluate(self, validation, dataset.n_items, counts, ks=(10,)).metrics
            return {name: metrics["kept"][name] for name in ("ndcg@10", "recall@10")} | {"ndcg@10_removed": metrics["removed"]["ndcg@10"]}

        training = recipe.training
        if training.epochs is None:
            epochs = min(max(EPOCHS, math.ceil(STEPS / len(batches(1)))), MOST_EPOCHS)
            training = training.model_copy(update={"epochs": epochs})
        listener.stage(f"train on {int(pieces.lengths.sum() - len(pieces)):,} interactions of {len(split.train):,} users")
        self.log = train(self.network, batches, step, validate, training, checkpoint=state, listener=listener)
        self._freeze()

    def scores(self, histories: Sequences) -> np.ndarray:
        read = np.flatnonzero(histories.lengths)
        out = np.empty((len(histories), len(self._popularity)), np.float32)
        out[histories.lengths == 0] = self._popularity  # nothing is known of the user
        if not len(read):
            return out
        known = histories.take(read)
        with torch.inference_mode():
            batch = pack(known, None, self.network.history)
            ends = torch.from_numpy(np.cumsum(batch.length) - 1)
            states = self.network(batch)[ends.to(self.network.vectors.device)]
            if self._items is not None:
                items, bias = self._items
                with torch.autocast(states.device.type, enabled=False):
                    out[read] = torch.addmm(bias, self.network.head.query(states), items.T).cpu().numpy()
            else:
                out[read] = score_codes(self.network.head.log_probabilities(states).cpu(), self._catalogue[1])
        if self.network.repeat is not None:
            seen = np.unique(np.repeat(read, known.lengths) * out.shape[1] + known.items)
            out.reshape(-1)[seen] += self.network.repeat.item()
        return out

    def catalogue(self) -> tuple[np.ndarray, np.ndarray]:
        return self._catalogue

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"quantizer.{name}": tensor for name, tensor in self.quantizer.tensors().items()}
        return tensors | {"popularity": torch.from_numpy(self._popularity)}

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        self._catalogue = vectors, codes
        self._popularity = tensors["popularity"].numpy()
        self.quantizer = MHQ(seed=self.recipe.training.seed, **self.recipe.quantizer.model_dump())
        self.quantizer.restore(without_prefix("quantizer", tensors))
        self.network = Network(self.recipe, torch.from_numpy(vectors), torch.from_numpy(codes))
        self.network.load_state_dict(without_prefix("network", tensors))
        self.network.to(choose_device(self.recipe.training.device)).eval()
        self._freeze()

    def _freeze(self) -> None:
        """What the scores of all users share, computed once."""
        self._items = None
        if isinstance(self.network.head, CatalogueHead):
            with torch.inference_mode(), torch.autocast(self.network.vectors.device.type, enabled=False):
                self._items = self.network.head.items()


class _Step:
    """Pieces of histories -> the loss. Every item but a piece's first is a target, every item but its last is read."""

    def __init__(self, network: Network, recipe: Recipe, counts: np.ndarray, precision: torch.dtype):
        self.network, self.recipe, self.precision = network, recipe, precision
        self.counts = counts
        self.sampled = recipe.training.objective == "catalogue" and len(counts) > recipe.training.full_softmax

    def __call__(self, pieces: Sequences) -> Tensor:
        network, device = self.network, self.network.vectors.device
        inputs = pieces.between(pieces.offsets[:-1], pieces.offsets[1:] - 1)
        goals = pieces.between(pieces.offsets[:-1] + 1, pieces.offsets[1:]).items.astype(np.int64)
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            states = network(pack(inputs, None, network.history))
            if isinstance(network.head, FacetHeads):
                return network.head.loss(states, self._codes(goals), self.precision)
        mixed = None
        if self.recipe.training.mix:
            mixed = self.recipe.training.mix * network.head.facet_loss(states, self._codes(goals), self.precision)
        sample = sample_candidates(goals, self.counts, self.recipe.training.negatives) if self.sampled else None
        table, bias = network.head.items(None if sample is None else torch.from_numpy(sample.rows).to(device))
        at_target = None
        if sample is not None:
            goals = sample.slot[goals]
            correction = torch.from_numpy(sample.correction).to(device)
            bias, at_target = bias + correction, -correction[torch.from_numpy(goals).to(device)]
        loss = catalogue_cross_entropy(
            network.head.query(states),
            table,
            torch.from_numpy(goals).to(device),
            bias,
            at_target,
            self._seen(inputs, sample),
            network.repeat,
            self.precision,
        )
        return loss if mixed is None else loss + mixed

    def _codes(self, goals: np.ndarray) -> Tensor:
        """int64 [n, M*L], the codes of the items in `goals`."""
        return self.network.codes[torch.from_numpy(goals).to(self.network.codes.device)].long()

    def _seen(self, inputs: Sequences, sample: Candidates | None) -> Pairs | None:
        """(place, item) for every item at or before a place of its history."""
        if self.network.repeat is None:
            return None
        earlier = inputs.between(np.repeat(inputs.offsets[:-1], inputs.lengths), np.arange(len(inputs.items)) + 1)
        places, items = earlier.owners, earlier.items.astype(np.int64)
        if sample is not None:
            items = sample.slot[items]
            places, items = places[items >= 0], items[items >= 0]
        keys = np.unique(places * len(self.counts) + items)
        return Pairs(*(torch.from_numpy(part).to(self.network.vectors.device) for part in np.divmod(keys, len(self.counts))))


def _pieces(sequences: Sequences, history: int) -> Sequences:
    """Sequences cut into pieces of at most history + 1 items, the last items whole, each item but a sequence's first a target once."""
    lengths = sequences.lengths
    count = np.maximum(0, -(-(lengths - 1) // history))
    owner = np.repeat(np.arange(len(sequences)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    stops = sequences.offsets[1:][owner] - number * history
    return sequences.between(np.maximum(sequences.offsets[:-1][owner], stops - history - 1), stops)


def _checked(vectors: Any, n_items: int) -> np.ndarray:
    from asymrec.quantize.base import matrix

    vectors = matrix(vectors)
    if len(vectors) != n_items:
        raise VectorError(f"there are {len(vectors)} vectors for {n_items} items")
    return vectors
