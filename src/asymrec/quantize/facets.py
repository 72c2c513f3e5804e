"""AsymRec's codes (MHQ, arXiv 2605.14512) under FlexCode's split (arXiv 2511.20673): facets of what an item is, and of what users did
with it. Neither paper has this; it is what the two make together.

In words: an item has a vector of its content and one of its interactions; each has an MHQ of its own, of M facets by L levels. A router
reads how popular the item is and gives a share alpha: the first alpha * M facets of its id are the collaborative ones, the others the
semantic ones, every facet at its own place. Each place has 2K words a level, the K collaborative ones first.

The codebooks are fitted first, each MHQ on its own; then the router, on

    keep * g_semantic                       what a facet's semantic codewords explain of the variance, lost where it is collaborative
    trust * (1 - keep) * g_collaborative    what its collaborative ones explain, lost where it is semantic; times 1 - uncertainty, for
                                            of an item with few interactions it is mostly noise
    balance, smoothness                     of its shares, see `router.py`

with keep = sigmoid((alpha * M - facet - 1/2) / T), facets counted from 0, T falling; then shares are rounded. An item without a
collaborative vector has semantic facets alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asymrec.config import Recipe
from asymrec.errors import QuantizerError
from asymrec.quantize.autoencoder import descend
from asymrec.quantize.branches import BRANCHES, TwoBranches
from asymrec.quantize.distinct import combinations
from asymrec.quantize.linear import sample_items
from asymrec.quantize.mhq import MHQ
from asymrec.quantize.router import COLDEST, FEATURES, SHAPES, Router, Steadiness
from asymrec.tensors import prefixed, without_prefix
from asymrec.threads import team

STEPS, BATCH, RATE = 1_000, 1_024, 1e-2  # of the router


class DualMHQ(TwoBranches):
    """M facets, L levels, out of two MHQs; settings are the fields of `QuantizerConfig`, and `allocation`, `collaborative_width` and the
    router's of `FlexCodeConfig`; and a seed.

    Vectors are as `branches.py` says. Code c of a place is the collaborative
    codeword c, or K + c the semantic one. `projection` is the semantic MHQ's; the collaborative one keeps all directions.
    Raises ConfigError: unknown setting, impossible value; VectorError: vectors without a column for the semantic part;
    QuantizerError: on fit, all vectors of a branch are equal, or narrower than the facets.
    """

    def __init__(self, *, seed: int = 0, **settings: Any):
        recipe = Recipe.of(None, **settings)
        self.mhq, self.config, self.seed = recipe.quantizer, recipe.flexcode, seed
        self.distinct = self.mhq.distinct
        self.codebook_sizes = (2 * self.mhq.codewords,) * (self.mhq.facets * self.mhq.levels)
        self._tensors: dict[str, Tensor] = {}

    @property
    def code_shape(self) -> tuple[int, int]:
        return self.mhq.facets, self.mhq.levels

    @property
    def budget(self) -> int:
        return self.mhq.facets

    # Training

    def _fit(self, vectors: np.ndarray, weights: np.ndarray) -> None:
        self._check_parts(vectors)
        semantic, collaborative, features = self._parts(vectors)
        known = collaborative.any(1)
        if known.sum() < 2:
            raise QuantizerError("fewer than 2 items have a collaborative vector: there is nothing to split")
        branches = self._new("semantic").fit(semantic, weights), self._new("collaborative").fit(collaborative[known], weights[known])
        tensors = {}
        for name, part in zip(BRANCHES, branches):
            tensors |= prefixed(name, part.tensors())
        generator = torch.Generator().manual_seed(self.seed)
        x, weight = sample_items(vectors, weights, self.mhq.codewords, generator)
        router = Router.start(self._parts(x)[2], generator)
        if self.config.allocation == "router":
            with team():  # one thread: equal shares whatever the number of threads
                self._learn(router, [part.numpy() for part in self._parts(x)], weight, branches, generator)
        self._tensors = tensors | router.tensors() | {"levels": torch.zeros(self.mhq.facets + 1, FEATURES)}
        self._tensors["levels"] = self._levels(torch.from_numpy(features), self.split(vectors))

    def _learn(
        self, router: Router, parts: list[np.ndarray], weights: Tensor, branches: tuple[MHQ, MHQ], generator: torch.Generator
    ) -> None:
        gains = [branch.explained(part, branch.encode(part)) for branch, part in zip(branches, parts)]
        features, known = torch.from_numpy(parts[2]), torch.from_numpy(parts[1].any(1))
        trust, steadiness = 1 - features[:, -1], Steadiness(features, self.config.router_share)
        n, batch, facets = len(features), min(BATCH, len(features)), torch.arange(self.mhq.facets)
        epochs = math.ceil(STEPS / (n // batch))
        steps, config = iter(range(epochs * (n // batch))), self.config

        def loss(rows: Tensor) -> Tensor:
            alpha = router.share(features[rows])
            share = torch.where(known[rows], alpha, 0.0)
            temperature = 1 - (1 - COLDEST) * next(steps) / (epochs * (n // batch))
            keep = torch.sigmoid((share.unsqueeze(1) * len(facets) - facets - 0.5) / temperature)
            lost = (keep * gains[0][rows]).sum(1) + trust[rows] * ((1 - keep) * gains[1][rows]).sum(1)
            balance, smooth = steadiness(alpha, rows)
            return (lost * weights[rows]).mean() + config.router_balance * balance + config.router_smoothness * smooth

        descend(router.parameters, n, batch, epochs, RATE, generator, loss)

    def _new(self, name: str) -> MHQ:
        settings = self.mhq.model_dump() | ({"projection": None} if name == "collaborative" else {})
        return MHQ(seed=self.seed, **settings)

    # Codes

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        facets, levels = self.code_shape
        semantic, collaborative = (
            self._branch(name).encode(part).reshape(-1, facets, levels) for name, part in zip(BRANCHES, self._parts(vectors))
        )
        taken = np.arange(facets) < self.split(vectors)[:, None]
        return np.where(taken[..., None], collaborative, semantic + self.mhq.codewords).reshape(len(vectors), -1).astype(np.int32)

    def _taken(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool [n, M], which facets are collaborative (as their first level says); codes without their branch."""
        words = self.mhq.codewords
        return codes[:, :: self.mhq.levels] < words, codes % words

    def scaled_codewords(self, codes: np.ndarray) -> Tensor:
        """As MHQ's, [M, L, 2K, d]: of a place's words each branch's have dimensions of their own, and 0 in the other's."""
        taken, own = self._taken(codes)
        kept = {"semantic": ~taken, "collaborative": taken}
        semantic, collaborative = (self._branch(name).scaled_codewords(own, kept[name]) for name in BRANCHES)
        wide = semantic.shape[-1], collaborative.shape[-1]
        return torch.cat([F.pad(collaborative, (wide[0], 0)), F.pad(semantic, (0, wide[1]))], 2)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        taken, own = self._taken(codes)
        semantic, collaborative = (self._branch(name).rebuilt(own, kept) for name, kept in zip(BRANCHES, (~taken, taken)))
        return np.concatenate([semantic, collaborative, self._tensors["levels"].numpy()[taken.sum(1)]], 1)

    def _alternatives(self, vector: np.ndarray, codes: np.ndarray) -> Iterator[tuple[int, ...]]:
        """Of the same split, the least change first."""
        (taken,), (own,) = self._taken(codes[None])
        parts = self._parts(vector[None])
        semantic, collaborative = (self._branch(name).choices(part[0], own) for name, part in zip(BRANCHES, parts))
        return combinations([c if t else self._named(s) for t, c, s in zip(taken, collaborative, semantic)])

    def _named(self, choices: Iterator[tuple[float, tuple[int, ...]]]) -> Iterator[tuple[float, tuple[int, ...]]]:
        """A semantic facet's choices by the words of its branch."""
        return ((error, tuple(code + self.mhq.codewords for code in path)) for error, path in choices)

    # What is kept, and told

    def tensors(self) -> dict[str, Tensor]:
        """semantic.* and collaborative.*, each MHQ's; router.mean, router.scale [4], router.i.weight and .bias; levels [M + 1, 4], what a
        split tells of the features."""
        self._fitted_width()
        return {name: tensor.contiguous() for name, tensor in self._tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> DualMHQ:
        """Takes the tensors of a fit with the same settings. Raises QuantizerError: names or shapes do not fit."""
        shapes = SHAPES | {"levels": (self.mhq.facets + 1, FEATURES)}
        self._require(tensors, shapes)
        self._require_shapes(tensors, shapes)
        for name in BRANCHES:
            self._new(name).restore(without_prefix(name, tensors))
        self._require_shapes(tensors, {"collaborative.mean": (self.config.collaborative_width,)})
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return self

    def usage(self, codes: np.ndarray) -> tuple[list[np.ndarray], tuple[int, int]]:
        """Of every facet, the collaborative ones first, and level, over the items that have that facet in their id."""
        facets, levels = self.code_shape
        words = self.mhq.codewords
        counts = [np.bincount(column, minlength=2 * words) for column in codes.T]
        return [part[branch * words :][:words] for branch in range(2) for part in counts], (2 * facets, levels)

    def details(self, vectors: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """codewords_fitted; budget, M; branches, the names of the report's rows; split, by tenths of popularity."""
        facets = self.mhq.facets
        return {
            "codewords_fitted": min(int(self._tensors[f"{name}.fitted"]) for name in BRANCHES),
            "branches": [f"{name} {facet + 1}" for name in reversed(BRANCHES) for facet in range(facets)],
            "budget": facets,
            "split": self._tenths(vectors),
        }
