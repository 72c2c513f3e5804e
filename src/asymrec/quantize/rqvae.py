"""RQ-VAE, the residual-quantized autoencoder: TIGER's item ids, https://arxiv.org/abs/2305.05065, after Lee et al. 2022,
https://arxiv.org/abs/2203.01941

In words: an encoder (MLP, ReLU) maps an item's vector x to a latent z of small width; z is quantized by L levels of codebooks of K
codewords, each level taking the nearest codeword e_l to what the levels before left, r_l; a decoder (the same, backwards) rebuilds x
from the sum of codewords, and gradients pass the quantizer straight through. The loss is ||x - x^||^2 + the sum over levels of
||sg[r_l] - e_l||^2 + beta * ||r_l - sg[e_l]||^2, sg for "as a constant". The id is the L codes and ONE MORE, which counts up among
the items of a catalogue whose L codes are the same.

What differs from the papers:
- The codewords' own term, ||sg[r_l] - e_l||^2, is not descended but solved as in Lee et al.: a codeword is the moving average of the
  residuals that choose it; the encoder and the decoder learn by AdamW. A codeword that falls out of use restarts on a residual.
- Both errors are means over entries instead of sums, so that beta means the same for every width; vectors are centred and scaled to
  mean variance 1.
- 4,000 steps unless `rqvae_epochs` says else; TIGER trains 20,000 epochs of batches of 1,024, by Adagrad.
- k-means starts the codebooks, level by level, on the latents of up to 65,536 items rather than of the first batch, and at the end
  two rounds put each codeword on the mean of the items that choose it.
- A codebook gets at most one codeword for every 4 items; the remaining ones repeat the first and are never chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymrec.config import Recipe, RQVAEConfig
from asymrec.quantize import kmeans
from asymrec.quantize.autoencoder import Autoencoder, Layers, descend, mlp
from asymrec.quantize.base import Quantizer, matrix
from asymrec.quantize.distinct import identical, make_distinct
from asymrec.quantize.linear import BLOCK, moments, sample_items
from asymrec.threads import spread, team

STEPS = 4000  # of training, where the number of epochs is not given


class RQVAE(Quantizer):
    """L residual levels of K codewords and the collision code, of K values too; settings are the fields of `RQVAEConfig`, and a seed.

    `encode` knows nothing of other items: its last code is 0. `catalogue` numbers the items that share the other codes, in the order
    of rows; `decode` does not read that number.
    Raises ConfigError: unknown setting, impossible value; QuantizerError: on fit, the training diverges.
    """

    remedy = "raise rqvae_levels or rqvae_codewords"

    def __init__(self, *, seed: int = 0, **settings: Any):
        self.config = Recipe.of({"rqvae": settings}).rqvae
        self.seed = seed
        self.codebook_sizes = (self.config.rqvae_codewords,) * (self.config.rqvae_levels + 1)
        self._tensors: dict[str, Tensor] = {}

    @property
    def meaning(self) -> int:
        return self.config.rqvae_levels

    @property
    def code_shape(self) -> tuple[int, int]:
        return 1, self.config.rqvae_levels + 1

    @property
    def width(self) -> int | None:
        return len(self._tensors["mean"]) if self._tensors else None

    def catalogue(self, vectors: Any, codes: np.ndarray | None = None) -> np.ndarray:
        """The codes of a whole catalogue, int32 [n, L + 1]: as `encode`, and the last column is the item's number, from 0 and in the
        order of rows, among those with the same L codes.

        Where more items share their L codes than it counts, the others get the codes next to theirs. Raises as `encode`; QuantizerError:
        there are fewer ids than items.
        """
        vectors = matrix(vectors, self._fitted_width())
        codes = self._encode(vectors) if codes is None else codes.copy()
        if not self.distinct:
            return codes
        return make_distinct(numbered(codes, self.codebook_sizes[-1]), vectors, self._alternatives, self.remedy)

    def latents(self, vectors: Any) -> np.ndarray:
        """[n, d] -> what the encoder makes of it, before quantization, float32 [n, latent]. Raises as `encode`."""
        vectors = matrix(vectors, self._fitted_width())
        latents = np.empty((len(vectors), self.config.latent), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            latents[start : start + BLOCK] = self._latents(vectors[start : start + BLOCK]).numpy()
        return latents

    def tensors(self) -> dict[str, Tensor]:
        """mean [d]; scale []; encoder.i.weight [out, in] and encoder.i.bias [out] of each layer, decoder.i.* as well;
        codebooks [L, K, latent]; fitted [], codewords in use."""
        self._fitted_width()
        return dict(self._tensors)

    def restore(self, tensors: dict[str, Tensor]) -> RQVAE:
        """Takes the tensors of a fit with the same levels, codewords and widths. Raises QuantizerError: names or shapes do not fit."""
        shapes = self._shapes(len(tensors.get("mean", ())))
        self._require(tensors, shapes)
        self._require_shapes(tensors, shapes)
        self._tensors = {name: tensors[name].clone() for name in shapes}
        return self

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all that is learned."""
        config, widths = self.config, self._widths(d)
        shapes = {"mean": (d,), "scale": (), "codebooks": (config.rqvae_levels, config.rqvae_codewords, config.latent), "fitted": ()}
        for part, path in (("encoder", widths), ("decoder", widths[::-1])):
            for layer, (inner, outer) in enumerate(pairwise(path)):
                shapes |= {f"{part}.{layer}.weight": (outer, inner), f"{part}.{layer}.bias": (outer,)}
        return shapes

    def _widths(self, d: int) -> tuple[int, ...]:
        return d, *self.config.hidden, self.config.latent

    def _fit(self, vectors: np.ndarray, weights: np.ndarray) -> None:
        with team() as together:  # the steps wait for each other: one thread, and equal codes whatever the number of threads
            generator = torch.Generator().manual_seed(self.seed)
            x, weights = sample_items(vectors, weights, self.config.rqvae_codewords, generator)
            x, mean, scale = standardised(x, weights, together)
            self._learn(x, weights, {"mean": mean, "scale": scale}, generator)

    def _learn(self, x: Tensor, weights: Tensor, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
        """The training on standardised vectors."""
        config, batch = self.config, min(self.config.rqvae_batch, len(x))
        epochs = epochs_of(config, len(x))
        parts = Autoencoder.start(x, weights, config, batch, epochs * (len(x) // batch), generator)
        descend(parts.parameters, len(x), batch, epochs, config.rqvae_rate, generator, lambda rows: parts.loss(x[rows], weights[rows]))
        self._tensors = tensors | parts.tensors(x, weights)

    def _layers(self, part: str) -> Layers:
        return [(self._tensors[f"{part}.{i}.weight"], self._tensors[f"{part}.{i}.bias"]) for i in range(len(self.config.hidden) + 1)]

    def _latents(self, vectors: np.ndarray) -> Tensor:
        return mlp((torch.from_numpy(vectors) - self._tensors["mean"]) / self._tensors["scale"], self._layers("encoder"))

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        codebooks = self._tensors["codebooks"][:, : int(self._tensors["fitted"])]
        codes = np.zeros((len(vectors), self.n_codes), dtype=np.int32)

        def block(start: int) -> None:
            residual = self._latents(vectors[start : start + BLOCK]).unsqueeze(0)
            for level, codebook in enumerate(codebooks.unsqueeze(1)):
                index, _ = kmeans.nearest(residual, codebook)
                residual = residual - kmeans.gather(codebook, index)
                codes[start : start + BLOCK, level] = index[0].numpy()

        spread(block, range(0, len(vectors), BLOCK))
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        vectors, decoder = np.empty((len(codes), self._fitted_width()), dtype=np.float32), self._layers("decoder")
        for start in range(0, len(codes), BLOCK):
            rebuilt = mlp(self._partial(codes[start : start + BLOCK])[-1], decoder)
            vectors[start : start + BLOCK] = (self._tensors["mean"] + rebuilt * self._tensors["scale"]).numpy()
        return vectors

    def _partial(self, codes: np.ndarray) -> Tensor:
        """Sums of codewords after each level [L, n, latent]."""
        index = torch.from_numpy(codes[:, :-1].T.astype(np.int64))
        return kmeans.gather(self._tensors["codebooks"], index).cumsum(0)

    def _alternatives(self, vector: np.ndarray, codes: np.ndarray) -> Iterator[tuple[int, ...]]:
        """The collision codes first, which cost nothing, then codewords of the last level, of the level above it, ..."""
        books, own = self._tensors["codebooks"].numpy(), tuple(map(int, codes[:-1]))
        numbers = range(self.codebook_sizes[-1])
        yield from ((*own, number) for number in numbers)
        for others in paths(self._latents(vector[None])[0].numpy(), books):
            if others != own:
                yield from ((*others, number) for number in numbers)

    def details(self, vectors: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """R2 of the latents after each level, and what of the code is learned: the levels but not the collision code."""
        latents = torch.from_numpy(self.latents(vectors))
        error = (latents - self._partial(codes)).square().sum((1, 2), dtype=torch.float64)
        total = float((latents - latents.mean(0)).square().sum(dtype=torch.float64))
        return {
            "space_r2": (1 - error / max(total, 1e-30)).tolist(),
            "codewords_fitted": int(self._tensors["fitted"]),
            "learned_levels": self.meaning,
        }


def epochs_of(config: RQVAEConfig, n: int) -> int:
    """Passes over n items."""
    return math.ceil(STEPS / (n // min(config.rqvae_batch, n))) if config.rqvae_epochs is None else config.rqvae_epochs


def standardised(x: Tensor, weights: Tensor, together: Callable[..., list]) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [n, d] centred and scaled to mean variance 1, their mean [d] and their scale []."""
    mean, covariance = moments(x, weights, together)
    mean, scale = mean.float(), (covariance.trace() / len(mean)).sqrt().float()
    return (x - mean) / scale, mean, scale


def numbered(codes: np.ndarray, numbers: int) -> np.ndarray:
    """The codes [n, L + 1], changed in place: the last is the row's number among those with equal others, 0 again past `numbers`."""
    codes[:, -1] = 0
    for rows in identical(codes):
        place = np.arange(len(rows))
        codes[rows, -1] = np.where(place < numbers, place, 0)
    return codes


def paths(residual: np.ndarray, books: np.ndarray) -> Iterator[tuple[int, ...]]:
    """All codes by the codebooks [L, K, d], nearest codewords first at every level; the last level changes first."""
    if not len(books):
        yield ()
        return
    for code in np.argsort(np.square(residual - books[0]).sum(1), kind="stable"):
        yield from ((int(code), *others) for others in paths(residual - books[0][code], books[1:]))
