"""The contract of a store: pushes."""

from __future__ import annotations

import asyncio

import pytest

from asyncchatd.model.data import Reason, SessionState, TokenNews, Tokens, Verdict
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Effect, Taken

from ..desk import MINUTE, NOON, SPREAD, Desk, complete_push, push, registration
from .rig import chats, named


async def test_what_a_push_was(desk: Desk) -> None:
    async def take(one: object = None, **said: object) -> Taken:
        return await desk.store.take_push(push(**said), now=desk.now)  # type: ignore[arg-type]

    assert await take() is Taken.UNKNOWN
    await desk.store.absorb(10)
    assert await take() is Taken.KNOWN
    assert await take(resend=True) is Taken.RESENT
    await desk.store.absorb(10)
    await desk.register(registration())
    await desk.store.remove("chat-1", now=desk.now)
    assert await take() is Taken.ENDED
    await desk.store.absorb(10)


async def test_the_same_notification_again_is_a_resend_when_it_names_its_event(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.push(push(utc_time=NOON, digest="same"))
    assert await desk.store.take_push(push(utc_time=NOON, digest="same"), now=NOON) is Taken.RESENT
    await desk.push(push(digest="dummy message"))
    assert await desk.store.take_push(push(digest="dummy message"), now=NOON) is Taken.KNOWN
    await desk.store.absorb(10)


async def test_a_push_makes_its_session_due_for_the_acknowledgement(desk: Desk) -> None:
    await desk.live("chat-1")
    effects = await desk.push(push())
    assert await desk.due() == (Reason.ACKNOWLEDGE, desk.now)
    assert (await desk.session()).active_at == desk.now
    assert {each.effect for each in effects} <= {Effect.DUE}  # a store need not tell what is usual


@pytest.mark.parametrize("key", [None, "key-2"])
async def test_a_push_of_a_session_that_is_held_is_told_however_usual(desk: Desk, key: str | None) -> None:
    """Whoever holds a claim that is not sent gives it back."""
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    effects = await desk.push(push() if key is None else push(key=key))
    assert "chat-1" in {each.chat_id for each in effects}
    await desk.settle(claim, Verdict.RELEASED)
    effects = await desk.push(push())
    assert {each.effect for each in effects} <= {Effect.DUE}
    [again] = await desk.claim()
    assert again.reason is Reason.ACKNOWLEDGE


async def test_a_resent_push_makes_due_but_is_no_activity(desk: Desk) -> None:
    await desk.live("chat-1")
    before = (await desk.session()).active_at
    desk.later(MINUTE)
    await desk.push(push(resend=True))
    assert await desk.due() == (Reason.ACKNOWLEDGE, desk.now)
    assert (await desk.session()).active_at == before


async def test_a_push_with_all_tokens_adopts_a_session_nobody_registered(desk: Desk) -> None:
    [absorbed] = await desk.push(complete_push())
    assert (absorbed.effect, absorbed.chat_id, absorbed.alias) == (Effect.ADOPTED, "chat-1", "117")
    session = await desk.session()
    assert (session.state, session.secure_key) == (SessionState.LIVE, "key-of-chat-1")
    assert (session.service, session.device_id) == (None, "device-of-chat-1")
    assert (await desk.claim_one()).tokens == Tokens("chat-1", "user-of-chat-1", "key-of-chat-1", "117")


async def test_a_push_may_tell_where_to_ask_from_but_never_takes_the_position_back(desk: Desk) -> None:
    await desk.push(replace(complete_push("adopted"), next_position=5))
    assert (await desk.session("adopted")).next_position == 5
    await desk.push(replace(complete_push("adopted"), next_position=4))
    assert (await desk.session("adopted")).next_position == 5
    await desk.register(registration("known", next_position=None))
    await desk.push(replace(push("known"), next_position=7))
    assert (await desk.session("known")).next_position == 7


async def test_a_push_without_all_tokens_is_kept_and_its_session_never_pinged(desk: Desk) -> None:
    [absorbed] = await desk.push(push(user_id="user", alias="117"))
    assert absorbed.effect is Effect.INCOMPLETE
    assert (await desk.session()).state is SessionState.INCOMPLETE
    desk.later(SPREAD)
    assert not await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    assert await desk.claim() == []


async def test_pushes_complete_a_session_together(desk: Desk) -> None:
    effects = await desk.push(push(user_id="user"), push(alias="117"), push(key="key"))
    assert [each.effect for each in effects] == [
        Effect.INCOMPLETE,
        Effect.STILL_INCOMPLETE,
        Effect.COMPLETED,
    ]
    assert (await desk.claim_one()).tokens == Tokens("chat-1", "user", "key", "117")


async def test_a_push_that_names_the_chat_completes_one_of_which_the_device_was_known(desk: Desk) -> None:
    effects = await desk.push(push(None, device_id="device-of-chat-1"), complete_push())
    assert [each.effect for each in effects] == [Effect.INCOMPLETE, Effect.COMPLETED]
    assert (await desk.store.counts(now=desk.now)).states[SessionState.INCOMPLETE] == 0
    assert named(await desk.claim()) == ["chat-1"]


async def test_an_incomplete_session_is_news_once_and_again_with_its_chat_id(desk: Desk) -> None:
    nameless = push(None, device_id="device-of-chat-1")
    effects = await desk.push(nameless, nameless, push(), push(), push(user_id="user"))
    assert [(each.chat_id, each.effect) for each in effects] == [
        (None, Effect.INCOMPLETE),
        (None, Effect.STILL_INCOMPLETE),
        ("chat-1", Effect.INCOMPLETE),
        ("chat-1", Effect.STILL_INCOMPLETE),
        ("chat-1", Effect.STILL_INCOMPLETE),
    ]


@pytest.mark.slow
async def test_a_push_teaches_newer_tokens(desk: Desk) -> None:
    await desk.live("chat-1")
    [absorbed] = await desk.push(push(key="key-2", alias="118", utc_time=desk.now))
    assert (absorbed.effect, absorbed.alias) == (Effect.LEARNED, "118")
    assert (await desk.claim_one()).tokens == Tokens("chat-1", "user-of-chat-1", "key-2", "118")


async def test_a_push_with_older_tokens_makes_due_and_teaches_nothing(desk: Desk) -> None:
    await desk.live("chat-1")
    [absorbed] = await desk.push(push(key="key-0", utc_time=desk.now - MINUTE))
    assert absorbed.effect is Effect.STALE
    assert (await desk.claim_one()).tokens.secure_key == "key-of-chat-1"


async def test_an_adopted_session_does_not_go_back_to_the_key_of_an_earlier_event(desk: Desk) -> None:
    await desk.push(replace(complete_push(), utc_time=NOON))
    await desk.push(push(key="key-0", utc_time=NOON - 1))
    assert await desk.key() == "key-of-chat-1"


async def test_a_push_that_repeats_the_key_confirms_it_against_earlier_events(desk: Desk) -> None:
    await desk.live("chat-1")
    now = desk.now
    await desk.push(push(key="key-of-chat-1", utc_time=now + 30), push(key="key-0", utc_time=now + 20))
    assert await desk.key() == "key-of-chat-1"
    await desk.push(push(key="key-0", utc_time=now + 20))
    assert await desk.key() == "key-of-chat-1"


async def test_a_replaced_key_never_comes_back_with_a_push(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    await desk.answer(await desk.claim_one(), news=TokenNews(secure_key="key-2"))
    [absorbed] = await desk.push(push(key="key-of-chat-1"))
    assert absorbed.effect is Effect.STALE
    assert await desk.key() == "key-2"


async def test_a_push_for_an_ended_session_does_nothing(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.remove("chat-1", now=desk.now)
    before = await desk.session()
    [absorbed] = await desk.push(complete_push())
    assert absorbed.effect is Effect.NOTHING
    assert await desk.session() == before


async def test_a_push_that_names_only_the_device_of_one_chat_is_that_chats(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.push(push(None, device_id="device-of-chat-1", key="key-2", utc_time=desk.now))
    assert (await desk.claim_one()).tokens.secure_key == "key-2"


async def test_a_push_that_names_only_the_device_and_another_user_makes_due_and_teaches_nothing(
    desk: Desk,
) -> None:
    await desk.live("chat-1")
    before = await desk.session()
    said = push(
        None, device_id="device-of-chat-1", user_id="user-of-2", key="key-2", alias="118", utc_time=desk.now
    )
    [absorbed] = await desk.push(said)
    assert absorbed.effect is Effect.DUE
    session = await desk.session()
    assert (session.secure_key, session.user_id, session.alias) == (before.secure_key, before.user_id, "117")
    assert (await desk.claim_one()).reason is Reason.ACKNOWLEDGE


async def test_a_key_of_another_protocol_makes_due_and_holds_no_ping_up(desk: Desk) -> None:
    await desk.register(registration(key="4ee15d7e1c343c8e"), spread_ms=0)
    claim = await desk.claim_one()
    said = push(key="dGhlIGtleSBvZiBhIGNoYXQgb3ZlciBDb21ldEQ=", utc_time=desk.now + MINUTE)
    [absorbed] = await desk.push(said)
    assert absorbed.effect is Effect.STALE
    assert not desk.store.superseded(claim)
    await desk.answer(claim)
    assert (await desk.claim_one()).tokens.secure_key == "4ee15d7e1c343c8e"


async def test_a_push_that_names_only_a_shared_device_makes_all_its_chats_due_and_teaches_none(
    desk: Desk,
) -> None:
    await desk.register(registration("a", device_id="phone"), registration("b", device_id="phone"))
    await desk.push(push(None, device_id="phone", key="key-2", utc_time=desk.now + MINUTE))
    claims = await desk.claim(reasons=[Reason.ACKNOWLEDGE])
    assert {claim.tokens.secure_key for claim in claims} == {"key-of-a", "key-of-b"}


async def test_a_push_that_says_nothing_but_the_shared_device_makes_all_its_chats_due(desk: Desk) -> None:
    await desk.register(registration("a", device_id="phone"), registration("b", device_id="phone"))
    await desk.push(push(None, device_id="phone"))
    assert set(named(await desk.claim(reasons=[Reason.ACKNOWLEDGE]))) == {"a", "b"}


async def test_a_push_that_comes_while_others_take_effect_takes_effect_next(desk: Desk) -> None:
    await desk.live("chat-1")
    await asyncio.gather(desk.store.absorb(10), desk.store.take_push(push(), now=desk.now))
    await desk.store.absorb(10)
    assert await desk.due() == (Reason.ACKNOWLEDGE, desk.now)


async def test_pushes_take_effect_in_their_order_a_portion_at_a_time(desk: Desk) -> None:
    for chat_id in chats(3):
        await desk.store.take_push(push(chat_id, alias="117"), now=desk.now)
    first = await desk.store.absorb(2)
    assert [each.chat_id for each in first] == ["chat-1", "chat-2"]
    assert [each.chat_id for each in await desk.store.absorb(2)] == ["chat-3"]
    assert await desk.store.absorb(2) == []


async def test_a_session_whose_push_has_not_taken_effect_is_not_claimed(desk: Desk) -> None:
    await desk.register(*map(registration, chats(3)), spread_ms=0)
    await desk.store.take_push(push("chat-1", key="key-2"), now=desk.now)
    await desk.store.take_push(push(None, device_id="device-of-chat-2", key="key-2"), now=desk.now)
    assert named(await desk.claim()) == ["chat-3"]
    await desk.store.absorb(10)
    assert [claim.tokens.secure_key for claim in await desk.claim()] == ["key-2", "key-2"]


@pytest.mark.parametrize("chat_id", ["chat-1", None])
async def test_nor_is_one_that_was_registered_after_its_push(desk: Desk, chat_id: str | None) -> None:
    await desk.store.take_push(push(chat_id, device_id="device-of-chat-1", key="key-2"), now=desk.now)
    await desk.register(registration(), spread_ms=0)
    assert await desk.claim() == []
    await desk.store.absorb(10)
    assert (await desk.claim_one()).tokens.secure_key == "key-2"


async def test_nor_is_one_whose_push_is_beyond_the_portion_being_absorbed(desk: Desk) -> None:
    await desk.register(*map(registration, chats(2)), spread_ms=0)
    for chat_id in chats(2):
        await desk.store.take_push(push(chat_id, key="key-2"), now=desk.now)
    _, claims = await asyncio.gather(desk.store.absorb(1), desk.claim())
    assert named(claims) == ["chat-1"]
    await desk.store.absorb(10)


async def test_tokens_of_any_writing_come_back_as_they_were(desk: Desk) -> None:
    odd = ['"quoted"', "back\\slash", "emoji \U0001f511", "1e5", "007", "null", " blank ", "\u2028\x7f", "{}"]
    for number, key in enumerate(odd):
        said = push(f"chat-{number}", user_id=f"u{key}", key=key, alias=f"a{key}", device_id=f"d{key}")
        await desk.store.take_push(said, now=desk.now)
    await desk.store.absorb(100)
    claims = {claim.chat_id: claim.tokens for claim in await desk.claim()}
    assert claims == {
        f"chat-{number}": Tokens(f"chat-{number}", f"u{key}", key, f"a{key}")
        for number, key in enumerate(odd)
    }
