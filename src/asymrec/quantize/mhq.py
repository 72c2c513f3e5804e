"""MHQ, multi-faceted hierarchical quantization: the output side of AsymRec, https://arxiv.org/abs/2605.14512

In words: an item's vector x is projected, x~ = W_P x, and cut into M facets; each facet is quantized by L levels of residual
codebooks of K codewords (take the nearest, subtract it, go on); the id is the M * L indices, facet-major. Codebooks follow their
points by moving averages of counts and sums, c_k = m_k / N_k. W_P learns from
||x~ - x^||^2 + lambda_bal * mean over facets of |E||z_m||^2 - mean energy| + lambda_reg * ||W_P W_P^T - I||.

What differs from the paper, which leaves the start and the upkeep of codebooks open:
- As printed, the loss lets W_P turn into directions of low variance, which are easy to rebuild. W_P starts from principal
  directions, dealt to facets so that their energies balance, and learns at a small rate that falls to 0; the energy it keeps is
  reported, and a fit that loses more than 5 points of it is refused. The regularizer holds W_P near orthonormal rows; at the end it
  is put on the nearest such matrix (unless lambda_reg = 0), so that the energy says where W_P looks, not how long it is.
- Codebooks start from k-means, level by level on the residuals; codewords that fall out of use restart on a residual of the batch;
  a last pass puts each codeword on the mean of the items that choose it under the final W_P.
- Vectors are centred and scaled to unit total variance, so that rates and lambdas mean the same for every encoder.
- A codebook gets at most one codeword for every `items_per_codeword` items: a recommender learns a code from the items that share it, and
  with few of them knows each item by heart. Of small catalogues it gets 16, or one for every 4 items; with more, the first level would
  leave the next nothing to say. The remaining codewords repeat the first ones and are never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
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

START_STEPS, FINAL_STEPS = 15, 2  # rounds of k-means a level
ENERGY_TO_LOSE = 0.05
LEAST_SPREAD = 1e-6  # of a total variance of 1: less is rounding


class MHQ(Quantizer):
    """M facets, L residual levels in each, K codewords a level; settings are the fields of `QuantizerConfig`, and a seed.

    Raises ConfigError: unknown setting, impossible value.
    """

    def __init__(self, *, seed: int = 0, **settings: Any):
        self.config = Recipe.of({"quantizer": settings}).quantizer
        self.seed = seed
        self.distinct = self.config.distinct
        self.codebook_sizes = (self.config.codewords,) * (self.config.facets * self.config.levels)
        self._tensors: dict[str, Tensor] = {}

    @property
    def code_shape(self) -> tuple[int, int]:
        return self.config.facets, self.config.levels

    @property
    def width(self) -> int | None:
        return len(self._tensors["mean"]) if self._tensors else None

    def tensors(self) -> dict[str, Tensor]:
        """mean [d]; encoder [d, D] (whitening and W_P in one); decoder [D, d], its inverse; projection W_P [D, d];
        codebooks [M, L, K, D/M]; fitted [], codewords in use; energy [2], the share kept by W_P at the start and now."""
        self._fitted_width()
        return dict(self._tensors)

    def restore(self, tensors: dict[str, Tensor]) -> MHQ:
        """Takes the tensors of a fit with the same facets, levels and codewords. Raises QuantizerError: names or shapes do not fit."""
        names = ("mean", "encoder", "decoder", "projection", "codebooks", "fitted", "energy")
        self._require(tensors, names)
        m, k = self.config.facets, self.config.codewords
        d, wide = tensors["encoder"].shape
        shapes = {"mean": (d,), "decoder": (wide, d), "projection": (wide, d), "codebooks": (m, self.config.levels, k, wide // m)}
        self._require_shapes(tensors, shapes)
        self._tensors = {name: tensors[name].clone() for name in names}
        return self

    def _fit(self, vectors: np.ndarray, weights: np.ndarray) -> None:
        with team() as together:
            self._learn(vectors, weights, together)

    def _learn(self, vectors: np.ndarray, weights: np.ndarray, together: Callable[..., list]) -> None:
        config, wide = self.config, self._projection_width(vectors.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        x, weights = sample_items(vectors, weights, config.codewords, generator)
        mean, covariance = moments(x, weights, together)
        values, directions = principal(covariance)
        if config.whiten:
            prepare, undo, variance = whitening(values, directions)
            basis = torch.eye(len(values), dtype=values.dtype)
        else:
            scale = torch.eye(len(values), dtype=values.dtype) / values.sum().sqrt()
            prepare, undo = scale, torch.eye(len(values), dtype=values.dtype) * values.sum().sqrt()
            variance, basis = values / values.sum(), directions
        unit = variance.sum().sqrt()  # total variance 1 after whitening as well
        prepare, undo, variance = prepare / unit, undo * unit, variance / unit**2
        covariance = basis * variance @ basis.T  # of the prepared vectors

        projection = basis[:, deal(variance[:wide], config.facets)].T.float().contiguous()
        start = energy_kept(projection, covariance)
        fitted = kmeans.codewords_for(len(x), config.codewords, config.items_per_codeword)
        prepare, mean = prepare.float(), mean.float()

        def codebooks_of(learn: Callable[[Tensor, int], Tensor]) -> Tensor:
            facets = cut(x, mean, prepare @ projection.T, config.facets)
            return torch.cat(together(lambda part: learn(facets[shares[part]], part), range(len(shares))))

        shares = parts(config.facets)
        seeds = torch.randint(2**62, (len(shares),), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # one each: the order of threads makes no difference
        codebooks = codebooks_of(
            lambda points, part: kmeans.residual_start(points, config.levels, fitted, weights, START_STEPS, generators[part])
        )
        if config.quantizer_epochs:
            projection, codebooks = self._follow(x, weights, mean, prepare, projection, codebooks, generators, together)
            if config.orthonormality and projection.isfinite().all():
                left, _, right = torch.linalg.svd(projection.double(), full_matrices=False)
                projection = (left @ right).float()
        kept = energy_kept(projection, covariance)
        if not kept >= start - ENERGY_TO_LOSE:
            raise QuantizerError(
                f"energy kept falls below its start's by more than 5 points ({start:.1%} -> {kept:.1%}): "
                "lower projection_rate or raise orthonormality"
            )
        codebooks = codebooks_of(
            lambda points, part: kmeans.residual_settle(points, codebooks[shares[part]], weights, FINAL_STEPS, generators[part])
        )
        self._tensors = {
            "mean": mean,
            "encoder": prepare @ projection.T,
            "decoder": (torch.linalg.pinv(projection.double()).T @ undo.T).float(),
            "projection": projection,
            "codebooks": kmeans.repeated(codebooks, config.codewords),
            "fitted": torch.tensor(fitted),
            "energy": torch.tensor([start, kept], dtype=torch.float64),
        }

    def _follow(
        self,
        x: Tensor,
        weights: Tensor,
        mean: Tensor,
        prepare: Tensor,
        projection: Tensor,
        codebooks: Tensor,
        generators: list[torch.Generator],
        together: Callable[..., list],
    ) -> tuple[Tensor, Tensor]:
        """The epochs: codebooks follow by moving averages while W_P learns. -> projection [D, d], codebooks [M, L, K, D/M]."""
        config, n = self.config, len(x)
        batch = min(config.quantizer_batch, n)
        shares = parts(config.facets)
        least = max(0.5 * batch / n, 0.01 * batch / codebooks.shape[2])  # half an item of the catalogue, or 1 % of an even share
        averages = [kmeans.MovingAverages(codebooks[part], config.decay, least, generators[i]) for i, part in enumerate(shares)]
        projection = projection.clone().requires_grad_(config.projection_rate > 0)
        optimizer = torch.optim.Adam([projection], lr=config.projection_rate or 1.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.quantizer_epochs * (n // batch))
        for _ in range(config.quantizer_epochs):
            order = torch.randperm(n, generator=generators[0])
            for rows in order[: n - n % batch].split(batch):
                inputs, weight = (x[rows] - mean) @ prepare, weights[rows]
                projected = inputs @ projection.T
                facets = projected.detach().view(batch, config.facets, -1).transpose(0, 1).contiguous()
                left = torch.cat(together(lambda i: averages[i].step(facets[shares[i]], weight)[-1], range(len(shares))))  # noqa: B023 (done at once)
                if config.projection_rate > 0:
                    rebuilt = join(facets - left)
                    optimizer.zero_grad()
                    self._loss(inputs, projected, rebuilt, projection, weight / weight.mean()).backward()
                    optimizer.step()
                    schedule.step()
        return projection.detach(), torch.cat([torch.stack(part.codebooks, 1) for part in averages])

    def _loss(self, inputs: Tensor, projected: Tensor, rebuilt: Tensor, projection: Tensor, weight: Tensor) -> Tensor:
        """The paper's loss on a batch; `rebuilt` x^ is constant, so W_P is drawn to where the codewords are."""
        config = self.config
        error = projected - rebuilt if config.reconstruct == "projected" else inputs - rebuilt @ projection
        loss = (error.square().sum(1) * weight).mean()
        if config.balance:
            energy = (projected.square() * weight[:, None]).mean(0).view(config.facets, -1).sum(1)
            loss = loss + config.balance * (energy - energy.mean()).abs().mean()
        if config.orthonormality:
            loss = loss + config.orthonormality * (projection @ projection.T - torch.eye(len(projection))).norm()
        return loss

    def _projection_width(self, d: int) -> int:
        m, wide = self.config.facets, self.config.projection
        if d < m:
            raise QuantizerError(f"vectors of width {d} cannot be cut into {m} facets: use facets={d} or fewer")
        if wide is None:
            return min(1024, d) // m * m
        if wide > d or wide % m:
            raise QuantizerError(f"projection={wide} must be a multiple of facets={m}, and not above the vectors' width {d}")
        return wide

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        m, levels = self.code_shape
        codebooks = self._tensors["codebooks"][:, :, : int(self._tensors["fitted"])]
        codes = np.empty((len(vectors), m * levels), dtype=np.int32)

        def block(start: int) -> None:
            rows = torch.from_numpy(vectors[start : start + BLOCK])
            residual = cut(rows, self._tensors["mean"], self._tensors["encoder"], m)
            chosen = []
            for level in range(levels):
                index, _ = kmeans.nearest(residual, codebooks[:, level])
                residual = residual - kmeans.gather(codebooks[:, level], index)
                chosen.append(index)
            codes[start : start + BLOCK] = torch.stack(chosen, 1).permute(2, 0, 1).reshape(len(rows), -1).numpy()

        spread(block, range(0, len(vectors), BLOCK))
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self.rebuilt(codes)

    def rebuilt(self, codes: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, d], out of codes [n, M*L]. kept: bool [n, M], facets that are known; the others are taken as the mean's."""
        vectors = np.empty((len(codes), self._fitted_width()), dtype=np.float32)
        for start in range(0, len(codes), BLOCK):
            facets = self._partial(codes[start : start + BLOCK])[-1]
            if kept is not None:
                facets = facets * torch.from_numpy(kept[start : start + BLOCK]).T.unsqueeze(-1)
            vectors[start : start + BLOCK] = (self._tensors["mean"] + join(facets) @ self._tensors["decoder"]).numpy()
        return vectors

    def explained(self, vectors: np.ndarray, codes: np.ndarray) -> Tensor:
        """float32 [n, M]: by how much less the squared length of a projected facet is once its codewords are taken off, of a total
        variance of 1."""
        found = torch.empty(len(vectors), self.config.facets)
        for start in range(0, len(vectors), BLOCK):
            rows = slice(start, start + BLOCK)
            facets = cut(torch.from_numpy(vectors[rows]), self._tensors["mean"], self._tensors["encoder"], self.config.facets)
            left = facets - self._partial(codes[rows])[-1]
            found[rows] = (facets.square().sum(2) - left.square().sum(2)).T
        return found

    def scaled_codewords(self, codes: np.ndarray, kept: np.ndarray | None = None) -> Tensor:
        """The codebooks [M, L, K, D/M], each dimension divided by its spread over the rebuilt facets of items of these codes [n, M*L].

        kept: bool [n, M], the facets that count.
        """
        facets = self._partial(codes)[-1]
        counted = torch.ones(facets.shape[:2]) if kept is None else torch.from_numpy(kept).T.float()
        share = (counted / counted.sum(1, keepdim=True).clamp_min(1)).unsqueeze(-1)
        spread = (share * (facets - (share * facets).sum(1, keepdim=True)).square()).sum(1).sqrt()
        return self._tensors["codebooks"] / spread.clamp_min(LEAST_SPREAD).unsqueeze(1).unsqueeze(1)

    def _partial(self, codes: np.ndarray) -> list[Tensor]:
        """Rebuilt facets [M, n, D/M] after each level."""
        m, levels = self.code_shape
        index = torch.from_numpy(codes.astype(np.int64)).view(len(codes), m, levels).permute(2, 1, 0)
        sums: list[Tensor] = []
        for level in range(levels):
            words = kmeans.gather(self._tensors["codebooks"][:, level], index[level].contiguous())
            sums.append(sums[-1] + words if sums else words)
        return sums

    def _alternatives(self, vector: np.ndarray, codes: np.ndarray) -> Iterator[tuple[int, ...]]:
        return combinations(self.choices(vector, codes))

    def choices(self, vector: np.ndarray, codes: np.ndarray) -> list[Iterator[tuple[float, tuple[int, ...]]]]:
        """Of each facet: (error, codes), those under the given codes of the upper levels first, the least error first."""
        m, levels = self.code_shape
        books = self._tensors["codebooks"].numpy()
        facets = ((vector - self._tensors["mean"].numpy()) @ self._tensors["encoder"].numpy()).reshape(m, -1)
        chosen = np.asarray(codes).reshape(m, levels)

        def variants(facet: int, residual: np.ndarray, prefix: tuple[int, ...], known: bool) -> Iterator[tuple[float, tuple[int, ...]]]:
            """Ids of a facet, the last level's changes first; `known`: those under the chosen codes were given already."""
            level = len(prefix)
            errors = np.square(residual - books[facet, level]).sum(1)
            for code in np.argsort(errors, kind="stable"):
                path = (*prefix, int(code))
                if level == levels - 1:
                    yield float(errors[code]), path
                elif not (known and level == levels - 2 and code == chosen[facet, level]):
                    yield from variants(facet, residual - books[facet, level, code], path, known and code == chosen[facet, level])

        def ranked(facet: int) -> Iterator[tuple[float, tuple[int, ...]]]:
            prefix = tuple(map(int, chosen[facet, :-1]))
            last = ((float(errors[facet, code]), (*prefix, int(code))) for code in order[facet])
            return last if levels == 1 else chain(last, variants(facet, facets[facet], (), True))

        residual = facets - sum((books[np.arange(m), level, chosen[:, level]] for level in range(levels - 1)), np.zeros_like(facets))
        errors = np.square(residual[:, None] - books[:, levels - 1]).sum(2)  # not by expansion: copies of a codeword must tie exactly
        order = np.argsort(errors, axis=1, kind="stable")
        return [ranked(facet) for facet in range(m)]

    def details(self, vectors: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """Energy kept and its start; spread of energy over facets; orthonormality; R2 inside the projected space after each level."""
        m, levels = self.code_shape
        wide = self._tensors["encoder"].shape[1]
        error, total = np.zeros(levels), torch.zeros(m, wide // m, dtype=torch.float64)
        square = torch.zeros(m, wide // m, dtype=torch.float64)
        for start in range(0, len(vectors), BLOCK):
            block = torch.from_numpy(vectors[start : start + BLOCK])
            facets = cut(block, self._tensors["mean"], self._tensors["encoder"], m)
            total += facets.sum(1, dtype=torch.float64)
            square += facets.square().sum(1, dtype=torch.float64)
            for level, rebuilt in enumerate(self._partial(codes[start : start + BLOCK])):
                error[level] += float((facets - rebuilt).square().sum(dtype=torch.float64))
        energy = (square / len(vectors) - (total / len(vectors)).square()).sum(1).clamp(min=0)
        projection = self._tensors["projection"].double()
        start, kept = self._tensors["energy"].tolist()
        return {
            "energy_kept": kept,
            "energy_kept_start": start,
            "facet_energy": (energy / energy.sum().clamp(min=1e-30)).tolist(),
            "energy_imbalance": float((energy - energy.mean()).abs().mean() / energy.mean().clamp(min=1e-30)),
            "orthonormality_error": float((projection @ projection.T - torch.eye(wide, dtype=torch.float64)).norm()),
            "space_r2": (1 - error / max(float(energy.sum()) * len(vectors), 1e-30)).tolist(),
            "codewords_fitted": int(self._tensors["fitted"]),
        }


def deal(energies: Tensor, facets: int) -> Tensor:
    """Which direction goes where: order [D] in which D/M consecutive ones make a facet, so that the facets' energies balance.

    Energies [D] fall; each direction goes to the facet of least energy that has room.
    """
    room = len(energies) // facets
    hands: list[list[int]] = [[] for _ in range(facets)]
    held = [0.0] * facets
    for direction, energy in enumerate(energies.tolist()):
        facet = min((f for f in range(facets) if len(hands[f]) < room), key=lambda f: held[f])
        hands[facet].append(direction)
        held[facet] += energy
    return torch.tensor([direction for hand in hands for direction in hand])


def energy_kept(projection: Tensor, covariance: Tensor) -> float:
    """tr(W S W^T) / tr(S); a W that stretches is first shortened to spectral norm 1, so that it cannot make energy."""
    projection = projection.double()
    stretch = max(1.0, float(torch.linalg.matrix_norm(projection, 2)) ** 2) if projection.isfinite().all() else float("nan")
    return float(((projection @ covariance) * projection).sum() / covariance.trace()) / stretch
