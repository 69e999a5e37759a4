"""The contract of a store: asks, by which a consumer sends the Refresh that acknowledges a push, and else the daemon
pings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pytest
import pytest_asyncio

from asyncchatd.model.data import Cause, Reason, TokenNews, Verdict
from asyncchatd.model.delivery import Asked, Consumer, Unacknowledged
from asyncchatd.model.transcript import EventKind, StoredEvent
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import NotTaken, Registered, Take
from asyncchatd.wire.push import Push

from ..desk import SECOND, SPREAD, Desk, push, registration
from .rig import chats, named

TIME = 5 * SECOND
APP = Consumer("app", frozenset((EventKind.NOTIFIED,)), pushes=True, acknowledges_ms=TIME)
PULLS = Consumer("pulls", frozenset((EventKind.NOTIFIED,)))


@dataclass
class App:
    """A chat application that is told by a webhook, and the desk."""

    desk: Desk

    async def told(self) -> list[StoredEvent]:
        """What it is told now, and takes."""
        batches = await self.desk.store.batches(
            "app", now=self.desk.now, limit=100, busy=(), most_events=100, most_bytes=1 << 20
        )
        await self.desk.store.delivered(batches, now=self.desk.now)
        return [event for batch in batches for event in batch.events]

    async def pushed(self, *pushes: Push, listening: Collection[str] = ("app",)) -> list[StoredEvent]:
        await self.desk.push(*(pushes or (push(),)), listening=listening)
        return await self.told()

    async def asked(self, *pushes: Push) -> tuple[StoredEvent, Asked]:
        """A push for which it is asked."""
        [event] = await self.pushed(*pushes)
        return event, await self.hears(event)

    async def hears(self, event: StoredEvent) -> Asked:
        handed = await self.desk.store.hand_out("app", [event], now=self.desk.now)
        assert list(handed.asked) == [event.id]
        return handed.asked[event.id]

    async def is_not_asked(self, *events: StoredEvent) -> bool:
        handed = await self.desk.store.hand_out("app", events, now=self.desk.now)
        return not handed.asked

    async def acknowledges(self, event: StoredEvent, chat_id: str = "chat-1") -> bool:
        return await self.desk.store.acknowledge(chat_id, event.id, now=self.desk.now, spread_ms=SPREAD)

    async def puts(self, event: StoredEvent, key: str | None = None, *, alias: str = "117") -> Registered:
        """What GMS replied to its Refresh."""
        [done] = await self.desk.register(replace(registration(key=key, alias=alias), acknowledged=event.id))
        return done

    async def counts(self) -> tuple[int, int, int]:
        [state] = [each for each in await self.desk.store.consumers() if each.name == "app"]
        return state.asked, state.acknowledged, state.ran_out


@pytest_asyncio.fixture(loop_scope="session")
async def app(desk: Desk) -> App:
    await desk.store.enrol([APP, PULLS], now=desk.now)
    await desk.live("chat-1")
    return App(desk)


async def is_keepalive(desk: Desk) -> bool:
    reason, due_at = await desk.due()
    return reason is Reason.KEEPALIVE and desk.now + 0.9 * SPREAD <= due_at <= desk.now + SPREAD


# -- being asked ----------------------------------------------------------------------------------------


async def test_one_that_is_asked_has_the_newest_tokens_and_the_session_to_itself(app: App) -> None:
    event, asked = await app.asked(push(key="key-2"))
    assert (event.kind, event.chat_id) == (EventKind.NOTIFIED, "chat-1")
    assert asked.tokens == registration(key="key-2").tokens
    assert (asked.left_ms, asked.next_position, asked.again) == (TIME, 3, False)
    app.desk.later(TIME - 1)
    assert await app.desk.claim() == []
    app.desk.later(1)
    assert (await app.desk.claim_one()).reason is Reason.ACKNOWLEDGE


@pytest.mark.parametrize("heard", [True, False])
async def test_the_daemon_pings_when_nobody_acknowledges_in_time(app: App, heard: bool) -> None:
    [event] = await app.pushed()
    if heard:
        await app.hears(event)
    assert await app.desk.store.next_due(now=app.desk.now) == app.desk.now + TIME
    assert await app.desk.claim() == []
    app.desk.later(TIME)
    assert named(await app.desk.claim()) == ["chat-1"]
    assert not await app.acknowledges(event)


async def test_what_is_acknowledged_needs_no_ping_until_the_next_keepalive(app: App) -> None:
    event, _ = await app.asked()
    app.desk.later(SECOND)
    assert await app.acknowledges(event)
    assert await is_keepalive(app.desk)
    app.desk.later(TIME)
    assert await app.desk.claim() == []
    assert await app.counts() == (1, 1, 0)


async def test_an_acknowledgement_is_repeated_without_harm(app: App) -> None:
    event, _ = await app.asked()
    assert await app.acknowledges(event)
    due = await app.desk.due()
    app.desk.later(SECOND)
    assert await app.acknowledges(event)
    assert await app.desk.due() == due
    assert await app.counts() == (1, 1, 0)


async def test_nobody_is_asked_who_does_not_listen_is_paused_or_does_not_acknowledge(app: App) -> None:
    for listening in ((), ("pulls",), ("unknown",)):
        events = await app.pushed(listening=listening)
        assert await app.is_not_asked(*events)
        await app.desk.answer(await app.desk.claim_one())
    await app.desk.store.pause("app", paused=True)
    await app.pushed()
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_one_whose_batch_of_the_chat_waits_for_another_try_is_not_asked(app: App) -> None:
    await app.desk.push(push())
    [batch] = await app.desk.store.batches(
        "app", now=app.desk.now, limit=1, busy=(), most_events=9, most_bytes=9999
    )
    await app.desk.store.undelivered(batch, due_at=app.desk.now + SECOND, failing_since=app.desk.now)
    await app.desk.answer(await app.desk.claim_one())
    await app.desk.push(push(), listening=["app"])
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_only_the_consumer_of_the_service_is_asked(desk: Desk) -> None:
    sales = replace(APP, services=frozenset(("sales",)))
    await desk.store.enrol([sales, PULLS], now=desk.now)
    await desk.live("chat-1")
    await desk.push(push(), listening=["app", "pulls"])
    assert named(await desk.claim()) == ["chat-1"]


async def test_another_consumer_is_told_of_the_push_and_not_asked(app: App) -> None:
    event, _ = await app.asked()
    portion = await app.desk.store.fetch("pulls", after=None, limit=10, now=app.desk.now)
    assert [each.id for each in portion.events] == [event.id]
    assert not (await app.desk.store.hand_out("pulls", portion.events, now=app.desk.now)).asked


async def test_pushes_of_many_sessions_ask_for_each(app: App) -> None:
    await app.desk.live(*chats(30)[1:])
    events = await app.pushed(*(push(chat_id) for chat_id in chats(30)))
    handed = await app.desk.store.hand_out("app", events, now=app.desk.now)
    assert {event.chat_id for event in events if event.id in handed.asked} == set(chats(30))
    assert await app.desk.claim() == []
    assert (await app.counts())[0] == 30


async def test_an_unknown_session_and_an_incomplete_one_are_nobodys(app: App) -> None:
    for told in (push("chat-2"), push("chat-2"), push("chat-3", user_id="u", key="k", alias="117")):
        events = await app.pushed(told)
        assert await app.is_not_asked(*events)
    assert named(await app.desk.claim()) == ["chat-3"]


async def test_the_pushes_of_a_chat_that_the_gateway_opened_are_the_daemons(app: App) -> None:
    await app.pushed(push("chat-2", alias="117"), listening=())  # the push may come before the registration
    for chat_id in ("chat-2", "chat-3"):
        await app.desk.register(replace(registration(chat_id), of_gateway=True))
        await app.desk.register(registration(chat_id))
    while claims := await app.desk.claim():
        await app.desk.answer(*claims)
    events = await app.pushed(push("chat-2"), push("chat-3"))
    assert len(events) == 2
    assert await app.is_not_asked(*events)
    assert named(await app.desk.claim()) == ["chat-2", "chat-3"]


# -- what goes before -----------------------------------------------------------------------------------


async def test_a_stop_notice_asks_nobody(app: App) -> None:
    [event] = await app.pushed(push(leaving=True))
    assert await app.is_not_asked(event)
    assert (await app.desk.claim_one()).restoration is not None


async def test_while_a_request_is_in_flight_nobody_is_asked(app: App) -> None:
    await app.desk.store.make_due("chat-1", Reason.REQUEST, now=app.desk.now)
    claim = await app.desk.claim_one()
    [event] = await app.pushed()
    assert await app.is_not_asked(event)
    await app.desk.answer(claim)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_nobody_is_asked_while_a_request_may_be_on_its_way_whose_lease_ran_out(app: App) -> None:
    app.desk.later(SPREAD)
    [claim] = await app.desk.claim(lease_ms=SECOND)
    app.desk.later(2 * SECOND)
    [event] = await app.pushed()
    await app.desk.answer(claim)
    assert named(await app.desk.claim()) == ["chat-1"], "at once, and not when his time is over"
    assert await app.is_not_asked(event)


async def test_nobody_is_asked_for_what_has_to_be_restored(app: App) -> None:
    await app.desk.lose()
    [event] = await app.pushed()
    assert (await app.desk.claim_one()).restoration is not None
    assert await app.is_not_asked(event)


async def test_nor_for_what_will_be_marked_in_a_moment(app: App) -> None:
    await app.desk.store.begin_restoration(
        alias="117", server="chat", cause=Cause.UNREACHABLE, now=app.desk.now
    )
    [event] = await app.pushed()
    assert named(await app.desk.claim()) == ["chat-1"]
    assert await app.is_not_asked(event)


async def test_one_who_hears_when_a_ping_is_due_anyway_is_not_asked(app: App) -> None:
    [event] = await app.pushed()
    await app.desk.push(push())
    assert await app.is_not_asked(event)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_a_restoration_goes_at_once_while_nobody_has_heard(app: App) -> None:
    [event] = await app.pushed()
    await app.desk.lose()
    assert (await app.desk.claim_one()).restoration is not None
    assert await app.is_not_asked(event)
    assert await app.counts() == (0, 0, 0)


async def test_a_restoration_waits_for_who_may_be_asking_gms_and_goes_when_he_is_done(app: App) -> None:
    event, _ = await app.asked()
    restoration = await app.desk.lose()
    assert await app.desk.claim() == [], "his request may be on its way, and bring another key"
    assert await app.puts(event, "key-of-the-reply") is Registered.UPDATED
    claim = await app.desk.claim_one()
    assert (claim.restoration, claim.tokens.secure_key) == (restoration.id, "key-of-the-reply")


async def test_or_when_his_time_is_over(app: App) -> None:
    await app.asked()
    await app.desk.lose()
    app.desk.later(TIME)
    assert (await app.desk.claim_one()).restoration is not None


async def test_one_who_hears_when_a_request_is_on_its_way_is_not_asked_and_the_ping_follows(app: App) -> None:
    [event] = await app.pushed()
    await app.desk.store.make_due("chat-1", Reason.REQUEST, now=app.desk.now)
    claim = await app.desk.claim_one()
    assert await app.is_not_asked(event)
    await app.desk.answer(claim)
    assert await app.desk.claim() == [], "that ping has acknowledged it"
    assert await app.is_not_asked(event)


async def test_one_who_hears_when_a_push_waits_that_may_tell_another_key_is_not_asked(app: App) -> None:
    [event] = await app.pushed()
    await app.desk.store.take_push(push(key="key-2"), now=app.desk.now)
    handed = await app.desk.store.hand_out("app", [event], now=app.desk.now)
    assert handed.withdrawn
    assert not handed.asked
    await app.desk.store.absorb(10)
    assert (await app.desk.claim_one()).tokens.secure_key == "key-2"


async def test_one_who_hears_too_late_is_not_asked_and_the_ping_goes_at_once(app: App) -> None:
    [event] = await app.pushed()
    app.desk.later(TIME / 2 + 1)
    assert (await app.desk.store.hand_out("app", [event], now=app.desk.now)).withdrawn
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_what_he_could_not_be_told_is_pinged_at_once(app: App) -> None:
    event, _ = await app.asked()
    assert await app.desk.store.withdraw("app", [event], now=app.desk.now)
    assert named(await app.desk.claim()) == ["chat-1"]
    assert await app.counts() == (1, 0, 0)
    assert not await app.desk.store.withdraw("app", [event], now=app.desk.now)


async def test_what_is_told_once_more_is_asked_for_again_while_there_is_time(app: App) -> None:
    event, _ = await app.asked()
    app.desk.later(SECOND)
    asked = await app.hears(event)
    assert (asked.left_ms, asked.again) == (TIME - SECOND, True)
    app.desk.later(2 * SECOND)
    assert await app.is_not_asked(event)
    assert await app.desk.claim() == [], "he may be at it still"
    assert await app.acknowledges(event)
    assert await app.is_not_asked(event)
    assert await app.counts() == (1, 1, 0)


# -- one key at a time ----------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def keyed(app: App) -> App:
    """The application is told the tokens with each event."""
    await app.desk.store.enrol([replace(APP, send_keys=True), PULLS], now=app.desk.now)
    return app


async def test_a_push_behind_one_whose_key_is_out_is_pinged_for_with_the_newer_key(keyed: App) -> None:
    """His first Refresh may bring another key, and a second one with the same would throw the customer out."""
    first, _ = await keyed.asked()
    keyed.desk.later(SECOND)
    [second] = await keyed.pushed(push(position=4))
    assert await keyed.is_not_asked(second)
    assert await keyed.desk.claim() == []  # his Refresh is on its way
    await keyed.puts(first, "key-2")
    claim = await keyed.desk.claim_one()
    assert (claim.reason, claim.tokens.secure_key) == (Reason.ACKNOWLEDGE, "key-2")
    assert not await keyed.acknowledges(second)


async def test_a_key_that_is_out_is_told_again_for_its_own_event(keyed: App) -> None:
    first, _ = await keyed.asked()
    assert (await keyed.hears(first)).again


async def test_of_several_in_one_batch_the_last_is_asked_for_and_covers_those_before(keyed: App) -> None:
    events = await keyed.pushed(push(), push(position=4), push(position=5))
    handed = await keyed.desk.store.hand_out("app", events, now=keyed.desk.now)
    assert list(handed.asked) == [events[-1].id]
    assert not handed.withdrawn
    await keyed.puts(events[-1], "key-2")
    assert await is_keepalive(keyed.desk)
    assert await keyed.counts() == (1, 1, 0)


async def test_once_the_key_that_was_out_is_back_the_next_push_is_asked_for(keyed: App) -> None:
    first, _ = await keyed.asked()
    await keyed.puts(first, "key-2")
    _, asked = await keyed.asked(push(position=4))
    assert asked.tokens.secure_key == "key-2"


async def test_a_time_that_runs_out_covers_a_push_behind_it(keyed: App) -> None:
    await keyed.asked()
    keyed.desk.later(SECOND)
    [second] = await keyed.pushed(push(position=4))
    assert await keyed.is_not_asked(second)
    keyed.desk.later(TIME - SECOND)
    assert named(await keyed.desk.claim()) == ["chat-1"]


# -- what an acknowledgement covers ---------------------------------------------------------------------


async def test_a_push_behind_it_is_not_covered(app: App) -> None:
    first, _ = await app.asked()
    app.desk.later(SECOND)
    second, asked = await app.asked()
    assert asked.left_ms == TIME - SECOND, "the first one's time is over then"
    assert await app.acknowledges(first)
    app.desk.later(TIME - 1)
    assert await app.desk.claim() == []
    app.desk.later(1)
    assert named(await app.desk.claim()) == ["chat-1"]
    assert not await app.acknowledges(second)
    assert await app.counts() == (2, 1, 1)


async def test_a_later_one_covers_those_before(app: App) -> None:
    first, _ = await app.asked()
    app.desk.later(SECOND)
    second, _ = await app.asked()
    assert await app.acknowledges(second)
    assert await is_keepalive(app.desk)
    assert await app.acknowledges(first)
    assert await app.counts() == (2, 2, 0)


async def test_a_push_of_which_he_was_not_told_is_not_covered(app: App) -> None:
    event, _ = await app.asked()
    await app.desk.push(push())
    assert await app.desk.claim() == []
    assert await app.acknowledges(event)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_a_push_that_waits_is_not_covered(app: App) -> None:
    event, _ = await app.asked()
    await app.desk.store.take_push(push(), now=app.desk.now)
    assert await app.acknowledges(event)
    await app.desk.store.absorb(10)
    assert named(await app.desk.claim()) == ["chat-1"]


@pytest.mark.parametrize("what", ["ping", "stop"])
async def test_what_else_makes_the_session_due_keeps_it_due(app: App, what: str) -> None:
    event, _ = await app.asked()
    if what == "ping":
        await app.desk.store.make_due("chat-1", Reason.REQUEST, now=app.desk.now)
    else:
        await app.desk.push(push(leaving=True))
    assert await app.desk.claim() == []
    assert await app.acknowledges(event)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_only_what_asked_for_a_refresh_of_this_session_is_acknowledged(app: App) -> None:
    await app.desk.live("chat-2")
    event, _ = await app.asked()
    other, _ = await app.asked(push("chat-2"))
    assert not await app.acknowledges(other)
    assert not await app.acknowledges(event, "unknown")
    assert not await app.acknowledges(replace(event, id=event.id + 1000))
    assert await app.acknowledges(event)
    assert await app.acknowledges(other, "chat-2")


async def test_one_of_which_he_has_not_heard_is_not_acknowledged(app: App) -> None:
    [event] = await app.pushed()
    assert not await app.acknowledges(event)
    assert await app.puts(event, "key-2") is Registered.NOT_ASKED
    assert await app.desk.key() == "key-of-chat-1"


# -- with the tokens of the reply -----------------------------------------------------------------------


async def test_a_registration_that_names_the_event_acknowledges_it_with_the_tokens_of_the_reply(
    app: App,
) -> None:
    event, _ = await app.asked()
    app.desk.later(SECOND)
    assert await app.puts(event, "key-2", alias="118") is Registered.UPDATED
    assert await is_keepalive(app.desk)
    session = await app.desk.session()
    assert (session.secure_key, session.alias, session.leased_until) == ("key-2", "118", 0)
    assert await app.counts() == (1, 1, 0)


async def test_a_registration_after_his_time_is_judged_as_a_reply_of_that_time(app: App) -> None:
    event, _ = await app.asked()
    app.desk.later(TIME)
    await app.desk.answer(await app.desk.claim_one(), news=TokenNews(secure_key="key-of-the-ping"))
    assert await app.puts(event, "key-of-chat-1") is Registered.KEPT
    assert await app.desk.key() == "key-of-the-ping"
    assert await app.counts() == (1, 0, 1)


async def test_a_registration_that_names_no_ask_of_its_session_changes_nothing(app: App) -> None:
    told = replace(registration("chat-2"), acknowledged=1)
    assert await app.desk.register(told) == [Registered.NOT_ASKED]
    assert await app.desk.store.get("chat-2") is None


async def test_a_registration_that_names_nothing_acknowledges_nothing(app: App) -> None:
    event, _ = await app.asked()
    assert await app.desk.register(registration(key="key-2")) == [Registered.UPDATED]
    assert await app.desk.claim() == []
    app.desk.later(TIME)
    assert (await app.desk.claim_one()).tokens.secure_key == "key-2"
    assert not await app.acknowledges(event)


# -- together with takes --------------------------------------------------------------------------------


async def take(desk: Desk, event: StoredEvent) -> Take | NotTaken:
    return await desk.store.take("chat-1", until=desk.now + 10 * SECOND, now=desk.now, notified=event.id)


async def test_who_was_asked_keeps_the_session_from_takes(app: App) -> None:
    event, _ = await app.asked()
    assert await app.desk.not_taken() is NotTaken.TAKEN
    assert await app.acknowledges(event)
    await app.desk.take()


async def test_he_who_was_asked_takes_it_by_naming_the_event_and_puts_back_what_gms_replied(app: App) -> None:
    event, _ = await app.asked()
    taken = await take(app.desk, event)
    assert isinstance(taken, Take)
    app.desk.later(TIME + SECOND)
    assert await app.desk.claim() == [], "it is a take now, and has its time"
    told = replace(registration(key="key-2"), take_id=taken.take_id, acknowledged=event.id)
    assert await app.desk.register(told) == [Registered.UPDATED]
    assert await is_keepalive(app.desk)
    assert (await app.desk.session()).leased_until == 0
    assert await app.desk.claim() == []


async def test_a_take_for_an_ask_that_is_put_back_without_naming_it_is_pinged(app: App) -> None:
    event, _ = await app.asked()
    taken = await take(app.desk, event)
    assert isinstance(taken, Take)
    assert await app.desk.put_back(taken, "key-2") is Registered.UPDATED
    assert (await app.desk.claim_one()).tokens.secure_key == "key-2"
    assert await app.counts() == (1, 0, 1)


async def test_a_take_names_only_what_asks(app: App) -> None:
    [event] = await app.pushed()
    assert await take(app.desk, event) is NotTaken.NOT_ASKED
    await app.hears(event)
    assert isinstance(await take(app.desk, event), Take)
    assert await take(app.desk, event) is NotTaken.TAKEN


async def test_a_session_that_is_taken_is_not_asked_for(app: App) -> None:
    taken = await app.desk.take()
    [event] = await app.pushed()
    assert await app.is_not_asked(event)
    assert await app.desk.release(taken)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_one_who_hears_when_somebody_has_taken_the_session_is_not_asked(app: App) -> None:
    [event] = await app.pushed()
    taken = await app.desk.take()
    assert await app.is_not_asked(event)
    assert await app.desk.release(taken)
    assert named(await app.desk.claim()) == ["chat-1"]


# -- the end of things ----------------------------------------------------------------------------------


async def test_what_nobody_acknowledged_is_told_once(app: App) -> None:
    await app.asked()
    app.desk.later(TIME)
    assert await app.desk.store.unacknowledged() == []
    await app.desk.answer(await app.desk.claim_one())
    assert await app.desk.store.unacknowledged() == [Unacknowledged("chat-1", "117", "app")]
    assert await app.desk.store.unacknowledged() == []
    assert await app.counts() == (1, 0, 1)


async def test_after_his_time_he_is_asked_for_the_next_push(app: App) -> None:
    await app.asked()
    app.desk.later(TIME)
    await app.desk.answer(await app.desk.claim_one())
    event, _ = await app.asked()
    assert await app.acknowledges(event)
    assert await app.counts() == (2, 1, 1)


async def test_an_end_is_the_end_of_it(app: App) -> None:
    event, _ = await app.asked()
    assert await app.desk.store.remove("chat-1", now=app.desk.now)
    assert not await app.acknowledges(event)
    assert await app.desk.register(registration()) == [Registered.CREATED]
    assert not await app.acknowledges(event)
    assert await app.puts(event) is Registered.NOT_ASKED


async def test_a_clock_that_was_set_back_leaves_nothing_asked_for_hours(app: App) -> None:
    await app.asked()
    app.desk.later(-3_600 * SECOND)
    await app.desk.store.pull_in(now=app.desk.now, spread_ms=SPREAD)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_a_reply_of_before_does_not_take_what_was_asked_for_away(app: App) -> None:
    """A push that came while the ping was on its way is the daemon's."""
    await app.desk.store.make_due("chat-1", Reason.REQUEST, now=app.desk.now)
    claim = await app.desk.claim_one()
    await app.pushed()
    await app.desk.settle(claim, Verdict.RELEASED, pause_ms=0)
    assert named(await app.desk.claim()) == ["chat-1"]


async def test_a_consumer_that_is_not_asked_any_more_leaves_the_ping_to_the_daemon(app: App) -> None:
    await app.asked()
    await app.desk.store.enrol([], now=app.desk.now)
    app.desk.later(TIME)
    assert named(await app.desk.claim()) == ["chat-1"]
