"""FlexCode's router (arXiv 2511.20673): how popular an item is -> the share of its codes that the collaborative branch has.

In words: four features of popularity (`vectors/popularity.py`), standardised, through two small layers; the softmax of the two outputs
gives alpha. Two losses keep it steady: balance, (mean alpha - `router_share`)^2 and within each stratum of popularity a floor under the
entropy of its mean alpha; smoothness, the mean of (alpha_i - alpha_j)^2 of neighbours in popularity.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asymrec.config import FlexCodeConfig
from asymrec.quantize.autoencoder import Layers, mlp, new_layers

FEATURES = 4  # of popularity
HIDDEN = 16
COLDEST = 0.1  # while it learns, the temperature of what is kept falls from 1 to this
STRATA, FLOOR = 10, 0.3  # of popularity; nats of entropy, the share of the smaller branch is then at least 9 %

SHAPES = {
    **{"router.mean": (FEATURES,), "router.scale": (FEATURES,), "router.0.weight": (HIDDEN, FEATURES)},
    **{"router.0.bias": (HIDDEN,), "router.1.weight": (2, HIDDEN), "router.1.bias": (2,)},
}  # of `Router.tensors`


class Router:
    """mean, scale: float32 [4], of the features. layers: (weight, bias) of each."""

    def __init__(self, mean: Tensor, scale: Tensor, layers: Layers):
        self.mean, self.scale, self.layers = mean, scale, layers

    @classmethod
    def start(cls, features: Tensor, generator: torch.Generator) -> Router:
        """Before it has learned; features [n, 4] of the items of training."""
        scale = features.std(0, correction=0).clamp(min=1e-6)
        return cls(features.mean(0), scale, new_layers((FEATURES, HIDDEN, 2), generator))

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Router:
        """Out of what `tensors` gave, among others."""
        layers = [(tensors[f"router.{place}.weight"], tensors[f"router.{place}.bias"]) for place in range(2)]
        return cls(tensors["router.mean"], tensors["router.scale"], layers)

    @property
    def parameters(self) -> list[Tensor]:
        return [each for layer in self.layers for each in layer]

    def share(self, features: Tensor) -> Tensor:
        """features [n, 4] -> alpha [n]."""
        return mlp((features - self.mean) / self.scale, self.layers).softmax(1)[:, 0]

    def tensors(self) -> dict[str, Tensor]:
        found = {"router.mean": self.mean, "router.scale": self.scale}
        for place, (weight, bias) in enumerate(self.layers):
            found |= {f"router.{place}.weight": weight.detach(), f"router.{place}.bias": bias.detach()}
        return found


class Steadiness:
    """The two losses on a batch of the items whose features [n, 4] are given; share: the mean alpha that balance asks for."""

    def __init__(self, features: Tensor, share: float):
        self.asked = share
        self.popularity = features[:, 0].contiguous()
        edges = torch.quantile(self.popularity, torch.arange(1, STRATA) / STRATA)
        self.stratum = torch.bucketize(self.popularity, edges, right=True)

    def __call__(self, alpha: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """alpha [b] of the items `rows` int [b] -> balance, smoothness."""
        stratum = self.stratum[rows]
        size = torch.bincount(stratum, minlength=STRATA)
        means = (torch.zeros(STRATA).index_add(0, stratum, alpha) / size.clamp(min=1))[size > 0].clamp(1e-6, 1 - 1e-6)
        entropy = -(means * means.log() + (1 - means) * (1 - means).log())
        by_popularity = alpha[self.popularity[rows].argsort(stable=True)]
        return (alpha.mean() - self.asked).square() + F.relu(FLOOR - entropy).mean(), by_popularity.diff().square().mean()


def allocated(config: FlexCodeConfig, features: Tensor, known: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """float32 [n]: the share that the allocation gives the collaborative branch; 0 where the item has no collaborative vector.

    features [n, 4]; known bool [n]; tensors: those of a router, where the allocation asks it.
    """
    if config.allocation == "router":
        with torch.no_grad():
            share = Router.of(tensors).share(features)
    else:
        share = torch.full((len(features),), {"fixed": config.fixed_share, "semantic": 0.0, "collaborative": 1.0}[config.allocation])
    return torch.where(known, share, 0.0)


def tenths(counts: np.ndarray, share: np.ndarray, split: np.ndarray) -> list[dict[str, float]]:
    """For a report, by tenths of popularity, the rarest first: items, and the means of interactions, share and collaborative codes."""
    parts = [rows for rows in np.array_split(np.argsort(counts, kind="stable"), 10) if len(rows)]
    return [
        {
            "items": len(rows),
            "interactions": float(counts[rows].mean()),
            "share": float(share[rows].mean()),
            "collaborative_codes": float(split[rows].mean()),
        }
        for rows in parts
    ]
