"""Models whose `scores` hold what a beam found alone, behind the server and in a pipeline: no allowed item may be missing there."""

import numpy as np
import pyarrow as pa
import pytest
from serving import client, vector
from small import SETTINGS, tables, write

from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.models import Tiger
from asymrec.pipeline import Pipeline, fit_pipeline
from asymrec.pipeline.stages import Stage
from asymrec.results import split_of

BEAM = 5
SMALL = {
    **{name: SETTINGS[name] for name in ("text", "views", "width", "layers", "heads", "ffn", "history")},
    **{"head_width": 8, "epochs": 1, "batch": 256, "dropout": 0.0, "precision": "float32", "beam": BEAM},
    **{"rqvae_codewords": 16, "hidden": [32], "latent": 8, "rqvae_epochs": 20},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    interactions, items = tables()
    items = items.append_column("colour", pa.array([("red", "blue", "green")[row % 3] for row in range(120)]))
    folder = tmp_path_factory.mktemp("tiger") / "run"
    Tiger(**SMALL).fit(Dataset.read(interactions, items)).save(folder)
    return folder


@pytest.fixture
def api(run, tmp_path):
    pytest.importorskip("fastapi")
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as found:
        yield found


def recommend(api, **asked):
    answer = api.post("/v1/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    return [(one["item"], one["score"]) for one in answer.json()["items"]]


def test_the_server_gives_what_the_library_gives(api, run):
    model = api.service.engine.snapshot().model
    history = [100, 101, 102]
    for asked, given in (
        ({"k": 40}, {}),  # more than the beam
        ({"k": 3, "only": [150, 170, 190, 210]}, {"only": [150, 170, 190, 210]}),  # far from what a beam over all items finds
        ({"k": 20, "exclude_seen": False}, {}),
        ({"k": 200, "deny": [105]}, {"exclude": [105]}),
        ({"k": 8, "where": [{"column": "colour", "any_of": ["red"]}]}, {"only": list(range(100, 220, 3))}),
    ):
        found = recommend(api, history=history, **asked)
        ids, scores = model.recommend([history], asked["k"], exclude_seen=asked.get("exclude_seen", True), **given)
        assert [item for item, _ in found] == ids[0] and np.allclose([score for _, score in found], scores[0], atol=1e-5)
    assert len(recommend(api, history=history, k=200)) == 117


def test_a_batch_of_requests_equals_them_one_by_one(api):
    asked = [
        {"history": [100], "k": 7},
        {"history": [130, 131], "k": 7},
        {"history": [100], "k": 12, "only": [101, 140, 141]},
        {"history": [100], "k": 7, "exclude_seen": False},
        {"history": [], "k": 7},
    ]
    one_by_one = [recommend(api, **each) for each in asked]
    answer = api.post("/v1/recommend/batch", json={"requests": asked})
    assert answer.status_code == 200, answer.text
    together = [[one["item"] for one in each["result"]["items"]] for each in answer.json()["results"]]
    assert together == [[item for item, _ in each] for each in one_by_one]


def test_an_item_that_came_later_is_found_and_a_retired_one_is_not(api):
    added = api.put("/v1/items/9000", json={"vector": vector(50.5), "title": "new", "colour": "red"})
    assert added.status_code in (200, 201), added.text
    assert [item for item, _ in recommend(api, history=[100, 101], k=3, only=[9000])] == [9000]
    assert 9000 in [item for item, _ in recommend(api, history=[100, 101], k=200)]
    assert api.delete("/v1/items/9000").status_code in (200, 204)
    assert recommend(api, history=[100, 101], k=3, only=[9000]) == []
    assert len(recommend(api, history=[100, 101], k=200)) == 118


def test_a_pipeline_ranks_as_many_as_it_says(tmp_path):
    data = write(tmp_path / "data", *tables())
    ranker = {"epochs": 1, "width": 16, "heads": 2, "ffn": 16, "embedding": 8, "seed": 1}
    facts = fit_pipeline(data, tmp_path / "pipeline", Recipe.of(None, **SMALL), model="tiger", settings=ranker, candidates=15)
    pipeline = Pipeline.load(tmp_path / "pipeline")
    rows, *_ = pipeline.rank(pipeline.dataset.sequences.take(np.arange(4)), 60)
    assert (rows >= 0).all() and all(len(set(line)) == 60 for line in rows.tolist())
    found = Stage(pipeline, split_of(pipeline.dataset, pipeline.retrieval.recipe).test, 0.0, True, {}).scores(pipeline.dataset.sequences)
    assert (np.isfinite(found).sum(1) == 16).all()  # the evaluation sees as many, and one more for ties
    assert facts["candidates"] == 15
