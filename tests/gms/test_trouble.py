"""The troubles of a request to a node, each with its words."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
from conftest import (
    PATIENCE,
    Certificates,
    ScriptedNode,
    Then,
    claimed_port,
    crowded_port,
    raw_server,
    server_tls,
    soon,
)

from asyncchatd.gms.http_reply import PORTION
from asyncchatd.gms.trouble import ExchangeError, Trouble
from asyncchatd.wire.long_reply import MAX_VALUE

from .rig import HALF, Wire, ask, failure, on_each_loop, pool_of, post, speechless, trouble, until_open

# No connection may have been left to the garbage collector, and no exception to the event loop.
pytestmark = pytest.mark.usefixtures("events")


# -- no answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "then", "cause", "detail"),
    [
        (b"", Then.HANG_UP, Trouble.DISCONNECTED, "hung up"),
        (b"", Then.RESET, Trouble.DISCONNECTED, "ConnectionResetError"),
        (b"HTTP/1.1 102 Processing\r\n\r\n", Then.HANG_UP, Trouble.CUT_SHORT, "hung up"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Then.HANG_UP, Trouble.CUT_SHORT, "hung up"),
        (HALF, Then.HANG_UP, Trouble.CUT_SHORT, "hung up"),
        (HALF, Then.RESET, Trouble.CUT_SHORT, "ConnectionResetError"),
        (b"HTTP/1.1 200 OK\r\n\r\n{", Then.RESET, Trouble.CUT_SHORT, "ConnectionResetError"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Then.STAY, Trouble.PROTOCOL, "Expected HTTP/, RTSP/ or ICE/"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
            Then.STAY,
            Trouble.PROTOCOL,
            "HTTP 200, not encoded as it says",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n" + b'{"a":"' + b"x" * (MAX_VALUE + 2 * PORTION),
            Then.STAY,
            Trouble.REPLY_TOO_LARGE,
            f"HTTP 200, one value of more than {MAX_VALUE} bytes",
        ),
    ],
    ids=[
        "hung up",
        "reset",
        "hung up after an interim answer",
        "cut short in the head",
        "cut short",
        "cut short by a reset",
        "of unsaid length, cut short by a reset",
        "not HTTP",
        "false gzip",
        "too large",
    ],
)
@on_each_loop
async def test_what_is_no_answer_says_why_and_its_connection_is_closed(
    wire: Wire, said: bytes, then: Then, cause: str, detail: str
) -> None:
    async with wire.open() as (node, pool):
        node.say(said, then)
        assert await trouble(pool) == (cause, detail)
        await until_open(pool, 0)
        node.answer(b"well again")
        assert await ask(pool) == b"well again"


@on_each_loop
async def test_a_kept_connection_that_the_node_drops_with_the_next_request_is_told_as_such(
    wire: Wire,
) -> None:
    async with wire.open() as (node, pool):
        node.answer()
        node.hang_up()
        node.answer(b"here again")
        await ask(pool)
        assert (await trouble(pool))[0] == Trouble.DISCONNECTED
        assert await ask(pool, fresh=True) == b"here again"


@on_each_loop
async def test_no_connection_says_why() -> None:
    with claimed_port() as claim:
        closed = claim.getsockname()[1]
        async with pool_of(f"http://127.0.0.1:{closed}/x") as pool:
            assert await trouble(pool) == (Trouble.CONNECT, "connection refused")
        for host in ("a" * 64 + ".example", "gms..example"):
            async with pool_of(f"http://{host}:{closed}/x") as pool:
                assert (await trouble(pool))[0] == Trouble.CONNECT


async def test_a_name_without_an_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with pool_of("http://gms.example/x") as pool:
        assert await trouble(pool) == (
            Trouble.CONNECT,
            "its name cannot be resolved: name or service not known",
        )


@on_each_loop
async def test_a_node_that_takes_no_connection_is_given_up_soon() -> None:
    with crowded_port() as port:
        async with pool_of(f"http://127.0.0.1:{port}/x", connect_patience=0.1) as pool:
            assert await trouble(pool) == (Trouble.CONNECT, "no connection within 0.1 s")


@on_each_loop
async def test_a_node_that_never_answers_the_handshake_is_given_up_soon() -> None:
    async with (
        speechless() as (port, _, gone),
        pool_of(f"https://127.0.0.1:{port}/x", connect_patience=0.1) as pool,
    ):
        assert await trouble(pool) == (Trouble.CONNECT, "no connection within 0.1 s")
        await soon(gone.wait())


# -- TLS -------------------------------------------------------------------------------------------------------


@on_each_loop
async def test_a_certificate_that_nobody_vouches_for_is_told_as_such(certificates: Certificates) -> None:
    async with ScriptedNode(server_tls(certificates)) as node, pool_of(node.base) as pool:
        cause, detail = await trouble(pool)
        assert cause == Trouble.TLS
        assert "self-signed certificate" in detail
        assert node.requests == []


@on_each_loop
async def test_a_certificate_of_another_host_is_told_as_such(certificates: Certificates) -> None:
    async with (
        ScriptedNode(server_tls(certificates)) as node,
        pool_of(
            f"https://localhost:{node.port}/genesys", ssl.create_default_context(cafile=certificates.ca)
        ) as pool,
    ):
        cause, detail = await trouble(pool)
        assert cause == Trouble.TLS
        assert "certificate is not valid for 'localhost'" in detail
        assert node.requests == []


@on_each_loop
async def test_a_node_that_speaks_no_tls_is_told_as_such() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with raw_server(plain) as port, pool_of(f"https://127.0.0.1:{port}/x") as pool:
        assert await trouble(pool) == (Trouble.TLS, "wrong version number")


@on_each_loop
async def test_secrets_are_in_no_error(certificates: Certificates) -> None:
    secret = "4ee15d7e1c343c8e"
    said = [f"HTTP/1.1 {secret}\r\n\r\n", f"{secret}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{secret}\r\n\r\n"]
    async with (
        ScriptedNode() as node,
        ScriptedNode(server_tls(certificates)) as distrusted,
        pool_of(node.base, headers={"apikey": secret}) as pool,
        pool_of(distrusted.base, headers={"apikey": secret}) as tls_pool,
    ):
        node.hang_up()
        for words in said:
            node.say(words.encode(), Then.HANG_UP)
        for asked in (*[pool] * 4, tls_pool):
            with pytest.raises(ExchangeError) as failed:
                await post(asked, f"support/{secret}/refresh", f"secureKey={secret}".encode())
            assert secret not in f"{failed.value!r} {failed.value} {failed.value.__cause__!r}"
        assert secret not in repr(pool)


# -- what was not asked for ----------------------------------------------------------------------------


@on_each_loop
async def test_what_an_exchange_came_to_says_what_is_known_of_it(wire: Wire) -> None:
    def told(error: ExchangeError) -> tuple[bool, bool, bool, bool]:
        return error.sent, error.kept, error.begun, error.stale

    async with wire.open() as (node, pool):
        node.hang_up()
        assert told(await failure(pool)) == (True, False, False, False)
        node.say(HALF, Then.HANG_UP)
        assert told(await failure(pool)) == (True, False, True, False)
        node.answer()
        node.hang_up()
        await ask(pool)
        assert told(await failure(pool)) == (True, True, False, False)
        node.answer()
        node.hang_up()
        await ask(pool)
        pool._idle[0]._round_trip = PATIENCE
        assert told(await failure(pool)) == (True, True, False, True)
