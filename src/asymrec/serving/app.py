"""The HTTP API. A route checks nothing itself that its schema can say; engine, catalogue and store give the answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from asymrec.data.columns import PER_SECOND
from asymrec.errors import AsymrecError, ConfigError, DataError, PlacingError, RunError, UnknownIdError
from asymrec.serving import schemas
from asymrec.serving.engine import Ask, Late
from asymrec.serving.limits import Limits
from asymrec.serving.routes_catalogue import routes as catalogue_routes
from asymrec.serving.security import needs
from asymrec.serving.service import Service
from asymrec.serving.store import Event, Taken, now
from asymrec.serving.worker import Busy
from asymrec.version import __version__

log = logging.getLogger("asymrec.serving")
PAGE = Path(__file__).with_name("page")
FILES = {"page.css": "text/css", "page.js": "text/javascript"}

PROBLEMS = {
    400: "the body is not UTF-8, or the name in Host is not the server's",
    401: "no valid key",
    403: "the key has not the scope",
    404: "no such user, item or version",
    408: "the body came too slowly",
    409: "what is served cannot do this: it has no codes, vectors or ranker, or cannot place new items; or an event's id is another's",
    413: "the body is too large",
    415: "the body is not said to be JSON",
    422: "the request is no JSON, or not what the schema says",
    429: "too much at once: try again after Retry-After seconds",
    503: "the store cannot be written, or the server is stopping",
    504: "no answer in time",
}
RESPONSES = {status: {"model": schemas.Problem, "description": text} for status, text in PROBLEMS.items()}


def create_app(service: Service) -> FastAPI:
    """The application of a service; starting and stopping it starts and stops the service's threads."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.stop)

    app = FastAPI(
        title="asymrec",
        version=__version__,
        description="Recommendations from a run folder, over a catalogue that changes while it is served.",
        lifespan=lifespan,
        responses=RESPONSES,
        docs_url=None,  # its page loads scripts from elsewhere; the document itself is at /openapi.json
        redoc_url=None,
    )
    settings = service.settings
    app.state.service, app.state.keys, app.state.metrics = service, service.keys, service.metrics
    limits = {"hosts": settings.hosts, "largest": settings.largest, "pace": settings.pace, "at_once": settings.at_once}
    app.add_middleware(Limits, metrics=service.metrics, **limits)
    _errors(app)
    _recommendations(app, service)
    _events(app, service)
    catalogue_routes(app, service)
    _operations(app, service)
    return app


def _errors(app: FastAPI) -> None:
    def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status, headers)  # JSON may hold half a character

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # without the input, which may be anything, of any size
        place = ".".join(str(part)[:80] for part in first["loc"])
        return problem(422, f"{place}: {first['msg'].removeprefix('Value error, ')[:300]}")

    @app.exception_handler(AsymrecError)
    async def refused(_: Request, error: AsymrecError) -> JSONResponse:
        status = {UnknownIdError: 404, PlacingError: 409, RunError: 409, Taken: 409, ConfigError: 422, DataError: 422}
        return problem(status.get(type(error), 422), " ".join(str(error).split()))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return problem(429, "too many requests wait", {"Retry-After": "1"})

    @app.exception_handler(Late)
    async def late(_: Request, error: Late) -> JSONResponse:
        return problem(504, "no answer in time")

    @app.exception_handler(SQLAlchemyError)
    async def store(_: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("the store failed: %s", getattr(error, "orig", None) or type(error).__name__)
        return problem(503, "the store cannot be used now; nothing was stored", {"Retry-After": "5"})


def _ask(wanted: schemas.Wanted) -> Ask:
    return Ask(
        None if wanted.user is None else str(wanted.user),
        wanted.history or [],
        wanted.times,
        wanted.k,
        wanted.exclude_seen,
        wanted.only,
        wanted.deny,
        [condition.model_dump(exclude_none=True) for condition in wanted.where],
        wanted.reasons,
        wanted.codes,
        wanted.rank,
    )


def _recommendations(app: FastAPI, service: Service) -> None:
    # answers are made of what the engine gives without another check: it would cost more than the model does for one user

    @app.post("/v1/recommend", dependencies=[needs("read")], tags=["recommend"], response_model=schemas.Recommended)
    async def recommend(wanted: schemas.Wanted) -> Any:
        """Recommend items to a user, or to anyone with a history."""
        (answer,) = await service.engine.ask([_ask(wanted)], service.settings.timeout)
        if isinstance(answer, AsymrecError):
            raise answer
        return JSONResponse(answer)

    @app.post("/v1/recommend/batch", dependencies=[needs("read")], tags=["recommend"], response_model=schemas.Answers)
    async def recommend_batch(wanted: schemas.Wanteds) -> Any:
        """Several recommendations in one request; one that cannot be given (an unknown item, say) does not spoil the others. What is no
        request at all (k below 1) is refused with the whole."""
        answers = await service.engine.ask([_ask(one) for one in wanted.requests], service.settings.timeout)
        results = [{"error": str(one)} if isinstance(one, AsymrecError) else {"result": one} for one in answers]
        return JSONResponse({"results": results})


def _events(app: FastAPI, service: Service) -> None:
    @app.post("/v1/events", dependencies=[needs("write")], tags=["users"], response_model=schemas.Stored, status_code=201)
    async def post_events(given: schemas.EventsIn) -> Any:
        """Store what users did. When this answers 201 the events are on the disk, and in the users' histories."""
        snapshot = service.catalogue.snapshot
        when = now() * PER_SECOND[snapshot.run.time_unit] // 1000
        events = []
        for number, event in enumerate(given.events, 1):
            snapshot.row(event.item)
            if event.time is not None:
                snapshot.run.check_time(event.time, f"event {number}: time")
            events.append(
                Event(snapshot.run.user_key(str(event.user)), str(event.item), when if event.time is None else event.time, event.id)
            )
        return JSONResponse({"stored": await service.recorder.record(events)}, 201)

    @app.get("/v1/users", dependencies=[needs("read")], tags=["users"])
    def find_users(search: Annotated[str, Query(max_length=256)] = "", limit: Annotated[int, Query(ge=1, le=100)] = 20) -> schemas.Users:
        """Users of the run whose id begins with a text."""
        return schemas.Users(users=service.find_users(search, limit))

    @app.get("/v1/users/{user:path}", dependencies=[needs("read")], tags=["users"])
    def get_user(user: schemas.Name) -> schemas.User:
        """What is known of a user: the run's history and the stored events, the oldest first."""
        return service.user(user)

    @app.delete("/v1/users/{user:path}", dependencies=[needs("write")], tags=["users"])
    def forget_user(user: schemas.Name) -> schemas.Stored:
        """Delete all stored events of a user; what the run was fitted on stays in the run."""
        return schemas.Stored(stored=service.forget(user))


def _operations(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> schemas.State:
        """The process is alive."""
        return schemas.State(status="alive")

    @app.get("/ready", tags=["operations"])
    def ready() -> schemas.State:
        """The model answers and the store can be reached; 503 where not, and while the server is stopping."""
        service.check()
        return schemas.State(status="ready")

    @app.get("/version", tags=["operations"])
    async def version() -> schemas.About:
        """Of this software, and what it serves."""
        run = service.catalogue.snapshot.run
        ranker = run.pipeline.ranker.name if run.pipeline else None
        return schemas.About(asymrec=__version__, run=run.name, model=run.model.name, ranker=ranker)

    @app.get("/metrics", tags=["operations"], dependencies=[needs("read")], response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        service.observe()
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in FILES:
            return JSONResponse({"detail": "no such file"}, 404)
        return FileResponse(PAGE / name, media_type=FILES[name], headers={"Cache-Control": "no-cache"})
