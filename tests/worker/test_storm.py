"""Storms under a fake clock: servers lost together, twice, and half-way back, GMS away for minutes, a daemon
that dies in between, a clock that is set. The stand-in's plant takes the pings, so that a session is served,
restored and given new keys as Chat Servers do it; no socket and no second of real time is needed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from conftest import FAR_OFF_MS, FakeClock, MakeSettings, PromptStore, settle

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.pacing import CATCH_UP_SECONDS, InFlight, Pacer
from asyncchatd.gms.trouble import Trouble
from asyncchatd.model.data import Cause, Reason, Registration, Restoration, SessionState, Tokens
from asyncchatd.sending.sending import Sending
from asyncchatd.sending.settling import SETTLE_SECONDS
from asyncchatd.standin import Plant, PlantSettings, Rotation, chat_servers
from asyncchatd.standin.plant.parts import ChatSession
from asyncchatd.standin.requests import read_call
from asyncchatd.stores import restoring as restoration
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api.outcome import NodeTrouble
from asyncchatd.wire.push import read_push
from asyncchatd.worker.worker import BATCH_SECONDS, Worker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("events")]

RATE = 200.0
IN_FLIGHT = 50
LATENCY_SECONDS = 0.02
TIMEOUT_SECONDS = 10.0
TEN_MINUTES = 600.0
INTERVAL_MS = 30 * 60 * 1000

UNSETTLED = RATE * (BATCH_SECONDS + LATENCY_SECONDS + SETTLE_SECONDS) + 1
"""Pings claimed, on their way or answered and not yet written down at any moment: those sessions may be
pinged once more when their server is lost in that moment, or the daemon dies."""

MOST_IN_100_MS = RATE * (0.1 + CATCH_UP_SECONDS) + 1
"""The ideal, and what a turn that came late may make up for."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping Refresh that reached GMS."""

    at: float
    chat_id: str


class PlantGms:
    """Stands in for `GmsClient`, before a plant. While GMS is away it behaves as the client does with nodes
    that rest: a trial now and then, and otherwise no slot."""

    def __init__(self, clock: FakeClock, plant: Plant) -> None:
        self.clock = clock
        self.plant = plant
        self.pings: list[Ping] = []
        self.away = False
        self.hanging: set[str] = set()
        """Aliases for whose sessions GMS never answers."""
        self.tried: set[str] = set()
        """Chats that were asked for while it was away."""
        self.most_in_flight = 0
        self.closing = False
        self._in_flight = 0
        self._failures = 0
        self._rests_until = 0.0

    def slots(self) -> int | None:
        if not self._failures:
            return None
        return int(self.clock.monotonic() >= self._rests_until)

    def retry_in(self) -> float:
        return max(0.0, self._rests_until - self.clock.monotonic())

    async def refresh(
        self, service: str, tokens: Tokens, position: int | None, *, until: float = math.inf
    ) -> Answer:
        sent_at, started = self.clock.now(), self.clock.monotonic()
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            outcome = await self._asked(service, tokens, position)
        finally:
            self._in_flight -= 1
        return Answer(outcome, "http://gms-1", sent_at, self.clock.monotonic() - started)

    async def _asked(self, service: str, tokens: Tokens, position: int | None) -> chat_api.Outcome:
        if self.away:
            self.tried.add(tokens.chat_id)
            self._failures += 1
            self._rests_until = self.clock.monotonic() + min(30.0, 2.0 ** min(self._failures, 5))
            return NodeTrouble(Trouble.CONNECT)
        self._failures = 0
        made = chat_api.refresh(service, tokens, position)
        self.pings.append(Ping(self.clock.monotonic(), tokens.chat_id))
        self.plant.hit()
        ticket = self.plant.arrive(read_call(made.path, made.body, made.content_type))
        try:
            if tokens.alias in self.hanging:
                await self.clock.sleep(TIMEOUT_SECONDS)
                return NodeTrouble(Trouble.TIMEOUT)
            self.plant.queue(ticket)
            await self.clock.sleep(ticket.delay)
            answer = ticket.refused or self.plant.serve(ticket)
        finally:
            self.plant.leave(ticket)
        if answer is None:
            return NodeTrouble(Trouble.TIMEOUT)
        return chat_api.classify(answer.status, answer.body, chat_id=tokens.chat_id)

    def since(self, when: float, sessions: Iterable[ChatSession] = ()) -> list[Ping]:
        """Pings from then on, of these sessions where some are named."""
        wanted = {session.chat_id for session in sessions}
        return [ping for ping in self.pings if ping.at >= when and (not wanted or ping.chat_id in wanted)]


class Storm:
    """The worker of a daemon that can die, its store, and the plant."""

    def __init__(
        self, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, **plant: object
    ) -> None:
        self.store = store
        self.clock = clock
        self.plant = Plant(
            PlantSettings(
                servers=chat_servers(4), latency=LATENCY_SECONDS, push_url="http://127.0.0.1:9/push/s"
            ),
            now=clock.monotonic,
            wall_ms=lambda: round(clock.monotonic() * 1000) + 1_700_000_000_000,
            send_push=lambda push: self._pushed.append(push.body),
        )
        self.plant.change({"rotate": Rotation.RESTORE.value, "restoration_window": 10_000.0, **plant})
        self.gms = PlantGms(clock, self.plant)
        self.wakeup = asyncio.Event()
        self.suspected: list[str] = []
        self._settings = make_settings(
            restoration={"max_rate": RATE, "max_in_flight": IN_FLIGHT}, ping={"interval": "30m"}
        )
        self._pushed: list[bytes] = []
        self._worker: Worker | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._marking: set[asyncio.Task[Restoration]] = set()

    # -- the daemon ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """A new daemon on this store."""
        sending = Sending(
            self.store,
            cast(GmsClient, self.gms),
            Pacer(RATE, self.clock),
            InFlight(IN_FLIGHT, 1.0, self.clock),
            self._settings,
            self.clock,
            self.wakeup,
            self.suspected.append,
        )
        worker = self._worker = Worker(self.store, sending, self._settings, self.clock, self.wakeup)
        lives = {**sending.lives(), **worker.lives()}
        self._loops = [asyncio.create_task(life) for life in lives.values()]
        self._loops.append(asyncio.create_task(restoration.resume(self.store, self.wakeup, self.clock)))
        await settle()

    async def die(self) -> None:
        """It is gone at once, with everything it had not written down."""
        await settle()
        tasks: list[asyncio.Task[Any]] = [*self._loops, *self._marking]
        if self._worker is not None:
            tasks += self._worker._pinging._pings.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What it held in memory died with it.
        self.store._held.clear()
        self.plant.replies_lost(self.plant.wall_ms() - 200)
        self._loops.clear()

    def check(self) -> None:
        """Raises what ended a loop that never should end."""
        for task in self._loops:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    # -- the plant -----------------------------------------------------------------------------------

    async def chats(self, count: int, server: str, *, apart_ms: int = 0) -> list[ChatSession]:
        """Registered ones, the last one of them the most recently active."""
        started = self.plant.start_chats(count, servers=[server])
        portions = [[session] for session in started] if apart_ms else [started]
        for number, portion in enumerate(portions):
            registrations = [
                Registration(
                    Tokens(each.chat_id, each.user_id, each.secure_key, each.alias),
                    each.service,
                    each.device_id,
                    each.next_index,
                )
                for each in portion
            ]
            now = self.clock.now() + number * apart_ms
            await self.store.register(registrations, now=now, spread_ms=FAR_OFF_MS)
        return started

    async def say(self, session: ChatSession) -> None:
        """An agent's message, and the push it makes, taken."""
        assert self.plant.say(session, "How may I help you?")
        await self.deliver()

    async def deliver(self) -> None:
        while self._pushed:
            await self.store.take_push(read_push(self._pushed.pop(0)), now=self.clock.now())
        self.wakeup.set()

    def lost(self, server: str, cause: Cause = Cause.UNREACHABLE) -> None:
        """What the watcher does once it knows."""
        alias = self.plant.servers.named(server).app_dbid
        begun = restoration.begin(
            self.store, self.wakeup, self.clock, alias=alias, server=server, cause=cause
        )
        task = asyncio.ensure_future(begun)
        self._marking.add(task)
        task.add_done_callback(self._marking.discard)

    # -- what must hold --------------------------------------------------------------------------------

    async def landed(self) -> None:
        """Let time pass until nothing is due or on its way, as a keepalive may be at any moment."""
        for _ in range(100):
            await self.clock.advance(0.1)
            counts = await self.store.counts(now=self.clock.now())
            if not counts.leased and not any(counts.due.values()):
                return
        raise AssertionError("for ten seconds there was always something to do")

    async def assert_well(self) -> None:
        """No rule was broken, no session lost, every count true and nothing left to do."""
        self.check()
        report = self.plant.report()
        assert (report.sessions_lost, report.wrong_key_requests, report.overlapping_requests) == (0, 0, 0)
        assert (report.sessions_without_server, report.refreshes_of_closed_chats) == (0, 0)
        assert most_in(1.0, self.gms.pings) <= RATE
        assert self.gms.most_in_flight <= IN_FLIGHT
        for each in await self.store.restorations():
            assert each.sessions == each.restored + each.ended + each.refused + each.moved, each
            assert each.finished_at is not None, each
        counts = await self.store.counts(now=self.clock.now())
        assert (sum(counts.due.values()), counts.leased) == (0, 0)
        assert counts.states[SessionState.LIVE] == report.sessions_alive


def most_in(seconds: float, pings: Iterable[Ping]) -> int:
    """The largest number in any window of so many seconds."""
    times = sorted(ping.at for ping in pings)
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


MakeStorm = Callable[..., Storm]


@pytest.fixture
async def make_storm(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> AsyncIterator[MakeStorm]:
    made: list[Storm] = []

    def make(**plant: object) -> Storm:
        made.append(Storm(store, clock, make_settings, **plant))
        return made[-1]

    yield make
    for storm in made:
        await storm.die()


# -- servers ---------------------------------------------------------------------------------------


async def test_two_servers_lost_at_once_are_restored_with_one_ping_each(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    storm = make_storm()
    mine = [*await storm.chats(700, "chat-1"), *await storm.chats(500, "chat-2")]
    others = await storm.chats(300, "chat-3")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.plant.servers.kill("chat-2")
    storm.lost("chat-1")
    storm.lost("chat-2")
    await clock.advance(1200 / RATE * 1.05 + 1)
    await storm.assert_well()
    assert Counter(ping.chat_id for ping in storm.gms.pings) == {each.chat_id: 1 for each in mine}
    assert not storm.gms.since(0, others)
    assert [each.restored for each in await storm.store.restorations()] == [500, 700]


async def test_a_server_lost_again_while_its_sessions_are_restored(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    """It came back, new sessions began on it, and it dies again: the later restoration takes over what the
    first had not done, and what was done is left alone."""
    storm = make_storm()
    old = await storm.chats(600, "chat-1")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(1.5)
    done = {ping.chat_id for ping in storm.gms.pings}
    assert 200 < len(done) < 400
    storm.plant.servers.start("chat-1")
    new = await storm.chats(50, "chat-1")
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1", Cause.RESTARTED)
    await clock.advance(5)
    await storm.assert_well()
    second, first = await storm.store.restorations()
    # New sessions of a server that is being restored belong to its restoration.
    assert (first.sessions, first.restored + first.moved) == (650, 650)
    assert second.sessions == first.moved > 200
    pings = Counter(ping.chat_id for ping in storm.gms.pings)
    assert set(pings) == {each.chat_id for each in (*old, *new)}
    again = [chat_id for chat_id, count in pings.items() if count > 1]
    assert len(again) <= UNSETTLED


async def test_a_server_that_comes_back_half_way_costs_its_restored_sessions_nothing(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    """Another process answers under its name: whoever still has its alias must be pinged, nobody else."""
    storm = make_storm()
    mine = await storm.chats(600, "chat-1")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(1.5)
    storm.plant.servers.start("chat-1")
    storm.lost("chat-1", Cause.RESTARTED)
    await clock.advance(4)
    await storm.assert_well()
    pings = Counter(ping.chat_id for ping in storm.gms.pings)
    assert set(pings) == {each.chat_id for each in mine}
    assert sum(pings.values()) <= 600 + UNSETTLED


async def test_a_server_lost_while_it_takes_over_the_sessions_of_another(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    storm = make_storm()
    mine = await storm.chats(600, "chat-1")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(1.5)
    storm.plant.servers.kill("chat-2")
    moved = [session for session in mine if session.alias == "118"]
    storm.lost("chat-2")
    await clock.advance(6)
    await storm.assert_well()
    pings = Counter(ping.chat_id for ping in storm.gms.pings)
    assert set(pings) == {each.chat_id for each in mine}
    assert sum(pings.values()) <= 600 + len(moved) + UNSETTLED


# -- GMS -------------------------------------------------------------------------------------------


async def test_gms_wholly_away_for_ten_minutes(make_storm: MakeStorm, clock: FakeClock) -> None:
    """A server dies with it, and pushes go on: nothing is forgotten, and when GMS is back all is worked off
    in order, evenly, with one ping each."""
    storm = make_storm()
    mine = await storm.chats(3_000, "chat-1", apart_ms=1)
    others = await storm.chats(1_000, "chat-2")
    await clock.advance(10)
    await storm.start()
    storm.gms.away = True
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    pushed: dict[str, None] = {}
    for number in range(600):
        for session in others[number % 100 :: 500]:
            await storm.say(session)
            pushed[session.chat_id] = None
        await clock.advance(TEN_MINUTES / 600)
    assert not storm.gms.pings
    assert len(pushed) == 200
    storm.gms.away = False
    back = clock.monotonic()
    await clock.advance(30 + (len(mine) + len(pushed)) / RATE * 1.05)
    await storm.assert_well()
    storm.check()

    assert Counter(ping.chat_id for ping in storm.gms.pings) == {
        **{each.chat_id: 1 for each in mine},
        **dict.fromkeys(pushed, 1),
    }
    first = storm.gms.pings[0].at
    assert first - back <= 30, "the longest rest of a node"
    acknowledged = [ping.at for ping in storm.gms.pings if ping.chat_id in pushed]
    # Three claims of four look at acknowledgements first.
    assert max(acknowledged) - first <= len(pushed) / RATE / 0.75 + 1
    # Those that were tried meanwhile have a pause of their own.
    order = [ping.chat_id for ping in storm.gms.since(0, mine) if ping.chat_id not in storm.gms.tried]
    assert len(order) > 2_900
    ideal = [each.chat_id for each in reversed(mine) if each.chat_id not in storm.gms.tried]
    place = {chat_id: number for number, chat_id in enumerate(ideal)}
    # What was claimed when GMS went away is given back, and comes a claim later.
    assert (
        max(abs(number - place[chat_id]) for number, chat_id in enumerate(order)) <= 3 * RATE * BATCH_SECONDS
    )
    took = storm.gms.pings[-1].at - first
    assert took <= (len(mine) + len(pushed)) / RATE * 1.03 + 0.5
    [restored] = await storm.store.restorations()
    assert (restored.sessions, restored.restored) == (3_000, 3_000)


async def test_keepalives_that_fell_due_while_gms_was_away_come_evenly_and_last(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    storm = make_storm()
    quiet = await storm.chats(500, "chat-2")
    for session in quiet:
        await storm.store.make_due(session.chat_id, Reason.KEEPALIVE, now=clock.now() + 60_000)
    mine = await storm.chats(800, "chat-1")
    await storm.start()
    storm.gms.away = True
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(TEN_MINUTES)
    storm.gms.away = False
    await clock.advance(30 + 1300 / RATE * 1.05)
    await storm.assert_well()
    half = storm.gms.pings[: len(mine)]
    assert sum(ping.chat_id in {each.chat_id for each in quiet} for ping in half) <= len(half) / 20
    assert most_in(0.1, storm.gms.pings) <= MOST_IN_100_MS


# -- the daemon ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.02, 1.0, 2.9], ids=["at the beginning", "half-way", "near its end"])
async def test_a_daemon_that_dies_in_a_restoration_goes_on_with_it(
    at: float, make_storm: MakeStorm, clock: FakeClock
) -> None:
    storm = make_storm()
    mine = await storm.chats(600, "chat-1")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(at)
    before = len(storm.gms.pings)
    await storm.die()
    await clock.advance(2)
    await storm.start()
    await clock.advance(25)  # the leases of the dead run out
    await storm.assert_well()
    pings = Counter(ping.chat_id for ping in storm.gms.pings)
    assert set(pings) == {each.chat_id for each in mine}
    assert sum(pings.values()) <= 600 + UNSETTLED
    assert before < 600
    [restored] = await storm.store.restorations()
    assert (restored.sessions, restored.restored) == (600, 600)


async def test_a_daemon_that_dies_while_it_marks_marks_on(make_storm: MakeStorm, clock: FakeClock) -> None:
    storm = make_storm()
    await storm.chats(600, "chat-1")
    storm.plant.servers.kill("chat-1")
    record = await storm.store.begin_restoration(
        alias="117", server="chat-1", cause=Cause.UNREACHABLE, now=clock.now()
    )
    assert await storm.store.mark(record.id, limit=250, now=clock.now())
    await storm.start()
    await clock.advance(600 / RATE * 1.05 + 1)
    await storm.assert_well()
    [restored] = await storm.store.restorations()
    assert (restored.sessions, restored.restored) == (600, 600)


# -- the rate --------------------------------------------------------------------------------------


async def test_all_reasons_together_keep_the_rate_evenly_and_none_starves(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    """Twice as many pushes as the rate, for ten seconds, on top of a restoration, requests and keepalives."""
    storm = make_storm()
    lost = await storm.chats(400, "chat-1")
    busy = await storm.chats(400, "chat-2")
    asked = await storm.chats(50, "chat-3")
    quiet = await storm.chats(50, "chat-4")
    for session in quiet:
        await storm.store.make_due(session.chat_id, Reason.KEEPALIVE, now=clock.now())
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    for session in asked:
        await storm.store.make_due(session.chat_id, Reason.REQUEST, now=clock.now())
    turns = itertools.cycle(busy)
    for _ in range(100):
        for _ in range(int(RATE * 2 / 10)):
            await storm.say(next(turns))
        await clock.advance(0.1)
    shares = {
        name: len(storm.gms.since(0, sessions))
        for name, sessions in {
            "restore": lost,
            "request": asked,
            "keepalive": quiet,
            "acknowledge": busy,
        }.items()
    }
    assert sum(shares.values()) >= RATE * 10 * 0.97, shares
    assert shares["acknowledge"] > sum(shares.values()) * 0.6, shares
    assert shares["restore"] >= 250, shares
    assert min(shares["request"], shares["keepalive"]) >= 40, shares
    assert most_in(1.0, storm.gms.pings) <= RATE
    assert most_in(0.1, storm.gms.pings) <= MOST_IN_100_MS
    await clock.advance(15)
    await storm.assert_well()


# -- the clock, and a daemon that stands still -------------------------------------------------------


@pytest.mark.parametrize("step", [-3600, -60, 60, 3600])
async def test_a_clock_that_is_set_in_a_restoration_overlaps_nothing_and_forgets_nothing(
    step: int, make_storm: MakeStorm, clock: FakeClock
) -> None:
    """Leases are written as times of day: set forward, the clock makes them look run out."""
    storm = make_storm(latency=0.8)
    mine = await storm.chats(400, "chat-1")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(1.0)
    answered = {each.chat_id for each in mine if not each.process.dead}
    on_the_way = {ping.chat_id for ping in storm.gms.pings} - answered
    assert answered
    assert on_the_way
    clock.set_wall(step * 1000)
    await storm.store.pull_in(now=clock.now(), spread_ms=INTERVAL_MS)  # as the daemon does when it notices
    await clock.advance(60)
    await storm.landed()
    await storm.assert_well()
    pings = Counter(ping.chat_id for ping in storm.gms.pings)
    assert set(pings) == {each.chat_id for each in mine}
    # The answered ones may have their keepalive now, by the clock as it is.
    assert max(count for chat_id, count in pings.items() if chat_id not in answered) == 1


async def test_a_daemon_that_stood_still_for_longer_than_its_leases_overlaps_nothing(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    storm = make_storm(latency=0.8)
    mine = await storm.chats(400, "chat-1")
    await storm.start()
    storm.plant.servers.kill("chat-1")
    storm.lost("chat-1")
    await clock.advance(1.0)
    clock.stall(40)
    await clock.advance(60)
    await storm.assert_well()
    assert set(Counter(ping.chat_id for ping in storm.gms.pings)) == {each.chat_id for each in mine}


async def test_a_key_told_by_push_counts_after_the_clock_was_set_back(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    """What was answered while it was ahead is not newer than all that follows."""
    storm = make_storm()
    [session] = await storm.chats(1, "chat-1")
    await storm.start()
    clock.set_wall(3_600_000)
    await clock.advance(1)
    await storm.store.make_due(session.chat_id, Reason.REQUEST, now=clock.now())
    storm.wakeup.set()
    await clock.advance(5)
    clock.set_wall(-3_600_000)
    await storm.store.pull_in(now=clock.now(), spread_ms=INTERVAL_MS)  # as the daemon does when it notices
    await clock.advance(1)
    storm.plant.rotate([session], announce=True)
    await storm.deliver()
    await clock.advance(5)
    assert len(storm.gms.pings) >= 2, "the push is acknowledged"
    await storm.assert_well()


# -- a Chat Server that hangs ------------------------------------------------------------------------


async def test_a_hanging_chat_server_does_not_delay_the_acknowledgements_of_others(
    make_storm: MakeStorm, clock: FakeClock
) -> None:
    """Its sessions' pings fill the in-flight limit before the first of them times out."""
    storm = make_storm()
    hers = await storm.chats(300, "chat-1")
    others = await storm.chats(40, "chat-2")
    await storm.start()
    for session in others[:20]:
        await storm.say(session)
    await clock.advance(1)
    storm.gms.hanging.add("117")
    for session in hers:
        await storm.say(session)
    await clock.advance(TIMEOUT_SECONDS / 3)
    pushed = clock.monotonic()
    for session in others[20:]:
        await storm.say(session)
    await clock.advance(TIMEOUT_SECONDS / 3)
    seen = storm.gms.since(pushed, others)
    assert len({ping.chat_id for ping in seen}) == 20
    assert max(ping.at for ping in seen) - pushed <= 1.0
    assert storm.gms.most_in_flight <= IN_FLIGHT
    storm.gms.hanging.clear()
    await clock.advance(60)
    await storm.assert_well()
