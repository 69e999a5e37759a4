"""What a store answers, and the bounds by which it forgets."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from asyncchatd.model import Ms, Reason, Restoration, SessionState, Tokens, Value


class Registered(StrEnum):
    """What a registration did."""

    CREATED = "created"
    UPDATED = "updated"
    COMPLETED = "completed"
    """An incomplete session got its tokens and is live now."""
    KEPT = "kept"
    """The session is known with newer tokens: those stay."""
    ENDED = "ended"
    """GMS has said that this chat is over; nothing was changed."""
    OVER = "over"
    """It says that GMS said so; the session has ended, now or before."""
    NOT_TAKEN = "not_taken"
    """It names a take that is not the session's last one; nothing was changed."""
    NOT_ASKED = "not_asked"
    """It names an event that asked for no Refresh of this session; nothing was changed."""


class Taken(StrEnum):
    """What a push was, seen when it was made durable."""

    KNOWN = "known"
    RESENT = "resent"
    """The same notification as the last one of that session."""
    UNKNOWN = "unknown"
    """No such session yet."""
    ENDED = "ended"


class Effect(StrEnum):
    """What a push did to a session."""

    DUE = "due"
    ADOPTED = "adopted"
    """A session nobody had registered is live: the push carried all its tokens."""
    INCOMPLETE = "incomplete"
    """A session nobody had registered is kept; tokens are missing. Once for each session, and once more when
    one of which only the device was known gets its chat id."""
    STILL_INCOMPLETE = "still_incomplete"
    """Such a session, and tokens are still missing."""
    COMPLETED = "completed"
    LEARNED = "learned"
    """Due, and its tokens are newer now."""
    STALE = "stale"
    """Due; the tokens in the push were older than ours and were ignored."""
    NOTHING = "nothing"
    """The session has ended."""
    CROWDED = "crowded"
    """Of no session: the push named a device of more than `DEVICE_CHATS` chats, and none of them."""


class Absorbed(Value, frozen=True):
    """One push's effect on one session."""

    chat_id: str | None
    device_id: str | None
    effect: Effect
    alias: str | None
    leaving: bool


class Take(Value, frozen=True):
    """A session that is left to the custom-chat-app for a while, and its newest tokens."""

    take_id: str
    until: Ms
    tokens: Tokens
    service: str | None
    next_position: int | None


class NotTaken(StrEnum):
    """Why a session cannot be taken."""

    UNKNOWN = "unknown"
    ENDED = "ended"
    INCOMPLETE = "incomplete"
    IN_FLIGHT = "in_flight"
    """A request of ours is on its way, and may bring other tokens."""
    PUSHES = "pushes_waiting"
    """A push waits that may tell other tokens."""
    RESTORING = "restoring"
    """It has to be restored first."""
    TAKEN = "taken"
    """Somebody has taken it."""
    NOT_ASKED = "not_asked"
    """The event that is named asked for no Refresh of this session, or its time is over."""
    RAN_OUT = "ran_out"
    """The take before ran out, and no ping came since."""


LASTING = frozenset({NotTaken.UNKNOWN, NotTaken.ENDED, NotTaken.INCOMPLETE, NotTaken.NOT_ASKED})
"""These do not pass by waiting."""


class RanOut(Value, frozen=True):
    """A take that ended without a registration or a release."""

    chat_id: str
    alias: str | None


class Counts(Value, frozen=True):
    """How many sessions there are."""

    states: Mapping[SessionState, int]
    due: Mapping[Reason, int]
    """Live sessions whose due time has passed, those in flight included."""
    leased: int
    of_gateway: int = 0
    """Live sessions of chats that the gateway opened: their clients hold keys that GMS does not know, or may."""


class Migrated(Value, frozen=True):
    """How far the form of a database is, in changes that it has seen."""

    before: int
    now: int


class Noted(Value, frozen=True):
    """What noting how a Chat Server stands did."""

    epoch: int
    restorations: tuple[Restoration, ...]
    """Those begun by it, in the order of the losses; `mark` makes their sessions due."""


class Bounds(Value, frozen=True):
    """The bounds of what is kept of transcripts."""

    max_events: int
    """Of one session."""
    max_bytes: int
    """Of one session."""
    max_total: int
    """Bytes of all sessions."""
    keep_ms: Ms
    """How long after its end a chat's events are kept that every consumer has. How long they are kept for one that
    does not take them says that consumer."""


class Why(StrEnum):
    """Why a consumer is not told an event any more."""

    KEEP = "keep"
    """It was not taken for so long."""
    MAX_BACKLOG = "max_backlog"
    """Too many waited for this consumer."""
    BOUNDS = "bounds"
    """It was beyond what is kept of its chat, or of all chats."""


class Trimmed(Value, frozen=True):
    """What one portion of trimming did."""

    more: bool
    """Whether there is more to look at."""
    dropped: Mapping[tuple[str, Why], int] = {}
    """Events that a consumer, by name, is not told any more."""


class Kept(Value, frozen=True):
    """How much is kept of transcripts. Of many events the store may guess it from some of them."""

    events: int
    size: int
    """Bytes."""
    oldest: int
    """The lowest id; 0 when there is no event."""
    newest: int
    """The highest id that there ever was."""
