"""The way of files: nothing of a session leaves after its time, and what is in time arrives whole."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from conftest import FakeClock, MakeSettings, soon, tokens

from asyncchatd.gms.client import Answer
from asyncchatd.gms.streams import Opened, Streams
from asyncchatd.gms.trouble import Trouble
from asyncchatd.wire.chat_api import Alive, Call, NodeTrouble

from .client_rig import GOOD, client, node, standing
from .rig import speechless

pytestmark = pytest.mark.usefixtures("events")

OURS = tokens("chat-1")
BODY = b"secureKey=key-1&and=more"
HELD_SECONDS = 10.0

Send = Callable[[Streams, float], Awaitable[Answer]]


async def uploaded(streams: Streams, until: float) -> Answer:
    async def pieces() -> AsyncIterator[bytes]:
        yield BODY[:9]
        yield BODY[9:]

    call = Call("support/chat-1/file", b"", "multipart/form-data")
    return await streams.upload(call, pieces(), len(BODY), OURS, until=until)


async def downloaded(streams: Streams, until: float) -> Answer:
    call = Call("support/chat-1/file/7/download", BODY, "application/x-www-form-urlencoded")
    opened = await streams.open(call, OURS, until=until)
    return await opened.answer() if isinstance(opened, Opened) else opened


@pytest.mark.parametrize("send", [uploaded, downloaded])
@pytest.mark.parametrize("late", [False, True])
async def test_a_file_leaves_up_to_the_last_moment_and_not_after_it(
    make_settings: MakeSettings, send: Send, late: bool
) -> None:
    """The process stood still: another one may have the session by now."""
    got: list[tuple[bytes, str | None]] = []

    async def serve(request: web.Request) -> web.Response:
        got.append((await request.read(), request.headers.get("Content-Length")))
        return web.Response(body=GOOD)

    clock = FakeClock(jumping=True)
    async with node(serve) as base, client(make_settings, base, clock=clock) as gms:
        streams = Streams(gms, clock)
        until = clock.monotonic() + HELD_SECONDS
        clock.stall(HELD_SECONDS + late)
        answer = await soon(send(streams, until))
        await streams.close()
        assert standing(gms) == [True]
    assert not answer.perhaps_taken
    if late:
        assert answer.outcome == NodeTrouble(Trouble.TOO_LATE)
        assert got == []
    else:
        assert isinstance(answer.outcome, Alive)
        assert got == [(BODY, str(len(BODY)))]


@pytest.mark.parametrize("send", [uploaded, downloaded])
async def test_a_file_of_which_nothing_left_was_taken_by_nobody(
    make_settings: MakeSettings, send: Send
) -> None:
    """Its node never answers the handshake."""
    clock = FakeClock(jumping=True)
    async with (
        speechless() as (port, *_),
        client(
            make_settings, f"https://127.0.0.1:{port}/genesys", clock=clock, connect_timeout="10ms"
        ) as gms,
    ):
        streams = Streams(gms, clock)
        answer = await soon(send(streams, math.inf))
        await streams.close()
    assert isinstance(answer.outcome, NodeTrouble)
    assert (answer.outcome.cause, answer.perhaps_taken) == (Trouble.CONNECT, False)
