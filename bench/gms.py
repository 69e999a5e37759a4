"""A GMS that costs next to nothing: answers every POST at once, with a reply that names its chat, as real ones do.

Not a stand-in: it knows no session. It is the fixed point against which clients are compared, so it
must not be what limits them. Run as its own process: `python -m bench.gms PORT`; with `talking` behind it each reply
brings an event. A GET tells, as JSON,
what has arrived since the last one: how many, over how long, and the most in any second and any 100 ms.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from collections.abc import Callable
from typing import cast

import uvloop

BODY = b'{"messages":[],"chatEnded":false,"statusCode":0,"nextPosition":3,"chatId":"%s"}'
TALKING = (
    b'{"messages":[{"index":3,"type":"Message","utcTime":1700000000000,"text":"Hello, your parcel is here","from":'
    b'{"participantId":2,"nickname":"Agent","type":"Agent"}}],"chatEnded":false,"statusCode":0,"nextPosition":4,'
    b'"chatId":"%s"}'
)
"""With an event."""


def reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


class Answering(asyncio.Protocol):
    """A connection on which each request is answered at once, with the body that `answer` says; it is given method and
    path."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            start = self._buffer.lower().find(b"content-length:", 0, head)
            length = int(self._buffer[start + 15 : self._buffer.find(b"\r", start)]) if start >= 0 else 0
            end = head + 4 + length
            if len(self._buffer) < end:
                return
            request = self._buffer[: self._buffer.find(b" HTTP")]
            self._buffer = self._buffer[end:]
            self._write(reply(self._answer(request)))


class _Measured:
    """What arrived, on all connections together."""

    def __init__(self, body: bytes) -> None:
        self._arrived = array("d")
        self._body = body

    def answer(self, request: bytes) -> bytes:
        if request.startswith(b"GET "):
            return self._tell()
        self._arrived.append(time.monotonic())
        return self._body % request.split(b"/")[-2]

    def _tell(self) -> bytes:
        times, self._arrived = self._arrived, array("d")
        return json.dumps(
            {
                "requests": len(times),
                "seconds": times[-1] - times[0] if times else 0.0,
                "most_in_1s": busiest(times, 1.0),
                "most_in_100ms": busiest(times, 0.1),
            }
        ).encode()


def busiest(times: array[float], width: float) -> int:
    """The most arrivals in any window that long."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - width:
            first += 1
        most = max(most, last - first + 1)
    return most


async def main(port: int, body: bytes) -> None:
    measured = _Measured(body)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(measured.answer), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), TALKING if sys.argv[2:] == ["talking"] else BODY))
