"""The shapes of what the control API answers: each field is declared here, with its type, and nowhere else.

The API answers with these classes, the OpenAPI document has its schemas from them, the commands read the daemon's
answers with them, and a test holds what a running API answers against them. Words of an enumeration are texts here: a
daemon of a later version may know more words, and may say more fields, and is understood all the same.

They are `msgspec.Struct`s, because the largest page is 10,000 sessions: one is made as fast as a dictionary of the same
fields, and pydantic's check of what comes from this very program would take half as long again as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from asyncchatd.model import (
    Cause,
    EndCause,
    Failing,
    NodeState,
    Reason,
    RestorationState,
    ServerState,
    SessionState,
)
from asyncchatd.wire import ToldEvent

Json = dict[str, Any]

REASONS = [reason.word for reason in Reason]
FAILINGS = [failing.value for failing in Failing]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or a part of one. A default is what an older daemon means that does not say the field."""


Time = Annotated[
    str,
    Meta(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$",
        extra_json_schema={"format": "date-time"},
    ),
]
"""A point in time as the API writes it: ISO 8601 in UTC with milliseconds, `2026-11-22T14:30:00.000Z`."""


def write_time(at: datetime) -> Time:
    """A point in time, which is in UTC, as the API writes it."""
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def read_time(text: Time) -> datetime:
    """The point in time that the API wrote."""
    return datetime.fromisoformat(text)


def fields_of(shape: Shape) -> Json:
    """The fields of a shape, for one that has more of them."""
    return msgspec.structs.asdict(shape)


def one_of(words: Iterable[str]) -> Meta:
    """The schema of a text that is one of these words."""
    return Meta(extra_json_schema={"enum": [str(word) for word in words]})


def _closed(names: Iterable[str], schema: Json) -> Meta:
    """The schema of an object with exactly these names, and a value of this schema for each."""
    properties = {str(name): schema for name in names}
    return Meta(extra_json_schema={"properties": properties, "required": list(properties)})


Count = Annotated[int, Meta(ge=0)]
_COUNT: Json = {"type": "integer", "minimum": 0}
_RATE: Json = {"type": ["number", "null"], "minimum": 0}
ByState = Annotated[dict[str, int], _closed(SessionState, _COUNT)]
ByReason = Annotated[dict[str, int], _closed(REASONS, _COUNT)]
SENT = (*REASONS, "call")
"""What is sent to GMS under one limit: pings by reason, and what chat clients wait for."""
Rates = Annotated[dict[str, float | None], _closed([*SENT, "pushes", "told"], _RATE)]
"""Requests sent to GMS, pushes, and events told to consumers, per second; nothing in the first second."""


class Problem(Shape, frozen=True, kw_only=True):
    """What is wrong with a request; `field` names the part of it."""

    code: str
    message: Annotated[str, Meta(min_length=1)]
    field: str | None


class Error(Shape, frozen=True, kw_only=True):
    """The answer to a request that was not carried out."""

    error: Problem


class Session(Shape, frozen=True, kw_only=True):
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
    due_at: Time | None
    attempts: Count
    restoration: Count | None
    registered_at: Time | None
    active_at: Time | None
    answered_at: Time | None
    ended_at: Time | None
    end_cause: Annotated[str, one_of(EndCause)] | None
    last_trouble: str | None
    trouble_detail: Annotated[str | None, Meta(description="What GMS said with it")] = None
    refused_since: Time | None = None


class Take(Shape, frozen=True, kw_only=True):
    """A session that is left to the chat application until then: the one answer with a secure key."""

    take_id: Annotated[str, Meta(description="Ends it, in a registration or a release")]
    until: Time
    chat_id: str
    user_id: str
    secure_key: str
    alias: str
    service: str
    next_position: Count | None

    def __repr__(self) -> str:
        return f"Take(chat_id={self.chat_id!r}, until={self.until!r})"


class SessionPage(Shape, frozen=True, kw_only=True):
    """Some sessions; `next` is the `after` of the next page."""

    sessions: list[Session]
    next: str | None


class LineError(Shape, frozen=True, kw_only=True):
    """A line that was not taken, and why."""

    line: Count
    error: Problem


class KeptLine(Shape, frozen=True, kw_only=True):
    """A line that was taken and changed no tokens, and how its session is."""

    line: Count
    chat_id: str
    state: Annotated[str, one_of(SessionState)]
    note: str


class Registered(Shape, frozen=True, kw_only=True):
    """What became of many registrations."""

    taken: Count
    refused: Count
    kept: Count = 0
    """Part of `taken`: their key is an old one or a doubted one, and no tokens changed."""
    kept_lines: Annotated[list[KeptLine], Meta(description="The first hundred of the kept")] = []
    errors: Annotated[list[LineError], Meta(description="The first thousand of the refused")]


class Server(Shape, frozen=True, kw_only=True):
    """A Chat Server."""

    name: str
    state: Annotated[str, one_of(ServerState)]
    since: Time | None
    app_dbid: str | None
    process_os_pid: str | None
    checked_at: Time | None
    disputed: Annotated[bool, Meta(description="Several processes answer at its health address by turns")] = (
        False
    )
    detail: str | None


class CountedServer(Server, frozen=True, kw_only=True):
    """A Chat Server, with its live sessions."""

    sessions: Count


class Servers(Shape, frozen=True, kw_only=True):
    """All Chat Servers that are configured."""

    servers: list[CountedServer]
    sessions_elsewhere: Annotated[
        dict[str, Count], Meta(description="Live sessions whose alias is that of no configured Chat Server")
    ]


class Restoration(Shape, frozen=True, kw_only=True):
    """A restoration."""

    id: Count
    server: str | None
    alias: str
    cause: Annotated[str, one_of(Cause)]
    state: Annotated[
        str,
        one_of(RestorationState),
        Meta(description="`incomplete`: over, and sessions were left without an answer"),
    ] = ""
    started_at: Time
    finished_at: Time | None
    took_seconds: float | None
    sessions: Count
    restored: Count
    ended: Count
    refused: Count
    moved: Count
    waiting: Count
    left_seconds: Annotated[
        float | None,
        Meta(
            description="For about so long it goes on, if as it went so far; null when it is over, while nothing is"
            " done yet, and of the last twentieth, which are those that wait for something"
        ),
    ] = None


class Restorations(Shape, frozen=True, kw_only=True):
    """The newest restorations, newest first."""

    restorations: list[Restoration]


class Consumer(Shape, frozen=True, kw_only=True):
    """A consumer of events, and how far it is. It never holds what is written in chats."""

    name: str
    how: Annotated[str, one_of(("webhook", "fetch"))]
    behind: Annotated[
        int,
        Meta(ge=0, description="Events that it has not acknowledged, of those it is told; about, when many"),
    ]
    oldest_at: Annotated[Time | None, Meta(description="When the oldest of them came")]
    lag_seconds: Annotated[float, Meta(ge=0, description="For so long the oldest of them has waited")]
    chats: Annotated[int, Meta(ge=0, description="With something undelivered; 0 of one that fetches")]
    parked: Annotated[
        int, Meta(ge=0, description="Batches that nobody tries any more until they are replayed")
    ]
    paused: bool
    trouble: Annotated[
        str | None, Meta(description="Why its webhook did not take the last batch; null once it takes one")
    ]
    moved_at: Annotated[Time | None, Meta(description="When it last acknowledged something")]
    acknowledges: Annotated[bool, Meta(description="Whether it is asked to acknowledge pushes itself")] = (
        False
    )
    asked: Annotated[int, Meta(description="How often it was asked to, since it was named first")] = 0
    acknowledged: Annotated[int, Meta(ge=0, description="How often it did")] = 0
    ran_out: Annotated[int, Meta(ge=0, description="How often it did not in time, and asyncchatd pinged")] = 0


class Consumers(Shape, frozen=True, kw_only=True):
    """All consumers."""

    consumers: list[Consumer]


class Steered(Shape, frozen=True, kw_only=True):
    """What steering a consumer did."""

    consumer: Consumer
    batches: Annotated[
        int,
        Meta(
            ge=0,
            description="With `retry` and `replay`: how many are tried now, or once it is resumed where it is paused",
        ),
    ] = 0
    changed: Annotated[bool, Meta(description="Whether anything was otherwise before")] = True


class Events(Shape, frozen=True, kw_only=True):
    """Events for a consumer; asking with `cursor` as `after` acknowledges them."""

    events: list[ToldEvent]
    cursor: str


class OtherEpoch(Error, frozen=True, kw_only=True):
    """The answer to one that goes by ids of another history of the store; which there are now."""

    oldest: str | None
    newest: str


class Node(Shape, frozen=True, kw_only=True):
    """A GMS node."""

    node: str
    resting: bool
    cause: str | None


class SharingNode(Shape, frozen=True, kw_only=True):
    """One of the asyncchatd processes that share the store."""

    number: Annotated[
        int, Meta(description="What tells it from another one of its name; new with each start")
    ]
    name: str
    version: str
    state: Annotated[
        str,
        one_of(NodeState),
        Meta(
            description="`silent`: nobody heard of it for a while; `gone`: it ended without taking leave, and none of"
            " its name has come since"
        ),
    ]
    started_at: Time
    seen_at: Annotated[Time, Meta(description="When it last said that it is there, by the database's clock")]
    claims: Annotated[Count, Meta(description="Sessions that it has claimed to ping them")]
    own: Annotated[bool, Meta(description="Whether it is the one that says this")]


class Difference(Shape, frozen=True, kw_only=True):
    """A setting that must be the same for all processes that share the store, and is not."""

    key: Annotated[str, Meta(description="Of the configuration, such as `restoration.max_rate`")]
    values: Annotated[dict[str, str], Meta(description="By the names of the processes; of a secret a digest")]


class Pings(Shape, frozen=True, kw_only=True):
    """What the worker does."""

    in_flight: Count
    in_flight_limit: Count
    max_rate: float
    gms_available: bool
    nodes: list[Node]


class PushSender(Shape, frozen=True, kw_only=True):
    """An address that pushes come from: a GMS node's, or `other` for those beyond the first 32."""

    client: str
    count: Count
    first_at: Time
    last_at: Time


class PushRefusal(Shape, frozen=True, kw_only=True):
    """Something came to the push address from there and was not kept."""

    client: str
    cause: Annotated[str, one_of(FAILINGS)]
    message: str
    advice: str
    count: Count
    first_at: Time
    last_at: Time


class Pushes(Shape, frozen=True, kw_only=True):
    """Who has sent pushes since the daemon started, and who tried to."""

    count: Annotated[Count, Meta(description="Pushes that were kept")]
    last_at: Time | None
    senders: Annotated[list[PushSender], Meta(description="The last one first")]
    refused: Annotated[list[PushRefusal], Meta(description="The last one first, at most 24")]


class Refused(Shape, frozen=True, kw_only=True):
    """Why the configuration file as it was last read is not in force."""

    at: Time
    cause: str
    advice: str


class Configuration(Shape, frozen=True, kw_only=True):
    """The configuration in force, and what came of the last reload."""

    taken_over_at: Annotated[Time, Meta(description="By the start or a reload")]
    refused: Annotated[
        Refused | None, Meta(description="The last reload, when it was refused: the daemon runs on as before")
    ]


class Counts(Shape, frozen=True, kw_only=True):
    """How the daemon is, in numbers."""

    ready: bool
    store_trouble: Annotated[str | None, Meta(description="Why nothing can be written at present")] = None
    store_note: Annotated[str | None, Meta(description="What is unusual about the store")] = None
    store_replaced: Annotated[
        str | None,
        Meta(description="What took the place of the store of before, until an operator accepts it"),
    ] = None
    started_at: Time
    uptime_seconds: float
    sessions: ByState
    due: ByReason
    pings: Pings
    pushes: Annotated[
        Pushes | None, Meta(description="Whether GMS reaches this daemon: pushes since it started")
    ] = None
    configuration: Annotated[Configuration | None, Meta(description="Which configuration is in force")] = None
    metrics: Annotated[
        list[str],
        Meta(description="Addresses where metrics are scraped without a token; none without `[metrics]`"),
    ] = []
    gateway: Annotated[
        list[str], Meta(description="Addresses where chat clients are served; none without a gateway")
    ] = []
    gateway_chats: Annotated[
        Count,
        Meta(
            description="Live sessions of chats that the gateway opened. It cannot be taken out while there are any"
        ),
    ] = 0
    gateway_polls: Annotated[Count, Meta(description="Polls of chat clients that are held now")] = 0
    gateway_streams: Annotated[Count, Meta(description="Streams of events that chat clients have open")] = 0
    pushes_missing: Annotated[
        bool,
        Meta(
            description="Whether so many pushes are missing that GMS is asked about all chats that are polled"
        ),
    ] = False
    consumers: list[Consumer] = []
    nodes: Annotated[
        list[SharingNode],
        Meta(description="The processes that share the store; none of a store that nobody shares"),
    ] = []
    differences: Annotated[
        list[Difference], Meta(description="In what their configurations differ and should not")
    ] = []


class Status(Counts, frozen=True, kw_only=True):
    """How the daemon is, in one look."""

    servers: list[Server]
    restorations: list[Restoration]


class Warning(Shape, frozen=True, kw_only=True):
    """A warning or an error of the log, those of one kind drawn together."""

    event: str
    level: Annotated[str, one_of(("warning", "error", "critical"))]
    meaning: str
    count: Annotated[int, Meta(ge=1)]
    first_at: Time
    last_at: Time
    fields: dict[str, str | int | float | bool | None]


class Moment(Shape, frozen=True, kw_only=True):
    """What happened in one second, or in the time in which the daemon could not look."""

    time: Annotated[Time, Meta(description="Its end")]
    uptime_seconds: Annotated[float, Meta(description="Its end, since the start and whatever the clock says")]
    seconds: Annotated[float, Meta(description="How long it was")]
    max_rate: Annotated[float, Meta(description="The limit that was in force")]
    rates: Rates


class Picture(Counts, frozen=True, kw_only=True):
    """All that the status page shows."""

    time: Time
    version: str
    rates: Rates
    servers: list[CountedServer]
    sessions_elsewhere: dict[str, Count]
    restorations: list[Restoration]
    warnings: list[Warning]


class Accepted(Shape, frozen=True, kw_only=True):
    """The store is taken as it is."""

    changed: Annotated[bool, Meta(description="Whether something was to be accepted")]


class Alive(Shape, frozen=True, kw_only=True):
    """The daemon lives."""

    alive: Annotated[bool, Meta(extra_json_schema={"const": True})]


class Ready(Shape, frozen=True, kw_only=True):
    """Whether the daemon takes pushes."""

    ready: bool
