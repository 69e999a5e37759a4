"""A network between a client and a server of TCP: it passes bytes on, holds them without a word, or refuses."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import StrEnum
from types import TracebackType

from asyncchatd.standin.port import bound, stop_listening
from asyncchatd.standin.spoiling import linger_for_no_time

HOST = "127.0.0.1"
CHUNK = 64 * 1024


class Way(StrEnum):
    """What becomes of connections."""

    PASS = "pass"
    HOLD = "hold"
    """They stay, nothing more comes through, and new ones are taken and not answered: a silent partition. What was
    held comes through once it is over."""
    REFUSE = "refuse"
    """They are reset, and new ones refused."""


class LoopbackProxy:
    """A proxy in front of one server, on a port of its own that it keeps while it refuses.

        async with LoopbackProxy("127.0.0.1", 4001) as proxy:
            proxy.port
            await proxy.become(Way.HOLD)

    The server is at `host` and `port`, or at a Unix socket, the path of which is `host` where `port` is `None`.
    """

    def __init__(self, host: str, port: int | None) -> None:
        self.target = host, port
        """Where new connections are led to."""
        self.way = Way.PASS
        self._passes = asyncio.Event()
        self._passes.set()
        self._held = bound(HOST, 0)
        self.port: int = self._held.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    async def __aenter__(self) -> LoopbackProxy:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._reset()
        self._held.close()

    async def become(self, way: Way) -> None:
        """From now on this becomes of connections, those that there are included."""
        self.way = way
        if way is Way.REFUSE:
            await self._reset()
        elif self._server is None:
            await self._listen()
        if way is Way.HOLD:
            self._passes.clear()
        else:
            self._passes.set()

    async def lead_to(self, host: str, port: int | None) -> None:
        """Lead to another server; connections to the one of before are reset."""
        self.target = host, port
        if self._server is not None:
            await self._reset()
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=bound(HOST, self.port))

    async def _reset(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await stop_listening(server)
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.create_task(self._talk(reader, writer))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        # One that is cancelled before its first step does nothing of its own.
        talk.add_done_callback(lambda _: writer.transport.abort())

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._passes.wait()
            host, port = self.target
            to_server = (
                asyncio.open_unix_connection(host) if port is None else asyncio.open_connection(host, port)
            )
            from_server, writer_to = await to_server
            writers.append(writer_to)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, writer_to))
                both.create_task(self._pump(from_server, writer))
            for each in writers:
                each.close()
        except* OSError as hung_up:  # one of both has
            del hung_up
        finally:
            for each in writers:
                if not each.transport.is_closing():
                    linger_for_no_time(each.transport)
                each.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            await self._passes.wait()
            sink.write(data)
            await sink.drain()
        await self._passes.wait()
        with suppress(OSError):
            sink.write_eof()
