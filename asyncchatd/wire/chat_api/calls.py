"""Calls: the requests of Chat API version 2, as they are written.

A call is made of tokens and parameters (protocol section 2) and is sent as `POST {base}/2/chat/{path}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from urllib.parse import quote, quote_plus

from asyncchatd.model import Hidden, Tokens, Value

FORM = "application/x-www-form-urlencoded"


class ChatApiError(ValueError):
    """A call or a reply that cannot be read, or a call that cannot be written.

    `code` is a short constant; neither it nor the text holds anything from the tokens.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Operation(StrEnum):
    """The operations of protocol section 2; the value is the path after `{chatId}/`."""

    REQUEST_CHAT = ""
    SEND = "send"
    REFRESH = "refresh"
    START_TYPING = "startTyping"
    STOP_TYPING = "stopTyping"
    DISCONNECT = "disconnect"
    PUSH_URL = "pushUrl"
    UPDATE_NICKNAME = "updateNickname"
    CUSTOM_NOTICE = "customNotice"
    UPDATE_DATA = "updateData"
    READ_RECEIPT = "readReceipt"
    FILE_LIMITS = "file/limits"
    FILE_UPLOAD = "file"
    FILE_DOWNLOAD = "file/{fileId}/download"
    FILE_DELETE = "file/{fileId}/delete"


class Call(Value, frozen=True):
    """One request, ready to be sent as `POST {base}/2/chat/{path}`."""

    path: str
    """Percent-encoded, relative to `{base}/2/chat/`: `customer-support/<chatId>/refresh`."""
    body: Hidden[bytes]
    content_type: str = FORM


def refresh(service: str, tokens: Tokens, position: int | None, message: str | None = None) -> Call:
    """The ping Refresh.

    `position` is the `transcriptPosition` to ask from, normally the session's `nextPosition`;
    `None` leaves it out, which asks for all events. `message` is the typing preview. Raises
    `ChatApiError` when an id cannot be written into a request at all.
    """
    body = _triple(tokens)
    if position is not None:
        body += f"&transcriptPosition={position}"
    if message is not None:
        body += f"&message={_quoted(message)}"
    return Call(f"{_service(service)}/{_segment(tokens.chat_id)}/refresh", body.encode("ascii"))


def call(
    operation: Operation,
    service: str,
    tokens: Tokens | None,
    fields: Sequence[tuple[str, str]] = (),
    file_id: str | None = None,
    *,
    file: tuple[str, bytes] | None = None,
) -> Call:
    """Any operation. `fields` are the further parameters, `userData[key]` among them, in order.

    `file` is name and content of an upload. Every operation but "request chat" needs `tokens`,
    download and delete need `file_id`; raises `ChatApiError` where they are missing.
    """
    path = _service(service)
    if operation is not Operation.REQUEST_CHAT:
        if tokens is None:
            raise ChatApiError("no_tokens", f"{operation.name} needs the session's tokens")
        path += f"/{_segment(tokens.chat_id)}/{_operation_path(operation, file_id)}"
    identity = tokens if operation is not Operation.REQUEST_CHAT else None
    if operation is Operation.FILE_UPLOAD:
        if file is None:
            raise ChatApiError("no_file", "an upload needs a file")
        triple = [] if identity is None else _triple_fields(identity)
        body, content_type = _write_multipart([*triple, *fields], file)
        return Call(path, body, content_type)
    parts = [] if identity is None else [_triple(identity)]
    parts += [f"{_quoted(name)}={_quoted(value)}" for name, value in fields]
    return Call(path, "&".join(parts).encode("ascii"))


def _triple_fields(tokens: Tokens) -> list[tuple[str, str]]:
    return [("userId", tokens.user_id), ("secureKey", tokens.secure_key), ("alias", tokens.alias)]


def _triple(tokens: Tokens) -> str:
    user_id, secure_key, alias = _quoted(tokens.user_id), _quoted(tokens.secure_key), _quoted(tokens.alias)
    return f"userId={user_id}&secureKey={secure_key}&alias={alias}"


def _quoted(value: str) -> str:
    if value.isalnum() and value.isascii():
        return value  # as good as always; quoting costs more than all the rest of a Refresh
    try:
        return quote_plus(value)
    except UnicodeEncodeError:
        # `from None`: the chained error would carry the value, which may be a secure key.
        raise ChatApiError("unencodable", "a value holds a lone surrogate") from None


def _segment(value: str) -> str:
    """One path segment. An empty one, `.` or `..` would address something else entirely."""
    if value in ("", ".", ".."):
        raise ChatApiError("bad_path", "an id that cannot stand in a path")
    if value.isalnum() and value.isascii():
        return value
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise ChatApiError("unencodable", "an id holds a lone surrogate") from None


_service = lru_cache(maxsize=64)(_segment)


def _operation_path(operation: Operation, file_id: str | None) -> str:
    if "{fileId}" not in operation.value:
        return operation.value
    if file_id is None:
        raise ChatApiError("no_file_id", f"{operation.name} needs a file id")
    return operation.value.replace("{fileId}", _segment(file_id))


def _write_multipart(fields: Sequence[tuple[str, str]], file: tuple[str, bytes]) -> tuple[bytes, str]:
    try:
        parts = [(f'name="{part_name(name)}"', value.encode()) for name, value in fields]
        parts.append((f'name="file"; filename="{part_name(file[0])}"', file[1]))
        # Derived from the content, so that the content cannot hold it and equal calls are equal.
        boundary = hashlib.blake2b(b"\0".join(content for _, content in parts), digest_size=16).hexdigest()
        blocks = [
            b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
            % (boundary.encode(), disposition.encode(), content)
            for disposition, content in parts
        ]
    except UnicodeEncodeError:
        raise ChatApiError("unencodable", "a value holds a lone surrogate") from None
    return b"".join(blocks) + b"--%s--\r\n" % boundary.encode(), f"multipart/form-data; boundary={boundary}"


def part_name(name: str) -> str:
    """A name inside quotes, escaped as browsers do it."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
