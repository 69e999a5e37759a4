"""Chat Servers under suspicion, by the pings of their sessions."""

from __future__ import annotations

import pytest
from conftest import FakeClock, MakeSettings, PromptStore, register

from asyncchatd.gms.trouble import Trouble
from asyncchatd.wire import chat_api
from asyncchatd.wire.chat_api.outcome import NodeTrouble, RetryLater

from .rig import FakeGms, running

pytestmark = pytest.mark.usefixtures("events")


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
