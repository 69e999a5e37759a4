"""The watcher's eyes: health pages on real sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from conftest import (
    Certificates,
    raw_server,
    soon,
)

from asyncchatd.config.settings import ChatServerSettings
from asyncchatd.model.data import ServerState
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.watcher.page import OFF_LOOP_BYTES, HealthPages, Page, Seen, Unreachable, Unreadable, Unseen
from asyncchatd.wire.health import MAX_PAGE, HealthPage, read_health

pytestmark = pytest.mark.usefixtures("events")

UNKNOWN, UP, SUSPECT, DOWN = ServerState.UNKNOWN, ServerState.UP, ServerState.SUSPECT, ServerState.DOWN


async def see(url: str, seconds: float = 5.0, **more: str) -> Seen:
    configured = ChatServerSettings(name="chat-a", health_url=url, **more)
    async with HealthPages() as pages:
        return await soon(pages.look(configured, seconds))


@asynccontextmanager
async def health(answer: web.Response | None = None, *, hang: bool = False) -> AsyncIterator[str]:
    """A Chat Server's health port."""
    never = asyncio.Event()

    async def serve(_: web.Request) -> web.Response:
        if hang:
            await never.wait()
        assert answer is not None
        return answer

    app = web.Application()
    app.router.add_get("/health", serve)
    server = TestServer(app)
    await server.start_server(shutdown_timeout=0.1)
    try:
        yield str(server.make_url("/health"))
    finally:
        await server.close()


@pytest.mark.parametrize("written", list(HealthFormat))
async def test_a_page_is_read(written: HealthFormat) -> None:
    async with health(web.Response(body=write_health(written, 117, 4711, uptime=60))) as url:
        seen = await see(url)
    assert isinstance(seen, Page)
    assert (seen.page.app_dbid, seen.page.process_os_pid, seen.page.uptime) == ("117", "4711", 60)


async def test_the_configured_counters_are_read() -> None:
    body = b"app_dbid=117\nboot=1700000000\nage=90\n"
    async with health(web.Response(body=body)) as url:
        seen = await see(url, start_counter="boot", uptime_counter="age")
    assert isinstance(seen, Page)
    assert (seen.page.started, seen.page.uptime) == (1_700_000_000, 90)


async def test_a_closed_port_is_unreachable() -> None:
    assert await see(f"http://127.0.0.1:{unused_port()}/") == Unreachable("connection refused")


@pytest.mark.parametrize("host", ["chat..example", f"{'a' * 64}.example"])
async def test_a_name_that_nobody_can_ask_for_says_nothing_of_the_server(host: str) -> None:
    assert await see(f"http://{host}:4001/") == Unseen("its name cannot be resolved")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (socket.EAI_NONAME, "name or service not known"),
        (socket.EAI_AGAIN, "temporary failure in name resolution"),
    ],
)
async def test_a_name_server_that_knows_no_address_says_nothing_of_the_server(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise socket.gaierror(number, words.capitalize())

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert await see("http://chat.example:4001/") == Unseen(f"its name cannot be resolved: {words}")


async def test_a_name_server_that_does_not_answer_says_nothing_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(10) and [])
    try:
        seen = await see("http://chat.example:4001/", seconds=0.05)
    finally:
        over.set()
    assert seen == Unseen("its name cannot be resolved: the name server does not answer")


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL]
)
async def test_what_the_daemon_itself_lacks_says_nothing_of_the_server(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    async with health(web.Response(body=b"")) as url:
        monkeypatch.setattr(socket, "socket", fail)
        seen = await see(url)
        monkeypatch.undo()
    assert seen == Unseen(f"this daemon lacks something for a connection: {os.strerror(number).lower()}")


async def test_a_server_that_hangs_is_unreachable() -> None:
    async with health(hang=True) as url:
        assert await see(url, seconds=0.05) == Unreachable("no answer in time")


async def test_a_server_that_accepts_and_says_nothing_is_unreachable() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(talk) as port:
        assert await see(f"http://127.0.0.1:{port}/") == Unreachable("ServerDisconnectedError")


@pytest.mark.parametrize("status", [204, 401, 403, 404, 500, 503])
async def test_an_http_error_is_alive(status: int) -> None:
    async with health(web.Response(status=status)) as url:
        assert await see(url) == Unreadable(f"HTTP {status}", status)


async def test_another_path_of_a_live_listener_is_alive() -> None:
    async with health(web.Response()) as url:
        assert await see(url + "/elsewhere") == Unreadable("HTTP 404", 404)


@pytest.mark.parametrize("body", [b"", b"Welcome", b"\xff\xfe\x00", b"{", b'{"queue_length": 3}'])
async def test_a_page_that_says_nothing_of_its_process_is_alive(body: bytes) -> None:
    async with health(web.Response(body=body)) as url:
        seen = await see(url)
    assert isinstance(seen, Unreadable)
    assert seen.why.startswith("expected app_dbid or process_os_pid")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\napp_dbid=117\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 12\r\n\r\napp_dbid=117",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /again\r\nConnection: close\r\n\r\n",
    ],
    ids=["another protocol", "binary", "cut short", "false gzip", "redirects without end"],
)
async def test_whoever_answers_nonsense_is_alive(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with raw_server(talk) as port:
        assert isinstance(await see(f"http://127.0.0.1:{port}/"), Unreadable)


@asynccontextmanager
async def redirecting(location: str, *, status: int = 302) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that sends us from / elsewhere, and has its page at /page; the paths it was asked for."""
    asked: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/page":
            return web.Response(body=b"process_os_pid=5")
        target = location.replace("OWN", request.host)
        return web.Response(status=status, headers={"Location": target} if location else {})

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    async with TestServer(app) as server:
        yield str(server.make_url("/")), asked


@pytest.mark.parametrize("location", ["/page", "page", "http://OWN/page", "http://OWN/page?a=b#c"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_server_is_followed(location: str, status: int) -> None:
    """The page's path is unknown; a server may send us from / to it."""
    async with redirecting(location, status=status) as (url, asked):
        seen = await see(url)
    assert isinstance(seen, Page)
    assert asked == ["/", "/page"]


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://127.0.0.1:1/page",
            "https://OWN/page",
            "http://user:word@OWN/page",
            "http://chat..example/",
        ),
        *("file:///etc/passwd", "http://[::1/", "http://127.0.0.1:99999/", ""),
    ],
)
async def test_a_redirect_elsewhere_is_not_followed_and_its_sender_is_alive(location: str) -> None:
    async with redirecting(location) as (url, asked):
        seen = await see(url)
    assert seen == Unreadable("HTTP 302: it redirects elsewhere, which is not followed", 302)
    assert asked == ["/"]


async def test_another_server_is_not_asked_however_good_its_page() -> None:
    async with redirecting("/page") as (other, asked_there), redirecting(f"{other}page") as (url, _):
        assert isinstance(await see(url), Unreadable)
        assert isinstance(await see(other), Page)
    assert asked_there == ["/", "/page"]


async def test_redirects_end() -> None:
    async with redirecting("/again") as (url, asked):
        seen = await see(url)
    assert seen == Unreadable("HTTP 302: it redirects without end", 302)
    assert len(asked) == 4


async def test_no_more_of_a_page_is_read_than_any_page_has() -> None:
    body = b"app_dbid=117\n" + b"x" * MAX_PAGE + b"\nprocess_os_pid=5\n"
    async with health(web.Response(body=body)) as url:
        seen = await see(url)
    assert isinstance(seen, Page)
    assert (seen.page.app_dbid, seen.page.process_os_pid) == ("117", None)


async def test_a_page_that_is_cut_off_in_the_middle_of_a_number_says_none() -> None:
    """With fewer of its digits it would be another process, or a counter that ran backwards."""
    for line in (b"process_os_pid=4711", b"messages_total 123456"):
        start = b"app_dbid=117\n#" + b"x" * MAX_PAGE
        body = start[: MAX_PAGE - len(line) + 1] + b"\n" + line + b"\nlast=1\n"
        async with health(web.Response(body=body)) as url:
            seen = await see(url)
        assert seen == Page(HealthPage("117", None, None, None, {}))


async def test_a_large_page_is_taken_apart_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def note(body: bytes, **names: str | None) -> HealthPage:
        threads.append(threading.current_thread() is threading.main_thread())
        return read_health(body, **names)

    monkeypatch.setattr("asyncchatd.watcher.page.read_health", note)
    for size in (100, OFF_LOOP_BYTES + 1):
        async with health(web.Response(body=b"app_dbid=117\n".ljust(size))) as url:
            assert isinstance(await see(url), Page)
    assert threads == [True, False]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_a_listener_that_does_not_fit_our_tls_is_alive(answer: bytes) -> None:
    """It speaks plain HTTP, or refuses our handshake."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async with raw_server(talk) as port:
        assert await see(f"https://127.0.0.1:{port}/") == Unreadable("ClientConnectorSSLError")


async def test_a_server_whose_certificate_is_not_trusted_is_alive(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server, certificates.server_key)
    server = TestServer(web.Application())
    await server.start_server(ssl=context)
    try:
        seen = await see(f"https://127.0.0.1:{server.port}/")
    finally:
        await server.close()
    assert seen == Unreadable("ClientConnectorCertificateError")


async def test_no_idle_connection_takes_the_last_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or pushes, GMS and the looks themselves would get none as long as the Chat Servers live."""
    came = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        writer.close()

    with socket.socket() as lowest_free:
        in_use = lowest_free.fileno()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, HealthPages() as pages:
        port = server.sockets[0].getsockname()[1]
        configured = ChatServerSettings(name="chat-a", health_url=f"http://127.0.0.1:{port}/")
        monkeypatch.setattr(resource, "getrlimit", lambda _: (2 * in_use, 2 * in_use))
        with pytest.raises(OSError, match="Too many open files"):
            await pages.connect(configured, 5.0, asyncio.Protocol)
        assert not came.is_set()
        monkeypatch.setattr(resource, "getrlimit", lambda _: (4 * in_use + 100, 4 * in_use + 100))
        (await pages.connect(configured, 5.0, asyncio.Protocol)).close()
        await soon(came.wait())
