"""The contract of `asyncchatd.stores.base`, kept by every store."""

from __future__ import annotations

import asyncio
import random

import pytest

from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import (
    Cause,
    ChatServer,
    Claim,
    EndCause,
    Loss,
    Ms,
    Process,
    Reason,
    Registration,
    RestorationState,
    ServerState,
    SessionState,
    TokenNews,
    Tokens,
    Verdict,
)
from asyncchatd.model.values import replace
from asyncchatd.stores import Store, StoreError
from asyncchatd.stores.base import (
    ANNOUNCED_LINGER_MS,
    LONGEST_SILENCE_MS,
    Effect,
    Noted,
    Registered,
    Taken,
    silence_ms,
)

from .desk import (
    LEASE,
    MINUTE,
    NOON,
    SECOND,
    SPREAD,
    Desk,
    answered,
    complete_push,
    every_session,
    push,
    registration,
)


def chats(count: int) -> list[str]:
    return [f"chat-{number}" for number in range(1, count + 1)]


def named(claims: list[Claim]) -> list[str]:
    return [claim.chat_id for claim in claims]


async def gone(desk: Desk, app_dbid: str = "117", *, state: ServerState = ServerState.DOWN) -> None:
    known = {server.name: server.epoch for server in await desk.store.servers()}
    server = ChatServer("chat", app_dbid, "4711", state=state, since=desk.now)
    assert await desk.store.note(server, epoch=known.get("chat", 0), losses=(), now=desk.now)


# -- registrations -------------------------------------------------------------------------------


async def test_a_registered_session_is_live_and_knows_what_the_app_said(desk: Desk) -> None:
    assert await desk.register(registration()) == [Registered.CREATED]
    session = await desk.session()
    assert session.state is SessionState.LIVE
    assert (session.user_id, session.secure_key, session.alias) == (
        "user-of-chat-1",
        "key-of-chat-1",
        "117",
    )
    assert (session.service, session.device_id, session.next_position) == ("support", "device-of-chat-1", 3)
    assert (session.registered_at, session.active_at) == (NOON, NOON)
    assert (session.answered_at, session.ended_at, session.restoration) == (None, None, None)


async def test_first_keepalives_are_spread_over_the_interval(desk: Desk) -> None:
    await desk.register(*map(registration, chats(300)))
    dues = [session.due_at for session in await every_session(desk.store)]
    assert NOON <= min(dues) < NOON + SPREAD / 4
    assert NOON + SPREAD * 3 / 4 < max(dues) <= NOON + SPREAD
    assert {session.reason for session in await every_session(desk.store)} == {Reason.KEEPALIVE}


async def test_registering_the_same_again_changes_nothing_that_matters(desk: Desk) -> None:
    await desk.register(registration())
    before = await desk.session()
    desk.later(MINUTE)
    assert await desk.register(registration()) == [Registered.UPDATED]
    assert await desk.session() == replace(before, active_at=desk.now)


async def test_a_registration_with_a_new_key_updates_the_session(desk: Desk) -> None:
    await desk.register(registration())
    said = registration(key="key-2", alias="118", device_id="device-2", next_position=9)
    assert await desk.register(said) == [Registered.UPDATED]
    session = await desk.session()
    assert (session.secure_key, session.alias) == ("key-2", "118")
    assert (session.device_id, session.next_position) == ("device-2", 9)


async def test_a_registration_without_a_device_keeps_the_known_one(desk: Desk) -> None:
    await desk.register(registration())
    await desk.register(replace(registration(), device_id=None))
    assert (await desk.session()).device_id == "device-of-chat-1"


async def test_a_registration_that_repeats_a_replaced_key_keeps_the_newer_one(desk: Desk) -> None:
    await desk.register(registration(), registration(key="key-2", alias="118"))
    assert await desk.register(registration()) == [Registered.KEPT]
    session = await desk.session()
    assert (session.secure_key, session.alias) == ("key-2", "118")


async def test_a_registration_completes_a_session_known_from_a_push(desk: Desk) -> None:
    await desk.push(push(alias="117"))
    desk.later(SECOND)
    assert await desk.register(registration()) == [Registered.COMPLETED]
    assert (await desk.session()).state is SessionState.LIVE
    assert named(await desk.claim(reasons=[Reason.ACKNOWLEDGE])) == ["chat-1"]


@pytest.mark.slow
async def test_a_registration_completes_a_session_of_which_only_the_device_was_known(desk: Desk) -> None:
    await desk.push(push(None, device_id="device-of-chat-1"))
    assert await desk.register(registration()) == [Registered.COMPLETED]
    assert named(await desk.claim(reasons=[Reason.ACKNOWLEDGE])) == ["chat-1"]
    assert (await desk.store.counts(now=desk.now)).states[SessionState.INCOMPLETE] == 0


@pytest.mark.slow
async def test_a_chat_that_gms_has_ended_stays_ended(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    await desk.settle(await desk.claim_one(), Verdict.ENDED)
    before = await desk.session()
    assert await desk.register(registration(key="key-2")) == [Registered.ENDED]
    assert await desk.session() == before


async def test_a_session_that_was_removed_may_be_registered_again(desk: Desk) -> None:
    await desk.register(registration())
    await desk.store.remove("chat-1", now=desk.now)
    assert await desk.register(registration()) == [Registered.CREATED]
    session = await desk.session()
    assert (session.state, session.ended_at, session.end_cause) == (SessionState.LIVE, None, None)


async def test_each_of_many_registrations_gets_its_answer(desk: Desk) -> None:
    await desk.push(push("chat-2", alias="117"))
    outcome = await desk.register(
        registration("chat-1"), registration("chat-2"), registration("chat-1"), registration("chat-3")
    )
    assert outcome == [Registered.CREATED, Registered.COMPLETED, Registered.UPDATED, Registered.CREATED]


async def test_registrations_are_taken_wholly_or_not_at_all(desk: Desk) -> None:
    unwritable = registration("chat-\ud800")
    with pytest.raises((StoreError, ValueError)):
        await desk.register(registration("chat-1"), unwritable, registration("chat-3"))
    assert await every_session(desk.store) == []


@pytest.mark.slow
async def test_a_session_registered_after_its_push_is_due_now(desk: Desk) -> None:
    await desk.store.take_push(push(), now=desk.now)
    assert await desk.register(registration()) == [Registered.CREATED]
    await desk.store.absorb(10)
    assert await desk.due() == (Reason.ACKNOWLEDGE, NOON)


@pytest.mark.parametrize("how", ["down", "restoring"])
async def test_a_session_of_a_server_known_to_be_gone_is_due_at_once(desk: Desk, how: str) -> None:
    if how == "down":
        await gone(desk)
    else:
        await desk.live("other")
        await desk.lose()
    desk.later(SPREAD)
    await desk.register(registration())
    assert await desk.due() == (Reason.RESTORE, desk.now)
    assert ((await desk.session()).restoration is not None) == (how == "restoring")


async def test_a_server_whose_sessions_are_all_restored_makes_no_registration_due(desk: Desk) -> None:
    await gone(desk, state=ServerState.UP)
    await desk.live("other")
    await desk.lose()
    await desk.answer(*await desk.claim())
    await desk.register(registration())
    assert (await desk.due())[0] is Reason.KEEPALIVE


async def test_a_registration_that_moves_a_session_to_a_lost_server_makes_it_due(desk: Desk) -> None:
    await desk.live("chat-1", "chat-2")
    here = await desk.lose("117")
    there = await desk.store.begin_restoration(
        alias="118", server=None, cause=Cause.UNREACHABLE, now=desk.now
    )
    await desk.register(registration("chat-1", alias="118"))
    assert (await desk.session()).restoration == there.id
    assert await desk.counts(here.id) == {"sessions": 2, "moved": 1, "waiting": 1}
    await desk.register(registration("chat-2", alias="118"))
    assert (await desk.restoration(here.id)).finished_at is not None


# -- reading -------------------------------------------------------------------------------------


async def test_sessions_are_listed_in_pages_in_the_order_of_their_chat_ids(desk: Desk) -> None:
    await desk.register(*map(registration, ["c", "a", "d", "b"]))
    first = await desk.store.sessions(limit=3)
    assert [session.chat_id for session in first] == ["a", "b", "c"]
    assert [session.chat_id for session in await desk.store.sessions(limit=3, after="c")] == ["d"]


@pytest.mark.slow
async def test_sessions_known_by_their_device_alone_are_listed_last(desk: Desk) -> None:
    await desk.push(push(None, device_id="phone"))
    await desk.register(*map(registration, ["b", "a"]))
    listed = [(session.chat_id, session.device_id) for session in await every_session(desk.store)]
    assert listed == [("a", "device-of-a"), ("b", "device-of-b"), (None, "phone")]
    [incomplete] = await desk.store.sessions(state=SessionState.INCOMPLETE)
    assert incomplete.device_id == "phone"
    assert await desk.store.sessions(limit=1) == [await desk.session("a")]


async def test_sessions_are_listed_by_server_and_by_state(desk: Desk) -> None:
    await desk.register(registration("a"), registration("b", alias="118"), registration("c", alias="118"))
    await desk.store.remove("c", now=desk.now)
    await desk.push(push("d", alias="118"))

    async def listed(**wanted: object) -> list[str | None]:
        return [session.chat_id for session in await desk.store.sessions(**wanted)]  # type: ignore[arg-type]

    assert await listed(alias="118") == ["b", "c", "d"]
    assert await listed(state=SessionState.LIVE) == ["a", "b"]
    assert await listed(alias="118", state=SessionState.INCOMPLETE) == ["d"]
    assert await desk.store.get("nobody") is None


async def test_counts_say_how_many_are_due_for_what(desk: Desk) -> None:
    await desk.live(*chats(4))
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    await desk.push(push("chat-2"))
    await desk.push(push("stranger"))
    await desk.store.remove("chat-3", now=desk.now)
    counts = await desk.store.counts(now=desk.now)
    assert counts.states == {SessionState.LIVE: 3, SessionState.INCOMPLETE: 1, SessionState.ENDED: 1}
    assert counts.due == {
        Reason.ACKNOWLEDGE: 1,
        Reason.RESTORE: 0,
        Reason.REQUEST: 1,
        Reason.KEEPALIVE: 0,
    }
    assert counts.leased == 0
    await desk.claim(1)
    counts = await desk.store.counts(now=desk.now)
    assert (counts.leased, counts.due[Reason.ACKNOWLEDGE]) == (1, 1)


async def test_live_sessions_are_counted_by_server(desk: Desk) -> None:
    await desk.register(registration("a"), registration("b", alias="118"), registration("c", alias="118"))
    await desk.store.remove("a", now=desk.now)
    assert dict(await desk.store.counts_by_alias()) == {"118": 2}


# -- ending --------------------------------------------------------------------------------------


async def test_a_removed_session_is_never_due_again_and_keeps_no_key(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    assert await desk.store.remove("chat-1", now=desk.now)
    session = await desk.session()
    assert (session.state, session.end_cause, session.ended_at) == (
        SessionState.ENDED,
        EndCause.REMOVED,
        NOON,
    )
    assert session.secure_key is None
    assert not await desk.store.remove("chat-1", now=desk.now)
    assert not await desk.store.remove("nobody", now=desk.now)
    assert not await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    await desk.push(complete_push())
    desk.later(SPREAD)
    assert await desk.claim() == []


async def test_a_session_removed_while_it_is_pinged_stays_removed(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.store.remove("chat-1", now=desk.now)
    [settled] = await desk.answer(claim, news=TokenNews(secure_key="key-2"))
    assert not settled.lease_held
    assert (await desk.session()).state is SessionState.ENDED


@pytest.mark.slow
async def test_purge_forgets_what_ended_before_and_leaves_the_rest(desk: Desk) -> None:
    await desk.register(registration("live"), registration("old"), registration("new"))
    await desk.push(push("half-known", alias="117"))
    await desk.store.remove("old", now=desk.now)
    old = await desk.lose("999")
    border = desk.later(MINUTE)
    await desk.store.remove("new", now=desk.now)
    await desk.push(push("half-known-2", alias="117"))
    young = await desk.lose("999")
    assert await desk.store.purge(ended_before=border, limit=100) == 2
    assert [s.chat_id for s in await every_session(desk.store)] == ["half-known-2", "live", "new"]
    assert [r.id for r in await desk.store.restorations()] == [young.id]
    assert old.id != young.id
    assert await desk.store.purge(ended_before=border, limit=100) == 0


@pytest.mark.slow
async def test_purge_goes_in_portions(desk: Desk) -> None:
    await desk.register(*map(registration, chats(5)))
    for chat_id in chats(5):
        await desk.store.remove(chat_id, now=desk.now)
    portions = [await desk.store.purge(ended_before=desk.now + 1, limit=2) for _ in range(4)]
    assert portions == [2, 2, 1, 0]


# -- pushes --------------------------------------------------------------------------------------


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


# -- claims --------------------------------------------------------------------------------------


async def test_claims_come_in_the_order_of_reasons_and_then_longest_due_first(desk: Desk) -> None:
    await desk.register(*map(registration, chats(8)), spread_ms=0)
    for number, reason in ((1, 2), (2, 0), (3, 1), (4, 2), (5, 0), (6, 1)):
        desk.later(SECOND)
        claims = await desk.claim(reasons=[Reason.KEEPALIVE])
        await desk.answer(*claims)
        await desk.store.make_due(f"chat-{number}", Reason(reason), now=desk.now)
    desk.later(SPREAD + MINUTE)
    claims = await desk.claim()
    assert named(claims)[:6] == ["chat-2", "chat-5", "chat-3", "chat-6", "chat-1", "chat-4"]
    assert [claim.reason for claim in claims][:6] == [0, 0, 1, 1, 2, 2]
    dues = [claim.due_at for claim in claims if claim.reason is Reason.KEEPALIVE]
    assert len(dues) == 2
    assert dues == sorted(dues)


async def test_the_caller_may_ask_for_other_reasons_first_or_only(desk: Desk) -> None:
    await desk.live("chat-1", "chat-2", "chat-3")
    for chat_id, reason in zip(chats(3), (Reason.ACKNOWLEDGE, Reason.RESTORE, Reason.REQUEST), strict=True):
        await desk.store.make_due(chat_id, reason, now=desk.now)
    assert named(await desk.claim(1, reasons=[Reason.REQUEST, Reason.ACKNOWLEDGE])) == ["chat-3"]
    assert named(await desk.claim(reasons=[Reason.RESTORE])) == ["chat-2"]


async def test_a_claim_takes_no_more_than_it_was_asked_for_and_nothing_that_is_not_due(desk: Desk) -> None:
    await desk.live("not-due")
    await desk.register(*map(registration, chats(5)), spread_ms=0)
    assert len(await desk.claim(3)) == 3
    assert len(await desk.claim(3)) == 2
    assert await desk.claim(3) == []


async def test_a_claim_says_all_that_a_ping_needs(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    assert claim.tokens == registration().tokens
    assert (claim.service, claim.next_position) == ("support", 3)
    assert (claim.reason, claim.due_at) == (Reason.KEEPALIVE, NOON)
    assert (claim.attempts, claim.restoration) == (0, None)
    assert (await desk.session()).leased_until == NOON + LEASE


async def test_concurrent_claims_never_hand_out_a_session_twice(desk: Desk) -> None:
    await desk.register(*map(registration, chats(400)), spread_ms=0)

    async def work() -> list[str]:
        return [chat_id for _ in range(10) for chat_id in named(await desk.claim(7))]

    shares = await asyncio.gather(*(work() for _ in range(20)))
    taken = [chat_id for share in shares for chat_id in share]
    assert len(taken) == 400
    assert set(taken) == set(chats(400))


async def test_a_session_is_free_again_when_its_lease_runs_out(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    first = await desk.claim_one()
    desk.later(LEASE - 1)
    assert await desk.claim() == []
    desk.later(1)
    second = await desk.claim_one()
    assert second.claim_id != first.claim_id


async def test_a_renewed_lease_holds_longer(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.store.renew([claim], until=NOON + 10 * LEASE)
    desk.later(9 * LEASE)
    assert await desk.claim() == []


async def test_a_lost_lease_cannot_be_renewed(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    lost = await desk.claim_one()
    desk.later(LEASE)
    await desk.claim_one()
    await desk.store.renew([lost], until=NOON + 100 * LEASE)
    assert (await desk.session()).leased_until == desk.now + LEASE
    await desk.store.renew([], until=0)


async def test_a_claim_is_superseded_when_a_push_tells_another_key_or_alias(desk: Desk) -> None:
    await desk.register(*map(registration, chats(4)), spread_ms=0)
    claims = {claim.chat_id: claim for claim in await desk.claim()}
    await desk.store.take_push(push("chat-1", key="key-2"), now=desk.now)
    await desk.store.take_push(push("chat-2", alias="118"), now=desk.now)
    await desk.store.take_push(complete_push("chat-3"), now=desk.now)
    assert [desk.store.superseded(claims[chat_id]) for chat_id in chats(4)] == [True, True, False, False]
    await desk.store.absorb(10)


async def test_also_by_a_push_that_names_only_the_device(desk: Desk) -> None:
    await desk.register(*map(registration, chats(2)), spread_ms=0)
    claims = {claim.chat_id: claim for claim in await desk.claim()}
    await desk.store.take_push(push(None, device_id="device-of-chat-1", key="key-2"), now=desk.now)
    assert desk.store.superseded(claims["chat-1"])
    assert not desk.store.superseded(claims["chat-2"])
    await desk.store.absorb(10)


@pytest.mark.slow
async def test_also_by_a_registration(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.register(registration())
    assert not desk.store.superseded(claim)
    await desk.register(registration(key="key-2"))
    assert desk.store.superseded(claim)


async def test_also_by_a_push_that_comes_while_the_claim_is_being_made(desk: Desk) -> None:
    await desk.register(*map(registration, chats(2)), spread_ms=0)
    claims, *_ = await asyncio.gather(
        desk.claim(),
        desk.store.take_push(push("chat-1", key="key-2"), now=desk.now),
        desk.store.take_push(push(None, device_id="device-of-chat-2", key="key-2"), now=desk.now),
    )
    assert len(claims) == 2
    assert all(map(desk.store.superseded, claims))
    await desk.store.absorb(10)


@pytest.mark.parametrize("verdict", [Verdict.ANSWERED, Verdict.LEARNED])
async def test_also_by_the_answer_to_a_ping_whose_lease_was_lost(desk: Desk, verdict: Verdict) -> None:
    await desk.register(registration(), spread_ms=0)
    lost = await desk.claim_one()
    desk.later(LEASE)
    claim = await desk.claim_one()
    told = answered(
        lost, sent_at=desk.now, settled_at=desk.now, news=TokenNews(secure_key="key-2"), next_position=7
    )
    await desk.store.settle([replace(told, verdict=verdict)])
    assert desk.store.superseded(claim)
    assert await desk.key() == "key-2"


async def test_a_later_claim_is_not_superseded_by_what_it_knows(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.push(push(key="key-2"))
    await desk.settle(claim, Verdict.RELEASED)
    claim = await desk.claim_one()  # at once: the push made it due while nothing was sent
    assert claim.tokens.secure_key == "key-2"
    assert not desk.store.superseded(claim)


async def test_next_due_is_the_first_due_time_to_come(desk: Desk) -> None:
    assert await desk.store.next_due(now=desk.now) is None
    await desk.register(*map(registration, chats(20)))
    dues = sorted(session.due_at for session in await every_session(desk.store))
    assert await desk.store.next_due(now=NOON - 1) == dues[0]
    between = int((dues[4] + dues[5]) / 2)
    assert await desk.store.next_due(now=between) == next(due for due in dues if due > between)
    assert await desk.store.next_due(now=NOON + SPREAD) is None


async def test_making_due_never_puts_off_and_never_lowers_the_urgency(desk: Desk) -> None:
    await desk.live("chat-1")
    assert await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    assert await desk.due() == (Reason.REQUEST, desk.now)
    since = desk.now
    desk.later(MINUTE)
    assert await desk.store.make_due("chat-1", Reason.KEEPALIVE, now=desk.now)
    assert await desk.due() == (Reason.REQUEST, since)
    assert await desk.store.make_due("chat-1", Reason.ACKNOWLEDGE, now=desk.now)
    assert await desk.due() == (Reason.ACKNOWLEDGE, since)
    assert not await desk.store.make_due("nobody", Reason.REQUEST, now=desk.now)


async def test_due_times_too_far_away_are_pulled_in(desk: Desk) -> None:
    await desk.register(*map(registration, chats(50)))
    assert await desk.store.pull_in(now=NOON, spread_ms=SPREAD) == 0
    beyond = sum(session.due_at > NOON + MINUTE for session in await every_session(desk.store))
    assert await desk.store.pull_in(now=NOON, spread_ms=MINUTE) == beyond > 0
    dues = [session.due_at for session in await every_session(desk.store)]
    assert all(NOON <= due <= NOON + MINUTE for due in dues)
    assert len(set(dues)) > 40


async def test_what_is_urgent_is_not_forgotten_when_the_clock_is_set_back(desk: Desk) -> None:
    await desk.live("chat-1", "chat-2")
    await desk.store.make_due("chat-1", Reason.ACKNOWLEDGE, now=desk.now)
    await desk.store.make_due("chat-2", Reason.RESTORE, now=desk.now)
    desk.later(-120 * MINUTE)
    assert await desk.store.pull_in(now=desk.now, spread_ms=SPREAD) == 2
    assert named(await desk.claim()) == ["chat-1", "chat-2"]


async def test_what_is_urgent_is_pulled_in_by_small_steps_too_and_keeps_its_order(desk: Desk) -> None:
    await desk.live(*chats(5))
    for chat_id in reversed(chats(5)):
        await desk.store.make_due(chat_id, Reason.RESTORE, now=desk.later(SECOND))
    desk.later(-MINUTE)
    assert await desk.claim() == []
    assert await desk.store.pull_in(now=desk.now, spread_ms=SPREAD) == 5
    assert named(await desk.claim()) == list(reversed(chats(5)))


async def test_a_lease_from_before_the_clock_was_set_back_does_not_last_for_ever(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.RESTORE, now=desk.now)
    lost = await desk.claim_one()
    desk.later(-120 * MINUTE)
    await desk.store.pull_in(now=desk.now, spread_ms=SPREAD)
    # Whoever still holds it says so before it asks for more.
    await desk.store.renew([lost], until=desk.now + LEASE)
    assert await desk.claim() == []
    await desk.store.renew([lost], until=desk.now + 120 * MINUTE)
    await desk.store.pull_in(now=desk.now, spread_ms=SPREAD)
    assert named(await desk.claim()) == ["chat-1"]


# -- settlements ---------------------------------------------------------------------------------


async def test_an_answer_is_the_sessions_keepalive(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    await desk.settle(await desk.claim_one(), Verdict.RETRY, trouble="http_503")
    desk.later(MINUTE)
    claim = await desk.claim_one()
    settlement = answered(
        claim, sent_at=desk.now, settled_at=desk.now + 5, next_position=9, seen_utc=desk.now - 7
    )
    [settled] = await desk.store.settle([settlement])
    assert (settled.lease_held, settled.tokens_changed, settled.alias) == (True, False, "117")
    session = await desk.session()
    assert (session.reason, session.due_at) == (Reason.KEEPALIVE, desk.now + 5 + SPREAD)
    assert (session.leased_until, session.attempts, session.last_trouble) == (0, 0, None)
    assert (session.answered_at, session.next_position) == (desk.now + 5, 9)


async def test_an_answer_brings_new_tokens(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    news = TokenNews("chat-1", "user-2", "key-2", "118")
    [settled] = await desk.answer(await desk.claim_one(), news=news)
    assert (settled.tokens_changed, settled.alias) == (True, "118")
    session = await desk.session()
    assert (session.user_id, session.secure_key, session.alias) == ("user-2", "key-2", "118")


async def test_many_answers_in_one_settlement_go_to_their_own_sessions(desk: Desk) -> None:
    await desk.register(*map(registration, chats(30)), spread_ms=0)
    claims = await desk.claim()
    settlements = [
        answered(
            claim,
            sent_at=desk.now,
            settled_at=desk.now + number,
            news=TokenNews(secure_key=f"new-{claim.chat_id}" if number % 2 else None),
        )
        for number, claim in enumerate(claims)
    ]
    settled = await desk.store.settle(settlements)
    assert [each.chat_id for each in settled] == named(claims)
    for number, claim in enumerate(claims):
        session = await desk.session(claim.chat_id)
        assert session.secure_key == ("new-" if number % 2 else "key-of-") + claim.chat_id
        assert (session.answered_at, session.leased_until) == (desk.now + number, 0)


async def test_only_answers_teach_tokens(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    for verdict in (Verdict.RETRY, Verdict.REFUSED, Verdict.RELEASED):
        claim = await desk.claim_one()
        settlement = replace(
            answered(claim, sent_at=desk.now, settled_at=desk.now, news=TokenNews(secure_key="key-2")),
            verdict=verdict,
            due_at=desk.now,
        )
        await desk.store.settle([settlement])
        assert await desk.key() == "key-of-chat-1"


async def test_a_retry_keeps_the_reason_and_counts_the_attempts(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.RESTORE, now=desk.now)
    for attempts in (1, 2):
        settled = await desk.settle(await desk.claim_one(), Verdict.RETRY, trouble="timeout")
        assert settled.lease_held
        session = await desk.session()
        assert (session.reason, session.due_at) == (Reason.RESTORE, desk.now + MINUTE)
        assert (session.attempts, session.last_trouble) == (attempts, "timeout")
        desk.later(MINUTE)


async def test_a_refusal_is_no_end_and_waits_for_the_keepalive(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    await desk.settle(await desk.claim_one(), Verdict.REFUSED, trouble="status_2")
    session = await desk.session()
    assert (session.state, session.reason) == (SessionState.LIVE, Reason.KEEPALIVE)
    assert session.due_at == desk.now + MINUTE


async def test_a_refused_session_that_is_tried_again_stays_in_its_restoration(desk: Desk) -> None:
    await desk.live("chat-1")
    lost = await desk.lose()
    since = desk.now
    for refusals in range(3):
        claim = await desk.refuse()
        known = None if refusals == 0 else since
        assert (claim.refusals, claim.refused_since, claim.restoration) == (refusals, known, lost.id)
        session = await desk.session()
        assert (session.reason, session.restoration) == (Reason.RESTORE, lost.id)
        assert (session.last_trouble, session.trouble_detail) == ("status_code_2", "error 34")
        assert (session.refused_since, session.attempts) == (since, 2 * refusals + 1)
        await desk.check()
        desk.later(MINUTE)
        await desk.settle(await desk.claim_one(), Verdict.RETRY, trouble="timeout")  # no refusal
        desk.later(MINUTE)
    await desk.refuse(Verdict.REFUSED)
    over = await desk.restoration(lost.id)
    assert (over.refused, over.waiting, over.state) == (1, 0, RestorationState.INCOMPLETE)


async def test_an_answer_ends_what_gms_refused(desk: Desk) -> None:
    """Also one that comes while something else happens to the session."""
    await desk.live("chat-1")
    for meanwhile in (False, True):
        await desk.store.make_due("chat-1", Reason.RESTORE, now=desk.now)
        await desk.refuse()
        desk.later(MINUTE)
        claim = await desk.claim_one()
        if meanwhile:
            await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
        await desk.answer(claim)
        session = await desk.session()
        assert (session.refused_since, session.last_trouble, session.trouble_detail) == (None, None, None)
    claim = await desk.claim_one()
    assert (claim.refusals, claim.refused_since) == (0, None)


async def test_a_push_for_a_refused_session_begins_anew_but_for_the_tries_to_restore_it(desk: Desk) -> None:
    await desk.live("chat-1")
    for kind in (push(), push(utc_time=NOON, key="key-2")):
        desk.later(10 * SECOND)  # pings that come thick keep a distance
        await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
        await desk.refuse(Verdict.REFUSED)
        await desk.push(kind)
        assert (await desk.session()).refused_since is None
        await desk.answer(await desk.claim_one())
    lost = await desk.lose()
    await desk.refuse()
    for kind in (push(), push(leaving=True)):
        desk.later(10 * SECOND)  # pings that come thick keep a distance
        await desk.push(kind)
        claim = await desk.refuse()
        assert (claim.restoration, claim.refusals > 0) == (lost.id, True)


async def test_a_server_that_is_lost_again_begins_the_tries_anew(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.lose()
    await desk.refuse()
    await desk.lose()
    claim = await desk.claim_one()
    assert (claim.refusals, claim.refused_since) == (0, None)


async def test_a_registration_brings_a_refused_session_back_to_its_interval(desk: Desk) -> None:
    await desk.live("chat-1", "chat-2")
    for chat_id in chats(2):
        await desk.store.make_due(chat_id, Reason.REQUEST, now=desk.now)
    for claim in await desk.claim():
        await desk.settle(claim, Verdict.REFUSED, refused=claim.chat_id == "chat-1", pause_ms=20 * SPREAD)
    far = (await desk.session("chat-2")).due_at
    await desk.register(registration("chat-1"), registration("chat-2"))
    session = await desk.session("chat-1")
    assert session.refused_since is None
    assert desk.now <= session.due_at <= desk.now + SPREAD
    assert (await desk.session("chat-2")).due_at == far


async def test_a_refused_session_may_wait_longer_than_the_interval(desk: Desk) -> None:
    """Its keepalives are pulled in only as far as it has been refused, and never beyond a day."""
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    await desk.refuse(Verdict.REFUSED, pause_ms=SPREAD)
    since = desk.now
    desk.later(SPREAD)
    await desk.refuse(Verdict.REFUSED, pause_ms=2 * SPREAD)
    assert await desk.store.pull_in(now=desk.now, spread_ms=SPREAD) == 0
    assert (await desk.session()).due_at == since + 3 * SPREAD
    # The clock is set back.
    assert await desk.store.pull_in(now=since, spread_ms=SPREAD) == 1
    assert since <= (await desk.session()).due_at <= since + SPREAD
    desk.later(100 * SPREAD)
    await desk.refuse(Verdict.REFUSED, pause_ms=100 * SPREAD)
    assert await desk.store.pull_in(now=desk.now, spread_ms=SPREAD) == 1
    assert desk.now <= (await desk.session()).due_at <= desk.now + LONGEST_SILENCE_MS
    desk.later(LONGEST_SILENCE_MS)
    await desk.refuse(Verdict.REFUSED, pause_ms=2 * SPREAD)
    assert await desk.store.pull_in(now=desk.now, spread_ms=SPREAD) == 0


def test_the_silence_of_a_refused_session_doubles_and_stays_below_a_day() -> None:
    at, silences = NOON, []
    for _ in range(9):
        silences.append(silence_ms(SPREAD, NOON, at))
        at += round(silences[-1])
    assert silences[:6] == [SPREAD * 2**n for n in range(6)]
    assert silences[-1] == LONGEST_SILENCE_MS < 86_400_000
    assert silence_ms(SPREAD, None, NOON) == silence_ms(SPREAD, NOON + MINUTE, NOON) == SPREAD
    assert silence_ms(2 * LONGEST_SILENCE_MS, NOON, NOON + SPREAD) == 2 * LONGEST_SILENCE_MS


async def test_a_released_session_is_due_for_the_same_reason_and_nothing_else_changed(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    await desk.settle(await desk.claim_one(), Verdict.RETRY, trouble="timeout")
    desk.later(MINUTE)
    before = await desk.session()
    settled = await desk.settle(await desk.claim_one(), Verdict.RELEASED)
    assert settled.lease_held
    assert await desk.session() == replace(before, due_at=desk.now + MINUTE)
    assert await desk.claim() == []
    desk.later(MINUTE)
    assert named(await desk.claim()) == ["chat-1"]


async def test_a_settlement_says_whether_the_session_is_due_again(desk: Desk) -> None:
    await desk.register(*map(registration, chats(3)), spread_ms=0)
    claims = {claim.chat_id: claim for claim in await desk.claim()}
    await desk.push(push("chat-1"))
    settled = await desk.answer(*(claims[chat_id] for chat_id in chats(2)))
    assert [each.due_again for each in settled] == [True, False]
    at_once = replace(
        answered(claims["chat-3"], sent_at=0, settled_at=desk.now),
        verdict=Verdict.RELEASED,
        due_at=claims["chat-3"].due_at,
    )
    [released] = await desk.store.settle([at_once])
    assert released.due_again


async def test_the_end_of_a_chat(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    settled = await desk.settle(await desk.claim_one(), Verdict.ENDED)
    assert settled.lease_held
    session = await desk.session()
    assert (session.state, session.end_cause) == (SessionState.ENDED, EndCause.CHAT_ENDED)
    desk.later(SPREAD)
    assert await desk.claim() == []


@pytest.mark.parametrize("verdict", [Verdict.ANSWERED, Verdict.REFUSED, Verdict.RETRY])
async def test_what_made_a_session_due_while_it_was_pinged_keeps_it_due(desk: Desk, verdict: Verdict) -> None:
    await desk.live("chat-1")
    desk.later(SPREAD)
    claim = await desk.claim_one()
    await desk.push(push())
    if verdict is Verdict.ANSWERED:
        [settled] = await desk.answer(claim)
    else:
        settled = await desk.settle(claim, verdict)
    assert settled.lease_held
    assert (await desk.due())[0] is Reason.ACKNOWLEDGE
    assert named(await desk.claim()) == ["chat-1"]


async def test_under_a_lost_lease_only_the_tokens_of_an_answer_count(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    lost = await desk.claim_one()
    desk.later(LEASE)
    held = await desk.claim_one()
    [settled] = await desk.answer(lost, news=TokenNews(secure_key="key-2", alias="118"))
    assert (settled.lease_held, settled.tokens_changed, settled.alias) == (False, True, "118")
    session = await desk.session()
    assert (session.secure_key, session.alias) == ("key-2", "118")
    assert (session.leased_until, session.reason, session.due_at) == (
        NOON + 2 * LEASE,
        Reason.KEEPALIVE,
        NOON,
    )
    assert not (await desk.settle(lost, Verdict.RETRY)).lease_held
    assert (await desk.session()).attempts == 0
    [settled] = await desk.answer(held)
    assert settled.lease_held
    assert await desk.key() == "key-2"


async def test_a_lease_that_ran_out_is_still_held_while_nobody_else_has_the_session(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    desk.later(10 * LEASE)
    [settled] = await desk.answer(claim)
    assert settled.lease_held
    assert await desk.claim() == []


async def test_settling_twice_is_harmless(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.answer(claim)
    before = await desk.session()
    assert not (await desk.settle(claim, Verdict.RETRY)).lease_held
    assert await desk.session() == before


async def test_an_answer_does_not_undo_what_a_push_taught_meanwhile(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    sent_at = desk.now
    desk.later(SECOND)
    await desk.push(push(key="key-3", utc_time=desk.now, position=9))
    news = TokenNews(secure_key="key-2")  # made before that event: its transcript ends there
    await desk.store.settle(
        [answered(claim, sent_at=sent_at, settled_at=desk.now, news=news, next_position=9)]
    )
    assert await desk.key() == "key-3"
    await desk.push(push(key="key-2"))
    assert await desk.key() == "key-3"


async def test_an_answer_that_repeats_the_alias_does_not_undo_what_a_push_told_of_it(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.push(push(alias="118", utc_time=desk.now + SECOND))
    await desk.answer(claim, news=TokenNews("chat-1", "user-of-chat-1", "key-of-chat-1", "117"))
    assert (await desk.session()).alias == "118"


async def test_a_push_that_an_answer_overtook_does_not_undo_it(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    await desk.store.take_push(push(key="key-2"), now=desk.now)
    await desk.answer(claim, news=TokenNews(secure_key="key-3"))
    await desk.store.absorb(10)
    assert await desk.key() == "key-3"
    assert (await desk.due())[0] is Reason.ACKNOWLEDGE


async def test_an_answer_does_not_undo_what_was_registered_meanwhile(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    claim = await desk.claim_one()
    sent_at = desk.now
    desk.later(SECOND)
    await desk.register(registration(key="key-3"))
    news = TokenNews(secure_key="key-2")
    await desk.store.settle([answered(claim, sent_at=sent_at, settled_at=desk.now, news=news)])
    assert await desk.key() == "key-3"


async def test_a_replaced_key_that_an_answer_brings_back_is_no_replaced_key_any_more(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    for key in ("key-2", "key-of-chat-1"):
        await desk.answer(await desk.claim_one(), news=TokenNews(secure_key=key))
        await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    assert await desk.register(registration()) == [Registered.UPDATED]
    assert await desk.register(registration(key="key-2")) == [Registered.KEPT]


# -- Chat Servers and restorations -----------------------------------------------------------------


async def test_chat_servers_are_remembered_under_their_names(desk: Desk) -> None:
    former = (Process("117", "12", 0.5, 0.75, NOON - 9, NOON - 5), Process(None, "13", settled=False))
    first = ChatServer("chat-1", "117", "4711", 1.5, ServerState.DOWN, NOON, NOON + 1, "refused")
    first = replace(
        first, began=2.5, first_seen=NOON - 3, last_seen=NOON - 2, others=former, disputed=NOON - 1
    )
    second = ChatServer("chat-2", "118", state=ServerState.DOWN, assumed=True)
    for epoch, server in ((0, second), (0, replace(first, process_os_pid="1", others=())), (1, first)):
        noted = await desk.store.note(server, epoch=epoch, losses=(), now=desk.now)
        assert noted == Noted(epoch + 1, ())
    assert await desk.store.servers() == [replace(first, epoch=2), replace(second, epoch=1)]


async def test_a_loss_is_begun_with_the_note_of_the_server_that_it_is_found_by(desk: Desk) -> None:
    await desk.live("hers")
    server = ChatServer("chat", "117", "4711", state=ServerState.UP)
    losses = (Loss("117", Cause.RESTARTED), Loss("118", Cause.UNREACHABLE))
    noted = await desk.store.note(server, epoch=0, losses=losses, now=desk.now)
    assert noted is not None
    assert [(each.alias, each.server, each.cause) for each in noted.restorations] == [
        ("117", "chat", Cause.RESTARTED),
        ("118", "chat", Cause.UNREACHABLE),
    ]
    assert await desk.store.restorations() == list(reversed(noted.restorations))
    assert not await desk.store.mark(noted.restorations[0].id, limit=10, now=desk.now)
    assert (await desk.session("hers")).reason is Reason.RESTORE


async def test_who_does_not_know_the_last_note_of_a_server_notes_nothing(desk: Desk) -> None:
    """Two that see the same loss begin one restoration."""
    up = ChatServer("chat", "117", "4711", state=ServerState.UP)
    down = replace(up, state=ServerState.DOWN)
    lost = (Loss("117", Cause.UNREACHABLE),)
    assert await desk.store.note(up, epoch=0, losses=(), now=desk.now)
    assert await desk.store.note(down, epoch=1, losses=lost, now=desk.now)
    for epoch in (0, 1, 3):
        assert await desk.store.note(down, epoch=epoch, losses=lost, now=desk.now) is None
    assert len(await desk.store.restorations()) == 1
    assert await desk.store.servers() == [replace(down, epoch=2)]


@pytest.mark.slow
async def test_a_lost_server_makes_its_sessions_due_most_recently_active_first(desk: Desk) -> None:
    await desk.live(*chats(7))
    await desk.live("elsewhere", alias="118")
    await desk.push(push("chat-3"))
    await desk.answer(await desk.claim_one())
    lost = await desk.lose()
    assert (lost.sessions, lost.waiting, lost.marking) == (7, 7, False)
    claims = await desk.claim()
    assert named(claims) == ["chat-3", "chat-7", "chat-6", "chat-5", "chat-4", "chat-2", "chat-1"]
    assert {(claim.reason, claim.restoration) for claim in claims} == {(Reason.RESTORE, lost.id)}


async def test_many_sessions_that_became_due_together_keep_their_order(desk: Desk) -> None:
    for number in range(60):
        await desk.register(registration(f"chat-{number:02}"))
        desk.later(1)
    await desk.lose()
    desk.later(1)
    claims = [claim for _ in range(6) for claim in await desk.claim(10)]
    assert named(claims) == [f"chat-{number:02}" for number in reversed(range(60))]


async def test_acknowledgements_stay_before_what_is_to_be_restored(desk: Desk) -> None:
    await desk.live(*chats(3))
    await desk.push(push("chat-1"))
    await desk.lose()
    assert [(claim.chat_id, claim.reason) for claim in await desk.claim()] == [
        ("chat-1", Reason.ACKNOWLEDGE),
        ("chat-3", Reason.RESTORE),
        ("chat-2", Reason.RESTORE),
    ]


async def test_a_lost_server_ends_the_backoff_of_its_sessions(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.RESTORE, now=desk.now)
    await desk.settle(await desk.claim_one(), Verdict.RETRY)
    desk.later(SECOND)
    await desk.lose()
    claim = await desk.claim_one()
    assert claim.attempts == 0


async def test_the_counts_of_a_restoration_add_up_to_its_end(desk: Desk) -> None:
    await desk.live(*chats(6))
    lost = await desk.lose()
    claims = {claim.chat_id: claim for claim in await desk.claim()}
    steps = [
        (desk.answer(claims["chat-1"]), {"restored": 1, "waiting": 5}),
        (desk.settle(claims["chat-2"], Verdict.ENDED), {"restored": 1, "ended": 1, "waiting": 4}),
        (
            desk.settle(claims["chat-3"], Verdict.REFUSED),
            {"restored": 1, "ended": 1, "refused": 1, "waiting": 3},
        ),
        (
            desk.settle(claims["chat-4"], Verdict.RETRY),
            {"restored": 1, "ended": 1, "refused": 1, "waiting": 3},
        ),
        (
            desk.settle(claims["chat-5"], Verdict.RELEASED),
            {"restored": 1, "ended": 1, "refused": 1, "waiting": 3},
        ),
        (
            desk.store.remove("chat-6", now=desk.now),
            {"restored": 1, "ended": 2, "refused": 1, "waiting": 2},
        ),
    ]
    for step, counts in steps:
        await step
        assert await desk.counts(lost.id) == {"sessions": 6} | counts
        await desk.check()
    desk.later(MINUTE)
    claims = {claim.chat_id: claim for claim in await desk.claim()}
    first, second = await desk.answer(claims["chat-4"], claims["chat-5"])
    assert (first.finished, second.finished) == (lost.id, lost.id)
    over = await desk.restoration(lost.id)
    assert (over.finished_at, over.waiting, over.restored) == (desk.now, 0, 3)


async def test_a_server_without_sessions_is_restored_at_once(desk: Desk) -> None:
    lost = await desk.lose()
    assert (lost.sessions, lost.finished_at) == (0, NOON)


async def test_each_restoration_is_given_once_when_it_is_finished(desk: Desk) -> None:
    await desk.live(*chats(2))
    first = await desk.lose()
    assert await desk.store.newly_finished() == []
    second = await desk.lose()
    empty = await desk.lose("118")
    assert await desk.store.newly_finished() == [await desk.restoration(each.id) for each in (first, empty)]
    assert await desk.store.newly_finished() == []
    await desk.answer(*await desk.claim())
    assert await desk.store.newly_finished() == [await desk.restoration(second.id)]


async def test_an_answer_that_was_asked_for_before_the_loss_does_not_count_as_restored(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    claim = await desk.claim_one()
    lost = await desk.lose()
    await desk.answer(claim)
    assert await desk.counts(lost.id) == {"sessions": 1, "waiting": 1}
    assert (await desk.claim_one()).restoration == lost.id


async def test_a_server_lost_again_while_it_is_restored_takes_its_sessions_over(desk: Desk) -> None:
    await desk.live(*chats(5))
    first = await desk.lose()
    claims = await desk.claim(2)
    await desk.answer(claims[0])
    second = await desk.lose(cause=Cause.RESTARTED)
    assert await desk.counts(first.id) == {"sessions": 5, "restored": 1, "moved": 4}
    assert (await desk.restoration(first.id)).finished_at is not None
    assert await desk.counts(second.id) == {"sessions": 5, "waiting": 5}
    await desk.check()
    desk.later(LEASE)
    await desk.answer(*await desk.claim())
    assert await desk.counts(second.id) == {"sessions": 5, "restored": 5}


async def test_a_server_lost_again_while_its_sessions_are_still_being_marked(desk: Desk) -> None:
    await desk.live(*chats(5))
    first = await desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.UNREACHABLE, now=desk.now
    )
    assert await desk.store.mark(first.id, limit=2, now=desk.now)
    second = await desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.RESTARTED, now=desk.now
    )
    assert not await desk.store.mark(first.id, limit=2, now=desk.now)  # the second one marks them all
    while await desk.store.mark(second.id, limit=2, now=desk.now):
        await desk.check()
    assert await desk.counts(first.id) == {"sessions": 2, "moved": 2}
    assert (await desk.restoration(first.id)).finished_at is not None
    assert await desk.counts(second.id) == {"sessions": 5, "waiting": 5}


async def test_marking_that_was_cut_off_goes_on_where_it_stopped(desk: Desk) -> None:
    await desk.live(*chats(5))
    begun = await desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.RESTARTED, now=desk.now
    )
    assert await desk.store.mark(begun.id, limit=2, now=desk.now)
    desk.later(1)
    unfinished = await desk.store.restorations(unfinished=True)
    assert [(one.id, one.marking, one.sessions) for one in unfinished] == [(begun.id, True, 2)]
    await desk.answer(*await desk.claim())
    await desk.check()
    assert await desk.store.mark(begun.id, limit=2, now=desk.now)
    assert not await desk.store.mark(begun.id, limit=2, now=desk.now)
    assert await desk.counts(begun.id) == {"sessions": 5, "restored": 2, "waiting": 3}
    assert not await desk.store.mark(begun.id, limit=2, now=desk.now)
    desk.later(1)
    await desk.answer(*await desk.claim())
    assert await desk.store.restorations(unfinished=True) == []


@pytest.mark.parametrize("what", ["push", "registration", "new key"])
async def test_marking_misses_no_session_that_something_happens_to_meanwhile(desk: Desk, what: str) -> None:
    await desk.live(*chats(5))
    begun = await desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.UNREACHABLE, now=desk.now
    )
    assert await desk.store.mark(begun.id, limit=2, now=desk.now)
    desk.later(SECOND)
    if what == "push":
        await desk.push(push("chat-1"))
    else:
        await desk.register(registration("chat-1", key="key-2" if what == "new key" else None))
    while await desk.store.mark(begun.id, limit=2, now=desk.now):
        await desk.check()
    assert await desk.counts(begun.id) == {"sessions": 5, "waiting": 5}
    desk.later(SECOND)
    assert set(named(await desk.claim())) == set(chats(5))


async def test_a_session_restored_before_the_marking_is_over_is_not_marked_again(desk: Desk) -> None:
    await desk.live(*chats(5))
    begun = await desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.RESTARTED, now=desk.now
    )
    desk.later(SECOND)
    assert await desk.store.mark(begun.id, limit=2, now=desk.now)
    await desk.answer(*await desk.claim())
    await desk.push(push("chat-5"))
    await desk.answer(*await desk.claim())
    while await desk.store.mark(begun.id, limit=2, now=desk.now):
        pass
    assert await desk.counts(begun.id) == {"sessions": 5, "restored": 2, "waiting": 3}


async def test_a_session_registered_while_its_server_is_restored_belongs_to_it(desk: Desk) -> None:
    await desk.live("chat-1")
    lost = await desk.lose()
    await desk.register(registration("chat-2"))
    assert await desk.counts(lost.id) == {"sessions": 2, "waiting": 2}
    await desk.answer(*await desk.claim())
    assert await desk.counts(lost.id) == {"sessions": 2, "restored": 2}


async def test_a_session_that_moves_to_a_server_lost_meanwhile_is_due_at_once(desk: Desk) -> None:
    await desk.live("chat-1", "chat-2")
    await desk.live("other", alias="118")
    here = await desk.lose("117")
    claims = await desk.claim()
    sent_at = desk.now
    desk.later(SECOND)
    there = await desk.lose("118")  # it took chat-1 over, answered, and died
    moved = TokenNews(secure_key="key-2", alias="118")
    await desk.store.settle([answered(claims[0], sent_at=sent_at, settled_at=desk.later(SECOND), news=moved)])
    session = await desk.session(claims[0].chat_id)
    assert (session.reason, session.due_at, session.alias) == (Reason.RESTORE, desk.now, "118")
    assert await desk.counts(here.id) == {"sessions": 2, "restored": 1, "waiting": 1}
    assert await desk.counts(there.id) == {"sessions": 2, "waiting": 2}
    assert claims[0].chat_id in named(await desk.claim())


async def test_a_session_that_moves_under_a_lost_lease_to_a_server_lost_meanwhile_is_due_too(
    desk: Desk,
) -> None:
    await desk.live("chat-1")
    here = await desk.lose("117")
    lost_lease = await desk.claim_one()
    sent_at = desk.now
    desk.later(LEASE)
    held = await desk.claim_one()
    there = await desk.store.begin_restoration(
        alias="118", server=None, cause=Cause.UNREACHABLE, now=desk.now
    )
    moved = answered(lost_lease, sent_at=sent_at, settled_at=desk.now, news=TokenNews(alias="118"))
    await desk.store.settle([moved])
    assert await desk.counts(here.id) == {"sessions": 1, "moved": 1}
    assert await desk.counts(there.id) == {"sessions": 1, "waiting": 1}
    assert (await desk.restoration(here.id)).finished_at is not None
    settled = await desk.settle(held, Verdict.RETRY)
    assert settled.due_again
    assert named(await desk.claim()) == ["chat-1"]


async def test_a_session_that_moves_to_a_server_lost_before_it_was_asked_for_stays_there(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.lose("118")  # and is back since
    desk.later(SECOND)
    await desk.lose("117")
    [settled] = await desk.answer(await desk.claim_one(), news=TokenNews(alias="118"))
    assert settled.alias == "118"
    assert (await desk.due())[0] is Reason.KEEPALIVE


async def test_a_session_that_a_push_moves_to_a_lost_server_is_due_for_restoring(desk: Desk) -> None:
    await desk.live("chat-1")
    there = await desk.store.begin_restoration(
        alias="118", server=None, cause=Cause.UNREACHABLE, now=desk.now
    )
    await desk.push(push(key="key-2", alias="118", utc_time=desk.now))
    session = await desk.session()
    assert (session.reason, session.restoration) == (Reason.ACKNOWLEDGE, there.id)


async def test_restorations_are_listed_newest_first(desk: Desk) -> None:
    await desk.live("chat-1")
    numbers = [(await desk.lose("116")).id]
    began = desk.now
    numbers += [(await desk.lose(alias)).id for alias in ("117", "118")]
    assert [one.id for one in await desk.store.restorations()] == numbers[::-1]
    assert [one.id for one in await desk.store.restorations(limit=1)] == [numbers[2]]
    [unfinished] = await desk.store.restorations(unfinished=True)
    assert (unfinished.id, unfinished.alias, unfinished.server) == (numbers[1], "117", "chat")
    assert (unfinished.cause, unfinished.started_at) == (Cause.UNREACHABLE, began)


async def test_shutdown_notices_make_one_restoration(desk: Desk) -> None:
    await gone(desk, state=ServerState.UP)
    await desk.live(*chats(3))
    await desk.push(push("chat-1", leaving=True), push("chat-2", leaving=True))
    [announced] = await desk.store.restorations()
    assert (announced.cause, announced.alias, announced.server) == (Cause.ANNOUNCED, "117", "chat")
    assert (announced.sessions, announced.marking) == (2, True)
    assert await desk.due("chat-1") == (Reason.RESTORE, desk.now)
    await desk.answer(*await desk.claim())
    assert await desk.store.finish_announced(now=desk.now) == []
    await desk.push(push("chat-3", leaving=True))
    assert await desk.counts(announced.id) == {"sessions": 3, "restored": 2, "waiting": 1}
    await desk.answer(*await desk.claim())
    desk.later(ANNOUNCED_LINGER_MS)
    assert await desk.store.finish_announced(now=desk.now) == [announced.id]
    assert await desk.store.finish_announced(now=desk.now) == []


async def test_the_wait_for_further_notices_is_no_part_of_how_long_a_restoration_took(desk: Desk) -> None:
    await desk.live(*chats(2))
    await desk.push(push("chat-1", leaving=True))
    desk.later(SECOND)
    await desk.answer(await desk.claim_one())
    done = desk.now
    [first] = await desk.store.restorations(unfinished=True)  # it is still open
    assert (first.state, first.finished_at, first.marking) == (RestorationState.FINISHED, done, True)
    desk.later(SECOND)
    await desk.push(push("chat-2", leaving=True))
    again = await desk.restoration(first.id)
    assert (again.state, again.finished_at, again.waiting) == (RestorationState.RUNNING, None, 1)
    desk.later(SECOND)
    await desk.answer(await desk.claim_one())
    done = desk.now
    assert await desk.store.newly_finished() == []  # told once, when no more can come
    await desk.store.purge(ended_before=desk.now + SECOND, limit=100)
    desk.later(ANNOUNCED_LINGER_MS)
    assert await desk.store.finish_announced(now=desk.now) == [first.id]
    [over] = await desk.store.newly_finished()
    assert (over.id, over.finished_at, over.sessions, over.marking) == (first.id, done, 2, False)
    assert await desk.store.restorations(unfinished=True) == []


async def test_an_announced_restoration_that_is_quiet_ends_with_its_last_session(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.push(push(leaving=True))
    desk.later(ANNOUNCED_LINGER_MS)
    assert await desk.store.finish_announced(now=desk.now) == []
    [settled] = await desk.answer(await desk.claim_one())
    [announced] = await desk.store.restorations()
    assert settled.finished == announced.id


async def test_a_shutdown_notice_repeated_counts_once(desk: Desk) -> None:
    await desk.live("chat-1")
    await desk.push(push(leaving=True), push(leaving=True))
    [announced] = await desk.store.restorations()
    assert announced.sessions == 1


async def test_a_notice_for_a_session_that_is_restored_already_leaves_it_there(desk: Desk) -> None:
    await desk.live("chat-1")
    lost = await desk.lose()
    await desk.push(push(leaving=True))
    assert [one.id for one in await desk.store.restorations()] == [lost.id]
    assert (await desk.session()).restoration == lost.id


@pytest.mark.slow
async def test_a_server_lost_after_its_notices_takes_their_sessions_over(desk: Desk) -> None:
    await desk.live(*chats(3))
    await desk.push(push("chat-1", leaving=True))
    [announced] = await desk.store.restorations()
    lost = await desk.lose()
    assert await desk.counts(announced.id) == {"sessions": 1, "moved": 1}
    assert await desk.counts(lost.id) == {"sessions": 3, "waiting": 3}
    desk.later(ANNOUNCED_LINGER_MS)
    assert await desk.store.finish_announced(now=desk.now) == [announced.id]


async def test_a_notice_that_brings_the_missing_tokens_belongs_to_the_server_it_names(desk: Desk) -> None:
    await desk.push(push(user_id="user", key="key"))
    await desk.push(push(alias="118", leaving=True))
    await desk.push(complete_push("adopted", alias="118", leaving=True))
    [announced] = await desk.store.restorations()
    assert (announced.alias, announced.sessions) == ("118", 2)


# -- everything at once ----------------------------------------------------------------------------


class Walk:
    """A random walk through everything a store can be told, beside a model that knows only what must
    be true: who holds which session until when, which key each chat has told us last, which pushes
    have not taken effect, and which chats are over.

    Each chat has a Chat Server that numbers its keys; a push always tells the time of its event.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self.desk = Desk(store)
        self.chance = random.Random(seed)
        self.chats = chats(6)
        self.newest = dict.fromkeys(self.chats, 0)
        self.told: dict[str, int] = {}
        self.held: dict[str, tuple[int, Ms]] = {}
        self.out: list[tuple[Claim, Ms]] = []
        self.waiting: set[str] = set()
        self.delayed: list[tuple[str, int, Ms]] = []
        self.over: set[str] = set()

    async def step(self) -> None:
        self.desk.later(self.chance.choice((1, 300, 5 * SECOND, LEASE, SPREAD)))
        steps = (
            *(self.register, self.event, self.deliver, self.deliver, self.absorb, self.absorb),
            *(self.claim, self.claim, self.claim, self.settle, self.settle, self.settle, self.settle),
            *(self.renew, self.make_due, self.end, self.lose, self.mark, self.mark, self.house),
        )
        await self.chance.choice(steps)()

    def news(self, chat_id: str, key: int, alias: str) -> Registration:
        return registration(chat_id, key=f"{chat_id}-key-{key}", alias=alias)

    def alias(self) -> str:
        return self.chance.choice(("117", "118"))

    async def register(self) -> None:
        chat_id = self.chance.choice(self.chats)
        key = self.newest[chat_id]
        [outcome] = await self.desk.register(self.news(chat_id, key, self.alias()))
        if chat_id in self.over:
            assert outcome is Registered.ENDED
        else:
            assert outcome is not Registered.ENDED
            self.told[chat_id] = key

    async def event(self) -> None:
        """Something happens in a chat, after somebody else's request or without; the push may be late."""
        chat_id = self.chance.choice(self.chats)
        self.newest[chat_id] += self.chance.random() < 0.3
        self.delayed.append((chat_id, self.newest[chat_id], self.desk.now))

    async def deliver(self) -> None:
        if not self.delayed:
            return
        chat_id, key, at = self.delayed.pop(self.chance.randrange(len(self.delayed)))
        said = self.news(chat_id, key, self.alias()).tokens
        leaving = self.chance.random() < 0.2
        await self.desk.store.take_push(
            push(
                chat_id,
                user_id=said.user_id,
                key=said.secure_key,
                alias=said.alias,
                utc_time=at,
                leaving=leaving,
            ),
            now=self.desk.now,
        )
        self.waiting.add(chat_id)
        if chat_id not in self.over and (chat_id not in self.told or self.told[chat_id] < key):
            self.told[chat_id] = key
            for claim, _ in self.out:
                if claim.chat_id == chat_id and self.held.get(chat_id, (0, 0))[0] == claim.claim_id:
                    assert self.desk.store.superseded(claim)

    async def absorb(self) -> None:
        await self.desk.store.absorb(100)
        self.waiting.clear()

    async def claim(self) -> None:
        now = self.desk.now
        free = {
            session.chat_id
            for session in await self.desk.store.sessions(state=SessionState.LIVE)
            if session.due_at <= now
            and session.chat_id not in self.waiting
            and self.held.get(session.chat_id or "", (0, 0))[1] <= now
        }
        limit = self.chance.choice((2, 100))
        claims = await self.desk.claim(limit)
        assert set(named(claims)) <= free
        assert limit < 100 or len(claims) == len(free)
        for claim in claims:
            assert claim.tokens.secure_key == f"{claim.chat_id}-key-{self.told[claim.chat_id]}"
            self.held[claim.chat_id] = (claim.claim_id, now + LEASE)
            self.out.append((claim, now))

    async def settle(self) -> None:
        """Chat Server takes a request now and answers it; it throws nobody out here, but a request
        whose key it has replaced gets no answer."""
        chosen = self.chance.sample(self.out, min(len(self.out), self.chance.choice((1, 3))))
        settlements = []
        for claim, sent_at in chosen:
            self.out.remove((claim, sent_at))
            chat_id = claim.chat_id
            held = self.held.get(chat_id, (0, 0))[0] == claim.claim_id
            if held:
                del self.held[chat_id]
            current = claim.tokens.secure_key == f"{chat_id}-key-{self.newest[chat_id]}"
            verdict = self.chance.choice(
                (Verdict.ANSWERED,) * 6 + (Verdict.RETRY, Verdict.REFUSED, Verdict.RELEASED)
            )
            news = TokenNews()
            if chat_id in self.over or not current:
                verdict = Verdict.RETRY
            elif self.chance.random() < 0.02:
                verdict = Verdict.ENDED
                self.over.add(chat_id)
                self.held.pop(chat_id, None)
            elif verdict is Verdict.ANSWERED:
                self.newest[chat_id] += self.chance.random() < 0.3
                self.told[chat_id] = self.newest[chat_id]
                said = self.news(chat_id, self.newest[chat_id], self.alias()).tokens
                news = TokenNews(chat_id, said.user_id, said.secure_key, said.alias)
            settlements.append(
                replace(
                    answered(claim, sent_at=sent_at, settled_at=self.desk.now, news=news), verdict=verdict
                )
            )
        settled = await self.desk.store.settle(settlements)
        assert [each.chat_id for each in settled] == [each.claim.chat_id for each in settlements]

    async def renew(self) -> None:
        until = self.desk.now + LEASE
        await self.desk.store.renew([claim for claim, _ in self.out], until=until)
        for chat_id, (claim_id, _) in list(self.held.items()):
            if any(claim.claim_id == claim_id and claim.chat_id == chat_id for claim, _ in self.out):
                self.held[chat_id] = (claim_id, until)

    async def make_due(self) -> None:
        chat_id = self.chance.choice(self.chats)
        known = await self.desk.store.get(chat_id)
        made = await self.desk.store.make_due(chat_id, self.chance.choice(list(Reason)), now=self.desk.now)
        assert made == (known is not None and known.state is SessionState.LIVE)

    async def end(self) -> None:
        if self.chance.random() > 0.2:
            return
        chat_id = self.chance.choice(self.chats)
        if chat_id in self.over:
            assert not await self.desk.store.remove(chat_id, now=self.desk.now)
        elif await self.desk.store.remove(chat_id, now=self.desk.now):
            # Its Chat Server goes on; only the app may bring it back.
            await self.absorb()
            self.held.pop(chat_id, None)
            self.out = [(claim, at) for claim, at in self.out if claim.chat_id != chat_id]
            self.delayed = [late for late in self.delayed if late[0] != chat_id]
            self.told.pop(chat_id, None)

    async def lose(self) -> None:
        await self.desk.store.begin_restoration(
            alias=self.alias(), server=None, cause=Cause.UNREACHABLE, now=self.desk.now
        )

    async def mark(self) -> None:
        for restoration in await self.desk.store.restorations(limit=1000, unfinished=True):
            if restoration.marking and restoration.cause is not Cause.ANNOUNCED:
                await self.desk.store.mark(restoration.id, limit=2, now=self.desk.now)

    async def house(self) -> None:
        await self.desk.store.finish_announced(now=self.desk.now)
        await self.desk.store.pull_in(now=self.desk.now, spread_ms=SPREAD)

    async def check(self) -> None:
        await self.desk.check()
        for session in await every_session(self.desk.store):
            assert session.chat_id is not None
            assert (session.state is SessionState.ENDED) or session.chat_id not in self.over
            holder = self.held.get(session.chat_id)
            if holder is not None and session.state is SessionState.LIVE:
                assert session.leased_until == holder[1]
            if session.state is SessionState.LIVE and session.chat_id not in self.waiting:
                assert session.secure_key == f"{session.chat_id}-key-{self.told[session.chat_id]}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_nothing_is_lost_held_twice_or_given_an_old_key(
    store: Store, seed: int
) -> None:
    walk = Walk(store, seed)
    for _ in range(120):
        await walk.step()
        await walk.check()


# -- an old copy -------------------------------------------------------------------------------------


async def test_distrusted_sessions_are_kept_and_not_given_until_their_tokens_are_told(desk: Desk) -> None:
    await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
    await desk.store.take_push(push("chat-2"), now=NOON + 100)
    assert await desk.store.distrust(before=NOON + 50, dry_run=True) == 2
    assert await desk.store.distrust(before=NOON + 50) == 1
    assert [claim.chat_id for claim in await desk.claim(10)] == ["chat-2"]
    await desk.store.take_push(complete_push("chat-1"), now=NOON + 200)
    await desk.store.absorb(10)
    assert await desk.store.distrust(before=NOON + 50) == 0


async def test_a_distrusted_key_is_believed_from_a_push_and_not_from_a_registration(desk: Desk) -> None:
    """The application may repeat what it registered at first, and a wrong key throws the customer out."""
    first = registration("chat-1")
    await desk.register(first, spread_ms=0)
    desk.later(SECOND)
    assert await desk.store.distrust(before=desk.now) == 1
    assert await desk.register(first, spread_ms=0) == [Registered.KEPT]
    assert await desk.claim(10) == []
    desk.later(SECOND)
    key = first.tokens.secure_key
    await desk.push(push("chat-1", key=key, alias="117", user_id="user-of-chat-1", utc_time=desk.now))
    assert [claim.tokens.secure_key for claim in await desk.claim(10)] == [key]


async def test_a_distrusted_session_is_live_with_a_newer_key(desk: Desk) -> None:
    await desk.register(registration("chat-1"), spread_ms=0)
    desk.later(SECOND)
    await desk.store.distrust(before=desk.now)
    assert await desk.register(registration("chat-1", key="newer"), spread_ms=0) == [Registered.COMPLETED]


async def test_a_session_that_lacks_a_token_is_not_completed_with_distrusted_ones(desk: Desk) -> None:
    await desk.push(push("chat-1", key="key-1", user_id="user-of-chat-1"))
    assert await desk.store.distrust(before=desk.now + 1) == 0
    desk.later(SECOND)
    await desk.push(push("chat-1", alias="117"))
    assert await desk.claim(10) == []
    await desk.push(push("chat-1", key="key-2", user_id="user-of-chat-1"))
    assert [claim.tokens.secure_key for claim in await desk.claim(10)] == ["key-2"]


async def test_a_restoration_that_distrust_finishes_did_not_end_before_it_began(desk: Desk) -> None:
    await desk.register(registration(), spread_ms=0)
    desk.later(MINUTE)
    begun = await desk.lose()
    await desk.store.distrust(before=desk.now - SECOND)
    [over] = await desk.store.restorations()
    assert (over.id, over.finished_at, over.refused) == (begun.id, over.started_at, 1)


# -- a store that nobody shares -----------------------------------------------------------------------


async def test_a_store_that_nobody_shares_leaves_clock_rate_and_duties_to_its_process(desk: Desk) -> None:
    clock = SystemClock()
    assert desk.store.clock(clock) is clock
    assert await desk.store.turns(3, rate=55) is None
    assert await desk.store.duty("purge", seconds=60)
    await desk.live("chat-1")
    await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    assert await desk.store.confirm(await desk.claim()) == frozenset()
