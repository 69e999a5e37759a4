"""A compressed body: unpacked at once where it is short, else in portions, beside the event loop.

Nobody asked for compression, but a proxy may compress all the same, and the long answer that it compresses may carry
a new secure key. What came is kept until its end; what becomes of it is not: `LongReply` takes it as it is unpacked.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from asyncchatd.wire.long_reply import LongReply

INFLATE = zlib.MAX_WBITS
WINDOWS = {b"gzip": INFLATE | 16, b"x-gzip": INFLATE | 16, b"deflate": INFLATE}
"""What zlib is told, by the encoding."""

PORTION = 32 * 1024
"""Bytes that are given to zlib, and taken from it, at once: a bomb makes a thousand of one."""


class NotPacked(ValueError):
    """A body that is not packed as its header says, or not whole."""


class TooMuch(ValueError):
    """A body out of which more comes than is read."""

    def __init__(self, long: LongReply | None = None) -> None:
        super().__init__("too much")
        self.one_value = long is not None and long.too_large
        """Whether that is one value alone."""


class Packed:
    """The packed body of one answer."""

    def __init__(self, body: bytes, encoding: bytes) -> None:
        """`encoding` is one of `WINDOWS`."""
        self._body = body
        self._window = WINDOWS[encoding]

    def short(self, most: int) -> bytes | None:
        """All of it; `None` when that is more than `most` bytes. Raises `NotPacked`."""
        try:
            return self._short(self._window, most)
        except NotPacked:
            if self._window != INFLATE:
                raise
            self._window = -INFLATE  # deflate without its frame, as some write it
            return self._short(self._window, most)

    def long(self, most: int) -> bytes:
        """What `LongReply` makes of it. Takes up to seconds, and is for a thread. Raises `NotPacked`, and `TooMuch`
        when it is more than `most` bytes."""
        reader, size = LongReply(), 0
        for portion in self._portions(self._window):
            size += len(portion)
            if size > most:
                raise TooMuch
            reader.feed(portion)
            if reader.too_large:
                raise TooMuch(reader)
        return reader.end()

    def _short(self, window: int, most: int) -> bytes | None:
        unpacked = bytearray()
        for portion in self._portions(window):
            unpacked += portion
            if len(unpacked) > most:
                return None
        return bytes(unpacked)

    def _portions(self, window: int) -> Iterator[bytes]:
        inflating = zlib.decompressobj(window)
        for at in range(0, len(self._body), PORTION):
            piece = self._body[at : at + PORTION]
            while True:
                try:
                    portion = inflating.decompress(piece, PORTION)
                except zlib.error:
                    raise NotPacked("not encoded as it says") from None
                if portion:
                    yield portion
                if inflating.eof:
                    return
                piece = inflating.unconsumed_tail
                if not piece and len(portion) < PORTION:
                    break
        raise NotPacked("not encoded as it says")
