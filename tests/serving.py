"""A small run to serve, and a server of it: inside this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from small import SETTINGS, environment, tables

from asymrec.data import Dataset
from asymrec.models import AsymRec
from asymrec.serving.service import Service, Settings
from asymrec.serving.store import Store


def make_run(folder: Path, **settings: object) -> Path:
    """A fitted model in `folder`/run, its vectors a column of the item table, so that new items need no encoder."""
    AsymRec(**SETTINGS | {"epochs": 1, "quantizer_epochs": 0} | settings).fit(Dataset.read(*tables())).save(folder / "run")
    return folder / "run"


def vector(place: float) -> list[float]:
    """The vector of an item at a place of the circle of `small.tables`."""
    turns = 2 * np.pi * place / 120 * np.arange(1, 9)
    return np.concatenate([np.cos(turns), np.sin(turns)]).astype(float).tolist()


@contextmanager
def client(run: Path, store: str, **settings: object):
    """The API in this process: a TestClient, whose `service` is at hand."""
    from fastapi.testclient import TestClient

    from asymrec.serving.app import create_app

    service = Service(run, Store(store), Settings(**{"watch": 0.05} | settings))
    with TestClient(create_app(service), base_url="http://localhost", raise_server_exceptions=False) as found:
        found.service = service
        yield found


def recommend(api, status: int = 200, **asked: object) -> dict:
    """The API's answer, which has to come with `status`."""
    answer = api.post("/v1/recommend", json=asked)
    assert answer.status_code == status, answer.text
    return answer.json()


def ids(found: dict) -> list:
    """The items of an answer of `recommend`."""
    return [one["item"] for one in found["items"]]


class Server:
    """`asymrec serve` as a process of its own."""

    def __init__(self, run: Path, *options: object):
        command = [sys.executable, "-m", "asymrec", "serve", str(run), "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r" at (http://\S+)/$", line.strip()):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.lines))
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.wait()

    def wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if self.call("GET", "/ready")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def call(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, object]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"} | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] in (b"{", b"[") else text

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def postgres(folder: Path):
    """The URL of a PostgreSQL server of our own, or None where this machine has none."""
    import shutil

    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt/homebrew/opt").glob("postgresql*/bin")]
    found = [place for place in places if (place / "initdb").exists()] or [
        Path(path).parent for path in [shutil.which("initdb")] if path and shutil.which("pg_ctl")
    ]
    if not found:
        yield None
        return
    binaries, data, port = found[-1], folder / "data", free_port()
    user: dict = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        import pwd

        names = [name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}]
        user = {"user": names[0]}
        for place in (folder, *folder.parents):
            if place.owner() == "root" and place != Path("/") and str(place).startswith("/tmp/"):
                place.chmod(0o755)
        shutil.chown(folder, names[0])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True, **user}
    subprocess.run([binaries / "initdb", "-D", data, "-U", "asymrec", "-A", "trust", "-E", "UTF8", "--no-sync"], **quiet, cwd=folder)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    subprocess.run([binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **quiet, cwd=folder)
    try:
        yield f"postgresql://asymrec@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet, cwd=folder)
