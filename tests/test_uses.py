"""`uses` of every model: what a fit reads is there, what is there is read, and what is not there is told where it is set."""

from collections import defaultdict

import pytest
import test_models
from benched import written
from small import here, tables, write

from asymrec import AsymRec, Counts, Dataset, Fusion, Popularity
from asymrec.config import Recipe, Section
from asymrec.models import MODELS, both
from asymrec.models.sasrec import SASRec

GBCE, SAMPLED, HEADS = {"objective": "gbce", "negatives": 8}, {"full_softmax": 0, "negatives": 24}, {"objective": "heads"}
FURTHER = [  # beside the variants that keep the contract
    *(("asymrec", GBCE), ("asymrec+collaborative", GBCE), ("asymrec+collaborative", HEADS), ("asymrec+collaborative", SAMPLED)),
    *(("hstu", GBCE), ("hstu", SAMPLED), ("sasrec", SAMPLED), ("sasrec+content", GBCE), ("sasrec+content", SAMPLED)),
]
OTHERWISE = Recipe.leaves_of("data") | {"max_tokens", "part_settings"}  # read with the tables, by language models, and by nobody


@pytest.fixture(scope="module")
def found():
    """Model -> the settings that fits, recommendations and scores of its variants read, and those that it says to use."""
    reads, uses, own = defaultdict(set), {}, {}

    def get(section, name):
        if (place := own.get(id(section))) and name in type(section).model_fields:
            reads[place].add(name)
        return object.__getattribute__(section, name)

    def dump(section, *arguments, **options):
        if place := own.get(id(section)):
            reads[place].update(type(section).model_fields)
        return whole(section, *arguments, **options)

    whole, dataset = Section.model_dump, Dataset.read(*test_models.tables(60, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(both, "SASRec", lambda **settings: SASRec(**settings, epochs=1))
        patch.setattr(Section, "__getattribute__", get, raising=False)
        patch.setattr(Section, "model_dump", dump)
        for name, more in [*((name, {}) for name in test_models.MODELS), *FURTHER]:
            given = more if name in ("popularity", "itemknn", "counts", "ease") else {"epochs": 1} | more
            model = test_models.MODELS[name](**given)
            own.clear()
            own.update({id(getattr(model.recipe, part)): model.name for part in Recipe.model_fields})
            model.fit(dataset)
            model.recommend(users=["u1"], k=3)
            model.score([["i1", "i2"]], ["i3"])
            uses.setdefault(model.name, set()).update(model.uses)
            own.clear()
    return reads, uses


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_reads_is_what_it_uses(found, name):
    reads, uses = found
    if name == "fusion":  # its parts have recipes of their own
        assert reads[name] <= uses[name] and {"parts", "fuse"} <= reads[name]
    else:
        passed_over = {"staged", "router_epochs", "alignment", "alignment_temperature"} if name == "asymrec+collaborative" else set()
        assert reads[name] - OTHERWISE - passed_over == uses[name] - OTHERWISE


@pytest.mark.parametrize("name", MODELS)
def test_a_model_uses_its_own_defaults_and_what_is_tuned(name):
    model = MODELS[name]()
    assert set(model.space) <= model.uses and set(model.defaults) <= model.uses | {"repeat"}  # tiger refuses it
    assert model.passed_over() == []


def test_what_is_passed_over():
    assert Popularity(epochs=3, facets=8, seed=1).passed_over() == ["quantizer.facets", "training.epochs"]
    assert Popularity(epochs=None, facets=16).passed_over() == []  # the defaults
    assert Counts(recency=0.6, ridge=1.0).passed_over() == ["classic.ridge"]
    assert AsymRec(facets=8, opq_codes=16).passed_over() == ["opq.opq_codes"]
    assert Fusion(parts=["counts", "ease"], ridge=1.0, window=9, facets=8).passed_over() == ["quantizer.facets"]


def test_a_fit_says_so_and_goes_on(tmp_path):
    data = write(tmp_path / "data", *tables(60, 40))
    ran = here("fit", data, "-o", tmp_path / "run", "--model", "counts", "--set", "epochs=3", "--set", "window=9")
    assert ran.returncode == 0
    assert "note: setting 'training.epochs' means nothing to model 'counts'" in ran.stderr + ran.stdout
    assert "window" not in ran.stderr


def test_a_bench_says_so_and_goes_on(tmp_path):
    write(tmp_path / "shop", *tables(60, 40))
    row = {"name": "short", "model": "counts", "settings": {"epochs": 3, "window": 9}, "space": {"gap": [0.5, 0.9], "ridge": [1.0, 2.0]}}
    path = written(tmp_path, output="out", data={"shop": "shop"}, models=["popularity", row])
    ran = here("bench", path, "--only", "model=short")
    assert ran.returncode == 0
    notes = [line for line in ran.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: short: setting '{name}' means nothing to model 'counts'" for name in ("training.epochs", "ridge")]
