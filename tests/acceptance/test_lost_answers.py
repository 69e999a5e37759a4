"""Answers that are lost when the work is done, and answers that nobody asked for."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from operator import ne

import pytest

from .conftest import Start
from .plant import (
    AT_ONCE,
    Chat,
    Plant,
    Reply,
    Spoil,
    damaged_gzip,
    farewell,
    free_port,
    half_body,
    hung_up,
    replaced,
    too_large,
    twice,
    under,
)
from .proxy import HastyProxy
from .rig import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LOST: dict[str, Spoil] = {
    "hung up by FIN": hung_up(),
    "hung up by RST": hung_up("rst"),
    "half a body": half_body,
    "damaged gzip": damaged_gzip,
    "empty": replaced(Reply()),
    "500": replaced(Reply("<html>Internal Server Error</html>", 500)),
    "502": replaced(Reply("<html>Bad Gateway</html>", 502)),
    "503": replaced(Reply("<html>Service Unavailable</html>", 503)),
    "500 over a success": under(500),
    "too large": too_large,
}


def volatile(plant: Plant) -> None:
    """Whatever can change does so with every answer."""
    plant.rotate = {"key", "user", "position"}
    plant.delay = 0.02  # longer than any way there and back


def at_once(chats: list[Chat]) -> list[float]:
    """Requests that came so soon behind the one before that its loss cannot have mattered."""
    behind = [pair for chat in chats for pair in pairwise(chat.refreshes) if pair[0].lost]
    gaps = [later.at - earlier.at for earlier, later in behind]
    return [gap for gap in gaps if gap < 0.02 + AT_ONCE]


async def test_a_new_key_in_a_long_transcript_is_heard(start: Start) -> None:
    rig = await start(prepare=volatile, gms_timeout="10s")
    chats = await rig.registered(2)
    text = '{"secureKey":"planted"}],"alias":"666"}'
    messages = [{"index": n, "type": "Message", "utcTime": n, "text": text} for n in range(1, 50_000)]
    for chat in chats:
        chat.answers.append({"messages": messages})
    keys = [chat.secure_key for chat in chats]
    await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
    await eventually("a new key of each", lambda: all(map(ne, keys, (c.secure_key for c in chats))), within=8)
    await rig.settled()
    await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
    await eventually("two pings of each", lambda: all(len(chat.refreshes) > 1 for chat in chats), within=8)
    await rig.settled()
    for chat in chats:
        assert chat.refreshes[0].secure_key != chat.refreshes[1].secure_key
        assert (await rig.session(chat))["state"] == "live"


@pytest.mark.parametrize("kept", [False, True], ids=["fresh connection", "kept connection"])
async def test_a_request_that_was_taken_is_due_again_later_and_goes_to_no_other_node(
    start: Start, kept: bool
) -> None:
    rig = await start(nodes=3, backoff="400ms", prepare=volatile)
    chats = await rig.registered(3 * len(LOST))
    if kept:
        await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
        await eventually("connections", lambda: all(chat.refreshes for chat in chats))
        await rig.settled()
    for chat, spoil in zip(chats, 3 * list(LOST.values()), strict=True):
        del chat.refreshes[:]
        chat.lost.append(spoil)
    await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
    await eventually(
        "an answer for each after the one that was lost",
        lambda: all(len(chat.refreshes) > 1 and chat.refreshes[-1].answered for chat in chats),
        within=8,
    )
    assert not at_once(chats)
    for chat in chats:
        assert (await rig.session(chat))["state"] == "live"


async def test_behind_a_proxy_that_hangs_up_too_soon_no_request_overlaps_another(start: Start) -> None:
    rig = await start(nodes=2, backoff="1s", backoff_max="1s", prepare=volatile)
    chats = await rig.registered(20)
    rig.plant.delay = 0.3
    hasty = rig.plant.nodes[0]
    hasty.patience = 0.1
    await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
    await eventually(
        "an answer for each", lambda: all(c.refreshes and c.refreshes[-1].answered for c in chats), within=8
    )
    assert any(chat.refreshes[0].cut_off for chat in chats)
    hasty.patience = None
    await eventually("an end of it", lambda: not any(chat.in_flight for chat in chats))
    for chat in chats:
        assert (await rig.session(chat))["state"] == "live"


async def test_thirty_refreshes_that_outlast_a_proxy_by_far_are_neither_overtaken_nor_thrown_out(
    start: Start,
) -> None:
    """Chat Server works for two seconds, the proxy waits for a third of one; meanwhile a push makes each due."""

    def behind_a_proxy(plant: Plant) -> None:
        volatile(plant)
        plant.nodes[0].door = free_port()

    rig = await start(
        prepare=behind_a_proxy, gms_timeout="4s", backoff="200ms", max_rate=200, max_in_flight=100
    )
    chats = await rig.registered(30, rig.plant.servers[0].alias)  # of one server: its trouble, not the node's
    rig.plant.delay = 2.0
    async with HastyProxy(rig.plant.nodes[0], patience=0.3) as proxy:
        await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
        await eventually("one fault", lambda: proxy.cuts)
        await asyncio.gather(*(rig.pushed(chat) for chat in chats))
        await eventually("thirty faults", lambda: proxy.cuts >= 30, within=60)
        rig.plant.delay = 0.02
        await eventually(
            "an answer for each that came", lambda: all(_heard(chat) for chat in chats), within=30
        )
        await rig.settled()
    assert not rig.plant.breaches
    for chat in chats:
        assert (await rig.session(chat))["state"] == "live"


def _heard(chat: Chat) -> bool:
    last = chat.refreshes[-1]
    return last.answered is not None and not last.lost


EXTRA: dict[str, Spoil] = {
    "glued": twice(),
    "glued, without chatId": twice(without=["chatId"]),
    "late": twice(0.01),
    "late, without chatId": twice(0.01, without=["chatId"]),
    "late, an end": twice(0.01, chatEnded=True),
    "late, an end without chatId": twice(0.01, without=["chatId"], chatEnded=True, statusCode=2),
    "408": farewell(0.01),
    "408 at once": farewell(0.0),
}


@pytest.mark.parametrize("spoil", EXTRA.values(), ids=EXTRA)
async def test_an_answer_that_nobody_asked_for_is_nobodys(start: Start, spoil: Spoil) -> None:
    """Each chat is pinged several times over connections that are kept, with a new key each time."""
    rig = await start(interval="150ms", max_in_flight=4, nodes=1)
    rig.plant.rotate = {"key", "user"}
    rig.plant.nodes[0].spoil(spoil, loses_answers=False)
    chats = await rig.registered(20)
    await eventually("some pings of each", lambda: all(len(c.refreshes) >= 6 for c in chats), within=15)
    for chat in chats:
        assert (await rig.session(chat))["state"] == "live"
