"""Names of hosts: a name server that hangs or fails, hosts that move, and who waits for whom."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import PATIENCE, FakeClock, MakeSettings, PromptStore, ScriptedNode, settings_of, soon, tokens

from asyncchatd import names as names_module
from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.pacing import Pacer
from asyncchatd.gms.trouble import Trouble
from asyncchatd.model.data import TokenNews
from asyncchatd.names import MOST_AT_ONCE, Names, NamesForAiohttp
from asyncchatd.standin.messages import write_reply
from asyncchatd.watcher.watcher import Watcher
from asyncchatd.wire.chat_api.outcome import Alive, NodeTrouble

PORT = 8080

GOOD = write_reply(0, TokenNews("chat-1", "user-2", "key-2", "118"), next_position=7, chat_ended=False)

Found = list[tuple[object, ...]]


class NameServer:
    """Takes the place of the system's: each name has addresses, hangs, or is not known."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str]] = {}
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.over = threading.Event()
        """Nobody hangs any more."""
        self._asked = threading.Condition()

    def __call__(self, host: str, port: object, *_: object, **__: object) -> Found:
        with self._asked:
            self.asked.append(host)
            self._asked.notify_all()
        if host in self.hanging:
            self.over.wait(PATIENCE)
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port or 0))
            for address in self.hosts[host]
        ]

    async def until_asked(self, times: int) -> None:
        def wait() -> bool:
            with self._asked:
                return self._asked.wait_for(lambda: len(self.asked) >= times, PATIENCE)

        assert await asyncio.to_thread(wait)


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    real = socket.getaddrinfo

    def look(host: object, *more: object, **named: object) -> object:
        if isinstance(host, str) and host.rstrip(".").endswith(".example"):
            return server(host, *more, **named)
        return cast(Callable[..., object], real)(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield server
    server.over.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may be looked up anew at once."""
    monkeypatch.setattr(names_module, "PAUSE_SECONDS", 0.0)


async def addresses(names: Names, host: str, port: int = PORT) -> list[str]:
    return [str(where[0]) for *_, where in await soon(names.addresses(host, port))]


async def new_addresses(names: Names, host: str, expected: list[str]) -> None:
    async with asyncio.timeout(PATIENCE):
        while sorted(await addresses(names, host)) != expected:  # noqa: ASYNC110 - it tells only those who ask
            await asyncio.sleep(0.001)


async def test_a_name_is_looked_up_once_for_all_who_wait(name_server: NameServer) -> None:
    name_server.hosts["gms.example"] = ["192.0.2.1", "192.0.2.2"]
    names = Names()
    found = await asyncio.gather(*(addresses(names, "gms.example") for _ in range(5)))
    assert name_server.asked == ["gms.example"]
    assert {tuple(sorted(each)) for each in found} == {("192.0.2.1", "192.0.2.2")}
    assert {each[0] for each in found} == {"192.0.2.1", "192.0.2.2"}


async def test_two_ports_of_a_host_are_one_look(name_server: NameServer) -> None:
    name_server.hosts["gms.example"] = ["192.0.2.1"]
    names = Names()
    found = [*await names.addresses("gms.example", 80), *await names.addresses("gms.example", 443)]
    assert [where for *_, where in found] == [("192.0.2.1", 80), ("192.0.2.1", 443)]
    assert name_server.asked == ["gms.example"]


async def test_the_dot_that_ends_a_full_name_is_looked_up_with_it(name_server: NameServer) -> None:
    name_server.hosts["gms.example."] = ["192.0.2.1"]
    assert await addresses(Names(), "gms.example.") == ["192.0.2.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_no_question_for_a_name_server(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "Thread", None)
    assert await addresses(Names(), host) == [host]


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "gms..example", ""])
async def test_what_cannot_be_a_name_is_an_error(host: str) -> None:
    with pytest.raises((OSError, UnicodeError)):
        await addresses(Names(), host)


async def test_who_waits_may_give_up_and_the_look_goes_on(name_server: NameServer) -> None:
    """A first name server that is dead makes every look slower than a connection may take."""
    name_server.hosts["gms.example"] = ["192.0.2.1"]
    name_server.hanging.add("gms.example")
    names = Names()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await names.addresses("gms.example", PORT)
    name_server.over.set()
    assert await addresses(names, "gms.example") == ["192.0.2.1"]
    assert name_server.asked == ["gms.example"]


async def test_a_name_that_hangs_holds_nothing_but_its_own_thread(name_server: NameServer) -> None:
    hanging = {f"health-{number}.example" for number in range(MOST_AT_ONCE - 1)}
    name_server.hanging |= hanging
    name_server.hosts["gms.example"] = ["192.0.2.1"]
    names = Names()
    waiting = [asyncio.create_task(names.addresses(host, PORT)) for host in hanging]
    await name_server.until_asked(len(hanging))
    assert await addresses(names, "gms.example") == ["192.0.2.1"]
    name_server.over.set()
    assert len(await soon(asyncio.gather(*waiting, return_exceptions=True))) == len(hanging)


async def test_the_threads_of_one_side_are_bounded(name_server: NameServer) -> None:
    name_server.hanging |= {f"h{number}.example" for number in range(MOST_AT_ONCE + 5)}
    names = Names()
    waiting = [asyncio.create_task(names.addresses(host, PORT)) for host in name_server.hanging]
    await name_server.until_asked(MOST_AT_ONCE)
    looking = [each for each in threading.enumerate() if each.name.startswith("name h")]
    assert len(looking) == MOST_AT_ONCE == len(name_server.asked)
    name_server.over.set()
    await soon(asyncio.gather(*waiting, return_exceptions=True))
    assert len(name_server.asked) == MOST_AT_ONCE + 5


async def test_known_addresses_serve_while_the_name_server_fails(
    name_server: NameServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "BELIEVED_SECONDS", 0.0)
    name_server.hosts["gms.example"] = ["192.0.2.1"]
    names = Names()
    assert await addresses(names, "gms.example") == ["192.0.2.1"]
    del name_server.hosts["gms.example"]
    for times in (2, 3):
        assert await addresses(names, "gms.example") == ["192.0.2.1"]
        await name_server.until_asked(times)
        await asyncio.sleep(0.01)


async def test_a_host_in_doubt_is_looked_up_anew_at_once(name_server: NameServer, impatient: None) -> None:
    name_server.hosts["gms.example"] = ["192.0.2.1"]
    names = Names()
    assert await addresses(names, "gms.example") == ["192.0.2.1"]
    name_server.hosts["gms.example"] = ["192.0.2.9"]
    names.doubt("gms.example")
    await new_addresses(names, "gms.example", ["192.0.2.9"])
    assert name_server.asked == ["gms.example"] * 2


async def test_a_host_in_doubt_is_looked_up_once_a_second_at_most(name_server: NameServer) -> None:
    name_server.hosts["gms.example"] = ["192.0.2.1"]
    names = Names()
    for _ in range(100):
        assert await addresses(names, "gms.example") == ["192.0.2.1"]
        names.doubt("gms.example")
    assert name_server.asked == ["gms.example"]


async def test_no_thread_for_a_look_is_an_error_and_not_the_end(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    name_server.hosts["gms.example"] = ["192.0.2.1"]
    names = Names()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(OSError, match="no thread"):
            await addresses(names, "gms.example")
    assert await addresses(names, "gms.example") == ["192.0.2.1"]


async def test_aiohttps_client_asks_them(name_server: NameServer) -> None:
    name_server.hosts["chat-1.example"] = ["127.0.0.1"]

    async def here(_: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/", here)
    async with TestServer(app) as server:
        connector = aiohttp.TCPConnector(use_dns_cache=False, resolver=NamesForAiohttp(Names()))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://chat-1.example:{server.port}/") as response,
        ):
            assert await response.text() == "here"
    assert name_server.asked == ["chat-1.example"]


async def test_an_interface_belongs_to_a_link_local_address(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("fe80::1", 0, 0, 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    resolver = NamesForAiohttp(Names())
    [address] = await soon(resolver.resolve("chat-1.example", PORT))
    assert (address["host"], address["port"]) == ("fe80::1%1", PORT)
    with pytest.raises(OSError, match="of this kind"):
        await soon(resolver.resolve("chat-1.example", PORT, socket.AF_INET))


# -- pings and health pages ----------------------------------------------------------------------


async def ping(gms: GmsClient) -> Answer:
    return await soon(gms.refresh("support", tokens("chat-1"), 3))


async def test_health_names_that_hang_do_not_hold_up_a_ping(
    name_server: NameServer, make_settings: MakeSettings, clock: FakeClock, store: PromptStore
) -> None:
    hanging = [f"health-{number}.example" for number in range(40)]
    name_server.hanging.update(hanging)
    name_server.hosts["gms.example"] = ["127.0.0.1"]
    servers = [{"name": host, "health_url": f"http://{host}/"} for host in hanging]
    async with ScriptedNode() as node:
        node.answer(GOOD)
        settings = make_settings(
            gms={"nodes": [f"http://gms.example:{node.port}/genesys"]}, chat_servers=servers
        )
        watcher = Watcher(store, settings, clock, asyncio.Event())
        await watcher.load()
        watching = asyncio.create_task(watcher.run())
        await name_server.until_asked(len(hanging))
        async with GmsClient(settings.gms, Pacer(1e6, clock), clock) as gms:
            assert isinstance((await ping(gms)).outcome, Alive)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_reload_while_the_name_server_fails_keeps_the_addresses(
    name_server: NameServer, make_settings: MakeSettings
) -> None:
    clock = FakeClock(jumping=True)
    name_server.hosts["gms.example"] = ["127.0.0.1"]
    async with ScriptedNode() as node:
        node.answer(GOOD, times=2)
        settings = make_settings(gms={"nodes": [f"http://gms.example:{node.port}/genesys"]}).gms
        async with GmsClient(settings, Pacer(1e6, clock), clock) as gms:
            assert isinstance((await ping(gms)).outcome, Alive)
            name_server.hosts.clear()
            gms.reload(settings_of().model_copy(update={"gms": settings}))
            assert isinstance((await ping(gms)).outcome, Alive)


async def test_a_node_that_moved_is_found_at_once(
    name_server: NameServer, impatient: None, make_settings: MakeSettings
) -> None:
    clock = FakeClock(jumping=True)
    name_server.hosts["gms.example"] = ["127.0.0.3"]
    async with ScriptedNode() as node:  # it listens on another address
        node.answer(GOOD)
        settings = make_settings(gms={"nodes": [f"http://gms.example:{node.port}/genesys"]}).gms
        async with GmsClient(settings, Pacer(1e6, clock), clock) as gms:
            await addresses(gms._names, "gms.example")
            name_server.hosts["gms.example"] = ["127.0.0.1"]
            lost = (await ping(gms)).outcome
            assert isinstance(lost, NodeTrouble)
            assert lost.cause == Trouble.CONNECT
            await new_addresses(gms._names, "gms.example", ["127.0.0.1"])
            await clock.advance(gms.retry_in())
            assert isinstance((await ping(gms)).outcome, Alive)
