"""Benchmarks: a grid that is killed and goes on, tuning without the test, and tables that a hand can compute."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from benched import fits_here, planned
from small import SETTINGS, asymrec, contents, environment, here, tables, write

from asymrec.bench.figures import Averaged, _ratios, findings
from asymrec.bench.plan_file import read_plan
from asymrec.bench.run import read, settled, state
from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.errors import EvaluationError
from asymrec.evaluation import Evaluation

TIMED = ("training seconds", "scoring seconds", "peak memory MiB")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder with a plan whose protocol `standard` is done. Test processes share it, for a bench can be gone on with by anybody."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "bench"
    if not (folder / "plan.yaml").exists():
        write(folder / "shop", *tables())
        planned(folder)
    for _ in range(300):
        done = asymrec("bench", folder / "plan.yaml", "--only", "protocol=standard,model=asymrec")
        done = done if done.returncode else the_rest(folder)
        if "still at work" not in done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stderr
    return folder


def the_rest(folder: Path) -> subprocess.CompletedProcess[str]:
    with fits_here():
        return here("bench", folder / "plan.yaml", "--only", "protocol=standard")


def copied(bench: Path, to: Path) -> Path:
    return Path(shutil.copytree(bench, to / "bench"))


def lines(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """table.csv by (protocol, model)."""
    with open(folder / "out/table.csv", encoding="utf-8", newline="") as file:
        return {(line["protocol"], line["model"]): line for line in csv.DictReader(file)}


def untimed(line: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in line.items() if not name.startswith(TIMED)}


# Cells


def test_a_finished_cell_keeps_what_is_needed_and_no_more(bench):
    kept = {"cell.json", "command.txt", "config.yaml", "log.jsonl", "metrics.json", "ranks", "ranks/asymrec.parquet", "stderr.txt"}
    assert set(contents(bench / "out/shop/standard/asymrec/seed-1")) == kept
    record = json.loads((bench / "out/shop/standard/asymrec/seed-1/cell.json").read_text())
    assert record["state"] == "finished" and record["seconds"] > 0 and record["peak_memory_mib"] > 50
    facts = json.loads((bench / "out/shop/standard/asymrec/seed-1/metrics.json").read_text())
    assert facts["environment"]["threads"] == 1


def test_tuning_chooses_by_validation_and_trials_never_see_the_test(bench):
    plan = read_plan(bench / "plan.yaml")
    split = Dataset.read(bench / "shop").split()
    assert (split.validation.targets.items != split.test.targets.items).any()
    for name in ("counts", "asymrec"):
        (cell,) = plan.cells([f"model={name},seed=0,protocol=standard"])
        trials, figures = plan.trials(cell), []
        for trial in trials:
            place = bench / "out" / trial.place
            facts = json.loads((place / "metrics.json").read_text())
            assert facts["dataset"]["part"] == "validation" and "test users" not in facts["dataset"]
            ranks = pq.read_table(place / f"ranks/{name}.parquet")
            assert [targets for (targets,) in ranks["targets"].to_pylist()] == split.validation.targets.items.tolist()
            rank = np.array([ranks for (ranks,) in ranks["kept"].to_pylist()])
            figures.append(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())
            assert "--on validation" in (place / "command.txt").read_text()
        best = trials[int(np.argmax(figures))]
        for seed in (0, 1):
            place = bench / "out" / cell.place.with_name(f"seed-{seed}")
            (leaf,) = trials[1].tuned
            value = best.recipe().model_dump()["training" if name == "asymrec" else "classic"][leaf]
            assert yaml.safe_load((place / "config.yaml").read_text())["training" if name == "asymrec" else "classic"][leaf] == value
            assert json.loads((place / "metrics.json").read_text())["dataset"]["part"] == "test"


def fake(plan, cell, **record) -> None:
    """The folder of a cell that has ended, as far as choosing looks at it."""
    folder = plan.output / cell.place
    folder.mkdir(parents=True)
    figure = record.pop("figure", 0.0)
    about = {"model": cell.entry.model, "state": "finished", "settings": cell.settings} | record
    (folder / "cell.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text(cell.recipe().yaml())
    (folder / "metrics.json").write_text(json.dumps({"metrics": {cell.entry.model: {"kept": {"ndcg@10": figure}}}}))


def test_what_is_chosen_among_trials_that_failed_stopped_or_are_equal(tmp_path):
    models = [{"name": "counts", "space": {"recency": [0.3, 0.4, 0.5, 0.7]}}]
    plan = read_plan(planned(tmp_path, models=models, headline=None, tuning={"trials": 5, "minutes": 2}))
    cell, *_ = plan.cells()
    trials = plan.trials(cell)
    assert settled(plan, cell) is None and state(plan, cell) == "waiting"
    fake(plan, trials[0], figure=0.1)
    fake(plan, trials[1], state="failed", error="x", figure=0.9)
    fake(plan, trials[2], figure=0.2)
    fake(plan, trials[3], figure=0.2)
    assert settled(plan, cell) is None
    fake(plan, trials[4], state="stopped", error="x", minutes=2.0, figure=0.9)
    assert settled(plan, cell).tuned == trials[2].tuned and state(plan, cell) == "to do"
    more = read_plan(planned(tmp_path, models=models, headline=None, tuning={"trials": 5, "minutes": 3}))
    assert read(more, trials[4])["state"] == "to do" and settled(more, cell) is None


def test_a_cell_of_other_settings_is_not_taken_for_done(tmp_path):
    plan = read_plan(planned(tmp_path, models=["counts"], headline=None, tuning=None))
    cell, *_ = plan.cells()
    fake(plan, cell)
    assert state(plan, cell) == "finished"
    other = read_plan(planned(tmp_path, models=[{"name": "counts", "settings": {"gap": 0.5}}], headline=None, tuning=None))
    assert state(other, other.cells()[0]) == "to do"
    kept = tmp_path / "out" / cell.place / "config.yaml"
    recipe = yaml.safe_load(kept.read_text())
    recipe["training"]["precision"] = "bfloat16"  # what `auto` was measured to be
    del recipe["network"]["beam"]  # a setting that was not known then
    kept.write_text(yaml.safe_dump(recipe))
    assert state(plan, cell) == "finished"
    recipe["classic"]["window"] = 7  # another default then
    kept.write_text(yaml.safe_dump(recipe))
    assert state(plan, cell) == "to do"


@pytest.mark.parametrize(
    ("entry", "leaf", "taken"),
    [
        ({"name": "sasrec+content"}, "time_codes", False),  # the default came after the cell: it is none of today's
        ({"name": "sasrec+content", "settings": {"time_codes": False}}, "time_codes", True),
        ({"name": "sasrec"}, "time_codes", True),  # it has nothing of it
        ({"name": "sasrec+content"}, "router_share", True),  # as before by default
        ({"name": "asymrec"}, "items_per_codeword", False),
        ({"name": "tiger", "settings": {"tree_softmax": True}}, "tree_softmax", False),
        ({"name": "fusion", "settings": {"parts": ["sasrec+content", "counts"]}}, "time_codes", False),
        ({"name": "fusion", "settings": {"parts": ["sasrec", "counts"]}}, "time_codes", True),
    ],
)
def test_a_cell_of_before_a_default_is_of_what_was_before(entry, leaf, taken, tmp_path):
    plan = read_plan(planned(tmp_path, models=[entry], headline=None, tuning=None))
    cell, *_ = plan.cells()
    fake(plan, cell)
    kept = tmp_path / "out" / cell.place / "config.yaml"
    recipe = yaml.safe_load(kept.read_text())
    for tree in (recipe, *recipe["fusion"]["part_settings"]):
        del tree[Recipe.leaves()[leaf]][leaf]
    kept.write_text(yaml.safe_dump(recipe))
    assert state(plan, cell) == ("finished" if taken else "to do")


def started(folder: Path, appears: str) -> subprocess.Popen:
    """The bench in a process group of its own, once a file of that pattern has appeared."""
    command = [sys.executable, "-m", "asymrec", "bench", str(folder / "plan.yaml"), "--only", "protocol=standard"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)
    for _ in range(30_000):  # minutes on a busy machine
        if process.poll() is not None or list(folder.glob(appears)):
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"
    return process


def test_a_killed_bench_goes_on_to_equal_tables(bench, tmp_path):
    folder = copied(bench, tmp_path)
    before = lines(folder)
    shutil.rmtree(folder / "out/shop/standard/asymrec")
    untouched = (folder / "out/shop/standard/counts/seed-0/cell.json").stat().st_mtime_ns
    process = started(folder, "out/shop/standard/asymrec/trial-*/run/checkpoint/training")
    os.killpg(process.pid, signal.SIGKILL)  # inside a training
    process.wait()
    assert here("bench", folder / "plan.yaml", "--table").returncode == 0
    assert lines(folder).keys() == before.keys() - {("standard", "asymrec")}
    assert "are still to come" in (folder / "out/table.md").read_text()
    process = started(folder, "out/shop/standard/asymrec/seed-*/run/checkpoint/training")
    process.terminate()  # the bench alone: its fits must end with it
    assert process.wait(timeout=60) == 130
    done = the_rest(folder)
    assert done.returncode == 0, done.stderr
    assert {line.split(":")[0] for line in done.stdout.splitlines()[:-1]} <= {f"shop standard asymrec seed {seed}" for seed in (0, 1)}
    after = lines(folder)
    assert {key: untimed(line) for key, line in after.items()} == {key: untimed(line) for key, line in before.items()}
    assert (folder / "out/shop/standard/counts/seed-0/cell.json").stat().st_mtime_ns == untouched
    assert not list(folder.rglob("run")) and not list(folder.rglob("*.tmp"))


def test_other_protocols_take_what_standard_chose(bench, tmp_path):
    folder = copied(bench, tmp_path)
    with fits_here():
        done = here("bench", folder / "plan.yaml", "--only", "protocol=untied,model=counts")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["shop untied counts seed 0", "table"]
    paths = [folder / f"out/shop/{name}/counts/seed-0/config.yaml" for name in ("standard", "untied")]
    standard, untied = (yaml.safe_load(path.read_text()) for path in paths)
    assert standard["classic"] == untied["classic"] and untied["data"]["split"] == "untied"
    assert ("untied", "counts") in lines(folder) and ("untied", "popularity") not in lines(folder)
    page = (folder / "out/table.md").read_text()
    assert "## shop, protocol untied" in page and "on protocol standard, and what was chosen there holds for the others" in page


def test_a_failed_cell_is_told_and_the_others_go_on(tmp_path):
    write(tmp_path / "shop", *tables(users=60))
    models = [{"name": "lost", "model": "asymrec", "settings": SETTINGS | {"device": "cuda:99"}, "tune": False}, "popularity"]
    more = {"models": models, "headline": None, "protocols": ["standard"], "seeds": [0], "tuning": {"trials": 1, "minutes": 0.001}}
    done = asymrec("bench", planned(tmp_path, **more))
    assert done.returncode == 1
    assert done.stderr == "error: 1 cells failed, the first: shop standard lost seed 0\n"
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert told["shop standard lost seed 0"].startswith("failed: ") and "cuda:99" in told["shop standard lost seed 0"]
    assert told["shop standard popularity trial 1"] == "stopped: not done in 0.001 minutes"
    assert told["shop standard popularity seed 0"].startswith("NDCG@10 ")
    for name in ("table.md", "table.html"):
        page = (tmp_path / "out" / name).read_text()
        assert "shop standard lost seed 0" in page and "cuda:99" in page and "Failed" in page
    assert list(lines(tmp_path)) == [("standard", "popularity")]
    assert "failed" in here("bench", tmp_path / "plan.yaml", "--list").stdout


def test_one_bench_at_a_time(tmp_path):
    import fcntl

    write(tmp_path / "shop", *tables(users=60))
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = here("bench", planned(tmp_path))
    assert done.returncode == 2 and "still at work" in done.stderr


# Figures


def per_user(bench: Path, name: str, seed: int, history: str = "kept") -> np.ndarray:
    table = pq.read_table(bench / f"out/shop/standard/{name}/seed-{seed}/ranks/{name}.parquet")
    rank = np.array([ranks for (ranks,) in table[history].to_pylist()])
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0)


def test_the_figures_are_what_a_hand_computes(bench):
    found = lines(bench)
    means = {}
    for name in ("popularity", "counts", "asymrec"):
        line = found["standard", name]
        seeds = [per_user(bench, name, seed) for seed in (0, 1)]
        means[name] = np.mean(seeds, axis=0)
        assert (line["seeds"], line["seeds planned"]) == ("2", "2")
        assert float(line["ndcg@10 kept mean"]) == pytest.approx(np.mean(seeds))
        assert float(line["ndcg@10 kept min"]) == pytest.approx(min(map(np.mean, seeds)))
        assert float(line["ndcg@10 kept max"]) == pytest.approx(max(map(np.mean, seeds)))
        recalls = [(seed > 0).mean() for seed in seeds]
        assert float(line["recall@10 kept mean"]) == pytest.approx(np.mean(recalls))
        assert float(line["training seconds mean"]) >= 0 and float(line["peak memory MiB mean"]) > 50
    assert float(found["standard", "popularity"]["parameters mean"]) == 120
    assert found["standard", "counts"]["kept rival"] == "asymrec" and found["standard", "asymrec"]["kept rival"] == "counts"
    random = np.random.default_rng(5)
    drawn = random.integers(0, 200, (4000, 200))
    difference = means["asymrec"] - means["counts"]
    line = found["standard", "asymrec"]
    assert float(line["kept difference"]) == pytest.approx(difference.mean())
    low, high = np.percentile(difference[drawn].mean(1), (2.5, 97.5))
    assert float(line["kept low"]) == pytest.approx(low, abs=0.01) and float(line["kept high"]) == pytest.approx(high, abs=0.01)

    (gain,) = findings(read_plan(bench / "plan.yaml", output=bench / "out")).gains[:1]
    assert gain.protocol == "standard" and gain.parts[0][2] == "asymrec"
    assert gain.mean == pytest.approx(means["counts"].mean() / means["asymrec"].mean() - 1)
    low, high = np.percentile(means["counts"][drawn].mean(1) / means["asymrec"][drawn].mean(1) - 1, (2.5, 97.5))
    assert gain.low == pytest.approx(low, rel=0.1) and gain.high == pytest.approx(high, rel=0.1)


def test_the_tables_hold_the_figures(bench):
    line = lines(bench)["standard", "asymrec"]
    low, mean, high = (f"{float(line[f'ndcg@10 kept {kind}']):.4f}".removeprefix("0") for kind in ("min", "mean", "max"))
    for name in ("table.md", "table.html"):
        page = (bench / "out" / name).read_text()
        assert f"{mean} ({low} to {high})" in page
        assert line["command"] in page.replace("&#x27;", "'").replace("&quot;", '"')
        assert "2 trials" in page and "counts over the best of popularity, asymrec" in page
    assert line["command"].startswith("asymrec fit shop -o RUN --model asymrec --set ")
    page = (bench / "out/table.html").read_text()
    assert "<script" not in page and "http" not in page.replace('http-equiv="', "")


def test_the_command_of_a_row_makes_it(bench, tmp_path):
    line = lines(bench)["standard", "counts"]
    words = line["command"].split()
    assert words[:2] == ["asymrec", "fit"]
    done = here(*words[1:], cwd=Path(shutil.copytree(bench / "shop", tmp_path / "shop")).parent)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "RUN/metrics.json").read_text())
    assert facts["metrics"]["counts"]["kept"]["ndcg@10"] == pytest.approx(float(line["ndcg@10 kept mean"]))


def test_seeds_of_other_users_are_not_averaged():
    one = Evaluation({}, np.array([1, 2]), np.array([0, 1, 2]), np.array([0, 0]), {"kept": np.array([1, 1])})
    other = Evaluation({}, np.array([1, 3]), one.offsets, one.targets, one.ranks)
    assert Averaged([one, one]).per_user("ndcg@10").tolist() == [1, 1]
    with pytest.raises(EvaluationError, match="other users"):
        Averaged([one, other])
    with pytest.raises(EvaluationError, match="other targets"):
        Averaged([one, Evaluation({}, one.users, one.offsets, np.array([0, 3]), one.ranks)])


# Export


def test_the_export_has_a_log_a_cell_and_no_path(bench, tmp_path):
    done = here("bench", bench / "plan.yaml", "--export", tmp_path / "logs/shop")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs/shop"
    names = contents(folder)
    assert {"table.md", "table.csv", "table.html", "cells/shop_standard_asymrec_seed-1.json"} < set(names)
    assert "cells/shop_standard_counts_trial-2.json" in names and len(names) == 4 + 6 + 5 + 2
    log = json.loads((folder / "cells/shop_standard_asymrec_seed-1.json").read_text())
    assert log["command"] == (bench / "out/shop/standard/asymrec/seed-1/command.txt").read_text().strip()
    assert log["dataset"]["name"] == "shop" and [entry["epoch"] for entry in log["curve"]] == [1, 2]
    assert log["recipe"]["network"]["width"] == 16 and log["environment"]["torch"] and log["seconds"]["train"] > 0
    exact = json.loads((bench / "out/shop/standard/asymrec/seed-1/metrics.json").read_text())["metrics"]["asymrec"]
    assert log["metrics"]["kept"]["ndcg@10"] == pytest.approx(exact["kept"]["ndcg@10"], rel=1e-5)
    assert log["metrics"]["slices"]["popularity"].keys() == exact["slices"]["popularity"].keys()
    for path in (folder / name for name in names if (folder / name).is_file()):
        text = path.read_bytes().decode(errors="replace")
        for place in (str(bench), str(bench.resolve()), str(Path.home()), sys.prefix, socket.gethostname()):
            assert place not in text, (path, place)
    again = here("bench", bench / "plan.yaml", "--export", folder)
    assert again.returncode == 0 and contents(folder) == names
    (folder / "mine.txt").write_text("")
    refused = here("bench", bench / "plan.yaml", "--export", folder)
    assert refused.returncode == 2 and "mine.txt" in refused.stderr and (folder / "mine.txt").exists()


def test_an_export_is_taken_over_by_another_output_and_its_tables_are_the_same(bench, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert here("bench", bench / "plan.yaml", "--export", first).returncode == 0
    other = ("bench", bench / "plan.yaml", "-o", tmp_path / "out")
    done = here(*other, "--import", first, "--export", second)
    assert done.returncode == 0, done.stderr
    assert not done.stderr and f"{first}: 11 cells taken" in done.stdout
    assert contents(first) == contents(second)
    for name in contents(first):
        if name.endswith(".json"):
            assert json.loads((first / name).read_text()) == json.loads((second / name).read_text()), name
    ranks = [pq.read_table(folder / "ranks/shop_standard.parquet") for folder in (first, second)]
    assert ranks[0].equals(ranks[1]) and "asymrec seed-1 removed" in ranks[0].column_names
    assert all(name.split()[-1] in ("kept", "removed") for name in ranks[0].column_names)  # nothing of whose they are
    rows = [list(csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines())) for folder in (first, second)]
    for row, again in zip(*rows, strict=True):
        assert row.keys() == again.keys()
        for name in row:
            try:
                assert float(again[name]) == pytest.approx(float(row[name]), rel=1e-5), name
            except ValueError:
                assert again[name] == row[name], name
    # nothing is fitted anew, and what is there is not taken twice
    assert "0 cells taken" in here(*other, "--import", first).stdout
    plan = read_plan(bench / "plan.yaml", output=tmp_path / "out")
    assert {state(plan, cell) for cell in plan.cells(["protocol=standard"])} == {"finished"}


def test_a_cell_without_its_ranks_is_named_alone(bench, tmp_path):
    assert here("bench", bench / "plan.yaml", "--export", tmp_path / "logs").returncode == 0
    again = ("bench", bench / "plan.yaml", "-o", tmp_path / "out")
    assert here(*again, "--import", tmp_path / "logs").returncode == 0
    place = tmp_path / "out/shop/standard/counts/seed-0"
    (place / "ranks/counts.parquet").write_bytes(b"")
    done = here(*again, "--table")
    assert done.returncode == 2 and f"remove the folder {place} and run the bench again" in done.stderr


def test_a_gain_over_a_rival_without_a_hit_in_a_draw_is_infinite():
    found = _ratios(np.array([1.0, 1.0]), np.array([0.0, 1.0]), np.random.default_rng(0))
    assert set(found.tolist()) == {1.0, 2.0, np.inf}


def test_what_cannot_be_taken_over_is_told_and_left(bench, tmp_path):
    folder = tmp_path / "logs"
    assert here("bench", bench / "plan.yaml", "--export", folder).returncode == 0
    changed = tmp_path / "plan.yaml"
    plan = yaml.safe_load((bench / "plan.yaml").read_text())
    plan["models"][2]["settings"] = plan["models"][2]["settings"] | {"width": 24}
    changed.write_text(yaml.safe_dump(plan))
    other = ("bench", changed, "--root", bench)
    done = here(*other, "-o", tmp_path / "a", "--import", folder)
    assert done.returncode == 0 and "7 cells taken" in done.stdout
    notes = done.stderr.splitlines()
    assert len(notes) == 4 and all("shop standard asymrec" in note for note in notes)
    assert "other settings" in notes[0] and "trials are not all there" in notes[-1]
    assert not (tmp_path / "a/shop/standard/asymrec").exists()

    (folder / "ranks/shop_standard.parquet").unlink()  # as versions before ranks were exported have it
    done = here("bench", bench / "plan.yaml", "-o", tmp_path / "b", "--import", folder)
    assert done.returncode == 0 and "5 cells taken" in done.stdout and done.stderr.count("its ranks are not in the export") == 6
    for damage in ("{", "[]", '{"state": "finished"}'):
        (folder / "cells/shop_standard_popularity_seed-0.json").write_text(damage)
        done = here("bench", bench / "plan.yaml", "-o", tmp_path / "c", "--import", folder)
        assert done.returncode == 2 and "shop_standard_popularity_seed-0.json is damaged" in done.stderr, damage
    second = tmp_path / "more"
    assert here("bench", bench / "plan.yaml", "--export", second).returncode == 0
    path = second / "ranks/shop_standard.parquet"
    ranks = pq.read_table(path)
    fewer, others = ranks.slice(0, 50), ranks.take([0] * len(ranks))
    for other, told in ((fewer, "its ranks are not as many as its targets"), (others, "its figures are not those of its ranks")):
        pq.write_table(other, path)
        done = here("bench", bench / "plan.yaml", "-o", tmp_path / "e", "--import", second)
        assert done.returncode == 2 and told in done.stderr, done.stderr
    pq.write_table(ranks.replace_schema_metadata({"asymrec.targets": "other"}), path)
    done = here("bench", bench / "plan.yaml", "-o", tmp_path / "f", "--import", second)
    assert done.returncode == 0 and "it was tested on other targets than the data set has" in done.stderr
    done = here("bench", bench / "plan.yaml", "-o", tmp_path / "g", "--root", tmp_path, "--import", second)
    assert "its data set is not there, which says whose ranks they are" in done.stderr
    nothing = here("bench", bench / "plan.yaml", "-o", tmp_path / "d", "--import", tmp_path / "none")
    assert nothing.returncode == 2 and "is no export" in nothing.stderr
