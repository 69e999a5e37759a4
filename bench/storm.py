"""The storm: Chat Servers lost at once, all their sessions due, pushes coming in meanwhile.

    python -m bench.storm [--sessions 100000] [--servers 2] [--rate 2000] [--pushes 500]

A real daemon on one processor; this script, the health pages and a GMS that costs next to nothing on
the other. Told are: how long the marking of each Chat Server's sessions took and how long pushes waited
meanwhile, the whole restoration against the ideal time, how evenly GMS was asked, and how long the
daemon's event loop stood still.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import aiohttp
from aiohttp import web

from bench.measure import on_processor, process
from bench.sessions import body, control, cpu_seconds, launched, until_ready

PLANT = """
[receiver]
listen = "unix:{directory}/receiver.sock"
secrets = ["bench-secret"]
[control]
listen = "unix:{directory}/control.sock"
[gms]
nodes = ["http://127.0.0.1:{gms}/genesys"]
[store]
url = "sqlite:///bench.db"
"""

CONFIG = f"""{PLANT}
[restoration]
max_rate = {{rate}}
max_in_flight = 200
[watcher]
interval = "500ms"
timeout = "500ms"
"""

SERVER = """
[[chat_server]]
name = "chat-{number}"
health_url = "http://127.0.0.1:{port}/"
"""


@dataclass
class ChatServers:
    """Health pages that can be taken away."""

    runners: list[web.AppRunner]
    ports: list[int]

    async def lose(self) -> None:
        await asyncio.gather(*(runner.cleanup() for runner in self.runners))


@contextlib.asynccontextmanager
async def chat_servers(count: int) -> AsyncIterator[ChatServers]:
    def page(number: int) -> web.Application:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response({"app_dbid": 117 + number, "process_os_pid": 4000 + number})

        app = web.Application()
        app.router.add_get("/", answer)
        return app

    both = ChatServers([], [])
    for number in range(count):
        runner = web.AppRunner(page(number), access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        both.runners.append(runner)
        both.ports.append(runner.addresses[0][1])
    try:
        yield both
    finally:
        await both.lose()


class Pushes:
    """Pushes at a steady rate, each timed."""

    def __init__(self, directory: str, sessions: int, rate: float) -> None:
        self.took: list[tuple[float, float]] = []
        """When it was sent (monotonic seconds) and how long its answer took."""
        self.failed = 0
        self._directory = directory
        self._sessions = sessions
        self._rate = rate

    async def run(self) -> None:
        connector = aiohttp.UnixConnector(f"{self._directory}/receiver.sock", limit=64)
        async with (
            aiohttp.ClientSession("http://daemon", connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            began = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(began + number / self._rate - time.monotonic())
                group.create_task(self._push(session, number * 7919 % self._sessions))

    async def _push(self, session: aiohttp.ClientSession, number: int) -> None:
        ids = {"session-id": f"0008TaFN{number:08X}", "user-id": f"052B5F58{number:08X}"}
        sent = time.monotonic()
        async with session.post(
            "/push/bench-secret", json={"deviceId": f"device-{number}", "message": ids}
        ) as answer:
            await answer.read()
        self.failed += answer.status != 200
        self.took.append((sent, time.monotonic() - sent))

    def p99_ms(self, since: float, until: float) -> float:
        took = sorted(each for sent, each in self.took if since <= sent + each and sent <= until)
        return took[len(took) * 99 // 100] * 1000 if took else float("nan")


async def storm(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory, process("bench.gms", "0", processor=1) as gms:
        async with chat_servers(options.servers) as servers:
            text = CONFIG.format(directory=directory, gms=gms, rate=options.rate) + "".join(
                SERVER.format(number=number, port=port) for number, port in enumerate(servers.ports, 1)
            )
            log = Path(directory, "log")
            with launched(directory, text, log) as child, log.open() as told:
                async with control(directory) as session, aiohttp.ClientSession() as plain:
                    await until_ready(session)
                    async with session.post(
                        "/v1/sessions", data=body(options.sessions, options.servers)
                    ) as response:
                        assert (await response.json())["taken"] == options.sessions
                    pushes = Pushes(directory, options.sessions, options.pushes)
                    pushing = asyncio.create_task(pushes.run())
                    await asyncio.sleep(options.calm)
                    calm = time.monotonic()
                    cpu, lost = cpu_seconds(child.pid), time.monotonic()
                    await servers.lose()
                    started = await events(told, "restoration_started", options.servers)
                    marked = time.monotonic()
                    async with plain.get(f"http://127.0.0.1:{gms}/"):
                        pass  # from here on it is one steady flow
                    finished = await events(told, "restoration_finished", options.servers)
                    cpu = cpu_seconds(child.pid) - cpu
                    over = time.monotonic()
                    async with plain.get(f"http://127.0.0.1:{gms}/") as answer:
                        seen = await answer.json()
                    stall = await stalls(session)
                    pushing.cancel()
                    await asyncio.gather(pushing, return_exceptions=True)
            tell(options, started, finished, seen)
            print(f"pushes, p99 before the loss       {pushes.p99_ms(0, calm):10.1f} ms")
            print(f"pushes, p99 until all were marked {pushes.p99_ms(lost, marked):10.1f} ms")
            print(f"pushes, p99 in the whole storm    {pushes.p99_ms(lost, over):10.1f} ms")
            print(f"pushes, failed                    {pushes.failed:10}  of {len(pushes.took)}")
            print(f"event loop, longest stall         {stall * 1000:10.1f} ms")
            print(f"processor                         {cpu / (over - lost) * 100:10.0f} % of a core")


def tell(
    options: argparse.Namespace,
    started: list[dict[str, object]],
    finished: list[dict[str, object]],
    seen: dict[str, float],
) -> None:
    for one in started:
        print(f"marked: {one['sessions']} sessions of {one['server']} in {one['took_ms']} ms")
    for one in finished:
        took = float(str(one["took_ms"])) / 1000
        print(f"restored: {one['restored']} sessions of {one['server']} within {took:.1f} s")
    ideal = seen["requests"] / options.rate
    print(
        f"GMS: {seen['requests']} requests in {seen['seconds']:.2f} s, {seen['seconds'] / ideal:.3f} of the ideal"
    )
    print(f"most in any second                {seen['most_in_1s']:10}  of {options.rate:.0f}")
    print(f"most in any 100 ms                {seen['most_in_100ms']:10}  of {options.rate / 10:.0f}")


async def stalls(session: aiohttp.ClientSession) -> float:
    """The longest stall of the event loop since the start, seconds."""
    async with session.get("/metrics") as response:
        found = re.search(r"^asyncchatd_loop_lag_max_seconds (\S+)", await response.text(), re.M)
    assert found is not None
    return float(found[1])


async def events(log: TextIO, event: str, count: int) -> list[dict[str, object]]:
    """Read on in the log until it has told of so many."""
    found: list[dict[str, object]] = []
    async with asyncio.timeout(600):
        while len(found) < count:
            found += [json.loads(line) for line in log.readlines() if f'"{event}"' in line]
            await asyncio.sleep(0.02)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--servers", type=int, default=2, help="so many are lost, all at once")
    parser.add_argument("--rate", type=float, default=2_000, help="max_rate")
    parser.add_argument("--pushes", type=float, default=500, help="per second")
    parser.add_argument("--calm", type=float, default=5, help="seconds before the loss")
    on_processor(1)
    asyncio.run(storm(parser.parse_args()))


if __name__ == "__main__":
    main()
