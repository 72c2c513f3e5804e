"""k-means and nearest codewords for many codebooks at once: every array has the facets in front.

Lloyd's algorithm with a sampled start; a codeword that loses all its points is put on a point drawn by its squared distance, as
in k-means++ (Arthur and Vassilvitskii, 2007).
"""

from __future__ import annotations

import torch
from torch import Tensor

ITEMS_PER_CODEWORD = 4
FEW = 16  # codewords that a codebook may have of whatever share of its items
BLOCK = 2**20  # distances held at once: 4 MB stays in the cache, twice as fast as 16 MB


def codewords_for(items: int, codewords: int, each: int = ITEMS_PER_CODEWORD) -> int:
    """Codewords that a codebook gets: at most one for every 4 items, at least 2. With more it would know each item by heart.

    each: items for a codeword, where more than 16 codewords are to have that many.
    """
    return min(codewords, max(2, min(items // ITEMS_PER_CODEWORD, max(FEW, items // each))))


def repeated(codebooks: Tensor, codewords: int) -> Tensor:
    """Codebooks [..., K, d] filled up to [..., codewords, d]: the further ones repeat the first, and `nearest` never chooses them."""
    return codebooks[..., torch.arange(codewords) % codebooks.shape[-2], :].contiguous()


def nearest(points: Tensor, codebooks: Tensor, distances: bool = False) -> tuple[Tensor, Tensor | None]:
    """Points [M, n, d], codebooks [M, K, d] -> index of the nearest codeword int64 [M, n] (ties: the smallest) and, if asked, its
    squared distance [M, n]."""
    m, n, _ = points.shape
    k = codebooks.shape[1]
    index = torch.empty(m, n, dtype=torch.int64)
    squared = torch.empty(m, n) if distances else None
    norms = codebooks.square().sum(-1).unsqueeze(1)
    transposed = codebooks.transpose(1, 2).contiguous()
    step = max(16, BLOCK // (m * k))
    for start in range(0, n, step):
        block = points[:, start : start + step]
        scores = torch.baddbmm(norms.expand(m, block.shape[1], k), block, transposed, alpha=-2)
        if squared is None:
            index[:, start : start + step] = scores.argmin(-1)
        else:
            least, where = scores.min(-1)
            index[:, start : start + step] = where
            squared[:, start : start + step] = (least + block.square().sum(-1)).clamp_(min=0)
    return index, squared


def gather(codebooks: Tensor, index: Tensor) -> Tensor:
    """Codebooks [M, K, d], index [M, n] -> their codewords [M, n, d]."""
    m, k, d = codebooks.shape
    return codebooks.reshape(m * k, d).index_select(0, _flat(index, k)).view(m, -1, d)


def tally(points: Tensor, index: Tensor, k: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [M, K] and weighted sum [M, K, d] of the points [M, n, d] that each codeword holds; weights [n]."""
    m, n, d = points.shape
    flat = _flat(index, k)
    counts = torch.zeros(m * k).index_add_(0, flat, weights.repeat(m))
    sums = torch.zeros(m * k, d).index_add_(0, flat, (points * weights[:, None]).reshape(m * n, d))
    return counts.view(m, k), sums.view(m, k, d)


def draw(points: Tensor, chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` points of each facet [M, count, d], drawn with replacement by chances [M, n]; evenly where all chances are 0."""
    chances = torch.where(chances.sum(1, keepdim=True) > 0, chances, torch.ones_like(chances))
    rows = torch.multinomial(chances, count, replacement=True, generator=generator)
    return points.gather(1, rows.unsqueeze(-1).expand(-1, -1, points.shape[2]))


def sample(points: Tensor, k: int, weights: Tensor, generator: torch.Generator) -> Tensor:
    """k rows of points [M, n, d] for each facet as a start [M, k, d], without replacement, by weight [n]."""
    rows = torch.multinomial(weights.expand(points.shape[0], -1), k, generator=generator)
    return points.gather(1, rows.unsqueeze(-1).expand(-1, -1, points.shape[2]))


def lloyd(points: Tensor, codebooks: Tensor, weights: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Codebooks [M, K, d] after `steps` rounds on points [M, n, d] with weights [n]."""
    for _ in range(steps):
        index, squared = nearest(points, codebooks, distances=True)
        counts, sums = tally(points, index, codebooks.shape[1], weights)
        codebooks = torch.where((counts > 0).unsqueeze(-1), sums / counts.clamp(min=1e-30).unsqueeze(-1), codebooks)
        codebooks = revive(codebooks, counts <= 0, points, squared * weights, generator)
    return codebooks


def revive(codebooks: Tensor, dead: Tensor, points: Tensor, chances: Tensor, generator: torch.Generator) -> Tensor:
    """The codebooks [M, K, d] with the dead codewords [M, K] moved to points [M, n, d], drawn by chances [M, n]."""
    most = int(dead.sum(1).max())
    if most == 0:
        return codebooks
    fresh = draw(points, chances, most, generator)
    place = (dead.long().cumsum(1) - 1).clamp(min=0)
    fresh = fresh.gather(1, place.unsqueeze(-1).expand_as(codebooks))
    return torch.where(dead.unsqueeze(-1), fresh, codebooks)


def _flat(index: Tensor, k: int) -> Tensor:
    return (index + torch.arange(index.shape[0]).unsqueeze(1) * k).reshape(-1)


def residual_start(points: Tensor, levels: int, k: int, weights: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Codebooks [M, L, K, d] by k-means on points [M, n, d], then on what is left of them, level by level."""
    codebooks = []
    for _ in range(levels):
        codebook = lloyd(points, sample(points, k, weights, generator), weights, steps, generator)
        points = points - gather(codebook, nearest(points, codebook)[0])
        codebooks.append(codebook)
    return torch.stack(codebooks, 1)


def residual_settle(points: Tensor, codebooks: Tensor, weights: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The codebooks [M, L, K, d] after `steps` more rounds on points [M, n, d], level by level."""
    settled = []
    for codebook in codebooks.unbind(1):
        codebook = lloyd(points, codebook, weights, steps, generator)
        points = points - gather(codebook, nearest(points, codebook)[0])
        settled.append(codebook)
    return torch.stack(settled, 1)


class MovingAverages:
    """Residual codebooks [M, L, K, d] that follow batches: c = m / N, where the sums m and counts N of a codeword's points decay.

    A codeword whose count falls under `least` restarts on a point of the batch, drawn by what the level leaves of it.
    """

    def __init__(self, codebooks: Tensor, decay: float, least: float, generator: torch.Generator):
        self.codebooks = list(codebooks.unbind(1))
        self.decay, self.least, self.generator = decay, least, generator
        self.counts: list[Tensor] = []
        self.sums: list[Tensor] = []

    def step(self, points: Tensor, weights: Tensor) -> Tensor:
        """Takes in a batch [M, b, d] with weights [b]; returns what the codebooks, as they were before, left of it [L, M, b, d]."""
        lefts = []
        for level, codebook in enumerate(self.codebooks):
            k = codebook.shape[1]
            index, _ = nearest(points, codebook)
            left = points - gather(codebook, index)
            count, total = tally(points, index, k, weights)
            if len(self.counts) == level:  # as if batches like the first had been seen for long
                held = count.clamp(min=2 * self.least)
                self.counts.append(held)
                self.sums.append(codebook * held.unsqueeze(-1))
            counts = self.decay * self.counts[level] + (1 - self.decay) * count
            sums = self.decay * self.sums[level] + (1 - self.decay) * total
            dead = counts < self.least
            codebook = revive(sums / counts.clamp(min=1e-30).unsqueeze(-1), dead, points, left.square().sum(-1) * weights, self.generator)
            counts = torch.where(dead, torch.full_like(counts, points.shape[1] / k), counts)
            sums = torch.where(dead.unsqueeze(-1), codebook * counts.unsqueeze(-1), sums)
            self.codebooks[level], self.counts[level], self.sums[level] = codebook, counts, sums
            points = left
            lefts.append(left)
        return torch.stack(lefts)
