"""The daemon's picture once a second, for everybody who looks: server-sent events.

First come all moments of the history, then with each picture those that are new to the one who looks, who misses none
of them. One producer makes the picture, whoever many look, and it runs only while somebody does. Who reads slowly
misses pictures, nothing is queued for them; who does not read at all is let go. The number of lookers is bounded: each
is a connection that stays.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from aiohttp import web

from asyncchatd.control.shapes import Shape
from asyncchatd.control.status.history import History
from asyncchatd.listening import event_stream
from asyncchatd.model import Clock
from asyncchatd.stores import StoreError, in_full

LISTENERS = 16
LISTENERS_OF_ONE = 8
"""Of one address: a page that forgets to close, or does not mean to, leaves places for others."""
PERIOD_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
"""When there is no picture, because the store hangs for instance, the connection still shows life."""

WRITE_SECONDS = 10.0
"""How long a listener may take to read one picture."""

RECONNECT_MS = 2_000


Said = Shape | Sequence[Shape] | Mapping[str, str]


class TooManyListeners(Exception):
    """Nobody more may look: all places are taken, or the daemon stops. The text says which."""


class Live:
    """The pictures that go on being sent to who looks. `serve` is a request's handler; `end` and `ended` belong to the
    application's shutdown and cleanup."""

    def __init__(self, take: Callable[[], Awaitable[Shape]], history: History, clock: Clock) -> None:
        """`take` makes the picture. It may raise `StoreError`, which is told in its place."""
        self._take = take
        self._history = history
        self._clock = clock
        self.listeners = 0
        """How many look."""
        self._clients: Counter[str] = Counter()
        """How many of each address."""
        self._producer: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._latest = b""
        self._closing = False
        self._partings = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send pictures until the client goes or the daemon stops. Raises `TooManyListeners`."""
        client = request.remote or ""  # none over a Unix socket, which only those who may can open
        if self._closing:
            raise TooManyListeners("the daemon stops")
        if self.listeners >= LISTENERS:
            raise TooManyListeners(f"{LISTENERS} are listening already; close one")
        if client and self._clients[client] >= LISTENERS_OF_ONE:
            raise TooManyListeners(f"{LISTENERS_OF_ONE} of this address are listening already; close one")
        response = web.StreamResponse(headers=event_stream.HEADERS)
        self._join(client)
        partings = self._partings
        try:
            await response.prepare(request)
            news = self._news
            moments, seen = self._history.after(0)
            history = _event("history", moments)
            await _send(response, event_stream.retry(RECONNECT_MS) + history + self._latest)
            while not self._closing and partings == self._partings:
                seen = await self._send_next(response, news, seen)
                news = self._news
            if self._closing:
                await _send(response, _event("stopping", {}))
        except (TimeoutError, ConnectionError):
            # Gone, or it reads nothing: then what is buffered for it must not be waited for.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._leave(client)
        return response

    def part(self) -> None:
        """Let those go who look now, soon: whoever still may comes again."""
        self._partings += 1

    async def end(self, _: web.Application) -> None:
        """Let every listener go."""
        self._closing = True
        self._news.set()

    async def ended(self, _: web.Application) -> None:
        """Wait until nothing of it runs any more."""
        if self._producer is not None:
            self._producer.cancel()
            await asyncio.wait((self._producer,))

    async def _send_next(self, response: web.StreamResponse, news: asyncio.Event, seen: int) -> int:
        """Send what comes next to one who has `seen` so many moments; how many it has then."""
        if await self._clock.wait(news, HEARTBEAT_SECONDS):
            if not self._closing:
                moments, seen = self._history.after(seen)
                await _send(response, (_event("moments", moments) if moments else b"") + self._latest)
        else:
            await _send(response, event_stream.ALIVE)
        if self._producer is not None and self._producer.done():
            self._producer.result()  # a fault of ours: it breaks the answer off and is logged
        return seen

    def _leave(self, client: str) -> None:
        self.listeners -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def _join(self, client: str) -> None:
        self.listeners += 1
        self._clients[client] += 1
        if self._producer is None or self._producer.done():
            self._latest = b""  # an old picture is worse than none
            self._producer = asyncio.create_task(self._produce(), name="live")

    async def _produce(self) -> None:
        while self.listeners:
            try:
                picture = await self._take()
            except StoreError as error:
                self._publish(_event("trouble", {"message": in_full(error)}))
            else:
                self._publish(_event("picture", picture))
            await self._clock.sleep(PERIOD_SECONDS)

    def _publish(self, event: bytes) -> None:
        self._latest = event
        told, self._news = self._news, asyncio.Event()
        told.set()


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)


def _event(name: str, data: Said) -> bytes:
    return event_stream.event(_json(data), name=name)


def _json(data: Said) -> bytes:
    try:
        return msgspec.json.encode(data)
    except UnicodeEncodeError:  # half a surrogate pair in somebody's name
        return json.dumps(msgspec.to_builtins(data)).encode()
