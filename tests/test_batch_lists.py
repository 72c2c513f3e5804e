"""Lists for many users: which column says whom, and ids that the run does not know, told at once or gone on without."""

from __future__ import annotations

import sys
from datetime import date, datetime
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import here, tables

from asymrec import Dataset
from asymrec.data.columns import times_in
from asymrec.data.tables import Source
from asymrec.errors import DataError
from asymrec.models import MODELS, Recommender
from asymrec.serving import batch
from asymrec.serving.batch import write_lists, write_lists_with_ray


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Users are called u1, u2, ..."""
    interactions, items = tables(users=40)
    users = pa.array([f"u{user}" for user in interactions["user_id"].to_pylist()])
    folder = tmp_path_factory.mktemp("lists") / "run"
    MODELS["counts"]().fit(Dataset.read(interactions.set_column(0, "user_id", users), items)).save(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(batch, "LINES", 2)  # so that a row of the file is another in its piece


def lists(run, folder, column, values, *options):
    """What `asymrec batch` writes for a column, and how it ended."""
    pq.write_table(pa.table({column: values, "note": range(len(values))}), folder / "users.parquet")
    done = here("batch", run, "users.parquet", "-o", "lists.parquet", "-k", 3, *options, cwd=folder)
    assert (folder / "lists.parquet").exists() == (done.returncode == 0)
    return pq.read_table(folder / "lists.parquet").to_pydict() if done.returncode == 0 else None, done.stderr


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("user", ["u1", "u2", "zz"], "users.parquet, column 'user', row 3: unknown user id 'zz'"),
        ("userId", ["u1", "u2", "u3", None], "users.parquet, column 'userId', row 4: null user id"),
        ("history", [[101], None, [], [102, 7, 8]], "users.parquet, column 'history', row 4: unknown item id 7"),
        ("history", [[101, None]], "users.parquet, column 'history', row 1: null item id"),
    ],
)
def test_an_unknown_id_is_told_by_its_place_before_a_list_is_made(column, values, told, run, tmp_path, monkeypatch):
    monkeypatch.setattr(batch.Lists, "__call__", None)
    found, said = lists(run, tmp_path, column, values)
    assert found is None and said == f"error: {told}; --drop-unknown goes on without\n"


def test_times_that_do_not_fit_are_told_before_a_list_is_made(run, tmp_path, monkeypatch):
    monkeypatch.setattr(batch.Lists, "__call__", None)
    day = 1_700_000_000
    for times, told in (
        ([[day], None, [day]], "column 'times', row 3: 1 times for a history of 0 items"),
        ([[day], [], [], [day, day - 1]], "column 'times', row 4: times must not fall: the oldest item comes first"),
        ([[day], [], [], [day, None]], "column 'times', row 4: null time"),
        ([["2023-11-14"], None, None, ["soon", "then"]], "column 'times', row 4: cannot read 'soon' as a time"),
        ([day, day, day, day], "column 'times', beside 'history', must hold lists of times, found int64"),
    ):
        histories = [[101], None, [], [102, 103]][: len(times)]
        pq.write_table(pa.table({"history": histories, "times": times}), tmp_path / "users.parquet")
        done = here("batch", run, "users.parquet", "-o", "lists.parquet", cwd=tmp_path)
        assert done.returncode == 2 and f"users.parquet, {told}" in done.stderr.replace("users.parquet: ", "users.parquet, ")
        assert not (tmp_path / "lists.parquet").exists()


def test_no_times_and_columns_of_one_name(run, tmp_path):
    expected = lists(run, tmp_path, "history", [[101], [102, 103]])[0]["items"]
    pq.write_table(pa.table({"history": [[101], [102, 103]], "times": pa.nulls(2)}), tmp_path / "users.parquet")
    done = here("batch", run, "users.parquet", "-o", "lists.parquet", "-k", 3, cwd=tmp_path)
    assert done.returncode == 0 and pq.read_table(tmp_path / "lists.parquet")["items"].to_pylist() == expected
    for names in (["history", "history"], ["user", "user"], ["history", "times", "times"]):
        values = [[[101], [102]] if name == "history" else [[5], [5]] if name == "times" else ["u1", "u2"] for name in names]
        pq.write_table(pa.table(values, names=names), tmp_path / "users.parquet")
        done = here("batch", run, "users.parquet", "-o", "other.parquet", cwd=tmp_path)
        assert done.returncode == 2 and f"column '{names[-1]}': two columns have this name" in done.stderr


@pytest.mark.parametrize(
    ("values", "unit", "found"),
    [
        ([1_700_000_000], "ms", [1_700_000_000_000]),
        ([1_700_000_000_999], "s", [1_700_000_000]),
        (["2023-11-14T22:13:20Z", "2023-11-14T23:13:21+01:00"], "us", [1_700_000_000_000_000, 1_700_000_001_000_000]),
        ([datetime(1969, 12, 31, 23, 59, 59, 500_000)], "s", [-1]),
        ([], None, []),
        ([5, -5, 0], "ms", [5, -5, 0]),
        ([5, 1_700_000_000, 1_700_000_000_000], "ms", [5, 1_700_000_000_000, 1_700_000_000_000]),  # each by itself
        ([1_700_000_000.25], "ms", [1_700_000_000_250]),
        ([date(2024, 3, 1)], "s", [1_709_251_200]),
        (["2300-01-01"], "ns", "cannot count 2300-01-01 00:00:00 in ns since 1970"),
        (pa.array([2**64 - 1], pa.uint64()), "ns", "cannot count 18446744073709551615 in ns since 1970"),
        ([20240301], "s", "20240301 may be a date: write 2024-05-31 for 20240531"),
        (["20240301123000"], None, "20240301123000 may be a date"),
        ([-(2**63)], "s", "null time"),
        ([float("nan")], "s", "null time"),
        ([True], "s", "values of type bool cannot be times"),
    ],
)
def test_times_are_counted_in_the_runs_unit(values, unit, found):
    source = Source("t", pa.table({"times": values}))
    if isinstance(found, list):
        assert times_in(unit, source, "times").tolist() == found
    else:
        with pytest.raises(DataError, match=rf"t, column 'times'(, row 1)?: {found}"):
            times_in(unit, source, "times")


def test_what_is_read_is_not_written_over(run, tmp_path):
    pq.write_table(pa.table({"user": ["u1"]}), tmp_path / "users.parquet")
    done = here("batch", run, "users.parquet", "-o", "users.parquet", cwd=tmp_path)
    assert done.returncode == 2 and "users.parquet is what is read" in done.stderr
    assert pq.read_table(tmp_path / "users.parquet").column_names == ["user"]


def test_unknown_users_may_get_empty_lists(run, tmp_path):
    found, said = lists(run, tmp_path, "user", ["zz", None, "u1", "zz", "u2"], "--drop-unknown")
    ids, scores = Recommender.load(run).recommend(users=["u1", "u2"], k=3)
    assert found["items"] == [[], [], ids[0], [], ids[1]] and found["note"] == [0, 1, 2, 3, 4]
    assert found["scores"] == [[], [], pytest.approx(scores[0]), [], pytest.approx(scores[1])]
    assert said == "note: 3 of 5 lines have an unknown user, or none: their lists are empty\n5 lines\n"


def test_unknown_items_of_histories_may_be_left_out(run, tmp_path):
    found, said = lists(run, tmp_path, "history", [[7, 101, 8], [101], [7], None, [None, 102]], "--drop-unknown")
    assert found["items"] == Recommender.load(run).recommend([[101], [101], [], [], [102]], 3)[0]
    assert said == "note: 4 unknown items are left out of the histories of 3 of 5 lines\n5 lines\n"


def test_nothing_is_told_where_all_are_known(run, tmp_path):
    assert lists(run, tmp_path, "user", ["u1", "u2"], "--drop-unknown")[1] == "2 lines\n"


@pytest.mark.parametrize("column", ["user", "userId", "user_id", "USER", "reviewerID", "uid:token"])
def test_the_users_column_is_found_as_fit_finds_it(column, run, tmp_path):
    assert lists(run, tmp_path, column, ["u1", "u2"])[0]["items"] == Recommender.load(run).recommend(users=["u1", "u2"], k=3)[0]


def test_a_file_without_such_a_column_is_told_by_its_name(run, tmp_path):
    assert "users.parquet: no column history, user or user_id; there are who, note" in lists(run, tmp_path, "who", ["u1"])[1]


def test_a_pipeline_goes_on_without_unknown_users(run, tmp_path):
    from small import write

    from asymrec.pipeline import Pipeline, fit_pipeline

    shop = write(tmp_path / "shop", *tables(users=40))
    settings = {"epochs": 1, "embedding": 4}
    fit_pipeline(shop, tmp_path / "p", model="counts", ranker="linear", settings=settings, candidates=10)
    found, _ = lists(tmp_path / "p", tmp_path, "user", [-1, -2, -3, 5], "--drop-unknown")
    assert found["items"] == [[], [], [], [one["id"] for one in Pipeline.load(tmp_path / "p").recommend(users=[5], k=3)[0]]]


class Spread:
    """Ray's part in it: pieces of a file to a model, and what it makes into a folder."""

    def __init__(self, path):
        self.path = path

    def map_batches(self, kind, *, fn_constructor_args, batch_size, **_):
        model = kind(*fn_constructor_args)
        self.made = [model(pa.Table.from_batches([piece])) for piece in pq.ParquetFile(self.path).iter_batches(batch_size)]
        return self

    def write_parquet(self, folder):
        pq.write_to_dataset(pa.concat_tables(self.made), folder)


def test_workers_look_ids_up_and_leave_them_out_as_well(run, tmp_path, monkeypatch):
    """With what stands for Ray where it is not installed."""
    ray, data = ModuleType("ray"), ModuleType("ray.data")
    ray.data, ray.is_initialized, ray.exceptions = data, lambda: True, SimpleNamespace(RayError=OSError)
    context = SimpleNamespace(enable_progress_bars=True, raise_original_map_exception=False)
    data.DataContext = SimpleNamespace(get_current=lambda: context)
    data.ActorPoolStrategy, data.read_parquet = SimpleNamespace, Spread
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", data)

    users, output = tmp_path / "users.parquet", tmp_path / "lists"
    pq.write_table(pa.table({"user": ["u1", "u2", "zz"]}), users)
    with pytest.raises(DataError, match=r"users.parquet, column 'user', row 3: unknown user id 'zz'"):
        write_lists_with_ray(run, users, output, 3)
    assert not output.exists()
    with pytest.warns(UserWarning, match="1 of 3 lines have an unknown user"):
        write_lists_with_ray(run, users, output, 3, drop_unknown=True)
    with pytest.warns(UserWarning, match="1 of 3 lines have an unknown user"):
        assert write_lists(run, users, tmp_path / "one.parquet", 3, drop_unknown=True) == 3
    assert pq.read_table(output).to_pydict() == pq.read_table(tmp_path / "one.parquet").to_pydict()
