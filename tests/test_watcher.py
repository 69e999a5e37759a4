"""The health watcher: its judgement as a table, its eyes on real sockets, its loop under a fake clock."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.test_utils import TestServer, unused_port
from aioresponses import CallbackResult
from conftest import (
    NOON,
    Certificates,
    Events,
    FakeClock,
    MakeSettings,
    MockedNodes,
    MockedResponse,
    PromptStore,
    raw_server,
    register,
    settle,
    soon,
)
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from asyncchatd.config import ChatServerSettings
from asyncchatd.health import OFF_LOOP_BYTES, HealthPages, Page, Seen, Unreachable, Unreadable
from asyncchatd.log import Event
from asyncchatd.model import Cause, ChatServer, Ms, Reason, Restoration, ServerState
from asyncchatd.stores import StoreError
from asyncchatd.stores.base import StoreUnwritable
from asyncchatd.watcher import Step, Turn, Watch, Watcher, first_watch, pause, step
from asyncchatd.wire.health import MAX_PAGE, HealthFormat, HealthPage, read_health, write_health

pytestmark = pytest.mark.usefixtures("events")

UNKNOWN, UP, SUSPECT, DOWN = ServerState.UNKNOWN, ServerState.UP, ServerState.SUSPECT, ServerState.DOWN


# -- the judgement -------------------------------------------------------------------------------


def page(
    pid: str | None = "1",
    app_dbid: str | None = "117",
    *,
    started: float | None = None,
    uptime: float | None = None,
    **counters: float,
) -> Page:
    return Page(HealthPage(app_dbid, pid, started, uptime, counters))


A = page("1001")
B = page("2002")
C = page("3003")
X = Unreachable("connection refused")
U = Unreadable("HTTP 500")

RESTARTED = ("117", Cause.RESTARTED)
UNREACHABLE = ("117", Cause.UNREACHABLE)
RETURNED = ("117", Cause.RETURNED)
REPLACED = ("117", Cause.REPLACED)


def follow(
    seen: Sequence[Seen],
    watch: Watch | None = None,
    *,
    fall: int = 3,
    rise: int = 2,
    apart: float = 5.0,
) -> list[Step]:
    """The steps of these reads, `apart` seconds from one another."""
    watch = watch or Watch(ChatServer("chat-a", since=NOON))
    steps = []
    for number, each in enumerate(seen, start=1):
        steps.append(step(watch, each, fall=fall, rise=rise, now=NOON + round(number * apart * 1000)))
        watch = steps[-1].watch
    return steps


def lost(steps: Sequence[Step]) -> list[tuple[str, Cause]]:
    return [(each.alias, each.cause) for one in steps for each in one.lost]


def turns(steps: Sequence[Step]) -> list[Turn]:
    return [turn for one in steps for turn in one.turns]


@dataclass(frozen=True, slots=True)
class Story:
    """What is read of one server, the state after each read, and what is lost in the course of it."""

    name: str
    seen: Sequence[Seen]
    states: Sequence[ServerState]
    lost: Sequence[tuple[str, Cause]] = ()
    turns: Sequence[Turn] = ()
    watch: Watch | None = None
    fall: int = 3
    rise: int = 2


def remembered(state: ServerState = UP, *, started: float | None = None, pid: str = "1001") -> Watch:
    """Where watching starts after the daemon was away."""
    server = ChatServer("chat-a", "117", pid, started, state, since=NOON - 60_000, checked_at=NOON - 60_000)
    return first_watch(server, ChatServerSettings(name="chat-a", health_url="http://chat-a/"), NOON)


def configured(app_dbid: str) -> Watch:
    """A server whose alias the configuration says."""
    return Watch(ChatServer("chat-a"), app_dbid)


STORIES = [
    Story("the first page", [A], [UP], turns=[Turn.UP]),
    Story("a page that stays", [A, A, A], [UP, UP, UP], turns=[Turn.UP]),
    Story("never seen", [X, X, X, X], [SUSPECT, SUSPECT, DOWN, DOWN], turns=[Turn.DOWN]),
    Story("seen late", [X, X, A], [SUSPECT, SUSPECT, UP], turns=[Turn.UP]),
    Story(
        "never seen, then up: its alias is known at last",
        [X, X, X, A, A],
        [SUSPECT, SUSPECT, DOWN, DOWN, UP],
        lost=[RETURNED],
        turns=[Turn.DOWN, Turn.UP],
    ),
    Story("a hiccup", [A, X, A], [UP, SUSPECT, UP], turns=[Turn.UP, Turn.SUSPECT, Turn.UP]),
    Story(
        "hiccups that do not add up", [A, X, X, A, X, X, A], [UP, SUSPECT, SUSPECT, UP, SUSPECT, SUSPECT, UP]
    ),
    Story(
        "lost",
        [A, X, X, X, X, X],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, DOWN],
        lost=[UNREACHABLE],
        turns=[Turn.UP, Turn.SUSPECT, Turn.DOWN],
    ),
    Story("lost at the first failure", [A, X], [UP, DOWN], lost=[UNREACHABLE], fall=1),
    Story(
        "lost at the fifth failure",
        [A, X, X, X, X, X],
        [UP, *[SUSPECT] * 4, DOWN],
        lost=[UNREACHABLE],
        fall=5,
    ),
    Story(
        "back with the same process",
        [A, X, X, X, A, A, A],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, UP, UP],
        lost=[UNREACHABLE, RETURNED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.DOWN, Turn.UP],
    ),
    Story(
        "back with another process",
        [A, X, X, X, B, B, B],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, UP, UP],
        lost=[UNREACHABLE, RESTARTED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.DOWN, Turn.RESTARTED],
    ),
    Story(
        "back at the first good read",
        [A, X, X, X, A],
        [UP, SUSPECT, SUSPECT, DOWN, UP],
        lost=[UNREACHABLE, RETURNED],
        rise=1,
    ),
    Story(
        "good reads that do not add up",
        [A, X, X, X, A, X, A, X, A, A],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, UP],
        lost=[UNREACHABLE, RETURNED],
    ),
    Story(
        "back under another app_dbid",
        [A, X, X, X, page("7", "118"), page("7", "118")],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, UP],
        lost=[UNREACHABLE, REPLACED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.DOWN, Turn.IDENTITY],
    ),
    Story(
        "another process without an outage, confirmed by one more read",
        [A, B, B, B],
        [UP, SUSPECT, UP, UP],
        lost=[RESTARTED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.RESTARTED],
    ),
    Story("a process id seen once", [A, B, A, A], [UP, SUSPECT, UP, UP]),
    Story("a flapping process id", [A, B, A, B, A, B, A], [UP, SUSPECT, UP, SUSPECT, UP, SUSPECT, UP]),
    Story("two processes after another", [A, B, C, C], [UP, SUSPECT, SUSPECT, UP], lost=[RESTARTED]),
    Story("restarted twice", [A, B, B, C, C], [UP, SUSPECT, UP, SUSPECT, UP], lost=[RESTARTED, RESTARTED]),
    Story(
        "a doubt with a failure between",
        [A, B, X, B, B],
        [UP, SUSPECT, SUSPECT, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story("restarting", [A, X, X, B, B], [UP, SUSPECT, SUSPECT, SUSPECT, UP], lost=[RESTARTED]),
    Story(
        "restarted and then lost",
        [A, B, X, X, X, B, B],
        [UP, SUSPECT, SUSPECT, SUSPECT, DOWN, DOWN, UP],
        lost=[UNREACHABLE, RESTARTED],
    ),
    Story("unreadable is alive", [A, U, U, A], [UP, UP, UP, UP], turns=[Turn.UP, Turn.UNREADABLE]),
    Story("unreadable from the first", [U, U], [UP, UP], turns=[Turn.UNREADABLE]),
    Story("unreadable again", [U, A, U], [UP, UP, UP], turns=[Turn.UNREADABLE, Turn.UNREADABLE]),
    Story(
        "unreadable between failures",
        [A, X, X, U, X, X, A],
        [UP, SUSPECT, SUSPECT, UP, SUSPECT, SUSPECT, UP],
    ),
    Story(
        "back, though unreadable",
        [A, X, X, X, U, U],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, UP],
        lost=[UNREACHABLE, RETURNED],
    ),
    Story("back unreadable, then another process", [A, U, B, B], [UP, UP, SUSPECT, UP], lost=[RESTARTED]),
    Story("a doubt that cannot be read", [A, B, U, B, B], [UP, SUSPECT, UP, SUSPECT, UP], lost=[RESTARTED]),
    Story(
        "another server behind the address",
        [A, page("7", "118"), page("7", "118")],
        [UP, SUSPECT, UP],
        lost=[REPLACED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.IDENTITY],
    ),
    Story(
        "another app_dbid of the same process",
        [A, page("1001", "118"), page("1001", "118")],
        [UP, SUSPECT, UP],
        lost=[REPLACED],
    ),
    Story("another app_dbid seen once", [A, page("1001", "118"), A], [UP, SUSPECT, UP]),
    Story(
        "the alias becomes known with the restart",
        [page("1001", None), B, B],
        [UP, SUSPECT, UP],
        lost=[RESTARTED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.RESTARTED],
    ),
    Story("values that are missing for once", [A, page(None), page("1001", None), A], [UP, UP, UP, UP]),
    Story("no app_dbid anywhere", [page("1", None), page("2", None), page("2", None)], [UP, SUSPECT, UP]),
    Story(
        "app_dbid from the configuration",
        [page("1", None), page("2", None), page("2", None)],
        [UP, SUSPECT, UP],
        lost=[("500", Cause.RESTARTED)],
        watch=configured("500"),
    ),
    Story(
        "the configuration overrides the page",
        [page("1", "117"), page("1", "118"), page("1", "118"), X, X, X],
        [UP, UP, UP, SUSPECT, SUSPECT, DOWN],
        lost=[("500", Cause.UNREACHABLE)],
        watch=configured("500"),
    ),
    Story(
        "configured and never seen",
        [X, X, X],
        [SUSPECT, SUSPECT, DOWN],
        lost=[("500", Cause.UNREACHABLE)],
        watch=configured("500"),
    ),
    # Containers: every process has the id 1.
    Story(
        "a later start time",
        [page(started=1000), page(started=1060), page(started=1060)],
        [UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a start time that wavers", [page(started=1000), page(started=1002), page(started=999)], [UP, UP, UP]
    ),
    Story(
        "a start time that wanders by rounding is compared with the first",
        [page(started=1000 + number) for number in range(3)] + [page(started=1006)] * 2,
        [UP, UP, UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "an uptime that ran backwards",
        [page(uptime=500), page(uptime=2), page(uptime=7)],
        [UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story("an uptime in whole minutes", [page(uptime=60), page(uptime=60), page(uptime=120)], [UP, UP, UP]),
    Story(
        "counters that ran backwards",
        [page(messages_total=900), page(messages_total=0), page(messages_total=3)],
        [UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "counters that come, stand still and go",
        [page(a_total=1), page(a_total=1, b_total=5), page(b_total=5), page()],
        [UP, UP, UP, UP],
    ),
    # The daemon was away.
    Story("as remembered", [A, A], [UP, UP], watch=remembered(), turns=[Turn.UP]),
    Story(
        "restarted while the daemon was away",
        [B, B],
        [SUSPECT, UP],
        lost=[RESTARTED],
        watch=remembered(),
    ),
    Story(
        "lost while the daemon was away",
        [X, X, X],
        [SUSPECT, SUSPECT, DOWN],
        lost=[UNREACHABLE],
        watch=remembered(),
    ),
    Story(
        "replaced while the daemon was away",
        [page("7", "118")] * 2,
        [SUSPECT, UP],
        lost=[REPLACED],
        watch=remembered(),
    ),
    Story("down before and after", [X, X, X], [DOWN, DOWN, DOWN], watch=remembered(DOWN)),
    Story("down before, back with the same", [A, A], [DOWN, UP], lost=[RETURNED], watch=remembered(DOWN)),
    Story("down before, back with another", [B, B], [DOWN, UP], lost=[RESTARTED], watch=remembered(DOWN)),
    Story(
        "a container restarted while the daemon was away",
        [page("1", started=5000)] * 2,
        [SUSPECT, UP],
        lost=[RESTARTED],
        watch=remembered(pid="1", started=1000),
    ),
    Story(
        "a container restarted while the daemon was away, told by its uptime",
        [page("1", uptime=10), page("1", uptime=15)],
        [SUSPECT, UP],
        lost=[RESTARTED],
        watch=remembered(pid="1", started=NOON / 1000 - 86_400),
    ),
    Story(
        "a container that ran on",
        [page("1", uptime=86_405), page("1", uptime=86_410)],
        [UP, UP],
        watch=remembered(pid="1", started=NOON / 1000 - 86_400),
    ),
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_what_is_read_of_a_server_and_what_follows(story: Story) -> None:
    steps = follow(story.seen, story.watch, fall=story.fall, rise=story.rise)
    assert [one.watch.server.state for one in steps] == list(story.states)
    assert lost(steps) == list(story.lost)
    if story.turns:
        assert turns(steps) == list(story.turns)


def test_every_turn_and_every_state_and_every_loss_has_a_story() -> None:
    assert {turn for story in STORIES for turn in story.turns} == set(Turn)
    assert {state for story in STORIES for state in story.states} == set(ServerState) - {UNKNOWN}
    assert {cause for story in STORIES for _, cause in story.lost} == set(Cause) - {
        Cause.ANNOUNCED,
        Cause.OPERATOR,
    }


def test_a_page_that_contradicts_the_configured_app_dbid_is_told_once() -> None:
    """The configuration counts; but a wrong one would restore nobody's sessions."""
    configured = ChatServerSettings(name="chat-a", health_url="http://chat-a/", app_dbid="9")
    steps = follow([A, A, X, A], first_watch(None, configured, NOON))
    assert [Turn.IDENTITY in one.turns for one in steps] == [True, False, False, False]
    assert steps[0].watch.alias == "9"
    assert not lost(steps)


def test_the_pair_is_learned_and_kept_up_to_date() -> None:
    steps = follow([A, B, B])
    pairs = [(one.watch.server.app_dbid, one.watch.server.process_os_pid) for one in steps]
    # In doubt the old pair stays: a stop of the daemon now must not hide the restart.
    assert pairs == [("117", "1001"), ("117", "1001"), ("117", "2002")]


def test_a_state_knows_since_when_and_why() -> None:
    up, _, suspect, down = (one.watch.server for one in follow([A, A, X, Unreachable("timeout")], fall=2))
    assert (up.since, up.detail) == (NOON + 5000, None)
    assert (suspect.since, suspect.detail) == (NOON + 15_000, "connection refused")
    assert (down.since, down.checked_at, down.detail) == (NOON + 20_000, NOON + 20_000, "timeout")


def test_a_remembered_server_is_open_again_unless_it_was_down() -> None:
    assert remembered(UP).server.state is remembered(SUSPECT).server.state is UNKNOWN
    assert remembered(DOWN).server.state is DOWN
    fresh = first_watch(
        None, ChatServerSettings(name="chat-a", health_url="http://chat-a/", app_dbid="9"), NOON
    )
    assert (fresh.server.state, fresh.server.since, fresh.alias) == (UNKNOWN, NOON, "9")


@given(
    runs=st.lists(st.integers(0, 2) | st.sampled_from([U]), max_size=30),
    known=st.booleans(),
    uptime=st.floats(0, 1e7) | st.none(),
    started=st.floats(0, 2e9) | st.none(),
    counter=st.floats(0, 1e9) | st.none(),
)
def test_a_server_that_answers_the_same_page_is_never_lost(
    runs: list[int | Unreadable],
    known: bool,
    uptime: float | None,
    started: float | None,
    counter: float | None,
) -> None:
    """Whatever the single failures below `fall` between its answers."""
    seen: list[Seen] = []

    def answer() -> Page:
        counters = {} if counter is None else {"messages_total": counter + len(seen)}
        now = None if uptime is None else uptime + 5 * len(seen)
        return Page(HealthPage("117", "1001", started, now, counters))

    for run in runs:
        seen += [X] * run if isinstance(run, int) else [run]
        seen.append(answer())
    watch = Watch(ChatServer("chat-a", "117", "1001", state=UP)) if known else None
    steps = follow(seen, watch)
    assert not lost(steps)
    assert DOWN not in {one.watch.server.state for one in steps}


@given(st.lists(st.sampled_from([A, B, C, X, U]), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_whatever_is_seen_a_loss_is_told_once_and_has_its_ground(
    seen: list[Seen], fall: int, rise: int
) -> None:
    down = False
    for index, one in enumerate(follow(seen, fall=fall, rise=rise)):
        assert len(one.lost) <= 1
        if one.lost and one.lost[0].cause is Cause.UNREACHABLE:
            assert not down
            assert all(isinstance(each, Unreachable) for each in seen[index - fall + 1 : index + 1])
        elif one.lost and not down:
            assert one.lost[0].cause is Cause.RESTARTED
            assert seen[index] == seen[index - 1]
        elif one.lost:
            assert not any(isinstance(each, Unreachable) for each in seen[index - rise + 1 : index + 1])
        down = one.watch.server.state is DOWN


def test_reads_come_faster_while_in_doubt(make_settings: MakeSettings) -> None:
    settings = make_settings(watcher={"interval": "10s", "fast_interval": "1s"}).watcher
    steps = follow([A, X, X, X, X, A, A, B, B])
    pauses = [pause(one.watch, settings) for one in steps]
    assert pauses == [10, 1, 1, 10, 10, 1, 10, 1, 10]


# -- reading one page ------------------------------------------------------------------------------


async def see(url: str, seconds: float = 5.0, **more: str) -> Seen:
    configured = ChatServerSettings(name="chat-a", health_url=url, **more)
    async with HealthPages() as pages:
        return await soon(pages.look(configured, seconds))


@asynccontextmanager
async def health(answer: web.Response | None = None, *, hang: bool = False) -> AsyncIterator[str]:
    """A Chat Server's health port."""
    never = asyncio.Event()

    async def serve(_: web.Request) -> web.Response:
        if hang:
            await never.wait()
        assert answer is not None
        return answer

    app = web.Application()
    app.router.add_get("/health", serve)
    server = TestServer(app)
    await server.start_server(shutdown_timeout=0.1)
    try:
        yield str(server.make_url("/health"))
    finally:
        await server.close()


@pytest.mark.parametrize("written", list(HealthFormat))
async def test_a_page_is_read(written: HealthFormat) -> None:
    async with health(web.Response(body=write_health(written, 117, 4711, uptime=60))) as url:
        seen = await see(url)
    assert isinstance(seen, Page)
    assert (seen.page.app_dbid, seen.page.process_os_pid, seen.page.uptime) == ("117", "4711", 60)


async def test_the_configured_counters_are_read() -> None:
    body = b"app_dbid=117\nboot=1700000000\nage=90\n"
    async with health(web.Response(body=body)) as url:
        seen = await see(url, start_counter="boot", uptime_counter="age")
    assert isinstance(seen, Page)
    assert (seen.page.started, seen.page.uptime) == (1_700_000_000, 90)


async def test_a_closed_port_is_unreachable() -> None:
    assert await see(f"http://127.0.0.1:{unused_port()}/") == Unreachable("connection refused")


@pytest.mark.parametrize("host", ["chat..example", f"{'a' * 64}.example"])
async def test_a_name_that_nobody_can_ask_for_is_unreachable(host: str) -> None:
    assert await see(f"http://{host}:4001/") == Unreachable("its name cannot be resolved")


async def test_a_server_that_hangs_is_unreachable() -> None:
    async with health(hang=True) as url:
        assert await see(url, seconds=0.05) == Unreachable("no answer in time")


async def test_a_server_that_accepts_and_says_nothing_is_unreachable() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(talk) as port:
        assert await see(f"http://127.0.0.1:{port}/") == Unreachable("ServerDisconnectedError")


@pytest.mark.parametrize("status", [204, 401, 403, 404, 500, 503])
async def test_an_http_error_is_alive(status: int) -> None:
    async with health(web.Response(status=status)) as url:
        assert await see(url) == Unreadable(f"HTTP {status}", status)


async def test_another_path_of_a_live_listener_is_alive() -> None:
    async with health(web.Response()) as url:
        assert await see(url + "/elsewhere") == Unreadable("HTTP 404", 404)


@pytest.mark.parametrize("body", [b"", b"Welcome", b"\xff\xfe\x00", b"{", b'{"queue_length": 3}'])
async def test_a_page_that_says_nothing_of_its_process_is_alive(body: bytes) -> None:
    async with health(web.Response(body=body)) as url:
        seen = await see(url)
    assert isinstance(seen, Unreadable)
    assert seen.why.startswith("expected app_dbid or process_os_pid")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\napp_dbid=117\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 12\r\n\r\napp_dbid=117",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /again\r\nConnection: close\r\n\r\n",
    ],
    ids=["another protocol", "binary", "cut short", "false gzip", "redirects without end"],
)
async def test_whoever_answers_nonsense_is_alive(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with raw_server(talk) as port:
        assert isinstance(await see(f"http://127.0.0.1:{port}/"), Unreadable)


@asynccontextmanager
async def redirecting(location: str, *, status: int = 302) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that sends us from / elsewhere, and has its page at /page; the paths it was asked for."""
    asked: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/page":
            return web.Response(body=b"process_os_pid=5")
        target = location.replace("OWN", request.host)
        return web.Response(status=status, headers={"Location": target} if location else {})

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    async with TestServer(app) as server:
        yield str(server.make_url("/")), asked


@pytest.mark.parametrize("location", ["/page", "page", "http://OWN/page", "http://OWN/page?a=b#c"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_server_is_followed(location: str, status: int) -> None:
    """The page's path is unknown; a server may send us from / to it."""
    async with redirecting(location, status=status) as (url, asked):
        seen = await see(url)
    assert isinstance(seen, Page)
    assert asked == ["/", "/page"]


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://127.0.0.1:1/page",
            "https://OWN/page",
            "http://user:word@OWN/page",
            "http://chat..example/",
        ),
        *("file:///etc/passwd", "http://[::1/", "http://127.0.0.1:99999/", ""),
    ],
)
async def test_a_redirect_elsewhere_is_not_followed_and_its_sender_is_alive(location: str) -> None:
    async with redirecting(location) as (url, asked):
        seen = await see(url)
    assert seen == Unreadable("HTTP 302: it redirects elsewhere, which is not followed", 302)
    assert asked == ["/"]


async def test_another_server_is_not_asked_however_good_its_page() -> None:
    async with redirecting("/page") as (other, asked_there), redirecting(f"{other}page") as (url, _):
        assert isinstance(await see(url), Unreadable)
        assert isinstance(await see(other), Page)
    assert asked_there == ["/", "/page"]


async def test_redirects_end() -> None:
    async with redirecting("/again") as (url, asked):
        seen = await see(url)
    assert seen == Unreadable("HTTP 302: it redirects without end", 302)
    assert len(asked) == 4


async def test_no_more_of_a_page_is_read_than_any_page_has() -> None:
    body = b"app_dbid=117\n" + b"x" * MAX_PAGE + b"\nprocess_os_pid=5\n"
    async with health(web.Response(body=body)) as url:
        seen = await see(url)
    assert isinstance(seen, Page)
    assert (seen.page.app_dbid, seen.page.process_os_pid) == ("117", None)


async def test_a_page_that_is_cut_off_in_the_middle_of_a_number_says_none() -> None:
    """With fewer of its digits it would be another process, or a counter that ran backwards."""
    for line in (b"process_os_pid=4711", b"messages_total 123456"):
        start = b"app_dbid=117\n#" + b"x" * MAX_PAGE
        body = start[: MAX_PAGE - len(line) + 1] + b"\n" + line + b"\nlast=1\n"
        async with health(web.Response(body=body)) as url:
            seen = await see(url)
        assert seen == Page(HealthPage("117", None, None, None, {}))


async def test_a_large_page_is_taken_apart_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def note(body: bytes, **names: str | None) -> HealthPage:
        threads.append(threading.current_thread() is threading.main_thread())
        return read_health(body, **names)

    monkeypatch.setattr("asyncchatd.health.read_health", note)
    for size in (100, OFF_LOOP_BYTES + 1):
        async with health(web.Response(body=b"app_dbid=117\n".ljust(size))) as url:
            assert isinstance(await see(url), Page)
    assert threads == [True, False]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_a_listener_that_does_not_fit_our_tls_is_alive(answer: bytes) -> None:
    """It speaks plain HTTP, or refuses our handshake."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async with raw_server(talk) as port:
        assert await see(f"https://127.0.0.1:{port}/") == Unreadable("ClientConnectorSSLError")


async def test_a_server_whose_certificate_is_not_trusted_is_alive(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server, certificates.server_key)
    server = TestServer(web.Application())
    await server.start_server(ssl=context)
    try:
        seen = await see(f"https://127.0.0.1:{server.port}/")
    finally:
        await server.close()
    assert seen == Unreadable("ClientConnectorCertificateError")


# -- the loop ------------------------------------------------------------------------------------


@dataclass
class Plant:
    """Chat Servers' health pages; by default each answers as its own first process."""

    clock: FakeClock
    pids: dict[str, str | None] = field(default_factory=dict)
    """By server name; `None` refuses connections."""
    aliases: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[str, float]] = field(default_factory=list)
    holding: asyncio.Event | None = None
    most_at_once: Counter[str] = field(default_factory=Counter)
    _now: Counter[str] = field(default_factory=Counter)

    async def answer(self, url: URL, **_: object) -> CallbackResult:
        name = url.host or ""
        self.reads.append((name, self.clock.monotonic()))
        self._now[name] += 1
        self.most_at_once[name] = max(self.most_at_once[name], self._now[name])
        try:
            if self.holding is not None:
                await self.holding.wait()
            if (pid := self.pids.get(name, "1001")) is None:
                key = ConnectionKey(name, 80, False, True, None, None, None)
                raise aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "Connection refused"))
        finally:
            self._now[name] -= 1
        body = write_health(HealthFormat.JSON, self.aliases.get(name, "117"), pid)
        return CallbackResult(body=body, response_class=MockedResponse)

    def three(self) -> tuple[str, ...]:
        """Three servers with an alias each."""
        self.aliases.update({"chat-a": "117", "chat-b": "118", "chat-c": "119"})
        return tuple(self.aliases)

    def times(self, name: str = "chat-a") -> list[float]:
        return [at for server, at in self.reads if server == name]


@pytest.fixture
def plant(nodes: MockedNodes, clock: FakeClock) -> Plant:
    plant = Plant(clock)
    nodes.get(re.compile("http://.*"), callback=plant.answer, repeat=True)
    return plant


@asynccontextmanager
async def watching(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    *names: str,
    wakeup: asyncio.Event | None = None,
    gms_answers: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Watcher]:
    """A watcher at work: reads every 5 s, every second while in doubt."""
    servers = [{"name": name, "health_url": f"http://{name}/"} for name in names]
    settings = make_settings(watcher={"interval": "5s", "fast_interval": "1s"}, chat_servers=servers)
    watcher = Watcher(store, settings, clock, wakeup or asyncio.Event(), gms_answers)
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await settle()
    try:
        yield watcher
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def reason_of(store: PromptStore, chat_id: str) -> Reason:
    session = await store.get(chat_id)
    assert session is not None
    return session.reason


async def test_a_lost_server_makes_its_sessions_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    await register(store, "hers", "hers-too", now=clock.now())
    await register(store, "others", now=clock.now(), alias="118")
    wakeup = asyncio.Event()
    async with watching(store, clock, make_settings, "chat-a", wakeup=wakeup) as watcher:
        await clock.advance(6)
        plant.pids["chat-a"] = None
        await clock.advance(10)
        [server] = watcher.servers()
    assert (server.state, server.app_dbid, server.detail) == (DOWN, "117", "connection refused")
    assert [await reason_of(store, chat) for chat in ("hers", "hers-too", "others")] == [
        Reason.RESTORE,
        Reason.RESTORE,
        Reason.KEEPALIVE,
    ]
    [begun] = await store.restorations()
    assert (begun.alias, begun.server, begun.cause) == ("117", "chat-a", Cause.UNREACHABLE)
    assert (begun.sessions, begun.waiting) == (2, 2)
    assert wakeup.is_set()
    assert events.one(Event.SERVER_DOWN)["attempts"] == 3
    assert events.one(Event.RESTORATION_STARTED)["sessions"] == 2


async def test_a_restarted_server_makes_its_sessions_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(8)
    assert await reason_of(store, "hers") is Reason.RESTORE
    restarted = events.one(Event.SERVER_RESTARTED)
    assert (restarted["previous_pid"], restarted["process_os_pid"]) == ("1001", "2002")
    assert restarted["cause"] == "process_os_pid 1001 became 2002"
    [kept] = await store.servers()
    assert (kept.app_dbid, kept.process_os_pid, kept.state) == ("117", "2002", UP)


async def test_a_restart_while_the_daemon_was_away_is_found_at_start(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
    plant.pids["chat-a"] = "2002"
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(2)
        [begun] = await store.restorations()
    assert begun.cause is Cause.RESTARTED
    assert await reason_of(store, "hers") is Reason.RESTORE


async def test_a_server_that_stayed_the_same_while_the_daemon_was_away_is_left_alone(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    for _ in range(2):
        async with watching(store, clock, make_settings, "chat-a"):
            await clock.advance(20)
    assert not await store.restorations()


async def test_a_server_that_comes_back_has_its_sessions_pinged_once_more(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = None
        await clock.advance(10)
        plant.pids["chat-a"] = "1001"
        await clock.advance(10)
    assert [each.cause for each in await store.restorations()] == [Cause.RETURNED, Cause.UNREACHABLE]


async def test_the_record_of_a_loss_comes_before_the_new_pair(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash in between must find the change once more instead of never."""
    written: list[tuple[str, int]] = []
    save_server = store.save_server

    async def note(server: ChatServer) -> None:
        written.append((server.process_os_pid or "", len(await store.restorations())))
        await save_server(server)

    monkeypatch.setattr(store, "save_server", note)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(8)
    assert [record for record in written if record[0] == "2002"] == [("2002", 1)]
    assert ("1001", 1) not in written


async def test_a_loss_that_could_not_be_written_is_noticed_again(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    await register(store, "hers", now=clock.now())
    begin = store.begin_restoration
    failures = iter([True, True, False])

    async def fail_twice(*, alias: str, server: str | None, cause: Cause, now: Ms) -> Restoration:
        if next(failures):
            raise StoreError("the disk is full")
        return await begin(alias=alias, server=server, cause=cause, now=now)

    monkeypatch.setattr(store, "begin_restoration", fail_twice)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
        [begun] = await store.restorations()
        [kept] = await store.servers()
    assert begun.cause is Cause.RESTARTED
    assert kept.process_os_pid == "2002"
    assert await reason_of(store, "hers") is Reason.RESTORE
    assert len(events.of(Event.STORE_FAILED)) == 2


@pytest.mark.parametrize("call", ["mark", "save_server"])
async def test_a_loss_on_record_is_not_begun_again_when_what_follows_cannot_be_written(
    call: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        succeed = getattr(store, call)
        failures = iter([True, True, False])

        async def fail_twice(*arguments: object, **named: object) -> object:
            if next(failures, False):
                raise StoreError("the disk is full")
            return await succeed(*arguments, **named)

        monkeypatch.setattr(store, call, fail_twice)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
        [begun] = await store.restorations()
        [kept] = await store.servers()
    assert (begun.cause, begun.sessions) == (Cause.RESTARTED, 1)
    assert kept.process_os_pid == "2002"
    assert await reason_of(store, "hers") is Reason.RESTORE
    assert len(events.of(Event.STORE_FAILED)) == 2


@pytest.mark.parametrize("call", ["mark", "save_server"])
async def test_of_a_disk_that_is_full_the_store_tells_and_nobody_else(
    call: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    async def fail(*_: object, **__: object) -> object:
        raise StoreUnwritable("the store could not be written: database or disk is full")

    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        monkeypatch.setattr(store, call, fail)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
    assert events.of(Event.SERVER_SUSPECT)
    assert not events.of(Event.STORE_FAILED)


async def test_a_server_that_was_down_and_is_configured_no_more_loses_nobody(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    """It has another name now, or is gone for good: sessions that come to its alias are not lost by that."""
    await store.save_server(ChatServer("chat-a", "117", "1001", state=ServerState.DOWN))
    async with watching(store, clock, make_settings, "chat-b"):
        await clock.advance(6)
        await register(store, "new", now=clock.now())
    assert await reason_of(store, "new") is Reason.KEEPALIVE


async def test_a_server_that_is_down_when_a_reload_takes_it_away_loses_nobody_later(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.pids["chat-a"] = None
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(30)
        [kept] = await store.servers()
        assert kept.state is ServerState.DOWN
        settings = make_settings()
        watcher.reload(settings, settings.gms.tls())
        await clock.advance(1)
        [kept] = await store.servers()
        assert kept.state is ServerState.UNKNOWN
        # Back again, it still was down before: its sessions are pinged once more when it returns.
        settings = make_settings(chat_servers=[{"name": "chat-a", "health_url": "http://chat-a/"}])
        watcher.reload(settings, settings.gms.tls())
        await clock.advance(1)
        assert watcher.servers()[0].state is ServerState.DOWN


async def test_marking_that_a_stop_cut_off_is_finished_at_start(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    begun = await store.begin_restoration(
        alias="117", server="chat-a", cause=Cause.UNREACHABLE, now=clock.now()
    )
    async with watching(store, clock, make_settings):
        await clock.advance(0.1)
        [after] = await store.restorations()
    assert (after.id, after.marking, after.sessions) == (begun.id, False, 1)
    assert await reason_of(store, "hers") is Reason.RESTORE


async def test_marking_goes_on_when_the_store_can_be_written_again(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    await store.begin_restoration(alias="117", server="chat-a", cause=Cause.UNREACHABLE, now=clock.now())
    settings = make_settings()
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    store.fill_disk()
    running = asyncio.create_task(watcher.run())
    await clock.advance(3)
    assert not running.done()
    store.free_disk()
    await clock.advance(2)
    assert await reason_of(store, "hers") is Reason.RESTORE
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_store_that_fails_does_not_end_the_watching(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = None
        store.fill_disk()
        await clock.advance(30)
        store.free_disk()
        await clock.advance(12)
        assert await reason_of(store, "hers") is Reason.RESTORE


async def test_one_server_is_never_read_twice_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.holding = asyncio.Event()
    async with watching(store, clock, make_settings, "chat-a", "chat-b") as watcher:
        for _ in range(5):
            watcher.look_at("117")
            await clock.advance(5)
        assert len(plant.reads) == 2
        plant.holding.set()
        await clock.advance(20)
    assert plant.most_at_once == {"chat-a": 1, "chat-b": 1}
    assert len(plant.times("chat-a")) >= 4


async def test_servers_are_read_side_by_side(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a", "chat-b"):
        await clock.advance(1)
        # One that hangs must not keep the others from being read.
        held, plant.holding = len(plant.times("chat-b")), asyncio.Event()
        await clock.advance(6)
        assert len(plant.times("chat-b")) == held + 1
        plant.holding.set()


async def test_a_hint_makes_the_watcher_look_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.aliases["chat-b"] = "118"
    async with watching(store, clock, make_settings, "chat-a", "chat-b") as watcher:
        await clock.advance(1)
        watcher.look_at("118")
        watcher.look_at("no such alias")
        await settle()
        assert (plant.times("chat-a"), plant.times("chat-b")) == ([0], [0, 1])


async def test_reads_are_spread_by_a_tenth_and_come_faster_while_in_doubt(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(200)
        calm = plant.times()
        plant.pids["chat-a"] = None
        await clock.advance(7.6)
        times = plant.times()[len(calm) :]
    gaps = [later - earlier for earlier, later in pairwise(calm)]
    assert min(gaps) >= 4.5
    assert max(gaps) <= 5.5
    assert max(gaps) - min(gaps) > 0.1
    assert times[1] - times[0] <= 1.1
    assert times[2] - times[1] <= 1.1


async def test_a_replaced_server_that_lives_elsewhere_loses_nothing(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    """Two addresses were exchanged: both servers are well."""
    plant.aliases.update({"chat-a": "117", "chat-b": "118"})
    plant.pids.update({"chat-a": "1", "chat-b": "2"})
    async with watching(store, clock, make_settings, "chat-a", "chat-b", "chat-c"):
        await clock.advance(6)
        plant.aliases.update({"chat-c": "117"})
        await clock.advance(8)
        plant.aliases.update({"chat-a": "119"})
        await clock.advance(8)
    assert not [each for each in await store.restorations() if each.server == "chat-a"]
    assert "119" in [line["alias"] for line in events.of(Event.SERVER_IDENTITY_CHANGED)]


async def test_a_replaced_server_that_lives_nowhere_is_lost(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.aliases["chat-a"] = "118"
        await clock.advance(8)
    [begun] = await store.restorations()
    assert (begun.alias, begun.cause) == ("117", Cause.REPLACED)
    assert await reason_of(store, "hers") is Reason.RESTORE
    changed = events.one(Event.SERVER_IDENTITY_CHANGED)
    assert (changed["previous_alias"], changed["alias"]) == ("117", "118")


async def test_only_what_changed_is_written(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten servers read every second would otherwise be ten commits a second for nothing."""
    saved: list[ChatServer] = []
    save_server = store.save_server

    async def note(server: ChatServer) -> None:
        saved.append(server)
        await save_server(server)

    monkeypatch.setattr(store, "save_server", note)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(120)
    assert len(saved) == 1


async def test_without_servers_there_is_nothing_to_watch_and_it_goes_on(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings) as watcher:
        await clock.advance(60)
        assert watcher.servers() == []


async def test_a_server_of_a_configured_alias_is_shown_and_kept_under_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    settings = make_settings(
        chat_servers=[{"name": "chat-a", "health_url": "http://chat-a/", "app_dbid": 500}],
        watcher={"timeout": "1s"},
    )
    assert settings.watcher.timeout == timedelta(seconds=1)
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    [before] = watcher.servers()
    assert (before.app_dbid, before.state) == ("500", UNKNOWN)
    running = asyncio.create_task(watcher.run())
    await clock.advance(1)
    [kept] = await store.servers()
    assert replace(kept, checked_at=0) == ChatServer("chat-a", "500", "1001", None, UP, since=NOON)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- the watcher suspects itself -------------------------------------------------------------------------------


async def test_what_was_read_while_the_daemon_stood_still_is_held_against_nobody(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(6)
        plant.pids["chat-a"] = None
        held = plant.holding = asyncio.Event()
        for _ in range(5):  # each read falls into a stall
            await clock.advance(6)
            watcher.stalled()
            clock.stall(0.001)
            release, held = held, asyncio.Event()
            plant.holding = held
            release.set()
            await settle()
        assert watcher.servers()[0].state is UP
        plant.holding = None
        held.set()
        await clock.advance(12)
        assert watcher.servers()[0].state is DOWN
    assert events.of(Event.SELF_SUSPECTED)
    assert len(await store.restorations()) == 1


async def test_when_most_servers_and_gms_vanish_together_it_is_our_own_network(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    names = plant.three()
    gms = [True]
    async with watching(store, clock, make_settings, *names, gms_answers=lambda: gms[0]) as watcher:
        await clock.advance(6)
        plant.pids.update(dict.fromkeys(names))
        gms[0] = False
        await clock.advance(60)
        assert DOWN not in {server.state for server in watcher.servers()}
        assert not await store.restorations()
        assert len(events.of(Event.SELF_SUSPECTED)) == 1
        # The network is back: nothing had happened to anybody.
        plant.pids.clear()
        gms[0] = True
        await clock.advance(12)
        assert {server.state for server in watcher.servers()} == {UP}
        assert not await store.restorations()


async def test_servers_still_gone_when_gms_is_back_are_lost(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    names = plant.three()
    gms = [True]
    async with watching(store, clock, make_settings, *names, gms_answers=lambda: gms[0]):
        await clock.advance(6)
        plant.pids.update(dict.fromkeys(names))
        gms[0] = False
        await clock.advance(30)
        gms[0] = True
        await clock.advance(3)
    assert {each.alias for each in await store.restorations()} == {"117", "118", "119"}


@pytest.mark.parametrize(("gone", "gms"), [(["chat-a"], False), (["chat-a", "chat-b", "chat-c"], True)])
async def test_one_server_without_gms_or_all_servers_with_it_are_really_gone(
    gone: list[str],
    gms: bool,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
) -> None:
    names = plant.three()
    async with watching(store, clock, make_settings, *names, gms_answers=lambda: gms):
        await clock.advance(6)
        plant.pids.update(dict.fromkeys(gone))
        await clock.advance(12)
    assert {each.server for each in await store.restorations()} == set(gone)


async def test_hints_in_doubt_do_not_turn_fall_reads_into_a_moment(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(6)
        plant.pids["chat-a"] = None
        for _ in range(10):
            watcher.look_at("117")
            await clock.advance(0.05)
        assert watcher.servers()[0].state is SUSPECT
        await clock.advance(3)
        assert watcher.servers()[0].state is DOWN
