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
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from asyncchatd.model import Ms, TokenNews
from asyncchatd.standin.measure import Report, Suffering, Timeline, spread
from asyncchatd.standin.parts import (
    Answer,
    ChatServer,
    ChatSession,
    Owed,
    Phase,
    Previous,
    Process,
    Ticket,
    Timers,
)
from asyncchatd.standin.pushes import Push, PushForm, push_body
from asyncchatd.standin.settings import PlantSettings, Rotation
from asyncchatd.wire.chat_api import (
    Event,
    Operation,
    Received,
    ReplyFault,
    event_kind,
    write_reply,
)

QUIT_SILENCE = 3
QUIT_BAD_KEY = 6
CUSTOMER = 1
AGENT = 2

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
        send_push: Callable[[Push], None] = lambda push: None,
    ) -> None:
        self.settings = settings or PlantSettings()
        self.now = now
        self.wall_ms = wall_ms
        self.send_push = send_push
        self.on_server_change: Callable[[ChatServer], None] = lambda server: None
        self.sessions: dict[str, ChatSession] = {}
        self.suffering = Suffering(since=now())
        self.timeline = Timeline(now())
        self._timers = Timers()
        self._with_push: OrderedDict[str, ChatSession] = OrderedDict()
        self._without_push: OrderedDict[str, ChatSession] = OrderedDict()
        self._turns: deque[ChatSession] = deque()
        self._dead: list[Process] = []
        self._alive = 0
        self._owing = 0
        self._pushes = 0
        self._serial = secrets.randbelow(2**24)
        self._busy_until = 0.0
        self._queued = 0
        self._highest_pid = max(server.pid for server in self.settings.servers)
        self.servers: dict[str, ChatServer] = {}
        for part in self.settings.servers:
            server = ChatServer(part.name, part.app_dbid, part.health)
            self.servers[part.name] = server
            self._run(server, part.pid)

    # --- chats and agents -------------------------------------------------------------------

    def start_chats(
        self,
        count: int,
        *,
        service: str | None = None,
        servers: Sequence[str] = (),
        subscribe: bool = True,
    ) -> list[ChatSession]:
        """Starts chats on the named Chat Servers in turn, on all that are up when none is named."""
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
            started.append(session)
        return started

    def end_chats(self, sessions: Iterable[ChatSession]) -> int:
        """The agent closes chats. Their next request sees the last words and `chatEnded`."""
        closed = 0
        for session in sessions:
            if session.ended is None:
                self._add_event(session, _leave(AGENT, code=0))
                session.last_words = True
                self._end(session, "closed_by_agent")
                closed += 1
        return closed

    def say(self, session: ChatSession, text: str) -> bool:
        """An agent's message: an event, and a push if the session subscribed. False when the
        session's Chat Server cannot take it."""
        if session.ended is not None or session.process.silent_since is not None:
            return False
        event = self._add_event(
            session,
            Event(type="Message", participant_id=AGENT, participant_type="Agent", nickname="Agent", text=text),
        )
        if session.device_id is not None and self.settings.push_url is not None:
            self._push(session, "Message", event)
            self._owe(session)
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
                event = self._add_event(session, Event(type="Notice"))
                self._push(session, "Notice", event, form=forms[rotated % len(forms)])
                self._owe(session)
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
            self._push(session, "Message", event, form=forms[pushed % len(forms)], tokens=tokens)
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

    def server(self, name: str) -> ChatServer:
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
            self._timers.at(self.now() + downtime, partial(self.start, name, pid=pid))
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
        how many notices were pushed."""
        server = self.server(name)
        if server.phase is not Phase.UP:
            raise PlantError(f"{name} is {server.phase.value}, only one that is up can be stopped")
        server.phase = Phase.STOPPING
        server.stays = self.now() + (self.settings.stop_delay if delay is None else delay)
        notified = self._announce_stop(server) if self.settings.shutdown_notify else 0
        self._timers.at(server.stays, partial(self._carry_out_stop, server.process))
        self.on_server_change(server)
        return notified

    def change(self, values: Mapping[str, object]) -> None:
        """Changes settings while the plant runs. Raises `SettingError`."""
        self.settings = self.settings.changed(values)
        for process in self._dead:
            self._watch_window(process)

    # --- time and report --------------------------------------------------------------------

    def advance(self) -> None:
        """Carries out what has become due by now."""
        now = self.now()
        self._timers.run(now)
        self._remove_silent(self._with_push, now - self.settings.flex_push_timeout)
        self._remove_silent(self._without_push, now - self.settings.flex_disconnect_timeout)

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
            unknown_chat_requests=s.unknown_chats,
            unreadable_requests=s.unreadable,
            unauthorised_requests=s.unauthorised,
            position_zero_requests=s.position_zero,
            refreshes_of_closed_chats=s.closed_refreshes,
            refreshes_of_closed_chats_max=s.closed_refreshes_max,
            pushes_sent=s.pushes_sent,
            pushes_failed=s.pushes_failed,
            pushes_resent=s.pushes_resent,
            pushes_unacknowledged=self._owing,
            pushes_resends_exhausted=s.resends_exhausted,
            pushes_ended_unacknowledged=s.ended_unacknowledged,
            acknowledged=s.acknowledged,
            acknowledgement_seconds=spread(s.acknowledgement),
        )

    def reset_report(self) -> None:
        """Counts from here on; sessions, servers and the timeline stay."""
        self.suffering = Suffering(since=self.now())

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
        ticket = Ticket(received, session, wanted)
        if session is not None:
            if session.in_flight:
                if any(other.wanted() for other in session.in_flight):
                    self.suffering.overlapping += 1
                else:
                    self.suffering.overlapping_abandoned += 1
                session.in_flight.append(ticket)
            else:
                session.in_flight = [ticket]
        return ticket

    def queue(self, ticket: Ticket) -> None:
        """Sets the ticket's `delay`, or `refused` when too many wait already.

        The work is charged now: a client that gives up does not give the capacity back, which is
        what makes an overload last (protocol section 2, danger 3).
        """
        settings = self.settings
        session = ticket.session
        ticket.delay = settings.latency
        if session is not None:
            ticket.delay += session.process.server.slow
        if settings.gms_capacity is None:
            return
        if self._queued >= settings.gms_queue:
            self.suffering.turned_away += 1
            ticket.refused = Answer(b"Service Unavailable", 503, "text/plain")
            return
        restoring = session is not None and session.ended is None and session.process.dead
        work = (settings.restore_cost if restoring else 1.0) / settings.gms_capacity
        now = self.now()
        self._busy_until = max(now, self._busy_until) + work
        ticket.delay += self._busy_until - now
        ticket.queued = True
        self._queued += 1

    def serve(self, ticket: Ticket) -> Answer | None:
        """The Chat Server's answer; `None` while the session's Chat Server hangs: ask again later."""
        self._unqueue(ticket)
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

    def give_up(self, ticket: Ticket) -> Answer:
        """GMS stops waiting for a hung Chat Server."""
        assert ticket.session is not None
        return self._retry(ticket.session, "Chat Server does not answer")

    def leave(self, ticket: Ticket) -> None:
        """The request is no longer in flight."""
        self._unqueue(ticket)
        if ticket.session is not None and ticket.session.in_flight is not None:
            ticket.session.in_flight.remove(ticket)
            if not ticket.session.in_flight:
                ticket.session.in_flight = None

    def push_done(self, *, delivered: bool) -> None:
        """How a push that `send_push` was given went. GMS itself does not repeat it."""
        if not delivered:
            self.suffering.pushes_failed += 1

    # --- where a session lives --------------------------------------------------------------

    def _place(self, session: ChatSession) -> Process | None:
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

    def _taker(self, gone: ChatServer) -> Process | None:
        """The live Chat Server with the fewest sessions; the one that lost it only when it is back
        and alone."""
        live = [s.process for s in self.servers.values() if s.phase is Phase.UP]
        others = [process for process in live if process.server is not gone]
        return min(others or live, key=lambda process: len(process.sessions), default=None)

    def _restore(self, session: ChatSession, target: Process) -> None:
        now = self.now()
        old = session.process
        old.sessions.pop(session.chat_id, None)
        target.sessions[session.chat_id] = session
        session.process = target
        if session.alias != target.server.app_dbid:
            session.aliases = (*session.aliases, session.alias)
            session.alias = target.server.app_dbid
        session.idle[session.chat_id] = session
        s = self.suffering
        s.restored += 1
        s.without_server.append(now - (now if old.silent_since is None else old.silent_since))
        self.timeline.restored(now)
        if self.settings.rotate in (Rotation.RESTORE, Rotation.ALWAYS):
            self._rotate(session)

    def _run(self, server: ChatServer, pid: int | None) -> None:
        if pid is None:
            self._highest_pid += 1
            pid = self._highest_pid
        server.process = Process(server, pid, self.now())
        server.phase = Phase.UP

    def _die(self, server: ChatServer) -> None:
        process = server.process
        if process.silent_since is None:
            process.silent_since = self.now()
        process.dead = True
        server.phase = Phase.DOWN
        for session in process.sessions.values():
            # The timers of silence died with the memory; the restoration window counts from here.
            session.idle.pop(session.chat_id, None)
        if process.sessions:
            process.died_at = self.now()
            self._dead.append(process)
            self._watch_window(process)
