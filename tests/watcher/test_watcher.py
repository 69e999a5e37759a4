"""The health watcher: its judgement as a table, its eyes on real sockets, its loop under a fake clock."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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

from asyncchatd.config.settings import ChatServerSettings
from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, ChatServer, Loss, Ms, Process, Reason, ServerState
from asyncchatd.model.values import replace
from asyncchatd.stores import StoreError
from asyncchatd.stores.base import Noted, StoreUnwritable
from asyncchatd.watcher.page import OFF_LOOP_BYTES, HealthPages, Page, Seen, Unreachable, Unreadable, Unseen
from asyncchatd.watcher.watcher import (
    DISPUTED,
    Step,
    Together,
    Turn,
    Watch,
    Watcher,
    first_watch,
    pause,
    step,
    together,
)
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
D = page("2002", "118")
X = Unreachable("connection refused")
U = Unreadable("HTTP 500")
N = Unseen("too many open files")

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
    start: Ms = NOON,
) -> list[Step]:
    """The steps of these reads, `apart` seconds from one another."""
    watch = watch or Watch(ChatServer("chat-a", since=NOON))
    steps = []
    for number, each in enumerate(seen, start=1):
        steps.append(step(watch, each, fall=fall, rise=rise, now=start + round(number * apart * 1000)))
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


def remembered(
    state: ServerState = UP,
    *,
    started: float | None = None,
    began: float | None = None,
    pid: str = "1001",
    others: tuple[Process, ...] = (),
) -> Watch:
    """Where watching starts after the daemon was away for a minute."""
    then = NOON - 60_000
    server = ChatServer("chat-a", "117", pid, started, state, since=then, checked_at=then, began=began)
    server = replace(server, first_seen=then - 60_000, last_seen=then, others=others)
    return first_watch(server, ChatServerSettings(name="chat-a", health_url="http://chat-a/"), NOON)


def configured(app_dbid: str) -> Watch:
    """A server whose alias the configuration says."""
    return Watch(ChatServer("chat-a"), app_dbid)


STORIES = [
    Story("the first page", [A], [UP], turns=[Turn.UP]),
    Story("a page that stays", [A, A, A], [UP, UP, UP], turns=[Turn.UP]),
    Story("never seen", [X, X, X, X], [SUSPECT, SUSPECT, DOWN, DOWN], turns=[Turn.DOWN]),
    Story("seen late", [X, X, A], [SUSPECT, SUSPECT, UP], turns=[Turn.UP]),
    Story("never looked at", [N, N, A], [UNKNOWN, UNKNOWN, UP], turns=[Turn.UNSEEN, Turn.UP]),
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
    # A balancer's address: processes do not come back.
    Story(
        "two processes by turns",
        [A, B, A, B, A, B, A],
        [UP, SUSPECT, UP, UP, UP, UP, UP],
        turns=[Turn.UP, Turn.SUSPECT, Turn.UP, Turn.DISPUTED],
    ),
    Story(
        "two processes, each twice in a row",
        [A, A, B, B, A, A, B, B, A, A, B, B],
        [UP, UP, SUSPECT, *[UP] * 9],
        lost=[RESTARTED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.RESTARTED, Turn.DISPUTED],
    ),
    Story(
        "two processes of two servers",
        [A, A, D, D, A, A, D, D, A, D, A],
        [UP, UP, SUSPECT, *[UP] * 8],
        lost=[REPLACED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.IDENTITY, Turn.DISPUTED],
    ),
    Story("a former process comes back", [A, B, B, A, A, A], [UP, SUSPECT, UP, UP, UP, UP], lost=[RESTARTED]),
    Story(
        "two processes by turns, neither of them the known one",
        [A, B, C, B, C, B, C],
        [UP, SUSPECT, SUSPECT, UP, UP, UP, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a restart behind a cache that still shows the old page once",
        [A, B, A, B, B, B],
        [UP, SUSPECT, UP, UP, UP, UP],
        lost=[RESTARTED],
    ),
    Story(
        "one of two restarted",
        [A, A, B, B, A, B, C, B, C, B, C],
        [UP, UP, SUSPECT, *[UP] * 8],
        lost=[RESTARTED, RESTARTED],
    ),
    Story(
        "one of two by turns restarted",
        [A, B, A, B, A, C, A, C, A, C],
        [UP, SUSPECT, *[UP] * 8],
        lost=[RESTARTED],
    ),
    Story(
        "one of two servers restarted, and it is the one that is not known",
        [A, A, D, D, A, D, page("9"), D, page("9"), D],
        [UP, UP, SUSPECT, *[UP] * 7],
        lost=[REPLACED, RESTARTED],
    ),
    Story(
        "two servers by turns, and then neither",
        [A, D, A, D, X, X, X],
        [UP, SUSPECT, UP, UP, SUSPECT, SUSPECT, DOWN],
        lost=[UNREACHABLE, ("118", Cause.UNREACHABLE)],
    ),
    Story(
        "two processes by turns, lost and back",
        [A, B, A, B, X, X, X, A, B, A, B],
        [UP, SUSPECT, UP, UP, SUSPECT, SUSPECT, DOWN, DOWN, UP, UP, UP],
        lost=[UNREACHABLE, RESTARTED],
    ),
    Story(
        "two containers by turns, told by their start times",
        [page(started=1000), page(started=900), page(started=1000), page(started=900)],
        [UP] * 4,
        turns=[Turn.UP, Turn.DISPUTED],
    ),
    Story(
        "two containers by turns, told by their uptimes",
        [page(uptime=5000), page(uptime=1000), page(uptime=5010), page(uptime=1010)],
        [UP] * 4,
        turns=[Turn.UP, Turn.DISPUTED],
    ),
    Story(
        "two containers by turns, one of them young",
        [page(uptime=5000), page(uptime=1), page(uptime=6), page(uptime=5015), page(uptime=16)],
        [UP, SUSPECT, UP, UP, UP],
        lost=[RESTARTED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.RESTARTED, Turn.DISPUTED],
    ),
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
        [page(started=1000 + number) for number in range(3)] + [page(started=1030)] * 2,
        [UP, UP, UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a start time that moved by less than the process was seen: the server's clock was set",
        [page(started=1000)] * 10 + [page(started=1030)] * 3,
        [UP] * 13,
    ),
    Story(
        "a start time that moved under a process id that is no container's: the server's clock was set",
        [page("4711", started=NOON / 1000 - 5000), *[page("4711", started=NOON / 1000 - 1200)] * 2],
        [UP, UP, UP],
    ),
    Story(
        "a start time of days ago, however its minutes look in other time zones: the server's clock was set",
        [
            page("4711", started=NOON / 1000 - 604_800 + 8),
            *[page("4711", started=NOON / 1000 - 601_200 + 8)] * 2,
        ],
        [UP, UP, UP],
    ),
    Story(
        "a process id that came round again",
        [page("4711", started=NOON / 1000 - 5000), *[page("4711", started=NOON / 1000 + 8)] * 2],
        [UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a process id that came round again, told by a clock of another time zone",
        [page("4711", started=NOON / 1000 - 25_000), *[page("4711", started=NOON / 1000 + 8 - 19_800)] * 2],
        [UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a restart after the server's clock was set",
        [page(started=1000)] * 10 + [page(started=1030)] * 3 + [page(started=1100)] * 2,
        [*[UP] * 13, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a start time that moved while the uptime went on: the server's clock was set",
        [page(started=1000, uptime=60), page(started=4600, uptime=65), page(started=4600, uptime=70)],
        [UP, UP, UP],
    ),
    Story(
        "containers that die young, one after another",
        [page(uptime=20), *[page(uptime=up) for _ in range(4) for up in (1, 6)]],
        [UP, *[SUSPECT, UP] * 4],
        lost=[RESTARTED] * 4,
    ),
    Story(
        "a container that died young in a long silence",
        [page(uptime=20), *[U] * 30, page(uptime=60), page(uptime=65)],
        [*[UP] * 31, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "an uptime that ran backwards, but not to a young process: the server's clock was set",
        [page(uptime=90_000), page(uptime=86_405), page(uptime=86_410)],
        [UP, UP, UP],
    ),
    Story("an uptime in whole hours", [page(uptime=0)] * 30 + [page(uptime=3600)], [UP] * 31),
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
        "counters zeroed under an unchanged process id",
        [page("4711", messages_total=900), page("4711", messages_total=0), page("4711", messages_total=3)],
        [UP, UP, UP],
        turns=[Turn.UP, Turn.COUNTERS],
    ),
    Story(
        "counters zeroed under an unchanged start time",
        [page(started=1000, messages_total=900), *[page(started=1000, messages_total=0)] * 2],
        [UP, UP, UP],
    ),
    Story(
        "counters zeroed while the uptime goes on",
        [
            page(uptime=60, messages_total=900),
            page(uptime=65, messages_total=0),
            page(uptime=70, messages_total=0),
        ],
        [UP, UP, UP],
    ),
    Story(
        "the uptime zeroed with the counters, under an unchanged start time",
        [
            page(started=1000, uptime=5000, a_total=9),
            *[page(started=1000, uptime=up, a_total=0) for up in (2, 7)],
        ],
        [UP, UP, UP],
    ),
    Story(
        "one counter of many that fell is none",
        [page(a_total=9, b_total=9, c_total=9), *[page(a_total=1, b_total=9, c_total=9)] * 2],
        [UP, UP, UP],
    ),
    Story(
        "counters that ran backwards once",
        [page(a_total=900), page(a_total=300), page(a_total=901)],
        [UP, SUSPECT, UP],
    ),
    Story(
        "counters that go up and down are two containers', and one restart at most",
        [page(a_total=900), *[page(a_total=each) for _ in range(5) for each in (300, 301, 902, 903)]],
        [UP, SUSPECT, *[UP] * 19],
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
        watch=remembered(pid="1", began=NOON / 1000 - 86_400),
    ),
    Story(
        "a container that ran on",
        [page("1", uptime=86_405), page("1", uptime=86_410)],
        [UP, UP],
        watch=remembered(pid="1", began=NOON / 1000 - 86_400),
    ),
    Story(
        "a container that ran on while our clock was set forward by an hour",
        [page("1", uptime=82_805), page("1", uptime=82_810)],
        [UP, UP],
        watch=remembered(pid="1", began=NOON / 1000 - 86_400),
    ),
    Story(
        "a process comes back that was there before the daemon was away",
        [B, B, B],
        [UP, UP, UP],
        turns=[Turn.DISPUTED],
        watch=remembered(
            others=(Process("117", "2002", first_seen=NOON - 9_000_000, last_seen=NOON - 8_000_000),)
        ),
    ),
    Story(
        "a process comes back that was last there two days ago: that may be chance",
        [B, B, B],
        [SUSPECT, UP, UP],
        lost=[RESTARTED],
        watch=remembered(
            others=(Process("117", "2002", first_seen=NOON - 900_000_000, last_seen=NOON - 200_000_000),)
        ),
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
    assert {state for story in STORIES for state in story.states} == set(ServerState)
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
    appeared: list[Seen] = []
    for index, one in enumerate(follow(seen, fall=fall, rise=rise)):
        assert len(one.lost) <= 1
        if one.lost and one.lost[0].cause is Cause.UNREACHABLE:
            assert not down
            assert all(isinstance(each, Unreachable) for each in seen[index - fall + 1 : index + 1])
        elif one.lost and not down:
            assert one.lost[0].cause is Cause.RESTARTED
            assert seen[: index + 1].count(seen[index]) >= 2
            appeared.append(seen[index])
        elif one.lost:
            assert not any(isinstance(each, Unreachable) for each in seen[index - rise + 1 : index + 1])
        down = one.watch.server.state is DOWN
    assert len(appeared) == len(set(map(id, appeared))), "a process is the reason for one restoration at most"


@given(st.lists(st.sampled_from([A, B]), max_size=60), st.integers(1, 4))
def test_a_balancer_before_two_processes_is_no_reason_for_a_second_restoration(
    seen: list[Seen], fall: int
) -> None:
    steps = follow(seen, fall=fall)
    assert len(lost(steps)) <= 1
    assert DOWN not in {one.watch.server.state for one in steps}


@given(st.lists(st.sampled_from([A, B]), max_size=30), st.lists(st.sampled_from([A, B, C]), max_size=30))
def test_a_process_never_seen_before_is_noticed_whatever_else_answers(
    before: list[Seen], after: list[Seen]
) -> None:
    """Even behind a balancer, the second time at the latest, unless it is gone again by then."""
    seen = [*before, C, C, *after]
    told = [seen[index] for index, one in enumerate(follow(seen)) if one.lost]
    assert C in told or not before


@pytest.mark.parametrize("alone", [A, B])
def test_an_address_where_one_process_answers_alone_for_long_is_believed_again(alone: Page) -> None:
    disputed = follow([A, A, B, B, A])
    steps = follow([alone] * 8, disputed[-1].watch, apart=100, start=NOON + 25_000)
    assert [one.watch.server.disputed is not None for one in steps][:5] == [True] * 5
    assert steps[-1].watch.server.disputed is None
    assert turns(steps) == [Turn.UP]
    assert steps[-1].watch.server.process_os_pid == alone.page.process_os_pid
    assert steps[-1].watch.server.detail is None
    assert lost(follow([C, C], steps[-1].watch, start=NOON + 900_000)) == [RESTARTED]
    assert not lost(follow([B, B, A, A], steps[-1].watch, start=NOON + 900_000))


@pytest.mark.parametrize(
    "said", ["start_time=1e300", "start_time=253402300800e9", "uptime=1e300", "uptime=1e12", "uptime=1e9d"]
)
def test_processes_with_impossible_times_that_answer_by_turns_are_told_like_others(said: str) -> None:
    """A date that cannot be shown would end the watcher, and the daemon with it."""
    watch = configured("117")
    seen: list[Turn] = []
    for number, pid in enumerate((1000, 2000, 1000, 2000)):
        page = read_health(f"app_dbid=117\nprocess_os_pid={pid}\n{said}\n".encode())
        result = step(watch, Page(page), fall=3, rise=2, now=NOON + number * 5_000)
        watch = result.watch
        seen += result.turns
    assert Turn.DISPUTED in seen


def test_a_dispute_says_what_to_do() -> None:
    told = follow([A, A, B, B, A])[-1]
    assert (
        told.why
        == "process_os_pid 2002 of app_dbid 117 and process_os_pid 1001 of app_dbid 117 answer by turns"
    )
    assert told.watch.server.detail == DISPUTED


# -- our own clocks ------------------------------------------------------------------------------


def test_our_own_clock_set_forward_is_no_restart() -> None:
    """A start time that is computed from an uptime would be an hour later."""
    steady = NOON
    watch = Watch(ChatServer("chat-a", since=NOON))
    for number, ahead in enumerate([0, 0, 3_600_000, 3_600_000, -7_200_000, 0]):
        steady = NOON + 5000 * number
        one = step(watch, page(uptime=86_400 + 5 * number), fall=3, rise=2, now=steady + ahead, steady=steady)
        assert (one.lost, one.watch.server.state) == ((), UP)
        watch = one.watch


@pytest.mark.parametrize(("uptime", "expected"), [(86_400 + 3605, []), (1800, [RESTARTED])])
def test_a_restart_while_this_host_was_suspended_is_one(uptime: float, expected: object) -> None:
    """The steady clock stood still for that hour."""
    watch = Watch(ChatServer("chat-a", since=NOON))
    told: list[Step] = []
    for seconds, up, slept in ((0, 86_400.0, 0), (5, uptime, 3_600_000), (6, uptime + 1, 3_600_000)):
        steady = NOON + 1000 * seconds
        told.append(step(watch, page(uptime=up), fall=3, rise=2, now=steady + slept, steady=steady))
        watch = told[-1].watch
    assert lost(told) == expected


# -- all servers' counters at once ---------------------------------------------------------------------


def test_counters_alone_wait_for_what_the_other_servers_counters_say() -> None:
    seen = [page(a_total=9), *[page(a_total=0)] * 3]
    for told, losses in ((Together.ALONE, 1), (Together.UNKNOWN, 0), (Together.ALL, 0)):
        watch = Watch(ChatServer("chat-a", since=NOON))
        steps = []
        for number, each in enumerate(seen):
            steps.append(step(watch, each, fall=3, rise=2, now=NOON + 5000 * number, together=told))
            watch = steps[-1].watch
        assert turns(steps)[:2] == [Turn.UP, Turn.SUSPECT]
        assert len(lost(steps)) == losses
        assert watch.in_doubt is (told is Together.UNKNOWN)
        assert (Turn.COUNTERS in turns(steps)) is (told is Together.ALL)


def test_counters_that_ran_backwards_on_half_of_the_other_servers_did_so_together() -> None:
    def watch(name: str, fell: Ms | None, seen: Ms, failures: int = 0) -> Watch:
        counters = {"a_total": 0.0 if fell else 9.0}
        return Watch(ChatServer(name, last_seen=seen), counters=counters, fell_at=fell, failures=failures)

    def told(*others: Watch, steady: Ms = 1000) -> Together:
        watches = {each.server.name: each for each in (watch("a", 500, 900), *others)}
        return together(watches, "a", within=10_000, steady=steady)

    assert told() is Together.ALONE
    assert told(watch("b", 600, 900)) is Together.ALL
    assert told(watch("b", None, 900)) is Together.ALONE
    assert told(watch("b", None, 400)) is Together.UNKNOWN
    assert told(watch("b", None, 400), steady=20_000) is Together.ALONE
    assert told(watch("b", None, 400, failures=1)) is Together.ALONE
    assert told(watch("b", 600, 900), watch("c", None, 900)) is Together.ALL
    assert told(watch("b", -90_000, 900), watch("c", None, 900)) is Together.ALONE


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
async def test_a_name_that_nobody_can_ask_for_says_nothing_of_the_server(host: str) -> None:
    assert await see(f"http://{host}:4001/") == Unseen("its name cannot be resolved")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (socket.EAI_NONAME, "name or service not known"),
        (socket.EAI_AGAIN, "temporary failure in name resolution"),
    ],
)
async def test_a_name_server_that_knows_no_address_says_nothing_of_the_server(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise socket.gaierror(number, words.capitalize())

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert await see("http://chat.example:4001/") == Unseen(f"its name cannot be resolved: {words}")


async def test_a_name_server_that_does_not_answer_says_nothing_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(10) and [])
    try:
        seen = await see("http://chat.example:4001/", seconds=0.05)
    finally:
        over.set()
    assert seen == Unseen("its name cannot be resolved: the name server does not answer")


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL]
)
async def test_what_the_daemon_itself_lacks_says_nothing_of_the_server(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    async with health(web.Response(body=b"")) as url:
        monkeypatch.setattr(socket, "socket", fail)
        seen = await see(url)
        monkeypatch.undo()
    assert seen == Unseen(f"this daemon lacks something for a connection: {os.strerror(number).lower()}")


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

    monkeypatch.setattr("asyncchatd.watcher.page.read_health", note)
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
    bodies: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    """By server name; makes a page instead of the common one."""
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
        made = self.bodies.get(name)
        body = made() if made else write_health(HealthFormat.JSON, self.aliases.get(name, "117"), pid)
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


async def test_the_sessions_of_nobody_are_those_of_the_one_server_that_was_never_seen(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    names = plant.three()
    plant.pids["chat-c"] = None
    await register(store, "chat-1", alias="119", now=clock.now())
    async with watching(store, clock, make_settings, *names) as watcher:
        await clock.advance(20)
        assert await reason_of(store, "chat-1") is Reason.RESTORE
        [begun] = await store.restorations()
        assert (begun.server, begun.alias, begun.cause) == ("chat-c", "119", Cause.UNREACHABLE)
        said = events.one(Event.SERVER_ALIAS_ASSUMED)
        assert (said["server"], said["alias"], said["sessions"]) == ("chat-c", "119", 1)
        await clock.advance(60)
        assert len(await store.restorations()) == 1
        # Also those that come later.
        await register(store, "chat-2", alias="119", now=clock.now())
        assert await reason_of(store, "chat-2") is Reason.RESTORE
        plant.aliases["chat-c"], plant.pids["chat-c"] = "120", "1001"
        await clock.advance(20)
        assert {server.app_dbid for server in watcher.servers()} == {"117", "118", "120"}


@pytest.mark.parametrize(
    ("gone", "aliases"),
    [(["chat-c"], ["119", "120"]), (["chat-b", "chat-c"], ["119"]), ([], ["119"]), (["chat-c"], ["117"])],
)
async def test_where_it_may_be_anothers_no_alias_is_assumed(
    gone: list[str],
    aliases: list[str],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    events: Events,
) -> None:
    names = plant.three()
    plant.aliases["chat-c"] = "121"
    plant.pids.update(dict.fromkeys(gone))
    for alias in aliases:
        await register(store, f"chat-{alias}", alias=alias, now=clock.now())
    async with watching(store, clock, make_settings, *names):
        await clock.advance(60)
    assert not await store.restorations()
    assert not events.of(Event.SERVER_ALIAS_ASSUMED)


def test_a_server_that_was_down_as_nobody_knew_whom_is_lost_when_its_alias_is_told() -> None:
    down = ChatServer("chat-a", state=DOWN, since=NOON)
    configured = ChatServerSettings(name="chat-a", health_url="http://chat-a/", app_dbid="117")
    assert lost(follow([X, X, X], first_watch(down, configured, NOON))) == [UNREACHABLE]
    known = replace(down, app_dbid="117")
    assert not lost(follow([X, X, X], first_watch(known, configured, NOON)))


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


async def test_a_loss_and_the_new_pair_are_put_on_record_together(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash in between would find the loss twice, or never."""
    written: list[tuple[str | None, int]] = []
    note = store.note

    async def noting(server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        written.append((server.process_os_pid, len(losses)))
        return await note(server, epoch=epoch, losses=losses, now=now)

    monkeypatch.setattr(store, "note", noting)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(8)
    assert written == [("1001", 0), ("1001", 0), ("2002", 1)]


async def test_what_somebody_else_noted_of_a_server_counts(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        [kept] = await store.servers()
        theirs = replace(kept, process_os_pid="2002")
        noted = await store.note(
            theirs, epoch=kept.epoch, losses=[Loss("117", Cause.RESTARTED)], now=clock.now()
        )
        assert noted is not None
        plant.pids["chat-a"] = "2002"
        await clock.advance(20)
        [after] = await store.servers()
    assert len(await store.restorations()) == 1
    assert (after.process_os_pid, after.state, after.epoch > noted.epoch) == ("2002", UP, True)


async def test_a_loss_that_could_not_be_written_is_noticed_again(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    await register(store, "hers", now=clock.now())
    note = store.note
    failures = iter([True, True])

    async def fail_twice(server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        if len(losses) and next(failures, False):
            raise StoreError("the disk is full")
        return await note(server, epoch=epoch, losses=losses, now=now)

    monkeypatch.setattr(store, "note", fail_twice)
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


async def test_a_loss_on_record_is_not_begun_again_when_its_sessions_cannot_be_marked(
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
        succeed = store.mark
        failures = iter([True, True, False])

        async def fail_twice(restoration: int, *, limit: int, now: Ms) -> bool:
            if next(failures, False):
                raise StoreError("the disk is full")
            return await succeed(restoration, limit=limit, now=now)

        monkeypatch.setattr(store, "mark", fail_twice)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
        [begun] = await store.restorations()
        [kept] = await store.servers()
    assert (begun.cause, begun.sessions) == (Cause.RESTARTED, 1)
    assert kept.process_os_pid == "2002"
    assert await reason_of(store, "hers") is Reason.RESTORE
    assert len(events.of(Event.STORE_FAILED)) == 2


@pytest.mark.parametrize("call", ["mark", "note"])
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
    down = ChatServer("chat-a", "117", "1001", state=ServerState.DOWN)
    await store.note(down, epoch=0, losses=(), now=clock.now())
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
    note = store.note

    async def noting(server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        saved.append(server)
        return await note(server, epoch=epoch, losses=losses, now=now)

    monkeypatch.setattr(store, "note", noting)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(120)
        assert len(saved) == 1
        # But what is stored must not become so old that a restart of the daemon knows too little.
        await clock.advance(1200)
    assert len(saved) == 3


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
    assert replace(kept, checked_at=0, epoch=0) == ChatServer(
        "chat-a", "500", "1001", None, UP, since=NOON, first_seen=NOON, last_seen=NOON
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- several processes, zeroed counters, set clocks --------------------------------------------------------


def by_turns(*pages: tuple[str, str], times: int) -> Callable[[], bytes]:
    """A balancer's address: `app_dbid` and process id of who answers, each so many times in a row."""
    answers = itertools.cycle([each for each in pages for _ in range(times)])
    return lambda: write_health(HealthFormat.JSON, *next(answers))


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("second", [("117", "1002"), ("118", "1002")])
async def test_a_balancers_address_is_told_once_and_restored_once_at_most(
    times: int,
    second: tuple[str, str],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    events: Events,
) -> None:
    plant.bodies["chat-a"] = by_turns(("117", "1001"), second, times=times)
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(3600)
        [server] = watcher.servers()
    assert (server.state, server.detail) == (UP, DISPUTED)
    assert len(await store.restorations()) <= 1
    told = events.one(Event.SERVER_IDENTITY_DISPUTED)
    assert "1001" in str(told["cause"])
    assert "1002" in str(told["cause"])
    # What is known of it survives the daemon.
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        [server] = watcher.servers()
        assert server.disputed is not None
        await clock.advance(3600)
    assert len(await store.restorations()) <= 1
    assert len(events.of(Event.SERVER_IDENTITY_DISPUTED)) == 1


async def test_a_restart_behind_a_balancers_address_is_noticed(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.bodies["chat-a"] = by_turns(("117", "1001"), ("117", "1002"), times=1)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(60)
        assert not await store.restorations()
        plant.bodies["chat-a"] = by_turns(("117", "1001"), ("117", "1003"), times=1)
        await clock.advance(60)
    [begun] = await store.restorations()
    assert begun.cause is Cause.RESTARTED


async def test_a_reload_says_that_one_process_answers_again(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    plant.bodies["chat-a"] = by_turns(("117", "1001"), ("117", "1002"), times=1)
    servers = [{"name": "chat-a", "health_url": "http://chat-a/"}]
    settings = make_settings(watcher={"interval": "5s", "fast_interval": "1s"}, chat_servers=servers)
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(60)
        plant.bodies.clear()
        watcher.reload(settings, settings.gms.tls())
        await clock.advance(60)
        [server] = watcher.servers()
        assert (server.state, server.disputed, server.detail) == (UP, None, None)
        plant.pids["chat-a"] = "1002"
        await clock.advance(60)
    assert [each.cause for each in await store.restorations()] == [Cause.RESTARTED]
    assert len(events.of(Event.SERVER_IDENTITY_DISPUTED)) == 1


@pytest.mark.parametrize("pid", ["1", "4711"])
async def test_counters_zeroed_on_every_server_at_once_are_no_restart(
    pid: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    """Deleting `log-output-content` of the health service does that."""
    zeroed_at = [float("inf")]

    def counting(name: str) -> Callable[[], bytes]:
        def made() -> bytes:
            since = clock.monotonic() - zeroed_at[0]
            total = 5000 + clock.monotonic() if since < 0 else since
            return write_health(
                HealthFormat.PROMETHEUS, plant.aliases[name], pid, counters={"m_total": total}
            )

        return made

    names = plant.three()
    plant.bodies = {name: counting(name) for name in names}
    async with watching(store, clock, make_settings, *names) as watcher:
        await clock.advance(60)
        zeroed_at[0] = clock.monotonic()
        await clock.advance(60)
        assert {server.state for server in watcher.servers()} == {UP}
        assert not await store.restorations()
        assert {line["server"] for line in events.of(Event.SERVER_COUNTERS_RESET)} == set(names)


async def test_one_containers_counters_that_begin_anew_are_a_restart(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    totals = {"chat-a": 900.0, "chat-b": 900.0, "chat-c": 900.0}

    def counting(name: str) -> Callable[[], bytes]:
        return lambda: write_health(
            HealthFormat.PROMETHEUS, plant.aliases[name], "1", counters={"m_total": totals[name]}
        )

    names = plant.three()
    plant.bodies = {name: counting(name) for name in names}
    async with watching(store, clock, make_settings, *names):
        await clock.advance(60)
        totals["chat-b"] = 0
        await clock.advance(20)
    [begun] = await store.restorations()
    assert (begun.server, begun.cause) == ("chat-b", Cause.RESTARTED)


@pytest.mark.parametrize("step_ms", [3_600_000, 40_000_000_000, -3_600_000])
async def test_our_clock_that_is_set_makes_no_restart(
    step_ms: Ms, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    def uptime() -> bytes:
        return write_health(HealthFormat.JSON, "117", "1", uptime=round(clock.monotonic() + 300, 1))

    plant.bodies["chat-a"] = uptime
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(60)
        clock.set_wall(step_ms)
        await clock.advance(700)
    # The daemon starts anew, under the clock as it is now.
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(60)
        assert watcher.servers()[0].state is UP
    assert not await store.restorations()


async def test_a_container_that_restarted_while_the_daemon_was_away_is_found_after_the_clock_was_set(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    born = [-300.0]

    def uptime() -> bytes:
        return write_health(HealthFormat.JSON, "117", "1", uptime=round(clock.monotonic() - born[0], 1))

    plant.bodies["chat-a"] = uptime
    async with watching(store, clock, make_settings, "chat-a"):
        clock.set_wall(3_600_000)
        await clock.advance(700)
    born[0] = clock.monotonic()
    await clock.advance(10)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(60)
    assert [each.cause for each in await store.restorations()] == [Cause.RESTARTED]


def test_a_server_that_nobody_could_look_at_stays_what_it_was() -> None:
    for before, state in (([], UNKNOWN), ([A], UP), ([A, X], SUSPECT), ([A, X, X, X], DOWN)):
        steps = follow([*before, *[N] * 20])
        assert [one.watch.server.state for one in steps[len(before) :]] == [state] * 20
        assert steps[-1].watch.server.detail == "too many open files"
        assert not lost(steps[len(before) :])
    assert follow([A, X, N, X])[-1].watch.server.state is SUSPECT
    assert follow([A, X, N, X, N, X])[-1].watch.server.state is DOWN
    assert lost(follow([A, N, N, N, B, B])) == [RESTARTED]


def test_that_nobody_can_look_is_said_again_after_a_while() -> None:
    assert turns(follow([A, N, N, A, N])) == [Turn.UP, Turn.UNSEEN]
    assert turns(follow([A, N, Unseen("no such name"), N])).count(Turn.UNSEEN) == 3
    hour = follow([N] * 720, apart=5)
    assert turns(hour).count(Turn.UNSEEN) == 6


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
