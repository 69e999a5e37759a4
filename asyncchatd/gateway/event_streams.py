"""Streams: new clients are told the events of a chat as they come, as server-sent events, in the place of polls.

Each event's data is one of a poll's `messages`, its id the index; with `Last-Event-ID` a client goes on behind it. The
last event of all is named `end`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from asyncchatd.gateway.history import History
from asyncchatd.gateway.looks import Looks
from asyncchatd.gateway.polls import CROWDED_SECONDS, Beside
from asyncchatd.gateway.watched import Line, Watched, Watching
from asyncchatd.listening import event_stream, has_left, heard_leaving
from asyncchatd.model import Clock
from asyncchatd.stores import StoreError, tell_failure
from asyncchatd.wire import ALL_EVENTS, ClientCall, read_position

RECONNECT_MS = 1_000

WRITE_SECONDS = 10.0
"""How long a client may take to read what it is sent."""

END = event_stream.event(b'{"chatEnded":true}', name="end")


class EventStreams:
    """The streams of all clients."""

    def __init__(
        self, watching: Watching, looks: Looks, history: History, beside: Beside, clock: Clock
    ) -> None:
        self._watching = watching
        self._looks = looks
        self._history = history
        self._beside = beside
        self._clock = clock
        self._open: dict[asyncio.Event, bool] = {}
        """Those that are open, and whether each goes on."""
        self._ending = False

    def __len__(self) -> int:
        return len(self._open)

    def part(self) -> None:
        """End all that are open; their clients may come again."""
        for news in self._open:
            self._open[news] = False
            news.set()

    def stop(self) -> None:
        """End all, and open none from now on."""
        self._ending = True
        self.part()

    async def serve(self, call: ClientCall, chat: Watched, request: web.Request) -> web.StreamResponse:
        """Send the events of a chat until it is over, the client goes, or the daemon stops. `call`: from which position
        it asks."""
        response = web.StreamResponse(headers=event_stream.HEADERS)
        news = asyncio.Event()
        self._open[news] = not self._ending
        try:
            with self._beside.place(chat.chat_id) as has_place, heard_leaving(request, news):
                await response.prepare(request)
                await _write(response, event_stream.retry(RECONNECT_MS))
                if has_place:
                    await self._send_on(response, call, chat, request, news)
                else:
                    await self._clock.wait(news, CROWDED_SECONDS)
        except (TimeoutError, ConnectionError):
            # Gone, or it reads nothing: then what is buffered for it must not be waited for.
            if request.transport is not None:
                request.transport.abort()
        except StoreError as error:  # the client comes back
            tell_failure(error)
        finally:
            del self._open[news]
        return response

    async def _send_on(
        self,
        response: web.StreamResponse,
        call: ClientCall,
        chat: Watched,
        request: web.Request,
        news: asyncio.Event,
    ) -> None:
        position = _asked_from(call, request)
        told: int | None = None
        """The highest id of an event that was known when it was sent the last time."""
        self._history.show(call, chat)
        while self._open[news] and not has_left(request):
            news.clear()
            chat = await self._watching.get(chat.chat_id)  # another one, when it was dropped meanwhile
            if not chat.is_known:
                return
            with chat.heard_by(news):
                self._looks.polled(chat)
                if told is None and chat.looks_back_for(position):
                    lines = []
                elif told is None:
                    lines, told = chat.behind(position), chat.newest
                else:
                    lines, told = [line for line in chat.lines if line.id > told], max(told, chat.newest)
                if lines:
                    chat.gave(lines, self._clock.now())
                    await _write(response, b"".join(_events(lines)))
                if chat.ended:
                    await _write(response, END)
                    return
                if not lines and not await self._clock.wait(news, event_stream.HEARTBEAT_SECONDS):
                    await _write(response, event_stream.ALIVE)


def _asked_from(call: ClientCall, request: web.Request) -> int:
    """The position behind the last event that the client has, or the one that it asks from."""
    last = read_position(request.headers.get("Last-Event-ID"))
    return call.asked_from if last is None or last < ALL_EVENTS else last + 1


def _events(lines: Iterable[Line]) -> Iterable[bytes]:
    return (event_stream.event(line.body, event_id=str(line.index)) for line in lines)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)
