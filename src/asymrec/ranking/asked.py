"""Impressions of what was retrieved: candidates after any histories, of users that are known or not; and what a ranker learns them from.

A ranker behind retrieval is asked which of the retrieved items comes next. It learns that from the training part alone: a positive is
one of a user's latest training interactions; beside it stand negatives, half drawn by popularity, half from what retrieval puts first
after the same history. Retrieval has learned these very interactions, so its score of a positive is far better here than it will be of
an item to come: the ranker does not see retrieval's scores, and how much either counts is chosen on the validation part (pipeline/).

A user field is nothing for whom nothing is known of; one training positive of ten is given so, so that the ranker learns to do without.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from asymrec.data import Sequences
from asymrec.data.dataset import Dataset
from asymrec.errors import ConfigError, DataError
from asymrec.ranking.examples import Impressions
from asymrec.ranking.schema import Field, Schema, Tables

POSITIVES, MOST = 32, 100_000  # of a user, the latest; together
NEGATIVES = 8  # beside each positive
POWER = 0.75  # of an item's count, its chance to be drawn
CODES = "codes_of_retrieval"  # column and field of an item's codes
UNKNOWN = 0.1  # share of the positives whose user is not told


class Asked(Tables):
    """Tables over histories of their own.

    Args:
        items: table of the items, by rows. users: table of the known users, and one line of nulls after them (see `with_nobody`).
        histories: n sequences. who: int [n], each history's line of `users`. actions: what was done with the histories' items, by column.
    """

    def __init__(self, items: pa.Table, users: pa.Table, histories: Sequences, who: np.ndarray, actions: dict[str, pa.Array]):
        self.users, self.who = users, np.asarray(who, np.int32)
        interactions = pa.table(actions) if actions else None
        self.dataset = SimpleNamespace(
            sequences=histories, items=items, n_items=items.num_rows, n_users=users.num_rows, interactions=interactions
        )

    def impressions(self, owners: np.ndarray, items: np.ndarray, labels: np.ndarray | None = None, ends: np.ndarray | None = None):
        """Item rows int [m] after the histories `owners` int [m], or after the flat interactions up to `ends`. labels: [m]."""
        offsets = self.dataset.sequences.offsets
        ends = offsets[1:][owners] if ends is None else ends
        labels = None if labels is None else np.asarray(labels, np.float32)[:, None]
        return Impressions(self, self.who[owners], np.asarray(items, np.int32), offsets[:-1][owners], ends, None, labels)


def with_nobody(users: pa.Table) -> pa.Table:
    """The users' table and a line of nulls."""
    known = users.cast(pa.schema([field.with_nullable(True) for field in users.schema]))
    return pa.concat_tables([known, pa.table({name: pa.nulls(1, users[name].type) for name in users.column_names})])


def actions_of(
    dataset: Dataset, schema: Schema, histories: Sequences, users: np.ndarray, own: np.ndarray | None = None
) -> dict[str, pa.Array]:
    """What was done with the items of histories, by the action's column; nulls where it is not known.

    users: int [n], rows of the data set, -1 for others. own: int [n], so many first items of a history are the data set's first of that
    user; by default all.
    """
    name = schema.history.action
    if name is None:
        return {}
    begins = dataset.sequences.offsets[:-1][np.maximum(users, 0)]
    place = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], histories.lengths)
    known = place < np.repeat(np.where(users < 0, 0, histories.lengths if own is None else own), histories.lengths)
    flat = np.where(known, np.repeat(begins, histories.lengths) + place, 0)
    return {name: pa.chunked_array([dataset.interactions[name].combine_chunks()]).take(pa.array(flat, mask=~known)).combine_chunks()}


def with_codes(items: pa.Table, codes: np.ndarray) -> pa.Table:
    """The items' table and their codes, int [n, n_codes]. Raises DataError: it has a column of that name."""
    _has_place(items)
    flat = pa.array(np.ascontiguousarray(codes, np.int32).reshape(-1))
    return items.append_column(CODES, pa.FixedSizeListArray.from_arrays(flat, codes.shape[1]))


def _has_place(items: pa.Table) -> None:
    if CODES in items.column_names:
        raise DataError(f"items: column '{CODES}' is there already")


def tables_with_codes(tables: Tables, run: str | Path) -> tuple[Tables, int]:
    """The tables with the codes that a run's model gave these items, -1 for an item that it does not know; and how many it knows.

    Raises RunError: no run. ConfigError: its model has no codes, knows none of the items, or its codes are made of interactions, among
    which are some that the ranker would be measured by.
    """
    from asymrec.models import Recommender
    from asymrec.models.both import BothViews

    model, dataset = Recommender.load(run), tables.dataset
    codes = model.catalogue()[1]
    if codes is None:
        raise ConfigError(f"{run}: model '{model.name}' gives items no codes")
    if isinstance(model, BothViews) or model.recipe.vectors.collaborative:
        raise ConfigError(f"{run}: its codes are made of interactions, some of them those that the ranker is tested on; see `pipeline fit`")
    rows = model.dataset.find_items(dataset.item_ids.to_pylist())
    if not (rows >= 0).any():
        raise ConfigError(f"{run} knows none of the items")
    found = with_codes(dataset.items, np.where((rows >= 0)[:, None], codes[rows], -1))
    return Tables(dataset.over(found), tables.users), int((rows >= 0).sum())


def schema_of(tables: Tables, codes: bool = False, asked: Schema | None = None) -> Schema:
    """What a ranker behind retrieval reads: users, items and behaviours. What an interaction says besides is not known beforehand.

    codes: the items' codes as well, see `with_codes`, which must have a place (DataError). asked: instead of what the tables suggest.
    Raises ConfigError: it has a context, or labels: here an item that was taken is a positive, one that was retrieved a negative.
    """
    if asked is not None and (asked.context or asked.labels):
        raise ConfigError("schema: a ranker behind retrieval has neither context nor labels; `asymrec rank fit` does")
    found = Schema.infer(tables).model_copy(update={"context": (), "labels": ()}) if asked is None else asked
    if not codes:
        return found
    _has_place(tables.dataset.items)
    return with_code_field(found)


def with_code_field(schema: Schema) -> Schema:
    """The schema and the items' codes, the column that `with_codes` adds."""
    return schema.model_copy(update={"item": (*schema.item, Field(name=CODES, kind="code"))})


def training_impressions(
    dataset: Dataset,
    items: pa.Table,
    users: pa.Table,
    schema: Schema,
    train: Sequences,
    train_users: np.ndarray,
    retrieve,
    seed: int,
) -> Impressions:
    """Labelled impressions of the training part.

    items, users: as a ranker reads them, users with a line of nulls at the end. train: sequences that begin as the data set's do, of the
    users `train_users`. retrieve: histories -> int32 [n, C], what retrieval puts first, -1 where there is nothing more.
    """
    random = np.random.default_rng(seed)
    lengths = train.lengths
    place = np.arange(len(train.items)) - np.repeat(train.offsets[:-1], lengths)
    owners = train.owners
    positives = np.flatnonzero((place > 0) & (place >= np.repeat(lengths, lengths) - POSITIVES))
    if len(positives) > MOST:
        positives = np.sort(random.permutation(positives)[:MOST])
    histories = train.between(train.offsets[:-1][owners[positives]], positives)
    lists = retrieve(histories)

    drawn = np.cumsum(np.bincount(train.items, minlength=dataset.n_items) ** POWER)
    count = NEGATIVES // 2
    popular = np.searchsorted(drawn, random.random((len(positives), count)) * drawn[-1], side="right").clip(max=dataset.n_items - 1)
    hard = np.take_along_axis(lists, random.integers(lists.shape[1], size=(len(positives), count)), 1)
    negatives = np.concatenate([popular, hard], 1)
    wrong = (negatives == train.items[positives][:, None]) | (negatives < 0)

    # the sequences twice: of their users, and of nobody
    twice = Sequences(np.r_[train.offsets, len(train.items) + train.offsets[1:]], np.r_[train.items, train.items])
    actions = actions_of(dataset, schema, train, train_users)
    both = {name: pa.chunked_array([column, column]).combine_chunks() for name, column in actions.items()}
    asked = Asked(items, users, twice, np.r_[train_users, np.full(len(train), users.num_rows - 1)], both)
    latest = np.r_[np.diff(owners[positives]) != 0, True]  # is told, so that every user is learned
    nobody = (random.random(len(positives)) < UNKNOWN) & ~latest
    places, streams = positives + nobody * len(train.items), owners[positives] + nobody * len(train)
    shown = np.concatenate([train.items[positives][:, None], negatives], 1)
    labels = np.zeros(shown.shape, np.float32)
    labels[:, 0] = 1
    keep = np.concatenate([np.ones((len(positives), 1), bool), ~wrong], 1)
    every = np.arange(len(positives)).repeat(NEGATIVES + 1).reshape(shown.shape)[keep]
    return asked.impressions(streams[every], shown[keep], labels[keep], places[every])
