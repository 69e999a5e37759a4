"""Streams: new clients are told the events of a chat as they come, as server-sent events, in the place of polls.

Each event's data is one of a poll's `messages`, its id the index; with `Last-Event-ID` a client goes on behind it. The
last event of all is named `end`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from aiohttp import web

from asyncchatd.gateway.calling.history import History
from asyncchatd.gateway.polls import CROWDED_SECONDS, Beside
from asyncchatd.gateway.watching.looks import Looks
from asyncchatd.gateway.watching.places import Place
from asyncchatd.gateway.watching.watched import Line, Watched, Watching
from asyncchatd.listening import event_stream, has_left, heard_leaving
from asyncchatd.model import Clock
from asyncchatd.stores import StoreError, tell_failure
from asyncchatd.wire import NO_EVENTS, ClientCall, read_position

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

    def end_longest(self) -> bool:
        """End the one that is open for longest, to have its connection. False when none is open."""
        news = next((news for news, goes_on in self._open.items() if goes_on), None)
        if news is not None:
            self._open[news] = False
            news.set()
        return news is not None

    def stop(self) -> None:
        """End all, and open none from now on."""
        self._ending = True
        self.part()

    async def serve(self, call: ClientCall, chat: Watched, request: web.Request) -> web.StreamResponse:
        """Send the events of a chat until it is over, the client goes, or the daemon stops. `call`: from which position
        it asks."""
        response = web.StreamResponse(headers=event_stream.HEADERS)
        response.force_close()  # once it is over, its connection is there for others
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
        place, begun, heard = Place(_asked_from(call, request)), False, True
        self._history.show(call, chat)
        with chat.heard_by(news):
            while self._open[news] and not has_left(request):
                news.clear()
                if heard and not chat.followed:
                    await self._watching.get(chat.chat_id)
                    if not chat.followed:
                        return  # nobody knows it any more
                self._watching.now(chat.chat_id)
                self._looks.polled(chat)
                lines = place.take(chat)
                if lines is not None and not begun:
                    begun = True
                    await _write(response, _begins(chat, lines))
                if lines:
                    chat.gave(lines, self._clock.now())
                    await _write(response, b"".join(_events(lines)))
                if news.is_set():
                    heard = True  # while that was written; the last words come before the end
                    continue
                if begun and chat.followed and chat.ended:
                    await _write(response, END)
                    return
                heard = await self._clock.wait(news, event_stream.HEARTBEAT_SECONDS)
                if not heard:
                    await _write(response, event_stream.ALIVE)


def _begins(chat: Watched, lines: Sequence[Line]) -> bytes:
    """Where a stream begins: a client that asked for no events, and goes before it had one, misses none."""
    first = lines[0].index if lines else chat.next_position
    return event_stream.place(str(max(0, first - 1)))


def _asked_from(call: ClientCall, request: web.Request) -> int:
    """The position behind the last event that the client has, or the one that it asks from."""
    last = read_position(request.headers.get("Last-Event-ID"))
    return call.asked_from if last is None or last < NO_EVENTS else last + 1


def _events(lines: Iterable[Line]) -> Iterable[bytes]:
    return (event_stream.event(line.body, event_id=str(line.index)) for line in lines)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)
