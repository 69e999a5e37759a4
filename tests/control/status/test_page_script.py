"""The status page's script at work: what it shows of a picture, what changes with the next, and a daemon gone."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import jsonschema
import pytest

from asyncchatd.control import openapi
from control.status.browsing import Reader, in_browser, in_engine

PICTURE: dict[str, Any] = {
    "time": "2026-11-27T12:00:00.000Z",
    "version": "0.1.0",
    "ready": True,
    "store_trouble": None,
    "store_note": None,
    "started_at": "2026-11-27T11:00:00.000Z",
    "uptime_seconds": 3600.0,
    "sessions": {"live": 12345, "incomplete": 2, "ended": 7},
    "due": {"acknowledge": 0, "restore": 0, "request": 0, "keepalive": 5},
    "pings": {
        "in_flight": 3,
        "in_flight_limit": 20,
        "max_rate": 200.0,
        "gms_available": True,
        "nodes": [{"node": "http://gms-1:8080/genesys", "resting": False, "cause": None}],
    },
    "rates": {"acknowledge": 0.0, "restore": 0.0, "request": 0.0, "keepalive": 12.5, "pushes": 4.0},
    "servers": [
        {
            "name": f"chat-{number}",
            "state": "up",
            "since": "2026-11-27T11:00:00.000Z",
            "app_dbid": str(116 + number),
            "process_os_pid": "4711",
            "checked_at": "2026-11-27T11:59:59.000Z",
            "disputed": False,
            "detail": None,
            "sessions": 6000,
        }
        for number in (1, 2)
    ],
    "sessions_elsewhere": {},
    "restorations": [],
    "gateway": [],
    "gateway_chats": 0,
    "pushes": {
        "count": 12,
        "last_at": "2026-11-27T11:59:56.000Z",
        "senders": [
            {
                "client": "10.0.0.7",
                "count": 12,
                "first_at": "2026-11-27T11:30:00.000Z",
                "last_at": "2026-11-27T11:59:56.000Z",
            }
        ],
        "refused": [],
    },
    "pushes_missing": False,
    "consumers": [],
    "warnings": [],
}

CONSUMER = {
    "name": "app",
    "how": "webhook",
    "behind": 0,
    "oldest_at": None,
    "lag_seconds": 0.0,
    "chats": 0,
    "parked": 0,
    "paused": False,
    "trouble": None,
    "moved_at": "2026-11-27T11:59:59.000Z",
    "acknowledges": False,
    "asked": 0,
    "acknowledged": 0,
    "ran_out": 0,
}

RESTORATION = {
    "id": 1,
    "server": "chat-2",
    "alias": "118",
    "cause": "unreachable",
    "state": "running",
    "started_at": "2026-11-27T11:59:30.000Z",
    "finished_at": None,
    "took_seconds": None,
    "sessions": 6000,
    "restored": 1500,
    "ended": 10,
    "refused": 0,
    "moved": 0,
    "waiting": 4490,
}

EVIL = '<img src=x onerror="document.title=1">\u202e\u0007\u200b'
EVIL_SEEN = '<img src=x onerror="document.title=1">\\u{202e}\\u{7}\\u{200b}'


@pytest.fixture(params=[in_engine, in_browser], ids=["engine", "browser"])
async def reader(request: pytest.FixtureRequest) -> AsyncIterator[Reader]:
    opened: Callable[[], AbstractAsyncContextManager[Reader]] = request.param
    async with opened() as reader:
        yield reader


def picture(**changed: object) -> dict[str, Any]:
    """A picture as the API may send it."""
    made = {**copy.deepcopy(PICTURE), **changed}
    document: Any = openapi.document()
    jsonschema.validate(made, {"$ref": "#/components/schemas/Picture", "components": document["components"]})
    return made


def lost() -> dict[str, Any]:
    servers = copy.deepcopy(PICTURE["servers"])
    servers[1] |= {"state": "down", "since": "2026-11-27T11:59:30.000Z", "detail": "connection refused"}
    return picture(servers=servers, restorations=[RESTORATION])


async def rows(reader: Reader, table: str) -> Any:
    return await reader.look(
        f"[...byId('{table}').tBodies[0].children].map((row) => [...row.children].map((cell) => cell.textContent))"
    )


async def text(reader: Reader, name: str) -> Any:
    return await reader.look(f"byId('{name}').textContent")


LIVE = "byId('connection').textContent === 'live'"


@pytest.mark.slow
async def test_a_picture_is_shown(reader: Reader) -> None:
    await reader.tell("history", [{"time": PICTURE["time"], "rates": PICTURE["rates"]}])
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    assert [await text(reader, name) for name in ("well", "live", "others", "due", "reasons", "pings", "limit")] == [
        "All is well.", "12,345", "2 incomplete, 7 ended", "5", "5 keepalive", "13", "limit 200",
    ]  # fmt: skip
    assert [row[:2] + row[3:] for row in await rows(reader, "servers")] == [
        ["chat-1", "● up", "117", "4711", "6,000", ""],
        ["chat-2", "● up", "118", "4711", "6,000", ""],
    ]
    assert await rows(reader, "nodes") == [["http://gms-1:8080/genesys", "● answers", ""]]
    assert await reader.look("[byId('main').hidden, document.title, byId('restorations').hidden]") == [
        False, "asyncchatd", True,
    ]  # fmt: skip
    assert await reader.look("byId('chart').children.length") > 5


@pytest.mark.slow
async def test_consumers_are_shown_and_which_of_them_do_not_take_their_events(reader: Reader) -> None:
    since = {"oldest_at": "2026-11-27T11:50:00.000Z", "lag_seconds": 600.0, "behind": 1234}
    await reader.tell("picture", picture(consumers=[CONSUMER]))
    await reader.once(LIVE)
    assert await text(reader, "well") == "All is well."
    assert await rows(reader, "consumers") == [["app", "webhook", "0", "", "0", "", "● told"]]
    slow = {**CONSUMER, **since, "chats": 40, "parked": 2}
    paused = {**CONSUMER, **since, "name": "archive", "how": "fetch", "paused": True}
    await reader.tell("picture", picture(consumers=[slow, paused]))
    await reader.once("byId('wrong').children.length === 3")
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "app refused 2 batches of events, put aside until a replay",
        "app does not take its events, for 10 min now",
        "archive is paused, 1,234 events wait for it",
    ]
    assert await rows(reader, "consumers") == [
        ["app", "webhook", "1,234", "10 min", "40", "2", "● told"],
        ["archive", "fetch", "1,234", "10 min", "0", "", "▲ paused"],
    ]


@pytest.mark.slow
async def test_a_webhook_that_is_down_says_why_and_is_well_again_once_it_takes_something(
    reader: Reader,
) -> None:
    first = {"behind": 1, "lag_seconds": 3.0, "oldest_at": "2026-11-27T11:59:57.000Z", "chats": 1}
    down = {**CONSUMER, **first, "trouble": "connection refused"}
    await reader.tell("picture", picture(consumers=[down]))
    await reader.once(LIVE)
    assert await rows(reader, "consumers") == [
        ["app", "webhook", "1", "3 s", "1", "", "▲ connection refused"]
    ]
    assert await text(reader, "well") == "All is well.", (
        "not every restart of a chat application is a trouble"
    )
    late = {**down, "lag_seconds": 400.0, "oldest_at": "2026-11-27T11:53:20.000Z", "trouble": EVIL}
    await reader.tell("picture", picture(consumers=[late]))
    await reader.once("byId('wrong').children.length === 1")
    said = await reader.look("byId('wrong').children[0].textContent")
    assert said == f"app does not take its events, for 7 min now: {EVIL_SEEN}"
    await reader.tell("picture", picture(consumers=[CONSUMER]))
    await reader.once("byId('wrong').children.length === 0")
    assert await rows(reader, "consumers") == [["app", "webhook", "0", "", "0", "", "● told"]]


@pytest.mark.slow
async def test_a_lost_server_and_its_restoration_are_shown_as_they_go_on(reader: Reader) -> None:
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    await reader.tell("picture", lost())
    await reader.once("byId('wrong').children.length === 2")
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "chat-2 is down, for 30 s now, 6,000 sessions on it",
        "Restoring chat-2: 4,490 sessions wait of 6,000",
    ]
    assert await reader.look("[document.title, byId('well').hidden]") == ["✕ asyncchatd", True]
    assert [row[0] for row in await rows(reader, "servers")] == ["chat-2", "chat-1"], "the worst comes first"
    server, why, _, progress, waited = (await rows(reader, "restorations"))[0]
    assert (server, why) == ("chat-2", "not reachable")
    assert progress == " 1,500 of 6,000 restored, 10 ended, 4,490 waiting"
    assert waited == "30 s so far, about 89 s left"
    done = RESTORATION | {"state": "finished", "finished_at": PICTURE["time"], "took_seconds": 30.0}
    done |= {"restored": 5990, "waiting": 0}
    await reader.tell("picture", picture(restorations=[done]))
    await reader.once("!byId('well').hidden")
    assert (await rows(reader, "restorations"))[0][3:] == [" 5,990 of 6,000 restored, 10 ended", "up to 30 s"]


@pytest.mark.slow
async def test_where_chat_clients_are_served_is_told(reader: Reader) -> None:
    await reader.tell("picture", picture())
    await reader.once("byId('about').textContent")
    assert "chat clients" not in await reader.look("byId('about').textContent")
    await reader.tell("picture", picture(gateway=["127.0.0.1:8090", "[::1]:8090"]))
    await reader.once("byId('about').textContent.endsWith(', chat clients at 127.0.0.1:8090, [::1]:8090')")
    await reader.tell("picture", picture(gateway=["127.0.0.1:8090"], gateway_chats=1200))
    await reader.once("byId('about').textContent.endsWith('127.0.0.1:8090, 1,200 live chats began there')")


@pytest.mark.slow
async def test_a_store_that_was_made_anew_is_told(reader: Reader) -> None:
    await reader.tell("picture", picture(store_note="chats.db was not there"))
    await reader.once("byId('wrong').children.length === 1")
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "The store is new and empty: chats.db was not there",
    ]


@pytest.mark.slow
async def test_odd_names_are_text_and_what_nobody_sees_is_an_escape(reader: Reader) -> None:
    servers = [PICTURE["servers"][0] | {"name": EVIL, "detail": EVIL}]
    warning = {"event": "ping_failed", "level": "warning", "meaning": "A `ping` failed", "count": 1}
    warning |= {"first_at": PICTURE["time"], "last_at": PICTURE["time"], "fields": {"chat_id": EVIL}}
    await reader.tell(
        "picture",
        picture(servers=servers, warnings=[warning], sessions_elsewhere={EVIL: 3}, store_trouble=EVIL),
    )
    await reader.once(LIVE)
    [[name, *_, detail]] = await rows(reader, "servers")
    assert name == detail == EVIL_SEEN
    assert (await rows(reader, "warnings"))[0][-1] == f"chat_id={EVIL_SEEN}"
    assert await text(reader, "elsewhere") == f"Sessions elsewhere, by app_dbid: {EVIL_SEEN} (3)"
    assert EVIL_SEEN in await text(reader, "wrong")
    assert await reader.look("document.title") == "✕ asyncchatd"


@pytest.mark.slow
async def test_a_store_that_cannot_be_read_and_a_daemon_that_stops_are_told(reader: Reader) -> None:
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    await reader.tell("trouble", {"message": "disk I/O error"})
    await reader.once("byId('connection').textContent === 'the store cannot be read: disk I/O error'")
    await reader.tell("stopping", {})
    await reader.once("byId('connection').textContent === 'asyncchatd is stopping'")
    assert await reader.look("[document.title, document.body.className, byId('connection').className]") == [
        "✕ asyncchatd", "stale", "bad",
    ]  # fmt: skip


@pytest.mark.slow
async def test_a_daemon_that_is_gone_is_told_and_waited_for(reader: Reader) -> None:
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    await reader.hang_up()
    await reader.once(
        "byId('connection').textContent.startsWith('disconnected: the connection ended; as of ')"
    )
    assert await reader.look("[document.title, document.body.className]") == ["✕ asyncchatd", "stale"]
    assert (await rows(reader, "servers"))[0][0] == "chat-1", "what was known last stays"
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    assert await reader.look("[document.title, document.body.className]") == ["asyncchatd", ""]


@pytest.mark.slow
async def test_why_it_may_not_listen_is_told(reader: Reader) -> None:
    await reader.refuse(503, {"error": {"code": "too_many_listeners", "message": "close one", "field": None}})
    await reader.once("byId('connection').textContent === 'disconnected: close one'")
