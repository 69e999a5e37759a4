"""The plain data of the program: sessions, tokens, Chat Servers, restorations. No I/O.

Names are the field's own. Times are milliseconds since the epoch (`Ms`) wherever they are stored
or compared with what Chat Server says (its `utcTime` is in the same unit), because they must
survive a restart of the daemon; durations are seconds as `float`, or `timedelta` in the
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from asyncchatd.model.transcript import RawEvent
from asyncchatd.model.values import Hidden, Value

Ms = int
"""Milliseconds since the Unix epoch."""


class Reason(IntEnum):
    """The reasons why a session is due. The smaller value is the more urgent one."""

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
    """The states of a session."""

    LIVE = "live"
    """All tokens are known; it is pinged when due."""
    INCOMPLETE = "incomplete"
    """Known from a push that did not carry all tokens; kept, never pinged."""
    ENDED = "ended"
    """GMS said so in a reply, or somebody ended it explicitly; kept for a while for the logs."""


class EndCause(StrEnum):
    """The causes that end a session. Hearsay, silence and failed requests never do."""

    CHAT_ENDED = "chat_ended"
    """A GMS reply said `chatEnded`."""
    REMOVED = "removed"
    """Somebody deleted it over the control API."""


class Tokens(Value, frozen=True):
    """The tokens that authenticate a request for one session. All four are opaque and always used together.

    A wrong secure key makes Chat Server throw the customer out at once, so tokens of two sessions
    are never mixed and none is ever guessed. The secure key never shows in a `repr`.
    """

    chat_id: str
    user_id: str
    secure_key: Hidden[str]
    alias: str
    """`app_dbid` of the Chat Server that last served the session."""


class TokenNews(Value, frozen=True):
    """The tokens that one message (a reply, a push, a registration) tells of a session.

    `None` means "not said". An empty string on the wire is not a token and arrives here as `None`.
    """

    chat_id: str | None = None
    user_id: str | None = None
    secure_key: Hidden[str | None] = None
    alias: str | None = None

    def complete(self) -> bool:
        """Whether this alone would do for a ping."""
        return None not in (self.chat_id, self.user_id, self.secure_key, self.alias)


def key_digest(secure_key: str) -> str:
    """A short digest under which a replaced secure key is remembered, so a late push cannot
    bring it back. Not reversible: a secure key is 64 random bits or more."""
    import hashlib  # reads OpenSSL, which no command needs that only asks

    return hashlib.blake2b(secure_key.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


class Registration(Value, frozen=True):
    """A session as the custom-chat-app announces it: all its tokens, and what else it knows. One that ends a take, or
    says that the chat is over, may lack some: what is not said stays as it was."""

    tokens: Tokens | TokenNews
    service: str | None
    """Service name, the path segment its requests go to."""
    device_id: str | None = None
    """`GCTI_GMS_PushDeviceId` of its push subscription."""
    next_position: int | None = None
    """`nextPosition` of the last reply the app saw; unknown means "from the beginning"."""
    take_id: str | None = None
    """The take that it ends: the tokens are those of the reply to a request that the app sent itself."""
    acknowledged: int | None = None
    """The event that asked for the Refresh whose reply this is."""
    of_gateway: bool = False
    """The gateway opened the chat, and nobody else asks GMS in its client's place."""
    came_with: Hidden[str | None] = None
    """A keyed digest of the secure key that its client has, where the gateway has to know that one again."""
    ended: bool = False
    """GMS' reply says that the chat is over."""


class Session(Value, frozen=True):
    """One chat session as a store knows it."""

    chat_id: str | None
    """`None` only while all that is known is the device id of an incomplete session."""
    service: str | None
    user_id: str | None
    secure_key: Hidden[str | None]
    alias: str | None
    device_id: str | None
    next_position: int | None
    state: SessionState
    reason: Reason
    """Why it is due, or what it will be due for at `due_at`."""
    due_at: float
    """Milliseconds since the epoch; the fraction only orders those that became due together."""
    leased_until: Ms
    """A worker, or whoever took it, has it until then; 0 when nobody has."""
    attempts: int
    """Pings since the last answered one."""
    restoration: int | None
    """The restoration it waits in."""
    registered_at: Ms
    active_at: Ms
    """Last registration or push: how recently something happened in the conversation."""
    answered_at: Ms | None
    """When GMS last answered a Refresh with statusCode 0."""
    ended_at: Ms | None
    end_cause: EndCause | None
    last_trouble: str | None
    """Cause of the last ping that was not answered; gone with the next answer."""
    trouble_detail: str | None
    """What GMS said with it: HTTP status, and the code and words of its own errors."""
    refused_since: Ms | None
    """When GMS first refused a ping of it, without an answer or a push since; none when it does not."""
    of_gateway: bool
    """Whether the gateway opened the chat."""
    came_with: Hidden[str | None]
    """The keyed digest of the secure key that its client came with; stays as it is when GMS changes the key, and at the
    end. None of a chat whose client has a key of the gateway's alone."""


class Claim(Value, frozen=True):
    """A session handed to one worker until its lease runs out."""

    chat_id: str
    service: str
    tokens: Tokens
    next_position: int | None
    reason: Reason
    due_at: float
    attempts: int
    restoration: int | None
    claim_id: int
    """Names this claim; a settlement under an older one no longer decides what is due."""
    marks: int
    """How often the session had been made due; a change means "due again since"."""
    row: int = 0
    """The store's own key."""
    refusals: int = 0
    """How often GMS refused it since `refused_since`."""
    refused_since: Ms | None = None


class Verdict(StrEnum):
    """The verdict on a ping, as the store must know it."""

    ANSWERED = "answered"
    ENDED = "ended"
    RETRY = "retry"
    """No answer, or one that says nothing of the session: due again after a backoff."""
    REFUSED = "refused"
    """GMS will not do it and repeating does not help; not an end. Due again as a keepalive."""
    RELEASED = "released"
    """Nothing was sent; due again at the given time, for the same reason."""
    LEARNED = "learned"
    """Answered, but to a Refresh for less than all events, which need not have acknowledged or restored anything:
    its tokens and its next position are known now, and it is due again for the same reason."""
    CALLED = "called"
    """Answered, but to a chat client's call and no ping: it is due as it was, unless events follow that the reply did
    not show."""


class Settlement(Value, frozen=True):
    """The settlement of one claim: how its ping ended."""

    claim: Claim
    verdict: Verdict
    due_at: float
    """When it is due next if nothing happened to it meanwhile."""
    sent_at: Ms = 0
    """When the request that was answered was sent."""
    settled_at: Ms = 0
    news: TokenNews = TokenNews()
    next_position: int | None = None
    seen_utc: Ms | None = None
    """Newest event time in the reply, by Chat Server's clock."""
    trouble: str | None = None
    """Why it was not answered; with an end, what GMS said of it."""
    detail: str | None = None
    """What GMS said with the trouble."""
    refused: bool = False
    """GMS said that it will not do it. With `Verdict.RETRY`: it is asked again all the same."""
    events: Hidden[tuple[RawEvent, ...]] = ()
    """What the reply showed of the transcript, in its order, when somebody is told."""
    cut: bool = False
    """The reply was too long to keep its events, or was asked for less than all of them."""


class Settled(Value, frozen=True):
    """The effect that a settlement had on its session."""

    chat_id: str
    lease_held: bool
    """False when another claim had taken over; then only the tokens were taken from it."""
    tokens_changed: bool
    alias: str | None
    due_again: bool = False
    """Something happened to the session while its ping was on its way, or nothing was sent."""
    finished: int | None = None
    """A restoration that this settlement finished."""


class ServerState(StrEnum):
    """The states of a Chat Server as the watcher sees it, in HAProxy's words."""

    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Process(Value, frozen=True):
    """A process that answered at a Chat Server's health address."""

    app_dbid: str | None = None
    process_os_pid: str | None = None
    started: float | None = None
    """When it started, as its page states it: epoch seconds by the server's own clock, which may be set."""
    began: float | None = None
    """The same, computed from the uptime on its page: epoch seconds by our clock."""
    first_seen: Ms = 0
    last_seen: Ms = 0
    settled: bool = True
    """What its appearing meant is settled: it was there first, or a restoration was begun for it. So no process
    is the reason for two."""


class ChatServer(Value, frozen=True):
    """The record of one configured Chat Server: what is remembered of it across restarts of the daemon."""

    name: str
    app_dbid: str | None = None
    process_os_pid: str | None = None
    started: float | None = None
    """As with `Process`, for the one that is taken for this server; so the three below."""
    state: ServerState = ServerState.UNKNOWN
    since: Ms = 0
    """When `state` was entered."""
    checked_at: Ms = 0
    detail: str | None = None
    """Why it is not up, or not to be relied on, for people."""
    began: float | None = None
    first_seen: Ms = 0
    last_seen: Ms = 0
    others: tuple[Process, ...] = ()
    """Other processes that answered at its address within the last day."""
    disputed: Ms | None = None
    """Since when several processes have been answering there by turns or to different nodes: its `health_url`
    is a balancer's."""
    epoch: int = 0
    """How often something was noted of it; who notes next must know the last note."""
    assumed: bool = False
    """Its `app_dbid` is assumed: it was down from the first look on and has never told it."""


class View(Value, frozen=True):
    """What one process saw of a Chat Server when it last looked at it."""

    looked_at: Ms
    """0 while it has not looked."""
    failures: int
    """Looks in a row that reached nobody."""
    lost: bool
    """Whether that is enough for it to call the server down."""
    read: Process | None = None
    """The process on the last page that was read: `first_seen` is when it first was, without another one or a miss in
    between, `last_seen` when the look began that read it; not `settled` when its counters ran backwards then. A node of
    an older asyncchatd does not say it."""
    by_turns: bool = False
    """Lately a process was read again after another one was: whoever answers there next says nothing of the others."""


class Views(Value, frozen=True):
    """What one process sees of the plant."""

    peer: str
    """The process, as people call it; empty for one's own."""
    servers: Mapping[str, View]
    """By the name of the Chat Server."""
    gms: bool
    """Whether a GMS node is in good standing."""
    silent: bool = False
    """It has said nothing in the last seconds, and nobody knows that it is gone: this is what it said last."""


class Cause(StrEnum):
    """The cause for which a restoration began."""

    UNREACHABLE = "unreachable"
    """The health port did not answer `fall` times in a row."""
    RESTARTED = "restarted"
    """`process_os_pid` changed, or start time or counters ran backwards."""
    RETURNED = "returned"
    """It came back with the same process after having been down: its sessions are uncertain."""
    REPLACED = "replaced"
    """Its health page now shows another `app_dbid`."""
    ANNOUNCED = "announced"
    """Shutdown notices (`quit-reason-advice=reconnect`) came for its sessions."""
    OPERATOR = "operator"
    """Somebody asked."""


class RestorationState(StrEnum):
    """The states of a restoration."""

    RUNNING = "running"
    """Sessions wait in it, or are still being made due."""
    FINISHED = "finished"
    """Every session was restored, has ended, or waits in a later restoration."""
    INCOMPLETE = "incomplete"
    """Sessions were left without an answer; none waits in it any more."""


class Loss(Value, frozen=True):
    """The loss of a Chat Server: all sessions of its alias must be pinged."""

    alias: str
    cause: Cause
    again: bool = False
    """They were made due when it went, and it is back: where it has none any more, that loss is restored."""


class Restoration(Value, frozen=True):
    """The restoring of all sessions one Chat Server had. Its counts add up:
    `sessions == restored + ended + refused + moved + waiting`."""

    id: int
    alias: str
    server: str | None
    cause: Cause
    started_at: Ms
    marking: bool
    """Sessions are still being made due, or shutdown notices may bring some; `sessions` grows."""
    sessions: int
    restored: int
    """Answered with statusCode 0."""
    ended: int
    """GMS said the chat is over, or somebody removed the session."""
    refused: int
    """Left without an answer: GMS refused them again and again, and they wait for their keepalive."""
    moved: int
    """Taken over by a later restoration."""
    finished_at: Ms | None
    """Since when none of its sessions waits in it. A further shutdown notice takes it back."""

    @property
    def waiting(self) -> int:
        """Sessions not yet answered for."""
        return self.sessions - self.restored - self.ended - self.refused - self.moved

    @property
    def state(self) -> RestorationState:
        """How it stands: it is finished when every session was answered for."""
        if self.finished_at is None:
            return RestorationState.RUNNING
        return RestorationState.INCOMPLETE if self.refused else RestorationState.FINISHED
