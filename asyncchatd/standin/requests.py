"""Requests: the calls of Chat API version 2, as a GMS node reads them.

Servlet containers are forgiving, and so is this: slashes may be doubled, and whatever cannot be a field is left out.
"""

from __future__ import annotations

from asyncchatd.model import Hidden, TokenNews, Value
from asyncchatd.standin.files import Incoming, PlantFile
from asyncchatd.wire import (
    FORM,
    ChatApiError,
    MultipartReader,
    Operation,
    PartHead,
    read_form,
    read_path,
    user_data_key,
)

LARGEST_FIELD = 1024 * 1024
"""Bytes of a field of a multipart body."""

KEPT_AT_MOST = 64 * 1024 * 1024
"""Bytes of an upload that is kept, where nothing else is said."""


class Received(Value, frozen=True):
    """A call as a GMS node sees it."""

    service: str
    chat_id: str | None
    """`None` for "request chat" only."""
    operation: Operation
    file_id: str | None
    fields: Hidden[dict[str, str]]
    """The parameters but the identity triple and `userData[...]`. Of a repeated one the first."""
    user_data: Hidden[dict[str, str]]
    """`userData[key]` parameters by key."""
    news: TokenNews
    """`chatId` from the path and the identity triple, each `None` when missing or empty."""
    files: Hidden[dict[str, PlantFile]]
    """Uploaded files by part name."""


class MultipartCall:
    """A call with a multipart body, read as the body comes: files go to disk, fields stay in memory.

    `keep_at_most`: bytes of a file beyond which it is counted and not kept. Raises `ChatApiError` at any step.
    """

    def __init__(self, path: str, content_type: str, keep_at_most: int = KEPT_AT_MOST) -> None:
        self._path = read_path(path)
        self._reader = MultipartReader(content_type)
        self._keep_at_most = keep_at_most
        self._fields: list[tuple[str, bytearray]] = []
        self._files: dict[str, Incoming] = {}
        self._now: Incoming | bytearray = bytearray()

    @property
    def begun(self) -> Received:
        """The call as far as its path says it, without fields and tokens."""
        return _received(self._path, [], {})

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        for found in self._reader.feed(data):
            if isinstance(found, PartHead):
                self._begin(found)
            elif isinstance(self._now, Incoming):
                self._now.write(found)
            elif len(self._now) + len(found) > LARGEST_FIELD:
                raise ChatApiError("bad_form", "a field is too long")
            else:
                self._now += found

    def received(self) -> Received:
        """The call, when all of the body has come."""
        self._reader.close()
        pairs = [(name, value.decode("utf-8", "replace")) for name, value in self._fields]
        return _received(self._path, pairs, {part: file.whole() for part, file in self._files.items()})

    def _begin(self, part: PartHead) -> None:
        if part.filename is None:
            self._now = bytearray()
            self._fields.append((part.name, self._now))
        else:
            self._now = Incoming(part.filename, self._keep_at_most)
            self._files.setdefault(part.name, self._now)


def is_multipart(content_type: str) -> bool:
    """Whether a body of this type has parts."""
    return content_type.strip().lower().startswith("multipart/")


def read_call(path: str, body: bytes, content_type: str = FORM) -> Received:
    """The call that `path` (still percent-encoded, relative to `{base}/2/chat/`) and `body` make.

    Takes urlencoded and multipart bodies, slashes at the end and doubled ones, and names of `userData[...]` that are
    percent-encoded or in quotes, as clients in the field send them (protocol section 7). Raises `ChatApiError`.
    """
    if is_multipart(content_type):
        call = MultipartCall(path, content_type)
        call.feed(body)
        return call.received()
    return _received(read_path(path), read_form(body), {})


Path = tuple[str, str | None, Operation, str | None]
"""Service, chat id, operation, file id."""


def _received(path: Path, pairs: list[tuple[str, str]], files: dict[str, PlantFile]) -> Received:
    service, chat_id, operation, file_id = path
    fields: dict[str, str] = {}
    user_data: dict[str, str] = {}
    for name, value in pairs:
        if (key := user_data_key(name)) is not None:
            user_data.setdefault(key, value)
        else:
            fields.setdefault(name, value)
    triple = {name: fields.pop(name, None) or None for name in ("userId", "secureKey", "alias")}
    news = TokenNews(chat_id, triple["userId"], triple["secureKey"], triple["alias"])
    return Received(service, chat_id, operation, file_id, fields, user_data, news, files)
