"""A soak: the plant, the daemon, and round after round of faults, each judged when all is calm again."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import DaemonError, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.rehearsing.trial import TrialError, until
from asyncchatd.standin import (
    PlantError,
    PlantSettings,
    Rotation,
    SickPage,
    Spoiling,
    StandIn,
    chat_servers,
)
from asyncchatd.standin.gms_node import ErrorPage, Failing, GmsNode, NodePhase
from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.plant.parts import Phase, PlantServer

from .consumers import Consumers
from .host import Host
from .judge import Hindered, Loss, Observed, judge, saveable
from .life import LONG_TRANSCRIPT, Life
from .plan import AFTER_WORK, FOLLOWED, LOSING, NODE, ON_THE_DAEMON, Fault, What, plan

REPLY_MS = 500
"""So long before it is killed the daemon may have had an answer that is not on disk yet."""

TOLD_SECONDS = 2.0
"""A key told by a push alone has arrived after this time."""

PULL_IN_SECONDS = 1.0
"""So long after it has said that its clock was set the daemon has put its due times right."""

CALM_SECONDS = 60.0
SAMPLE_SECONDS = 0.05
STOP_NOTICE_SECONDS = 2.0

SEEN_SECONDS = 3.0
"""In which the daemon must have seen that its store is not the one at its path, or that it cannot be written: it looks
once a second, and the machine may be busy."""

PROXY_SECONDS, WORK_BEHIND_SECONDS = 0.3, 0.3

TEXTS = (b"How may I help", b"One moment", b"Lorem ipsum")
"""Of what agents write."""

HARMLESS = frozenset((What.COUNTERS, *AFTER_WORK))
"""Faults that give no reason for any restoration."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large and how fast."""

    sessions: int = 2_000
    servers: int = 5
    nodes: int = 3
    rate: float = 300.0
    window: float = 40.0
    """The plant's restoration window, seconds."""
    interval: float = 20.0
    """Of keepalives."""
    long_chats: int = 3
    """Chats whose transcript no client reads at once, and whose position nobody tells."""
    pace: float = 1.0
    """By which the moments and durations of faults are stretched."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round."""

    number: int
    theme: str
    faults: Sequence[str]
    seconds: float
    broken: Sequence[str]
    counts: dict[str, float] = field(default_factory=dict)


SECTIONS = """
timeout = "8s"
connect_timeout = "500ms"
rest = "200ms"
rest_max = "1s"
[ping]
interval = "{interval}s"
[restoration]
max_rate = {rate}
max_in_flight = 100
lease = "9s"
insist = "10s"
backoff = "200ms"
backoff_max = "2s"
[watcher]
interval = "500ms"
timeout = "500ms"
fall = 3
rise = 2
fast_interval = "150ms"
"""


class Soak:
    """Use `soaking`, then `round` as often as wanted."""

    def __init__(self, seed: int, scale: Scale, plant: StandIn, host: Host, consumers: Consumers) -> None:
        self.seed = seed
        self.scale = scale
        self.plant = plant
        self.host = host
        self.consumers = consumers
        self.life = Life(plant.plant, host, random.Random(seed))
        self._chance = random.Random(f"{seed}/damage")
        self._hindered: list[Hindered] = []
        self._losses_told: set[str] = set()
        self._restorations_told: set[tuple[int, shapes.Time]] = set()
        """Those of the rounds before; the daemon's clock, which stamps them, may have been set."""
        self._taken_without_disk = self._taken_without_store = 0
        self._damaged = 0
        self._faults_ahead: list[float] = []
        self._forgiven = 0
        self._impossible = 0

    async def round(self, number: int) -> RoundResult:
        """Things go wrong, are put right, and calm returns. What was broken is in the outcome."""
        began = time.monotonic()
        scale = self.scale
        theme, faults = plan(self.seed, number, servers=scale.servers, nodes=scale.nodes)
        self._begin(began, faults)
        # Each fault is a task: most overlap.
        results = await asyncio.gather(
            *(self._suffer(fault, began) for fault in faults), return_exceptions=True
        )
        await self._heal()
        self.life.quiet = True
        self.consumers.be_quiet(True)
        failures = [repr(result) for result in results if isinstance(result, BaseException)]
        calm = await self._calm()
        observed = await self._observe(calm, failures)
        broken = judge(observed)
        for session in self.plant.plant.sessions.values():
            session.closed_refreshes = min(session.closed_refreshes, 1)
        counts = self._counts(observed, number)
        return RoundResult(
            number, theme, [str(each) for each in faults], time.monotonic() - began, broken, counts
        )

    def _begin(self, began: float, faults: Sequence[Fault]) -> None:
        self.plant.plant.reset_report()
        self._hindered.clear()
        self._taken_without_disk = self._taken_without_store = self._forgiven = self._impossible = 0
        self.plant.plant.answered_to_nobody = 0
        self._harmed = any(each.what not in HARMLESS for each in faults)
        self._faults_ahead = [
            began + each.at * self.scale.pace for each in faults if each.what in ON_THE_DAEMON
        ]
        self.life.keys_by_push = self._keys_by_push
        self.life.quiet = False
        self.consumers.be_quiet(False)
        self.consumers.app.ill_clock = any(each.what is What.CLOCK for each in faults)

    # -- what goes wrong ---------------------------------------------------------------------------

    async def _suffer(self, fault: Fault, began: float) -> None:
        await asyncio.sleep(max(0.0, began + fault.at * self.scale.pace - time.monotonic()))
        seconds = fault.seconds * self.scale.pace
        try:
            await self._carry_out(fault, seconds)
        except PlantError:
            self._impossible += 1  # it is dead already, for instance

    async def _carry_out(self, fault: Fault, seconds: float) -> None:
        """Each sleep here and in what it calls is how long the fault lasts, or a part of it."""
        plant = self.plant.plant
        server = list(plant.servers.values())[fault.target % len(plant.servers)]
        node = self.plant.nodes[fault.target % len(self.plant.nodes)]
        match fault.what:
            case What.KILL:
                plant.servers.kill(server.name)
                await asyncio.sleep(seconds)
                plant.servers.start(server.name)
            case What.RESTART:
                plant.servers.restart(server.name)
            case What.RESTART_SAME_PID:
                plant.servers.restart(server.name, same_pid=True)
            case What.HANG:
                plant.servers.hang(server.name)
                await asyncio.sleep(seconds)
                if server.phase is Phase.HUNG:
                    plant.servers.resume(server.name)
            case What.SLOW:
                plant.servers.slow(server.name, fault.amount)
                await asyncio.sleep(seconds)
                plant.servers.slow(server.name, 0.0)
            case What.STOP:
                plant.servers.stop(server.name, delay=STOP_NOTICE_SECONDS)
                await until(partial(_has_stopped, server), CALM_SECONDS)
                await asyncio.sleep(seconds)
                plant.servers.start(server.name)
            case What.SICK_PAGE:
                await self._with_a_sick_page(server, seconds)
            case what if what in NODE:
                await self._with_a_sick_node(node, fault, seconds)
            case What.GMS_AWAY:
                await asyncio.gather(*(each.kill() for each in self.plant.nodes))
                await asyncio.sleep(seconds)
                await asyncio.gather(*(each.start() for each in self.plant.nodes))
            case What.REFUSALS:
                plant.change({"restoration_refused_for": seconds})
                await asyncio.sleep(seconds * 1.5)
                plant.change({"restoration_refused_for": 0})
            case What.COUNTERS:
                for each in plant.servers:
                    plant.servers.zero_counters(each)
            case What.BROWN_OUT:
                plant.change({"gms_capacity": self.scale.rate / 2, "restore_cost": 3.0})
                await asyncio.sleep(seconds)
                plant.change({"gms_capacity": None})
            case _:
                await self._with_the_daemon(fault, seconds)

    async def _with_a_sick_page(self, server: PlantServer, seconds: float) -> None:
        server.health = SickPage.HTTP_500
        await asyncio.sleep(seconds)
        server.health = HealthFormat.JSON

    async def _with_a_sick_node(self, node: GmsNode, fault: Fault, seconds: float) -> None:
        match fault.what:
            case What.NODE_KILL:
                await node.kill()
            case What.NODE_HANG:
                node.hang()
            case What.NODE_SLOW:
                node.slow = fault.amount
            case What.NODE_FAIL:
                node.failing = Failing(int(fault.amount), rate=0.7, retry_after=1)
            case What.NODE_WAIT:
                node.fail(Failing(503, retry_after=3600), min(1.0, seconds))
            case What.NODE_REDEPLOY:
                page = self._chance.choice(tuple(ErrorPage))
                node.fail(Failing(int(fault.amount), page=page))
            case What.NODE_LOSES:
                node.spoiling = Spoiling(LOSING[int(fault.amount)], rate=0.5)
            case What.NODE_EXTRA:
                node.spoiling = Spoiling(FOLLOWED[int(fault.amount)], rate=0.5)
            case What.NODE_PROXY:
                node.patience, node.slow = PROXY_SECONDS, PROXY_SECONDS + WORK_BEHIND_SECONDS
            case _:
                node.garbage_rate = fault.amount
        await asyncio.sleep(seconds)
        await node.start()

    async def _with_the_daemon(self, fault: Fault, seconds: float) -> None:
        host = self.host
        match fault.what:
            case What.DAEMON_KILL:
                await self._killed(lambda: asyncio.sleep(seconds))
            case What.AWAY_TOO_LONG:
                await self._killed(lambda: asyncio.sleep(self.scale.window + 1))
            case What.DAMAGE:
                await self._killed(self._damage)
            case What.DAEMON_RESTART:
                await host.stop()
                await host.start()
            case What.DAEMON_STALL | What.DAEMON_PAUSE:
                host.freeze()
                await asyncio.sleep(fault.seconds if fault.what is What.DAEMON_PAUSE else seconds)
                host.thaw()
            case What.LOG_STALL:
                host.log_read.clear()
                try:
                    await asyncio.sleep(seconds * 1.5)
                finally:
                    host.log_read.set()
            case What.STORE_GONE | What.STORE_REPLACED:
                await self._without_store(fault.what is What.STORE_REPLACED, seconds)
            case What.DISK_FULL:
                await self._without_disk(seconds)
            case _:
                host.set_clock(fault.amount)
                await asyncio.sleep(seconds)
                since = time.monotonic()
                host.set_clock(0.0)
                await until(
                    lambda: since <= host.stepped_at <= time.monotonic() - PULL_IN_SECONDS, SEEN_SECONDS
                )

    async def _killed(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        """No client could know what it was answered in its last moments, nor what its last requests are answered
        when it is dead: the plant forgives that."""
        plant = self.plant.plant
        since = plant.wall_ms() - REPLY_MS
        await self.host.kill()
        self._forgiven += plant.replies_lost(since)
        plant.client_died()
        await meanwhile()
        plant.client_starts()
        await self.host.start()

    async def _damage(self) -> None:
        """Sessions come back by registration and pushes; what was acknowledged before is gone."""
        self.host.damage(self._chance)
        self._damaged += 1
        self.consumers.forgotten(self.plant.plant.sessions.values(), self.life.registered)
        self.life.forgotten()
        for session in self.plant.plant.sessions.values():
            session.push_taken = False
            session.closed_refreshes = 0

    async def _without_disk(self, seconds: float) -> None:
        since = time.monotonic()
        self.host.fill_disk()
        await self._seen_unwritable(since)
        before = self.plant.plant.suffering.pushes_taken
        await asyncio.sleep(seconds)
        self._taken_without_disk += self.plant.plant.suffering.pushes_taken - before
        self.host.free_disk()

    async def _seen_unwritable(self, since: float) -> None:
        """Until the daemon has said that it cannot write, and what it answered before has arrived."""

        def seen() -> bool:
            return since <= self.host.unwritable_at <= time.monotonic() - SAMPLE_SECONDS

        await until(seen, SEEN_SECONDS)

    async def _without_store(self, replaced: bool, seconds: float) -> None:
        """The daemon puts a file that is gone back by itself, once it has had a moment to see it. Where another one
        is in its place nothing may be acknowledged, and the operator does as the log says: stops the daemon, puts
        the rescued file in place, starts it."""
        since = time.monotonic()
        self.host.take_store_away(replaced=replaced)
        if not replaced and await until(self.host.has_put_store_back, SEEN_SECONDS):
            return
        await self._seen_unwritable(since)
        before = self.plant.plant.suffering.pushes_taken
        await asyncio.sleep(seconds)
        self._taken_without_store += self.plant.plant.suffering.pushes_taken - before
        await self.host.stop()
        self.host.bring_store_back()
        await self.host.start()

    async def _heal(self) -> None:
        """Everything is put right, whatever is still wrong."""
        plant = self.plant.plant
        plant.change({"gms_capacity": None, "restoration_refused_for": 0})
        for server in plant.servers.values():
            server.slow, server.health = 0.0, HealthFormat.JSON
            await until(partial(_has_stopped, server), CALM_SECONDS)
            if server.phase is Phase.HUNG:
                plant.servers.resume(server.name)
            plant.servers.start(server.name)
        for node in self.plant.nodes:
            await node.start()
        await self.plant.settled()

    # -- what is seen ------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Root task: notes when no client could have done anything."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(SAMPLE_SECONDS)
            if (why := self._hindrance()) is not None:
                self._hindered.append(Hindered(began, time.monotonic(), why))

    def _hindrance(self) -> str | None:
        if not self.host.able:
            return "the daemon was kept away"
        if not any(_serves(node) for node in self.plant.nodes):
            return "GMS was away"
        if not any(server.phase is Phase.UP for server in self.plant.plant.servers.values()):
            return "no Chat Server was up"
        return None

    def _keys_by_push(self) -> bool:
        soon = time.monotonic() + TOLD_SECONDS
        return not any(at - 0.1 < soon and at > time.monotonic() - 0.5 for at in self._faults_ahead) and (
            self.host.clock_step == 0.0
        )

    async def _calm(self) -> str | None:
        """Wait until nothing is left to be done; what is, when it takes too long."""
        deadline = time.monotonic() + CALM_SECONDS
        while (left := await self._left()) is not None:
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.2)
        return None

    async def _left(self) -> str | None:
        if self.host.process is None or not self.host.ready.is_set():
            return "the daemon is away"
        report = self.plant.plant.report()
        unanswered = self._unanswered()
        if report.sessions_without_server or report.pushes_unacknowledged or unanswered:
            return (
                f"{report.sessions_without_server} sessions without a Chat Server,"
                f" {report.pushes_unacknowledged} unacknowledged, {unanswered} pushes taken without a request"
            )
        if waiting := len(self.life.unregistered()):
            return f"{waiting} chats could not be registered"
        try:
            async with ControlClient(self.host.control) as control:
                status = read(shapes.Status, await control.status())
                told = read(shapes.Consumers, await control.consumers())
        except DaemonError as error:
            return f"the API refuses: {error}"  # while the store is opened anew
        if running := [each for each in status.restorations if each.finished_at is None]:
            return (
                f"restorations under way: {running}"  # also one that has only just begun, and no session yet
            )
        urgent = {reason: count for reason, count in status.due.items() if reason != "keepalive" and count}
        if urgent:
            return f"due: {urgent}"
        if behind := [each for each in told.consumers if each.behind]:
            return f"to be told: {behind}"
        untold = self.consumers.untold(self.plant.plant.sessions.values(), self.life.registered)
        return f"{untold} events not told" if untold else None

    def _unanswered(self) -> int:
        return sum(
            session.push_taken and session.ended is None for session in self.plant.plant.sessions.values()
        )

    async def _observe(self, calm: str | None, failures: Sequence[str]) -> Observed:
        plant, host = self.plant.plant, self.host
        restorations: shapes.Restorations | None = None
        strangers: list[str] = []
        if host.ready.is_set():
            async with ControlClient(host.control) as control:
                restorations = read(shapes.Restorations, await control.restorations(20))
                strangers = self._strangers(read(shapes.SessionPage, await control.sessions(limit=1_000_000)))
        begun = self._begun(restorations.restorations if restorations else ())
        complaints = [*failures, *host.complaints, *self._leaks()]
        host.complaints.clear()
        if host.set_aside != self._damaged:
            complaints.append(f"{self._damaged} stores damaged, {host.set_aside} set aside")
        return Observed(
            report=plant.report(),
            rate=self.scale.rate,
            sessions=len(self.life.registered),
            interval=self.scale.interval,
            losses=self._losses(),
            hindered=list(self._hindered),
            closed_refreshes=max((each.closed_refreshes for each in plant.sessions.values()), default=0),
            calm=calm,
            unanswered_pushes=self._unanswered(),
            strangers=strangers,
            restorations=restorations.restorations if restorations else (),
            taken_without_disk=self._taken_without_disk,
            taken_without_store=self._taken_without_store,
            storms=[] if self._harmed else begun,
            untold=self.consumers.untold(plant.sessions.values(), self.life.registered),
            last_words=self.consumers.last_words(plant.sessions.values(), self.life.registered),
            answers_lost=plant.suffering.answers_lost + self._forgiven + plant.answered_to_nobody,
            told_wrongly=self.consumers.wrong(),
            complaints=complaints,
        )

    def _begun(self, restorations: Sequence[shapes.Restoration]) -> list[shapes.Restoration]:
        """Restorations that the watcher began in this round: a notice of a stop may be resent for long."""
        begun = [each for each in restorations if (each.id, each.started_at) not in self._restorations_told]
        self._restorations_told.update((each.id, each.started_at) for each in restorations)
        return [each for each in begun if each.cause != "announced"]

    def _losses(self) -> list[Loss]:
        """Sessions lost in this round."""
        settings = self.plant.plant.settings
        found = []
        for session in self.plant.plant.sessions.values():
            if session.ended not in ("restoration_window", "silence", "wrong_key"):
                continue
            if session.chat_id in self._losses_told:
                continue
            self._losses_told.add(session.chat_id)
            silent = session.ended == "silence"
            since = session.last_request if silent else session.process.died_at
            until = since + (settings.flex_push_timeout if silent else settings.restoration_window)
            found.append(Loss(session.chat_id, session.ended, since, until))
        return found

    def _strangers(self, known: shapes.SessionPage) -> list[str]:
        """Live chats the daemon does not know as live, or would not ping in time."""
        states = {session.chat_id: session for session in known.sessions}
        latest = time.time() + self.scale.interval
        strange = []
        for session in self.plant.plant.sessions.values():
            if session.ended is not None:
                continue
            seen = states.get(session.chat_id)
            if seen is None or seen.state != "live":
                strange.append(f"{session.chat_id} is {seen.state if seen else 'unknown'}")
            elif seen.due_at is None or shapes.read_time(seen.due_at).timestamp() > latest:
                strange.append(f"{session.chat_id} is due at {seen.due_at}")
        return strange

    def _leaks(self) -> list[str]:
        """Secure keys and texts in the log."""
        log = self.host.log.read_bytes()
        words = set(re.findall(rb"[0-9a-f]{20}", log))
        keys = {session.secure_key.encode() for session in self.plant.plant.sessions.values()}
        found = [f"{len(words & keys)} secure keys in the log"] if words & keys else []
        return found + [f"{text!r} in the log" for text in TEXTS if text in log]

    def _counts(self, observed: Observed, number: int) -> dict[str, float]:
        report = observed.report
        lost = len(observed.losses)
        saveable_ones = sum(saveable(loss, observed) for loss in observed.losses)
        return {
            "requests": report.requests,
            "peak per second": report.peak_requests_per_second,
            "peak per 100 ms": report.peak_requests_per_100_ms,
            "restored": report.restored,
            "longest without a server": report.without_server_seconds.max or 0.0,
            "sessions lost that nobody could have saved": lost - saveable_ones,
            "sessions lost that a perfect client would have saved": saveable_ones,
            "wrong keys": report.wrong_key_requests,
            "most refreshes of a closed chat": observed.closed_refreshes,
            "pushes sent": report.pushes_sent,
            "pushes resent": report.pushes_resent,
            "pushes failed": report.pushes_failed,
            "acknowledged": report.acknowledged,
            "requests abandoned": report.requests_abandoned,
            "answers that died with the daemon": self._forgiven + self.plant.plant.answered_to_nobody,
            "answers that died with a node": report.answers_lost,
            "keys that died with an answer": report.forgiven_key_requests,
            "answers nobody asked for": report.extra_answers,
            "overlapping later": report.overlapping_cut_off_requests,
            "restorations refused for a while": report.refused_for_now,
            **self.consumers.counts(),
            "last words untold": observed.last_words,
            "faults not possible": self._impossible,
            "sessions": report.sessions_alive,
            "memory MB": round(self.host.memory() / 1e6, 1),
            "plant stall ms": round(report.longest_pause_seconds * 1000),
        }


def _has_stopped(server: PlantServer) -> bool:
    return server.phase is not Phase.STOPPING


def _serves(node: GmsNode) -> bool:
    failing = node.failing is not None and node.failing.rate >= 1
    return node.phase is NodePhase.UP and not failing and node.garbage_rate < 1


@asynccontextmanager
async def soaking(seed: int, scale: Scale, directory: Path) -> AsyncIterator[Soak]:
    """A plant and a daemon with its sessions registered; all of it is gone afterwards. The last stop
    must be a clean one."""
    settings = PlantSettings(
        servers=chat_servers(scale.servers),
        gms_nodes=scale.nodes,
        resend_delay=1.5,
        push_timeout=2.0,
        flex_push_timeout=scale.window + 2.5 * scale.interval,
        restoration_window=scale.window,
        rotate=Rotation.ALWAYS,
        rotate_every=3,
        previous_key_grace=1.5,  # for requests that cross a push with a new key
        gms_hang_timeout=2.0,
        latency=0.005,
        placeholder_rate=0.05,
        planted_rate=0.1,
    )
    async with StandIn(settings) as plant:
        consumers = Consumers(directory, str(directory / "control.sock"), random.Random(f"{seed}/consumers"))
        await consumers.app.start()
        sections = SECTIONS.format(interval=scale.interval, rate=scale.rate)
        host = Host(directory, plant, sections, consumers.app.section())
        soak = Soak(seed, scale, plant, host, consumers)
        lives = (soak.life.go_on(), soak.life.register(), soak.watch(), *consumers.lives())
        tasks = [asyncio.create_task(life) for life in lives]
        try:
            await host.start()
            plant.plant.start_chats(scale.sessions)
            plant.plant.start_chats(scale.long_chats, transcript=LONG_TRANSCRIPT)
            if not await until(lambda: not soak.life.unregistered(), CALM_SECONDS):
                raise TrialError("the sessions could not be registered")
            yield soak
            await host.stop()
            if host.complaints:
                raise AssertionError(host.complaints)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
            await consumers.app.stop()
            with suppress(ProcessLookupError):
                await host.release()
