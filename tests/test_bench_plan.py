"""Plans of benchmarks: what is refused, equal budgets, and which cells are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from benched import planned
from small import contents, here

from asymrec.bench.plan import Entry, Tuning, draws
from asymrec.bench.plan_file import read_plan
from asymrec.errors import ConfigError
from asymrec.models import MODELS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seds": [0]}, ("unknown key 'seds'", "did you mean 'seeds'")),
        ({"tuning": {"trial": 3}}, ("unknown key 'tuning.trial'", "did you mean 'trials'")),
        ({"models": [{"name": "counts", "setting": {}}]}, ("unknown key 'models.0.setting'", "did you mean 'settings'")),
        ({"headline": {"modell": "counts"}}, ("unknown key 'headline.0.modell'", "did you mean 'model'")),
        ({"headline": {"model": "count", "rivals": ["popularity"]}}, ("no model 'count'", "did you mean 'counts'")),
        ({"models": ["conts"]}, ("model 'conts'", "did you mean 'counts'")),
        ({"models": ["counts", "counts"]}, ("'models' has counts twice",)),
        ({"models": [{"name": "counts", "settings": {"recencey": 1}}]}, ("'counts'", "did you mean 'recency'")),
        (
            {"models": [{"name": "counts", "space": {"recencey": [0.5]}}]},
            ("'counts'", "'recencey'", "did you mean 'recency'"),
        ),
        ({"models": [{"name": "sasrec", "space": {"epochs": [5, 6]}}], "tuning": {"epochs": 3}}, ("'sasrec'", "`tuning` sets it")),
        ({"data": {"table.md": "shop"}}, ("'data.table.md'", "is written beside")),
        ({"models": [{"name": "counts", "settings": {"recency": 7}}]}, ("'counts'", "classic.recency")),
        ({"models": [{"name": "counts", "space": {"recency": [0.5, 7]}}]}, ("'counts'", "classic.recency")),
        ({"models": [{"name": "counts", "space": {"recency": [0.5, 0.5]}}]}, ("space of 'recency'", "different values")),
        ({"models": [{"name": "counts", "settings": {"recency": 1}, "space": {"recency": [0.5]}}]}, ("in its settings and in its space",)),
        ({"models": [{"name": "counts", "settings": {"training.seed": 1}}]}, ("'seed' is not a setting of one model", "seeds")),
        ({"models": [{"name": "counts", "space": {"split": ["time"]}}]}, ("'split' is not a setting of one model", "protocols")),
        ({"models": [{"name": "counts", "preset": "papr"}]}, ("no preset 'papr'", "did you mean 'paper'")),
        ({"models": [{"name": "../counts", "model": "counts"}]}, ("models.0.name",)),
        ({"data": {"shop": {"folder": "shop", "settings": {"recency": 1}}}}, ("'data.shop' takes a folder", "the same for every data set")),
        ({"protocols": ["standrad"]}, ("protocols.0", "standrad")),
        ({"seeds": {"standard": [0]}}, ("'seeds'", "'protocols'")),
        ({"seeds": [0, 0]}, ("has 0 twice",)),
    ],
)
def test_a_plan_with_a_fault_is_refused_in_one_line(change, said, tmp_path):
    more = {"headline": None, "seeds": [0]} | change
    done = here("bench", planned(tmp_path, **more))
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    for part in said:
        assert part in done.stderr
    assert contents(tmp_path) == ["plan.yaml"]


def test_data_is_found_by_option_and_missing_data_is_named(tmp_path):
    path = planned(tmp_path)
    assert read_plan(path).data["shop"].path == tmp_path / "shop"
    assert read_plan(path, root=tmp_path / "a").data["shop"].path == tmp_path / "a/shop"
    assert read_plan(path, root="b", folders={"shop": str(tmp_path / "c")}).data["shop"].path == tmp_path / "c"
    for options, said in (((), "data 'shop'"), (("--data", "shap=x"), "did you mean 'shop'"), (("--data", "shop"), "NAME=FOLDER")):
        done = here("bench", path, *options)
        assert done.returncode == 2 and said in done.stderr
    assert contents(tmp_path) == ["plan.yaml"]


def test_budgets_are_equal_and_trials_are_drawn_by_seed(tmp_path):
    models = [{"name": name, "model": name} for name in MODELS if name != "fusion"]
    plan = read_plan(planned(tmp_path, models=models, headline=None, tuning={"trials": 6, "seed": 3}))
    for cell in plan.cells(["seed=0"]):
        trials = plan.trials(cell)
        assert len(trials) == (6 if MODELS[cell.entry.model].space else 1), cell
        assert trials[0].tuned == {}  # the default
        recipes = [trial.recipe().yaml() for trial in trials]
        assert len(set(recipes)) == len(trials)
        assert {trial.protocol for trial in trials} == {"standard"} and {trial.seed for trial in trials} == {3}
        for trial in trials[1:]:
            assert all(value in cell.entry.searched()[name] for name, value in trial.tuned.items())
    entry, tuning = Entry(name="counts", model="counts"), plan.tuning
    assert draws(entry, tuning) == draws(entry, tuning) != draws(entry, Tuning(trials=6, seed=4))
    same = Entry(name="sasrec", model="sasrec", space={"learning_rate": [1, 1.0, 0.5]})
    assert sorted(drawn.get("learning_rate", 0) for drawn in draws(same, tuning)) == [0, 0.5, 1.0]
    each = read_plan(planned(tmp_path, tuning={"trials": 2, "protocol": "each", "epochs": 1}))
    assert {(trial.protocol, trial.more["epochs"]) for trial in each.trials_of(each.cells())} == {("standard", 1), ("untied", 1)}


def test_spaces_are_of_equal_size_and_hold_the_default():
    sizes = {name: int(np.prod([len(values) for values in kind.space.values()])) for name, kind in MODELS.items() if kind.space}
    assert len(set(sizes.values())) == 1 and len(sizes) >= 8, sizes
    for name in sizes:
        # the default, and every other combination once
        assert len(draws(Entry(name=name, model=name), Tuning(trials=1000))) == sizes[name], name


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "benchmarks").glob("*.yaml")), ids=lambda path: path.name)
def test_committed_plans_are_valid_and_name_no_machine(path):
    plan = read_plan(path)
    assert plan.cells()
    assert not any(Path(folder).is_absolute() for folder in (*yaml.safe_load(path.read_text())["data"].values(), plan.title))


def test_only_chooses_cells(tmp_path):
    path = planned(tmp_path)
    plan = read_plan(path)
    assert len(plan.cells()) == 9
    chosen = plan.cells(["model=counts,model=popularity", "seed=0", "protocol=untied"])
    assert [str(cell) for cell in chosen] == ["shop untied popularity seed 0", "shop untied counts seed 0"]
    assert [str(trial) for trial in plan.trials_of(chosen)] == [
        *("shop standard popularity trial 1", "shop standard counts trial 1", "shop standard counts trial 2")
    ]
    for text, said in (("modell=counts", "data=..."), ("model=conts", "did you mean 'counts'"), ("counts", "data=...")):
        with pytest.raises(ConfigError, match=said):
            plan.cells([text])
    listed = here("bench", path, "--list", "--only", "model=counts,seed=1").stdout
    assert [line.split()[-2:] for line in listed.splitlines()[1:]] == [["to", "do"], ["to", "do"], ["1", "waiting"]]
