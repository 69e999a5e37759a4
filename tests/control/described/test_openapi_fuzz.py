"""The control API under requests made from its OpenAPI document, right and wrong ones: never a 500, never an
answer the document does not know, never a secure key.

The requests are the same in every run, and some hundreds. `GET /v1/live` does not end by itself and is left out;
tests of its own hold it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

import pytest
from conftest import Events, PromptStore, listening, register, settings_of
from hypothesis import HealthCheck, Phase, given, settings

from asyncchatd.control.api import Control
from asyncchatd.control.described import openapi
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import ChatServer, ServerState
from control.test_api import PINGS

if TYPE_CHECKING:
    from schemathesis import Case

EXAMPLES = 30
"""Of each kind for each call."""


METHODS = {"get", "put", "post", "delete"}


def _calls() -> Iterator[tuple[str, bool]]:
    """Each call, and whether something can be wrong in it; of others there are right requests only."""
    document = cast(dict[str, Any], openapi.document())
    named = document["components"].get("parameters", {})
    for path, item in document["paths"].items():
        for method in sorted(METHODS & item.keys()):
            said = [*item.get("parameters", ()), *item[method].get("parameters", ())]
            said = [named[each["$ref"].rpartition("/")[2]] if "$ref" in each else each for each in said]
            if path != "/v1/live":
                yield (
                    f"{method.upper()} {path}",
                    method == "put" or any(each["in"] == "query" for each in said),
                )


CALLS = dict(_calls())


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
def test_every_call_is_asked_wrongly_where_it_can_be() -> None:
    from .operations import OPERATIONS, WRONG

    assert sorted(CALLS) == sorted(OPERATIONS)
    assert sorted(label for label, can_be in CALLS.items() if can_be) == sorted(WRONG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, "positive") for label in CALLS]
    + [(label, "negative") for label, can_be in CALLS.items() if can_be],
)
def test_no_request_brings_a_500_an_unknown_answer_or_a_key(
    base: str, label: str, mode: str, events: Events
) -> None:
    import requests
    from schemathesis import GenerationMode

    from .operations import CONFORMANCE, OPERATIONS

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
    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
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
