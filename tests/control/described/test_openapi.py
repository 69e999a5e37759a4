"""The OpenAPI document against the code: every route is in it and the reverse, and what a running API answers
is what it says. Each status of each call is provoked once."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import orjson
import pytest
from aiohttp import web
from conftest import FakeClock, PromptStore, register, settings_of, soon
from jsonschema import Draft202012Validator
from stores.desk import Desk
from stores.test_transcript import EVERYTHING, message, refresh

from asyncchatd.control import registrations, shapes
from asyncchatd.control.api import Control
from asyncchatd.control.described import openapi
from asyncchatd.control.reading import LARGEST_LINE
from asyncchatd.control.registrations import ACKNOWLEDGED, BESIDE, FIELDS, TAKE_ID
from asyncchatd.control.status import live
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.log.events import Event
from asyncchatd.log.lines import get_logger
from asyncchatd.log.rendering import recent_lines
from asyncchatd.model.data import Cause, ChatServer, ServerState
from asyncchatd.model.delivery import Consumer
from asyncchatd.standin.messages import write_push
from asyncchatd.stores import StoreError
from asyncchatd.wire import event_id
from asyncchatd.wire.push import read_push
from control.test_api import KEY, PINGS, Api, Json, body, end, lines, serving

pytestmark = pytest.mark.usefixtures("events")

DOCUMENT = openapi.document()
CONTROL = Path(shapes.__file__).parent
METHODS = ("get", "put", "post", "delete")

Call = tuple[str, str, int]
"""Method, path as the document writes it, status."""


@pytest.fixture
async def api(store: PromptStore, clock: FakeClock) -> AsyncIterator[Api]:
    async with serving(store, clock) as api:
        yield api


def calls() -> dict[Call, Json]:
    """Every call with each of its statuses, and the response."""
    paths = cast(dict[str, dict[str, dict[str, dict[str, Json]]]], DOCUMENT["paths"])
    components = cast(dict[str, dict[str, Json]], DOCUMENT["components"])
    found: dict[Call, Json] = {}
    for path, item in paths.items():
        for method in METHODS:
            for status, response in item.get(method, {}).get("responses", {}).items():
                reference = response.get("$ref")
                if isinstance(reference, str):
                    response = components["responses"][reference.rpartition("/")[2]]
                found[method, path, int(status)] = response
    return found


@pytest.mark.slow
def test_the_document_is_valid_openapi() -> None:
    from openapi_spec_validator import validate  # reading it is a quarter second of each process

    validate(cast(dict[str, object], orjson.loads(orjson.dumps(DOCUMENT))))


def test_every_route_is_in_the_document_and_the_reverse(store: PromptStore, clock: FakeClock) -> None:
    around = Surroundings(list, lambda: PINGS, lambda: True)
    app: web.Application = Control(store, clock, asyncio.Event(), around, settings_of()).app()
    routes = {
        (route.method.lower(), resource.canonical)
        for resource in app.router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    assert routes == {(method, path) for method, path, _ in calls()}


async def test_it_is_served(api: Api) -> None:
    status, served = await api.call("GET", "/openapi.json")
    assert (status, served) == (200, orjson.loads(orjson.dumps(DOCUMENT)))


def test_every_schema_is_used_and_every_reference_leads_somewhere() -> None:
    text = orjson.dumps(DOCUMENT).decode()
    components = cast(dict[str, dict[str, Json]], DOCUMENT["components"])
    unused = {
        f"#/components/{kind}/{name}"
        for kind, each in components.items()
        for name in each
        if kind != "securitySchemes" and f'"#/components/{kind}/{name}"' not in text
    }
    # An event stream cannot say in OpenAPI 3.1 what its events are; their schemas are there to be looked up.
    assert unused == {"#/components/schemas/Moment", "#/components/schemas/Picture"}


def test_what_a_registration_may_say_is_what_is_read_of_one() -> None:
    described = cast(dict[str, dict[str, dict[str, Json]]], DOCUMENT["components"])["schemas"]
    assert described["Registration"]["properties"].keys() == set(FIELDS)
    beside = {*BESIDE, TAKE_ID, ACKNOWLEDGED}
    assert beside <= described["Reply"]["properties"].keys()


def test_the_document_for_people_names_every_field_of_a_registration() -> None:
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    for told in (text, registrations.__doc__ or ""):
        assert [name for name in FIELDS if not re.search(rf'[`"]{name}[`"]', told)] == []


@pytest.mark.parametrize("module", sorted(CONTROL.rglob("*.py")), ids=lambda path: str(path.stem))
def test_an_answer_says_every_field_of_its_shape(module: Path) -> None:
    """A default is for the answer of an older daemon: this one says the field itself."""
    forgotten = {}
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("shapes."):
            continue
        shape = getattr(shapes, ast.unparse(node.func).removeprefix("shapes."), None)
        said = {keyword.arg for keyword in node.keywords}
        if isinstance(shape, type) and issubclass(shape, shapes.Shape) and None not in said:
            forgotten[ast.unparse(node.func), node.lineno] = set(shape.__struct_fields__) - said
    assert not any(forgotten.values()), forgotten


def check(call: Call, kind: str, content: bytes) -> None:
    """The answer is what the document says of this call and status."""
    response = calls()[call]
    said = cast(dict[str, dict[str, Json]], response.get("content", {}))
    if not said:
        assert content == b"", call
        return
    assert kind in said, (call, kind)
    schema = said[kind]["schema"]
    value: object = orjson.loads(content) if kind == "application/json" else content.decode()
    valid(value, schema)


def valid(value: object, schema: Json) -> None:
    errors = Draft202012Validator({**schema, "components": DOCUMENT["components"]}).iter_errors(value)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


async def not_noted() -> bool:
    """In the place of `Store.accept`, on a disk that is full."""
    raise StoreError("chats.db.lock cannot be written: No space left on device")


@pytest.mark.slow
async def test_what_a_running_api_answers_is_what_the_document_says(
    api: Api, store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[Call] = set()

    async def call(method: str, path: str, actual: str, said: object = None, **headers: str) -> None:
        response = await api.raw(method, actual, said, **headers)
        key = (method.lower(), path, response.status)
        assert key in calls(), f"{method} {actual} answered {response.status}"
        check(key, response.content_type, await response.read())
        seen.add(key)

    api.servers = [
        ChatServer("chat-a", "117", "1001", None, ServerState.UP, 1, 2),
        ChatServer("chat-b", None, None, None, ServerState.DOWN, 0, 0, "connection refused"),
    ]
    session, ping = "/v1/sessions/{chat_id}", "/v1/sessions/{chat_id}/ping"
    restore = "/v1/servers/{name}/restore"
    desk = Desk(store, clock.now())
    app = Consumer("app", EVERYTHING, acknowledges_ms=5_000)
    await store.enrol([app, Consumer("hook", EVERYTHING, pushes=True)], now=desk.now)
    await desk.live("chat-9")
    await refresh(desk, message(3, "one"), chat_id="chat-9")
    await end(api, store, clock, "over")
    await store.take_push(read_push(write_push("device", {"session-id": "half"})), now=clock.now())
    await store.absorb(10)
    await register(store, "elsewhere", now=clock.now(), alias="999")

    await call("PUT", session, "/v1/sessions/chat-1", body(device_id="d", next_position=3))
    await call("PUT", session, "/v1/sessions/chat-1", body(secure_key="newer"))
    await call("PUT", session, "/v1/sessions/chat-1", b"{")
    await call("PUT", session, "/v1/sessions/over", body("over"))
    await call("PUT", session, "/v1/sessions/chat-1", b" " * (LARGEST_LINE + 1))
    for method, path in (("PUT", session), ("POST", "/v1/sessions")):
        await call(method, path, path.replace("{chat_id}", "chat-1"), b"{}", **{"Content-Encoding": "br"})
    for chat_id in ("chat-1", "over", "half", "nobody"):
        await call("GET", session, f"/v1/sessions/{chat_id}")
        await call("POST", ping, f"/v1/sessions/{chat_id}/ping")
    take, release = f"{session}/take", f"{session}/release"
    for chat_id in ("chat-1", "over", "half", "nobody"):
        await call("POST", take, f"/v1/sessions/{chat_id}/take", {"for": "1s", "wait": "0s"})
        await call("POST", release, f"/v1/sessions/{chat_id}/release", {"take_id": "another"})
    await register(store, "elsewhere-2", now=clock.now(), alias="999")
    taken = await api.raw("POST", "/v1/sessions/elsewhere-2/take", {"for": "1s"})
    its = {"take_id": (await taken.json())["take_id"]}
    await call("POST", take, "/v1/sessions/elsewhere-2/take", {"for": "1s", "wait": "0s"})
    await call("POST", release, "/v1/sessions/elsewhere-2/release", its)
    acknowledged = f"{session}/acknowledged"
    event = {"id": event_id(store.epoch, (await desk.ask("app", "chat-9")).id)}
    for chat_id in ("chat-9", "chat-1", "nobody"):
        await call("POST", acknowledged, f"/v1/sessions/{chat_id}/acknowledged", event)
    for path in (take, release, acknowledged):
        actual = path.replace("{chat_id}", "chat-1")
        await call("POST", path, actual, b"{")
        await call("POST", path, actual, b"{}", **{"Content-Encoding": "br"})
        await call("POST", path, actual, b" " * (LARGEST_LINE + 1))
        seen.add(await stalled(store, clock, "POST", path))
    await call("POST", "/v1/sessions", "/v1/sessions", b"\n".join([*lines(3), b"{", b"[]"]))
    await call("POST", "/v1/sessions", "/v1/sessions", b"{")
    for query in ("", "?limit=1", "?state=ended", "?state=dead"):
        await call("GET", "/v1/sessions", f"/v1/sessions{query}")
    await call("GET", "/v1/servers", "/v1/servers")
    for name in ("chat-a", "chat-b", "chat-z"):
        await call("POST", restore, f"/v1/servers/{name}/restore")
    await store.begin_restoration(alias="118", server=None, cause=Cause.ANNOUNCED, now=clock.now())
    await call("GET", "/v1/restorations", "/v1/restorations")
    await call("GET", "/v1/restorations", "/v1/restorations?limit=no")
    for query in ("app", "app&after=x", "nobody", "hook", "app&after=0-7"):
        await call("GET", "/v1/events", f"/v1/events?consumer={query}")
    await call("GET", "/v1/consumers", "/v1/consumers")
    for verb in ("retry", "pause", "resume", "replay"):
        for name in ("app", "hook", "nobody"):
            await call("POST", f"/v1/consumers/{{name}}/{verb}", f"/v1/consumers/{name}/{verb}")
    for path in ("/", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/status"):
        await call("GET", path, path)
    api.ready = False
    await call("GET", "/readyz", "/readyz")
    await call("DELETE", session, "/v1/sessions/chat-1")
    await call("DELETE", session, "/v1/sessions/nobody")
    seen |= await listened(api)
    seen |= {await stalled(store, clock, "PUT", session), await stalled(store, clock, "POST", "/v1/sessions")}
    await call("POST", "/v1/store/accept", "/v1/store/accept")
    monkeypatch.setattr(store, "accept", not_noted)
    store.fill_disk()
    for method, path, status in calls():
        if status == 503 and path not in ("/v1/live", "/readyz"):
            chat_id = "elsewhere" if path == take else "half"
            actual = path.replace("{chat_id}", chat_id).replace("{name}", "chat-a")
            actual += "?consumer=app" if path == "/v1/events" else ""
            said: object = (
                body("half") if method == "put" else lines(1)[0] if path == "/v1/sessions" else None
            )
            said = {take: {"for": "1s"}, release: its, acknowledged: event}.get(path, said)
            await call(method.upper(), path, actual, said if method in ("put", "post") else None)
    assert set(calls()) - seen == set()


async def stalled(store: PromptStore, clock: FakeClock, method: str, path: str) -> Call:
    """A body that does not end."""
    go_on = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await go_on.wait()

    async with serving(store, clock, body_seconds=0.05) as api:
        actual = api.base + path.replace("{chat_id}", "chat-1")
        async with api.http.request(method, actual, data=stalling()) as response:
            key = (method.lower(), path, response.status)
            check(key, response.content_type, await response.read())
            go_on.set()
    return key


async def listened(api: Api) -> set[Call]:
    """As many listeners as there may be, and one more."""
    listening = [
        await soon(api.http.get(api.base + "/v1/live", headers={"Connection": "close"}))
        for _ in range(live.LISTENERS)
    ]
    assert listening[0].content_type == "text/event-stream"
    response = await api.raw("GET", "/v1/live")
    check(("get", "/v1/live", response.status), response.content_type, await response.read())
    for each in listening:
        each.close()
    return {("get", "/v1/live", listening[0].status), ("get", "/v1/live", response.status)}


async def test_a_picture_is_what_the_document_says(api: Api, store: PromptStore, clock: FakeClock) -> None:
    recent_lines.forget()
    get_logger().warning(Event.SERVER_SUSPECT, server="chat-a", cause=f"secureKey={KEY}", attempts=3)
    api.servers = [ChatServer("chat-a", "117", "1001", None, ServerState.SUSPECT, 1, 2, "no answer in time")]
    await register(store, "a", now=clock.now())
    await register(store, "b", now=clock.now(), alias="999")
    await store.begin_restoration(alias="117", server="chat-a", cause=Cause.UNREACHABLE, now=clock.now())
    response = await soon(api.http.get(api.base + "/v1/live"))
    picture = await soon(picture_of(response.content.readline))
    valid(picture, {"$ref": "#/components/schemas/Picture"})
    assert picture["sessions_elsewhere"] == {"999": 1}
    [warning] = cast(list[Json], picture["warnings"])
    assert (warning["event"], warning["count"]) == ("server_suspect", 1)
    assert KEY not in repr(picture)
    response.close()


async def picture_of(readline: Callable[[], Awaitable[bytes]]) -> dict[str, object]:
    """The next picture in a stream of events."""
    while await readline() != b"event: picture\n":
        pass
    return cast(dict[str, object], orjson.loads((await readline()).removeprefix(b"data: ")))
