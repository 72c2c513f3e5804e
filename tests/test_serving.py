"""The server: recommendations, events, limits, keys; in this process."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from serving import client, ids, recommend

from asymrec.data import Sequences
from asymrec.models import Recommender
from asymrec.serving.security import new_key
from asymrec.serving.snapshot import Run


def scores(found: dict) -> list[float]:
    return [one["score"] for one in found["items"]]


# Recommendations


def test_recommendations_are_those_of_the_library(api, run):
    model = Recommender.load(run)
    for asked in ({"users": [7]}, {"histories": [[105, 106, 109]]}, {"histories": [[]]}):
        (expected,), (scores,) = model.recommend(**asked, k=5)
        found = recommend(api, k=5, **({"user": 7} if "users" in asked else {"history": asked["histories"][0]}))
        assert ids(found) == expected
        np.testing.assert_allclose([one["score"] for one in found["items"]], scores, rtol=1e-4)
    assert ids(recommend(api, user="7", k=5)) == ids(recommend(api, user=7, k=5))


def test_filters_and_seen(api):
    seen = [105, 106, 109]
    assert not set(ids(recommend(api, history=seen, k=120))) & set(seen)
    assert len(ids(recommend(api, history=seen, k=120, exclude_seen=False))) == 120
    assert set(ids(recommend(api, history=seen, only=[105, 110, 111]))) == {110, 111}
    assert not {110, 111} & set(ids(recommend(api, history=seen, deny=[110, 111], k=50)))
    red = recommend(api, history=seen, where=[{"column": "title", "any_of": ["red red thing 0", "blue red thing 1"]}])
    assert set(ids(red)) == {100, 101}
    assert not {100, 101} & set(
        ids(recommend(api, history=seen, k=100, where=[{"column": "title", "none_of": ["red red thing 0", "blue red thing 1"]}]))
    )
    assert set(ids(recommend(api, history=seen, k=100, where=[{"column": "item_id", "at_least": 215, "at_most": 217}]))) == {215, 216, 217}
    assert "no column 'colour'" in recommend(api, 422, history=seen, where=[{"column": "colour", "any_of": ["red"]}])["detail"]
    assert "cannot be compared" in recommend(api, 422, history=seen, where=[{"column": "title", "at_least": 3}])["detail"]


def test_reasons_are_the_nearest_of_the_history(api):
    found = recommend(api, history=[110, 160], only=[111, 161])
    assert {one["item"]: one["reasons"][0]["item"] for one in found["items"]} == {111: 110, 161: 160}
    assert "reasons" not in recommend(api, history=[110], reasons=False)["items"][0]


def test_what_is_unknown_or_malformed_is_told(api):
    assert "unknown user id 'nobody'" in recommend(api, 404, user="nobody")["detail"]
    assert "unknown item id '999'" in recommend(api, 404, history=[999])["detail"]
    assert recommend(api, 422)["detail"] == "body: give a user or a history"
    assert recommend(api, 422, user="")["detail"] == "body.user: String should have at least 1 character"
    assert recommend(api, 422, history=[105, "x" * 257])["detail"] == "body.history.1: String should have at most 256 characters"
    assert recommend(api, 422, user=7, k=0)["detail"].startswith("body.k:")
    assert "Extra inputs" in recommend(api, 422, user=7, K=3)["detail"]
    for body in (b"{", b"[1]", b'{"user": NaN}', b'{"user": "\\ud800"}', b'{"user": "a\\u0000"}', b"\xff\xfe", b'{"history": [1e400]}'):
        answer = api.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, (body, answer.text)


def test_a_batch_answers_each_for_itself(api):
    answer = api.post("/v1/recommend/batch", json={"requests": [{"user": 7}, {"user": "nobody"}, {"history": [105]}]}).json()
    assert ids(answer["results"][0]["result"]) == ids(recommend(api, user=7))
    assert "nobody" in answer["results"][1]["error"] and "result" in answer["results"][2]


def test_similar_items_and_search(api):
    found = api.get("/v1/similar/110?k=2").json()["items"]
    assert {one["item"] for one in found} == {109, 111} and found[0]["similarity"] > 0.9
    assert api.get("/v1/items", params={"search": "RED thing 10"}).json()["items"][0]["item"] == 110
    assert api.get("/v1/items", params={"search": "117"}).json()["items"][0]["item"] == 117


# Events


def test_events_join_the_history_after_the_runs(api):
    before = api.get("/v1/users/7").json()
    answer = api.post("/v1/events", json={"events": [{"user": 7, "item": 150}, {"user": "new", "item": 110}]})
    assert answer.status_code == 201 and answer.json() == {"stored": 2}
    after = api.get("/v1/users/7").json()
    assert [one["item"] for one in after["history"]] == [one["item"] for one in before["history"]] + [150] and after["stored"] == 1
    assert recommend(api, user=7)["history"] == before["stored"] + len(before["history"]) + 1
    when = api.get("/v1/users/new").json()["history"][0]["time"]
    assert ids(recommend(api, user="new")) == api.service.engine.snapshot().model.recommend([[110]], times=[[when]])[0][0]
    assert api.post("/v1/events", json={"events": [{"user": 7, "item": 999}]}).status_code == 404
    assert api.delete("/v1/users/new").json() == {"stored": 1}
    assert recommend(api, 404, user="new") and api.delete("/v1/users/new").status_code == 404


def test_a_history_may_bring_its_times(api):
    past = api.get("/v1/users/7").json()["history"]
    given = {"history": [one["item"] for one in past], "times": [one["time"] for one in past]}
    known, brought, without = recommend(api, user=7), recommend(api, **given), recommend(api, history=given["history"])
    assert ids(brought) == ids(known) and scores(brought) == pytest.approx(scores(known))
    assert scores(without) != pytest.approx(scores(known), abs=1e-4)
    joined = recommend(api, user=7, history=[150], times=[given["times"][-1] + 60])
    expected = recommend(api, history=[*given["history"], 150], times=[*given["times"], given["times"][-1] + 60])
    assert joined["history"] == len(past) + 1 and scores(joined) == pytest.approx(scores(expected))
    assert scores(recommend(api, user=7, history=[150])) != pytest.approx(scores(joined), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"history": [101, 102], "times": [5]}, "body: 1 times for a history of 2 items"),
        ({"user": 7, "times": [5]}, "body: 1 times for a history of 0 items"),
        ({"history": [101, 102], "times": [6, 5]}, "body: times must not fall: the oldest item comes first"),
        ({"history": [101], "times": [1.5]}, "body.times.0: Input should be a valid integer"),
        ({"history": [101], "times": [1_795_754_143_000]}, "times: 1795754143000 is not in the run's unit, s (since 1970)"),
    ],
)
def test_times_that_do_not_fit_the_history_are_told(api, asked, told):
    assert recommend(api, 422, **asked) == {"detail": told}


def test_users_are_found_by_the_beginning_of_their_id(api):
    assert api.get("/v1/users", params={"search": "19", "limit": 3}).json() == {"users": [19, 190, 191]}
    assert api.get("/v1/users", params={"search": "x"}).json() == {"users": []}


def test_an_event_that_is_sent_twice_is_stored_once(api):
    events = [{"user": "u", "item": 110, "id": "a", "time": 5}, {"user": "u", "item": 111, "id": "b", "time": 4}]
    for new_ones in (2, 0):
        answer = api.post("/v1/events", json={"events": [*events, events[0]]})
        assert answer.status_code == 201 and answer.json() == {"stored": new_ones}
    assert [(one["item"], one["time"]) for one in api.get("/v1/users/u").json()["history"]] == [(111, 4), (110, 5)]


@pytest.mark.parametrize(
    ("unit", "good", "bad"),
    [
        ("s", [5, 0, -5, 1_795_754_143, -1_795_754_143], [1_795_754_143_000, -1_795_754_143_000, 1_795_754_143_000_000, 2**63 - 1]),
        ("ms", [5, 1_795_754_143_000], [1_795_754_143, 1_795_754_143_000_000]),
        ("us", [5, 1_795_754_143_000_000], [1_795_754_143_000, 1_795_754_143_000_000_000]),
        ("ns", [5, 1_795_754_143_000_000_000, 2**63 - 1, -(2**63)], [1_795_754_143, 1_795_754_143_000]),
        (None, [5, 1_795_754_143], [1_795_754_143_000]),  # a run without times counts seconds
    ],
)
def test_times_are_in_the_runs_unit(api, monkeypatch, unit, good, bad):
    """One in milliseconds among seconds would be the user's latest for ever."""
    monkeypatch.setattr(api.service.catalogue.snapshot.run.dataset, "time_unit", unit)
    assert api.get("/v1/catalogue").json()["time_unit"] == unit
    events = [{"user": "u", "item": 105, "time": time} for time in good]
    assert api.post("/v1/events", json={"events": events}).json() == {"stored": len(good)}
    for time_ in bad:
        answer = api.post("/v1/events", json={"events": [{"user": "v", "item": 105}, events[0], events[0] | {"time": time_}]})
        assert answer.status_code == 422
        assert answer.json() == {"detail": f"event 3: time {time_} is not in the run's unit, {unit or 's'} (since 1970)"}
    assert len(api.get("/v1/users/u").json()["history"]) == len(good) and api.get("/v1/users/v").status_code == 404


def test_a_user_has_one_history_however_the_id_is_written(api):
    for user in (7, "7", "7.0", 7.0):
        assert api.post("/v1/events", json={"events": [{"user": user, "item": 110}]}).status_code == 201
    assert api.get("/v1/users/7.0").json() == api.get("/v1/users/7").json() and api.get("/v1/users/7").json()["stored"] == 4
    assert recommend(api, user="7.0") == recommend(api, user=7)
    assert api.delete("/v1/users/7.0").json() == {"stored": 4} and api.get("/v1/users/7").json()["stored"] == 0


def test_a_time_that_the_run_has_is_one(api):
    """Microseconds of 1971 look like milliseconds of 2004."""
    sequences = Sequences.of([[0, 1]], [[32_659_203_703_701, 32_659_203_703_900]])
    run = Run("", "", None, SimpleNamespace(time_unit="us", sequences=sequences))
    assert run.may_count(32_659_203_703_800) and not run.may_count(32_659_203_703_901) and run.may_count(1_700_000_000_000_000)


def test_an_id_is_of_one_event(api):
    events = [{"user": 7, "item": 110, "id": "a"}, {"user": "u", "item": 111, "id": "b"}, {"user": "u", "item": 112}]
    assert api.post("/v1/events", json={"events": events}).json() == {"stored": 3}
    again = [{"user": "7", "item": "110", "id": "a", "time": 5}]  # whenever it is said to have been, and however ids are written
    assert api.post("/v1/events", json={"events": [*events[:2], *again]}).json() == {"stored": 0}
    for other in ({"user": 8}, {"item": 113}):
        answer = api.post("/v1/events", json={"events": [{"user": "w", "item": 110, "id": "c"}, events[0] | other]})
        assert answer.status_code == 409 and answer.json()["detail"].startswith("event id 'a' is that of another event already")
        answer = api.post("/v1/events", json={"events": [events[0] | {"id": "d"}, events[0] | other | {"id": "d"}]})
        assert (answer.status_code, answer.json()) == (422, {"detail": "body: two different events have the id 'd'"})
    assert api.get("/v1/users/w").status_code == 404 and api.get("/v1/users/7").json()["stored"] == 1
    assert api.post("/v1/events", json={"events": [{"user": "w", "item": 110, "id": "c"}]}).json() == {"stored": 1}


def test_a_request_that_is_refused_harms_none_that_shares_its_commit(api):
    store, add, go, sizes, found = api.service.store, api.service.store.add_events, threading.Event(), [], {}

    def slow(requests):
        sizes.append(len(requests))
        go.wait(10)
        return add(requests)

    store.add_events = slow
    posted = {
        "first": [{"user": "a", "item": 105, "id": "x"}],
        "other": [{"user": "b", "item": 106, "id": "y"}, {"user": "b", "item": 106, "id": "x"}],
        "plain": [{"user": "c", "item": 107}],
        "same": [{"user": "a", "item": 105, "id": "x"}, {"user": "c", "item": 108, "id": "y"}],
        "late": [{"user": "d", "item": 109, "id": "y"}],
    }

    def post(name):
        answer = api.post("/v1/events", json={"events": posted[name]})
        found[name] = answer.status_code, answer.json().get("stored")

    threads = [threading.Thread(target=post, args=(name,)) for name in posted]
    for number, thread in enumerate(threads):  # the first is under way, the others wait for one commit
        thread.start()
        until = time.monotonic() + 5
        while (len(sizes), api.service.recorder.jobs.qsize()) != (1, number) and time.monotonic() < until:
            time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(20)
    assert sizes == [1, 4]
    assert found == {"first": (201, 1), "other": (409, None), "plain": (201, 1), "same": (201, 1), "late": (409, None)}
    kept = {user: [item for item, _ in events] for user, events in store.events_of("abcd").items()}
    assert kept == {"a": ["105"], "b": [], "c": ["107", "108"], "d": []}
    assert "asymrec_events_total 3.0" in api.get("/metrics").text


# Limits


def test_large_bodies_and_many_requests_are_refused(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite", largest=10_000) as api:
        assert recommend(api, 413, history=[105], deny=["x" * 100] * 100) == {"detail": "the body is larger than 10000 bytes"}
        pieces = (b" " * 1000 for _ in range(20))
        answer = api.post("/v1/recommend", content=pieces, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert recommend(api, history=[105])


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("recommend", {"history": []} | {str(number): 0 for number in range(100_000)}, "more than 32 fields"),
        ("recommend", {"history": [[]] * 500_000}, "body.history"),
        ("recommend/batch", {"requests": [{"history": [], "only": [[]] * 9000}] * 50}, "body.requests.0.only.0"),
        ("items", {"items": [{"item": []}] * 10_000}, "body.items.0"),
    ],
)
def test_what_is_wrong_many_times_is_told_once_and_at_once(api, path, body, told):
    """An error of its own for each wrong entry would take minutes and gigabytes."""
    content, begun = json.dumps(body), time.process_time()
    answer = api.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and told in answer.json()["detail"]
    assert time.process_time() - begun < 2


def test_back_pressure_and_timeouts(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite", waiting=4, timeout=0.3) as api:
        engine, answer, go = api.service.engine, api.service.engine.answer, threading.Event()

        def slow(asks):
            go.wait(5)
            return answer(asks)

        engine.answer = slow
        found = []
        ask = lambda: found.append(api.post("/v1/recommend", json={"user": 7}))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        go.set()
        statuses = sorted(one.status_code for one in found)
        assert set(statuses) == {429, 504}, statuses
        assert all(one.headers["retry-after"] == "1" for one in found if one.status_code == 429)
        until = time.monotonic() + 5
        while api.post("/v1/recommend", json={"user": 7}).status_code != 200:
            assert time.monotonic() < until


def test_requests_that_come_together_are_answered_by_one_call(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as api:
        engine, sizes, answer = api.service.engine, [], api.service.engine.answer

        def watched(asks):
            sizes.append(len(asks))
            time.sleep(0.05)
            return answer(asks)

        engine.answer = watched
        threads = [threading.Thread(target=lambda: api.post("/v1/recommend", json={"user": 7})) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(sizes) == 12 and len(sizes) < 8


def test_a_failure_of_the_model_is_one_answer_not_the_end(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as api:
        engine, answer = api.service.engine, api.service.engine.answer
        engine.answer = lambda asks: 1 / 0
        assert api.post("/v1/recommend", json={"user": 7}).status_code == 500
        engine.answer = answer
        assert recommend(api, user=7)


def test_a_request_that_fails_spoils_no_other(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as api:
        engine, answer, sizes = api.service.engine, api.service.engine.answer, []

        def fail(asks):
            sizes.append(len(asks))
            time.sleep(0.05)
            if any(ask.k == 13 for ask in asks):
                raise ValueError("thirteen")
            return answer(asks)

        engine.answer = fail
        found = {}
        ask = lambda at: found.update({at: api.post("/v1/recommend", json={"user": 7, "k": 13 if at == 5 else 5}).status_code})  # noqa: E731
        threads = [threading.Thread(target=ask, args=(at,)) for at in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {at: 500 if at == 5 else 200 for at in range(12)} and max(sizes) > 1


def test_stopping_stores_what_waits_for_a_commit(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as api:
        store, add, go, found = api.service.store, api.service.store.add_events, threading.Event(), []

        def slow(events):
            go.wait(10)
            return add(events)

        store.add_events = slow
        post = lambda: found.append(api.post("/v1/events", json={"events": [{"user": "late", "item": 105}]}).status_code)  # noqa: E731
        threads = [threading.Thread(target=post) for _ in range(2)]
        for thread in threads:  # the first is under way, the second waits
            thread.start()
            time.sleep(0.3)
        stop = threading.Thread(target=api.service.recorder.stop)
        stop.start()
        time.sleep(0.3)
        go.set()
        for thread in (*threads, stop):
            thread.join(20)
        assert found == [201, 201] and len(api.service.store.events_of(["late"])["late"]) == 2
        api.service.recorder.stop = lambda: None  # it has


def test_stopping_answers_what_was_accepted(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite") as api:
        service, results = api.service, []
        threads = [
            threading.Thread(target=lambda: results.append(api.post("/v1/recommend", json={"user": 7}).status_code)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [200] * 8
    assert not service.engine.thread.is_alive() and not service.recorder.thread.is_alive()


# Security


def test_keys_and_scopes(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite", keys=True) as api:
        reader, writer = new_key(api.service.store, "ann", "read"), new_key(api.service.store, "bob", "write")

        def status(method, path, key=None, **more):
            return api.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {}, **more).status_code

        asked, event = {"json": {"user": 7}}, {"json": {"events": [{"user": 7, "item": 105}]}}
        assert status("POST", "/v1/recommend", **asked) == 401
        wrong = (
            reader[:-1] + ("A" if reader[-1] != "A" else "B"),
            "asymrec_000000000000_x",
            "x",
            "asymrec_" + "é" * 5,
            reader + "x",
            reader.split("_", 2)[0],
        )
        for key in wrong:
            assert api.post("/v1/recommend", json={"user": 7}, headers={"Authorization": f"Bearer {key}".encode()}).status_code == 401
        assert status("POST", "/v1/recommend", reader, **asked) == status("POST", "/v1/recommend", writer, **asked) == 200
        assert status("POST", "/v1/events", reader, **event) == 403 and status("POST", "/v1/events", writer, **event) == 201
        for method, path in (("PUT", "/v1/items/1"), ("PATCH", "/v1/items/1"), ("DELETE", "/v1/items/1"), ("DELETE", "/v1/users/1")):
            assert status(method, path, reader, json={}) == 403
        assert status("GET", "/metrics") == 401 and status("GET", "/health") == status("GET", "/ready") == status("GET", "/") == 200
        stored = (tmp_path / "store.sqlite").read_bytes() + (tmp_path / "store.sqlite-wal").read_bytes()
        assert reader.split("_", 2)[2].encode() not in stored


def test_other_sites_cannot_use_a_server_without_keys(run, tmp_path):
    with client(run, f"sqlite:///{tmp_path}/store.sqlite", hosts=("localhost",)) as api:
        for name in ("evil.example", "localhost.evil.example", "localhost@evil.example", "evil.example:80", "", ":80"):
            answer = api.get("/v1/catalogue", headers={"Host": name})
            assert answer.status_code == 400 and "the name in Host" in answer.json()["detail"], name
        assert all(api.get("/v1/catalogue", headers={"Host": name}).status_code == 200 for name in ("localhost", "LocalHost:8000"))
        answer = api.options("/v1/events", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
        event = json.dumps({"events": [{"user": 7, "item": 105}]})
        for kind in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
            answer = api.post("/v1/events", content=event, headers=kind)
            assert answer.status_code == 415 and "application/json" in answer.json()["detail"]
        assert api.post("/v1/events", content=event, headers={"content-type": "Application/JSON; charset=utf-8"}).status_code == 201
        for path in ("/page/../service.py", "/page/%2e%2e%2fservice.py", "/page//etc/passwd", "/page/index.html"):
            assert api.get(path).status_code == 404


def test_metrics_count(api):
    recommend(api, user=7)
    recommend(api, user=7)
    text = api.get("/metrics").text
    assert 'asymrec_requests_total{method="POST",route="/v1/recommend",status="200"} 2.0' in text
    for line in ('asymrec_user_cache_total{result="hit"} 1.0', "asymrec_catalogue_items 120.0", "asymrec_queue_length 0.0"):
        assert line in text, line
    assert "/v1/items/{item:path}" not in text and 'asymrec_request_seconds_count{route="/v1/recommend"} 2.0' in text
