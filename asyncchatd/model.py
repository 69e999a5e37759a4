"""The plain data of the program: sessions, tokens, Chat Servers, restorations. No I/O.

Names are the field's own. Times are milliseconds since the epoch (`Ms`) wherever they are stored
or compared with what Chat Server says (its `utcTime` is in the same unit), because they must
survive a restart of the daemon; durations are seconds as `float`, or `timedelta` in the
configuration.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

Ms = int
"""Milliseconds since the Unix epoch."""


class Reason(IntEnum):
    """Why a session is due. The smaller value is the more urgent one."""

    ACKNOWLEDGE = 0
    """GMS pushed a notification; Chat Server resends it until a ping Refresh comes."""
    RESTORE = 1
    """The session's Chat Server is gone or going; only a client's request restores it."""
    REQUEST = 2
    """An operator or the custom-chat-app asked."""
    KEEPALIVE = 3
    """Nothing happened for the ping interval."""

    @property
    def word(self) -> str:
        """The reason as logs, API and metrics write it."""
        return self.name.lower()


class SessionState(StrEnum):
    """Where a session stands."""

    LIVE = "live"
    """All tokens are known; it is pinged when due."""
    INCOMPLETE = "incomplete"
    """Known from a push that did not carry all tokens; kept, never pinged."""
    ENDED = "ended"
    """GMS said so in a reply, or somebody ended it explicitly; kept for a while for the logs."""


class EndCause(StrEnum):
    """Who ended a session. Hearsay, silence and failed requests never do."""

    CHAT_ENDED = "chat_ended"
    """A GMS reply said `chatEnded`."""
    REMOVED = "removed"
    """Somebody deleted it over the control API."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What authenticates a request for one session. All four are opaque and always used together.

    A wrong secure key makes Chat Server throw the customer out at once, so tokens of two sessions
    are never mixed and none is ever guessed. The secure key never shows in a `repr`.
    """

    chat_id: str
    user_id: str
    secure_key: str = field(repr=False)
    alias: str
    """`app_dbid` of the Chat Server that last served the session."""


@dataclass(frozen=True, slots=True)
class TokenNews:
    """What one message (a reply, a push, a registration) says of a session's tokens.

    `None` means "not said". An empty string on the wire is not a token and arrives here as `None`.
    """

    chat_id: str | None = None
    user_id: str | None = None
    secure_key: str | None = field(default=None, repr=False)
    alias: str | None = None

    def complete(self) -> bool:
        """Whether this alone would do for a ping."""
        return None not in (self.chat_id, self.user_id, self.secure_key, self.alias)


def key_digest(secure_key: str) -> str:
    """A short digest under which a replaced secure key is remembered, so a late push cannot
    bring it back. Not reversible: a secure key is 64 random bits or more."""
    return hashlib.blake2b(secure_key.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
