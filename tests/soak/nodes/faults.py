"""The faults of the soak of several nodes. Each is a coroutine; the first line of its docstring is what happens."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
from aiohttp import web

from asyncchatd.rehearsing.together.killing import answers_lost
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.rehearsing.trial import until
from asyncchatd.standin import Way, push_body
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.standin.plant.transcript import tokens_of
from asyncchatd.standin.port import LoopbackPort

from .changing import keys, one_after_another, upgrade
from .clocks import clocks
from .site import Soak
from .standing import stopped_long, stopped_past_hold

CUT_SECONDS = 60.0
STOPPED_SECONDS = 30.0
BACK_SECONDS = 5.0
"""In which a node is there again that reaches its database again, and all go on with a database that is back."""

GIVEN_UP_SECONDS = 30.0
POLL_SECONDS = 0.1
"""How often a node is asked whether it is ready."""

SILENT_SECONDS = 20.0
"""So long a node does not reach any Chat Server: longer than one must fail to be down."""

UNHEARD_SECONDS = 4.0
"""After so long a node that stands still counts as silent."""

CRASHES = 10
ANOTHER_PID = 4_000_000
"""Of a process that answers in a Chat Server's place; no real one has it here."""


async def nothing_else(soak: Soak) -> None:
    """a Chat Server is lost"""
    await soak.lose_a_server()


async def killed(soak: Soak) -> None:
    """a Chat Server is lost, a node is killed in the middle, and started again"""
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    node = soak.chance.choice(soak.nodes)
    await soak.kill(node)
    await losing
    await node.start()


async def stopped(soak: Soak) -> None:
    """a Chat Server is lost, and a node stands still for half a minute"""
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    node = soak.chance.choice(soak.nodes)
    soak.pause(node)
    await asyncio.sleep(STOPPED_SECONDS)
    node.go_on()
    await losing


async def database(soak: Soak) -> None:
    """a Chat Server is lost, and the database crashes"""
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    await _crash(soak, soak.chance.uniform(0.5, 4.0))
    await losing


async def rolling(soak: Soak) -> None:
    """a Chat Server is lost while each node is stopped and started again, one after the other"""
    await one_after_another(soak, lambda node: None)


async def no_chat_servers(soak: Soak) -> None:
    """a node does not reach any Chat Server for a while, silently or refused; nothing is lost"""
    way = soak.chance.choice((Way.HOLD, Way.REFUSE))
    for proxy in soak.to_servers.values():
        await proxy.become(way)
    await asyncio.sleep(SILENT_SECONDS)
    for proxy in soak.to_servers.values():
        await proxy.become(Way.PASS)


async def no_database(soak: Soak) -> None:
    """a Chat Server is lost, and a node is silently cut off from the database for a minute"""
    soak.stands_still = True
    await _cut_off(soak, Way.HOLD)


async def reset_database(soak: Soak) -> None:
    """a Chat Server is lost, and a node's connections to the database are reset, new ones refused for a minute

    To the others it looks as if it had been killed, and what it was told last is lost as then.
    """
    await _cut_off(soak, Way.REFUSE)


async def twins(soak: Soak) -> None:
    """a node's address of a health page leads to another process than that of the others

    Nothing is restored, for the others go on reading the process that was known, and the dispute is told once.
    """
    async with _misled(soak):
        pass


async def twins_and_stopped(soak: Soak) -> None:
    """the same, and that Chat Server is lost while of the two other nodes one stands still

    The one that is left finds it. The page of the other process hides nothing.
    """
    async with _misled(soak) as name:
        stopped = soak.chance.choice(soak.nodes[:-1])
        soak.pause(stopped)
        await asyncio.sleep(UNHEARD_SECONDS)
        begins = {each: each.log.stat().st_size for each in soak.nodes}
        await soak.lose_a_server(name)
        found = any(each.said("server_down", begins[each]) for each in soak.nodes)
        soak.broken += ["its loss was not found before it was back"] * (not found)
        await asyncio.sleep(SILENT_SECONDS)
        stopped.go_on()


@asynccontextmanager
async def _misled(soak: Soak) -> AsyncIterator[str]:
    """The way of one node to one Chat Server leads to another process: the name of that Chat Server."""
    # A dispute stands for ten minutes, and is told once.
    name = soak.chance.choice(sorted(soak.to_servers.keys() - soak.misled or soak.to_servers))
    soak.misled.add(name)
    node, proxy = soak.cut_off, soak.to_servers[name]
    server = soak.plant.plant.servers[name]

    async def page(_: web.BaseRequest) -> web.Response:
        body = write_health(HealthFormat.JSON, server.app_dbid, ANOTHER_PID)
        return web.Response(body=body, content_type="application/json")

    twin = LoopbackPort(page)
    await twin.open()
    right = proxy.target
    await node.stop()
    await proxy.lead_to("127.0.0.1", twin.number)
    begins = {each: each.log.stat().st_size for each in soak.nodes}
    await node.start()
    await asyncio.sleep(SILENT_SECONDS)
    yield name
    told = sum(len(each.said("server_identity_disputed", begins[each])) for each in soak.nodes)
    soak.figures["disputes_told"] = told
    soak.broken += [f"it was told {told} times that two processes answer"] * (told != 1)
    await node.stop()
    await proxy.lead_to(*right)
    await node.start()
    await twin.release()


async def crashes(soak: Soak) -> None:
    """ten times the database crashes, and is started again, with pushes and keepalives going on"""
    slowest = 0.0
    for _ in range(CRASHES):
        back = await _crash(soak, soak.chance.uniform(0.2, 2.0))
        slowest = max(slowest, back)
        await asyncio.sleep(soak.chance.uniform(1.0, 4.0))
    pause = soak.plant.plant.report().longest_pause_seconds
    soak.figures["back_after"] = round(slowest, 2)
    soak.broken += [f"work went on {slowest:.1f} s after the database was back"] * (
        slowest > BACK_SECONDS + 2 * pause
    )


async def mixed(soak: Soak) -> None:
    """all at once: Chat Servers are lost, a node is killed, another one stopped, the database crashes, clocks jump"""
    for _ in range(2):
        losing = asyncio.create_task(soak.lose_a_server())
        await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
        killed, frozen, other = soak.chance.sample(soak.nodes, 3)
        soak.step(other, soak.chance.uniform(-7_200, 7_200))
        soak.pause(frozen)
        await soak.kill(killed)
        await asyncio.sleep(soak.chance.uniform(0.0, 3.0))
        await _crash(soak, soak.chance.uniform(0.5, 2.0), wait=False)
        await asyncio.sleep(soak.chance.uniform(5.0, 15.0))
        frozen.go_on()
        await killed.start()
        await losing


async def _crash(soak: Soak, away: float, *, wait: bool = True) -> float:
    """The database crashes and is away for a while. Seconds from its return until the plant is asked again."""
    await asyncio.to_thread(soak.database.stop, signal.SIGQUIT)
    await asyncio.sleep(away)
    await asyncio.to_thread(soak.database.start)
    began, asked = time.monotonic(), soak.plant.plant.report().requests
    if wait:
        await until(lambda: soak.plant.plant.report().requests > asked, 30.0)
    return time.monotonic() - began


async def _cut_off(soak: Soak, way: Way) -> None:
    losing = asyncio.create_task(soak.lose_a_server())
    await asyncio.sleep(soak.chance.uniform(0.3, 2.0))
    async with AsyncExitStack() as stack:
        if way is Way.REFUSE:
            await stack.enter_async_context(answers_lost(soak.plant.plant))
        await soak.to_database.become(way)
        began = time.monotonic()
    await losing
    node = soak.cut_off
    status = await _push(soak, node)
    ready = await _is_ready(node)
    soak.broken += [f"a push was answered {status} without a database"] * (status != 503)
    soak.broken += ["it says that it is ready, without a database"] * ready
    await asyncio.sleep(max(0.0, began + CUT_SECONDS - time.monotonic()))
    await soak.to_database.become(Way.PASS)
    over = time.monotonic()
    while not await _is_ready(node) and time.monotonic() - over < GIVEN_UP_SECONDS:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(POLL_SECONDS)
    back = time.monotonic() - over
    pause = soak.plant.plant.report().longest_pause_seconds
    soak.figures["back_after"] = round(back, 2)
    soak.broken += [f"the node was back after {back:.1f} s"] * (back > BACK_SECONDS + 2 * pause)


async def _is_ready(node: Node) -> bool:
    timeout = aiohttp.ClientTimeout(total=3.0)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(node.control.path or "")) as http:
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with http.get("http://control/readyz", timeout=timeout) as answer:
                return answer.status == 200
    return False


async def _push(soak: Soak, node: Node) -> int:
    """What a node answers to a push of some chat."""
    plant = soak.plant.plant
    session = next(each for each in plant.sessions.values() if each.ended is None and each.device_id)
    body = push_body(
        plant.settings.push_forms[0],
        session.device_id or "",
        tokens_of(session),
        "push-url",
        session.events[-1],
        1,
    )
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=20.0)
    async with aiohttp.request("POST", node.push_url, data=body, headers=headers, timeout=timeout) as answer:
        return answer.status


Fault = Callable[[Soak], Awaitable[None]]

QUICK: tuple[Fault, ...] = (nothing_else, killed, stopped, database, rolling)
"""What is tried when nobody says otherwise."""

FAULTS: tuple[Fault, ...] = (
    *QUICK, no_chat_servers, clocks, no_database, reset_database, twins, crashes, stopped_long, mixed,
    keys, upgrade, stopped_past_hold, twins_and_stopped,
)  # fmt: skip
