"""The server's conditions on every type of column, ids as numbers, keys by name, and lists made with Ray."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import client, recommend
from small import SETTINGS, contents, environment, here, tables

from asymrec import Dataset
from asymrec.errors import DataError, RunError, UnknownIdError
from asymrec.models import AsymRec, Recommender
from asymrec.serving.batch import _ray
from asymrec.serving.catalogue import _ids
from asymrec.serving.cells import as_id

pytest.importorskip("fastapi")
N = 120  # items, from 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An item's row can be told from each of its columns: as a day, a moment, a price."""
    interactions, items = tables()
    days = [date.fromordinal(date(2024, 1, 1).toordinal() + row) for row in range(N)]
    moments = [datetime(day.year, day.month, day.day, 12) for day in days]
    columns = {
        "day": pa.array(days, pa.date32()),
        "day64": pa.array(days, pa.date64()),
        "moment": pa.array(moments, pa.timestamp("s")),
        "zoned": pa.array([each.replace(tzinfo=timezone.utc) for each in moments], pa.timestamp("us", "Europe/Paris")),
        "price": pa.array([Decimal(row) + Decimal("0.99") for row in range(N)], pa.decimal128(10, 2)),
        "weight": pa.array([row / 10 for row in range(N)], pa.float32()),
        "small": pa.array(range(N), pa.int8()),
        "large": pa.array([2**60 + row for row in range(N)], pa.int64()),
        "new": pa.array([row % 2 == 0 for row in range(N)]),
        "sold": pa.array([[days[row]] if row else [] for row in range(N)], pa.list_(pa.date32())),
        "length": pa.array([timedelta(days=row - 1, minutes=row, milliseconds=5) for row in range(N)], pa.duration("ms")),
        "opens": pa.array([time(row % 24, 30) for row in range(N)], pa.time64("us")),
        "made": pa.array([{"by": f"m{row}", "on": days[row]} if row else None for row in range(N)]),
        "sizes": pa.array([[("s", row), ("m", None)] if row else None for row in range(N)], pa.map_(pa.string(), pa.int32())),
        "seller": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(int=row).bytes for row in range(N)], pa.binary(16))),
        "tags": pa.ListArray.from_arrays(  # as a mask leaves them: entries under lists that are not there
            pa.array(range(0, 2 * N + 1, 2), pa.int32()),
            pa.array([f"t{row}" for row in range(2 * N)]),
            mask=pa.array([row < 9 for row in range(N)]),
        ),
        "kind": pa.array([row % 3 for row in range(N)], pa.int16()).dictionary_encode(),
    }
    for name, values in columns.items():
        items = items.append_column(name, values)
    folder = tmp_path_factory.mktemp("more")
    AsymRec(**SETTINGS | {"epochs": 1, "quantizer_epochs": 0}).fit(Dataset.read(interactions, items)).save(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def api(run, tmp_path_factory):
    with client(run, f"sqlite:///{tmp_path_factory.mktemp('store')}/store.sqlite") as found:
        yield found


def rows(api, **condition):
    found = recommend(api, history=[], k=N, reasons=False, where=[condition])
    return sorted(one["item"] - 100 for one in found["items"])


# Conditions

SECOND = 86_400  # of a day


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [  # all are rows 3 to 5
        ("day", "2024-01-04", "2024-01-06"),
        ("day", 19_726, 19_728.0),
        ("day64", "2024-01-04", "2024-01-06"),
        ("day64", 19_726 * SECOND * 1000, 19_728 * SECOND * 1000),
        ("sold", "2024-01-04", "2024-01-06"),
        ("moment", "2024-01-04", "2024-01-06T12:00:00"),
        ("moment", "2024-01-04 12:00", "2024-01-06T14:00:00+02:00"),
        ("moment", 19_726 * SECOND, 19_728.5 * SECOND),
        ("zoned", "2024-01-04", "2024-01-06T12:00:00"),
        ("zoned", "2024-01-04T13:00:00+01:00", "2024-01-06T12:00:00Z"),
        ("zoned", 19_726 * SECOND * 10**6, 19_729 * SECOND * 10**6),
        ("price", 3.99, 5.99),
        ("price", "3.99", "5.99"),
        ("price", 3, 6),
        ("price", 3.985, 5.995),
        ("weight", 0.3, 0.5),
        ("weight", "0.3", "0.5"),
        ("small", 2.5, 5.5),
        ("small", "3", "5"),
        ("small", 3.0, 5),
        ("large", 2**60 + 3, 2**60 + 5),
        ("title", "green", "greeo"),
    ],
)
def test_bounds_are_read_as_the_column_is(api, column, low, high):
    expected = [3, 4, 5] if column != "title" else [row for row in range(N) if row % 10 == 2]
    assert rows(api, column=column, at_least=low, at_most=high) == expected


@pytest.mark.parametrize(
    ("column", "given"),
    [
        ("day", ["2024-01-04", 19_727]),
        ("moment", ["2024-01-04T12:00:00", "2024-01-05T12:00:00Z"]),
        ("zoned", ["2024-01-04T12:00:00", "2024-01-05T13:00:00+01:00"]),
        ("price", ["3.99", 4.99]),
        ("weight", [0.3, 0.4]),
        ("small", [3, 4.0]),
        ("small", ["3", 4, 2.5, 300]),  # no cell is one of the latter
        ("weight", ["0.3", 0.4]),
        ("sold", ["2024-01-04", "2024-01-05"]),
    ],
)
def test_values_are_read_as_the_column_is(api, column, given):
    assert rows(api, column=column, any_of=given) == [3, 4]
    assert rows(api, column=column, none_of=given) == [row for row in range(N) if row not in (3, 4)]


def test_bounds_may_lie_beyond_what_the_column_can_hold(api):
    assert len(rows(api, column="small", at_least=-1000, at_most=10**30)) == len(rows(api, column="weight", at_most=10**30)) == N
    assert rows(api, column="price", at_least=10**20) == []


@pytest.mark.parametrize("bound", ["at_least", "at_most", "any_of"])
@pytest.mark.parametrize(
    ("column", "given"),
    [
        *((column, "nonsense") for column in ("day", "day64", "moment", "zoned", "price", "weight", "small", "new", "sold")),
        *((column, "") for column in ("day", "moment", "price", "small")),
        *((column, True) for column in ("day", "moment", "price", "small", "large", "weight")),
        *(("new", other) for other in (1, 1.0, "true")),
        *((column, 10**400) for column in ("day", "moment", "zoned", "price", "weight", "small")),
        *(("day", other) for other in ("2024-13-01", "2024-01-04T12:00:00", 5.5, 2**40)),
        *(("moment", other) for other in ("12:00", 5.5)),
        ("vector", "nonsense"),
    ],
)
def test_nonsense_is_refused_in_one_line(api, column, given, bound):
    said = recommend(api, 422, history=[], where=[{"column": column, bound: [given] if bound == "any_of" else given}])["detail"]
    assert said.startswith(f"column '{column}' holds ") and said.endswith("it cannot be compared with what is given")


@pytest.mark.parametrize(("column", "given"), [("title", 3), ("small", True), ("weight", True), ("new", 1)])
def test_what_has_no_order_is_refused(api, column, given):
    assert "cannot be compared" in recommend(api, 422, history=[], where=[{"column": column, "at_least": given}])["detail"]


def test_lists_that_are_not_there_hold_nothing(api):
    assert rows(api, column="tags", any_of=["t6", "t20", "t31"]) == [10, 15]  # t6 lies under a list that is not there
    assert rows(api, column="tags", none_of=[f"t{row}" for row in range(20, 2 * N)]) == list(range(10))


def test_a_condition_that_cannot_hold_spoils_no_other_request(api):
    bad = {"history": [], "where": [{"column": "small", "any_of": ["many"]}]}
    first, second = api.post("/v1/recommend/batch", json={"requests": [bad, {"user": 7}]}).json()["results"]
    assert "cannot be compared" in first["error"] and second["result"]["items"]


# Ids


def test_whole_numbers_are_ids_however_they_are_written(api):
    assert recommend(api, user=7.0) == recommend(api, user=7)
    asked = {"history": [105, 106], "only": [105, 110, 111], "deny": [110]}
    assert recommend(api, **{name: [float(each) for each in given] for name, given in asked.items()}) == recommend(api, **asked)
    assert api.post("/v1/events", json={"events": [{"user": 900.0, "item": 110.0}]}).status_code == 201
    assert [one["item"] for one in api.get("/v1/users/900").json()["history"]] == [110]


@pytest.mark.parametrize("given", [3.5, True, [3], {}, 1e-9])
def test_what_is_no_id_is_told_so(api, given):
    for asked, place in (({"user": given}, "body.user"), ({"history": [105, given]}, "body.history.1")):
        assert recommend(api, 422, **asked)["detail"] == f"{place}: an id is text or a whole number"


def test_numbers_that_json_does_not_know_exactly_are_refused(api):
    for given in (2**53, -(2**53), 1e300):
        assert "longer ones are sent as text" in recommend(api, 422, user=given)["detail"]


# Keys


@pytest.mark.parametrize("action", [("add", "bob"), ("list",), ("remove", "bob")])
def test_no_store_is_made_beside_nothing(tmp_path, action):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoint").mkdir(parents=True)
    before = contents(tmp_path)
    for name, said in (("typo", "there is no run folder"), ("empty", "is not a run folder"), ("begun", "is not finished")):
        done = here("keys", *action, "--run", tmp_path / name)
        assert done.returncode == 2 and said in done.stderr and not done.stdout and done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_keys_are_removed_by_name_or_id(run):
    beside = ("--run", run)
    ids = [here("keys", "add", name, *beside).stdout.split("_")[1] for name in ("anna", "shop", "shop")]
    assert here("keys", "remove", "anna", *beside).returncode == 0
    again = here("keys", "remove", "anna", *beside)
    assert again.returncode == 2 and "there is no key 'anna'" in again.stderr
    both = here("keys", "remove", "shop", *beside)
    assert both.returncode == 2 and f"2 keys are named 'shop': say which by its id, {ids[1]} or {ids[2]}" in both.stderr
    assert here("keys", "remove", ids[1], *beside).returncode == here("keys", "remove", "shop", *beside).returncode == 0
    assert "shop" not in here("keys", "list", *beside).stdout


def test_a_run_that_is_named_goes_before_the_store_of_the_environment(run, tmp_path):
    other = f"sqlite:///{tmp_path}/other.sqlite"
    assert here("keys", "add", "elsewhere", "--store", other).returncode == 0
    there = subprocess.run(
        [sys.executable, "-m", "asymrec", "keys", "list", "--run", str(run)],
        env=environment() | {"ASYMREC_STORE": other}, capture_output=True, text=True,
    )  # fmt: skip
    assert there.returncode == 0 and "elsewhere" not in there.stdout
    both = here("keys", "list", "--run", run, "--store", other)
    assert both.returncode == 2 and "give the server's store: --run RUN, or --store URL" in both.stderr


@pytest.mark.parametrize("condition", [{"at_least": None, "any_of": ["a", None]}, {"any_of": [[1]]}, {"at_most": {}}])
def test_what_is_no_value_is_told_in_a_word(api, condition):
    answer = api.post("/v1/recommend", json={"history": [], "where": [{"column": "title"} | condition]})
    assert answer.status_code == 422 and answer.json()["detail"].endswith(": a value to compare with is a number, text, true or false")


def test_another_file_is_not_taken_for_a_store(run, tmp_path):
    (tmp_path / "items.csv").write_text("item,title\n1,a\n")
    for command in (("serve", run), ("keys", "list")):
        done = here(*command, "--store", f"sqlite:///{tmp_path}/items.csv")
        assert done.returncode == 2 and "is something else than an SQLite file" in done.stderr
    assert contents(tmp_path) == ["items.csv"]


# New items


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"vector": "shoes"}, "column 'vector' holds lists of numbers (float), not 'shoes'"),
        ({"sold": "2024-01-04"}, "column 'sold' holds lists of days such as '2024-01-31', not '2024-01-04'"),
        ({"sold": ["soon"]}, "column 'sold' holds lists of days such as '2024-01-31', not [\"soon\"]"),
        ({"small": 2.7}, "column 'small' holds whole numbers (int8), not 2.7"),
        ({"small": 10**400}, f"column 'small' holds whole numbers (int8), not 1{'0' * 79}..."),
        ({"small": True}, "column 'small' holds whole numbers (int8), not true"),
        ({"weight": True}, "column 'weight' holds numbers (float), not true"),
        ({"title": 3}, "column 'title' holds text, not 3"),
        ({"title": ["\ud800é"]}, "column 'title' holds text, not [\"?é\"]"),
        ({"price": True}, "column 'price' holds numbers (decimal128(10, 2)), not true"),
        ({"new": 1}, "column 'new' holds true or false, not 1"),
        ({"moment": 5}, "column 'moment' holds moments such as '2024-01-31T12:00:00', not 5"),
    ],
)
def test_values_of_another_type_are_refused_and_nothing_is_changed(api, columns, told):
    before = api.get("/v1/items/105").json()
    answer = api.patch("/v1/items/105", content=json.dumps(columns), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (422, told)
    assert api.get("/v1/items/105").json() == before


def test_what_is_told_of_an_item_can_be_sent(api, run):
    """A change of one column leaves all others as they are, also after a restart, which reads them from the store."""
    for item in (100, 103):
        before = api.get(f"/v1/items/{item}").json()["columns"]
        assert api.patch(f"/v1/items/{item}", json={"weight": 7.5}).status_code == 200
        after = api.get(f"/v1/items/{item}").json()["columns"]
        assert after == before | {"weight": 7.5}
        assert api.put(f"/v1/items/{item}", json=before).status_code == 200
        assert api.get(f"/v1/items/{item}").json()["columns"] == before
    snapshot = api.service.catalogue.snapshot
    row, own = snapshot.rows["103"], snapshot.run.dataset.items
    (put,) = snapshot.table.slice(int(snapshot.lines[row]), 1).to_pylist()
    assert put == own.slice(3, 1).to_pylist()[0] and snapshot.table.schema == own.schema
    assert (before["length"], before["opens"], before["sizes"]) == ("2 days, 0:03:00.005000", "03:30:00", [["s", 3], ["m", None]])


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"length": "long"}, "column 'length' holds durations in whole ms, such as '2 days, 1:30:00', not 'long'"),
        ({"opens": "noon"}, "column 'opens' holds times of day such as '09:30:00', not 'noon'"),
        ({"sizes": {"s": 3}}, "column 'sizes' holds lists of pairs [text, whole numbers (int32)], not {\"s\": 3}"),
        ({"sizes": [["s"]]}, "column 'sizes' holds lists of pairs "),
        ({"sizes": [["s", 2.7]]}, "column 'sizes' holds lists of pairs "),
        ({"sizes": [["s", True]]}, "column 'sizes' holds lists of pairs "),
        ({"weight": 1e300}, "column 'weight' holds numbers (float), not 1e+300"),
        ({"length": "0:00:00.0001"}, "column 'length' holds durations in whole ms"),
        ({"made": {"at": "home"}}, "column 'made' holds objects {by: text, on: days such as '2024-01-31'}, not {\"at\": \"home\"}"),
        ({"seller": "x"}, "column 'seller' holds UUIDs, not 'x'"),
        ({"seller": 5}, "column 'seller' holds UUIDs, not 5"),
        ({"kind": "none"}, "column 'kind' holds whole numbers (int16), not 'none'"),
    ],
)
def test_what_is_no_cell_is_told(api, columns, told):
    before = api.get("/v1/items/107").json()
    answer = api.patch("/v1/items/107", json=columns)
    assert answer.status_code == 422 and told in answer.json()["detail"], answer.text
    assert api.get("/v1/items/107").json() == before


def test_of_many_items_the_value_that_does_not_fit_is_told(api):
    items = [{"item": 105 + number, "columns": {"title": "a thing"} if number != 2 else {"title": 5}} for number in range(4)]
    assert api.post("/v1/items", json={"items": items}).json() == {"detail": "column 'title' holds text, not 5"}
    assert api.get("/v1/items/105").json()["title"] != "a thing"


def test_moments_beyond_pythons_years_are_told(api):
    before = api.get("/v1/items/108").json()["columns"]
    assert api.patch("/v1/items/108", json={"moment": "0000-01-01"}).status_code == 200
    for _ in range(2):
        assert api.get("/v1/items/108").json()["columns"]["moment"].startswith("0000-01-01 00:00:00")
        assert api.patch("/v1/items/108", json={"weight": 2.5}).status_code == 200
    assert api.put("/v1/items/108", json=before).status_code == 200


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (pa.binary(), "AB0F", "ab0f"),
        (pa.decimal128(10, 2), "1.5", "1.50"),
        (pa.float64(), "900", "900.0"),
        (pa.timestamp("s"), "2030-01-01T00:00:00", "2030-01-01 00:00:00"),
        (pa.int64(), "0900", "900"),
        (pa.string(), None, "Any text"),
    ],
)
def test_an_id_has_one_form(kind, given, told):
    run = SimpleNamespace(dataset=SimpleNamespace(item_ids=pa.array([], kind)))
    assert [str(as_id(own)) for own in _ids(run, [told]).to_pylist()] == [told]
    if given:
        with pytest.raises(DataError, match="item ids of this run are of type"):
            _ids(run, [given])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(api, number):
    answer = api.put("/v1/items/105", content=f'{{"title": "a thing", "weight": {number}}}', headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_times_in_nanoseconds_are_times(api, monkeypatch):
    monkeypatch.setattr(api.service.catalogue.snapshot.run.dataset, "time_unit", "ns")
    events = {"events": [{"user": "nano", "item": 105, "time": 1_795_742_719_000_000_000}]}
    assert api.post("/v1/events", json=events).status_code == 201
    assert api.get("/v1/users/nano").json()["history"][0]["time"] == 1_795_742_719_000_000_000
    assert api.post("/v1/events", json={"events": [events["events"][0] | {"time": 2**63}]}).status_code == 422


def test_decimals_are_numbers_or_text(api):
    for given in (19.99, "19.99"):
        answer = api.patch("/v1/items/106", json={"price": given})
        assert answer.status_code == 200, answer.text
        assert api.get("/v1/items/106").json()["columns"]["price"] == "19.99"
    assert api.patch("/v1/items/106", json={"price": 20, "small": 7.0, "sold": ["2024-01-04", None]}).status_code == 200
    assert api.get("/v1/items/106").json()["columns"]["sold"] == ["2024-01-04", None]


# Lists for many users, with Ray


def test_a_history_is_a_list(run, tmp_path):
    pq.write_table(pa.table({"history": ["105", "106,107"]}), tmp_path / "users.parquet")
    done = here("batch", run, tmp_path / "users.parquet", "-o", tmp_path / "lists.parquet")
    assert done.returncode == 2 and "column 'history' must hold lists of item ids, found string" in done.stderr


def test_as_many_workers_as_cores_make_the_lists(run, tmp_path):
    """They would wait for ever if the models had all cores; and Ray says nothing of its own."""
    pytest.importorskip("ray")
    pq.write_table(pa.table({"user": range(1, 101), "note": ["a"] * 100}), tmp_path / "users.parquet")
    command = [sys.executable, "-m", "asymrec", "batch", run, tmp_path / "users.parquet", "-o", tmp_path / "lists", "-k", "3"]
    command += ["--workers", str(min(os.cpu_count(), 4))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=900)  # Ray takes minutes on busy cores
    assert done.returncode == 0 and done.stderr == "" and done.stdout.strip() == str(tmp_path / "lists"), done.stderr
    found = pq.read_table(tmp_path / "lists").sort_by("user")
    assert found["items"].to_pylist() == Recommender.load(run).recommend(users=range(1, 101), k=3)[0]


def test_what_fails_in_a_worker_is_raised_as_it_was(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, logging.root.manager.disable
    for raised, kind, said in (
        (ray.exceptions.RayTaskError("f", "traceback", UnknownIdError("unknown user id 9\nTo change retry ...")), UnknownIdError, "id 9$"),
        (ray.exceptions.RayError("a machine\n went away"), RunError, "Ray could not make the lists: a machine went away"),
    ):
        with pytest.raises(kind, match=said), _ray():
            assert not context.enable_progress_bars
            raise raised
    assert (context.enable_progress_bars, logging.root.manager.disable) == before


def test_ray_is_not_begun_for_what_cannot_be(run, tmp_path):
    pytest.importorskip("ray")
    pq.write_table(pa.table({"user": [1]}), tmp_path / "users.parquet")
    done = here("batch", tmp_path / "typo", tmp_path / "users.parquet", "-o", tmp_path / "lists", "--workers", 1)
    assert done.returncode == 2 and "there is no run folder" in done.stderr and contents(tmp_path) == ["users.parquet"]
