"""The shapes of what the control API answers: each field is declared here, with its type, and nowhere else.

The OpenAPI document has its schemas from these classes, the commands read the daemon's answers with them, and a
test holds what a running API answers against them. Words of an enumeration are texts here: a daemon of a later
version may know more words, and may say more fields, and is understood all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core.core_schema import WithDefaultSchema

from asyncchatd.model import Cause, EndCause, Reason, RestorationState, ServerState, SessionState

Json = dict[str, Any]

REASONS = [reason.word for reason in Reason]


class Shape(BaseModel):
    """An answer, or a part of one. A default is what an older daemon means that does not say the field."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_serialization_defaults_required=True,
        json_schema_extra={"additionalProperties": False},
    )

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> Self:
        """The answer as this shape. Raises `pydantic.ValidationError` when it lacks a field."""
        return cls.model_validate(answer)


def one_of(words: Iterable[str]) -> WithJsonSchema:
    """The schema of a text that is one of these words."""
    return WithJsonSchema({"type": "string", "enum": [str(word) for word in words]})


def _closed(names: Iterable[str], schema: Json) -> WithJsonSchema:
    """The schema of an object with exactly these names, and a value of this schema for each."""
    properties = {str(name): schema for name in names}
    return WithJsonSchema(
        {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )


Count = Annotated[int, Field(ge=0)]
_COUNT: Json = {"type": "integer", "minimum": 0}
_RATE: Json = {"type": ["number", "null"], "minimum": 0}
ByState = Annotated[dict[str, int], _closed(SessionState, _COUNT)]
ByReason = Annotated[dict[str, int], _closed(REASONS, _COUNT)]
Rates = Annotated[dict[str, float | None], _closed([*REASONS, "pushes"], _RATE)]
"""Pings by reason, and pushes, per second; nothing until there were two pictures."""


class Problem(Shape):
    """What is wrong with a request; `field` names the part of it."""

    code: str
    message: Annotated[str, Field(min_length=1)]
    field: str | None


class Error(Shape):
    """The answer to a request that was not carried out."""

    error: Problem


class Session(Shape):
    """A session. It never holds the secure key."""

    chat_id: str | None
    service: str | None
    user_id: str | None
    has_secure_key: bool
    alias: str | None
    device_id: str | None
    next_position: Count | None
    state: Annotated[str, one_of(SessionState)]
    reason: Annotated[str, one_of(REASONS)] | None
    due_at: datetime | None
    attempts: Count
    restoration: Count | None
    registered_at: datetime | None
    active_at: datetime | None
    answered_at: datetime | None
    ended_at: datetime | None
    end_cause: Annotated[str, one_of(EndCause)] | None
    last_trouble: str | None
    trouble_detail: str | None = Field(default=None, description="What GMS said with it")
    refused_since: datetime | None = None


class SessionPage(Shape):
    """Some sessions; `next` is the `after` of the next page."""

    sessions: list[Session]
    next: str | None


class LineError(Shape):
    """A line that was not taken, and why."""

    line: Count
    error: Problem


class Registered(Shape):
    """What became of many registrations."""

    taken: Count
    refused: Count
    kept: Count = 0
    """Part of `taken`: their key is an old one or a doubted one, and no tokens changed."""
    errors: list[LineError]


class Server(Shape):
    """A Chat Server."""

    name: str
    state: Annotated[str, one_of(ServerState)]
    since: datetime | None
    app_dbid: str | None
    process_os_pid: str | None
    checked_at: datetime | None
    disputed: bool = Field(
        default=False, description="Several processes answer at its health address by turns"
    )
    detail: str | None


class CountedServer(Server):
    """A Chat Server, with its live sessions."""

    sessions: Count


class Servers(Shape):
    """All Chat Servers that are configured."""

    servers: list[CountedServer]
    sessions_elsewhere: dict[str, Count] = Field(
        description="Live sessions whose alias is that of no configured Chat Server"
    )


class Restoration(Shape):
    """A restoration."""

    id: Count
    server: str | None
    alias: str
    cause: Annotated[str, one_of(Cause)]
    state: Annotated[str, one_of(RestorationState)] = Field(
        default="", description="`incomplete`: over, and sessions were left without an answer"
    )
    started_at: datetime
    finished_at: datetime | None
    took_seconds: float | None
    sessions: Count
    restored: Count
    ended: Count
    refused: Count
    moved: Count
    waiting: Count


class Restorations(Shape):
    """The newest restorations, newest first."""

    restorations: list[Restoration]


class Node(Shape):
    """A GMS node."""

    node: str
    resting: bool
    cause: str | None


class Pings(Shape):
    """What the worker does."""

    in_flight: Count
    in_flight_limit: Count
    max_rate: float
    gms_available: bool
    nodes: list[Node]


class Counts(Shape):
    """How the daemon is, in numbers."""

    ready: bool
    store_trouble: str | None = Field(default=None, description="Why nothing can be written at present")
    store_note: str | None = Field(default=None, description="What is unusual about the store")
    started_at: datetime
    uptime_seconds: float
    sessions: ByState
    due: ByReason
    pings: Pings


class Status(Counts):
    """How the daemon is, in one look."""

    servers: list[Server]
    restorations: list[Restoration]


class Warning(Shape):
    """A warning or an error of the log, those of one kind drawn together."""

    event: str
    level: Annotated[str, one_of(("warning", "error", "critical"))]
    meaning: str
    count: Annotated[int, Field(ge=1)]
    first_at: datetime
    last_at: datetime
    fields: dict[str, str | float | bool | None]


class Picture(Counts):
    """All that the status page shows."""

    time: datetime
    version: str
    rates: Rates
    servers: list[CountedServer]
    sessions_elsewhere: dict[str, Count]
    restorations: list[Restoration]
    warnings: list[Warning]


class Alive(Shape):
    """The daemon lives."""

    alive: Annotated[bool, WithJsonSchema({"const": True})]


class Ready(Shape):
    """Whether the daemon takes pushes."""

    ready: bool


ANSWERED: tuple[type[Shape], ...] = (
    Error, SessionPage, Registered, Servers, Restorations, Status, Picture, Alive, Ready,
)  # fmt: skip
"""The shapes that are an answer of their own; their parts come with them."""


class _Plain(GenerateJsonSchema):
    """Schemas without a title for each field, which would be its name again, and without the defaults: they are for
    an older daemon's answers, and this one says every field."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def schemas(further: Iterable[type[Shape]] = ()) -> Json:
    """The JSON schemas of all shapes, by name, as an OpenAPI document has them."""
    _, found = models_json_schema(
        [(shape, "serialization") for shape in (*ANSWERED, *further)],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Plain,
    )
    return {
        name: {key: value for key, value in each.items() if key != "title"}
        for name, each in found["$defs"].items()
    }
