"""The restoration worker: what is due is pinged, in order, within its limits, and every answer is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import pytest
from conftest import (
    FAR_OFF_MS,
    NOON,
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

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.pacing import InFlight, Landing, Pacer
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.data import (
    Cause,
    Ms,
    Reason,
    Registration,
    Restoration,
    RestorationState,
    SessionState,
    Settled,
    Settlement,
    TokenNews,
    Tokens,
)
from asyncchatd.standin.messages import write_push
from asyncchatd.stores.base import DEVICE_CHATS, StoreUnwritable
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api.outcome import (
    Alive,
    Ended,
    NodeTrouble,
    Outcome,
    PingFault,
    Refused,
    RetryLater,
)
from asyncchatd.wire.chat_api.replies import Reply
from asyncchatd.wire.push import read_push
from asyncchatd.worker.judgement import INSISTING_TRIES, KEEPALIVE_JITTER, landing
from asyncchatd.worker.telling import CROWD_LOG_SECONDS
from asyncchatd.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("events")

LEASE_SECONDS = 15
TARGET_SECONDS = 1.0
INTERVAL_MS = 30 * 60 * 1000
KEPT = Alive(Reply(0))
"""The session lives and nothing is new."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping Refresh as GMS saw it."""

    at: float
    service: str
    tokens: Tokens
    position: int | None

    @property
    def chat_id(self) -> str:
        return self.tokens.chat_id


class FakeGms:
    """Stands in for `GmsClient`. Answers at once, or with `holding` when told to."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.pings: list[Ping] = []
        self.outcomes: dict[str, Outcome] = {}
        """By chat id; all others live."""
        self.holding = False
        self.hang_seconds: dict[str, float] = {}
        """By chat id: how long its answers take."""
        self.perhaps_taken = False
        """Whether those without an answer may have been taken."""
        self.at_work = 0.0
        """Seconds for which they may be worked on still."""
        self.free_slots: int | None = None
        self.rests = 0.0
        self.most_at_once: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._held: list[tuple[str, asyncio.Future[None]]] = []

    def slots(self) -> int | None:
        return self.free_slots

    def retry_in(self) -> float:
        return self.rests

    async def refresh(self, service: str, tokens: Tokens, position: int | None) -> Answer:
        sent_at, started, chat_id = self.clock.now(), self.clock.monotonic(), tokens.chat_id
        self.pings.append(Ping(started, service, tokens, position))
        self._now[chat_id] += 1
        self.most_at_once[chat_id] = max(self.most_at_once[chat_id], self._now[chat_id])
        if self.holding:
            answer = asyncio.get_running_loop().create_future()
            self._held.append((chat_id, answer))
            await answer
        if (seconds := self.hang_seconds.get(chat_id)) is not None:
            await self.clock.sleep(seconds)
        self._now[chat_id] -= 1
        outcome = self.outcomes.get(chat_id, KEPT)
        took = self.clock.monotonic() - started
        return Answer(outcome, "http://gms-1", sent_at, took, self.perhaps_taken, self.at_work)

    def release(self, count: int | None = None) -> None:
        """Answer the oldest held requests, or all of them."""
        answered, self._held = self._held[:count], self._held[len(self._held[:count]) :]
        for _, answer in answered:
            answer.set_result(None)

    @property
    def held(self) -> int:
        return len(self._held)

    def asked(self) -> list[str]:
        """Chat ids in the order in which they were pinged."""
        return [ping.chat_id for ping in self.pings]


@dataclass
class Rig:
    """A worker with its loops, and everything around it."""

    worker: Worker
    store: PromptStore
    gms: FakeGms
    clock: FakeClock
    wakeup: asyncio.Event
    loops: dict[str, asyncio.Task[None]]
    suspected: list[str]
    """Aliases whose Chat Servers the worker has doubts about."""

    async def push(self, chat_id: str, *, secure_key: str | None = None, now: Ms | None = None) -> None:
        """A push notification from GMS, with the newest tokens when a key is given."""
        message: dict[str, object] = {"session-id": chat_id}
        now = self.clock.now() if now is None else now
        if secure_key is not None:
            message |= {"secure-key": secure_key, "user-id": f"user-of-{chat_id}", "app-dbid": "117"}
            message |= {"messages": [{"index": 4, "type": "Message", "utcTime": now + 1}]}
        await self.store.take_push(read_push(write_push(f"device-of-{chat_id}", message)), now=now)
        self.wakeup.set()

    async def restore(self, alias: str = "117") -> Restoration:
        begun = await self.store.begin_restoration(
            alias=alias, server="chat-a", cause=Cause.UNREACHABLE, now=self.clock.now()
        )
        while await self.store.mark(begun.id, limit=500, now=self.clock.now()):
            pass
        self.wakeup.set()
        return begun

    async def restoration(self, number: int) -> Restoration:
        [found] = [each for each in await self.store.restorations() if each.id == number]
        return found


@asynccontextmanager
async def running(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    *,
    gms: FakeGms | None = None,
    rate: float = 200.0,
    max_in_flight: int = 100,
    **restoration: object,
) -> AsyncIterator[Rig]:
    """A worker at work. Begin with the sessions registered: what is due is pinged at once."""
    settings = make_settings(
        restoration={"max_rate": rate, "max_in_flight": max_in_flight, **restoration},
        ping={"interval": "30m"},
    )
    wakeup = asyncio.Event()
    gms = gms or FakeGms(clock)
    suspected: list[str] = []
    worker = Worker(
        store,
        cast(GmsClient, gms),
        Pacer(rate, clock),
        InFlight(max_in_flight, TARGET_SECONDS, clock),
        settings,
        clock,
        wakeup,
        suspected.append,
    )
    loops = {name: asyncio.create_task(life) for name, life in worker.lives().items()}
    await settle()
    try:
        yield Rig(worker, store, gms, clock, wakeup, loops, suspected)
    finally:
        gms.holding = False
        gms.release()
        await settle()
        failed = [task for task in loops.values() if task.done()]
        for task in loops.values():
            task.cancel()
        await asyncio.gather(*loops.values(), return_exceptions=True)
        # A loop that ended by itself is a daemon that died; drained ones have returned.
        for task in failed:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


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


async def test_a_hanging_chat_server_does_not_hold_up_the_sessions_of_the_others(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """GMS hangs for its sessions alone; they would fill the in-flight limit."""
    hanging = [f"hangs-{number}" for number in range(100)]
    healthy = [f"well-{number}" for number in range(100)]
    for first, second in zip(hanging, healthy, strict=True):
        await register(store, first, now=clock.now(), spread_ms=0, alias="118")
        await register(store, second, now=clock.now(), spread_ms=0, alias="117")
    gms = FakeGms(clock)
    gms.hang_seconds = dict.fromkeys(hanging, 10.0)
    gms.outcomes = dict.fromkeys(hanging, NodeTrouble(Trouble.TIMEOUT))
    async with running(store, clock, make_settings, gms=gms, max_in_flight=20) as rig:
        await clock.advance(45)
        assert set(healthy) <= set(gms.asked())
        assert set(rig.suspected) == {"118"}
    assert max(gms.most_at_once.values()) == 1


async def test_three_unanswered_pings_in_a_row_raise_a_suspicion(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "a", "b", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys("abc", RetryLater(chat_api.PingFault.STATUS_CODE_1))
    async with running(store, clock, make_settings, gms=gms, backoff="1h", backoff_max="1h") as rig:
        await clock.advance(1)
        assert rig.suspected == []
        await register(store, "c", now=clock.now(), spread_ms=0)
        rig.wakeup.set()
        await clock.advance(1)
        assert rig.suspected == ["117"]


async def test_a_node_that_cannot_be_reached_is_no_evidence_against_a_chat_server(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    chats = [f"chat-{number}" for number in range(10)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, NodeTrouble(Trouble.CONNECT))
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(10)
        assert rig.suspected == []


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


# -- what an answer does to a session ----------------------------------------------------------------


async def test_a_keepalive_comes_early_by_up_to_a_tenth_and_never_late(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    chats = [f"chat-{number}" for number in range(200)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=1000):
        await clock.advance(0.5)
    waits = []
    for chat_id in chats:
        session = await store.get(chat_id)
        assert session is not None
        assert session.answered_at is not None
        assert session.reason is Reason.KEEPALIVE
        waits.append(session.due_at - session.answered_at)
    assert min(waits) >= INTERVAL_MS * (1 - KEEPALIVE_JITTER)
    assert max(waits) <= INTERVAL_MS
    assert max(waits) - min(waits) >= INTERVAL_MS * KEEPALIVE_JITTER / 2


async def test_the_newest_tokens_are_used_for_the_next_ping(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", "user-2", "key-2", "118"), next_position=9))
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
        rig.wakeup.set()
        await clock.advance(1)
    assert [ping.tokens for ping in gms.pings] == [
        tokens("chat-1"),
        Tokens("chat-1", "user-2", "key-2", "118"),
    ]
    assert gms.pings[1].position == 9
    changed = events.one(Event.SESSION_TOKENS_CHANGED)
    assert (changed["alias"], changed["previous_alias"]) == ("118", "117")
    assert "key-2" not in events.text


@pytest.mark.parametrize(
    "outcome",
    [
        RetryLater(chat_api.PingFault.STATUS_CODE_1),
        NodeTrouble(Trouble.CONNECT),
        NodeTrouble(chat_api.PingFault.SERVER_ERROR),
    ],
    ids=["status_code_1", "connect", "server_error"],
)
async def test_a_retry_comes_after_a_random_part_of_the_backoff(
    outcome: Outcome, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """Full jitter: sessions that failed together do not come back together."""
    chats = [f"chat-{number}" for number in range(60)]
    for number, chat_id in enumerate(chats):
        await register(store, chat_id, now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, outcome)
    async with running(store, clock, make_settings, gms=gms, backoff="10s"):
        await clock.advance(8)
    retries = events.of(Event.PING_RETRY)
    pauses = [pause for line in retries if line["attempt"] == 1 and isinstance(pause := line["next_ms"], int)]
    assert len(pauses) == 60
    assert 0 <= min(pauses) < 4_000
    assert 6_000 < max(pauses) <= 10_000


async def test_a_ping_that_may_have_been_taken_is_left_for_a_backoff(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """GMS may be at work on it still: the jitter must not bring it back at once."""
    chats = [f"chat-{number}" for number in range(60)]
    for number, chat_id in enumerate(chats):
        await register(store, chat_id, now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, NodeTrouble(Trouble.TIMEOUT))
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="10s"):
        await clock.advance(8)
    retries = events.of(Event.PING_RETRY)
    pauses = [pause for line in retries if line["attempt"] == 1 and isinstance(pause := line["next_ms"], int)]
    assert len(pauses) == 60
    assert 9_000 <= min(pauses) < max(pauses) <= 10_000


async def test_each_ping_that_may_have_been_taken_is_left_longer_than_the_one_before(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """GMS is slower than a proxy before it has patience, and no answer will tell by how much."""
    for number in range(20):
        await register(store, f"chat-{number}", now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = {f"chat-{number}": NodeTrouble(Trouble.DISCONNECTED) for number in range(20)}
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="1s", backoff_max="8s"):
        await clock.advance(20)
    pauses: dict[object, list[object]] = {}
    for line in events.of(Event.PING_RETRY):
        pauses.setdefault(line["attempt"], []).append(line["next_ms"])
    for attempt, step in ((1, 1_000), (2, 2_000), (3, 4_000), (4, 8_000)):
        assert pauses[attempt]
        assert all(isinstance(pause, int) and 0.9 * step <= pause <= step for pause in pauses[attempt])


async def test_nothing_makes_a_session_due_while_gms_may_be_at_work_on_its_lost_answer(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A push, a lost Chat Server, an operator: each would send the old key beside the one just being made."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = {"chat-1": NodeTrouble(Trouble.TIMEOUT)}
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="2s") as rig:
        await clock.advance(0.2)
        assert len(gms.pings) == 1
        await store.take_push(read_push(write_push("device-1", {"chatId": "chat-1"})), now=clock.now())
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
        rig.wakeup.set()
        await clock.advance(0.7)
        assert len(gms.pings) == 1
        gms.outcomes = {}
        await clock.advance(0.5)
        assert len(gms.pings) == 2


async def test_a_session_is_left_alone_for_as_long_as_gms_may_be_at_work_on_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A proxy that hangs up after a moment says nothing of the Chat Server behind it, which works on."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = {"chat-1": NodeTrouble(Trouble.DISCONNECTED)}
    gms.perhaps_taken, gms.at_work = True, 9.0
    async with running(store, clock, make_settings, gms=gms, backoff="1s") as rig:
        await clock.advance(0.2)
        assert len(gms.pings) == 1
        await store.take_push(read_push(write_push("device-1", {"chatId": "chat-1"})), now=clock.now())
        rig.wakeup.set()
        await clock.advance(8)
        assert len(gms.pings) == 1
        gms.outcomes = {}
        await clock.advance(2)
        assert len(gms.pings) == 2


async def test_the_backoff_doubles_up_to_its_bound(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    chats = [f"chat-{number}" for number in range(20)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, RetryLater(chat_api.PingFault.STATUS_CODE_1))
    async with running(store, clock, make_settings, gms=gms, backoff="1s", backoff_max="8s"):
        await clock.advance(60)
    pauses: dict[int, list[int]] = {}
    for line in events.of(Event.PING_RETRY):
        attempt, pause = line["attempt"], line["next_ms"]
        assert isinstance(attempt, int)
        assert isinstance(pause, int)
        pauses.setdefault(min(attempt, 5), []).append(pause)
    for attempt, longest in ((1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 8000)):
        assert longest / 2 < max(pauses[attempt]) <= longest
    session = await store.get("chat-0")
    assert session is not None
    assert session.state is SessionState.LIVE


async def test_a_node_that_asks_for_more_time_gets_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = RetryLater(chat_api.PingFault.TOO_MANY_REQUESTS, retry_after=20)
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(19.9)
        assert len(gms.pings) == 1
        await clock.advance(0.2)
        assert len(gms.pings) == 2


@pytest.mark.parametrize(
    "outcome",
    [
        RetryLater(chat_api.PingFault.TOO_MANY_REQUESTS, retry_after=3600),
        RetryLater(chat_api.PingFault.STATUS_CODE_1, retry_after=3600),
        NodeTrouble(chat_api.PingFault.UNAVAILABLE, retry_after=3600),
    ],
    ids=lambda outcome: str(outcome.cause),
)
async def test_a_session_waits_no_longer_than_its_own_backoff_whatever_a_node_asks_for(
    outcome: Outcome, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """What was true for a second must not cost it an hour."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = outcome
    async with running(store, clock, make_settings, gms=gms, backoff="1s", backoff_max="8s"):
        await clock.advance(1)
        assert len(gms.pings) == 1
        gms.outcomes.clear()
        await clock.advance(8)
        assert len(gms.pings) == 2


async def test_a_ping_at_which_the_daemon_itself_fails_is_repeated(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsettled ping would keep its lease, and nobody would ping the session again."""
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    refresh, faults = gms.refresh, [RuntimeError("a fault of our own")]

    async def failing(service: str, tokens: Tokens, position: int | None) -> Answer:
        if faults:
            raise faults.pop()
        return await refresh(service, tokens, position)

    monkeypatch.setattr(gms, "refresh", failing)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(5)
        assert (await rig.restoration(begun.id)).restored == 1


async def test_a_retry_keeps_the_reason_and_its_place_in_the_restoration(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = RetryLater(chat_api.PingFault.STATUS_CODE_1)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(5)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.reason, session.restoration) == (Reason.RESTORE, begun.id)
        assert session.last_trouble == chat_api.PingFault.STATUS_CODE_1
        assert (await rig.restoration(begun.id)).waiting == 1

        gms.outcomes.clear()
        await clock.advance(40)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.reason, session.restoration, session.attempts) == (Reason.KEEPALIVE, None, 0)
        assert session.last_trouble is None


REFUSED = Refused(
    chat_api.PingFault.STATUS_CODE_2, "HTTP 200, statusCode 2, error 34: no link to Chat Server"
)
INSIST_SECONDS = 120
LONGEST_PAUSE = 30
LONGEST_INSISTING = INSIST_SECONDS + LONGEST_PAUSE + 1


async def test_a_session_to_be_restored_is_tried_again_when_gms_refuses_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """GMS says so, too, while it has lost its Chat Server and has not found the other one."""
    gms = await _refusing(store, clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(INSIST_SECONDS / 2)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.reason, session.restoration) == (Reason.RESTORE, begun.id)
        assert (session.last_trouble, session.trouble_detail) == (REFUSED.cause, REFUSED.detail)
        assert (await rig.restoration(begun.id)).state is RestorationState.RUNNING
        gms.outcomes.clear()
        await clock.advance(LONGEST_INSISTING - INSIST_SECONDS / 2)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.last_trouble, session.trouble_detail, session.refused_since) == (None, None, None)
    retries = events.of(Event.PING_RETRY)
    assert {(line["cause"], line["detail"]) for line in retries} == {(REFUSED.cause, REFUSED.detail)}
    assert events.one(Event.RESTORATION_FINISHED)["restored"] == 1
    assert not events.of(Event.PING_REFUSED)


async def test_a_restoration_that_a_chat_server_announced_is_said_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """Nobody begins it: the first notice that is absorbed does."""
    await register(store, "chat-1", "chat-2", now=clock.now())
    leaves = {"type": "ParticipantLeft", "index": 4, "eventAttributes": {"quit-reason-advice": "reconnect"}}
    begun = metrics.RESTORATIONS.labels("announced")._value.get()
    observed = metrics.RESTORATION_SECONDS._sum.get()
    async with running(store, clock, make_settings) as rig:
        for chat_id in ("chat-1", "chat-2"):
            message = {"session-id": chat_id, "messages": [leaves]}
            push = read_push(write_push(f"device-of-{chat_id}", message))
            assert push.leaving
            await store.take_push(push, now=clock.now())
        rig.wakeup.set()
        await clock.advance(60)
    said = events.one(Event.RESTORATION_STARTED)
    assert (said["cause"], said["alias"], said["sessions"]) == ("announced", "117", 2)
    finished = events.one(Event.RESTORATION_FINISHED)
    assert finished["restored"] == 2
    assert (
        cast(int, finished["took_ms"]) < 5_000
    )  # of a minute, in half of which it was open for further notices
    assert metrics.RESTORATION_SECONDS._sum.get() - observed < 5
    assert metrics.RESTORATIONS.labels("announced")._value.get() == begun + 1


async def _refusing(store: PromptStore, clock: FakeClock, *, spread_ms: float = FAR_OFF_MS) -> FakeGms:
    """A GMS that refuses the one session there is."""
    await register(store, "chat-1", now=clock.now(), spread_ms=spread_ms)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = REFUSED
    return gms


async def _keepalives(
    count: int, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, gms: FakeGms
) -> None:
    """So many, each sent by a new start, which pulls in what is due too late for the interval."""
    for _ in range(count):
        async with running(store, clock, make_settings, gms=gms):
            await store.pull_in(now=clock.now(), spread_ms=INTERVAL_MS)
            await clock.advance(2)
        await clock.advance((await _due_at(store) - clock.now()) / 1000 - 1)


async def test_a_session_that_gms_goes_on_refusing_is_left_to_its_keepalive_and_that_is_said(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now())
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = REFUSED
    left = _left()
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(LONGEST_INSISTING)
        times = [ping.at for ping in gms.pings if ping.chat_id == "chat-1"]
        assert 1 + INSISTING_TRIES <= len(times) <= 10
        assert times[-1] - times[0] >= INSIST_SECONDS
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert pauses[:4] == sorted(pauses[:4]), "no backoff"
        assert max(pauses) <= LONGEST_PAUSE + 1
        session = await store.get("chat-1")
        assert session is not None
        assert (session.state, session.reason) == (SessionState.LIVE, Reason.KEEPALIVE)
        over = await rig.restoration(begun.id)
        assert (over.restored, over.refused, over.waiting) == (1, 1, 0)
        assert over.state is RestorationState.INCOMPLETE
    refused = events.one(Event.PING_REFUSED)
    assert (refused["cause"], refused["detail"]) == (REFUSED.cause, REFUSED.detail)
    assert events.one(Event.RESTORATION_INCOMPLETE)["refused"] == 1
    assert not events.of(Event.RESTORATION_FINISHED)
    assert _left() - left == 1


def _left() -> float:
    return metrics.REGISTRY.get_sample_value("asyncchatd_sessions_left_total") or 0.0


async def test_other_troubles_take_no_try_of_a_refused_session_away(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        gms.outcomes["chat-1"] = NodeTrouble(Trouble.TIMEOUT)
        begun = await rig.restore()
        await clock.advance(200)
        assert len(gms.pings) > 2 * INSISTING_TRIES
        gms.outcomes["chat-1"] = REFUSED
        await clock.advance(LONGEST_PAUSE + 1)
        gms.outcomes["chat-1"] = NodeTrouble(Trouble.TIMEOUT)
        await clock.advance(INSIST_SECONDS)
        gms.outcomes["chat-1"] = REFUSED
        await clock.advance(LONGEST_PAUSE + 1)
        assert (await rig.restoration(begun.id)).waiting == 1, "not refused five times"
        await clock.advance(INSISTING_TRIES * LONGEST_PAUSE)
        assert (await rig.restoration(begun.id)).refused == 1


async def test_what_asks_for_a_refused_session_meanwhile_does_not_shorten_its_tries(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """Chat Server resends a push that is not acknowledged, and each makes the session due."""
    gms = await _refusing(store, clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        for _ in range(INSIST_SECONDS // 10 - 1):
            await clock.advance(10)
            await rig.push("chat-1")
        assert len(gms.pings) > 2 * INSISTING_TRIES
        assert (await rig.restoration(begun.id)).waiting == 1
        await clock.advance(LONGEST_INSISTING)
        assert (await rig.restoration(begun.id)).refused == 1


async def test_a_restart_neither_forgets_nor_repeats_the_tries_of_a_refused_session(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    gms = await _refusing(store, clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(INSIST_SECONDS / 2)
    async with running(store, clock, make_settings, gms=gms) as rig:
        assert (await rig.restoration(begun.id)).waiting == 1
        await clock.advance(LONGEST_INSISTING - INSIST_SECONDS / 2)
        assert (await rig.restoration(begun.id)).refused == 1
    assert 1 + INSISTING_TRIES <= len(gms.pings) <= 10


async def test_a_session_whose_keepalives_gms_refuses_is_pinged_less_and_less_often(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """It may be over and GMS does not say so: each Refresh of a closed chat is expensive. But only GMS ends it,
    and Chat Server removes a client that is silent for a day."""
    gms = await _refusing(store, clock, spread_ms=0)
    interval = INTERVAL_MS / 1000
    await _keepalives(12, store, clock, make_settings, gms)
    assert len(gms.pings) == 12
    pauses = [later.at - earlier.at for earlier, later in pairwise(gms.pings)]
    assert 0.9 * interval <= pauses[0] <= interval + 1
    for earlier, later in pairwise(pauses[:6]):
        assert 1.6 * earlier < later < 2.3 * earlier
    assert 18 * 3600 < max(pauses) < 23 * 3600
    session = await store.get("chat-1")
    assert session is not None
    assert session.state is SessionState.LIVE


@pytest.mark.parametrize("what", ["push", "registration", "answer"])
async def test_what_shows_that_a_refused_session_lives_sets_its_interval_back(
    what: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    gms = await _refusing(store, clock, spread_ms=0)
    await _keepalives(5, store, clock, make_settings, gms)
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(2)
        assert await _due_at(store) > clock.now() + 10 * INTERVAL_MS
        if what == "push":
            await rig.push("chat-1")
        elif what == "registration":
            await register(store, "chat-1", now=clock.now(), spread_ms=INTERVAL_MS)
        else:
            gms.outcomes.clear()
            await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
            rig.wakeup.set()
        await clock.advance(2)
        assert await _due_at(store) <= clock.now() + INTERVAL_MS
        session = await store.get("chat-1")
        assert session is not None
        # The push's ping was refused, too, and is the first in a row.
        assert (session.refused_since or clock.now()) > clock.now() - 3_000


async def _due_at(store: PromptStore) -> float:
    session = await store.get("chat-1")
    assert session is not None
    return session.due_at


@pytest.mark.slow
async def test_an_ended_session_is_never_pinged_again(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """The refresh of a closed chat is expensive (protocol section 2, danger 2)."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Ended()
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        await rig.push("chat-1")
        await rig.restore()
        await clock.advance(INTERVAL_MS / 500)
        assert len(gms.pings) == 1
        session = await store.get("chat-1")
        assert session is not None
        assert (session.state, session.secure_key) == (SessionState.ENDED, None)
    assert events.one(Event.SESSION_ENDED)["chat_id"] == "chat-1"


async def test_another_chats_reply_changes_nothing_and_is_said_loudly(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = NodeTrouble(chat_api.PingFault.FOREIGN_REPLY)
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(0.02)
        gms.outcomes.clear()
        await clock.advance(2)
    assert events.of(Event.PING_FOREIGN_REPLY)[0]["chat_id"] == "chat-1"
    assert {ping.tokens for ping in gms.pings} == {tokens("chat-1")}
    assert len(gms.pings) == 2


async def test_a_restoration_is_finished_when_its_last_session_was_answered(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", "chat-2", "chat-3", now=clock.now())
    gms = FakeGms(clock)
    gms.outcomes = {"chat-2": Ended()}
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(1)
    finished = events.one(Event.RESTORATION_FINISHED)
    assert finished["restoration"] == begun.id
    assert [finished[name] for name in ("restored", "ended", "refused", "moved")] == [2, 1, 0, 0]


async def test_a_restoration_that_a_later_one_took_over_is_told_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", "chat-2", "chat-3", now=clock.now())
    gms = FakeGms(clock)
    gms.free_slots = 0
    async with running(store, clock, make_settings, gms=gms) as rig:
        first = await rig.restore()
        await clock.advance(1)
        second = await rig.restore()
        gms.free_slots = None
        await clock.advance(20)
    finished = {event["restoration"]: event for event in events.of(Event.RESTORATION_FINISHED)}
    assert len(events.of(Event.RESTORATION_FINISHED)) == 2
    assert [finished[first.id][name] for name in ("restored", "moved", "took_ms")] == [0, 3, 1000]
    assert [finished[second.id][name] for name in ("restored", "moved")] == [3, 0]


async def test_a_running_restoration_says_how_far_it_is(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, *(f"chat-{number}" for number in range(100)), now=clock.now())
    async with running(store, clock, make_settings, rate=10) as rig:
        await rig.restore()
        await clock.advance(5.1)
    progress = events.one(Event.RESTORATION_PROGRESS)
    restored, waiting = progress["restored"], progress["waiting"]
    assert isinstance(restored, int)
    assert isinstance(waiting, int)
    assert 45 <= restored <= 51
    assert restored + waiting == 100


async def test_the_first_rate_of_a_restoration_counts_from_its_begin(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, *(f"chat-{number}" for number in range(100)), now=clock.now())
    async with running(store, clock, make_settings, rate=10) as rig:
        await clock.advance(3)
        await rig.restore()
        await clock.advance(2.1)
    rate = events.one(Event.RESTORATION_PROGRESS)["rate"]
    assert isinstance(rate, float)
    assert 9 <= rate <= 11


async def test_the_rate_of_a_restoration_is_right_after_looks_that_failed(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object, **__: object) -> list[int]:
        raise StoreUnwritable("no space left on device")

    await register(store, *(f"chat-{number}" for number in range(200)), now=clock.now())
    async with running(store, clock, make_settings, rate=10) as rig:
        await rig.restore()
        monkeypatch.setattr(store, "finish_announced", fail)
        await clock.advance(14)
        monkeypatch.undo()
        await clock.advance(5)
        rate = events.one(Event.RESTORATION_PROGRESS)["rate"]
    assert isinstance(rate, float)
    assert 9 <= rate <= 10.5


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
        await clock.advance(0.1)
        session = await store.get("chat-1")
    assert session is not None
    assert session.leased_until == 0
    assert session.answered_at == clock.now() - 100


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


async def test_a_claim_whose_key_was_replaced_before_it_was_sent_is_pinged_with_the_new_key(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A request with the old key would throw the customer out (protocol section 2, danger 1)."""
    await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=20) as rig:  # two in a batch, 50 ms apart
        [first] = rig.gms.asked()
        second = "chat-2" if first == "chat-1" else "chat-1"
        assert (await store.counts(now=clock.now())).leased == 1  # it waits for its turn
        await rig.push(second, secure_key="new-key")
        await clock.advance(1)
        pings = [ping.tokens.secure_key for ping in rig.gms.pings if ping.chat_id == second]
    assert pings == ["new-key"]


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


async def test_drain_claims_nothing_more_and_gives_back_what_was_not_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, *(f"chat-{number}" for number in range(10)), now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=50) as rig:
        assert (await store.counts(now=clock.now())).leased == 4  # they wait for their turn
        drained = asyncio.create_task(rig.worker.drain(60))
        await clock.advance(1)
        assert await soon(drained) == 0
        sent = len(rig.gms.pings)
        assert sent <= 2
        counts = await store.counts(now=clock.now())
        assert (counts.leased, counts.due[Reason.KEEPALIVE]) == (0, 10 - sent)
        await clock.advance(5)
        assert len(rig.gms.pings) == sent


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
        await clock.advance(0.1)
        assert writing.is_set()
        drained = asyncio.create_task(rig.worker.drain(60))
        await settle()
        assert not drained.done()
        go_on.set()
        assert await soon(drained) == 0
        session = await store.get("chat-1")
        assert session is not None
        assert session.answered_at == NOON


async def test_drain_tells_how_many_pings_the_grace_time_cut_off(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        assert await soon(rig.worker.drain(0.01)) == 2


async def test_drain_tells_which_answers_the_disk_did_not_take(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """Those that somebody will say again are no loss."""
    await register(store, "chat-1", "chat-2", "chat-3", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", None, "new-key", None)))
    gms.outcomes["chat-2"] = Ended()
    gms.holding = True
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        store.fill_disk()
        gms.release()
        await clock.advance(1)
        await soon(rig.worker.drain(0.01))
        lost = events.one(Event.ANSWERS_LOST)
        assert (lost["count"], sorted(lost["chat_ids"])) == (2, ["chat-1", "chat-2"])  # type: ignore[call-overload]
        store.free_disk()


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


async def test_an_idle_worker_drains_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    async with running(store, clock, make_settings) as rig:
        assert await soon(rig.worker.drain(60)) == 0


# -- a transcript that is too long an answer ---------------------------------------------------------


TOO_LARGE = NodeTrouble(Trouble.REPLY_TOO_LARGE)


class LongTranscript(FakeGms):
    """Whose answer is too large wherever more than the last `bearable` positions are asked for."""

    def __init__(self, clock: FakeClock, bearable: tuple[int | None, ...], key: str | None = None) -> None:
        super().__init__(clock)
        self.bearable = bearable
        self.key = key

    async def refresh(self, service: str, tokens: Tokens, position: int | None) -> Answer:
        news = TokenNews(tokens.chat_id, tokens.user_id, self.key or tokens.secure_key, tokens.alias)
        alive = Alive(Reply(0, news, 9_000))
        self.outcomes[tokens.chat_id] = alive if position in self.bearable else TOO_LARGE
        return await super().refresh(service, tokens, position)


@pytest.mark.parametrize("position", [None, 3])
@pytest.mark.parametrize(
    ("bearable", "asked"), [((-1, 0, 9_000), [-1, 9_000]), ((0, 9_000), [-1, 0, 9_000])], ids=["last", "none"]
)
async def test_a_transcript_that_is_too_long_is_not_asked_for_again(
    position: int | None,
    bearable: tuple[int, ...],
    asked: list[int],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
) -> None:
    """The position is learned without it; then the Refresh that acknowledges and restores goes out, for the same
    reason and in the same restoration."""
    await store.register([registration("chat-1", position=position)], now=clock.now(), spread_ms=FAR_OFF_MS)
    gms = LongTranscript(clock, bearable)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        for _ in range(20):
            await clock.advance(0.5)
        assert [ping.position for ping in gms.pings] == [position, *asked]
        assert gms.most_at_once["chat-1"] == 1
        assert (await rig.restoration(begun.id)).restored == 1
    session = await store.get("chat-1")
    assert session is not None
    assert (session.next_position, session.reason, session.last_trouble) == (9_000, Reason.KEEPALIVE, None)


async def test_a_key_that_comes_with_the_position_is_the_one_to_go_on_with(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await store.register([registration("chat-1", position=None)], now=clock.now(), spread_ms=0)
    gms = LongTranscript(clock, (-1, 9_000), key="key-2")
    async with running(store, clock, make_settings, gms=gms):
        for _ in range(20):
            await clock.advance(0.5)
    assert [ping.tokens.secure_key for ping in gms.pings] == ["key-of-chat-1", "key-of-chat-1", "key-2"]


async def test_what_an_answer_said_that_was_too_large_may_be_a_new_key(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """So the position is asked for no sooner than any request is sent again that may have been taken."""
    chats = [f"chat-{number}" for number in range(20)]
    await store.register([registration(chat, position=None) for chat in chats], now=clock.now(), spread_ms=0)
    gms = LongTranscript(clock, (-1, 9_000))
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="10s", backoff_max="10s"):
        for _ in range(60):
            await clock.advance(0.5)
    for chat in chats:
        first, second, *_ = [ping.at for ping in gms.pings if ping.chat_id == chat]
        assert second - first > 4.9


# -- a device that many chats share ------------------------------------------------------------------


async def test_a_device_of_too_many_chats_is_told_once_in_a_while(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    chats = [Registration(tokens(f"chat-{n}"), "support", f"kiosk-{n % 2}", 3) for n in range(60)]
    await store.register(chats, now=clock.now(), spread_ms=1e9)
    async with running(store, clock, make_settings) as rig:
        for _ in range(5):
            for device in ("kiosk-0", "kiosk-1"):
                await store.take_push(read_push(write_push(device, "dummy")), now=clock.now())
            rig.wakeup.set()
            await clock.advance(CROWD_LOG_SECONDS / 4 - 1)
    told = events.of(Event.PUSH_DEVICE_SHARED)
    assert Counter(line["device_id"] for line in told) == {"kiosk-0": 1, "kiosk-1": 1}
    assert {line["count"] for line in told} == {DEVICE_CHATS}
    assert set(Counter(rig.gms.asked()).values()) == {5}


@pytest.mark.parametrize(
    ("cause", "counted"),
    [
        *[
            (fault, Landing.UNSENT)
            for fault in (PingFault.NOT_FOUND, PingFault.FORBIDDEN, PingFault.REDIRECT)
        ],
        *[
            (fault, Landing.FAILED)
            for fault in (PingFault.UNAVAILABLE, PingFault.SERVER_ERROR, Trouble.TIMEOUT)
        ],
        *[
            (fault, Landing.FAILED)
            for fault in (PingFault.REQUEST_TIMEOUT, PingFault.BAD_GATEWAY, Trouble.DISCONNECTED)
        ],
    ],
)
def test_what_a_node_says_of_itself_says_nothing_of_how_much_gms_can_bear(
    cause: str, counted: Landing
) -> None:
    """A node that is redeployed answers 404 at once. Its refusals cut the limit to 1, beside a node that was well."""
    assert landing(Answer(NodeTrouble(cause), "http://gms-1/genesys", NOON, 0.1)) is counted
