"""The plant's logic: Chat Servers and the sessions in them. No I/O; the clock is handed in.

It behaves as protocol sections 2 to 4 say, and where those are silent, as hard on the client as they
allow: a client that breaks a rule loses customers here, and the report says so. A request takes
five steps, so that what happens while it waits is seen:

    arrive    GMS reads it; a second one of the same session in flight is counted
    queue     it takes its share of GMS' capacity, or is turned away
    serve     its Chat Server answers it, restoring the session if need be
    give_up   GMS waited too long for a hung Chat Server
    leave     the answer is out, or nobody will give one

`advance` lets time pass: resends, planned stops, silence and the end of restoration windows. The chats themselves
are in `chats`, the Chat Servers and what befalls them in `chat_servers`, and what they make of a request in `serving`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from asyncchatd.model import Ms, TokenNews, replace
from asyncchatd.standin.plant.agents import Agents
from asyncchatd.standin.plant.answers import Answers
from asyncchatd.standin.plant.capacity import Capacity
from asyncchatd.standin.plant.chat_servers import ChatServers
from asyncchatd.standin.plant.chats import Chats
from asyncchatd.standin.plant.measure import Report, Suffering, Timeline, spread
from asyncchatd.standin.plant.parts import (
    ChatSession,
    LostAnswer,
    NodeAnswer,
    Phase,
    PlantError,
    Ticket,
)
from asyncchatd.standin.plant.pushing import Common, Pushing
from asyncchatd.standin.plant.serving import Serving
from asyncchatd.standin.plant.transcript import by_agent
from asyncchatd.standin.pushes import SentPush
from asyncchatd.standin.requests import Received
from asyncchatd.standin.settings import PlantSettings
from asyncchatd.wire import Operation

LONG_TEXT = "Lorem ipsum dolor sit amet. " * 2_340
"""64 KiB."""

AT_ONCE_SECONDS = 0.1
"""A request that comes again within this time after a hang-up was sent at once."""


class Plant:
    """Chat Servers, the sessions in their memory, and what all of it suffers.

    `now` is a monotonic clock in seconds, `wall_ms` the time of day for `utcTime`. `send_push`
    gets every notification GMS sends; report back with `push_done`.
    """

    def __init__(
        self,
        settings: PlantSettings | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], Ms] = lambda: time.time_ns() // 1_000_000,
        send_push: Callable[[SentPush], None] = lambda push: None,
    ) -> None:
        self.now = now
        self.wall_ms = wall_ms
        self.send_push = send_push
        common = Common(settings or PlantSettings(), now, lambda: self.wall_ms())
        self._common = common
        self._pushing = Pushing(common, lambda push: self.send_push(push))
        self.chats = Chats(common, self._pushing)
        self.agents = Agents(common, self.chats, self._pushing)
        self.servers = ChatServers(common, self.chats, self._pushing)
        self._answers = Answers(common)
        self._serving = Serving(common, self.chats, self.servers, self._answers)
        self._capacity = Capacity()
        self._client_gone = False
        """Whether what arrives now was sent by a client that is dead."""
        self.answered_to_nobody = 0
        """Requests of dead clients whose work was done."""
        self.on_arrival: Callable[[Ticket], None] = lambda ticket: None
        """Hears of each request that a GMS node has read."""
        self.on_push_done: Callable[[SentPush, bool], None] = lambda push, delivered: None
        """Hears of each push that was taken, or was not."""

    @property
    def settings(self) -> PlantSettings:
        """The settings as they are now; `change` changes them."""
        return self._common.settings

    @property
    def suffering(self) -> Suffering:
        """What the plant has suffered since the report was last reset."""
        return self._common.suffering

    @property
    def timeline(self) -> Timeline:
        """Requests and restorations, second by second."""
        return self._common.timeline

    @property
    def sessions(self) -> dict[str, ChatSession]:
        """All sessions by chat id; those that ended too."""
        return self.chats.sessions

    # --- chats and agents -------------------------------------------------------------------

    def start_chats(
        self,
        count: int,
        *,
        service: str | None = None,
        servers: Sequence[str] = (),
        subscribe: bool = True,
        transcript: int = 0,
    ) -> list[ChatSession]:
        """Starts chats on the named Chat Servers in turn, on all that are up when none is named; each with a
        `transcript` of so many bytes behind it."""
        named = [self.servers.named(name) for name in servers] or list(self.servers.values())
        takers = [server for server in named if server.phase is Phase.UP]
        if not takers:
            raise PlantError("no Chat Server is up to take new chats")
        settings = self.settings
        started = []
        for n in range(count):
            session = self.chats.open(
                takers[n % len(takers)], service or settings.service, subscribed=subscribe
            )
            if subscribe:
                session.device_id = f"device-{session.chat_id}"
                session.resend = settings.resend
                session.notify_requestor = settings.notify_requestor
            for _ in range(-(-transcript // len(LONG_TEXT))):
                self.chats.add_event(session, by_agent("Message", LONG_TEXT))
            started.append(session)
        return started

    def end_chats(self, sessions: Iterable[ChatSession]) -> int:
        """The agent closes chats. Their next request sees the last words and `chatEnded`."""
        return self.agents.close(sessions)

    def say(self, session: ChatSession, text: str) -> bool:
        """An agent's message: an event, and a push if the session subscribed. False when the
        session's Chat Server cannot take it."""
        return self.agents.say(session, text)

    def rotate(self, sessions: Iterable[ChatSession], *, announce: bool = False) -> int:
        """Rotates user id and secure key, told by the next reply, or at once and told by a push."""
        forms = [form for form in self.settings.push_forms if form.carries_secure_key]
        if announce and (self.settings.push_url is None or not forms):
            raise PlantError("a rotation told by push needs a push_url and a push form with the secure key")
        rotated = 0
        for session in sessions:
            if session.ended is not None:
                continue
            rotated += 1
            if not announce:
                session.rotate_next = True
            elif session.device_id is not None:
                self.chats.rotate(session)
                event = self.chats.add_event(session, by_agent("Message", "One moment, please."))
                told = replace(event, type="push-url")
                form = forms[rotated % len(forms)]
                self._pushing.push(session, "push-url", told, form=form, announces=True)
                self._pushing.owe(session)
        return rotated

    def push_late(self, sessions: Iterable[ChatSession]) -> int:
        """Pushes that were held up on the way: they carry tokens replaced since. For sessions that
        had a rotation; returns how many."""
        forms = [form for form in self.settings.push_forms if form.carries_secure_key]
        pushed = 0
        for session in sessions:
            old = session.previous
            if old is None or session.ended is not None or session.device_id is None or not forms:
                continue
            event = next((e for e in reversed(session.events) if (e.utc_time or 0) <= old.at_ms), None)
            tokens = TokenNews(session.chat_id, old.user_id, old.secure_key, session.alias)
            self._pushing.push(session, "Message", event, form=forms[pushed % len(forms)], tokens=tokens)
            pushed += 1
        return pushed

    def move(self, sessions: Iterable[ChatSession]) -> int:
        """An agent desktop restores sessions (`session-restore-extend-by`): their alias changes
        without a client's request. Returns how many had a server to go to."""
        moved = 0
        for session in sessions:
            if session.ended is None and (target := self.servers.taker(session.process.server)) is not None:
                self.servers.restore(session, target)
                moved += 1
        return moved

    # --- its only client -------------------------------------------------------------------

    def replies_lost(self, since: Ms) -> int:
        """The client died, and what it was answered since then may have died with it: new keys, and that a
        chat is over. No client could know better, so until it shows that it knows the newest key, those
        that these replies replaced are good. Returns how many sessions are concerned."""
        concerned = 0
        for session in self.sessions.values():
            known = session.previous
            if session.ended is None and known is not None and known.at_ms >= since:
                concerned += known not in session.doubtful
                session.doubtful = (*(each for each in session.doubtful if each != known), known)
            elif session.closed_refreshes and session.closed_at >= since:
                concerned += 1
                session.closed_refreshes -= 1
        return concerned

    def client_died(self) -> None:
        """The only client died. What it asked is still answered, to nobody: what is on its way through GMS, and
        what arrives until `client_starts`, which was still in a socket. The answers count as lost."""
        self._client_gone = True
        for session in self.sessions.values():
            for ticket in session.in_flight or ():
                ticket.orphaned = True

    def client_starts(self) -> None:
        """What arrives from now on is asked by a client that lives."""
        self._client_gone = False

    def node_gone(self, node: int, gone: bool = True) -> None:
        """A GMS node is down or hangs, or is there again. Nothing is pushed through one that is not there."""
        if gone:
            self._pushing.nodes_gone.add(node)
        else:
            self._pushing.nodes_gone.discard(node)

    def swallow(self, sessions: Iterable[ChatSession], swallowed: bool = True) -> int:
        """The pushes of these sessions get lost within GMS, or do so no longer. Returns how many sessions."""
        count = 0
        for session in sessions:
            session.swallowed = swallowed
            count += 1
        return count

    def change(self, values: Mapping[str, object]) -> None:
        """Changes settings while the plant runs. Raises `SettingError`."""
        self._common.settings = self.settings.changed(values)
        self.servers.watch_windows()

    # --- time and report --------------------------------------------------------------------

    def advance(self) -> None:
        """Carries out what has become due by now."""
        self._common.timers.run(self.now())
        self.chats.remove_silent()

    def stood_still(self, seconds: float) -> None:
        """Whoever runs the plant was so much late."""
        self.suffering.longest_pause = max(self.suffering.longest_pause, seconds)

    def report(self) -> Report:
        """What the plant suffered since its start or the last `reset_report`."""
        s = self.suffering
        return Report(
            seconds=round(self.now() - s.since, 3),
            sessions_alive=self.chats.alive,
            sessions_without_server=self.servers.sessions_waiting(),
            sessions_lost=s.lost.total(),
            lost_by_cause=dict(s.lost),
            sessions_ended=s.ended.total(),
            ended_by_cause=dict(s.ended),
            restored=s.restored,
            without_server_seconds=spread(s.without_server),
            requests=s.requests,
            requests_by_operation=dict(s.by_operation),
            peak_requests_per_second=s.per_second.peak,
            peak_requests_per_100_ms=s.per_100_ms.peak,
            longest_pause_seconds=round(s.longest_pause, 4),
            requests_turned_away=s.turned_away,
            requests_faulted=s.faulted,
            requests_abandoned=s.abandoned,
            wrong_key_requests=s.wrong_key,
            previous_key_requests=s.previous_key,
            wrong_user_id_requests=s.wrong_user_id,
            wrong_alias_requests=s.wrong_alias,
            wrong_service_requests=s.wrong_service,
            incomplete_requests=s.incomplete,
            overlapping_requests=s.overlapping,
            overlapping_abandoned_requests=s.overlapping_abandoned,
            overlapping_cut_off_requests=s.overlapping_cut_off,
            repeated_at_once_requests=s.at_once,
            answers_lost=s.answers_lost,
            extra_answers=s.extra_answers,
            forgiven_key_requests=s.forgiven_key,
            refused_for_now=s.refused_for_now,
            unknown_chat_requests=s.unknown_chats,
            unreadable_requests=s.unreadable,
            unauthorised_requests=s.unauthorised,
            position_zero_requests=s.position_zero,
            refreshes_of_closed_chats=s.closed_refreshes,
            refreshes_of_closed_chats_max=s.closed_refreshes_max,
            doubled_messages=s.doubled_messages,
            pushes_sent=s.pushes_sent,
            pushes_failed=s.pushes_failed,
            pushes_swallowed=s.pushes_swallowed,
            pushes_resent=s.pushes_resent,
            pushes_unacknowledged=self._pushing.owing,
            pushes_resends_exhausted=s.resends_exhausted,
            pushes_ended_unacknowledged=s.ended_unacknowledged,
            acknowledged=s.acknowledged,
            acknowledgement_seconds=spread(s.acknowledgement),
        )

    def reset_report(self, *, timeline: bool = False) -> None:
        """Counts from here on; sessions and servers stay, and the timeline unless it is to begin anew as well."""
        if timeline:
            self._common.timeline = Timeline(self.now())
        self._common.suffering = Suffering(since=self.now())

    # --- requests ---------------------------------------------------------------------------

    def hit(self) -> None:
        """A request reached a GMS node, readable or not, whatever becomes of it."""
        now = self.now()
        s = self.suffering
        s.requests += 1
        s.per_second.add(now)
        s.per_100_ms.add(now)
        self.timeline.request(now)

    def arrive(
        self, received: Received, wanted: Callable[[], bool] = lambda: True, *, node: int | None = None
    ) -> Ticket:
        """A GMS node reads a request. `leave` must follow, whatever happens in between."""
        self.suffering.by_operation[received.operation.value or "requestChat"] += 1
        session = None if received.chat_id is None else self.sessions.get(received.chat_id)
        ticket = Ticket(received, session, wanted, node, arrived_at=self.now(), orphaned=self._client_gone)
        if session is not None:
            session.requests += 1
            session.refreshes_asked += received.operation is Operation.REFRESH
            self.suffering.at_once += session.lost is not None and self._at_once(session, session.lost)
            if session.in_flight:
                if any(self._sent_into(session, other) for other in session.in_flight):
                    self.suffering.overlapping += 1
                    session.overlapping += 1
                elif any(other.cut_off_at is not None for other in session.in_flight):
                    self.suffering.overlapping_cut_off += 1
                else:
                    self.suffering.overlapping_abandoned += 1
                session.in_flight.append(ticket)
            else:
                session.in_flight = [ticket]
        self.on_arrival(ticket)
        return ticket

    def queue(self, ticket: Ticket) -> None:
        """Sets the ticket's `delay`, or `refused` when too many wait already."""
        if not self._capacity.charge(ticket, self.settings, self.now()):
            self.suffering.turned_away += 1
            ticket.refused = NodeAnswer(b"Service Unavailable", 503, "text/plain")

    def serve(self, ticket: Ticket) -> NodeAnswer | None:
        """The Chat Server's answer; `None` while the session's Chat Server hangs: ask again later."""
        self._capacity.release(ticket)
        session = ticket.session
        if session is None:
            return self._serving.serve(ticket)
        known, refreshes = session.previous, session.closed_refreshes
        answer = self._serving.serve(ticket)
        if session.previous is not known:
            ticket.replaced = session.previous
        ticket.told_the_end = session.closed_refreshes > refreshes
        if ticket.orphaned and answer is not None:
            self.answered_to_nobody += 1
            self._untold(session, ticket)
        return answer

    def give_up(self, ticket: Ticket) -> NodeAnswer:
        """GMS stops waiting for a hung Chat Server."""
        assert ticket.session is not None
        return self._answers.retry(ticket.session, "Chat Server does not answer")

    def cut_off(self, ticket: Ticket) -> None:
        """A proxy in front of GMS has waited long enough and hung up on the client. GMS works on."""
        ticket.cut_off_at = self.now()

    def answer_lost(self, ticket: Ticket) -> None:
        """The client waited, the work was done, and the answer never came or cannot be read. What it said no
        client can know: until this one shows that it knows the newest key, the replaced one is good, and
        that the chat is over it has not been told."""
        self.suffering.answers_lost += 1
        session = ticket.session
        if session is None:
            return
        if ticket.cut_off_at is None:
            session.lost = LostAnswer(ticket.arrived_at, self.now())
        self._untold(session, ticket)

    def answer_perhaps_lost(self, ticket: Ticket) -> None:
        """The node died just after it gave the answer, and its end may have overtaken it: what it said the client may
        know, or not."""
        if ticket.session is not None:
            self._untold(ticket.session, ticket)

    @staticmethod
    def _untold(session: ChatSession, ticket: Ticket) -> None:
        if ticket.replaced is not None and ticket.replaced not in session.doubtful:
            session.doubtful = (*session.doubtful, ticket.replaced)
        if ticket.told_the_end:
            session.closed_refreshes -= 1
            ticket.told_the_end = False  # whatever else befalls this answer

    def leave(self, ticket: Ticket) -> None:
        """The request is no longer in flight."""
        self._capacity.release(ticket)
        if ticket.session is not None and ticket.session.in_flight is not None:
            ticket.session.in_flight.remove(ticket)
            if not ticket.session.in_flight:
                ticket.session.in_flight = None

    def push_done(self, *, delivered: bool, push: SentPush | None = None) -> None:
        """How a push that `send_push` was given went. GMS itself does not repeat it, so nobody can know a key
        that it alone announced and that was not taken: the one before is good until the client shows the newest."""
        session = None if push is None else self.sessions.get(push.chat_id)
        if push is not None:
            self.on_push_done(push, delivered)
        if not delivered:
            self.suffering.pushes_failed += 1
            if push and session and push.announced == session.secure_key:
                self._pushing.unannounced(session)
            return
        self.suffering.pushes_taken += 1
        if session is not None and session.ended is None:
            session.push_taken = True
            session.pushed_at = self.now()

    def _sent_into(self, session: ChatSession, other: Ticket) -> bool:
        """Whether a second request now is the client's fault: it waits for the first still, or sent again at
        once when it was hung up on."""
        if other.cut_off_at is None:
            return other.wanted()
        return self._at_once(session, LostAnswer(other.arrived_at, other.cut_off_at))

    def _at_once(self, session: ChatSession, lost: LostAnswer) -> bool:
        """Whether a request now is the repetition of one whose answer was lost. A push that the client may have
        seen since it asked is a reason of its own."""
        pushed = session.pushed_at >= lost.asked_at - AT_ONCE_SECONDS
        return self.now() - lost.at < AT_ONCE_SECONDS and not pushed
