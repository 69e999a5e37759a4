"""Twice the input is about twice the work, whatever is in it. Work is counted in steps of the interpreter, not
timed, so that the answer is the same on every machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from conftest import case

from asyncchatd.standin.requests import read_call
from asyncchatd.wire.chat_api.calls import ChatApiError
from asyncchatd.wire.chat_api.outcome import classify
from asyncchatd.wire.health import HealthError, read_health
from asyncchatd.wire.lenient_json import NotJson, opened_text, read_json
from asyncchatd.wire.long_reply import LongReply
from asyncchatd.wire.push import PushError, read_push

if TYPE_CHECKING:
    from _typeshed import TraceFunction

SIZE = 2_000

Parse = Callable[[bytes], object]


def read_long(body: bytes) -> None:
    reply = LongReply()
    for start in range(0, len(body), 64):
        reply.feed(body[start : start + 64])
    reply.end()


PARSERS: dict[str, Parse] = {
    "push": read_push,
    "health": read_health,
    "reply": lambda body: classify(200, body, chat_id="c"),
    "long reply": read_long,
    "long list": lambda body: read_long(b'{"messages":[' + body),
    "json": read_json,
    "text": lambda body: opened_text(body.decode("latin-1")),
    "form": lambda body: read_call("s/c/send", body),
    "multipart": lambda body: read_call("s/c/file", body, "multipart/form-data; boundary=x"),
}

REPEATED = {
    "brackets": b"[",
    "braces": b'{"a":',
    "quotes": b'"',
    "backslashes": b"\\",
    "escapes": b'"\\ud800',
    "digits": b"1",
    "angle brackets": b"<",
    "tags": b"<a>",
    "attributes": b"<a b=",
    "comments": b"<!--",
    "character data": b"<![CDATA[",
    "scripts": b"<script>",
    "cells": b"<tr><td>a<td>1",
    "entities": b"&#x",
    "lines": b"a=1\n",
    "colons": b"a:",
    "samples": b'a{b="c"} 1\n',
    "types": b"# TYPE a counter\n",
    "spaces": b" ",
    "nothing": b"\n",
    "bad bytes": b"\xff",
    "fields": b"a=b&",
    "parts": b"--x\r\n",
    "dispositions": b"\r\n--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb",
}

LISTED: dict[str, Callable[[int], object]] = {
    "many names": lambda n: {f"k{i}": i for i in range(n // 8)},
    "many texts": lambda n: ["{}"] * (n // 5),
    "many tokens": lambda n: [{"chatId": "c", "secureKey": str(i)} for i in range(n // 40)],
    "many events": lambda n: {"messages": [{"type": "Message", "index": i} for i in range(n // 30)]},
    "many errors": lambda n: {"statusCode": 1, "errors": [{"code": 1, "advice": "a"}] * (n // 27)},
    "many systems": lambda n: [{"eventAttributes": {"GCTI_SYSTEM": {"a": i}}} for i in range(n // 45)],
}


def steps(parse: Parse, body: bytes) -> int:
    """How many steps of the interpreter it takes to read or refuse this."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction:
        nonlocal count
        frame.f_trace_opcodes = True
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(body)
    except (PushError, HealthError, ChatApiError, NotJson):
        pass
    finally:
        sys.settrace(before)
    return count


def check_growth(parse: Parse, make: Callable[[int], bytes]) -> None:
    once, twice = (steps(parse, make(size)) for size in (SIZE, 2 * SIZE))
    assert twice <= 2.5 * once + 1_000, (once, twice)


@pytest.mark.slow
@pytest.mark.parametrize("parser", PARSERS)
def test_work_grows_as_what_is_repeated_does(parser: str) -> None:
    def body(piece: bytes, size: int) -> bytes:
        return piece * (size // len(piece))

    for what, piece in REPEATED.items():
        with case(what):
            check_growth(PARSERS[parser], partial(body, piece))


@pytest.mark.slow
@pytest.mark.parametrize("parser", PARSERS)
def test_work_grows_as_the_tree_does(parser: str) -> None:
    def body(grown: Callable[[int], object], size: int) -> bytes:
        tree = grown(size)
        return json.dumps({"deviceId": "d", "message": tree} if parser == "push" else tree).encode()

    for what, grown in LISTED.items():
        with case(what):
            check_growth(PARSERS[parser], partial(body, grown))


def test_steps_are_counted() -> None:
    def quadratic(body: bytes) -> object:
        return [one for one in body for _ in body]

    with pytest.raises(AssertionError):
        check_growth(quadratic, lambda size: b"x" * (size // 10))
