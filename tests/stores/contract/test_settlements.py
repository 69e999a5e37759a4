"""The contract of a store: settlements."""

from __future__ import annotations

import pytest

from asyncchatd.model.data import EndCause, Reason, RestorationState, SessionState, TokenNews, Verdict
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Registered
from asyncchatd.stores.rules import LONGEST_SILENCE_MS, silence_ms

from ..desk import LEASE, MINUTE, NOON, SECOND, SPREAD, Desk, answered, push, registration
from .rig import chats, named


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
