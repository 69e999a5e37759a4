"""Requests: the calls of Chat API version 2, as a GMS node reads them."""

from __future__ import annotations

import re
from email.message import Message
from urllib.parse import parse_qsl, unquote

from asyncchatd.model import Hidden, TokenNews, Value
from asyncchatd.wire import FORM, ChatApiError, Operation

_MAX_FIELDS = 1000


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
    files: Hidden[dict[str, tuple[str, bytes]]]
    """Uploaded files by part name: file name and content."""


def read_call(path: str, body: bytes, content_type: str = FORM) -> Received:
    """The call that `path` (still percent-encoded, relative to `{base}/2/chat/`) and `body` make.

    Takes urlencoded and multipart bodies, a trailing slash, and percent-encoded `userData[...]`
    names, as Genesys' own widget sends them (protocol section 2). Raises `ChatApiError`.
    """
    service, chat_id, operation, file_id = _read_path(path)
    if content_type.strip().lower().startswith("multipart/"):
        pairs, files = _read_multipart(body, content_type)
    else:
        pairs, files = _read_form(body), {}
    fields: dict[str, str] = {}
    user_data: dict[str, str] = {}
    for name, value in pairs:
        if name[:11].lower() == "userdata%5b":
            name = unquote(name)
        if name.startswith("userData[") and name.endswith("]"):
            user_data.setdefault(name[9:-1], value)
        else:
            fields.setdefault(name, value)
    triple = {name: fields.pop(name, None) or None for name in ("userId", "secureKey", "alias")}
    news = TokenNews(chat_id, triple["userId"], triple["secureKey"], triple["alias"])
    return Received(service, chat_id, operation, file_id, fields, user_data, news, files)


def _read_path(path: str) -> tuple[str, str | None, Operation, str | None]:
    segments = [unquote(part, errors="replace") for part in path.split("?")[0].strip("/").split("/")]
    match segments:
        case [service] if service:
            return service, None, Operation.REQUEST_CHAT, None
        case [service, chat_id, "file", file_id, ("download" | "delete") as action] if service and chat_id:
            return service, chat_id, Operation(f"file/{{fileId}}/{action}"), file_id
        case [service, chat_id, *rest] if service and chat_id and "/".join(rest) in _PLAIN_OPERATIONS:
            return service, chat_id, Operation("/".join(rest)), None
    raise ChatApiError("unknown_operation", "no operation of the Chat API has this path")


_PLAIN_OPERATIONS = frozenset(
    operation.value for operation in Operation if operation.value and "{" not in operation.value
)


def _read_form(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            body.decode("utf-8", "replace"),
            keep_blank_values=True,
            errors="replace",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise ChatApiError("bad_form", "the form cannot be read") from None


def _plain_name(name: str) -> str:
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


_DISPOSITION_NAME = re.compile(r';\s*name="?([^";]*)"?', re.IGNORECASE)


_DISPOSITION_FILENAME = re.compile(r';\s*filename="?([^"]*)"?', re.IGNORECASE)


_DISPOSITION = re.compile(rb"^content-disposition:(.*)$", re.IGNORECASE | re.MULTILINE)


def _read_multipart(
    body: bytes, content_type: str
) -> tuple[list[tuple[str, str]], dict[str, tuple[str, bytes]]]:
    header = Message()
    header["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ChatApiError("no_boundary", "a multipart body without a boundary")
    delimiter = b"\r\n--" + boundary.encode("utf-8", "replace")
    blocks = (b"\r\n" + body).split(delimiter, _MAX_FIELDS + 1)
    if len(blocks) < 2 or len(blocks) > _MAX_FIELDS + 1 or not blocks[-1].startswith(b"--"):
        raise ChatApiError("bad_multipart", "the multipart body cannot be read")
    fields: list[tuple[str, str]] = []
    files: dict[str, tuple[str, bytes]] = {}
    for block in blocks[1:-1]:
        head, separator, content = block.partition(b"\r\n\r\n")
        disposition = _DISPOSITION.search(head)
        words = disposition[1].decode("utf-8", "replace").strip() if disposition else ""
        name = _DISPOSITION_NAME.search(words)
        if not separator or name is None:
            raise ChatApiError("bad_multipart", "a part of the multipart body has no name")
        if filename := _DISPOSITION_FILENAME.search(words):
            files.setdefault(_plain_name(name[1]), (_plain_name(filename[1]), content))
        else:
            fields.append((_plain_name(name[1]), content.decode("utf-8", "replace")))
    return fields, files
