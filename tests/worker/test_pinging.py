"""One ping of the worker: whether it may leave, what is told of it, and that none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest
from conftest import Events, FakeClock, MakeSettings, PromptStore, register, settle

from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.pacing import InFlight, Pacer
from asyncchatd.log import metrics
from asyncchatd.log.events import Event, Level
from asyncchatd.log.lines import configure
from asyncchatd.model.data import Claim, Reason, Session
from asyncchatd.model.values import replace
from asyncchatd.sending.judgement import FAILED
from asyncchatd.sending.sending import Sending
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.wire.chat_api.outcome import PingFault, RetryLater
from asyncchatd.worker.pinging import PACE_SECONDS, PUT_OFF_MS, Pinging

from .rig import LEASE_SECONDS, TARGET_SECONDS, FakeGms

pytestmark = pytest.mark.usefixtures("events")


@dataclass
class Bench:
    """What sends pings, without the loops that claim."""

    pinging: Pinging
    sending: Sending
    store: PromptStore
    gms: FakeGms
    clock: FakeClock

    async def claims(self, *chat_ids: str) -> list[Claim]:
        """Sessions that are due now, and claimed."""
        await register(self.store, *chat_ids, now=self.clock.now(), spread_ms=0)
        found = await self.store.claim(
            now=self.clock.now(), limit=100, lease_ms=LEASE_SECONDS * 1000, reasons=EVERY_REASON
        )
        self.sending.settling.hold(found, self.clock.now())
        return sorted(found, key=lambda claim: claim.chat_id)

    async def session(self, chat_id: str) -> Session:
        found = await self.store.get(chat_id)
        assert found is not None
        return found


@asynccontextmanager
async def at_work(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    *,
    rate: float = 10.0,
    max_in_flight: int = 100,
) -> AsyncIterator[Bench]:
    settings = make_settings(
        restoration={"max_rate": rate, "max_in_flight": max_in_flight}, ping={"interval": "30m"}
    )
    gms = FakeGms(clock)
    in_flight = InFlight(max_in_flight, TARGET_SECONDS, clock)
    sending = Sending(
        store, cast(GmsClient, gms), Pacer(rate, clock), in_flight, settings, clock, asyncio.Event()
    )
    loops = [asyncio.create_task(life) for life in sending.lives().values()]
    await settle()
    try:
        yield Bench(Pinging(sending, settings, clock), sending, store, gms, clock)
    finally:
        gms.release()
        await settle()
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


# -- whether it may leave --------------------------------------------------------------------------------


async def test_retries_are_paid_for_by_first_tries_by_answers_and_by_time(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings, rate=5) as bench:
        may_go = bench.pinging.may_go
        [first] = await bench.claims("chat-1")
        again = replace(first, attempts=1)
        assert [may_go(again) for _ in range(7)] == [True] * 5 + [False] * 2
        assert [may_go(first) for _ in range(3)] == [True] * 3  # first tries always may
        assert [may_go(again) for _ in range(4)] == [True] * 3 + [False]
        bench.pinging.send(first)
        await settle()
        assert [may_go(again) for _ in range(2)] == [True, False]
        bench.gms.outcomes["chat-1"] = RetryLater(PingFault.STATUS_CODE_1)
        bench.pinging.send(first)
        await settle()
        assert not may_go(again)  # that was no answer
        await clock.advance(4)
        assert [may_go(again) for _ in range(3)] == [True, True, False]
        bench.pinging.reload(make_settings(restoration={"max_rate": 20}))
        await clock.advance(4)
        assert [may_go(again) for _ in range(9)] == [True] * 8 + [False]


async def test_a_retry_that_is_not_paid_for_is_put_off_as_if_it_had_not_been_claimed(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings, rate=1) as bench:
        claims = [
            replace(claim, attempts=2) for claim in await bench.claims(*(f"chat-{n}" for n in range(21)))
        ]
        now = clock.now()
        assert [bench.pinging.may_go(claim) for claim in claims] == [True] + [False] * 20
        await clock.advance(0.1)
        put_off = [await bench.session(claim.chat_id) for claim in claims[1:]]
        assert not bench.gms.pings
    assert {(session.leased_until, session.reason, session.attempts) for session in put_off} == {
        (0, Reason.KEEPALIVE, 0)
    }
    waits = sorted(session.due_at - now for session in put_off)
    assert PUT_OFF_MS[0] <= waits[0] <= waits[-1] <= PUT_OFF_MS[1]
    assert waits[-1] - waits[0] > 100  # and they do not come back all at once


async def test_a_chat_server_under_suspicion_has_a_share_of_what_may_be_in_flight(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings, rate=1000, max_in_flight=16) as bench:
        claims = await bench.claims(*(f"chat-{n}" for n in range(16)))
        for _ in range(3):
            bench.sending.flight.landed(bench.sending.flight.left("117"), FAILED)
        bench.gms.holding = True
        for claim in claims:
            if bench.pinging.may_go(claim):
                bench.pinging.send(claim)
        await settle()
        assert 1 <= len(bench.gms.pings) < 16
        assert len(bench.pinging) == len(bench.gms.pings)
        await clock.advance(0.1)
        put_off = [await bench.session(claim.chat_id) for claim in claims[len(bench.gms.pings) :]]
        assert {session.leased_until for session in put_off} == {0}


async def test_what_is_given_back_is_due_as_it_was_also_when_the_clock_is_set_back_before_it_is_written(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings) as bench:
        first, second, third = await bench.claims("chat-1", "chat-2", "chat-3")
        bench.pinging.give_back(first)
        await clock.advance(0.1)
        session = await bench.session("chat-1")
        assert (session.due_at, session.leased_until) == (first.due_at, 0)
        store.fill_disk()
        bench.pinging.give_back(second)
        bench.pinging.put_off(third)
        await clock.advance(0.1)
        clock.set_wall(-3_600_000)
        store.free_disk()
        await clock.advance(3)
        assert (await bench.session("chat-2")).due_at <= clock.now()
        assert (await bench.session("chat-3")).due_at <= clock.now()


# -- room ------------------------------------------------------------------------------------------------


async def waits(bench: Bench, until: float) -> asyncio.Task[None]:
    """A wait for room of somebody who has none."""
    bench.gms.holding = True
    for claim in await bench.claims("chat-1"):
        bench.pinging.send(claim)
    waiting = asyncio.create_task(bench.pinging.room(bench.clock.monotonic() + until))
    await settle()
    assert not waiting.done()
    return waiting


async def test_whoever_waits_for_room_has_it_when_an_answer_comes(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings, max_in_flight=1) as bench:
        waiting = await waits(bench, 60)
        await clock.advance(5)
        assert not waiting.done()
        bench.gms.release()
        await settle()
        assert waiting.done()


async def test_whoever_waits_for_room_does_so_no_longer_than_it_wants(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings, max_in_flight=1) as bench:
        waiting = await waits(bench, 2.5)
        await clock.advance(2.5)
        assert not waiting.done()
        await clock.advance(0.01)
        assert waiting.done()


async def test_whoever_waits_for_room_goes_when_the_daemon_stops(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings, max_in_flight=1) as bench:
        waiting = await waits(bench, 60)
        bench.pinging.stopping.set()
        await clock.advance(1.1)
        assert waiting.done()
        await bench.pinging.room(clock.monotonic() + 60)


async def test_whoever_waits_for_a_node_looks_again_when_its_rest_is_over(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings) as bench:
        bench.gms.free_slots, bench.gms.rests = 0, 0.3
        waiting = asyncio.create_task(bench.pinging.room(clock.monotonic() + 60))
        await clock.advance(0.29)
        bench.gms.free_slots = 1
        assert not waiting.done()
        await clock.advance(0.02)
        assert waiting.done()


# -- what is told of it ----------------------------------------------------------------------------------


async def test_each_ping_is_counted_by_its_reason_and_by_how_long_it_took(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    sent = metrics.REQUESTS_SENT.labels("keepalive")._value
    before, seconds = sent.get(), metrics.PING_SECONDS._sum.get()
    async with at_work(store, clock, make_settings) as bench:
        bench.gms.hang_seconds["chat-1"] = 0.75
        for claim in await bench.claims("chat-1", "chat-2"):
            bench.pinging.send(claim)
        assert sent.get() == before + 2
        assert len(bench.pinging) == 2
        await clock.advance(1)
        assert len(bench.pinging) == 0
    assert metrics.PING_SECONDS._sum.get() == seconds + 0.75


@pytest.mark.parametrize(("level", "told"), [("debug", ["chat-1"]), ("info", [])])
async def test_a_keepalive_that_is_answered_as_usual_is_told_at_debug_alone(
    level: Level,
    told: list[str],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
) -> None:
    configure(level, "json", events.output)
    async with at_work(store, clock, make_settings) as bench:
        bench.gms.outcomes["chat-2"] = RetryLater(PingFault.STATUS_CODE_1)
        for claim in await bench.claims("chat-1", "chat-2"):
            bench.pinging.send(claim)
        await clock.advance(0.1)
    assert [line["chat_id"] for line in events.of(Event.KEEPALIVE_OK)] == told
    assert events.one(Event.PING_RETRY)["chat_id"] == "chat-2"


async def test_how_many_pings_left_lately_is_told_per_second(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings) as bench:
        [claim] = await bench.claims("chat-1")
        assert bench.pinging.per_second() == 0
        for seconds, count in ((0.2, 20), (0.1, 5), (0.4, 0)):
            for _ in range(count):
                bench.pinging.send(claim)
            await clock.advance(seconds)
            assert bench.pinging.per_second() == pytest.approx(count / seconds)
        bench.pinging.send(claim)
        await clock.advance(PACE_SECONDS / 2)
        assert bench.pinging.per_second() == 0  # not enough time has passed to tell


# -- none is lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "name"), [("gms", "refresh"), ("judge", "settlement")])
async def test_a_ping_that_fails_through_our_own_fault_is_told_and_tried_again(
    part: str,
    name: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else its lease would be held, and its session pinged no more, for as long as the daemon runs."""
    async with at_work(store, clock, make_settings) as bench:
        works = getattr(getattr(bench.sending, part), name)
        faults = [KeyError("a fault")]

        def fails(*said: object, **more: object) -> object:
            if faults:
                raise faults.pop()
            return works(*said, **more)

        monkeypatch.setattr(getattr(bench.sending, part), name, fails)
        [claim] = await bench.claims("chat-1")
        bench.pinging.send(claim)
        await clock.advance(0.2)
        session = await bench.session("chat-1")
        assert (session.leased_until, session.attempts, session.reason) == (0, 1, Reason.KEEPALIVE)
        assert session.due_at > clock.now() - 200
        assert bench.sending.in_flight == len(bench.pinging) == 0
    told = events.one(Event.PING_FAILED)
    assert (told["chat_id"], told["cause"]) == ("chat-1", "KeyError")
    assert "a fault" in str(told["exception"])


async def test_a_session_without_a_service_goes_by_the_configured_one_as_it_is_now(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with at_work(store, clock, make_settings) as bench:
        [claim] = await bench.claims("chat-1")
        unnamed = replace(claim, service="")
        bench.pinging.send(unnamed)
        await settle()
        bench.pinging.reload(make_settings(gms={"nodes": ["http://gms-1/genesys"], "service": "other"}))
        bench.pinging.send(unnamed)
        bench.pinging.send(claim)
        await settle()
        assert [ping.service for ping in bench.gms.pings] == ["customer-support", "other", "support"]
