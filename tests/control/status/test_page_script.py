"""The status page's script at work: what it shows of a picture, what changes with the next, and a daemon gone."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import jsonschema
import msgspec
import pytest

from asyncchatd.control import shapes
from asyncchatd.control.described import openapi
from control.status.browsing import Reader, in_browser, in_engine

_SAID = {
    "time": "2026-11-27T12:00:00.000Z",
    "version": "0.1.0",
    "ready": True,
    "store_trouble": None,
    "store_note": None,
    "store_replaced": None,
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
    "rates": {
        "acknowledge": 0.0,
        "restore": 0.0,
        "request": 0.0,
        "keepalive": 12.5,
        "call": 0.0,
        "pushes": 4.0,
        "told": 0.0,
    },
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
    "gateway_polls": 0,
    "gateway_streams": 0,
    "pushes_missing": False,
    "consumers": [],
    "warnings": [],
}

PICTURE: dict[str, Any] = msgspec.to_builtins(msgspec.convert(_SAID, shapes.Picture))
"""With what a field means that this test does not say."""

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
    "left_seconds": 89.2,
}


def moment(
    second: float, *, max_rate: float = 200.0, time: str = PICTURE["time"], **rates: float
) -> dict[str, Any]:
    """The second that ended so long after the daemon's start."""
    done = dict.fromkeys(PICTURE["rates"], 0.0) | rates
    made = {"time": time, "uptime_seconds": second, "seconds": 1.0, "max_rate": max_rate, "rates": done}
    document: Any = openapi.document()
    jsonschema.validate(made, {"$ref": "#/components/schemas/Moment", "components": document["components"]})
    return made


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
    await reader.tell("history", [moment(3600)])
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    assert [await text(reader, name) for name in ("well", "live", "others", "due", "reasons", "sent", "limit")] == [
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
    assert await reader.look("[byId('gateway').hidden, byId('deliveries').hidden, byId('told-tile').hidden]") == [
        True, True, True,
    ]  # fmt: skip


@pytest.mark.slow
async def test_the_nodes_that_share_the_store_are_shown_and_who_is_gone(reader: Reader) -> None:
    north = {
        "number": 3,
        "name": "north",
        "version": "1.2.0",
        "state": "present",
        "started_at": "2026-11-27T11:00:00.000Z",
        "seen_at": "2026-11-27T11:59:59.000Z",
        "claims": 1200,
        "own": True,
    }
    south = {**north, "name": "south", "number": 2, "state": "gone", "claims": 0, "own": False}
    await reader.tell("picture", picture(nodes=[north, {**south, "seen_at": "2026-11-27T11:58:00.000Z"}]))
    await reader.once(LIVE)
    assert await reader.look("byId('sharing').hidden") is False
    shown = await rows(reader, "sharers")
    assert [[row[place] for place in (0, 1, 2, 3, 6)] for row in shown] == [
        ["north (this one)", "3", "● present", "1.2.0", "1,200"],
        ["south", "2", "✕ gone", "1.2.0", "0"],
    ]
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "The node south is gone, last seen 2 min ago"
    ]
    await reader.tell("picture", picture(nodes=[]))
    await reader.once("byId('sharing').hidden")
    assert await text(reader, "well") == "All is well."


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
        "app does not take its events: the oldest has waited for 10 min",
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
    longer = {**down, "lag_seconds": 61.0, "oldest_at": "2026-11-27T11:58:59.000Z"}
    await reader.tell("picture", picture(consumers=[longer]))
    await reader.once("byId('wrong').children.length === 1")
    assert await reader.look("[byId('verdict').className, byId('wrong').children[0].textContent]") == [
        "doubt", "app does not take its events: the oldest has waited for 61 s, connection refused",
    ]  # fmt: skip
    late = {**down, "lag_seconds": 400.0, "oldest_at": "2026-11-27T11:53:20.000Z", "trouble": EVIL}
    await reader.tell("picture", picture(consumers=[late]))
    await reader.once("byId('verdict').className === 'bad'")
    said = await reader.look("byId('wrong').children[0].textContent")
    assert said == f"app does not take its events: the oldest has waited for 7 min, {EVIL_SEEN}"
    await reader.tell("picture", picture(consumers=[CONSUMER]))
    await reader.once("byId('wrong').children.length === 0")
    assert await rows(reader, "consumers") == [["app", "webhook", "0", "", "0", "", "● told"]]


@pytest.mark.slow
async def test_of_a_whole_data_centre_that_is_lost_one_line_tells(reader: Reader) -> None:
    [gone] = [each for each in lost()["servers"] if each["state"] == "down"]
    suspect = gone | {"state": "suspect", "detail": "no answer in time"}
    servers = [gone | {"name": f"chat-{each}", "sessions": 100} for each in range(40)]
    servers += [suspect | {"name": f"slow-{each}"} for each in range(6)]
    await reader.tell("picture", picture(servers=servers))
    await reader.once("byId('wrong').children.length === 2")
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "40 Chat Servers are down: chat-0, chat-1, chat-2 and 37 more, 4,000 sessions on them",
        "6 Chat Servers are suspect: slow-0, slow-1, slow-2 and 3 more",
    ]
    await reader.tell("picture", picture(servers=servers[:5]))
    await reader.once("byId('wrong').children.length === 5")


@pytest.mark.slow
async def test_a_lost_server_and_its_restoration_are_shown_as_they_go_on(reader: Reader) -> None:
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    await reader.tell("picture", lost())
    await reader.once("byId('wrong').children.length === 2")
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "chat-2 is down for 30 s, 6,000 sessions on it",
        "Restoring chat-2: 4,490 of 6,000 sessions wait, about 89 s left",
    ]
    assert await reader.look("[document.title, byId('well').hidden]") == ["✕ asyncchatd", True]
    assert [row[0] for row in await rows(reader, "servers")] == ["chat-2", "chat-1"], "the worst comes first"
    server, why, _, progress, waited = (await rows(reader, "restorations"))[0]
    assert (server, why) == ("chat-2", "not reachable")
    assert progress == " 1,500 of 6,000 restored, 10 ended, 4,490 waiting"
    assert waited == "30 s so far, about 89 s left"
    done = RESTORATION | {"state": "finished", "finished_at": PICTURE["time"], "took_seconds": 30.0}
    done |= {"restored": 5990, "waiting": 0, "left_seconds": None}
    await reader.tell("picture", picture(restorations=[done]))
    await reader.once("!byId('well').hidden")
    assert (await rows(reader, "restorations"))[0][3:] == [" 5,990 of 6,000 restored, 10 ended", "up to 30 s"]
    none = done | {"sessions": 0, "restored": 0, "ended": 0, "took_seconds": 0.0}
    await reader.tell("picture", picture(restorations=[none], due=PICTURE["due"] | {"restore": 1}))
    await reader.once("byId('due').textContent === '6'")
    assert (await rows(reader, "restorations"))[0][3:] == ["no session was there", ""]


@pytest.mark.slow
async def test_the_gateway_is_shown_where_there_is_one_or_chats_of_one(reader: Reader) -> None:
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    assert await reader.look("byId('gateway').hidden")
    assert "call" not in await text(reader, "legend")
    rates = PICTURE["rates"] | {"call": 3.0}
    counts = {"gateway_chats": 1200, "gateway_polls": 900, "gateway_streams": 40}
    await reader.tell("picture", picture(gateway=["127.0.0.1:8090", "[::1]:8090"], rates=rates, **counts))
    await reader.once("!byId('gateway').hidden")
    assert [await text(reader, name) for name in ("gateway-chats", "polls", "streams", "calls", "gateway-at")] == [
        "1,200", "900", "40", "3", "Chat clients are served at 127.0.0.1:8090, [::1]:8090",
    ]  # fmt: skip
    assert "call 3" in await text(reader, "legend")
    await reader.tell("picture", picture(gateway_chats=2))
    await reader.once("byId('gateway-chats').textContent === '2'")
    assert (await text(reader, "gateway-at")).startswith("There is no gateway any more")
    await reader.tell("picture", picture(gateway=["127.0.0.1:8090"], pushes_missing=True))
    await reader.once("byId('wrong').children.length === 1")
    assert (
        await text(reader, "wrong") == "Pushes are missing: GMS is asked about all chats whose pages are open"
    )


async def bars(reader: Reader, reason: str) -> list[list[float]]:
    """Each bar of the chart: from which second to which before the newest one, and how high, a second."""
    drawn = await reader.look(
        "[...byId('chart').children].map((each) => [each.getAttribute('class') ?? each.getAttribute('text-anchor'),"
        " each.getAttribute('d') ?? each.getAttribute('y1') ?? each.textContent])"
    )
    [path] = [what for kind, what in drawn if kind == reason]
    grid = [float(what) for kind, what in drawn if kind == "grid"]
    values = [float(what) for kind, what in drawn if kind == "end" and what.isdecimal()]
    width = await reader.look("Number(byId('chart').getAttribute('viewBox').split(' ')[2])")
    per_pixel = (values[-1] - values[0]) / (grid[0] - grid[-1])
    found = []
    for bar in re.findall(r"M([\d.e-]+) ([\d.e-]+)H([\d.e-]+)V([\d.e-]+)", path):
        left, low, right, high = map(float, bar)
        seconds = [round((width - each) / (width - 40) * 900, 1) for each in (left, right)]
        found.append([*seconds, round((low - high) * per_pixel, 1)])
    return found


@pytest.mark.slow
async def test_the_chart_begins_full_and_goes_on_with_what_is_new(reader: Reader) -> None:
    """Loaded anew the page shows the same bars, and whatever the host's clock says."""
    past = [
        moment(second, restore=150.0 if second > 2995 else 0.0, keepalive=10.0)
        for second in range(2400, 3001)
    ]
    await reader.tell("history", past)
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    first = await bars(reader, "restore")
    assert sum((left - right) * rate for left, right, rate in first) == pytest.approx(5 * 150, abs=15)
    assert max(rate for *_, rate in first) == pytest.approx(150, abs=1)
    long_ago = "1999-01-01T00:00:00.000Z"
    more = [moment(3001, restore=150.0), moment(3002, restore=150.0, time=long_ago)]
    await reader.tell("moments", more)
    await reader.tell("picture", picture(time=long_ago, due=PICTURE["due"] | {"restore": 1}))
    await reader.once("byId('due').textContent === '6'")
    then = await bars(reader, "restore")
    assert sum((left - right) * rate for left, right, rate in then) == pytest.approx(7 * 150, abs=15)
    await reader.tell("history", past + more)
    await reader.tell("picture", picture(due=PICTURE["due"] | {"restore": 2}))
    await reader.once("byId('due').textContent === '7'")
    assert await bars(reader, "restore") == then


@pytest.mark.slow
async def test_the_limit_is_drawn_as_it_was_and_no_bar_stands_above_it(reader: Reader) -> None:
    before = [moment(second, max_rate=200.0, restore=200.0) for second in range(2001, 2031)]
    after = [moment(second, max_rate=50.0, restore=50.0) for second in range(2031, 2061)]
    stalled = moment(2064, max_rate=50.0, restore=50.0) | {"seconds": 4.0}
    await reader.tell("history", [*before, *after, stalled])
    await reader.tell("picture", picture(pings=PICTURE["pings"] | {"max_rate": 50.0}))
    await reader.once(LIVE)
    drawn = await reader.look(
        "[...byId('chart').children].find((each) => each.getAttribute('class') === 'limit').getAttribute('d')"
    )
    levels = dict.fromkeys(re.findall(r"[ML][\d.e-]+ ([\d.e-]+)", drawn))
    assert len(levels) == 2, "a line at 200 and one at 50"
    heights = [rate for *_, rate in await bars(reader, "restore")]
    assert {round(rate) for rate in heights} <= {200, 50}
    assert "limit 50" in await text(reader, "chart")


@pytest.mark.slow
async def test_a_limit_far_above_is_told_below_the_chart(reader: Reader) -> None:
    await reader.tell("history", [moment(3600, keepalive=2.0)])
    await reader.tell("picture", picture())
    await reader.once(LIVE)
    assert "the limit, 200, is above this picture" in await text(reader, "legend")


@pytest.mark.slow
async def test_a_store_that_was_made_anew_is_told(reader: Reader) -> None:
    await reader.tell("picture", picture(store_note="chats.db was not there"))
    await reader.once("byId('wrong').children.length === 1")
    assert await reader.look("[...byId('wrong').children].map((each) => each.textContent)") == [
        "The store is new and empty: chats.db was not there",
    ]


@pytest.mark.slow
async def test_a_refused_configuration_is_told_until_one_is_taken_over(reader: Reader) -> None:
    taken = {"taken_over_at": PICTURE["time"], "refused": None}
    refused = {"at": PICTURE["time"], "cause": "ping.intervall: unknown key", "advice": "correct it"}
    await reader.tell("picture", picture(configuration=taken | {"refused": refused}))
    await reader.once("byId('wrong').children.length === 1")
    [said] = await reader.look("[...byId('wrong').children].map((each) => each.textContent)")
    assert said.startswith("The changed configuration was refused, ")
    assert said.endswith(" ago: ping.intervall: unknown key; correct it")
    await reader.tell("picture", picture(configuration=taken))
    await reader.once("byId('wrong').children.length === 0")


@pytest.mark.slow
async def test_a_store_that_was_replaced_is_told_until_it_is_accepted(reader: Reader) -> None:
    await reader.tell("picture", picture(store_replaced="chats.db is an older copy", store_note="made anew"))
    await reader.once("byId('wrong').children.length === 1")
    assert await reader.look("byId('wrong').children[0].textContent") == (
        "The store is not the one of before: chats.db is an older copy; if that is right: asyncchatd store accept"
    )


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
