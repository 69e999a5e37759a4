"""The watcher's judgement as a table, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from conftest import (
    NOON,
    MakeSettings,
    case,
)
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.config.settings import ChatServerSettings
from asyncchatd.model.data import Cause, ChatServer, Ms, Process, ServerState
from asyncchatd.model.values import replace
from asyncchatd.watcher import identity
from asyncchatd.watcher.judgement import (
    DISPUTED,
    Step,
    Together,
    Turn,
    Watch,
    contested,
    first_watch,
    pause,
    step,
    together,
)
from asyncchatd.watcher.page import Page, Seen, Unreachable, Unreadable, Unseen
from asyncchatd.watcher.record import forgetful, undisputed
from asyncchatd.watcher.votes import Heard
from asyncchatd.wire.health import HealthPage, read_health

pytestmark = pytest.mark.usefixtures("events")

UNKNOWN, UP, SUSPECT, DOWN = ServerState.UNKNOWN, ServerState.UP, ServerState.SUSPECT, ServerState.DOWN


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
    Story(
        "two processes by turns, one of them twice in a row", [A, B, A, B, A, B, B], [UP, SUSPECT, *[UP] * 5]
    ),
    Story(
        "two processes by turns, one of them gone for as long as a failure takes",
        [A, B, A, B, A, B, B, B, B],
        [UP, SUSPECT, *[UP] * 7],
        lost=[RESTARTED],
    ),
    Story(
        "two processes by turns with a failure between",
        [A, B, A, B, X, B, X, A],
        [UP, SUSPECT, UP, UP, SUSPECT, UP, SUSPECT, UP],
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
        "two containers by turns whose uptimes hardly differ",
        [page(uptime=5000), page(uptime=4945), page(uptime=5010), page(uptime=4955)],
        [UP] * 4,
        turns=[Turn.UP],
    ),
    Story(
        "two containers by turns, one of them young",
        [page(uptime=5000), page(uptime=1), page(uptime=6), page(uptime=5015), page(uptime=16)],
        [UP, SUSPECT, UP, UP, UP],
        lost=[RESTARTED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.RESTARTED, Turn.DISPUTED],
    ),
    Story(
        "counters that begin anew after an outage",
        [page(a_total=9), X, X, X, page(a_total=0), page(a_total=0), page(a_total=0)],
        [UP, SUSPECT, SUSPECT, DOWN, DOWN, UP, UP],
        lost=[UNREACHABLE, RETURNED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.DOWN, Turn.UP],
    ),
    Story(
        "two containers of two servers by turns",
        [page("1"), page("1", "118"), page("1"), page("1", "118")],
        [UP, SUSPECT, UP, UP],
        turns=[Turn.UP, Turn.SUSPECT, Turn.UP, Turn.DISPUTED],
    ),
    Story(
        "restarted after a process id that is missing for once",
        [A, page(None), B, B],
        [UP, UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "another app_dbid after one that is missing for once",
        [page("1"), page("1", None), page("1", "118"), page("1", "118")],
        [UP, UP, SUSPECT, UP],
        lost=[REPLACED],
    ),
    Story("two processes after another", [A, B, C, C], [UP, SUSPECT, SUSPECT, UP], lost=[RESTARTED]),
    Story("restarted twice", [A, B, B, C, C], [UP, SUSPECT, UP, SUSPECT, UP], lost=[RESTARTED, RESTARTED]),
    Story(
        "a doubt with a failure between",
        [A, B, X, B, B],
        [UP, SUSPECT, SUSPECT, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "a doubt about counters with a failure between",
        [page(a_total=900), page(a_total=0), X, page(a_total=1), page(a_total=2)],
        [UP, SUSPECT, SUSPECT, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "another server seen once, and then nobody",
        [A, D, X, X, X],
        [UP, SUSPECT, SUSPECT, SUSPECT, DOWN],
        lost=[UNREACHABLE],
    ),
    Story("restarting", [A, X, X, B, B], [UP, SUSPECT, SUSPECT, SUSPECT, UP], lost=[RESTARTED]),
    Story(
        "a former process comes back after an outage",
        [A, B, B, X, X, X, A, A],
        [UP, SUSPECT, UP, SUSPECT, SUSPECT, DOWN, DOWN, UP],
        lost=[RESTARTED, UNREACHABLE, RETURNED],
        turns=[Turn.UP, Turn.SUSPECT, Turn.RESTARTED, Turn.SUSPECT, Turn.DOWN, Turn.UP],
    ),
    Story(
        "restarted and then lost",
        [A, B, X, X, X, B, B],
        [UP, SUSPECT, SUSPECT, SUSPECT, DOWN, DOWN, UP],
        lost=[UNREACHABLE, RESTARTED],
    ),
    Story("unreadable is alive", [A, U, U, A], [UP, UP, UP, UP], turns=[Turn.UP, Turn.UNREADABLE]),
    Story("unreadable from the first", [U, U], [UP, UP], turns=[Turn.UNREADABLE]),
    Story(
        "unreadable again after a failure",
        [U, X, U],
        [UP, SUSPECT, UP],
        turns=[Turn.UNREADABLE, Turn.SUSPECT, Turn.UNREADABLE],
    ),
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
    Story(
        "a start time that is missing for once",
        [page(started=1000), page(), page(started=1060), page(started=1060)],
        [UP, UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
    Story(
        "an uptime that is missing for once",
        [page(uptime=500), page(), page(uptime=2), page(uptime=7)],
        [UP, UP, SUSPECT, UP],
        lost=[RESTARTED],
    ),
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
        "two pages by turns of whom the configuration says whose they are, and then nobody",
        [A, D, A, D, X, X, X],
        [UP, SUSPECT, UP, UP, SUSPECT, SUSPECT, DOWN],
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


def test_what_is_read_of_a_server_and_what_follows() -> None:
    for story in STORIES:
        with case(story.name):
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
    assert [one.why for one in steps] == [
        "configured is 9, the page says 117",
        None,
        "connection refused",
        None,
    ]
    assert steps[0].watch.alias == "9"
    assert not lost(steps)


def test_what_is_wrong_with_a_process_is_said_before_what_its_page_contradicts() -> None:
    told = follow([page("1001", None), D], configured("9"))[-1]
    assert told.turns == (Turn.IDENTITY, Turn.SUSPECT)
    assert told.why == "process_os_pid 1001 became 2002"


def test_the_pair_is_learned_and_kept_up_to_date() -> None:
    steps = follow([A, B, B])
    pairs = [(one.watch.server.app_dbid, one.watch.server.process_os_pid) for one in steps]
    # In doubt the old pair stays: a stop of the daemon now must not hide the restart.
    assert pairs == [("117", "1001"), ("117", "1001"), ("117", "2002")]


def test_another_process_was_there_since_it_was_first_met() -> None:
    server = follow([A, B, B])[-1].watch.server
    assert (server.first_seen, server.last_seen) == (NOON + 10_000, NOON + 15_000)


def test_another_process_counts_anew() -> None:
    before, after = page("1001", a_total=9), page("2002", a_total=0)
    assert turns(follow([before, after, after, after])) == [Turn.UP, Turn.SUSPECT, Turn.RESTARTED]


def test_each_process_that_answers_by_turns_is_remembered_once() -> None:
    server = follow([A, B, A, B, C, A, B, C, C, B])[-1].watch.server
    assert sorted(str(each.process_os_pid) for each in server.others) in (["1001", "2002"], ["1001", "3003"])


def test_an_address_where_more_answer_than_are_remembered_tells_of_no_more_restarts() -> None:
    disputed = follow([A, B, A, B])[-1].watch
    crowd = [page(str(number)) for number in range(5000, 5060) for _ in range(2)]
    steps = follow(crowd, disputed, start=NOON + 20_000)
    assert all(len(one.watch.server.others) <= identity.MOST_OTHERS for one in steps)
    assert lost(steps[:20]) == [RESTARTED] * 10
    assert not lost(steps[2 * identity.MOST_OTHERS :])


def test_a_state_knows_since_when_and_why() -> None:
    _, up, suspect, down = (one.watch.server for one in follow([A, A, X, Unreachable("timeout")], fall=2))
    assert (up.since, up.detail) == (NOON + 5000, None)
    assert (suspect.since, suspect.detail) == (NOON + 15_000, "connection refused")
    assert (down.since, down.checked_at, down.detail) == (NOON + 20_000, NOON + 20_000, "timeout")


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ([A, B, B], ["process_os_pid 1001 became 2002"] * 2),
        ([A, page("1001", "118"), page("1001", "118")], ["app_dbid 117 became 118"] * 2),
        ([page(started=1000), *[page(started=1060)] * 2], ["its start time is a later one"] * 2),
        ([page(uptime=500), page(uptime=2), page(uptime=7)], ["its uptime ran backwards"] * 2),
        ([page(a_total=9), page(a_total=0), page(a_total=0)], ["its counter a_total ran backwards"] * 2),
        ([page("4711", a_total=9), page("4711", a_total=0)], ["its counter a_total ran backwards"]),
        ([A, X, X, X, X], ["connection refused"] * 3 + [None]),
        ([A, X, X, X, B, B], ["connection refused"] * 3 + [None, "process_os_pid 1001 became 2002"]),
        ([A, U, U], ["HTTP 500"] * 2),
        ([A, N, N], ["too many open files"] * 2),
        ([A, X, X, X, U, U], ["connection refused"] * 3 + ["HTTP 500"] * 2),
        ([A, A], [None]),
    ],
)
def test_what_happens_says_why(seen: list[Seen], why: list[str | None]) -> None:
    assert [one.why for one in follow(seen)][1:] == why


def test_that_nobody_can_look_is_told_at_once_for_each_reason_and_every_ten_minutes() -> None:
    other = Unseen("name resolution failed")
    steps = follow([N, N, other, *[other] * 119, other, other, A, N])
    told = [number for number, one in enumerate(steps) if Turn.UNSEEN in one.turns]
    assert told == [0, 2, 122, 125]


def test_a_remembered_server_is_open_again_unless_it_was_down() -> None:
    assert remembered(UP).server.since == NOON
    assert remembered(DOWN).server.since == NOON - 60_000
    assert remembered(UP).server.state is remembered(SUSPECT).server.state is UNKNOWN
    assert remembered(DOWN).server.state is DOWN
    fresh = first_watch(
        None, ChatServerSettings(name="chat-a", health_url="http://chat-a/", app_dbid="9"), NOON
    )
    assert (fresh.server.state, fresh.server.since, fresh.alias) == (UNKNOWN, NOON, "9")


@pytest.mark.slow
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
    alias = None
    appeared: list[Seen] = []
    for index, one in enumerate(follow(seen, fall=fall, rise=rise)):
        assert len(one.lost) <= 1
        assert all(each.again is (down and each.alias == alias) for each in one.lost)
        alias = one.watch.alias
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
    server = steps[-1].watch.server
    assert identity.find(server.others, identity.known(server)) is None
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


def test_an_address_where_several_go_on_to_answer_is_not_believed_however_long_it_takes() -> None:
    disputed = follow([A, A, B, B, A])
    steps = follow([B, A] * 10, disputed[-1].watch, apart=100, start=NOON + 25_000)
    assert not turns(steps)
    assert steps[-1].watch.server.disputed is not None
    assert steps[-1].watch.server.detail == DISPUTED


def test_after_as_many_pages_of_others_as_a_fall_takes_the_known_process_is_gone() -> None:
    for fall, at in ((3, 4), (5, 5), (6, 6)):
        steps = follow([A, B, C, B, C, B, C, B], fall=fall)
        assert [number for number, one in enumerate(steps) if one.lost] == [at]


def test_a_dispute_says_what_to_do() -> None:
    told = follow([A, A, B, B, A])[-1]
    assert (
        told.why
        == "process_os_pid 2002 of app_dbid 117 and process_os_pid 1001 of app_dbid 117 answer by turns"
    )
    assert told.watch.server.detail == DISPUTED
    assert follow([X], told.watch)[-1].watch.server.detail == "connection refused"


def test_who_reloads_says_that_one_process_answers_and_may_have_another_counter_read() -> None:
    server = replace(follow([A, A, B, B, A])[-1].watch.server, started=1000.0, began=2000.0)
    assert replace(server, others=(), disputed=None) == undisputed(server)
    assert replace(server, others=(), disputed=None, started=None, began=None) == forgetful(server)


def test_a_dispute_tells_processes_of_one_id_by_when_they_started() -> None:
    dated = [page(started=NOON / 1000 - age) for age in (1000, 2000, 1000)]
    aged = [page(uptime=up) for up in (2005, 1010, 2015)]
    first, second = "started 2023-11-14T21:56:40Z", "started 2023-11-14T21:40:00Z"
    assert (follow(dated)[-1].why or "").count("process_os_pid 1 of app_dbid 117 started") == 2
    for seen in (dated, aged):
        why = [one.why for one in follow(seen) if Turn.DISPUTED in one.turns]
        assert len(why) == 1
        assert first in str(why)
        assert second in str(why)


# -- our own clocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [20, 86_400], ids=["a young process", "an old one"])
def test_our_own_clock_set_forward_is_no_restart(old: float) -> None:
    """A start time that is computed from an uptime would be an hour later."""
    steady = NOON
    watch = Watch(ChatServer("chat-a", since=NOON))
    for number, ahead in enumerate([0, 0, 3_600_000, 3_600_000, -7_200_000, 0]):
        steady = NOON + 5000 * number
        one = step(watch, page(uptime=old + 5 * number), fall=3, rise=2, now=steady + ahead, steady=steady)
        assert (one.lost, one.watch.server.state) == ((), UP)
        watch = one.watch


@pytest.mark.parametrize("ahead", [420_000, -420_000])
def test_a_restart_is_told_by_a_start_time_however_far_our_own_clock_was_set(ahead: Ms) -> None:
    """The server's clock shows the time as it is, and so does ours from then on."""
    watch = Watch(ChatServer("chat-a", since=NOON))
    told: list[Step] = []
    now_there = (NOON + ahead) / 1000
    for seconds, started in ((0, now_there - 5000), (5, now_there + 3), (10, now_there + 3)):
        steady = NOON + 1000 * seconds
        seen = page("4711", started=started)
        told.append(step(watch, seen, fall=3, rise=2, now=steady + ahead, steady=steady))
        watch = told[-1].watch
    assert lost(told) == [RESTARTED]


def test_a_restart_just_when_our_own_clock_was_set_back_is_one() -> None:
    watch = Watch(ChatServer("chat-a", since=NOON))
    told: list[Step] = []
    for seconds, uptime, ahead in ((0, 500, 0), (5, 2, -3_600_000), (10, 7, -3_600_000)):
        steady = NOON + 1000 * seconds
        told.append(step(watch, page(uptime=uptime), fall=3, rise=2, now=steady + ahead, steady=steady))
        watch = told[-1].watch
    assert lost(told) == [RESTARTED]


def test_that_this_host_was_suspended_counts_for_the_next_page_alone() -> None:
    """An uptime that later runs backwards, but not to a young process, is no restart."""
    watch = Watch(ChatServer("chat-a", since=NOON))
    told: list[Step] = []
    for seconds, up, slept in (
        (0, 86_400, 0),
        (5, 90_005, 3_600_000),
        (10, 1800, 3_600_000),
        (15, 1805, 3_600_000),
    ):
        steady = NOON + 1000 * seconds
        told.append(step(watch, page(uptime=up), fall=3, rise=2, now=steady + slept, steady=steady))
        watch = told[-1].watch
    assert not lost(told)


@pytest.mark.parametrize(("uptime", "expected"), [(86_400 + 3605, []), (1800, [RESTARTED]), (7200, [])])
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
        assert turns(steps).count(Turn.SUSPECT) == 1
        assert len(lost(steps)) == losses
        assert watch.in_doubt is (told is Together.UNKNOWN)
        assert (Turn.COUNTERS in turns(steps)) is (told is Together.ALL)


def test_when_counters_ran_backwards_is_when_they_were_first_seen_to() -> None:
    steps = follow([page(a_total=9), page(a_total=0), page(a_total=0)])
    assert [one.watch.fell_at for one in steps] == [None, NOON + 10_000, NOON + 10_000]
    assert [one.watch.server.first_seen for one in steps] == [NOON + 5_000, NOON + 5_000, NOON + 15_000]


def test_a_start_time_that_wavers_stays_known_as_it_was_read_first() -> None:
    steps = follow([page(started=1000), page(started=1003), page(started=997), page()])
    assert [one.watch.server.started for one in steps] == [1000] * 4


def test_counters_that_ran_backwards_on_half_of_the_other_servers_did_so_together() -> None:
    def watch(name: str, fell: Ms | None, seen: Ms, failures: int = 0) -> Watch:
        counters = {"a_total": 0.0 if fell else 1.0, "b_total": 0.0}
        return Watch(ChatServer(name, last_seen=seen), counters=counters, fell_at=fell, failures=failures)

    def told(*others: Watch, steady: Ms = 1000) -> Together:
        watches = {each.server.name: each for each in (watch("a", 500, 900), *others)}
        return together(watches, "a", within=10_000, steady=steady)

    assert told() is Together.ALONE
    assert told(watch("b", 600, 900)) is Together.ALL
    assert told(watch("b", None, 900)) is Together.ALONE
    assert told(watch("b", None, 400)) is Together.UNKNOWN
    assert told(watch("b", None, 500)) is Together.ALONE
    assert told(watch("b", None, 400), steady=10_500) is Together.UNKNOWN
    assert told(watch("b", None, 400), steady=20_000) is Together.ALONE
    assert told(watch("b", None, 400, failures=1)) is Together.ALONE
    assert told(watch("b", 600, 900), watch("c", None, 900)) is Together.ALL
    assert told(watch("b", -90_000, 900), watch("c", None, 900)) is Together.ALONE
    assert told(watch("b", -9_500, 900)) is Together.ALL
    assert told(watch("b", -9_600, 900)) is Together.ALONE
    rest = [watch(name, None, 900) for name in "cde"]
    assert told(watch("b", 600, 900), *rest[:2]) is Together.ALONE
    assert told(watch("b", 600, 900), watch("f", 600, 900), *rest[:2]) is Together.ALL
    assert told(watch("b", 600, 900), watch("f", 600, 900), *rest) is Together.ALONE
    silent = [replace(each, counters={"a_total": 0.0}) for each in rest]
    assert told(watch("b", 600, 900), *silent) is Together.ALL
    unmoved = {each.server.name: each for each in (watch("a", None, 900), watch("b", 600, 900))}
    assert together(unmoved, "a", within=10_000, steady=1000) is Together.ALONE


def test_reads_come_faster_while_in_doubt(make_settings: MakeSettings) -> None:
    settings = make_settings(watcher={"interval": "10s", "fast_interval": "1s"}).watcher
    steps = follow([A, X, X, X, X, A, A, B, B])
    pauses = [pause(one.watch, settings) for one in steps]
    assert pauses == [10, 1, 1, 10, 10, 1, 10, 1, 10]
    assert [pause(one.watch, settings) for one in follow([A, N, N, A])] == [10, 1, 1, 10]
    assert [pause(one.watch, settings) for one in follow([A, B, A, B])] == [10, 1, 10, 10]
    replaced = follow([page("1", a_total=9), page("1", a_total=0), B, B])
    assert [pause(one.watch, settings) for one in replaced] == [10, 1, 1, 10]
    doubted = follow([page(a_total=9), page(a_total=0), page(a_total=0)])
    assert [pause(one.watch, settings) for one in doubted] == [10, 1, 10]


@pytest.mark.parametrize(("refused", "doubtful"), [("200ms", 0.2), ("5s", 1)])
def test_reads_of_a_server_that_refuses_at_once_come_faster_still_but_only_while_in_doubt(
    refused: str, doubtful: float, make_settings: MakeSettings
) -> None:
    every = {"interval": "10s", "fast_interval": "1s", "refused_interval": refused}
    settings = make_settings(watcher=every).watcher
    pauses = [pause(one.watch, settings, hurried=True) for one in follow([A, X, X, X, A])]
    assert pauses == [10, doubtful, doubtful, 10, 1]


@pytest.mark.parametrize("before", [None, "118"], ids=["as nobody knew whom", "as another"])
@pytest.mark.parametrize(
    ("seen", "what_is_lost"),
    [
        pytest.param([X, X, X], [UNREACHABLE], id="still down"),
        pytest.param([A, A], [RETURNED], id="back already"),
        pytest.param([X, A, A], [UNREACHABLE, RETURNED], id="back soon"),
        pytest.param([A, X, A, A], [UNREACHABLE, RETURNED], id="wavering"),
        pytest.param([N, U, U], [RETURNED], id="unreadable"),
        pytest.param([A, A, X, X, X, X], [RETURNED, UNREACHABLE], id="down again later"),
    ],
)
def test_a_server_that_was_down_loses_its_sessions_when_its_alias_is_told(
    before: str | None, seen: list[Seen], what_is_lost: list[tuple[str, Cause]]
) -> None:
    down = ChatServer("chat-a", app_dbid=before, state=DOWN, since=NOON)
    configured = ChatServerSettings(name="chat-a", health_url="http://chat-a/", app_dbid="117")
    steps = follow(seen, first_watch(down, configured, NOON))
    assert lost(steps) == what_is_lost
    again = first_watch(steps[-1].watch.server, configured, NOON)
    assert (again.owed, not lost(follow([X], again))) == (False, True)


def test_a_server_that_was_down_under_its_alias_loses_nobody_again() -> None:
    configured = ChatServerSettings(name="chat-a", health_url="http://chat-a/", app_dbid="117")
    known = ChatServer("chat-a", app_dbid="117", state=DOWN, since=NOON)
    assert not lost(follow([X, X, X], first_watch(known, configured, NOON)))


# -- whose sessions they are was assumed -----------------------------------------------------------------


ASSUMED = Watch(ChatServer("chat-a", app_dbid="117", state=DOWN, since=NOON, assumed=True))


@pytest.mark.parametrize(
    ("seen", "what_is_lost", "told"),
    [
        pytest.param([A, A], [RETURNED], [Turn.UP], id="rightly"),
        pytest.param([D, D], [("118", Cause.RETURNED)], [Turn.IDENTITY, Turn.UP], id="wrongly"),
        pytest.param(
            [U, U, D],
            [RETURNED, ("118", Cause.RETURNED)],
            [Turn.UNREADABLE, Turn.UP, Turn.IDENTITY],
            id="wrongly, told late",
        ),
        pytest.param([page("1001", None), page("1001", None)], [RETURNED], [Turn.UP], id="never told"),
        pytest.param(
            [D, X, D, D], [("118", Cause.RETURNED)], [Turn.IDENTITY, Turn.UP], id="wrongly, in pieces"
        ),
    ],
)
def test_an_alias_that_was_assumed_gives_way_to_the_one_that_is_told(
    seen: list[Seen], what_is_lost: list[tuple[str, Cause]], told: list[Turn]
) -> None:
    steps = follow(seen, ASSUMED)
    assert (lost(steps), turns(steps)) == (what_is_lost, told)
    said = isinstance(seen[-1], Page) and seen[-1].page.app_dbid is not None
    assert steps[-1].watch.server.assumed is not said
    reasons = [one.why for one in steps if Turn.IDENTITY in one.turns]
    assert reasons == ["assumed was 117, the page says 118"] * (Turn.IDENTITY in told)


def test_an_alias_that_is_not_configured_stays_assumed() -> None:
    settings = ChatServerSettings(name="chat-a", health_url="http://chat-a/")
    assert first_watch(ASSUMED.server, settings, NOON).server.assumed


@pytest.mark.parametrize("app_dbid", ["117", "118"])
def test_an_alias_that_is_configured_is_assumed_no_more(app_dbid: str) -> None:
    configured = ChatServerSettings.model_validate(
        {"name": "chat-a", "health_url": "http://chat-a/", "app_dbid": app_dbid}
    )
    watch = first_watch(ASSUMED.server, configured, NOON)
    assert not watch.server.assumed
    assert lost(follow([X, X, X], watch)) == ([] if app_dbid == "117" else [("118", Cause.UNREACHABLE)])


def read_elsewhere(page: Page, at: Ms) -> Process:
    """Who answered another node, to a look that began then."""
    return replace(identity.observed(page.page, at), first_seen=NOON - 60_000)


def reads(watch: Watch, seen: Seen, at: Ms, *sights: Process, asked: bool = True) -> Step:
    return step(watch, seen, fall=3, rise=2, now=at, heard=Heard(sights) if asked else None)


def test_another_process_stays_a_doubt_until_those_who_read_the_known_one_have_looked_again() -> None:
    doubt = follow([A, B])[-1].watch
    first = NOON + 10_000
    before = read_elsewhere(A, first - 1)
    for number in range(1, 5):
        result = reads(doubt, B, first + number * 1_000, before, read_elsewhere(B, first))
        assert (result.turns, result.lost) == ((), ()), "it is told once"
        doubt = result.watch
        assert (doubt.server.state, doubt.server.process_os_pid) == (SUSPECT, "1001")
    result = reads(doubt, B, first + 5_000, read_elsewhere(B, first + 500), read_elsewhere(B, first))
    assert (result.turns, lost([result])) == ((Turn.RESTARTED,), [RESTARTED])
    assert result.watch.server.process_os_pid == "2002"


def test_another_process_stays_a_doubt_while_nobody_can_be_asked() -> None:
    doubt = follow([A, B])[-1].watch
    assert contested(doubt, B, steady=NOON)
    held = reads(doubt, B, NOON + 60_000, asked=False)
    assert (held.turns, held.lost) == ((), ())
    assert lost([reads(held.watch, B, NOON + 61_000)]) == [RESTARTED]


@pytest.mark.parametrize("other", [B, D, page("1001", "118")])
def test_a_known_process_that_answers_other_nodes_later_was_not_restarted(other: Page) -> None:
    doubt = follow([A, other])[-1].watch
    at = NOON + 12_000
    result = reads(doubt, other, at, read_elsewhere(A, at))
    assert (result.turns, result.lost) == ((Turn.DISPUTED,), ())
    assert result.why is not None
    assert "answers other nodes" in result.why
    server = result.watch.server
    assert (server.state, server.process_os_pid, server.app_dbid) == (UP, "1001", "117")
    assert server.disputed == at
    # And as long as it does so, however long that is; a process never seen before is a restart all the same.
    watch = result.watch
    for _ in range(300):
        at += 5_000
        result = reads(watch, other, at, read_elsewhere(A, at - 100))
        assert (result.turns, result.lost) == ((), ())
        watch = result.watch
    assert watch.server.disputed is not None
    steps = [reads(watch, C, at + 5_000, read_elsewhere(C, at + 4_000))]
    steps.append(reads(steps[-1].watch, C, at + 10_000, read_elsewhere(C, at + 9_000)))
    assert lost(steps) == [RESTARTED]


def test_a_server_that_falls_soon_after_its_start_is_restored_where_others_read_the_next_process() -> None:
    """In a container, where both have one id and nearly one uptime."""
    watch = follow([page(uptime=at) for at in (0, 5, 10)])[-1].watch
    again = NOON + 12_000
    watch = reads(watch, page(uptime=1), again + 1_000).watch
    result = reads(watch, page(uptime=3), again + 3_000, read_elsewhere(page(uptime=2.5), again + 2_500))
    assert (result.turns, lost([result])) == ((Turn.RESTARTED,), [RESTARTED])


def test_a_known_process_that_answers_nobody_any_more_is_restored_also_where_it_was_disputed() -> None:
    doubt = follow([A, B])[-1].watch
    at = NOON + 12_000
    watch = reads(doubt, B, at, read_elsewhere(A, at)).watch
    steps = []
    for number in range(4):
        steps.append(reads(watch, B, at + (number + 1) * 5_000, read_elsewhere(B, at + 5_000)))
        watch = steps[-1].watch
    assert lost(steps) == [RESTARTED]


def test_a_dispute_goes_on_while_others_read_another_process() -> None:
    watch = follow([A, A, B, B, A])[-1].watch
    assert watch.server.disputed is not None
    at = NOON + 25_000
    for _ in range(10):
        at += 100_000
        watch = reads(watch, A, at, read_elsewhere(B, at - 1_000)).watch
        assert watch.server.disputed is not None
    for _ in range(8):
        at += 100_000
        watch = reads(watch, A, at, read_elsewhere(A, at - 1_000)).watch
    assert watch.server.disputed is None


def test_whom_others_read_matters_only_where_it_is_contested_who_answers() -> None:
    up, doubt, disputed = follow([A])[-1].watch, follow([A, B])[-1].watch, follow([A, B, A, B])[-1].watch
    down = follow([A, B, A, B, X, X, X])[-1].watch
    watches = (up, doubt, disputed, down)
    assert [contested(watch, B, steady=NOON) for watch in watches] == [True, True, True, False]
    assert [contested(watch, A, steady=NOON) for watch in watches] == [False, True, True, False]
    assert not contested(doubt, X, steady=NOON)


def test_who_answers_is_not_contested_by_a_page_that_says_another_alias_than_is_configured() -> None:
    otherwise = page("1001", "200")
    watch = follow([otherwise, otherwise], Watch(ChatServer("chat-a", since=NOON), "117"))[-1].watch
    assert watch.alias == "117"
    assert not contested(watch, otherwise, steady=NOON)
    assert contested(watch, page("2002", "200"), steady=NOON)


def test_a_process_that_began_nearly_when_another_did_is_the_one_it_is_nearer_to() -> None:
    """A start computed from an uptime wavers by more than may lie between two of them."""
    began = NOON / 1000 - 3600
    seen = NOON - 70_000
    other = Process("117", None, None, began + 80, first_seen=seen, last_seen=seen, settled=False)
    watch = remembered(began=began, others=(other,))
    watch = replace(watch, server=replace(watch.server, process_os_pid=None, app_dbid="117"))
    for wavers, state in ((10, UP), (70, SUSPECT)):
        [read] = follow([page(None, uptime=3600 + 5 - wavers)], watch)
        assert (read.watch.server.state, read.lost) == (state, ())
