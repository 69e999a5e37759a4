"""Chat Servers under suspicion, by the pings of their sessions."""

from __future__ import annotations

import pytest
from conftest import FakeClock, MakeSettings, PromptStore, register
from worker.rig import FakeGms, running

from asyncchatd.gms.pacing import Landing
from asyncchatd.gms.trouble import Trouble
from asyncchatd.sending.suspects import Aliases
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api.outcome import NodeTrouble, RetryLater

pytestmark = pytest.mark.usefixtures("events")


@pytest.mark.slow
async def test_a_hanging_chat_server_does_not_hold_up_the_sessions_of_the_others(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    """GMS hangs for its sessions alone; they would fill the in-flight limit."""
    hanging = [f"hangs-{number}" for number in range(100)]
    healthy = [f"well-{number}" for number in range(100)]
    for first, second in zip(hanging, healthy, strict=True):
        await register(store, first, now=clock.now(), spread_ms=0, alias="118")
        await register(store, second, now=clock.now(), spread_ms=0, alias="117")
    gms = FakeGms(clock)
    gms.hang_seconds = dict.fromkeys(hanging, 10.0)
    gms.outcomes = dict.fromkeys(hanging, NodeTrouble(Trouble.TIMEOUT))
    async with running(store, clock, make_settings, gms=gms, max_in_flight=20) as rig:
        await clock.advance(45)
        assert set(healthy) <= set(gms.asked())
        assert set(rig.suspected) == {"118"}
    assert max(gms.most_at_once.values()) == 1


async def test_three_unanswered_pings_in_a_row_raise_a_suspicion(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    await register(store, "a", "b", now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys("abc", RetryLater(chat_api.PingFault.STATUS_CODE_1))
    async with running(store, clock, make_settings, gms=gms, backoff="1h", backoff_max="1h") as rig:
        await clock.advance(1)
        assert rig.suspected == []
        await register(store, "c", now=clock.now(), spread_ms=0)
        rig.wakeup.set()
        await clock.advance(1)
        assert rig.suspected == ["117"]


async def test_a_node_that_cannot_be_reached_is_no_evidence_against_a_chat_server(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings
) -> None:
    chats = [f"chat-{number}" for number in range(10)]
    await register(store, *chats, now=clock.now(), spread_ms=0)
    gms = FakeGms(clock)
    gms.outcomes = dict.fromkeys(chats, NodeTrouble(Trouble.CONNECT))
    async with running(store, clock, make_settings, gms=gms) as rig:
        await clock.advance(10)
        assert rig.suspected == []


# -- the evidence itself ---------------------------------------------------------------------------------


def nobody(alias: str) -> None:
    """Nobody looks who is suspected."""


def strike(aliases: Aliases, alias: str, times: int = 3) -> None:
    for _ in range(times):
        aliases.sent(alias)
        aliases.landed(alias, Landing.FAILED)


def test_a_server_under_suspicion_has_half_of_the_limit_and_never_less_than_one(clock: FakeClock) -> None:
    aliases = Aliases(nobody, clock)
    strike(aliases, "118", 2)
    aliases.sent("118")
    aliases.sent("118")
    assert aliases.has_room("118", 4)
    aliases.landed("118", Landing.FAILED)
    assert aliases.has_room("118", 4)
    aliases.sent("118")
    assert not aliases.has_room("118", 4)
    assert aliases.has_room("118", 6)
    assert aliases.has_room("117", 4)
    aliases.landed("118", Landing.ANSWERED)
    aliases.sent("118")
    assert aliases.has_room("118", 4), "an answer ends the suspicion"
    strike(aliases, "119")
    assert aliases.has_room("119", 1)
    aliases.sent("119")
    assert not aliases.has_room("119", 1)


def test_several_pings_without_an_answer_for_two_seconds_are_evidence(clock: FakeClock) -> None:
    aliases = Aliases(nobody, clock)
    for _ in range(2):
        aliases.sent("118")
    clock.stall(3)
    assert aliases.has_room("118", 2), "two are not several"
    aliases.sent("118")
    assert not aliases.has_room("118", 2)
    aliases.sent("118")
    aliases.landed("118", Landing.BUSY)
    clock.stall(2)
    assert aliases.has_room("118", 2)
    clock.stall(0.1)
    assert not aliases.has_room("118", 2)


def test_time_in_which_no_ping_was_on_its_way_is_no_silence(clock: FakeClock) -> None:
    aliases = Aliases(nobody, clock)
    aliases.sent("118")
    aliases.landed("118", Landing.ANSWERED)
    clock.stall(10)
    for _ in range(3):
        aliases.sent("118")
    assert aliases.has_room("118", 2)


def test_a_server_is_alone_in_trouble_while_another_was_answered_in_the_last_half_minute(
    clock: FakeClock,
) -> None:
    aliases = Aliases(nobody, clock)
    strike(aliases, "118")
    assert not aliases.is_alone("118")
    aliases.sent("117")
    aliases.landed("117", Landing.ANSWERED)
    aliases.sent("119")
    aliases.landed("119", Landing.ANSWERED)
    assert aliases.is_alone("118")
    assert not aliases.is_alone("117")
    clock.stall(29.9)
    assert aliases.is_alone("118")
    clock.stall(0.1)
    assert not aliases.is_alone("118")
    aliases.sent("117")
    aliases.landed("117", Landing.ANSWERED)
    strike(aliases, "117", 1)
    assert not aliases.is_alone("118"), "the only one that was answered is in trouble, too"


def test_what_hangs_beyond_its_share_is_stuck_while_others_are_answered(clock: FakeClock) -> None:
    aliases = Aliases(nobody, clock)
    for _ in range(5):
        aliases.sent("118")
    clock.stall(3)
    assert aliases.stuck(4) == 0
    aliases.sent("117")
    aliases.landed("117", Landing.ANSWERED)
    assert aliases.stuck(4) == 3
    assert aliases.stuck(10) == aliases.stuck(12) == 0
    aliases.sent("119")
    aliases.landed("119", Landing.ANSWERED)
    for _ in range(5):
        aliases.sent("117")
    assert aliases.stuck(4) == 3, "those of a server that is not under suspicion are not stuck"


def test_a_suspicion_is_raised_again_by_every_third_ping_and_ten_times_at_most(clock: FakeClock) -> None:
    raised: list[str] = []
    aliases = Aliases(raised.append, clock)
    for count in range(1, 40):
        strike(aliases, "118", 1)
        assert len(raised) == min(count // 3, 10)
    aliases.sent("118")
    aliases.landed("118", Landing.ANSWERED)
    strike(aliases, "118")
    aliases.sent("118")
    aliases.landed("118", Landing.UNSENT)
    assert raised == ["118"] * 11
