"""Items that come after the fit: the models that can place them, and the clear refusal of the others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import SETTINGS, tables

from asymrec.data import Dataset
from asymrec.errors import DataError, PlacingError
from asymrec.models import MODELS, Recommender
from asymrec.models.growing import Growing

SHORT = SETTINGS | {"epochs": 1}
PLACING = {
    "asymrec": {},
    "asymrec heads": {"objective": "heads"},
    "asymrec vectors": {"write": "vectors", "read": "vectors"},
    "asymrec codes": {"read": "codes", "objective": "heads"},
    "sasrec+content": {},
    "fusion": {"parts": ["asymrec", "counts", "popularity"]},
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset.read(*tables())


@pytest.fixture(scope="module")
def fitted(dataset):
    known: dict[str, Recommender] = {}

    def fit(case: str) -> Recommender:
        if case not in known:
            known[case] = MODELS[case.split()[0]](**SHORT | PLACING.get(case, {})).fit(dataset)
        return known[case]

    return fit


def copies(dataset: Dataset, rows: list[int], first: int = 900) -> pa.Table:
    """Items that are in every column but the id as those of some rows."""
    items = dataset.items.take(rows)
    return items.set_column(0, "item_id", pa.array(range(first, first + len(rows)), items.schema.field("item_id").type))


@pytest.mark.parametrize("case", PLACING)
def test_new_items_are_read_and_found_without_a_fit(case, dataset, fitted, tmp_path):
    model, histories = fitted(case), dataset.sequences.take(np.arange(20))
    before = model.scores(histories)
    larger = model.with_items(copies(dataset, [3, 40])).with_items(copies(dataset, [77], 950))
    after = larger.scores(histories)
    assert after.shape == (20, dataset.n_items + 3) and np.isfinite(after).all()
    if case != "fusion":  # where shares are of all items
        np.testing.assert_allclose(after[:, : dataset.n_items], before, atol=1e-5)
    np.testing.assert_array_equal(model.scores(histories), before)
    assert larger.dataset.item_rows([900, 950]).tolist() == [120, 122]
    ids, _ = larger.recommend([[900, 901], [950]], k=5, only=[*range(100, 140), 900, 950])
    assert all(len(each) == 5 for each in ids)
    larger.save(tmp_path / "model")
    np.testing.assert_allclose(Recommender.load(tmp_path / "model").scores(histories), after, atol=1e-5)


def test_a_copy_of_an_item_is_scored_as_the_item(dataset, fitted):
    model = fitted("asymrec vectors")
    scores = model.with_items(copies(dataset, [3])).scores(dataset.sequences.take(np.arange(50)))
    unseen = ~np.array([3 in sequence for sequence in (dataset.sequences[user] for user in range(50))])
    np.testing.assert_allclose(scores[unseen, -1], scores[unseen, 3], atol=1e-4)


def test_codes_of_new_items_are_those_of_the_frozen_quantizer_and_distinct(dataset, fitted):
    model = fitted("asymrec")
    larger = model.with_items(copies(dataset, [3, 3, 40]))
    codes = larger.catalogue()[1]
    assert len(np.unique(codes, axis=0)) == len(codes) == 123
    np.testing.assert_array_equal(codes[:120], model.catalogue()[1])
    # the nearest free change of the original's codes
    assert (codes[120] != codes[3]).sum() <= 2 and (codes[122] != codes[40]).sum() <= 2


@pytest.mark.parametrize("name", ["sasrec", "rpg", "itemknn"])
def test_models_without_a_place_say_so(name, dataset):
    model = MODELS[name](**SHORT).fit(dataset)
    with pytest.raises(PlacingError, match=f"model '{name}' cannot place new items"):
        model.with_items(copies(dataset, [3]))


def test_what_cannot_be_placed(dataset, fitted):
    model = fitted("asymrec")
    with pytest.raises(DataError, match="item id 105 is there already"):
        model.with_items(copies(dataset, [3], first=105))
    with pytest.raises(DataError, match="no column 'colour'"):
        model.with_items(pa.table({"item_id": [900], "colour": ["red"]}))
    with pytest.raises(PlacingError, match="no vector"):
        model.with_items(pa.table({"item_id": [900]}))
    with pytest.raises(PlacingError, match="16 finite numbers"):
        model.with_items(pa.table({"item_id": [900], "vector": [[1.0, 2.0]]}))


def test_hashed_text_has_no_place(dataset):
    model = MODELS["asymrec"](**SHORT | {"text": ["title"], "views": [], "encoder": "hashed"}).fit(dataset)
    with pytest.raises(PlacingError, match="hashed text has no place"):
        model.with_items(pa.table({"item_id": [900], "title": ["a red thing"]}))


@pytest.mark.parametrize("width", [3, 8, 40])
def test_vectors_from_elsewhere_have_no_place_for_new_items(dataset, width):
    """Given to `fit`, of the item table's width (8) or another: a new item's would lie in another space."""
    vectors = np.random.default_rng(0).standard_normal((dataset.n_items, width)).astype(np.float32) * 100
    model = MODELS["sasrec+content"](**SHORT).fit(dataset, vectors=vectors)
    with pytest.raises(PlacingError, match="were not made from their table"):
        model.with_items(copies(dataset, [3]))


def test_new_items_may_come_as_a_frame_and_rows_are_counted_in_it(dataset, fitted):
    model, new = fitted("sasrec+content"), copies(dataset, [3, 40])
    assert model.with_items(new.to_pandas()).dataset.n_items == dataset.n_items + 2
    with pytest.raises(DataError, match="items, column 'item_id', row 2: item id 103 is there already"):
        model.with_items(pa.concat_tables([new.slice(0, 1), dataset.items.slice(3, 1)]))
    with pytest.raises(DataError, match="row 2: duplicate item id 900, first in row 1"):
        model.with_items(pa.concat_tables([new.slice(0, 1)] * 2))


def test_a_grown_model_is_saved_whole(dataset, fitted, tmp_path):
    model = fitted("sasrec+content").with_items(copies(dataset, [3, 40])).with_items(copies(dataset, [77], 950))
    model.save(tmp_path / "run")
    histories = dataset.sequences.take(np.arange(5))
    np.testing.assert_allclose(Recommender.load(tmp_path / "run").scores(histories), model.scores(histories), atol=1e-5)


def test_text_is_placed_by_the_runs_encoder(dataset, monkeypatch):
    """With a stand-in for the encoder: an item of a known text gets its very vector, whatever column the text comes in."""

    class Letters:
        identity = "letters"

        def encode(self, texts, max_tokens, advance):
            counts = np.array([[text.lower().count(chr(97 + at)) + 0.1 for at in range(26)] for text in texts], np.float32)
            return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    monkeypatch.setattr("asymrec.vectors.encoders.find_encoder", lambda name: Letters())
    monkeypatch.setattr("asymrec.vectors.placing.find_encoder", lambda name: Letters())
    items = dataset.items.append_column("text", dataset.items["title"])
    known = Dataset.read(tables()[0], items)
    model = MODELS["asymrec"](**SHORT | {"text": None, "views": ["vector"]}).fit(known)
    same = known.items.slice(7, 1).drop_columns("item_id").append_column("item_id", pa.array([900]))
    vectors = model.catalogue()[0]
    np.testing.assert_allclose(model.with_items(same).catalogue()[0][-1], vectors[7], atol=1e-5)
    np.testing.assert_allclose(model.with_items(same.drop_columns("text")).catalogue()[0][-1], vectors[7], atol=1e-5)


def test_growing_shares_memory_and_never_changes_an_earlier_state():
    first = Growing(torch.arange(4.0)[:, None])
    second = first.then(torch.full((2, 1), 9.0))
    third = second.then(torch.full((1, 1), 7.0))
    branch = second.then(torch.full((1, 1), 5.0))
    assert third.rows.data_ptr() == second.rows.data_ptr() != branch.rows.data_ptr()
    assert [len(each.rows) for each in (first, second, third, branch)] == [4, 6, 7, 7]
    assert third.rows[:, 0].tolist() == [0, 1, 2, 3, 9, 9, 7] and branch.rows[-1] == 5 and second.rows[-1] == 9


@pytest.mark.parametrize("case", ["asymrec", "sasrec+content"])
def test_a_refit_forgets_the_catalogue_of_before(case):
    interactions, items = tables(60, 40, seed=5)
    longer = [[5 * number for number in vector] for vector in items["vector"].to_pylist()]
    other = Dataset.read(interactions, items.set_column(items.schema.get_field_index("vector"), "vector", pa.array(longer)))
    first = MODELS[case](**SHORT).fit(Dataset.read(*tables(60, 60))).with_items(copies(other, [3]))
    refitted, fresh = first.fit(other), MODELS[case](**SHORT).fit(other)
    ours, theirs = (model.with_items(copies(other, [3, 7])) for model in (refitted, fresh))
    assert len(ours.catalogue()[0]) == ours.dataset.n_items == 42
    np.testing.assert_array_equal(ours.catalogue()[0], theirs.catalogue()[0])
    np.testing.assert_array_equal(ours.scores(other.sequences), theirs.scores(other.sequences))
