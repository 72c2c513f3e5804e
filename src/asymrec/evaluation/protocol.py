"""One pass over the examples: every item is scored for every user, and both protocols, all metrics and all slices come from it.

`kept`: what the user has already seen stays in the ranking and may take places (the literature on Amazon's sets).
`removed`: the items of the history are taken out first (what a shop would show).

Code-level hits (given `groups`, items that share their code id): the ranking is of code ids instead of items, an id standing where its
best item does, and a user's targets are the ids of its target items. What is left to do after the id is found, to tell its items
apart, is not asked: that is why papers' code-level figures are higher. Beside the item-level ones they show the difference.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from asymrec.errors import EvaluationError
from asymrec.evaluation import metrics as m
from asymrec.evaluation.slices import all_slices, within

PROTOCOLS = ("kept", "removed")
SAMPLE = (512, 8192)  # users and items whose scores the effective rank is taken of


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `metrics` holds plain numbers, ready for JSON; the arrays hold every user's ranks.

    users: int32 [n]; offsets: int64 [n + 1] and targets: int32 [t], the targets of each user; ranks: protocol -> int32 [t], from 1,
    `metrics.MISSED` for a target that is not in the ranking.
    """

    metrics: dict[str, Any]
    users: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray
    ranks: dict[str, np.ndarray] = field(repr=False)

    def per_user(self, metric: str, history: str = "kept") -> np.ndarray:
        """A metric such as "ndcg@10" (any k) of every user: float64 [n]."""
        if history not in self.ranks:
            raise EvaluationError(f"this evaluation has no ranks with the history {history}, only {', '.join(self.ranks)}")
        name, _, k = metric.partition("@")
        if name not in ("recall", "ndcg", "mrr") or not k.isdecimal() or int(k) < 1:
            raise EvaluationError(f"'{metric}' is no metric of a user: recall@k, ndcg@k or mrr@k")
        return m.per_user(self.ranks[history], self.offsets, (int(k),))[metric]

    def save(self, path: str | Path) -> None:
        """One Parquet file: a line a user, its targets and their ranks as lists; the metrics in the schema."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from asymrec.files import atomic

        offsets = pa.array(self.offsets, pa.int32())
        columns = {"user": pa.array(self.users)} | {
            name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in (("targets", self.targets), *self.ranks.items())
        }
        table = pa.table(columns).replace_schema_metadata({"asymrec.metrics": json.dumps(self.metrics)})
        with atomic(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """What `save` wrote. Raises EvaluationError: no such file, or another kind of file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            metrics = json.loads(table.schema.metadata[b"asymrec.metrics"])
            lists = {name: table[name].combine_chunks() for name in ("targets", *PROTOCOLS) if name in table.column_names}
            users = table["user"].to_numpy()
            sizes = table["targets"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        except OSError as error:
            raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from None
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            raise EvaluationError(f"{path} does not hold the ranks of an evaluation") from None
        flat = {name: column.flatten().to_numpy(zero_copy_only=False) for name, column in lists.items()}
        return cls(metrics, users, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), flat.pop("targets"), flat)


def evaluate(
    recommender: Any,
    examples: Any,
    n_items: int,
    train_counts: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    ks: Sequence[int] = (5, 10, 20),
    batch: int = 512,
    history: Literal["both", "kept", "removed"] = "both",
    memory: int = 256 << 20,
) -> Evaluation:
    """Ranks the whole catalogue for every example.

    recommender: anything with `scores(histories: Sequences) -> float [b, n_items]`, numpy or torch; -inf says "never".
    examples: `Examples`; a target that a row holds twice counts once. train_counts: int [n_items], training interactions an item.
    groups: int [n_items], for code-level hits as well: items of one number share their code id, see `Recommender.code_groups`.
    batch: users scored at once, fewer where their scores would take more than `memory` bytes.

    The metrics: {"users", "items", "targets", "kept": {"recall@5": ..., "coverage@5": ..., "missed": ...}, "removed": {...},
    "code_level": {"ids", "kept": {...}, "removed": {...}} (with groups alone),
    "slices": {"popularity": {"head": {"users", "items", "interactions", "kept": {...}, "removed": {...}}, ...},
    "warmth": {"warm", "cold", "cold_only"}, "frequency": {"0-2", ..., "21+"}, "history": {"1-5": {"users", "kept", "removed"}, ...}},
    "effective_rank", "scoring_seconds", "seconds"}.
    "missed" counts targets that were not in the ranking: seen before (removed), or scored -inf.
    Raises EvaluationError: no examples, an example without target, NaN or wrong-shaped scores, users twice, counts or groups that do
    not fit.
    """
    from asymrec.retrieval.exact import top_k

    started = time.perf_counter()
    train_counts = np.asarray(train_counts, np.int64)
    protocols, ks = (PROTOCOLS if history == "both" else (history,)), tuple(sorted(set(ks)))
    _check(examples, n_items, train_counts, protocols, ks)
    targets = distinct(examples.targets)
    n = len(examples.users)
    rows = max(1, min(batch, memory // (4 * n_items)))
    ranks = {protocol: np.empty(len(targets.items), np.int32) for protocol in protocols}
    cold, cold_ranks = train_counts == 0, {protocol: [np.zeros(0, np.int32)] for protocol in protocols}
    codes = None if groups is None else _CodeLevel(groups, targets, n_items, protocols)
    shown = {protocol: {k: np.zeros(n_items, np.int64) for k in ks} for protocol in protocols}
    sample_users = np.unique(np.linspace(0, n - 1, min(n, SAMPLE[0])).astype(np.int64))
    sample_items = np.unique(np.linspace(0, n_items - 1, min(n_items, SAMPLE[1])).astype(np.int64))
    sample, scoring = [], 0.0
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        histories = examples.histories.take(np.arange(start, stop))
        clock = time.perf_counter()
        scores = m.as_scores(recommender.scores(histories))
        scoring += time.perf_counter() - clock
        if scores.shape != (stop - start, n_items):
            raise EvaluationError(f"expected scores [{stop - start}, {n_items}], got {list(scores.shape)}")
        span = slice(targets.offsets[start], targets.offsets[stop])
        part = SimpleNamespace(offsets=targets.offsets[start : stop + 1], items=targets.items)
        try:
            placed = dict(zip(PROTOCOLS, m.kept_and_removed(scores, part, histories)))
        except EvaluationError as error:
            raise EvaluationError(f"examples {start} to {stop - 1}: {error}") from None
        if cold.any():
            for protocol, values in zip(PROTOCOLS, within(scores, part, histories, cold)):
                if protocol in protocols:
                    cold_ranks[protocol].append(values)
        chosen = sample_users[(sample_users >= start) & (sample_users < stop)] - start
        sample.append(scores[np.ix_(chosen, sample_items)])
        for protocol in protocols:
            ranks[protocol][span] = placed[protocol]
            allowed = _allowed(scores, protocol, histories)
            lists = top_k(allowed, min(ks[-1], n_items))[0]
            for k in ks:
                shown[protocol][k] += m.exposure(lists, n_items, k)
            if codes:
                codes.place(protocol, allowed, start, stop)
    sample = np.concatenate(sample)
    found: dict[str, Any] = {"users": n, "items": n_items, "targets": len(targets.items)}
    for protocol in protocols:
        found[protocol] = m.means(ranks[protocol], targets.offsets, ks) | {"missed": int((ranks[protocol] == m.MISSED).sum())}
        for k, counts in shown[protocol].items():
            found[protocol][f"coverage@{k}"] = m.coverage(counts)
            found[protocol][f"novelty@{k}"] = m.novelty(counts, train_counts)
            found[protocol][f"gini@{k}"] = m.gini(counts)
    if codes:
        found["code_level"] = codes.found(ks)
    cold_ranks = {protocol: np.concatenate(parts) for protocol, parts in cold_ranks.items()}
    found["slices"] = all_slices(ranks, cold_ranks, targets, train_counts, np.diff(examples.histories.offsets), ks)
    found["effective_rank"] = m.effective_rank(sample) if np.isfinite(sample).all() else None
    found |= {"scoring_seconds": scoring, "seconds": time.perf_counter() - started}
    return Evaluation(found, np.asarray(examples.users, np.int32), targets.offsets, targets.items.astype(np.int32), ranks)


class _CodeLevel:
    """Ranks of code ids, gathered batch by batch."""

    def __init__(self, groups: np.ndarray, targets: Any, n_items: int, protocols: tuple[str, ...]):
        groups = np.asarray(groups)
        if groups.shape != (n_items,) or groups.dtype.kind not in "iu":
            raise EvaluationError(f"groups must be integers [{n_items}], not {groups.dtype} {list(groups.shape)}")
        ids, self.groups = np.unique(groups, return_inverse=True)
        self.n = len(ids)
        self.targets = distinct(SimpleNamespace(offsets=targets.offsets, items=self.groups[targets.items]))
        self.ranks = {protocol: np.empty(len(self.targets.items), np.int32) for protocol in protocols}

    def place(self, protocol: str, scores: np.ndarray, start: int, stop: int) -> None:
        offsets = self.targets.offsets[start : stop + 1]
        part = SimpleNamespace(offsets=offsets, items=self.targets.items)
        self.ranks[protocol][offsets[0] : offsets[-1]] = m.ranks(m.best_of_groups(scores, self.groups, self.n), part)

    def found(self, ks: tuple[int, ...]) -> dict[str, Any]:
        return {"ids": self.n} | {protocol: m.means(ranks, self.targets.offsets, ks) for protocol, ranks in self.ranks.items()}


def _check(examples: Any, n_items: int, train_counts: np.ndarray, protocols: tuple[str, ...], ks: tuple[int, ...]) -> None:
    n = len(examples.users)
    if not n:
        raise EvaluationError("there is no example to evaluate")
    if len(np.unique(examples.users)) < n:
        raise EvaluationError("a user has two examples")
    if (np.diff(examples.targets.offsets) < 1).any():
        raise EvaluationError(f"example {int((np.diff(examples.targets.offsets) < 1).argmax())} has no target")
    if train_counts.shape != (n_items,):
        raise EvaluationError(f"{train_counts.size} training counts for {n_items} items")
    if not set(protocols) <= set(PROTOCOLS):
        raise EvaluationError(f"history must be both, kept or removed, not '{protocols[0]}'")
    if not ks or min(ks) < 1:
        raise EvaluationError(f"ks must be numbers from 1, not {list(ks)}")


def distinct(sequences: Any) -> Any:
    """Each row without repeats, first mention kept, as CSR."""
    sizes = np.diff(sequences.offsets)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    items = np.asarray(sequences.items)[sequences.offsets[0] : sequences.offsets[-1]]
    keys = rows * (np.int64(items.max(initial=0)) + 1) + items
    first = np.sort(np.unique(keys, return_index=True)[1])
    sizes = np.bincount(rows[first], minlength=len(sizes))
    return SimpleNamespace(offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), items=items[first])


def _allowed(scores: np.ndarray, protocol: str, histories: Any) -> np.ndarray:
    """The scores that compete: all, or with those of seen items at -inf."""
    if protocol == "kept":
        return scores
    scores = scores.copy()
    seen = histories.items[histories.offsets[0] : histories.offsets[-1]]
    scores[np.repeat(np.arange(len(scores)), np.diff(histories.offsets)), seen] = -np.inf
    return scores
