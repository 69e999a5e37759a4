"""What the control API reads: bodies, lines, numbers, and the session of a path. Each fault is a `BadRequest`."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import TypeVar

import orjson
from aiohttp import web

from asyncchatd.config import Settings
from asyncchatd.listening import Body, is_plain
from asyncchatd.model import Session
from asyncchatd.stores import Store

LARGEST_LINE = 64 * 1024


class BadRequest(Exception):
    """A request that cannot be carried out as it is: a word for programs, a sentence, the field, and the status."""

    def __init__(
        self,
        code: str,
        message: str,
        field: str | None = None,
        status: int = 400,
        *,
        retry_after: int | None = None,
    ) -> None:
        """`retry_after`: in so many seconds it may be carried out."""
        super().__init__(message)
        self.code = code
        self.field = field
        self.status = status
        self.retry_after = retry_after


def no_consumer(name: str, names: Iterable[str], field: str) -> BadRequest:
    """The answer to a name that no consumer has; it says the nearest that one has."""
    close = difflib.get_close_matches(name[:64], list(names), n=1, cutoff=0.6)
    hint = f": did you mean {close[0]}?" if close else ""
    return BadRequest("not_found", f"no consumer of this name is configured{hint}", field, 404)


def object_of(body: bytes) -> dict[str, object]:
    """The JSON object that a body is. Raises `BadRequest`."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("not_json", f"expected a JSON object: {error.msg}") from None
    if not isinstance(value, dict):
        raise BadRequest("not_an_object", f"expected a JSON object, got {kind_of(value)}")
    return value


def kind_of(value: object) -> str:
    """The kind of a JSON value, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def text_of(body: Mapping[str, object], field: str, expected: str) -> str:
    """A text of a JSON object that is not empty; `expected` says what it is to be. Raises `BadRequest`."""
    value = body.get(field)
    if value is None or value == "":
        raise BadRequest("missing", f"expected {field}, {expected}", field)
    if not isinstance(value, str):
        raise BadRequest("bad_type", f"expected {field}, {expected}, got {kind_of(value)}", field)
    return value


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


async def whole(request: web.Request, settings: Settings) -> bytes:
    """A body of at most `LARGEST_LINE` bytes, unpacked. Raises `BadRequest`, `HTTPRequestEntityTooLarge` and
    `BodyError`."""
    body = await in_time(request.read(), settings.control.body_timeout.total_seconds())
    if is_plain(request.headers):
        return body
    unpacked = Body(request.headers).whole(body, LARGEST_LINE)
    if unpacked is None:
        raise web.HTTPRequestEntityTooLarge(max_size=LARGEST_LINE, actual_size=len(body))
    return unpacked


async def session_of(store: Store, request: web.Request) -> Session:
    """The session of the path. Raises `BadRequest` with status 404."""
    session = await store.get(request.match_info["chat_id"])
    if session is None:
        raise BadRequest("not_found", "no such session", "chat_id", 404)
    return session


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


async def objects_of(request: web.Request, seconds: float) -> AsyncIterator[tuple[int, bytes | None]]:
    """The objects of a body of any length, not parsed, with the numbers of their lines: one on each line, blank lines
    left out, or a single one over several lines. `None` for a line that is too long. Nothing but the current line
    is held, and what one object may have of the beginning."""
    chunks = _chunks(request, seconds)
    begun = b""
    async for chunk in chunks:
        begun += chunk
        if len(begun) > LARGEST_LINE:
            break
    else:
        if _is_one_object(begun):
            yield 1, begun
            return
    async for each in _lines(begun, chunks):
        yield each


def _is_one_object(body: bytes) -> bool:
    """Whether a body is one object over several lines."""
    body = body.strip()
    if b"\n" not in body:
        return False
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False


async def _lines(begun: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    rest = b""
    number = 0
    overlong = False
    chunk: bytes | None = begun
    while chunk is not None:
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
        chunk = await anext(chunks, None)
    if overlong:
        yield number + 1, None
    elif rest.strip():
        yield number + 1, rest
