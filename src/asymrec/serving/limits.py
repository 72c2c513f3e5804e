"""What surrounds every request: its size and pace, security headers, the log, the metrics. Plain ASGI: a middleware that wrapped
requests in tasks of its own would cost more than the rest of the server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import Any

from starlette.exceptions import HTTPException

from asymrec.serving.metrics import Metrics

log = logging.getLogger("asymrec.access")
REASONS = {408: "slow", 413: "size", 429: "load", 504: "late"}
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
]


class Refused(HTTPException):
    """FastAPI lets this one through where it reads a body."""


class Limits:
    """Args: hosts, names that are answered to, all where empty; largest, bytes of a body; pace, seconds that a body may take to come;
    at_once, requests that are worked on."""

    def __init__(self, app: Any, metrics: Metrics, hosts: tuple[str, ...], largest: int, pace: float, at_once: int):
        self.app, self.metrics, self.hosts, self.largest, self.pace, self.at_once = app, metrics, hosts, largest, pace, at_once
        self.running = 0

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, started = time.perf_counter(), 500, False
        until = time.monotonic() + self.pace
        got = 0

        reading = True

        async def paced() -> dict:
            nonlocal got, reading
            try:
                message = await (asyncio.wait_for(receive(), max(0.0, until - time.monotonic())) if reading else receive())
            except asyncio.TimeoutError:
                raise Refused(408, f"the body did not come within {self.pace:g} s") from None
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                reading = message.get("more_body", False)
                if got > self.largest:
                    raise Refused(413, f"the body is larger than {self.largest} bytes")
            return message

        async def marked(message: dict) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        self.running += 1
        try:
            if self.running > self.at_once:
                raise Refused(429, "too many requests at once")
            _refuse_other_names(scope, self.hosts)
            _refuse_other_bodies(scope)
            length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
            if length.isdigit() and int(length) > self.largest:
                raise Refused(413, f"the body is larger than {self.largest} bytes")
            await self.app(scope, paced, marked)
        except Refused as refused:
            if not started:
                await _problem(marked, refused)
        finally:
            self.running -= 1
            if status in REASONS:
                self.metrics.refused.labels(REASONS[status]).inc()
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", None) or "none"  # never the path itself: it holds ids, and is without end
            self.metrics.requests.labels(route, scope["method"] if route != "none" else "none", status).inc()
            self.metrics.latency.labels(route).observe(seconds)
            level = logging.INFO if status < 500 else logging.WARNING
            if log.isEnabledFor(level):
                log.log(level, "%s %s %d %.1f ms", scope["method"], route, status, seconds * 1000)


def _refuse_other_names(scope: dict, hosts: tuple[str, ...]) -> None:
    """A page of another site may give its own name this server's address: the browser then takes the two for one."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    if hosts and re.sub(r":\d*$", "", given).lower() not in hosts:
        raise Refused(400, "the name in Host is not one that this server answers to")


def _refuse_other_bodies(scope: dict) -> None:
    """A page of another site may send any body without asking, unless it is said to be JSON: then the browser asks this server first."""
    headers = dict(scope["headers"])
    if scope["method"] in ("GET", "HEAD") or (headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers):
        return
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise Refused(415, "a body must be JSON, and its content-type say so: application/json")


async def _problem(send: Any, refused: Refused) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if refused.status_code == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
