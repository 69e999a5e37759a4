"""Keepalives go together and leave evenly, and nothing waits behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import pytest
from conftest import (
    Events,
    FakeClock,
    MakeSettings,
    PromptStore,
    make_due,
    register,
    registration,
    settle,
    soon,
)

from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.pacing import CATCH_UP_SECONDS, InFlight, Pacer
from asyncchatd.log.events import Event
from asyncchatd.model import replace
from asyncchatd.model.data import Claim, Ms, Reason, Settled, Settlement, TokenNews
from asyncchatd.sending.judgement import FAILED
from asyncchatd.sending.sending import Sending
from asyncchatd.sending.settling import IDLE_SECONDS, PATIENT_SECONDS, together_seconds
from asyncchatd.sending.suspects import STRIKES
from asyncchatd.stores import STORE_PAUSE_SECONDS, StoreError
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.wire.chat_api.outcome import Alive
from asyncchatd.wire.chat_api.replies import Reply
from asyncchatd.worker import keepalives
from asyncchatd.worker.keepalives import (
    BESIDE_SECONDS,
    FEWEST,
    LARGEST_PORTION,
    LATE_SECONDS,
    LULL_SECONDS,
    Keepalives,
)
from asyncchatd.worker.pinging import Pinging

from .rig import INTERVAL_MS, LEASE_SECONDS, TARGET_SECONDS, FakeGms, Rig, running

pytestmark = pytest.mark.usefixtures("events")

TOGETHER_SECONDS = together_seconds(30 * 60)
SECONDS = 10
PER_SECOND = 50


class CountingStore(PromptStore):
    """Counts the transactions of claims and settlements, and the looks before sending."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = 0
        self.claimed_at: list[Ms] = []
        self.limits: list[int] = []
        """What each claim asked for, at most."""
        self.settlements = 0
        self.looks = 0

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        self.claims += 1
        self.claimed_at.append(now)
        self.limits.append(limit)
        return await super().claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self.settlements += 1
        return await super().settle(settlements)

    async def confirm(self, claims: Sequence[Claim]) -> Set[tuple[int, str]]:
        self.looks += 1
        return await super().confirm(claims)


@pytest.fixture
async def counting() -> AsyncIterator[CountingStore]:
    store = CountingStore()
    await store.open()
    yield store
    await store.close()


@dataclass
class Alone:
    """The loop of keepalives by itself, without the one for all reasons."""

    loop: Keepalives
    pinging: Pinging
    sending: Sending
    gms: FakeGms

    @property
    def has_handed_over(self) -> bool:
        """Whether it left keepalives to the other loop, and woke it."""
        return self.loop.swamped and self.sending.wakeup.is_set()


@asynccontextmanager
async def alone(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    *,
    rate: float = 200.0,
    max_in_flight: int = 100,
    interval: str = "30m",
) -> AsyncIterator[Alone]:
    """The loop at work: it has the keepalives, and nothing more urgent waits."""
    settings = make_settings(
        restoration={"max_rate": rate, "max_in_flight": max_in_flight}, ping={"interval": interval}
    )
    gms, wakeup = FakeGms(clock), asyncio.Event()
    in_flight = InFlight(max_in_flight, TARGET_SECONDS, clock)
    sending = Sending(store, cast(GmsClient, gms), Pacer(rate, clock), in_flight, settings, clock, wakeup)
    pinging = Pinging(sending, settings, clock)
    loop = Keepalives(store, sending, pinging, settings, clock)
    loop.resume()
    loop.quiet()
    tasks = [asyncio.create_task(life) for life in (loop.run(), *sending.lives().values())]
    await settle()
    try:
        yield Alone(loop, pinging, sending, gms)
    finally:
        gms.release()
        await settle()
        failed = [task for task in tasks if task.done() and task.exception() is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not failed


async def steady(
    store: PromptStore, clock: FakeClock, seconds: int = SECONDS, rate: int = PER_SECOND
) -> None:
    """Sessions whose keepalives fall due steadily from now on."""
    for number in range(seconds * rate):
        due = clock.now() + number * 1000 // rate
        await store.register([registration(f"chat-{number}")], now=due, spread_ms=0)


async def until(clock: FakeClock, happened: Callable[[], object]) -> None:
    """Let time pass until that has happened, for ten seconds at most."""
    for _ in range(500):
        if happened():
            return
        await clock.advance(0.02)
    raise AssertionError("it has not happened")


async def one_held(rig: Alone, store: PromptStore, clock: FakeClock) -> None:
    """A keepalive of `chat-1` that is under way."""
    rig.gms.holding = True
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    await until(clock, lambda: rig.gms.held)


def busiest(times: Sequence[float], width: float) -> int:
    return max(sum(first <= at < first + width for at in times) for first in times)


async def planned(rig: Rig, store: PromptStore) -> list[str]:
    """Chats whose keepalives were claimed together and have not been sent."""
    sessions = [session for session in await store.sessions(limit=1000) if session.leased_until]
    return [each.chat_id for each in sessions if each.chat_id and each.chat_id not in rig.gms.asked()]


async def until_some_are_planned(rig: Rig, store: PromptStore, clock: FakeClock) -> list[str]:
    for _ in range(200):
        await clock.advance(0.02)
        if len(found := await planned(rig, store)) >= 10:
            return found
    raise AssertionError("nothing was claimed ahead")


# -- together, and evenly -----------------------------------------------------------------------------


async def test_those_of_a_second_share_a_claim_and_a_settlement(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(counting, clock)
    async with running(counting, clock, make_settings) as rig:
        await clock.advance(SECONDS + 3)
        assert len(set(rig.gms.asked())) == len(rig.gms.pings) == SECONDS * PER_SECOND
    # The loop of the other reasons looks once a second, too.
    assert counting.claims <= 2 * (SECONDS + 3) + 10
    assert counting.settlements <= SECONDS + 10


@pytest.mark.slow
@pytest.mark.parametrize("rate", [54, 400])
async def test_they_leave_evenly(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, rate: int
) -> None:
    await steady(store, clock, seconds=8, rate=rate)
    async with running(store, clock, make_settings, rate=rate * 4) as rig:
        await clock.advance(12)
        # Before that it is found out how many there are.
        times = [ping.at for ping in rig.gms.pings if 2.5 < ping.at < 8]
    assert len(times) >= 5 * rate
    assert busiest(times, 1.0) <= 1.1 * rate
    assert busiest(times, 0.1) <= 1.2 * rate * (0.1 + BESIDE_SECONDS) + 2


async def test_each_leaves_soon_after_it_fell_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(SECONDS + 3)
        late = [ping.at - int(ping.chat_id.removeprefix("chat-")) / PER_SECOND for ping in rig.gms.pings]
    assert min(late) >= 0
    assert max(late) <= 2 * TOGETHER_SECONDS + 0.2


@pytest.mark.slow
async def test_no_silence_is_longer_than_the_interval(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock, seconds=5, rate=10)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(2 * INTERVAL_MS / 1000)
    times: dict[str, list[float]] = {}
    for ping in rig.gms.pings:
        times.setdefault(ping.chat_id, []).append(ping.at)
    silences = [later - earlier for each in times.values() for earlier, later in pairwise(each)]
    assert len(silences) >= 5 * 10
    assert max(silences) <= INTERVAL_MS / 1000
    assert min(silences) >= 0.9 * INTERVAL_MS / 1000


async def test_more_than_the_rate_allows_are_sent_as_fast_as_it_allows(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(600)), now=clock.now() + 3000, spread_ms=0)
    async with running(store, clock, make_settings, rate=100) as rig:
        await clock.advance(3 + 600 / 100 * 1.1 + 1)
        times = [ping.at for ping in rig.gms.pings]
    assert len(times) == 600
    assert busiest(times, 1.0) <= 100
    assert busiest(times, 0.1) <= 100 * (0.1 + CATCH_UP_SECONDS) + 1


@pytest.mark.slow
async def test_beside_pushes_the_rate_is_passed_in_no_second(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock, seconds=8)
    await register(store, *(f"busy-{number}" for number in range(300)), now=clock.now())
    async with running(store, clock, make_settings, rate=60) as rig:
        for number in range(160):
            await clock.advance(0.05)
            await rig.push(f"busy-{number}")
        await clock.advance(10)
        times = [ping.at for ping in rig.gms.pings]
    assert busiest(times, 1.0) <= 60
    assert len(set(rig.gms.asked())) == 8 * PER_SECOND + 160


# -- how many, and how often ---------------------------------------------------------------------------


async def test_no_more_are_claimed_than_can_be_sent_until_the_next_look(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """While nothing is due it looks away for twice as long each time, up to a second."""
    async with alone(counting, clock, make_settings, rate=50):
        await clock.advance(5)
    assert counting.limits[:6] == [5, 10, 20, 40, 50, 50]


async def test_a_claim_is_no_longer_transaction_however_high_the_rate_is(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(counting, clock, make_settings, rate=10_000):
        await clock.advance(4)
    assert set(counting.limits) == {LARGEST_PORTION}


@pytest.mark.parametrize(
    ("count", "apart_ms", "limit"),
    [(FEWEST - 1, 5, 200), (FEWEST, 5, 128), (2 * FEWEST, 5, 128), (FEWEST, 0, 20), (FEWEST, 20, 200)],
)
async def test_the_next_claim_is_for_the_time_in_which_half_a_portion_falls_due(
    counting: CountingStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    count: int,
    apart_ms: int,
    limit: int,
) -> None:
    """That is 0.64 s where they come 5 ms apart. Of too few it is not known, and a second is the longest."""
    async with alone(counting, clock, make_settings) as rig:
        await clock.advance(4)
        for number in range(count):
            due = clock.now() - number * apart_ms
            await counting.register([registration(f"chat-{number}")], now=due, spread_ms=0)
        await until(clock, lambda: rig.gms.pings)
        known = counting.claims
        await until(clock, lambda: counting.claims > known)
        assert counting.limits[known] == limit


async def test_few_share_a_claim_too(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(counting, clock, rate=2)
    async with alone(counting, clock, make_settings) as rig:
        await clock.advance(2)
        before = counting.claims
        await clock.advance(SECONDS - 2)
        assert counting.claims - before <= SECONDS - 2 + 1
        await clock.advance(2)
        assert len(rig.gms.pings) == 2 * SECONDS


async def test_several_share_a_look_before_they_are_sent(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(counting, clock, make_settings) as rig:
        await clock.advance(4)
        for number in range(64):
            due = clock.now() - 160 + number * 5 // 2
            await counting.register([registration(f"chat-{number}")], now=due, spread_ms=0)
        await clock.advance(1.5)
        assert len(rig.gms.pings) == 64
    assert counting.looks <= 64 / 3


@pytest.mark.parametrize(("due_ms", "looked_ms"), [(10, LULL_SECONDS * 1000), (600, 600)])
async def test_it_looks_away_until_the_next_falls_due_and_not_for_less_than_it_is_worth(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings, due_ms: int, looked_ms: int
) -> None:
    began = clock.now()
    await counting.register([registration("chat-1")], now=began + due_ms, spread_ms=0)
    async with alone(counting, clock, make_settings) as rig:
        await clock.advance(looked_ms / 1000)
        assert rig.gms.asked() == ["chat-1"]
    assert counting.claimed_at == [began, began + looked_ms]


async def test_it_looks_no_more_often_where_the_interval_is_a_second(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(counting, clock, make_settings, interval="1s"):
        await clock.advance(3)
    assert 25 <= counting.claims <= 3 / LULL_SECONDS + 1


async def test_it_does_not_look_for_what_falls_due_for_another_reason(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    began = clock.now()
    await register(counting, "chat-1", now=began)
    await make_due(counting, Reason.REQUEST, "chat-1", now=began + 600)
    async with alone(counting, clock, make_settings):
        await clock.advance(TOGETHER_SECONDS)
    assert counting.claimed_at == [began, began + TOGETHER_SECONDS * 1000]


# -- nothing waits behind them --------------------------------------------------------------------------


async def test_an_acknowledgement_goes_before_all_that_are_planned(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    await register(store, "urgent", now=clock.now())
    async with running(store, clock, make_settings) as rig:
        assert len(await until_some_are_planned(rig, store, clock)) >= 10
        await rig.push("urgent")
        await clock.advance(2 / 200)
        assert "urgent" in rig.gms.asked()


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "new-key"])
async def test_a_push_for_one_that_is_planned_is_acknowledged_at_once_and_with_one_ping(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, key: str | None
) -> None:
    await steady(store, clock)
    async with running(store, clock, make_settings) as rig:
        last = (await until_some_are_planned(rig, store, clock))[-1]
        await rig.push(last, secure_key=key)
        await clock.advance(3 / 200)
        [ping] = [ping for ping in rig.gms.pings if ping.chat_id == last]
        assert ping.tokens.secure_key == (key or f"key-of-{last}")
        await clock.advance(SECONDS)
        assert rig.gms.asked().count(last) == 1


async def test_a_push_for_one_whose_answer_is_only_to_be_written_is_acknowledged_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(0.3)
        session = await store.get("chat-1")
        assert session is not None
        assert session.leased_until  # answered, and not written
        await rig.push("chat-1")
        await clock.advance(3 / 200)
        assert rig.gms.asked() == ["chat-1", "chat-1"]


async def test_a_request_for_one_whose_answer_is_only_to_be_written_is_sent_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(0.3)
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
        rig.wakeup.set()
        await clock.advance(0.1)
        assert rig.gms.asked() == ["chat-1", "chat-1"]


async def test_they_wait_as_long_as_something_more_urgent_is_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    urgent = [f"chat-{number}" for number in range(5)]
    await register(store, *urgent, now=clock.now())
    async with running(store, clock, make_settings, rate=50) as rig:
        await clock.advance(3)
        calm = rig.worker._keepalives.calm
        assert calm.is_set()
        for chat_id in urgent:
            await rig.push(chat_id)
        await clock.advance(0.05)
        assert 0 < len(rig.gms.pings) < len(urgent)
        assert not calm.is_set()
        await clock.advance(1)
        assert sorted(rig.gms.asked()) == urgent
        assert calm.is_set()


async def test_a_restoration_goes_before_all_that_are_planned(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    lost = [f"lost-{number}" for number in range(100)]
    await register(store, *lost, now=clock.now(), alias="118")
    async with running(store, clock, make_settings) as rig:
        await until_some_are_planned(rig, store, clock)
        await rig.restore("118")
        await clock.advance(0.1)
        before = len(rig.gms.pings)
        await clock.advance(0.4)
        since = rig.gms.asked()[before:]
    assert set(since[:80]) <= set(lost)


async def test_whoever_wants_the_session_of_one_that_is_planned_has_it_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    async with running(store, clock, make_settings) as rig:
        last = (await until_some_are_planned(rig, store, clock))[-1]
        rig.worker._settling.want(last)
        await settle()
        taken = await store.take(last, until=clock.now() + 10_000, now=clock.now())
        assert not isinstance(taken, str), taken
        await clock.advance(TOGETHER_SECONDS)
        assert last not in rig.gms.asked()


async def test_one_whose_key_was_replaced_by_a_registration_waits_for_the_new_key(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    async with running(store, clock, make_settings) as rig:
        last = (await until_some_are_planned(rig, store, clock))[-1]
        known = registration(last)
        told = replace(known, tokens=replace(known.tokens, secure_key="new-key"))
        await store.register([told], now=clock.now(), spread_ms=0)
        await clock.advance(4)
        assert {ping.tokens.secure_key for ping in rig.gms.pings if ping.chat_id == last} == {"new-key"}


async def test_nothing_is_claimed_while_something_more_urgent_waits(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """What is claimed could not be taken up by another node."""
    async with alone(counting, clock, make_settings) as rig:
        await clock.advance(3)
        rig.loop.calm.clear()
        await clock.advance(1)
        before = counting.claims
        await register(counting, "chat-1", now=clock.now(), spread_ms=0)
        await clock.advance(3)
        assert counting.claims == before
        rig.loop.quiet()
        await settle()
        assert rig.gms.asked() == ["chat-1"]


async def test_what_is_planned_waits_while_something_more_urgent_does_and_then_leaves_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(store, clock, make_settings) as rig:
        await clock.advance(4)
        await register(store, *(f"chat-{number}" for number in range(10)), now=clock.now(), spread_ms=0)
        await until(clock, lambda: rig.gms.pings)
        rig.loop.calm.clear()
        before = len(rig.gms.pings)
        await clock.advance(0.5)
        assert len(rig.gms.pings) == before
        rig.loop.quiet()
        await clock.advance(0.05)
        assert len(rig.gms.pings) - before in {5, 6}


async def test_what_is_planned_does_not_wait_for_ever_for_what_is_more_urgent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(store, clock, make_settings) as rig:
        await clock.advance(4)
        await register(store, *(f"chat-{number}" for number in range(10)), now=clock.now(), spread_ms=0)
        await until(clock, lambda: rig.gms.pings)
        sent = len(rig.gms.pings)
        rig.loop.calm.clear()
        await clock.advance(LATE_SECONDS)
        assert not rig.loop.swamped
        await clock.advance(0.2)
        assert rig.has_handed_over
        await clock.advance(PATIENT_SECONDS)
        assert (await store.counts(now=clock.now())).leased == 0
        assert len(rig.gms.pings) == sent


async def test_nothing_is_claimed_while_a_node_is_tried(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(counting, clock, make_settings) as rig:
        await clock.advance(3)
        rig.gms.free_slots = 1
        await clock.advance(1)
        before = counting.claims
        await register(counting, "chat-1", now=clock.now(), spread_ms=0)
        await clock.advance(3)
        assert counting.claims == before
        rig.gms.free_slots = None
        await clock.advance(IDLE_SECONDS)
        assert rig.gms.asked() == ["chat-1"]


async def test_one_that_somebody_wants_neither_takes_a_turn_nor_holds_up_those_behind_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(store, clock, make_settings) as rig:
        await clock.advance(4)
        chats = [f"chat-{number}" for number in range(10)]
        await register(store, *chats, now=clock.now(), spread_ms=0)
        await until(clock, lambda: rig.gms.pings)
        waiting = [chat_id for chat_id in chats if chat_id not in rig.gms.asked()]
        rig.sending.settling.want(waiting[4])
        await clock.advance(0.95)
        assert sorted(rig.gms.asked()) == sorted(set(chats) - {waiting[4]})
        assert rig.sending.pacer.left() == 200 - 9
        assert not rig.loop.swamped


# -- one holder, and nothing is lost ---------------------------------------------------------------------


async def test_what_is_planned_is_held_also_when_it_takes_longer_than_a_lease(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    async with running(store, clock, make_settings, lease="600ms") as rig:
        waiting = await until_some_are_planned(rig, store, clock)
        for _ in range(30):
            # Another node on the same store asks for work.
            others = await store.claim(now=clock.now(), limit=1000, lease_ms=60_000)
            assert not {claim.chat_id for claim in others} & set(waiting)
            await clock.advance(0.05)
        assert set(waiting) <= set(rig.gms.asked())
        assert set(rig.gms.most_at_once.values()) == {1}


async def test_what_gms_has_no_room_for_is_given_back_and_comes_later(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock, seconds=4)
    gms = FakeGms(clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        await until_some_are_planned(rig, store, clock)
        gms.free_slots, gms.rests = 0, 0.5
        await clock.advance(TOGETHER_SECONDS + LATE_SECONDS + 0.5)
        assert (await store.counts(now=clock.now())).leased == 0
        gms.free_slots = None
        await clock.advance(10)
        assert len(rig.gms.pings) == len(set(rig.gms.asked())) == 4 * PER_SECOND


async def test_a_stop_gives_back_what_is_planned_and_writes_what_was_answered(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock)
    async with running(store, clock, make_settings) as rig:
        waiting = await until_some_are_planned(rig, store, clock)
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(0.1)
        assert await soon(drained) == 0
        sessions = await store.sessions(limit=1000)
        assert not [each.chat_id for each in sessions if each.leased_until]
        answered = {each.chat_id for each in sessions if each.answered_at is not None}
        assert answered == set(rig.gms.asked())
        assert not answered & set(waiting)
        assert all(each.due_at <= clock.now() for each in sessions if each.chat_id in waiting)


async def test_a_kill_costs_one_ping_more_at_most_and_none_less(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await steady(store, clock, seconds=4)
    gms = FakeGms(clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        await until_some_are_planned(rig, store, clock)
        for task in rig.loops.values():
            task.cancel()
        await settle()
    store._held.clear()
    before = len(gms.pings)
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(LEASE_SECONDS + 10)
    asked = gms.asked()
    assert set(asked) == {f"chat-{number}" for number in range(4 * PER_SECOND)}
    again = [chat_id for chat_id in asked[:before] if chat_id in asked[before:]]
    assert len(again) <= PER_SECOND * PATIENT_SECONDS + 5
    assert set(gms.most_at_once.values()) == {1}


async def test_one_whose_lease_ran_out_while_its_ping_is_under_way_is_put_off(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stands still while it renews the leases, and then is given again what it holds."""
    renew = store.renew

    async def slowly(claims: Sequence[Claim], *, until: Ms) -> None:
        clock.stall(2 * LEASE_SECONDS)
        monkeypatch.setattr(store, "renew", renew)
        await renew(claims, until=until)

    async with alone(store, clock, make_settings) as rig:
        await one_held(rig, store, clock)
        monkeypatch.setattr(store, "renew", slowly)
        clock.stall(LEASE_SECONDS / 2)
        await clock.advance(0.3)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.leased_until, session.due_at > clock.now()) == (0, True)
        await clock.advance(5)
        assert rig.gms.most_at_once["chat-1"] == 1


async def test_one_whose_ping_is_under_way_is_not_given_back_to_whoever_wants_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(store, clock, make_settings) as rig:
        await one_held(rig, store, clock)
        rig.sending.settling.want("chat-1")
        await clock.advance(1)
        session = await store.get("chat-1")
        assert session is not None
        assert session.leased_until > clock.now()
        assert len(rig.gms.pings) == 1


async def test_one_whose_chat_server_takes_no_more_is_put_off_and_not_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(store, clock, make_settings) as rig:
        aliases = rig.sending.flight.aliases
        for _ in range(100):
            aliases.sent("118")
        for _ in range(STRIKES):
            aliases.landed("118", FAILED)
        await register(store, "chat-1", now=clock.now(), alias="118", spread_ms=0)
        await register(store, "chat-2", now=clock.now(), spread_ms=0)
        await until(clock, lambda: rig.gms.pings)
        await clock.advance(0.2)
        assert rig.gms.asked() == ["chat-2"]
        session = await store.get("chat-1")
        assert session is not None
        assert (session.leased_until, session.due_at > clock.now()) == (0, True)


async def test_those_that_cannot_leave_in_time_are_given_back_and_left_to_the_other_loop(
    counting: CountingStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    chats = [f"chat-{number}" for number in range(10)]
    async with alone(counting, clock, make_settings, max_in_flight=3) as rig:
        await clock.advance(4)
        rig.gms.holding = True
        await register(counting, *chats, now=clock.now(), spread_ms=0)
        await until(clock, lambda: len(rig.gms.pings) == 3)
        for chat_id in sorted(set(chats) - set(rig.gms.asked()))[-3:]:
            rig.sending.settling.want(chat_id)
        await clock.advance(LATE_SECONDS)
        assert (await counting.counts(now=clock.now())).leased == 7
        assert not rig.loop.swamped
        await clock.advance(0.5)
        assert rig.has_handed_over
        assert (await counting.counts(now=clock.now())).leased == len(rig.gms.pings) == 3
        before = counting.settlements
        for chat_id in chats:
            rig.sending.settling.want(chat_id)  # and nothing is given back twice
        await clock.advance(1)
        assert counting.settlements == before


async def test_a_stop_does_not_wait_for_the_moment_of_the_next_one(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with alone(store, clock, make_settings) as rig:
        await clock.advance(4)
        await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
        await until(clock, lambda: rig.gms.pings)
        rig.pinging.stopping.set()
        await settle()
        assert rig.loop.idle.is_set()
        await clock.advance(PATIENT_SECONDS)
        assert (await store.counts(now=clock.now())).leased == 0
        assert len(rig.gms.pings) == 1


async def test_nothing_leaves_after_a_stop_that_came_during_the_look(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm = store.confirm
    async with alone(store, clock, make_settings) as rig:

        async def stopped(claims: Sequence[Claim]) -> Set[tuple[int, str]]:
            rig.pinging.stopping.set()
            return await confirm(claims)

        monkeypatch.setattr(store, "confirm", stopped)
        await register(store, "chat-1", now=clock.now(), spread_ms=0)
        await until(clock, rig.loop.idle.is_set)
        await clock.advance(0.1)
        assert not rig.gms.pings
        assert (await store.counts(now=clock.now())).leased == 0


async def test_an_answer_that_has_a_new_key_does_not_wait(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", None, "new-key", None)))
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(0.01)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.secure_key, session.leased_until) == ("new-key", 0)


async def test_half_of_what_may_be_claimed_together_is_aimed_at(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However thick they fall due, pushes wait for no longer transaction."""
    portions = list[int]()
    claim = store.claim

    async def counted(*, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason]) -> list[Claim]:
        claims = await claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)
        if Reason.REQUEST not in reasons:
            portions.append(len(claims))
        return claims

    monkeypatch.setattr(keepalives, "LARGEST_PORTION", 64)
    monkeypatch.setattr(store, "claim", counted)
    await steady(store, clock, seconds=2, rate=100)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(0.8)
        portions.clear()
        await clock.advance(1.1)
        assert len(portions) >= 3
        assert 26 <= min(portions) <= max(portions) <= 38
        await clock.advance(1)
        assert len(rig.gms.pings) == 200


# -- whose they are --------------------------------------------------------------------------------------


async def test_they_are_the_other_loops_until_it_has_found_no_more_than_it_can_send(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    gms = FakeGms(clock)
    settings = make_settings(restoration={"max_rate": 200.0, "max_in_flight": 100}, ping={"interval": "30m"})
    in_flight = InFlight(100, 1.0, clock)
    sending = Sending(
        store, cast(GmsClient, gms), Pacer(200.0, clock), in_flight, settings, clock, asyncio.Event()
    )
    loop = Keepalives(store, sending, Pinging(sending, settings, clock), settings, clock)
    assert loop.swamped
    loop.quiet()
    assert not loop.calm.is_set()  # it would claim those that the other loop claims
    loop.resume()
    assert not loop.swamped
    loop.quiet()
    assert loop.calm.is_set()
    loop.swamp()
    assert (loop.swamped, loop.calm.is_set()) == (True, False)
    loop.resume()
    gms.free_slots = 1
    assert loop.swamped  # a node is being tried, which is no time to send evenly
    loop.quiet()
    assert not loop.calm.is_set()
    gms.free_slots = None
    assert not loop.swamped


async def test_as_many_as_were_asked_for_leave_at_the_rate_and_the_next_are_the_other_loops(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """There are more than can be sent evenly."""
    await register(store, *(f"chat-{number}" for number in range(12)), now=clock.now(), spread_ms=0)
    async with alone(store, clock, make_settings, rate=50) as rig:
        await clock.advance(0.06)
        assert not rig.loop.swamped
        await clock.advance(0.06)
        assert len(rig.gms.pings) == 5  # of the first tenth of a second
        assert rig.has_handed_over
        assert not rig.loop.calm.is_set()
        await clock.advance(3)
        assert len(rig.gms.pings) == 5


async def test_a_store_that_fails_is_told_and_tried_again_a_little_later(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = store.claim
    asked = list[float]()

    async def fails(*, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason]) -> list[Claim]:
        if Reason.REQUEST not in reasons:
            asked.append(clock.monotonic())
            raise StoreError("a statement failed")
        return await claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    async with running(store, clock, make_settings) as rig:
        await clock.advance(3)
        await register(store, "chat-1", now=clock.now(), spread_ms=0)
        monkeypatch.setattr(store, "claim", fails)
        await clock.advance(5)
        told = [line["cause"] for line in events.of(Event.STORE_FAILED)]
        assert told == ["a statement failed"] * len(asked)
        assert 2 <= len(asked) <= 1 + 5 / STORE_PAUSE_SECONDS
        monkeypatch.undo()
        await clock.advance(3)
        assert rig.gms.asked() == ["chat-1"]
