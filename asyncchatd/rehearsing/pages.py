"""Many chat pages in a process of their own, which do nothing but poll.

Thousands of pages on aiohttp would take more of the machine than the daemon that is rehearsed, so these write and read
the bytes of a poll themselves. Each has a connection that it keeps, as browsers do, and asks again `pause` seconds
after each answer. The parent process says on the standard input which pages there are (`Asked`, a line of JSON), then
`begin` and `end`; `Polled` comes back after each. It ends when its parent has gone.
"""

from __future__ import annotations

import asyncio
import random
import re
import resource
import sys
import time
from collections.abc import Callable
from urllib.parse import urlencode

import msgspec

from asyncchatd.listening import raise_file_limit

OPENED_PER_SECOND = 1_000
AGAIN_SECONDS = 1.0
"""A page whose connection was closed opens another one after so long."""

LAG_SECONDS = 0.05
"""So often this process looks whether it is late itself."""

SPOKEN = "written at "
"""What the text of an agent's message begins with; behind it stands when that was, by the clock that all processes of a
host share."""


class PageOf(msgspec.Struct, frozen=True):
    """One page, and what it knows of its chat."""

    chat_id: str
    user_id: str
    secure_key: str
    alias: str
    position: int


class Asked(msgspec.Struct, frozen=True):
    """Which pages there are."""

    host: str
    port: int
    path: str
    """Of the chat service: `/genesys/2/chat/SERVICE`."""
    pause: float
    hold: float
    """Seconds for which a poll without news is held."""
    pages: list[PageOf]


class Polled(msgspec.Struct):
    """What the pages saw since they were asked the last time. Durations are seconds."""

    open: int = 0
    """Pages that have their connection."""
    answered: int = 0
    late: list[float] = []
    """How much later than its hold each poll without news was answered, unsorted."""
    seen: list[float] = []
    """How old each agent's message was when its page had it."""
    failed: int = 0
    """Answers that are none of a poll."""
    cut: int = 0
    """Connections that were closed under a page."""
    ended: int = 0
    lag: float = 0.0
    """The longest that this process was late itself."""
    processor: float = 0.0
    """What it took of one."""


class Pages:
    """All of them."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.polled = Polled()
        self.going = True
        self._open: set[Page] = set()
        self._all_open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open the connections of all, one after the other."""
        for number, page in enumerate(self.asked.pages):
            self.connect(Page(self, page))
            if number % (OPENED_PER_SECOND // 20) == 0:
                await asyncio.sleep(1 / 20)
        await self._all_open.wait()

    def connect(self, page: Page, after: float = 0.0) -> None:
        """Give a page its connection."""
        task = asyncio.get_running_loop().create_task(self._connect(page, after))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, page: Page, after: float) -> None:
        await asyncio.sleep(after)
        while self.going:
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: page, self.asked.host, self.asked.port
                )
                return
            except OSError:
                await asyncio.sleep(AGAIN_SECONDS)

    def opened(self, page: Page) -> None:
        """A page has its connection."""
        self._open.add(page)
        if len(self._open) == len(self.asked.pages):
            self._all_open.set()

    def closed(self, page: Page) -> None:
        """A page's connection was closed."""
        self._open.discard(page)
        if self.going:
            self.polled.cut += 1
            self.connect(page, AGAIN_SECONDS)

    async def watch_itself(self) -> None:
        """Root task: how late this process is."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(LAG_SECONDS)
            self.polled.lag = max(self.polled.lag, time.monotonic() - began - LAG_SECONDS)

    def told(self) -> Polled:
        """What was seen; from now on it is counted anew."""
        polled, self.polled = self.polled, Polled(processor=-_processor())
        polled.open = len(self._open)
        polled.processor += _processor()
        return polled


class Page(asyncio.Protocol):
    """One page, which is its connection as well."""

    __slots__ = ("_buffer", "_head", "_pages", "_position", "_sent", "_timer", "_transport", "_triple")

    def __init__(self, pages: Pages, of: PageOf) -> None:
        self._pages = pages
        self._position = of.position
        asked = pages.asked
        self._triple = urlencode(
            {"userId": of.user_id, "secureKey": of.secure_key, "alias": of.alias, "message": ""}
        )
        self._head = (
            f"POST {asked.path}/{of.chat_id}/refresh HTTP/1.1\r\nHost: {asked.host}:{asked.port}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
        )
        self._buffer = b""
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time at a random moment of the pause: pages are not opened all at once."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._buffer = transport, b""
        self._pages.opened(self)
        self._after(random.uniform(0, self._pages.asked.pause))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._pages.closed(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        if length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        self._take(head, body)
        if self._pages.going:
            self._after(self._pages.asked.pause)

    def _after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._poll)

    def _poll(self) -> None:
        if self._transport is None or not self._pages.going:
            return
        form = f"{self._triple}&transcriptPosition={self._position}"
        self._sent = time.monotonic()
        self._transport.write(f"{self._head}Content-Length: {len(form)}\r\n\r\n{form}".encode())

    def _take(self, head: bytes, body: bytes) -> None:
        polled, now = self._pages.polled, time.monotonic()
        following = _FOLLOWING.search(body)
        if b" 200 " not in head[:15] or not body.startswith(b'{"statusCode":0') or following is None:
            polled.failed += 1
            return
        polled.answered += 1
        polled.ended += b'"chatEnded":true' in body
        self._position = int(following[1])
        if b'"messages":[]' in body:
            polled.late.append(max(0.0, now - self._sent - self._pages.asked.hold))
        else:
            polled.seen += [max(0.0, now - float(each)) for each in _SPOKEN.findall(body)]


_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_FOLLOWING = re.compile(rb'"nextPosition":(\d+)')
_SPOKEN = re.compile(SPOKEN.encode() + rb"([0-9.]+)")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 30)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def _say(polled: Polled) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(polled) + b"\n")
    sys.stdout.buffer.flush()


async def main() -> None:
    """Do what the parent says, until it says no more."""
    commands = await _commands()
    pages = Pages(msgspec.json.decode(await commands.readline(), type=Asked))
    watching = asyncio.create_task(pages.watch_itself())
    opening = asyncio.create_task(pages.open())
    answers: dict[bytes, Callable[[], None]] = {b"end": lambda: setattr(pages, "going", False)}
    while word := (await commands.readline()).strip():
        if word == b"begin":
            await opening
        answers.get(word, lambda: None)()
        _say(pages.told())
    watching.cancel()
    opening.cancel()


def run() -> None:
    """The whole life of the process."""
    raise_file_limit()
    asyncio.run(main())
