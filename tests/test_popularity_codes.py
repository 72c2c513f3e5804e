"""Codes of how often and since when an item was taken, by hand and in AsymRec."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SETTINGS, as_of_before, held_out, tables

from asymrec import AsymRec, Dataset, Recommender, SASRec, SASRecContent
from asymrec.data import Sequences
from asymrec.errors import ConfigError
from asymrec.models.popular import CODES
from asymrec.quantize.popularity import LEVELS, PARTS, popularity_codes

SHORT = SETTINGS | {"epochs": 1}
H = SETTINGS["facets"] * SETTINGS["levels"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset.read(*tables())


@pytest.fixture(scope="module")
def model(dataset) -> AsymRec:
    return AsymRec(**SHORT).fit(dataset)


def test_codes_by_hand():
    train = Sequences.of([[0, 1, 0], [2, 0, 3], [3]], [[10, 20, 30], [40, 50, 60], [70]])
    codes, coming = popularity_codes(train, 5, 4)
    assert codes[:, 0].tolist() == [3, 2, 2, 3, 2]  # 2 log2(1 + 3) = 4 is past the last; item 4 was never taken: as the middle one
    assert codes[:4, 1:].tolist() == [[0], [1], [2], [3]]  # first taken at 10, 20, 40, 60
    assert codes[4].tolist() == coming.tolist() == [2, 3]
    fine, coming = popularity_codes(train, 5, 256)
    assert fine[:, 1:].tolist() == [[0, 0], [10, 85], [21, 170], [31, 255], [31, 255]] and coming.tolist() == [2, 31, 255]
    plain, coming = popularity_codes(Sequences.of([[0, 1, 0], [2]]), 3, 256)
    assert plain.tolist() == [[3], [2], [2]] and coming.tolist() == [2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(-(2**61), 2**61)), min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(2, 300),
)
def test_codes_are_in_range_and_in_order(users, words):
    users = [sorted(user, key=lambda pair: pair[1]) for user in users]
    train = Sequences.of([[item for item, _ in user] for user in users], [[time for _, time in user] for user in users])
    codes, coming = popularity_codes(train, 10, words)
    parts = sorted({min(words, most) for most in PARTS})
    assert codes.dtype == coming.dtype == np.int32 and codes.shape == (10, 1 + len(parts)) and (codes >= 0).all()
    assert (codes < [min(words, LEVELS), *parts]).all()
    counts = np.bincount(train.items, minlength=10)
    assert (codes[counts == 0] == coming).all()
    taken, first = np.flatnonzero(counts), np.array([min((t for u in users for i, t in u if i == item), default=0) for item in range(10)])
    for values, column in ((counts, 0), (first, 1), (first, -1)):
        order = taken[np.argsort(values[taken], kind="stable")]
        assert (np.diff(codes[order, column]) >= 0).all()


def test_they_are_of_training_alone(dataset):
    """Targets of validation and test may be any: the codes stay."""
    interactions, items = tables()
    moved = np.where(held_out(interactions), 100, interactions["item_id"].to_numpy())
    other = Dataset.read(interactions.set_column(1, "item_id", pa.array(moved)), items)
    found = [popularity_codes(data.split().train, data.n_items, 256)[0] for data in (dataset, other)]
    np.testing.assert_array_equal(*found)


def test_asymrec_reads_and_writes_them(model, dataset):
    codes, _ = popularity_codes(dataset.split().train, dataset.n_items, SETTINGS["codewords"])
    assert model.catalogue()[1].shape[1] == H  # the id is of the content
    np.testing.assert_array_equal(model._codes()[:, H:], codes)
    rows = torch.arange(dataset.n_items)
    with torch.inference_mode():
        items, read, embedding = model.network.head.vectors(rows), model.network.read(rows), model.network.head.embeddings()
        expected = sum(embedding[at][model._codes()[:, at].long()] for at in range(H + 2))
        torch.testing.assert_close(items, expected)
        model.network.head.embedding[H:] += 1.0
        assert not torch.equal(model.network.read(rows), read)
        model.network.head.embedding[H:] -= 1.0


@pytest.mark.parametrize("kind", [AsymRec, SASRecContent])
def test_new_items_are_young_and_middling(kind, dataset, tmp_path):
    model = kind(**SHORT).fit(dataset)
    items = dataset.items.slice(3, 1)
    new = items.set_column(0, "item_id", pa.array([900], items.schema.field("item_id").type))
    larger = model.with_items(new)
    coming = popularity_codes(dataset.split().train, dataset.n_items, model._told())[1]
    assert larger._prepared[CODES][-1].tolist() == coming.tolist() and len(model._prepared[CODES]) == dataset.n_items
    larger.save(tmp_path / "run")
    again, histories = Recommender.load(tmp_path / "run"), dataset.sequences.take(np.arange(9))
    np.testing.assert_allclose(again.scores(histories), larger.scores(histories), atol=1e-5)
    assert again._prepared[CODES].equal(larger._prepared[CODES])


def test_without_times_there_is_popularity_alone(dataset):
    interactions, items = tables()
    ordered = interactions.drop_columns("timestamp").append_column("position", pa.array(np.arange(len(interactions))))
    model = AsymRec(**SHORT).fit(Dataset.read(ordered, items))
    assert model._codes().shape[1] == H + 1


def test_sasrec_adds_them_to_its_items(dataset):
    model = SASRecContent(**SHORT).fit(dataset)
    table, codes = model.network.head.table, torch.from_numpy(popularity_codes(dataset.split().train, dataset.n_items, 256)[0])
    assert model._prepared[CODES].equal(codes) and codes.shape[1] == 3
    with torch.inference_mode():
        own = table.embedding.weight + table.content(table.vectors).float()
        torch.testing.assert_close(table(), own + sum(table.codes[at][codes[:, at].long()] for at in range(3)))
        torch.testing.assert_close(table(torch.tensor([5, 3])), table()[[5, 3]])
    assert CODES not in SASRec(**SHORT).fit(dataset).tensors()


@pytest.mark.parametrize("setting", [{"objective": "heads"}, {"write": "vectors"}, {"popularity_codes": False}])
def test_models_without_them(setting, dataset):
    model = AsymRec(**SHORT | setting).fit(dataset)
    assert model._codes().shape[1] == H and CODES not in model.tensors()


@pytest.mark.parametrize("kind", [AsymRec, SASRecContent])
def test_a_run_of_before_is_read(kind, dataset, tmp_path):
    model = kind(**SHORT, popularity_codes=False).fit(dataset)
    model.save(tmp_path)
    as_of_before(tmp_path, "popularity_codes: false")
    again, histories = Recommender.load(tmp_path), dataset.sequences.take(np.arange(9))
    assert not again.recipe.network.popularity_codes and again.recipe.network.codeword_map
    np.testing.assert_allclose(again.scores(histories), model.scores(histories), atol=1e-5)


def test_a_wrong_value_is_told():
    with pytest.raises(ConfigError, match="popularity_codes"):
        AsymRec(popularity_codes="often")
