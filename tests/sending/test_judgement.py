"""What an answer does to a session: its tokens, when it is pinged next, or its end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from conftest import (
    FAR_OFF_MS,
    NOON,
    Events,
    FakeClock,
    MakeSettings,
    PromptStore,
    make_due,
    register,
    registration,
    tokens,
)
from worker.rig import INTERVAL_MS, FakeGms, running

from asyncchatd.gms.client import Answer
from asyncchatd.gms.pacing import Landing
from asyncchatd.gms.trouble import Trouble
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.data import (
    Claim,
    Reason,
    RestorationState,
    SessionState,
    TokenNews,
    Tokens,
    Verdict,
)
from asyncchatd.model.transcript import EventKind
from asyncchatd.model.values import replace
from asyncchatd.sending import judgement
from asyncchatd.sending.judgement import (
    AT_WORK_SECONDS,
    INSISTING_TRIES,
    NONE_AT_ALL,
    ONLY_THE_LAST,
    Judge,
    landing,
)
from asyncchatd.standin.messages import write_push
from asyncchatd.stores.rules import KEEPALIVE_JITTER
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api.outcome import (
    Alive,
    Ended,
    NodeTrouble,
    Outcome,
    PingFault,
    Refused,
    RetryLater,
)
from asyncchatd.wire.chat_api.replies import Reply, read_event
from asyncchatd.wire.push import read_push

pytestmark = pytest.mark.usefixtures("events")


# -- what an answer does to a session ----------------------------------------------------------------


async def test_a_keepalive_comes_early_by_up_to_a_tenth_and_never_late(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    chats = [f"chat-{number}" for number in range(200)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    async with running(store, clock, make_settings, rate=1000):
        await clock.advance(0.5)
    waits = []
    for chat_id in chats:
        session = await store.get(chat_id)
        assert session is not None
        assert session.answered_at is not None
        assert session.reason is Reason.KEEPALIVE
        waits.append(session.due_at - session.answered_at)
    assert min(waits) >= INTERVAL_MS * (1 - KEEPALIVE_JITTER)
    assert max(waits) <= INTERVAL_MS
    assert max(waits) - min(waits) >= INTERVAL_MS * KEEPALIVE_JITTER / 2


async def test_the_newest_tokens_are_used_for_the_next_ping(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Alive(Reply(0, TokenNews("chat-1", "user-2", "key-2", "118"), next_position=9))
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
        rig.wakeup.set()
        await clock.advance(1)
    assert [ping.tokens for ping in gms.pings] == [
        tokens("chat-1"),
        Tokens("chat-1", "user-2", "key-2", "118"),
    ]
    assert gms.pings[1].position == 9
    changed = events.one(Event.SESSION_TOKENS_CHANGED)
    assert (changed["alias"], changed["previous_alias"]) == ("118", "117")
    assert "key-2" not in events.text


@pytest.mark.parametrize(
    "outcome",
    [
        RetryLater(chat_api.PingFault.STATUS_CODE_1),
        NodeTrouble(Trouble.CONNECT),
        NodeTrouble(chat_api.PingFault.SERVER_ERROR),
    ],
    ids=["status_code_1", "connect", "server_error"],
)
async def test_a_retry_comes_after_a_random_part_of_the_backoff(
    outcome: Outcome, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """Full jitter: sessions that failed together do not come back together."""
    chats = [f"chat-{number}" for number in range(60)]
    for number, chat_id in enumerate(chats):
        await register(store, chat_id, now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, outcome)
    async with running(store, clock, make_settings, gms=gms, backoff="10s"):
        await clock.advance(8)
    retries = events.of(Event.PING_RETRY)
    pauses = [pause for line in retries if line["attempt"] == 1 and isinstance(pause := line["next_ms"], int)]
    assert len(pauses) == 60
    assert 0 <= min(pauses) < 4_000
    assert 6_000 < max(pauses) <= 10_000


async def test_a_ping_that_may_have_been_taken_is_left_for_a_backoff(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """GMS may be at work on it still: the jitter must not bring it back at once."""
    chats = [f"chat-{number}" for number in range(60)]
    for number, chat_id in enumerate(chats):
        await register(store, chat_id, now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, NodeTrouble(Trouble.TIMEOUT))
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="10s"):
        await clock.advance(8)
    retries = events.of(Event.PING_RETRY)
    pauses = [pause for line in retries if line["attempt"] == 1 and isinstance(pause := line["next_ms"], int)]
    assert len(pauses) == 60
    assert 9_000 <= min(pauses) < max(pauses) <= 10_000


async def test_each_ping_that_may_have_been_taken_is_left_longer_than_the_one_before(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """GMS is slower than a proxy before it has patience, and no answer will tell by how much."""
    for number in range(20):
        await register(store, f"chat-{number}", now=clock.now(), spread_ms=0, alias=str(number))
    gms = FakeGms(clock)
    gms.outcomes = {f"chat-{number}": NodeTrouble(Trouble.DISCONNECTED) for number in range(20)}
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="1s", backoff_max="8s"):
        await clock.advance(20)
    pauses: dict[object, list[object]] = {}
    for line in events.of(Event.PING_RETRY):
        pauses.setdefault(line["attempt"], []).append(line["next_ms"])
    for attempt, step in ((1, 1_000), (2, 2_000), (3, 4_000), (4, 8_000)):
        assert pauses[attempt]
        assert all(isinstance(pause, int) and 0.9 * step <= pause <= step for pause in pauses[attempt])


async def test_nothing_makes_a_session_due_while_gms_may_be_at_work_on_its_lost_answer(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A push, a lost Chat Server, an operator: each would send the old key beside the one just being made."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = {"chat-1": NodeTrouble(Trouble.TIMEOUT)}
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="2s") as rig:
        await clock.advance(0.2)
        assert len(gms.pings) == 1
        await store.take_push(read_push(write_push("device-1", {"chatId": "chat-1"})), now=clock.now())
        await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
        rig.wakeup.set()
        await clock.advance(0.7)
        assert len(gms.pings) == 1
        gms.outcomes = {}
        await clock.advance(0.5)
        assert len(gms.pings) == 2


async def test_a_session_is_left_alone_for_as_long_as_gms_may_be_at_work_on_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """A proxy that hangs up after a moment says nothing of the Chat Server behind it, which works on."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = {"chat-1": NodeTrouble(Trouble.DISCONNECTED)}
    gms.perhaps_taken, gms.at_work = True, 9.0
    async with running(store, clock, make_settings, gms=gms, backoff="1s") as rig:
        await clock.advance(0.2)
        assert len(gms.pings) == 1
        await store.take_push(read_push(write_push("device-1", {"chatId": "chat-1"})), now=clock.now())
        rig.wakeup.set()
        await clock.advance(8)
        assert len(gms.pings) == 1
        gms.outcomes = {}
        await clock.advance(2)
        assert len(gms.pings) == 2


async def test_the_backoff_doubles_up_to_its_bound(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    chats = [f"chat-{number}" for number in range(20)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, RetryLater(chat_api.PingFault.STATUS_CODE_1))
    async with running(store, clock, make_settings, gms=gms, backoff="1s", backoff_max="8s"):
        await clock.advance(60)
    pauses: dict[int, list[int]] = {}
    for line in events.of(Event.PING_RETRY):
        attempt, pause = line["attempt"], line["next_ms"]
        assert isinstance(attempt, int)
        assert isinstance(pause, int)
        pauses.setdefault(min(attempt, 5), []).append(pause)
    for attempt, longest in ((1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 8000)):
        assert longest / 2 < max(pauses[attempt]) <= longest
    session = await store.get("chat-0")
    assert session is not None
    assert session.state is SessionState.LIVE


async def test_a_node_that_asks_for_more_time_gets_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = RetryLater(chat_api.PingFault.TOO_MANY_REQUESTS, retry_after=20)
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(19.9)
        assert len(gms.pings) == 1
        await clock.advance(0.2)
        assert len(gms.pings) == 2


@pytest.mark.parametrize(
    "outcome",
    [
        RetryLater(chat_api.PingFault.TOO_MANY_REQUESTS, retry_after=3600),
        RetryLater(chat_api.PingFault.STATUS_CODE_1, retry_after=3600),
        NodeTrouble(chat_api.PingFault.UNAVAILABLE, retry_after=3600),
    ],
    ids=lambda outcome: str(outcome.cause),
)
async def test_a_session_waits_no_longer_than_its_own_backoff_whatever_a_node_asks_for(
    outcome: Outcome, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """What was true for a second must not cost it an hour."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = outcome
    async with running(store, clock, make_settings, gms=gms, backoff="1s", backoff_max="8s"):
        await clock.advance(1)
        assert len(gms.pings) == 1
        gms.outcomes.clear()
        await clock.advance(8)
        assert len(gms.pings) == 2


async def test_a_ping_at_which_the_daemon_itself_fails_is_repeated(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsettled ping would keep its lease, and nobody would ping the session again."""
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    refresh, faults = gms.refresh, [RuntimeError("a fault of our own")]

    async def failing(service: str, tokens: Tokens, position: int | None, *, until: float) -> Answer:
        if faults:
            raise faults.pop()
        return await refresh(service, tokens, position, until=until)

    monkeypatch.setattr(gms, "refresh", failing)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(5)
        assert (await rig.restoration(begun.id)).restored == 1


async def test_a_retry_keeps_the_reason_and_its_place_in_the_restoration(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = RetryLater(chat_api.PingFault.STATUS_CODE_1)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(5)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.reason, session.restoration) == (Reason.RESTORE, begun.id)
        assert session.last_trouble == chat_api.PingFault.STATUS_CODE_1
        assert (await rig.restoration(begun.id)).waiting == 1

        gms.outcomes.clear()
        await clock.advance(40)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.reason, session.restoration, session.attempts) == (Reason.KEEPALIVE, None, 0)
        assert session.last_trouble is None


REFUSED = Refused(
    chat_api.PingFault.STATUS_CODE_2, "HTTP 200, statusCode 2, error 34: no link to Chat Server"
)


INSIST_SECONDS = 120
LONGEST_PAUSE = 30
LONGEST_INSISTING = INSIST_SECONDS + LONGEST_PAUSE + 1


async def test_a_session_to_be_restored_is_tried_again_when_gms_refuses_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """GMS says so, too, while it has lost its Chat Server and has not found the other one."""
    gms = await _refusing(store, clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(INSIST_SECONDS / 2)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.reason, session.restoration) == (Reason.RESTORE, begun.id)
        assert (session.last_trouble, session.trouble_detail) == (REFUSED.cause, REFUSED.detail)
        assert (await rig.restoration(begun.id)).state is RestorationState.RUNNING
        gms.outcomes.clear()
        await clock.advance(LONGEST_INSISTING - INSIST_SECONDS / 2)
        session = await store.get("chat-1")
        assert session is not None
        assert (session.last_trouble, session.trouble_detail, session.refused_since) == (None, None, None)
    retries = events.of(Event.PING_RETRY)
    assert {(line["cause"], line["detail"]) for line in retries} == {(REFUSED.cause, REFUSED.detail)}
    assert events.one(Event.RESTORATION_FINISHED)["restored"] == 1
    assert not events.of(Event.PING_REFUSED)


async def _refusing(store: PromptStore, clock: FakeClock, *, spread_ms: float = FAR_OFF_MS) -> FakeGms:
    """A GMS that refuses the one session there is."""
    await register(store, "chat-1", now=clock.now(), spread_ms=spread_ms)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = REFUSED
    return gms


async def _keepalives(
    count: int, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, gms: FakeGms
) -> None:
    """So many, each sent by a new start, which pulls in what is due too late for the interval."""
    for _ in range(count):
        async with running(store, clock, make_settings, gms=gms):
            await store.pull_in(now=clock.now(), spread_ms=INTERVAL_MS)
            await clock.advance(2)
        await clock.advance((await _due_at(store) - clock.now()) / 1000 - 1)


async def test_a_session_that_gms_goes_on_refusing_is_left_to_its_keepalive_and_that_is_said(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", "chat-2", now=clock.now())
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = REFUSED
    left = _left()
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(LONGEST_INSISTING)
        times = [ping.at for ping in gms.pings if ping.chat_id == "chat-1"]
        assert 1 + INSISTING_TRIES <= len(times) <= 10
        assert times[-1] - times[0] >= INSIST_SECONDS
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert pauses[:4] == sorted(pauses[:4]), "no backoff"
        assert max(pauses) <= LONGEST_PAUSE + 1
        session = await store.get("chat-1")
        assert session is not None
        assert (session.state, session.reason) == (SessionState.LIVE, Reason.KEEPALIVE)
        over = await rig.restoration(begun.id)
        assert (over.restored, over.refused, over.waiting) == (1, 1, 0)
        assert over.state is RestorationState.INCOMPLETE
    refused = events.one(Event.PING_REFUSED)
    assert (refused["cause"], refused["detail"]) == (REFUSED.cause, REFUSED.detail)
    assert events.one(Event.RESTORATION_INCOMPLETE)["refused"] == 1
    assert not events.of(Event.RESTORATION_FINISHED)
    assert _left() - left == 1


def _left() -> float:
    return metrics.REGISTRY.get_sample_value("asyncchatd_sessions_left_total") or 0.0


async def test_other_troubles_take_no_try_of_a_refused_session_away(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "chat-1", now=clock.now())
    gms = FakeGms(clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        gms.outcomes["chat-1"] = NodeTrouble(Trouble.TIMEOUT)
        begun = await rig.restore()
        await clock.advance(200)
        assert len(gms.pings) > 2 * INSISTING_TRIES
        for outcome in (REFUSED, NodeTrouble(Trouble.TIMEOUT), REFUSED):
            gms.outcomes["chat-1"] = outcome
            pings = len(gms.pings)
            until = clock.now() + INSIST_SECONDS * 1000
            # One refusal of each turn: how many more would come in a given time is left to chance.
            while len(gms.pings) == pings or (outcome is not REFUSED and clock.now() < until):
                await clock.advance(1)
        assert (await rig.restoration(begun.id)).waiting == 1, "not refused five times"
        await clock.advance(INSISTING_TRIES * LONGEST_PAUSE)
        assert (await rig.restoration(begun.id)).refused == 1


async def test_what_asks_for_a_refused_session_meanwhile_does_not_shorten_its_tries(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """Chat Server resends a push that is not acknowledged, and each makes the session due."""
    gms = await _refusing(store, clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        for _ in range(INSIST_SECONDS // 10 - 1):
            await clock.advance(10)
            await rig.push("chat-1")
        assert len(gms.pings) > 2 * INSISTING_TRIES
        assert (await rig.restoration(begun.id)).waiting == 1
        await clock.advance(LONGEST_INSISTING)
        assert (await rig.restoration(begun.id)).refused == 1


async def test_a_restart_neither_forgets_nor_repeats_the_tries_of_a_refused_session(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    gms = await _refusing(store, clock)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        await clock.advance(INSIST_SECONDS / 2)
    async with running(store, clock, make_settings, gms=gms) as rig:
        assert (await rig.restoration(begun.id)).waiting == 1
        await clock.advance(LONGEST_INSISTING - INSIST_SECONDS / 2)
        assert (await rig.restoration(begun.id)).refused == 1
    assert 1 + INSISTING_TRIES <= len(gms.pings) <= 10


async def test_a_session_whose_keepalives_gms_refuses_is_pinged_less_and_less_often(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """It may be over and GMS does not say so: each Refresh of a closed chat is expensive. But only GMS ends it,
    and Chat Server removes a client that is silent for a day."""
    gms = await _refusing(store, clock, spread_ms=0)
    interval = INTERVAL_MS / 1000
    await _keepalives(12, store, clock, make_settings, gms)
    assert len(gms.pings) == 12
    pauses = [later.at - earlier.at for earlier, later in pairwise(gms.pings)]
    assert 0.9 * interval <= pauses[0] <= interval + 1
    for earlier, later in pairwise(pauses[:6]):
        assert 1.6 * earlier < later < 2.3 * earlier
    assert 18 * 3600 < max(pauses) < 23 * 3600
    session = await store.get("chat-1")
    assert session is not None
    assert session.state is SessionState.LIVE


@pytest.mark.parametrize("what", ["push", "registration", "answer"])
async def test_what_shows_that_a_refused_session_lives_sets_its_interval_back(
    what: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    gms = await _refusing(store, clock, spread_ms=0)
    await _keepalives(5, store, clock, make_settings, gms)
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(2)
        assert await _due_at(store) > clock.now() + 10 * INTERVAL_MS
        if what == "push":
            await rig.push("chat-1")
        elif what == "registration":
            await register(store, "chat-1", now=clock.now(), spread_ms=INTERVAL_MS)
        else:
            gms.outcomes.clear()
            await make_due(store, Reason.REQUEST, "chat-1", now=clock.now())
            rig.wakeup.set()
        await clock.advance(2)
        assert await _due_at(store) <= clock.now() + INTERVAL_MS
        session = await store.get("chat-1")
        assert session is not None
        # The push's ping was refused, too, and is the first in a row.
        assert (session.refused_since or clock.now()) > clock.now() - 3_000


async def _due_at(store: PromptStore) -> float:
    session = await store.get("chat-1")
    assert session is not None
    return session.due_at


@pytest.mark.slow
async def test_an_ended_session_is_never_pinged_again(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    """The refresh of a closed chat is expensive (protocol section 2, danger 2)."""
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = Ended()
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(1)
        await rig.push("chat-1")
        await rig.restore()
        await clock.advance(INTERVAL_MS / 500)
        assert len(gms.pings) == 1
        session = await store.get("chat-1")
        assert session is not None
        assert (session.state, session.secure_key) == (SessionState.ENDED, None)
    assert events.one(Event.SESSION_ENDED)["chat_id"] == "chat-1"


async def test_another_chats_reply_changes_nothing_and_is_said_loudly(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, events: Events
) -> None:
    await register(store, "chat-1", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes["chat-1"] = NodeTrouble(chat_api.PingFault.FOREIGN_REPLY)
    async with running(store, clock, make_settings, gms=gms):
        await clock.advance(0.02)
        gms.outcomes.clear()
        await clock.advance(2)
    assert events.of(Event.PING_FOREIGN_REPLY)[0]["chat_id"] == "chat-1"
    assert {ping.tokens for ping in gms.pings} == {tokens("chat-1")}
    assert len(gms.pings) == 2


# -- a transcript that is too long an answer ---------------------------------------------------------


TOO_LARGE = NodeTrouble(Trouble.REPLY_TOO_LARGE)


class LongTranscript(FakeGms):
    """Whose answer is too large wherever more than the last `bearable` positions are asked for."""

    def __init__(self, clock: FakeClock, bearable: tuple[int | None, ...], key: str | None = None) -> None:
        super().__init__(clock)
        self.bearable = bearable
        self.key = key

    async def refresh(
        self, service: str, tokens: Tokens, position: int | None, *, until: float = math.inf
    ) -> Answer:
        news = TokenNews(tokens.chat_id, tokens.user_id, self.key or tokens.secure_key, tokens.alias)
        alive = Alive(Reply(0, news, 9_000))
        self.outcomes[tokens.chat_id] = alive if position in self.bearable else TOO_LARGE
        return await super().refresh(service, tokens, position, until=until)


@pytest.mark.parametrize("position", [None, 3])
@pytest.mark.parametrize(
    ("bearable", "asked"), [((-1, 0, 9_000), [-1, 9_000]), ((0, 9_000), [-1, 0, 9_000])], ids=["last", "none"]
)
async def test_a_transcript_that_is_too_long_is_not_asked_for_again(
    position: int | None,
    bearable: tuple[int, ...],
    asked: list[int],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
) -> None:
    """The position is learned without it; then the Refresh that acknowledges and restores goes out, for the same
    reason and in the same restoration."""
    await store.register([registration("chat-1", position=position)], now=clock.now(), spread_ms=FAR_OFF_MS)
    gms = LongTranscript(clock, bearable)
    async with running(store, clock, make_settings, gms=gms) as rig:
        begun = await rig.restore()
        for _ in range(20):
            await clock.advance(0.5)
        assert [ping.position for ping in gms.pings] == [position, *asked]
        assert gms.most_at_once["chat-1"] == 1
        assert (await rig.restoration(begun.id)).restored == 1
    session = await store.get("chat-1")
    assert session is not None
    assert (session.next_position, session.reason, session.last_trouble) == (9_000, Reason.KEEPALIVE, None)


async def test_a_key_that_comes_with_the_position_is_the_one_to_go_on_with(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await store.register([registration("chat-1", position=None)], now=clock.now(), spread_ms=0)
    gms = LongTranscript(clock, (-1, 9_000), key="key-2")
    async with running(store, clock, make_settings, gms=gms):
        for _ in range(20):
            await clock.advance(0.5)
    assert [ping.tokens.secure_key for ping in gms.pings] == ["key-of-chat-1", "key-of-chat-1", "key-2"]


async def test_what_an_answer_said_that_was_too_large_may_be_a_new_key(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """So the position is asked for no sooner than any request is sent again that may have been taken."""
    chats = [f"chat-{number}" for number in range(20)]
    await store.register([registration(chat, position=None) for chat in chats], now=clock.now(), spread_ms=0)
    gms = LongTranscript(clock, (-1, 9_000))
    gms.perhaps_taken = True
    async with running(store, clock, make_settings, gms=gms, backoff="10s", backoff_max="10s"):
        for _ in range(60):
            await clock.advance(0.5)
    for chat in chats:
        first, second, *_ = [ping.at for ping in gms.pings if ping.chat_id == chat]
        assert second - first > 4.9


# -- what a reply shows of the transcript --------------------------------------------------------------

SHOWN: dict[str, object] = {"index": 1, "type": "Message", "text": "shown"}
UNTELLABLE: dict[str, object] = {"index": 2, "type": "Message", "text": "\ud800", "number": math.nan}
"""No JSON has such a number."""


@pytest.mark.parametrize(
    ("told", "messages", "indexes", "cut"),
    [
        ({EventKind.CHAT}, [SHOWN], [1], False),
        ({EventKind.CHAT}, [SHOWN, UNTELLABLE], [1], True),
        ({EventKind.CHAT}, [SHOWN, {"type": "Message"}], [1], False),
        ({EventKind.CHAT}, [], [], False),
        ({EventKind.LOST}, [SHOWN, UNTELLABLE], [], False),
    ],
    ids=["all", "one that cannot be told", "none of the transcript", "nothing", "nobody is told"],
)
def test_a_reply_is_told_where_somebody_wants_it_and_what_it_lacks_is_known(
    told: set[EventKind],
    messages: list[dict[str, object]],
    indexes: list[int],
    cut: bool,
    clock: FakeClock,
    make_settings: MakeSettings,
) -> None:
    shown = tuple(event for event in map(read_event, messages) if event is not None)
    judge = Judge(make_settings(), clock, lambda: told)
    alive = Alive(Reply(0, events=shown, messages=tuple(messages)))
    claim = Claim("chat-1", "service", tokens("chat-1"), None, Reason.KEEPALIVE, 0.0, 0, None, 1, 0)
    settlement = judge.settlement(claim, Answer(alive, "http://gms-1/genesys", NOON, 0.1))
    assert ([event.index for event in settlement.events], settlement.cut) == (indexes, cut)
    # Of an end what the reply shows is told as well.
    ended = judge.settlement(claim, Answer(Ended("", tuple(messages)), "http://gms-1/genesys", NOON, 0.1))
    assert [event.index for event in ended.events] == indexes


@pytest.mark.parametrize(
    ("reason", "restoration", "verdict"),
    [
        (Reason.RESTORE, None, Verdict.RETRY),
        (Reason.KEEPALIVE, 1, Verdict.RETRY),
        (Reason.KEEPALIVE, None, Verdict.REFUSED),
    ],
)
def test_only_a_session_that_is_to_be_restored_insists(
    reason: Reason, restoration: int | None, verdict: Verdict, clock: FakeClock, make_settings: MakeSettings
) -> None:
    claim = Claim("chat-1", "service", tokens("chat-1"), None, reason, 0.0, 0, restoration, 1, 0)
    judge = Judge(make_settings(), clock, set[EventKind])
    assert judge.settlement(claim, Answer(REFUSED, "http://gms-1/genesys", NOON, 0.1)).verdict is verdict


@pytest.mark.parametrize(
    ("backoff", "at_work", "held"), [("1s", 0.0, 0.5), ("20s", 0.0, AT_WORK_SECONDS), ("20s", 9.0, 9.0)]
)
def test_a_push_waits_for_half_a_backoff_but_not_long_unless_gms_may_be_at_work(
    backoff: str, at_work: float, held: float, clock: FakeClock, make_settings: MakeSettings
) -> None:
    judge = Judge(make_settings(restoration={"backoff": backoff}), clock, set[EventKind])
    lost = Answer(NodeTrouble(Trouble.TIMEOUT), "http://gms-1/genesys", NOON, 0.1, True, at_work)
    assert judge.held_for(lost) == held


# -- the judgement alone -------------------------------------------------------------------------------

GMS = "http://gms-1/genesys"


def claimed(
    *, reason: Reason = Reason.RESTORE, attempts: int = 0, refusals: int = 0, refused_ms: int | None = None
) -> Claim:
    since = None if refused_ms is None else NOON - refused_ms
    return Claim(
        *("chat-1", "service", tokens("chat-1"), 7, reason, 5.0, attempts, None, 1, 0),
        refusals=refusals,
        refused_since=since,
    )


def pauses(judge: Judge, claim: Claim, answer: Answer) -> list[float]:
    """Milliseconds until the session is due again, as chance has it."""
    return [judge.settlement(claim, answer).due_at - NOON for _ in range(300)]


@pytest.mark.parametrize(
    ("answer", "verdict", "trouble"),
    [
        (Answer(Ended(), GMS, NOON, 0.1), Verdict.ENDED, None),
        (Answer(Ended("gone"), GMS, NOON, 0.1), Verdict.ENDED, "gone"),
        (Answer(NodeTrouble(Trouble.NO_NODE), None, NOON, 0.0), Verdict.RELEASED, None),
        (Answer(NodeTrouble(Trouble.TOO_LATE), GMS, NOON, 0.0), Verdict.RELEASED, None),
        (Answer(Refused("bad_tokens"), None, NOON, 0.0), Verdict.REFUSED, "bad_tokens"),
        (Answer(Refused("status_code_2"), GMS, NOON, 0.1), Verdict.RETRY, "status_code_2"),
    ],
    ids=["an end", "an end that is explained", "nobody to ask", "too late", "not sent", "GMS refuses"],
)
def test_what_gms_said_and_what_it_was_not_asked_are_told_apart(
    answer: Answer, verdict: Verdict, trouble: str | None, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """What this daemon cannot send it can as little a second later."""
    settlement = Judge(make_settings(), clock, set[EventKind]).settlement(claimed(), answer)
    assert (settlement.verdict, settlement.trouble) == (verdict, trouble)
    if verdict is Verdict.RELEASED:
        assert settlement.due_at == claimed().due_at


@pytest.mark.parametrize(
    ("refusals", "refused_ms", "verdict"),
    [
        (INSISTING_TRIES - 1, 31_000, Verdict.RETRY),
        (INSISTING_TRIES, 30_999, Verdict.RETRY),
        (INSISTING_TRIES, 31_000, Verdict.REFUSED),
    ],
)
def test_a_refused_session_insists_for_five_tries_and_for_all_the_time_there_is(
    refusals: int, refused_ms: int, verdict: Verdict, clock: FakeClock, make_settings: MakeSettings
) -> None:
    judge = Judge(make_settings(restoration={"insist": "31s"}), clock, set[EventKind])
    claim = claimed(refusals=refusals, refused_ms=refused_ms)
    assert judge.settlement(claim, Answer(REFUSED, GMS, NOON, 0.1)).verdict is verdict


@pytest.mark.parametrize(
    ("insist", "refusals", "least", "most"),
    [
        ("31s", 0, 1_000, 1_250),
        ("31s", 1, 2_000, 2_500),
        ("31s", 4, 16_000, 20_000),
        ("31s", 5, 16_000, 20_000),
        ("310s", 4, 24_000, 30_000),
    ],
)
def test_tries_of_a_refused_session_share_the_time_and_none_waits_longer_than_a_backoff(
    insist: str, refusals: int, least: float, most: float, clock: FakeClock, make_settings: MakeSettings
) -> None:
    judge = Judge(make_settings(restoration={"insist": insist}), clock, set[EventKind])
    waits = pauses(judge, claimed(refusals=refusals, refused_ms=1), Answer(REFUSED, GMS, NOON, 0.1))
    assert least <= min(waits) <= max(waits) <= most
    assert max(waits) - min(waits) >= (most - least) / 2


@pytest.mark.parametrize(
    ("attempts", "answer", "least", "most"),
    [
        (0, Answer(RetryLater("status_code_1"), GMS, NOON, 0.1), 0, 1_000),
        (2, Answer(RetryLater("status_code_1"), GMS, NOON, 0.1), 0, 4_000),
        (9, Answer(RetryLater("status_code_1"), GMS, NOON, 0.1), 0, 30_000),
        (0, Answer(RetryLater("unavailable", 7.0), GMS, NOON, 0.1), 7_000, 7_000),
        (0, Answer(RetryLater("unavailable", 31.0), GMS, NOON, 0.1), 30_000, 30_000),
        (2, Answer(NodeTrouble(Trouble.TIMEOUT), GMS, NOON, 0.1, True), 3_600, 4_000),
        (0, Answer(NodeTrouble(Trouble.TIMEOUT), GMS, NOON, 0.1, True, 9.0), 9_000, 9_000),
        (0, Answer(NodeTrouble(Trouble.TIMEOUT), GMS, NOON, 0.1, False, 9.0), 0, 1_000),
    ],
)
def test_how_long_a_session_waits_for_its_next_try(
    attempts: int,
    answer: Answer,
    least: float,
    most: float,
    clock: FakeClock,
    make_settings: MakeSettings,
) -> None:
    judge = Judge(make_settings(), clock, set[EventKind])
    waits = pauses(judge, claimed(attempts=attempts), answer)
    assert least <= min(waits) <= max(waits) <= most
    assert min(waits) - least <= 0.1 * most
    assert most - max(waits) <= 0.1 * most


def test_less_of_a_transcript_is_asked_for_only_where_it_was_too_large(
    clock: FakeClock, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "REMEMBERED", 1)
    judge = Judge(make_settings(), clock, set[EventKind])
    too_large = Answer(NodeTrouble(Trouble.REPLY_TOO_LARGE), GMS, NOON, 0.1)
    asked = []
    for answer in (Answer(NodeTrouble(Trouble.TIMEOUT), GMS, NOON, 0.1), too_large, too_large, too_large):
        judge.settlement(claimed(), answer)
        asked.append(judge.position(claimed()))
    assert asked == [7, ONLY_THE_LAST, NONE_AT_ALL, NONE_AT_ALL]
    # That of another session takes its place, and only the last ones are remembered.
    other = replace(claimed(), chat_id="chat-2")
    judge.settlement(other, too_large)
    assert (judge.position(claimed()), judge.position(other)) == (7, ONLY_THE_LAST)


# -- what a node says of itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "counted"),
    [
        *[
            (fault, Landing.UNSENT)
            for fault in (PingFault.NOT_FOUND, PingFault.FORBIDDEN, PingFault.REDIRECT)
        ],
        *[
            (fault, Landing.FAILED)
            for fault in (PingFault.UNAVAILABLE, PingFault.SERVER_ERROR, Trouble.TIMEOUT)
        ],
        *[
            (fault, Landing.FAILED)
            for fault in (PingFault.REQUEST_TIMEOUT, PingFault.BAD_GATEWAY, Trouble.DISCONNECTED)
        ],
    ],
)
def test_what_a_node_says_of_itself_says_nothing_of_how_much_gms_can_bear(
    cause: str, counted: Landing
) -> None:
    """A node that is redeployed answers 404 at once. Its refusals cut the limit to 1, beside a node that was well."""
    assert landing(Answer(NodeTrouble(cause), "http://gms-1/genesys", NOON, 0.1)) is counted
