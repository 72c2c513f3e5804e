"""What stands before the codebooks: a bounded sample of the items, their moments, principal directions, whitening, and the cut into
facets. Big arrays are read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SAMPLE_PER_CODEWORD = 1024  # items a fit looks at, for each codeword, drawn by the seed: bounds its time and memory
BLOCK = 4096  # items at once
FLOOR = 1e-3  # whitening: added to each variance, in units of the mean variance


def sample_items(vectors: np.ndarray, weights: np.ndarray, codewords: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vectors [n, d] and weights [n] as float32 tensors; of more than a fit looks at, some rows, in order."""
    limit = max(2**16, SAMPLE_PER_CODEWORD * codewords)
    if len(vectors) > limit:
        rows = torch.randperm(len(vectors), generator=generator)[:limit].sort().values.numpy()
        vectors, weights = vectors[rows], weights[rows]
    return torch.from_numpy(vectors), torch.from_numpy(weights).float().clamp(min=1e-12)


def moments(x: Tensor, weights: Tensor, together: Callable[..., list]) -> tuple[Tensor, Tensor]:
    """Weighted mean [d] and covariance [d, d], float64."""
    weights = weights.double()
    blocks = [slice(start, start + BLOCK) for start in range(0, len(x), BLOCK)]
    mean = sum(together(lambda rows: weights[rows] @ x[rows].double(), blocks)) / weights.sum()

    def scatter(first: int) -> Tensor:
        total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for rows in blocks[first::4]:
            centred = (x[rows].double() - mean) * weights[rows].sqrt().unsqueeze(1)
            total.addmm_(centred.T, centred)
        return total

    return mean, sum(together(scatter, range(4))) / weights.sum()


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [d], falling, and their directions [d, d], one a column."""
    values, directions = torch.linalg.eigh(covariance)
    return values.flip(0).clamp(min=0), directions.flip(1)


def whitening(values: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [d, d] to principal components of variance (nearly) 1 and back again, x @ there @ back.T = x, and those variances [d].

    A little is added to each variance, so that empty directions stay empty.
    """
    damped = values + FLOOR * values.mean()
    return directions / damped.sqrt(), directions * damped.sqrt(), values / damped


def cut(x: Tensor, mean: Tensor, encoder: Tensor, facets: int) -> Tensor:
    """Vectors [n, d] -> projected by encoder [d, D] and cut [M, n, D/M]."""
    projected = torch.empty(facets, len(x), encoder.shape[1] // facets)
    for start in range(0, len(x), BLOCK):
        block = (x[start : start + BLOCK] - mean) @ encoder
        projected[:, start : start + BLOCK] = block.view(len(block), facets, -1).transpose(0, 1)
    return projected


def join(facets: Tensor) -> Tensor:
    """Facets [M, n, D/M] -> rows [n, D]."""
    return facets.transpose(0, 1).reshape(facets.shape[1], -1)


def parts(facets: int) -> list[slice]:
    """Facets that one thread takes: fixed, so that the number of threads makes no difference."""
    return [slice(start, start + 4) for start in range(0, facets, 4)]
