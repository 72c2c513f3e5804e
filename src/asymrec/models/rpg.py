"""RPG, "Generating Long Semantic IDs in Parallel for Recommendation" (KDD 2025, arXiv 2506.05781).

In words: an item is m codes, found by optimized product quantization of its whitened vector (`quantize/product.py`); it is read as the
mean of its codes' embeddings; a causal Transformer gives a state after each item of the history; one residual block a code turns the
state into a vector that is compared with that code's embeddings, the ones that items are read with, by cosine over a temperature.
All codes of the next item are predicted at once, and an item's score is the mean log-probability of its codes.

What differs from the paper:
- Scores are exact, over all items. The paper's search of a graph of similar items is there beside it (`decode=graph`,
  `retrieval/graph.py`).
- `repeat`: the loss is of codes and says nothing of items that the history already holds, so the number that is added to their
  scores is not learned with the rest. It is fitted each epoch, all else frozen (`models/repeat.py`). `repeat=false`: the paper.
- Blocks are pre-norm as in GPT-2, what is read passes a LayerNorm, histories are packed, weights averaged, and the training loop is
  the one that all models here share; `docs/models/rpg.md` lists the settings.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.config import Recipe
from asymrec.data import Dataset, Sequences, Split
from asymrec.data.batches import pack
from asymrec.errors import ConfigError
from asymrec.models.catalogue import CatalogueNetwork, inputs_and_targets
from asymrec.models.coded import CodedModel
from asymrec.models.trained import Trained
from asymrec.nn.decoder import Decoder
from asymrec.nn.losses import CodeSum
from asymrec.nn.residual import ResidualHeads
from asymrec.quantize.product import ProductQuantizer
from asymrec.retrieval.exact import score_codes
from asymrec.retrieval.graph import CodeGraph
from asymrec.retrieval.index import CodeIndex


class Network(CatalogueNetwork):
    """Code embeddings, decoder, and heads that compare with the same embeddings.

    Args:
        recipe: sections network, opq (for K) and training (for the temperature).
        history: items that are read.
        codes: int [n_items, H].
    """

    def __init__(self, recipe: Recipe, history: int, codes: Tensor):
        net, words, heads = recipe.network, recipe.opq.opq_codewords, codes.shape[1]
        decoder = Decoder(net.width, net.layers, net.heads, net.ffn, net.dropout, history, net.head_width)
        super().__init__(decoder, recipe.training.temperature, net.repeat)
        self.register_buffer("codes", codes.int(), persistent=False)
        self.embedding = nn.Parameter(torch.randn(heads, words, net.width) * 0.02)
        self.sum = CodeSum(codes, words)
        self.norm = nn.LayerNorm(net.width)
        self.head = ResidualHeads(heads, net.width, recipe.training.temperature)

    def read(self, items: Tensor) -> Tensor:
        return self.norm(self.sum(self.embedding, items) / len(self.embedding))


class RPG(CodedModel):
    """Settings as in `asymrec.config`, by name: `RPG(opq_codes=16, width=448, epochs=60, seed=1)`."""

    name = "rpg"
    uses = Trained.uses | Recipe.leaves_of("vectors", "opq", "decoding") | {"repeat"}
    defaults: ClassVar[dict[str, Any]] = {"width": 448, "temperature": 0.03, "learning_rate": 1.5e-3, "batch": 512, "patience": 8}
    schedule = (12, 12000, 100)
    space: ClassVar[dict[str, list[Any]]] = {"dropout": [0.3, 0.5], "learning_rate": [1e-3, 1.5e-3, 3e-3], "opq_codes": [16, 32]}
    network: Network
    quantizer: ProductQuantizer

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        if self.recipe.training.temperature is None:
            raise ConfigError("rpg compares by cosine: temperature must be a number")

    def _quantizer(self) -> ProductQuantizer:
        return ProductQuantizer(seed=self.recipe.training.seed, **self.recipe.opq.model_dump())

    def _network(self, n_items: int) -> Network:
        return Network(self.recipe, self.history, self._prepared["codes"])

    def _loss(self, pieces: Sequences) -> Tensor:
        inputs, goals = inputs_and_targets(pieces)
        network = self.network
        with self._autocast():
            states = network(pack(inputs, None, self.history))
        codes = network.codes[torch.from_numpy(goals).to(self.device)].long()
        return network.head.loss(states, network.embedding, codes, self.precision)

    def _begin(self, dataset: Dataset, split: Split) -> Split:
        self._graph = None  # every epoch is judged exactly
        return split

    def _end(self, split: Split) -> None:
        super()._end(split)
        self._finish()

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        super().restore(tensors, vectors, codes)
        self._finish()

    def _finish(self) -> None:
        decoding = self.recipe.decoding
        self._graph = self.graph(decoding.graph_neighbours) if decoding.decode == "graph" else None

    def graph(self, neighbours: int) -> CodeGraph:
        """The items, each with those most similar to it by the cosines of their codes' embeddings."""
        words = F.normalize(self.network.embedding.detach(), dim=-1)
        index = CodeIndex(self._prepared["codes"], self.quantizer.codebook_sizes)
        return CodeGraph.build(index, words @ words.transpose(1, 2), neighbours)

    def tables(self, histories: Sequences) -> Tensor:
        with torch.inference_mode():
            return self.network.head.log_probabilities(self._last_states(histories), self.network.embedding).cpu()

    def _known_scores(self, histories: Sequences) -> np.ndarray:
        tables, decoding = self.tables(histories), self.recipe.decoding
        if self._graph is None:
            scores = score_codes(tables, self._prepared["codes"])
        else:
            scores = self._graph.scores(tables, decoding.graph_beam, decoding.graph_steps, self.recipe.training.seed)
        return self._with_repeat(scores, histories)

    def searches(self) -> bool:
        return self._graph is None

    def _compares_items(self) -> bool:
        return False
