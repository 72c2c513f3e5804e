"""API keys: `asymrec keys add`, sent as `Authorization: Bearer KEY`.

A key is a public half to find it by and 256 random bits, of which the store holds the SHA-256 alone; with so much chance in it a slow
hash would guard nothing more. Comparison takes the same time whatever is wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from asymrec.errors import RunError
from asymrec.serving.store import Store

REMEMBERED = 5.0  # seconds until a key that was removed is refused everywhere
MOST = 10_000  # keys in memory
_bearer = HTTPBearer(auto_error=False, description="a key of `asymrec keys add`; none is needed where the server says so")


def new_key(store: Store, name: str, scope: str) -> str:
    public, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    store.add_key(public, name, "read" if scope == "read" else "read write", _digest(secret))
    return f"asymrec_{public}_{secret}"


def remove_key(store: Store, given: str) -> None:
    """By its id, or by a name that no other key has. Raises RunError."""
    if store.remove_key(given):
        return
    named = [one["key"] for one in store.list_keys() if one["name"] == given]
    if len(named) > 1:
        raise RunError(f"{len(named)} keys are named '{given}': say which by its id, {' or '.join(named)}")
    if not named or not store.remove_key(named[0]):
        raise RunError(f"there is no key '{given}': `asymrec keys list` tells them")


class Keys:
    """Looks keys up, and remembers for a moment."""

    def __init__(self, store: Store, required: bool):
        self.store, self.required = store, required
        self._known: dict[str, tuple[float, tuple[str, str, str] | None]] = {}

    async def scopes(self, given: str) -> set[str]:
        """What a key may do; nothing for one that is not good."""
        _, _, rest = given.partition("_")
        public, _, secret = rest.partition("_")
        until, found = self._known.get(public, (0.0, None))
        if until < time.monotonic():
            plausible = len(public) == 12 and public.isascii() and public.isalnum()
            found = await run_in_threadpool(self.store.find_key, public) if plausible else None
            if len(self._known) >= MOST:
                self._known.clear()
            if found is not None:
                self._known[public] = (time.monotonic() + REMEMBERED, found)
        digest = found[2] if found else _digest("")
        good = hmac.compare_digest(_digest(secret), digest) and found is not None
        return set(found[1].split()) if good else set()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def needs(scope: str):
    """The dependency of a route that a key of this scope may use."""

    async def check(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        keys: Keys = request.app.state.keys
        if not keys.required:
            return
        held = await keys.scopes(credentials.credentials) if credentials else set()
        if not held:
            request.app.state.metrics.refused.labels("key").inc()
            raise HTTPException(401, "a valid API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        if scope not in held:
            request.app.state.metrics.refused.labels("scope").inc()
            raise HTTPException(403, f"this key has no scope '{scope}'")

    return Depends(check)
