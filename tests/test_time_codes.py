"""The time of a history's last item, by hand and in the models that read it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import SETTINGS, as_of_before, held_out, tables

from asymrec import AsymRec, Dataset, Fusion, Recommender, SASRec, SASRecContent
from asymrec.data import Sequences
from asymrec.data.batches import pack
from asymrec.errors import ConfigError
from asymrec.models.timed import EDGES
from asymrec.nn.clock import PARTS, UNKNOWN, Clock, time_edges

SHORT = SETTINGS | {"epochs": 1}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset.read(*tables())


@pytest.fixture(scope="module", params=[AsymRec, SASRecContent])
def model(request, dataset) -> Recommender:
    return request.param(**SHORT).fit(dataset)


def test_parts_are_of_equal_size_and_begin_where_they_say():
    times = 10 * np.random.default_rng(0).permutation(2560)
    edges = time_edges(Sequences.of([[0] * 2560], [np.sort(times)]))
    coarse, fine = np.split(edges, [PARTS[0] - 1])
    assert coarse.tolist() == list(range(800, 25600, 800)) and fine.tolist() == list(range(100, 25600, 100))
    same = time_edges(Sequences.of([[0, 1], [2]], [[5, 5], [5]]))
    assert len(same) == sum(PARTS) - 2 and (same == 5).all()
    largest = 2**62 + 1  # no float64
    assert time_edges(Sequences.of([[0]], [[largest]])).tolist() == [largest] * (sum(PARTS) - 2)
    assert len(time_edges(Sequences.of([[0, 1]]))) == 0


def test_a_clock_adds_the_vectors_of_a_times_parts():
    times = np.arange(2560)
    clock = Clock(torch.from_numpy(time_edges(Sequences.of([[0] * 2560], [times]))), 8).eval()
    found = clock(torch.tensor([-5, 0, 9, 10, 799, 2559, 10**12, UNKNOWN]))
    coarse, fine = clock.parts
    for row, (wide, narrow) in enumerate([(0, 0), (0, 0), (0, 0), (0, 1), (9, 79), (31, 255), (31, 255)]):
        torch.testing.assert_close(found[row], coarse[wide] + fine[narrow])
    assert not found[7].any()


def test_some_histories_forget_their_times_in_training():
    clock = Clock(torch.zeros(sum(PARTS) - 2, dtype=torch.int64), 4)
    torch.manual_seed(0)
    owners = torch.arange(1000).repeat_interleave(3)
    forgotten = ~clock(torch.ones(3000, dtype=torch.int64), owners).any(1).view(1000, 3)
    assert (forgotten.all(1) == forgotten.any(1)).all()  # a history as a whole
    assert 60 < forgotten[:, 0].sum() < 140


def test_the_state_is_told_the_last_items_time_alone(model, dataset):
    items, edges = [[3, 4, 5, 6]], model._prepared[EDGES].numpy()
    early, late = int(edges.min()), int(edges.max())
    assert early < late and model.reads_times
    before = model.scores(Sequences.of(items, [[early] * 4]))
    np.testing.assert_allclose(model.scores(Sequences.of(items, [[early - 60, early - 30, early, early]])), before, atol=1e-5)
    assert np.abs(model.scores(Sequences.of(items, [[early, early, early, late]])) - before).max() > 1e-4
    with torch.inference_mode():  # the state after each item has that item's time
        states, plain = (
            model.network(pack(Sequences.of(items, times), None, model.history)) for times in ([[early, early, late, late]], None)
        )
        added = model.network.clock(torch.tensor([early, early, late, late]))
    torch.testing.assert_close(states, plain + added, rtol=1e-4, atol=1e-5)


def test_times_are_of_training_alone(dataset):
    """A validation or test target's time may be any: the parts stay, and so does what a history is told."""
    interactions, items = tables()
    times = interactions["timestamp"].to_numpy() + held_out(interactions) * 10**6
    other = Dataset.read(interactions.set_column(2, "timestamp", pa.array(times)), items)
    np.testing.assert_array_equal(*(time_edges(data.split().train) for data in (dataset, other)))


def test_users_have_times_and_histories_may_bring_theirs(model, dataset):
    user = dataset.user_ids.to_pylist()[0]
    own = dataset.sequences.take(np.array([0]))
    history = [dataset.item_ids.to_pylist()[row] for row in own.items]
    known = model.recommend(users=[user], k=5)
    brought = model.recommend([history], k=5, times=[own.times.tolist()])
    assert known[0] == brought[0] and np.allclose(known[1], brought[1])
    without = model.recommend([history], k=5)
    assert not np.allclose(known[1], without[1], atol=1e-4)


def test_what_is_saved_and_what_grows_knows_times(model, dataset, tmp_path):
    histories = dataset.sequences.take(np.arange(9))
    new = dataset.items.slice(3, 1).set_column(0, "item_id", pa.array([900], dataset.items.schema.field("item_id").type))
    larger = model.with_items(new)
    np.testing.assert_allclose(larger.scores(histories)[:, :-1], model.scores(histories), atol=1e-5)
    larger.save(tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.reads_times
    np.testing.assert_allclose(again.scores(histories), larger.scores(histories), atol=1e-5)


@pytest.mark.parametrize("kind", [AsymRec, SASRecContent])
def test_without_times_there_is_no_clock(kind, tmp_path):
    interactions, items = tables()
    ordered = interactions.drop_columns("timestamp").append_column("position", pa.array(np.arange(len(interactions))))
    dataset = Dataset.read(ordered, items)
    model = kind(**SHORT).fit(dataset)
    assert model.network.clock is None and not model.reads_times
    model.save(tmp_path / "run")
    again, histories = Recommender.load(tmp_path / "run"), dataset.sequences.take(np.arange(9))
    assert again.recipe.network.time_codes and not again.reads_times
    np.testing.assert_allclose(again.scores(histories), model.scores(histories), atol=1e-5)


@pytest.mark.parametrize("kind", [AsymRec, SASRecContent])
def test_a_run_of_before_is_read(kind, dataset, tmp_path):
    model = kind(**SHORT, time_codes=False).fit(dataset)
    assert not model.reads_times and EDGES not in model.tensors()
    model.save(tmp_path)
    as_of_before(tmp_path, "time_codes: false")
    again, histories = Recommender.load(tmp_path), dataset.sequences.take(np.arange(9))
    assert not again.recipe.network.time_codes and again.recipe.network.popularity_codes
    np.testing.assert_allclose(again.scores(histories), model.scores(histories), atol=1e-5)


def test_a_fusion_reads_times_where_a_part_does(dataset):
    fused = Fusion(**SHORT, parts=["asymrec", "counts"], fuse="ranks").fit(dataset)
    assert fused.reads_times and not Fusion(**SHORT, parts=["sasrec", "counts"], fuse="ranks").fit(dataset).reads_times
    assert not SASRec(**SHORT).fit(dataset).reads_times


def test_a_wrong_value_is_told():
    with pytest.raises(ConfigError, match="time_codes"):
        AsymRec(time_codes="often")
