"""The bodies of commands: JSON objects whose properties are read one by one, each with what was expected of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from aiohttp import web

from asyncchatd.standin.gms_node import ErrorPage, Failing
from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.settings import SickPage
from asyncchatd.standin.spoiling import LATE_SECONDS, AfterWork, Over, Spoiling

Body = Mapping[str, object]


class BadCommand(Exception):
    """A command that cannot be understood; `field` is the property at fault."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field = field


async def read_body(request: web.Request, *known: str) -> Body:
    """The JSON object in the body, or none. `known` names its properties, where they are few."""
    raw = await request.read()
    try:
        body = json.loads(raw) if raw.strip() else {}
    except ValueError:
        raise BadCommand("body", "a JSON object") from None
    if not isinstance(body, dict):
        raise BadCommand("body", "a JSON object")
    if request.path != "/settings" and (unknown := sorted(body.keys() - set(known))):
        raise BadCommand(unknown[0], f"only {', '.join(known) or 'no properties'} here")
    return body


def read_whole(body: Body, name: str, default: int, *, most: int = 10_000_000) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise BadCommand(name, "a whole number, 0 or more")
    return value


def read_number(body: Body, name: str, default: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadCommand(name, "a number of seconds, 0 or more")
    return float(value)


def read_text(body: Body, name: str, default: str | None) -> str | None:
    value = body.get(name, default)
    if value is not None and not isinstance(value, str):
        raise BadCommand(name, "a text")
    return value


def read_flag(body: Body, name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise BadCommand(name, "true or false")
    return value


def read_share(body: Body) -> float:
    rate = body.get("rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise BadCommand("rate", "a share from 0 to 1")
    return float(rate)


def read_failing(body: Body) -> Failing | None:
    status = read_whole(body, "status", 503)
    if not 300 <= status <= 599:
        raise BadCommand("status", "an HTTP status from 300 to 599")
    retry_after = read_whole(body, "retry_after", 0) if "retry_after" in body else None
    rate = read_share(body)
    page = read_word(body, "page", ErrorPage, ErrorPage.TEXT)
    return Failing(status, rate, retry_after, page) if rate else None


def read_spoiling(body: Body) -> Spoiling | None:
    what = read_word(body, "what", AfterWork, AfterWork.HANG_UP)
    over = read_word(body, "over", Over, Over.ANY)
    rate = read_share(body)
    seconds = read_number(body, "seconds", LATE_SECONDS)
    return Spoiling(what, rate, over, seconds) if rate else None


def read_seconds_or_none(body: Body) -> float | None:
    return None if body.get("seconds") is None else read_number(body, "seconds", 0.0)


Word = TypeVar("Word", bound=StrEnum)


def read_word(body: Body, name: str, words: type[Word], default: Word) -> Word:
    value = body.get(name, default.value)
    for word in words:
        if word.value == value:
            return word
    raise BadCommand(name, f"one of {', '.join(words)}")


def read_health_format(body: Body) -> HealthFormat | SickPage:
    word = body.get("format")
    formats: dict[object, HealthFormat | SickPage] = {
        member.value: member for member in (*HealthFormat, *SickPage)
    }
    if word not in formats:
        raise BadCommand("format", f"one of {', '.join(map(str, formats))}")
    return formats[word]
