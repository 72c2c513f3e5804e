"""Several models as one list: a product of what each holds likely, or reciprocal rank fusion.

- `fuse=weights` (default): every part's scores become a distribution over the items (the softmax of logits, the shares of amounts), and
  the fused score is the weighted sum of log(p + FLOOR): a logarithmic pool (Genest & Zidek, Statistical Science 1986). The floor keeps
  a part that gives an item nothing from ruling it out. Logits are multiplied by a scale first, one a part, by which they say the
  validation's targets best: the mean over an item's codes is none yet. Then the weights are chosen on the validation part for NDCG@10
  with the history kept, one part's share after another from a grid, until nothing is gained. The test is not looked at.
- `fuse=ranks`: reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009), the sum over parts of 1 / (50 + rank); the constant
  is the AsymRec paper's (arXiv 2605.14512). Nothing is chosen.

`parts` names models, each fitted on the same training part with its own defaults and what is set; `name:preset` takes a preset's
settings on top. `recommend`, saving and loading are those of any model.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from asymrec.config import Recipe
from asymrec.data import Dataset, Examples, Sequences, Split
from asymrec.errors import ConfigError
from asymrec.evaluation.metrics import per_user, ranks
from asymrec.models.base import MODELS, Recommender
from asymrec.models.both import BothViews
from asymrec.models.repeat import calibrated
from asymrec.models.trained import VALIDATION_USERS, Trained, checked
from asymrec.tensors import prefixed, without_prefix
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET
from asymrec.vectors import item_vectors

RANK_CONSTANT = 50
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # of one part, that are tried
ROUNDS = 4
FLOOR = 1e-3
LIKELIHOODS = 1 << 28  # of all parts, held while the weights are chosen: 1 GiB
USERS_AT_ONCE = 512
FEW = 32  # users whose scores tell whether a part scores every item


class Fusion(Recommender):
    """Settings: `parts`, `fuse`, and those of the parts.

    Raises ConfigError: a part that is no model, or no preset.
    """

    name = "fusion"
    weights: np.ndarray  # float64 [parts], sum 1
    scales: np.ndarray  # float64 [parts], what logits are multiplied by

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        fusion = self.recipe.fusion
        if fusion.part_settings:  # as they were when the parts were first made
            training = self.recipe.training
            own = {"precision": training.precision, "device": training.device}
            trees = [tree | {"training": tree["training"] | own} for tree in fusion.part_settings]
            self.parts = [_kind(spec)(Recipe.of(tree)) for spec, tree in zip(fusion.parts, trees)]
        else:
            self.parts = [self._part(spec) for spec in fusion.parts]
        known = tuple(part.recipe.model_dump(mode="json", exclude={"fusion"}) for part in self.parts)
        self.recipe = self.recipe.model_copy(update={"fusion": fusion.model_copy(update={"part_settings": known})})
        self.uses = frozenset.union(Recipe.leaves_of("fusion"), *(part.uses for part in self.parts))

    def _part(self, spec: str) -> Recommender:
        preset = spec.partition(":")[2]
        given = Recipe.of(self.recipe.model_dump(exclude_unset=True, exclude={"fusion"}))
        return _kind(spec)(Recipe.read(preset).over(given) if preset else given)

    @property
    def reads_times(self) -> bool:
        return any(part.reads_times for part in self.parts)

    def has_codes(self) -> bool:
        return any(part.has_codes() for part in self.parts)

    def reads_vectors(self) -> bool:
        return any(part.reads_vectors() for part in self.parts)

    def _fit(
        self,
        dataset: Dataset,
        split: Split,
        vectors: np.ndarray | None = None,
        checkpoint: str | None = None,
        resume: bool = False,
        listener: Listener = QUIET,
    ) -> None:
        """Fit the parts one after another, then choose the weights. Arguments and errors are those of the parts."""
        vectors = None if vectors is None else checked(vectors, dataset.n_items)
        if vectors is None and self.reads_vectors():
            vectors = item_vectors(dataset, self.recipe.vectors, split.train)
        self.log = []
        for number, (spec, part) in enumerate(zip(self.recipe.fusion.parts, self.parts), 1):
            listener.stage(f"part {number} of {len(self.parts)}: {spec}")
            self._fit_part(part, dataset, split, vectors, checkpoint and f"{checkpoint}/part{number}", resume, listener)
            self.log += [entry | {"part": spec} for entry in getattr(part, "log", [])]
        self.weights, self.scales = np.full(len(self.parts), 1 / len(self.parts)), np.ones(len(self.parts))
        if self.recipe.fusion.fuse == "weights" and len(self.parts) > 1:
            self._choose(split.validation, dataset.n_items, listener)

    def _fit_part(
        self,
        part: Recommender,
        dataset: Dataset,
        split: Split,
        vectors: np.ndarray | None,
        checkpoint: str | None,
        resume: bool,
        listener: Listener,
    ) -> None:
        options: dict[str, Any] = {"vectors": vectors} if part.reads_vectors() else {}
        if isinstance(part, Trained):  # one that was finished before an interruption finds all its epochs in the checkpoint
            options |= {"checkpoint": checkpoint, "resume": resume, "listener": listener}
        part.fit(dataset, split, **options)

    def _choose(self, validation: Examples, n_items: int, listener: Listener) -> None:
        users = min(len(validation.users), VALIDATION_USERS, max(1, LIKELIHOODS // (len(self.parts) * n_items)))
        chosen = np.random.default_rng(self.recipe.training.seed).permutation(len(validation.users))[:users]
        validation = validation.take(np.sort(chosen))
        self.scales = np.array([self._scale(part, validation, n_items) for part in self.parts])
        likely = np.empty((len(self.parts), users, n_items), np.float32)
        for start in range(0, users, USERS_AT_ONCE):
            histories = validation.histories.take(np.arange(start, min(start + USERS_AT_ONCE, users)))
            for number in range(len(self.parts)):
                likely[number, start : start + len(histories)] = self._likely(number, histories)

        def quality(weights: np.ndarray) -> float:
            found = np.empty(users)
            for start in range(0, users, USERS_AT_ONCE):
                rows = np.arange(start, min(start + USERS_AT_ONCE, users))
                targets = validation.targets.take(rows)
                placed = ranks(np.einsum("p,pui->ui", weights.astype(np.float32), likely[:, start : start + len(rows)]), targets)
                found[rows] = per_user(placed, targets.offsets, (10,))["ndcg@10"]
            return float(found.mean())

        self.weights, best = climb(quality, len(self.parts))
        shares = ", ".join(f"{spec} {weight:.2f}" for spec, weight in zip(self.recipe.fusion.parts, self.weights))
        listener.stage(f"weights: {shares}; validation NDCG@10 {best:.4f} on {users:,} users")

    def scores(self, histories: Sequences) -> np.ndarray:
        fused: np.ndarray | None = None
        by_ranks = self.recipe.fusion.fuse == "ranks"
        for number, weight in enumerate(self.weights.astype(np.float32)):
            share = weight * (by_rank(self.parts[number].scores(histories)) if by_ranks else self._likely(number, histories))
            fused = share if fused is None else fused + share
        return fused

    def _likely(self, number: int, histories: Sequences) -> np.ndarray:
        part = self.parts[number]
        return log_likely(part.scores(histories) * np.float32(self.scales[number]), part.logits)

    def _scale(self, part: Recommender, validation: Examples, n_items: int) -> float:
        """1 for amounts, and where some items have no score: a beam's are probabilities, a graph's are left as they are."""
        few = validation.histories.take(np.arange(min(len(validation.users), FEW)))
        if not part.logits or not np.isfinite(part.scores(few)).all():
            return 1.0
        return calibrated(part.scores, validation, n_items, self.recipe.training.seed)[0]

    def _placing(self) -> Recommender:
        """The part that new items are placed by: the one whose vectors and codes are the fusion's."""
        placing = next((part for part in self.parts if part.catalogue()[0] is not None), self.parts[0])
        placing.dataset = self.dataset
        return placing

    def new_vectors(self, items: pa.Table) -> np.ndarray:
        return self._placing().new_vectors(items)

    def new_codes(self, vectors: np.ndarray) -> np.ndarray | None:
        return self._placing().new_codes(vectors)

    def extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> Fusion:
        """Parts that read vectors place the items, by codes of their own where they are not the first; those that count know nothing of
        them."""
        model, placing = copy(self), self._placing()
        model.parts = []
        for part in self.parts:
            if part.catalogue()[0] is None:
                model.parts.append(part.widened(len(vectors)))
            else:
                model.parts.append(part.extended(vectors, codes if part is placing else part.new_codes(vectors)))
        return model

    @property
    def report(self) -> dict[str, Any] | None:
        return next((part.report for part in self.parts if getattr(part, "report", None)), None)

    @property
    def quantizer(self) -> Any:
        """Of the first part that has codes, as `catalogue`'s codes are."""
        return next(part.quantizer for part in self.parts if part.catalogue()[1] is not None)

    def code_groups(self) -> np.ndarray | None:
        """Those of the part whose codes are the fusion's."""
        return next((part.code_groups() for part in self.parts if part.catalogue()[1] is not None), None)

    def catalogue(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        both = [part.catalogue() for part in self.parts]
        return tuple(next((pair[kind] for pair in both if pair[kind] is not None), None) for kind in range(2))

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"weights": torch.from_numpy(self.weights), "scales": torch.from_numpy(self.scales)}
        for number, part in enumerate(self.parts):
            own, codes = part.tensors(), part.catalogue()[1]
            tensors |= prefixed(f"part{number}", own if codes is None else own | {"codes": torch.from_numpy(codes)})
        return tensors

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        self.weights = tensors["weights"].numpy()
        self.scales = tensors["scales"].numpy() if "scales" in tensors else np.ones(len(self.parts))  # fitted before there were any
        for number, part in enumerate(self.parts):
            own = without_prefix(f"part{number}", tensors)
            held = own.pop("codes", None)
            part.restore(own, vectors if part.reads_vectors() else None, None if held is None else held.numpy())


def distribution(scores: np.ndarray, logits: bool) -> np.ndarray:
    """Scores [n, items] as shares that sum to 1 in each row: the softmax of logits, or amounts (below 0: none) over their sum.

    A row without any amount is even: the part says nothing.
    """
    if logits:
        shares = np.exp(scores - scores.max(1, keepdims=True))
    else:
        shares = np.maximum(scores, 0)
    total = shares.sum(1, keepdims=True)
    return np.where(total > 0, shares / np.where(total > 0, total, 1), 1 / scores.shape[1]).astype(np.float32)


def log_likely(scores: np.ndarray, logits: bool) -> np.ndarray:
    return np.log(distribution(scores, logits) + np.float32(FLOOR))


def by_rank(scores: np.ndarray) -> np.ndarray:
    """Scores [n, items] -> 1 / (50 + rank), ranks from 1; equal scores have the mean of their ranks, -inf nothing."""
    from scipy.stats import rankdata  # half a second that only who asks for it is to wait for

    ranked = rankdata(-scores, axis=1).astype(np.float32)
    return np.where(np.isneginf(scores), 0, 1 / (RANK_CONSTANT + ranked)).astype(np.float32)


def climb(quality: Callable[[np.ndarray], float], parts: int) -> tuple[np.ndarray, float]:
    """Weights [parts], sum 1, that none of the shares tried for one part improves; starts from the best part alone."""
    best, weights = max((quality(alone), tuple(alone)) for alone in np.eye(parts))
    for _ in range(ROUNDS):
        before = best
        for part in range(parts):
            others = np.array(weights)
            others[part] = 0
            if not others.sum():
                others[np.arange(parts) != part] = 1
            for share in SHARES:
                tried = (1 - share) * others / others.sum() + share * np.eye(parts)[part]
                if (found := quality(tried)) > best:
                    best, weights = found, tuple(tried)
        if best == before:
            break
    return np.array(weights), best


def _kind(spec: str) -> type[Recommender]:
    name = spec.partition(":")[0]
    if name not in MODELS or name == Fusion.name:
        known = ", ".join(each for each, kind in MODELS.items() if each != Fusion.name and not issubclass(kind, BothViews))
        raise ConfigError(f"fusion: '{name}' is no model to be a part; there are {known}")
    if issubclass(MODELS[name], BothViews):
        raise ConfigError(f"fusion: '{name}' makes item vectors of its own, and the parts of a fusion share theirs")
    return MODELS[name]
