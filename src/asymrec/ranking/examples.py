"""Impressions: a user was shown an item; what was there before, and what came of it.

Where the interactions have a label column, each is an impression. Where they have none, each is a positive, and `negatives` items are
drawn beside it, by the power of their counts in training (0: evenly), or a list of candidates is given.

A history is strictly of the past: what the user did at earlier times than the impression, not at the same one. Negatives are not
among what the user did at that time (`avoid=step`), nor before it (`avoid=past-and-step`), or not among anything the user ever did
(`avoid=user`, which knows the future, and is how NFM and AFM made their sets of Frappe: arXiv 1708.05027, 1708.04617). Where users take
items again, negatives that are never of the past would tell by that alone what a positive is; where they do not, negatives of the past
would. So by default the data decide: `step` where more than `REPEATED` of the positives are repeats. `past` is not the time itself.

Splits: `user`, the latest share of each user's interactions for the test, the share before for validation; `time`, one point in time
for all; `random`, rows by chance, for data without time: the parts are decided when the negatives are there, as NFM's are, so that these
are drawn by counts in all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field as Setting

from asymrec.config import Section
from asymrec.errors import ConfigError, DataError
from asymrec.ranking.encoders import as_numbers
from asymrec.ranking.schema import Schema, Tables

REPEATED = 0.01  # share of the positives
REDRAWS = 100  # rounds in which negatives that are not allowed are drawn anew


class ExamplesConfig(Section):
    """How impressions are made and split."""

    split_by: Literal["user", "time", "random"] = Setting(
        "user", description="user: the latest of each are test, those before validation; time: one cut for all"
    )
    validation_share: float = Setting(0.1, gt=0, lt=0.5, description="of the impressions, or of each user's; it chooses the epoch")
    test_share: float = Setting(0.1, gt=0, lt=0.5, description="looked at once, at the end")
    negatives: int = Setting(4, ge=1, description="without labels: items drawn for each positive")
    power: float = Setting(0.75, ge=0, description="of an item's count in training, its chance to be drawn; 0: all alike")
    avoid: Literal["auto", "step", "past", "past-and-step", "user"] = Setting("auto", description="which items of the user are not drawn")
    train_latest: int = Setting(0, ge=0, description="of a user's training interactions the latest so many are asked about; 0: all")
    test_latest: int = Setting(0, ge=0, description="the same of validation and of test")
    seed: int = Setting(0, ge=0, description="of everything that is drawn")


@dataclass(frozen=True, eq=False)
class Impressions:
    """n impressions over the sequences of `tables.dataset`.

    users, items: int32 [n], rows. begins, ends: int64 [n]; the history is the flat interactions begins[i] up to ends[i].
    context: a table of n rows, or None. labels: float32 [n, tasks], or None where they are not known.
    """

    tables: Tables
    users: np.ndarray
    items: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    context: pa.Table | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Impressions:
        """The impressions `rows` (int [m]), in that order."""
        context = None if self.context is None else self.context.take(pa.array(rows))
        labels = None if self.labels is None else self.labels[rows]
        parts = (part[rows] for part in (self.users, self.items, self.begins, self.ends))
        return Impressions(self.tables, *parts, context, labels)

    @classmethod
    def of(cls, tables: Tables, users: np.ndarray, candidates: list[np.ndarray], context: pa.Table | None = None) -> Impressions:
        """Candidates (int rows, a list a user) to rank for users after all that the data set holds of them.

        context: one row a user. Raises ConfigError: lists that do not fit the users, rows that are not there.
        """
        for what, rows, n in (("user", [users], tables.dataset.n_users), ("item", candidates, tables.dataset.n_items)):
            if any(len(part) and not 0 <= np.min(part) <= np.max(part) < n for part in rows):
                raise ConfigError(f"{what} rows must be 0 to {n - 1}")
        if len(users) != len(candidates) or (context is not None and context.num_rows != len(users)):
            raise ConfigError("candidates and context want one entry a user")
        owners = np.repeat(np.arange(len(users)), [len(part) for part in candidates])
        items = np.concatenate(candidates).astype(np.int32) if len(candidates) else np.empty(0, np.int32)
        rows, offsets = np.asarray(users, np.int32)[owners], tables.dataset.sequences.offsets
        part = None if context is None else context.take(pa.array(owners))
        return cls(tables, rows, items, offsets[:-1][rows], offsets[1:][rows], part)


@dataclass(frozen=True, eq=False)
class Parts:
    train: Impressions
    validation: Impressions
    test: Impressions


def make(tables: Tables, schema: Schema, config: ExamplesConfig | None = None) -> Parts:
    """Every interaction as an impression, split. Raises DataError: no times where they are needed, a part without impressions."""
    config = config or ExamplesConfig()
    sequences = tables.dataset.sequences
    owners = sequences.owners
    part = _parts(tables, config)
    labels = np.ones((len(owners), max(1, len(schema.labels))), np.float32)
    for task, label in enumerate(schema.labels):
        column = as_numbers(label.column, tables.column("context", label.column))
        labels[:, task] = np.where(np.isnan(column), np.nan, column >= label.at_least)
    context = None
    if schema.context:
        context = pa.table({field.name: tables.column("context", field.name) for field in schema.context})
    users, begins, steps = owners.astype(np.int32), sequences.offsets[:-1][owners], _steps(tables)
    every = Impressions(tables, users, sequences.items, begins, np.searchsorted(steps, steps), context, labels)
    random = np.random.default_rng(config.seed)
    counts = np.bincount(every.items[part == 0], minlength=tables.dataset.n_items)
    if config.train_latest or config.test_latest:
        asked = np.flatnonzero(_latest(owners, part, config))
        every, part = every.take(asked), part[asked]
    if not (known := ~np.isnan(every.labels).any(1)).all():  # what came of it is not known: a behaviour, but no impression
        every, part = every.take(np.flatnonzero(known)), part[known]
    if not schema.labels:
        every, part = _with_negatives(every, part, counts, config, random)
    if config.split_by == "random":
        part = _shares(random.permutation(len(every)), len(every), config)
    found = [every.take(np.flatnonzero(part == number)) for number in range(3)]
    for name, one in zip(("training", "validation", "test"), found):
        if not len(one):
            raise DataError(f"no impressions in the {name} part: other shares may help")
    return Parts(*found)


def _parts(tables: Tables, config: ExamplesConfig) -> np.ndarray:
    """int8 [interactions]: 0 training, 1 validation, 2 test."""
    sequences = tables.dataset.sequences
    total = len(sequences.items)
    if config.split_by == "user":
        place = np.arange(total) - sequences.offsets[:-1][sequences.owners]
        return _shares(place, sequences.lengths[sequences.owners], config)
    if config.split_by == "time":
        if sequences.times is None:
            raise DataError("split by time: the interactions have no times; split by user, or at random")
        earlier = np.searchsorted(np.sort(sequences.times), sequences.times)  # equal times fall on one side
        return _shares(earlier, total, config)
    return np.zeros(total, np.int8)  # decided when the negatives are there


def _shares(place: np.ndarray, of: np.ndarray | int, config: ExamplesConfig) -> np.ndarray:
    test = place >= np.floor(np.asarray(of) * (1 - config.test_share))
    validation = place >= np.floor(np.asarray(of) * (1 - config.test_share - config.validation_share))
    return (validation.astype(np.int8) + test).astype(np.int8)


def _steps(tables: Tables) -> np.ndarray:
    """int64 [interactions], ascending: those of one user at one time have the same number. A history ends where its step begins."""
    sequences = tables.dataset.sequences
    if sequences.times is None:
        return np.arange(len(sequences.items))
    return np.cumsum(np.r_[False, (np.diff(sequences.times) != 0) | (np.diff(sequences.owners) != 0)])


def _latest(owners: np.ndarray, part: np.ndarray, config: ExamplesConfig) -> np.ndarray:
    """bool [interactions]: whether it is among its user's latest of its part. Histories are not cut by this."""
    if config.split_by == "random":
        raise ConfigError("examples: train_latest and test_latest want a split in time, not split_by=random")
    most = np.array([limit or len(owners) for limit in (config.train_latest, config.test_latest, config.test_latest)])
    # parts follow one another in a user's sequence, so each is one run of places
    after = np.flatnonzero(np.r_[(np.diff(owners) != 0) | (np.diff(part) != 0), True]) + 1
    ends = np.repeat(after, np.diff(np.r_[0, after]))
    return ends - np.arange(len(owners)) <= most[part]


def _with_negatives(every: Impressions, part: np.ndarray, counts: np.ndarray, config: ExamplesConfig, random: np.random.Generator):
    """Each positive, and after it its negatives with label 0 and the rest alike. counts: of every item in training."""
    n_items = every.tables.dataset.n_items
    chances = np.cumsum(np.maximum(counts, 1e-9) ** config.power)
    rows = np.repeat(np.arange(len(every)), config.negatives)
    users = every.users[rows].astype(np.int64)
    sequences = every.tables.dataset.sequences
    pairs = sequences.owners * n_items + sequences.items
    known, first = np.unique(pairs, return_index=True)  # the first place at which a user did something with an item
    steps = _steps(every.tables)
    own = steps[every.ends]
    at_once = np.unique(steps * n_items + sequences.items)
    again = first[np.searchsorted(known, every.users.astype(np.int64) * n_items + every.items)] < every.ends
    avoid = config.avoid if config.avoid != "auto" else "step" if again.mean() > REPEATED else "past-and-step"
    until = every.ends if avoid == "past" else np.searchsorted(steps, own, side="right")
    drawn, open_ = np.empty(len(rows), np.int64), np.arange(len(rows))
    for _ in range(REDRAWS):
        found = np.searchsorted(chances, random.random(len(open_)) * chances[-1], side="right").clip(max=n_items - 1)
        drawn[open_] = found
        if avoid == "step":
            wanted = own[rows[open_]] * n_items + found
            done = at_once[np.searchsorted(at_once, wanted).clip(max=len(at_once) - 1)] == wanted
        else:
            wanted = users[open_] * n_items + found
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            done = known[at] == wanted
            if avoid != "user":
                done &= first[at] < until[rows[open_]]
        open_ = open_[done | (found == every.items[rows[open_]])]
        if not len(open_):
            break
    keep = np.ones(len(rows), bool)
    keep[open_] = False  # a user who knows everything
    rows, drawn = rows[keep], drawn[keep]
    order = np.argsort(np.r_[np.arange(len(every)), rows], kind="stable")
    whole = every.take(np.r_[np.arange(len(every)), rows][order])
    items = np.r_[every.items, drawn].astype(np.int32)[order]
    labels = np.r_[every.labels, np.zeros((len(rows), every.labels.shape[1]), np.float32)][order]
    return replace(whole, items=items, labels=labels), np.r_[part, part[rows]][order]
