"""Pushing: the notifications of a plant, and their resends until a client's request acknowledges them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

from asyncchatd.model import Ms, TokenNews, replace
from asyncchatd.standin.plant.measure import Suffering, Timeline
from asyncchatd.standin.plant.parts import ChatSession, Owed, Phase, Timers
from asyncchatd.standin.plant.transcript import tokens_of
from asyncchatd.standin.pushes import PushForm, SentPush, push_body
from asyncchatd.standin.settings import PlantSettings, Rebinding
from asyncchatd.wire import ChatEvent

PLACEHOLDERS = (None, "null", "undefined", "None", "", "  ", "****", "(null)")
"""Seen in the field where a token should be (protocol section 7)."""


@dataclass(slots=True, eq=False)
class Common:
    """What the parts of a plant have in common."""

    settings: PlantSettings
    now: Callable[[], float]
    """A monotonic clock, in seconds."""
    wall_ms: Callable[[], Ms]
    """The time of day."""
    suffering: Suffering = field(init=False)
    timeline: Timeline = field(init=False)
    timers: Timers = field(default_factory=Timers)
    _placeholders: Iterator[str | None] = field(default_factory=lambda: cycle(PLACEHOLDERS))

    def __post_init__(self) -> None:
        self.suffering = Suffering(since=self.now())
        self.timeline = Timeline(self.now())

    def placeholder(self) -> str | None:
        """The next of `PLACEHOLDERS`."""
        return next(self._placeholders)


class Pushing:
    """The sending of notifications, and what clients owe for them.

    Chat Server sends those of a session to one GMS node. When that is gone, they are lost without a word until it
    finds another one: at an activity in the session (`rebind`), or when the session is restored.
    """

    def __init__(self, common: Common, send: Callable[[SentPush], None]) -> None:
        self._common = common
        self._send = send
        self._sent = 0
        self.nodes_gone: set[int] = set()
        """The GMS nodes that are down, or hang."""
        self.owing = 0
        """Sessions with a notification that no request has acknowledged."""

    def rebind(self, session: ChatSession, node: int | None, *, anyway: bool = False) -> None:
        """Finds another node for the session's pushes: `node`, where that one is there, or any. The one that they
        go by stays while it is there, but for `anyway`."""
        if session.node in self.nodes_gone or anyway:
            there = set(range(1, self._common.settings.gms_nodes + 1)) - self.nodes_gone
            if there:
                session.node = (
                    node if node in there else random.choice(sorted(there))
                )  # chance, not cryptography

    def settle(self, session: ChatSession) -> Owed | None:
        """The session owes nothing any more. Returns what it owed."""
        owed, session.owed = session.owed, None
        self.owing -= owed is not None
        return owed

    def push(
        self,
        session: ChatSession,
        kind: str,
        event: ChatEvent | None,
        *,
        form: PushForm | None = None,
        tokens: TokenNews | None = None,
        planted: TokenNews | None = None,
        announces: bool = False,
    ) -> None:
        """Sends a notification of type `kind` for a session that subscribed: in `form`, or in the next one.
        `announces`: it tells a secure key that nothing else has told."""
        assert session.device_id is not None
        if not self._gets_out(session):
            self._common.suffering.pushes_swallowed += 1
            if announces:
                self.unannounced(session)
            return
        if form is None and tokens is None and struck(self._common.settings.placeholder_rate):
            tokens = TokenNews(*([self._common.placeholder() or "null"] * 4))
        form = form or self.next_form()
        if not session.payload:
            form = replace(form, payload=False)
        body = push_body(
            form, session.device_id, tokens or tokens_of(session), kind, event, session.next_index, planted
        )
        session.pushed_at = self._common.now()
        self._common.suffering.pushes_sent += 1
        self._send(SentPush(session.chat_id, body, session.secure_key if announces else None))

    def _gets_out(self, session: ChatSession) -> bool:
        settings = self._common.settings
        if session.node in self.nodes_gone:
            if settings.rebind is Rebinding.EVENT:
                self.rebind(session, None)  # too late for this one
            return False
        return not session.swallowed and not struck(settings.swallow_rate)

    @staticmethod
    def unannounced(session: ChatSession) -> None:
        """A push that alone told the newest key did not arrive: the key before is good until the client shows the
        newest, because nobody can know it."""
        if session.previous is not None:
            session.doubtful = (*session.doubtful, session.previous)

    def next_form(self) -> PushForm:
        """The next of the configured forms, in turn."""
        forms = self._common.settings.push_forms
        self._sent += 1
        return forms[self._sent % len(forms)]

    def owe(self, session: ChatSession) -> None:
        """The client owes a request from now on; until it comes, Chat Server resends."""
        if session.owed is None:
            session.owed = Owed(since=self._common.now())
            self.owing += 1
        session.owed.attempts = 0
        if session.resend and not session.owed.scheduled:
            self._schedule_resend(session, session.owed)

    def _schedule_resend(self, session: ChatSession, owed: Owed) -> None:
        owed.scheduled = True
        due = self._common.now() + self._common.settings.resend_delay
        self._common.timers.at(due, partial(self._resend, session, owed))

    def _resend(self, session: ChatSession, owed: Owed) -> None:
        owed.scheduled = False
        if session.owed is not owed or session.process.dead:
            return  # acknowledged meanwhile, or the Chat Server that would resend is gone
        if session.process.server.phase is not Phase.HUNG:
            if owed.attempts >= self._common.settings.resend_attempts:
                self._common.suffering.resends_exhausted += 1
                return
            owed.attempts += 1
            self._common.suffering.pushes_resent += 1
            event = replace(session.events[-1], type="push-url", kind="pushurl")
            self.push(session, "push-url", event)
        self._schedule_resend(session, owed)


def struck(share: float) -> bool:
    """Whether chance strikes, as it does in such a share of all cases."""
    return share > 0 and random.random() < share  # chance, not cryptography
