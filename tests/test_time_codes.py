"""The time of a history's last item, by hand and in the models that read it."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small import SETTINGS, as_of_before, held_out, here, tables

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


def test_files_and_commands_tell_times(model, dataset, tmp_path):
    """Numbers, dates and moments alike; a line without times is one that brings none, an unknown item's time goes with it."""
    model.save(tmp_path / "run")
    own = dataset.sequences.take(np.arange(3))
    ids, moments = dataset.item_ids.to_pylist(), [time.tolist() for time in np.split(own.times, own.offsets[1:-1])]
    histories = [[ids[row] for row in own[at]] for at in range(3)]
    known, scores = model.recommend(histories, 5, times=moments)
    without, plain = model.recommend(histories[1:2], 5)
    for kind in (pa.int64(), pa.timestamp("ms"), pa.timestamp("s", "Europe/Paris")):
        times = pa.array([[999, *moments[0][1:]], None, moments[2]], pa.list_(pa.int64()))
        lines = pa.table(
            {"history": [[7, *histories[0][1:]], *histories[1:]], "times": times if kind == pa.int64() else _moments(times, kind)}
        )
        pq.write_table(lines, tmp_path / "users.parquet")
        done = here("batch", tmp_path / "run", tmp_path / "users.parquet", "-o", tmp_path / "out.parquet", "-k", 5, "--drop-unknown")
        assert done.returncode == 0, done.stderr
        found = pq.read_table(tmp_path / "out.parquet").to_pydict()
        first, first_scores = model.recommend([histories[0][1:]], 5, times=[moments[0][1:]])
        assert found["items"] == [first[0], without[0], known[2]]
        np.testing.assert_allclose(found["scores"], [first_scores[0], plain[0], scores[2]], atol=1e-5)

    words = [",".join(map(str, history)) for history in histories[:2]]
    dates = [datetime.fromtimestamp(time, timezone.utc).isoformat() for time in moments[1]]
    given = ("--history", words[0], "--times", ",".join(map(str, moments[0])), "--history", words[1], "--times", ",".join(dates))
    shown = json.loads(here("recommend", tmp_path / "run", *given, "-k", 5, "--json").stdout)
    assert [[item["id"] for item in one["items"]] for one in shown] == known[:2]
    np.testing.assert_allclose([[item["score"] for item in one["items"]] for one in shown], scores[:2], atol=1e-5)
    for wrong, told in (
        (given[:-2], "--times goes with --history, one for each: 1 for 2"),
        (("--user", 1, "--times", 5), "--times goes with --history, one for each: 1 for 0"),
        ((*given[:3], "1,soon"), "--times, column 'times', row 2: cannot read 'soon' as a time"),
        ((*given[:3], "5"), f"history 0 has {len(histories[0])} items and 1 times"),
    ):
        done = here("recommend", tmp_path / "run", *wrong)
        assert done.returncode == 2 and told in done.stderr


def _moments(times: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of seconds since 1970 -> lists of timestamps."""
    return pa.ListArray.from_arrays(times.offsets, times.values.cast(pa.timestamp("s")).cast(kind), mask=times.is_null())


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
