"""Bodies that the control API reads, of any bytes: taken or refused with a reason, and never repeated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import orjson
import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from conftest import FakeClock, PromptStore, settings_of
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.control.api import Control
from asyncchatd.control.reading import BadRequest
from asyncchatd.control.status.picture import Surroundings
from control.test_api import PINGS

pytestmark = pytest.mark.usefixtures("events")

T = TypeVar("T")

KEY = "4ee15d7e1c343c8e"
GOOD = {"chat_id": "chat-1", "user_id": "u", "secure_key": KEY, "alias": "117"}
REPLY = {"statusCode": 0, "chatId": "chat-1", "userId": "u", "secureKey": KEY, "alias": "117"}
FIELDS = ["chat_id", "user_id", "secure_key", "alias", "service", "device_id", "next_position", "more"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(KEY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
registrations = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8).map(
    lambda each: {**GOOD, **each}
)
replies = st.dictionaries(
    st.sampled_from([*REPLY, "nextPosition", "messages", "chatEnded", KEY]), values
).map(lambda each: {**REPLY, **each})
lines = st.one_of(
    st.binary(max_size=30),
    values.map(lambda value: json.dumps(value).encode()),
    (registrations | replies).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b" ", b"\r", b"{", KEY.encode(), b'{"secure_key": "' + KEY.encode()]),
)


def run(ask: Callable[[Control], Awaitable[T]]) -> T:
    """With an API and an empty store."""

    async def asked() -> T:
        store, clock = PromptStore(), FakeClock()
        await store.open()
        try:
            around = Surroundings(list, lambda: PINGS, lambda: True)
            return await ask(Control(store, clock, asyncio.Event(), around, settings_of()))
        finally:
            await store.close()

    return asyncio.run(asked())


def request(method: str, path: str, pieces: Sequence[bytes], chat_id: str = "chat-1") -> web.Request:
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 1 << 16)
    for piece in pieces:
        content.feed_data(piece)
    content.feed_eof()
    return make_mocked_request(method, path, payload=content, match_info={"chat_id": chat_id})


@pytest.mark.slow
@given(lines)
def test_any_body_of_a_registration_is_taken_or_refused_with_a_reason(body: bytes) -> None:
    async def ask(control: Control) -> str:
        try:
            response = await control.put_session(request("PUT", "/v1/sessions/chat-1", [body]))
        except BadRequest as error:
            return orjson.dumps([error.code, str(error), error.field]).decode()
        assert response.status in (200, 201)
        assert isinstance(response.body, bytes)
        shown = orjson.loads(response.body)
        assert shown["has_secure_key"] is True
        return "" if KEY in (shown[name] for name in FIELDS[:6] if name in shown) else str(shown)

    assert KEY not in run(ask)


@pytest.mark.slow
@given(st.lists(lines, max_size=6), st.lists(st.integers(0, 200), max_size=5))
def test_any_lines_are_taken_or_refused_however_they_are_cut(many: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(many)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(edges) if end > start]

    def post(pieces: Sequence[bytes]) -> tuple[int, dict[str, object]]:
        async def ask(control: Control) -> tuple[int, dict[str, object]]:
            response = await control.post_sessions(request("POST", "/v1/sessions", pieces))
            assert isinstance(response.body, bytes)
            assert KEY.encode() not in response.body
            return response.status, orjson.loads(response.body)

        return run(ask)

    status, answer = post(pieces)
    assert (status, answer) == post([body])
    assert status == (400 if answer["refused"] and not answer["taken"] else 200)
    written = sum(bool(line.strip()) for line in body.split(b"\n"))
    assert (answer["taken"], answer["refused"]) == (written - int(str(answer["refused"])), answer["refused"])
