"""`asymrec serve` as a process: what is acknowledged survives its death, what is bad is refused, and it ends in order."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.error

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import Server, make_run, vector
from small import asymrec, contents, here

from asymrec.models import Recommender

KILLS = 2  # benchmarks/serving.py does it twenty times


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("process"))


def test_kill_under_write_load_loses_nothing_acknowledged(run, tmp_path):
    store = f"sqlite:///{tmp_path}/store.sqlite"
    events, items, number = [], [], 0
    for turn in range(KILLS + 1):
        server = Server(run, "--store", store)
        for user, count in {user: sum(who == user for who, _ in events) for user in {who for who, _ in events}}.items():
            found = server.call("GET", f"/v1/users/{user}")[1]["history"]
            assert [one["item"] for one in found][:count] == [item for who, item in events if who == user]
            assert len(found) <= count + 1  # one may have been stored and not acknowledged
        for item in items:
            assert server.call("GET", f"/v1/items/{item}")[0] == 200
        if turn == KILLS:
            assert server.stop() == 0
            break
        stop = threading.Event()

        def post(who: str, server: Server = server, stop: threading.Event = stop) -> None:
            item = 100
            while not stop.is_set():
                item = 100 + (item + 1) % 100
                try:
                    if server.call("POST", "/v1/events", {"events": [{"user": who, "item": item}]})[0] == 201:
                        events.append((who, item))
                except (OSError, urllib.error.URLError):
                    return

        def put(first: int, server: Server = server, stop: threading.Event = stop) -> None:
            for item in range(first, first + 100_000):
                try:
                    if stop.is_set() or server.call("PUT", f"/v1/items/{item}", {"vector": vector(item % 120)})[0] != 200:
                        return
                    items.append(item)
                except (OSError, urllib.error.URLError):
                    return

        threads = [threading.Thread(target=post, args=(f"u{turn}-{each}",)) for each in range(3)]
        threads.append(threading.Thread(target=put, args=(1_000_000 * (turn + 1),)))
        before = len(events)
        for thread in threads:
            thread.start()
        while len(events) < before + 30:
            time.sleep(0.01)
        server.kill()
        stop.set()
        for thread in threads:
            thread.join()
        number += 1
    assert number == KILLS and len(events) >= 30 * KILLS and items


def test_sigterm_answers_what_was_accepted(run, tmp_path):
    server = Server(run, "--store", f"sqlite:///{tmp_path}/store.sqlite")
    statuses, errors = [], []

    def ask() -> None:
        for _ in range(200):
            try:
                statuses.append(server.call("POST", "/v1/recommend", {"user": 7})[0])
            except urllib.error.URLError:  # no longer listening: nothing was accepted
                return
            except OSError as error:  # accepted, then cut
                errors.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(statuses) < 10:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    for thread in threads:
        thread.join()
    assert set(statuses) == {200} and len(errors) <= 4  # connections that were open without a request


def test_what_is_bad_is_refused_and_the_server_lives(run, tmp_path):
    server = Server(run, "--store", f"sqlite:///{tmp_path}/store.sqlite")
    try:
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        try:
            assert server.call("POST", "/v1/recommend", b'{"user": "' + b"x" * 10_000_000 + b'"}')[0] == 413
        except urllib.error.URLError as error:
            assert isinstance(error.reason, (BrokenPipeError, ConnectionResetError))  # refused before all of it was sent
        for body in (
            b"",
            b"null",
            b"[" * 100_000,
            b"\x00" * 1000,
            b'{"user": 1e999}',
            b'{"k": 1' + b"0" * 5000 + b"}",
            b'{"user":"a","user":{}}',
        ):
            assert server.call("POST", "/v1/recommend", body)[0] in (400, 422), body[:20]
        slow = []
        for _ in range(20):  # clients that send the head of a request, and a byte now and then
            one = socket.create_connection(("127.0.0.1", port))
            one.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
            slow.append(one)
        for garbage in (b"\x16\x03\x01\x02", b"GET / HTTP/9\r\n\r\n", b"A" * 100_000):
            with socket.create_connection(("127.0.0.1", port)) as one:
                one.sendall(garbage)
        begun = time.perf_counter()
        assert server.call("POST", "/v1/recommend", {"user": 7})[0] == 200
        assert time.perf_counter() - begun < 1
        for one in slow:
            one.close()
        assert server.call("GET", "/ready")[0] == 200
        assert "Traceback" not in "".join(server.lines), "".join(server.lines)

        # a second one, and another who wants the store
        done = asymrec("serve", run, "--port", port)
        assert done.returncode == 2 and f"cannot listen on 127.0.0.1 port {port}" in done.stderr
        done = asymrec("serve", run, "--port", 0, "--store", f"sqlite:///{tmp_path}/store.sqlite")
        assert done.returncode == 2 and "another server has the store" in done.stderr
    finally:
        server.stop()


def test_keys_are_needed_where_others_can_reach_the_server(run, tmp_path):
    store = ("--store", f"sqlite:///{tmp_path}/store.sqlite")
    done = here("serve", run, "--host", "0.0.0.0", "--port", 0, *store)
    assert done.returncode == 2 and "make a key" in done.stderr
    key = here("keys", "add", "ann", *store).stdout.strip()
    assert here("keys", "list", *store).stdout.count("ann") == 1
    server = Server(run, "--host", "0.0.0.0", *store)
    try:
        assert server.call("POST", "/v1/recommend", {"user": 7})[0] == 401
        assert server.call("POST", "/v1/recommend", {"user": 7}, {"Authorization": f"Bearer {key}"})[0] == 200
        assert key not in "".join(server.lines)
    finally:
        server.stop()
    assert here("keys", "remove", key.split("_")[1], *store).returncode == 0
    assert here("keys", "remove", "nothing", *store).returncode == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("absent",), "there is no run folder"),
        (("RUN", "--store", "mysql://x"), "SQLite or PostgreSQL"),
        (("RUN", "--store", "nonsense"), "not the URL of a store"),
        (("RUN", "--store", "sqlite:////nowhere/at/all.sqlite"), "there is no folder"),
        (("RUN", "--store", "postgresql://someone:secret@127.0.0.1:1/x"), "cannot open the store"),
        (("RUN", "--host", "192.0.2.1", "--insecure"), "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_served(options, said, run, tmp_path):
    port = () if "--host" in options else ("--port", 0)
    done = here("serve", *(run if part == "RUN" else part for part in options), *port, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "secret" not in done.stderr, done.stderr
    assert contents(tmp_path) == []


# Lists for many users


def test_batch_writes_what_recommend_gives(run, tmp_path):
    histories = [[105, 106], [], None, [150]]
    pq.write_table(pa.table({"history": histories, "note": ["a", "b", "c", "d"]}), tmp_path / "in.parquet")
    pq.write_table(pa.table({"user": list(range(1, 101)) * 100}), tmp_path / "users.parquet")
    assert here("batch", run, tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "-k", 3).returncode == 0
    done = here("batch", run, tmp_path / "users.parquet", "-o", tmp_path / "lists.parquet")
    assert done.returncode == 0 and "10,000 lines" in done.stderr
    model = Recommender.load(run)
    found, lists = pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "lists.parquet")
    assert found["items"].to_pylist() == model.recommend([each or [] for each in histories], 3)[0]
    assert found["note"].to_pylist() == ["a", "b", "c", "d"]
    assert lists["items"][:100].to_pylist() == model.recommend(users=range(1, 101))[0] == lists["items"][9900:].to_pylist()


def test_batch_refuses_what_it_cannot_read(run, tmp_path):
    pq.write_table(pa.table({"who": [1]}), tmp_path / "who.parquet")
    pq.write_table(pa.table({"user": [1, 999_999]}), tmp_path / "unknown.parquet")
    (tmp_path / "broken.parquet").write_bytes(json.dumps({}).encode())
    for name, said in (
        ("who", "no column history"),
        ("unknown", "unknown user id 999999"),
        ("broken", "not readable"),
        ("absent", "no such"),
    ):
        done = here("batch", run, tmp_path / f"{name}.parquet", "-o", tmp_path / "out.parquet")
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "out.parquet").exists()
