"""What a poll costs that is answered from memory, next to a bare aiohttp handler; and what a watched chat does.

    python -m bench.polls [--seconds 5] [--rounds 5] [--connections 64]
    python -m bench.polls --watched 100 1000 10000 100000 --held 5000

Each server is a process of its own on one processor; `wrk` (Debian's package) loads it from the other:

- bare: aiohttp on uvloop, reads the same form with `request.post()`, answers the same bytes
- asyncchatd: `asyncchatd run` with a gateway: the key checked, the chat found, the reply put together

Each chat has one event, which each poll asks for again; so each is answered at once.
With `--watched` so many chats are polled once each over 64 connections, and the daemon's memory is compared with that
before; with `--held` so many connections are opened, and then hold a poll each, while pushes of other chats come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from asyncchatd.gateway.keys import Keys
from bench.intake import Load, free_port, server, wrk
from bench.measure import median, on_processor, process, rss_mb
from bench.sessions import CONFIG, answered, body, control, launched, until_ready

SERVICE = "customer-support"
SECRET = "9b" * 32
FILL_SECONDS = 20
PUSHED, PUSH_RATE = 200, 100
"""Chats that are pushed to while polls of others are held, and pushes a second."""

GATEWAY = """
[gateway]
listen = "127.0.0.1:{door}"
key_file = "gateway-keys"
node_group = "gms"
hold = "{hold}s"
max_connections = 20000
"""
RATE = 20_000

WRK = """
local bodies = {{{bodies}}}
local paths = {{{paths}}}
local n = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"
request = function()
  n = n % #bodies + 1
  return wrk.format(nil, paths[n], nil, bodies[n])
end
"""

BARE = """
import sys, uvloop
from aiohttp import web
REPLY = {reply!r}
async def take(request):
    form = await request.post()
    assert form["secureKey"]
    return web.Response(body=REPLY, content_type="application/json", charset="utf-8")
app = web.Application()
app.router.add_post("/genesys/2/chat/{{service}}/{{chat}}/refresh", take)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


@dataclass(frozen=True)
class Poll:
    """One chat's poll, as a client sends it."""

    path: str
    body: str


def poll(number: int, position: int) -> Poll:
    """As Genesys' widgets ask."""
    chat = f"0008TaFN{number:08X}"
    form = {
        "userId": f"052B5F58{number:08X}",
        "secureKey": Keys([bytes.fromhex(SECRET)]).of(SERVICE, chat),
        "alias": str(117 + number % 8),
        "transcriptPosition": position,
        "message": "",
    }
    return Poll(f"/genesys/2/chat/{SERVICE}/{chat}/refresh", urlencode(form))


@asynccontextmanager
async def daemon(
    sessions: int, hold: float, receiver: int | None = None
) -> AsyncIterator[tuple[int, int, str]]:
    """A daemon with so many chats that have an event each: its process, the port of its gateway, and its directory.
    `receiver`: the port of its receiver."""
    door = free_port()
    config = CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{receiver or 0}") + GATEWAY
    with tempfile.TemporaryDirectory() as name, process("bench.gms", "0", "talking") as port:
        Path(name, "gateway-keys").write_text(SECRET)
        Path(name, "gateway-keys").chmod(0o600)
        interval = max(FILL_SECONDS, sessions / 1_500)
        text = config.format(rate=RATE, directory=name, port=port, interval=interval, door=door, hold=hold)
        with launched(name, text) as child:
            async with control(name) as session:
                await until_ready(session)
                async with session.post("/v1/sessions", data=body(sessions)) as response:
                    assert (await response.json())["taken"] == sessions
                until = time.monotonic() + 10 * interval
                while await answered(session) < sessions:
                    if time.monotonic() > until:
                        raise SystemExit("the chats were not filled")
                    await asyncio.sleep(0.5)
        # Again, with what was written: nothing is due while it is measured.
        text = config.format(rate=RATE, directory=name, port=port, interval=86_400, door=door, hold=hold)
        with launched(name, text) as child:
            async with control(name) as session:
                await until_ready(session)
            yield child.pid, door, name


async def one(door: int, asked: Poll) -> bytes:
    """The reply to a poll."""
    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        url = f"http://127.0.0.1:{door}{asked.path}"
        async with session.post(url, data=asked.body, headers=headers) as response:
            assert response.status == 200
            return await response.read()


def _script(directory: Path, polls: Sequence[Poll]) -> Path:
    script = directory / "poll.lua"
    bodies = ", ".join(json.dumps(each.body) for each in polls)
    script.write_text(WRK.format(bodies=bodies, paths=", ".join(json.dumps(each.path) for each in polls)))
    return script


async def rates(options: argparse.Namespace) -> None:
    """A poll's cost, in turns with the bare handler's."""
    chats = 200
    polls = [poll(number, 1) for number in range(chats)]
    ratios, p99, failed = [], [], 0
    async with daemon(chats, hold=2) as (_, door, _):
        reply = await one(door, polls[0])
        assert len(json.loads(reply)["messages"]) == 1, reply
        with tempfile.TemporaryDirectory() as name:
            script = _script(Path(name), polls)
            for number in range(1, options.rounds + 1):
                port = free_port()

                def bare(port: int = port) -> Load:
                    program = BARE.format(reply=reply)
                    with server("-c", program, str(port), port=port):
                        return wrk(port, options.connections, options.seconds, script)

                def ours() -> Load:
                    return wrk(door, options.connections, options.seconds, script)

                first, second = (bare, ours) if number % 2 else (ours, bare)
                loads = {each.__name__: await asyncio.to_thread(each) for each in (first, second)}
                ratios.append(loads["bare"].per_second / loads["ours"].per_second)
                p99.append(loads["ours"].p99_ms)
                failed += loads["ours"].failed
                print(
                    f"round {number}: bare {loads['bare'].per_second:,.0f}/s; a poll"
                    f" {loads['ours'].per_second:,.0f}/s, p99 {p99[-1]:.1f} ms; costs {ratios[-1]:.2f} of bare",
                    flush=True,
                )
    print(
        f"median at {options.connections} connections: a poll costs {median(ratios):.2f} bare handlers, p99"
        f" {median(p99):.1f} ms, {failed} failed; {len(reply)} bytes a reply; load {os.getloadavg()[0]:.1f}"
    )


async def watched(sizes: Sequence[int]) -> None:
    """Memory of so many watched chats."""
    async with daemon(max(sizes), hold=2) as (pid, door, _):
        await one(door, poll(0, 1))
        base, seen = rss_mb(pid), 1
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
            for size in sorted(sizes):
                began = time.monotonic()
                left = iter(range(seen, size))
                await asyncio.gather(*(_poll_each(session, door, left) for _ in range(64)))
                took, count, seen = time.monotonic() - began, size - seen, size
                grown = rss_mb(pid) - base
                print(
                    f"{size:,} chats watched: {1000 * grown / size:.1f} KB each ({grown:.0f} MB); the last"
                    f" {count:,} first polls {count / took:,.0f}/s",
                    flush=True,
                )


async def _poll_each(session: aiohttp.ClientSession, door: int, numbers: Iterator[int]) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for number in numbers:
        asked = poll(number, 1)
        async with session.post(
            f"http://127.0.0.1:{door}{asked.path}", data=asked.body, headers=headers
        ) as response:
            reply = await response.json()
            assert len(reply["messages"]) == 1, reply


async def held(count: int) -> None:
    """Memory of so many held polls, beside that of their connections and of their chats; and how soon pushes are
    answered meanwhile, of other chats."""
    receiver = free_port()
    async with daemon(count + PUSHED, hold=30, receiver=receiver) as (pid, door, directory):
        connections = []
        for number in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", door)
            connections.append((reader, writer))
            writer.write(_written(door, poll(number, 1)))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
        idle = rss_mb(pid)
        began = time.monotonic()
        for number, (_, writer) in enumerate(connections):
            writer.write(_written(door, poll(number, 4)))
            if number % 100 == 99:  # as pages do, and not all in one moment
                await asyncio.sleep(0.05)
        await _all_held(directory, count)
        before = await _pushes(receiver, range(count, count + PUSHED), 5.0)
        holding = rss_mb(pid)
        for reader, writer in connections:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
        print(
            f"{count:,} held polls: {1000 * (holding - idle) / count:.1f} KB each beyond connection and chat; all"
            f" answered after {time.monotonic() - began:.1f} s (hold 30 s); {len(before):,} pushes meanwhile, p50"
            f" {1000 * median(before):.1f} ms, p99 {1000 * sorted(before)[int(0.99 * len(before))]:.1f} ms"
        )


async def _all_held(directory: str, count: int) -> None:
    """Wait until so many polls are held."""
    async with control(directory) as session, asyncio.timeout(60):
        while True:
            async with session.get("/metrics") as response:
                if f"\nasyncchatd_gateway_polls_held {count}.0\n" in await response.text():
                    return
            await asyncio.sleep(0.1)


async def _pushes(port: int, numbers: Sequence[int], seconds: float) -> list[float]:
    """How long each of `PUSH_RATE` pushes a second took to be answered."""
    took: list[float] = []
    url = f"http://127.0.0.1:{port}/push/bench-secret"

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        ids = {"session-id": f"0008TaFN{number:08X}", "user-id": f"052B5F58{number:08X}"}
        began = time.monotonic()
        async with session.post(url, json={"deviceId": f"device-{number}", "message": ids}) as response:
            assert response.status == 200, await response.text()
        took.append(time.monotonic() - began)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for turn in range(round(seconds * PUSH_RATE)):
            tasks.create_task(one(session, numbers[turn % len(numbers)]))
            await asyncio.sleep(1 / PUSH_RATE)
    return took


def _written(door: int, asked: Poll) -> bytes:
    head = f"POST {asked.path} HTTP/1.1\r\nHost: 127.0.0.1:{door}\r\nContent-Length: {len(asked.body)}\r\n"
    return f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{asked.body}".encode()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--watched", type=int, nargs="+", help="memory of so many watched chats, instead")
    parser.add_argument("--held", type=int, help="memory of so many held polls, instead")
    options = parser.parse_args()
    on_processor(1)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 30_000), hard))
    if options.watched:
        await watched(options.watched)
    if options.held:
        await held(options.held)
    if not options.watched and not options.held:
        if shutil.which("wrk") is None:
            raise SystemExit("wrk is not installed: apt-get install wrk")
        await rates(options)


if __name__ == "__main__":
    asyncio.run(main())
