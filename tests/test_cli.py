"""The command line as a process of its own: what it prints, how it ends, and that bad input leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small import asymrec, contents, environment, here, settings, tables, write

from asymrec import Recommender


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("cli") / "shop", *tables())


@pytest.fixture(scope="module")
def run(data) -> Path:
    folder = data.parent / "run"
    done = asymrec("fit", data, "-o", folder, *settings())
    assert done.returncode == 0, done.stderr
    assert "epoch   2" in done.stderr and "\r" not in done.stderr
    assert "asymrec     history kept" in done.stdout and "NDCG@10" in done.stdout
    assert f"report: {folder / 'report.html'}" in done.stdout
    return folder


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, and one line that says why."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: "), done.stderr
    assert not any(line.startswith(("error", "Traceback", " ")) for line in before), done.stderr
    for part in parts:
        assert part in last, last


# Help


def test_help_is_quick_and_loads_nothing_heavy():
    command, seconds = [sys.executable, "-m", "asymrec", "--help"], []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        seconds.append(time.perf_counter() - begun)
    for command in ("fit", "evaluate", "recommend", "codes", "data"):
        assert re.search(rf"^  {command} ", done.stdout, re.M)
    code = "import sys, asymrec.cli; print([m for m in ('torch', 'numba', 'pandas', 'numpy', 'pyarrow', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True).stdout == "[]\n"
    assert min(seconds) < 1.5  # 0.2 s on a free core; cores may be busy


def test_version_and_usage():
    from asymrec import __version__

    assert asymrec("--version").stdout == f"asymrec {__version__}\n"
    done = asymrec("fti")
    assert done.returncode == 2 and "Did you mean 'fit'" in done.stderr
    refused(here("fit", "-o", "run"), "DATA is missing")


# Bad input


def _one_null(column: str):
    def change(interactions: pa.Table) -> pa.Table:
        values = interactions[column].to_pylist()
        values[6] = None
        return interactions.set_column(interactions.column_names.index(column), column, pa.array(values))

    return change


def _text_times(interactions: pa.Table) -> pa.Table:
    values = pc.cast(interactions["timestamp"], pa.string()).to_pylist()
    values[3] = "yesterday"
    return interactions.set_column(2, "timestamp", pa.array(values))


def _doubled(items: pa.Table) -> pa.Table:
    return pa.concat_tables([items, items.slice(4, 1)])


BAD_TABLES = {
    "no such column": (lambda t: t.rename_columns(["who", "item_id", "timestamp"]), None, ("interactions.parquet", "user")),
    "empty": (lambda t: t.slice(0, 0), None, ("interactions.parquet", "empty")),
    "null id": (_one_null("user_id"), None, ("interactions.parquet", "column 'user_id', row 7", "null")),
    "null time": (_one_null("timestamp"), None, ("interactions.parquet", "column 'timestamp', row 7", "null")),
    "unparseable time": (_text_times, None, ("interactions.parquet", "column 'timestamp', row 4", "yesterday")),
    "duplicate item": (None, _doubled, ("items.parquet", "column 'item_id', row 121", "duplicate item id 104")),
    "unknown items": (None, lambda t: t.slice(2), ("interactions.parquet", "column 'item_id'", "drop_unknown", "100, 101")),
    "too few": (lambda t: t.filter(pc.less(t["timestamp"], 1_000_100)), None, ("3",)),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(case, tmp_path):
    bad_interactions, bad_items, said = BAD_TABLES[case]
    interactions, items = tables()
    interactions = bad_interactions(interactions) if bad_interactions else interactions
    write(tmp_path / "shop", interactions, bad_items(items) if bad_items else items)
    before = contents(tmp_path)
    refused(asymrec("fit", "shop", "-o", "runs/a", *settings(), cwd=tmp_path), *said)
    assert contents(tmp_path) == before


def test_missing_and_unreadable_files(data, tmp_path):
    refused(asymrec("fit", tmp_path / "absent", "-o", "run", cwd=tmp_path), "absent: no such folder")
    (tmp_path / "shop").mkdir()
    refused(asymrec("fit", "shop", "-o", "run", cwd=tmp_path), "shop: no interactions.parquet")
    whole = (data / "interactions.parquet").read_bytes()
    (tmp_path / "shop/interactions.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "shop/items.parquet").write_bytes((data / "items.parquet").read_bytes())
    refused(asymrec("fit", "shop", "-o", "run", cwd=tmp_path), "interactions.parquet: not readable")
    assert contents(tmp_path) == ["shop", "shop/interactions.parquet", "shop/items.parquet"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "facet=8"], ("unknown setting 'facet'", "did you mean 'facets'")),
        (["--set", "epochs=none"], ("training.epochs", "none")),
        (["--set", "epochs"], ("key=value",)),
        (["--set", "seed=99999999999999999999"], ("training.seed", "less than")),
        (["--config", "papre"], ("no preset 'papre'", "did you mean 'paper'")),
        (["--config", "absent.yaml"], ("cannot read configuration absent.yaml",)),
        (["--model", "item-knn2"], ("unknown model 'item-knn2'", "did you mean 'itemknn'")),
        (["--user-column", "buyer"], ("interactions.parquet", "buyer")),
        (["--set", "views=[title]"], ("title",)),
    ],
)
def test_bad_settings(options, said, data, tmp_path):
    refused(here("fit", data, "-o", "run", *settings(), *options, cwd=tmp_path), *said)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "asymrc"], "did you mean 'asymrec'"),
        (["--set", "device=cuda:99"], "device 'cuda:99'"),
        (["--model", "rpg", "--set", "temperature=null"], "temperature must be a number"),
        (["--model", "flexcode", "--set", "router_epochs=0"], "the router would learn nothing"),
    ],
)
def test_what_needs_no_data_is_told_before_they_are_read(options, said, tmp_path):
    (tmp_path / "shop").mkdir()  # whose tables would be missed
    done = here("fit", "shop", "-o", "run", *options, cwd=tmp_path)
    refused(done, said)
    assert "read the tables" not in done.stderr and contents(tmp_path) == ["shop"]


def test_a_run_in_the_way_and_no_run_at_all(run, data, tmp_path):
    before = (run / "metrics.json").read_bytes()
    refused(asymrec("fit", data, "-o", run), "holds a run already", "--overwrite")
    assert (run / "metrics.json").read_bytes() == before
    refused(here("evaluate", tmp_path), "is not a run folder")
    refused(here("fit", "-o", tmp_path / "absent", "--resume"), "DATA is missing", "nothing to resume in")
    refused(here("recommend", run), "--user U, or --history A,B,C")
    (tmp_path / "empty.txt").write_text("\ufeff\n")
    refused(here("recommend", run, "--user", "1", "--only", tmp_path / "empty.txt"), "empty.txt holds no ids")
    (tmp_path / "ids.txt").write_text("\ufeff101\n102\n", encoding="utf-8")
    assert "101" in here("recommend", run, "--history", "105", "--only", tmp_path / "ids.txt").stdout
    refused(here("recommend", tmp_path / "absent", "--user", "1"), "there is no run folder")


# What works


def test_drop_unknown_goes_on_and_says_so(tmp_path):
    interactions, items = tables(users=60)
    write(tmp_path / "shop", interactions, items.slice(2))
    done = here("fit", "shop", "-o", "run", "--drop-unknown", "--model", "popularity", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unknown = sum(item in (100, 101) for item in interactions["item_id"].to_pylist())
    assert unknown and re.search(rf"note: .*\b{unknown}\b", done.stderr), done.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["dataset"]["interactions"] == len(interactions) - unknown


def test_files_and_columns_by_name_and_file_order(tmp_path):
    interactions, items = tables(users=60)
    interactions = interactions.sort_by("timestamp")
    lines = [f"{who},{what}" for who, what in zip(interactions["user_id"].to_pylist(), interactions["item_id"].to_pylist())]
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        file.write("\n".join(["buyer,good", *lines]))
    pq.write_table(items.rename_columns(["good", "title", "vector"]), tmp_path / "goods.parquet")
    names = ("--user-column", "buyer", "--item-column", "good")
    options = ("--items", "goods.parquet", "-o", "run", *names, "--model", "itemknn")
    done = here("fit", "log.csv.gz", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: no timestamps and no positions: file order is used" in done.stderr


def test_evaluate(run):
    before = json.loads((run / "metrics.json").read_text())
    done = here("evaluate", run, "--json", "--against", run)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    for model, found in before["metrics"].items():
        assert after["metrics"][model]["kept"] == found["kept"]
    assert [one["difference"] for one in after["against"]] == [0, 0, 0, 0]
    table = here("evaluate", run, "--against", run).stdout
    assert f"{before['metrics']['asymrec']['removed']['recall@10']:.4f}" in table
    assert "paired bootstrap over 200 users" in table


def test_a_fit_for_tuning_is_not_tested(data, tmp_path):
    done = here("fit", data, "-o", tmp_path / "run", "--model", "popularity", "--on", "validation")
    assert done.returncode == 0 and "; validation on 200 users" in done.stdout and "200 users of the validation" in done.stderr
    assert "; validation on 200 users" in here("evaluate", tmp_path / "run").stdout
    assert "; test on 200 users" in here("evaluate", tmp_path / "run", "--on", "test").stdout
    refused(here("evaluate", tmp_path / "run", "--on", "train"), "evaluated on test or validation, not on 'train'")
    refused(here("fit", data, "-o", tmp_path / "new", "--on", "tset"), "evaluated on test or validation, not on 'tset'")
    assert not (tmp_path / "new").exists()


def test_hits_by_code_id_stand_under_hits_by_item(run, capsys):
    from asymrec.cli import _print_metrics
    from asymrec.runs import read_facts

    facts = read_facts(run)
    facts["metrics"]["asymrec"]["code_level"] |= {"ids": 100, "kept": {"recall@10": 0.7654}}
    facts["dataset"].pop("part")  # as written before there were two
    _print_metrics(facts)
    lines = capsys.readouterr().out.splitlines()
    assert "; test on 200 users" in lines[0]
    at = next(number for number, line in enumerate(lines) if line.startswith("  asymrec"))
    assert "hits by code id" in lines[at + 1] and "0.7654" in lines[at + 1]
    facts["metrics"]["asymrec"]["code_level"]["ids"] = facts["metrics"]["asymrec"]["items"]
    _print_metrics(facts)
    assert "code id" not in capsys.readouterr().out


def test_recommend_prints_titles_and_never_what_was_seen(run, data):
    interactions = pq.read_table(data / "interactions.parquet").sort_by("timestamp")
    seen = interactions.filter(pc.equal(interactions["user_id"], 7))["item_id"].to_pylist()
    (found,) = json.loads(here("recommend", run, "--user", 7, "-k", 5, "--json").stdout)
    assert found["user"] == 7 and [item["id"] for item in found["history"]] == seen
    ids = [item["id"] for item in found["items"]]
    assert len(ids) == 5 and not set(ids) & set(seen)
    scores = [item["score"] for item in found["items"]]
    assert scores == sorted(scores, reverse=True)

    done = asymrec("recommend", run, "--user", 7, "--user", 8, "-k", 5)
    assert re.search(rf"^ +1  {ids[0]} +\w+ \w+ thing {ids[0] - 100} ", done.stdout, re.M), done.stdout
    assert f"user 7 ({len(seen)} items)" in done.stdout and "\nuser 8 (" in done.stdout
    assert f"thing {seen[-1] - 100}" in done.stdout

    # the same history without its times
    (given,) = json.loads(here("recommend", run, "--history", ",".join(map(str, seen)), "-k", 5, "--json").stdout)
    (expected,), (expected_scores,) = Recommender.load(run).recommend([seen], 5)
    assert [item["id"] for item in given["items"]] == expected and given["user"] is None and given["history"] == found["history"]
    np.testing.assert_allclose([item["score"] for item in given["items"]], expected_scores, atol=1e-5)


def test_what_is_not_there_is_told_as_what_it_may_be(run, tmp_path):
    done = here("recommend", run, "--user", 7, "--only", "nofile.txt")
    assert done.returncode == 2 and "unknown item id 'nofile.txt'" in done.stderr and "nor is there a file nofile.txt" in done.stderr
    before = (run / "metrics.json").stat().st_mtime_ns
    done = here("evaluate", run, "--against", tmp_path / "nowhere")
    assert done.returncode == 2 and "there is no run folder" in done.stderr and (run / "metrics.json").stat().st_mtime_ns == before
    (tmp_path / "ranker.json").write_text("{}")
    assert "is a ranker, which `asymrec rank` reads" in here("recommend", tmp_path, "--user", 7).stderr
    assert "setting 'fusion.parts': Input should be a list" in here("fit", tmp_path, "-o", tmp_path / "r", "--set", "parts=asymrec").stderr


def test_recommend_with_lists(run, tmp_path):
    (tmp_path / "allowed.txt").write_text("110\n111\n112\n")
    options = ("--history", "110", "--only", tmp_path / "allowed.txt", "--json")
    (found,) = json.loads(here("recommend", run, *options, "--exclude", "112").stdout)
    (both,) = json.loads(here("recommend", run, *options, "--exclude", "112", "--exclude", str(found["items"][0]["id"])).stdout)
    assert both["items"] == found["items"][1:]
    assert [item["id"] for item in found["items"]] == [111]
    (found,) = json.loads(here("recommend", run, *options, "--include-seen").stdout)
    assert {item["id"] for item in found["items"]} == {110, 111, 112}


def test_recommend_says_that_no_item_is_left(run):
    refused(here("recommend", run, "--user", "1", "--only", "101,102", "--exclude", "102,101"), "no item is left")
    done = here("recommend", run, "--history", "110", "--history", "111", "--only", "110")
    assert done.returncode == 0 and done.stdout.count("score") == 1 and done.stdout.index("score") > done.stdout.index("thing 11")
    assert done.stderr == "note: no item is left to recommend to this history; --include-seen recommends those of the history too\n"


def test_unknown_ids_are_named_with_the_nearest(run):
    refused(here("recommend", run, "--user", "1999"), "unknown user id '1999'", "'199'", "for example 1, 2, 3")
    refused(here("recommend", run, "--history", "110,abc,abd"), "unknown item id 'abc'", "for example 100, 101, 102")
    refused(here("recommend", run, "--user", "1", "-k", "0"), "k must be at least 1")
    refused(here("recommend", run), "--user U, or --history A,B,C")
    refused(here("recommend", run, "--user", "1", "--history", "110"), "--user and --history are both given: it is one or the other")


def test_codes(run):
    done = here("codes", run)
    assert "120 items of width 16: 4 facets x 2 levels x 16 codewords" in done.stdout
    found = json.loads(here("codes", run, "--item", 105, "-k", 4, "--json").stdout)
    table = pq.read_table(run / "catalogue.parquet")
    codes = dict(zip(table["item"].to_pylist(), table["codes"].to_pylist()))
    assert [code for facet in found["codes"] for code in facet] == codes[105]
    shared = {item: sum(a == b for a, b in zip(own, codes[105])) for item, own in codes.items() if item != 105}
    best = sorted(shared, key=lambda item: (-shared[item], item))[:4]
    assert [(one["id"], one["shared"]) for one in found["nearest"]] == [(item, shared[item]) for item in best]
    refused(here("codes", run, "--item", "5"), "unknown item id '5'")


@pytest.mark.parametrize("kind", ["text", "uuid"])
def test_ids_come_back_as_they_went_in(kind, tmp_path):
    import uuid

    of = {"text": lambda n: f"item, {n}", "uuid": lambda n: str(uuid.UUID(int=n))}[kind]
    interactions, items = tables(users=40)
    own = [of(n) for n in items["item_id"].to_pylist()]
    named = interactions.set_column(1, "item_id", pa.array([of(n) for n in interactions["item_id"].to_pylist()]))
    named = named.set_column(0, "user_id", pa.array([f"{n:03d}" for n in named["user_id"].to_pylist()]))
    write(tmp_path / "shop", named, items.set_column(0, "item_id", pa.array(own)))
    assert here("fit", "shop", "-o", "run", "--model", "itemknn", cwd=tmp_path).returncode == 0
    (found,) = json.loads(here("recommend", "run", "--user", "007", "--json", cwd=tmp_path).stdout)
    assert found["user"] == "007" and {item["id"] for item in found["items"]} <= set(own)
    quoted = ",".join(f'"{item["id"]}"' for item in found["history"])
    (again,) = json.loads(here("recommend", "run", "--history", quoted, "--json", cwd=tmp_path).stdout)
    assert again["items"] == found["items"]
    refused(here("recommend", "run", "--user", "7", cwd=tmp_path), "unknown user id '7'")


def test_ctrl_c_ends_with_130_and_a_hint(data, tmp_path):
    command = [sys.executable, "-m", "asymrec", "fit", str(data), "-o", "run", *settings(epochs=1000, patience=1000)]

    def listen() -> None:  # a suite that a shell runs in the background inherits that interruptions are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    options = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, preexec_fn=listen, **options)
    try:
        for line in process.stderr:
            if line.startswith("epoch"):
                os.kill(process.pid, signal.SIGINT)
                break
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.splitlines()[-1] == "interrupted; go on with: asymrec fit -o run --resume"
    assert "Traceback" not in told
    refused(asymrec("evaluate", "run", cwd=tmp_path), "is not finished", "--resume")


def test_data_lists_and_refuses(tmp_path):
    assert "movielens-100k" in asymrec("data", "--list").stdout.split()
    refused(here("data", "movielens-10k", "-o", "x", cwd=tmp_path), "did you mean 'movielens-100k'")
    refused(here("data", "movielens-100k", cwd=tmp_path), "-o DATA")
    assert contents(tmp_path) == []
