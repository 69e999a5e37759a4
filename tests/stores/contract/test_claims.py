"""The contract of a store: claims, and what is due."""

from __future__ import annotations

import asyncio

import pytest

from asyncchatd.model.data import Claim, Reason, TokenNews, Verdict
from asyncchatd.model.values import replace

from ..desk import (
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
from .rig import chats, named


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
    """Where the push is quicker nothing is claimed before it took effect."""
    claims: list[Claim] = []
    for number in range(20):
        one, other = f"one-{number}", f"other-{number}"
        await desk.register(registration(one), registration(other), spread_ms=0)
        made, *_ = await asyncio.gather(
            desk.claim(),
            desk.store.take_push(push(one, key="key-2"), now=desk.now),
            desk.store.take_push(push(None, device_id=f"device-of-{other}", key="key-2"), now=desk.now),
        )
        # It may have those of before as well, with their new keys.
        claims = [claim for claim in made if claim.chat_id in (one, other)]
        assert all(map(desk.store.superseded, claims))
        await desk.store.absorb(10)
        if claims:
            break
    assert claims


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


async def test_next_due_knows_for_which_reasons(desk: Desk) -> None:
    await desk.register(registration("chat-1"), registration("chat-2"))
    assert await desk.store.make_due("chat-1", Reason.REQUEST, now=NOON + MINUTE)
    asked, kept = await desk.store.get("chat-1"), await desk.store.get("chat-2")
    assert asked is not None
    assert kept is not None
    now = int(min(asked.due_at, kept.due_at)) - 1
    assert await desk.store.next_due(now=now, reasons=[Reason.REQUEST]) == asked.due_at
    assert await desk.store.next_due(now=now, reasons=[Reason.KEEPALIVE]) == kept.due_at
    assert await desk.store.next_due(now=now, reasons=[Reason.RESTORE]) is None
    assert await desk.store.next_due(now=now) == min(asked.due_at, kept.due_at)


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
