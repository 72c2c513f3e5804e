"""How many dimensions a token model's representations fill, by layer and kind of token: the evidence for and against TokenFormer's
Sequential Collapse Propagation (arXiv 2604.13737), which says that static fields of few values, attended in every layer, pull the
behaviours' representations into few dimensions as well.

In words: of all tokens of a kind that a layer puts out, centred, the singular values; their effective rank is the exponential of the
entropy of their shares (Roy & Vetterli, 2007). What no later layer and no target needs is not computed, and so not counted: above a
model's full layers there are no static tokens, in windowed layers only the latest behaviours, after the last layer targets alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asymrec.errors import ConfigError
from asymrec.nn.tokens import Stream
from asymrec.ranking.examples import Impressions
from asymrec.ranking.ranker import Ranker

KINDS = ("static", "behaviours", "targets")


@dataclass(frozen=True)
class Spectrum:
    """layer: 0 for what enters the first one. kind: of KINDS. tokens: how many. singular_values: [width], falling, the largest is 1."""

    layer: int
    kind: str
    tokens: int
    singular_values: np.ndarray

    @property
    def effective_rank(self) -> float:
        shares = self.singular_values / self.singular_values.sum()
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))


class _Moments:
    """Sums that give the covariance of tokens of one kind."""

    def __init__(self, width: int):
        self.count, self.sum, self.square = 0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        x = x.double().cpu()
        self.count += len(x)
        self.sum += x.sum(0)
        self.square += x.T @ x

    def singular_values(self) -> np.ndarray:
        mean = self.sum / self.count
        values = torch.linalg.eigvalsh(self.square / self.count - torch.outer(mean, mean)).clamp(min=0).sqrt().flip(0).numpy()
        return values / max(values[0], 1e-300)


def spectra(ranker: Ranker, impressions: Impressions) -> list[Spectrum]:
    """The spectra of a fitted token model over impressions, by layer and kind, where a layer has tokens of that kind.

    Raises ConfigError: not a token model.
    """
    layers = getattr(getattr(ranker.network, "layers", None), "layers", None)
    if layers is None:
        raise ConfigError(f"ranker '{ranker.name}' has no layers of tokens")
    found: dict[tuple[int, str], _Moments] = {}

    def take(layer: int, s: Stream) -> None:
        # the separator stands at place 0 among the columns, and is no behaviour
        for kind, part in zip(KINDS, (s.static.flatten(0, 1), s.columns[s.valid & (s.places > 0)], s.targets.flatten(0, 1))):
            if len(part):
                found.setdefault((layer, kind), _Moments(part.shape[1])).add(part)

    hooks = [layers[0].register_forward_pre_hook(lambda _, inputs: take(0, inputs[0]))]
    for number, layer in enumerate(layers, 1):
        hooks.append(layer.register_forward_hook(lambda _, inputs, out, number=number: take(number, out)))
    try:
        ranker.predict(impressions, share=False)  # one target a stream: every token is there once for each impression
    finally:
        for hook in hooks:
            hook.remove()
    return [Spectrum(layer, kind, each.count, each.singular_values()) for (layer, kind), each in sorted(found.items())]
