"""The contract of every ranker: `fit(train, validation)`, `predict(impressions) -> probabilities`, `save`, `load`.

A model writes one network: a Batch in, logits [B, K, tasks] out. scikit-learn's manners: `fit` returns self and forgets any earlier
fit, equal seeds give equal models. The loss is the mean binary cross-entropy over targets and tasks.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field as Setting
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from asymrec.config import Section, TrainingConfig
from asymrec.device import choose_device
from asymrec.errors import ConfigError, DataError, RunError, one_line
from asymrec.files import atomic
from asymrec.nn.fields import FieldEmbeddings
from asymrec.ranking.batches import Batch, collate, streams
from asymrec.ranking.encoders import Encoder
from asymrec.ranking.examples import Impressions
from asymrec.ranking.metrics import auc, log_loss
from asymrec.ranking.schema import Field, Schema, Tables, checked
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET, train

FORMAT = 1
OWNERS = ("user", "item", "context")
RANKERS: dict[str, type[Ranker]] = {}


class RankerConfig(Section):
    """Settings of every ranker."""

    embedding: int = Setting(16, ge=2, description="width of each field's embedding")
    width: int = Setting(64, ge=4, description="token models: width of a token")
    heads: int = Setting(4, ge=1, description="token models: attention heads")
    ffn: int = Setting(128, ge=4, description="token models: inner width of SwiGLU")
    full: int = Setting(2, ge=0, description="token models: full layers, below")
    windows: tuple[int, ...] = Setting((32, 16), description="token models: windows of the layers above, in tokens")
    gate: bool = Setting(True, description="token models: NLIR")
    actions: Literal["add", "interleave", "none"] = Setting(
        "add", description="token models: an action is added to its item, a token of its own, or not read"
    )
    hidden: tuple[Annotated[int, Setting(ge=1)], ...] = Setting(
        (128, 64), min_length=1, description="field models: widths of the deep part"
    )
    crosses: int = Setting(2, ge=1, description="dcnv2: cross layers")
    dropout: float = Setting(0.1, ge=0, lt=1, description="of tokens and of deep layers, in training")
    learning_rate: float = Setting(1e-3, gt=0, description="of AdamW, at the end of the warm-up; falls to 0 by half a cosine")
    weight_decay: float = Setting(0.0, ge=0, description="of AdamW, on matrices and embeddings")
    epochs: int = Setting(20, ge=1, description="passes over the training impressions, at most")
    patience: int = Setting(2, ge=1, description="epochs without a better validation AUC before stopping")
    batch: int = Setting(512, ge=1, description="targets a step, about")
    targets: int = Setting(32, ge=1, description="token models: targets that share one history in training, at most")
    device: str = Setting("auto", description="auto, cpu, cuda, mps")
    seed: int = Setting(0, ge=0, description="of everything that is drawn")


class Features(nn.Module):
    """The fields of a batch as embeddings; encoded users and items are kept beside."""

    def __init__(self, encoders: dict[str, list[Encoder]], columns: dict[str, list[Tensor]], actions: int, width: int):
        super().__init__()
        self.columns, self.width = columns, width
        self.names = [encoder.field.name for encoder in encoders["context"]]
        self.fields = {owner: len(encoders[owner]) for owner in OWNERS}
        self.embeddings = nn.ModuleDict(
            {o: FieldEmbeddings([e.field.kind for e in encoders[o]], [e.size for e in encoders[o]], width) for o in OWNERS if encoders[o]}
        )
        self.action = nn.Embedding(actions, width, padding_idx=0) if actions else None
        if self.action is not None:
            nn.init.normal_(self.action.weight[1:].detach(), std=0.05)

    def static(self, batch: Batch) -> Tensor:
        """User and context: [B, fields, width]."""
        parts = []
        if "user" in self.embeddings:
            parts.append(self.embeddings["user"]([column[batch.users] for column in self.columns["user"]]))
        if self.names:
            parts.append(self.embeddings["context"]([batch.context[name] for name in self.names]))
        return torch.cat(parts, 1) if parts else torch.zeros(len(batch.users), 0, self.width, device=batch.users.device)

    def items(self, *rows: Tensor) -> list[Tensor]:
        """Each int64 [...] -> [..., fields, width]; every distinct item is embedded once."""
        flat = torch.cat([part.reshape(-1) for part in rows])
        distinct, place = flat.unique(return_inverse=True)
        found = self.embeddings["item"]([column[distinct] for column in self.columns["item"]])
        parts = F.embedding(place, found.flatten(1)).unflatten(1, found.shape[1:]).split([part.numel() for part in rows])
        return [part.unflatten(0, rows[at].shape) if rows[at].dim() else part for at, part in enumerate(parts)]


class Ranker:
    """Base of the rankers.

    Args:
        schema: what is read.
        config: all settings; or
        settings: single ones by name. Raises ConfigError: unknown name (the nearest is named), impossible value.
    """

    name: ClassVar[str]
    shares_history: ClassVar[bool] = False  # several targets on one history; else one
    defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            RANKERS[cls.name] = cls

    def __init__(self, schema: Schema, config: RankerConfig | None = None, **settings: Any):
        given = config.model_dump(exclude_unset=True) if config else {}
        self.schema, self.config = schema, checked(RankerConfig, {**self.defaults, **given, **settings}, "ranker")
        if not schema.item:
            raise ConfigError("schema: a ranker reads at least one field of the item")

    def _network(self, features: Features, tasks: int) -> nn.Module:
        raise NotImplementedError

    def fit(self, train_part: Impressions, validation: Impressions, listener: Listener = QUIET) -> Ranker:
        """Learn from labelled impressions; the epoch of the best validation AUC is kept.

        Raises DataError: no labels, or labels of one kind only.
        """
        self._check_labels(train_part, validation)
        config = self.config
        self.encoders, self.action = self._fit_encoders(train_part)
        self.tasks = train_part.labels.shape[1]
        torch.manual_seed(config.seed)
        self._build(train_part)
        context = self._contexts(train_part)
        actions = self._actions(train_part)
        history = self.schema.history.length
        targets, span = (config.targets, history) if self.shares_history else (1, 0)
        found = streams(train_part, context[1], targets, span)
        sizes = np.diff(found.offsets)
        device = choose_device(config.device)

        def batches(epoch: int) -> list[np.ndarray]:
            order = np.random.default_rng((config.seed, epoch)).permutation(len(found))
            steps = (np.cumsum(sizes[order]) - 1) // config.batch
            return np.split(order, np.flatnonzero(np.diff(steps)) + 1)

        def loss(chosen: np.ndarray) -> Tensor:
            self._give(train_part)  # validation may be of other tables
            batch = collate(train_part, found, chosen, history, actions, context[0]).to(device)
            logits = self.network(batch)
            return F.binary_cross_entropy_with_logits(logits[batch.present], batch.labels[batch.present])

        def validate() -> dict[str, float]:
            probabilities, labels = self.predict(validation), validation.labels[:, 0]
            return {"auc": auc(labels, probabilities), "log_loss": log_loss(labels, probabilities)}

        training = TrainingConfig(
            **{name: getattr(config, name) for name in ("learning_rate", "weight_decay", "epochs", "patience", "seed")}, average=0
        )
        self.log = train(self.network, batches, loss, validate, training, listener=listener, decides="auc")
        return self

    def weights(self, train_part: Impressions) -> int:
        """How many this ranker has once fitted on these impressions, whose vocabularies decide it."""
        other = type(self)(self.schema, self.config)
        other.encoders, other.action = other._fit_encoders(train_part)
        other.tasks = train_part.labels.shape[1]
        other._build(None)
        return sum(each.numel() for each in other.network.parameters())

    def check(self, tables: Tables) -> None:
        """Whether settings, schema, tables and device go together, before hours of work. Raises ConfigError, DataError.

        A schema without context; what training will not hold is looked at as well.
        """
        sequences = tables.dataset.sequences
        owners, place = sequences.owners.astype(np.int32), np.arange(len(sequences.items))
        every = Impressions(tables, owners, sequences.items, sequences.offsets[:-1][owners], place, None, np.ones((len(place), 1)))
        self.weights(every)

    def predict(self, impressions: Impressions, all_tasks: bool = False, share: bool = True) -> np.ndarray:
        """float32 [n], the probability of the first task; or [n, tasks].

        share: candidates on the same history and context are scored on one pass over it. Equal to the last digits either way.
        Raises ConfigError: the schema has a context and the impressions have none.
        """
        if not len(impressions):
            return np.empty((0, self.tasks) if all_tasks else 0, np.float32)
        contexts, actions = self._contexts(impressions), self._actions(impressions)
        device = choose_device(self.config.device)
        found = streams(impressions, contexts[1], 512 if share and self.shares_history else 1, 0)
        out = np.empty((len(impressions), self.tasks), np.float32)
        self._give(impressions)
        self.network.eval()
        sizes = np.diff(found.offsets)
        # streams of like sizes side by side, for a batch is as wide as its widest
        order = np.lexsort((impressions.ends[found.order[found.offsets[:-1]]] - impressions.begins[found.order[found.offsets[:-1]]], sizes))
        at = 0
        with torch.inference_mode():
            while at < len(order):
                part = order[at : at + max(1, 512 // int(sizes[order[min(at + 511, len(order) - 1)]]))]
                at += len(part)
                batch = collate(impressions, found, part, self.schema.history.length, actions, contexts[0]).to(device)
                out[batch.rows] = self.network(batch)[batch.present].sigmoid().float().cpu().numpy()
        return out if all_tasks else out[:, 0]

    def save(self, folder: str | Path) -> None:
        """Weights, vocabularies, schema and settings into a folder; no pickle. Whole or not at all. Raises RunError."""
        with atomic(folder) as temporary:
            temporary.mkdir()
            tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
            save_file(tensors, temporary / "model.safetensors")
            facts = {
                **{"format": FORMAT, "ranker": self.name, "tasks": self.tasks, "config": self.config.model_dump(mode="json")},
                "schema": self.schema.model_dump(mode="json"),
                "encoders": {owner: [encoder.state() for encoder in self.encoders[owner]] for owner in OWNERS},
                "action": self.action.state() if self.action else None,
            }
            (temporary / "ranker.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Ranker:
        """What `save` wrote, of any ranker. Raises RunError: not there, damaged, of another format."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise RunError(f"{folder}: a ranker of format {facts['format']}; this version reads {FORMAT}")
            ranker = RANKERS[facts["ranker"]](Schema.of(facts["schema"]), **facts["config"])
            ranker.encoders = {owner: [Encoder.restore(state) for state in facts["encoders"][owner]] for owner in OWNERS}
            ranker.action = Encoder.restore(facts["action"]) if facts["action"] else None
            ranker.tasks = facts["tasks"]
            ranker._build(None)
            ranker.network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise RunError(f"cannot read the ranker in {folder}: {one_line(error)}") from None
        return ranker

    def _check_labels(self, train_part: Impressions, validation: Impressions) -> None:
        if train_part.labels is None or validation.labels is None:
            raise DataError("a ranker is fitted and validated on impressions with labels")
        counts = {"training": train_part.labels[:, 0] == 1, "validation": validation.labels[:, 0] == 1}
        if all(positive.any() and not positive.all() for positive in counts.values()):
            return
        label = next(iter(self.schema.labels), None)
        what = f"label '{label.column}', at_least {label.at_least:.15g}" if label else "labels"
        held = ", ".join(f"{one.sum():,} positives and {(~one).sum():,} negatives in {part}" for part, one in counts.items())
        raise DataError(f"{what}: {held}; a ranker needs both kinds in both")

    def _fit_encoders(self, part: Impressions) -> tuple[dict[str, list[Encoder]], Encoder | None]:
        dataset, schema = part.tables.dataset, self.schema
        size = len(dataset.sequences.items)
        covered = np.bincount(part.begins, minlength=size + 1) - np.bincount(part.ends, minlength=size + 1)
        read = np.cumsum(covered)[:size] > 0 if schema.history.length else np.zeros(size, bool)  # some history of training holds it
        shown = np.bincount(part.items, minlength=dataset.n_items)
        counts = {
            "user": np.bincount(part.users, minlength=dataset.n_users),
            "item": np.maximum(shown, np.bincount(dataset.sequences.items[read], minlength=dataset.n_items)),
            "context": np.ones(len(part), np.int64),
        }
        found = {
            owner: [Encoder.fit(field, self._column(part, owner, field.name), counts[owner]) for field in getattr(schema, owner)]
            for owner in OWNERS
        }
        action = None
        if schema.history.action and schema.history.length:
            field = Field(name=schema.history.action, kind="category")
            action = Encoder.fit(field, part.tables.column("context", field.name), read.astype(np.int64))
        return found, action

    @staticmethod
    def _column(part: Impressions, owner: str, name: str) -> pa.ChunkedArray:
        return part.context[name] if owner == "context" else part.tables.column(owner, name)

    def _build(self, part: Impressions | None) -> None:
        features = Features(self.encoders, {}, self.action.size if self.action else 0, self.config.embedding)
        self._encoded: dict[str, pa.Table] = {}  # the tables that users' and items' numbers are of
        self.network = self._network(features, self.tasks).to(choose_device(self.config.device))
        self.features = features
        if part is not None:
            self._give(part)

    def _give(self, part: Impressions) -> None:
        """The users' and items' numbers of the tables that impressions are of; each table is encoded once, whoever asks."""
        for owner, table in (("user", part.tables.users), ("item", part.tables.dataset.items)):
            if self._encoded.get(owner) is not table:
                found = (encoder.encode(self._column(part, owner, encoder.field.name)) for encoder in self.encoders[owner])
                device = choose_device(self.config.device)
                self.features.columns[owner] = [torch.from_numpy(column.copy()).to(device) for column in found]
                self._encoded[owner] = table

    def _contexts(self, part: Impressions) -> tuple[dict[str, Tensor], np.ndarray]:
        """Encoded context by name, and a number of each impression that equal contexts share."""
        if not self.encoders["context"]:
            return {}, np.zeros(len(part), np.int64)
        if part.context is None:
            raise ConfigError(f"this ranker reads {', '.join(e.field.name for e in self.encoders['context'])} of the context: give it")
        found = {e.field.name: e.encode(self._column(part, "context", e.field.name)).copy() for e in self.encoders["context"]}
        rows = np.concatenate([array.reshape(len(part), -1) for array in found.values()], 1)
        return {name: torch.from_numpy(array) for name, array in found.items()}, np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)

    def _actions(self, part: Impressions) -> np.ndarray | None:
        return None if self.action is None else self.action.encode(part.tables.column("context", self.action.field.name))


def find_ranker(name: str) -> type[Ranker]:
    """Raises ConfigError with the nearest name."""
    if name not in RANKERS:
        near = difflib.get_close_matches(name, RANKERS, n=1)
        raise ConfigError(f"unknown ranker '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"there are {', '.join(RANKERS)}"))
    return RANKERS[name]
