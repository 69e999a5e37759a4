"""GMS nodes that fail, one or all of them, and come back."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise
from typing import cast

import pytest

from .conftest import Start
from .plant import Chat, Reply
from .rig import Json, eventually, never, stalls

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def test_one_dead_node_of_two_costs_no_ping(start: Start) -> None:
    rig = await start(interval="600ms", nodes=2, gms_timeout="300ms")
    chats = await rig.registered(40)
    await eventually("both nodes used", lambda: {seen.node for seen in rig.plant.refreshes} == {0, 1})
    async with stalls() as stalled:
        await rig.plant.nodes[0].listener.close()
        dead = time.monotonic()
        await eventually(
            "three pings of each",
            lambda: all(len([r for r in c.refreshes if r.at > dead]) >= 3 for c in chats),
            within=6,
        )
    for chat in chats:
        times = [seen.at for seen in chat.refreshes if seen.at > dead - 0.6]
        # What was on its way to the node when it died is as one that is still on its way, for `gms.timeout`.
        assert max(later - earlier for earlier, later in pairwise(times)) <= 0.6 + 0.35 + 0.3 + stalled.total
    await rig.plant.nodes[0].listener.open()
    again = time.monotonic()
    await eventually(
        "the node is used again", lambda: any(r.node == 0 and r.at > again for r in rig.plant.refreshes)
    )


# One of each kind; what each status means is told of the client, in tests/gms/test_client.py.
FAULTS: dict[str, Reply] = {
    "html 502": Reply("<html>Bad Gateway</html>", 502, headers={"Content-Type": "text/html"}),
    "html 200": Reply(
        "<html>Sorry, we are down for maintenance</html>", headers={"Content-Type": "text/html"}
    ),
    "500": Reply("", 500),
    "503 with Retry-After": Reply("", 503, headers={"Retry-After": "1"}),
    "503 with a date": Reply("", 503, headers={"Retry-After": "Wed, 21 Oct 2037 07:28:00 GMT"}),
    "truncated json": Reply('{"statusCode":0,"alias":"11'),
    "404 html": Reply("<html>Not Found</html>", 404, headers={"Content-Type": "text/html"}),
    "400 of the servlet": Reply({"exception": "com.example.Fault", "message": "no such service"}, 400),
    "connection dropped": Reply("", cut=0, headers={"Content-Length": "99"}),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_faulty_node_of_two_is_passed_over(start: Start, fault: Reply) -> None:
    rig = await start(nodes=2)
    chats = await rig.registered(10)
    rig.plant.nodes[0].fault = fault
    begun = time.monotonic()
    await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
    # Behind a 502 or a lost answer Chat Server may be at work for as long as `gms.timeout`, which is 2 s here.
    await eventually("an answer for each", lambda: all(chat.refreshes for chat in chats), within=12)
    # Rested, so that not every ping has to fail there first.
    assert len([at for at in rig.plant.nodes[0].requests if at >= begun]) <= 2 * len(chats)
    rig.plant.nodes[0].fault = None
    for chat in chats:
        assert (await rig.session(chat))["state"] == "live"


@pytest.mark.parametrize("name", ["404 html", "400 of the servlet"])
async def test_a_node_without_its_application_costs_no_session_of_a_lost_server(
    start: Start, name: str
) -> None:
    """A servlet container answers so whenever its application is deployed anew. It says nothing of a session,
    and the other node serves it."""
    rig = await start(nodes=2, servers=2)
    rig.plant.rotate_on_restore = {"key"}
    chats = await rig.registered(200, alias="111")
    await rig.watching()
    rig.plant.nodes[0].fault = FAULTS[name]
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("all restored", lambda: all(chat.hosted for chat in chats), within=5)
    await rig.settled()
    listed = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    (one,) = [each for each in listed if each["server"] == "chat-1"]
    assert {name: one[name] for name in ("sessions", "restored", "refused", "waiting")} == {
        "sessions": 200,
        "restored": 200,
        "refused": 0,
        "waiting": 0,
    }
    assert not rig.log("ping_refused")
    assert len(rig.plant.nodes[0].requests) < 60, "it was not left alone"


async def test_a_gms_without_its_application_finishes_no_restoration(start: Start) -> None:
    """The only node answers 404: every session stays due, and is restored once it serves again."""
    rig = await start(servers=2)
    chats = await rig.registered(20, alias="111")
    await rig.watching()
    (node,) = rig.plant.nodes
    node.fault = FAULTS["404 html"]
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("pings", lambda: len(node.requests) > 3)
    await asyncio.sleep(1.5)  # the container starts
    (one,) = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    assert (one["waiting"], one["refused"], one["finished_at"]) == (20, 0, None)
    said = rig.log("ping_retry")[0]
    assert (said["cause"], said["detail"]) == ("not_found", "HTTP 404, html")
    node.fault = None
    await eventually("all restored", lambda: all(chat.hosted for chat in chats), within=4)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_of_the_only_node_is_obeyed(start: Start, status: int) -> None:
    rig = await start(rest="100ms")
    chats = await rig.registered(5)
    node = rig.plant.nodes[0]
    node.fault = Reply("", status, headers={"Retry-After": "1"})
    await rig.ask_ping(chats[0])
    await eventually("the refusal", lambda: node.requests)
    refused = node.requests[0]
    await asyncio.sleep(0.05)  # for the refusal to reach the daemon
    node.fault = None
    for chat in chats:
        await rig.ask_ping(chat)
    await eventually("the pings", lambda: all(chat.refreshes for chat in chats), within=6)
    later = [at - refused for at in node.requests if at > refused + 0.05]
    assert min(later) >= 0.9, f"asked again after {min(later):.2f} s, not 1 s"


async def test_all_nodes_dead_for_a_while_lose_no_session(start: Start) -> None:
    rig = await start(interval="500ms", nodes=2)
    chats = await rig.registered(40)
    await eventually("a first ping of each", lambda: all(chat.refreshes for chat in chats))
    for node in rig.plant.nodes:
        await node.listener.close()
    await asyncio.sleep(1.5)  # the outage: three intervals
    (pushed,) = await rig.registered()
    await rig.pushed(pushed)
    for node in rig.plant.nodes:
        await node.listener.open()
    back = time.monotonic()
    everyone = [*chats, pushed]
    await eventually(
        "a ping of each", lambda: all(c.refreshes and c.refreshes[-1].at > back for c in everyone), within=4
    )
    for chat in everyone:
        assert (await rig.session(chat))["state"] == "live"


async def test_a_node_that_restarts_under_kept_connections_costs_no_ping(start: Start) -> None:
    """Each restart leaves stale keep-alive connections, and a POST on one of them fails."""
    rig = await start(max_in_flight=20)
    rig.plant.rotate = {"key"}
    chats = await rig.registered(20)
    for _ in range(3):
        before = {chat.chat_id: len(chat.refreshes) for chat in chats}
        await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
        await eventually("all pinged", partial(_pinged_again, chats, before))
        await rig.settled()
        await rig.plant.nodes[0].listener.close()
        await rig.plant.nodes[0].listener.open()
    (chat, *_) = chats
    async with stalls() as stalled:
        begun = time.monotonic()
        await rig.pinged(chat)
    assert chat.refreshes[-1].at - begun < 1.0 + stalled.total


def _pinged_again(chats: list[Chat], before: dict[str, int]) -> bool:
    return all(len(chat.refreshes) > before[chat.chat_id] for chat in chats)


async def test_a_node_that_closes_each_connection_after_its_answer(start: Start) -> None:
    rig = await start(interval="200ms", gms_timeout="300ms")  # what meets a closing connection waits so long
    rig.plant.rotate = {"position"}
    chats = await rig.registered(20)

    def fewest() -> int:
        return min(len(chat.refreshes) for chat in chats)

    async with stalls() as stalled:
        begun = time.monotonic()
        while (took := time.monotonic() - begun) < 1.5 or (fewest() < 3 and took < 1.5 + stalled.total):
            rig.plant.nodes[0].listener.drop_idle()
            await asyncio.sleep(0.02)
    assert fewest() >= 3, f"{fewest()} pings in 1.5 s and {stalled.total:.2f} s in which nothing could run"


async def test_an_answer_slower_than_the_time_out_ends_nothing_and_overlaps_nothing(start: Start) -> None:
    rig = await start(gms_timeout="400ms", lease="1s")
    chats = await rig.registered(5)
    for chat in chats:
        chat.answers.append(Reply(never=True))
        await rig.ask_ping(chat)
    await eventually("a second try", lambda: all(len(c.refreshes) >= 2 for c in chats), within=5)
    for chat in chats:
        first, second = chat.refreshes[:2]
        assert second.at - first.at >= 0.39
        assert first.given_up
        assert (await rig.session(chat))["state"] == "live"


async def test_an_answer_just_within_the_time_out_is_waited_for(start: Start) -> None:
    """It carries a new key that nobody will tell again; the lease is over before it comes."""
    rig = await start(gms_timeout="3s", lease="3500ms", interval="300ms")
    rig.plant.rotate = {"key"}
    chats = await rig.registered(5)
    rig.plant.delay = 2.7
    await eventually("all in flight", lambda: all(chat.in_flight for chat in chats))
    for chat in chats:
        await rig.pushed(chat)
        await rig.ask_ping(chat)
    await eventually("all answered", lambda: all(chat.refreshes[0].answered for chat in chats))
    rig.plant.delay = 0
    await eventually("pinged again", lambda: all(len(chat.refreshes) >= 2 for chat in chats))
    assert all(not chat.refreshes[0].given_up for chat in chats)


async def test_no_more_than_max_in_flight(start: Start) -> None:
    rig = await start(max_in_flight=8)
    rig.plant.delay = 0.05
    chats = await rig.registered(60)
    await asyncio.gather(*(rig.ask_ping(chat) for chat in chats))
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, sum(chat.in_flight for chat in chats))
        return all(chat.refreshes for chat in chats)

    await eventually("all pinged", done)
    assert most <= 8
    await never("a second ping", lambda: any(len(chat.refreshes) > 1 for chat in chats), during=0.2)
