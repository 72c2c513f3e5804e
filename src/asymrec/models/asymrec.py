"""AsymRec, "Asymmetric Generative Recommendation via Multi-Expert Projection and Multi-Faceted Hierarchical Quantization"
(arXiv 2605.14512).

In words: an item is read as its continuous vector, projected by a dense mixture of experts (MSP, `nn/msp.py`); a causal
Transformer reads the history; the next item is written as M*L discrete codes (MHQ, `quantize/mhq.py`). The quantizer is fitted
first and frozen, then the recommender learns the codes of the next item at every place of every history.

What differs from the paper:
- `objective=catalogue` (default): the softmax runs over items instead of over each head's codewords, see `nn/heads.py`.
  `objective=heads` is the paper's; the preset `paper` sets all of its choices.
- `read=both` (default): beside the vector through MSP an item's codes are read as well, through the table that they are written with.
  `read=vectors` is the paper's asymmetry, preset `continuous-input`.
- `codeword_map` (default): an embedding of a code is a learned one plus a linear map of the codeword that it stands for, so that codes of
  like content are alike before anything is known of them; the target is still the code. `codeword_map=false`, preset `free-codes`.
- `code_rate` (default): what a code has for itself is learned slower than the map, see `nn/heads.py`. `code_rate=1`, preset `fast-codes`.
- `popularity_codes` (default): codes of how often and since when an item was taken in training stand behind those of its content
  (`quantize/popularity.py`), read and written as these are. `popularity_codes=false`, preset `no-popularity-codes`.
- `time_codes` (default): the state is told when the last item was taken, see `nn/clock.py`. `time_codes=false`, preset `no-time-codes`.
- `repeat`, one learned number for items that the history already holds, see `models/catalogue.py`.
- Retrieval is exact: every item is scored, where the paper searches a graph.
- Biases of codes, a LayerNorm on what is read, averaged weights, steps of `batch` interactions and the settings the paper leaves open
  are ours; `docs/configuration.md` lists them.

Ablations are settings, each with a preset: `read=codes` reads an item as the sum of its code embeddings alone, `write=vectors` compares
the state with the item's own continuous vector instead of its codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asymrec.config import Recipe
from asymrec.data import Sequences
from asymrec.data.batches import pack
from asymrec.errors import ConfigError
from asymrec.models.catalogue import CatalogueNetwork, inputs_and_targets
from asymrec.models.coded import CodedModel
from asymrec.models.growing import twin
from asymrec.models.popular import CODES, ToldPopularity, beside
from asymrec.models.timed import Timed
from asymrec.nn.clock import Clock
from asymrec.nn.decoder import Decoder
from asymrec.nn.heads import CatalogueHead, FacetHeads, VectorHead, unit
from asymrec.nn.losses import CodeSum
from asymrec.nn.msp import MSP
from asymrec.quantize import MHQ
from asymrec.retrieval.exact import score_codes
from asymrec.training.listener import Listener

SCALED_BY = 1 << 15  # items, evenly taken, whose spread codewords are scaled by


class Network(CatalogueNetwork):
    """MSP (or code embeddings), decoder and head over a fixed catalogue.

    Args:
        recipe: sections network, quantizer (for K) and training (for the objective).
        history: items that are read.
        vectors: float32 [n_items, d].
        codes: int [n_items, H], the M*L of the content first.
        content: M*L.
        trained: int [m], the items of training, whose mean and spread the vectors are standardised by.
        words: of every code, K; by default the recipe's.
        columns: of the vectors the first so many are read; None: all.
        codewords: float32 [M, L, K, d], what the codes stand for, where their embeddings are to know it.
        clock: of a network that reads times.
    """

    def __init__(
        self,
        recipe: Recipe,
        history: int,
        vectors: Tensor,
        codes: Tensor,
        content: int,
        trained: Tensor,
        words: int | None = None,
        columns: int | None = None,
        codewords: Tensor | None = None,
        clock: Clock | None = None,
    ):
        net, training, words = recipe.network, recipe.training, words or recipe.quantizer.codewords
        vectors = vectors[:, :columns]
        decoder = Decoder(net.width, net.layers, net.heads, net.ffn, net.dropout, history, net.head_width)
        super().__init__(decoder, training.temperature, net.repeat, clock)
        self.columns = columns
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("codes", codes.int(), persistent=False)
        self.msp = self.embedding = None
        if net.read != "codes":
            self.msp = MSP(vectors.shape[1], net.width, net.experts, inner=net.expert_width)
            self.msp.standardise(vectors[trained])
        self.norm = nn.LayerNorm(net.width)
        self.register_buffer("centre", vectors[trained].mean(0), persistent=False)
        if training.objective == "heads":
            inner = None if net.linear_heads else net.inner
            self.head = FacetHeads(codes.shape[1], words, net.width, inner, training.temperature)
        elif net.write == "vectors":
            self.head = VectorHead(vectors - self.centre, net.width, training.temperature)
        else:
            self.head = CatalogueHead(codes, words, net.width, training.temperature, codewords, content, net.code_rate)
        self.reads_codes = net.read != "vectors"
        if self.reads_codes and not isinstance(self.head, CatalogueHead):
            self.embedding = nn.Parameter(torch.randn(codes.shape[1], words, net.width) * (codes.shape[1] * net.width) ** -0.5)
            self.sum = CodeSum(codes, words)

    def read(self, items: Tensor) -> Tensor:
        parts = []
        if self.msp is not None:
            parts.append(self.msp(self.vectors[items]).float())
        if self.reads_codes:
            codes = self.head.vectors(items) if self.embedding is None else self.sum(self.embedding, items)
            parts.append(codes * codes.shape[1] ** 0.5)  # entries about as large as MSP's
        return self.norm(sum(parts))

    def over(self, vectors: Tensor, codes: Tensor) -> Network:
        network, vectors = twin(self), vectors[:, : self.columns]
        network.vectors, network.codes, network.head = vectors, codes, twin(self.head)
        if isinstance(self.head, VectorHead):
            network.head.vectors = unit(vectors - self.centre, self.temperature)
        elif isinstance(self.head, CatalogueHead):
            network.head.sum = CodeSum(codes, self.head.embedding.shape[1])
        if self.embedding is not None:
            network.sum = CodeSum(codes, self.embedding.shape[1])
        return network


class AsymRec(Timed, ToldPopularity, CodedModel):
    """Settings as in `asymrec.config`, by name: `AsymRec(width=256, facets=16, epochs=40, seed=1)`."""

    name = "asymrec"
    objectives = ("catalogue", "heads", "gbce")
    uses = CodedModel.uses | Recipe.leaves_of("vectors", "quantizer") | {
        *("read", "write", "codeword_map", "code_rate", "popularity_codes", "time_codes", "experts", "expert_width", "inner"),
        *("linear_heads", "mix"),
    }  # fmt: skip
    schedule = (20, 800, 100)  # codes are shared: it learns on where models with a vector for each item have begun to know them by heart
    network: Network
    quantizer: MHQ
    _wide: int | None = None  # numbers of a vector that is cut into facets, where it is known

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        training, net = self.recipe.training, self.recipe.network
        if net.write == "vectors" and (training.objective == "heads" or training.mix):
            raise ConfigError("write=vectors has no codes for objective=heads or mix: use objective=catalogue and mix=0")
        if training.objective != "catalogue" and training.mix:
            raise ConfigError(f"mix is added to objective=catalogue: with objective={training.objective} use mix=0")

    def _prepare(self, vectors: np.ndarray, train: Sequences, listener: Listener) -> tuple[dict[str, Tensor], dict[str, Any]]:
        wide, facets = self.described(vectors).shape[1], self.recipe.quantizer.facets
        self._wide = None
        if wide < facets == type(self.recipe.quantizer).model_fields["facets"].default:  # another number was chosen, and is refused
            listener.stage(f"note: vectors of {wide} numbers are cut into {wide} facets, not {facets}")
            self._wide = wide
        return super()._prepare(vectors, train, listener)

    def _take(self, tensors: dict[str, Tensor]) -> None:
        self._wide = self.described(tensors["vectors"]).shape[1]
        super()._take(tensors)

    def _facets(self) -> dict[str, Any]:
        """The quantizer's settings, of no more facets than its vectors have numbers; the recipe stays what was asked for."""
        asked = self.recipe.quantizer.model_dump()
        return asked | {"facets": min(asked["facets"], self._wide or asked["facets"])}

    def _quantizer(self) -> MHQ:
        return MHQ(seed=self.recipe.training.seed, **self._facets())

    @property
    def _sums_codes(self) -> bool:
        """Whether the head is a CatalogueHead."""
        return self.recipe.network.write == "codes" and self.recipe.training.objective != "heads"

    def _codewords(self, trained: Tensor) -> Tensor | None:
        """What codes stand for, scaled by items of training; None where no embedding is to know it."""
        if not (self.recipe.network.codeword_map and self._sums_codes):
            return None
        some = trained[:: -(-len(trained) // SCALED_BY)]
        return self.quantizer.scaled_codewords(self._prepared["codes"][some].numpy())

    def _network(self, n_items: int, words: int | None = None, columns: int | None = None) -> Network:
        prepared, trained = self._prepared, torch.from_numpy(np.flatnonzero(self._counts))
        known = prepared["vectors"], self._codes(), prepared["codes"].shape[1], trained
        return Network(self.recipe, self.history, *known, words, columns, self._codewords(trained), self._clock())

    def _codes(self) -> Tensor:
        return beside(super()._codes(), self._prepared.get(CODES))

    def _told(self) -> int | None:
        return self.recipe.quantizer.codewords if self.recipe.network.popularity_codes and self._sums_codes else None

    def _loss(self, pieces: Sequences) -> Tensor:
        training, head = self.recipe.training, self.network.head
        if training.objective != "heads" and not training.mix:
            return super()._loss(pieces)
        inputs, goals = inputs_and_targets(pieces)
        codes = self.network.codes[torch.from_numpy(goals).to(self.device)].long()
        with self._autocast():
            states = self.network(pack(inputs, None, self.history))
            if training.objective == "heads":
                return head.loss(states, codes, self.precision)
        return self._softmax(states, inputs, goals) + training.mix * head.facet_loss(states, codes, self.precision)

    def _known_scores(self, histories: Sequences) -> np.ndarray:
        if self._compares_items():
            return super()._known_scores(histories)
        return self._with_repeat(score_codes(self.tables(histories).cpu(), self._prepared["codes"]), histories)

    def tables(self, histories: Sequences) -> Tensor:
        states, head = self._last_states(histories), self.network.head
        if isinstance(head, FacetHeads):
            return head.log_probabilities(states)
        with torch.autocast(states.device.type, enabled=False):
            return torch.einsum("nd,hkd->nhk", head.query(states), self._embeddings) * len(self._embeddings)

    def own(self, codes: Tensor) -> np.ndarray | None:
        head = self.network.head
        if isinstance(head, FacetHeads):
            return None
        codes, embeddings = codes.to(self.device), self._embeddings
        with torch.inference_mode():
            sums = CodeSum(codes, embeddings.shape[1])
            length = sums(embeddings).norm(dim=-1).clamp_min(1e-12) if head.temperature else torch.ones(len(codes), device=self.device)
            return torch.stack((1 / length, sums(head.biases()).squeeze(-1)), 1).cpu().numpy()

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        if self._sums_codes and "network.head.map" not in tensors:
            self._was_fitted_with(codeword_map=False)
        if self._sums_codes and "network.head.rates" not in tensors:
            self._was_fitted_with(code_rate=1.0)
            tensors = tensors | {"network.head.rates": torch.ones_like(tensors["network.head.bias"][:, :1])}
        super().restore(tensors, vectors, codes)

    def _freeze(self) -> None:
        super()._freeze()
        if isinstance(self.network.head, CatalogueHead):
            with torch.inference_mode():
                self._embeddings = self.network.head.embeddings()

    def searches(self) -> bool:
        return isinstance(self.network.head, FacetHeads | CatalogueHead)

    def _compares_items(self) -> bool:
        return not isinstance(self.network.head, FacetHeads)
