"""What the worker tells of restorations and of devices."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
from conftest import NOON, Events, FakeClock, MakeSettings, PromptStore, case, register, soon, tokens

from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model import Consumer, EventKind
from asyncchatd.model.data import Cause, Reason, Registration, Restoration, TokenNews
from asyncchatd.standin.messages import write_push
from asyncchatd.stores.answers import Absorbed, Effect, Take
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.rules import DEVICE_CHATS
from asyncchatd.wire.chat_api.outcome import Alive, Ended
from asyncchatd.wire.chat_api.replies import Reply
from asyncchatd.wire.push import read_push
from asyncchatd.worker import telling
from asyncchatd.worker.telling import CROWD_LOG_SECONDS, Crowds, log_absorbed, log_announced, log_progress
from asyncchatd.worker.worker import LOOK_AFTER_SECONDS

from .rig import FakeGms, running

pytestmark = pytest.mark.usefixtures("events")


# -- restorations --------------------------------------------------------------------------------------


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
    assert not events.of(Event.RESTORATION_PROGRESS)  # while it was only open for further notices


async def test_what_a_chat_server_announced_before_the_start_is_not_said_anew(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now())
    leaves = {"type": "ParticipantLeft", "index": 4, "eventAttributes": {"quit-reason-advice": "reconnect"}}
    push = read_push(write_push("device-of-chat-1", {"session-id": "chat-1", "messages": [leaves]}))
    await store.take_push(push, now=clock.now())
    await store.absorb(500, now=clock.now())
    [begun] = await store.restorations(unfinished=True)
    assert begun.cause is Cause.ANNOUNCED
    await clock.advance(1)
    async with running(store, clock, make_settings):
        await clock.advance(60)
    assert not events.of(Event.RESTORATION_STARTED)
    assert events.one(Event.RESTORATION_FINISHED)["restored"] == 1


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


async def test_each_of_several_restorations_says_how_far_it_is_and_how_fast_it_lately_was(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, *(f"a-{number}" for number in range(20)), now=clock.now(), alias="117")
    await register(store, *(f"b-{number}" for number in range(20)), now=clock.now(), alias="118")
    gms = FakeGms(clock)
    gms.free_slots, gms.rests = 0, 0.5
    async with running(store, clock, make_settings, gms=gms, rate=4) as rig:
        begun = [(await rig.restore(alias)).id for alias in ("117", "118")]
        await clock.advance(3)
        gms.free_slots = (
            None  # what the first look finds was slow, and what the second does as fast as may be
        )
        await clock.advance(7.1)
    told = events.of(Event.RESTORATION_PROGRESS)
    assert [line["restoration"] for line in told] == begun * 2
    for early, late in zip(told[:2], told[2:], strict=True):
        waited, waiting = cast(int, early["waiting"]), cast(int, late["waiting"])
        slow, fast = cast(float, early["rate"]), cast(float, late["rate"])
        assert slow == pytest.approx((20 - waited) / 5, abs=0.11)
        assert fast == pytest.approx((waited - waiting) / 5, abs=0.11)
    assert not events.of(Event.RESTORATION_STARTED)  # whoever begins those says it


async def test_one_that_is_kept_open_for_more_notices_keeps_no_later_one_from_being_told(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now())
    await register(store, *(f"lost-{number}" for number in range(100)), now=clock.now(), alias="118")
    leaves = {"type": "ParticipantLeft", "index": 4, "eventAttributes": {"quit-reason-advice": "reconnect"}}
    push = read_push(write_push("device-of-chat-1", {"session-id": "chat-1", "messages": [leaves]}))
    async with running(store, clock, make_settings, rate=10) as rig:
        await store.take_push(push, now=clock.now())
        rig.wakeup.set()
        await clock.advance(2)
        begun = await rig.restore("118")
        await clock.advance(3.1)
        [kept, _] = sorted(await store.restorations(unfinished=True), key=lambda each: each.id)
        assert (kept.cause, kept.waiting) == (Cause.ANNOUNCED, 0)
    assert events.one(Event.RESTORATION_PROGRESS)["restoration"] == begun.id


async def test_of_several_nodes_one_tells_of_restorations(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[tuple[str, float]]()
    its_own = True

    async def duty(what: str, *, seconds: float) -> bool:
        asked.append((what, seconds))
        return its_own

    await register(store, *(f"chat-{number}" for number in range(40)), now=clock.now())
    monkeypatch.setattr(store, "duty", duty)
    async with running(store, clock, make_settings, rate=2) as rig:
        await rig.restore()
        await clock.advance(5.1)
        its_own = False
        await clock.advance(5)
        assert len(events.of(Event.RESTORATION_PROGRESS)) == 1
        its_own = True
        await clock.advance(2.5)
        assert len(events.of(Event.RESTORATION_PROGRESS)) == 1
        await clock.advance(2.5)
        assert len(events.of(Event.RESTORATION_PROGRESS)) == 2
    assert asked == [("restorations", LOOK_AFTER_SECONDS)] * 3


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


async def test_one_that_began_in_the_millisecond_of_the_look_is_told_too(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, *(f"chat-{number}" for number in range(100)), now=clock.now())
    async with running(store, clock, make_settings, rate=10) as rig:
        await clock.advance(LOOK_AFTER_SECONDS - 0.0001)
        await rig.restore()
        await clock.advance(0.1)
    told = events.one(Event.RESTORATION_PROGRESS)
    assert told["rate"] == cast(int, told["restored"]) * 1000


async def test_the_rate_of_a_restoration_is_right_after_looks_that_failed(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object, **__: object) -> list[int]:
        raise StoreError("a statement failed")

    await register(store, *(f"chat-{number}" for number in range(200)), now=clock.now())
    async with running(store, clock, make_settings, rate=10) as rig:
        await rig.restore()
        monkeypatch.setattr(store, "finish_announced", fail)
        await clock.advance(14)
        assert [line["cause"] for line in events.of(Event.STORE_FAILED)] == ["a statement failed"] * 2
        monkeypatch.undo()
        await clock.advance(5)
        rate = events.one(Event.RESTORATION_PROGRESS)["rate"]
    assert isinstance(rate, float)
    assert 9 <= rate <= 10.5


def test_a_restoration_is_named_and_counted_in_every_line_about_it(events: Events) -> None:
    restoration = Restoration(7, "117", "chat-a", Cause.ANNOUNCED, NOON, True, 100, 40, 5, 3, 2, None)
    log_announced(restoration)
    log_progress(restoration, 0.75)
    log_progress(restoration, 12.3456)
    log_progress(restoration, 0.0)
    begun, slow, usual, stuck = events.all()
    named = {"restoration": 7, "server": "chat-a"}
    assert named.items() <= begun.items()
    assert "took_ms" not in begun or begun["took_ms"] is None  # nobody marked it, so nothing took time
    for line in (slow, usual, stuck):
        assert (named | {"restored": 40, "ended": 5, "refused": 3, "waiting": 50}).items() <= line.items()
    assert [line["rate"] for line in (slow, usual, stuck)] == [0.8, 12.3, 0.0]
    assert [line.get("left_s") for line in (slow, usual, stuck)] == [67, 4, None]


# -- what pushes did -----------------------------------------------------------------------------------


def test_each_push_that_changed_what_is_known_of_a_session_is_told_with_its_chat(
    events: Events,
) -> None:
    named = {"chat_id": "chat-1", "alias": "117"}
    for effect, told in (
        (Effect.ADOPTED, {"event": Event.PUSH_SESSION_ADOPTED, "level": "info"}),
        (Effect.COMPLETED, {"event": Event.SESSION_COMPLETED, "level": "info"}),
        (Effect.INCOMPLETE, {"event": Event.PUSH_UNKNOWN_SESSION, "level": "warning", "device_id": "kiosk"}),
        (Effect.LEARNED, {"event": Event.SESSION_TOKENS_CHANGED, "level": "info", "cause": "push"}),
        (
            Effect.STALE,
            {
                "event": Event.PUSH_TOKENS_IGNORED,
                "level": "info",
                "cause": "older than what is known, or of another kind",
            },
        ),
        (Effect.DUE, None),
        (Effect.STILL_INCOMPLETE, None),
        (Effect.NOTHING, None),
    ):
        with case(effect):
            events.forget()
            log_absorbed(Absorbed("chat-1", "kiosk", effect, "117", leaving=False))
            if told is None:
                assert not events.all()
            else:
                [line] = events.all()
                assert (named | told).items() <= line.items()


async def test_a_refresh_that_a_consumer_did_not_send_in_time_is_told_and_sent(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    app = Consumer("app", frozenset((EventKind.NOTIFIED,)), pushes=True, acknowledges_ms=3_000)
    await store.enrol([app], now=clock.now())
    await register(store, "chat-1", now=clock.now())
    async with running(store, clock, make_settings, listening=lambda: ("app",)) as rig:
        await rig.push("chat-1")
        await clock.advance(0.1)
        [batch] = await store.batches(
            "app", now=clock.now(), limit=10, busy=(), most_events=10, most_bytes=10_000
        )
        assert (await store.hand_out("app", batch.events, now=clock.now())).asked
        await clock.advance(2.8)
        assert not rig.gms.pings
        await clock.advance(7.2)
        assert rig.gms.asked() == ["chat-1"]
        told = events.one(Event.ACKNOWLEDGEMENT_RAN_OUT)
        assert (told["chat_id"], told["alias"], told["consumer"]) == ("chat-1", "117", "app")


# -- stopping ------------------------------------------------------------------------------------


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


# -- a device that many chats share ------------------------------------------------------------------


@pytest.mark.slow
async def test_a_device_of_too_many_chats_is_told_once_in_a_while(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    chats = [Registration(tokens(f"chat-{n}"), "support", f"kiosk-{n % 2}", 3) for n in range(60)]
    await store.register(chats, now=clock.now(), spread_ms=1e12)
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


async def test_a_device_is_told_again_after_a_while_and_no_more_of_them_are_remembered_than_fit(
    clock: FakeClock, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "CROWDS", 2)
    crowds = Crowds(clock)

    def told(device: str) -> bool:
        events.forget()
        crowds.note(device)
        return [line["device_id"] for line in events.of(Event.PUSH_DEVICE_SHARED)] == [device]

    assert told("kiosk-1")
    await clock.advance(CROWD_LOG_SECONDS - 0.5)
    assert not told("kiosk-1")
    await clock.advance(0.5)
    assert told("kiosk-1")
    assert told("kiosk-2")
    assert not told("kiosk-1")
    assert told("kiosk-3")  # with which the memory begins anew
    assert told("kiosk-1")
    assert not told("kiosk-3")


async def test_a_take_that_ran_out_is_told_and_its_session_pinged(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now())
    async with running(store, clock, make_settings) as rig:
        await store.take("chat-1", until=clock.now() + 3_000, now=clock.now())
        released = await store.take("chat-2", until=clock.now() + 3_000, now=clock.now())
        assert isinstance(released, Take)
        assert await store.release("chat-2", released.take_id, now=clock.now())
        await store.make_due("chat-1", Reason.ACKNOWLEDGE, now=clock.now())
        rig.wakeup.set()
        await clock.advance(2.9)
        assert rig.gms.asked() == ["chat-2"]
        await clock.advance(0.2)
        assert rig.gms.asked() == ["chat-2", "chat-1"]
        await clock.advance(10)
    told = events.one(Event.TAKE_RAN_OUT)
    assert (told["chat_id"], told["alias"]) == ("chat-1", "117")


# -- events that a ping fetched ------------------------------------------------------------------------


async def test_a_ping_says_which_events_it_fetched_a_keepalive_too(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """A keepalive that fetches what no push announced is nothing usual."""
    told = Consumer("app", frozenset(EventKind))
    await store.enrol([told], now=clock.now())
    await register(store, "loud", "quiet", now=clock.now(), spread_ms=0)
    said: tuple[dict[str, object], ...] = tuple(
        {"index": index, "type": "Message", "text": "words of a customer"} for index in (4, 6)
    )
    gms = FakeGms(clock)
    gms.outcomes["loud"] = Alive(Reply(0, TokenNews("loud"), next_position=7, messages=said))
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(1)
        assert len(gms.pings) == 2
    line = events.one(Event.PING_OK)
    assert (line["chat_id"], line["reason"]) == ("loud", "keepalive")
    assert (line["first_index"], line["last_index"]) == (4, 6)
    assert "words of a customer" not in events.text


async def test_the_last_events_of_a_chat_are_told_with_its_end(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await store.enrol([Consumer("app", frozenset(EventKind))], now=clock.now())
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Ended(messages=({"index": 9, "type": "ParticipantLeft"},))
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(1)
    assert events.one(Event.SESSION_ENDED)["last_index"] == 9
