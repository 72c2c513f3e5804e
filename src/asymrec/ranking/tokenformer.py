"""TokenFormer: "Unify the Multi-Field and Sequential Recommendation Worlds", arXiv 2604.13737.

In words: one stream [static fields, separator, behaviours, targets]; below, full causal attention; above, causal windows that shrink
and no longer see the static fields (BFTS), because fields of few values pull the sequence's representations into few dimensions when
they are attended in every layer; attention is gated by its layer's input (NLIR); a linear head at the targets. Layers: nn/tokens.py.

Differs from the paper: the separator before the targets is added to them instead of being a token, since a token after all behaviours would
tie a stream to one history; targets never see one another, where the paper's rule lets a later one see those before it, so that candidates
have the same probability in any company; an action is by default added to its item (`actions=interleave`: a token of its own, as there), so
that a window of as many tokens holds twice as many behaviours; dropout is on embeddings and branches. W_g starts at 0 with bias 1, where
the paper is silent.

Ablations are the same network: `transformer` (four full layers, no gate), `nlir` (four full layers with the gate, 4F), `bfts` (two full
and two windowed without), `sliding` (4S, no full layer). Without the gate the feed-forward is wider by the gate's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from asymrec.errors import ConfigError
from asymrec.nn.token_rivals import HSTULayer, MixedLayer
from asymrec.nn.tokens import Stream, TokenLayer, TokenLayers
from asymrec.ranking.batches import Batch
from asymrec.ranking.ranker import Features, Ranker, RankerConfig

Layers = Callable[[RankerConfig, int, list[int | None]], list[nn.Module]]


class TokenFormer(Ranker):
    name = "tokenformer"
    shares_history = True

    def _network(self, features: Features, tasks: int) -> nn.Module:
        config = self.config
        if config.width % (2 * config.heads):
            raise ConfigError(f"width {config.width} must be a multiple of twice the heads ({config.heads}): RoPE turns pairs")
        if config.full + len(config.windows) < 1 or min(config.windows, default=1) < 1:
            raise ConfigError("a token model has at least one layer, and windows of at least 1")
        return TokenNetwork(features, config, tasks, self._layers)

    @staticmethod
    def _layers(config: RankerConfig, static: int, windows: list[int | None]) -> list[nn.Module]:
        """config's layers over a stream of so many static tokens."""
        ffn = config.ffn if config.gate else config.ffn + (config.width + 1) // 3
        return [TokenLayer(config.width, config.heads, ffn, config.dropout, window, config.gate) for window in windows]


class Transformer(TokenFormer):
    name = "transformer"
    defaults: ClassVar = {"full": 4, "windows": (), "gate": False}


class NLIROnly(TokenFormer):
    name = "nlir"
    defaults: ClassVar = {"full": 4, "windows": ()}


class BFTSOnly(TokenFormer):
    name = "bfts"
    defaults: ClassVar = {"gate": False}


class Sliding(TokenFormer):
    name = "sliding"
    defaults: ClassVar = {"full": 0, "windows": (64, 48, 32, 16)}


class HSTURanker(TokenFormer):
    """Layers as HSTU's, eight of them: they have half the parameters of a layer with a feed-forward part."""

    name = "hstu"
    defaults: ClassVar = {"full": 8, "windows": ()}

    @staticmethod
    def _layers(config: RankerConfig, static: int, windows: list[int | None]) -> list[nn.Module]:
        _without_windows(windows, "hstu")
        return [HSTULayer(config.width, config.heads, config.dropout) for _ in windows]


class OneTrans(TokenFormer):
    """Layers as OneTrans's, two of them: the matrices of its own that each field has make them several times as large."""

    name = "onetrans"
    defaults: ClassVar = {"full": 2, "windows": ()}

    @staticmethod
    def _layers(config: RankerConfig, static: int, windows: list[int | None]) -> list[nn.Module]:
        _without_windows(windows, "onetrans")
        return [MixedLayer(config.width, config.heads, config.ffn, config.dropout, static) for _ in windows]


def _without_windows(windows: list[int | None], name: str) -> None:
    if any(window is not None for window in windows):
        raise ConfigError(f"{name} has full layers alone: windows must be empty")


class TokenNetwork(nn.Module):
    """A Batch -> logits [B, K, tasks]."""

    def __init__(self, features: Features, config: RankerConfig, tasks: int, layers: Layers):
        super().__init__()
        self.features, self.actions = features, config.actions
        width, static = config.width, features.fields["user"] + features.fields["context"]
        self.item = nn.Linear(features.fields["item"] * features.width, width)
        self.action = None
        if features.action is not None and config.actions != "none":
            self.action = nn.Linear(features.width, width, bias=False)
        self.static = nn.Parameter(torch.randn(static, features.width, width) * features.width**-0.5)
        self.static_bias = nn.Parameter(torch.randn(static, width) * 0.05)  # tells the fields apart
        self.separators = nn.Parameter(torch.randn(2, width) * 0.05)
        windows = [None] * config.full + list(config.windows)
        self.layers = TokenLayers(layers(config, static, windows), windows, width)
        self.head = nn.Linear(width, tasks)
        self.dropout = nn.Dropout(config.dropout)

    def stream(self, batch: Batch) -> Stream:
        items, targets = (self.item(part.flatten(-2)) for part in self.features.items(batch.items, batch.targets))
        width = batch.items.shape[1]
        pad, cuts = width - batch.lengths, batch.cuts
        if self.action is not None:
            actions = self.action(self.features.action(batch.actions))
            if self.actions == "interleave":
                items, pad, cuts, width = torch.stack([items, actions], 2).flatten(1, 2), 2 * pad, 2 * cuts, 2 * width
            else:
                items = items + actions
        column = torch.arange(width + 1, device=items.device)
        # one column more, in front; the separator stands right before the first behaviour
        columns = torch.cat([self.separators[0].expand(len(items), 1, -1), items], 1)
        columns = torch.where((column == pad.unsqueeze(1)).unsqueeze(-1), self.separators[0], columns)
        static = torch.einsum("bfe,few->bfw", self.features.static(batch), self.static) + self.static_bias
        places = (column - pad.unsqueeze(1)).clamp_min(0)
        cuts = cuts + 1
        tokens = (self.dropout(part) for part in (static, columns, targets + self.separators[1]))
        return Stream(*tokens, places, cuts - pad.unsqueeze(1), column >= pad.unsqueeze(1), cuts)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.layers(self.stream(batch)))
