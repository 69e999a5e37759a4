"""The notice of a loss: from the end of a Chat Server's process to the start of its sessions' restoration.

    python -m bench.notice [--kills 20] [--servers 1 8]

A real daemon with the defaults of `[watcher]`; each Chat Server is a process of its own with a health page, and
its end is SIGKILL at a random moment between two looks. `killed`: nobody is there afterwards. `restarted`: the
next process listens as soon as the first is gone. Told is the time by the daemon's own log, `restoration_started`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from bench.measure import on_processor, process
from bench.sessions import body, control, launched, until_ready
from bench.storm import PLANT, SERVER

INTERVAL_SECONDS = 5.0
"""The default of `watcher.interval`: a kill falls anywhere in it."""

PATIENCE_SECONDS = 60.0


class ChatServer:
    """A Chat Server as a process, and the next one, which stands by and listens as soon as it is told to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._held = _bound(0)
        """Bound and not listening: keeps the port, and refuses."""
        self.port: int = self._held.getsockname()[1]
        self._running: subprocess.Popen[bytes] | None = None
        self._next = self._standing_by()

    def _standing_by(self) -> subprocess.Popen[bytes]:
        words = (sys.executable, "-m", "bench.notice", "--serve", str(self.port), str(117 + self.number))
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def start(self) -> None:
        self._running = self._next
        assert self._running.stdin is not None
        self._running.stdin.write(b"\n")
        self._running.stdin.flush()

    def stand_by(self) -> None:
        """Make the next one ready."""
        self._next = self._standing_by()

    def kill(self) -> float:
        """When it was, epoch seconds."""
        assert self._running is not None
        self._running.kill()
        at = time.time()
        self._running.wait()
        return at

    def end(self) -> None:
        for each in (self._running, self._next):
            if each is not None:
                each.kill()
                each.wait()
        self._held.close()


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def _serve(port: int, app_dbid: int) -> None:
    """A health page, once a line comes in; connections are kept as they come."""
    page = json.dumps({"app_dbid": app_dbid, "process_os_pid": os.getpid()}).encode()
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4096):
            writer.write(answer)
            writer.close()

    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.readline)
    await asyncio.start_server(answered, sock=_bound(port))
    await asyncio.Event().wait()


@contextmanager
def chat_servers(count: int) -> Iterator[list[ChatServer]]:
    servers = [ChatServer(number) for number in range(count)]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.end()


async def told(log: TextIO, server: str, *events: str, after: float = 0.0) -> float:
    """When the log tells of one of these events of this server, epoch seconds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            for line in log.readlines():
                said = json.loads(line)
                at = datetime.fromisoformat(said["time"]).timestamp()
                if said["event"] in events and said.get("server") == server and at >= after:
                    return at
            await asyncio.sleep(0.01)


async def kills(count: int, servers: list[ChatServer], log: TextIO, *, restarted: bool) -> list[float]:
    """Seconds from each kill to the start of the restoration."""
    took = []
    for number in range(count):
        server = servers[number % len(servers)]
        name = f"chat-{server.number}"
        server.stand_by()
        await asyncio.sleep(random.uniform(0, INTERVAL_SECONDS))
        at = server.kill()
        if restarted:
            server.start()
        took.append(await told(log, name, "restoration_started", after=at) - at)
        if not restarted:
            server.start()
            await told(log, name, "server_up", "server_restarted")
        await asyncio.sleep(INTERVAL_SECONDS * 1.5)  # until it was looked at once more
        log.readlines()
    return took


async def measure(options: argparse.Namespace, count: int) -> None:
    with (
        chat_servers(count) as servers,
        tempfile.TemporaryDirectory() as directory,
        process("bench.gms", "0", processor=1) as gms,
    ):
        text = PLANT.format(directory=directory, gms=gms)
        text += "".join(SERVER.format(number=each.number, port=each.port) for each in servers)
        path = Path(directory, "log")
        with launched(directory, text, log=path), open(path) as log:
            async with control(directory) as session:
                await until_ready(session)
                async with session.post("/v1/sessions", data=body(count, count)) as response:
                    assert (await response.json())["taken"] == count
                for server in servers:
                    await told(log, f"chat-{server.number}", "server_up")
                    log.seek(0)
                log.readlines()
                await asyncio.sleep(INTERVAL_SECONDS * 1.5)
                for restarted in (False, True):
                    took = await kills(options.kills, servers, log, restarted=restarted)
                    what = "restarted" if restarted else "killed"
                    print(
                        f"{count} servers, {what:9}  p50 {statistics.median(took):6.2f} s"
                        f"   p95 {statistics.quantiles(took, n=20)[-1]:6.2f} s   most {max(took):6.2f} s",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--serve", type=int, nargs=2, metavar=("PORT", "DBID"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(*options.serve))
    if options.kills < 2:
        sys.exit("--kills: at least 2, to tell how they differ")
    on_processor(1)
    for count in options.servers:
        asyncio.run(measure(options, count))


if __name__ == "__main__":
    main()
