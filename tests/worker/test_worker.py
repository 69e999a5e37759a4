"""The worker: what is due is pinged, in order, within its limits, and a stop loses no answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

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
    tokens,
)

from asyncchatd.gms.client import Answer
from asyncchatd.gms.pacing import InFlight
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log.events import Event
from asyncchatd.model.data import Claim, Ms, Reason, SessionState, TokenNews, Tokens
from asyncchatd.sending import FAILED, IDLE_SECONDS
from asyncchatd.sending.suspects import STRIKES
from asyncchatd.standin.messages import write_push
from asyncchatd.stores.answers import Absorbed
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.stores.trouble import STORE_PAUSE_SECONDS
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api.outcome import Alive, NodeTrouble, RetryLater
from asyncchatd.wire.chat_api.replies import Reply
from asyncchatd.wire.push import read_push
from asyncchatd.worker.keepalives import LULL_SECONDS
from asyncchatd.worker.worker import FAVOUR_EVERY, FAVOURED, LARGEST_BATCH, SMALLEST_BATCH, STALE_SECONDS

from .rig import INTERVAL_MS, LEASE_SECONDS, FakeGms, running

pytestmark = pytest.mark.usefixtures("events")


# -- what is pinged, and in which order --------------------------------------------------------------


async def test_a_due_session_is_pinged_with_its_tokens_and_its_position(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await store.register([registration("chat-1", position=42)], now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(0.1)
        [ping] = rig.gms.pings
    assert (ping.service, ping.tokens, ping.position) == ("support", tokens("chat-1"), 42)


async def test_a_session_without_a_service_is_pinged_under_the_configured_one(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with running(store, clock, make_settings) as rig:
        await rig.push("chat-1", secure_key="key-1")
        await clock.advance(0.1)
        assert [ping.service for ping in rig.gms.pings] == ["customer-support"]


async def test_nothing_is_pinged_before_it_is_due_and_then_soon(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=100_000)
    session = await store.get("chat-1")
    assert session is not None
    wait = (session.due_at - clock.now()) / 1000
    async with running(store, clock, make_settings) as rig:
        await clock.advance(wait - 0.01)
        assert not rig.gms.pings
        await clock.advance(0.13)
        assert rig.gms.asked() == ["chat-1"]


async def test_the_most_urgent_reason_goes_first(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    now = clock.now()
    await register(store, "keepalive", now=now - 3_600_000, spread_ms=0)  # waits longest
    await register(store, "request", now=now)
    await make_due(store, Reason.REQUEST, "request", now=now - 1_800_000)
    await register(store, "restore", now=now, alias="118")
    await register(store, "acknowledge", now=now)
    gms = FakeGms(clock)
    gms.free_slots = 0
    async with running(store, clock, make_settings, gms=gms, rate=40) as rig:
        await rig.restore("118")
        await rig.push("acknowledge")
        await clock.advance(1)
        gms.free_slots = None
        await clock.advance(2)
    assert gms.asked() == ["acknowledge", "restore", "request", "keepalive"]


async def test_what_becomes_urgent_does_not_wait_behind_what_is_not(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A claim takes a tenth of a second's work, so that is the most a push waits."""
    await register(store, *(f"chat-{number}" for number in range(400)), now=clock.now(), spread_ms=0)
    await register(store, "urgent", now=clock.now())
    async with running(store, clock, make_settings, rate=100) as rig:
        await clock.advance(0.55)
        await rig.push("urgent")
        pushed = clock.monotonic()
        await clock.advance(0.5)
        [ping] = [ping for ping in rig.gms.pings if ping.chat_id == "urgent"]
        assert ping.at - pushed <= 0.15


async def test_the_most_recently_active_sessions_are_restored_first(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    for number, chat_id in enumerate(("old", "middle", "new")):
        await register(store, chat_id, now=clock.now() + number * 60_000)
    clock.set_wall(600_000)
    async with running(store, clock, make_settings) as rig:
        await rig.restore()
        await clock.advance(1)
        assert rig.gms.asked() == ["new", "middle", "old"]


@pytest.mark.slow
async def test_keepalives_go_on_during_a_long_restore_storm(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"lost-{number}" for number in range(1500)), now=clock.now(), alias="118")
    await register(store, *(f"quiet-{number}" for number in range(20)), now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.free_slots = 0
    async with running(store, clock, make_settings, gms=gms) as rig:
        await rig.restore("118")
        gms.free_slots = None
        await clock.advance(6)
        kinds = Counter(chat_id.split("-")[0] for chat_id in gms.asked())
    assert kinds["quiet"] == 20
    assert kinds["lost"] > 1000


@pytest.mark.slow
async def test_restorations_go_on_during_a_push_storm(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    busy = [f"busy-{number}" for number in range(40)]
    await register(store, *busy, now=clock.now())
    await register(store, *(f"lost-{number}" for number in range(10)), now=clock.now(), alias="118")
    async with running(store, clock, make_settings, rate=100) as rig:
        await rig.restore("118")
        for _ in range(40):  # 400 pushes a second for 100 pings a second
            for chat_id in busy:
                await rig.push(chat_id)
            await clock.advance(0.1)
        assert {f"lost-{number}" for number in range(10)} <= set(rig.gms.asked())


# -- how fast ------------------------------------------------------------------------------------


async def test_the_rate_is_never_passed_in_any_second(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(300)), now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=50) as rig:
        await clock.advance(5)
        times = [ping.at for ping in rig.gms.pings]
    assert max(sum(first <= at < first + 1 for at in times) for first in times) <= 50
    assert len(times) >= 240


async def test_no_more_than_the_limit_are_in_flight(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(10)), now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms, max_in_flight=3) as rig:
        await clock.advance(0.5)
        assert len(gms.pings) == rig.worker.in_flight == 3
        gms.release(1)
        await clock.advance(0.1)
        assert len(gms.pings) == 4
        gms.release()
        await clock.advance(0.1)
        assert len(gms.pings) == 7
        assert rig.worker.in_flight == 3


async def test_nothing_is_claimed_while_gms_has_no_slots(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """What is claimed could not be taken up by another node."""
    await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.free_slots, gms.rests = 0, 0.5
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(0.4)
        assert (await store.counts(now=clock.now())).leased == 0
        gms.free_slots = 1
        await clock.advance(0.2)
        assert len(gms.pings) >= 1


@pytest.mark.parametrize("slots", [0, 1])
async def test_pushes_take_effect_while_gms_is_away_and_do_not_wake_the_worker(
    slots: int, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """Else their journal would grow, and nobody see who waits. The one slot there may be is taken by a trial."""
    await register(store, *(f"due-{number}" for number in range(30)), now=clock.now(), spread_ms=0)
    chats = [f"chat-{number}" for number in range(200)]
    await register(store, *chats, now=clock.now())
    gms = FakeGms(clock)
    gms.free_slots, gms.rests, gms.holding = slots, 60, True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(3)
        before = store.absorbed
        for chat_id in chats:
            await rig.push(chat_id)
            await clock.advance(0.01)
        await clock.advance(0.3)
        assert not store.waiting()
        counts = await store.counts(now=clock.now())
        assert counts.due[Reason.ACKNOWLEDGE] == len(chats)
        assert store.absorbed - before <= 12
        assert (len(gms.pings), counts.leased) == (slots, slots)


async def test_pushes_take_effect_while_as_many_pings_wait_for_gms_as_may(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"due-{number}" for number in range(30)), now=clock.now(), spread_ms=0)
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms, max_in_flight=3) as rig:
        await clock.advance(0.5)
        await rig.push("chat-1")
        await clock.advance(1.1)
        assert not store.waiting()
        session = await store.get("chat-1")
        assert session is not None
        assert session.reason is Reason.ACKNOWLEDGE
        assert len(gms.pings) == 3


async def test_a_ping_for_which_no_node_was_left_is_as_if_it_had_not_been(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now() - 5, spread_ms=0)
    before = await store.get("chat-1")
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = NodeTrouble(Trouble.NO_NODE)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(0.1)
        gms.free_slots, gms.rests = 0, 60
        gms.release()
        await clock.advance(0.1)
        after = await store.get("chat-1")
    assert before is not None
    assert after is not None
    assert (after.due_at, after.attempts, after.leased_until) == (before.due_at, 0, 0)


async def test_a_shutdown_notice_makes_the_watcher_look(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now())
    leave = {"type": "ParticipantLeft", "participantId": 1, "quit-reason-advice": "reconnect"}
    async with running(store, clock, make_settings) as rig:
        body = write_push("device-of-chat-1", {"chatId": "chat-1", "messages": [leave]})
        await store.take_push(read_push(body), now=clock.now())
        rig.wakeup.set()
        await clock.advance(0.1)
        assert rig.suspected == ["117"]
        assert rig.gms.asked() == ["chat-1"]


async def test_a_shutdown_notice_without_an_alias_casts_doubt_on_no_chat_server(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    leave = {"type": "ParticipantLeft", "participantId": 1, "quit-reason-advice": "reconnect"}
    async with running(store, clock, make_settings) as rig:
        body = write_push("device-of-chat-1", {"chatId": "chat-1", "messages": [leave]})
        await store.take_push(read_push(body), now=clock.now())
        rig.wakeup.set()
        await clock.advance(0.1)
        assert events.of(Event.PUSH_UNKNOWN_SESSION)
        assert rig.suspected == []


@pytest.mark.parametrize("key", [None, "new-key"])
async def test_a_usual_push_casts_no_doubt_on_its_chat_server(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, key: str | None
) -> None:
    await register(store, "chat-1", now=clock.now())
    async with running(store, clock, make_settings) as rig:
        await rig.push("chat-1", secure_key=key)
        await clock.advance(0.1)
        assert rig.gms.asked() == ["chat-1"]
        assert rig.suspected == []


async def test_settings_that_are_reloaded_hold_for_the_next_ping(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with running(store, clock, make_settings) as rig:
        rig.worker.reload(make_settings(gms={"nodes": ["http://gms-1/genesys"], "service": "other"}))
        await rig.push("chat-1", secure_key="key-1")
        await clock.advance(0.1)
        assert [ping.service for ping in rig.gms.pings] == ["other"]


@pytest.mark.slow
async def test_retries_of_an_outage_do_not_outnumber_what_else_is_to_be_done(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A GMS that answers nothing is asked for a tenth of the rate, not for all of it."""
    chats = [f"chat-{number}" for number in range(200)]
    for number, chat_id in enumerate(chats):
        await register(store, chat_id, now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, RetryLater(chat_api.PingFault.STATUS_CODE_1))
    async with running(store, clock, make_settings, gms=gms, rate=100, backoff="50ms", backoff_max="50ms"):
        await clock.advance(30)
    late = [ping for ping in gms.pings if ping.at >= 20]
    assert 50 <= len(late) <= 110


@pytest.mark.parametrize(
    ("rate", "max_in_flight", "lately", "limit"),
    [
        (10_000, 1_000, 9_000, LARGEST_BATCH),
        (10_000, 3, 900, 90),
        (10_000, 1_000, 0, InFlight(1_000, 1.0, FakeClock()).limit),
        (10_000, 3, 0, SMALLEST_BATCH),
        (50, 100, 0, 5),
        (0.5, 100, 0, 1),
    ],
)
async def test_a_claim_takes_what_can_be_sent_until_the_next_one(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    max_in_flight: int,
    lately: float,
    limit: int,
) -> None:
    """By the rate, and by what GMS is known to let through: at first little."""
    async with running(
        store, clock, make_settings, rate=rate, max_in_flight=max_in_flight, is_started=False
    ) as rig:
        monkeypatch.setattr(rig.worker._pinging, "per_second", lambda: lately)
        assert rig.worker._batch() == limit


async def test_a_claim_takes_what_gms_lately_let_through(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(1_000)), now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=400, max_in_flight=3) as rig:
        await clock.advance(1)
        assert 30 <= rig.worker._batch() <= 40


@pytest.mark.parametrize(
    ("due_ms", "seconds"), [(None, IDLE_SECONDS), (10, LULL_SECONDS), (300, 0.3), (60_000, IDLE_SECONDS)]
)
async def test_the_worker_looks_away_until_the_next_session_falls_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, due_ms: int | None, seconds: float
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now())
    if due_ms is not None:
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now() + due_ms)
    async with running(store, clock, make_settings, is_started=False) as rig:
        assert await rig.worker._pause() == seconds


async def test_the_worker_looks_for_keepalives_only_while_nobody_else_does(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await store.register([registration("chat-1")], now=clock.now() + 300, spread_ms=0)
    async with running(store, clock, make_settings, is_started=False) as rig:
        assert await rig.worker._pause() == 0.3
        rig.worker._keepalives.resume()
        assert await rig.worker._pause() == IDLE_SECONDS


async def test_every_fourth_claim_favours_a_less_urgent_reason(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with running(store, clock, make_settings, is_started=False) as rig:
        asked = [rig.worker._reasons() for _ in range(FAVOUR_EVERY * len(FAVOURED))]
        assert all(sorted(reasons) == list(EVERY_REASON) for reasons in asked)
        favoured = [reasons[0] for reasons in asked[FAVOUR_EVERY - 1 :: FAVOUR_EVERY]]
        assert Counter(favoured) == Counter(FAVOURED)
        others = [reasons for place, reasons in enumerate(asked, 1) if place % FAVOUR_EVERY]
        assert all(tuple(reasons) == tuple(EVERY_REASON) for reasons in others)
        rig.worker._keepalives.resume()
        assert Reason.KEEPALIVE not in rig.worker._reasons()


# -- never two requests of one session, never the wrong key --------------------------------------------


async def test_a_session_has_one_request_in_flight_whatever_happens_meanwhile(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        for _ in range(5):
            await rig.push("chat-1")
            await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
            await rig.restore()
            await clock.advance(4 * LEASE_SECONDS / 5)
        assert len(gms.pings) == 1
        gms.holding = False
        gms.release()
        await clock.advance(1)
        # What happened while the answer was under way still counts.
        assert len(gms.pings) == 2
    assert gms.most_at_once["chat-1"] == 1


async def test_a_claim_whose_key_was_replaced_before_it_was_sent_is_pinged_with_the_new_key(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A request with the old key would throw the customer out (protocol section 2, danger 1)."""
    await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=20) as rig:  # two in a batch, 50 ms apart
        [first] = rig.gms.asked()
        second = "chat-2" if first == "chat-1" else "chat-1"
        assert (
            await store.counts(now=clock.now())
        ).leased == 2  # it waits for its turn, and the first one's answer to be written
        await rig.push(second, secure_key="new-key")
        await clock.advance(1)
        pings = [ping.tokens.secure_key for ping in rig.gms.pings if ping.chat_id == second]
    assert pings == ["new-key"]


async def test_one_whose_lease_ran_out_while_its_ping_is_under_way_is_put_off(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stands still while it renews the leases, and then is given again what it holds."""
    renew = store.renew

    async def slowly(claims: Sequence[Claim], *, until: Ms) -> None:
        clock.stall(2 * LEASE_SECONDS)
        monkeypatch.setattr(store, "renew", renew)
        await renew(claims, until=until)

    await register(store, "chat-1", now=clock.now())
    await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(0.1)
        monkeypatch.setattr(store, "renew", slowly)
        clock.stall(LEASE_SECONDS / 2)
        await clock.advance(0.3)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.leased_until, session.due_at > clock.now()) == (0, True)
        await clock.advance(5)
        assert gms.most_at_once["chat-1"] == 1


async def test_a_push_that_took_effect_after_the_claim_is_claimed_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that others share may claim first."""
    claim = store.claim
    await register(store, "chat-1", now=clock.now())
    async with running(store, clock, make_settings) as rig:
        await clock.advance(3)

        async def early(*, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason]) -> list[Claim]:
            if Reason.REQUEST in reasons:
                monkeypatch.setattr(store, "claim", claim)
                return []
            return await claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

        monkeypatch.setattr(store, "claim", early)
        await rig.push("chat-1")
        await clock.advance(0.05)
        assert rig.gms.asked() == ["chat-1"]


async def test_a_key_learned_from_a_push_while_the_ping_was_in_flight_is_used_next(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        await rig.push("chat-1", secure_key="new-key")
        await clock.advance(1)
        gms.holding = False
        gms.release()
        await clock.advance(1)
    assert [ping.tokens.secure_key for ping in gms.pings] == ["key-of-chat-1", "new-key"]


@pytest.mark.slow
async def test_a_session_removed_while_its_ping_is_in_flight_stays_removed(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(1)
        await store.remove("chat-1", now=clock.now())
        gms.release()
        await clock.advance(INTERVAL_MS / 500)
        session = await store.get("chat-1")
    assert session is not None
    assert session.state is SessionState.ENDED
    assert len(gms.pings) == 1


# -- the store fails ---------------------------------------------------------------------------------


async def test_a_store_that_fails_for_a_while_does_not_stop_the_worker(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with running(store, clock, make_settings) as rig:
        store.fill_disk()
        await clock.advance(30)
        assert not [name for name, task in rig.loops.items() if task.done()]
        store.free_disk()
        await register(store, "chat-1", now=clock.now(), spread_ms=0)
        await clock.advance(2)
        assert rig.gms.asked() == ["chat-1"]


@pytest.mark.parametrize("reason", [Reason.REQUEST, Reason.KEEPALIVE])
async def test_what_could_not_be_looked_at_before_it_was_sent_is_given_back_and_comes_later(
    reason: Reason,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others who share the store may have been told other tokens."""

    async def fail(claims: Sequence[Claim]) -> frozenset[tuple[int, str]]:
        raise StoreError("a statement failed")

    chats = [f"chat-{number}" for number in range(5)]
    async with running(store, clock, make_settings) as rig:
        await clock.advance(3)
        monkeypatch.setattr(store, "confirm", fail)
        await register(store, *chats, now=clock.now(), spread_ms=0)
        if reason is Reason.REQUEST:
            await make_due(store, Reason.REQUEST, *chats, now=clock.now())
            rig.wakeup.set()
        while not events.of(Event.STORE_FAILED):
            await clock.advance(0.05)
        await clock.advance(0.1)
        assert not rig.gms.pings
        counts = await store.counts(now=clock.now())
        assert (counts.leased, counts.due[reason]) == (0, 5)
        monkeypatch.undo()
        await clock.advance(5)
        assert sorted(rig.gms.asked()) == chats


async def test_pushes_that_cannot_take_effect_do_not_keep_what_was_claimed_with_them(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object, **__: object) -> list[Absorbed]:
        raise StoreError("a statement failed")

    await register(store, "chat-1", now=clock.now())
    await register(store, "chat-2", now=clock.now(), spread_ms=0)
    await store.take_push(read_push(write_push("device", {"session-id": "chat-1"})), now=clock.now())
    monkeypatch.setattr(store, "absorb", fail)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(0.1)
        assert events.one(Event.STORE_FAILED)["cause"] == "a statement failed"
        assert not rig.gms.pings
        assert (await store.counts(now=clock.now())).leased == 0
        monkeypatch.undo()
        await clock.advance(2)
        assert sorted(rig.gms.asked()) == ["chat-1", "chat-2"]


async def test_a_claim_that_failed_while_the_process_stood_still_is_made_again_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    claim = store.claim
    fails = [60.0, STORE_PAUSE_SECONDS / 2]

    async def fails_at_first(
        *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        if fails:
            clock.stall(fails.pop(0))
            raise StoreUnwritable("the connection broke off")
        return await claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    monkeypatch.setattr(store, "claim", fails_at_first)
    async with running(store, clock, make_settings) as rig:
        await clock.advance(0.001)
        assert not fails
        await clock.advance(STORE_PAUSE_SECONDS / 2 - 0.01)
        assert not rig.gms.pings
        await clock.advance(0.1)
        assert rig.gms.asked() == ["chat-1"]


# -- standing still --------------------------------------------------------------------------------


async def test_what_was_claimed_before_the_process_stood_still_goes_first_afterwards(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """Nobody else may ping it, and nothing has been due for longer."""
    chats = [f"chat-{number}" for number in range(10)]
    await register(store, *chats, "pushed", now=clock.now(), spread_ms=1e9)
    await make_due(store, Reason.REQUEST, *chats, now=clock.now())
    async with running(store, clock, make_settings, rate=100) as rig:
        await clock.advance(0.03)
        before = rig.gms.asked()
        assert len(before) < len(chats)
        await rig.push("pushed")
        clock.stall(60)
        await clock.advance(0.2)
        assert rig.gms.asked() == [*before, *(chat for chat in chats if chat not in before), "pushed"]
    assert set(rig.gms.most_at_once.values()) == {1}


async def test_what_is_about_to_leave_when_the_process_stands_still_does_not_leave_afterwards(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that ran out meanwhile may be another node's. It is looked at anew."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    refresh, stalls = gms.refresh, [LEASE_SECONDS + 0.1]

    async def stands_still(service: str, its: Tokens, position: int | None, *, until: float) -> Answer:
        if stalls:
            clock.stall(stalls.pop())
            answer = await refresh(service, its, position, until=until)
            assert not gms.pings
            return answer
        return await refresh(service, its, position, until=until)

    monkeypatch.setattr(gms, "refresh", stands_still)
    async with running(store, clock, make_settings, gms=gms, lease=f"{LEASE_SECONDS}s"):
        await clock.advance(0.5)
        assert not stalls
        assert gms.asked() == ["chat-1"]


async def test_what_has_to_wait_for_long_is_given_back_also_after_a_standstill(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    chats = [f"chat-{number}" for number in range(10)]
    await register(store, *chats, "pushed", now=clock.now(), spread_ms=1e9)
    await make_due(store, Reason.REQUEST, *chats, now=clock.now())
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms, rate=100, max_in_flight=2) as rig:
        await clock.advance(0.1)
        clock.stall(60)
        await clock.advance(STALE_SECONDS / 2)
        await rig.push("pushed")
        await clock.advance(STALE_SECONDS)
        gms.release(1)
        await clock.advance(0.2)
        assert gms.asked()[2:] == ["pushed"]


async def test_one_whose_chat_server_takes_no_more_is_put_off_and_those_behind_it_are_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), alias="118")
    await register(store, "chat-2", now=clock.now())
    async with running(store, clock, make_settings) as rig:
        await clock.advance(3)
        aliases = rig.worker._flight.aliases
        for _ in range(100):
            aliases.sent("118")
        for _ in range(STRIKES):
            aliases.landed("118", FAILED)
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now() - 1)
        await make_due(store, Reason.REQUEST, "chat-2", now=clock.now())
        rig.wakeup.set()
        await clock.advance(0.1)
        assert rig.gms.asked() == ["chat-2"]
        session = await store.get("chat-1")
        assert session is not None
        assert (session.leased_until, session.due_at > clock.now()) == (0, True)


async def test_what_has_waited_for_long_is_given_back_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [f"chat-{number}" for number in range(SMALLEST_BATCH)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms, rate=100, max_in_flight=2) as rig:
        given, give_back = list[str](), rig.worker._pinging.give_back

        def noted(claim: Claim) -> None:
            given.append(claim.chat_id)
            give_back(claim)

        monkeypatch.setattr(rig.worker._pinging, "give_back", noted)
        await clock.advance(STALE_SECONDS)
        assert given == []
        await clock.advance(0.1)
        assert sorted([*given, *gms.asked()]) == chats


async def test_a_node_that_has_no_turn_in_time_leaves_its_sessions_to_others(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is so far from the database that each turn is void when it hears of it."""

    async def turns(count: int, *, rate: float) -> Sequence[float]:
        moment = clock.monotonic()
        await clock.sleep(0.4)
        return [moment + place / rate for place in range(count)]

    chats = [f"chat-{number}" for number in range(5)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, shared=turns) as rig:
        given = list[str]()
        monkeypatch.setattr(rig.worker._pinging, "give_back", lambda claim: given.append(claim.chat_id))
        await clock.advance(STALE_SECONDS)
        assert given == []
        await clock.advance(0.5)
        assert sorted(given) == chats
        assert rig.gms.asked() == []


# -- stopping ------------------------------------------------------------------------------------


async def test_drain_waits_for_answers_in_flight_and_settles_them(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", None, "new-key", None)))
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(1)
        assert not drained.done()
        gms.release()
        assert await soon(drained) == 0
        # No turn of the loop between: what `drain` promised must be done when it returns.
        session = await store.get("chat-1")
        assert session is not None
        assert (session.secure_key, session.leased_until) == ("new-key", 0)


async def test_when_drain_returns_nothing_is_held_any_more(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """The store is closed then."""
    await register(store, *(f"chat-{number}" for number in range(40)), now=clock.now(), spread_ms=0)
    await register(store, *(f"lost-{number}" for number in range(40)), now=clock.now(), alias="118")
    async with running(store, clock, make_settings, rate=50) as rig:
        await rig.restore("118")
        await clock.advance(0.03)
        assert (await store.counts(now=clock.now())).leased

        async def drained() -> int:
            assert await rig.worker.drain(60) == 0
            return (await store.counts(now=clock.now())).leased

        leased = asyncio.create_task(drained())
        await clock.advance(0.5)  # what waits for the next look waits no longer
        assert leased.done()
        assert await leased == 0


async def test_drain_asks_no_other_node_and_writes_each_answer_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        drained = asyncio.create_task(rig.worker.drain(60))
        await settle()
        assert gms.closing
        gms.release()
        await settle()
        assert drained.done()  # and no time has passed


@pytest.mark.parametrize("loop", ["worker", "keepalives"])
async def test_drain_waits_for_a_claim_that_the_store_is_about_to_give(
    loop: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody would give it back: the store is closed when `drain` has returned."""
    goes_on = asyncio.Event()
    under_way = asyncio.Event()
    claim = store.claim

    async def slowly(*, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason]) -> list[Claim]:
        if (Reason.REQUEST in reasons) == (loop == "worker"):
            under_way.set()
            await goes_on.wait()
        return await claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    async with running(store, clock, make_settings) as rig:
        await clock.advance(3)
        monkeypatch.setattr(store, "claim", slowly)
        await register(store, "chat-1", now=clock.now(), spread_ms=0)
        if loop == "worker":
            await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
        rig.wakeup.set()
        while not under_way.is_set():
            await clock.advance(0.1)
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(1)
        assert not drained.done()
        goes_on.set()
        await clock.advance(1)
        assert drained.done()
        assert (await store.counts(now=clock.now())).leased == 0
        assert not rig.gms.pings


async def test_a_worker_that_is_cancelled_between_two_claims_leaves_nothing_running(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """It claims the next batch while it sends one; here there is no next one, and that claim waits."""

    def claiming() -> list[str]:
        return [name for task in asyncio.all_tasks() if "Worker._claim" in (name := repr(task))]

    await register(store, *(f"chat-{number}" for number in range(8)), now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=80) as rig:
        while not claiming():
            await clock.advance(0.005)
            assert len(rig.gms.pings) < 8
        rig.loops["worker"].cancel()
        await settle()
        assert rig.loops["worker"].cancelled()
        assert not claiming()
        assert rig.worker._idle.is_set()


async def test_a_worker_that_is_cancelled_while_pushes_take_effect_leaves_nothing_running(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, under_way = store.claim, asyncio.Event()

    async def hangs(*, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason]) -> list[Claim]:
        if Reason.REQUEST in reasons:
            under_way.set()
            await asyncio.Event().wait()
        return await claim(now=now, limit=limit, lease_ms=lease_ms, reasons=reasons)

    await register(store, "chat-1", now=clock.now())
    async with running(store, clock, make_settings) as rig:
        await clock.advance(3)
        monkeypatch.setattr(store, "claim", hangs)
        await rig.push("chat-1")
        await clock.advance(0.1)
        assert under_way.is_set()
        rig.loops["worker"].cancel()
        await settle()
        assert rig.loops["worker"].cancelled()
        assert not [task for task in asyncio.all_tasks() if "Worker._take" in repr(task)]


async def test_drain_gives_back_what_was_claimed_ahead(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(24)), now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=80) as rig:
        while rig.worker._ahead is None:
            await clock.advance(0.005)
            assert len(rig.gms.pings) < 8
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(1)
        assert drained.done()
        assert (await store.counts(now=clock.now())).leased == 0


async def test_drain_claims_nothing_more_and_gives_back_what_was_not_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(10)), now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=50) as rig:
        assert (
            await store.counts(now=clock.now())
        ).leased == 5  # they wait for their turn, but for the one that was answered
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(1)
        assert await soon(drained) == 0
        sent = len(rig.gms.pings)
        assert sent <= 2
        counts = await store.counts(now=clock.now())
        assert (counts.leased, counts.due[Reason.KEEPALIVE]) == (0, 10 - sent)
        await clock.advance(5)
        assert len(rig.gms.pings) == sent


async def test_drain_does_not_wait_for_room_for_what_was_not_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(8)), now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms, max_in_flight=2) as rig:
        await clock.advance(0.1)
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(0.2)
        assert (await store.counts(now=clock.now())).leased == len(gms.pings) == 2
        gms.release()
        await settle()
        assert drained.done()


async def test_drain_tells_how_many_pings_the_grace_time_cut_off(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        assert await soon(rig.worker.drain(0.01)) == 2


async def test_an_idle_worker_drains_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with running(store, clock, make_settings) as rig:
        assert await soon(rig.worker.drain(60)) == 0


async def test_a_worker_that_was_never_started_drains_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """As where a port is taken: nobody waits for the grace to be over."""
    async with running(store, clock, make_settings, is_started=False) as rig:
        drained = asyncio.create_task(rig.worker.drain(60))
        await settle()
        assert drained.done()
