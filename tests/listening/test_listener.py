"""Listening: slow clients are cut off, a stop loses no answer, and an address that cannot be had is one
readable line."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port
from conftest import Events, listening, settings_of, settle, soon
from yarl import URL

from asyncchatd.config.kinds import Listen
from asyncchatd.config.listeners import ControlSettings, ReceiverSettings
from asyncchatd.listening import Listener, ListenError, bind_problem, by_listener, sockets
from asyncchatd.listening.door import Door
from asyncchatd.log.events import Event

pytestmark = pytest.mark.usefixtures("events")


LARGE = 32 * 2**20


class Served:
    """An application that greets; `/slow` waits until `go_on` is set."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        self.requests = 0
        self.app = web.Application()
        self.app.router.add_get("/", self.greet)
        self.app.router.add_get("/slow", self.slow)
        self.app.router.add_get("/large", self.large)
        self.over = asyncio.Event()
        self.app.router.add_post("/", self.greet)

    async def greet(self, request: web.Request) -> web.Response:
        self.requests += 1
        await request.read()
        return web.Response(text="hello")

    async def slow(self, _: web.Request) -> web.Response:
        self.arrived.set()
        await self.go_on.wait()
        return web.Response(text="at last")

    async def large(self, request: web.Request) -> web.StreamResponse:
        """More than the buffers of two sockets hold."""
        response = web.StreamResponse(headers={"Content-Length": str(LARGE)})
        with suppress(ConnectionError):
            await response.prepare(request)
            for _ in range(LARGE // 2**20):
                await response.write(bytes(2**20))
        self.over.set()
        return response


def listener(
    app: web.Application,
    listen: str = "127.0.0.1:0",
    *,
    name: str = "receiver",
    handed_over: tuple[socket.socket, ...] = (),
    **more: object,
) -> Listener:
    settings = ReceiverSettings.model_validate({"listen": listen, "secrets": ["push-secret-1"], **more})
    return Listener(app, settings, name=name, handed_over=handed_over)


class Connection:
    """A client that writes bytes as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str = "/") -> bytes:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return await self.answer()

    async def answer(self) -> bytes:
        """One answer, head and body."""
        head = await soon(self.reader.readuntil(b"\r\n\r\n"))
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return head + await soon(self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """Everything until the connection is over, however it ends."""
        try:
            return await soon(self.reader.read())
        except ConnectionError:
            return b""


@asynccontextmanager
async def connected(base: str) -> AsyncIterator[Connection]:
    where = URL(base)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


# -- slow clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"],
    ids=["nothing", "a letter", "a line", "all but the end"],
)
async def test_a_connection_that_finishes_no_head_is_cut_off(said: bytes) -> None:
    async with listening(Served().app, header_seconds=0.05) as base, connected(base) as connection:
        connection.writer.write(said)
        assert await connection.rest() == b""


async def test_a_head_that_trickles_in_is_cut_off_too() -> None:
    """The time-out is for the whole head, not from byte to byte."""
    async with listening(Served().app, header_seconds=0.1) as base, connected(base) as connection:

        async def trickle() -> None:
            while True:
                connection.writer.write(b"x")
                await asyncio.sleep(0.01)

        connection.writer.write(b"GET / HTTP/1.1\r\nX: ")
        trickling = asyncio.create_task(trickle())
        assert await connection.rest() == b""
        trickling.cancel()


async def test_who_does_not_read_his_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncchatd.listening.served.WRITE_SECONDS", 0.1)
    served = Served()
    async with listening(served.app) as base, connected(base) as connection:
        connection.writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.over.wait())
        assert len(await connection.rest()) < LARGE


@pytest.mark.slow
async def test_who_reads_his_answer_keeps_his_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncchatd.listening.served.WRITE_SECONDS", 1.0)
    async with listening(Served().app) as base, connected(base) as connection:
        assert len(await connection.ask("/large")) > LARGE
        later = asyncio.Event()  # than when he would have been cut off
        asyncio.get_running_loop().call_later(1.0, later.set)
        await soon(later.wait())
        assert (await connection.ask()).endswith(b"hello")


async def test_a_head_in_pieces_is_a_head() -> None:
    async with listening(Served().app) as base, connected(base) as connection:
        for piece in (b"GE", b"T / HTTP/1.1\r\nHo", b"st: x\r", b"\n\r", b"\n"):
            connection.writer.write(piece)
            await connection.writer.drain()
            await settle()
        assert (await connection.answer()).endswith(b"hello")


async def test_an_answer_may_take_longer_than_the_head() -> None:
    served = Served()
    async with listening(served.app, header_seconds=0.05) as base, connected(base) as connection:
        connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.arrived.wait())
        async with connected(base) as silent:  # its end shows that the time is over
            assert await silent.rest() == b""
        served.go_on.set()
        assert (await connection.answer()).endswith(b"at last")


async def test_a_kept_connection_serves_after_its_first_heads_time() -> None:
    async with listening(Served().app, header_seconds=0.05) as base, connected(base) as connection:
        assert (await connection.ask()).endswith(b"hello")
        async with connected(base) as silent:
            assert await silent.rest() == b""
        for _ in range(3):
            assert (await connection.ask()).endswith(b"hello")


async def test_two_requests_in_one_packet_are_both_answered() -> None:
    async with listening(Served().app) as base, connected(base) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert (await connection.answer()).endswith(b"hello")
        assert (await connection.answer()).endswith(b"hello")


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with listening(Served().app, keepalive_seconds=0.05) as base, connected(base) as connection:
        await connection.ask()
        assert await connection.rest() == b""


async def test_what_is_not_http_is_refused_and_not_worth_a_line_in_the_log(events: Events) -> None:
    """A port scan would fill it."""
    async with listening(Served().app) as base, connected(base) as connection:
        connection.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        assert b" 400 " in (await connection.rest())[:20]
    assert events.all() == []


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS on a port without tls_certificate"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 80\r\nGET / HTTP/1.1\r\n\r\n", "PROXY protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "PROXY protocol"),
    ],
    ids=["TLS", "PROXY 1", "PROXY 2"],
)
async def test_what_an_operator_may_have_set_up_one_line_short_is_told_what_it_is(
    said: bytes, cause: str, events: Events
) -> None:
    async with listening(Served().app) as base:
        for _ in range(3):
            async with connected(base) as connection:
                connection.writer.write(said)
                assert b" 400 " in (await connection.rest())[:20]
        async with connected(base) as connection:
            with suppress(ConnectionError):
                for letter in said[:16]:
                    connection.writer.write(bytes([letter]))
                    await connection.writer.drain()
                    await settle()
            assert (await connection.rest())[:12] in (b"", b"HTTP/1.1 400")
    refused = events.of(Event.CLIENT_REFUSED)[0]
    assert str(refused["cause"]).startswith(cause)
    assert refused["client"] == "127.0.0.1"


async def test_a_connection_that_says_nothing_and_goes_is_not_worth_a_line(events: Events) -> None:
    """So a load balancer sees whether the port is open."""
    async with listening(Served().app) as base:
        for _ in range(3):
            async with connected(base):
                pass
        async with connected(base) as connection:
            assert (await connection.ask()).endswith(b"hello")
    assert events.all() == []


async def test_a_head_larger_than_any_is_refused() -> None:
    async with listening(Served().app) as base, connected(base) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert b" 400 " in (await connection.rest())[:20]


async def test_a_client_that_hangs_up_early_leaves_nothing_behind() -> None:
    async with listening(Served().app) as base:
        for said in (b"", b"GET / HT"):
            async with connected(base) as connection:
                connection.writer.write(said)
                await connection.writer.drain()
        async with connected(base) as connection:
            assert (await connection.ask()).endswith(b"hello")


# -- more connections than there may be --------------------------------------------------------------

FEW = {"max_connections": 8, "header_timeout": "10m"}
"""Room for a few; whoever is closed is closed for that, and not because a header was slow to come."""


async def is_closed(connection: Connection) -> bool:
    """Whether it is already, without waiting for it."""
    await settle()
    return connection.reader.at_eof() or connection.reader.exception() is not None


async def test_the_silent_go_first_the_longest_silent_before_others(events: Events) -> None:
    async with listening(Served().app, receiver=FEW) as base, AsyncExitStack() as many:
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
    async with listening(Served().app, receiver=FEW) as base, AsyncExitStack() as many:
        idle = [await many.enter_async_context(connected(base)) for _ in range(8)]
        for connection in [*idle, idle[0]]:
            assert (await connection.ask()).endswith(b"hello")
        async with connected(base) as newcomer:
            assert (await newcomer.ask()).endswith(b"hello")
        assert await idle[1].rest() == b""
        assert (await idle[0].ask()).endswith(b"hello")
    assert events.one(Event.CONNECTIONS_FULL)["cause"] == "idle"


async def test_whoever_is_being_answered_stays(events: Events) -> None:
    served = Served()
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


async def test_who_may_come_can_be_changed_while_it_serves() -> None:
    ours = listener(Served().app, header_timeout="10m")  # which would close those connections too
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


async def test_no_more_connections_are_promised_than_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    """Else the store and GMS would be the ones to find none left."""
    monkeypatch.setattr(sockets, "raise_file_limit", lambda: 272)
    async with listening(Served().app) as base, AsyncExitStack() as many:
        silent = [await many.enter_async_context(connected(base)) for _ in range(9)]
        assert await silent[0].rest() == b""
    warning = events.one(Event.CONFIG_WARNING)
    assert warning["key"] == "receiver.max_connections"
    assert "it can only be 8" in str(warning["message"])


# -- stopping ------------------------------------------------------------------------------------------


async def test_while_stopping_open_connections_are_answered_once_more_and_told_to_close() -> None:
    """A client that is not told would send its next request into a closed connection."""
    served = Served()
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
    served = Served()
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


async def test_no_request_is_lost_when_a_successor_takes_over_the_socket() -> None:
    """With a systemd socket the port stays open: whoever is told to close comes back to the successor."""
    shared = socket.create_server(("127.0.0.1", 0), backlog=128)
    shared.setblocking(False)
    port = shared.getsockname()[1]
    served = [Served(), Served()]
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
    ours = listener(Served().app)
    await ours.start()
    await soon(ours.stop(3600))


async def test_who_is_still_being_answered_after_the_grace_is_cut_off() -> None:
    served = Served()
    ours = listener(served.app)
    await ours.start()
    async with connected(f"http://{ours.addresses[0]}") as connection:
        connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.arrived.wait())
        await soon(ours.stop(0.01))
        assert await connection.rest() == b""


async def test_idle_connections_are_closed_after_the_grace() -> None:
    ours = listener(Served().app)
    await ours.start()
    async with connected(f"http://{ours.addresses[0]}") as connection:
        await connection.ask()
        await soon(ours.stop(0.05))
        assert await connection.rest() == b""


async def test_after_a_stop_nobody_listens() -> None:
    ours = listener(Served().app)
    await ours.start()
    where = URL(f"http://{ours.addresses[0]}")
    await ours.stop(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(where.host, where.port)


# -- addresses -----------------------------------------------------------------------------------------


async def test_it_tells_where_it_really_listens() -> None:
    port = unused_port()
    for listen in (f"127.0.0.1:{port}", "127.0.0.1:0"):
        ours = listener(Served().app, listen)
        await ours.start()
        [address] = ours.addresses
        host, _, number = address.rpartition(":")
        assert host == "127.0.0.1"
        assert int(number) == port if listen.endswith(str(port)) else int(number) > 0
        await ours.stop(0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
async def test_every_interface_means_both_families() -> None:
    port = unused_port()
    async with listening(Served().app, f":{port}"):
        for host in ("127.0.0.1", "[::1]"):
            async with connected(f"http://{host}:{port}") as connection:
                assert (await connection.ask()).endswith(b"hello")


async def test_an_address_in_use_is_one_readable_line() -> None:
    async with listening(Served().app) as base:
        where = URL(base).authority
        with pytest.raises(ListenError) as caught:
            await listener(Served().app, where, name="control").start()
    assert str(caught.value) == f"control.listen: {where} is in use; is another asyncchatd running?"


async def test_an_address_of_another_host_is_one_readable_line() -> None:
    with pytest.raises(ListenError) as caught:
        await listener(Served().app, "192.0.2.1:8091").start()
    assert str(caught.value) == "receiver.listen: 192.0.2.1:8091 is no address of this host"


async def test_a_name_that_does_not_resolve_is_one_readable_line() -> None:
    with pytest.raises(
        ListenError, match=r"^receiver\.listen: no\.such\.host\.invalid:8091 cannot be used: "
    ):
        await listener(Served().app, "no.such.host.invalid:8091").start()


async def test_after_a_failed_start_there_is_nothing_to_stop() -> None:
    async with listening(Served().app) as base:
        failed = listener(Served().app, URL(base).authority)
        with pytest.raises(ListenError):
            await failed.start()
        await soon(failed.stop(60))
        async with connected(base) as connection:
            assert (await connection.ask()).endswith(b"hello")


# -- Unix sockets ----------------------------------------------------------------------------------------


async def ask_unix(path: Path) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://localhost/") as response,
    ):
        return await response.text()


async def test_what_is_no_socket_that_was_left_over_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that may not be looked at may be in use."""
    path = tmp_path / "control.sock"
    path.write_text("somebody's")
    assert bind_problem(Listen(path=str(path))) == errno.EADDRINUSE
    with pytest.raises(ListenError, match="is in use"):
        await listener(Served().app, f"unix:{path}").start()
    assert path.read_text() == "somebody's"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()

        def may_not(self: socket.socket, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        class Forbidden(socket.socket):
            connect = may_not

        monkeypatch.setattr(socket, "socket", Forbidden)
        assert bind_problem(Listen(path=str(path))) == errno.EADDRINUSE
        with pytest.raises(ListenError, match="is in use"):
            await listener(Served().app, f"unix:{path}").start()
    assert path.is_socket()


async def test_a_unix_socket_is_for_owner_and_group_and_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    ours = listener(Served().app, f"unix:{path}")
    await ours.start()
    assert ours.addresses == [f"unix:{path}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert await soon(ask_unix(path)) == "hello"
    await ours.stop(0)
    assert not path.exists()


async def test_a_unix_socket_is_not_open_to_others_even_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is right after `bind`, for a user who masks nothing."""
    monkeypatch.setattr(os, "chmod", lambda *_: None)
    before = os.umask(0)
    try:
        async with listening(Served().app, f"unix:{tmp_path}/control.sock"):
            assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o660
    finally:
        os.umask(before)


async def test_the_socket_file_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with listening(Served().app, f"unix:{path}"):
        assert await soon(ask_unix(path)) == "hello"


async def test_the_socket_file_of_a_living_daemon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with listening(Served().app, f"unix:{path}"):
        second = listener(Served().app, f"unix:{path}", name="control")
        with pytest.raises(ListenError) as caught:
            await second.start()
        await second.stop(0)
        assert str(caught.value) == f"control.listen: unix:{path} is in use; is another asyncchatd running?"
        assert await soon(ask_unix(path)) == "hello"


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="is in use"):
        await listener(Served().app, f"unix:{path}").start()
    assert path.read_text() == "precious"


async def test_a_socket_in_a_directory_that_is_not_there_is_one_readable_line(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "control.sock"
    with pytest.raises(ListenError) as caught:
        await listener(Served().app, f"unix:{path}").start()
    assert str(caught.value) == f"receiver.listen: unix:{path} cannot be used: No such file or directory"


async def test_a_socket_handed_over_takes_the_place_of_the_address(tmp_path: Path) -> None:
    path = tmp_path / "never-made.sock"
    handed = socket.create_server(("127.0.0.1", 0))
    handed.setblocking(False)
    ours = listener(Served().app, f"unix:{path}", handed_over=(handed,))
    await ours.start()
    assert ours.addresses == [f"127.0.0.1:{handed.getsockname()[1]}"]
    async with connected(f"http://{ours.addresses[0]}") as connection:
        assert (await connection.ask()).endswith(b"hello")
    await ours.stop(1)
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_a_socket_of_systemd_that_accepts_nothing_is_named_with_the_remedy(
    kind: socket.SocketKind, tmp_path: Path
) -> None:
    """`ListenDatagram=`, and `Accept=yes`, under which a connection comes instead of the socket."""
    address = str(tmp_path / "s")
    remedy = "ListenStream=" if kind is socket.SOCK_DGRAM else "Accept=no"
    with socket.socket(socket.AF_UNIX, kind) as bound, socket.socket(socket.AF_UNIX, kind) as client:
        bound.bind(address)
        handed = bound
        if kind is socket.SOCK_STREAM:
            bound.listen()
            client.connect(address)
            handed, _ = bound.accept()
        with handed, pytest.raises(ListenError, match=rf"^receiver: .*{address}.*{remedy}"):
            await listener(Served().app, handed_over=(handed,)).start()


async def test_a_unix_socket_of_systemd_is_not_removed(tmp_path: Path) -> None:
    """It belongs to the socket unit, which listens on for the successor."""
    path = tmp_path / "systemd.sock"
    handed = socket.socket(socket.AF_UNIX)
    handed.bind(str(path))
    handed.setblocking(False)
    ours = listener(Served().app, f"unix:{path}", handed_over=(handed,))
    await ours.start()
    assert await soon(ask_unix(path)) == "hello"
    await ours.stop(0)
    assert path.exists()


async def test_a_socket_from_systemd_that_others_reach_is_refused_for_an_api_without_token() -> None:
    """The configuration cannot know what the socket unit says."""
    for control, fine in (({}, False), ({"token": "a-token-that-nobody-guesses"}, True)):
        handed = socket.create_server(("0.0.0.0", 0))
        handed.setblocking(False)
        settings = ControlSettings.model_validate(control)
        ours = Listener(Served().app, settings, name="control", handed_over=(handed,))
        if fine:
            await ours.start()
        else:
            with pytest.raises(
                ListenError, match=r"^control: the socket from systemd: .*control\.token_file"
            ):
                await ours.start()
        await ours.stop(0)


# -- sockets from systemd --------------------------------------------------------------------------------


def test_a_socket_without_its_name_is_taken_where_its_address_is_configured(
    events: Events, tmp_path: Path
) -> None:
    path = str(tmp_path / "control.sock")
    with closing(socket.create_server(("127.0.0.1", 0))) as pushes, socket.socket(socket.AF_UNIX) as control:
        control.bind(path)
        handed = {"asyncchatd.socket": [pushes], "unknown": [control]}
        listens = {"receiver": Listen(port=pushes.getsockname()[1]), "control": Listen(path=path)}
        assert by_listener(handed, listens) == {"receiver": [pushes], "control": [control]}
    first, second = events.of(Event.CONFIG_WARNING)
    assert first["advice"] == "add FileDescriptorName=receiver to the [Socket] section of asyncchatd.socket"
    assert second["advice"] == "add FileDescriptorName=control to the [Socket] section of the socket unit"


def test_a_socket_that_could_be_anybodys_is_an_error_that_says_what_to_add() -> None:
    """Else it would stand open, and nobody would answer there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as pushes:
        port = pushes.getsockname()[1]
        for listens, named in (
            ({"receiver": Listen(port=0), "control": Listen(port=0)}, {}),
            ({"receiver": Listen(port=port), "control": Listen(port=port)}, {}),
            ({"receiver": Listen(port=port), "control": Listen(port=0)}, {"receiver": [pushes]}),
        ):
            with pytest.raises(
                ListenError, match="FileDescriptorName=receiver or FileDescriptorName=control"
            ):
                by_listener({**named, "asyncchatd.socket": [pushes]}, listens)


# -- bodies ----------------------------------------------------------------------------------------------


async def test_a_body_reaches_its_handler_as_it_was_sent() -> None:
    """`auto_decompress` of aiohttp's is no public name. If this fails, a stranger's body is unpacked again before
    anybody has asked for his secret: see bodies.py."""
    packed = gzip.compress(b"unpacked")

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/", echo)
    async with listening(app) as base, aiohttp.ClientSession() as http:
        for encoding in ("gzip", "deflate", "br", "zstd"):
            async with http.post(base, data=packed, headers={"Content-Encoding": encoding}) as response:
                assert await response.read() == packed


# -- a head in pieces ------------------------------------------------------------------------------------


async def test_a_head_that_comes_byte_by_byte_costs_no_more_the_longer_it_is() -> None:
    """What was looked through once is not looked through again with every byte."""

    async def seconds(size: int) -> float:
        door = Door(ours)
        door._transport = asyncio.Transport()
        used = time.process_time()
        for _ in range(size):
            door.data_received(b"x")
        return time.process_time() - used

    ours = listener(Served().app)
    await seconds(1_000)
    assert await seconds(60_000) < 12 * max(await seconds(15_000), 0.01)  # it was 16 times as much, and more


# -- no file descriptors left ------------------------------------------------------------------------------

STARVING = """
import asyncio, os, resource, sys
from aiohttp import web
from asyncchatd import log
from asyncchatd.config.listeners import ReceiverSettings
from asyncchatd.listening.listener import Listener

async def main():
    async def greet(_):
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", greet)
    ours = Listener(app, ReceiverSettings.model_validate({"listen": "127.0.0.1:0", "secrets": ["x"]}), name="receiver")
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
            freed = time.monotonic()
            assert (await waiting.ask()).endswith(b"hello")
            assert time.monotonic() - freed < 2
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
            began = time.monotonic()
            newcomer = await many.enter_async_context(connected(base))
            assert (await newcomer.ask()).endswith(b"hello")
            assert time.monotonic() - began < 2
            assert await silent.rest() == b""
        assert (await known.ask()).endswith(b"hello")
        await plant.told("free")
