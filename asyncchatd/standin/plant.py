"""The plant's logic: Chat Servers and the sessions in them. No I/O; the clock is handed in.

It behaves as protocol sections 2 to 4 say, and where those are silent, as hard on the client as they
allow: a client that breaks a rule loses customers here, and the report says so. A request takes
five steps, so that what happens while it waits is seen:

    arrive    GMS reads it; a second one of the same session in flight is counted
    queue     it takes its share of GMS' capacity, or is turned away
    serve     its Chat Server answers it, restoring the session if need be
    give_up   GMS waited too long for a hung Chat Server
    leave     the answer is out, or nobody will give one

`advance` lets time pass: resends, planned stops, silence and the end of restoration windows.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle

from asyncchatd.model import Ms, TokenNews, replace
from asyncchatd.standin.capacity import Capacity
from asyncchatd.standin.measure import Report, Suffering, Timeline, spread
from asyncchatd.standin.messages import write_reply
from asyncchatd.standin.parts import (
    ChatSession,
    LostAnswer,
    NodeAnswer,
    Phase,
    PlantServer,
    Previous,
    ServerProcess,
    Ticket,
)
from asyncchatd.standin.pushes import SentPush, planted_text, readable
from asyncchatd.standin.pushing import Common, Pushing, struck
from asyncchatd.standin.requests import Received
from asyncchatd.standin.settings import PlantSettings, Rotation
from asyncchatd.standin.transcript import (
    AGENT,
    CUSTOMER,
    asked_for,
    by_agent,
    by_customer,
    participant_left,
    tokens_of,
)
from asyncchatd.wire import ChatEvent, Operation, ReplyFault, event_kind

QUIT_SILENCE = 3
QUIT_BAD_KEY = 6

NOTICES = 500
NOTICES_EVERY = 0.02
"""Notices of a planned stop: so many sessions every so many seconds, 25,000 a second."""

LONG_TEXT = "Lorem ipsum dolor sit amet. " * 2_340
"""64 KiB."""

TWIN_OLDER_MS = 3_600_000

AT_ONCE_SECONDS = 0.1
"""A request that comes again within this time after a hang-up was sent at once."""

_MISLEADING = TokenNews(user_id="0000000000000000", secure_key="not-the-secure-key", alias="0")
_TRUE = frozenset({"true", "1", "yes", "on"})


class PlantError(Exception):
    """A command that cannot be carried out. Says what was expected."""


class Plant:
    """Chat Servers, the sessions in their memory, and what all of it suffers.

    `now` is a monotonic clock in seconds, `wall_ms` the time of day for `utcTime`. `send_push`
    gets every notification GMS sends; report back with `push_done`. `on_server_change` is called
    after a Chat Server changed its phase or its process.
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
        self._common = Common(settings or PlantSettings(), Suffering(since=now()), now)
        self._pushing = Pushing(self._common, lambda push: self.send_push(push))
        self.wall_ms = wall_ms
        self.send_push = send_push
        self.on_server_change: Callable[[PlantServer], None] = lambda server: None
        self.sessions: dict[str, ChatSession] = {}
        self.timeline = Timeline(now())
        self._with_push: OrderedDict[str, ChatSession] = OrderedDict()
        self._without_push: OrderedDict[str, ChatSession] = OrderedDict()
        self._turns: deque[ChatSession] = deque()
        self._dead: list[ServerProcess] = []
        self._alive = 0
        self._client_gone = False
        """Whether what arrives now was sent by a client that is dead."""
        self.answered_to_nobody = 0
        """Requests of dead clients whose work was done."""
        self._serial = secrets.randbelow(2**24)
        self._capacity = Capacity()
        self._token_fields = cycle(("secureKey", "userId", "alias", "chatId"))
        self._highest_pid = max(server.pid for server in self.settings.servers)
        self.servers: dict[str, PlantServer] = {}
        for part in self.settings.servers:
            server = PlantServer(part.name, part.app_dbid, part.health)
            self.servers[part.name] = server
            self._run(server, part.pid)

    @property
    def settings(self) -> PlantSettings:
        """The settings as they are now; `change` changes them."""
        return self._common.settings

    @property
    def suffering(self) -> Suffering:
        """What the plant has suffered since the report was last reset."""
        return self._common.suffering

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
        named = [self.server(name) for name in servers] or list(self.servers.values())
        takers = [server for server in named if server.phase is Phase.UP]
        if not takers:
            raise PlantError("no Chat Server is up to take new chats")
        settings = self.settings
        started = []
        for n in range(count):
            session = self._start_chat(
                takers[n % len(takers)], service or settings.service, subscribed=subscribe
            )
            if subscribe:
                session.device_id = f"device-{session.chat_id}"
                session.resend = settings.resend
                session.notify_requestor = settings.notify_requestor
            for _ in range(-(-transcript // len(LONG_TEXT))):
                self._add_event(session, by_agent("Message", LONG_TEXT))
            started.append(session)
        return started

    def end_chats(self, sessions: Iterable[ChatSession]) -> int:
        """The agent closes chats. Their next request sees the last words and `chatEnded`."""
        closed = 0
        for session in sessions:
            if session.ended is None:
                self._add_event(session, participant_left(AGENT, code=0))
                session.last_words = True
                self._end(session, "closed_by_agent")
                closed += 1
        return closed

    def say(self, session: ChatSession, text: str) -> bool:
        """An agent's message: an event, and a push if the session subscribed. False when the
        session's Chat Server cannot take it."""
        if session.ended is not None or session.process.silent_since is not None:
            return False
        planted = self._planted()
        event = self._add_event(
            session, by_agent("Message", text if planted is None else planted_text(planted))
        )
        if session.device_id is not None and self.settings.push_url is not None:
            self._pushing.push(session, "Message", event, planted=planted)
            self._pushing.owe(session)
        return True

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
                self._rotate(session)
                event = self._add_event(session, by_agent("Message", "One moment, please."))
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
            if session.ended is None and (target := self._taker(session.process.server)) is not None:
                self._restore(session, target)
                moved += 1
        return moved

    def some_sessions(self, count: int) -> Iterator[ChatSession]:
        """The next `count` live sessions, in turn: every session comes before any comes again."""
        for _ in range(min(count, self._alive)):
            while self._turns[0].ended is not None:
                self._turns.popleft()
            self._turns.rotate(-1)
            yield self._turns[-1]

    def session(self, chat_id: str) -> ChatSession:
        """Raises `PlantError` for one that never was."""
        try:
            return self.sessions[chat_id]
        except KeyError:
            raise PlantError("no such chat") from None

    # --- faults -----------------------------------------------------------------------------

    def server(self, name: str) -> PlantServer:
        """Raises `PlantError` for an unknown name."""
        try:
            return self.servers[name]
        except KeyError:
            raise PlantError(f"no such Chat Server; there are {', '.join(self.servers)}") from None

    def kill(self, name: str) -> None:
        """The process dies: ports closed, memory gone."""
        server = self.server(name)
        if server.phase is not Phase.DOWN:
            self._die(server)
            self.on_server_change(server)

    def start(self, name: str, *, pid: int | None = None) -> None:
        """Starts a Chat Server that is down, with a pid never used before unless one is given."""
        server = self.server(name)
        if server.phase is Phase.DOWN:
            self._run(server, pid)
            self.on_server_change(server)

    def restart(self, name: str, *, downtime: float = 0.0, same_pid: bool = False) -> None:
        """Dies and comes back after `downtime` seconds. `same_pid` is the container's way, where it
        is always 1."""
        server = self.server(name)
        pid = server.process.pid if same_pid else None
        if downtime > 0:
            self.kill(name)
            self._common.timers.at(self.now() + downtime, partial(self.start, name, pid=pid))
            return
        if server.phase is not Phase.DOWN:
            self._die(server)
        self._run(server, pid)
        self.on_server_change(server)

    def hang(self, name: str) -> None:
        """The process stops answering on all its ports; its memory stays."""
        server = self.server(name)
        if server.phase not in (Phase.UP, Phase.STOPPING):
            raise PlantError(f"{name} is {server.phase.value}, only one that is up can hang")
        server.phase = Phase.HUNG
        server.process.silent_since = self.now()
        self.on_server_change(server)

    def resume(self, name: str) -> None:
        """A hung process goes on as if nothing had been."""
        server = self.server(name)
        if server.phase is not Phase.HUNG:
            raise PlantError(f"{name} is {server.phase.value}, not hung")
        server.phase = Phase.UP
        server.process.silent_since = None
        self.on_server_change(server)

    def slow(self, name: str, seconds: float) -> None:
        """Every answer of this Chat Server takes `seconds` longer; 0 ends it."""
        self.server(name).slow = seconds

    def stop(self, name: str, *, delay: float | None = None) -> int:
        """A planned stop: the notice to each of its sessions now, the stop after the delay. Returns
        how many sessions are told."""
        server = self.server(name)
        if server.phase is not Phase.UP:
            raise PlantError(f"{name} is {server.phase.value}, only one that is up can be stopped")
        server.phase = Phase.STOPPING
        notified = self._announce_stop(server.process) if self.settings.shutdown_notify else 0
        due = self.now() + (self.settings.stop_delay if delay is None else delay)
        self._common.timers.at(due, partial(self._carry_out_stop, server.process))
        self.on_server_change(server)
        return notified

    def zero_counters(self, name: str) -> None:
        """Its cumulative counters begin anew, its process does not (an emptied `log-output-content`)."""
        self.server(name).process.opened = 0

    def share_address(self, name: str, shared: bool = True) -> None:
        """Its health URL is a balancer's: every other page is that of another process."""
        server = self.server(name)
        server.twin = None
        if shared:
            self._highest_pid += 1
            server.twin = ServerProcess(server, self._highest_pid, server.process.started_at - TWIN_OLDER_MS)

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

    def change(self, values: Mapping[str, object]) -> None:
        """Changes settings while the plant runs. Raises `SettingError`."""
        self._common.settings = self.settings.changed(values)
        for process in self._dead:
            self._watch_window(process)

    # --- time and report --------------------------------------------------------------------

    def advance(self) -> None:
        """Carries out what has become due by now."""
        now = self.now()
        self._common.timers.run(now)
        self._remove_silent(self._with_push, now - self.settings.flex_push_timeout)
        self._remove_silent(self._without_push, now - self.settings.flex_disconnect_timeout)

    def stood_still(self, seconds: float) -> None:
        """Whoever runs the plant was so much late."""
        self.suffering.longest_pause = max(self.suffering.longest_pause, seconds)

    def report(self) -> Report:
        """What the plant suffered since its start or the last `reset_report`."""
        s = self.suffering
        waiting = sum(len(process.sessions) for process in self._dead) + sum(
            len(server.process.sessions) for server in self.servers.values() if server.phase is Phase.HUNG
        )
        return Report(
            seconds=round(self.now() - s.since, 3),
            sessions_alive=self._alive,
            sessions_without_server=waiting,
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
            pushes_sent=s.pushes_sent,
            pushes_failed=s.pushes_failed,
            pushes_resent=s.pushes_resent,
            pushes_unacknowledged=self._pushing.owing,
            pushes_resends_exhausted=s.resends_exhausted,
            pushes_ended_unacknowledged=s.ended_unacknowledged,
            acknowledged=s.acknowledged,
            acknowledgement_seconds=spread(s.acknowledgement),
        )

    def reset_report(self) -> None:
        """Counts from here on; sessions, servers and the timeline stay."""
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

    def arrive(self, received: Received, wanted: Callable[[], bool] = lambda: True) -> Ticket:
        """GMS reads a request. `leave` must follow, whatever happens in between."""
        self.suffering.by_operation[received.operation.value or "requestChat"] += 1
        session = None if received.chat_id is None else self.sessions.get(received.chat_id)
        ticket = Ticket(received, session, wanted, arrived_at=self.now(), orphaned=self._client_gone)
        if session is not None:
            self.suffering.at_once += session.lost is not None and self._at_once(session, session.lost)
            if session.in_flight:
                if any(self._sent_into(session, other) for other in session.in_flight):
                    self.suffering.overlapping += 1
                elif any(other.cut_off_at is not None for other in session.in_flight):
                    self.suffering.overlapping_cut_off += 1
                else:
                    self.suffering.overlapping_abandoned += 1
                session.in_flight.append(ticket)
            else:
                session.in_flight = [ticket]
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
            return self._serve(ticket)
        known, refreshes = session.previous, session.closed_refreshes
        answer = self._serve(ticket)
        if session.previous is not known:
            ticket.replaced = session.previous
        ticket.told_the_end = session.closed_refreshes > refreshes
        if ticket.orphaned and answer is not None:
            self.answered_to_nobody += 1
            self._untold(session, ticket)
        return answer

    def _serve(self, ticket: Ticket) -> NodeAnswer | None:
        received, session = ticket.received, ticket.session
        if received.operation is Operation.REQUEST_CHAT:
            return self._request_chat(received)
        if session is None:
            self.suffering.unknown_chats += 1
            return self._closed(received.chat_id, "no such chat")
        if not received.news.complete():
            self.suffering.incomplete += 1
            return self._refused(session, "userId, secureKey and alias are required")
        self._expire_if_late(session)
        if session.ended is not None:
            return self._after_the_end(session, received)
        place = self._place(session)
        if place is None:
            return self._retry(session, "no Chat Server is available")
        if place.server.phase is Phase.HUNG:
            return None
        if place is not session.process and self._cannot_restore_yet(session):
            self.suffering.refused_for_now += 1
            return self._refused(session, "the transcript cannot be loaded")
        if not ticket.wanted():
            self.suffering.abandoned += 1
        if (refusal := self._check_identity(session, received)) is not None:
            return refusal
        position = _position(received.fields.get("transcriptPosition"))
        if position == 0:
            self.suffering.position_zero += 1
        if position != 0 or self.settings.position_zero_counts:
            if place is not session.process:
                self._restore(session, place)
            self._heard_of(session)
        elif session.process.dead:
            return self._retry(session, "the session is not restored by this request")
        return self._carry_out(session, received, position)

    def give_up(self, ticket: Ticket) -> NodeAnswer:
        """GMS stops waiting for a hung Chat Server."""
        assert ticket.session is not None
        return self._retry(ticket.session, "Chat Server does not answer")

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
        if not delivered:
            self.suffering.pushes_failed += 1
            if push and session and push.announced == session.secure_key and session.previous is not None:
                session.doubtful = (*session.doubtful, session.previous)
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

    # --- where a session lives --------------------------------------------------------------

    def _cannot_restore_yet(self, session: ChatSession) -> bool:
        process = session.process
        return process.dead and self.now() - process.died_at < self.settings.restoration_refused_for

    def _place(self, session: ChatSession) -> ServerProcess | None:
        """The process that serves the session's next request: its own, or the one that restores it;
        `None` when there is none."""
        process = session.process
        server = process.server
        if process.dead:
            return self._taker(server)
        if server.phase is Phase.STOPPING:
            return self._taker(server) or process
        if server.phase is Phase.HUNG:
            limit = self.settings.hang_detected_after
            if limit is not None and self.now() - (process.silent_since or 0.0) >= limit:
                return self._taker(server)
        return process

    def _taker(self, gone: PlantServer) -> ServerProcess | None:
        """The live Chat Server with the fewest sessions; the one that lost it only when it is back
        and alone."""
        live = [s.process for s in self.servers.values() if s.phase is Phase.UP]
        others = [process for process in live if process.server is not gone]
        return min(others or live, key=lambda process: len(process.sessions), default=None)

    def _restore(self, session: ChatSession, target: ServerProcess) -> None:
        now = self.now()
        old = session.process
        old.sessions.pop(session.chat_id, None)
        target.sessions[session.chat_id] = session
        target.opened += 1
        session.process = target
        if session.alias != target.server.app_dbid:
            session.aliases = (*session.aliases, session.alias)
            session.alias = target.server.app_dbid
        session.idle[session.chat_id] = session
        session.idle.move_to_end(session.chat_id)
        s = self.suffering
        s.restored += 1
        s.without_server.append(now - (now if old.silent_since is None else old.silent_since))
        self.timeline.restored(now)
        # A new Chat Server counts the silence anew. New tokens wait for the reply that tells them,
        # and there is one rotation per reply: the client could not know of one in between.
        session.last_request = now
        session.rotate_next |= self.settings.rotate in (Rotation.RESTORE, Rotation.ALWAYS)

    def _run(self, server: PlantServer, pid: int | None) -> None:
        if pid is None:
            self._highest_pid += 1
            pid = self._highest_pid
        server.process = ServerProcess(server, pid, started_at=self.wall_ms())
        server.phase = Phase.UP

    def _die(self, server: PlantServer) -> None:
        process = server.process
        if process.silent_since is None:
            process.silent_since = self.now()
        process.dead = True
        server.phase = Phase.DOWN
        for session in process.sessions.values():
            # The timers of silence died with the memory; the restoration window counts from here.
            session.idle.pop(session.chat_id, None)
        process.died_at = self.now()
        if process.sessions:
            self._dead.append(process)
            self._watch_window(process)

    def _watch_window(self, process: ServerProcess) -> None:
        due = process.died_at + self.settings.restoration_window
        self._common.timers.at(due, partial(self._end_window, process))

    def _end_window(self, process: ServerProcess) -> None:
        if self.now() < process.died_at + self.settings.restoration_window:
            return  # the window was made longer meanwhile, and that set a timer of its own
        for session in list(process.sessions.values()):
            self._end(session, "restoration_window", lost=True)
        if process in self._dead:
            self._dead.remove(process)

    def _expire_if_late(self, session: ChatSession) -> None:
        """A request can come between the end of the window and the next `advance`."""
        process = session.process
        late = process.dead and self.now() - process.died_at >= self.settings.restoration_window
        if late and session.ended is None:
            self._end(session, "restoration_window", lost=True)

    def _announce_stop(self, process: ServerProcess) -> int:
        """Notices go out in portions: all at once, those of 30,000 sessions would hold the plant up
        for most of a second."""
        subscribed = [session for session in process.sessions.values() if session.device_id is not None]
        if self.settings.push_url is None:
            return 0
        self._push_notices(process, subscribed[:NOTICES])
        for begin in range(NOTICES, len(subscribed), NOTICES):
            due = self.now() + begin / NOTICES * NOTICES_EVERY
            portion = subscribed[begin : begin + NOTICES]
            self._common.timers.at(due, partial(self._push_notices, process, portion))
        return len(subscribed)

    def _push_notices(self, process: ServerProcess, sessions: Iterable[ChatSession]) -> None:
        for session in sessions:
            if session.ended is None and session.process is process and not process.dead:
                event = self._add_event(
                    session, replace(participant_left(CUSTOMER), quit_reason_advice="reconnect")
                )
                self._pushing.push(
                    session, "ParticipantLeft", event, form=readable(self._pushing.next_form())
                )

    def _carry_out_stop(self, process: ServerProcess) -> None:
        if process.server.process is process and not process.dead:
            self.kill(process.server.name)

    # --- tokens -----------------------------------------------------------------------------

    def _check_identity(self, session: ChatSession, received: Received) -> NodeAnswer | None:
        """Danger 1: a request with a wrong secure key removes the customer at once."""
        news, previous, s = received.news, session.previous, self.suffering
        if received.service != session.service:
            s.wrong_service += 1
        if news.alias != session.alias and news.alias not in session.aliases:
            s.wrong_alias += 1
        graced = previous is not None and self.now() < previous.until
        doubted = any(news.secure_key == each.secure_key for each in session.doubtful)
        if news.secure_key == session.secure_key:
            session.doubtful = ()
        elif doubted:
            s.forgiven_key += 1
        else:
            replaced = previous is not None and news.secure_key == previous.secure_key
            if not (replaced and graced):
                s.wrong_key += 1
                s.previous_key += replaced
                self._throw_out(session)
                return self._after_the_end(session, received)
        if (
            not doubted
            and news.user_id != session.user_id
            and not (graced and previous is not None and news.user_id == previous.user_id)
        ):
            s.wrong_user_id += 1
            return self._refused(session, "no such user in this chat")
        return None

    def _throw_out(self, session: ChatSession) -> None:
        event = self._add_event(session, participant_left(CUSTOMER, code=QUIT_BAD_KEY))
        self._tell_requestor(session, event)
        self._end(session, "wrong_key", lost=True)

    def _rotate(self, session: ChatSession) -> None:
        until = self.now() + self.settings.previous_key_grace
        session.previous = Previous(session.user_id, session.secure_key, until, self.wall_ms())
        session.secure_key = secrets.token_hex(10)
        if self.settings.rotate_user_id:
            session.user_id = self._new_user_id(session.process.server)
        session.rotate_next = False

    def _new_user_id(self, server: PlantServer) -> str:
        """Hex of DBID, unix seconds and a counter, as real ones look (protocol section 2)."""
        self._serial += 1
        dbid = int(server.app_dbid) if server.app_dbid.isdecimal() else 0
        return f"{dbid & 0xFFFF:04X}{self.wall_ms() // 1000 & 0xFFFFFFFF:08X}{self._serial & 0xFFFF:04X}"

    # --- the operations ---------------------------------------------------------------------

    def _request_chat(self, received: Received) -> NodeAnswer:
        takers = [server for server in self.servers.values() if server.phase is Phase.UP]
        if not takers:
            return NodeAnswer(
                write_reply(1, errors=[ReplyFault(code=1, advice="no Chat Server is available")])
            )
        server = min(takers, key=lambda candidate: len(candidate.process.sessions))
        wishes = received.user_data
        device_id = wishes.get("GCTI_GMS_PushDeviceId")
        subscribed = _wished(wishes, "GCTI_Chat_PushSubscribe") and bool(device_id)
        names = (received.fields.get("firstName"), received.fields.get("lastName"))
        session = self._start_chat(
            server,
            received.service,
            subscribed=subscribed,
            nickname=received.fields.get("nickname") or " ".join(filter(None, names)) or "Customer",
        )
        session.user_data = wishes
        if subscribed:
            session.device_id = device_id
            session.resend = _wished(wishes, "GCTI_GMS_PushResend")
            session.payload = _wished(wishes, "GCTI_GMS_PushIncludePayload")
            session.notify_requestor = _wished(wishes, "GCTI_GMS_NotifyRequestor")
        if text := received.fields.get("text"):
            self._add_event(session, by_customer(session, "Message", text))
        return self._answered(session, 1)

    def _start_chat(
        self, server: PlantServer, service: str, *, subscribed: bool, nickname: str = "Customer"
    ) -> ChatSession:
        self._serial += 1
        session = ChatSession(
            chat_id=f"{self._serial:08X}{secrets.token_hex(4).upper()}",
            service=service,
            user_id=self._new_user_id(server),
            secure_key=secrets.token_hex(10),
            alias=server.app_dbid,
            process=server.process,
            idle=self._with_push if subscribed else self._without_push,
            last_request=self.now(),
            nickname=nickname,
        )
        self._add_event(session, by_customer(session, "ParticipantJoined"))
        self.sessions[session.chat_id] = session
        server.process.sessions[session.chat_id] = session
        server.process.opened += 1
        session.idle[session.chat_id] = session
        self._turns.append(session)
        self._alive += 1
        return session

    def _carry_out(self, session: ChatSession, received: Received, position: int | None) -> NodeAnswer:
        """The operation itself. The session is known to live and the client to be who it says."""
        fields = received.fields
        match received.operation:
            case Operation.REFRESH:
                session.refreshes += 1
                session.next_index += bool(fields.get("message"))  # typing: an index, but no event kept
            case Operation.SEND:
                event = by_customer(session, "Message", fields.get("message", ""))
                self._add_event(session, replace(event, message_type=fields.get("messageType")))
            case Operation.START_TYPING | Operation.STOP_TYPING:
                session.next_index += 1
            case Operation.DISCONNECT:
                self._add_event(session, participant_left(CUSTOMER, code=0))
                session.last_words = True
                self._end(session, "disconnected")
                return self._after_the_end(session, received)
            case Operation.PUSH_URL:
                self._add_event(session, by_customer(session, "PushUrl", fields.get("pushUrl", "")))
            case Operation.UPDATE_NICKNAME:
                session.nickname = fields.get("nickname") or session.nickname
                self._add_event(session, by_customer(session, "NicknameUpdated"))
            case Operation.CUSTOM_NOTICE:
                self._add_event(session, by_customer(session, "CustomNotice", fields.get("message")))
            case Operation.UPDATE_DATA:
                session.user_data = {**(session.user_data or {}), **received.user_data}
            case Operation.READ_RECEIPT:
                pass
            case _:
                return self._carry_out_file(session, received, position)
        self._rotate_if_due(session, received.operation)
        return self._answered(session, position, extra=self._placeholder(session, received.news))

    def _carry_out_file(self, session: ChatSession, received: Received, position: int | None) -> NodeAnswer:
        files = session.files or {}
        extra: dict[str, str] = {}
        match received.operation:
            case Operation.FILE_LIMITS:
                extra = {"upload-max-files": "10", "upload-max-file-size": "10485760"}
            case Operation.FILE_UPLOAD:
                if not received.files:
                    return self._refused(session, "expected a part with a file")
                extra["file-id"] = secrets.token_hex(8)
                uploaded = next(iter(received.files.values()))
                session.files = {**files, extra["file-id"]: uploaded}
                self._add_event(session, by_customer(session, "FileUploaded", uploaded[0]))
            case _:
                if (file := files.get(received.file_id or "")) is None:
                    return self._refused(session, "no such file")
                if received.operation is Operation.FILE_DOWNLOAD:
                    return NodeAnswer(file[1], content_type="application/octet-stream")
                session.files = {name: kept for name, kept in files.items() if name != received.file_id}
                self._add_event(session, by_customer(session, "FileDeleted", file[0]))
        self._rotate_if_due(session, received.operation)
        return self._answered(session, position, extra={"userData": extra})

    def _rotate_if_due(self, session: ChatSession, operation: Operation) -> None:
        """A download never comes here: its answer has no room for new tokens."""
        settings = self.settings
        by_count = (
            operation is Operation.REFRESH
            and settings.rotate in (Rotation.REFRESH, Rotation.ALWAYS)
            and session.refreshes % settings.rotate_every == 0
        )
        if by_count or session.rotate_next:
            self._rotate(session)

    def _add_event(self, session: ChatSession, event: ChatEvent) -> ChatEvent:
        """Stamps and keeps an event. Every fourth index is left out, as typing would."""
        index = session.next_index + (session.next_index % 4 == 3)
        kept = replace(event, kind=event_kind(event.type), index=index, utc_time=self.wall_ms())
        session.events.append(kept)
        session.next_index = index + 1
        return kept

    # --- answers ----------------------------------------------------------------------------

    def _answered(
        self, session: ChatSession, position: int | None, extra: Mapping[str, object] | None = None
    ) -> NodeAnswer:
        return NodeAnswer(
            write_reply(
                0,
                tokens_of(session),
                next_position=session.next_index,
                chat_ended=session.ended is not None,
                events=asked_for(session, position),
                extra=extra,
            )
        )

    def _after_the_end(self, session: ChatSession, received: Received) -> NodeAnswer:
        """Danger 2: each Refresh of a closed chat makes Chat Server try a restoration that fails. The
        first may be how the client learns of the end; the report shows the largest number."""
        if received.operation is Operation.REFRESH:
            session.closed_refreshes += 1
            session.closed_at = self.wall_ms()
            s = self.suffering
            s.closed_refreshes += 1
            s.closed_refreshes_max = max(s.closed_refreshes_max, session.closed_refreshes)
        if session.last_words:
            session.last_words = False
            return self._answered(session, _position(received.fields.get("transcriptPosition")))
        return self._closed(session.chat_id, "the chat is closed")

    def _closed(self, chat_id: str | None, advice: str) -> NodeAnswer:
        return self._error(2, chat_id, ReplyFault(code=249, advice=advice), chat_ended=True)

    def _refused(self, session: ChatSession, advice: str) -> NodeAnswer:
        return self._error(2, session.chat_id, ReplyFault(code=217, advice=advice), chat_ended=None)

    def _retry(self, session: ChatSession, advice: str) -> NodeAnswer:
        """statusCode 1: a client that trusts its `chatEnded` gives a live chat up."""
        ended = True if self.settings.misleading_errors else None
        return self._error(1, session.chat_id, ReplyFault(code=198, advice=advice), chat_ended=ended)

    def _error(
        self, status_code: int, chat_id: str | None, fault: ReplyFault, *, chat_ended: bool | None
    ) -> NodeAnswer:
        misleading = self.settings.misleading_errors
        news = replace(_MISLEADING, chat_id=chat_id) if misleading else TokenNews(chat_id)
        position = 1 if misleading else None
        return NodeAnswer(
            write_reply(status_code, news, next_position=position, chat_ended=chat_ended, errors=[fault])
        )

    # --- silence and ends -------------------------------------------------------------------

    def _heard_of(self, session: ChatSession) -> None:
        """Any request of the client ends its silence and acknowledges what was pushed."""
        session.last_request = self.now()
        session.push_taken = False
        session.idle.move_to_end(session.chat_id)
        if (owed := self._pushing.settle(session)) is not None:
            self.suffering.acknowledged += 1
            self.suffering.acknowledgement.append(session.last_request - owed.since)

    def _remove_silent(self, idle: OrderedDict[str, ChatSession], before: float) -> None:
        """The longest silent stand first, so this looks at one session more than it removes."""
        while idle:
            session = next(iter(idle.values()))
            if session.last_request > before:
                return
            event = self._add_event(session, participant_left(CUSTOMER, code=QUIT_SILENCE))
            self._tell_requestor(session, event)
            self._end(session, "silence", lost=True)

    def _tell_requestor(self, session: ChatSession, event: ChatEvent) -> None:
        if session.notify_requestor and session.device_id and self.settings.push_url is not None:
            self._pushing.push(session, event.type, event)

    def _end(self, session: ChatSession, cause: str, *, lost: bool = False) -> None:
        session.ended = cause
        session.process.sessions.pop(session.chat_id, None)
        session.idle.pop(session.chat_id, None)
        self._alive -= 1
        (self.suffering.lost if lost else self.suffering.ended)[cause] += 1
        if self._pushing.settle(session) is not None:
            self.suffering.ended_unacknowledged += 1

    # --- what is no token ---------------------------------------------------------------------

    def _placeholder(self, session: ChatSession, known: TokenNews) -> Mapping[str, object] | None:
        """Something in a token's place, where the client knows the token already."""
        tokens = tokens_of(session)
        if known != tokens or not struck(self.settings.placeholder_rate):
            return None
        return {next(self._token_fields): self._common.placeholder()}

    def _planted(self) -> TokenNews | None:
        """Another chat's tokens, for a participant to write into this one."""
        if not struck(self.settings.planted_rate):
            return None
        return next((tokens_of(session) for session in self.some_sessions(1)), None)


def _position(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _wished(user_data: Mapping[str, str], key: str) -> bool:
    return user_data.get(key, "").lower() in _TRUE
