"""Files: what customers send and fetch goes through in pieces, and is never held whole in memory.

An upload is taken in before the session is held, because the key may stand behind the file, and because a slow client
must not keep its session from pings. A download gives the session back as soon as the head of the answer has come.
"""

from __future__ import annotations

import asyncio
import mimetypes
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import aiohttp
from aiohttp import hdrs, web

from asyncchatd.gateway.calling.calls import Calls, Outcome
from asyncchatd.gateway.subscription import without_subscription
from asyncchatd.gateway.watching.watched import Watched
from asyncchatd.gms import Answer, Opened, Streams
from asyncchatd.model import Claim
from asyncchatd.wire import (
    Alive,
    Call,
    ChatApiError,
    ClientCall,
    MultipartReader,
    Operation,
    Pair,
    PartHead,
    Reply,
    around_file,
    chat_api,
    forwarded,
)

IN_MEMORY = 1024 * 1024
"""Bytes of an upload beyond which it lies in a file of the system's temporary directory."""

PIECE = 64 * 1024

LARGEST_FIELD = 128 * 1024
"""Bytes of all that stands beside the file."""

MOST_TRANSFERS = 16
"""Files on their way to GMS and from it at once; one more is told to come again."""

MOST_TAKEN_IN = 32
"""Uploads that are taken in at once. They have places of their own: whoever sends one may have no key at all."""

SLOWEST = 8 * 1024
"""Bytes a second of an upload. Who sends less than that on the whole is hung up on, or a few that send a byte now and
then hold the places of all."""

PATIENCE_SECONDS = 60.0
"""How long a client waits for what came of its file: the widgets give a transfer no time-out."""

PASSED_ON = (hdrs.CONTENT_TYPE, hdrs.CONTENT_DISPOSITION, hdrs.CONTENT_LENGTH)
"""Headers of a download that the client needs."""


class TooLarge(Exception):
    """The file is larger than `gateway.max_upload`."""


class TooMany(Exception):
    """One more would be too many at once."""


class NoRoom(Exception):
    """The file cannot be kept here, as where the disk is full."""


class Upload:
    """A file that a client sends, and what stands beside it. `close` forgets it."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.filename = ""
        self.size = 0
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - `close` does

    async def read(self, request: web.Request, most: int, seconds: float) -> None:
        """Take it in. `seconds`: the longest pause, and how much later than at `SLOWEST` it may come. Raises
        `TooLarge`, `NoRoom`, `ChatApiError`, `TimeoutError`, and what aiohttp raises for a client that hangs up."""
        reader = MultipartReader(request.headers.get(hdrs.CONTENT_TYPE, ""))
        field: bytearray | None = None
        fields: list[tuple[str, bytearray]] = []
        beside = 0
        has_file = False
        began, received = time.monotonic(), 0
        while True:
            left = began + seconds + received / SLOWEST - time.monotonic()
            async with asyncio.timeout(min(seconds, left)):
                data = await request.content.read(PIECE)
            if not data:
                break
            received += len(data)
            for found in reader.feed(data):
                if isinstance(found, PartHead):
                    field = None
                    if found.filename is None:
                        field = bytearray()
                        fields.append((found.name, field))
                    elif has_file:
                        raise ChatApiError("two_files", "an upload has one part that is a file")
                    else:
                        has_file, self.filename = True, found.filename
                elif field is not None:
                    beside += len(found)
                    if beside > LARGEST_FIELD:
                        raise ChatApiError("bad_form", "what stands beside the file is too long")
                    field += found
                else:
                    await self._keep(found, most)
        reader.close()
        with _room():
            await asyncio.to_thread(self._file.flush)  # what is sent on must be all there
        if not has_file:
            raise ChatApiError("no_file", "an upload needs a part named file")
        self.pairs = [(name, value.decode("utf-8", "replace")) for name, value in fields]

    async def _keep(self, data: bytes, most: int) -> None:
        self.size += len(data)
        if self.size > most:
            raise TooLarge
        with _room():
            if self.size <= IN_MEMORY:
                self._file.write(data)
            else:
                await asyncio.to_thread(self._file.write, data)

    async def pieces(self, head: bytes, tail: bytes) -> AsyncIterator[bytes]:
        """All of it, between these."""
        yield head
        await asyncio.to_thread(self._file.seek, 0)
        while data := await asyncio.to_thread(self._file.read, PIECE):
            yield data
        yield tail

    def close(self) -> None:
        """Forget it."""
        with suppress(OSError):  # it flushes what there was no room for
            self._file.close()


@contextmanager
def _room() -> Iterator[None]:
    """Raises `NoRoom` where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise NoRoom(error.strerror or type(error).__name__) from error


class Bounded:
    """So many at once, and no more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one. Raises `TooMany`."""
        if self._count >= self._most:
            raise TooMany
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class Files:
    """The files on their way."""

    def __init__(self, calls: Calls, streams: Streams, safe_until: Callable[[], float]) -> None:
        """`safe_until`: until when nobody else can have what is held, as `Settling` tells it."""
        self._calls = calls
        self._streams = streams
        self._safe_until = safe_until
        self.transfers = Bounded(MOST_TRANSFERS)
        self.taken_in = Bounded(MOST_TAKEN_IN)

    async def send(self, call: ClientCall, chat: Watched, upload: Upload) -> Outcome:
        """Send an upload to GMS; what came of it."""

        async def streamed(call: ClientCall, claim: Claim) -> Answer:
            tokens = claim.tokens
            triple = [("userId", tokens.user_id), ("secureKey", tokens.secure_key), ("alias", tokens.alias)]
            kind = mimetypes.guess_type(upload.filename)[0] or "application/octet-stream"
            fields = [*triple, *without_subscription(call.pairs)]
            head, tail, content_type = around_file(fields, upload.filename, kind)
            empty = chat_api.call(Operation.FILE_UPLOAD, claim.service, tokens, file=("", b""))
            written = Call(empty.path, b"", content_type)
            length = len(head) + upload.size + len(tail)
            pieces = upload.pieces(head, tail)
            return await self._streams.upload(written, pieces, length, tokens, until=self._safe_until())

        return await self._calls.answer(call, chat, send=streamed, patience=PATIENCE_SECONDS)

    async def fetch(
        self, call: ClientCall, chat: Watched, request: web.Request
    ) -> web.StreamResponse | Outcome:
        """Answer a client with a file, or say what came of it where there is none."""
        fetched: list[Opened] = []
        abandoned = False

        async def streamed(call: ClientCall, claim: Claim) -> Answer:
            written = forwarded(call, claim.service, claim.tokens, None)
            opened = await self._streams.open(written, claim.tokens, until=self._safe_until())
            if isinstance(opened, Answer) or not opened.is_file:
                return opened if isinstance(opened, Answer) else await opened.answer()
            if abandoned:
                opened.close()
            else:
                fetched.append(opened)
            return Answer(Alive(Reply(0)), opened.node, opened.sent_at, opened.took)

        outcome = await self._calls.answer(call, chat, send=streamed, patience=PATIENCE_SECONDS)
        abandoned = True
        if not fetched:
            return outcome
        return await _passed_through(fetched[0], request)


async def _passed_through(opened: Opened, request: web.Request) -> web.StreamResponse:
    """The bytes of a file, as they come. A client that leaves leaves nothing open."""
    response = web.StreamResponse()
    for name in PASSED_ON:
        if name in opened.response.headers:
            response.headers[name] = opened.response.headers[name]
    try:
        await response.prepare(request)
        async for data in opened.response.content.iter_chunked(PIECE):
            await response.write(data)
        await response.write_eof()
    except (aiohttp.ClientError, OSError, TimeoutError):
        # The client has gone, or GMS breaks off: half a file must not look like a whole one.
        if request.transport is not None:
            request.transport.abort()
    finally:
        opened.close()
    return response
