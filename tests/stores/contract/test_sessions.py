"""The contract of a store: sessions that are registered, read and ended."""

from __future__ import annotations

from typing import Any

import pytest

from asyncchatd.model.data import (
    Cause,
    EndCause,
    Reason,
    Registration,
    ServerState,
    Session,
    SessionState,
    TokenNews,
    Verdict,
)
from asyncchatd.model.values import replace
from asyncchatd.stores import StoreError
from asyncchatd.stores.answers import Registered

from ..desk import MINUTE, NOON, SECOND, SPREAD, Desk, complete_push, every_session, push, registration
from .rig import chats, gone, named

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


# -- what a registration says ------------------------------------------------------------------------

SAID = sorted(set(Registration.__struct_fields__) & set(Session.__struct_fields__))
"""What a session keeps of its registration as it was said, beside the tokens."""

WORDS: dict[str, Any] = {"next_position": 17, "of_gateway": True}
"""What a field says that is no text."""


def saying(chat_id: str, name: str) -> tuple[Registration, Any]:
    """A registration that says this field, and what it says."""
    word = WORDS.get(name, f"{name}-of-{chat_id}")
    return replace(registration(chat_id), **{name: word}), word


@pytest.mark.parametrize("name", SAID)
async def test_what_a_registration_says_is_kept(desk: Desk, name: str) -> None:
    """Of a session that is new, of one among many, of one that is known, and of one that a push began."""
    await desk.register(registration("known", next_position=None))
    await desk.push(push("begun", device_id=None))
    said = {chat_id: saying(chat_id, name) for chat_id in ("new", "begun", "known")}
    for told, _ in said.values():
        await desk.register(told)
    many = {chat_id: saying(chat_id, name) for chat_id in chats(3)}
    await desk.register(*(told for told, _ in many.values()))
    kept = {session.chat_id: getattr(session, name) for session in await every_session(desk.store)}
    assert kept == {chat_id: word for chat_id, (_, word) in {**said, **many}.items()}


# -- the key that a client came with -----------------------------------------------------------------


async def test_the_key_a_session_came_with_outlives_new_keys_and_its_end(desk: Desk) -> None:
    await desk.register(replace(registration(), came_with="id:first"))
    await desk.register(replace(registration(key="key-2"), came_with="id:second"))
    session = await desk.session()
    assert (session.secure_key, session.came_with, session.of_gateway) == ("key-2", "id:first", False)
    await desk.register(Registration(TokenNews("chat-1"), None, ended=True))
    session = await desk.session()
    assert (session.state, session.secure_key, session.came_with) == (SessionState.ENDED, None, "id:first")


async def test_a_session_that_a_push_began_comes_with_the_key_of_its_registration(desk: Desk) -> None:
    await desk.push(push(None, device_id="device-of-chat-1"))
    await desk.register(replace(registration(), came_with="id:first"))
    assert (await desk.session()).came_with == "id:first"


async def test_a_session_of_before_comes_with_the_key_it_is_registered_with_next(desk: Desk) -> None:
    await desk.register(registration())
    assert (await desk.session()).came_with is None
    await desk.register(replace(registration(), came_with="id:first"))
    assert (await desk.session()).came_with == "id:first"


async def test_no_registration_says_with_which_key_a_chat_of_the_gateway_came(desk: Desk) -> None:
    await desk.register(replace(registration(), of_gateway=True))
    await desk.register(replace(registration(key="key-2"), came_with="id:second"))
    session = await desk.session()
    assert (session.came_with, session.of_gateway) == (None, True)


async def test_one_that_is_begun_anew_comes_with_its_own_key(desk: Desk) -> None:
    await desk.register(replace(registration(), came_with="id:first"))
    assert await desk.store.remove("chat-1", now=desk.now)
    await desk.register(replace(registration(key="key-2"), came_with="id:second"))
    assert (await desk.session()).came_with == "id:second"
