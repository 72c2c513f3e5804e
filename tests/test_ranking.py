"""Schema, impressions, encoders, rankers: on a small set where nine labels of ten follow from the item."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from asymrec.data import Dataset
from asymrec.errors import ConfigError, DataError, RunError
from asymrec.nn.fields import FieldEmbeddings
from asymrec.ranking import RANKERS, ExamplesConfig, Impressions, Ranker, Schema, Tables, make
from asymrec.ranking.encoders import NOTHING, UNSEEN, Encoder
from asymrec.ranking.metrics import auc
from asymrec.ranking.schema import Field
from asymrec.ranking.spectra import spectra

QUICK = {"width": 16, "heads": 2, "ffn": 16, "embedding": 8, "epochs": 4, "learning_rate": 1e-2, "hidden": (16,), "batch": 64}


@pytest.fixture(scope="module")
def tables():
    random = np.random.default_rng(0)
    users, length, items = 60, 20, 40
    who, what = np.repeat(np.arange(users), length), random.integers(items, size=users * length)
    likes = (what % 2 == 0) ^ (random.random(users * length) < 0.1)
    interactions = pa.table(
        {
            "user_id": who,
            "item_id": what,
            "timestamp": np.tile(np.arange(length) // 2, users) + 1_000_000,  # two at a time
            "rating": np.where(likes, 5, 2),
            "weather": random.choice(["sun", "rain"], users * length),
        }
    )
    about = pa.table(
        {
            "item_id": np.arange(items),
            "side": [f"s{i % 2}" for i in range(items)],
            "tags": [[f"t{i % 3}", f"t{i % 5}"] for i in range(items)],
            "price": random.random(items) * 100,
            "title": [f"thing number {i}" for i in range(items)],
        }
    )
    return Tables(Dataset.read(interactions, about), pa.table({"user_id": np.arange(users), "age": random.random(users) * 60}))


@pytest.fixture(scope="module")
def schema(tables):
    return Schema.infer(tables)


def test_a_schema_is_inferred_and_goes_through_yaml(schema, tmp_path):
    assert {f.name: f.kind for f in schema.item} == {"item_id": "category", "side": "category", "tags": "values", "price": "numeric"}
    assert [f.name for f in schema.context] == ["weather"]
    assert schema.history.action == "rating" and schema.labels[0].at_least == 4
    (tmp_path / "schema.yaml").write_text(schema.yaml(), encoding="utf-8")
    assert Schema.read(tmp_path / "schema.yaml") == schema


def test_unknown_keys_and_columns_are_named(tables):
    with pytest.raises(ConfigError, match=r"user\.0\.kindd.*did you mean 'kind'"):
        Schema.of({"user": [{"name": "user_id", "kind": "category", "kindd": 1}]})
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        RANKERS["linear"](Schema.infer(tables), learning_rat=1)
    with pytest.raises(ConfigError, match="did you mean 'side'"):
        tables.column("item", "sid")


def test_an_encoder_has_places_for_nothing_rare_and_unseen():
    column = pa.chunked_array([["a", "a", "b", None]])
    encoder = Encoder.fit(Field(name="x", kind="category"), column, np.ones(4, int))
    assert encoder.values == ["a"]
    assert encoder.encode(pa.chunked_array([["a", "b", "z", None]])).tolist() == [2, UNSEEN, UNSEEN, NOTHING]
    numbers = Encoder.fit(Field(name="x", kind="numeric", bins=2), pa.chunked_array([[1.0, 2.0, 3.0]]), np.ones(3, int))
    assert numbers.encode(pa.chunked_array([[0.0, 9.0, None]])).tolist() == [1, 2, NOTHING]
    tags = Field(name="x", kind="values", floor=1, longest=2)
    lists = Encoder.fit(tags, pa.chunked_array([[["a", "b", "c"], [], None]]), np.ones(3, int))
    assert lists.encode(pa.chunked_array([[["b", "c", "a"], [], None]])).tolist() == [[3, 4], [0, 0], [0, 0]]
    codes = Encoder.fit(Field(name="x", kind="code"), pa.chunked_array([[[0, 1], [2, 0]]]), np.ones(2, int))
    assert codes.size == 6
    assert codes.encode(pa.chunked_array([[[2, 1], None]])).tolist() == [[3, 5], [0, 0]]
    assert codes.encode(pa.chunked_array([[[9, 1]]])).tolist() == [[NOTHING, 5]]  # of an item to come
    with pytest.raises(DataError, match="3 codes, training had 2"):
        codes.encode(pa.chunked_array([[[0, 0, 0]]]))


def test_histories_lie_strictly_before(tables, schema):
    times = tables.dataset.sequences.times
    for part in vars(make(tables, schema)).values():
        owners = tables.dataset.sequences.owners
        for begin, end, user in zip(part.begins, part.ends, part.users):
            assert (owners[begin:end] == user).all()
        assert (part.ends == part.begins + (part.ends - part.begins) // 2 * 2).all()  # two at a time: never one of a pair
    assert (np.diff(times[:20]) >= 0).all()


def test_numbers_that_are_names_are_categories():
    many = np.arange(300)
    names = ("item_id", "city", "shop_id", "cityId", "cityscape", "city_population")
    columns = dict.fromkeys(names, many) | {"price": many / 7}
    found = Schema.infer(Tables(Dataset.read(pa.table({"user_id": many, "item_id": many}), pa.table(columns))))
    kinds = {field.name: field.kind for field in found.item}
    assert kinds["city"] == kinds["shop_id"] == kinds["cityId"] == "category"
    assert kinds["cityscape"] == kinds["price"] == kinds["city_population"] == "numeric"


def test_the_latest_alone_are_asked_about(tables, schema):
    whole, few = make(tables, schema), make(tables, schema, ExamplesConfig(train_latest=3, test_latest=1))
    for name, most in (("train", 3), ("validation", 1), ("test", 1)):
        every, some = getattr(whole, name), getattr(few, name)
        latest = [np.flatnonzero(every.users == user)[-most:] for user in np.unique(every.users)]
        wanted = every.take(np.concatenate(latest))
        assert np.array_equal(some.items, wanted.items) and np.array_equal(some.labels, wanted.labels)
        assert np.array_equal(some.begins, wanted.begins) and np.array_equal(some.ends, wanted.ends)  # histories are whole
    with pytest.raises(ConfigError, match="split_by=random"):
        make(tables, schema, ExamplesConfig(split_by="random", train_latest=3))


def test_items_of_histories_alone_are_known(tables, schema):
    """They are read, so they are no strangers, although nothing is asked about them."""
    last = ExamplesConfig(train_latest=1, test_latest=1)
    rankers = [RANKERS["din"](schema, **{**QUICK, "epochs": 1}) for _ in range(2)]
    known = []
    for ranker, config in zip(rankers, (None, last)):
        parts = make(tables, schema, config)
        ranker.fit(parts.train, parts.validation)
        known.append(set(ranker.encoders["item"][0].values))
    assert len(known[1]) > 30 and known[1] <= known[0]


def test_weights_are_told_before_a_fit(tables, schema):
    parts = make(tables, schema)
    for name in ("tokenformer", "dcnv2"):
        ranker = RANKERS[name](schema, **{**QUICK, "epochs": 1})
        expected = ranker.weights(parts.train)
        ranker.fit(parts.train.take(np.arange(len(parts.train))), parts.validation)
        assert expected == sum(each.numel() for each in ranker.network.parameters())


def test_negatives_are_not_of_the_past(tables, schema):
    bare = schema.model_copy(update={"labels": ()})
    parts = make(tables, bare, ExamplesConfig(negatives=3, avoid="past"))
    items = tables.dataset.sequences.items
    assert parts.test.labels.mean() == pytest.approx(0.25, abs=0.02)
    for label, item, begin, end in zip(parts.test.labels[:, 0], parts.test.items, parts.test.begins, parts.test.ends):
        assert label or item not in items[begin:end]
    with pytest.raises(DataError, match="no times"):
        plain = Dataset.read(pa.table({"user_id": [1, 1], "item_id": [1, 2]}), pa.table({"item_id": [1, 2]}))
        make(Tables(plain), Schema(item=schema.item[:1]), ExamplesConfig(split_by="time"))


@pytest.mark.parametrize("name", sorted(RANKERS))
def test_every_ranker_keeps_the_contract(name, tables, schema, tmp_path):
    parts = make(tables, schema)
    ranker = RANKERS[name](schema, **QUICK).fit(parts.train, parts.validation)
    found = ranker.predict(parts.test)
    assert found.shape == (len(parts.test),) and ((found > 0) & (found < 1)).all()
    assert auc(parts.test.labels[:, 0], found) > 0.8
    ranker.save(tmp_path / "r")
    assert np.array_equal(Ranker.load(tmp_path / "r").predict(parts.test), found)
    again = RANKERS[name](schema, **QUICK).fit(parts.train, parts.validation)
    assert np.array_equal(again.predict(parts.test), found)
    assert np.array_equal(again.fit(parts.train, parts.validation).predict(parts.test), found)
    some = np.array([5, 3, 40])
    assert np.allclose(ranker.predict(parts.test.take(some)), found[some], atol=1e-5)  # whoever else is in the batch


def test_candidates_share_one_history(tables, schema):
    parts = make(tables, schema)
    ranker = RANKERS["tokenformer"](schema, **(QUICK | {"epochs": 1, "actions": "interleave"})).fit(parts.train, parts.validation)
    candidates = Impressions.of(tables, np.array([3, 8]), [np.arange(40), np.arange(7)], pa.table({"weather": ["sun", "rain"]}))
    assert np.allclose(ranker.predict(candidates), ranker.predict(candidates, share=False), atol=1e-5)


def test_several_tasks(tables, schema):
    two = Schema.of(schema.model_dump() | {"labels": [{"column": "rating", "at_least": 4}, {"column": "rating", "at_least": 1}]})
    parts = make(tables, two)
    ranker = RANKERS["tokenformer"](two, **QUICK).fit(parts.train, parts.validation)
    found = ranker.predict(parts.test, all_tasks=True)
    assert found.shape == (len(parts.test), 2) and found[:, 1].mean() > 0.8


def test_what_cannot_be_fitted_or_loaded_is_told(tables, schema, tmp_path):
    parts = make(tables, schema)
    ones = parts.train.take(np.flatnonzero(parts.train.labels[:, 0] == 1))
    with pytest.raises(DataError) as told:
        RANKERS["linear"](schema, **QUICK).fit(ones, parts.validation)
    good, n = int(parts.validation.labels[:, 0].sum()), len(parts.validation)
    held = f"{len(ones)} positives and 0 negatives in training, {good} positives and {n - good} negatives in validation"
    assert str(told.value) == f"label 'rating', at_least 4: {held}; a ranker needs both kinds in both"
    with pytest.raises(DataError, match="with labels"):
        RANKERS["linear"](schema, **QUICK).fit(replace(parts.train, labels=None), parts.validation)
    with pytest.raises(RunError, match="cannot read the ranker"):
        Ranker.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenformer", "din"])
def test_a_ranker_without_history(name, tables, schema):
    bare = Schema.of(schema.model_dump() | {"history": {"length": 0}})
    parts = make(tables, bare)
    ranker = RANKERS[name](bare, **QUICK).fit(parts.train, parts.validation)
    assert auc(parts.test.labels[:, 0], ranker.predict(parts.test)) > 0.8


def test_a_periodic_number_is_in_units_of_its_spread_and_nothing_is_nothing():
    column = pa.chunked_array([[10.0, 20.0, 30.0, None, 1000.0]])
    encoder = Encoder.fit(Field(name="x", kind="periodic", waves=4), column, np.array([1, 2, 1, 1, 0]))
    found = encoder.encode(column)
    np.testing.assert_allclose(found[:3, 0], [-(2**0.5), 0, 2**0.5], rtol=1e-6)
    assert found[:, 1].tolist() == [1, 1, 1, 0, 1] and found.dtype == np.float32
    np.testing.assert_array_equal(Encoder.restore(encoder.state()).encode(column), found)
    torch.manual_seed(0)
    table = FieldEmbeddings(["periodic"], [encoder.size], 8)
    embedded = table([torch.from_numpy(found)])
    assert embedded.shape == (5, 1, 8) and (embedded[3] == 0).all() and (embedded[:3] != 0).any()
    layer, x = table.tables[0], torch.tensor(found[0, 0])
    angle = 2 * np.pi * layer.frequency * x
    expected = torch.relu(layer.linear(torch.cat([angle.sin(), angle.cos()])))
    torch.testing.assert_close(embedded[0, 0], expected)
    with pytest.raises(DataError, match="is no number"):
        Encoder.fit(Field(name="x", kind="periodic"), pa.chunked_array([["a"]]), np.ones(1, int))


def test_a_number_that_decides_is_learned_by_waves():
    random = np.random.default_rng(0)
    users, items = np.repeat(np.arange(60), 20), random.integers(0, 30, 1200)
    hour = random.uniform(0, 24, 1200)
    rating = np.where((hour > 8) & (hour < 16), 5, 1)
    shown = pa.table({"user_id": users, "item_id": items, "timestamp": np.arange(1200), "hour": hour, "rating": rating})
    tables = Tables(Dataset.read(shown, pa.table({"item_id": np.arange(30)})))
    schema = Schema.of({"item": [{"name": "item_id"} | {"kind": "category"}], "context": [{"name": "hour", "kind": "periodic"}],
                        "history": {"length": 0}, "labels": [{"column": "rating", "at_least": 4}]})  # fmt: skip
    parts = make(tables, schema)
    ranker = RANKERS["deepfm"](schema, **(QUICK | {"epochs": 15})).fit(parts.train, parts.validation)
    assert auc(parts.test.labels[:, 0], ranker.predict(parts.test)) > 0.9


def test_spectra_are_those_of_the_tokens(tables, schema):
    parts = make(tables, schema)
    ranker = RANKERS["tokenformer"](schema, **(QUICK | {"epochs": 1})).fit(parts.train, parts.validation)
    layers = len(ranker.network.layers.layers)
    few = parts.test.take(np.arange(40))
    found = {(one.layer, one.kind): one for one in spectra(ranker, few)}
    assert {kind for layer, kind in found if layer == 0} == {"static", "behaviours", "targets"}
    assert [kind for layer, kind in found if layer == layers] == ["targets"]
    last = found[layers, "targets"]
    assert last.tokens == 40 and last.singular_values[0] == 1 and (np.diff(last.singular_values) <= 0).all()
    seen = []
    hook = ranker.network.layers.layers[-1].register_forward_hook(lambda _, inputs, out: seen.append(out.targets[:, 0]))
    ranker.predict(few, share=False)
    hook.remove()
    tokens = torch.cat(seen).double().numpy()
    values = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False)
    np.testing.assert_allclose(last.singular_values[: len(values)], values / values[0], atol=1e-5)
    assert 1 < last.effective_rank < tokens.shape[1]
    with pytest.raises(ConfigError, match="no layers of tokens"):
        spectra(RANKERS["linear"](schema, **QUICK).fit(parts.train, parts.validation), few)
