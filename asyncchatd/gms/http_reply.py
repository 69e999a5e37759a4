"""HTTP/1.1 answers to POSTs, read from bytes piece by piece.

httptools (llhttp, the parser of Node.js) knows HTTP. This knows what we want of an answer, and is ready for
what may stand before a GMS node: bodies of any length without saying which, interim answers, compression
that nobody asked for, a second answer behind the first.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import httptools

from asyncchatd.wire import MAX_VALUE, WINDOWS, LongReply, NotPacked, Packed, TooMuch

LARGEST_KEPT = 128 * 1024
"""Bytes of a body that are kept. What is longer is read as it comes, which holds the event loop up for 4 ms a
piece at most; read at its end, 3.5 MiB would take 210 ms."""

PORTION = 32 * 1024
"""Bytes of a longer one that are gathered before they are read: of tiny chunks each would cost as much."""

MAX_REPLY = 64 * 1024 * 1024
"""Bytes of a body that are read, unpacked: a transcript of some hundred thousand messages."""

MAX_PACKED = 8 * 1024 * 1024
"""Bytes of one that is compressed. Nobody asked for that, so it is kept until its end; the largest transcript, whose
messages repeat their field names, is smaller."""

MAX_HEAD = 64 * 1024
"""Bytes before and behind the body: far beyond what any proxy adds."""

FRAMING = 8
"""Bytes that may be spent on handing over one of the body: six, in chunks of one."""

_READ = frozenset((b"content-length", b"transfer-encoding", b"retry-after", b"content-encoding"))


class HttpReply(NamedTuple):
    """An HTTP answer, whatever its status."""

    status: int
    body: bytes
    """Of one of more than `LARGEST_KEPT` bytes what `LongReply` makes of it."""
    retry_after: str | None
    """The header of that name."""
    packed: Packed | None = None
    """In place of a body that came compressed and is more than `LARGEST_KEPT` bytes: for `unpacked`."""


class HttpReplyError(ValueError):
    """What came is no HTTP answer. The text is made of numbers and the parser's words."""


class HttpReplyTooLarge(HttpReplyError):
    """An answer whose body is larger than any that is read."""


def unpacked(reply: HttpReply) -> bytes:
    """The body that stands in `packed`, as `LongReply` makes it. Takes up to seconds, and is for a thread. Raises
    `HttpReplyError`."""
    assert reply.packed is not None
    try:
        return reply.packed.long(MAX_REPLY)
    except NotPacked as error:
        raise HttpReplyError(f"HTTP {reply.status}, {error}") from None
    except TooMuch as error:
        what = (
            f"one value of more than {MAX_VALUE} bytes" if error.one_value else f"more than {MAX_REPLY} bytes"
        )
        raise HttpReplyTooLarge(f"HTTP {reply.status}, {what}") from None


class _Message:
    """An answer as far as it has come."""

    __slots__ = ("bounded", "encoding", "has_head", "held", "long", "pieces", "retry_after", "size", "status")

    def __init__(self) -> None:
        self.has_head = self.bounded = False
        """Whether its head came, and whether it says where its body ends; if not, that is where the connection
        does."""
        self.status = self.size = self.held = 0
        self.retry_after: bytes | None = None
        self.encoding: bytes | None = None
        self.pieces: list[bytes] = []
        """Those that are held, of so many bytes together."""
        self.long: LongReply | None = None
        """What takes them once they are too many to keep."""

    def add(self, piece: bytes) -> None:
        length = len(piece)
        self.size += length
        self.held += length
        self.pieces.append(piece)
        if self.held > (LARGEST_KEPT if self.long is None else PORTION) and not self.is_packed:
            self.long = self.long or LongReply()
            self.long.feed(self._gathered())

    def body(self) -> bytes:
        """What is handed over of it, now that all of it has come."""
        if self.long is None:
            return self._gathered()
        self.long.feed(self._gathered())
        return self.long.end()

    def _gathered(self) -> bytes:
        pieces, self.pieces, self.held = self.pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def is_packed(self) -> bool:
        return self.encoding is not None and self.encoding in WINDOWS

    @property
    def is_too_large(self) -> bool:
        if self.long is not None and self.long.too_large:
            return True
        return self.size > LARGEST_KEPT and self.size > (MAX_PACKED if self.is_packed else MAX_REPLY)


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
        """The answer that became whole with these bytes; if there are more, they are `further`. Raises
        `HttpReplyError`, and after that nothing may follow."""
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
        """Read nothing more."""
        self._message = _NONE
        self.__dict__.pop("_parser", None)  # it holds us, and we it

    def _check(self, trouble: str | None) -> None:
        """Whether what is being read may still become an answer."""
        size = self._message.size
        if trouble is not None:
            self._give_up(trouble)
        elif self._received > MAX_HEAD + FRAMING * size:
            self._give_up(f"more than {MAX_HEAD} bytes around a body of {size}")
        elif self._message.is_too_large:
            self._refuse(self._message)

    def _take_further(self, messages: list[_Message]) -> None:
        try:
            self.further.extend(map(self._reply, messages))
        except HttpReplyError as error:
            self.failure = error

    def _reply(self, message: _Message) -> HttpReply:
        body = message.body()
        packed = None
        if (message.long is not None or message.encoding is not None) and message.is_too_large:
            self._refuse(message)
        if message.encoding is not None and message.is_packed and body:
            packed = Packed(body, message.encoding)
            try:
                short = packed.short(LARGEST_KEPT)
            except NotPacked as error:
                self._give_up(f"HTTP {message.status}, {error}")
            body, packed = (b"", packed) if short is None else (short, None)
        retry_after = None if message.retry_after is None else message.retry_after.decode("latin-1")
        return HttpReply(message.status, body, retry_after, packed)

    def _refuse(self, message: _Message) -> NoReturn:
        self.close()
        what = (
            f"more than {MAX_PACKED} bytes, compressed"
            if message.is_packed
            else f"more than {MAX_REPLY} bytes"
        )
        if message.long is not None and message.long.too_large:
            what = f"one value of more than {MAX_VALUE} bytes"
        raise HttpReplyTooLarge(f"HTTP {message.status}, {what}")

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
        self._message.add(piece)

    def on_message_complete(self) -> None:
        message = self._message
        if message.has_head:
            self.keeps_alive = not self._whole and self._parser.should_keep_alive()
            self._whole.append(message)
            self._message = _NONE
