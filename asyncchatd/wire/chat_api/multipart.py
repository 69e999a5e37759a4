"""Multipart bodies (`multipart/form-data`), read piece by piece as they come: an upload need never be held whole.

The widgets send all file operations so, and may request a chat so (protocol sections 2 and 7). The parts come in any
order: the file first and the identity triple behind it, or the other way round.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from email.message import Message
from enum import Enum, auto

from asyncchatd.model import Hidden, Value
from asyncchatd.wire.chat_api.calls import ChatApiError, part_name

MAX_PARTS = 1000

MAX_HEAD = 16 * 1024
"""Bytes of a part's header lines."""


class PartHead(Value, frozen=True):
    """The beginning of a part: what its `Content-Disposition` says."""

    name: str
    filename: Hidden[str | None] = None
    """`None` for a field; a text, empty where nobody chose a file, for a file."""


class _State(Enum):
    BEFORE = auto()
    """Before the first delimiter, where nothing counts."""
    HEAD = auto()
    CONTENT = auto()
    OVER = auto()
    """Behind the closing delimiter, where nothing counts."""


class MultipartReader:
    """The reader of one multipart body.

        reader = MultipartReader(content_type)
        for piece in body:
            for found in reader.feed(piece): ...
        reader.close()

    `feed` gives a `PartHead` for each part, and behind it the part's content in any number of pieces, none of them
    empty. It keeps no more than a delimiter or the head of a part. Raises `ChatApiError` with `no_boundary` or
    `bad_multipart`, and then reads no further.
    """

    def __init__(self, content_type: str) -> None:
        header = Message()
        header["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
        boundary = header.get_param("boundary")
        if not isinstance(boundary, str) or not boundary:
            raise ChatApiError("no_boundary", "a multipart body without a boundary")
        self._delimiter = b"\r\n--" + boundary.encode("utf-8", "replace")
        self._unread = bytearray(b"\r\n")  # the first delimiter may stand at the very beginning
        self._state = _State.BEFORE
        self._searched = 0
        self._parts = 0

    def feed(self, data: bytes) -> Iterator[PartHead | bytes]:
        """What the next bytes of the body bring. All of it is to be taken before `feed` is called again."""
        if self._state is not _State.OVER:
            self._unread += data
        while self._state is not _State.OVER:
            if self._state is _State.HEAD:
                head = self._head()
                if head is None:
                    return
                yield head
            else:
                counts = self._state is _State.CONTENT
                content, found = self._up_to_a_delimiter()
                if content and counts:
                    yield content
                if not found:
                    return
        self._unread.clear()

    def close(self) -> None:
        """The body is over. Raises `ChatApiError` where it lacks its end."""
        if self._state is not _State.OVER:
            raise _bad("the multipart body is cut off")

    def _up_to_a_delimiter(self) -> tuple[bytes, bool]:
        """The content up to the next delimiter, and whether that is there; else as much as cannot be part of one."""
        unread, delimiter = self._unread, self._delimiter
        at = unread.find(delimiter)
        if at < 0:
            return self._take(max(0, len(unread) - len(delimiter) + 1)), False
        behind = at + len(delimiter)
        if len(unread) < behind + 2:  # whether it is the closing one, the next two bytes say
            return self._take(at), False
        content = self._take(at)
        if unread.startswith(b"--", len(delimiter)):
            self._state = _State.OVER
        else:
            del unread[: len(delimiter)]
            self._state = _State.HEAD
            self._searched = 0
            self._parts += 1
            if self._parts > MAX_PARTS:
                raise _bad("the multipart body has too many parts")
        return content, True

    def _head(self) -> PartHead | None:
        unread = self._unread
        at = unread.find(b"\r\n\r\n", max(0, self._searched - 3))
        if at < 0:
            self._searched = len(unread)
            if len(unread) > MAX_HEAD:
                raise _bad("the head of a part is too long")
            return None
        if at > MAX_HEAD:
            raise _bad("the head of a part is too long")
        lines = bytes(unread[:at])
        if self._delimiter in lines:
            raise _bad("a part of the multipart body has no end")
        del unread[: at + 4]
        self._state = _State.CONTENT
        return _read_head(lines)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        return taken


def _bad(text: str) -> ChatApiError:
    return ChatApiError("bad_multipart", text)


_DISPOSITION = re.compile(rb"^content-disposition:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"([^"]*)"?|([^;]*))')
"""One parameter of a header field: in quotes, where browsers escape only what would end them, or without."""


def _read_head(lines: bytes) -> PartHead:
    disposition = _DISPOSITION.search(lines)
    words = disposition[1].decode("utf-8", "replace") if disposition else ""
    said: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(words):
        said.setdefault(name.lower(), quoted or plain.strip())
    if "name" not in said:
        raise _bad("a part of the multipart body has no name")
    filename = said.get("filename")
    return PartHead(_plain(said["name"]), None if filename is None else _plain(filename))


def _plain(name: str) -> str:
    """A name that stood in quotes, where browsers escape these three."""
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


def around_file(fields: Iterable[tuple[str, str]], filename: str, kind: str) -> tuple[bytes, bytes, str]:
    """What stands before and behind the content of a file in a multipart body with these fields first, and its
    Content-Type. `kind` is that of the file. Raises `ChatApiError`."""
    boundary = secrets.token_hex(16)
    try:
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part_name(name)}"\r\n\r\n{value}\r\n'
            for name, value in fields
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{part_name(filename)}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        head = "".join(parts).encode()
    except UnicodeEncodeError:
        raise ChatApiError("unencodable", "a value holds a lone surrogate") from None
    return head, f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
