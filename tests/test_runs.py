"""Run folders: interruption at any moment, what is in the way, damage, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from small import SETTINGS, asymrec, contents, environment, forked, settings, tables, write

from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.errors import ConfigError, DataError, EvaluationError, QuantizerError, RunError, VectorError
from asymrec.evaluation import Evaluation, evaluate
from asymrec.models import ItemKNN, Recommender
from asymrec.runs import compare_runs, evaluate_run, fit_run, read_codebook, read_facts
from asymrec.training.listener import Listener

TIMES = ("seconds", "scoring_seconds")


def recipe(**more) -> Recipe:
    return Recipe.of(None, **(SETTINGS | more))


def figures(facts: dict) -> dict:
    """The metrics without what the clock says."""
    return {model: {name: value for name, value in found.items() if name not in TIMES} for model, found in facts["metrics"].items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("runs") / "shop", *tables())


@pytest.fixture(scope="module")
def run(data) -> Path:
    return fitted(data, data.parent / "run")


def fitted(data: Path, folder: Path, *options: str) -> Path:
    """A fit of three epochs in a process of its own: figures are compared to the last bit, and what other tests have loaded or set in
    this process may move the last bit of a product."""
    done = asymrec("fit", data, "-o", folder, *settings(epochs=3), *options)
    assert done.returncode == 0, done.stderr
    return folder


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_run_folder_holds_everything(run):
    names = contents(run)
    for name in ("config.yaml", "model.safetensors", "catalogue.parquet", "vectors.safetensors", "manifest.json", "metrics.json"):
        assert name in names
    assert {"log.jsonl", "report.html", "ranks/asymrec.parquet", "ranks/itemknn.parquet", "ranks/popularity.parquet"} <= set(names)
    assert "checkpoint" not in names
    facts = read_facts(run)
    assert list(facts["metrics"]) == ["asymrec", "itemknn", "popularity"]
    assert facts["dataset"] | {"notes": []} == {
        **{"name": "shop", "users": 200, "items": 120, "interactions": facts["dataset"]["interactions"]},
        **{"split": "leave-last-out", "notes": [], "part": "test", "test users": 200, "left out": 0},
    }
    assert facts["codebook"]["code_shape"] == [4, 2]
    assert facts["environment"]["processor"] and facts["peak_memory_mib"] > 50
    assert {"read", "vectors", "quantize", "train", "evaluate"} <= set(facts["seconds"])
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert Evaluation.load(run / "ranks/asymrec.parquet").metrics == facts["metrics"]["asymrec"]
    page = (run / "report.html").read_text()
    assert "asymrec on shop" in page and "thing" in page
    for text in (page, (run / "metrics.json").read_text(), (run / "config.yaml").read_text()):
        assert str(run.parent) not in text and os.uname().nodename not in text


def test_what_was_learned_beats_popularity(run):
    found = read_facts(run)["metrics"]
    assert found["itemknn"]["kept"]["ndcg@10"] > 2 * found["popularity"]["kept"]["ndcg@10"]


def test_evaluating_again_gives_the_same_figures(run, tmp_path):
    folder = copy(run, tmp_path / "run")
    before = read_facts(folder)
    for name in ("metrics.json", "report.html", "log.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "ranks")
    with pytest.raises(RunError, match=r"metrics\.json is missing"):
        read_facts(folder)
    again = evaluate_run(folder)
    assert figures(again) == figures(before)
    assert again["codebook"]["perplexity"] == before["codebook"]["perplexity"]
    assert read_facts(folder) == json.loads(json.dumps(again))
    assert {"report.html", "ranks/popularity.parquet"} <= set(contents(folder))


def test_equal_seeds_give_equal_files(run, data, tmp_path):
    fitted(data, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    fit_run(data, tmp_path / "other", recipe(epochs=3, seed=1))
    assert (tmp_path / "other/model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes()


# Interruptions

KILLER = """
import os, signal, sys
from asymrec import files
from asymrec.config import Recipe
from asymrec.runs import fit_run
from asymrec.training.listener import Listener

moment = sys.argv[3]
class Killer(Listener):
    epochs = 0
    def stage(self, text):
        if text.split()[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    def step(self, number, of, loss):
        if moment == "step" and self.epochs == 1 and number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    def epoch(self, log):
        self.epochs = len(log)
        if moment == f"epoch{len(log)}":
            os.kill(os.getpid(), signal.SIGKILL)

if moment == "swap":  # everything is built and brought to the disk, and not yet in place
    put = files._put
    files._put = lambda temporary, path: os.kill(os.getpid(), signal.SIGKILL) if path.name == "run" else put(temporary, path)
fit_run(sys.argv[1], sys.argv[2], Recipe.of(None, **eval(sys.argv[4])), listener=Killer())
"""


def killed(data: Path, folder: Path, moment: str) -> None:
    done = forked(KILLER, data, folder, moment, SETTINGS | {"epochs": 3})
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moment", ["vectors", "fit", "step", "epoch1", "swap"])
def test_a_killed_fit_goes_on_to_the_same_result(moment, data, run, tmp_path):
    folder = tmp_path / "run"
    killed(data, folder, moment)
    if moment == "vectors":
        assert not folder.exists()
    else:
        with pytest.raises(RunError, match="not finished"):
            Recommender.load(folder)
        with pytest.raises(RunError, match="unfinished fit"):
            fit_run(data, folder, recipe())
    fitted(data, folder, "--resume")
    assert figures(read_facts(folder)) == figures(read_facts(run))
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert contents(folder) == contents(run)
    assert not [path.name for path in tmp_path.iterdir() if path.name != "run"]


def test_a_process_killed_from_outside_goes_on(data, run, tmp_path):
    """The real command, killed when the first checkpoint of the training appears, resumed without naming data or settings."""
    command = [sys.executable, "-m", "asymrec", "fit", str(data), "-o", "run", *settings(epochs=3)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if (tmp_path / "run/checkpoint/training").exists() or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    done = asymrec("fit", "-o", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert figures(read_facts(tmp_path / "run")) == figures(read_facts(run))
    before = (tmp_path / "run/metrics.json").stat().st_mtime_ns
    fit_run(None, tmp_path / "run", resume=True)  # finished: nothing happens
    assert (tmp_path / "run/metrics.json").stat().st_mtime_ns == before


def test_a_run_for_tuning_leaves_the_test_alone(data, run, tmp_path, monkeypatch):
    """Through an interruption, and when it is evaluated again."""

    def rows_of(histories):
        return [tuple(histories[i].tolist()) for i in range(len(histories))]

    folder, seen = tmp_path / "run", []
    with pytest.raises(Stop):
        fit_run(data, folder, recipe(), model="itemknn", on="validation", listener=StopAt("evaluate"))
    with pytest.raises(ConfigError, match="is evaluated on the validation, not on the test"):
        fit_run(data, folder, resume=True, on="test")
    scores = ItemKNN.scores
    monkeypatch.setattr(ItemKNN, "scores", lambda self, histories: seen.extend(rows_of(histories)) or scores(self, histories))
    facts = fit_run(data, folder, resume=True)
    split = Dataset.read(data).split()
    assert facts["dataset"]["part"] == "validation" and facts["dataset"]["validation users"] == 200
    assert "test users" not in facts["dataset"] and "validation" not in facts
    assert set(seen) == set(rows_of(split.validation.histories))
    expected = evaluate(ItemKNN().fit(Dataset.read(data), split), split.validation, 120, split.train_counts(120))
    assert figures(facts)["itemknn"] == figures({"metrics": {"itemknn": expected.metrics}})["itemknn"]
    assert "validation part" in (folder / "report.html").read_text()
    assert figures(evaluate_run(folder)) == figures(facts)
    with pytest.raises(EvaluationError, match="one is evaluated on its validation, the other on its test"):
        compare_runs(folder, run)
    tested = evaluate_run(folder, on="test")
    assert (tested["dataset"]["part"], tested["dataset"]["test users"]) == ("test", 200) and "validation users" not in tested["dataset"]
    assert figures(tested)["itemknn"] == figures(read_facts(run))["itemknn"] != figures(facts)["itemknn"]
    for use in (lambda: fit_run(data, tmp_path / "new", on="train"), lambda: evaluate_run(folder, on="train")):
        with pytest.raises(ConfigError, match="is evaluated on test or validation, not on 'train'"):
            use()
    assert not (tmp_path / "new").exists()


def test_the_kept_epoch_is_told(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [entry for entry in log if entry["best"]][-1]
    assert read_facts(run)["validation"] == {name: kept[name] for name in ("epoch", "ndcg@10", "recall@10", "ndcg@10_removed")}


def test_a_run_of_untied(data, tmp_path):
    class Notes(Listener):
        said = ""

        def stage(self, text: str) -> None:
            self.said += text + "\n"

    interactions, items = tables()
    days = interactions.set_column(2, "timestamp", pc.divide(pc.subtract(interactions["timestamp"], 1_000_000), 240))
    notes = Notes()
    facts = fit_run(days, tmp_path / "run", recipe(split="untied", seed=3), items=items, model="itemknn", listener=notes)
    split = Dataset.read(days, items).split("untied", seed=3)
    assert facts["dataset"]["test users"] == len(split.test) == 200 - split.left_out
    assert f"{split.left_out} of 200 users have fewer than three times: trained on, not tested" in notes.said
    assert facts["metrics"]["itemknn"]["targets"] == len(split.test.targets.items) > len(split.test)
    expected = evaluate(ItemKNN().fit(Dataset.read(days, items), split), split.test, 120, split.train_counts(120)).metrics
    assert facts["metrics"]["itemknn"]["kept"] == expected["kept"]


class Stop(Exception):
    pass


class StopAt(Listener):
    def __init__(self, word: str):
        self.word = word

    def stage(self, text: str) -> None:
        if text.split()[0] == self.word:
            raise Stop


def test_an_interrupted_overwrite_leaves_the_old_run(data, run, tmp_path):
    folder = copy(run, tmp_path / "run")
    old = (folder / "model.safetensors").read_bytes()
    with pytest.raises(Stop):
        fit_run(data, folder, recipe(seed=1), overwrite=True, listener=StopAt("evaluate"))
    assert Recommender.load(folder).name == "asymrec"
    assert (folder / "model.safetensors").read_bytes() == old
    fit_run(data, folder, resume=True)
    assert (folder / "model.safetensors").read_bytes() != old
    assert contents(folder) == contents(run)


def test_resume_refuses_other_settings_and_other_models(data, tmp_path):
    with pytest.raises(Stop):
        fit_run(data, tmp_path / "run", recipe(), listener=StopAt("fit"))
    with pytest.raises(ConfigError, match=r"'training.epochs' is 7 here and 2 in the interrupted fit"):
        fit_run(data, tmp_path / "run", recipe(epochs=7), resume=True)
    with pytest.raises(ConfigError, match="is of model 'asymrec', not 'popularity'"):
        fit_run(data, tmp_path / "run", recipe(), model="popularity", resume=True)
    with pytest.raises(ConfigError, match="give one of them"):
        fit_run(data, tmp_path / "run", resume=True, overwrite=True)
    about = tmp_path / "run/checkpoint/run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 99, "asymrec": "9.0"}))
    with pytest.raises(RunError, match=r"begun by asymrec 9.0 in format 99"):
        fit_run(data, tmp_path / "run", resume=True)


def test_one_fit_at_a_time(data, tmp_path):
    class Other(Listener):
        error = None

        def stage(self, text: str) -> None:
            if text.startswith(("read the tables", "train")):
                for flags in ({}, {"resume": True}, {"overwrite": True}):
                    with pytest.raises(RunError, match="another process is fitting"):
                        fit_run(data, tmp_path / "run", recipe(), **flags)
            if text.startswith("train"):
                raise Stop

    with pytest.raises(Stop):
        fit_run(data, tmp_path / "run", recipe(), listener=Other())
    assert fit_run(data, tmp_path / "run", resume=True)["model"] == "asymrec"


# What is in the way, and damage


def test_folders_in_the_way_are_refused(data, run, tmp_path):
    with pytest.raises(RunError, match="holds a run"):
        fit_run(data, run, recipe())
    with pytest.raises(RunError, match="is not a run folder"):
        fit_run(data, data, recipe(), overwrite=True)
    folder = copy(run, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds notes\.txt, which is no part of a run"):
        fit_run(data, folder, recipe(), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        fit_run(data, tmp_path / "file" / "run", recipe())


def test_a_mount_cannot_be_exchanged(data, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(RunError, match="it is a mount; name a folder in it"):
        fit_run(data, tmp_path / "disk", recipe())
    assert contents(tmp_path) == ["disk"]


@pytest.mark.parametrize("name", ["model.safetensors", "catalogue.parquet", "vectors.safetensors", "config.yaml", "dataset/offsets.npy"])
def test_a_damaged_file_is_named(name, run, tmp_path):
    folder = copy(run, tmp_path / "run")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    for use in (Recommender.load, evaluate_run, read_facts):
        with pytest.raises(RunError, match=f"damaged: {name}"):
            use(folder)
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        Recommender.load(folder)


def test_a_run_of_another_format_says_which_version_reads_it(run, tmp_path):
    folder = copy(run, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 7, "asymrec": "3.2.1"}))
    with pytest.raises(RunError, match=r"written by asymrec 3.2.1 in format 7.*use asymrec 3.2.1"):
        evaluate_run(folder)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"facets": 500}, QuantizerError),
        ({"device": "cuda:99"}, ConfigError),
        ({"views": ["absent"]}, VectorError),
        ({"split": "time", "test_share": 0.49, "validation_share": 0.49}, DataError),
    ],
)
def test_bad_settings_leave_nothing(more, error, data, tmp_path):
    interactions, items = tables()
    with pytest.raises(error):
        source, catalogue = (interactions.drop_columns(["timestamp"]), items) if error is DataError else (data, None)
        fit_run(source, tmp_path / "a/b", recipe(**more), items=catalogue)
    assert contents(tmp_path) == []


def test_vectors_are_checked_before_anything_is_written(tmp_path):
    interactions, items = tables()
    vectors = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    vectors[5, 2] = np.nan
    np.save(tmp_path / "bad.npy", vectors)
    np.save(tmp_path / "short.npy", vectors[:100])
    for name, message in (("bad", "item 105.*not finite"), ("short", "100 rows, the item table 120")):
        with pytest.raises(VectorError, match=message):
            fit_run(interactions, tmp_path / "run", recipe(views=[str(tmp_path / f"{name}.npy")]), items=items)
    assert contents(tmp_path) == ["bad.npy", "short.npy"]


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["asymrec", *sys.argv[2:]]
from asymrec.cli import main
main()
"""


@pytest.mark.parametrize("size", [1000, 60_000])
def test_a_full_disk_leaves_the_old_run(size, data, run, tmp_path):
    folder = copy(run, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in contents(folder) if (folder / name).is_file()}
    done = forked(FULL, size, "fit", data, "-o", folder, "--overwrite", *settings(width=64))
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot write") and "File too large" in last
    assert "Traceback" not in done.stderr
    assert Recommender.load(folder).name == "asymrec"
    for name, content in before.items():
        assert (folder / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# Other models, other runs


def test_two_runs_are_compared_user_by_user(run, data, tmp_path):
    other = tmp_path / "popularity"
    fit_run(data, other, recipe(), model="popularity")
    found = {(one["metric"], one["history"]): one for one in compare_runs(run, other)}
    a, b = read_facts(run)["metrics"]["asymrec"], read_facts(other)["metrics"]["popularity"]
    for (metric, history), one in found.items():
        assert one["a"] == pytest.approx(a[history][metric]) and one["b"] == pytest.approx(b[history][metric])
        assert one["low"] <= one["difference"] <= one["high"]
    with pytest.raises(RunError, match="has no codes"):
        read_codebook(other)
    interactions, items = tables()  # ids are the same whatever type their file had for them
    narrow = [table.set_column(at, table.schema.names[at], table.column(at).cast("int32")) for table, at in ((interactions, 0), (items, 0))]
    fit_run(narrow[0], tmp_path / "narrow", recipe(), items=narrow[1], model="popularity")
    assert [one["difference"] for one in compare_runs(tmp_path / "narrow", other)] == [0.0] * len(found)
    interactions, items = tables(users=150)
    fit_run(interactions, tmp_path / "fewer", recipe(), items=items, model="itemknn")
    with pytest.raises(EvaluationError, match=r"their users differ \(200 and 150\)"):
        compare_runs(run, tmp_path / "fewer")
