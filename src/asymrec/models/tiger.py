"""TIGER, "Recommender Systems with Generative Retrieval" (Rajput et al., NeurIPS 2023, arXiv 2305.05065).

In words: an item is a short row of codes, its semantic id, made of its content by an RQ-VAE with one more code where items would share
the others (`quantize/rqvae.py`); a history is the codes of its items, one after another; an encoder-decoder Transformer of T5's kind
(`nn/t5.py`) reads them and writes the codes of the next item, each by a softmax over the codewords of its place. Beam search over the
tree of real ids finds the items of highest probability.

What differs from the paper:
- Each of an id's places has tokens of its own, and the softmax runs over those that some item has after the codes before (`tree_softmax`,
  default), not over all tokens: the network need not learn by heart which ids there are, and probabilities of all items add up to 1.
  `tree_softmax=false`: over all tokens of the place. Beam search knows the catalogue's ids, so what is written is always an item; the
  paper's search may write ids that no item has, and looks further.
- No token for the user: the paper hashes users into 2,000 tokens, which a user unknown in training does not have.
- AdamW, half a cosine and averaged weights, the training loop that all models here share, instead of an inverse square root over
  200,000 steps.
- `repeat` is not there: no item has a logit of its own that a number could be added to.
- `temperature` is none, as in the paper; where one is set, logits are cosines divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from asymrec.config import Recipe
from asymrec.data import Dataset, Sequences, Split
from asymrec.data.batches import epoch_batches
from asymrec.device import choose_precision
from asymrec.errors import ConfigError
from asymrec.models.growing import twin
from asymrec.models.trained import Trained
from asymrec.nn.decoder import Runs, runs_of
from asymrec.nn.heads import scaled, unit
from asymrec.nn.losses import heads_cross_entropy
from asymrec.nn.t5 import Stack, padded
from asymrec.nn.writer import Writer
from asymrec.quantize.rqvae import RQVAE
from asymrec.retrieval.beam import beam_search
from asymrec.retrieval.trie import Trie
from asymrec.threads import spread

BEAMS_AT_ONCE = 1 << 11  # prefixes that are gone on with together: what a layer makes of them stays in the processor's cache
VALIDATION_USERS = 5_000  # writing an item costs fifty times what scoring it does, and an epoch is chosen as well by these


class Network(nn.Module):
    """Encoder, decoder, and an embedding of every code that both read and that is compared with what the decoder says.

    Args:
        recipe: sections network and training (for the temperature).
        codes: int [items, H], fixed.
        words: K, codewords of a block, at most.
        blocks: of K words each, that the codes of a place are from, for each of the H places; by default each place has its own.
    """

    def __init__(self, recipe: Recipe, codes: Tensor, words: int, blocks: list[list[int]] | None = None):
        super().__init__()
        net = recipe.network
        shape = net.width, net.layers, net.heads, net.head_width or net.width // net.heads, net.ffn, net.dropout
        self.blocks = blocks or [[place] for place in range(codes.shape[1])]
        first = torch.zeros(len(self.blocks), max(map(len, self.blocks)), dtype=torch.int64)
        for place, own in enumerate(self.blocks):
            first[place, : len(own)] = torch.tensor(own) * words
        self.register_buffer("codes", codes.long(), persistent=False)
        self.register_buffer("first", first, persistent=False)  # [H, blocks], the row of a block's first word
        self.embedding = nn.Parameter(torch.randn(1 + max(map(max, self.blocks)), words, net.width))
        self.start = nn.Parameter(torch.randn(net.width))
        self.encoder, self.decoder = Stack(*shape, decoder=False), Stack(*shape, decoder=True)
        self.temperature = recipe.training.temperature
        self.register_buffer("tree", torch.tensor(net.tree_softmax))

    def tokens(self, codes: Tensor) -> Tensor:
        """Codes int64 [n, h] of an id's first h places -> their rows in the table of all embeddings."""
        return self.rows(torch.arange(codes.shape[1], device=codes.device), codes)

    def rows(self, places: Tensor, codes: Tensor) -> Tensor:
        """int64: the row in the table of all embeddings of each code, written at its place."""
        words = self.embedding.shape[1]
        return self.first[places, codes // words] + codes % words

    def read(self, codes: Tensor) -> Tensor:
        """The same codes -> their embeddings [n, h, width]."""
        return nn.functional.embedding(self.tokens(codes), self.embedding.flatten(0, 1))

    def histories(self, histories: Sequences) -> tuple[Tensor, Runs]:
        """Histories, none empty, by ascending length -> codes of their items int64 [items, H], and how many tokens each has."""
        items = torch.from_numpy(histories.items.astype(np.int64)).to(self.start.device)
        return self.codes[items], runs_of(histories.lengths, self.codes.shape[1])

    def encode(self, histories: Sequences) -> tuple[Tensor, Tensor]:
        """Histories, none empty, by ascending length -> what the decoder reads of them, see `padded`."""
        codes, runs = self.histories(histories)
        return padded(self.encoder(self.read(codes).flatten(0, 1), runs), runs)

    def write(self, states: Tensor, missing: Tensor, codes: Tensor) -> Tensor:
        """The decoder's states for all H places of target codes int64 [n, H], each seeing the places before: [n, H, width]."""
        n, places = codes.shape
        read = torch.cat((self.start.expand(n, 1, -1), self.read(codes[:, :-1])), 1)
        return self.decoder(read.flatten(0, 1), [(n, places)], states, missing).view(n, places, -1)

    def query(self, states: Tensor) -> Tensor:
        """What is multiplied with the codewords of a place; T5 divides by the root of the width where embeddings are compared with."""
        return scaled(states, self.temperature) * (states.shape[-1] ** -0.5 if self.temperature is None else 1.0)

    def words(self) -> list[Tensor]:
        """[K * blocks of the place, width] of each of the H places, in the order of its codes."""
        embedding = unit(self.embedding, self.temperature)
        return [embedding[own].flatten(0, 1) for own in self.blocks]

    def loss(self, query: Tensor, codes: Tensor, precision: torch.dtype, among: list[Tensor] | None = None) -> Tensor:
        """Mean cross-entropy of target codes int64 [n, H] over queries [n, H, width]; the softmax runs over the words `among` those of
        each place, H times bool [n, words]; None: over all."""
        words, query, codes = self.words(), query.transpose(0, 1), codes.T.contiguous()
        if len({len(own) for own in self.blocks}) == 1:  # places of one size: one pass
            return heads_cross_entropy(query, torch.stack(words), codes, precision, None if among is None else torch.stack(among))

        def of(place: int) -> Tensor:
            some = None if among is None else among[place].unsqueeze(0)
            return heads_cross_entropy(query[[place]], words[place].unsqueeze(0), codes[[place]], precision, some)

        return torch.stack([of(place) for place in range(len(words))]).mean()

    def over(self, codes: Tensor) -> Network:
        """The same network for items of these codes int [items, H]."""
        network = twin(self)
        network.codes = codes.long().to(self.codes.device)
        return network


class Tiger(Trained):
    """Settings as in `asymrec.config`, by name: `Tiger(epochs=40, beam=20, seed=1)`.

    `scores` is the log-probability of the items that a beam of `beam` finds, and -inf for all others; an evaluation sees this.
    `best`, and so `recommend`, searches among the allowed items alone and with as wide a beam as it takes to have k left without the
    history's, so that none is missing; `score` gives exact log-probabilities of the items it is asked for.
    """

    name = "tiger"
    uses = Trained.uses | Recipe.leaves_of("vectors", "rqvae") | {"beam", "tree_softmax"}
    schedule = (20, 8000, 200)
    defaults: ClassVar[dict[str, Any]] = {
        "width": 128, "layers": 4, "heads": 6, "head_width": 64, "ffn": 1024, "dropout": 0.1, "history": 20, "repeat": False,
        "temperature": None, "learning_rate": 2e-3, "batch": 256, "patience": 10,
    }  # fmt: skip
    space: ClassVar[dict[str, list[Any]]] = {"dropout": [0.1, 0.2], "learning_rate": [1e-3, 2e-3, 4e-3], "history": [20, 50]}
    complete = False
    network: Network
    quantizer: RQVAE
    trie: Trie  # what the search may find
    _last: tuple[bytes, Trie | None] = b"", None  # rows that were searched alone, and their trie
    wanted: tuple[int, bool] = 0, False  # how many items must be found at least, and whether beside those of the history

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        super().__init__(recipe, **settings)
        if self.recipe.network.repeat:
            raise ConfigError("tiger has no logit of an item that a number could be added to: repeat must be false")

    # Training

    def _begin(self, dataset: Dataset, split: Split) -> Split:
        self._train = split.train  # whole sequences: a target near the start of a piece has its whole history
        self._starts = np.repeat(split.train.offsets[:-1], split.train.lengths)
        users = np.linspace(0, len(split.validation) - 1, min(len(split.validation), VALIDATION_USERS)).astype(np.int64)
        return replace(split, validation=split.validation.take(users))

    def _quantizer(self) -> RQVAE:
        return RQVAE(seed=self.recipe.training.seed, **self.recipe.rqvae.model_dump())

    def _take(self, tensors: dict[str, Tensor]) -> None:
        super()._take(tensors)
        self.trie, self._last = Trie(tensors["codes"].numpy()), (b"", None)

    def _network(self, n_items: int) -> Network:
        return Network(self.recipe, self._prepared["codes"], max(self.quantizer.codebook_sizes))

    def _batches(self, pieces: Sequences, epoch: int) -> list[np.ndarray]:
        """Places of targets in the training interactions: each of them is an example with the history before it."""
        targets, training = np.flatnonzero(np.arange(len(self._starts)) > self._starts), self.recipe.training
        batches = epoch_batches(np.ones(len(targets), np.int64), training.batch, seed=training.seed, epoch=epoch)
        return [targets[rows] for rows in batches]

    def _loss(self, targets: np.ndarray) -> Tensor:
        begin = np.maximum(self._starts[targets], targets - self.history)
        order = np.argsort(targets - begin, kind="stable")
        targets, histories = targets[order], self._train.between(begin[order], targets[order])
        network, items = self.network, self._train.items[targets].astype(np.int64)
        codes = network.codes[torch.from_numpy(items).to(self.device)]
        with self._autocast():
            query = network.query(network.write(*network.encode(histories), codes))
        return network.loss(query, codes, self.precision, self._following(items) if self.recipe.network.tree_softmax else None)

    def _following(self, items: np.ndarray) -> list[Tensor]:
        """Which words some item has in the place of each of the codes of items (int64 [n]) after those before it: H times bool
        [n, words]."""
        marks = []
        for level, blocks in enumerate(self.network.blocks):
            found = np.zeros((len(items), len(blocks) * self.network.embedding.shape[1]), bool)
            owners, children = self.trie.children(level, self.trie.prefixes[items, level])
            found[owners, self.trie.tokens[level][children]] = True
            marks.append(torch.from_numpy(found).to(self.device))
        return marks

    def extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> Tiger:
        """New items are new leaves: the network, which knows codes alone, stays as it is."""
        model = self._extended(vectors, codes)
        codes = model._prepared["codes"]
        model.network, model.trie, model._last = self.network.over(codes), Trie(codes.numpy()), (b"", None)
        return model

    # Search

    def best(self, histories: Sequences, k: int, barred: np.ndarray | None, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        among = self._among(np.arange(len(self._popularity)) if barred is None else np.flatnonzero(~barred))
        among.wanted = k, exclude_seen
        return super(Tiger, among).best(histories, k, barred, exclude_seen)

    def score(self, histories: Sequence[Sequence[Any]], items: Sequence[Any], times: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        rows = np.unique(self.dataset.item_rows(items))
        among = self._among(rows)
        among.wanted = len(rows), False
        return super(Tiger, among).score(histories, items, times)

    def _among(self, rows: np.ndarray) -> Tiger:
        """The same model, searching among some items alone (rows int [m], ascending)."""
        among = copy(self)
        if 0 < len(rows) < len(self._popularity):
            key = rows.tobytes()
            if self._last[0] != key:  # a server asks for the same again, where items are retired
                self._last = key, Trie(self._prepared["codes"].numpy()[rows], rows, self.trie)
            among.trie = self._last[1]
        return among

    def _known_scores(self, histories: Sequences) -> np.ndarray:
        out = np.full((len(histories), len(self._popularity)), -np.inf, np.float32)
        least, beside = self.wanted
        beam, read = self.recipe.network.beam, histories.last(self.history)
        # whole multiples of the beam, each history's own: what is found does not depend on the others in the batch
        widths = np.minimum(-(-np.maximum(least + beside * histories.lengths, 1) // beam) * beam, len(self.trie))
        order = np.lexsort((read.lengths, widths))
        parts = []
        for width in np.unique(widths).tolist():
            rows = order[widths[order] == width]
            parts += [(part, width) for part in np.split(rows, range(0, len(rows), max(1, BEAMS_AT_ONCE // width))[1:])]

        def search(part: tuple[np.ndarray, int]) -> None:
            rows, width = part
            leaves, scores = self._search(read.take(rows), width)
            found = leaves >= 0
            owners, items = self.trie.items(leaves[found])
            out[np.repeat(rows, found.sum(1))[owners], items] = scores[found][owners]

        spread(search, parts)
        return out

    @torch.inference_mode()
    def _search(self, histories: Sequences, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Leaves and scores of the beam for histories by ascending length."""
        network, words, place, among = self.network, self._words, -1, self.recipe.network.tree_softmax
        codes, runs = network.histories(histories)
        begun = [1, *map(len, self.trie.tokens[:-1])]  # prefixes that there are at each level
        rows = len(histories) * sum(min(width, count) for count in begun)

        def step(parents: np.ndarray, tokens: np.ndarray | None) -> np.ndarray:
            nonlocal place
            if tokens is None:  # the token that begins every item is the table's last
                read = torch.full((len(parents),), network.embedding[..., 0].numel(), device=network.start.device)
            else:
                written = torch.from_numpy(np.asarray(tokens, np.int64)).to(network.start.device)
                read = network.rows(torch.tensor(place, device=written.device), written)
            place += 1
            logits = network.query(beams.step(parents, read)) @ words[place].T
            return (logits if among else logits.log_softmax(-1)).cpu().numpy()

        with torch.autocast(self.device.type, enabled=False):  # the writer knows its precision
            beams = self._writer.begin(network.tokens(codes).flatten(), runs, rows)
            return beam_search(self.trie, step, len(histories), width, among)

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        if "network.tree" not in tensors:
            self._was_fitted_with(tree_softmax=False)
            tensors = tensors | {"network.tree": torch.tensor(False)}
        super().restore(tensors, vectors, codes)

    def _freeze(self) -> None:
        network, device = self.network, self.device
        places = network.codes.shape[1]
        with torch.no_grad():
            table = torch.cat((network.embedding.flatten(0, 1), network.start.unsqueeze(0)))
            self._words = [words.detach().clone() for words in network.words()]
        precision = choose_precision(self.recipe.training.precision, device)
        self._writer = Writer(network.encoder, network.decoder, table, (self.history * places, places), precision)
