"""A client of GMS nodes, what it is asked, and what nodes answer."""

from __future__ import annotations

import gzip
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import FakeClock, MakeSettings, soon, tokens

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.http_reply import MAX_REPLY
from asyncchatd.gms.pacing import Pacer
from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_reply

GOOD = write_reply(0, TokenNews("chat-1", "user-2", "key-2", "118"), next_position=7, chat_ended=False)


def _too_large() -> bytes:
    """A packed body of more than any reply may unpack to. It has no end: nobody reads so far. Each MiB is packed as
    the one before, and so only once."""
    packing = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    mebibyte = packing.compress(b" " * (1 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + mebibyte * (MAX_REPLY // (1 << 20) + 1)


TOO_LARGE = _too_large()


@asynccontextmanager
async def client(
    make_settings: MakeSettings, *bases: str, clock: FakeClock | None = None, **more: object
) -> AsyncIterator[GmsClient]:
    """A client of these nodes; pauses of the pacer do not matter here."""
    settings = make_settings(gms={"nodes": list(bases), **more})
    clock = clock or FakeClock(jumping=True)
    async with GmsClient(settings.gms, Pacer(1e6, clock), clock) as opened:
        yield opened


async def ping(gms: GmsClient, chat_id: str = "chat-1", *, alias: str = "117") -> Answer:
    return await soon(gms.refresh("support", tokens(chat_id, alias=alias), 3))


def standing(gms: GmsClient) -> list[bool]:
    """Which nodes are in good standing, in order."""
    return [node.failures == 0 for node in gms.nodes]


def reply_of(status_code: int, **more: object) -> bytes:
    """A reply with this status code."""
    return write_reply(status_code, TokenNews("chat-1"), **more)  # type: ignore[arg-type]


def reply_for(chat_id: str | None, *, key: str = "key-2", ended: bool = False) -> bytes:
    """A good reply that names this chat."""
    return write_reply(0, TokenNews(chat_id, "user-2", key, "118"), next_position=7, chat_ended=ended)


@asynccontextmanager
async def node(
    serve: object, *, port: int | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A GMS node on loopback that answers every POST with `serve`."""
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{tail:.*}", serve)  # type: ignore[arg-type]
    server = TestServer(app, port=port or 0)
    await server.start_server(ssl=tls, shutdown_timeout=0.1)
    try:
        yield f"{server.scheme}://127.0.0.1:{server.port}/genesys"
    finally:
        await server.close()
