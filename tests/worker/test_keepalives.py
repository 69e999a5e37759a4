"""Keepalives go together and leave evenly, and nothing waits behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import pytest
from conftest import Events, FakeClock, MakeSettings, PromptStore, register, registration, settle, soon

from asyncchatd.gms.client import GmsClient
from asyncchatd.gms.pacing import CATCH_UP_SECONDS, InFlight, Pacer
from asyncchatd.log.events import Event
from asyncchatd.model import replace
from asyncchatd.model.data import Claim, Ms, Reason, Settled, Settlement, TokenNews
from asyncchatd.sending.sending import Sending
from asyncchatd.sending.settling import PATIENT_SECONDS, together_seconds
from asyncchatd.stores import STORE_PAUSE_SECONDS, StoreError
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.wire.chat_api.outcome import Alive
from asyncchatd.wire.chat_api.replies import Reply
from asyncchatd.worker import keepalives
from asyncchatd.worker.keepalives import BESIDE_SECONDS, LATE_SECONDS, Keepalives
from asyncchatd.worker.pinging import Pinging

from .rig import INTERVAL_MS, LEASE_SECONDS, FakeGms, Rig, running

pytestmark = pytest.mark.usefixtures("events")

TOGETHER_SECONDS = together_seconds(30 * 60)
SECONDS = 10
PER_SECOND = 50


class CountingStore(PromptStore):
    """Counts the transactions of claims and settlements."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = 0
        self.settlements = 0

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        self.claims += 1
        return await super().claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self.settlements += 1
        return await super().settle(settlements)


@pytest.fixture
async def counting() -> CountingStore:
    store = CountingStore()
    await store.open()
    return store


async def steady(
    store: PromptStore, clock: FakeClock, seconds: int = SECONDS, rate: int = PER_SECOND
) -> None:
    """Sessions whose keepalives fall due steadily from now on."""
    for number in range(seconds * rate):
        due = clock.now() + number * 1000 // rate
        await store.register([registration(f"chat-{number}")], now=due, spread_ms=0)


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
    await counting.close()


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
