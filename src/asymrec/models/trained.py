"""What the models that learn by gradient share: histories cut into pieces, the checkpoint, the loop, early stopping, scores.

A model names its quantizer, if it has codes, builds its network, gives the loss of a batch and the scores of histories.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from asymrec.config import Recipe
from asymrec.data import Dataset, Examples, Sequences, Split
from asymrec.data.batches import epoch_batches
from asymrec.device import choose_device, choose_precision
from asymrec.errors import ConfigError, DataError, VectorError
from asymrec.evaluation.protocol import evaluate
from asymrec.models.base import Recommender
from asymrec.models.growing import Growing
from asymrec.quantize import Quantizer
from asymrec.quantize.base import matrix
from asymrec.quantize.distinct import hashes
from asymrec.tensors import prefixed, without_prefix
from asymrec.training.checkpoint import Checkpoint
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET, train
from asymrec.vectors import item_vectors
from asymrec.vectors.placing import Placer

VALIDATION_USERS = 20_000  # more would not move the choice of the epoch: NDCG@10's standard error is then below .002
HISTORY = (50, 200)  # least and most items that are read where the data decides
CATALOGUE = ("vectors", "codes")  # what a run folder keeps in files of its own
OWN = ("popularity", "history")  # what every trained model keeps beside its network and what `_prepare` gave


class Trained(Recommender):
    """Base of the models with a network. Settings as in `asymrec.config`, by name: `SASRec(width=128, epochs=40, seed=1)`.

    Raises ConfigError: an `objective` or `mix` that the model does not learn by.
    """

    # epochs where none are given: at least the first; more, up to the third, where they would be fewer steps than the second
    schedule: ClassVar[tuple[int, int, int]] = (12, 800, 100)
    logits = True
    uses = Recommender.uses | {
        *("width", "layers", "heads", "head_width", "ffn", "dropout", "history", "temperature", "learning_rate", "weight_decay", "epochs"),
        *("patience", "batch", "average", "warmup", "precision", "device"),
    }
    objectives: ClassVar[tuple[str, ...]] = ()  # those it can learn by; none where its loss is its own
    space: ClassVar[dict[str, list[Any]]] = {"dropout": [0.3, 0.5], "learning_rate": [1e-3, 2e-3, 4e-3], "temperature": [0.05, 0.07]}
    network: nn.Module
    quantizer: Quantizer  # of a model with codes
    history: int  # items of a history that are read
    log: list[dict]
    report: dict[str, Any] | None = None  # of the codes, where there are any
    _placer: Placer | None = None  # of new items
    _grown: dict[str, Growing]  # the tables of an extended model

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        default, training = type(self.recipe.training)(), self.recipe.training
        if training.objective not in (self.objectives or (default.objective,)) or (training.mix and "heads" not in self.objectives):
            known = f"takes objective={' or '.join(self.objectives)} and mix=0" if self.objectives else "has a loss of its own"
            raise ConfigError(f"{self.name} {known}: objective={training.objective}, mix={training.mix:g} would be passed over")

    # What a model writes

    def _quantizer(self) -> Quantizer | None:
        """What writes items as codes, not fitted yet; None for a model without codes."""
        return None

    def has_codes(self) -> bool:
        return self._quantizer() is not None

    def _begin(self, dataset: Dataset, split: Split) -> Split:
        """Look at the data before anything is fitted; returns the one to fit on."""
        return split

    def _fit_on(self, validation: Examples) -> None:
        """Fit what the validation part decides, all else fixed, before it judges an epoch."""

    def _end(self, split: Split) -> None:
        """What follows training."""

    def _network(self, n_items: int) -> nn.Module:
        """The network before training; `self.recipe` and `self.history` are set."""
        raise NotImplementedError

    def _loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def _known_scores(self, histories: Sequences) -> np.ndarray:
        """float32 [n, n_items] for histories of which none is empty; called without gradients."""
        raise NotImplementedError

    def _batches(self, pieces: Sequences, epoch: int) -> list[Any]:
        """The batches of an epoch; by default pieces of histories, about `batch` targets in each."""
        training = self.recipe.training
        return [pieces.take(rows) for rows in epoch_batches(pieces.lengths - 1, training.batch, seed=training.seed, epoch=epoch)]

    def _freeze(self) -> None:
        """Compute what the scores of all users share; called whenever the weights have changed."""

    # What all have

    def _prepare(self, vectors: np.ndarray | None, train: Sequences, listener: Listener) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is there before the network: tensors, `vectors` and `codes` of the catalogue among them, and plain values.

        vectors: float32 [n_items, d], or None for a model that reads none. train: the interactions of training, `_counts` of each item.
        """
        tensors = {} if vectors is None else {"vectors": torch.from_numpy(vectors)}
        quantizer = self._quantizer()
        if quantizer is None:
            return tensors, {}
        size = " x ".join(str(count) for count in quantizer.code_shape if count > 1) or "1"
        listener.stage(f"quantize {len(vectors):,} items into {size} codes")
        quantizer.fit(vectors[self._counts > 0])
        codes = quantizer.catalogue(vectors)
        tensors |= {"codes": torch.from_numpy(codes)} | prefixed("quantizer", quantizer.tensors())
        return tensors, {"report": quantizer.report(vectors, codes)}

    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Take what `_prepare` gave, also after it was kept in a checkpoint or a run folder."""
        if (quantizer := self._quantizer()) is not None:
            self.quantizer = quantizer.restore(without_prefix("quantizer", tensors))

    def _autocast(self) -> torch.autocast:
        """The precision that the network is trained in."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def reads_vectors(self) -> bool:
        return True

    def _fit(
        self,
        dataset: Dataset,
        split: Split,
        vectors: np.ndarray | None = None,
        checkpoint: str | None = None,
        resume: bool = False,
        listener: Listener = QUIET,
    ) -> None:
        """Prepare, then train.

        Args:
            vectors: float [n_items, d] in row order of the item table; by default what `recipe.vectors` describes. Models by id
                alone do not look at them.
            checkpoint: folder for an interrupted fit to go on from.
            resume: go on from `checkpoint` where it holds something; otherwise what it holds is replaced.
            listener: told of stages, steps and epochs.
        Raises:
            VectorError: wrong shape, not finite. QuantizerError: the codes lost the vectors' information. DataError: no
            training sequence of two items.
        """
        split = self._begin(dataset, split)
        recipe, n_items = self.recipe, dataset.n_items
        prepared = Checkpoint(f"{checkpoint}/prepared") if checkpoint else None
        state = Checkpoint(f"{checkpoint}/training") if checkpoint else None
        if checkpoint and not resume:
            prepared.clear()
            state.clear()
        self.history = recipe.network.history or history_of(split.train.lengths)
        pieces = cut(split.train, self.history)
        if not len(pieces):
            raise DataError("nothing to train on: no user has two interactions in the training part")
        self._counts = split.train_counts(n_items)
        first = pieces.items[pieces.offsets[:-1]]  # read, and no target
        self._target_counts = np.bincount(pieces.items, minlength=n_items) - np.bincount(first, minlength=n_items)
        vectors = None if vectors is None else checked(vectors, n_items)
        found = prepared.load() if prepared else None
        if found is None:
            if vectors is None and self.reads_vectors():
                vectors = item_vectors(dataset, recipe.vectors, split.train)
            found = self._prepare(vectors if self.reads_vectors() else None, split.train, listener)
            if prepared:
                prepared.save(*found)
        self._keep(*found)

        device = choose_device(recipe.training.device)
        self.precision = choose_precision(recipe.training.precision, device)
        torch.manual_seed(recipe.training.seed)
        self.network = self._network(n_items).to(device)
        self._popularity = np.log1p(self._counts).astype(np.float32)
        validation = split.validation
        if len(validation.users) > VALIDATION_USERS:
            chosen = np.random.default_rng(recipe.training.seed).permutation(len(validation.users))[:VALIDATION_USERS]
            validation = validation.take(np.sort(chosen))

        def validate() -> dict[str, float]:
            with self._autocast():
                self._freeze()
                self._fit_on(validation)
                metrics = evaluate(self, validation, n_items, self._counts, ks=(10,)).metrics
            return {name: metrics["kept"][name] for name in ("ndcg@10", "recall@10")} | {"ndcg@10_removed": metrics["removed"]["ndcg@10"]}

        training = recipe.training
        if training.epochs is None:
            least, steps, most = self.schedule
            epochs = min(max(least, math.ceil(steps / len(self._batches(pieces, 1)))), most)
            training = training.model_copy(update={"epochs": epochs})
        listener.stage(f"train on {int(pieces.lengths.sum() - len(pieces)):,} interactions of {len(split.train):,} users")
        self.log = train(
            self.network, lambda epoch: self._batches(pieces, epoch), self._loss, validate, training, checkpoint=state, listener=listener
        )
        self._freeze()
        self._end(split)

    def _keep(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._prepared, self.report = tensors, values.get("report")
        self._placer, self._hashed, self._grown = None, None, {}  # of another catalogue, where this is a refit
        self._take(tensors)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def scores(self, histories: Sequences) -> np.ndarray:
        known = np.flatnonzero(histories.lengths)
        if len(known) == len(histories) > 0:
            with torch.inference_mode():
                return self._known_scores(histories)
        out = np.empty((len(histories), len(self._popularity)), np.float32)
        out[histories.lengths == 0] = self._popularity  # nothing is known of the user
        if len(known):
            with torch.inference_mode():
                out[known] = self._known_scores(histories.take(known))
        return out

    def code_groups(self) -> np.ndarray | None:
        """By the codes before identical ones were told apart."""
        if "codes" not in self._prepared:
            return None
        return np.unique(self.quantizer.encode(self._prepared["vectors"]), axis=0, return_inverse=True)[1].reshape(-1)

    def catalogue(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        vectors, codes = (self._prepared.get(name) for name in CATALOGUE)
        return None if vectors is None else vectors.numpy(), None if codes is None else codes.numpy()

    def new_vectors(self, items: pa.Table) -> np.ndarray:
        vectors = self.catalogue()[0]
        if vectors is None:
            return super().new_vectors(items)
        if self._placer is None:
            self._placer = Placer(self.dataset.items, self.dataset.item_column, self.recipe.vectors, self.described(vectors))
        return self._placer.vectors(items)

    def new_codes(self, vectors: np.ndarray) -> np.ndarray | None:
        codes = self.catalogue()[1]
        if codes is None:
            return None
        if self._hashed is None:
            self._hashed = Growing(_hashes(codes))
        return self.quantizer.beside(codes, vectors, self._hashed.rows.numpy().view(np.uint64))

    def _extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> Trained:
        """A copy with what every trained model keeps of its items, longer by those of the new ones; the network is still the old one."""
        model, new = copy(self), {"popularity": torch.zeros(len(vectors)), "vectors": torch.from_numpy(vectors)}
        if codes is not None:
            new["codes"] = torch.from_numpy(codes)
        old = {"popularity": torch.from_numpy(self._popularity)} | {name: self._prepared[name] for name in CATALOGUE if name in new}
        model._grown = self._grown | {name: self._grown.get(name, Growing(old[name])).then(rows) for name, rows in new.items()}
        if self._hashed is not None:
            model._hashed = self._hashed.then(_hashes(codes))
        model._popularity = model._grown["popularity"].rows.numpy()
        model._counts = np.concatenate([self._counts, np.zeros(len(vectors), np.int64)])
        model._prepared = self._prepared | {name: model._grown[name].rows for name in CATALOGUE if name in new}
        return model

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {name: tensor for name, tensor in self._prepared.items() if name not in CATALOGUE}
        return tensors | {"popularity": torch.from_numpy(self._popularity), "history": torch.tensor(self.history)}

    def _was_fitted_with(self, **network: Any) -> None:
        """Settings of the network that a run does not name, having been fitted before there were such."""
        self.recipe = self.recipe.model_copy(update={"network": self.recipe.network.model_copy(update=network)})

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        self._popularity = tensors["popularity"].numpy()
        self._counts = np.rint(np.expm1(self._popularity)).astype(np.int64)
        self.history = int(tensors["history"])
        own = {name: tensor for name, tensor in tensors.items() if name not in OWN and not name.startswith("network.")}
        arrays = {name: torch.from_numpy(array) for name, array in zip(CATALOGUE, (vectors, codes)) if array is not None}
        self._keep(own | arrays, {})
        self.network = self._network(len(self._popularity))
        self.network.load_state_dict(without_prefix("network", tensors))
        self.network.to(choose_device(self.recipe.training.device)).eval()
        self._freeze()


def cut(sequences: Sequences, history: int) -> Sequences:
    """Sequences cut into pieces of at most history + 1 items, the last items whole, each item but a sequence's first a target once."""
    lengths = sequences.lengths
    count = np.maximum(0, -(-(lengths - 1) // history))
    owner = np.repeat(np.arange(len(sequences)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    stops = sequences.offsets[1:][owner] - number * history
    return sequences.between(np.maximum(sequences.offsets[:-1][owner], stops - history - 1), stops)


def history_of(lengths: np.ndarray) -> int:
    """How many items to read where nothing is set: what holds 95 % of the histories, within bounds."""
    return int(np.clip(np.ceil(np.quantile(lengths, 0.95)), *HISTORY))


def _hashes(codes: np.ndarray) -> Tensor:
    """int64 [n], by which it is seen at a glance whether an id is taken."""
    return torch.from_numpy(hashes(codes).view(np.int64))


def checked(vectors: Any, n_items: int) -> np.ndarray:
    vectors = matrix(vectors)
    if len(vectors) != n_items:
        raise VectorError(f"there are {len(vectors)} vectors for {n_items} items")
    return vectors
