"""Bodies of requests as their headers say they are written: compressed, in another charset than UTF-8.

aiohttp would unpack a body while it still comes in, before anybody has asked who sends it: 250 KB unpack to
250 MB, over and over. So our listeners have it leave bodies as they are (`auto_decompress=False`), and who knows
the sender unpacks here, in pieces of a bounded size.

At the control API nothing is guessed: a body that is not what its headers say is an error. A push is read whatever they
say, where it can be read at all (`push_text`): GMS does not send it again, and what it writes there nobody knows.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache

PIECE = 64 * 1024
"""What is unpacked at once at most."""

MOST_MEMBERS = 64
"""Streams in one gzip body: each empty one costs twenty bytes and some microseconds."""

CODINGS = ("gzip", "deflate")
_PACKED = ("gzip", "x-gzip", "deflate")

_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]*)""", re.IGNORECASE)
_CHARSETS = re.compile(
    r"utf-(8|16|32)(-[bl]e)?(-sig)?|ascii|iso8859-\d+|cp\d+|koi8-\w|gb\w+|big5\w*|euc_\w+|shift_jis\w*"
)
"""Python's names of those that are taken. Others it knows are no charsets (`zip`), or take a time that
grows with the square of the length (`punycode`)."""


class BodyError(ValueError):
    """The body cannot be read; `status` is HTTP's, `code` and the text say why."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


def is_plain(headers: Mapping[str, str]) -> bool:
    """Whether the body can be taken as it comes, as nearly always."""
    if "Content-Encoding" in headers:
        return False
    content_type = headers.get("Content-Type")
    return content_type is None or "charset" not in content_type.lower() or _says_utf8(headers)


def push_text(headers: Mapping[str, str], data: bytes, most: int) -> bytes | None:
    """A push's JSON text in UTF-8, unpacked; `None` when it comes to more than so many bytes. Raises `BodyError`
    where it cannot be unpacked.

    JSON is UTF-8 by its own rule, whatever a servlet container puts beside it: the charset is asked only for what is
    no UTF-8, and a body that is not in it either is left as it is, for who reads it with patience.
    """
    if data.lstrip()[:1] != b"{" or _is_packed(headers):
        unpacked = Body({"Content-Encoding": headers.get("Content-Encoding", "")}).whole(data, most)
        if unpacked is None:
            return None
        data = unpacked
    text = _in_charset(headers, data)
    return text if len(text) <= most else None


def _in_charset(headers: Mapping[str, str], data: bytes) -> bytes:
    try:
        if b"\0" in data:  # every other byte of ASCII in UTF-16, and none of a JSON text in UTF-8
            raise UnicodeError
        data.decode()
    except UnicodeError:
        with suppress(BodyError, UnicodeError):
            return data.decode(charset(headers) or "utf-8").encode()
    return data


def _says_utf8(headers: Mapping[str, str]) -> bool:
    try:
        return charset(headers) is None
    except BodyError:
        return False


def _is_packed(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "").strip().lower() in _PACKED


class Body:
    """One body, from its bytes on the wire to UTF-8."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Raises `BodyError` for what is not understood here."""
        self._unpacked = _unpacking(headers.get("Content-Encoding", ""))
        name = charset(headers)
        self._decoder = None if name is None else codecs.getincrementaldecoder(name)("strict")

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What these bytes come to, piece by piece. Raises `BodyError`."""
        for piece in self._unpacked.pieces(data):
            if text := self._as_utf8(piece):
                yield text

    def end(self) -> bytes:
        """Nothing more comes: the last piece. Raises `BodyError` where more was to come."""
        self._unpacked.end()
        return self._as_utf8(b"", final=True)

    def whole(self, data: bytes, most: int) -> bytes | None:
        """A body that is all here; `None` when it comes to more than so many bytes. Raises `BodyError`."""
        whole = bytearray()
        for piece in self.pieces(data):
            whole += piece
            if len(whole) > most:
                return None
        whole += self.end()
        return bytes(whole) if len(whole) <= most else None

    def _as_utf8(self, piece: bytes, *, final: bool = False) -> bytes:
        if self._decoder is None:
            return piece
        try:
            return self._decoder.decode(piece, final).encode()
        except UnicodeError:
            raise BodyError(400, "unreadable", "the body is not in the charset it says") from None


def charset(headers: Mapping[str, str]) -> str | None:
    """Python's name of the charset the body is said to be in; `None` for UTF-8, and when nothing is said: then it
    is read with patience. Raises `BodyError`."""
    return _charset_of(headers.get("Content-Type", ""))


@lru_cache(maxsize=64)
def _charset_of(content_type: str) -> str | None:
    # Remembered: GMS may well say UTF-8 with every push, and to look that up takes 5 µs.
    found = _CHARSET.search(content_type)
    if found is None or not found[1]:
        return None
    try:
        name = codecs.lookup(found[1]).name
    except (LookupError, ValueError):
        name = ""
    if not _CHARSETS.fullmatch(name):
        raise BodyError(415, "unsupported_charset", f"charset {found[1][:40]!a} is not taken; send UTF-8")
    return None if name in ("utf-8", "ascii") else name


def _unpacking(coding: str) -> _Plain | _Packed:
    match coding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Packed(16 + zlib.MAX_WBITS)
        case "deflate":
            return _Packed(None)
    raise BodyError(
        415,
        "unsupported_encoding",
        f"Content-Encoding {coding[:40]!a} is not taken; expected {' or '.join(CODINGS)}, or none",
    )


class _Plain:
    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        """It may end anywhere."""


class _Packed:
    """gzip, of one member or several, or deflate, with zlib's header or without."""

    def __init__(self, wbits: int | None) -> None:
        self._wbits = wbits
        self._stream = None if wbits is None else zlib.decompressobj(wbits)
        self._members = 1

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            stream = self._begun(data)
            try:
                piece = stream.decompress(data, PIECE)
            except zlib.error:
                raise BodyError(
                    400,
                    "unreadable",
                    "the body cannot be unpacked: Content-Encoding is false, or it is damaged",
                ) from None
            data = stream.unused_data or stream.unconsumed_tail
            if piece:
                yield piece
            elif not (stream.eof or data):
                return

    def end(self) -> None:
        if self._stream is None or not self._stream.eof:
            raise BodyError(400, "unreadable", "the body cannot be unpacked: it is cut short")

    def _begun(self, data: bytes) -> zlib._Decompress:
        if self._stream is None:
            # Half of the world sends deflate without the header that RFC 9110 wants.
            headed = data[0] & 0x0F == zlib.DEFLATED
            self._wbits = zlib.MAX_WBITS if headed else -zlib.MAX_WBITS
            self._stream = zlib.decompressobj(self._wbits)
        elif self._stream.eof:
            self._members += 1
            if self._members > MOST_MEMBERS or self._wbits != 16 + zlib.MAX_WBITS:
                raise BodyError(400, "unreadable", "the body cannot be unpacked: too much follows its end")
            self._stream = zlib.decompressobj(self._wbits)
        return self._stream
