"""The contract of a store: takes, by which the custom-chat-app has a session to itself for a while."""

from __future__ import annotations

import asyncio

import pytest

from asyncchatd.model.data import Cause, Reason, Registration, SessionState, TokenNews, Verdict
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Effect, NotTaken, RanOut, Registered, Take

from ..desk import LEASE, MINUTE, SECOND, Desk, push, registration
from .rig import chats, gone, named

LAST = 10 * SECOND


async def made_due(desk: Desk, reason: Reason = Reason.REQUEST) -> None:
    assert await desk.store.make_due("chat-1", reason, now=desk.now)


# -- what a take is -------------------------------------------------------------------------------------


async def test_a_take_says_all_that_a_request_needs(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    assert take.tokens == registration().tokens
    assert (take.service, take.next_position, take.until) == ("support", 3, desk.now + LAST)
    assert (await desk.session()).leased_until == take.until


async def test_no_take_is_named_as_another(desk: Desk) -> None:
    await desk.live(*chats(3))
    assert len({(await desk.take(chat_id)).take_id for chat_id in chats(3)}) == 3


async def test_a_taken_session_is_not_claimed_whatever_makes_it_due(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.take()
    await made_due(desk)
    await desk.push(push())
    await desk.lose()
    desk.later(LAST - SECOND)
    assert await desk.claim() == []
    desk.later(SECOND)
    assert named(await desk.claim()) == ["chat-1"]


async def test_others_are_claimed_meanwhile(desk: Desk) -> None:
    await desk.live(*chats(2))
    await desk.take()
    await desk.lose()
    assert named(await desk.claim()) == ["chat-2"]


async def test_what_made_it_due_most_urgently_is_what_it_is_claimed_for(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    restoration = await desk.lose()
    assert await desk.release(take)
    claim = await desk.claim_one()
    assert (claim.reason, claim.restoration) == (Reason.RESTORE, restoration.id)


# -- its end --------------------------------------------------------------------------------------------


async def test_a_release_makes_the_session_due_at_once(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    desk.later(SECOND)
    assert await desk.release(take)
    assert await desk.due() == (Reason.REQUEST, desk.now)
    assert named(await desk.claim()) == ["chat-1"]


async def test_putting_the_tokens_back_makes_the_session_due_at_once_with_them(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    desk.later(SECOND)
    assert await desk.put_back(take, "key-of-the-reply", alias="118") is Registered.UPDATED
    claim = await desk.claim_one()
    assert (claim.reason, claim.tokens.secure_key, claim.tokens.alias) == (
        Reason.REQUEST,
        "key-of-the-reply",
        "118",
    )


async def test_a_take_that_runs_out_makes_the_session_due_then_and_nobody_has_to_see_it(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    assert await desk.store.next_due(now=desk.now) == take.until
    desk.later(LAST)
    assert named(await desk.claim()) == ["chat-1"]


async def test_the_worker_is_told_when_a_session_that_is_due_already_is_free_again(desk: Desk) -> None:
    await desk.live("chat-1")
    await made_due(desk)
    take = await desk.take()
    desk.later(SECOND)
    assert await desk.store.next_due(now=desk.now) == take.until


async def test_a_take_that_ran_out_is_told_once(desk: Desk) -> None:
    await desk.live(*chats(2))
    released = await desk.take("chat-2")
    await desk.take()
    assert await desk.store.ran_out(now=desk.now) == []
    assert await desk.release(released)
    desk.later(LAST)
    assert await desk.store.ran_out(now=desk.now) == [RanOut("chat-1", "117")]
    assert await desk.store.ran_out(now=desk.now) == []


async def test_a_release_is_repeated_without_harm_and_makes_nothing_due_again(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    assert await desk.release(take)
    await desk.answer(*await desk.claim())
    assert await desk.release(take)
    assert await desk.claim() == []


async def test_only_the_take_that_lasts_is_released(desk: Desk) -> None:
    await desk.live(*chats(2))
    take = await desk.take()
    other = await desk.take("chat-2")
    assert not await desk.store.release("chat-1", other.take_id, now=desk.now)
    assert not await desk.store.release("chat-1", "", now=desk.now)
    assert not await desk.store.release("unknown", take.take_id, now=desk.now)
    assert await desk.claim() == []
    desk.later(LAST)
    assert not await desk.release(take)


async def test_an_earlier_take_is_not_that_which_lasts(desk: Desk) -> None:
    await desk.live("chat-1")
    earlier = await desk.take()
    await desk.release(earlier)
    await desk.take()
    assert not await desk.release(earlier)
    assert await desk.put_back(earlier, "key-2") is Registered.NOT_TAKEN
    assert await desk.key() == "key-of-chat-1"
    assert await desk.claim() == []


@pytest.mark.parametrize("chat_id", ["chat-1", "unknown"])
async def test_a_registration_that_names_no_take_of_its_session_changes_nothing(
    desk: Desk, chat_id: str
) -> None:
    await desk.live("chat-1")
    told = replace(registration(chat_id, key="key-2"), take_id="0123456789abcdef")
    assert await desk.register(told) == [Registered.NOT_TAKEN]
    assert await desk.key() == "key-of-chat-1"
    assert await desk.store.get("unknown") is None


async def test_an_end_is_the_end_of_a_take_too(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    assert await desk.store.remove("chat-1", now=desk.now)
    assert not await desk.release(take)
    assert await desk.put_back(take) is Registered.NOT_TAKEN
    assert await desk.register(registration()) == [Registered.CREATED]
    assert isinstance(await desk.store.take("chat-1", until=desk.now + LAST, now=desk.now), Take)


# -- when it cannot be had ------------------------------------------------------------------------------


async def test_what_cannot_be_taken_says_why(desk: Desk) -> None:
    assert await desk.not_taken() is NotTaken.UNKNOWN
    await desk.push(push(key="key-1"))
    assert await desk.not_taken() is NotTaken.INCOMPLETE
    await desk.register(registration())
    await desk.store.remove("chat-1", now=desk.now)
    assert await desk.not_taken() is NotTaken.ENDED


async def test_a_session_whose_request_is_on_its_way_is_not_taken(desk: Desk) -> None:
    await desk.live("chat-1")
    await made_due(desk)
    claim = await desk.claim_one()
    assert await desk.not_taken() is NotTaken.IN_FLIGHT
    await desk.answer(claim, news=TokenNews(secure_key="key-2"))
    assert (await desk.take()).tokens.secure_key == "key-2"


async def test_a_session_is_not_taken_while_its_request_may_be_on_its_way_though_the_lease_ran_out(
    desk: Desk,
) -> None:
    await desk.live("chat-1")
    await made_due(desk)
    claim = await desk.claim_one()
    desk.later(LEASE)
    assert await desk.not_taken() is NotTaken.IN_FLIGHT
    await desk.settle(claim, Verdict.RELEASED, pause_ms=0)


@pytest.mark.parametrize("chat_id", ["chat-1", None], ids=["of the chat", "of its device"])
async def test_pushes_that_wait_are_waited_for(desk: Desk, chat_id: str | None) -> None:
    await desk.live("chat-1")
    told = push(chat_id, key="key-2", device_id="device-of-chat-1", utc_time=desk.later(SECOND))
    await desk.store.take_push(told, now=desk.now)
    assert await desk.not_taken() is NotTaken.PUSHES
    await desk.store.absorb(1000)
    assert (await desk.take()).tokens.secure_key == "key-2"


async def test_tokens_that_are_told_while_it_is_taken_are_not_missed(desk: Desk) -> None:
    """However far the store is with the take when the push comes."""
    await desk.live(*chats(30))
    for turns, chat_id in enumerate(chats(30)):
        taking = asyncio.create_task(desk.store.take(chat_id, until=desk.now + LAST, now=desk.now))
        for _ in range(turns):
            await asyncio.sleep(0)
        missed = taking.done()
        told = push(chat_id, key=f"newer-{chat_id}", utc_time=desk.later(SECOND))
        await desk.store.take_push(told, now=desk.now)
        if missed:
            assert isinstance(await taking, Take)
        else:
            assert await taking is NotTaken.PUSHES
            await desk.store.absorb(len(chats(30)))
            assert (await desk.take(chat_id)).tokens.secure_key == f"newer-{chat_id}"


async def test_a_session_that_has_to_be_restored_is_not_taken(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.lose()
    assert await desk.not_taken() is NotTaken.RESTORING
    await desk.answer(await desk.claim_one(), news=TokenNews(alias="118"))
    await desk.take()


async def test_a_session_that_is_about_to_be_marked_is_not_taken(desk: Desk) -> None:
    await desk.live("chat-1")
    begun = await desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.UNREACHABLE, now=desk.later(SECOND)
    )
    assert await desk.not_taken() is NotTaken.RESTORING
    await desk.store.mark(begun.id, limit=10, now=desk.now)
    assert await desk.not_taken() is NotTaken.RESTORING


async def test_a_session_that_came_to_a_lost_server_is_not_taken(desk: Desk) -> None:
    await desk.live("chat-1")
    await gone(desk, "118")
    await desk.register(registration(alias="118"))
    assert await desk.not_taken() is NotTaken.RESTORING


async def test_a_session_is_taken_by_one_alone_and_a_take_is_not_renewed(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.take()
    assert await desk.not_taken() is NotTaken.TAKEN
    desk.later(LAST)
    assert named(await desk.claim()) == ["chat-1"]


async def test_after_one_that_ran_out_a_ping_comes_before_the_next(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.take()
    desk.later(LAST)
    assert await desk.not_taken() is NotTaken.RAN_OUT
    claim = await desk.claim_one()
    await desk.settle(claim, Verdict.RELEASED, pause_ms=0)
    assert await desk.not_taken() is NotTaken.RAN_OUT
    await desk.settle(await desk.claim_one(), Verdict.RETRY, trouble="timeout", pause_ms=0)
    await desk.take()


async def test_one_after_the_other_may_be_had_when_each_is_released(desk: Desk) -> None:
    await desk.live("chat-1")
    for _ in range(3):
        await desk.release(await desk.take())


async def test_a_late_release_does_not_count_as_one(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    desk.later(LAST)
    assert not await desk.release(take)
    assert await desk.put_back(take) is Registered.UPDATED
    assert await desk.not_taken() is NotTaken.RAN_OUT


# -- tokens ---------------------------------------------------------------------------------------------


async def test_a_push_with_news_takes_effect_while_the_session_is_taken(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.take()
    [absorbed] = await desk.push(push(key="key-2", utc_time=desk.later(SECOND)))
    assert absorbed.effect is Effect.LEARNED
    assert await desk.key() == "key-2"


async def test_a_reply_that_repeats_its_key_does_not_undo_a_push(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    await desk.push(push(key="key-2", utc_time=desk.later(SECOND), position=4))
    assert await desk.put_back(take, next_position=4) is Registered.KEPT
    assert await desk.key() == "key-2"
    assert named(await desk.claim()) == ["chat-1"]


@pytest.mark.parametrize(("next_position", "newest"), [(5, "key-of-the-reply"), (4, "key-of-the-push")])
async def test_of_a_push_and_a_reply_with_other_keys_the_later_counts(
    desk: Desk, next_position: int, newest: str
) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    await desk.push(push(key="key-of-the-push", utc_time=desk.later(SECOND), position=4))
    await desk.put_back(take, "key-of-the-reply", next_position=next_position)
    assert await desk.key() == newest


async def test_a_push_that_only_comes_late_does_not_undo_the_reply(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    early = desk.later(SECOND)
    await desk.put_back(take, "key-2")
    [absorbed] = await desk.push(push(key="key-of-chat-1", utc_time=early))
    assert absorbed.effect is Effect.STALE
    assert await desk.key() == "key-2"


async def test_after_its_end_a_reply_of_the_take_teaches_nothing_that_a_ping_has_replaced(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    desk.later(LAST)
    await desk.answer(await desk.claim_one(), news=TokenNews(secure_key="key-of-the-ping"))
    assert await desk.put_back(take, "key-of-the-take") is Registered.KEPT
    assert await desk.key() == "key-of-the-ping"
    assert await desk.register(registration(key="key-of-the-take")) == [Registered.KEPT]


async def test_after_its_end_a_reply_of_the_take_that_replaces_the_known_key_is_taken(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    desk.later(LAST)
    await desk.answer(await desk.claim_one())
    assert await desk.put_back(take, "key-of-the-take") is Registered.UPDATED
    assert await desk.key() == "key-of-the-take"


async def test_an_alias_that_a_ping_told_after_its_end_is_not_undone(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    desk.later(LAST)
    await desk.answer(await desk.claim_one(), news=TokenNews(alias="119"))
    await desk.put_back(take, alias="118")
    assert (await desk.session()).alias == "119"


async def test_a_key_that_was_replaced_before_does_not_come_back_with_a_take(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.register(registration(key="key-2"))
    assert await desk.put_back(await desk.take(), "key-of-chat-1") is Registered.KEPT
    assert await desk.key() == "key-2"


async def test_a_transcript_misses_no_event_that_only_the_application_has_seen(desk: Desk) -> None:
    await desk.store.enrol([Consumer("app", frozenset(EventKind))], now=desk.now)
    await desk.live("chat-1")
    await desk.put_back(await desk.take(), "key-2", next_position=9)
    assert (await desk.claim_one()).next_position == 3


async def test_without_a_transcript_the_position_is_that_of_the_reply(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.put_back(await desk.take(), "key-2", next_position=9)
    assert (await desk.claim_one()).next_position == 9


async def test_putting_back_is_repeated_without_harm(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    for _ in range(2):
        assert await desk.put_back(take, "key-2") is Registered.UPDATED
    assert await desk.key() == "key-2"


async def test_tokens_that_come_back_as_they_went_need_not_come_from_a_reply(desk: Desk) -> None:
    await desk.live("chat-1")
    told_at = desk.later(SECOND)
    desk.later(5 * SECOND)
    assert await desk.put_back(await desk.take()) is Registered.UPDATED
    await desk.push(push(key="key-2", utc_time=told_at))
    assert await desk.key() == "key-2"


# -- replies that say less, or that it is over ---------------------------------------------------------


def reply(take: Take | None, *, ended: bool = False, key: str | None = None) -> Registration:
    """A reply to a request of the chat application that tells nothing else."""
    news = TokenNews("chat-1", None, key, None)
    return Registration(news, None, take_id=None if take is None else take.take_id, ended=ended)


async def test_what_a_reply_under_a_take_does_not_say_stays_as_it_was(desk: Desk) -> None:
    await desk.live("chat-1")
    take = await desk.take()
    assert await desk.register(reply(take)) == [Registered.UPDATED]
    session = await desk.session()
    assert (session.user_id, session.secure_key, session.alias) == (
        *(take.tokens.user_id, take.tokens.secure_key, take.tokens.alias),
    )
    assert session.service == take.service


async def test_a_reply_under_a_take_may_say_the_key_alone(desk: Desk) -> None:
    await desk.live("chat-1")
    before = await desk.session()
    assert await desk.register(reply(await desk.take(), key="another")) == [Registered.UPDATED]
    after = await desk.session()
    assert (after.secure_key, after.user_id, after.alias, after.service) == (
        *("another", before.user_id, before.alias, before.service),
    )


@pytest.mark.parametrize("taken", [True, False])
async def test_a_reply_that_says_that_the_chat_is_over_ends_the_session(desk: Desk, taken: bool) -> None:
    await desk.store.enrol([Consumer("app", frozenset({EventKind.ENDED}))], now=desk.now)
    await desk.live("chat-1")
    over = reply(await desk.take() if taken else None, ended=True)
    assert await desk.register(over) == [Registered.OVER]
    session = await desk.session()
    assert (session.state, session.end_cause, session.secure_key) == (SessionState.ENDED, "chat_ended", None)
    desk.later(MINUTE)
    assert await desk.store.ran_out(now=desk.now) == []
    assert await desk.claim() == []
    portion = await desk.store.fetch("app", after=None, limit=10, now=desk.now)
    assert [event.kind for event in portion.events] == [EventKind.ENDED]
    assert await desk.register(over) == [Registered.OVER], "and so it stays"
    assert await desk.register(registration("chat-1")) == [Registered.ENDED]


async def test_of_an_unknown_chat_that_is_over_there_is_nothing_to_look_after(desk: Desk) -> None:
    assert await desk.register(reply(None, ended=True)) == [Registered.ENDED]
    assert await desk.store.get("chat-1") is None


async def test_who_has_not_taken_a_chat_last_does_not_end_it(desk: Desk) -> None:
    await desk.live("chat-1")
    stranger = replace(reply(None, ended=True), take_id="no-such-take")
    assert await desk.register(stranger) == [Registered.NOT_TAKEN]
    assert (await desk.session()).state is SessionState.LIVE
