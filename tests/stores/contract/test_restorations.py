"""The contract of a store: Chat Servers and restorations."""

from __future__ import annotations

import pytest

from asyncchatd.model.data import (
    Cause,
    ChatServer,
    Loss,
    Process,
    Reason,
    RestorationState,
    ServerState,
    TokenNews,
    Verdict,
)
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Noted
from asyncchatd.stores.rules import ANNOUNCED_LINGER_MS

from ..desk import LEASE, MINUTE, NOON, SECOND, Desk, answered, complete_push, push, registration
from .rig import chats, gone, named


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


async def test_a_server_that_is_back_begins_nothing_for_an_alias_that_no_live_session_has(desk: Desk) -> None:
    await desk.live("hers", alias="118")
    await desk.live("over")
    assert await desk.store.remove("over", now=desk.now)
    server = ChatServer("chat", "117", "4711", state=ServerState.UP)
    losses = (Loss("117", Cause.RETURNED, again=True), Loss("118", Cause.RETURNED, again=True))
    noted = await desk.store.note(server, epoch=0, losses=losses, now=desk.now)
    assert noted is not None
    assert noted.epoch == 1
    assert [each.alias for each in noted.restorations] == ["118"]
    noted = await desk.store.note(server, epoch=1, losses=[Loss("117", Cause.RESTARTED)], now=desk.now)
    assert noted is not None
    assert len(noted.restorations) == 1, "it was lost just now, and had none"


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
