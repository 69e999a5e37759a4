"""The contract of a store: a chat client's call has a session to itself, as a ping has, and what the gateway shows."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import pytest_asyncio

from asyncchatd.model.data import Claim, Reason, SessionState, Settlement, TokenNews, Verdict
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Bounds, NotTaken
from asyncchatd.stores.base import Store
from asyncchatd.stores.errors import StoreError

from ..desk import LEASE, MINUTE, SECOND, Desk, push, registration
from ..test_transcript import message, raw, refresh, said
from .rig import chats, gone, named

SHOWN = frozenset({EventKind.CHAT, EventKind.ENDED, EventKind.GAP})


async def seize(desk: Desk, chat_id: str = "chat-1") -> Claim:
    seized = await desk.store.seize(chat_id, now=desk.now, lease_ms=LEASE)
    assert isinstance(seized, Claim), seized
    return seized


async def not_seized(desk: Desk, chat_id: str = "chat-1") -> NotTaken:
    why = await desk.store.seize(chat_id, now=desk.now, lease_ms=LEASE)
    assert isinstance(why, NotTaken), why
    return why


async def called(desk: Desk, claim: Claim, verdict: Verdict = Verdict.CALLED, **more: Any) -> None:
    settlement = Settlement(
        claim,
        verdict,
        claim.due_at,
        sent_at=desk.now,
        settled_at=desk.now,
        **more,
    )
    await desk.store.settle([settlement])


async def test_a_session_is_seized_that_is_not_due(desk: Desk) -> None:
    await desk.live("chat-1")
    claim = await seize(desk)
    assert (claim.tokens, claim.next_position) == (registration().tokens, 3)
    assert (await desk.session()).leased_until == desk.now + LEASE


async def test_a_seized_session_is_neither_claimed_nor_taken_nor_seized(desk: Desk) -> None:
    await desk.live(*chats(2))
    await seize(desk)
    await desk.lose()
    assert named(await desk.claim()) == ["chat-2"]
    assert await desk.not_taken() is NotTaken.IN_FLIGHT
    assert await not_seized(desk) is NotTaken.IN_FLIGHT


@pytest.mark.parametrize("verdict", [Verdict.CALLED, Verdict.RELEASED])
async def test_after_a_call_a_session_is_due_as_it_was(desk: Desk, verdict: Verdict) -> None:
    await desk.live("chat-1")
    before = await desk.due()
    await called(desk, await seize(desk), verdict)
    assert await desk.due() == before
    assert (await desk.session()).leased_until == 0
    await seize(desk)


async def test_what_made_it_due_meanwhile_keeps_it_due(desk: Desk) -> None:
    await desk.live("chat-1")
    claim = await seize(desk)
    await desk.push(push())
    await called(desk, claim)
    assert (await desk.claim_one()).reason is Reason.ACKNOWLEDGE


async def test_calls_do_not_make_the_next_acknowledgement_wait(desk: Desk) -> None:
    """Pings that pushes cause keep a distance when they come thick; a customer who writes much is none of them."""
    await desk.live("chat-1")
    desk.later(MINUTE)
    for _ in range(10):
        await called(desk, await seize(desk))
    await desk.push(push())
    assert named(await desk.claim()) == ["chat-1"]


async def test_the_tokens_of_a_calls_reply_are_the_newest(desk: Desk) -> None:
    await desk.live("chat-1")
    await called(desk, await seize(desk), news=TokenNews(secure_key="newer", alias="118"))
    session = await desk.session()
    assert (session.secure_key, session.alias) == ("newer", "118")


async def test_a_call_is_no_restoration(desk: Desk) -> None:
    await desk.live("chat-1")
    claim = await seize(desk)
    lost = await desk.lose()
    await called(desk, claim)
    assert await desk.counts(lost.id) == {"sessions": 1, "waiting": 1}
    assert await not_seized(desk) is NotTaken.RESTORING


async def test_an_end_that_a_call_is_told_ends_the_session(desk: Desk) -> None:
    await desk.live("chat-1")
    await called(desk, await seize(desk), Verdict.ENDED)
    assert (await desk.session()).state is SessionState.ENDED
    assert await not_seized(desk) is NotTaken.ENDED


async def test_why_a_session_is_not_seized(desk: Desk) -> None:
    assert await not_seized(desk) is NotTaken.UNKNOWN
    await desk.live("chat-1", "chat-2")
    await desk.store.take_push(push("chat-1"), now=desk.now)
    assert await not_seized(desk) is NotTaken.PUSHES
    await desk.take("chat-2")
    assert await not_seized(desk, "chat-2") is NotTaken.TAKEN
    await desk.store.absorb(10)
    await gone(desk, "118")
    await desk.register(registration("chat-3", alias="118"))
    assert await not_seized(desk, "chat-3") is NotTaken.RESTORING


async def test_a_lease_of_a_call_runs_out_like_any(desk: Desk) -> None:
    await desk.live("chat-1")
    claim = await seize(desk)
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    desk.later(LEASE)
    assert named(await desk.claim()) == ["chat-1"]
    await called(desk, claim, news=TokenNews(secure_key="late"))  # it is taken from it, and no more
    assert await desk.key() == "late"


async def test_tokens_that_are_told_while_it_is_seized_are_not_missed(desk: Desk) -> None:
    await desk.live(*chats(20))
    for turns, chat_id in enumerate(chats(20)):
        seizing = asyncio.create_task(desk.store.seize(chat_id, now=desk.now, lease_ms=LEASE))
        for _ in range(turns):
            await asyncio.sleep(0)
        told = push(chat_id, key=f"newer-{chat_id}", utc_time=desk.later(SECOND))
        await desk.store.take_push(told, now=desk.now)
        seized = await seizing
        assert seized is NotTaken.PUSHES or (isinstance(seized, Claim) and desk.store.superseded(seized))


# -- what is shown -------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def shown(desk: Desk) -> Desk:
    """A session whose transcript is kept though nobody is told."""
    await desk.store.enrol([], now=desk.now, shown=SHOWN)
    await desk.live("chat-1")
    return desk


async def test_events_are_kept_for_those_who_are_shown_them(shown: Desk) -> None:
    assert shown.store.told_kinds == SHOWN
    await refresh(shown, message(3, "Hello"), message(5, "your parcel is here"))
    events = await shown.store.transcript("chat-1", limit=10)
    assert said(events) == ["Hello", "your parcel is here"]
    assert [event.index for event in events] == [3, 5]
    while (await shown.store.trim(Bounds(10, 1 << 20, 1 << 30, MINUTE), now=shown.later(MINUTE))).more:
        pass
    assert len(await shown.store.transcript("chat-1", limit=10)) == 2


async def test_the_events_of_a_calls_reply_are_written_too(shown: Desk) -> None:
    claim = await seize(shown)
    await called(shown, claim, events=raw(message(3, "mine", sender=1)), next_position=4)
    assert said(await shown.store.transcript("chat-1", limit=10)) == ["mine"]
    assert (await shown.session()).next_position == 4


async def test_the_last_events_are_given_where_there_are_more(shown: Desk) -> None:
    await refresh(shown, *(message(index, str(index)) for index in range(3, 9)))
    assert said(await shown.store.transcript("chat-1", limit=2)) == ["7", "8"]


async def test_news_come_once_for_each_who_asks_by_his_own_position(shown: Desk) -> None:
    begun = (await shown.store.news(0, limit=10))[1]
    await shown.live("chat-2")
    await refresh(shown, message(3, "one"))
    await refresh(shown, message(3, "two"), chat_id="chat-2")
    first, looked = await shown.store.news(begun, limit=1)
    assert [(event.chat_id, event.index) for event in first] == [("chat-1", 3)]
    rest, looked = await shown.store.news(looked, limit=10)
    assert [event.chat_id for event in rest] == ["chat-2"]
    assert [*(await shown.store.news(looked, limit=10))[0]] == []


async def test_an_end_is_news(shown: Desk) -> None:
    _, looked = await shown.store.news(0, limit=100)
    await called(shown, await seize(shown), Verdict.ENDED)
    [event], _ = await shown.store.news(looked, limit=10)
    assert (event.kind, event.chat_id) == (EventKind.ENDED, "chat-1")


async def test_a_consumer_beside_is_told_as_ever(shown: Desk) -> None:
    app = Consumer("app", frozenset({EventKind.CHAT}))
    await shown.store.enrol([app], now=shown.now, shown=SHOWN)
    await refresh(shown, message(3, "Hello"))
    portion = await shown.store.fetch("app", after=None, limit=10, now=shown.now)
    assert said(portion.events) == ["Hello"]
    await shown.store.enrol([], now=shown.now)
    assert shown.store.told_kinds == frozenset()


async def test_a_store_without_a_transcript_says_so() -> None:
    class Plain(Store):
        """One that keeps none."""

    with pytest.raises(StoreError, match="gateway"):
        await Plain.enrol(cast(Store, object()), [], now=0, shown=SHOWN)


async def test_pushes_that_were_shown_do_not_crowd_out_what_was_said(desk: Desk) -> None:
    await desk.store.enrol([], now=desk.now, shown=SHOWN | {EventKind.NOTIFIED})
    await desk.live("chat-1")
    for index in range(3, 9):
        await desk.push(push(position=index))
        await refresh(desk, message(index, f"{index}"))
    bounds = Bounds(6, 1 << 20, 1 << 30, MINUTE)
    while (await desk.store.trim(bounds, now=desk.now)).more:
        pass
    assert said(await desk.store.transcript("chat-1", limit=10)) == ["3", "4", "5", "6", "7", "8"]


# -- the gateway's own keys ----------------------------------------------------------------------------


async def test_other_keys_than_those_in_use_are_told_while_clients_hold_them(desk: Desk) -> None:
    assert await desk.store.gateway_keys(["old"])
    assert await desk.store.gateway_keys(["other"]), "nobody holds one yet"
    await desk.register(replace(registration(), of_gateway=True))
    assert not await desk.store.gateway_keys(["foreign"])
    assert await desk.store.gateway_keys(["new", "other"]), "a rotation"
    assert await desk.store.gateway_keys(["new"]), "the old line may go once no chat of its time lives"
    await desk.store.remove("chat-1", now=desk.now)
    assert await desk.store.gateway_keys(["foreign"])


async def test_a_client_that_keeps_the_key_of_gms_needs_them_too(desk: Desk) -> None:
    """It is known by a digest that one of them made."""
    assert await desk.store.gateway_keys(["old"])
    await desk.register(replace(registration(), of_gateway=True, came_with="1:2"))
    assert not await desk.store.gateway_keys(["foreign"])


async def test_the_live_chats_that_the_gateway_opened_are_counted(desk: Desk) -> None:
    async def counted() -> int:
        return (await desk.store.counts(now=desk.now)).of_gateway

    for name, of_gateway in (("one", True), ("two", True), ("registered", False)):
        await desk.register(replace(registration(chat_id=name), of_gateway=of_gateway))
    assert await counted() == 2
    await desk.store.remove("one", now=desk.now)
    assert await counted() == 1
