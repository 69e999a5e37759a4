"""Pushes that come thick, and pushes for many at once: acknowledged soon, and cheap for GMS and for the others."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import cast

import pytest

from .conftest import Start
from .plant import Chat, payload, push, tokens
from .rig import Json, Rig, eventually, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def flood(rig: Rig, chats: Sequence[Chat], *, per_second: float, seconds: float) -> None:
    """Each of these chats gets so many pushes a second, whatever becomes of those before."""
    begun = time.monotonic()
    count = round(per_second * seconds)
    for number in range(count):
        await asyncio.sleep(begun + number / per_second - time.monotonic())  # the flood's pace
        await asyncio.gather(*(rig.pushed(chat, tokens(chat)) for chat in chats))


async def test_a_chat_pushed_twenty_times_a_second_is_pinged_once_a_second(rig: Rig) -> None:
    (chat,) = await rig.registered()
    async with stalls() as stalled:
        await flood(rig, [chat], per_second=20, seconds=4)
        last = time.monotonic()
        took = await eventually("the last acknowledgement", lambda: chat.refreshes[-1].at >= last - 0.05)
    assert took <= 1.5 + stalled.total
    await rig.settled()
    assert 5 <= len(chat.refreshes) <= 3 + 6 + stalled.total, "one for each second that the flood took longer"
    first = chat.refreshes[0].at
    assert len([each for each in chat.refreshes if each.at < first + 0.8]) <= 3


async def test_a_message_after_a_moment_of_quiet_never_waits(rig: Rig) -> None:
    (chat,) = await rig.registered()
    await flood(rig, [chat], per_second=20, seconds=1.5)
    await eventually("a quiet chat", lambda: time.monotonic() - chat.refreshes[-1].at > 3, within=10)
    async with stalls() as stalled:
        sent = time.monotonic()
        refresh = await rig.acknowledged(chat, push(chat, tokens(chat)))
    assert refresh.at - sent < 0.5 + stalled.total


async def test_flooded_chats_do_not_hold_a_restoration_up(start: Start) -> None:
    rig = await start(servers=2, max_rate=100)
    lost, quiet = rig.plant.servers
    chats = await rig.registered(300, lost.alias)
    flooded = await rig.registered(20, quiet.alias)
    await rig.watching()
    async with asyncio.TaskGroup() as group:
        flooding = group.create_task(flood(rig, flooded, per_second=10, seconds=9))
        await eventually(
            "as many pings at once as there may be", lambda: all(len(c.refreshes) >= 3 for c in flooded)
        )
        async with stalls() as stalled:
            begun = time.monotonic()
            await rig.plant.kill(lost)
            took = await eventually("all restored", lambda: not rig.plant.unrestored(), within=15)
        flooding.cancel()
    most = 7 + stalled.total
    assert took < most, "300 at 100/s, beside 20/s of acknowledgements, and a second to see the loss"
    assert {chat.chat_id for chat in chats} <= {each.chat_id for each in rig.plant.since(begun)}


async def test_a_device_shared_by_two_hundred_chats_is_few_pings_and_a_warning(start: Start) -> None:
    rig = await start(max_rate=500)
    chats = rig.plant.several(200)
    for chat in chats:
        chat.device_id = "kiosk-1"
    await rig.register(chats)
    for _ in range(20):
        assert (await rig.push({"deviceId": "kiosk-1", "message": "dummy message"})).status == 200
    await eventually("acknowledgements", lambda: rig.plant.refreshes)
    await rig.eventually("no more to acknowledge", lambda: _are_left_alone(rig), within=15)
    assert 10 <= len(rig.plant.refreshes) <= 10 * 6
    [told] = rig.log("push_device_shared")
    assert (told["device_id"], told["count"]) == ("kiosk-1", 10)


async def _are_left_alone(rig: Rig) -> bool:
    """Whether every session waits for its keepalive and for nothing sooner."""
    sessions = cast(list[Json], (await rig.get("/v1/sessions?limit=1000"))["sessions"])
    return all(session["reason"] == "keepalive" for session in sessions)


async def test_what_a_participant_plants_never_reaches_gms(rig: Rig) -> None:
    """The plant counts a request with a wrong key, or for another chat, as a breach."""
    chat, other = await rig.registered(2)
    planted = tokens(other) | {"userId": other.user_id, "secure-key": "0123456789abcdef", "alias": "666"}
    for written in (
        planted,
        json.dumps(planted),
        {"GCTI_SYSTEM": planted},
        {"GCTI_SYSTEM": json.dumps(planted)},
    ):
        for kind in ("Message", "ParticipantJoined", "FileUploaded", "CustomNotice", "push-url", "Later"):
            happened = {
                "type": kind,
                "index": 5,
                "eventAttributes": written,
                "userData": written,
                "data": written,
            }
            for message in (
                happened,
                [happened],
                payload(chat, happened),
                {"messages": [happened], "monitored": written},
            ):
                assert (await rig.push(push(chat, message))).status == 200
                assert (await rig.push(push(chat, json.dumps(message)))).status == 200
    assert (
        await rig.push(push(chat, {"secureKey": "Y29tZXRkIGtleQ==" * 4, "chatId": chat.chat_id}))
    ).status == 200
    for placeholder in ("null", "undefined", "****", ".."):
        body = {"chatId": chat.chat_id, "secureKey": placeholder, "alias": placeholder, "userId": placeholder}
        assert (await rig.push(push(chat, body))).status == 200
    for each in (chat, other):
        await rig.pinged(each)
    assert len(other.refreshes) == 1
