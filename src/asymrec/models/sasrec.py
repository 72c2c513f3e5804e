"""SASRec, "Self-Attentive Sequential Recommendation" (Kang & McAuley, ICDM 2018, arXiv 1808.09781).

In words: an item is a learned vector, a history a sequence of them with learned positions; a causal Transformer gives a state after
each item, and the next item is the one whose vector has the largest product with the state.

What differs from the paper, and makes it the strong baseline that later work measured (gSASRec, arXiv 2308.07192; eSASRec, arXiv
2508.06450):
- the softmax over all items instead of one sampled negative a place; above `full_softmax` items a sampled one, or `objective=gbce`;
- cosine over temperature instead of the plain product (`temperature=null` has the plain one), a bias for each item;
- what is read passes a LayerNorm in the place of a factor of the root of the width; what is compared does not;
- pre-norm blocks, packed histories and the training loop that all models here share.

`sasrec+content` adds a two-layer network of the item's continuous vector to the item's learned one, where items are read and where
they are compared, so that content is no privilege of the generative models; and the vectors of AsymRec's codes of how often, and since
when, an item was taken (`popularity_codes`) and of when the history's last one was (`time_codes`), for the same reason.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.config import Recipe
from asymrec.models.catalogue import CatalogueModel, CatalogueNetwork
from asymrec.models.growing import twin
from asymrec.models.popular import CODES, ToldPopularity
from asymrec.models.timed import Timed
from asymrec.nn.clock import Clock
from asymrec.nn.decoder import Decoder
from asymrec.nn.items import ItemHead, ItemTable
from asymrec.nn.losses import CodeSum
from asymrec.quantize.popularity import PARTS


class Network(CatalogueNetwork):
    """Items from a table, a decoder, and the same table to compare with."""

    def __init__(self, table: ItemTable, decoder: nn.Module, temperature: float | None, repeat: bool, clock: Clock | None = None):
        super().__init__(decoder, temperature, repeat, clock)
        self.head = ItemHead(table, temperature)
        self.norm = nn.LayerNorm(table.embedding.embedding_dim)

    def read(self, items: Tensor) -> Tensor:
        return self.norm(self.head.table(items))

    def over(self, vectors: Tensor, codes: Tensor | None) -> Network:
        """An item without interactions has no learned part: its vector is what is made of its content, its bias the mean one."""
        network, head, table = twin(self), twin(self.head), twin(self.head.table)
        nothing = vectors.new_zeros(len(vectors), table.embedding.embedding_dim)
        table.vectors, table.embedding = vectors, nn.Embedding.from_pretrained(nothing)
        if table.codes is not None:
            table.sum = CodeSum(codes, table.codes.shape[1])
        head.table, head.bias = table, nn.Parameter(self.head.bias.mean().expand(len(vectors)).clone(), requires_grad=False)
        network.head = head
        return network


class SASRec(CatalogueModel):
    """Settings as in `asymrec.config`, by name: `SASRec(width=128, layers=2, epochs=40, seed=1)`."""

    name = "sasrec"
    objectives = ("catalogue", "gbce")

    def reads_vectors(self) -> bool:
        return False

    def _table(self, n_items: int) -> ItemTable:
        trained = torch.from_numpy(np.flatnonzero(self._counts))
        return ItemTable(n_items, self.recipe.network.width, self._prepared.get("vectors"), trained, self._prepared.get(CODES), PARTS[-1])

    def _network(self, n_items: int) -> Network:
        net = self.recipe.network
        decoder = Decoder(net.width, net.layers, net.heads, net.ffn, net.dropout, self.history, net.head_width)
        return Network(self._table(n_items), decoder, self.recipe.training.temperature, net.repeat, self._clock())

    def _clock(self) -> Clock | None:
        return None


class SASRecContent(Timed, ToldPopularity, SASRec):
    """SASRec with the items' continuous vectors, codes of their popularity and the time of a history's last item."""

    name = "sasrec+content"
    uses = SASRec.uses | Recipe.leaves_of("vectors") | {"popularity_codes", "time_codes"}

    def reads_vectors(self) -> bool:
        return True

    def _told(self) -> int | None:
        return PARTS[-1] if self.recipe.network.popularity_codes else None

    def tensors(self) -> dict[str, Tensor]:
        """New items have no learned part and the mean bias, which the network of before them does not hold."""
        tensors, table, bias = super().tensors(), "network.head.table.embedding.weight", "network.head.bias"
        if more := len(self._popularity) - len(tensors[bias]):
            tensors[table] = F.pad(tensors[table], (0, 0, 0, more))
            tensors[bias] = torch.cat([tensors[bias], tensors[bias].mean().expand(more)])
        return tensors
