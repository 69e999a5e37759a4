"""Silence is never longer than the interval, and never one request too many."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from .conftest import Start
from .plant import Chat
from .rig import Rig, eventually, never, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SLACK = 0.35
"""What two busy cores may add to a due time, in seconds."""


def _gaps(chat: Chat, start: float) -> list[float]:
    times = [start, *(seen.at for seen in chat.refreshes)]
    return [later - earlier for earlier, later in pairwise(times)]


async def test_every_session_is_pinged_within_the_interval_again_and_again(start: Start) -> None:
    rig = await start(interval="1s")
    rig.plant.rotate = {"position"}
    async with stalls() as stalled:
        registered = time.monotonic()
        chats = await rig.registered(100)
        await eventually("three pings of each", lambda: all(len(c.refreshes) >= 3 for c in chats), within=6)
    took = time.monotonic() - registered
    worst = max(max(_gaps(chat, registered)) for chat in chats)
    assert worst <= 1.0 + SLACK + stalled.total, f"a silence of {worst:.2f} s"
    most = max(len(chat.refreshes) for chat in chats)
    assert most <= 2 * took + 1, f"{most} pings of one session in {took:.1f} s"


async def test_sessions_registered_together_do_not_come_due_together(start: Start) -> None:
    rig = await start(interval="2s")
    async with stalls() as stalled:
        registered = time.monotonic()
        chats = await rig.registered(200)
        await eventually("a ping of each", lambda: all(chat.refreshes for chat in chats), within=4)
    first = [chat.refreshes[0].at - registered for chat in chats]
    quarters = [sum(1 for at in first if n / 2 <= at < (n + 1) / 2) for n in range(4)]
    assert min(quarters) >= 20, f"200 first pings by half second: {quarters}"
    assert rig.plant.peak(0.1) <= 40 + 100 * stalled.longest, (
        "more than came together while nothing could run"
    )


async def test_a_session_registered_anew_is_not_pinged_at_once(start: Start) -> None:
    rig = await start(interval="1h")
    chats = await rig.registered(20)
    await never("a ping", lambda: any(chat.refreshes for chat in chats), during=0.5)


async def test_an_answered_refresh_counts_as_the_keepalive(start: Start) -> None:
    rig = await start(interval="1200ms")
    (chat,) = await rig.registered()
    begun = time.monotonic()
    while time.monotonic() - begun < 2.4:
        await rig.pinged(chat)
        await asyncio.sleep(0.15)
    asked = sum(1 for _ in chat.refreshes)
    assert asked <= 2.4 / 0.15 + 1 + 2, f"{asked} requests: keepalives went on beside the answered pings"


async def test_tokens_that_rotate_in_every_reply_are_followed(start: Start) -> None:
    rig = await start(interval="150ms", servers=3)
    rig.plant.rotate = {"key", "alias", "user", "position"}
    rig.plant.delay = 0.02
    chats = await rig.registered(50)
    await eventually("ten pings of each", lambda: all(len(c.refreshes) >= 10 for c in chats), within=10)
    assert not rig.plant.breaches, rig.plant.evidence


async def test_never_two_requests_of_one_session_in_flight(start: Start) -> None:
    """Answers slower than the interval, pings asked for and pushes meanwhile."""
    rig = await start(interval="100ms")
    rig.plant.rotate = {"key"}
    rig.plant.delay = 0.25
    chats = await rig.registered(20)
    for _ in range(4):
        await asyncio.gather(*(_disturb(rig, chat) for chat in chats))
        await asyncio.sleep(0.15)
    await eventually("four pings of each", lambda: all(len(c.refreshes) >= 4 for c in chats))
    assert rig.plant.breaches["overlapping"] == 0


async def _disturb(rig: Rig, chat: Chat) -> None:
    await rig.pushed(chat)
    await rig.ask_ping(chat)


async def test_the_position_of_the_last_reply_is_used_whatever_the_registration_said(start: Start) -> None:
    rig = await start()
    (chat,) = await rig.registered()
    for position in (4, 9, 10, 2_000_000):
        chat.answers.append({"nextPosition": position})
        await rig.pinged(chat)
    await rig.pinged(chat)
    chat.answers.append({"nextPosition": ...})
    await rig.pinged(chat)
    assert (await rig.pinged(chat)).position == "2000000"
