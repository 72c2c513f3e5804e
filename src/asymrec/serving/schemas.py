"""What comes in and what goes out, with sizes; the OpenAPI document is made from these."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MOST = 1000  # items in one answer
HISTORY = 1000  # items of a history in a request
LISTED = 10_000  # ids of `only` and `deny`
EVENTS = 1000  # of one request
BULK = 10_000  # items of one request
BATCH = 256  # recommendations of one request
FIELDS = 32  # more than any request has
LARGEST = 2**53 - 1  # whole numbers that every JSON reader knows exactly


def _id(given: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """JSON has one kind of number, and many write 3.0 for 3."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise ValueError("an id is text or a whole number")
    if isinstance(given, int) and abs(given) > LARGEST:
        raise ValueError(f"an id that is a number is at most {LARGEST}; longer ones are sent as text")
    try:
        return read(given)
    except ValidationError as error:  # text that is too long, say: told without the names of the two types that were tried
        first = error.errors()[0]
        raise PydanticCustomError(first["type"], "{told}", {"told": first["msg"]}) from None


# no NUL: PostgreSQL has no text with one
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
Whole = Annotated[int, Field(strict=True, ge=-LARGEST, le=LARGEST)]
Time = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]  # nanoseconds since 1970 are more than `LARGEST`
Id = Annotated[Name | Whole, WrapValidator(_id)]
K = Annotated[int, Field(strict=True, ge=1, le=MOST)]


def _cell(given: Any) -> Any:
    if not isinstance(given, bool | int | float | str) or (isinstance(given, float) and not math.isfinite(given)):
        raise ValueError("a value to compare with is a number, text, true or false")
    return given


Cell = Annotated[StrictBool | StrictInt | StrictFloat | StrictStr, BeforeValidator(_cell)]


T = TypeVar("T")
Several = Annotated[list[T], Field(fail_fast=True)]  # the first wrong entry is told, and no other looked for


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        """Of many unknown fields not each is to have an error of its own: those of one body would take minutes."""
        if isinstance(given, dict) and len(given) > FIELDS:
            raise ValueError(f"more than {FIELDS} fields")
        return given


class Condition(Strict):
    """On one column of the items. A column of lists fits when one of its entries does."""

    column: Name
    any_of: Several[Cell] | None = Field(None, min_length=1, max_length=1000)
    none_of: Several[Cell] | None = Field(None, min_length=1, max_length=1000)
    at_least: Cell | None = None
    at_most: Cell | None = None

    @model_validator(mode="after")
    def _one(self) -> Condition:
        given = {name for name in ("any_of", "none_of", "at_least", "at_most") if getattr(self, name) is not None}
        if not given or (len(given) > 1 and given != {"at_least", "at_most"}):
            raise ValueError("give any_of, none_of, or at_least and at_most")
        return self


class Wanted(Strict):
    """A recommendation for a user, for a history, or for a user with more behind what is known of them."""

    user: Id | None = Field(None, description="of the run or of the events")
    history: Several[Id] | None = Field(None, max_length=HISTORY, description="item ids, oldest first")
    times: Several[Time] | None = Field(
        None, max_length=HISTORY, description="of `history`, in the unit of the run's times; for models that read them"
    )
    k: K = 10
    exclude_seen: StrictBool = Field(True, description="leave out the items of the history")
    only: Several[Id] | None = Field(None, max_length=LISTED, description="nothing but these items")
    deny: Several[Id] = Field([], max_length=LISTED, description="never these items")
    where: Several[Condition] = Field([], max_length=16, description="conditions that all must hold")
    reasons: StrictBool = Field(True, description="with the nearest items of the history")
    codes: StrictBool = Field(False, description="with the items' codes")
    rank: StrictBool | None = Field(None, description="order what was retrieved by the ranker as well; by default where there is one")

    @model_validator(mode="after")
    def _someone(self) -> Wanted:
        if self.user is None and self.history is None:
            raise ValueError("give a user or a history")
        if self.times is not None and len(self.times) != len(self.history or []):
            raise ValueError(f"{len(self.times)} times for a history of {len(self.history or [])} items")
        if self.times is not None and any(later < time for time, later in pairwise(self.times)):
            raise ValueError("times must not fall: the oldest item comes first")
        return self


class Wanteds(Strict):
    requests: Several[Wanted] = Field(min_length=1, max_length=BATCH)


class EventIn(Strict):
    user: Id
    item: Id
    time: Time | None = Field(None, description="in the unit of the run's times (GET /v1/catalogue tells); by default now")
    id: Name | None = Field(None, description="your own, of this event alone: sent twice it is stored once")


class EventsIn(Strict):
    events: Several[EventIn] = Field(min_length=1, max_length=EVENTS)

    @model_validator(mode="after")
    def _own(self) -> EventsIn:
        known: dict[str, tuple[str, str]] = {}
        for event in self.events:
            what = str(event.user), str(event.item)
            if event.id is not None and known.setdefault(event.id, what) != what:
                raise ValueError(f"two different events have the id {event.id[:80]!r}")
        return self


Columns = Annotated[dict[Name, Any], Field(max_length=256, description="columns of the item table")]


class ItemIn(Strict):
    item: Id
    columns: Columns


class ItemsIn(Strict):
    items: Several[ItemIn] = Field(min_length=1, max_length=BULK)


class Back(Strict):
    version: Annotated[int, Field(strict=True, ge=0, le=LARGEST)]


# Answers


class Reason(BaseModel):
    item: str | int
    title: str
    similarity: float = Field(description="cosine of the two items' vectors")


class Found(BaseModel):
    item: str | int
    title: str
    score: float = Field(description="what the list is ordered by")
    retrieval: float | None = Field(None, description="where the ranker was asked: retrieval's own score")
    ranker: float | None = Field(None, description="where it was asked: its probability that the item is taken next")
    reasons: list[Reason] | None = None
    codes: list[list[int]] | None = Field(None, description="[facets][levels]; where asked for, and the model has codes")


class Recommended(BaseModel):
    version: int = Field(description="of the catalogue")
    history: int = Field(description="items that it is made from")
    ranked: bool = Field(description="whether the ranker was asked")
    items: list[Found]


class Problem(BaseModel):
    detail: str


class Answer(BaseModel):
    """One of a batch: the recommendation or what is wrong with the request."""

    result: Recommended | None = None
    error: str | None = None


class Answers(BaseModel):
    results: list[Answer]


class Brief(BaseModel):
    item: str | int
    title: str


class Near(Brief):
    similarity: float


class Similar(BaseModel):
    version: int
    items: list[Near]


class Item(Brief):
    retired: bool
    columns: dict[str, Any]
    codes: list[list[int]] | None = Field(description="[facets][levels]; null for a model without codes")


class Briefs(BaseModel):
    items: list[Brief]


class Stored(BaseModel):
    stored: int = Field(description="how many events were added, those left out that were there by their id; or were deleted")


class Changed(BaseModel):
    version: int = Field(description="the first that has the change")


class Past(Brief):
    time: int | None


class User(BaseModel):
    user: str
    history: list[Past] = Field(description="oldest first")
    stored: int = Field(description="how many of them are events of the store")


class Users(BaseModel):
    users: list[str | int]


class Catalogue(BaseModel):
    version: int
    items: int
    retired: int
    columns: dict[str, str]
    time_unit: str | None
    run: str
    model: str
    code_shape: list[int] | None
    codewords: list[int] | None


class Version(BaseModel):
    version: int
    made: int = Field(description="milliseconds since 1970")
    put: int
    retired: int
    rollback: int | None = Field(description="the version that it goes back to")


class Versions(BaseModel):
    versions: list[Version]


class Codebook(BaseModel):
    facet: int
    level: int
    used: int
    size: int
    perplexity: float
    counts: list[int]


class Codebooks(BaseModel):
    version: int
    codebooks: list[Codebook]


class About(BaseModel):
    asymrec: str
    run: str
    model: str
    ranker: str | None = Field(description="null where what is served has none")


class State(BaseModel):
    status: str
