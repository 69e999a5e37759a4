"""The transcript of a chat: its events as they came, and what happened to its session beside them."""

from __future__ import annotations

from enum import StrEnum

from asyncchatd.model.values import Hidden, Value


class EventKind(StrEnum):
    """The kinds of events that a consumer is told."""

    CHAT = "chat"
    """One event of the transcript, as GMS gave it."""
    ENDED = "ended"
    """The chat is over."""
    LOST = "lost"
    """The session's Chat Server is gone; only a client's request restores it, and the daemon sends one."""
    RESTORED = "restored"
    """Another Chat Server, or the same one anew, has the session."""
    TOKENS = "tokens"
    """The session has other tokens than before."""
    NOTIFIED = "notified"
    """GMS pushed a notification."""
    GAP = "gap"
    """Events of the transcript are missing here."""


class RawEvent(Value, frozen=True):
    """One event of a transcript as it came, with what it takes to know it again."""

    index: int | None
    body: Hidden[bytes]
    """The JSON object, in UTF-8."""
    likeness: Hidden[bytes]
    """Time, sender, type and text: by these it is known again when Chat Server counts its events anew."""


class StoredEvent(Value, frozen=True):
    """One event as a store gives it to consumers."""

    id: int
    """Rises from event to event, over all chats; in one chat it is the order of the transcript."""
    kind: EventKind
    chat_id: str | None
    """None of a gap that is of all chats."""
    service: str | None
    device_id: str | None
    at: int
    """When the store got it, in milliseconds since the epoch."""
    body: Hidden[bytes | None]
    """A JSON object: of a chat event the event itself. None where there is nothing to say."""
    row: int = 0
    """The store's own key of the session."""
    index: int | None = None
    """Of a chat event its index in the transcript, as Chat Server counts now."""
