"""The control API on real sockets: what each endpoint takes and tells, and that a secure key never comes out."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec
import orjson
import pytest
from conftest import NOON, Events, FakeClock, PromptStore, listening, register, settings_of, soon
from yarl import URL

from asyncchatd.control import api as control
from asyncchatd.control import shapes
from asyncchatd.control.api import AT_ONCE, Control
from asyncchatd.control.reading import LARGEST_LINE
from asyncchatd.control.shown import show_session
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.log.events import Event
from asyncchatd.model.data import (
    Cause,
    ChatServer,
    Ms,
    Reason,
    Registration,
    ServerState,
    Session,
    Settlement,
    Verdict,
)
from asyncchatd.standin.messages import write_push
from asyncchatd.stores import StoreError
from asyncchatd.stores.answers import Counts, Registered
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.wire.identifiers import LARGEST_ID
from asyncchatd.wire.push import read_push

pytestmark = pytest.mark.usefixtures("events")

KEY = "4ee15d7e1c343c8e"
INTERVAL_MS = 1_800_000.0

PINGS = shapes.Pings(
    in_flight=2,
    in_flight_limit=16,
    max_rate=200.0,
    gms_available=True,
    nodes=[shapes.Node(node="http://gms-1", resting=False, cause=None)],
)

Json = Mapping[str, object]


def body(chat_id: str | None = "chat-1", **more: object) -> dict[str, object]:
    """A session as the custom-chat-app registers it."""
    said = {"chat_id": chat_id, "user_id": "user-1", "secure_key": KEY, "alias": "117"}
    return {name: value for name, value in {**said, **more}.items() if value is not None}


def reply(**more: object) -> dict[str, object]:
    """GMS' reply to "request chat"."""
    said: dict[str, object] = {
        "statusCode": 0,
        "alias": "117",
        "userId": "user-1",
        "secureKey": KEY,
        "messages": [
            {
                "from": {"nickname": "First Last", "participantId": 1, "type": "Client"},
                "index": 1,
                "type": "ParticipantJoined",
                "utcTime": 1432845088000,
            }
        ],
        "chatId": "chat-1",
        "chatEnded": False,
        "monitored": False,
        "userData": {"alias": "118"},
        "nextPosition": 2,
    }
    return {name: value for name, value in {**said, **more}.items() if value is not None}


@dataclass
class Api:
    """The control API on loopback and a client of it."""

    base: str
    http: aiohttp.ClientSession
    wakeup: asyncio.Event
    servers: list[ChatServer] = field(default_factory=list)
    ready: bool = True
    hurried: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    """Consumers whose webhook was to be tried at once."""

    async def call(self, method: str, path: str, said: object = None, **headers: str) -> tuple[int, Json]:
        """Status and JSON of the answer; bytes are sent as they are, everything else as JSON."""
        response = await self.raw(method, path, said, **headers)
        if response.status == 204:
            return 204, {}
        assert response.content_type == "application/json"
        return response.status, orjson.loads(await response.read())

    async def raw(
        self, method: str, path: str, said: object = None, **headers: str
    ) -> aiohttp.ClientResponse:
        if isinstance(said, (dict, list)):
            said = orjson.dumps(said)
        url = URL(self.base + path, encoded=True)
        response = await soon(self.http.request(method, url, data=said, headers=headers))
        await response.read()
        return response

    async def refused_with(
        self, status: int, method: str, headers: Mapping[str, str], said: bytes = b"{}"
    ) -> dict[str, object]:
        told, answer = await self.call(method, "/v1/sessions/chat-1", said, **headers)
        assert told == status
        error = answer["error"]
        assert isinstance(error, dict)
        return error

    async def refused(self, method: str, path: str, said: object = None) -> tuple[int, str, object]:
        """Status, code and field of an error; its message must say something."""
        status, answer = await self.call(method, path, said)
        error = answer["error"]
        assert isinstance(error, dict)
        assert set(error) == {"code", "message", "field"}
        assert error["message"]
        return status, error["code"], error["field"]


@pytest.fixture
async def api(store: PromptStore, clock: FakeClock) -> AsyncIterator[Api]:
    async with serving(store, clock) as api:
        yield api


@asynccontextmanager
async def serving(store: PromptStore, clock: FakeClock, *, body_seconds: float = 10.0) -> AsyncIterator[Api]:
    wakeup = asyncio.Event()
    api = Api("", aiohttp.ClientSession(), wakeup)
    around = Surroundings(
        servers=lambda: api.servers,
        pings=lambda: PINGS,
        ready=lambda: api.ready,
        hurry=api.hurried.append,
        want=api.wanted.append,
    )
    its = {"listen": "127.0.0.1:0", "body_timeout": f"{body_seconds}s"}
    control = Control(store, clock, wakeup, around, settings_of(control=its))
    async with listening(control.app()) as api.base, api.http:
        yield api


# -- one session ---------------------------------------------------------------------------------------


async def test_a_session_is_registered_and_shown(api: Api, clock: FakeClock, events: Events) -> None:
    said = body(None, service="support", device_id="device-1", next_position=7)
    status, shown = await api.call("PUT", "/v1/sessions/chat-1", said)
    assert status == 201
    assert shown["outcome"] == "created"
    status, session = await api.call("GET", "/v1/sessions/chat-1")
    assert status == 200
    assert {**session, "outcome": "created", "note": None} == shown
    due_at = session["due_at"]
    assert isinstance(due_at, str)
    assert "2023-11-14T22:13:20.000Z" <= due_at <= "2023-11-14T22:43:20.000Z"
    assert {**session, "due_at": None} == {
        "chat_id": "chat-1",
        "service": "support",
        "user_id": "user-1",
        "has_secure_key": True,
        "alias": "117",
        "device_id": "device-1",
        "next_position": 7,
        "state": "live",
        "reason": "keepalive",
        "due_at": None,
        "attempts": 0,
        "restoration": None,
        "registered_at": "2023-11-14T22:13:20.000Z",
        "active_at": "2023-11-14T22:13:20.000Z",
        "answered_at": None,
        "ended_at": None,
        "end_cause": None,
        "last_trouble": None,
        "trouble_detail": None,
        "refused_since": None,
    }
    assert api.wakeup.is_set()
    assert events.one(Event.SESSION_REGISTERED)["outcome"] == "created"


async def test_registering_again_tells_newer_tokens(api: Api, store: PromptStore) -> None:
    await api.call("PUT", "/v1/sessions/chat-1", body())
    status, shown = await api.call("PUT", "/v1/sessions/chat-1", body(secure_key="newer", alias=118))
    assert (status, shown["outcome"], shown["alias"]) == (200, "updated", "118")
    session = await store.get("chat-1")
    assert session is not None
    assert session.secure_key == "newer"


async def test_a_replaced_key_does_not_come_back(api: Api, store: PromptStore) -> None:
    await api.call("PUT", "/v1/sessions/chat-1", body())
    await api.call("PUT", "/v1/sessions/chat-1", body(secure_key="newer"))
    status, shown = await api.call("PUT", "/v1/sessions/chat-1", body())
    assert (status, shown["outcome"]) == (200, "kept")
    session = await store.get("chat-1")
    assert session is not None
    assert session.secure_key == "newer"


async def test_many_registrations_say_how_many_old_keys_were_kept(
    api: Api, store: PromptStore, events: Events
) -> None:
    for key in ("first", "newer"):
        await api.call("PUT", "/v1/sessions/chat-1", body(secure_key=key))
    content = b"\n".join(map(orjson.dumps, (body("chat-1", secure_key="first"), body("chat-2"))))
    _, told = await api.call("POST", "/v1/sessions", content)
    assert (told["taken"], told["kept"], told["refused"], told["errors"]) == (2, 1, 0, [])
    assert events.one(Event.SESSIONS_REGISTERED)["kept"] == 1


async def test_a_session_without_a_service_gets_the_configured_one(api: Api) -> None:
    _, shown = await api.call("PUT", "/v1/sessions/chat-1", body())
    assert shown["service"] == "customer-support"


async def test_an_alias_may_come_as_a_number(api: Api) -> None:
    _, shown = await api.call("PUT", "/v1/sessions/chat-1", body(alias=117))
    assert shown["alias"] == "117"


@pytest.mark.parametrize("chat_id", ["0008TaFN3SE300QU", "a b", "a/b", "ü", "a%b", "a?b#c", "日本"])
async def test_a_chat_id_is_opaque(api: Api, chat_id: str) -> None:
    path = "/v1/sessions/" + URL.build(path=chat_id, encoded=False).raw_path.replace("/", "%2F")
    path = path.replace("?", "%3F").replace("#", "%23")
    assert (await api.call("PUT", path, body(chat_id)))[0] == 201
    status, shown = await api.call("GET", path)
    assert (status, shown["chat_id"]) == (200, chat_id)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "code", "named"),
    [
        (b"", "not_json", None),
        (b"{", "not_json", None),
        (b"\xff", "not_json", None),
        (b"[]", "not_an_object", None),
        (b'"x"', "not_an_object", None),
        (body(user_id=None), "missing", "user_id"),
        (body(secure_key=None), "missing", "secure_key"),
        (body(alias=None), "missing", "alias"),
        (body(alias=""), "missing", "alias"),
        (body(user_id=True), "bad_type", "user_id"),
        (body(user_id=["u"]), "bad_type", "user_id"),
        (body(user_id=1.5), "bad_type", "user_id"),
        (body(secure_key={"k": 1}), "bad_type", "secure_key"),
        (body(service=[]), "bad_type", "service"),
        (body(device_id={}), "bad_type", "device_id"),
        (body(user_id="x" * (LARGEST_ID + 1)), "bad_value", "user_id"),
        (body(user_id="a\nb"), "bad_value", "user_id"),
        (body(secure_key="a\x00b"), "bad_value", "secure_key"),
        (body(secure_key="undefined"), "placeholder", "secure_key"),
        (body(user_id=" null "), "placeholder", "user_id"),
        (body(alias="****"), "placeholder", "alias"),
        (body(device_id="[object Object]"), "placeholder", "device_id"),
        (body(service=".."), "placeholder", "service"),
        (body(next_position=-1), "bad_value", "next_position"),
        (body(next_position="3"), "bad_value", "next_position"),
        (body(next_position=True), "bad_value", "next_position"),
        (body(next_position=2.5), "bad_value", "next_position"),
        (body(next_position=1 << 53), "bad_value", "next_position"),
        (body("chat-2"), "mismatch", "chat_id"),
        (body(None) | {"chat_id": 7}, "mismatch", "chat_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_an_error_names_the_field(api: Api, said: object, code: str, named: str | None) -> None:
    assert await api.refused("PUT", "/v1/sessions/chat-1", said) == (400, code, named)
    assert (await api.call("GET", "/v1/sessions/chat-1"))[0] == 404


@pytest.mark.parametrize("path", ["%2E", "%2E%2E", "null", "****"])
async def test_a_chat_id_that_is_none_is_refused_in_the_path_too(api: Api, path: str) -> None:
    status, code, named = await api.refused("PUT", f"/v1/sessions/{path}", body(None))
    assert (status, code, named) == (400, "placeholder", "chat_id") or status in (404, 405)
    assert (await api.call("GET", "/v1/sessions"))[1]["sessions"] == []


@pytest.mark.slow
async def test_a_placeholder_among_many_lines_is_told_with_its_line_and_field(api: Api) -> None:
    lines = [body("chat-1"), body("chat-2", secure_key="null"), body("..", alias="118"), body("chat-4")]
    status, told = await api.call("POST", "/v1/sessions", b"\n".join(map(orjson.dumps, lines)))
    assert (status, told["taken"], told["refused"]) == (200, 2, 2)
    errors = told["errors"]
    assert isinstance(errors, list)
    assert [(each["line"], each["error"]["code"], each["error"]["field"]) for each in errors] == [
        (2, "placeholder", "secure_key"),
        (3, "placeholder", "chat_id"),
    ]


async def test_a_body_larger_than_any_registration_is_a_413(api: Api) -> None:
    assert await api.refused("PUT", "/v1/sessions/chat-1", b" " * (LARGEST_LINE + 1)) == (
        413,
        "too_large",
        None,
    )


async def test_a_false_content_encoding_is_a_400(api: Api) -> None:
    said = orjson.dumps(body())
    for path in ("/v1/sessions/chat-1", "/v1/sessions"):
        method = "POST" if path.endswith("sessions") else "PUT"
        status, answer = await api.call(method, path, said, **{"Content-Encoding": "gzip"})
        assert (status, answer["error"]["code"]) == (400, "unreadable")  # type: ignore[index]
    status, _ = await api.call(
        "PUT", "/v1/sessions/chat-1", gzip.compress(said), **{"Content-Encoding": "gzip"}
    )
    assert status == 201


@pytest.mark.slow
async def test_many_sessions_may_come_compressed_and_in_another_charset(api: Api) -> None:
    lines = b"\n".join(orjson.dumps(body(f"chat-{number}")) for number in range(2_000))
    said = {"Content-Encoding": "gzip", "Content-Type": "application/x-ndjson; charset=utf-16"}
    packed = gzip.compress(lines.decode().encode("utf-16"))
    assert await api.call("POST", "/v1/sessions", packed, **said) == (
        200,
        {"taken": 2_000, "kept": 0, "kept_lines": [], "refused": 0, "errors": []},
    )


@pytest.mark.slow
async def test_while_a_body_is_unpacked_others_are_answered(api: Api) -> None:
    once = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    bomb = b"".join(once.compress(b" \n" * (1 << 19)) for _ in range(60)) + once.flush()
    # It may take its time, on a busy machine very long: the test's own time-out bounds it. The others may not.
    posted = api.http.post(api.base + "/v1/sessions", data=bomb, headers={"Content-Encoding": "gzip"})
    unpacking = asyncio.ensure_future(posted)
    answered = 0
    while not unpacking.done():
        assert (await api.raw("GET", "/healthz")).status == 200
        answered += 1
    assert answered > 10
    assert (await unpacking).status == 200
    assert (await api.refused_with(415, "PUT", {"Content-Encoding": "br"}))["code"] == "unsupported_encoding"
    assert (await api.refused_with(413, "PUT", {"Content-Encoding": "gzip"}, bomb))["code"] == "too_large"


async def test_a_session_nobody_knows_is_a_404_everywhere(api: Api) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/ping")):
        assert await api.refused(method, f"/v1/sessions/nobody{path}") == (404, "not_found", "chat_id")


async def test_a_deleted_session_is_kept_as_ended_and_its_key_is_gone(
    api: Api, store: PromptStore, events: Events
) -> None:
    await api.call("PUT", "/v1/sessions/chat-1", body())
    assert (await api.raw("DELETE", "/v1/sessions/chat-1")).status == 204
    _, shown = await api.call("GET", "/v1/sessions/chat-1")
    assert [shown[name] for name in ("state", "end_cause", "reason", "due_at", "has_secure_key")] == [
        "ended",
        "removed",
        None,
        None,
        False,
    ]
    assert (await api.raw("DELETE", "/v1/sessions/chat-1")).status == 204
    assert len(events.of(Event.SESSION_REMOVED)) == 1


async def test_a_session_that_gms_ended_cannot_be_registered_again(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    await end(api, store, clock, "chat-1")
    assert await api.refused("PUT", "/v1/sessions/chat-1", body()) == (409, "session_ended", "chat_id")
    _, shown = await api.call("GET", "/v1/sessions/chat-1")
    assert (shown["state"], shown["end_cause"]) == ("ended", "chat_ended")


async def end(api: Api, store: PromptStore, clock: FakeClock, chat_id: str) -> None:
    """GMS says that the chat is over."""
    await api.call("PUT", f"/v1/sessions/{chat_id}", body(chat_id))
    await store.make_due(chat_id, Reason.REQUEST, now=clock.now())
    [claim] = await store.claim(now=clock.now(), limit=1, lease_ms=1000)
    await store.settle([Settlement(claim, Verdict.ENDED, 0, settled_at=clock.now())])


async def test_a_ping_makes_the_session_due_now(api: Api, clock: FakeClock) -> None:
    await api.call("PUT", "/v1/sessions/chat-1", body())
    api.wakeup.clear()
    status, shown = await api.call("POST", "/v1/sessions/chat-1/ping")
    assert (status, shown["reason"], shown["due_at"]) == (202, "request", "2023-11-14T22:13:20.000Z")
    assert api.wakeup.is_set()


async def test_what_cannot_be_pinged_says_why(api: Api, store: PromptStore, clock: FakeClock) -> None:
    await end(api, store, clock, "over")
    await store.take_push(read_push(write_push("d", {"session-id": "half"})), now=clock.now())
    await store.absorb(10)
    assert await api.refused("POST", "/v1/sessions/over/ping") == (409, "session_ended", "chat_id")
    assert await api.refused("POST", "/v1/sessions/half/ping") == (409, "session_incomplete", "chat_id")


# -- many sessions ---------------------------------------------------------------------------------------


def lines(count: int, start: int = 0) -> list[bytes]:
    return [orjson.dumps(body(f"chat-{number:05}")) for number in range(start, start + count)]


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.slow
async def test_twenty_thousand_sessions_come_in_one_stream(
    api: Api, store: PromptStore, clock: FakeClock, events: Events
) -> None:
    content = b"\n".join(lines(20_000)) + b"\n"
    assert len(content) > 20 * LARGEST_LINE  # far more than any single body may have
    status, answer = await api.call("POST", "/v1/sessions", pieces(content, 70_001))
    assert (status, answer) == (
        200,
        {"taken": 20_000, "kept": 0, "kept_lines": [], "refused": 0, "errors": []},
    )
    counts = await store.counts(now=clock.now())
    assert sum(counts.states.values()) == 20_000
    assert sum(counts.due.values()) < 100  # spread over the interval, not due at once
    registered = events.one(Event.SESSIONS_REGISTERED)
    assert (registered["count"], registered["created"], registered["refused"]) == (20_000, 20_000, 0)
    await api.call("POST", "/v1/sessions", pieces(b"\n".join(lines(10)), 100))
    again = events.of(Event.SESSIONS_REGISTERED)[-1]
    assert (again["count"], again["created"]) == (10, 0)


@pytest.mark.parametrize("size", [1, 7, 100, 1_000_000])
async def test_lines_may_be_cut_anywhere_on_the_way(api: Api, size: int) -> None:
    status, answer = await api.call("POST", "/v1/sessions", pieces(b"\n".join(lines(20)), size))
    assert (status, answer["taken"]) == (200, 20)


async def test_good_lines_are_taken_and_bad_ones_told_with_their_numbers(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    await end(api, store, clock, "over")
    good = lines(5)
    content = b"\n".join(
        [
            good[0],
            b"{",
            b"",
            orjson.dumps(body("chat-x", alias=None)),
            b"   ",
            good[1] + b"\r",
            b"[]",
            orjson.dumps(body("over")),
            orjson.dumps(body(None)),
            good[2],
            b"\xff\xfe",
        ]
    )
    status, answer = await api.call("POST", "/v1/sessions", content)
    assert (status, answer["taken"], answer["refused"]) == (200, 3, 6)
    errors = answer["errors"]
    assert isinstance(errors, list)
    assert [(one["line"], one["error"]["code"], one["error"]["field"]) for one in errors] == [
        (2, "not_json", None),
        (4, "missing", "alias"),
        (7, "not_an_object", None),
        (8, "session_ended", "chat_id"),
        (9, "missing", "chat_id"),
        (11, "not_json", None),
    ]
    assert await store.get("chat-00002") is not None


async def test_windows_line_ends_blank_lines_and_a_missing_last_one_do_not_matter(api: Api) -> None:
    for content in (
        b"\r\n".join(lines(3)) + b"\r\n",
        b"\n\n" + b"\n\r\n \n".join(lines(3)) + b"\n\n",
        b"\n".join(lines(3)),
    ):
        status, answer = await api.call("POST", "/v1/sessions", content)
        assert (status, answer) == (
            200,
            {"taken": 3, "kept": 0, "kept_lines": [], "refused": 0, "errors": []},
        )


@pytest.mark.parametrize("size", [LARGEST_LINE // 3, 1 << 20])
async def test_an_overlong_line_is_refused_and_the_next_ones_are_taken(api: Api, size: int) -> None:
    overlong = b'{"chat_id": "' + b"x" * (3 * LARGEST_LINE) + b'"}'
    good = lines(3)
    content = b"\n".join([good[0], overlong, good[1], b"x" * (LARGEST_LINE + 1), good[2], overlong])
    status, answer = await api.call("POST", "/v1/sessions", pieces(content, size))
    assert (status, answer["taken"], answer["refused"]) == (200, 3, 3)
    errors = answer["errors"]
    assert isinstance(errors, list)
    assert [(one["line"], one["error"]["code"]) for one in errors] == [
        (line, "too_long") for line in (2, 4, 6)
    ]


async def test_a_line_of_exactly_the_limit_is_taken(api: Api) -> None:
    line = orjson.dumps(body()).ljust(LARGEST_LINE)
    for content in (line, line + b"\n"):
        _, answer = await api.call("POST", "/v1/sessions", content)
        assert answer["taken"] == 1


async def test_nothing_at_all_is_nothing_taken(api: Api) -> None:
    for content in (b"", b"\n", b"\r\n \n"):
        assert await api.call("POST", "/v1/sessions", content) == (
            200,
            {"taken": 0, "kept": 0, "kept_lines": [], "refused": 0, "errors": []},
        )


async def test_only_bad_lines_are_a_400(api: Api) -> None:
    status, answer = await api.call("POST", "/v1/sessions", b"{\n{\n")
    assert (status, answer["taken"], answer["refused"]) == (400, 0, 2)


async def test_a_thousand_errors_are_shown_and_all_are_counted(api: Api) -> None:
    status, answer = await api.call("POST", "/v1/sessions", b"\n".join([b"{"] * 1500 + lines(1)))
    errors = answer["errors"]
    assert isinstance(errors, list)
    assert (status, answer["refused"], len(errors)) == (200, 1500, 1000)


async def test_one_session_on_two_lines_has_the_later_tokens(api: Api, store: PromptStore) -> None:
    content = b"\n".join(orjson.dumps(body(secure_key=key)) for key in ("first", "second"))
    _, answer = await api.call("POST", "/v1/sessions", content)
    session = await store.get("chat-1")
    assert session is not None
    assert (answer["taken"], session.secure_key) == (2, "second")


async def test_a_stream_that_breaks_off_keeps_what_was_whole(api: Api, store: PromptStore) -> None:
    """At least the portions that were registered: registering again does no harm."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"\n".join(lines(1200)) + b"\n"
        raise ConnectionError("the caller's own trouble")

    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await api.raw("POST", "/v1/sessions", broken())
    assert (await api.call("GET", "/healthz"))[0] == 200


# -- listing -----------------------------------------------------------------------------------------------


async def test_sessions_are_listed_page_by_page(api: Api, store: PromptStore, clock: FakeClock) -> None:
    await api.call("POST", "/v1/sessions", b"\n".join(lines(5)))
    seen: list[object] = []
    path = "/v1/sessions?limit=2"
    for _ in range(3):
        _, page = await api.call("GET", path)
        sessions = page["sessions"]
        assert isinstance(sessions, list)
        seen += [session["chat_id"] for session in sessions]
        path = f"/v1/sessions?limit=2&after={page['next']}"
    assert seen == [f"chat-{number:05}" for number in range(5)]
    assert page["next"] is None


@pytest.mark.slow
async def test_a_large_page_does_not_hold_up_the_event_loop(
    api: Api, store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(store, *(f"chat-{number:04}" for number in range(3 * AT_ONCE)), now=clock.now())
    shown, most, turn = 0, 0, 0

    def show(session: Session) -> shapes.Session:
        nonlocal shown, most
        shown += 1
        most = max(most, shown - turn)
        return show_session(session)

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn = shown
            await asyncio.sleep(0)

    monkeypatch.setattr(control, "show_session", show)
    others = asyncio.create_task(take_turns())
    _, answer = await api.call("GET", "/v1/sessions?limit=10000")
    others.cancel()
    sessions = answer["sessions"]
    assert isinstance(sessions, list)
    assert [each["chat_id"] for each in sessions] == [f"chat-{number:04}" for number in range(3 * AT_ONCE)]
    assert (shown, most) == (3 * AT_ONCE, AT_ONCE)


async def test_sessions_are_listed_by_alias_and_state(api: Api, store: PromptStore, clock: FakeClock) -> None:
    await register(store, "hers", now=clock.now())
    await register(store, "his", now=clock.now(), alias="118")
    await end(api, store, clock, "over")

    async def listed(query: str) -> list[str]:
        status, page = await api.call("GET", f"/v1/sessions?{query}")
        assert status == 200, page
        sessions = page["sessions"]
        assert isinstance(sessions, list)
        return [session["chat_id"] for session in sessions]

    assert await listed("") == ["hers", "his", "over"]
    assert await listed("alias=118") == ["his"]
    assert await listed("state=ended") == ["over"]
    assert await listed("state=live&alias=117") == ["hers"]
    assert await listed("state=&alias=&after=&limit=") == ["hers", "his", "over"]
    assert await listed("alias=999") == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=10001", "limit"),
        ("limit=0000000019999999999999999999", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=1.5", "limit"),
        ("state=dead", "state"),
    ],
)
async def test_a_wrong_filter_is_named(api: Api, query: str, named: str) -> None:
    assert await api.refused("GET", f"/v1/sessions?{query}") == (400, "bad_value", named)
    if named == "limit":
        assert await api.refused("GET", f"/v1/restorations?{query}") == (400, "bad_value", "limit")


# -- Chat Servers and restorations -----------------------------------------------------------------------------


async def test_servers_are_shown_with_their_sessions(api: Api, store: PromptStore, clock: FakeClock) -> None:
    await register(store, "a", "b", now=clock.now())
    await register(store, "c", now=clock.now(), alias="999")
    api.servers = [
        ChatServer("chat-a", "117", "1001", None, ServerState.UP, NOON, NOON + 1),
        ChatServer("chat-b", None, None, None, ServerState.DOWN, NOON, NOON, "Connection refused"),
    ]
    status, shown = await api.call("GET", "/v1/servers")
    assert status == 200
    assert shown == {
        "servers": [
            {
                "name": "chat-a",
                "state": "up",
                "since": "2023-11-14T22:13:20.000Z",
                "app_dbid": "117",
                "process_os_pid": "1001",
                "checked_at": "2023-11-14T22:13:20.001Z",
                "disputed": False,
                "detail": None,
                "sessions": 2,
            },
            {
                "name": "chat-b",
                "state": "down",
                "since": "2023-11-14T22:13:20.000Z",
                "app_dbid": None,
                "process_os_pid": None,
                "checked_at": "2023-11-14T22:13:20.000Z",
                "disputed": False,
                "detail": "Connection refused",
                "sessions": 0,
            },
        ],
        "sessions_elsewhere": {"999": 1},
    }


async def test_an_operator_restores_a_servers_sessions(
    api: Api, store: PromptStore, clock: FakeClock, events: Events
) -> None:
    await register(store, "a", "b", now=clock.now())
    api.servers = [ChatServer("chat a", "117", state=ServerState.UP)]
    status, shown = await api.call("POST", "/v1/servers/chat%20a/restore")
    assert status == 202
    assert {
        name: shown[name] for name in ("server", "alias", "cause", "sessions", "waiting", "finished_at")
    } == {
        "server": "chat a",
        "alias": "117",
        "cause": "operator",
        "sessions": 2,
        "waiting": 2,
        "finished_at": None,
    }
    assert api.wakeup.is_set()
    session = await store.get("a")
    assert session is not None
    assert (session.reason, session.restoration) == (Reason.RESTORE, shown["id"])
    assert await api.call("GET", "/v1/restorations") == (200, {"restorations": [shown]})
    assert events.one(Event.RESTORATION_STARTED)["cause"] == "operator"


async def test_a_restoration_without_sessions_is_finished_at_once(api: Api) -> None:
    api.servers = [ChatServer("chat-a", "117")]
    status, shown = await api.call("POST", "/v1/servers/chat-a/restore")
    assert (status, shown["sessions"], shown["took_seconds"]) == (202, 0, 0.0)


@pytest.mark.slow
async def test_a_server_that_cannot_be_restored_says_why(api: Api) -> None:
    api.servers = [ChatServer("chat-a")]
    assert await api.refused("POST", "/v1/servers/chat-a/restore") == (409, "no_alias", "name")
    assert await api.refused("POST", "/v1/servers/chat-z/restore") == (404, "not_found", "name")


async def test_restorations_are_shown_newest_first(api: Api, store: PromptStore, clock: FakeClock) -> None:
    for alias in ("1", "2", "3"):
        await store.begin_restoration(alias=alias, server=None, cause=Cause.UNREACHABLE, now=clock.now())
    _, shown = await api.call("GET", "/v1/restorations?limit=2")
    restorations = shown["restorations"]
    assert isinstance(restorations, list)
    assert [each["alias"] for each in restorations] == ["3", "2"]


# -- the daemon ------------------------------------------------------------------------------------------------


async def test_the_status_tells_what_there_is_and_what_is_due(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    await register(store, "a", "b", now=clock.now())
    await store.make_due("a", Reason.REQUEST, now=clock.now())
    await store.begin_restoration(alias="118", server=None, cause=Cause.RESTARTED, now=clock.now())
    api.servers = [ChatServer("chat-a", "117")]
    await clock.advance(90)
    status, shown = await api.call("GET", "/v1/status")
    assert status == 200
    assert shown["ready"] is True
    assert (shown["started_at"], shown["uptime_seconds"]) == ("2023-11-14T22:13:20.000Z", 90.0)
    assert shown["sessions"] == {"incomplete": 0, "live": 2, "ended": 0}
    assert shown["due"] == {"acknowledge": 0, "restore": 0, "request": 1, "keepalive": 0}
    assert msgspec.convert(shown["pings"], shapes.Pings) == PINGS
    servers, restorations = shown["servers"], shown["restorations"]
    assert isinstance(servers, list)
    assert isinstance(restorations, list)
    assert (servers[0]["name"], restorations[0]["cause"]) == ("chat-a", "restarted")


async def test_health_and_readiness_are_two_questions(api: Api) -> None:
    assert await api.call("GET", "/healthz") == (200, {"alive": True})
    assert await api.call("GET", "/readyz") == (200, {"ready": True})
    api.ready = False
    assert await api.call("GET", "/healthz") == (200, {"alive": True})
    assert await api.call("GET", "/readyz") == (503, {"ready": False})


async def test_metrics_are_prometheus_text(api: Api, store: PromptStore, clock: FakeClock) -> None:
    await register(store, "a", "b", "c", now=clock.now())
    await store.make_due("a", Reason.REQUEST, now=clock.now())
    response = await api.raw("GET", "/metrics")
    text = await response.text()
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'asyncchatd_sessions{state="live"} 3.0' in text
    assert 'asyncchatd_sessions_due{reason="request"} 1.0' in text
    assert "# TYPE asyncchatd_ping_seconds histogram" in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/v1/session", 404, "not_found"),
        ("GET", "/v1/sessions/", 404, "not_found"),
        ("POST", "/v1/sessions/chat-1", 405, "method_not_allowed"),
        ("PUT", "/v1/sessions", 405, "method_not_allowed"),
        ("DELETE", "/v1/status", 405, "method_not_allowed"),
        ("GET", "/v1/servers/chat-a/restore", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_is_told_in_json_too(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    assert await api.refused(method, path) == (status, code, None)


async def test_a_405_says_what_is_allowed(api: Api) -> None:
    response = await api.raw("PUT", "/v1/sessions")
    assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/sessions/chat-1"),
        ("GET", "/v1/sessions/chat-1"),
        ("POST", "/v1/sessions"),
        ("GET", "/v1/sessions"),
        ("POST", "/v1/sessions/chat-1/ping"),
        ("DELETE", "/v1/sessions/chat-1"),
        ("GET", "/v1/servers"),
        ("POST", "/v1/servers/chat-a/restore"),
        ("GET", "/v1/restorations"),
        ("GET", "/v1/status"),
    ],
)
async def test_a_store_that_fails_is_a_503(api: Api, store: PromptStore, method: str, path: str) -> None:
    api.servers = [ChatServer("chat-a", "117")]
    store.fill_disk()
    status, code, _ = await api.refused(
        method, path, orjson.dumps(body()) if method in ("PUT", "POST") else None
    )
    assert (status, code) == (503, "store_failed")


async def test_since_when_a_store_fails_is_told(
    api: Api, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(**_: object) -> Counts:
        error = StoreUnwritable("PostgreSQL cannot be reached: refused")
        error.outage = "so it is since noon"
        raise error

    monkeypatch.setattr(store, "counts", away)
    response = await api.raw("GET", "/v1/status")
    assert response.status == 503
    told = orjson.loads(await response.read())["error"]["message"]
    assert told == "PostgreSQL cannot be reached: refused; so it is since noon"


async def test_metrics_are_told_also_of_a_store_that_cannot_be_read(api: Api, store: PromptStore) -> None:
    """Without what only the store knows: an old count would be taken for a new one."""
    await api.call("PUT", "/v1/sessions/chat-1", body())
    response = await api.raw("GET", "/metrics")
    assert 'asyncchatd_sessions{state="live"} 1.0' in await response.text()
    store.fill_disk()
    response = await api.raw("GET", "/metrics")
    text = await response.text()
    assert response.status == 200
    assert "asyncchatd_store_writable " in text
    assert "asyncchatd_sessions{" not in text
    assert "asyncchatd_restorations_running NaN" in text


async def test_a_failed_registration_is_not_answered_as_done(
    api: Api, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(registrations: list[Registration], *, now: Ms, spread_ms: float) -> list[Registered]:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "register", fail)
    assert await api.refused("PUT", "/v1/sessions/chat-1", body()) == (503, "store_failed", None)


# -- what must not be seen -----------------------------------------------------------------------------------


async def test_no_answer_and_no_line_ever_holds_a_secure_key(
    api: Api, store: PromptStore, clock: FakeClock, events: Events
) -> None:
    api.servers = [ChatServer("chat-a", "117")]
    other = "02f8e3936f763afffcce"
    requests: list[tuple[str, str, object]] = [
        ("PUT", "/v1/sessions/chat-1", body()),
        ("PUT", "/v1/sessions/chat-1", body(secure_key=other)),
        ("PUT", "/v1/sessions/chat-1", body()),
        ("PUT", "/v1/sessions/chat-1", body("chat-2")),
        ("PUT", "/v1/sessions/chat-1", body(secure_key=[KEY])),
        ("PUT", "/v1/sessions/chat-1", body(secure_key=KEY + "\n")),
        ("PUT", "/v1/sessions/chat-1", body(secure_key=KEY * 100)),
        ("PUT", "/v1/sessions/chat-1", body(secure_key=None, secure_kye=KEY)),
        ("PUT", "/v1/sessions/chat-1", body() | {KEY: "secure_key"}),
        ("PUT", "/v1/sessions/chat-1", body() | {f"secure_key={KEY}": ""}),
        ("PUT", f"/v1/sessions/chat-1?secure_key={KEY}", body()),
        ("PUT", f"/v1/sessions/chat-1?{KEY}=", body()),
        ("PUT", "/v1/sessions/chat-1", reply(statusCode=2)),
        ("PUT", "/v1/sessions/chat-1", reply(statusCode=KEY)),
        ("PUT", "/v1/sessions/chat-1", reply(secureKey=[KEY], errors=[{"advice": KEY}])),
        ("POST", "/v1/sessions", orjson.dumps(reply(chatId=None)) + b"\n" + orjson.dumps(reply())),
        ("PUT", "/v1/sessions/chat-1", f'{{"secure_key": "{KEY}", '.encode()),
        ("POST", "/v1/sessions", orjson.dumps(body("chat-2")) + b"\n{" + KEY.encode()),
        ("GET", "/v1/sessions/chat-1", None),
        ("GET", "/v1/sessions", None),
        ("POST", "/v1/sessions/chat-1/take", {"for": KEY}),
        ("POST", "/v1/sessions/chat-1/release", {"take_id": KEY}),
        ("PUT", f"/v1/sessions/chat-1?take_id={KEY}", body()),
        ("POST", "/v1/sessions/chat-1/ping", None),
        ("POST", "/v1/servers/chat-a/restore", None),
        ("GET", "/v1/servers", None),
        ("GET", "/v1/restorations", None),
        ("GET", "/v1/status", None),
        ("GET", "/metrics", None),
        ("DELETE", "/v1/sessions/chat-1", None),
        ("GET", "/v1/sessions/chat-1", None),
    ]
    for method, path, said in requests:
        response = await api.raw(method, path, said)
        answer = await response.text() + repr(response.headers)
        assert KEY not in answer
        assert other not in answer
    assert events.all()
    assert KEY not in events.text
    assert other not in events.text


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/sessions/chat-1"), ("POST", "/v1/sessions")])
async def test_a_body_that_stalls_is_given_up(
    store: PromptStore, clock: FakeClock, method: str, path: str
) -> None:
    go_on = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await go_on.wait()

    async with (
        serving(store, clock, body_seconds=0.05) as api,
        api.http.request(method, api.base + path, data=stalling()) as response,
    ):
        assert response.status == 408
        assert (await response.json())["error"]["code"] == "too_slow"
        assert response.headers["Connection"] == "close"
        go_on.set()


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000], ids=["lists", "objects"])
async def test_json_nested_without_end_is_bad_json(api: Api, body: bytes) -> None:
    assert (await api.refused("PUT", "/v1/sessions/chat-1", body))[:2] == (400, "not_json")
