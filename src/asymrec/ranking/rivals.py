"""Rivals that see a row of fields: logistic regression, DeepFM (arXiv 1703.04247), DCNv2 (2008.13535), DIN (1706.06978).

Each gets the fields that the token models get. Of the history, all but DIN see one more field: the mean embedding of its items' first
field plus their actions. In words: DeepFM adds a linear part, the pairwise products of embeddings and a deep part; DCNv2 crosses
x <- x0 * (W x + b) + x beside a deep part; DIN weighs the behaviours by a small network of (behaviour, target, difference, product) and
sums them without a softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymrec.ranking.batches import Batch
from asymrec.ranking.ranker import Features, Ranker, RankerConfig


class RowNetwork(nn.Module):
    """A Batch with one target a stream -> logits [B, 1, tasks]; subclasses write `row`."""

    def __init__(self, features: Features, config: RankerConfig, tasks: int):
        super().__init__()
        self.features = features
        self.fields = sum(features.fields.values()) + 1
        self.make(self.fields * features.width, config, tasks)

    def make(self, width: int, config: RankerConfig, tasks: int) -> None:
        raise NotImplementedError

    def row(self, fields: Tensor, behaviours: Tensor, target: Tensor, there: Tensor) -> Tensor:
        """fields [B, F, e]; behaviours [B, T, d]; target [B, d]; there bool [B, T] -> logits [B, tasks]."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        static = self.features.static(batch)
        items, targets = self.features.items(batch.items, batch.targets)
        T = batch.items.shape[1]
        there = torch.arange(T, device=items.device) >= T - batch.lengths.unsqueeze(1)
        first = items[:, :, 0]
        behaviours = items.flatten(2)
        if self.features.action is not None:
            actions = self.features.action(batch.actions)
            first, behaviours = first + actions, torch.cat([behaviours, actions], 2)
        mean = (first * there.unsqueeze(-1)).sum(1, keepdim=True) / there.sum(1).clamp_min(1).view(-1, 1, 1)
        fields = torch.cat([static, targets[:, 0], mean], 1)
        return self.row(fields, behaviours, targets[:, 0].flatten(1), there).unsqueeze(1)


class LinearNetwork(RowNetwork):
    def make(self, width: int, config: RankerConfig, tasks: int) -> None:
        self.bias = nn.Parameter(torch.zeros(tasks))
        self.out = nn.Linear(self.fields * self.features.width, tasks, bias=False)

    def row(self, fields: Tensor, behaviours: Tensor, target: Tensor, there: Tensor) -> Tensor:
        # a linear map of an embedding is one weight for each value
        return self.out(fields.flatten(1)) + self.bias


class DeepFMNetwork(RowNetwork):
    def make(self, width: int, config: RankerConfig, tasks: int) -> None:
        self.linear, self.deep = nn.Linear(width, tasks), deep(width, config, tasks)

    def row(self, fields: Tensor, behaviours: Tensor, target: Tensor, there: Tensor) -> Tensor:
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(-1, keepdim=True)
        return self.linear(fields.flatten(1)) + pairs + self.deep(fields.flatten(1))


class DCNv2Network(RowNetwork):
    def make(self, width: int, config: RankerConfig, tasks: int) -> None:
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(config.crosses))
        self.deep = deep(width, config, None)
        self.out = nn.Linear(width + config.hidden[-1], tasks)

    def row(self, fields: Tensor, behaviours: Tensor, target: Tensor, there: Tensor) -> Tensor:
        x = start = fields.flatten(1)
        for cross in self.crosses:
            x = start * cross(x) + x
        return self.out(torch.cat([x, self.deep(start)], 1))


class DINNetwork(RowNetwork):
    def make(self, width: int, config: RankerConfig, tasks: int) -> None:
        item = self.features.fields["item"] * self.features.width
        behaviour = item + (self.features.width if self.features.action is not None else 0)
        self.key = nn.Linear(behaviour, item)
        self.weigh = nn.Sequential(nn.Linear(4 * item, 32), nn.PReLU(), nn.Linear(32, 1))
        self.deep = deep(width + item, config, tasks)

    def row(self, fields: Tensor, behaviours: Tensor, target: Tensor, there: Tensor) -> Tensor:
        keys = self.key(behaviours)
        asked = target.unsqueeze(1).expand_as(keys)
        weights = self.weigh(torch.cat([keys, asked, asked - keys, asked * keys], -1)) * there.unsqueeze(-1)
        return self.deep(torch.cat([fields.flatten(1), (weights * keys).sum(1)], 1))


class Linear(Ranker):
    """Logistic regression, each value's weight factored as an embedding times its field's vector."""

    name = "linear"
    network_class: type[RowNetwork] = LinearNetwork

    def _network(self, features: Features, tasks: int) -> nn.Module:
        return self.network_class(features, self.config, tasks)


class DeepFM(Linear):
    name, network_class = "deepfm", DeepFMNetwork


class DCNv2(Linear):
    name, network_class = "dcnv2", DCNv2Network


class Interest(Linear):
    """DIN, deep interest network."""

    name, network_class = "din", DINNetwork


def deep(width: int, config: RankerConfig, tasks: int | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner in config.hidden:
        layers += [nn.Linear(width, inner), nn.ReLU(), nn.Dropout(config.dropout)]
        width = inner
    return nn.Sequential(*layers, *([] if tasks is None else [nn.Linear(width, tasks)]))
