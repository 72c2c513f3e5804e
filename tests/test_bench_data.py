"""A benchmark's data sets: how they are read, looked at before the first fit, and known again when they have changed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from benched import fits_here, written
from small import SETTINGS, environment, here, tables, write

from asymrec.bench.data import fingerprint
from asymrec.bench.plan_file import read_plan
from asymrec.bench.run import read, state
from asymrec.data import Dataset

ENGLISH = {"user_id": "kunde", "item_id": "artikel", "timestamp": "wann"}
GERMAN = {"user": "kunde", "item": "artikel", "time": "wann"}


@pytest.fixture(autouse=True)
def quick():
    with fits_here():
        yield


def planned(folder: Path, **plan: object) -> Path:
    return written(folder, output="out", **plan)


def shop(folder: Path, seed: int = 0, timed: bool = True) -> tuple[pa.Table, pa.Table]:
    interactions, items = tables(users=40, items=60, seed=seed)
    interactions = interactions if timed else interactions.drop_columns("timestamp")
    write(folder, interactions, items)
    return interactions, items


def german(folder: Path) -> None:
    """A shop whose columns no list of names holds."""
    interactions, items = tables(users=40, items=60)
    write(folder, *(table.rename_columns([ENGLISH.get(name, name) for name in table.column_names]) for table in (interactions, items)))


def more(folder: Path, interactions: pa.Table, items: pa.Table) -> None:
    """The shop again, with one interaction more: the first user's last."""
    later = pa.table({"user_id": [1], "item_id": [interactions["item_id"][0].as_py()], "timestamp": [9_000_000]}, interactions.schema)
    write(folder, pa.concat_tables([interactions, later]), items)


def rows(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """table.csv by (data, protocol, model)."""
    with open(folder / "out/table.csv", encoding="utf-8", newline="") as file:
        return {(line["data"], line["protocol"], line["model"]): line for line in csv.DictReader(file)}


def record(folder: Path, place: str) -> dict:
    return json.loads((folder / "out" / place / "cell.json").read_text(encoding="utf-8"))


# Data that have changed


def test_cells_of_data_that_have_changed_are_fitted_anew(tmp_path):
    tables_of_a = shop(tmp_path / "a")
    shop(tmp_path / "b", seed=1)
    assert here("bench", planned(tmp_path, data={"a": "a"}, models=["popularity"])).returncode == 0
    old = record(tmp_path, "a/standard/popularity/seed-0")
    assert old["fingerprint"] == fingerprint(tmp_path / "a")
    more(tmp_path / "a", *tables_of_a)
    path = planned(tmp_path, data={"a": "a", "b": "b"}, models=["popularity", "itemknn"])
    assert "a standard popularity seed 0  to do" in here("bench", path, "--list").stdout
    done = here("bench", path)
    assert done.returncode == 0, done.stderr
    assert set(rows(tmp_path)) == {(data, "standard", model) for data in "ab" for model in ("popularity", "itemknn")}
    prints = {
        data: {record(tmp_path, f"{data}/standard/{model}/seed-0")["fingerprint"] for model in ("popularity", "itemknn")} for data in "ab"
    }
    assert len(prints["a"]) == len(prints["b"]) == 1 and len(prints["a"] | prints["b"] | {old["fingerprint"]}) == 3
    facts = json.loads((tmp_path / "out/a/standard/popularity/seed-0/metrics.json").read_text())
    assert facts["dataset"]["interactions"] == tables_of_a[0].num_rows + 1
    again = here("bench", path)
    assert again.returncode == 0 and again.stdout.splitlines() == [f"table: {tmp_path / 'out/table.html'}"]  # nothing was fitted


def test_cells_of_before_are_taken_and_what_cannot_be_compared_is_told_beside_the_rest(tmp_path):
    tables_of_a = shop(tmp_path / "a")
    shop(tmp_path / "b", seed=1)
    path = planned(tmp_path, data={"a": "a", "b": "b"}, models=["popularity", "itemknn"])
    assert here("bench", path, "--only", "data=a,model=popularity").returncode == 0
    place = tmp_path / "out/a/standard/popularity/seed-0/cell.json"
    place.write_text(json.dumps({name: value for name, value in json.loads(place.read_text()).items() if name != "fingerprint"}))
    untouched = place.stat().st_mtime_ns
    more(tmp_path / "a", *tables_of_a)
    done = here("bench", path)
    assert done.returncode == 1 and place.stat().st_mtime_ns == untouched
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: a standard: its cells cannot be compared: ")
    assert "remove the folder a/standard of the output and run the bench again" in done.stderr
    assert set(rows(tmp_path)) == {("b", "standard", "popularity"), ("b", "standard", "itemknn")}
    for name in ("table.md", "table.html"):
        page = (tmp_path / "out" / name).read_text()
        assert "Failed" in page and "users have other targets" in page and "remove the folder a/standard" in page
    logs = here("bench", path, "--export", tmp_path / "logs")
    assert logs.returncode == 1 and "remove the folder" in logs.stderr and (tmp_path / "logs/table.md").exists()
    # the remedy
    for file in sorted((tmp_path / "out/a/standard").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert here("bench", path).returncode == 0 and len(rows(tmp_path)) == 4


def test_tables_are_written_where_the_data_are_not_at_hand(tmp_path):
    shop(tmp_path / "a")
    path = planned(tmp_path, data={"a": "a"}, models=["popularity"])
    assert here("bench", path).returncode == 0
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert here("bench", path, "--table").returncode == 0 and len(rows(tmp_path)) == 1
    plan = read_plan(path, folders={"a": str(tmp_path / "elsewhere")})  # the same bytes in another place
    assert state(plan, plan.cells()[0]) == "finished"


def test_an_interrupted_cell_goes_on_with_its_data_and_not_with_others(tmp_path):
    interactions, items = tables(users=150)
    write(tmp_path / "a", interactions, items)
    models = [{"name": "asymrec", "settings": SETTINGS | {"epochs": 200, "patience": 200}}]
    path = planned(tmp_path, data={"a": "a"}, models=models)
    command = [sys.executable, "-m", "asymrec", "bench", str(path)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)
    run = tmp_path / "out/a/standard/asymrec/seed-0/run"
    for _ in range(6000):
        if process.poll() is not None or (run / "checkpoint/training").exists():
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    plan = read_plan(path)
    (cell,) = plan.cells()
    assert state(plan, cell) == "begun" and read(plan, cell)["fingerprint"] == fingerprint(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")  # another name of the same data
    moved = read_plan(path, folders={"a": str(tmp_path / "moved")})
    assert state(moved, cell) == "begun"
    more(tmp_path / "a", interactions, items)
    assert state(plan, cell) == "to do"


def test_a_fingerprint_is_of_bytes_alone(tmp_path):
    tables_of_a = shop(tmp_path / "a")
    shop(tmp_path / "b")
    first = fingerprint(tmp_path / "a")
    assert first is not None and first == fingerprint(tmp_path / "b")
    np.save(tmp_path / "v.npy", np.eye(3))
    assert fingerprint(tmp_path / "a", [tmp_path / "v.npy"]) not in (None, first)
    assert fingerprint(tmp_path / "a", [tmp_path / "w.npy"]) is fingerprint(tmp_path / "c") is None
    more(tmp_path / "a", *tables_of_a)
    assert fingerprint(tmp_path / "a") not in (None, first)
    parts = tmp_path / "parts/interactions.parquet"  # a folder of files is a table too
    write(tmp_path / "parts", *tables_of_a)
    (tmp_path / "parts/interactions.parquet").rename(tmp_path / "one.parquet")
    parts.mkdir()
    (tmp_path / "one.parquet").rename(parts / "0.parquet")
    before = fingerprint(tmp_path / "parts")
    (parts / "1.parquet").write_bytes((parts / "0.parquet").read_bytes())
    assert before not in (None, fingerprint(tmp_path / "parts"))


# How they are read


def test_a_data_set_says_how_it_is_read(tmp_path):
    german(tmp_path / "here/laden")
    np.save(tmp_path / "here/laden/v.npy", np.array(tables(items=60)[1]["vector"].to_pylist(), np.float32))
    own = {key: value for key, value in SETTINGS.items() if key not in ("text", "views")}
    models = ["popularity", {"name": "itemknn", "settings": {"neighbours": 5}}, {"name": "asymrec", "settings": own}]
    data = {"laden": {"path": "laden", "text": [], "views": "v.npy"} | GERMAN}
    path = planned(tmp_path, data=data, models=models, protocols="untied", seeds=0)
    for options in (("--root", tmp_path / "here"), ("--data", f"laden={tmp_path / 'here/laden'}")):  # the second finds all done
        done = here("bench", path, *options)
        assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert set(rows(tmp_path)) == {("laden", "untied", model) for model in ("popularity", "itemknn", "asymrec")}
    line = rows(tmp_path)["laden", "untied", "asymrec"]
    assert "--set user=kunde --set item=artikel" in line["command"] and 'views=["laden/v.npy"]' in line["command"]
    assert str(tmp_path) not in line["command"]
    plan = read_plan(path)
    (cell,) = plan.cells(["model=itemknn"])
    kept = yaml.safe_load((tmp_path / "out" / cell.place / "config.yaml").read_text())
    assert {role: kept["data"][role] for role in GERMAN} == GERMAN and kept["classic"]["neighbours"] == 5
    # a file of vectors is the data's, wherever they are, and its bytes are
    moved = (tmp_path / "here/laden").rename(tmp_path / "moved")
    other = read_plan(path, folders={"laden": str(moved)})
    assert {state(other, cell) for cell in other.cells()} == {"finished"}
    np.save(moved / "v.npy", np.load(moved / "v.npy") + 1)
    assert state(other, other.cells(["model=asymrec"])[0]) == "to do"
    # and other ways to read are other settings
    unread = read_plan(planned(tmp_path, data={"laden": {"path": "laden"}}, models=models, protocols="untied"))
    assert {state(unread, cell) for cell in unread.cells()} == {"to do"}


def test_a_models_own_settings_go_over_those_of_the_data_set(tmp_path):
    models = ["counts", {"name": "own", "model": "counts", "settings": {"vectors.text": ["b"], "window": 3}}]
    plan = read_plan(planned(tmp_path, data={"a": {"path": "a", "text": "t", "drop_unknown": True}}, models=models))
    plain, own = plan.cells()
    assert (plain.recipe().vectors.text, own.recipe().vectors.text) == (("t",), ("b",))
    assert plain.recipe().data.drop_unknown and own.recipe().data.drop_unknown
    assert plain.arguments("a", "RUN")[6:] == [
        *("--set", 'text=["t"]', "--set", "drop_unknown=true", "--set", "split=leave-last-out", "--set", "seed=0")
    ]


# A look before the first fit


def test_a_data_set_that_cannot_be_read_is_told_once_and_the_others_go_on(tmp_path):
    german(tmp_path / "laden")
    shop(tmp_path / "b")
    path = planned(tmp_path, data={"laden": "laden", "b": "b", "gone": "gone"}, models="popularity", tuning={"trials": 2})
    done = here("bench", path)
    told = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr.startswith("error: 4 cells failed, the first: laden standard popularity trial 1")
    assert told[0].startswith("laden: failed: ") and "no column of the item id among kunde, artikel, wann" in told[0]
    assert told[1].startswith("gone: failed: there is no ") and "--data gone=FOLDER" in told[1]
    assert all(line.startswith("b standard ") for line in told[2:-1])
    assert not list((tmp_path / "out").rglob("laden/standard/*")) and not list((tmp_path / "out").rglob("gone/standard/*"))
    assert {data for data, _, _ in rows(tmp_path)} == {"b"}
    page = (tmp_path / "out/table.md").read_text()
    assert page.count("no column of the item id") == 1 and str(tmp_path) not in page and "still to come" not in page
    listed = here("bench", path, "--list").stdout
    assert listed.count("failed") == 4
    # said how it is read, it is
    data = {"laden": {"path": "laden"} | GERMAN, "b": "b"}
    path = planned(tmp_path, data=data, models="popularity", tuning={"trials": 2})
    assert "failed" not in here("bench", path, "--list").stdout
    assert here("bench", path).returncode == 0 and {data for data, _, _ in rows(tmp_path)} == {"laden", "b"}
    assert not (tmp_path / "out/laden/data.json").exists()


def test_a_model_that_says_itself_how_tables_are_read_is_tried(tmp_path):
    german(tmp_path / "laden")
    models = ["popularity", {"name": "itemknn", "settings": GERMAN}]
    done = here("bench", planned(tmp_path, data={"laden": "laden"}, models=models))
    assert done.returncode == 1 and "error: 1 cells failed, the first: laden standard popularity seed 0" in done.stderr
    assert set(rows(tmp_path)) == {("laden", "standard", "itemknn")}


def test_a_protocol_that_a_data_set_cannot_have_is_no_failure(tmp_path):
    untimed = shop(tmp_path / "untimed", timed=False)
    counts = {"name": "counts", "space": {"recency": [0.3, 0.6, 0.9]}}
    more = {"models": [counts], "protocols": ["standard", "untied", "time"], "tuning": {"trials": 2}}
    path = planned(tmp_path, data={"untimed": "untimed"}, **more)
    done = here("bench", path)
    assert done.returncode == 0, done.stderr
    why = "not possible: the interactions have no times"
    assert done.stdout.splitlines()[:2] == [f"untimed untied: {why}", f"untimed time: {why}"]
    assert set(rows(tmp_path)) == {("untimed", "standard", "counts")}
    page = (tmp_path / "out/table.md").read_text()
    assert "## Not possible" in page and "| untimed time | the interactions have no times |" in page
    assert "## Failed" not in page and "still to come" not in page
    listed = here("bench", path, "--list").stdout
    assert listed.count("not possible") == 2 and "failed" not in listed and "waiting" not in listed
    # with times, it can
    interactions, items = untimed
    write(tmp_path / "untimed", interactions.append_column("timestamp", pc.multiply(pa.array(range(interactions.num_rows)), 60)), items)
    assert "not possible" not in here("bench", path, "--list").stdout


def test_a_data_set_too_small_for_a_split_fails_without_a_fit(tmp_path):
    shop(tmp_path / "b")
    two = pa.table({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 2, 1], "timestamp": [1, 2, 1, 2]})
    write(tmp_path / "two", two, pa.table({"item_id": [1, 2]}))
    done = here("bench", planned(tmp_path, data={"two": "two", "b": "b"}, models=["popularity"]))
    assert done.returncode == 1 and "two standard: failed: split leave-last-out: none of the 2 users" in done.stdout
    assert {data for data, _, _ in rows(tmp_path)} == {"b"} and not list((tmp_path / "out/two").glob("standard/*"))


def test_a_finished_benchmark_does_not_read_its_data(tmp_path, monkeypatch):
    shop(tmp_path / "a")
    path = planned(tmp_path, data={"a": "a"}, models=["popularity"])
    assert here("bench", path).returncode == 0
    monkeypatch.setattr(Dataset, "read", None)
    assert here("bench", path).returncode == 0


# The file


@pytest.mark.parametrize(
    "change",
    [
        *({"protocols": "untied"}, {"seeds": 3}, {"seeds": {"standard": 3}}, {"models": "counts"}, {"models": {"name": "counts"}}),
        {"models": {"name": "counts", "space": {"recency": 0.5}}, "tuning": {"trials": 2}},
        {"models": ["counts", "ease"], "headline": {"model": "counts", "rivals": "ease", "data": "a"}},
        {"data": {2018: "a"}},
    ],
)
def test_a_scalar_is_a_list_of_one(change, tmp_path):
    plan = read_plan(planned(tmp_path, **{"data": {"a": "a"}, "models": ["counts"]} | change))
    assert plan.cells()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": ["a"]}, "'data': expected a mapping of names to folders (got ['a'])"),
        ({"data": "a"}, "'data': expected a mapping of names to folders"),
        ({"data": {"my shop": "a"}}, "'data.my shop': expected a name of letters, digits, . + - _"),
        ({"data": {"a": 3}}, "'data.a' takes a folder, or a mapping with its `path`"),
        ({"data": {"a": {"user": "kunde"}}}, "'data.a.path': expected a folder"),
        ({"data": {"a": {"path": "a", "usr": "kunde"}}}, "did you mean 'user'?"),
        ({"data": {"a": {"path": "a", "split": "time"}}}, "settings are the same for every data set: not 'split'"),
        ({"data": {"a": {"path": "a", "recency": 0.5}}}, "settings are the same for every data set: not 'recency'"),
        ({"data": {"a": {"path": "a", "drop_unknown": "perhaps"}}}, "'data.a': setting 'data.drop_unknown'"),
        ({"data": {}}, "'data': is empty"),
        ({"models": None}, "'models': expected a list"),
        ({"protocols": {"a": 1}}, "'protocols': expected a list"),
        ({"seeds": ["x"]}, "'seeds.0': Input should be a valid integer"),
        ({"headline": 3}, "'headline.0', found int"),
    ],
)
def test_faults_are_told_in_words_of_the_file(change, said, tmp_path):
    done = here("bench", planned(tmp_path, **{"data": {"a": "a"}, "models": ["counts"]} | change))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr
