"""A listener: who has to go when there are too many, what a stop loses, and what it does without file descriptors."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from conftest import Events, listening, settings_of, settle, soon
from yarl import URL

from asyncchatd.config.sections.listeners import ReceiverSettings
from asyncchatd.listening import Listener
from asyncchatd.log.events import Event

from .rig import Connection, Greeter, connected, listener

pytestmark = pytest.mark.usefixtures("events")


# -- more connections than there may be --------------------------------------------------------------


FEW = {"max_connections": 8, "header_timeout": "10m"}
"""Room for a few; whoever is closed is closed for that, and not because a header was slow to come."""


async def is_closed(connection: Connection) -> bool:
    """Whether it is already, without waiting for it."""
    await settle()
    return connection.reader.at_eof() or connection.reader.exception() is not None


async def test_the_silent_go_first_the_longest_silent_before_others(events: Events) -> None:
    async with listening(Greeter().app, receiver=FEW) as base, AsyncExitStack() as many:
        known = await many.enter_async_context(connected(base))
        assert (await known.ask()).endswith(b"hello")
        silent = [await many.enter_async_context(connected(base)) for _ in range(7)]
        for number in range(3):
            newcomer = await many.enter_async_context(connected(base))
            assert (await newcomer.ask()).endswith(b"hello")
            assert await silent[number].rest() == b""
        assert not await is_closed(silent[3])
        assert (await known.ask()).endswith(b"hello")
    first, rest = events.of(Event.CONNECTIONS_FULL)
    assert (first["count"], rest["count"]) == (1, 2)
    for full in (first, rest):
        assert (full["listener"], full["cause"], full["client"]) == ("receiver", "silent", "127.0.0.1")


async def test_when_all_have_asked_for_something_the_longest_idle_goes(events: Events) -> None:
    async with listening(Greeter().app, receiver=FEW) as base, AsyncExitStack() as many:
        idle = [await many.enter_async_context(connected(base)) for _ in range(8)]
        for connection in [*idle, idle[0]]:
            assert (await connection.ask()).endswith(b"hello")
        async with connected(base) as newcomer:
            assert (await newcomer.ask()).endswith(b"hello")
        assert await idle[1].rest() == b""
        assert (await idle[0].ask()).endswith(b"hello")
    assert events.one(Event.CONNECTIONS_FULL)["cause"] == "idle"


async def test_whoever_is_being_answered_stays(events: Events) -> None:
    served = Greeter()
    async with listening(served.app, receiver=FEW, grace=20) as base, AsyncExitStack() as many:
        busy = [await many.enter_async_context(connected(base)) for _ in range(8)]
        for connection in busy:
            connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            served.arrived.clear()
            await soon(served.arrived.wait())
        async with connected(base) as newcomer:
            assert await newcomer.rest() == b""
        served.go_on.set()
        for connection in busy:
            assert (await connection.rest()).endswith(b"at last")
    assert events.one(Event.CONNECTIONS_FULL)["cause"] == "all busy"


class Holder:
    """An application that holds its answers until it is told to give one."""

    def __init__(self) -> None:
        self.held: list[asyncio.Event] = []
        self.more = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_get("/", self.hold)

    async def hold(self, _: web.Request) -> web.Response:
        self.held.append(asyncio.Event())
        self.more.set()
        await self.held[-1].wait()
        return web.Response(text=f"hello, of {len(self.held)}")

    async def holds(self, count: int) -> None:
        while len(self.held) < count:
            self.more.clear()
            await soon(self.more.wait())

    def answer_longest(self) -> bool:
        if not self.held:
            return False
        self.held.pop(0).set()
        return True


async def test_an_answer_that_is_held_is_given_when_its_place_is_needed_the_longest_held_first() -> None:
    holder = Holder()
    settings = ReceiverSettings.model_validate({"listen": "127.0.0.1:0", "secrets": ["x"], **FEW})
    ours = Listener(holder.app, settings, name="receiver", answer_longest=holder.answer_longest)
    await ours.start()
    base = f"http://{ours.addresses[0]}"
    async with AsyncExitStack() as many:
        polls = [await many.enter_async_context(connected(base)) for _ in range(8)]
        for count, poll in enumerate(polls, start=1):
            poll.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await holder.holds(count)
        for number in range(3):
            newcomer = await many.enter_async_context(connected(base))
            newcomer.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            given = await polls[number].answer()
            assert b"hello" in given
            assert b"Connection: close" in given
            assert await polls[number].rest() == b""
            await holder.holds(8)
        # And with nobody too many, the next answer is no last one.
        holder.answer_longest()
        assert b"Connection: close" not in await polls[3].answer()
        while holder.answer_longest():
            pass
    await ours.stop(0)


async def test_who_may_come_can_be_changed_while_it_serves() -> None:
    ours = listener(Greeter().app, header_timeout="10m")  # which would close those connections too
    await ours.start()
    base = f"http://{ours.addresses[0]}"
    changed = {"secrets": ["x"], **FEW, "header_timeout": "10m"}
    async with connected(base) as kept:
        assert (await kept.ask()).endswith(b"hello")
        ours.reload(settings_of(receiver={**changed, "allow": ["10.0.0.0/8"]}))
        async with connected(base) as other:
            assert await other.rest() == b""
        ours.reload(settings_of(receiver=changed))
        async with AsyncExitStack() as many:
            silent = [await many.enter_async_context(connected(base)) for _ in range(8)]
            assert await silent[0].rest() == b""
        assert (await kept.ask()).endswith(b"hello")
    await ours.stop(0)


# -- stopping ------------------------------------------------------------------------------------------


async def test_while_stopping_open_connections_are_answered_once_more_and_told_to_close() -> None:
    """A client that is not told would send its next request into a closed connection."""
    served = Greeter()
    ours = listener(served.app)
    await ours.start()
    base = f"http://{ours.addresses[0]}"
    async with connected(base) as connection:
        assert b"Connection: close" not in await connection.ask()
        stopping = asyncio.create_task(ours.stop(60))
        await settle()
        answer = await connection.ask()
        assert answer.endswith(b"hello")
        assert b"Connection: close\r\n" in answer
        assert await connection.rest() == b""
        await soon(stopping)


async def test_a_request_in_progress_is_answered_before_the_stop() -> None:
    served = Greeter()
    ours = listener(served.app)
    await ours.start()
    async with connected(f"http://{ours.addresses[0]}") as connection:
        connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.arrived.wait())
        stopping = asyncio.create_task(ours.stop(60))
        await settle()
        assert not stopping.done()
        served.go_on.set()
        answer = await connection.answer()
        assert answer.endswith(b"at last")
        assert b"Connection: close\r\n" in answer
        await soon(stopping)


async def test_who_was_not_accepted_yet_at_the_stop_is_answered() -> None:
    """The kernel lets clients in by itself, and would reset them."""
    served = Greeter()
    ours = listener(served.app)
    await ours.start()
    where = URL(f"http://{ours.addresses[0]}")
    clients = [socket.create_connection((where.host or "", where.port or 0)) for _ in range(100)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not served.requests, "nothing had its turn meanwhile"
    await soon(ours.stop(60))
    for client in clients:
        with client:
            assert client.recv(65_536).endswith(b"hello")
    assert served.requests == len(clients)


async def test_a_stop_without_file_descriptors_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []

    def full(listening: socket.socket) -> tuple[socket.socket, object]:
        failed.append("accept")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context["message"]))
    monkeypatch.setattr("asyncchatd.listening.listener.ACCEPT_PAUSE_SECONDS", 0.0)
    ours = listener(Greeter().app)
    await ours.start()
    where = URL(f"http://{ours.addresses[0]}")
    with monkeypatch.context() as starved:
        starved.setattr(socket.socket, "accept", full)
        with socket.create_connection((where.host or "", where.port or 0)):
            await ours.stop(0)
            await settle()
    assert failed == ["accept"]


async def test_no_request_is_lost_when_a_successor_takes_over_the_socket() -> None:
    """With a systemd socket the port stays open: whoever is told to close comes back to the successor."""
    shared = socket.create_server(("127.0.0.1", 0), backlog=128)
    shared.setblocking(False)
    port = shared.getsockname()[1]
    served = [Greeter(), Greeter()]
    first = listener(served[0].app, handed_over=(shared.dup(),))
    second = listener(served[1].app, handed_over=(shared.dup(),))
    await first.start()
    statuses: list[int] = []

    async def client(http: aiohttp.ClientSession) -> None:
        while len(statuses) < 600:
            async with http.post(f"http://127.0.0.1:{port}/", data=b"x") as response:
                statuses.append(response.status)
            if len(statuses) == 200:
                await second.start()
                stops.append(asyncio.create_task(first.stop(60)))

    stops: list[asyncio.Task[None]] = []
    async with aiohttp.ClientSession() as http:
        await soon(asyncio.gather(*(client(http) for _ in range(8))))
    for stop in stops:
        await soon(stop)
    await second.stop(60)
    shared.close()
    assert set(statuses) == {200}
    assert served[0].requests + served[1].requests == len(statuses)
    assert served[1].requests > 100


async def test_a_stop_without_clients_takes_no_time() -> None:
    ours = listener(Greeter().app)
    await ours.start()
    await soon(ours.stop(3600))


async def test_who_is_still_being_answered_after_the_grace_is_cut_off() -> None:
    served = Greeter()
    ours = listener(served.app)
    await ours.start()
    async with connected(f"http://{ours.addresses[0]}") as connection:
        connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.arrived.wait())
        await soon(ours.stop(0.01))
        assert await connection.rest() == b""


async def test_idle_connections_are_closed_after_the_grace() -> None:
    ours = listener(Greeter().app)
    await ours.start()
    async with connected(f"http://{ours.addresses[0]}") as connection:
        await connection.ask()
        await soon(ours.stop(0.05))
        assert await connection.rest() == b""


async def test_after_a_stop_nobody_listens() -> None:
    ours = listener(Greeter().app)
    await ours.start()
    where = URL(f"http://{ours.addresses[0]}")
    await ours.stop(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(where.host, where.port)


# -- no file descriptors left ------------------------------------------------------------------------------


STARVING = """
import asyncio, os, resource, sys
from aiohttp import web
from asyncchatd import log
from asyncchatd.config.sections.listeners import ReceiverSettings
from asyncchatd.listening.listener import Listener

async def main():
    async def greet(_):
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", greet)
    # Nobody is let go for his slowness while the test runs: who goes has made room.
    said = {"listen": "127.0.0.1:0", "secrets": ["x"], "header_timeout": "10m"}
    ours = Listener(app, ReceiverSettings.model_validate(said), name="receiver")
    await ours.start()
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    log.get_logger().info(log.Event.DAEMON_READY, receiver=ours.addresses)
    taken = []
    while word := (await told.readline()).strip():
        try:
            while word == b"fill":
                taken.append(os.dup(0))
        except OSError:
            pass
        while word == b"free" and taken:
            os.close(taken.pop())
        log.get_logger().info(log.Event.DAEMON_STOPPING, cause=word.decode())
    await ours.stop(0)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
log.configure("info", "json")
if sys.argv[1] == "uvloop":
    import uvloop
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
asyncio.run(main())
"""


class Starving:
    """A process with a listener that can be made to run out of file descriptors."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self.said: list[dict[str, object]] = []

    async def says(self, event: Event) -> dict[str, object]:
        while not self.said or self.said[-1]["event"] != event:
            self.said.append(json.loads(await soon(self._stdout.readline())))
        return self.said.pop()

    async def told(self, word: str) -> None:
        self._stdin.write(f"{word}\n".encode())
        await self.says(Event.DAEMON_STOPPING)


@asynccontextmanager
async def starving(loop: str) -> AsyncIterator[tuple[Starving, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARVING, loop, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        plant = Starving(process)
        [address] = cast(list[str], (await plant.says(Event.DAEMON_READY))["receiver"])
        yield plant, f"http://{address}"
        assert process.stdin is not None
        process.stdin.close()
        assert await soon(process.wait()) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_without_file_descriptors_it_says_so_at_once_and_goes_on_when_there_are_some(loop: str) -> None:
    async with starving(loop) as (plant, base):
        await plant.told("fill")
        async with connected(base) as waiting:
            failed = await plant.says(Event.ACCEPT_FAILED)
            assert (failed["listener"], failed["cause"]) == ("receiver", "Too many open files")
            await plant.told("free")
            assert (await waiting.ask()).endswith(b"hello")
        async with connected(base) as later:
            assert (await later.ask()).endswith(b"hello")
    assert [line for line in plant.said if line["event"] == Event.ACCEPT_FAILED] == []


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_without_file_descriptors_the_silent_make_room(loop: str) -> None:
    async with starving(loop) as (plant, base), connected(base) as silent, connected(base) as known:
        assert (await known.ask()).endswith(b"hello")
        await plant.told("fill")
        async with AsyncExitStack() as many:
            for _ in range(40):
                await many.enter_async_context(connected(base))
            newcomer = await many.enter_async_context(connected(base))
            assert (await newcomer.ask()).endswith(b"hello")
            assert await silent.rest() == b""
        assert (await known.ask()).endswith(b"hello")
        await plant.told("free")
