"""HTTP/1.1 answers to POSTs, read from bytes piece by piece.

httptools (llhttp, the parser of Node.js) knows HTTP. This knows what we want of an answer, and is ready for
what may stand before a GMS node: bodies of any length without saying which, interim answers, compression
that nobody asked for, a second answer behind the first.
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
_READ = frozenset((b"content-length", b"transfer-encoding", b"retry-after", b"content-encoding"))
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


class _Message:
    """An answer as far as it has come."""

    __slots__ = ("bounded", "encoding", "has_head", "pieces", "retry_after", "size", "status")

    def __init__(self) -> None:
        self.has_head = self.bounded = False
        """Whether its head came, and whether it says where its body ends; if not, that is where the connection
        does."""
        self.status = self.size = 0
        self.retry_after: bytes | None = None
        self.encoding: bytes | None = None
        self.pieces: list[bytes] = []


_NONE = _Message()


class HttpReplyReader:
    """Reads the answers that come over one connection, one behind the other. httptools calls the methods that
    begin with `on_`."""

    def __init__(self) -> None:
        self.keeps_alive = False
        """Whether another request may go over the same connection: the last answer is whole, nothing stands behind
        it, and the server said nothing else."""
        self.further: list[HttpReply] = []
        """Answers that came in one piece with the one before; who takes them empties it."""
        self.failure: HttpReplyError | None = None
        """What came behind an answer is none."""
        self._message = _NONE
        """The one that is being read."""
        self._whole: list[_Message] = []
        """Those that became whole in this piece."""
        self._received = 0
        self._parser = httptools.HttpResponseParser(self)
        # Old servers are careless with line ends and blanks, or fold lines, and mean nothing by it.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def feed(self, data: bytes) -> HttpReply | None:
        """The answer that became whole with this; if there are more, they are `further`. Raises `HttpReplyError`,
        and after that nothing may follow."""
        trouble = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            trouble = "HTTP 101"
        except httptools.HttpParserError as error:
            trouble = " ".join(str(error).split())
        if not self._whole:
            self._received += len(data)
            self._check(trouble)
            return None
        self._received = 0
        whole, self._whole = self._whole, []
        if trouble is not None:
            self.keeps_alive, self.failure = False, HttpReplyError(trouble)
        if len(whole) > 1:
            self._take_further(whole[1:])
        return self._reply(whole[0])

    def end(self) -> HttpReply | None:
        """The connection ended, and the answer with it, or else only a piece of one came: `None`. Raises
        `HttpReplyError`."""
        message = self._message
        self.close()
        if message.has_head and not message.bounded:
            return self._reply(message)
        return None

    def close(self) -> None:
        """Nothing is read any more."""
        self._message = _NONE
        self.__dict__.pop("_parser", None)  # it holds us, and we it

    def _check(self, trouble: str | None) -> None:
        """Whether what is being read may still become an answer."""
        size = self._message.size
        if trouble is not None:
            self._give_up(trouble)
        elif self._received > MAX_HEAD + FRAMING * size:
            self._give_up(f"more than {MAX_HEAD} bytes around a body of {size}")
        elif size > MAX_REPLY:
            self._reply(self._message)

    def _take_further(self, messages: list[_Message]) -> None:
        try:
            self.further.extend(map(self._reply, messages))
        except HttpReplyError as error:
            self.failure = error

    def _reply(self, message: _Message) -> HttpReply:
        pieces = message.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if message.encoding is not None and message.encoding in _ENCODINGS and body:
            body = self._unpacked(body, _ENCODINGS[message.encoding], message.status)
        if message.size > MAX_REPLY or len(body) > MAX_REPLY:
            self.close()
            raise HttpReplyTooLarge(f"HTTP {message.status}, more than {MAX_REPLY} bytes")
        retry_after = None if message.retry_after is None else message.retry_after.decode("latin-1")
        return HttpReply(message.status, body, retry_after)

    def _unpacked(self, body: bytes, window: int, status: int) -> bytes:
        inflating = zlib.decompressobj(window)
        try:
            unpacked = inflating.decompress(body, MAX_REPLY + 1)
        except zlib.error:
            if window == _INFLATE:
                return self._unpacked(body, -_INFLATE, status)  # deflate without its frame, as some write it
            unpacked = b""
        if not inflating.eof and len(unpacked) <= MAX_REPLY:
            self._give_up(f"HTTP {status}, not encoded as it says")
        return unpacked

    def _give_up(self, why: str) -> NoReturn:
        self.close()
        raise HttpReplyError(why)

    # -- what the parser calls -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._message = _Message()
        self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        message = self._message
        name = name.lower()
        if name not in _READ or message.has_head:  # the latter is a trailer
            return
        match name:
            case b"content-length":
                message.bounded = True
            case b"transfer-encoding":
                message.bounded |= value.lower().endswith(b"chunked")
            case b"retry-after":
                message.retry_after = value
            case _:
                message.encoding = value.strip().lower()

    def on_headers_complete(self) -> None:
        status = self._message.status = self._parser.get_status_code()
        self._message.has_head = status >= 200  # below that it is interim, and the real one follows

    def on_body(self, piece: bytes) -> None:
        message = self._message
        message.pieces.append(piece)
        message.size += len(piece)

    def on_message_complete(self) -> None:
        message = self._message
        if message.has_head:
            self.keeps_alive = not self._whole and self._parser.should_keep_alive()
            self._whole.append(message)
            self._message = _NONE
