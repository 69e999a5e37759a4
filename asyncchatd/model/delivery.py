"""The delivery of events: who is told, and how far each is."""

from __future__ import annotations

from collections.abc import Mapping

from asyncchatd.model.data import Ms, Tokens
from asyncchatd.model.transcript import EventKind, StoredEvent
from asyncchatd.model.values import Value


class Consumer(Value, frozen=True):
    """A consumer of events, as the configuration names it."""

    name: str
    kinds: frozenset[EventKind]
    """Of these it is told."""
    services: frozenset[str] = frozenset()
    """Of their chats alone; of all when empty."""
    pushes: bool = False
    """It has a webhook: progress is kept for each chat. Else it fetches, and has one cursor."""
    from_oldest: bool = False
    """A new one begins with the oldest event there is, else with those of now on."""
    keep_ms: Ms = 3 * 86_400_000
    """How long events are kept that it does not take."""
    acknowledges_ms: Ms | None = None
    """So long it has for a Refresh of its own that acknowledges a push, before the daemon pings; none: it is not asked
    for any."""
    max_backlog: int | None = None
    """So many of them are kept at most."""
    send_keys: bool = False
    """It is told the tokens themselves, the newest at each try."""


class Portion(Value, frozen=True):
    """A portion of events for a consumer that fetches."""

    events: tuple[StoredEvent, ...]
    cursor: int
    """The id up to which this goes; asking for what comes after it acknowledges it."""


class Batch(Value, frozen=True):
    """The next events of one chat for one webhook."""

    consumer: str
    row: int
    """The store's own key of the session."""
    number: str
    """Names this batch; the same at each try."""
    events: tuple[StoredEvent, ...]
    """In their order; the same at each try."""
    tries: int
    """How often it was tried."""
    failing_since: Ms | None
    """When it was first refused; none while it was not."""


class ConsumerState(Value, frozen=True):
    """How far one consumer is."""

    name: str
    cursor: int
    newest: int
    """The newest event there is."""
    behind: int
    """Events it has not been told, of those that it is told; about how many, when there are many."""
    oldest_at: Ms | None
    """When the oldest event came that it has not been told."""
    chats: int
    """With something undelivered; 0 of a consumer that fetches."""
    parked: int
    """Batches that are put aside until they are replayed."""
    paused: bool
    moved_at: Ms
    """When it last acknowledged something."""
    pushes: bool = False
    """It has a webhook."""
    acknowledges: bool = False
    """It is asked to acknowledge pushes."""
    asked: int = 0
    """How often it was, since it was named first."""
    acknowledged: int = 0
    """How often it did."""
    ran_out: int = 0
    """How often it did not in time, and the daemon pinged."""


class Asked(Value, frozen=True):
    """A Refresh that a consumer is asked for, which has the session until the time for it is over."""

    left_ms: Ms
    tokens: Tokens
    """The newest."""
    next_position: int | None
    again: bool
    """The consumer was told before, and is told once more."""


class HandedOut(Value, frozen=True):
    """What came of handing events to a consumer that may ask for a Refresh."""

    asked: Mapping[int, Asked] = {}
    """By the id of the event."""
    withdrawn: bool = False
    """A session is due now that was to be asked for and cannot be: a request is on its way, or a restoration."""


class Unacknowledged(Value, frozen=True):
    """A push whose Refresh a consumer was asked for and did not send in time."""

    chat_id: str
    alias: str | None
    consumer: str
