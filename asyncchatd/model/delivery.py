"""The delivery of events: who is told, and how far each is."""

from __future__ import annotations

from collections.abc import Mapping

from asyncchatd.model.data import Ms, Tokens
from asyncchatd.model.transcript import EventKind, StoredEvent
from asyncchatd.model.values import Value


class Consumer(Value, frozen=True):
    """One who is told of events, as the configuration names him."""

    name: str
    kinds: frozenset[EventKind]
    """Of these he is told."""
    services: frozenset[str] = frozenset()
    """Of their chats alone; of all when empty."""
    pushes: bool = False
    """He has a webhook: progress is kept for each chat. Else he fetches, and has one cursor."""
    from_oldest: bool = False
    """A new one begins with the oldest event there is, else with those of now on."""
    keep_ms: Ms = 3 * 86_400_000
    """How long events are kept that he does not take."""
    acknowledges_ms: Ms | None = None
    """So long he has for a Refresh of his own that acknowledges a push, before the daemon pings; nothing: he is not
    asked for any."""
    max_backlog: int | None = None
    """So many of them are kept at most."""
    send_keys: bool = False
    """He is told the tokens themselves, the newest at each try."""


class Portion(Value, frozen=True):
    """A portion of events for one who fetches."""

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
    """When it first failed, without the endpoint being down."""


class ConsumerState(Value, frozen=True):
    """How far one consumer is."""

    name: str
    cursor: int
    newest: int
    """The newest event there is."""
    behind: int
    """Events he has not been told, of those that he is told; about how many, when there are many."""
    oldest_at: Ms | None
    """When the oldest event came that he has not been told."""
    chats: int
    """With something undelivered; 0 of one who fetches."""
    parked: int
    """Batches that are put aside until they are replayed."""
    paused: bool
    moved_at: Ms
    """When he last acknowledged something."""
    pushes: bool = False
    """He has a webhook."""
    acknowledges: bool = False
    """He is asked to acknowledge pushes."""
    asked: int = 0
    """How often he was, since he was named first."""
    acknowledged: int = 0
    """How often he did."""
    ran_out: int = 0
    """How often he did not in time, and the daemon pinged."""


class Asked(Value, frozen=True):
    """A Refresh that a consumer is asked for: until its time is over its session is his."""

    left_ms: Ms
    tokens: Tokens
    """The newest."""
    next_position: int | None
    again: bool
    """He was told before, and is told once more."""


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
