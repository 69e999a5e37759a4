"""A proxy in front of a GMS node that waits less long for an answer than Chat Server may take for the work."""

from __future__ import annotations

import asyncio
import time
from typing import Self

from .plant import GmsNode, stop_listening


class HastyProxy:
    """Passes requests on over connections of its own. It hangs up on a client whose answer takes longer than
    `patience` seconds; the node knows nothing of that and works on."""

    def __init__(self, node: GmsNode, patience: float) -> None:
        """It listens on the port that is the node's `door`."""
        self.patience = patience
        self.cuts = 0
        """How often it hung up."""
        self._node = node
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._node.door)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await stop_listening(self._server)
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.create_task(self._talk(reader, writer))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_node, to_node = await asyncio.open_connection("127.0.0.1", self._node.listener.port)
        try:
            while True:
                request = await _message(reader)
                to_node.write(request)
                answer = asyncio.create_task(_message(from_node))
                try:
                    writer.write(await asyncio.wait_for(asyncio.shield(answer), self.patience))
                except TimeoutError:
                    self._cut(request)
                    writer.close()
                    await answer
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # one of both has hung up
        finally:
            writer.close()
            to_node.close()

    def _cut(self, request: bytes) -> None:
        """The plant is told, since no client can know what the answer says."""
        self.cuts += 1
        chat = request.partition(b"/2/chat/")[2].split(b"/")[1].decode()
        seen = self._node.plant.chats[chat].refreshes[-1]
        seen.cut_off = time.monotonic()
        self._node.plant.unheard(seen)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer that says how long it is."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(length))
