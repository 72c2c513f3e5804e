"""Models that score every item by one product of the user's state with a vector of the item, and learn by a softmax over items.

The network gives a state after each item of a history (`forward`) and has a `head` with `items(rows) -> (table, bias)` and
`query(states)`. The softmax runs over the whole catalogue, or over sampled items where that is too large (`full_softmax`).
`repeat`: one learned number is added to the logit of every item that the history already holds, so that the model itself learns
whether users come back to the same item. Without it a data set in which nobody does costs the ranking its first places. Before an epoch
is judged it is set anew, by the validation part (`models/repeat.py`): in training few users with many interactions can speak for all.

`objective=gbce` is gSASRec's loss (Petrov & Macdonald, RecSys 2023, arXiv 2308.07192): binary cross-entropy over the target and
`negatives` uniform draws for each place, the target's probability taken to the power beta, which undoes the overconfidence that
sampling brings: beta = a (t (1 - 1/a) + 1/a), a = negatives / (items - 1), t = `calibration`.
Its logits are the cosines of all objectives here; gSASRec's plain products are `temperature=null`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from asymrec.data import Examples, Sequences
from asymrec.data.batches import PackedBatch, pack
from asymrec.errors import ConfigError, DataError
from asymrec.models.growing import Growing, twin
from asymrec.models.repeat import seen_weight
from asymrec.models.trained import Trained
from asymrec.nn import exported
from asymrec.nn.clock import UNKNOWN, Clock
from asymrec.nn.decoder import Decoder, runs_of
from asymrec.nn.exported import Session, Step
from asymrec.nn.losses import Candidates, Pairs, catalogue_cross_entropy, sample_candidates

READ_AT_ONCE = 1 << 14  # items that are read together where all are
PRODUCTS_AT_ONCE = 1 << 26  # numbers that exist at one time where places have candidates of their own: 256 MiB
GATHERED = 128  # a gathered row costs as much as so many products of a matrix product


class CatalogueNetwork(nn.Module):
    """Base of the networks: what reads a packed batch, and the number for repeated items. A subclass writes `read` and sets `head`.

    Args:
        decoder: item states [R, W, width], segment, position [R, W] -> states [R, W, width].
        temperature: of the head; divides the cosine, None where logits are inner products.
        repeat: learn the number.
        clock: what adds the times of items to the states after them, where they are known; None: times are not read here.
    """

    head: nn.Module

    def __init__(self, decoder: nn.Module, temperature: float | None, repeat: bool, clock: Clock | None = None):
        super().__init__()
        self.decoder, self.clock = decoder, clock
        self.temperature = temperature
        self.again = nn.Parameter(torch.zeros(())) if repeat else None

    @property
    def repeat(self) -> Tensor | None:
        """What an item that the history holds gets on top of its logit; learned in units of the cosine, as the logit is."""
        return None if self.again is None else self.again / (self.temperature or 1.0)

    def read(self, items: Tensor) -> Tensor:
        """Item rows int64 [m] -> what the decoder reads of them, [m, width]."""
        raise NotImplementedError

    def over(self, vectors: Tensor, codes: Tensor | None) -> CatalogueNetwork:
        """This network over other items, of which it knows vectors [m, d] and codes [m, n_codes] only. One that can place items has it."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch, inputs: Tensor | None = None) -> Tensor:
        """A packed batch -> the state after each item of its histories, [total, width], history after history.

        inputs: what `read` makes of all items, [n_items, width], where it is known already.
        """
        device = next(self.parameters()).device
        items = torch.from_numpy(batch.items).to(device).clamp_min(0)  # empty places read some item unseen
        if inputs is None:  # each distinct item is read once, however often it stands in the batch
            distinct, items = torch.unique(items, return_inverse=True)
            inputs = self.read(distinct)
        read = F.embedding(items, inputs)  # not inputs[items], whose gradient depends on the order of threads
        states = self.decoder(read, *(torch.from_numpy(part).to(device) for part in self.context(batch)))
        states = states.flatten(0, 1)[torch.from_numpy(batch.places).to(device)].float()
        if self.clock is None or batch.times is None:
            return states
        times, owners = (torch.from_numpy(part.reshape(-1)[batch.places]).to(device) for part in (batch.times, batch.segment))
        return states + self.clock(times, owners)

    def context(self, batch: PackedBatch) -> tuple[np.ndarray, ...]:
        """What the decoder is told besides the items."""
        return batch.segment, batch.position


class CatalogueModel(Trained):
    uses = Trained.uses | {"repeat", "objective", "full_softmax", "negatives", "calibration"}
    network: CatalogueNetwork
    _session: Session | None = None  # what answers for one history

    def _loss(self, pieces: Sequences) -> Tensor:
        """Every item but a piece's first is a target, every item but its last is read."""
        inputs, goals = inputs_and_targets(pieces)
        with self._autocast():
            states = self.network(pack(inputs, None, self.history))
        if self.recipe.training.objective == "gbce":
            return self._gbce(states, inputs, goals)
        return self._softmax(states, inputs, goals)

    def _softmax(self, states: Tensor, inputs: Sequences, goals: np.ndarray) -> Tensor:
        network, training, device = self.network, self.recipe.training, self.device
        sampled = len(self._counts) > training.full_softmax
        sample = sample_candidates(goals, self._target_counts, training.negatives) if sampled else None
        with self._autocast():
            table, bias = network.head.items(None if sample is None else torch.from_numpy(sample.rows).to(device))
        at_target = None
        if sample is not None:
            goals = sample.slot[goals]
            correction = torch.from_numpy(sample.correction).to(device)
            bias, at_target = correction if bias is None else bias + correction, -correction[torch.from_numpy(goals).to(device)]
        seen = None if network.repeat is None else seen_pairs(inputs, len(self._counts), sample, device)
        query, targets = network.head.query(states), torch.from_numpy(goals).to(device)
        return catalogue_cross_entropy(query, table, targets, bias, at_target, seen, network.repeat, self.precision)

    def _gbce(self, states: Tensor, inputs: Sequences, goals: np.ndarray) -> Tensor:
        training, device, n_items = self.recipe.training, self.device, len(self._counts)
        if n_items < 2:
            raise DataError("objective=gbce draws other items than the target: there is one item alone")
        negatives = min(training.negatives, n_items - 1)
        share = negatives / (n_items - 1)
        beta = share * (training.calibration * (1 - 1 / share) + 1 / share)
        targets = torch.from_numpy(goals).to(device)
        drawn = torch.randint(n_items - 1, (len(goals), negatives)).to(device)
        drawn += drawn >= targets.unsqueeze(1)  # any item but the target
        candidates = torch.cat((targets.unsqueeze(1), drawn), 1)
        rows, where = torch.unique(candidates, return_inverse=True)
        table, bias = self.network.head.items(rows)
        logits = products(self.network.head.query(states), table.float(), where)
        if bias is not None:
            logits = logits + F.embedding(where, bias.unsqueeze(1)).squeeze(2)
        if self.network.repeat is not None:
            logits = logits + self.network.repeat * repeated(seen_pairs(inputs, n_items, None, device), candidates, n_items)
        return (-beta * F.logsigmoid(logits[:, 0]) - F.logsigmoid(-logits[:, 1:]).sum(1)).mean() / (negatives + 1)

    def _fit_on(self, validation: Examples) -> None:
        if self.network.again is not None and validation.histories.lengths.any():
            with torch.no_grad():
                self.network.again.zero_()
                weight = seen_weight(self._known_scores, validation, len(self._popularity), self.recipe.training.seed)
                self.network.again.fill_(weight * (self.network.temperature or 1.0))

    def _known_scores(self, histories: Sequences) -> np.ndarray:
        if self._session is not None and len(histories) == 1:
            return self._with_repeat(self._of_graph(self._session, histories)[None], histories)
        items, bias = self._items
        states = self._last_states(histories)
        with torch.autocast(states.device.type, enabled=False):
            query = self.network.head.query(states)
            out = (query @ items if bias is None else torch.addmm(bias, query, items)).cpu().numpy()
        return self._with_repeat(out, histories)

    def _last_states(self, histories: Sequences) -> Tensor:
        """float32 [n, width]: the state after each history, none of them empty."""
        order = np.argsort(np.minimum(histories.lengths, self.history), kind="stable")
        read = histories.last(self.history).take(order)
        items = F.embedding(torch.from_numpy(read.items).to(self.device), self._inputs)
        states = self.network.decoder.last(items, runs_of(read.lengths)).float()
        if self.network.clock is not None and read.times is not None:
            states = states + self.network.clock(torch.from_numpy(read.times[read.offsets[1:] - 1]).to(self.device))
        return states[torch.from_numpy(np.argsort(order)).to(self.device)]

    def _of_graph(self, session: Session, histories: Sequences) -> np.ndarray:
        """Scores float32 [n_items] of one history."""
        time = UNKNOWN if histories.times is None else int(histories.times[-1])
        return session(histories.items[-self.history :], None if self.network.clock is None else time)

    def _with_repeat(self, scores: np.ndarray, histories: Sequences) -> np.ndarray:
        if self.network.repeat is not None:
            seen = np.unique(histories.owners * scores.shape[1] + histories.items)
            scores.reshape(-1)[seen] += self.network.repeat.item()
        return scores

    def export(self, path: str | Path) -> None:
        """Write the scoring of one history as an ONNX graph: `rows` int64 [places], the last `history` items, oldest first -> float32
        [n_items], without what repeated items get on top; beside `rows` a model that reads times takes `time` int64 [1], that of the last
        item, -2^63 where it is not known. Raises ConfigError: the extra `onnx` is missing, another kind of network."""
        if not (isinstance(self.network.decoder, Decoder) and self._compares_items()):
            raise ConfigError(f"{self.name} has no step that can be exported: none of a Transformer's state against item vectors")
        step = Step(self._inputs, self.network.decoder, self.network.head, *self._items, self.network.clock)
        exported.write(step, path, self.history)

    def use(self, path: str | Path) -> None:
        """From now on let ONNX Runtime score single histories, by the graph that `export` wrote.

        Raises ConfigError: not such a graph, that of another model, the extra `onnx` is missing.
        """
        session, rows = exported.Session(path), np.arange(min(self.history, len(self._popularity)))
        self._session, one = None, Sequences.of([rows])
        with torch.inference_mode():
            expected = self._known_scores(one)
        try:
            found = self._with_repeat(self._of_graph(session, one)[None], one)
            same = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-4)
        except Exception:  # a catalogue of fewer items; onnxruntime's own kinds have no common base
            same = False
        if not same:
            raise ConfigError(f"{path} is the graph of another model: export it anew")
        self._session = session

    def extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> CatalogueModel:
        if type(self.network).over is CatalogueNetwork.over:
            return super().extended(vectors, codes)
        model = self._extended(vectors, codes)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            written = self._written(None if codes is None else torch.from_numpy(codes), len(vectors))
            parts = (torch.from_numpy(vectors), written)
            network = self.network.over(*(None if part is None else part.to(self.device) for part in parts))
            old, new = {"inputs": self._inputs}, {"inputs": network.read(torch.arange(len(vectors), device=self.device))}
            if self._compares_items():
                old |= {"items": self._items[0].T, "bias": self._items[1]}
                new |= dict(zip(("items", "bias"), network.head.items()))
            for name in (name for name in old if old[name] is not None):
                model._grown[name] = self._grown.get(name, Growing(old[name])).then(new[name])
        model.network, model._session = twin(self.network), None
        model._inputs = model._grown["inputs"].rows
        if self._compares_items():
            bias = model._grown.get("bias")
            model._items = model._grown["items"].rows.T, None if bias is None else bias.rows
        return model

    def _written(self, codes: Tensor | None, count: int) -> Tensor | None:
        """The codes that the network has of so many new items, whose ids are codes int [count, H], if they have any."""
        return codes

    def _freeze(self) -> None:
        self._session = None
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            rows = torch.arange(len(self._popularity), device=self.device)
            self._inputs = torch.cat([self.network.read(part) for part in rows.split(READ_AT_ONCE)])
            if self._compares_items():
                items, bias = self.network.head.items()
                # a line a dimension: read in the order of memory by a product with one state, whose time is that of reading the matrix
                self._items = items.T.contiguous(), bias

    def _compares_items(self) -> bool:
        """Whether the head has a vector of each item, or scores are those of codes."""
        return True


def inputs_and_targets(pieces: Sequences) -> tuple[Sequences, np.ndarray]:
    """Each piece without its last item, and the items that follow those, int64 [total]."""
    inputs = pieces.between(pieces.offsets[:-1], pieces.offsets[1:] - 1)
    return inputs, pieces.between(pieces.offsets[:-1] + 1, pieces.offsets[1:]).items.astype(np.int64)


def products(query: Tensor, table: Tensor, where: Tensor) -> Tensor:
    """query [n, d] with rows of table [m, d], int64 [n, k] -> [n, k], some places at a time so that memory stays bounded.

    A product with the whole table, of which the entries are taken, is faster than gathering rows unless these are few of many, and
    nothing of it is kept for the backward pass; what is gathered is not kept either, but gathered again.
    """
    if len(table) <= where.shape[1] * GATHERED:
        step = max(1, PRODUCTS_AT_ONCE // len(table))
        parts = [(part @ table.T).gather(1, at) for part, at in zip(query.split(step), where.split(step))]
    else:
        step = max(1, PRODUCTS_AT_ONCE // (where.shape[1] * table.shape[1]))
        parts = [
            checkpoint(lambda part, at: torch.einsum("nd,nkd->nk", part, F.embedding(at, table)), part, at, use_reentrant=False)
            for part, at in zip(query.split(step), where.split(step))
        ]
    return torch.cat(parts)


def repeated(seen: Pairs, candidates: Tensor, n_items: int) -> Tensor:
    """Whether a place's history holds each of its candidates, int64 [n, k] -> float [n, k]."""
    keys = seen.rows * n_items + seen.columns  # in ascending order
    asked = candidates + torch.arange(len(candidates), device=candidates.device).unsqueeze(1) * n_items
    return (keys[torch.searchsorted(keys, asked).clamp_max(len(keys) - 1)] == asked).float()


def seen_pairs(inputs: Sequences, n_items: int, sample: Candidates | None, device: torch.device) -> Pairs:
    """(place, item) for every item at or before a place of its history; the item's slot where the softmax is sampled."""
    earlier = inputs.between(np.repeat(inputs.offsets[:-1], inputs.lengths), np.arange(len(inputs.items)) + 1)
    places, items = earlier.owners, earlier.items.astype(np.int64)
    if sample is not None:
        items = sample.slot[items]
        places, items = places[items >= 0], items[items >= 0]
    keys = np.unique(places * n_items + items)
    return Pairs(*(torch.from_numpy(part).to(device) for part in np.divmod(keys, n_items)))
