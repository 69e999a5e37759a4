"""Leases are held and answers written, whatever the store does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from conftest import NOON, Events, FakeClock, MakeSettings, PromptStore, make_due, register, settle, soon
from worker.rig import LEASE_SECONDS, FakeGms, running

from asyncchatd.log.events import Event
from asyncchatd.model.data import Claim, Ms, Reason, Settled, Settlement, TokenNews
from asyncchatd.sending.settling import PATIENT_SECONDS, Settling
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.trouble import STORE_PAUSE_SECONDS
from asyncchatd.wire.chat_api.outcome import Alive
from asyncchatd.wire.chat_api.replies import Reply

pytestmark = pytest.mark.usefixtures("events")


# -- leases ----------------------------------------------------------------------------------------------


async def test_a_lease_is_held_for_as_long_as_gms_takes(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms):
        for _ in range(8):
            await clock.advance(LEASE_SECONDS / 2)
            # Another node on the same store asks for work.
            assert not await store.claim(now=clock.now(), limit=10, lease_ms=1000)
        gms.release()
        await clock.advance(PATIENT_SECONDS)
        session = await store.get("chat-1")
    assert session is not None
    assert session.leased_until == 0
    assert session.answered_at == clock.now() - PATIENT_SECONDS * 1000


async def test_a_lease_ends_soon_after_its_holder_died(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    assert await store.claim(now=clock.now(), limit=1, lease_ms=LEASE_SECONDS * 1000)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(LEASE_SECONDS - 0.1)
        assert not rig.gms.pings
        await clock.advance(1.2)  # nobody wakes the worker for it
        assert len(rig.gms.pings) == 1


async def test_what_is_held_is_safe_for_a_lease_from_the_last_renewal_on(
    store: PromptStore, clock: FakeClock
) -> None:
    settling = Settling(store, clock, asyncio.Event(), LEASE_SECONDS * 1000)
    renewed_at = clock.monotonic()
    assert settling.safe_until() == renewed_at + LEASE_SECONDS
    await clock.advance(LEASE_SECONDS / 2 - 0.001)
    assert not settling.is_late()
    await settling.renew_late()
    assert settling.safe_until() == pytest.approx(renewed_at + LEASE_SECONDS)
    clock.stall(0.001)
    assert settling.is_late()
    await settling.renew_late()
    assert not settling.is_late()
    assert settling.safe_until() == clock.monotonic() + LEASE_SECONDS
    assert settling.woke_at == clock.monotonic()


@pytest.mark.parametrize("during", [False, True], ids=["after the renewal", "during the renewal"])
async def test_a_lease_of_which_is_read_after_a_standstill_is_as_old_as_its_claim(
    store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, during: bool
) -> None:
    """Its answer lay in a socket, and the leases that were known were renewed before it was read."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    settling = Settling(store, clock, asyncio.Event(), LEASE_SECONDS * 1000)
    asked_at, renew = clock.now(), store.renew
    claims = await store.claim(now=asked_at, limit=1, lease_ms=settling.lease_ms)

    async def reads_the_answer_meanwhile(held: Sequence[Claim], *, until: Ms) -> None:
        await renew(held, until=until)
        if during:
            settling.hold(claims, asked_at)

    clock.stall(LEASE_SECONDS - 1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "renew", reads_the_answer_meanwhile)
        await settling.renew_late()
    if not during:
        settling.hold(claims, asked_at)
    assert settling.is_late()
    assert settling.safe_until() == pytest.approx(clock.monotonic() + 1)
    await settling.renew_late()
    assert settling.safe_until() == clock.monotonic() + LEASE_SECONDS
    session = await store.get("chat-1")
    assert session is not None
    assert session.leased_until == clock.now() + LEASE_SECONDS * 1000


# -- the store fails ---------------------------------------------------------------------------------


async def test_a_store_that_fails_for_a_while_loses_no_answer(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """The answer may carry a new secure key that nobody will tell again."""
    chats = [f"chat-{number}" for number in range(5)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = {
        chat_id: Alive(Reply(0, TokenNews(chat_id, None, f"new-{chat_id}", None))) for chat_id in chats
    }
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(1)
        store.fill_disk()
        gms.release()
        await clock.advance(3)
        assert events.one(Event.STORE_UNWRITABLE)
        store.free_disk()
        await clock.advance(2)
        for chat_id in chats:
            session = await store.get(chat_id)
            assert session is not None
            assert (session.secure_key, session.leased_until) == (f"new-{chat_id}", 0)


@pytest.mark.parametrize(
    ("took", "pause"), [(0.0, STORE_PAUSE_SECONDS), (0.4, STORE_PAUSE_SECONDS - 0.4), (60.0, 0.0)]
)
async def test_between_two_tries_to_write_a_second_passes_also_where_the_process_stood_still_in_the_first(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    took: float,
    pause: float,
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    settle, tried_at = store.settle, list[float]()

    async def fails_at_first(settlements: Sequence[Settlement]) -> list[Settled]:
        tried_at.append(clock.monotonic())
        if len(tried_at) == 1:
            clock.stall(took)
            raise StoreUnwritable("the connection broke off")
        return await settle(settlements)

    monkeypatch.setattr(store, "settle", fails_at_first)
    async with running(store, clock, make_settings):
        await clock.advance(2 * PATIENT_SECONDS + took + pause)
        first, second = tried_at
        assert second - first == pytest.approx(took + pause)
        session = await store.get("chat-1")
        assert session is not None
        assert session.leased_until == 0


async def test_an_answer_of_before_the_clock_was_set_back_is_due_by_the_clock_of_now(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """The due times that the store knows are put right once; an answer may be written down later than that."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(1)
        store.fill_disk()
        gms.release()
        await clock.advance(1)
        clock.set_wall(-3_600_000)
        store.free_disk()
        await clock.advance(3)
        session = await store.get("chat-1")
        assert session is not None
        assert session.due_at <= clock.now() + 30 * 60_000
        assert session.answered_at is not None
        assert session.answered_at <= clock.now()


@pytest.mark.parametrize("answered", ["meanwhile", "afterwards"])
async def test_a_store_that_fails_for_longer_than_a_lease_has_no_session_pinged_twice(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, answered: str
) -> None:
    """Leases could not be renewed; but the answer, told or still to come, has the key that is right now."""
    chats = [f"chat-{number}" for number in range(5)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = {
        chat_id: Alive(Reply(0, TokenNews(chat_id, None, f"new-{chat_id}", None))) for chat_id in chats
    }
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        store.fill_disk()
        if answered == "meanwhile":
            gms.holding = False
            gms.release()
        await clock.advance(60)
        store.free_disk()
        await clock.advance(5)
        gms.holding = False
        gms.release()
        await clock.advance(5)
        for chat_id in chats:
            await make_due(store, Reason.REQUEST, chat_id, now=clock.now())
        rig.wakeup.set()
        await clock.advance(5)
        for chat_id in chats:
            keys = [ping.tokens.secure_key for ping in gms.pings if ping.chat_id == chat_id]
            assert keys[0] == f"key-of-{chat_id}"
            assert set(keys[1:]) == {f"new-{chat_id}"}
    assert set(gms.most_at_once.values()) == {1}


async def test_what_cannot_be_read_for_the_log_does_not_stop_the_settling(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished restoration is read once more for its last line."""
    await register(store, "chat-1", now=clock.now())
    settled = store.settle

    async def settle_and_break(settlements: list[Settlement]) -> list[Settled]:
        done = await settled(settlements)
        store.fill_disk()
        return done

    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await rig.restore()
        await clock.advance(0.1)
        monkeypatch.setattr(store, "settle", settle_and_break)
        gms.release()
        await clock.advance(0.1)
        assert not rig.loops["settling"].done()
        store.free_disk()


# -- stopping ------------------------------------------------------------------------------------


async def test_drain_waits_for_a_transaction_that_is_being_written(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drains then cancels the settling: an answer that the disk did not take would be gone."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    settled = store.settle
    writing, go_on = asyncio.Event(), asyncio.Event()

    async def slow(settlements: list[Settlement]) -> list[Settled]:
        writing.set()
        await go_on.wait()
        return await settled(settlements)

    monkeypatch.setattr(store, "settle", slow)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(PATIENT_SECONDS)
        assert writing.is_set()
        drained = asyncio.create_task(rig.worker.drain(60))
        await settle()
        assert not drained.done()
        go_on.set()
        assert await soon(drained) == 0
        session = await store.get("chat-1")
        assert session is not None
        assert session.answered_at == NOON


async def test_drain_tells_of_an_answer_that_is_still_being_written(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", None, "new-key", None)))
    writing = asyncio.Event()

    async def never(batch: Sequence[Settlement]) -> list[Settled]:
        writing.set()
        forever: asyncio.Future[list[Settled]] = asyncio.get_running_loop().create_future()
        return await forever

    monkeypatch.setattr(store, "settle", never)
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        await soon(writing.wait())
        await soon(rig.worker.drain(0.01))
    assert events.one(Event.ANSWERS_LOST)["chat_ids"] == ["chat-1"]


async def test_an_answer_outlives_whatever_the_store_says_to_it(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that nobody here wrote may raise what its contract does not name."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", None, "new-key", None)))
    settle, tries = store.settle, 0

    async def settle_the_second_time(batch: Sequence[Settlement]) -> list[Settled]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("no active connection")
        return await settle(batch)

    monkeypatch.setattr(store, "settle", settle_the_second_time)
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(1)
        assert events.one(Event.STORE_FAILED)["cause"] == "no active connection"
        await clock.advance(5)
    [session] = await store.sessions(limit=10)
    assert session.secure_key == "new-key"
