"""The store: SQLite, and a real PostgreSQL that the tests start, with two servers on it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace

import pytest
import sqlalchemy as sa
from alembic import command
from hypothesis import given
from hypothesis import strategies as st
from serving import client, make_run, postgres, vector

from asymrec.errors import RunError
from asymrec.serving.catalogue import Catalogue, surviving
from asymrec.serving.snapshot import Run
from asymrec.serving.store import Change, Event, Store, Taken
from asymrec.serving.tables import metadata


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.sqlite"
    found = request.getfixturevalue("database")
    if found is None:
        pytest.skip("no PostgreSQL server program on this machine (initdb, pg_ctl)")
    engine = sa.create_engine(sa.make_url(found).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return found


def test_migrations_make_the_tables(url):
    Store(url).close()
    store = Store(url)  # again: nothing to do
    found = sa.inspect(store.engine)
    for name, table in metadata.tables.items():
        assert {column["name"] for column in found.get_columns(name)} == set(table.columns.keys())
    assert found.get_indexes("events")
    store.close()


def test_events_and_keys(url):
    store = Store(url)
    again = Event("b", "3", 1, "x")
    assert store.add_events([[Event("a", "1", 5), Event("a", "2", 4)], [again, again], [again]]) == [2, 1, 0]
    assert store.add_events([[again]]) == [0] and store.add_events([]) == []
    assert store.events_of(["a"]) == {"a": [("2", 4), ("1", 5)]}
    assert store.events_of(["b", "a", "c", "a"]) == {"b": [("3", 1)], "a": [("2", 4), ("1", 5)], "c": []}
    assert store.forget("a") == 2 and store.events_of("ab") == {"a": [], "b": [("3", 1)]}
    store.add_events([[Event("many", str(number), number) for number in range(1200)]])
    assert len(store.events_of(["many"])["many"]) == len(store.events_of(["many", "b"])["many"]) == 1000
    store.add_key("abc", "ann", "read", "digest")
    assert store.find_key("abc") == ("ann", "read", "digest") and store.find_key("x") is None
    assert [one["key"] for one in store.list_keys()] == ["abc"] and store.remove_key("abc") and not store.remove_key("abc")
    store.close()


def test_a_writer_who_fails_leaves_nothing(url):
    store = Store(url)
    with pytest.raises(ZeroDivisionError), store.writing() as writing:
        writing.add("run", [Change("retire", "1")])
        raise ZeroDivisionError
    assert store.version() == 0 and store.changes("run") == []
    with store.writing() as writing:
        writing.add("run", [Change("retire", "1")])
    assert [change.version for change in store.changes("run")] == [1]
    store.close()


def test_one_server_has_a_file(tmp_path):
    first = Store(f"sqlite:///{tmp_path}/store.sqlite")
    with pytest.raises(RunError, match="another server has the store"):
        Store(f"sqlite:///{tmp_path}/store.sqlite")
    Store(f"sqlite:///{tmp_path}/store.sqlite", serves=False).close()
    first.close()
    Store(f"sqlite:///{tmp_path}/store.sqlite").close()
    (tmp_path / "bad.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match="cannot open the store"):
        Store(f"sqlite:///{tmp_path}/bad.sqlite")


def test_what_survives_rollbacks():
    def change(version, kind="put", **more):
        return Change(kind, version=version, **more)

    one, two, back, four, again = change(1), change(2), change(3, "rollback", target=1), change(4), change(5, "rollback", target=2)
    assert surviving([one, two, back]) == [one]
    assert surviving([one, two, back, four]) == [one, four]
    assert surviving([one, two, back, four, again]) == [one, two]
    assert surviving([one, two, back, four, again, change(6, "rollback", target=4)]) == [one, four]


def test_as_many_rollbacks_as_there_are_nights():
    nights = [Change("put", "1", version=1), *(Change("rollback", target=version - 1, version=version) for version in range(2, 3000))]
    assert surviving(nights) == nights[:1]


@given(st.lists(st.integers(0, 30), max_size=12))
def test_what_survives_is_what_was_there(targets):
    changes, there = [], [[]]  # of each version, what is there
    for version, target in enumerate(targets, 1):
        if target < version - 1:
            changes.append(Change("rollback", target=target, version=version))
            there.append(there[target])
        else:
            changes.append(Change("put", str(version), version=version))
            there.append([*there[-1], changes[-1]])
    assert surviving(changes) == there[-1]


def test_many_may_make_a_store_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(Store, f"sqlite:///{tmp_path}/store.sqlite", serves=False) for _ in range(8)]
    for one in made:
        one.result().close()


def test_a_store_whose_making_was_interrupted_is_made_at_the_next_start(url, monkeypatch):
    upgrade = command.upgrade

    def interrupted(*arguments):
        upgrade(*arguments)
        raise OSError("power cut")

    monkeypatch.setattr(command, "upgrade", interrupted)
    with pytest.raises(RunError, match="power cut"):
        Store(url)
    monkeypatch.setattr(command, "upgrade", upgrade)
    store = Store(url)
    assert store.version() == 0 and store.changes("run") == []
    store.close()


def test_the_same_events_in_another_order_at_another_server(url):
    stores = [Store(url) for _ in range(1 + url.startswith("postgresql"))]
    for turn in range(5):
        events = [Event("u", "1", number, f"{turn}-{number}") for number in range(300)]
        with ThreadPoolExecutor(2) as pool:
            parts = [pool.submit(store.add_events, [order]) for store, order in zip(stores * 2, (events, events[::-1]))]
        assert sum(sum(part.result()) for part in parts) == 300
    for store in stores:
        store.close()


def test_an_id_of_another_event_is_refused_with_all_of_its_request(url):
    store = Store(url)
    assert store.add_events([[Event("a", "1", 5, "x")]]) == [1]
    requests = [
        [Event("b", "1", 5, "x"), Event("b", "1", 5, "y"), Event("b", "2", 5)],  # of another user
        [Event("c", "1", 5, "y"), Event("a", "1", 9, "x")],  # the former is refused, so `y` is free
        [Event("a", "2", 5, "x")],  # another item
        [Event("d", "1", 5, "y")],  # of a request before
        [Event("e", "1", 5), Event("c", "1", 5, "y")],
    ]
    found = store.add_events(requests)
    refused = {number: str(answer) for number, answer in enumerate(found) if isinstance(answer, Taken)}
    assert refused.keys() == {0, 2, 3} and (found[1], found[4]) == (1, 1)
    assert all(f"event id '{name}' is that of another event" in refused[number] for number, name in ((0, "x"), (2, "x"), (3, "y")))
    assert store.events_of("abcde") == {"a": [("1", 5)], "b": [], "c": [("1", 5)], "d": [], "e": [("1", 5)]}
    store.close()


def test_of_two_events_with_one_id_at_two_servers_one_is_stored(url):
    stores = [Store(url) for _ in range(1 + url.startswith("postgresql"))]
    for turn in range(5):
        requests = [[Event(user, "1", number, f"{turn}-{number}")] for user in "ab" for number in range(50)]
        with ThreadPoolExecutor(2) as pool:
            parts = [pool.submit(store.add_events, order) for store, order in zip(stores * 2, (requests, requests[::-1]))]
        answers = [answer for part in parts for answer in part.result()]
        assert sum(answer == 1 for answer in answers if isinstance(answer, int)) == 50
        assert sum(isinstance(answer, Taken) for answer in answers) == 100  # each id's other event, at both
    assert sum(map(len, stores[0].events_of("ab").values())) == 250
    for store in stores:
        store.close()


def test_events_counted_in_another_unit_hold_a_run_off(url, tmp_path):
    run, store = Run.load(make_run(tmp_path)), Store(url)
    other = replace(run, dataset=copy(run.dataset))
    other.dataset.time_unit = "ms" if run.dataset.time_unit != "ms" else "us"
    catalogue = Catalogue(run, store)
    assert catalogue.swap(other).run is other and catalogue.swap(run).run is run
    store.add_events([[Event("u", "1", 5)]])
    for refused in (lambda: catalogue.swap(other), lambda: Catalogue(other, store)):
        with pytest.raises(RunError, match=f"count time in {run.time_unit}, the run in {other.time_unit}: give it another store"):
            refused()
    assert catalogue.snapshot.run is run and Catalogue(run, store).snapshot.run is run
    store.close()


def test_a_store_of_the_first_release_is_brought_up_to_date(url, tmp_path, monkeypatch):
    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: upgrade(config, "1"))
    old = Store(url)
    old.add_events([[Event("u", "1", 5)]])
    with old.writing() as writing:
        writing.add("run", [Change("retire", "100")])
    old.close()
    monkeypatch.setattr(command, "upgrade", upgrade)
    store = Store(url)
    catalogue = Catalogue(Run.load(make_run(tmp_path)), store)
    assert store.events_of(["u"]) == {"u": [("1", 5)]} and catalogue.snapshot.version == 1 and not catalogue.snapshot.live[0]
    store.close()


def test_several_servers_share_a_database(url, tmp_path, tmp_path_factory):
    if not url.startswith("postgresql"):
        pytest.skip("an SQLite file has one server")
    run = make_run(tmp_path)
    with client(run, url) as first, client(run, url) as second:
        assert first.put("/v1/items/900", json={"vector": vector(10.5)}).json() == {"version": 1}
        assert second.put("/v1/items/901", json={"vector": vector(10.6)}).json() == {"version": 2}  # took over what the first wrote
        until = time.monotonic() + 5
        while first.get("/v1/items/901").status_code != 200:
            assert time.monotonic() < until
        codes = [[one.get(f"/v1/items/{item}").json()["codes"] for item in (900, 901)] for one in (first, second)]
        assert codes[0] == codes[1] and codes[0][0] != codes[0][1]
        assert first.post("/v1/events", json={"events": [{"user": "u", "item": 901}]}).status_code == 201
        asked = {"user": "u", "k": 5}
        assert second.post("/v1/recommend", json=asked).json() == first.post("/v1/recommend", json=asked).json()
        assert second.post("/v1/catalogue/rollback", json={"version": 0}).status_code == 200
        while first.get("/v1/items/901").status_code != 404:
            assert time.monotonic() < until
        assert first.get("/v1/catalogue").json()["items"] == 120
        first.service.catalogue.follow = second.service.catalogue.follow = lambda: None  # neither has heard of the other when it is asked
        assert first.patch("/v1/items/110", json={"title": "by the first"}).status_code == 200
        assert second.patch("/v1/items/110", json={"vector": vector(10.5)}).status_code == 200
        columns = second.get("/v1/items/110").json()["columns"]
        assert columns["title"] == "by the first" and columns["vector"] == pytest.approx(vector(10.5))
