"""What ranking adds: retrieval alone, the ranker alone on what was retrieved, and both, by the evaluation of every model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from asymrec.data import Sequences
from asymrec.evaluation import Evaluation, evaluate, paired_bootstrap
from asymrec.evaluation.protocol import PROTOCOLS
from asymrec.pipeline.pipeline import Pipeline, read_pipeline
from asymrec.results import split_of
from asymrec.retrieval.exact import top_k

STAGES = ("retrieval", "ranker", "both")


class Stage:
    """A pipeline as `evaluate` reads a model, at one weight; it is asked for the examples in their order.

    exclude_seen: whether items of the history are retrieved. kept: what stages of other weights found before, by the first example.
    """

    def __init__(self, pipeline: Pipeline, examples: Any, weight: float, exclude_seen: bool, kept: dict[int, tuple[np.ndarray, ...]]):
        self.pipeline, self.users, self.weight, self.kept, self.at = pipeline, examples.users, weight, kept, 0
        self.exclude_seen = exclude_seen

    def scores(self, histories: Sequences) -> np.ndarray:
        """Retrieval's scores, and above them the candidates, by the rank of their final score; equal ones stay equal.

        A candidate whose score an item that was left out has too is none: the order of rows must not favour it.
        """
        start, self.at = self.at, self.at + len(histories)
        pipeline, retrieval = self.pipeline, self.pipeline.retrieval
        if retrieval.complete:
            scores = np.array(retrieval.scores(histories), np.float32)
            if self.exclude_seen:
                scores[histories.owners, histories.items] = -np.inf
        else:  # what a search finds, as `rank` asks it
            n_items = pipeline.dataset.n_items
            rows, values = retrieval.best(histories, min(pipeline.candidates + 1, n_items), None, self.exclude_seen)
            scores = np.full((len(histories), n_items), -np.inf, np.float32)
            owners, at = np.nonzero(rows >= 0)
            scores[owners, rows[owners, at]] = values[owners, at]
        if self.weight == 0:
            return scores
        if start not in self.kept:
            rows, values = top_k(scores, min(pipeline.candidates + 1, scores.shape[1]))
            if rows.shape[1] > pipeline.candidates:
                rows = np.where(values > values[:, -1:], rows, -1)
            self.kept[start] = rows, values, pipeline.logits(histories, rows, self.users[start : self.at])
        rows, values, logits = self.kept[start]
        final = pipeline.blend(np.where(rows >= 0, values, -np.inf), logits, self.weight)
        order = np.argsort(final, axis=1, kind="stable")
        ranked = np.take_along_axis(final, order, 1)
        place = np.zeros(final.shape, np.float32)
        steps = np.concatenate([np.ones((len(final), 1), bool), ranked[:, 1:] != ranked[:, :-1]], 1).cumsum(1)
        np.put_along_axis(place, order, steps.astype(np.float32), 1)
        finite = np.where(np.isfinite(scores), scores, -np.inf).max(1, keepdims=True)
        owners, at = np.nonzero(rows >= 0)
        scores[owners, rows[owners, at]] = (np.maximum(finite, 0) + place)[owners, at]
        return scores


def measured(pipeline: Pipeline, examples: Any, counts: np.ndarray) -> dict[str, Any]:
    """Retrieval alone, the ranker alone on what was retrieved, and both: metrics of each and what ranking adds, with intervals."""
    weights = dict(zip(STAGES, (0.0, math.inf, pipeline.weight)))
    found: dict[str, dict[str, Evaluation]] = {stage: {} for stage in STAGES}
    for history in PROTOCOLS:
        stages: dict[int, tuple[np.ndarray, ...]] = {}
        for stage, weight in weights.items():
            found[stage][history] = evaluated(pipeline, examples, weight, counts, history, stages, (5, 10, 20), whole=True)
    compared = [
        {"model": stage, "baseline": "retrieval"}
        | paired_bootstrap(found[stage][history], found["retrieval"][history], metric, 2000, history=history).dict()
        for stage in STAGES[1:]
        for metric in ("ndcg@10", "recall@10")
        for history in PROTOCOLS
    ]
    metrics = {stage: {history: each.metrics[history] for history, each in own.items()} for stage, own in found.items()}
    return {"users": len(examples), "metrics": metrics, "comparisons": compared}


def evaluated(pipeline, examples, weight, counts, history, stages, ks=(10,), whole=False) -> Any:
    """One stage's Evaluation (`whole`), or its metrics, with the history in the ranking or taken out before anything is retrieved."""
    stage = Stage(pipeline, examples, weight, history == "removed", stages)
    found = evaluate(stage, examples, pipeline.dataset.n_items, counts, ks=ks, history=history)
    return found if whole else found.metrics[history]


def evaluate_pipeline(folder: str | Path) -> dict[str, Any]:
    """The test's figures again, from the folder alone. Raises RunError."""
    pipeline = Pipeline.load(folder)
    split = split_of(pipeline.dataset, pipeline.retrieval.recipe)
    return read_pipeline(folder) | measured(pipeline, split.test, split.train_counts(pipeline.dataset.n_items))
