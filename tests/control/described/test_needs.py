"""What each call of the control API asks of a token."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from conftest import Events, FakeClock, PromptStore, listening, register, settings_of, soon
from stores.desk import Desk
from stores.test_transcript import EVERYTHING, message, refresh

from asyncchatd.config.values.rights import Right
from asyncchatd.control.api import Control
from asyncchatd.control.described import openapi
from asyncchatd.control.described.needs import NEEDS
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.listening.guard import Guard
from asyncchatd.model.data import ChatServer
from asyncchatd.model.delivery import Consumer
from asyncchatd.wire import event_id
from control.test_api import PINGS, body

pytestmark = pytest.mark.usefixtures("events")

KEY = "4ee15d7e1c343c8e-planted"
TEXT = "Hello, your parcel is here"
HOOK = Consumer("hook", EVERYTHING, pushes=True)

MAY = {
    "read": {
        "GET /v1/sessions",
        "GET /v1/sessions/{chat_id}",
        "GET /v1/servers",
        "GET /v1/restorations",
        "GET /v1/consumers",
        "GET /v1/status",
        "GET /v1/live",
        "GET /",
        "GET /metrics",
    },
    "register": {"PUT /v1/sessions/{chat_id}", "DELETE /v1/sessions/{chat_id}", "POST /v1/sessions"},
    "operate": {
        "POST /v1/sessions/{chat_id}/ping",
        "POST /v1/servers/{name}/restore",
        "POST /v1/store/accept",
        *(f"POST /v1/consumers/{{name}}/{verb}" for verb in ("retry", "pause", "resume", "replay")),
    },
    "keys": {f"POST /v1/sessions/{{chat_id}}/{verb}" for verb in ("take", "release", "acknowledged")},
    "events": {"GET /v1/events"},
}
"""What a token with one right may."""

SAID: dict[str, dict[str, object]] = {
    "/v1/sessions/{chat_id}/take": {"for": "10s"},
    "/v1/sessions/{chat_id}/release": {},
    "/v1/sessions/{chat_id}/acknowledged": {},
}
"""What is said to calls that do not want a session; to a release the take before it, to an acknowledgement what asks
for one."""

ANYBODY = {"GET /openapi.json", "GET /healthz", "GET /readyz"}


def application(store: PromptStore, clock: FakeClock) -> Control:
    around = Surroundings(lambda: [ChatServer("chat-a", "117")], lambda: PINGS, lambda: True)
    return Control(store, clock, asyncio.Event(), around, settings_of())


@asynccontextmanager
async def served(
    store: PromptStore, clock: FakeClock, tmp_path: Path
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """The API as the daemon serves it, with a token for each right that is called as the right is."""
    (tmp_path / "tokens").write_text("\n".join(f"may-{right} {right}" for right in Right))
    control = application(store, clock)
    guard = Guard(settings_of(control={"token_file": tmp_path / "tokens"}).control)
    async with (
        listening(guard.before(control.app(), control.needs)) as base,
        aiohttp.ClientSession() as http,
    ):
        yield base, http


def test_every_route_declares_what_it_needs_and_nothing_else_is_declared(
    store: PromptStore, clock: FakeClock
) -> None:
    app = application(store, clock).app()
    routes = {
        ("GET" if route.method == "HEAD" else route.method, resource.canonical)
        for resource in app.router.resources()
        for route in resource
    }
    assert routes == set(NEEDS)


def test_the_daemon_does_not_start_with_a_route_that_declares_nothing(
    store: PromptStore, clock: FakeClock
) -> None:
    async def forgotten(_: web.Request) -> web.Response:
        return web.Response(text=KEY)

    control = application(store, clock)
    app = control.app()
    app.router.add_get("/v1/sessions/{chat_id}/key", forgotten)
    with pytest.raises(ValueError, match=r"GET /v1/sessions/\{chat_id\}/key"):
        Guard(settings_of().control).before(app, control.needs)


@pytest.mark.slow
async def test_each_call_asks_for_its_right_and_for_no_other(
    store: PromptStore, clock: FakeClock, tmp_path: Path
) -> None:
    desk = Desk(store, clock.now())
    await store.enrol([Consumer("app", EVERYTHING, acknowledges_ms=5_000), HOOK], now=clock.now())
    await desk.live("asked")
    asked = event_id(store.epoch, (await desk.ask("app", "asked")).id)
    async with served(store, clock, tmp_path) as (base, http):
        for right in Right:
            served_to = set()
            take_id: object = "none"
            await store.remove("chat-1", now=clock.now())
            for method, path in NEEDS:
                await register(store, "chat-1", now=clock.now())
                actual = path.replace("{chat_id}", "chat-1")
                actual = actual.replace("{name}", "hook" if "consumers" in path else "chat-a")
                actual += "?consumer=app" if path == "/v1/events" else ""
                said: Mapping[str, object] | None = body() if method in ("PUT", "POST") else None
                if path in SAID:
                    said = SAID[path] or {"take_id": take_id}
                if path.endswith("/acknowledged"):
                    said = {"id": asked}
                    actual = actual.replace("chat-1", "asked")
                headers = {"Authorization": f"Bearer may-{right}"}
                async with http.request(method, base + actual, json=said, headers=headers) as response:
                    if response.status != 403:
                        assert response.status < 300, (method, path)
                        served_to.add(f"{method} {path}")
                        if path.endswith("/take"):
                            take_id = (await soon(response.json()))["take_id"]
                        continue
                    error = (await soon(response.json()))["error"]
                    assert error["code"] == "missing_right"
                    assert f'"{NEEDS[method, path].right}"' in error["message"]
            assert served_to == MAY[right] | ANYBODY


@pytest.mark.slow
async def test_what_a_dashboard_may_read_holds_neither_secure_key_nor_text(
    store: PromptStore, clock: FakeClock, tmp_path: Path, events: Events
) -> None:
    desk = Desk(store, clock.now())
    await store.enrol([Consumer("app", EVERYTHING), HOOK], now=desk.now)
    await desk.live("chat-2")
    await refresh(desk, message(3, TEXT), chat_id="chat-2")
    [batch] = await store.batches("hook", now=desk.now, limit=1, busy=(), most_events=9, most_bytes=1 << 20)
    assert TEXT not in repr(batch)
    await store.undelivered(batch, due_at=desk.now, failing_since=desk.now, parked=True)

    def is_clean(told: str) -> None:
        for planted in (KEY, TEXT, "parcel"):
            assert planted not in told

    async with served(store, clock, tmp_path) as (base, http):
        headers = {"Authorization": "Bearer may-register"}
        async with http.put(
            f"{base}/v1/sessions/chat-1", json=body(secure_key=KEY), headers=headers
        ) as answer:
            is_clean(await soon(answer.text()))
            assert answer.status == 201
        for method, path in NEEDS:
            if method == "GET" and path != "/v1/live":
                for chat_id in ("chat-1", "chat-2"):
                    actual = path.replace("{chat_id}", chat_id) + "?consumer=app"
                    async with http.get(
                        base + actual, headers={"Authorization": "Bearer may-read"}
                    ) as answer:
                        assert answer.status == (403 if path == "/v1/events" else 200)
                        is_clean(await soon(answer.text()))
        headers = {"Authorization": "Bearer may-operate"}
        for verb in ("replay", "retry", "pause", "resume"):
            async with http.post(f"{base}/v1/consumers/hook/{verb}", headers=headers) as answer:
                assert answer.status == 200
                is_clean(await soon(answer.text()))
        headers = {"Authorization": "Bearer may-events"}
        for query, status in (("", 400), ("consumer=hook", 409), ("consumer=app&after=x", 400)):
            async with http.get(f"{base}/v1/events?{query}", headers=headers) as answer:
                assert answer.status == status
                is_clean(await soon(answer.text()))
        async with http.get(f"{base}/v1/events?consumer=app", headers=headers) as answer:
            assert TEXT in await soon(answer.text()), "it is there to be told"
        async with http.get(f"{base}/v1/live", headers={"Authorization": "Bearer may-read"}) as answer:
            line = b""
            while not line.startswith(b"data: {"):  # of a picture
                line = await soon(answer.content.readline())
                is_clean(line.decode())
    is_clean(events.text)


def test_the_table_for_people_names_the_same_rights() -> None:
    table = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| `([A-Z]+) (/[^`?]*)[^|]*\| ([^|]+) \|", table, re.MULTILINE)
    told = {(method, path): words.strip("`") for method, path, words in rows}
    told["GET", "/readyz"] = told["GET", "/healthz"]  # in one row
    meant = {
        key: need.right or ("any" if need.token else "none, and no token") for key, need in NEEDS.items()
    }
    assert told == meant


def test_the_document_shows_the_right_of_each_call() -> None:
    paths = cast(dict[str, dict[str, dict[str, object]]], openapi.document()["paths"])
    for (method, path), need in NEEDS.items():
        shown = paths[path][method.lower()].get("security")
        if not need.token:
            assert shown == []
        elif need.right is None:
            assert shown is None  # as the whole document has it
        else:
            ordinary = need.right not in (Right.KEYS, Right.EVENTS)
            untold: list[dict[str, list[str]]] = (
                [{}] if ordinary else []
            )  # nobody is told those without a token
            assert shown == [*untold, {"bearer": [need.right]}, {"basic": [need.right]}]
