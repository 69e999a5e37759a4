"""What the control API reads: bodies, lines, registrations and numbers. Each fault is a `BadRequest`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TypeVar

import orjson
from aiohttp import web

from asyncchatd.listening import Body, is_plain
from asyncchatd.model import Registration, Tokens
from asyncchatd.wire import LARGEST_ID, is_token

LARGEST_LINE = 64 * 1024


class BadRequest(Exception):
    """A request that cannot be carried out as it is: a word for programs, a sentence, the field, and the status."""

    def __init__(self, code: str, message: str, field: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.status = status


def read_registration(line: bytes, service: str) -> Registration:
    """A session as the custom-chat-app announces it: one JSON object. Raises `BadRequest`."""
    return registration_of(object_of(line), service)


def registration_of(body: Mapping[str, object], service: str) -> Registration:
    """A registration from a JSON object; `service` is for one that names none. Raises `BadRequest`."""
    return Registration(
        tokens=Tokens(
            chat_id=_text(body, "chat_id"),
            user_id=_text(body, "user_id"),
            secure_key=_text(body, "secure_key"),
            alias=_text(body, "alias"),
        ),
        service=_optional_text(body, "service") or service,
        device_id=_optional_text(body, "device_id"),
        next_position=_position(body.get("next_position")),
    )


def _text(body: Mapping[str, object], field: str) -> str:
    value = _optional_text(body, field)
    if value is None:
        raise BadRequest("missing", f"expected {field}, a text that is not empty", field)
    return value


def _optional_text(body: Mapping[str, object], field: str) -> str | None:
    value = body.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # an alias is a number in disguise
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRequest("bad_type", f"expected a text for {field}, got {_kind(value)}", field)
    if len(value) > LARGEST_ID or not value.isprintable():
        raise BadRequest(
            "bad_value", f"expected at most {LARGEST_ID} printable characters for {field}", field
        )
    if not is_token(value):
        # The value is not repeated: a masked key still shows some of it.
        raise BadRequest(
            "placeholder",
            f"expected {field} itself, got a placeholder (such as null, undefined or ****)",
            field,
        )
    return value


def _position(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise BadRequest(
            "bad_value", "expected a whole number, 0 or more, for next_position", "next_position"
        )
    return value


def object_of(body: bytes) -> dict[str, object]:
    """The JSON object that a body is. Raises `BadRequest`."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("not_json", f"expected a JSON object: {error.msg}") from None
    if not isinstance(value, dict):
        raise BadRequest("not_an_object", f"expected a JSON object, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false"}.get(
        type(value), "a number"
    )


def number_of(text: str, field: str, largest: int) -> int:
    """A whole number in a query, from 1 to `largest`. Raises `BadRequest`."""
    if len(text) > 9 or not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= largest:
        raise BadRequest("bad_value", f"expected a whole number from 1 to {largest}", field)
    return int(text)


T = TypeVar("T")


async def in_time(part: Awaitable[T], seconds: float) -> T:
    """A body, or the next part of one, when it comes in time. Raises `BadRequest` with status 408."""
    try:
        async with asyncio.timeout(seconds):
            return await part
    except TimeoutError:
        raise BadRequest("too_slow", f"nothing came for {seconds:g} s", status=408) from None


async def _chunks(request: web.Request, seconds: float) -> AsyncIterator[bytes]:
    """A body of any length as it comes, unpacked; others get their turn between two pieces."""
    body = None if is_plain(request.headers) else Body(request.headers)
    while chunk := await in_time(request.content.readany(), seconds):
        if body is None:
            yield chunk
            continue
        for piece in body.pieces(chunk):
            yield piece
            await asyncio.sleep(0)
    if body is not None and (last := body.end()):
        yield last


async def lines_of(request: web.Request, seconds: float) -> AsyncIterator[tuple[int, bytes | None]]:
    """The lines of a body of any length with their numbers, blank ones left out; `None` for one that is
    too long. Nothing but the current line is held."""
    rest = b""
    number = 0
    overlong = False
    async for chunk in _chunks(request, seconds):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            if overlong or len(line) > LARGEST_LINE:
                overlong = False
                yield number, None
            elif line.strip():
                yield number, line
        if len(rest) > LARGEST_LINE:
            rest, overlong = b"", True
    if overlong:
        yield number + 1, None
    elif rest.strip():
        yield number + 1, rest
