"""Optimized product quantization of whitened vectors: RPG's item ids, https://arxiv.org/abs/2506.05781, after Ge et al., "Optimized
Product Quantization for Approximate Nearest Neighbor Search" (CVPR 2013), the non-parametric way.

In words: principal components of variance 1, z = P (x - mean), are rotated and cut into m facets; each facet is written as the
nearest of its K codewords; the id is the m indices. Codebooks and rotation R minimise ||R z - c||^2 in turn: rounds of k-means
under a fixed R, then the R that brings z closest to the chosen codewords, R = V U^T where U S V^T is the singular value
decomposition of the sum of z c^T (Procrustes).

What differs from the papers:
- Almost empty directions are not blown up by the whitening: a little is added to each variance (`linear.py`), so that catalogues
  with fewer items than dimensions work.
- A codebook gets at most one codeword for every 4 items; the remaining ones repeat the first and are never chosen.
- Items with an identical id are given ids of their own, the least loss first (`distinct.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymrec.config import Recipe
from asymrec.errors import QuantizerError
from asymrec.quantize import kmeans
from asymrec.quantize.base import Quantizer
from asymrec.quantize.distinct import combinations
from asymrec.quantize.linear import BLOCK, cut, join, moments, parts, principal, sample_items, whitening
from asymrec.threads import spread, team

START_STEPS, ROUND_STEPS, FINAL_STEPS = 15, 2, 5  # rounds of k-means at the start, between two rotations, at the end


class ProductQuantizer(Quantizer):
    """m facets of one codebook each; settings are the fields of `OPQConfig`, and a seed. `opq_rounds=0` is plain product quantization.

    m is `opq_codes`, or the width of the vectors (the components kept) where that is less; n_codes is known after a fit. The
    components kept must be a multiple of m: by default as many as the width has room for.
    Raises ConfigError: unknown setting, impossible value; QuantizerError, on fit: components above the width, or no multiple of m.
    """

    remedy = "raise opq_codes or opq_codewords"

    def __init__(self, *, seed: int = 0, **settings: Any):
        self.config = Recipe.of({"opq": settings}).opq
        self.seed = seed
        self._tensors: dict[str, Tensor] = {}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.config.opq_codewords,) * (len(self._tensors["codebooks"]) if self._tensors else self.config.opq_codes)

    @property
    def width(self) -> int | None:
        return len(self._tensors["mean"]) if self._tensors else None

    def tensors(self) -> dict[str, Tensor]:
        """mean [d]; encoder [d, D] (whitening and rotation in one); decoder [D, d], its inverse; codebooks [m, K, D/m]; fitted [],
        codewords in use."""
        self._fitted_width()
        return dict(self._tensors)

    def restore(self, tensors: dict[str, Tensor]) -> ProductQuantizer:
        """Takes the tensors of a fit with the same codewords. Raises QuantizerError: names or shapes do not fit."""
        names = ("mean", "encoder", "decoder", "codebooks", "fitted")
        self._require(tensors, names)
        d, wide = tensors["encoder"].shape
        m, k = len(tensors["codebooks"]), self.config.opq_codewords
        shapes = {"mean": (d,), "decoder": (wide, d), "codebooks": (m, k, wide // m)}
        self._require_shapes(tensors, shapes)
        self._tensors = {name: tensors[name].clone() for name in names}
        return self

    def _fit(self, vectors: np.ndarray, weights: np.ndarray) -> None:
        with team() as together:
            self._learn(vectors, weights, together)

    def _learn(self, vectors: np.ndarray, weights: np.ndarray, together: Callable[..., list]) -> None:
        config, (m, wide) = self.config, self._facets_and_width(vectors.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        x, weights = sample_items(vectors, weights, config.opq_codewords, generator)
        mean, covariance = moments(x, weights, together)
        there, back, _ = whitening(*principal(covariance))
        mean, there, back = mean.float(), there[:, :wide].float(), back[:, :wide].float()
        fitted = kmeans.codewords_for(len(x), config.opq_codewords)
        shares = parts(m)
        seeds = torch.randint(2**62, (len(shares),), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # one each: the order of threads makes no difference

        def each(learn: Callable[[int], Tensor]) -> Tensor:
            return torch.cat(together(learn, range(len(shares))))

        def lloyd(steps: int) -> Tensor:
            return each(lambda i: kmeans.lloyd(facets[shares[i]], codebooks[shares[i]], weights, steps, generators[i]))

        rotation = torch.eye(wide)
        facets = white = cut(x, mean, there, m)
        codebooks = each(lambda i: kmeans.residual_start(white[shares[i]], 1, fitted, weights, START_STEPS, generators[i])[:, 0])
        for _ in range(config.opq_rounds):
            words = each(lambda i: kmeans.gather(codebooks[shares[i]], kmeans.nearest(facets[shares[i]], codebooks[shares[i]])[0]))  # noqa: B023
            rotation = procrustes(join(white), join(words) * weights[:, None])
            facets = cut(x, mean, there @ rotation, m)
            codebooks = lloyd(ROUND_STEPS)
        codebooks = lloyd(FINAL_STEPS)
        self._tensors = {
            "mean": mean,
            "encoder": there @ rotation,
            "decoder": rotation.T @ back.T,
            "codebooks": kmeans.repeated(codebooks, config.opq_codewords),
            "fitted": torch.tensor(fitted),
        }

    def _facets_and_width(self, d: int) -> tuple[int, int]:
        """m and the number of components kept."""
        kept = self.config.opq_components or d
        m = min(self.config.opq_codes, kept)
        if self.config.opq_components is None:
            kept -= kept % m
        if kept > d or kept % m:
            raise QuantizerError(f"opq_components={kept} must be a multiple of the codes ({m}), and not above the vectors' width {d}")
        return m, kept

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        books = self._tensors["codebooks"][:, : int(self._tensors["fitted"])]
        codes = np.empty((len(vectors), len(books)), dtype=np.int32)

        def block(start: int) -> None:
            facets = self._facets(vectors[start : start + BLOCK])
            codes[start : start + BLOCK] = kmeans.nearest(facets, books)[0].T.numpy()

        spread(block, range(0, len(vectors), BLOCK))
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(codes), self._fitted_width()), dtype=np.float32)
        for start in range(0, len(codes), BLOCK):
            rows = join(self._words(codes[start : start + BLOCK]))
            vectors[start : start + BLOCK] = (self._tensors["mean"] + rows @ self._tensors["decoder"]).numpy()
        return vectors

    def _facets(self, vectors: np.ndarray) -> Tensor:
        """Vectors [n, d] -> whitened, rotated and cut [m, n, D/m]."""
        return cut(torch.from_numpy(vectors), self._tensors["mean"], self._tensors["encoder"], self.n_codes)

    def _words(self, codes: np.ndarray) -> Tensor:
        """Codes [n, m] -> their codewords [m, n, D/m]."""
        return kmeans.gather(self._tensors["codebooks"], torch.from_numpy(codes.T.astype(np.int64)))

    def _alternatives(self, vector: np.ndarray, codes: np.ndarray) -> Iterator[tuple[int, ...]]:
        facets = self._facets(vector[None]).numpy()
        errors = np.square(facets - self._tensors["codebooks"].numpy()).sum(2)  # not by expansion: copies of a codeword must tie exactly
        order = np.argsort(errors, axis=1, kind="stable")

        def ranked(facet: int) -> Iterator[tuple[float, tuple[int, ...]]]:
            return ((float(errors[facet, code]), (int(code),)) for code in order[facet])

        return combinations([ranked(facet) for facet in range(self.n_codes)])

    def details(self, vectors: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """R2 among the whitened components, and how many codewords are in use."""
        error = total = 0.0
        for start in range(0, len(vectors), BLOCK):
            facets = self._facets(vectors[start : start + BLOCK])
            error += float((facets - self._words(codes[start : start + BLOCK])).square().sum(dtype=torch.float64))
            total += float(facets.square().sum(dtype=torch.float64))
        return {"space_r2": [1 - error / max(total, 1e-30)], "codewords_fitted": int(self._tensors["fitted"])}


def procrustes(points: Tensor, targets: Tensor) -> Tensor:
    """The orthogonal matrix R [D, D] that brings points [n, D] closest to targets [n, D]: the least ||points @ R - targets||."""
    left, _, right = torch.linalg.svd((points.T @ targets).double())
    return (left @ right).float()
