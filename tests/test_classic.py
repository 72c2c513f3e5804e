"""The models without training against plain loops, scikit-learn and the definition of the ridge regression."""

import os

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from asymrec import EASE, Counts, Dataset, ItemKNN, machine
from asymrec.data import Sequences, pairs
from asymrec.errors import ConfigError, DataError
from asymrec.models import classic

HISTORIES = Sequences.of([[3, 1, 4, 1, 5], [9], [], [2, 6]])


@pytest.fixture(scope="module")
def dataset():
    """60 users, 30 items, popular and rare ones, repetitions inside a user; item 29 is only ever a user's last."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 25, 60)
    items = (29 * rng.random(lengths.sum()) ** 2).astype(int)
    items[np.cumsum(lengths)[:3] - 1] = 29
    users = np.repeat(np.arange(60), lengths)
    return Dataset.read(pa.table({"user": users, "item": items, "timestamp": np.arange(len(users))}), pa.table({"item": np.arange(30)}))


def binary(dataset):
    """The user-item matrix of training: float64 [users, items]."""
    train = dataset.split().train
    seen = np.zeros((len(train), dataset.n_items))
    seen[train.owners, train.items] = 1
    return seen


def summed(table, recency, dataset):
    """Scores of HISTORIES by their definition."""
    scores = np.zeros((len(HISTORIES), len(table)))
    for row in range(len(HISTORIES)):
        for age, item in enumerate(HISTORIES[row][::-1]):
            scores[row] += recency**age * table[item]
        if not scores[row].any():  # nothing to go by
            scores[row] = dataset.split().train_counts(dataset.n_items)
    return scores


def followers(dataset, window=50, gap=0.9, discount=0.3, directed=True):
    train, table = dataset.split().train, np.zeros((dataset.n_items, dataset.n_items))
    for row in range(len(train)):
        history = train[row]
        for i, a in enumerate(history):
            for j in range(i + 1, min(i + window, len(history) - 1) + 1):
                table[a, history[j]] += gap ** (j - i - 1)
                if not directed:
                    table[history[j], a] += gap ** (j - i - 1)
    n = np.bincount(train.items, minlength=dataset.n_items) + 1.0
    return table / np.outer(n, n) ** discount


@pytest.mark.parametrize("settings", [{}, {"directed": False}, {"window": 3, "gap": 0.5, "discount": 0.0}, {"window": 1}])
def test_counts_are_what_loops_count(dataset, settings):
    model, table = Counts(**settings).fit(dataset), followers(dataset, **settings)
    np.testing.assert_allclose(model.table.toarray(), table, rtol=1e-6)
    np.testing.assert_allclose(model.scores(HISTORIES), summed(table, 0.6, dataset), rtol=1e-5)
    np.testing.assert_allclose(Counts(recency=1, **settings).fit(dataset).scores(HISTORIES), summed(table, 1, dataset), rtol=1e-5)


def test_counts_of_long_histories_come_in_pieces(dataset, monkeypatch):
    whole = Counts().fit(dataset).table
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 100)
    np.testing.assert_allclose(Counts().fit(dataset).table.toarray(), whole.toarray(), rtol=1e-6)


def test_plain_itemknn_is_the_cosine(dataset):
    similar = cosine_similarity(binary(dataset).T)
    np.fill_diagonal(similar, 0)
    model = ItemKNN(recency=1).fit(dataset)
    np.testing.assert_allclose(model.scores(HISTORIES), summed(similar, 1, dataset), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ItemKNN().fit(dataset).scores(HISTORIES), summed(similar, 0.8, dataset), rtol=1e-5, atol=1e-6)


def test_itemknn_keeps_the_nearest(dataset):
    similar = cosine_similarity(binary(dataset).T)
    np.fill_diagonal(similar, 0)
    kept = ItemKNN(neighbours=4).fit(dataset).table.toarray()
    assert ((kept > 0).sum(1) == np.minimum((similar > 0).sum(1), 4)).all()
    np.testing.assert_allclose(np.sort(kept, axis=1)[:, -4:], np.sort(similar, axis=1)[:, -4:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [1024, 7])
def test_ease_is_a_ridge_regression_of_each_column_on_the_others(dataset, monkeypatch, rows):
    monkeypatch.setattr(classic, "ROWS_AT_ONCE", rows)
    seen, table = binary(dataset), np.zeros((30, 30))
    for item in range(30):
        others = np.delete(seen, item, axis=1)
        weights = np.linalg.solve(others.T @ others + 20 * np.eye(29), others.T @ seen[:, item])
        table[np.arange(30) != item, item] = weights
    model = EASE(ridge=20, recency=0.7).fit(dataset)
    assert model.table.dtype == np.float32
    np.testing.assert_allclose(model.table, table, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.scores(HISTORIES), summed(table, 0.7, dataset), rtol=1e-4, atol=1e-5)


def test_ease_says_what_memory_it_lacks(dataset, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 1 << 10)
    with pytest.raises(DataError, match=r"ease needs 0.0 GiB for 30 items, 0.0 GiB are free"):
        EASE().fit(dataset)
    assert 9 < classic._memory(50_000) / 2**30 < 11
    monkeypatch.setattr(machine, "free_memory", lambda: None)  # a system that does not tell
    EASE().fit(dataset)


def test_free_memory_is_part_of_all_memory():
    assert 0 < machine.free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_ridge_that_float32_loses_is_refused():
    users = np.repeat(np.arange(4), 5)
    items = np.tile(np.arange(5), 4)
    dataset = Dataset.read(pa.table({"user": users, "item": items, "timestamp": np.arange(20)}), pa.table({"item": np.arange(5)}))
    with pytest.raises(ConfigError, match=r"classic.ridge.*1e-07 is too small"):
        EASE(ridge=1e-7).fit(dataset)
    EASE(ridge=0.1).fit(dataset)
