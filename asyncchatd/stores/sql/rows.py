"""Rows as every store that speaks SQL has them: what columns hold, and how much is looked at in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from asyncchatd.model import Hidden, Ms, SessionState, TokenNews, TokenRecord, Value, key_digest, tokens
from asyncchatd.stores.rules import AT_ONCE, SPACING_MS
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.transcripts import OF_ALL

# -- sessions --------------------------------------------------------------------------------------

INCOMPLETE, LIVE, ENDED = 0, 1, 2

STATES = {
    INCOMPLETE: SessionState.INCOMPLETE,
    LIVE: SessionState.LIVE,
    ENDED: SessionState.ENDED,
}

STATE_NUMBERS = {state: number for number, state in STATES.items()}

LENT = 0
"""The claim of a session that is left to the custom-chat-app; those of workers are numbers above it."""

AHEAD_MS = (AT_ONCE - 1) * SPACING_MS
"""So far ahead of the clock may the pings of a session be accounted for before the next has to wait."""

LONGEST_LEASE_MS = 600_000
"""A lease that runs longer was given before the clock was set back, by a daemon that did not live to see it."""

KEYS_REMEMBERED = 16
"""Of the gateway."""

OLD_KEYS_TEXT = tokens.OLD_KEYS_KEPT * (len(key_digest("")) + 1) - 1
"""Characters of the remembered digests, which stand in one column with blanks between."""

RECORD = TokenRecord.__struct_fields__
"""The columns of `session` that keep what the token rules know of one; a column is named as its field."""


def record_columns(
    sealing: Sealing, record: TokenRecord, chat_id: str | None, device_id: str | None
) -> dict[str, object]:
    """The columns of `RECORD`, in its order."""
    return {name: getattr(record, name) for name in RECORD} | {
        "secure_key": sealing.seal(record.secure_key, chat_id, device_id),
        "old_keys": " ".join(record.old_keys),
    }


def differ(before: TokenRecord, after: TokenRecord) -> bool:
    """Whether a request would carry other tokens now."""
    return (before.secure_key, before.user_id, before.alias) != (after.secure_key, after.user_id, after.alias)


def news_of(said: str | None, known: str) -> str | None:
    """What a reply said, where it is not what was known."""
    return None if said == known else said


# -- the journal of pushes -------------------------------------------------------------------------

DEVICE_LOOKED_AT = 500
"""Chats of one device, those known last, among which a push without a chat id looks for the active ones."""


class JournalRow(Value, frozen=True):
    """A row of the journal: a push that has not taken effect. Each field is a column."""

    at: Ms
    session: int | None
    chat_id: str | None
    device_id: str | None
    user_id: str | None
    secure_key: Hidden[str | None]
    """Sealed where it is written, in the clear where it was read."""
    alias: str | None
    utc_time: Ms | None
    position: int | None
    next_position: int | None
    leaving: bool
    resent: bool
    digest: str

    @property
    def news(self) -> TokenNews:
        return TokenNews(self.chat_id, self.user_id, self.secure_key, self.alias)


def begins_at(push: JournalRow) -> int | None:
    """Where a session whose position is not known begins: at the event that the push announces, which no Refresh has
    fetched yet. Its `nextPosition` lies behind that."""
    return push.next_position if push.position is None or push.position < 1 else push.position


class Recorded(Protocol):
    """A session's row, as far as its tokens go."""

    @property
    def record(self) -> TokenRecord: ...


def is_told_of(found: Sequence[Recorded], user_id: str | None) -> bool:
    """Whether a push without a chat id tells the tokens of this device's session. It names all chats of the
    device, and when there are several the tokens are of nobody knows which. A user id that is not the
    session's own shows that they are of a chat which we do not know."""
    return len(found) == 1 and (user_id is None or found[0].record.user_id in (None, user_id))


# -- transcripts, and those who are told -------------------------------------------------------------

EVENT = "event.id, kind, session.chat_id, session.service, session.device_id, at, body, event.session, idx"
"""The columns of an event, as `transcripts.stored` reads them."""

STORED = f"SELECT {EVENT} FROM event JOIN session ON session.id=event.session"

JOINED = f"LEFT JOIN session ON session.id=event.session AND event.session<>{OF_ALL}"

TOLD = f"event {JOINED}"
"""Where to look for what a consumer is told."""

EVENT_TOLD = f"SELECT {EVENT} FROM {TOLD}"

TO_BE_TOLD = (
    "delivery.session=event.session AND delivery.first<=event.id"
    " AND (delivery.own OR event.id<=delivery.until)"
)
"""Whether an event is one of those that a row of `delivery` has to tell."""

FETCHED_BYTES = 1 << 20
"""Of a portion for a consumer that fetches. The largest number of events that it can ask for may be hundreds of
megabytes."""

COUNTED = 1_024
"""So many events are counted; of more it is guessed how many a consumer is told."""

CHATS_COUNTED = 16
"""Of so many chats the events are counted; of more it is guessed that they have as many."""


# -- restorations ------------------------------------------------------------------------------------

RANK_MS = 0.001
"""Sessions made due together lie this far apart, which keeps them in order in the due index."""

RESTORATION = (
    "id, alias, server, cause, started_at, marking, sessions, restored, ended, refused, moved, finished_at"
)
"""The columns of a restoration, in the order of its fields."""


class Lost(NamedTuple):
    """A Chat Server that is gone, as a session has to know it."""

    open: int | None
    """The restoration of its sessions, while it runs."""
