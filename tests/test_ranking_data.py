"""What rankers are given: negatives that tell nothing by themselves, labels, fields in their units, tables that are odd."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymrec.data import Dataset
from asymrec.errors import ConfigError, DataError
from asymrec.ranking import RANKERS, ExamplesConfig, Impressions, Schema, Tables, make
from asymrec.ranking.asked import with_nobody
from asymrec.ranking.encoders import Encoder
from asymrec.ranking.folders import plain, score_items
from asymrec.ranking.metrics import auc, calibration, measure
from asymrec.ranking.schema import Field, _threshold

QUICK = {"width": 16, "heads": 2, "ffn": 16, "embedding": 8, "epochs": 2, "learning_rate": 1e-2, "hidden": (16,), "batch": 64}
ITEM = {"item": [{"name": "item_id", "kind": "category"}]}


def shop(users=40, length=30, items=50, step=3, repeats=False, seed=0, **columns):
    """Interactions by chance, `step` of them at one time; without `repeats` nobody takes an item twice."""
    random = np.random.default_rng(seed)
    what = np.stack([random.integers(items, size=length) if repeats else random.permutation(items)[:length] for _ in range(users)])
    interactions = {
        "user_id": np.repeat(np.arange(users), length),
        "item_id": what.reshape(-1),
        "timestamp": np.tile(np.arange(length) // step, users) + 1_000_000,
    }
    return Tables(Dataset.read(pa.table(interactions | columns), pa.table({"item_id": np.arange(items), "size": np.arange(items) / items})))


def drawn(tables, **config):
    """Label, item, history and all that the user did at that time or before, of each impression."""
    found = make(tables, Schema.of(ITEM), ExamplesConfig(**config)).train
    sequences = tables.dataset.sequences
    for user, item, begin, end, label in zip(found.users, found.items, found.begins, found.ends, found.labels[:, 0]):
        now = sequences.times[end]
        until = begin + np.searchsorted(sequences.times[begin : sequences.offsets[user + 1]], now, side="right")
        yield label, item, sequences.items[begin:end], sequences.items[end:until]


def test_negatives_are_nothing_that_was_taken_at_that_time_or_before():
    for label, item, before, now in drawn(shop(), negatives=3):
        assert label == (item in now) and (label or item not in before)


def test_where_users_repeat_themselves_negatives_may_be_of_the_past_and_having_been_seen_tells_nothing():
    found = list(drawn(shop(users=200, items=20, repeats=True), negatives=3))
    assert all(label == (item in now) for label, item, _, now in found)
    labels = np.array([label for label, *_ in found])
    seen = np.array([item in before for _, item, before, _ in found], float)
    assert abs(auc(labels, seen) - 0.5) < 0.03
    found = list(drawn(shop(users=200, items=20, repeats=True), negatives=3, avoid="past-and-step"))
    assert auc(np.array([label for label, *_ in found]), np.array([item in before for _, item, before, _ in found], float)) > 0.6


def test_a_label_may_be_a_boolean_and_an_unknown_one_is_no_impression():
    click = pa.array([None if at % 10 == 0 else at % 3 == 0 for at in range(1200)])
    tables = shop(click=click)
    schema = Schema.infer(tables)
    assert [label.column for label in schema.labels] == ["click"] and schema.history.action == "click" and not schema.context
    parts = make(tables, schema)
    found = np.concatenate([part.labels[:, 0] for part in vars(parts).values()])
    assert len(found) == 1200 - click.null_count and found.sum() == sum(one is True for one in click.to_pylist())


@pytest.mark.parametrize(
    ("values", "at_least"),
    [
        ([-0.2, 0.1, 0.5, 0.65, 0.8], 0.6),  # -0.2 + 0.8 * 1.0 is 0.6000000000000001
        ([-0.2, 0.0, 0.2, 0.4, 0.6, 0.8], 0.8),  # which 0.6 does not reach
        (range(1, 11), 9),
        ([-1.0, -0.5, -0.25], -0.3),
        ([2.5, 2.5], 2),
        ([1.0, 5.0], 4),
        ([0, 1, None], 1),
        ([1.0, 2.0, 9.0, float("inf"), float("nan")], 9),
        ([None, None], 1),
    ],
)
def test_an_inferred_threshold_is_a_round_number_that_parts_the_values_as_the_upper_fifth_does(values, at_least):
    assert _threshold(pa.chunked_array([pa.array(values, pa.float64())])) == at_least
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if len(known) and known.max() > 1 and at_least != 4:
        assert ((known >= at_least) == (known >= known.min() + 0.8 * (known.max() - known.min()))).all()


def test_labels_that_cannot_be_are_told():
    with pytest.raises(ConfigError, match="context: field 'rating' is the label"):
        Schema.of(ITEM | {"context": [{"name": "rating", "kind": "numeric"}], "labels": [{"column": "rating", "at_least": 4}]})
    with pytest.raises(ConfigError, match="context: field 'place' stands there twice"):
        Schema.of(ITEM | {"context": [{"name": "place", "kind": "category"}, {"name": "place", "kind": "numeric"}]})
    tables = shop(event=["buy"] * 1200)
    with pytest.raises(DataError, match=r"field 'event'.*is no number"):
        make(tables, Schema.of(ITEM | {"labels": [{"column": "event"}]}))


def test_vectors_keep_their_units_whatever_they_are_encoded_with():
    table = pa.chunked_array([pa.array([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0]])])
    encoder = Encoder.fit(Field(name="v", kind="vector"), table, np.array([2, 1, 0]))
    whole = encoder.encode(table)
    np.testing.assert_allclose(np.linalg.norm(whole[:2], axis=1).mean(), 1, rtol=1e-6)  # of what training holds
    for row in range(3):
        np.testing.assert_allclose(encoder.encode(table.slice(row, 1))[0], whole[row], rtol=1e-6)
    restored = Encoder.restore(json.loads(json.dumps(encoder.state())))
    np.testing.assert_allclose(restored.encode(table), whole)
    with pytest.raises(DataError, match="field 'v': row 1 holds a number that is not finite"):
        encoder.encode(pa.chunked_array([pa.array([[1.0, 2.0], [np.nan, 1.0]])]))


def test_whole_numbers_of_many_digits_and_lists_of_unequal_length_are_read():
    tables = shop()
    about = tables.dataset.items.append_column("hash", pa.array(np.arange(50) * 10**16 + 7))
    about = about.append_column("ragged", pa.array([[0.5] * (row % 3 + 1) for row in range(50)]))
    schema = Schema.infer(Tables(tables.dataset.over(about)))
    assert {field.name: field.kind for field in schema.item} == {"item_id": "category", "size": "numeric", "hash": "category"}
    encoder = Encoder.fit(Field(name="hash", kind="numeric"), about["hash"], np.ones(50, int))
    assert len(np.unique(encoder.encode(about["hash"]))) == 16


def test_a_context_that_is_read_must_be_given():
    tables = shop(weather=np.random.default_rng(1).choice(["sun", "rain"], 1200), country=np.tile(["NO", "SE", "01"], 400))
    schema = Schema.infer(tables)
    assert [field.name for field in schema.context] == ["weather", "country"]
    parts = make(tables, schema)
    ranker = RANKERS["deepfm"](schema, **QUICK).fit(parts.train, parts.validation)
    asked = Impressions.of(tables, np.array([5]), [np.arange(6)])
    with pytest.raises(ConfigError, match="reads weather, country of the context: give it"):
        ranker.predict(asked)
    context = pa.table({"weather": ["sun"], "country": ["NO"]})
    one = ranker.predict(Impressions.of(tables, np.array([5]), [np.arange(6)], context))
    assert np.array_equal(score_items(ranker, tables, 5, np.arange(6), {"weather": "sun", "country": "NO"}), one)
    assert not np.array_equal(score_items(ranker, tables, 5, np.arange(6), {"weather": "sun", "country": "01"}), one)
    assert ranker.predict(Impressions.of(tables, np.array([5]), [np.array([], int)], context)).shape == (0,)
    for rows in ([-1, 3], [50]):
        with pytest.raises(ConfigError, match="item rows must be 0 to 49"):
            Impressions.of(tables, np.array([5]), [np.array(rows)])


def test_validation_on_other_tables_changes_nothing_of_the_training():
    tables = shop(users=60)
    other = Tables(tables.dataset.over(tables.dataset.items.set_column(1, "size", pa.array(np.ones(50)))))
    schema = Schema.of({"item": [{"name": "size", "kind": "numeric"}]})
    config = ExamplesConfig(negatives=1)
    losses = []
    for validated in (tables, other):
        parts, validation = make(tables, schema, config), make(validated, schema, config).validation
        losses.append([entry["loss"] for entry in RANKERS["deepfm"](schema, **QUICK).fit(parts.train, validation).log])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hidden": ()}, "hidden"), ({"hidden": (-3,)}, "hidden"), ({"device": "nowhere"}, "nowhere"), ({"width": 50, "heads": 4}, "heads")],
)
def test_settings_that_cannot_be_are_told_before_a_fit(settings, message):
    tables = shop()
    with pytest.raises((ConfigError, DataError), match=message):
        RANKERS["tokenformer"](Schema.infer(tables), **settings).check(tables)
    RANKERS["tokenformer"](Schema.infer(tables)).check(tables)


def test_a_table_of_users_that_holds_ids_alone_and_columns_that_are_never_null(tmp_path):
    tables = shop()
    pq.write_table(pa.table({"user_id": np.arange(40)}), tmp_path / "users.parquet")
    assert Tables.beside(tables.dataset, tmp_path).users.column_names == ["user_id"]
    strict = pa.table({"user_id": np.arange(40)}).cast(pa.schema([pa.field("user_id", pa.int64(), nullable=False)]))
    assert with_nobody(strict)["user_id"].null_count == 1


def test_equal_probabilities_fall_into_one_bin_and_what_is_not_defined_is_null():
    labels = np.r_[np.zeros(50), np.ones(50)]
    assert calibration(labels, np.full(100, 0.5))["error"] == 0
    found = plain(measure(np.zeros(5), np.full(5, 0.3), np.arange(5)))
    assert found["auc"] is None and found["calibration_ratio"] is None and found["impressions"] == 5
