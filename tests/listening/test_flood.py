"""Many clients that want nothing: the daemon, a real process, goes on taking the pushes of others."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import soon

IDLE = 5_000
SECRET = "push-secret-1"

CONFIG = f"""
[receiver]
listen = "127.0.0.1:0"
secrets = ["{SECRET}"]
max_connections = 1000
# Nobody is let go for his slowness while the test runs, so room is made for those who push.
header_timeout = "10m"
body_timeout = "10m"
keepalive_timeout = "10m"
[control]
listen = "127.0.0.1:0"
[gms]
nodes = ["http://127.0.0.1:9/genesys"]
[store]
url = "memory:"
[log]
format = "json"
"""


@contextmanager
def many_files() -> Iterator[None]:
    """As many open files as this test needs, while it runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = IDLE + 1_000
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, hard)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Daemon:
    """The daemon's address, and what it logged when it has ended."""

    def __init__(self, process: asyncio.subprocess.Process, lines: asyncio.StreamReader) -> None:
        self._process = process
        self._lines = lines
        self.port = 0
        self.logged: list[dict[str, object]] = []

    async def ready(self) -> None:
        while not self.port:
            line = json.loads(await soon(self._lines.readline()))
            if line["event"] == "daemon_ready":
                self.port = int(line["receiver"][0].rpartition(":")[2])
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for line in self._lines:
            self.logged.append(json.loads(line))

    async def stop(self) -> None:
        self._process.terminate()
        assert await soon(self._process.wait()) == 0
        await soon(self._reading)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Daemon]:
    config = directory / "asyncchatd.toml"
    config.write_text(CONFIG)
    config.chmod(0o600)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncchatd", "run", "--config", str(config)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    daemon = Daemon(process, process.stdout)
    try:
        await daemon.ready()
        yield daemon
    finally:
        if process.returncode is None:
            process.kill()
            await soon(process.wait())


async def push(http: aiohttp.ClientSession, daemon: Daemon, number: int) -> int:
    body = {"deviceId": f"device-{number}", "message": {"session-id": f"chat-{number}"}}
    async with http.post(f"http://127.0.0.1:{daemon.port}/push/{SECRET}", json=body) as response:
        return response.status


SAYINGS = (
    b"",
    b"POST /push/",
    b"POST /push/wrong HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n",
    b"POST /push/wrong HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
)
"""Nothing, the slow ones' beginnings, a body that does not end, and a stranger who stays after his answer."""


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", [True, False], ids=["while they come", "after they came"])
async def test_five_thousand_idle_connections_do_not_stop_the_pushes_of_others(
    tmp_path: Path, meanwhile: bool
) -> None:
    statuses: list[int] = []
    with many_files(), ExitStack() as idle:
        async with running(tmp_path) as daemon, AsyncExitStack() as clients:
            kept = await clients.enter_async_context(aiohttp.ClientSession())
            statuses.append(await soon(push(kept, daemon, 0)))
            for number in range(IDLE):
                connection = idle.enter_context(
                    socket.create_connection(("127.0.0.1", daemon.port), timeout=20)
                )
                connection.send(SAYINGS[number % len(SAYINGS)])
                if meanwhile and number % 50 == 0:
                    statuses.append(await soon(push(kept, daemon, number)))
            for number in range(100):
                statuses.append(await soon(push(kept, daemon, number)))
                async with aiohttp.ClientSession() as new:
                    statuses.append(await soon(push(new, daemon, number)))
            await clients.aclose()
            idle.close()
            await daemon.stop()
    assert set(statuses) == {200}
    full = [line for line in daemon.logged if line["event"] == "connections_full"]
    assert {line["cause"] for line in full} == {"silent"}
    assert len(full) <= 2, "at most one line a minute"
    assert not [line for line in daemon.logged if line["event"] == "library_message"]
