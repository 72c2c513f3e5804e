"""What a server does on this machine: latency and throughput, batching, deaths under load, new items. One part a command, one log a part.

    python benchmarks/serving.py load RUN     # wrk at 1, 8 and 64 clients, with and without micro-batching
    python benchmarks/serving.py mixed RUN    # reads and writes side by side for --seconds: no error, no lost event
    python benchmarks/serving.py kill RUN     # kill -9 under write load, --times: everything acknowledged is there
    python benchmarks/serving.py items RUN    # a new item until it is recommended; --count items at once

RUN: a run folder whose items have a title. Logs go to benchmarks/logs/serving_PART.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CLIENTS = (1, 8, 64)


class Server:
    """`asymrec serve` on a free port, with a store of its own that outlives it."""

    def __init__(self, run: Path, store: str, *options: str):
        command = [sys.executable, "-m", "asymrec", "serve", str(run), "--port", "0", "--store", store, *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stderr if " at http://" in line)
        self.port = int(re.search(r":(\d+)/$", line.strip())[1])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        client = Client(self.port)
        while client("GET", "/ready")[0] != 200:
            time.sleep(0.05)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class Client:
    """One connection, kept open; status 0 where there is no answer."""

    def __init__(self, port: int):
        self.port, self.connection = port, None

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            self.connection = self.connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            data = None if body is None else json.dumps(body)
            self.connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text)
        except (OSError, http.client.HTTPException):
            self.connection = None
            time.sleep(0.02)
            return 0, None


def users_of(run: Path) -> list[Any]:
    from asymrec.data import Dataset

    ids = Dataset.load(run / "dataset").user_ids.to_pylist()
    return [ids[row] for row in np.random.default_rng(0).permutation(len(ids))[:2000]]


def items_of(run: Path, count: int) -> list[Any]:
    from asymrec.data import Dataset

    return Dataset.load(run / "dataset").item_ids[:count].to_pylist()


def load(run: Path, folder: Path, seconds: int) -> dict[str, Any]:
    """wrk: every client asks for the ten best of one user after another."""
    if shutil.which("wrk") is None:
        sys.exit("this part needs wrk (Debian: apt install wrk)")
    bodies = ",\n".join(json.dumps(json.dumps({"user": user})) for user in users_of(run))
    script = folder / "ask.lua"
    script.write_text(
        f"local bodies = {{{bodies}}}\nlocal at = 0\nmath.randomseed(1)\n"
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        "request = function()\n  at = at % #bodies + 1\n  return wrk.format(nil, nil, nil, bodies[at])\nend\n"
    )
    rows = []
    for batch in (64, 1):
        server = Server(run, f"sqlite:///{folder}/{batch}.sqlite", "--batch", str(batch))
        try:
            for clients in CLIENTS if batch > 1 else CLIENTS[-1:]:
                command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "--timeout", "10s", "-s", str(script)]
                url = f"http://127.0.0.1:{server.port}/v1/recommend"
                subprocess.run([*command[:3], "-d2s", *command[4:], url], capture_output=True, check=True)  # warm
                before = server.cpu()
                said = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
                used = server.cpu() - before
                rows.append({"batch": batch, "clients": clients, **_wrk(said), "cpu_seconds": round(used, 2)})
                rows[-1]["users_per_cpu_second"] = round(rows[-1]["requests"] / used, 1)
                print(rows[-1], flush=True)
        finally:
            server.stop()
    return {"seconds": seconds, "rows": rows}


def _wrk(said: str) -> dict[str, Any]:
    def milliseconds(percentile: str) -> float:
        value, unit = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s)", said).groups()
        return round(float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit], 2)

    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    timeouts = re.search(r"Socket errors: (.*)", said)
    return {
        "p50_ms": milliseconds("50"),
        "p99_ms": milliseconds("99"),
        "users_per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),
        "requests": int(re.search(r"(\d+) requests in", said)[1]),
        "refused": int(errors[1]) if errors else 0,
        "socket_errors": timeouts[1] if timeouts else "none",
    }


def mixed(run: Path, folder: Path, seconds: int) -> dict[str, Any]:
    """Readers, writers of events, and one who adds and retires items, all at once; then every event is looked for."""
    store, users = f"sqlite:///{folder}/store.sqlite", users_of(run)
    server, stop = Server(run, store), time.monotonic() + seconds
    statuses: dict[str, dict[int, int]] = {}
    waits: dict[str, list[float]] = {}
    sent: list[tuple[str, int]] = []
    items = items_of(run, 200)

    def count(what: str, ask: Any) -> int:
        begun = time.perf_counter()
        status = ask()[0]
        waits.setdefault(what, []).append(time.perf_counter() - begun)
        mine = statuses.setdefault(what, {})
        mine[status] = mine.get(status, 0) + 1
        return status

    def read(first: int) -> None:
        client, at = Client(server.port), first
        while time.monotonic() < stop:
            at = (at + 7) % len(users)
            body = {"user": users[at]}
            count("recommend", lambda: client("POST", "/v1/recommend", body))  # noqa: B023

    def write(name: int) -> None:
        client, number = Client(server.port), 0
        while time.monotonic() < stop:
            event = (f"load-{name}-{number // 100}", items[number % len(items)])
            if count("event", lambda: client("POST", "/v1/events", {"events": [{"user": event[0], "item": event[1]}]})) == 201:  # noqa: B023
                sent.append(event)
            number += 1
            time.sleep(0.01)

    def change() -> None:
        client, number = Client(server.port), 0
        while time.monotonic() < stop:
            path = f"/v1/items/{90_000_000 + number}"
            count("put", lambda: client("PUT", path, {"title": f"A new thing, number {number}"}))  # noqa: B023
            if number % 2:
                count("delete", lambda: client("DELETE", path))  # noqa: B023
            number += 1
            time.sleep(1)

    readers = [threading.Thread(target=read, args=(each,)) for each in range(6)]
    writers = [threading.Thread(target=write, args=(each,)) for each in range(2)]
    threads = [*readers, *writers, threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    lost = _lost(run, store, sent)
    p99 = {what: round(float(np.quantile(each, 0.99)) * 1e3, 1) for what, each in waits.items()}
    return {"seconds": seconds, "statuses": statuses, "p99_ms": p99, "events_acknowledged": len(sent), "events_lost": lost}


def kill(run: Path, folder: Path, times: int) -> dict[str, Any]:
    """Writers of events and items until the server dies by kill -9 at a random moment; then all that was acknowledged is looked for."""
    store, random = f"sqlite:///{folder}/store.sqlite", np.random.default_rng(0)
    sent: list[tuple[str, int]] = []
    items: list[int] = []
    some = items_of(run, 100)
    for turn in range(times):
        server = Server(run, store)
        dead = threading.Event()

        def post(name: int, turn: int = turn, server: Server = server, dead: threading.Event = dead) -> None:
            client, number = Client(server.port), 0
            while not dead.is_set():
                event = (f"kill-{turn}-{name}", some[number % len(some)])
                if client("POST", "/v1/events", {"events": [{"user": event[0], "item": event[1]}]})[0] == 201:
                    sent.append(event)
                number += 1

        def put(turn: int = turn, server: Server = server, dead: threading.Event = dead) -> None:
            client, number = Client(server.port), 90_000_000 + turn * 10_000
            while not dead.is_set():
                if client("PUT", f"/v1/items/{number}", {"title": f"A new thing, number {number}"})[0] == 200:
                    items.append(number)
                number += 1

        threads = [*(threading.Thread(target=post, args=(each,)) for each in range(4)), threading.Thread(target=put)]
        for thread in threads:
            thread.start()
        time.sleep(1 + float(random.random()) * 2)
        server.process.kill()
        server.process.wait()
        dead.set()
        for thread in threads:
            thread.join()
        print(f"death {turn + 1}: {len(sent)} events and {len(items)} items acknowledged so far", flush=True)
    server = Server(run, store)
    client = Client(server.port)
    missing = sum(client("GET", f"/v1/items/{item}")[0] != 200 for item in items)
    server.stop()
    lost = _lost(run, store, sent)
    return {"deaths": times, "events_acknowledged": len(sent), "events_lost": lost, "items_acknowledged": len(items), "items_lost": missing}


def _lost(run: Path, store: str, sent: list[tuple[str, int]]) -> int:
    """Acknowledged events that are not in the histories of their users, in their order."""
    server = Server(run, store)
    client, lost = Client(server.port), 0
    wanted: dict[str, list[int]] = {}
    for user, item in sent:
        wanted.setdefault(user, []).append(item)
    for user, expected in wanted.items():
        found = iter([one["item"] for one in client("GET", f"/v1/users/{user}")[1]["history"]])
        lost += sum(item not in found for item in expected)  # an iterator: each must come after the one before
    server.stop()
    return lost


def items(run: Path, folder: Path, count: int) -> dict[str, Any]:
    """Titles of the run, slightly changed, as new items."""
    from asymrec.data import Dataset

    titles = Dataset.load(run / "dataset").titles()
    server = Server(run, f"sqlite:///{folder}/store.sqlite")
    client, singles = Client(server.port), []
    for number in range(20):
        begun, own = time.perf_counter(), 90_000_000 + number
        assert client("PUT", f"/v1/items/{own}", {"title": f"{titles[number * 7]}, second edition"})[0] == 200
        found = client("POST", "/v1/recommend", {"history": [own], "only": [own], "exclude_seen": False})[1]["items"]
        assert [one["item"] for one in found] == [own]
        singles.append(time.perf_counter() - begun)
    named = [f"{titles[number % len(titles)]}, edition {2 + number // len(titles)}" for number in range(count)]
    new = [{"item": 91_000_000 + number, "columns": {"title": title}} for number, title in enumerate(named)]
    before, begun = server.cpu(), time.perf_counter()
    assert client("POST", "/v1/items", {"items": new})[0] == 200
    bulk, used = time.perf_counter() - begun, server.cpu() - before
    assert client("GET", "/v1/catalogue")[1]["items"] == len(titles) + 20 + count
    server.stop()
    begun = time.perf_counter()
    Server(run, f"sqlite:///{folder}/store.sqlite").stop()
    figures = {"first_ms": singles[0], "median_ms": float(np.median(singles)), "most_ms": max(singles)}
    milliseconds = {name: round(seconds * 1e3, 1) for name, seconds in figures.items()}
    return {
        "new_item_to_recommendation": milliseconds,
        "bulk": {"items": count, "seconds": round(bulk, 1), "cpu_seconds": round(used, 1)},
        "restart_and_stop_with_them_seconds": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("load", "mixed", "kill", "items"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=int, default=None, help="of load (10 for each row) and mixed (600)")
    parser.add_argument("--times", type=int, default=20, help="of kill")
    parser.add_argument("--count", type=int, default=10_000, help="of items")
    options = parser.parse_args()
    from asymrec import machine

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if options.part == "load":
            found = load(options.run, place, options.seconds or 10)
        elif options.part == "mixed":
            found = mixed(options.run, place, options.seconds or 600)
        elif options.part == "kill":
            found = kill(options.run, place, options.times)
        else:
            found = items(options.run, place, options.count)
    found |= {"load_average": [round(each, 1) for each in os.getloadavg()], "environment": machine.facts("cpu")}
    (HERE / "logs" / f"serving_{options.part}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
