"""A pipeline behind the HTTP API: with and without the ranker, over a catalogue that changes; and in batches."""

import json
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import Server, client, make_run, recommend, vector
from small import SETTINGS, here, tables, write

from asymrec.config import Recipe
from asymrec.pipeline import Pipeline, fit_pipeline
from asymrec.ranking.asked import CODES

pytest.importorskip("fastapi")
RANK = {"epochs": 1, "width": 16, "heads": 2, "ffn": 16, "embedding": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Items have a colour and codes that the ranker reads, interactions a rating: what is done to an item in a history."""
    interactions, items = tables()
    items = items.append_column("colour", pa.array([("red", "blue", "green")[row % 3] for row in range(120)]))
    interactions = interactions.append_column("rating", pa.array(np.random.default_rng(0).integers(1, 6, len(interactions))))
    data = write(tmp_path_factory.mktemp("data"), interactions, items)
    fit_pipeline(
        data, data.parent / "pipeline", Recipe.of(None, **SETTINGS | {"epochs": 1}), settings=RANK | {"seed": 1}, candidates=15, codes=True
    )
    return data.parent / "pipeline"


@pytest.fixture
def api(folder, tmp_path):
    with client(folder, f"sqlite:///{tmp_path}/store.sqlite") as found:
        yield found


def test_the_list_is_the_pipelines(api, folder):
    pipeline = Pipeline.load(folder)
    for asked, known in (({"user": "5"}, {"users": [5]}), ({"history": [100, 103]}, {"histories": [[100, 103]]})):
        found = recommend(api, **asked, k=6)
        expected = pipeline.recommend(**known, k=6)[0]
        assert found["ranked"] and [one["item"] for one in found["items"]] == [one["id"] for one in expected]
        for one, other in zip(found["items"], expected):
            for name in ("score", "retrieval", "ranker"):
                assert one[name] == pytest.approx(other[name], abs=1e-4)
    assert api.get("/version").json()["ranker"] == "tokenformer"


def test_without_the_ranker_it_is_retrievals(api, folder):
    found = recommend(api, user="5", k=6, rank=False)
    ids, scores = Pipeline.load(folder).retrieval.recommend(users=[5], k=6)
    assert not found["ranked"] and [one["item"] for one in found["items"]] == ids[0]
    assert [one["score"] for one in found["items"]] == pytest.approx(scores[0], abs=1e-4)
    assert "ranker" not in found["items"][0] and "retrieval" not in found["items"][0]
    both = api.post("/v1/recommend/batch", json={"requests": [{"user": "5", "k": 6}, {"user": "5", "k": 6, "rank": False}]}).json()
    assert [one["result"]["ranked"] for one in both["results"]] == [True, False]
    assert [one["item"] for one in both["results"][1]["result"]["items"]] == ids[0]


def test_filters_hold_before_the_ranker_is_asked(api):
    found = recommend(api, history=[100, 103], k=30, where=[{"column": "colour", "any_of": ["red"]}], deny=[106])
    got = [one["item"] for one in found["items"]]
    assert len(got) == 30 and all((item - 100) % 3 == 0 for item in got) and not {100, 103, 106} & set(got)
    assert [one["score"] for one in found["items"]] == sorted((one["score"] for one in found["items"]), reverse=True)
    few = recommend(api, history=[100], only=[103, 104], k=10)
    assert {one["item"] for one in few["items"]} == {103, 104}


def test_events_and_people_nobody_knows_are_ranked(api):
    before = recommend(api, user="5", k=5)
    assert api.post("/v1/events", json={"events": [{"user": "5", "item": 160}, {"user": "new", "item": 110}]}).status_code == 201
    after, new = recommend(api, user="5", k=5), recommend(api, user="new", k=5)
    assert after["history"] == before["history"] + 1 and after["ranked"] and new["ranked"] and new["history"] == 1
    alone = recommend(api, history=[110], k=5)
    assert [one["item"] for one in alone["items"]] == [one["item"] for one in new["items"]]


def test_a_new_item_is_ranked_by_its_fields(api):
    columns = {"title": "a new thing", "vector": vector(4.5), "colour": "red"}
    assert api.put("/v1/items/900", json=columns).status_code in (200, 201)
    snapshot = api.service.catalogue.snapshot
    assert np.array_equal(np.array(snapshot.items[CODES].to_pylist()), snapshot.model.catalogue()[1]) and snapshot.n == 121
    found = recommend(api, history=[102, 103], only=[900, 105], k=2)
    assert {one["item"] for one in found["items"]} == {900, 105} and all(0 < one["ranker"] < 1 for one in found["items"])
    assert api.patch("/v1/items/900", json={"colour": "blue"}).status_code == 200
    changed = recommend(api, history=[102, 103], only=[900, 105], k=2)
    score = {one["item"]: one["ranker"] for one in found["items"]}, {one["item"]: one["ranker"] for one in changed["items"]}
    assert score[0][105] == pytest.approx(score[1][105], abs=1e-6) and score[0][900] != score[1][900]
    assert api.delete("/v1/items/900").status_code == 200
    assert 900 not in [one["item"] for one in recommend(api, history=[102, 103], k=100)["items"]]


def test_a_run_without_a_ranker_says_so(tmp_path):
    run = make_run(tmp_path)
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as api:
        assert recommend(api, history=[100])["ranked"] is False
        assert "there is no ranker" in recommend(api, 409, history=[100], rank=True)["detail"]
        assert api.get("/version").json()["ranker"] is None
        results = api.post("/v1/recommend/batch", json={"requests": [{"history": [100], "rank": True}, {"history": [100]}]}).json()[
            "results"
        ]
        assert "no ranker" in results[0]["error"] and results[1]["result"]["items"]


def test_a_pipeline_with_another_ranker_takes_over(folder, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(folder, served)
    with client(served, f"sqlite:///{tmp_path}/store.sqlite") as api:
        before = recommend(api, history=[100, 103], k=5)
        facts = json.loads((served / "pipeline.json").read_text())
        (served / "next.json").write_text(json.dumps(facts | {"weight": 0.5 if facts["weight"] != 0.5 else 4.0}))
        (served / "next.json").replace(served / "pipeline.json")
        until = time.monotonic() + 10
        while recommend(api, history=[100, 103], k=5) == before and time.monotonic() < until:
            time.sleep(0.05)
        after = recommend(api, history=[100, 103], k=5)
        assert [one["score"] for one in after["items"]] != [one["score"] for one in before["items"]]


def test_the_command_serves_a_pipeline(folder, tmp_path):
    server = Server(folder, "--store", f"sqlite:///{tmp_path}/store.sqlite")
    try:
        status, found = server.call("POST", "/v1/recommend", {"history": [100, 103], "k": 4})
        expected = Pipeline.load(folder).recommend([[100, 103]], k=4)[0]
        assert status == 200 and found["ranked"] and [one["item"] for one in found["items"]] == [one["id"] for one in expected]
    finally:
        server.kill()
    (tmp_path / "begun" / "checkpoint").mkdir(parents=True)
    (tmp_path / "begun" / "checkpoint" / "pipeline.json").write_text("{}")
    done = here("serve", tmp_path / "begun")
    assert done.returncode == 2 and "unfinished pipeline" in done.stderr


def test_batches_are_ranked(folder, tmp_path):
    pq.write_table(pa.table({"user": [5, 6], "note": ["a", "b"]}), tmp_path / "users.parquet")
    done = here("batch", folder, tmp_path / "users.parquet", "-o", tmp_path / "out.parquet", "-k", "4")
    assert done.returncode == 0, done.stderr
    found = pq.read_table(tmp_path / "out.parquet")
    expected = Pipeline.load(folder).recommend(users=[5, 6], k=4)
    assert found["items"].to_pylist() == [[one["id"] for one in line] for line in expected] and found["note"].to_pylist() == ["a", "b"]


def test_a_pipeline_is_no_run(folder):
    done = here("recommend", folder, "--user", "5")
    assert done.returncode == 2 and "is a pipeline, which `asymrec pipeline` reads" in done.stderr
