"""A fitted pipeline and its folder; what it does is said at the head of the package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymrec.data import Dataset, Sequences
from asymrec.errors import ConfigError, RunError, one_line
from asymrec.files import checksum, recover
from asymrec.models import Recommender
from asymrec.ranking import Ranker
from asymrec.ranking.asked import CODES, Asked, actions_of, with_codes

FORMAT = 1
CHECKPOINT = "checkpoint"
FILES = ("users.parquet", "ranker/ranker.json", "ranker/model.safetensors")  # the run folder has checksums of its own


class Pipeline:
    """retrieval: a fitted model. ranker: fitted behind it, or about to be, with a schema. users: what is known of users, a line each
    and one of nulls at the end. weight: of the ranker. candidates: how many items are retrieved to be ranked."""

    def __init__(self, retrieval: Recommender, ranker: Ranker, users: pa.Table, weight: float, candidates: int):
        self.retrieval, self.ranker, self.users, self.weight, self.candidates = retrieval, ranker, users, weight, candidates

    @cached_property
    def items(self) -> pa.Table:
        """The items' table of the data set, as the ranker reads it."""
        return self.readable(self.dataset.items, self.retrieval)

    def readable(self, items: pa.Table, model: Recommender) -> pa.Table:
        """An items' table as the ranker reads it: with `model`'s codes of these rows, where they are one of its fields."""
        reads = any(field.name == CODES and field.kind == "code" for field in self.ranker.schema.item)
        return with_codes(items, model.catalogue()[1]) if reads else items

    @property
    def dataset(self) -> Dataset:
        return self.retrieval.dataset

    @classmethod
    def load(cls, folder: str | Path) -> Pipeline:
        """Raises RunError: not a pipeline, unfinished, damaged, of another format."""
        facts = read_pipeline(folder)
        for name in FILES:
            if not (Path(folder) / name).exists() or facts.get("files", {}).get(name) != checksum(Path(folder) / name):
                raise RunError(f"{Path(folder) / name} is missing or damaged")
        retrieval, ranker = Recommender.load(Path(folder) / "retrieval"), Ranker.load(Path(folder) / "ranker")
        try:
            users = pq.read_table(Path(folder) / "users.parquet")
            return cls(retrieval, ranker, users, float(facts["weight"]), int(facts["candidates"]))
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise RunError(f"cannot read the pipeline in {folder}: {one_line(error)}") from None

    def logits(
        self,
        histories: Sequences,
        rows: np.ndarray,
        users: np.ndarray | None = None,
        own: np.ndarray | None = None,
        items: pa.Table | None = None,
    ) -> np.ndarray:
        """The ranker's logit of each candidate.

        Args:
            histories: n sequences.
            rows: int [n, C], candidates; -1 where there is none.
            users: int [n], rows of the data set's users, -1 of whom nothing is known; None: of nobody.
            own: int [n], so many first items of a history are the data set's first of that user; by default all.
            items: another table of the items, `readable`, by rows, where the catalogue has changed.
        Returns: float32 [n, C], -inf where there is no candidate.
        """
        n, dataset = len(histories), self.dataset
        users = np.full(n, -1) if users is None else np.asarray(users)
        who = np.where(users < 0, self.users.num_rows - 1, users)
        actions = actions_of(dataset, self.ranker.schema, histories, users, own)
        asked = Asked(self.items if items is None else items, self.users, histories, who, actions)
        there = rows >= 0
        owners = np.repeat(np.arange(n), rows.shape[1]).reshape(rows.shape)[there]
        found = np.full(rows.shape, -np.inf, np.float32)
        if there.any():
            probability = self.ranker.predict(asked.impressions(owners, rows[there])).astype(np.float64).clip(1e-7, 1 - 1e-7)
            found[there] = np.log(probability / (1 - probability))
        return found

    def blend(self, scores: np.ndarray, logits: np.ndarray, weight: float | None = None) -> np.ndarray:
        """Final scores float32 [n, C] from retrieval's and the ranker's; -inf stays."""
        weight = self.weight if weight is None else weight
        if math.isinf(weight):
            return logits
        there = np.isfinite(scores)
        known = scores.astype(np.float64) if self.retrieval.logits else np.log(np.where(there, np.maximum(scores, 0), 0) + 1e-9)
        known = np.where(there, known, -np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):  # of a line without candidates
            known = known - known.max(1, keepdims=True, initial=-np.inf)
            known = known - np.log(np.exp(known).sum(1, keepdims=True))
        return np.where(there, known + weight * np.where(there, logits, 0), -np.inf).astype(np.float32)

    def rank(
        self, histories: Sequences, k: int, barred: np.ndarray | None = None, exclude_seen: bool = True, users: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The k best items: rows int32 [n, k], -1 where fewer are allowed; final scores; retrieval's; the ranker's logits [n, k].

        Where k is larger than `candidates`, as many are ranked. barred: bool [n_items], items that nobody may get.
        """
        rows, scores = self.retrieval.best(histories, min(max(k, self.candidates), self.dataset.n_items), barred, exclude_seen)
        logits = self.logits(histories, rows, users)
        final = self.blend(np.where(rows >= 0, scores, -np.inf), logits)
        order = np.argsort(-final, axis=1, kind="stable")[:, :k]
        return tuple(np.take_along_axis(each, order, 1) for each in (rows, final, scores, logits))

    def recommend(
        self,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        times: Sequence[Sequence[int]] | None = None,
        exclude_seen: bool = True,
        only: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The k best items for each history, or for each user of the data set, best first.

        Arguments and errors as of `Recommender.recommend`. Returns for each a list of {"id", "score", "retrieval", "ranker"}: the final
        score, retrieval's, and the ranker's probability.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        dataset = self.dataset
        sequences = self.retrieval._histories(histories, users, times)
        who = None if users is None else dataset.user_rows(users)
        barred = self.retrieval.barred(only, exclude)
        shown = []
        for rows, final, scores, logits in zip(*self.rank(sequences, k, barred, exclude_seen, who)):
            shown.append(
                [
                    {"id": dataset.item_ids[int(row)].as_py(), "score": float(f), "retrieval": float(s), "ranker": 1 / (1 + math.exp(-g))}
                    for row, f, s, g in zip(rows, final, scores, logits)
                    if row >= 0
                ]
            )
        return shown


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder holds a pipeline, finished or not."""
    recover(Path(folder))
    return (Path(folder) / "pipeline.json").exists() or (Path(folder) / CHECKPOINT / "pipeline.json").exists()


def read_pipeline(folder: str | Path) -> dict[str, Any]:
    """What `pipeline.json` holds. Raises RunError."""
    folder = Path(folder)
    recover(folder)
    try:
        facts = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
        form, version = facts["format"], facts["asymrec"]
    except FileNotFoundError:
        begun = (folder / CHECKPOINT / "pipeline.json").exists()
        raise RunError(f"{folder} holds an unfinished pipeline: go on with --resume" if begun else f"{folder} is no pipeline") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{folder / 'pipeline.json'} is damaged: fit the pipeline again") from None
    if form != FORMAT:
        raise RunError(f"{folder} was written by asymrec {version} in format {form}; this version reads {FORMAT}")
    return facts
