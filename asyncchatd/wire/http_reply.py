"""An HTTP/1.1 answer to a POST, read from bytes piece by piece.

httptools (llhttp, the parser of Node.js) knows HTTP. This knows what we want of an answer, and is ready for
what may stand before a GMS node: bodies of any length without saying which, interim answers, compression
that nobody asked for.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple, NoReturn

import httptools

MAX_REPLY = 4 * 1024 * 1024
"""Bytes of a body that are read. A transcript of several thousand messages is smaller."""

MAX_HEAD = 64 * 1024
"""Bytes before and behind the body: far beyond what any proxy adds."""

FRAMING = 8
"""Bytes that may be spent on handing over one of the body: six, in chunks of one."""

_INFLATE = zlib.MAX_WBITS
_ENCODINGS = {b"gzip": _INFLATE | 16, b"x-gzip": _INFLATE | 16, b"deflate": _INFLATE}


class HttpReply(NamedTuple):
    """An answer, whatever its status."""

    status: int
    body: bytes
    retry_after: str | None
    """The header of that name."""


class HttpReplyError(ValueError):
    """What came is no HTTP answer. The text is made of numbers and the parser's words."""


class HttpReplyTooLarge(HttpReplyError):
    """An answer with a body of more than `MAX_REPLY` bytes."""


class HttpReplyReader:
    """Reads one answer. httptools calls the methods that begin with `on_`."""

    def __init__(self) -> None:
        self.begun = False
        """Whether any of it came, be it an interim answer: the request was taken."""
        self.keeps_alive = False
        """Once it is read: whether another request may go over the same connection."""
        self._has_head = False
        self._whole = False
        self._status = 0
        self._received = 0
        self._bounded = False
        """Whether it says where its body ends; if not, that is where the connection does."""
        self._retry_after: bytes | None = None
        self._encoding: bytes | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # Old servers are careless with line ends and blanks, or fold lines, and mean nothing by it.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def feed(self, data: bytes) -> HttpReply | None:
        """The answer, once it is whole. Raises `HttpReplyError`. After either of them nothing may follow."""
        assert self._parser is not None
        self._received += len(data)
        trouble = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            trouble = "HTTP 101"
        except httptools.HttpParserError as error:
            trouble = " ".join(str(error).split())
        if self._whole:
            self.keeps_alive &= trouble is None
        elif trouble is not None:
            self._give_up(trouble)
        elif self._received > MAX_HEAD + FRAMING * self._size:
            self._give_up(f"more than {MAX_HEAD} bytes around a body of {self._size}")
        elif self._size <= MAX_REPLY:
            return None
        return self._reply()

    def end(self) -> HttpReply | None:
        """The connection ended, and the answer with it, or else only a piece of one came: `None`. Raises
        `HttpReplyError`."""
        if self._has_head and not self._bounded:
            return self._reply()
        self._parser = None
        return None

    def _reply(self) -> HttpReply:
        self._parser = None  # it holds us, and we it
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if self._encoding in _ENCODINGS and body:
            body = self._unpacked(body, _ENCODINGS[self._encoding])
        if max(self._size, len(body)) > MAX_REPLY:
            raise HttpReplyTooLarge(f"HTTP {self._status}, more than {MAX_REPLY} bytes")
        retry_after = None if self._retry_after is None else self._retry_after.decode("latin-1")
        return HttpReply(self._status, body, retry_after)

    def _unpacked(self, body: bytes, window: int) -> bytes:
        inflating = zlib.decompressobj(window)
        try:
            unpacked = inflating.decompress(body, MAX_REPLY + 1)
        except zlib.error:
            if window == _INFLATE:
                return self._unpacked(body, -_INFLATE)  # deflate without its frame, as some write it
            unpacked = b""
        if not inflating.eof and len(unpacked) <= MAX_REPLY:
            self._give_up(f"HTTP {self._status}, not encoded as it says")
        return unpacked

    def _give_up(self, why: str) -> NoReturn:
        self._parser = None
        raise HttpReplyError(why)

    # -- what the parser calls -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._whole:
            self.keeps_alive = False  # an answer that nobody asked for
        else:
            self.begun = True
            self._bounded, self._retry_after, self._encoding = False, None, None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            return  # a trailer; or another answer's
        match name.lower():
            case b"content-length":
                self._bounded = True
            case b"transfer-encoding":
                self._bounded |= value.lower().endswith(b"chunked")
            case b"retry-after":
                self._retry_after = value
            case b"content-encoding":
                self._encoding = value.strip().lower()
            case _:
                pass

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if not self._whole:
            self._status = self._parser.get_status_code()
            self._has_head = self._status >= 200  # below that it is interim, and the real one follows

    def on_body(self, piece: bytes) -> None:
        if not self._whole:
            self._pieces.append(piece)
            self._size += len(piece)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._has_head and not self._whole:
            self._whole = True
            self.keeps_alive = self._parser.should_keep_alive()
