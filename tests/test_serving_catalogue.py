"""The server's living catalogue: items put, patched and retired, versions, rolling back; in this process."""

from __future__ import annotations

import shutil
import threading
import time

import numpy as np
import pytest
from serving import client, ids, make_run, recommend, vector
from small import SETTINGS, tables

from asymrec import Dataset
from asymrec.models import AsymRecBoth


def new(place: float, title: str = "a new thing") -> dict:
    return {"title": title, "vector": vector(place)}


def test_a_new_item_is_recommended_and_read_at_once(api):
    begun = time.perf_counter()
    assert api.put("/v1/items/900", json=new(10.5)).json() == {"version": 1}
    found = recommend(api, history=[900], only=[111, 160, 900], exclude_seen=False)
    assert time.perf_counter() - begun < 1
    assert 900 in ids(found) and found["version"] == 1
    assert api.get("/v1/similar/900?k=2").json()["items"][0]["item"] in (110, 111)
    item = api.get("/v1/items/900").json()
    assert item["title"] == "a new thing" and not item["retired"] and np.array(item["codes"]).shape == (4, 2)
    assert api.post("/v1/events", json={"events": [{"user": "u", "item": 900}]}).status_code == 201
    assert recommend(api, user="u")["history"] == 1


def test_describing_an_item_anew(api):
    rows = api.service.catalogue.snapshot.n
    assert api.patch("/v1/items/110", json={"title": "another name"}).status_code == 200
    assert api.service.catalogue.snapshot.n == rows  # the same vector: the same row
    assert api.get("/v1/items/110").json()["title"] == "another name"
    assert ids(recommend(api, history=[110])) == ids(recommend(api, history=[110]))
    assert api.patch("/v1/items/110", json={"vector": vector(70)}).status_code == 200
    assert api.service.catalogue.snapshot.n == rows + 1
    assert api.get("/v1/similar/110?k=1").json()["items"][0]["item"] in (169, 170, 171)
    assert ids(recommend(api, history=[105], k=200)).count(110) == 1
    # users who had it have it as it is now
    (user,) = [one for one in range(1, 201) if 110 in [past["item"] for past in api.get(f"/v1/users/{one}").json()["history"]]][:1]
    assert recommend(api, user=user)["items"]


def test_what_users_did_with_an_item_is_kept_when_it_is_described_anew(tmp_path):
    """Of a model whose vectors hold interactions too: only what an item is decides whether it is still the same, and what it is like."""
    settings = {name: value for name, value in SETTINGS.items() if name not in ("epochs", "quantizer_epochs")}
    model = AsymRecBoth(**settings, epochs=1, quantizer_epochs=0, collaborative_width=8).fit(Dataset.read(*tables()))
    model.save(tmp_path / "run")
    with client(tmp_path / "run", f"sqlite:///{tmp_path}/store.sqlite") as api:
        assert {one["item"] for one in api.get("/v1/similar/130?k=2").json()["items"]} == {129, 131}  # on the circle, however popular
        codes = api.get("/v1/items/130").json()["codes"]
        assert api.patch("/v1/items/130", json={"title": "told anew"}).status_code == 200
        after = api.get("/v1/items/130").json()
        assert after["codes"] == codes and after["title"] == "told anew" and api.service.catalogue.snapshot.n == 120


def test_a_retired_item_vanishes_at_once_and_comes_back_when_put(api):
    best = ids(recommend(api, history=[110]))[0]
    assert api.delete(f"/v1/items/{best}").json() == {"version": 1}
    assert best not in ids(recommend(api, history=[110], k=120)) and recommend(api, history=[best])["items"]
    assert api.get(f"/v1/items/{best}").json()["retired"]
    assert api.delete(f"/v1/items/{best}").status_code == api.patch(f"/v1/items/{best}", json={}).status_code == 404
    assert best not in [one["item"] for one in api.get("/v1/items", params={"search": "thing", "limit": 100}).json()["items"]]
    columns = api.get(f"/v1/items/{best}").json()["columns"]
    assert api.put(f"/v1/items/{best}", json=columns).status_code == 200
    assert best in ids(recommend(api, history=[110]))


def test_versions_and_rolling_back(api):
    api.put("/v1/items/900", json=new(10))
    api.delete("/v1/items/110")
    api.post("/v1/items", json={"items": [{"item": 901, "columns": new(20)}, {"item": 902, "columns": new(21)}]})
    assert api.post("/v1/catalogue/rollback", json={"version": 1}).json() == {"version": 4}
    known = api.get("/v1/catalogue").json()
    assert (known["items"], known["version"], known["retired"]) == (121, 4, 0)
    assert api.get("/v1/items/901").status_code == 404 and not api.get("/v1/items/110").json()["retired"]
    assert api.post("/v1/catalogue/rollback", json={"version": 3}).json() == {"version": 5}
    assert api.get("/v1/items/901").status_code == 200 and api.get("/v1/items/110").json()["retired"]
    assert api.post("/v1/catalogue/rollback", json={"version": 0}).status_code == 200
    assert api.get("/v1/catalogue").json()["items"] == 120
    answer = api.post("/v1/catalogue/rollback", json={"version": 99})
    assert answer.status_code == 404 and "no version 99" in answer.json()["detail"]
    made = [(one["put"], one["retired"], one["rollback"]) for one in api.get("/v1/catalogue/versions").json()["versions"]]
    assert made == [(0, 0, 0), (0, 0, 3), (0, 0, 1), (2, 0, None), (0, 1, None), (1, 0, None)]


def test_rolling_back_to_what_another_run_had_placed(run, tmp_path):
    store, other = f"sqlite:///{tmp_path}/store.sqlite", make_run(tmp_path / "other", seed=1)
    with client(run, store) as api:
        api.put("/v1/items/900", json=new(10))
        api.put("/v1/items/900", json=new(20))
    with client(other, store) as api:  # it has placed the later one alone
        assert api.post("/v1/catalogue/rollback", json={"version": 1}).json() == {"version": 3}
        assert api.get("/v1/items/900").json()["columns"]["vector"] == pytest.approx(new(10)["vector"])


def test_an_item_that_gets_its_vector_back_has_one_code_everywhere(run, tmp_path):
    """Placed anew it may have other codes than before: who reads the store afterwards is to have those, not the run's own."""
    store = f"sqlite:///{tmp_path}/store.sqlite"
    with client(run, store) as api:
        before = api.get("/v1/items/110").json()["columns"]
        assert api.patch("/v1/items/110", json={"vector": vector(3.5)}).status_code == 200
        assert api.patch("/v1/items/110", json={"vector": before["vector"]}).status_code == 200
        codes, lists = api.get("/v1/items/110").json()["codes"], recommend(api, history=[110, 105], k=50, exclude_seen=False)
    with client(run, store) as api:
        assert api.get("/v1/items/110").json()["codes"] == codes
        assert ids(recommend(api, history=[110, 105], k=50, exclude_seen=False)) == ids(lists)


def test_vectors_beyond_all_measure_are_refused(api):
    answer = api.put("/v1/items/900", json=new(1) | {"vector": [1e20] * len(vector(0))})
    assert answer.status_code == 409 and "its vector is of length" in answer.json()["detail"]


def test_two_writers_at_once_leave_the_latest_version(api):
    """The slower one may not put its version in the place of a later one."""
    threads = [threading.Thread(target=api.delete, args=(f"/v1/items/{item}",)) for item in range(100, 112)]
    threads += [threading.Thread(target=api.put, args=(f"/v1/items/{item}",), kwargs={"json": new(item % 20)}) for item in range(900, 912)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = api.get("/v1/catalogue").json()
    assert (known["version"], known["items"], known["retired"]) == (24, 120, 12)


def test_items_that_cannot_be_placed_are_refused_and_nothing_changes(api):
    for path, body, status, said in (
        ("900", {"title": "no vector"}, 409, "vector, row 1 (item 900): no vector"),
        ("900", new(1) | {"colour": "red"}, 422, "no column 'colour'"),
        ("900", {"vector": "text"}, 422, "column 'vector' holds lists of numbers (float), not 'text'"),
        ("nine", new(1), 422, "of type int64"),
    ):
        answer = api.put(f"/v1/items/{path}", json=body)
        assert answer.status_code == status and said in answer.json()["detail"], answer.text
    twice = {"items": [{"item": 900, "columns": new(1)}, {"item": "900", "columns": new(2)}]}
    assert "twice" in api.post("/v1/items", json=twice).json()["detail"]
    assert api.get("/v1/catalogue").json()["version"] == 0


def test_an_item_without_text_is_told_by_its_id(tmp_path, monkeypatch):
    """With a stand-in for the encoder."""

    class Letters:
        identity = "letters"

        def encode(self, texts, max_tokens, advance):
            return np.array([[text.count(chr(97 + at)) + 0.1 for at in range(26)] for text in texts], np.float32)

    monkeypatch.setattr("asymrec.vectors.encoders.find_encoder", lambda name: Letters())
    monkeypatch.setattr("asymrec.vectors.placing.find_encoder", lambda name: Letters())
    monkeypatch.setattr("asymrec.serving.catalogue.PLACED_AT_ONCE", 2)
    with client(make_run(tmp_path, text=["title"], views=[]), f"sqlite:///{tmp_path}/store.sqlite") as api:
        items = [{"item": 900 + at, "columns": {"title": "a thing" if at != 2 else ""}} for at in range(4)]
        for answer in (api.post("/v1/items", json={"items": items}), api.put("/v1/items/902", json={})):
            assert answer.status_code == 409 and "item '902' has no text: give one of title" in answer.json()["detail"], answer.text
        assert api.post("/v1/items", json={"items": items[:2]}).json() == {"version": 1}


def test_codes(api):
    books = api.get("/v1/codes").json()["codebooks"]
    assert len(books) == 8 and all(sum(book["counts"]) == 120 for book in books)
    codes = api.get("/v1/items/110").json()["codes"]
    same = api.get(f"/v1/codes/2/1/{codes[2][1]}", params={"limit": 100}).json()["items"]
    assert 110 in [one["item"] for one in same] and len(same) == books[5]["counts"][codes[2][1]]
    assert api.get("/v1/codes/4/0/0").status_code == 422


def test_all_is_there_after_a_restart(run, tmp_path):
    store = f"sqlite:///{tmp_path}/store.sqlite"
    with client(run, store) as api:
        api.put("/v1/items/900", json=new(10.5))
        api.delete("/v1/items/110")
        api.put("/v1/items/901", json=new(20.5))
        api.delete("/v1/items/901")  # histories hold it all the same
        api.post("/v1/events", json={"events": [{"user": "u", "item": 900}, {"user": "u", "item": 901}]})
        before = recommend(api, user="u")
        codes = api.get("/v1/items/900").json()["codes"]
    with client(run, store) as api:
        after = recommend(api, user="u")
        assert ids(after) == ids(before) and (after["version"], after["history"]) == (before["version"], before["history"]) == (4, 2)
        scores = [[one["score"] for one in found["items"]] for found in (before, after)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # placed together they have another rounding
        assert api.get("/v1/items/900").json()["codes"] == codes


def test_another_run_takes_over_without_losing_changes(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    other = make_run(tmp_path / "other", seed=1)
    with client(folder, f"sqlite:///{tmp_path}/store.sqlite") as api:
        api.put("/v1/items/900", json=new(10.5))
        identity, stop, statuses = api.service.catalogue.snapshot.run.identity, threading.Event(), []

        def ask():
            while not stop.is_set():
                statuses.append(api.post("/v1/recommend", json={"history": [900]}).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        old = folder.rename(tmp_path / "old")
        folder.mkdir()
        shutil.copy2(other / "manifest.json", folder)  # a copy comes file by file, and may rest between two
        time.sleep(0.5)
        shutil.copytree(other, folder, dirs_exist_ok=True)
        until = time.monotonic() + 20
        while api.service.catalogue.snapshot.run.identity == identity and time.monotonic() < until:
            time.sleep(0.02)
        stop.set()
        thread.join()
        assert api.service.catalogue.snapshot.run.identity != identity and old.exists()
        assert set(statuses) == {200} and api.get("/v1/items/900").status_code == 200
        # a damaged one does not
        (folder / "model.safetensors").write_bytes(b"")
        (folder / "manifest.json").touch()
        time.sleep(0.3)
        assert recommend(api, history=[900]) and api.get("/ready").status_code == 200
