"""A GMS that costs next to nothing: answers every POST at once with one and the same reply.

Not a stand-in: it knows no session. It is the fixed point against which clients are compared, so it
must not be what limits them. Run as its own process: `python -m bench.gms PORT`.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

BODY = b'{"messages":[],"chatEnded":false,"statusCode":0,"alias":"117","nextPosition":3}'
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)


class _Answering(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            start = self._buffer.lower().find(b"content-length:", 0, head)
            length = int(self._buffer[start + 15 : self._buffer.find(b"\r", start)]) if start >= 0 else 0
            end = head + 4 + length
            if len(self._buffer) < end:
                return
            self._buffer = self._buffer[end:]
            self._write(REPLY)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
