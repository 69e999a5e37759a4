"""The control API under requests made from its OpenAPI document, right and wrong ones: never a 500, never an
answer the document does not know, never a secure key.

The requests are the same in every run, and some hundreds. `GET /v1/live` does not end by itself and is left out;
tests of its own hold it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

import pytest
import requests
import schemathesis
from conftest import Events, PromptStore, listening, register, settings_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from asyncchatd.control.api import Control
from asyncchatd.control.described import openapi
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import ChatServer, ServerState
from control.test_api import PINGS

EXAMPLES = 30
"""Of each kind for each call."""


def _line(registration: object) -> bytes:
    return json.dumps(registration).encode()


# Lines of all kinds, so that many are taken and each error comes.
_LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.dictionaries(
            st.sampled_from(["chat_id", "user_id", "secure_key", "alias", "next_position", "service"]),
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12)),
        ).map(_line),
        st.text(min_size=1, max_size=12).map(
            lambda chat_id: _line({"chat_id": chat_id, "user_id": "u", "secure_key": "k", "alias": 117})
        ),
    ),
    max_size=8,
).map(b"\n".join)
schemathesis.openapi.media_type("application/x-ndjson", _LINES)

OPERATIONS = {
    operation.label: operation
    for operation in (
        found.ok()  # type: ignore[union-attr]
        for found in schemathesis.openapi.from_dict(openapi.document()).get_all_operations()
    )
    if operation.path != "/v1/live"
}
WRONG = [label for label, each in OPERATIONS.items() if each.query or each.method == "put"]
"""Those in which something can be wrong; of others there are right requests only."""

CONFORMANCE = cast(
    Any,  # the library's own registry does not fit its own call
    CHECKS.get_by_names(
        [
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_headers_conformance",
            "response_schema_conformance",
        ]
    ),
)


@pytest.fixture
def base(events: Events) -> Iterator[str]:
    """The API in a thread of its own, with a few sessions; its address."""
    ready: Future[str] = Future()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        clock, store, stopped = SystemClock(), PromptStore(), asyncio.Event()
        stop.append((asyncio.get_running_loop(), stopped))
        await store.open()
        await register(store, "chat-1", "0", now=clock.now())
        servers = [ChatServer("chat-a", "117", "1001", None, ServerState.UP, 1, 2), ChatServer("0")]
        around = Surroundings(lambda: servers, lambda: PINGS, lambda: True)
        control = Control(store, clock, asyncio.Event(), around, settings_of())
        async with listening(control.app()) as address:
            ready.set_result(address)
            await stopped.wait()
        await store.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield ready.result(20)
    loop, stopped = stop[0]
    loop.call_soon_threadsafe(stopped.set)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, GenerationMode.POSITIVE) for label in OPERATIONS]
    + [(label, GenerationMode.NEGATIVE) for label in WRONG],
)
def test_no_request_brings_a_500_an_unknown_answer_or_a_key(
    base: str, label: str, mode: GenerationMode, events: Events
) -> None:
    operation = OPERATIONS[label]
    keys: set[str] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        if isinstance(case.body, dict):
            told = (case.body.get("secure_key"), case.body.get("secureKey"))
            keys.update(key for key in told if isinstance(key, str))
        with requests.Session() as session:
            response = case.call(base_url=base, session=session)
        case.validate_response(response, checks=CONFORMANCE)
        assert not said(keys, response.text)

    ask()
    assert not said(keys, events.text)


def said(keys: set[str], text: str) -> set[str]:
    """Those that can be told from other text."""
    return {key for key in keys if len(key) >= 8 and key in text}
