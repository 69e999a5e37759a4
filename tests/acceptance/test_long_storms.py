"""Storms on real sockets in which more than one thing goes wrong: the restoration goes on, its counts stay true,
no session is forgotten, and none is pinged more often than needed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import cast

import pytest

from .conftest import Start
from .plant import Chat, payload, push
from .rig import Json, Rig, eventually, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

RATE = 100
BATCH = RATE * 0.1
"""What the daemon takes from its store at once: pinged again when it dies, or the server does, in that moment."""


def _hosted(chats: list[Chat]) -> int:
    return sum(chat.hosted for chat in chats)


async def _restorations(rig: Rig) -> list[Json]:
    return cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])


async def _true_counts(rig: Rig) -> list[Json]:
    """All restorations, once they are finished; their counts add up."""

    async def finished() -> bool:
        return all(each["finished_at"] for each in await _restorations(rig))

    await rig.eventually("the restorations' end", finished)
    found = await _restorations(rig)
    for each in found:
        settled = [cast(int, each[name]) for name in ("restored", "ended", "refused", "moved")]
        assert (sum(settled), each["waiting"]) == (each["sessions"], 0), each
    return found


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_the_daemon_gone_half_way_through_two_lost_servers(how: str, start: Start) -> None:
    rig = await start(servers=4, max_rate=RATE, lease="1s", gms_timeout="800ms")
    if how == "stopped":
        rig.plant.rotate_on_restore = {"key", "user"}  # what a dead one was told, nobody could know
    mine = [*await rig.registered(80, alias="111"), *await rig.registered(80, alias="112")]
    others = await rig.registered(30, alias="113")
    await rig.watching()
    for server in rig.plant.servers[:2]:
        await rig.plant.kill(server)
    await eventually("a part restored", lambda: _hosted(mine) >= 50, within=8)
    if how == "killed":
        await rig.kill()
        rig.forgiven |= {"stale_alias", "wrong_position"}  # as above
    else:
        await rig.stop()
    assert _hosted(mine) < len(mine)
    await rig.start()
    await eventually("all restored", lambda: _hosted(mine) == len(mine), within=10)
    found = await _true_counts(rig)
    assert sum(cast(int, each["restored"]) for each in found) == len(mine)
    assert not any(chat.refreshes for chat in others)
    again = sum(len(chat.refreshes) - 1 for chat in mine)
    assert again <= (BATCH + 10 if how == "killed" else 0)
    assert rig.plant.peak(1.0) <= RATE * 1.02


async def test_a_server_lost_again_while_its_sessions_are_restored(start: Start) -> None:
    rig = await start(servers=3, max_rate=RATE)
    rig.plant.rotate_on_restore = {"key"}
    mine = await rig.registered(200, alias="111")
    await rig.watching()
    server = rig.plant.servers[0]
    await rig.plant.kill(server)
    await eventually("a part restored", lambda: _hosted(mine) >= 40)
    await rig.plant.revive(server)
    await rig.until_state("chat-1", "up")
    await rig.plant.kill(server)
    await rig.until_state("chat-1", "down")
    await eventually("all restored", lambda: _hosted(mine) == len(mine), within=10)
    found = await _true_counts(rig)
    assert len(found) >= 2
    assert sum(cast(int, each["restored"]) for each in found) <= len(mine) + len(found) * BATCH
    again = Counter(len(chat.refreshes) for chat in mine)
    assert sum(count for pings, count in again.items() if pings > 1) <= (BATCH + 10) * len(found)


async def test_every_reason_at_once_keeps_the_rate_evenly_and_none_starves(start: Start) -> None:
    rig = await start(servers=3, max_rate=RATE)
    lost = await rig.registered(150, alias="111")
    busy = await rig.registered(60, alias="112")
    asked = await rig.registered(20, alias="113")
    await rig.watching()
    async with stalls() as stalled:
        begun = time.monotonic()
        await rig.plant.kill(rig.plant.servers[0])
        await eventually("the restoration's beginning", lambda: _hosted(lost) >= 1)
        for chat in asked:
            await rig.ask_ping(chat)
        pushes = 0
        while time.monotonic() - begun < 5:
            await asyncio.gather(*(rig.push(push(chat, payload(chat))) for chat in busy[:20]))
            busy = busy[20:] + busy[:20]
            pushes += 20
            await asyncio.sleep(0.05)
        assert pushes > 2 * RATE, "more pushes than can be acknowledged one by one"
        await eventually("the pings asked for", lambda: all(chat.refreshes for chat in asked), within=4)
        await eventually("all restored", lambda: _hosted(lost) == len(lost), within=10)
    # This process is the plant and pushes, too: when it stood still, requests arrived together.
    peak, bunch = rig.plant.peak(1.0, since=begun), rig.plant.peak(0.1, since=begun)
    assert peak <= RATE * (1.02 + 2 * stalled.longest), (
        f"{peak} requests in one second, {RATE} allowed, {stalled}"
    )
    assert bunch <= RATE * (0.16 + 2 * stalled.longest), (
        f"{bunch} requests in 100 ms, 10 would be even, {stalled}"
    )
    await _true_counts(rig)


async def test_gms_wholly_away_while_pushes_come_and_a_server_dies(start: Start) -> None:
    """Afterwards the acknowledgements come first, then the restoration, with one ping for each."""
    rig = await start(servers=3, nodes=2, max_rate=RATE)
    mine = await rig.registered(120, alias="111")
    others = await rig.registered(30, alias="112")
    await rig.watching()
    for node in rig.plant.nodes:
        await node.listener.close()
    await rig.plant.kill(rig.plant.servers[0])
    for chat in others:
        await rig.pushed(chat)
    await rig.until_state("chat-1", "down")
    for chat in others:
        await rig.pushed(chat)  # once more, as Chat Server resends it
    assert not rig.plant.refreshes
    for node in rig.plant.nodes:
        await node.listener.open()
    back = time.monotonic()
    await eventually("all pinged", lambda: all(chat.refreshes for chat in (*mine, *others)), within=10)
    await rig.settled()
    again = sum(len(chat.refreshes) - 1 for chat in (*mine, *others))
    assert again <= BATCH, "those that were claimed when their second push came"
    order = [seen.chat_id for seen in rig.plant.since(back)]
    acknowledged = max(order.index(chat.chat_id) for chat in others)
    # A quarter of the claims looks at less urgent reasons first; a few pings overtake each other.
    assert acknowledged <= len(others) + 3 * BATCH, acknowledged
    [one] = await _true_counts(rig)
    assert (one["sessions"], one["restored"]) == (120, 120)
    assert rig.plant.peak(1.0) <= RATE * 1.02
