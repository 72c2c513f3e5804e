"""RPG, "Generating Long Semantic IDs in Parallel for Recommendation" (KDD 2025, arXiv 2506.05781).

In words: an item is m codes, found by optimized product quantization of its whitened vector (`quantize/product.py`); it is read as the
mean of its codes' embeddings; a causal Transformer gives a state after each item of the history; one residual block a code turns the
state into a vector that is compared with that code's embeddings, the ones that items are read with, by cosine over a temperature.
All codes of the next item are predicted at once, and an item's score is the mean log-probability of its codes.

What differs from the paper:
- Scores are exact, over all items. The paper's search of a graph of similar items is there beside it (`decode=graph`,
  `retrieval/graph.py`).
- `repeat`: the loss is of codes and says nothing of items that the history already holds, so the number that is added to their
  scores is not learned with the rest. It is fitted after training, everything else frozen (`seen_weight`). `repeat=false`: the paper.
- Blocks are pre-norm as in GPT-2, what is read passes a LayerNorm, histories are packed, weights averaged, and the training loop is
  the one that all models here share; `docs/models/rpg.md` lists the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.config import Recipe
from asymrec.data import Dataset, Examples, Sequences, Split
from asymrec.data.batches import pack
from asymrec.errors import ConfigError
from asymrec.models.base import SCORES_AT_ONCE
from asymrec.models.catalogue import CatalogueModel, CatalogueNetwork, inputs_and_targets
from asymrec.nn.decoder import Decoder
from asymrec.nn.losses import CodeSum
from asymrec.nn.residual import ResidualHeads
from asymrec.quantize.product import ProductQuantizer
from asymrec.retrieval.exact import CodeIndex, score_codes
from asymrec.retrieval.graph import CodeGraph
from asymrec.training.checkpoint import without_prefix
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET

PLACES = 4096  # users of the validation that the number for repeated items is fitted on, at most
BLOCK = 256  # of them whose scores are read at once


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


class RPG(CatalogueModel):
    """Settings as in `asymrec.config`, by name: `RPG(opq_codes=16, width=448, epochs=60, seed=1)`."""

    name = "rpg"
    defaults: ClassVar[dict[str, Any]] = {"width": 448, "temperature": 0.03, "learning_rate": 1.5e-3, "batch": 512, "patience": 8}
    schedule = (12, 6000, 100)
    space: ClassVar[dict[str, list[Any]]] = {"dropout": [0.3, 0.5], "learning_rate": [1e-3, 1.5e-3, 3e-3], "opq_codes": [16, 32]}
    network: Network
    quantizer: ProductQuantizer

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        if self.recipe.training.temperature is None:
            raise ConfigError("rpg compares by cosine: temperature must be a number")

    def _prepare(self, vectors: np.ndarray, counts: np.ndarray, listener: Listener) -> tuple[dict[str, Tensor], dict[str, Any]]:
        quantizer = self._quantizer()
        listener.stage(f"quantize {len(vectors):,} items into {self.recipe.opq.opq_codes} codes")
        quantizer.fit(vectors[counts > 0])
        codes = quantizer.catalogue(vectors)
        tensors = {"vectors": torch.from_numpy(vectors), "codes": torch.from_numpy(codes)}
        tensors |= {f"quantizer.{name}": tensor for name, tensor in quantizer.tensors().items()}
        return tensors, {"report": quantizer.report(vectors, codes)}

    def _quantizer(self) -> ProductQuantizer:
        return ProductQuantizer(seed=self.recipe.training.seed, **self.recipe.opq.model_dump())

    def _take(self, tensors: dict[str, Tensor]) -> None:
        self.quantizer = self._quantizer().restore(without_prefix("quantizer", tensors))

    def _network(self, n_items: int) -> Network:
        return Network(self.recipe, self.history, self._prepared["codes"])

    def _loss(self, pieces: Sequences) -> Tensor:
        inputs, goals = inputs_and_targets(pieces)
        network = self.network
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            states = network(pack(inputs, None, self.history))
        codes = network.codes[torch.from_numpy(goals).to(self.device)].long()
        return network.head.loss(states, network.embedding, codes, self.precision)

    def _fit(
        self,
        dataset: Dataset,
        split: Split,
        vectors: np.ndarray | None = None,
        checkpoint: str | None = None,
        resume: bool = False,
        listener: Listener = QUIET,
    ) -> None:
        self._graph = None  # every epoch is judged exactly
        super()._fit(dataset, split, vectors, checkpoint, resume, listener)
        self._finish(split.validation)

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        super().restore(tensors, vectors, codes)
        self._finish()

    def _finish(self, validation: Examples | None = None) -> None:
        """What follows training: the number for repeated items, given what to fit it on, and the graph."""
        network, decoding = self.network, self.recipe.decoding
        if validation is not None and network.again is not None:
            with torch.no_grad():
                network.again.fill_(seen_weight(self._known_scores, validation, self.recipe.training.seed) * network.temperature)
        self._graph = self.graph(decoding.graph_neighbours) if decoding.decode == "graph" else None

    def graph(self, neighbours: int) -> CodeGraph:
        """The items, each with those most similar to it by the cosines of their codes' embeddings."""
        words = F.normalize(self.network.embedding.detach(), dim=-1)
        index = CodeIndex(self._prepared["codes"], self.quantizer.codebook_sizes)
        return CodeGraph.build(index, words @ words.transpose(1, 2), neighbours)

    def log_probabilities(self, histories: Sequences) -> Tensor:
        """Of every codeword of the next item: histories, none of them empty -> float32 [n, H, K]."""
        with torch.inference_mode():
            return self.network.head.log_probabilities(self._last_states(histories), self.network.embedding).cpu()

    def _known_scores(self, histories: Sequences) -> np.ndarray:
        tables, decoding = self.log_probabilities(histories), self.recipe.decoding
        if self._graph is None:
            scores = score_codes(tables, self._prepared["codes"])
        else:
            scores = self._graph.scores(tables, decoding.graph_beam, decoding.graph_steps, self.recipe.training.seed)
        return self._with_repeat(scores, histories)

    def _freeze(self) -> None:
        """Nothing is shared by all users but what the network holds."""


def seen_weight(scores: Callable[[Sequences], np.ndarray], validation: Examples, seed: int) -> float:
    """What is added to the scores of items that the history already holds.

    Fitted by maximum likelihood of the validation's targets, p(item) = softmax(a score + r [seen]), everything else fixed; r / a is
    returned. The scale a makes a distribution over items of the mean over codes, which is none. One more target, half of it seen, is
    imagined, so that r is finite where nobody comes back, and where everybody does. 0 where there is nothing to fit it on.

    Args:
        scores: histories, none empty -> float32 [n, n_items].
        seed: of the users that are drawn where the scores of all would be more than `SCORES_AT_ONCE`.
    """
    known = np.flatnonzero(validation.histories.lengths)
    if not len(known):
        return 0.0
    blocks: list[Block] = []
    chosen, done, limit = np.random.default_rng(seed).permutation(known), 0, 1
    while done < min(limit, len(chosen)):
        part = validation.take(chosen[done : done + BLOCK])
        blocks.append(Block.of(scores(part.histories), part))
        done += len(part.users)
        limit = min(PLACES, SCORES_AT_ONCE // blocks[0].scores.shape[1])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        values, slopes = zip(*(block.loss(*parameters) for block in blocks))
        imagined = 0.5 * (np.logaddexp(0, parameters[1]) + np.logaddexp(0, -parameters[1]))
        slope = sum(slopes) + [0, expit(parameters[1]) - 0.5]
        return (sum(values) + imagined) / done, slope / done

    scale, weight = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=((1e-3, None), (None, None))).x
    return float(weight / scale)


class Block(NamedTuple):
    """Some users of the validation, each target counting 1 / (targets of its user)."""

    scores: Tensor  # [n, n_items]
    seen: tuple[Tensor, Tensor]  # distinct (user, item) of the histories
    at_target: float  # sum of the targets' scores
    repeats: float  # sum of the targets that are seen

    @classmethod
    def of(cls, scores: np.ndarray, part: Examples) -> Block:
        n_items, targets = scores.shape[1], part.targets
        keys = np.unique(part.histories.owners * n_items + part.histories.items)
        goals, share = targets.owners * n_items + targets.items, 1 / np.repeat(targets.lengths, targets.lengths)
        at_target = float((scores.reshape(-1)[goals] * share).sum())
        users, items = (torch.from_numpy(places) for places in np.divmod(keys, n_items))
        return cls(torch.from_numpy(scores), (users, items), at_target, float(share[np.isin(goals, keys)].sum()))

    def loss(self, scale: float, weight: float) -> tuple[float, np.ndarray]:
        """Sum of -log p over the targets, and its gradient by scale and weight."""
        logits = self.scores * scale
        logits[self.seen] += weight
        probability = logits.softmax(1)
        slope = np.array([float((probability * self.scores).sum()) - self.at_target, float(probability[self.seen].sum()) - self.repeats])
        return float(logits.logsumexp(1).sum(dtype=torch.float64)) - scale * self.at_target - weight * self.repeats, slope
