"""The Chat Servers of a plant: what befalls them, and which of them serves a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from asyncchatd.model import replace
from asyncchatd.standin.plant.chats import Chats
from asyncchatd.standin.plant.parts import ChatSession, Phase, PlantError, PlantServer, ServerProcess
from asyncchatd.standin.plant.pushing import Common, Pushing
from asyncchatd.standin.plant.transcript import CUSTOMER, participant_left
from asyncchatd.standin.pushes import readable
from asyncchatd.standin.settings import Rotation

NOTICES = 500
NOTICES_EVERY = 0.02
"""Notices of a planned stop: so many sessions every so many seconds, 25,000 a second."""

TWIN_OLDER_MS = 3_600_000


class ChatServers(Mapping[str, PlantServer]):
    """The Chat Servers by name. `on_change` is called after one changed its phase or its process."""

    def __init__(self, common: Common, chats: Chats, pushing: Pushing) -> None:
        self._common = common
        self._chats = chats
        self._pushing = pushing
        self.on_change: Callable[[PlantServer], None] = lambda server: None
        self._dead: list[ServerProcess] = []
        self._highest_pid = max(server.pid for server in common.settings.servers)
        self._servers: dict[str, PlantServer] = {}
        for part in common.settings.servers:
            server = PlantServer(part.name, part.app_dbid, part.health)
            self._servers[part.name] = server
            self._run(server, part.pid)

    def __getitem__(self, name: str) -> PlantServer:
        return self._servers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)

    def named(self, name: str) -> PlantServer:
        """Raises `PlantError` for an unknown name."""
        try:
            return self._servers[name]
        except KeyError:
            raise PlantError(f"no such Chat Server; there are {', '.join(self._servers)}") from None

    def kill(self, name: str) -> None:
        """The process dies: ports closed, memory gone."""
        server = self.named(name)
        if server.phase is not Phase.DOWN:
            self._die(server)
            self.on_change(server)

    def start(self, name: str, *, pid: int | None = None) -> None:
        """Starts a Chat Server that is down, with a pid never used before unless one is given."""
        server = self.named(name)
        if server.phase is Phase.DOWN:
            self._run(server, pid)
            self.on_change(server)

    def restart(self, name: str, *, downtime: float = 0.0, same_pid: bool = False) -> None:
        """Dies and comes back after `downtime` seconds. `same_pid` is the container's way, where it
        is always 1."""
        server = self.named(name)
        pid = server.process.pid if same_pid else None
        if downtime > 0:
            self.kill(name)
            self._common.timers.at(self._common.now() + downtime, partial(self.start, name, pid=pid))
            return
        if server.phase is not Phase.DOWN:
            self._die(server)
        self._run(server, pid)
        self.on_change(server)

    def hang(self, name: str) -> None:
        """The process stops answering on all its ports; its memory stays."""
        server = self.named(name)
        if server.phase not in (Phase.UP, Phase.STOPPING):
            raise PlantError(f"{name} is {server.phase.value}, only one that is up can hang")
        server.phase = Phase.HUNG
        server.process.silent_since = self._common.now()
        self.on_change(server)

    def resume(self, name: str) -> None:
        """A hung process goes on as if nothing had been."""
        server = self.named(name)
        if server.phase is not Phase.HUNG:
            raise PlantError(f"{name} is {server.phase.value}, not hung")
        server.phase = Phase.UP
        server.process.silent_since = None
        self.on_change(server)

    def slow(self, name: str, seconds: float) -> None:
        """Every answer of this Chat Server takes `seconds` longer; 0 ends it."""
        self.named(name).slow = seconds

    def stop(self, name: str, *, delay: float | None = None) -> int:
        """A planned stop: the notice to each of its sessions now, the stop after the delay. Returns
        how many sessions are told."""
        server = self.named(name)
        if server.phase is not Phase.UP:
            raise PlantError(f"{name} is {server.phase.value}, only one that is up can be stopped")
        server.phase = Phase.STOPPING
        notified = self._announce_stop(server.process) if self._common.settings.shutdown_notify else 0
        due = self._common.now() + (self._common.settings.stop_delay if delay is None else delay)
        self._common.timers.at(due, partial(self._carry_out_stop, server.process))
        self.on_change(server)
        return notified

    def zero_counters(self, name: str) -> None:
        """Its cumulative counters begin anew, its process does not (an emptied `log-output-content`)."""
        self.named(name).process.opened = 0

    def share_address(self, name: str, shared: bool = True) -> None:
        """Its health URL is a balancer's: every other page is that of another process."""
        server = self.named(name)
        server.twin = None
        if shared:
            self._highest_pid += 1
            server.twin = ServerProcess(server, self._highest_pid, server.process.started_at - TWIN_OLDER_MS)

    def up(self) -> list[PlantServer]:
        """Those that take new chats."""
        return [server for server in self._servers.values() if server.phase is Phase.UP]

    def sessions_waiting(self) -> int:
        """How many sessions have no Chat Server: theirs died and no request came, or it hangs."""
        return sum(len(process.sessions) for process in self._dead) + sum(
            len(server.process.sessions) for server in self._servers.values() if server.phase is Phase.HUNG
        )

    def watch_windows(self) -> None:
        """The restoration window may have changed."""
        for process in self._dead:
            self._watch_window(process)

    # --- where a session lives --------------------------------------------------------------

    def cannot_restore_yet(self, session: ChatSession) -> bool:
        process = session.process
        return (
            process.dead
            and self._common.now() - process.died_at < self._common.settings.restoration_refused_for
        )

    def place(self, session: ChatSession) -> ServerProcess | None:
        """The process that serves the session's next request: its own, or the one that restores it;
        `None` when there is none."""
        process = session.process
        server = process.server
        if process.dead:
            return self.taker(server)
        if server.phase is Phase.STOPPING:
            return self.taker(server) or process
        if server.phase is Phase.HUNG:
            limit = self._common.settings.hang_detected_after
            if limit is not None and self._common.now() - (process.silent_since or 0.0) >= limit:
                return self.taker(server)
        return process

    def taker(self, gone: PlantServer) -> ServerProcess | None:
        """The live Chat Server with the fewest sessions; the one that lost it only when it is back
        and alone."""
        live = [s.process for s in self._servers.values() if s.phase is Phase.UP]
        others = [process for process in live if process.server is not gone]
        return min(others or live, key=lambda process: len(process.sessions), default=None)

    def restore(self, session: ChatSession, target: ServerProcess, node: int | None = None) -> None:
        """Rebuilds a session in another process, because a request of its came by a GMS node, or without one."""
        now = self._common.now()
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
        self._pushing.rebind(session, node, anyway=node is not None)
        if self._common.settings.renumber:
            self._chats.renumber(session)
        s = self._common.suffering
        s.restored += 1
        s.without_server.append(now - (now if old.silent_since is None else old.silent_since))
        self._common.timeline.restored(now)
        # A new Chat Server counts the silence anew. New tokens wait for the reply that tells them,
        # and there is one rotation per reply: the client could not know of one in between.
        session.last_request = now
        session.rotate_next |= self._common.settings.rotate in (Rotation.RESTORE, Rotation.ALWAYS)

    def expire_if_late(self, session: ChatSession) -> None:
        """A request can come between the end of the window and the next `advance`."""
        process = session.process
        late = (
            process.dead and self._common.now() - process.died_at >= self._common.settings.restoration_window
        )
        if late and session.ended is None:
            self._chats.end(session, "restoration_window", lost=True)

    # --- the life of a process --------------------------------------------------------------

    def _run(self, server: PlantServer, pid: int | None) -> None:
        if pid is None:
            self._highest_pid += 1
            pid = self._highest_pid
        server.process = ServerProcess(server, pid, started_at=self._common.wall_ms())
        server.phase = Phase.UP

    def _die(self, server: PlantServer) -> None:
        process = server.process
        if process.silent_since is None:
            process.silent_since = self._common.now()
        process.dead = True
        server.phase = Phase.DOWN
        for session in process.sessions.values():
            # The timers of silence died with the memory; the restoration window counts from here.
            session.idle.pop(session.chat_id, None)
        process.died_at = self._common.now()
        if process.sessions:
            self._dead.append(process)
            self._watch_window(process)

    def _watch_window(self, process: ServerProcess) -> None:
        due = process.died_at + self._common.settings.restoration_window
        self._common.timers.at(due, partial(self._end_window, process))

    def _end_window(self, process: ServerProcess) -> None:
        if self._common.now() < process.died_at + self._common.settings.restoration_window:
            return  # the window was made longer meanwhile, and that set a timer of its own
        for session in list(process.sessions.values()):
            self._chats.end(session, "restoration_window", lost=True)
        if process in self._dead:
            self._dead.remove(process)

    def _announce_stop(self, process: ServerProcess) -> int:
        """Notices go out in portions: all at once, those of 30,000 sessions would hold the plant up
        for most of a second."""
        subscribed = [session for session in process.sessions.values() if session.device_id is not None]
        if self._common.settings.push_url is None:
            return 0
        self._push_notices(process, subscribed[:NOTICES])
        for begin in range(NOTICES, len(subscribed), NOTICES):
            due = self._common.now() + begin / NOTICES * NOTICES_EVERY
            portion = subscribed[begin : begin + NOTICES]
            self._common.timers.at(due, partial(self._push_notices, process, portion))
        return len(subscribed)

    def _push_notices(self, process: ServerProcess, sessions: Iterable[ChatSession]) -> None:
        for session in sessions:
            if session.ended is None and session.process is process and not process.dead:
                event = self._chats.add_event(
                    session, replace(participant_left(session, CUSTOMER), quit_reason_advice="reconnect")
                )
                self._pushing.push(
                    session, "ParticipantLeft", event, form=readable(self._pushing.next_form())
                )

    def _carry_out_stop(self, process: ServerProcess) -> None:
        if process.server.process is process and not process.dead:
            self.kill(process.server.name)
