"""The transcript: what replies showed is told in order, once to each consumer until he acknowledges it, and nothing
is kept of what nobody is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import orjson
import pytest
import pytest_asyncio

from asyncchatd.model.data import Ms, Reason, Settled, Settlement, TokenNews, Verdict
from asyncchatd.model.delivery import Batch, Consumer
from asyncchatd.model.transcript import EventKind, RawEvent, StoredEvent
from asyncchatd.model.values import replace
from asyncchatd.stores import make_store
from asyncchatd.stores.answers import Bounds
from asyncchatd.stores.base import Store
from asyncchatd.stores.errors import ConsumerPushed, ConsumerUnknown, CursorAhead, StoreError
from asyncchatd.stores.sqlite import back_up
from asyncchatd.wire import raw_event

from .desk import MINUTE, NOON, SECOND, SPREAD, Desk, push, registration

EVERYTHING = frozenset(EventKind)
APP = Consumer("app", EVERYTHING)
HOOK = Consumer("hook", EVERYTHING, pushes=True)
WIDE = Bounds(1_000, 1 << 20, 1 << 30, MINUTE)


def message(index: int, text: str = "Hello", *, at: Ms = NOON, sender: int = 2) -> dict[str, object]:
    return {
        "index": index,
        "type": "Message",
        "utcTime": at,
        "text": text,
        "from": {"participantId": sender, "nickname": "Agent", "type": "Agent"},
        "userData": {"of": "the field"},
    }


def raw(*messages: dict[str, object]) -> tuple[RawEvent, ...]:
    found = [raw_event(each) for each in messages]
    assert None not in found
    return tuple(each for each in found if each is not None)


async def refresh(
    desk: Desk,
    *messages: dict[str, object],
    chat_id: str = "chat-1",
    next_position: int | None = None,
    verdict: Verdict = Verdict.ANSWERED,
    news: TokenNews | None = None,
) -> Settled:
    """A Refresh of one session whose reply shows these messages."""
    desk.later(SECOND)
    await desk.store.make_due(chat_id, Reason.REQUEST, now=desk.now)
    [claim] = [claim for claim in await desk.claim() if claim.chat_id == chat_id]
    events = raw(*messages)
    highest = max((event.index or 0 for event in events), default=None)
    if next_position is None:
        next_position = claim.next_position if highest is None else highest + 1
    settlement = Settlement(
        claim,
        verdict,
        desk.now + SPREAD,
        sent_at=desk.now,
        settled_at=desk.now,
        news=news or TokenNews(),
        next_position=next_position,
        events=events,
    )
    [settled] = await desk.store.settle([settlement])
    return settled


async def told(desk: Desk, consumer: str = "app", after: int | None = None) -> list[StoredEvent]:
    return list((await desk.store.fetch(consumer, after=after, limit=1000, now=desk.now)).events)


def said(events: Sequence[StoredEvent]) -> list[str]:
    """The texts of chat events, and the kinds of others."""
    return [
        orjson.loads(event.body or b"")["text"] if event.kind is EventKind.CHAT else str(event.kind)
        for event in events
    ]


@pytest_asyncio.fixture(loop_scope="session")
async def chat(desk: Desk) -> Desk:
    """A session, and one who is told of it."""
    await desk.store.enrol([APP, HOOK], now=desk.now)
    await desk.live("chat-1")
    return desk


async def test_nothing_is_kept_while_nobody_is_told(desk: Desk) -> None:
    await desk.live("chat-1")
    assert desk.store.told_kinds == frozenset()
    await refresh(desk, message(3, "Hello"))
    await desk.store.enrol([Consumer("app", EVERYTHING, from_oldest=True)], now=desk.now)
    assert await told(desk) == []


async def test_a_replys_events_are_told_in_their_order_with_all_their_fields(chat: Desk) -> None:
    first, second = message(3, "Hello"), message(5, "your parcel is here")
    await refresh(chat, first, second)
    found = await told(chat)
    assert [orjson.loads(event.body or b"") for event in found] == [first, second]
    assert [(event.kind, event.chat_id, event.service, event.device_id) for event in found] == [
        (EventKind.CHAT, "chat-1", "support", "device-of-chat-1")
    ] * 2
    assert [event.at for event in found] == [chat.now] * 2
    assert found[0].id < found[1].id


async def test_an_event_that_comes_again_is_told_once(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    await refresh(chat, message(3, "one"), message(4, "two"), message(5, "three"), next_position=6)
    assert said(await told(chat)) == ["one", "two", "three"]


async def test_the_same_words_twice_in_a_second_are_two_messages(chat: Desk) -> None:
    await refresh(chat, message(3, "ok"), message(4, "ok"))
    assert said(await told(chat)) == ["ok", "ok"]


async def test_what_was_not_acknowledged_comes_again_and_what_was_does_not(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    first = await told(chat)
    assert await told(chat) == first
    assert said(await told(chat, after=first[0].id)) == ["two"]
    assert said(await told(chat)) == ["two"]
    assert said(await told(chat, after=0)) == ["two"], "a cursor never goes back"
    assert await told(chat, after=first[1].id) == []


async def test_nobody_acknowledges_what_he_was_not_given(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [only] = await told(chat)
    await refresh(chat, message(4, "two"))
    with pytest.raises(CursorAhead) as refused:
        await told(chat, after=only.id + 1)
    assert refused.value.given == only.id
    assert said(await told(chat)) == ["one", "two"]


async def test_one_who_remembers_where_he_is_is_not_given_twice_what_he_did_not_acknowledge(
    chat: Desk,
) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    first = await chat.store.fetch("app", after=None, limit=1, now=chat.now)
    assert said(first.events) == ["one"]
    second = await chat.store.fetch("app", after=None, limit=9, now=chat.now, beyond=first.cursor)
    assert said(second.events) == ["two"]
    third = await chat.store.fetch("app", after=None, limit=9, now=chat.now, beyond=second.cursor)
    assert (third.events, third.cursor) == ((), second.cursor)
    assert said(await told(chat)) == ["one", "two"], "nothing was acknowledged"
    with pytest.raises(CursorAhead):
        await chat.store.fetch("app", after=None, limit=9, now=chat.now, beyond=second.cursor + 1)


async def test_what_is_given_at_once_is_bounded_and_never_nothing(chat: Desk) -> None:
    large = "x" * 400_000
    await refresh(chat, message(3, large * 3), *(message(index, large) for index in range(4, 8)))
    assert [len(said(await told(chat)))] == [1]
    [only] = await told(chat)
    assert said(await told(chat, after=only.id)) == [large] * 2


async def test_one_who_has_a_webhook_fetches_nothing(chat: Desk) -> None:
    with pytest.raises(ConsumerPushed):
        await told(chat, "hook")
    assert {state.name: state.pushes for state in await chat.store.consumers()} == {
        "app": False,
        "hook": True,
    }


async def test_one_who_is_paused_fetches_nothing_until_he_goes_on(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    await chat.store.pause("app", paused=True)
    assert await told(chat) == []
    await chat.store.pause("app", paused=False)
    assert said(await told(chat)) == ["one"]


async def test_who_has_all_there_is_is_not_behind_what_was_erased(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    await chat.store.remove("chat-1", now=chat.now)
    assert await told(chat) == []
    assert await batches(chat) == []
    assert [state.behind for state in await chat.store.consumers()] == [0, 0]


async def test_it_is_known_how_much_is_kept(chat: Desk) -> None:
    empty = await chat.store.kept()
    assert (empty.events, empty.size, empty.oldest, empty.newest) == (0, 0, 0, 0)
    await refresh(chat, message(3, "few are counted"))
    few = await chat.store.kept()
    assert (few.events, few.oldest, few.newest) == (1, few.newest, few.newest)
    for begin in range(4, 1_504, 500):
        await refresh(chat, *(message(begin + index, f"{index:0100}") for index in range(500)))
    found = await told(chat)
    true = 3 * sum(len(event.body or b"") for event in found[1:501])
    kept = await chat.store.kept()
    assert kept.oldest == few.oldest == found[0].id
    assert 1_400 < kept.events < 1_600
    assert kept.newest >= found[-1].id
    assert 0.8 * true < kept.size < 1.3 * true + 100 * 1_500, "each is sealed with some bytes more"


async def test_who_listens_hears_what_was_written_while_he_looked(chat: Desk) -> None:
    news = asyncio.Event()
    with chat.store.bell.heard_by(news):
        await refresh(chat, message(3, "one"))
        assert news.is_set()
    news.clear()
    await refresh(chat, message(4, "two"))
    assert not news.is_set()


async def test_a_consumer_nobody_named_is_told_nothing(chat: Desk) -> None:
    with pytest.raises(ConsumerUnknown):
        await told(chat, "stranger")


async def test_a_consumer_is_told_of_the_kinds_and_services_he_asked_for(desk: Desk) -> None:
    only_ends = Consumer("ends", frozenset({EventKind.ENDED}))
    others = Consumer("others", EVERYTHING, services=frozenset({"sales"}))
    await desk.store.enrol([only_ends, others], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one"))
    await refresh(desk, message(4, "bye"), verdict=Verdict.ENDED)
    assert said(await told(desk, "ends")) == ["ended"]
    assert await told(desk, "others") == []


async def test_the_last_words_come_before_the_end(chat: Desk) -> None:
    await refresh(chat, message(3, "Goodbye."), verdict=Verdict.ENDED)
    assert said(await told(chat)) == ["Goodbye.", "ended"]


async def test_other_tokens_are_told_and_which_they_are_is_not(chat: Desk) -> None:
    await refresh(chat, news=TokenNews("chat-1", None, "another-key", None))
    [event] = await told(chat)
    assert (event.kind, event.body) == (EventKind.TOKENS, None)


async def test_a_restoration_is_told(chat: Desk) -> None:
    await chat.lose()
    claim = await chat.claim_one()
    await chat.answer(claim)
    assert EventKind.RESTORED in [event.kind for event in await told(chat)]


async def test_a_new_consumer_begins_with_now_or_with_the_oldest(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    late, old = Consumer("late", EVERYTHING), Consumer("old", EVERYTHING, from_oldest=True)
    await chat.store.enrol([APP, late, old], now=chat.now)
    await refresh(chat, message(4, "two"))
    assert said(await told(chat, "late")) == ["two"]
    assert said(await told(chat, "old")) == ["one", "two"]


async def test_a_consumer_goes_on_where_he_was_when_he_is_named_again(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [first] = await told(chat)
    await told(chat, after=first.id)
    await chat.store.enrol([HOOK], now=chat.now)
    await refresh(chat, message(4, "two"))
    await chat.store.enrol([APP, HOOK], now=chat.now)
    assert said(await told(chat)) == ["two"]


async def test_removing_a_session_erases_what_was_said_in_it(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    await chat.store.remove("chat-1", now=chat.now)
    assert await told(chat) == []
    assert await batches(chat) == []


async def test_a_purged_session_leaves_no_event(chat: Desk) -> None:
    await refresh(chat, message(3, "bye"), verdict=Verdict.ENDED)
    found = await told(chat)
    await told(chat, after=found[-1].id)
    await chat.store.delivered(await batches(chat), now=chat.now)
    assert await chat.store.purge(ended_before=chat.now + 1, limit=100) == 1
    await chat.store.enrol([APP, HOOK, Consumer("old", EVERYTHING, from_oldest=True)], now=chat.now)
    assert await told(chat, "old") == []


# -- indexes that change -----------------------------------------------------------------------------


async def position(desk: Desk) -> int | None:
    return (await desk.session()).next_position


async def test_an_index_with_another_content_makes_the_session_be_asked_for_everything(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(5, "two", at=NOON + SECOND))
    chat.later(2 * MINUTE)
    await refresh(chat, message(3, "two", at=NOON + SECOND), next_position=4)
    assert await position(chat) == 1
    assert (await chat.due())[1] <= chat.now
    await refresh(
        chat,
        *(message(2, "one"), message(3, "two", at=NOON + SECOND), message(4, "three", at=NOON + MINUTE)),
    )
    assert said(await told(chat)) == ["one", "two", "three"]
    await refresh(chat, message(4, "three", at=NOON + MINUTE), message(5, "four", at=NOON + MINUTE))
    assert said(await told(chat)) == ["one", "two", "three", "four"]


async def test_a_next_position_below_the_one_asked_with_is_a_new_count(chat: Desk) -> None:
    await refresh(chat, message(8, "one"))
    chat.later(2 * MINUTE)
    await refresh(chat, next_position=4)
    assert await position(chat) == 1
    await refresh(chat, message(3, "one"), message(4, "two", at=NOON + MINUTE))
    assert said(await told(chat)) == ["one", "two"]


async def test_a_gms_that_counts_anew_each_time_is_asked_for_everything_once_a_minute(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    chat.later(2 * MINUTE)
    await refresh(chat, message(3, "another"), next_position=4)
    assert await position(chat) == 1
    await refresh(chat, message(3, "one"), next_position=4)
    await refresh(chat, message(3, "yet another"), next_position=4)
    assert await position(chat) == 4


# -- webhooks --------------------------------------------------------------------------------------------


async def batches(
    desk: Desk, *, limit: int = 100, busy: Sequence[int] = (), most: int = 50, size: int = 1 << 18
) -> list[Batch]:
    return await desk.store.batches(
        "hook", now=desk.now, limit=limit, busy=busy, most_events=most, most_bytes=size
    )


async def test_a_batch_has_the_next_events_of_one_chat(chat: Desk) -> None:
    await chat.live("chat-2")
    await refresh(chat, message(3, "one"), message(4, "two"))
    await refresh(chat, message(3, "hello"), chat_id="chat-2")
    await refresh(chat, message(5, "three"))
    first, second = await batches(chat)
    assert (said(first.events), said(second.events)) == (["one", "two", "three"], ["hello"])
    assert {event.chat_id for event in first.events} == {"chat-1"}


async def test_a_batch_that_was_not_taken_is_given_again_as_it_was(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [batch] = await batches(chat)
    await refresh(chat, message(4, "two"))
    assert await batches(chat) == [batch]
    await chat.store.undelivered(batch, due_at=chat.now + SECOND, failing_since=None)
    assert await batches(chat) == []
    assert await chat.store.next_batch("hook") == chat.now + SECOND
    chat.later(SECOND)
    [again] = await batches(chat)
    assert (again.number, again.events, again.tries) == (batch.number, batch.events, 1)
    await chat.store.delivered([again], now=chat.now)
    [following] = await batches(chat)
    assert said(following.events) == ["two"]
    assert following.number != batch.number
    await chat.store.delivered([following], now=chat.now)
    assert await batches(chat) == []
    assert await chat.store.next_batch("hook") is None


async def test_a_chat_with_a_batch_on_its_way_waits(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [batch] = await batches(chat)
    assert await batches(chat, busy=[batch.row]) == []


async def test_a_batch_is_bounded_and_never_empty(chat: Desk) -> None:
    await refresh(chat, *(message(index, "x" * 500) for index in range(3, 9)))
    [few] = await batches(chat, most=2)
    assert len(few.events) == 2
    await chat.store.delivered([few], now=chat.now)
    [small] = await batches(chat, size=10)
    assert len(small.events) == 1


async def park(desk: Desk, batch: Batch) -> None:
    await desk.store.undelivered(batch, due_at=desk.now, failing_since=desk.now, parked=True)


async def test_a_chat_goes_on_behind_a_parked_batch_and_replay_brings_it_back(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [bad] = await batches(chat)
    await refresh(chat, message(4, "two"))
    await park(chat, bad)
    [state] = [each for each in await chat.store.consumers() if each.name == "hook"]
    assert (state.chats, state.parked) == (1, 1)
    [good] = await batches(chat)
    assert said(good.events) == ["two"]
    await chat.store.delivered([good], now=chat.now)
    assert await batches(chat) == []
    assert await chat.store.replay("hook", parked=True) == 1
    [again] = await batches(chat)
    assert (again.number, again.events) == (bad.number, bad.events)
    await chat.store.delivered([again], now=chat.now)
    await refresh(chat, message(5, "three"))
    [further] = await batches(chat)
    assert said(further.events) == ["three"]


async def test_of_a_chat_that_is_replayed_one_batch_is_given_at_a_time(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    for index in (4, 5, 6):
        [bad] = await batches(chat, most=1)
        await refresh(chat, message(index, f"{index}"))
        await park(chat, bad)
    [state] = [each for each in await chat.store.consumers() if each.name == "hook"]
    assert (state.chats, state.parked) == (1, 3)
    assert await chat.store.replay("hook", parked=True) == 3
    told_at_last: list[str] = []
    while given := await batches(chat, most=1):
        [batch] = given
        assert await batches(chat, busy=[batch.row]) == []
        assert await chat.store.next_batch("hook", busy=[batch.row]) is None
        told_at_last += said(batch.events)
        await chat.store.delivered([batch], now=chat.now)
    assert told_at_last == ["one", "4", "5", "6"]


async def test_a_replayed_batch_that_is_refused_again_holds_nobody_up(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [bad] = await batches(chat)
    await park(chat, bad)
    await chat.store.replay("hook", parked=True)
    [again] = await batches(chat)
    await chat.store.undelivered(again, due_at=chat.now + MINUTE, failing_since=chat.now)
    await refresh(chat, message(4, "two"))
    [good] = await batches(chat)
    assert said(good.events) == ["two"]
    await chat.store.delivered([good], now=chat.now)
    chat.later(MINUTE)
    [again] = await batches(chat)
    assert again.number == bad.number
    await park(chat, again)
    assert await batches(chat) == []


async def test_a_session_that_is_removed_while_its_batch_is_on_its_way_leaves_nothing(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    [batch] = await batches(chat)
    await chat.store.remove("chat-1", now=chat.now)
    await chat.store.undelivered(batch, due_at=chat.now, failing_since=chat.now, parked=True)
    await chat.store.delivered([batch], now=chat.now)
    assert await batches(chat) == []
    [state] = [each for each in await chat.store.consumers() if each.name == "hook"]
    assert (state.chats, state.parked) == (0, 0)


async def test_a_consumers_state_says_how_far_behind_he_is(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    since = chat.now
    states = {each.name: each for each in await chat.store.consumers()}
    assert (states["app"].behind, states["app"].oldest_at) == (2, since)
    found = await told(chat)
    await told(chat, after=found[-1].id)
    states = {each.name: each for each in await chat.store.consumers()}
    assert (states["app"].behind, states["app"].oldest_at) == (0, None)
    assert await chat.store.pause("hook", paused=True)
    assert not await chat.store.pause("stranger", paused=True)
    assert [each.paused for each in await chat.store.consumers()] == [False, True]


# -- bounds ----------------------------------------------------------------------------------------------


async def trim(desk: Desk, bounds: Bounds) -> None:
    while (await desk.store.trim(bounds, now=desk.now)).more:
        pass


async def test_what_is_too_much_goes_oldest_first_and_is_told_as_a_gap(chat: Desk) -> None:
    await refresh(chat, *(message(index, f"{index}") for index in range(3, 13)))
    await trim(chat, Bounds(4, 1 << 20, 1 << 30, MINUTE))
    found = await told(chat)
    assert said(found) == ["9", "10", "11", "12", "gap"]
    assert orjson.loads(found[-1].body or b"") == {"events": 6, "up_to_index": 8}


async def test_a_chat_that_ended_is_forgotten_once_everybody_has_it(chat: Desk) -> None:
    await refresh(chat, message(3, "bye"), verdict=Verdict.ENDED)
    chat.later(2 * MINUTE)
    await trim(chat, WIDE)
    found = await told(chat)
    assert said(found) == ["bye", "ended"]
    await chat.store.delivered(await batches(chat), now=chat.now)
    await told(chat, after=found[-1].id)
    await trim(chat, WIDE)
    old = Consumer("old", EVERYTHING, from_oldest=True)
    await chat.store.enrol([APP, HOOK, old], now=chat.now)
    assert await told(chat, "old") == []


async def test_what_nobody_takes_for_days_is_given_up_and_told_as_a_gap(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    chat.later(73 * 60 * MINUTE)
    await refresh(chat, message(5, "three"))
    await trim(chat, WIDE)
    assert said(await told(chat)) == ["three", "gap"]
    [batch] = await batches(chat)
    assert said(batch.events) == ["three", "gap"]


async def test_a_batch_that_lost_an_event_to_the_bounds_is_another_batch(chat: Desk) -> None:
    await refresh(chat, *(message(index, f"{index}") for index in range(3, 6)))
    [batch] = await batches(chat)
    await refresh(chat, *(message(index, f"{index}") for index in range(6, 9)))
    await trim(chat, Bounds(4, 1 << 20, 1 << 30, MINUTE))
    [again] = await batches(chat)
    assert said(again.events) == ["5", "6", "7", "8", "gap"]
    assert again.number != batch.number
    await chat.store.delivered([batch], now=chat.now)
    assert await batches(chat) == [again]


async def test_so_is_one_that_is_parked(chat: Desk) -> None:
    await refresh(chat, message(3, "3"), message(4, "4"))
    [bad] = await batches(chat)
    await park(chat, bad)
    await refresh(chat, message(5, "5"), message(6, "6"))
    await trim(chat, Bounds(3, 1 << 20, 1 << 30, MINUTE))
    await chat.store.replay("hook", parked=True)
    [again] = await batches(chat)
    assert said(again.events) == ["4"]
    assert again.number != bad.number
    await chat.store.delivered([again], now=chat.now)
    [further] = await batches(chat)
    assert said(further.events) == ["5", "6", "gap"]


async def test_a_parked_batch_is_given_up_as_well_and_told_as_a_gap(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    [bad] = await batches(chat)
    await park(chat, bad)
    chat.later(73 * 60 * MINUTE)
    await refresh(chat, message(5, "three"))
    await trim(chat, WIDE)
    assert await chat.store.replay("hook", parked=True) == 0
    [batch] = await batches(chat)
    assert said(batch.events) == ["three", "gap"]
    assert orjson.loads(batch.events[-1].body or b"") == {"events": 2, "up_to_index": 4}


async def test_a_chat_that_waits_keeps_no_other_ended_one_from_being_forgotten(chat: Desk) -> None:
    await chat.live("chat-2")
    await refresh(chat, message(3, "bad"), verdict=Verdict.ENDED)
    await refresh(chat, message(3, "bye"), chat_id="chat-2", verdict=Verdict.ENDED)
    bad, good = await batches(chat)
    await park(chat, bad)
    await chat.store.delivered([good], now=chat.now)
    found = await told(chat)
    await told(chat, after=found[-1].id)
    chat.later(2 * MINUTE)
    await trim(chat, WIDE)
    assert (await chat.store.kept()).events == 2
    await chat.store.replay("hook", parked=True)
    [again] = await batches(chat)
    assert said(again.events) == ["bad", "ended"]
    await chat.store.delivered([again], now=chat.now)
    await trim(chat, WIDE)
    assert (await chat.store.kept()).events == 0


async def test_what_is_too_much_of_all_chats_goes_oldest_first(chat: Desk) -> None:
    for begin in range(0, 3_000, 500):
        await refresh(chat, *(message(begin + index, "x" * 100) for index in range(500)))
    size = (await chat.store.kept()).size
    await trim(chat, Bounds(10_000, 1 << 30, size // 2, MINUTE))
    kept = await chat.store.kept()
    assert kept.events == 1_002, "of them a gap for each consumer"
    assert kept.size <= size // 2


async def test_one_who_is_gone_for_as_long_as_he_is_remembered_begins_anew(chat: Desk) -> None:
    brief = replace(HOOK, keep_ms=10 * MINUTE)
    await chat.store.enrol([APP, brief], now=chat.now)
    await refresh(chat, message(3, "one"))
    [batch] = await batches(chat)
    await chat.store.enrol([APP], now=chat.now)
    await trim(chat, WIDE)
    await chat.store.enrol([APP, brief], now=chat.now)
    assert await batches(chat) == [batch], "he was not gone for long"
    await chat.store.enrol([APP], now=chat.now)
    chat.later(10 * MINUTE)
    await trim(chat, WIDE)
    await chat.store.enrol([APP, brief], now=chat.now)
    assert await batches(chat) == []
    await refresh(chat, message(4, "two"))
    [batch] = await batches(chat)
    assert said(batch.events) == ["two"]


async def test_nothing_is_kept_once_nobody_is_told_or_remembered(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    await chat.store.enrol([], now=chat.now)
    await trim(chat, WIDE)
    assert (await chat.store.kept()).events == 1
    chat.later(APP.keep_ms)
    await trim(chat, WIDE)
    assert (await chat.store.kept()).events == 0


# -- what lasts --------------------------------------------------------------------------------------------


def bytes_in(directory: Path) -> bytes:
    return b"".join(each.read_bytes() for each in directory.glob("chats.db*"))


async def test_events_and_progress_outlast_the_process_and_a_copy_has_another_epoch(tmp_path: Path) -> None:
    keys = (bytes(range(32)),)
    url = "sqlite:///chats.db"
    store = make_store(url, directory=tmp_path, keys=keys)
    await store.open()
    desk = Desk(store)
    await store.enrol([APP, HOOK], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one of the secrets"), message(4, "two"))
    [batch] = await batches(desk, most=1)
    epoch = store.epoch
    back_up(url, tmp_path, tmp_path / "copy.db", desk.now)
    await store.close()
    assert b"one of the secrets" not in bytes_in(tmp_path)
    for name, same in (("chats.db", True), ("copy.db", False)):
        store = make_store(f"sqlite:///{name}", directory=tmp_path, keys=keys)
        await store.open()
        await store.enrol([APP, HOOK], now=desk.now)
        again = Desk(store, desk.now)
        assert said(await told(again)) == ["one of the secrets", "two", *([] if same else ["gap"])]
        assert (await batches(again, most=1))[0] == batch
        assert (store.epoch == epoch) is same
        await store.close()


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 10))]
)
async def test_whatever_the_order_each_message_is_told_once_and_in_its_place(chat: Desk, seed: int) -> None:
    chance = random.Random(seed)
    names = ("chat-1", "chat-2", "chat-3")
    await chat.live(*names[1:])
    texts: dict[str, list[str]] = {name: [] for name in names}
    shown = dict.fromkeys(names, 0)
    fetched: dict[str, list[str]] = {name: [] for name in names}
    hooked: dict[str, list[str]] = {name: [] for name in names}

    async def take(found: Sequence[StoredEvent]) -> None:
        for event in found:
            fetched[event.chat_id or ""] += said([event])
        if found:
            await told(chat, after=found[-1].id)

    async def deliver(most: int, taken: float) -> bool:
        given = await batches(chat, limit=2, most=most)
        for batch in given:
            if chance.random() < taken:
                hooked[batch.events[0].chat_id or ""] += said(batch.events)
                await chat.store.delivered([batch], now=chat.now)
            else:
                await chat.store.undelivered(batch, due_at=chat.now, failing_since=None)
        return bool(given)

    for _ in range(60):
        name = chance.choice(names)
        match chance.randrange(4):
            case 0:
                texts[name] += [f"{name} {len(texts[name]) + n}" for n in range(chance.randrange(4))]
            case 1:
                first = chance.randint(0, shown[name])
                messages = [message(3 + n, text) for n, text in enumerate(texts[name])][first:]
                await refresh(chat, *messages, chat_id=name, next_position=3 + len(texts[name]))
                shown[name] = len(texts[name])
            case 2:
                found = await told(chat)
                await take(found[: chance.randrange(len(found) + 1)])
            case _:
                await deliver(3, taken=0.5)
    await take(await told(chat))
    while await deliver(50, taken=1.0):
        pass
    expected = {name: texts[name][: shown[name]] for name in names}
    assert fetched == expected
    assert hooked == expected


async def test_many_chats_share_one_settlement(chat: Desk) -> None:
    names = [f"chat-{number}" for number in range(1, 41)]
    await chat.live(*names[1:])
    for name in names:
        await chat.store.make_due(name, Reason.REQUEST, now=chat.now)
    claims = await chat.claim()
    await chat.store.settle(
        [
            Settlement(
                claim,
                Verdict.ANSWERED,
                chat.now + SPREAD,
                sent_at=chat.now,
                settled_at=chat.now,
                next_position=5,
                events=raw(message(3, claim.chat_id), message(4, "again")),
            )
            for claim in claims
        ]
    )
    found = await told(chat)
    assert len(found) == 80
    for name in names:
        assert said([event for event in found if event.chat_id == name]) == [name, "again"]


async def test_a_registration_moves_no_position_of_a_transcript_that_is_told(chat: Desk) -> None:
    await refresh(chat, message(3, "one"))
    await chat.register(registration("chat-1", next_position=9))
    assert await position(chat) == 4


async def test_events_can_be_read_under_a_new_key_and_are_known_again(tmp_path: Path) -> None:
    old, new = bytes(range(32)), bytes(range(1, 33))
    url = "sqlite:///chats.db"
    for keys, shown in (((), ["one"]), ((old,), ["one"]), ((new, old), ["one", "two"])):
        store = make_store(url, directory=tmp_path, keys=keys)
        await store.open()
        desk = Desk(store)
        await store.enrol([APP], now=desk.now)
        if not keys:
            await desk.live("chat-1")
        await refresh(desk, *(message(3 + number, text) for number, text in enumerate(shown)))
        assert said(await told(desk)) == shown
        await store.close()


async def test_a_push_begins_an_unknown_transcript_at_the_event_it_announces(chat: Desk) -> None:
    await chat.register(registration("chat-2", next_position=None))
    await chat.push(push("chat-2", position=7, next_position=8))
    assert (await chat.session("chat-2")).next_position == 7


async def test_a_push_is_told_and_so_are_the_tokens_it_teaches(chat: Desk) -> None:
    await chat.push(push("chat-1"))
    assert said(await told(chat)) == ["notified"]
    await chat.push(
        push("chat-1", key="another-key", user_id="user-of-chat-1", alias="117", utc_time=chat.now + 9_000)
    )
    assert await chat.key() == "another-key"
    assert said(await told(chat)) == ["notified", "notified", "tokens"]


async def test_each_push_of_a_chat_whose_tokens_are_missing_is_told(chat: Desk) -> None:
    for _ in range(3):
        await chat.push(push("chat-2"))
    assert [(each.kind, each.chat_id) for each in await told(chat)] == [(EventKind.NOTIFIED, "chat-2")] * 3


async def test_the_loss_of_a_chat_server_is_told_and_its_restoration(chat: Desk) -> None:
    await chat.lose()
    assert said(await told(chat)) == ["lost"]
    await chat.answer(await chat.claim_one())
    assert said(await told(chat)) == ["lost", "restored"]


async def test_what_a_reply_brings_after_the_chat_was_removed_is_not_written(chat: Desk) -> None:
    await chat.store.make_due("chat-1", Reason.REQUEST, now=chat.now)
    claim = await chat.claim_one()
    await chat.store.remove("chat-1", now=chat.now)
    settlement = Settlement(
        claim, Verdict.ANSWERED, chat.now, settled_at=chat.now, events=raw(message(3, "a secret")), cut=True
    )
    await chat.store.settle([settlement])
    assert await told(chat) == []


async def test_a_gap_stands_before_the_events_that_were_kept(chat: Desk) -> None:
    await chat.store.make_due("chat-1", Reason.REQUEST, now=chat.now)
    claim = await chat.claim_one()
    await chat.store.settle(
        [
            Settlement(
                claim,
                Verdict.ANSWERED,
                chat.now,
                settled_at=chat.now,
                events=raw(message(9, "last")),
                cut=True,
            )
        ]
    )
    assert said(await told(chat)) == ["gap", "last"]


# -- what a second reading found -----------------------------------------------------------------------


async def test_the_last_words_of_a_chat_that_was_counted_anew_are_told(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    chat.later(2 * MINUTE)
    await refresh(
        chat,
        message(3, "two"),
        message(4, "Goodbye.", at=NOON + MINUTE),
        verdict=Verdict.ENDED,
        next_position=5,
    )
    assert said(await told(chat)) == ["one", "two", "Goodbye.", "ended"]


@pytest.mark.parametrize("set_back", [0, 5 * 60 * MINUTE])
async def test_a_new_message_under_a_known_index_is_told_soon_after_a_count_anew(
    chat: Desk, set_back: int
) -> None:
    await refresh(chat, message(3, "one"))
    chat.later(2 * MINUTE)
    await refresh(chat, message(3, "another"), next_position=4)
    await refresh(chat, message(3, "one"), message(4, "another"))
    chat.later(-set_back)
    await refresh(chat, message(4, "new", at=NOON + MINUTE), next_position=5)
    if set_back:  # the time of the last count says nothing: it is asked for everything
        await refresh(chat, message(3, "one"), message(4, "new", at=NOON + MINUTE), next_position=5)
    assert "new" in said(await told(chat))


async def test_what_was_told_and_trimmed_long_ago_is_not_told_again_by_a_count_anew(chat: Desk) -> None:
    await refresh(chat, *(message(index, f"{index}", at=NOON + index) for index in range(3, 11)))
    found = await told(chat)
    await told(chat, after=found[-1].id)
    await chat.store.delivered(await batches(chat), now=chat.now)
    await trim(chat, Bounds(4, 1 << 20, 1 << 30, MINUTE))
    chat.later(2 * MINUTE)
    await refresh(chat, message(8, "7", at=NOON + 7), next_position=9)
    await refresh(
        chat,
        *(message(index - 1, f"{index}", at=NOON + index) for index in range(3, 11)),
        message(10, "new", at=NOON + MINUTE),
    )
    assert said(await told(chat)) == ["new"]


async def test_a_webhook_that_becomes_one_who_fetches_loses_nothing(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    assert await batches(chat)
    await chat.store.enrol([APP, Consumer("hook", EVERYTHING)], now=chat.now)
    await refresh(chat, message(5, "three"))
    assert said(await told(chat, "hook")) == ["one", "two", "three"]


async def test_a_session_stays_as_long_as_a_consumer_is_to_be_told_of_it(chat: Desk) -> None:
    await refresh(chat, message(3, "bye"), verdict=Verdict.ENDED)
    assert await chat.store.purge(ended_before=chat.now + 1, limit=100) == 0
    found = await told(chat)
    assert said(found) == ["bye", "ended"]
    await told(chat, after=found[-1].id)
    await chat.store.delivered(await batches(chat), now=chat.now)
    assert await chat.store.purge(ended_before=chat.now + 1, limit=100) == 1


async def test_an_event_of_a_clock_that_stood_wrong_gives_nothing_away_but_itself(chat: Desk) -> None:
    await refresh(chat, message(3, "young"))
    chat.later(-4 * 24 * 60 * MINUTE)
    await refresh(chat, message(4, "misdated"))
    chat.later(4 * 24 * 60 * MINUTE)
    await trim(chat, WIDE)
    assert "young" in said(await told(chat))


async def test_a_store_that_keeps_no_events_says_so() -> None:
    class Plain(Store):
        pass

    assert not Plain.told_kinds
    await Plain.enrol(cast(Store, object()), [], now=NOON)
    with pytest.raises(StoreError, match="keeps no events"):
        await Plain.enrol(cast(Store, object()), [APP], now=NOON)


async def test_a_late_reply_does_not_undo_that_everything_is_asked_for(chat: Desk) -> None:
    await refresh(chat, message(3, "one"), message(4, "two"))
    chat.later(2 * MINUTE)
    await chat.store.make_due("chat-1", Reason.REQUEST, now=chat.now)
    late, sent_at = await chat.claim_one(), chat.now
    chat.later(MINUTE)  # its lease is lost
    await refresh(chat, message(3, "two"), next_position=4)
    assert await position(chat) == 1
    await chat.store.settle(
        [Settlement(late, Verdict.ANSWERED, chat.now, sent_at=sent_at, settled_at=chat.now, next_position=6)]
    )
    assert await position(chat) == 1


async def test_a_reply_to_the_session_before_is_not_the_new_ones(chat: Desk) -> None:
    await chat.store.make_due("chat-1", Reason.REQUEST, now=chat.now)
    claim = await chat.claim_one()
    await chat.store.remove("chat-1", now=chat.now)
    await chat.register(registration("chat-1"))
    await chat.store.settle(
        [
            Settlement(
                claim, Verdict.ANSWERED, chat.now, settled_at=chat.now, events=raw(message(3, "of before"))
            )
        ]
    )
    assert await told(chat) == []
    assert await position(chat) == 3


async def test_a_batch_that_was_refused_before_the_clock_was_set_back_is_tried_soon(chat: Desk) -> None:
    await refresh(chat, message(3, "Hello"))
    [batch] = await chat.store.batches(
        "hook", now=chat.now, limit=10, busy=(), most_events=50, most_bytes=1 << 20
    )
    await chat.store.undelivered(batch, due_at=chat.now + MINUTE, failing_since=chat.now)
    chat.now -= 60 * MINUTE
    assert await chat.store.next_batch("hook") == chat.now + 61 * MINUTE
    await chat.store.pull_in(now=chat.now, spread_ms=SPREAD)
    assert await chat.store.next_batch("hook") == chat.now
    [again] = await chat.store.batches(
        "hook", now=chat.now, limit=10, busy=(), most_events=50, most_bytes=1 << 20
    )
    assert (again.number, again.failing_since) == (batch.number, chat.now)
