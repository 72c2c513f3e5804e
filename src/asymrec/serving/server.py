"""From the command line to a listening server."""

from __future__ import annotations

import gc
import ipaddress
import logging
import signal
import socket
import sys
from pathlib import Path

from asymrec.errors import RunError
from asymrec.serving.app import create_app
from asymrec.serving.service import Service, Settings
from asymrec.serving.snapshot import check_run
from asymrec.serving.store import Store

LOCAL = ("localhost", "127.0.0.1", "[::1]")


def default_store(run: Path) -> str:
    """Beside the run folder: in it, it would go with the run when that is replaced."""
    path = run.resolve()
    return f"sqlite:///{path.with_name(path.name + '.store.sqlite')}"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Raises RunError: the port is taken, the address is not this machine's."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        raise RunError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return found


def serve(
    run: Path, host: str, port: int, store: str | None, keys: bool, insecure: bool, threads: int, access_log: bool, **settings: object
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted. Raises RunError and what the run and the store raise.

    keys: are needed on loopback as well. insecure: are not needed elsewhere.
    """
    import torch
    import uvicorn

    check_run(run)  # before a store is made beside nothing
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("asymrec.access").setLevel(logging.INFO if access_log else logging.WARNING)
    local = is_loopback(host)
    required = keys or not (local or insecure)
    heard = listen(host, port)
    opened = Store(store or default_store(run))
    if required and not opened.list_keys():
        opened.close()
        where = f"--store {opened.name}" if store else f"--run {run}"
        otherwise = "leave out --keys" if local else "say --insecure"
        raise RunError(f"{host} needs API keys and there are none: make a key with `asymrec keys add NAME {where}`, or {otherwise}")
    # a page of another site must not reach a server without keys by a name of its own
    own = f"[{host}]" if ":" in host else host
    hosts = (*LOCAL, own.lower()) if local and not required else ()
    service = Service(run, opened, Settings(keys=required, hosts=hosts, **settings))
    app = create_app(service)
    gc.collect()
    gc.freeze()  # what is there now stays: a collection that looks through all of it again is a pause that users would notice
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=30, timeout_keep_alive=30, server_header=False
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"asymrec serves {run} at http://{shown}:{heard.getsockname()[1]}/", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn has its own while it runs, and raises the signal anew after it has stopped
    uvicorn.Server(config).run(sockets=[heard])
