"""FlexCode's item ids: two codebooks, and a budget of codes that is split between them by popularity.
"Semantics Meet Signals: Dual Codebook Representation Learning for Generative Recommendation", https://arxiv.org/abs/2511.20673

In words: an item has a vector of its content and one of its interactions. Each is quantized by an RQ-VAE of its own (`rqvae.py`), of L
levels. A router reads how popular the item is and gives a share alpha: the first alpha * L codes of its id are the first levels of the
collaborative branch, the others the first levels of the semantic one. While the router learns, level k of a branch with a budget of b
counts sigmoid((b - k + 1/2) / T), T falling; then budgets are rounded. The losses, on a batch:

    reconstruction and commitment of both branches from what they may keep; the collaborative error counts less for items of few
                    interactions (1 - uncertainty), whose vector is mostly noise
    alignment       InfoNCE between what the two branches rebuild of the same item, through a linear map each
    balance, smoothness     of the router's shares, see `router.py`

What differs from the paper, which names the parts and not their formulas:
- Staged: the branches first, each on its own, then all losses; `staged=false` has all from the start. The generator learns on codes
  that are done; its loss does not reach the quantizer.
- Collaborative codes come first, so that a place's number tells which levels may stand there: level p of the collaborative branch,
  or one of the levels 0 .. p of the semantic one. Each level of each branch has words of its own, wherever it stands.
- An item without a collaborative vector has semantic codes alone, whatever the router says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asymrec.config import Recipe
from asymrec.errors import ConfigError, QuantizerError
from asymrec.quantize.autoencoder import Autoencoder, Layers, descend, mlp, new_layers
from asymrec.quantize.base import matrix
from asymrec.quantize.branches import BRANCHES, TwoBranches
from asymrec.quantize.distinct import make_distinct
from asymrec.quantize.linear import BLOCK, sample_items
from asymrec.quantize.router import COLDEST, FEATURES, SHAPES, Router, Steadiness
from asymrec.quantize.rqvae import RQVAE, epochs_of, numbered, paths, standardised
from asymrec.tensors import prefixed, without_prefix
from asymrec.threads import team

LOSSES = (*BRANCHES, "alignment", "balance", "smoothness")
ALIGNED = 64  # width of the space where branches are compared


class DualCodebook(TwoBranches):
    """L codes out of two branches, and the collision code; settings are the fields of `RQVAEConfig` and `FlexCodeConfig`, and a seed.

    Vectors are as `branches.py` says.
    Code p < L is c of the collaborative level p, or K (1 + j) + c of the semantic level j; the last is the number among equal ones.
    Raises ConfigError: unknown setting, impossible value; VectorError: vectors without a column for the semantic part;
    QuantizerError: on fit, the training diverges.
    """

    remedy = RQVAE.remedy

    def __init__(self, *, seed: int = 0, **settings: Any):
        recipe = Recipe.of(None, **settings)
        self.rqvae, self.config, self.seed = recipe.rqvae, recipe.flexcode, seed
        passes = self.config.router_epochs if self.config.router_epochs is not None else self.rqvae.rqvae_epochs
        if self.config.allocation == "router" and passes == 0 and (self.config.staged or self.rqvae.rqvae_epochs == 0):
            raise ConfigError("the router would learn nothing: router_epochs, or rqvae_epochs, must be above 0 where it splits the codes")
        levels, words = self.rqvae.rqvae_levels, self.rqvae.rqvae_codewords
        self.codebook_sizes = (*(words * (place + 2) for place in range(levels)), words)
        self._tensors: dict[str, Tensor] = {}

    @property
    def meaning(self) -> int:
        return self.rqvae.rqvae_levels

    @property
    def code_shape(self) -> tuple[int, int]:
        return 1, self.meaning + 1

    @property
    def budget(self) -> int:
        return self.meaning

    @property
    def blocks(self) -> list[list[int]]:
        """For each place of an id the blocks of K words that its codes are from, in their order: blocks 0 .. L-1 are the levels of the
        collaborative branch, L .. 2L-1 those of the semantic one, 2L the collision code."""
        levels = self.meaning
        return [[place, *range(levels, levels + place + 1)] for place in range(levels)] + [[2 * levels]]

    def catalogue(self, vectors: Any, codes: np.ndarray | None = None) -> np.ndarray:
        """As `RQVAE.catalogue`: the last column counts the items that share the other codes. Raises as `encode`."""
        vectors = matrix(vectors, self._fitted_width())
        codes = self._encode(vectors) if codes is None else codes.copy()
        return make_distinct(numbered(codes, self.codebook_sizes[-1]), vectors, self._alternatives, self.remedy) if self.distinct else codes

    # Training

    def _fit(self, vectors: np.ndarray, weights: np.ndarray) -> None:
        self._check_parts(vectors)
        with team() as together:  # as in RQVAE: one thread, equal codes whatever the number of threads
            generator = torch.Generator().manual_seed(self.seed)
            x, weights = sample_items(vectors, weights, self.rqvae.rqvae_codewords, generator)
            tensors, scaled = {}, []
            for name, part in zip(BRANCHES, self._parts(x)):
                if not (part != part[0]).any():
                    raise QuantizerError(f"all {len(x)} {name} vectors are equal: there is nothing to quantize")
                part, mean, scale = standardised(part, weights, together)
                scaled.append(part)
                tensors |= {f"{name}.mean": mean, f"{name}.scale": scale}
            self._learn(x, scaled, weights, tensors, generator)

    def _learn(self, x: Tensor, scaled: list[Tensor], weights: Tensor, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
        batch, n, config = min(self.rqvae.rqvae_batch, len(x)), len(x), self.config
        epochs = epochs_of(self.rqvae, n)
        further = math.ceil(epochs / 2) if config.router_epochs is None else config.router_epochs
        further = 0 if config.allocation in BRANCHES else further if config.staged else epochs + further
        branches = [Autoencoder.start(part, weights, self.rqvae, batch, epochs * (n // batch), generator) for part in scaled]
        alone: list[list[Tensor]] = [[], []]
        if config.staged or not further:
            for branch, part, log in zip(branches, scaled, alone):
                own = partial(_alone, branch, part, weights, log)
                descend(branch.parameters, n, batch, epochs, self.rqvae.rqvae_rate, generator, own)

        features = self._parts(x)[2]
        router = Router.start(features, generator)
        maps = [new_layers((part.shape[1], ALIGNED), generator) for part in scaled]
        together = _Together(self, x, scaled, weights, branches, router, maps, further * (n // batch))
        if further:
            learned = [each for layers in maps for layer in layers for each in layer]
            parameters = [each for branch in branches for each in branch.parameters] + router.parameters + learned
            descend(parameters, n, batch, further, self.rqvae.rqvae_rate, generator, together.loss)

        for name, branch, part in zip(BRANCHES, branches, scaled):
            tensors |= prefixed(name, branch.tensors(part, weights))
        tensors |= router.tensors()
        for name, layers in (("semantic.map", maps[0]), ("collaborative.map", maps[1])):
            for place, (weight, bias) in enumerate(layers):
                tensors |= {f"{name}.{place}.weight": weight.detach(), f"{name}.{place}.bias": bias.detach()}
        losses = _by_epoch([torch.stack(each) for each in zip(*alone)], n // batch), _by_epoch(together.log, n // batch)
        self._tensors = tensors | {"losses": torch.cat(losses), "levels": torch.zeros(self.meaning + 1, FEATURES)}
        self._tensors["levels"] = self._levels(features, self.split(x))

    # Codes

    def _new(self, name: str) -> RQVAE:
        return RQVAE(**self.rqvae.model_dump())

    def _layers(self, name: str) -> Layers:
        count = sum(label.startswith(f"{name}.") and label.endswith(".weight") for label in self._tensors)
        return [(self._tensors[f"{name}.{place}.weight"], self._tensors[f"{name}.{place}.bias"]) for place in range(count)]

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        levels, words = self.meaning, self.rqvae.rqvae_codewords
        codes = np.zeros((len(vectors), levels + 1), np.int32)
        if not len(vectors):
            return codes
        parts = self._parts(torch.from_numpy(vectors))
        semantic, collaborative = (self._branch(name).encode(part) for name, part in zip(BRANCHES, parts[:2]))
        count, rows = self.split(vectors), np.arange(len(vectors))
        for place in range(levels):
            level = np.maximum(place - count, 0)
            codes[:, place] = np.where(place < count, collaborative[:, place], words * (1 + level) + semantic[rows, level])
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        rebuilt = np.empty((len(codes), self._fitted_width()), np.float32)
        for start in range(0, len(codes), BLOCK):
            rebuilt[start : start + BLOCK] = self._rebuilt(codes[start : start + BLOCK])
        return rebuilt

    def _rebuilt(self, codes: np.ndarray) -> np.ndarray:
        block, word = np.divmod(codes[:, :-1], self.rqvae.rqvae_codewords)
        count, rebuilt = (block == 0).sum(1), []
        for name, levels in (("semantic", block - 1), ("collaborative", np.where(block == 0, np.arange(self.meaning), -1))):
            books = self._tensors[f"{name}.codebooks"]
            taken = books[torch.from_numpy(np.maximum(levels, 0)), torch.from_numpy(word.astype(np.int64))]
            kept = (taken * torch.from_numpy(levels >= 0).unsqueeze(-1)).sum(1)
            with torch.no_grad():
                rebuilt.append(self._tensors[f"{name}.mean"] + mlp(kept, self._layers(f"{name}.decoder")) * self._tensors[f"{name}.scale"])
        return torch.cat([*rebuilt, self._tensors["levels"][torch.from_numpy(count)]], 1).numpy()

    def _alternatives(self, vector: np.ndarray, codes: np.ndarray) -> Iterator[tuple[int, ...]]:
        """The collision codes first, then other codewords of the last semantic level, the one above it, ..., then collaborative ones;
        last of all other splits."""
        words, levels = self.rqvae.rqvae_codewords, self.meaning
        block = codes[:-1] // words
        own = int((block == 0).sum())
        latents = [self._branch(name).latents(part.numpy())[0] for name, part in zip(BRANCHES, self._parts(torch.from_numpy(vector[None])))]
        books = [self._tensors[f"{name}.codebooks"].numpy() for name in BRANCHES]
        first = tuple(map(int, codes[:-1]))
        yield from ((*first, number) for number in range(words))
        for count in (own, *(other for other in range(levels + 1) if other != own)):
            for collaborative in paths(latents[1], books[1][:count]):
                for semantic in paths(latents[0], books[0][: levels - count]):
                    ids = (*collaborative, *(words * (1 + level) + code for level, code in enumerate(semantic)))
                    if ids != first:
                        yield from ((*ids, number) for number in range(words))

    # What is kept, and told

    def tensors(self) -> dict[str, Tensor]:
        """semantic.* and collaborative.*: each branch's as RQVAE's, and `map`, its way into the common space; router.mean, router.scale
        [4], router.i.weight and .bias; levels [L + 1, 4], what a split tells of the features; losses [epochs, 5] of both stages,
        NaN for those that the first does not have."""
        self._fitted_width()
        return {name: tensor.contiguous() for name, tensor in self._tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> DualCodebook:
        """Takes the tensors of a fit with the same settings. Raises QuantizerError: names or shapes do not fit."""
        for name in BRANCHES:
            self._new(name).restore(without_prefix(name, tensors))
        widths = [len(tensors[f"{name}.mean"]) for name in BRANCHES]
        shapes = SHAPES | {"levels": (self.meaning + 1, FEATURES)}
        for name, width in zip(BRANCHES, widths):
            shapes |= {f"{name}.map.0.weight": (ALIGNED, width), f"{name}.map.0.bias": (ALIGNED,)}
        self._require(tensors, [*shapes, "losses"])
        self._require_shapes(tensors, shapes | {"collaborative.mean": (self.config.collaborative_width,)})
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return self

    def usage(self, codes: np.ndarray) -> tuple[list[np.ndarray], tuple[int, int]]:
        """By branch and level, the collaborative ones first, over the items that have that level in their id."""
        words, levels = self.rqvae.rqvae_codewords, self.meaning
        counts = np.zeros((2 * levels, words), np.int64)
        for place, blocks in enumerate(self.blocks[:-1]):
            block, word = np.divmod(codes[:, place], words)
            np.add.at(counts, (np.asarray(blocks)[block], word), 1)
        return list(counts), (2, levels)

    def details(self, vectors: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """codewords_fitted; branches, the names of the report's two rows; split, by tenths of popularity (the rarest first): items, mean
        interactions, mean share, mean collaborative codes; aligned, the share of items (of 256 drawn) whose two rebuilt vectors are each
        other's nearest; losses, of each epoch of both stages, by name; the first stage has those of the
        branches alone."""
        return {
            "codewords_fitted": int(self._tensors["semantic.fitted"]),
            "branches": list(reversed(BRANCHES)),
            "budget": self.meaning,
            "split": self._tenths(vectors),
            "aligned": self._aligned(vectors, codes),
            "losses": [
                {name: value for name, value in zip(LOSSES, line) if not math.isnan(value)} for line in self._tensors["losses"].tolist()
            ],
        }

    def _aligned(self, vectors: np.ndarray, codes: np.ndarray) -> float:
        warm = np.flatnonzero(self._parts(torch.from_numpy(vectors))[1].any(1).numpy())
        rows = np.sort(np.random.default_rng(0).permutation(warm)[:256])
        if not len(rows):
            return 0.0
        rebuilt = self._parts(torch.from_numpy(self._decode(codes[rows])))
        common = []
        for name, part in zip(BRANCHES, rebuilt):
            scaled = (part - self._tensors[f"{name}.mean"]) / self._tensors[f"{name}.scale"]
            common.append(F.normalize(mlp(scaled, self._layers(f"{name}.map")), dim=1))
        near = common[0] @ common[1].T
        own = torch.arange(len(rows))
        return float(((near.argmax(0) == own) & (near.argmax(1) == own)).float().mean())


def _alone(branch: Autoencoder, x: Tensor, weights: Tensor, log: list[Tensor], rows: Tensor) -> Tensor:
    """The loss of one branch, in the first stage."""
    loss = branch.loss(x[rows], weights[rows])
    log.append(loss.detach())
    return loss


def _by_epoch(log: list[Tensor], steps: int) -> Tensor:
    """Losses of each step, the first of LOSSES or all -> float32 [epochs, losses], means of each epoch, NaN where there is none."""
    found = torch.full((len(log) // steps, len(LOSSES)), torch.nan)
    if log:
        means = torch.stack(log).unflatten(0, (-1, steps)).mean(1)
        found[:, : means.shape[1]] = means
    return found


@dataclass
class _Together:
    """The second stage: both branches, the router and the maps, on all losses. x: the whole vectors; scaled: each branch's part."""

    quantizer: DualCodebook
    x: Tensor
    scaled: list[Tensor]
    weights: Tensor
    branches: list[Autoencoder]
    router: Router
    maps: list[Layers]
    steps: int
    log: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        _, collaborative, self.features = self.quantizer._parts(self.x)
        self.known = collaborative.any(1)
        self.trust, self.steadiness = 1 - self.features[:, -1], Steadiness(self.features, self.quantizer.config.router_share)

    def loss(self, rows: Tensor) -> Tensor:
        config, levels = self.quantizer.config, self.quantizer.meaning
        known, weight = self.known[rows], self.weights[rows]
        if config.allocation == "router":
            alpha = self.router.share(self.features[rows])
        else:
            alpha = torch.full((len(rows),), config.fixed_share)
        share = torch.where(known, alpha, 0.0)
        temperature = 1 - (1 - COLDEST) * len(self.log) / max(1, self.steps)
        rebuilt, errors = [], []
        for branch, x, budget, trust in zip(
            self.branches, self.scaled, ((1 - share) * levels, share * levels), (torch.ones_like(share), self.trust[rows])
        ):
            latent, left, commitment = branch.read(x[rows], weight)
            fixed = latent.detach()
            words = torch.cat((fixed.unsqueeze(0), left[:-1])) - left  # [L, b, w], the codeword of each level
            kept = torch.sigmoid((budget.unsqueeze(1) - torch.arange(1, levels + 1) + 0.5) / temperature)
            # straight through: the value of the codewords that count, the gradient of the latent
            rebuilt.append(mlp((kept.T.unsqueeze(-1) * words).sum(0) + latent - fixed, branch.decoder))
            error = (rebuilt[-1] - x[rows]).square().mean(1)
            errors.append(((error * trust + branch.config.commitment * commitment) * weight).mean())
        alignment = self._alignment(*rebuilt, known) if config.alignment else torch.zeros(())
        balance, smooth = self.steadiness(alpha, rows) if config.allocation == "router" else (torch.zeros(()), torch.zeros(()))
        losses = torch.stack([*errors, alignment, balance, smooth])
        self.log.append(losses.detach())
        return losses @ torch.tensor([1.0, 1.0, config.alignment, config.router_balance, config.router_smoothness])

    def _alignment(self, semantic: Tensor, collaborative: Tensor, known: Tensor) -> Tensor:
        """InfoNCE both ways, the other items of the batch against it."""
        if not known.any():
            return torch.zeros(())
        a, b = (F.normalize(mlp(x[known], layers), dim=1) for x, layers in zip((semantic, collaborative), self.maps))
        near = a @ b.T / self.quantizer.config.alignment_temperature
        own = torch.arange(len(near))
        return (F.cross_entropy(near, own) + F.cross_entropy(near.T, own)) / 2
