"""The contract of a store: what consumers are told, and what becomes of what they do not take. Nothing is lost to one
without a gap."""

from __future__ import annotations

import orjson
import pytest
import pytest_asyncio

from asyncchatd.model.data import Settlement, TokenNews, Verdict
from asyncchatd.model.delivery import Consumer, ConsumerState
from asyncchatd.model.transcript import EventKind, StoredEvent
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Bounds, Why

from ..desk import MINUTE, SECOND, Desk, push, registration
from ..test_transcript import APP, EVERYTHING, HOOK, WIDE, batches, message, refresh, said, told, trim
from .rig import chats

CHAT = frozenset({EventKind.CHAT, EventKind.GAP})
ENDS = frozenset({EventKind.ENDED})


def gap(event: StoredEvent) -> dict[str, object]:
    """What a gap says."""
    assert event.kind is EventKind.GAP
    found = orjson.loads(event.body or b"")
    assert isinstance(found, dict)
    return found


async def state(desk: Desk, name: str) -> ConsumerState:
    return next(each for each in await desk.store.consumers() if each.name == name)


async def trimmed(desk: Desk, bounds: Bounds = WIDE) -> dict[tuple[str, Why], int]:
    """What consumers are told no more by one look after the bounds."""
    dropped: dict[tuple[str, Why], int] = {}
    for _ in range(100):
        done = await desk.store.trim(bounds, now=desk.now)
        for key, count in done.dropped.items():
            dropped[key] = dropped.get(key, 0) + count
        if not done.more:
            return dropped
    raise AssertionError("there is no end of it")


async def acknowledge(desk: Desk, name: str = "app") -> list[StoredEvent]:
    """All that one who fetches is told."""
    found = await told(desk, name)
    if found:
        await told(desk, name, after=found[-1].id)
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def chat(desk: Desk) -> Desk:
    """A session, and two who are told of it."""
    await desk.store.enrol([APP, HOOK], now=desk.now)
    await desk.live("chat-1")
    return desk


# -- a history that begins anew ----------------------------------------------------------------------


async def test_a_history_that_begins_anew_twice_with_nothing_between_is_told_as_one_gap(chat: Desk) -> None:
    await refresh(chat, message(3, "before"))
    assert said(await acknowledge(chat)) == ["before"]
    first = chat.store.epoch
    for _ in range(2):
        await chat.store.distrust(before=chat.now - MINUTE)
    assert chat.store.epoch != first
    assert said(await acknowledge(chat)) == ["gap"]
    await refresh(chat, message(4, "after"))
    await chat.store.distrust(before=chat.now - MINUTE)
    assert said(await acknowledge(chat)) == ["after", "gap"]


async def test_new_events_are_looked_at_in_portions_that_pushes_need_not_wait_for(desk: Desk) -> None:
    """Each may be of another chat, of which all events are read."""
    await desk.store.enrol([APP], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, *(message(index, f"{index}") for index in range(3, 303)))
    assert (await desk.store.trim(WIDE, now=desk.now)).more
    await trim(desk, WIDE)
    assert len(await acknowledge(desk)) == 300


# -- one that is gone for a while --------------------------------------------------------------------


async def test_one_that_comes_back_is_told_the_gap_of_the_time_in_which_nobody_was_told(desk: Desk) -> None:
    app, ends = Consumer("app", CHAT), Consumer("ends", ENDS)
    await desk.store.enrol([app, ends], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "before"))
    await desk.store.enrol([ends], now=desk.later(MINUTE))
    left = desk.now
    await refresh(desk, message(4, "meanwhile"))
    await desk.store.enrol([app, ends], now=desk.later(MINUTE))
    await refresh(desk, message(5, "after"))
    found = await acknowledge(desk)
    assert said(found) == ["before", "gap", "after"]
    assert gap(found[1]) == {"since": left, "until": found[1].at}
    assert found[1].chat_id is None
    assert await told(desk, "ends") == [], "it missed nothing"
    await desk.store.enrol([app, ends], now=desk.later(MINUTE))
    assert await told(desk) == [], "it was there"


async def test_a_webhook_that_comes_back_is_told_its_gap_as_a_chat_of_its_own(chat: Desk) -> None:
    await refresh(chat, message(3, "before"))
    await chat.store.enrol([], now=chat.later(MINUTE))
    await refresh(chat, message(4, "meanwhile"))
    await chat.store.enrol([HOOK], now=chat.later(MINUTE))
    first, second = await batches(chat)
    assert (said(first.events), said(second.events)) == (["before"], ["gap"])
    assert second.events[0].chat_id is None
    await chat.store.delivered([first, second], now=chat.now)
    assert await batches(chat) == []


async def test_one_that_comes_back_while_others_were_told_the_same_missed_nothing(chat: Desk) -> None:
    await chat.store.enrol([HOOK], now=chat.now)
    await refresh(chat, message(3, "bye"), verdict=Verdict.ENDED)
    [batch] = await batches(chat)
    await chat.store.delivered([batch], now=chat.now)
    chat.later(2 * MINUTE)
    await trim(chat, WIDE)  # everybody who is there has been told of that chat
    await chat.store.enrol([APP, HOOK], now=chat.now)
    assert said(await told(chat)) == ["bye", "ended"]


async def test_what_went_while_a_consumer_was_gone_is_told_it_as_a_gap(chat: Desk) -> None:
    await chat.store.enrol([HOOK], now=chat.now)
    await refresh(chat, *(message(index, f"{index}") for index in range(3, 13)))
    await chat.store.delivered(await batches(chat), now=chat.now)
    assert await trimmed(chat, Bounds(4, 1 << 20, 1 << 30, MINUTE)) == {("app", Why.BOUNDS): 6}
    assert await batches(chat) == [], "it has had them"
    await chat.store.enrol([APP, HOOK], now=chat.now)
    found = await told(chat)
    assert said(found) == ["9", "10", "11", "12", "gap"]
    assert gap(found[-1]) == {"events": 6, "up_to_index": 8}


# -- services ------------------------------------------------------------------------------------------


async def test_a_chat_of_which_only_a_push_told_is_told_to_consumers_of_any_service(desk: Desk) -> None:
    support = Consumer("app", CHAT, services=frozenset({"support"}))
    hook = Consumer("hook", CHAT, services=frozenset({"sales"}), pushes=True)
    await desk.store.enrol([support, hook], now=desk.now)
    await desk.push(push(user_id="user-of-chat-1", key="key-of-chat-1", alias="117"))
    await refresh(desk, message(3, "of nobody yet"))
    assert (await desk.session()).service is None
    assert said(await told(desk)) == ["of nobody yet"]
    [batch] = await batches(desk)
    assert said(batch.events) == ["of nobody yet"]
    await desk.store.delivered([batch], now=desk.now)
    await desk.register(registration("chat-1"))
    await refresh(desk, message(4, "of support"))
    assert said(await told(desk)) == ["of nobody yet", "of support"]
    assert await batches(desk) == []


# -- what ended and what is erased ---------------------------------------------------------------------


@pytest.mark.slow
async def test_an_ended_chat_is_forgotten_behind_any_number_that_somebody_has_still_to_be_told_of(
    desk: Desk,
) -> None:
    await desk.store.enrol([HOOK], now=desk.now)
    names = chats(2_100)
    await desk.register(*(registration(each) for each in names), spread_ms=0)
    desk.later(SECOND)
    claims = sorted(await desk.claim(10_000), key=lambda claim: int(claim.chat_id[5:]))
    await desk.store.settle(
        [
            Settlement(claim, Verdict.ENDED, desk.now + MINUTE, sent_at=desk.now, settled_at=desk.now)
            for claim in claims
        ]
    )
    last = next(each for each in await batches(desk, limit=10_000) if each.events[0].chat_id == names[-1])
    await desk.store.delivered([last], now=desk.now)
    before = await desk.store.kept()
    desk.later(2 * MINUTE)
    await trim(desk, WIDE)
    assert (await desk.store.kept()).newest == before.newest
    old = Consumer("old", ENDS, from_oldest=True)
    await desk.store.enrol([HOOK, old], now=desk.now)
    left = [
        event.chat_id
        for event in (await desk.store.fetch("old", after=None, limit=9_999, now=desk.now)).events
    ]
    assert left == names[:-1]
    rest = await batches(desk, limit=10_000)
    await desk.store.delivered(rest, now=desk.now)
    await acknowledge(desk, "old")
    while await acknowledge(desk, "old"):
        pass
    await trim(desk, WIDE)
    await trim(desk, WIDE)
    assert (await desk.store.kept()).events == 0


async def test_removing_a_chat_that_has_ended_erases_what_was_said_in_it(chat: Desk) -> None:
    await refresh(chat, message(3, "a secret"), verdict=Verdict.ENDED)
    assert await batches(chat)
    assert not await chat.store.remove("chat-1", now=chat.now), "it had ended"
    assert await told(chat) == []
    assert await batches(chat) == []
    assert (await chat.store.kept()).events == 0
    assert (await chat.session()).end_cause == "chat_ended"


# -- what is not taken -----------------------------------------------------------------------------------


async def test_what_one_does_not_take_is_kept_for_it_as_long_as_it_says(desk: Desk) -> None:
    brief, long = Consumer("brief", CHAT, keep_ms=5 * MINUTE), Consumer("long", CHAT)
    hook = replace(HOOK, keep_ms=10 * MINUTE)
    await desk.store.enrol([brief, long, hook], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one"), message(4, "two"))
    await batches(desk)
    desk.later(7 * MINUTE)
    assert await trimmed(desk) == {("brief", Why.KEEP): 2}
    found = await told(desk, "brief")
    assert [gap(each) for each in found] == [{"events": 2, "up_to_index": 4}]
    assert said(await told(desk, "long")) == ["one", "two"], "and no gap"
    [batch] = await batches(desk)
    assert said(batch.events) == ["one", "two"]
    desk.later(7 * MINUTE)
    assert (await trimmed(desk))["hook", Why.KEEP] == 2
    [batch] = await batches(desk)
    assert said(batch.events) == ["gap"]
    assert said(await told(desk, "long")) == ["one", "two"]


async def test_of_a_backlog_the_oldest_go_and_are_told_as_a_gap(desk: Desk) -> None:
    few = Consumer("few", CHAT, max_backlog=3)
    hook = Consumer("hook", CHAT, pushes=True, max_backlog=4)
    await desk.store.enrol([few, hook, APP], now=desk.now)
    await desk.live("chat-1", "chat-2")
    for index in range(3, 8):
        await refresh(desk, message(index, f"a{index}"))
        await refresh(desk, message(index, f"b{index}"), chat_id="chat-2")
    await batches(desk)
    assert await trimmed(desk) == {("few", Why.MAX_BACKLOG): 7, ("hook", Why.MAX_BACKLOG): 6}
    found = await told(desk, "few")
    assert said(found) == ["b6", "a7", "b7", "gap", "gap"]
    assert [gap(each) for each in found[-2:]] == [
        {"events": 4, "up_to_index": 6},
        {"events": 3, "up_to_index": 5},
    ]
    first, second = await batches(desk)
    assert {tuple(said(each.events)) for each in (first, second)} == {
        ("a6", "a7", "gap"),
        ("b6", "b7", "gap"),
    }
    assert len(await told(desk)) == 10, "nobody else lost any"
    assert await trimmed(desk) == {}, "gaps are no backlog"


@pytest.mark.slow
async def test_a_large_backlog_goes_in_portions(desk: Desk) -> None:
    few = Consumer("few", CHAT, max_backlog=100)
    hook = Consumer("hook", CHAT, pushes=True, max_backlog=100)
    await desk.store.enrol([few, hook], now=desk.now)
    await desk.live("chat-1")
    for begin in range(3, 5_003, 500):
        await refresh(desk, *(message(begin + index, "x") for index in range(500)))
    await batches(desk)
    dropped = await trimmed(desk, Bounds(10_000, 1 << 30, 1 << 30, MINUTE))
    assert dropped == {("few", Why.MAX_BACKLOG): 4_900, ("hook", Why.MAX_BACKLOG): 4_900}
    found = await told(desk, "few")
    assert (len(found), gap(found[-1])) == (101, {"events": 4_900, "up_to_index": 4_902})


async def test_one_that_is_away_is_told_one_gap_of_a_chat_however_often_events_go(chat: Desk) -> None:
    bounds = Bounds(4, 1 << 20, 1 << 30, MINUTE)
    for begin in range(3, 23, 5):
        await refresh(chat, *(message(begin + index, f"{begin + index}") for index in range(5)))
        await batches(chat)
        for _ in range(3):
            await trimmed(chat, bounds)
    found = await told(chat)
    assert said(found) == ["19", "20", "21", "22", "gap"]
    assert gap(found[-1]) == {"events": 16, "up_to_index": 18}
    [batch] = await batches(chat)
    assert said(batch.events) == ["19", "20", "21", "22", "gap"]
    assert gap(batch.events[-1]) == gap(found[-1])


async def test_gaps_that_are_not_taken_either_become_one_of_all_chats(desk: Desk) -> None:
    brief, hook = (
        replace(each, kinds=CHAT, keep_ms=5 * MINUTE, services=frozenset({"support"})) for each in (APP, HOOK)
    )
    await desk.store.enrol([brief, hook], now=desk.now)
    await desk.live("chat-1", "chat-2", "chat-3")
    for chat_id in ("chat-1", "chat-2"):
        await refresh(desk, message(3, "one"), chat_id=chat_id)
    await batches(desk)
    for _ in range(4):
        desk.later(7 * MINUTE)
        await trimmed(desk)
    await refresh(desk, message(3, "there"), chat_id="chat-3")
    found = await told(desk)
    assert [(each.kind, each.chat_id) for each in found] == [
        (EventKind.GAP, None),
        (EventKind.CHAT, "chat-3"),
    ]
    of_all, there = await batches(desk)
    assert (said(of_all.events), of_all.events[0].chat_id, said(there.events)) == (["gap"], None, ["there"])


async def test_a_gap_that_a_full_backlog_passes_over_stays_that_of_its_chat(desk: Desk) -> None:
    few, hook = (replace(each, kinds=CHAT, max_backlog=2) for each in (APP, HOOK))
    await desk.store.enrol([few, hook], now=desk.now)
    await desk.live("chat-1", "chat-2")
    for chat_id in ("chat-1", "chat-2", "chat-2"):
        begin = (await desk.session(chat_id)).next_position or 0
        await refresh(desk, *(message(begin + index, "x") for index in range(4)), chat_id=chat_id)
        await batches(desk)
        await trimmed(desk)
    gaps = [(each.chat_id, gap(each)) for each in await told(desk) if each.kind is EventKind.GAP]
    assert gaps == [
        ("chat-1", {"events": 4, "up_to_index": 6}),
        ("chat-2", {"events": 6, "up_to_index": 8}),
    ]
    of_hook = [event for batch in await batches(desk) for event in batch.events]
    assert [(each.chat_id, gap(each)) for each in of_hook if each.kind is EventKind.GAP] == gaps


async def test_a_gap_of_all_chats_that_a_full_backlog_passes_over_is_told(desk: Desk) -> None:
    few, hook = (replace(each, kinds=CHAT, max_backlog=2) for each in (APP, HOOK))
    await desk.store.enrol([few, hook], now=desk.now)
    await desk.live("chat-1")
    await desk.store.distrust(before=desk.now - MINUTE)
    await refresh(desk, *(message(index, "x") for index in range(3, 7)))
    await batches(desk)
    await trimmed(desk)
    assert [each.chat_id for each in await told(desk) if each.kind is EventKind.GAP] == [None, "chat-1"]
    of_hook = [event for batch in await batches(desk) for event in batch.events]
    assert {each.chat_id for each in of_hook if each.kind is EventKind.GAP} == {None, "chat-1"}


async def test_gaps_that_were_told_go(chat: Desk) -> None:
    bounds = Bounds(4, 1 << 20, 1 << 30, MINUTE)
    for begin in (3, 13):
        await refresh(chat, *(message(begin + index, "x") for index in range(10)))
        await trimmed(chat, bounds)
        await acknowledge(chat)
        assert await told(chat) == []
        await chat.store.delivered(await batches(chat), now=chat.now)
    await refresh(chat, message(23, "y"))
    await trimmed(chat, bounds)
    assert (await chat.store.kept()).events == 4


async def test_behind_counts_what_a_consumer_is_told_and_nothing_else(desk: Desk) -> None:
    app = Consumer("app", CHAT, services=frozenset({"support"}))
    hook = Consumer("hook", ENDS, pushes=True)
    sales = Consumer("sales", EVERYTHING, services=frozenset({"sales"}))
    await desk.store.enrol([app, hook, sales], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one"), message(4, "two"))
    since = desk.now
    await desk.push(push("chat-1"))
    assert [(each.name, each.behind, each.oldest_at) for each in await desk.store.consumers()] == [
        ("app", 2, since),
        ("hook", 0, None),
        ("sales", 0, None),
    ]
    await refresh(desk, message(5, "bye"), verdict=Verdict.ENDED)
    assert [each.behind for each in await desk.store.consumers()] == [3, 1, 0]
    await batches(desk)
    hooked = await state(desk, "hook")
    assert (hooked.behind, hooked.oldest_at) == (1, desk.now)


@pytest.mark.slow
async def test_behind_is_about_right_where_there_is_much(desk: Desk) -> None:
    app, hook = Consumer("app", CHAT), Consumer("hook", CHAT, pushes=True)
    await desk.store.enrol([app, hook, Consumer("all", EVERYTHING)], now=desk.now)
    names = chats(40)
    await desk.live(*names)
    for name in names:
        await refresh(desk, *(message(3 + index, "x") for index in range(100)), chat_id=name)
        await desk.push(push(name))
    assert 3_500 < (await state(desk, "app")).behind < 4_500
    await batches(desk, limit=1)
    assert 3_500 < (await state(desk, "hook")).behind < 4_500


@pytest.mark.slow
async def test_where_even_the_gaps_are_too_many_one_of_all_chats_is_told(desk: Desk) -> None:
    await desk.store.enrol([Consumer("app", CHAT), replace(HOOK, kinds=CHAT)], now=desk.now)
    names = chats(100)
    await desk.live(*names)
    for name in names:
        await refresh(desk, message(3, "x"), chat_id=name)
    dropped = await trimmed(desk, Bounds(1_000, 1 << 20, 0, MINUTE))
    assert dropped == {("app", Why.BOUNDS): 100, ("hook", Why.BOUNDS): 100}
    [event] = await told(desk)
    assert (event.kind, event.chat_id) == (EventKind.GAP, None)
    [batch] = await batches(desk)
    assert (said(batch.events), batch.events[0].chat_id) == (["gap"], None)


# -- tokens ----------------------------------------------------------------------------------------------


async def test_who_is_told_the_tokens_themselves_is_told_of_the_newest_alone(desk: Desk) -> None:
    keys = Consumer("hook", frozenset({EventKind.TOKENS, EventKind.CHAT}), pushes=True, send_keys=True)
    await desk.store.enrol([keys, APP], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, news=TokenNews("chat-1", None, "second", None))
    await refresh(desk, message(3, "one"), news=TokenNews("chat-1", None, "third", None))
    [batch] = await batches(desk)
    assert said(batch.events) == ["one", "tokens"]
    await desk.store.undelivered(batch, due_at=desk.now, failing_since=None)
    await refresh(desk, message(4, "two"), news=TokenNews("chat-1", None, "fourth", None))
    [again] = await batches(desk)
    assert said(again.events) == ["one"]
    await desk.store.delivered([again], now=desk.now)
    [further] = await batches(desk)
    assert said(further.events) == ["two", "tokens"]
    assert [each for each in said(await told(desk)) if each == "tokens"] == ["tokens"] * 3


async def test_a_batch_of_old_tokens_alone_goes_on_with_what_there_is(desk: Desk) -> None:
    keys = Consumer("hook", frozenset({EventKind.TOKENS}), pushes=True, send_keys=True)
    await desk.store.enrol([keys], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, news=TokenNews("chat-1", None, "second", None))
    [old] = await batches(desk)
    await refresh(desk, news=TokenNews("chat-1", None, "third", None))
    [new] = await batches(desk)
    assert (said(new.events), new.events[0].id > old.events[0].id) == (["tokens"], True)
    await desk.store.delivered([new], now=desk.now)
    assert await batches(desk) == []
