"""Several nodes look at one Chat Server, and some are misled, silent, slow, cut off, or started anew meanwhile: nothing
is restored as long as no server was restarted, and each restart and each loss once.

A model with the watchers themselves: who looks when is decided here, by a clock that passes in quarters of a second,
and there is one record for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import pytest
from conftest import FakeClock, settings_of
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asyncchatd.model.data import Cause, ChatServer, Loss, Ms, Views
from asyncchatd.model.values import replace
from asyncchatd.stores import Store, StoreError
from asyncchatd.stores.answers import Noted
from asyncchatd.watcher.judgement import Turn, Watch, pause
from asyncchatd.watcher.page import Page, Seen
from asyncchatd.watcher.watcher import Watcher
from asyncchatd.wire.health import HealthPage

from .sharing import Said
from .ways import REFUSED

pytestmark = pytest.mark.usefixtures("events")

T = TypeVar("T")

TICK = 0.25
SLOW = 1.5
"""Seconds until a slow way gives a page."""
NAME = "chat-a"
OTHERS = ("chat-b", "chat-c")
"""Servers that are well, and that all nodes reach."""
FORMS = ("pid", "uptime", "counters")
"""What tells one process from another on a page."""


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What comes of something that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    raise AssertionError("it waits")


class Fault(NamedTuple):
    """What is wrong with a node for a while, in seconds since all were there."""

    kind: str
    """`misled` to another process, or by `turns`; `cut` off from the server, `slow` to read it, `silent` for want of
    the database, `stopped` so that nothing is done, or `anew`: killed, and started again at the end."""
    node: int
    begin: float
    end: float = 10_000.0


@dataclass
class Plant:
    """The Chat Server, and the process to which those are led that are misled."""

    form: str
    began: float | None = -5_000.0
    number: int = 1
    twin: float | None = -500.0
    ends: int = 0
    """How many processes have ended."""
    stands: float | None = None
    """Since when the page stands still: whoever reads it is told what it said then."""

    def kill(self) -> None:
        self.began, self.ends = None, self.ends + 1

    def restart(self, now: float) -> None:
        """The next process is there, and the one before it is not."""
        self.ends += self.began is not None
        self.began, self.number = now, self.number + 1

    def page(self, now: float, *, misled: bool) -> Seen:
        began = self.twin if misled else self.began
        if began is None:
            return REFUSED
        now = now if self.stands is None else min(now, self.stands)
        if self.form == "pid":
            return Page(HealthPage("117", "999" if misled else str(1000 + self.number), None, None, {}))
        if self.form == "uptime":
            return Page(HealthPage("117", "7", None, now - began, {}))
        return Page(HealthPage("117", None, None, None, {"requests": 10 * (now - began) + 1}))


@dataclass
class Record:
    """What all nodes share."""

    said: Said
    servers: dict[str, ChatServer] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    losses: list[Loss] = field(default_factory=list)
    elsewhere: bool = False
    """Whether chats are restored elsewhere at once: a server that is back has none any more."""


class Seat:
    """The store as one node has it."""

    def __init__(self, record: Record, node: int, *, shared: bool) -> None:
        self._record, self._node, self._shared = record, node, shared
        self._start = record.said.begin(str(node))

    def come_back(self) -> None:
        """It was cut off from the database, and is not any more."""
        self._start = self._record.said.begin_again(self._start)

    def _reach(self) -> None:
        if self._node in self._record.away:
            raise StoreError("the database is away")

    async def servers(self) -> list[ChatServer]:
        self._reach()
        return list(self._record.servers.values())

    async def views(self, own: Views) -> Sequence[Views] | None:
        self._reach()
        if not self._shared:
            return None
        return self._record.said.say(self._start, own)

    async def note(self, server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        self._reach()
        before = self._record.servers.get(server.name)
        if epoch != (0 if before is None else before.epoch):
            return None
        self._record.servers[server.name] = replace(server, epoch=epoch + 1)
        begun = [loss for loss in losses if not (loss.again and self._record.elsewhere)]
        self._record.losses += begun
        return Noted(epoch + 1, ())


class Node:
    """One watcher, and when it looks at the server next."""

    def __init__(self, number: int, model: Model) -> None:
        self.number = number
        self._model = model
        self.seat = Seat(model.record, number, shared=model.count > 1)
        self.watcher = Watcher(cast(Store, self.seat), SETTINGS, model.clock, asyncio.Event())
        at_once(self.watcher.load())
        self._look_at = model.now() + 0.3 * number
        self._agree_at = model.now()
        self._read: tuple[float, Watch, Seen] | None = None
        """When the look under way began, what was known then, and what it will give."""
        self._looks = 0
        self._ends: int | None = None
        """How many processes had ended when an idle connection was made; `None` while there is none."""
        self._hurried = 0
        """So many looks more may come soon after one another: a process ended."""

    def tick(self, faults: set[str]) -> None:
        now, watcher, settings = self._model.now(), self.watcher, SETTINGS.watcher
        if self._ends is not None and self._ends != self._model.plant.ends and "misled" not in faults:
            self._ends, self._hurried = None, settings.fall + settings.rise
            self._look_at = now
        if now >= self._agree_at or watcher._agreement.news.is_set():
            self._agree_at = now + 1.0
            self._agree()
        hinted = watcher._look[NAME].is_set()
        if self._read is None and (now >= self._look_at or (hinted and not self._doubts())):
            watcher._look[NAME].clear()
            self._read = now, watcher._watches[NAME], self._look(faults)
        if self._read is None or ("slow" in faults and now < self._read[0] + SLOW):
            return
        (began, watch, seen), self._read = self._read, None
        configured = watcher._configured[NAME]
        watcher._agreement.saw(configured, seen, began=began)
        result = at_once(watcher._judge(NAME, configured, watch, seen, settings))
        assert Turn.RESTARTED not in result.turns or result.why, "a restart is told with its cause"
        wait = pause(result.watch, settings, hurried=self._hurried > 0)
        self._hurried = self._hurried - 1 if wait != settings.interval.total_seconds() else 0
        self._look_at = now + wait
        if self._model.lines and isinstance(seen, Page):
            self._ends = self._model.plant.ends

    def _doubts(self) -> bool:
        settings = SETTINGS.watcher
        return pause(self.watcher._watches[NAME], settings) != settings.interval.total_seconds()

    def _look(self, faults: set[str]) -> Seen:
        if "cut" in faults:
            return REFUSED
        self._looks += 1
        misled = "misled" in faults or ("turns" in faults and self._looks % 3 == 0)
        return self._model.plant.page(self._model.now(), misled=misled)

    def _agree(self) -> None:
        watcher = self.watcher
        watcher._agreement.news.clear()
        now = self._model.clock.now()
        for name in OTHERS:
            other = watcher._watches[name]
            watcher._watches[name] = replace(other, server=replace(other.server, checked_at=now))
        try:
            hints = at_once(watcher._agreement.hints(watcher._watches, SETTINGS.watcher))
            if hints is not None:
                for name in hints:
                    watcher._look[name].set()
                at_once(watcher._follow())
        except StoreError:
            pass


class Model:
    """Nodes, the server, and what becomes of both."""

    def __init__(self, count: int, form: str, faults: Sequence[Fault] = (), *, lines: bool = False) -> None:
        """`lines`: whether nodes have an idle connection to the server, by which they notice that its process ends."""
        self.clock = FakeClock()
        self.record = Record(Said(self.clock))
        self.count, self.plant, self.lines = count, Plant(form), lines
        self.faults = list(faults)
        self._nodes: dict[int, Node] = {}
        self._down: set[int] = set()
        self._begun = 0.0
        self.run(12.0)
        self._begun = self.clock.monotonic()

    def now(self) -> float:
        return self.clock.monotonic()

    def fault(self, kind: str, *nodes: int, seconds: float = 10_000.0) -> None:
        """Something is wrong with these from now on."""
        now = self.now() - self._begun
        self.faults += [Fault(kind, node, now, now + seconds) for node in nodes]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / TICK)):
            self.clock.stall(TICK)
            for number in range(self.count):
                self._tick(number)

    def _tick(self, number: int) -> None:
        since = self.clock.monotonic() - self._begun
        faults = (
            {each.kind for each in self.faults if each.node == number and each.begin <= since < each.end}
            if self._begun
            else set()
        )
        record = self.record
        was_away = number in record.away
        (record.away.add if "silent" in faults else record.away.discard)(number)
        if "anew" in faults:
            self._nodes.pop(number, None)
            return
        if was_away and "silent" not in faults and number in self._nodes:
            self._nodes[number].seat.come_back()
        if number not in self._nodes:
            self._nodes[number] = Node(number, self)
        if "stopped" not in faults:
            self._nodes[number].tick(faults)

    @property
    def restored(self) -> list[Cause]:
        return [loss.cause for loss in self.record.losses]


SETTINGS = settings_of(
    watcher={"interval": "5s", "fast_interval": "1s"},
    chat_servers=[{"name": name, "health_url": f"http://{name}/"} for name in (NAME, *OTHERS)],
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_restarts_and_a_loss_are_restored_once_each(count: int, form: str) -> None:
    model = Model(count, form)
    model.run(30)
    assert model.restored == []
    model.plant.restart(model.now())
    model.run(25)
    assert model.restored == [Cause.RESTARTED]
    model.plant.kill()
    model.run(30)
    assert model.restored == [Cause.RESTARTED, Cause.UNREACHABLE]
    model.plant.restart(model.now())
    model.run(30)
    assert len(model.restored) == 3, "it is back"


class Troubles(NamedTuple):
    """What is wrong with nodes."""

    nodes: int
    """How many there are."""
    form: str
    faults: Sequence[Fault] = ()
    """In the first half of a minute."""
    late: Fault | None = None
    """When the server is lost, in seconds since."""
    lines: bool = False
    stands: tuple[float, float] | None = None
    """From when to when the server's page stands still, in seconds since all were there."""
    gap: float = 0
    """So many seconds the server is away when it is restarted."""


@st.composite
def troubles(draw: st.DrawFn) -> Troubles:
    """Fewer than half are misled; of two one is. One other thing is wrong with one of the others, of five with two, and
    once more when the server is lost; where nobody is misled, of three or more one may begin to be then. More at once
    leaves nobody who could tell: docs/nodes.md. Nor can anybody where counters alone tell."""
    count, form = draw(st.sampled_from([2, 3, 5])), draw(st.sampled_from(FORMS))
    kinds = ["silent", "stopped", "slow", "anew"] + (["cut"] if count > 2 else [])
    begins, lengths = st.sampled_from([4, 8, 12.25, 16]), st.sampled_from([2, 3.5, 6, 9.5])
    misled = draw(st.lists(st.integers(0, count - 1), max_size=max(1, (count - 1) // 2), unique=True))
    faults = [Fault("misled", node, draw(begins), draw(st.sampled_from([30, 10_000]))) for node in misled]
    others = [node for node in range(count) if node not in misled]
    most = 0 if form == "counters" and misled else max(1, count // 2 - len(misled))
    for node in draw(st.lists(st.sampled_from(others), max_size=most, unique=True)):
        kind, begin = draw(st.sampled_from(kinds)), draw(begins)
        faults.append(Fault(kind, node, begin, 10_000 if kind == "slow" else begin + draw(lengths)))
    late = None
    if not misled and count > 2 and draw(st.booleans()):
        begin = draw(st.sampled_from([-20, -6, -2.25, 0, 0.5, 1.75, 5]))
        late = Fault(
            draw(st.sampled_from(["misled", "turns"])),
            draw(st.sampled_from(others)),
            begin,
            begin + draw(st.sampled_from([2, 6, 9.5, 25, 300])),
        )
    elif most and draw(st.booleans()):
        kind, begin = draw(st.sampled_from(kinds)), draw(st.sampled_from([-6, -2.25, 0, 0.5, 1.75, 5]))
        late = Fault(
            kind, draw(st.sampled_from(others)), begin, begin + draw(st.sampled_from([2, 6, 9.5, 25]))
        )
    stands = None
    if draw(st.integers(0, 3)) == 0:
        begin = draw(begins)
        stands = begin, begin + draw(st.sampled_from([3.5, 20, 140]))
    gap = draw(st.sampled_from([0, 0, 0.5, 1, 2]))
    return Troubles(count, form, faults, late, draw(st.booleans()), stands, gap)


EXAMPLES = hypothesis_settings().max_examples // 5
"""A tenth of a second each."""

SEEDED = EXAMPLES <= 10
"""The same ones in each run of the tests; `make fuzz` looks for others."""


@pytest.mark.slow
@given(troubles())
@example(Troubles(5, "pid", [Fault("misled", 2, 12.25), Fault("cut", 4, 16, 25.5), Fault("slow", 1, 16)]))
@example(Troubles(3, "pid", [Fault("misled", 0, 5), Fault("stopped", 1, 4, 13.5), Fault("cut", 2, 8, 11.5)]))
@example(Troubles(3, "counters", [Fault("misled", 0, 12.25), Fault("anew", 1, 8, 10)]))
@example(Troubles(3, "uptime", [Fault("misled", 0, 12.25), Fault("slow", 1, 4), Fault("slow", 2, 4)]))
@example(Troubles(2, "uptime", [Fault("misled", 1, 12.25)]))
@example(Troubles(2, "pid", [Fault("misled", 1, 12.25, 30), Fault("stopped", 0, 8, 17.5)]))
@example(
    Troubles(
        2,
        "pid",
        [Fault("misled", 1, 12.25, 30), Fault("stopped", 0, 8, 17.5), Fault("stopped", 1, 12.25, 14.25)],
    )
)
@example(
    Troubles(2, "pid", [Fault("misled", 1, 12.5, 30), Fault("stopped", 0, 8, 17.5), Fault("slow", 0, 17)])
)
@example(Troubles(3, "pid", [Fault("misled", 0, 12.25)], Fault("stopped", 1, 0, 200)))
@example(Troubles(2, "pid", [Fault("misled", 0, 12.25)], Fault("anew", 1, 0.5, 2.5)))
@example(Troubles(2, "pid", [Fault("misled", 0, 4)], Fault("silent", 1, -6, 3.5)))
@example(Troubles(2, "pid", [Fault("misled", 0, 4)], Fault("silent", 1, 5, 14.5)))
@example(Troubles(3, "pid", [Fault("misled", 0, 4)], Fault("slow", 1, 5, 14.5), lines=True))
@example(Troubles(3, "counters", [Fault("slow", 1, 16)], lines=True))
@example(Troubles(2, "uptime", [Fault("misled", 0, 4, 30)], stands=(4, 144)))
@example(Troubles(3, "pid", late=Fault("turns", 0, -20, 280)))
@example(Troubles(3, "pid", late=Fault("misled", 0, 0.5, 2.5), lines=True, gap=1))
@hypothesis_settings(max_examples=EXAMPLES, derandomize=SEEDED)
def test_whatever_is_wrong_with_nodes_only_a_restart_and_a_loss_are_restored(troubles: Troubles) -> None:
    count, form, faults, late, lines, stands, gap = troubles
    model = Model(count, form, faults, lines=lines)
    if stands is not None:
        begin, end = stands
        model.run(begin)
        model.plant.stands = model.now()
        model.run(end - begin)
        model.plant.stands = None
        model.run(20)
    model.run(max(5, 45 - (model.now() - model._begun)))
    assert model.restored == []
    if count == 2 and any(each.kind == "misled" for each in faults) and form == "counters":
        return  # one finds it so, and one does not
    model.record.elsewhere = True
    model.plant.kill()
    model.run(gap)
    model.plant.restart(model.now())
    model.run(40)
    [first] = model.restored
    assert first is Cause.RESTARTED or (gap and first is Cause.UNREACHABLE)
    model.record.elsewhere = False
    if late is not None:
        model.run(25)
        begun = model.now() - model._begun
        model.faults.append(late._replace(begin=begun + late.begin, end=begun + late.end))
    model.plant.kill()
    model.run(45)
    assert model.restored == [first, Cause.UNREACHABLE]
    model.plant.restart(model.now())
    model.run(30)
    # Two good reads make it up again, also of two processes: which of them took its place may be settled by one more.
    most = 4 if late is not None and late.kind == "turns" else 3
    assert 3 <= len(model.restored) <= most, "it is back"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gap", [0.25, 1, 3])
@pytest.mark.parametrize("count", [1, 2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 5))])
def test_a_server_that_is_killed_and_soon_back_is_restored_once(count: int, gap: float, form: str) -> None:
    """Whether its loss is seen, by the idle connections, or that another process is there."""
    for lines in (False, True):
        for moment in range(0, 20, 7):
            model = Model(count, form, lines=lines)
            model.record.elsewhere = True
            model.run(10 + moment * TICK)
            model.plant.kill()
            model.run(gap)
            model.plant.restart(model.now())
            model.run(40)
            assert len(model.restored) == 1, (lines, moment)
            assert lines or gap > 1 or model.restored == [Cause.RESTARTED]


@pytest.mark.parametrize("kind", ["silent", "stopped"])
@pytest.mark.parametrize("seconds", [3.5, 6, 10])
@pytest.mark.parametrize("count", [2, 3])
def test_a_misled_node_does_not_put_its_process_in_the_place_of_the_known_one_while_nobody_is_heard(
    count: int, seconds: float, kind: str
) -> None:
    model = Model(count, "pid", [Fault("misled", 0, 5)])
    model.run(30)
    model.fault(kind, *range(1, count), seconds=seconds)
    model.run(30)
    assert model.restored == []
    assert model.record.servers[NAME].process_os_pid == "1001"
    model.plant.restart(model.now())
    model.run(30)
    assert model.restored == [Cause.RESTARTED]


@pytest.mark.parametrize("moment", range(0, 20, 6))
@pytest.mark.parametrize("count", [2, 3])
def test_a_node_that_comes_anew_may_read_the_known_process_until_it_has_looked(
    count: int, moment: int
) -> None:
    """It is heard by then, and says that it has read nobody."""
    model = Model(count, "pid", [Fault("misled", 0, 5)])
    model.run(30 + moment * TICK)
    for _ in range(3):
        model.fault("anew", *range(1, count), seconds=2)
        model.fault("slow", *range(1, count), seconds=5)
        model.run(20)
    assert model.restored == []
    model.plant.restart(model.now())
    model.run(30)
    assert model.restored == [Cause.RESTARTED]


@pytest.mark.parametrize("moment", range(0, 20, 6))
@pytest.mark.parametrize("count", [2, 3])
def test_a_node_that_is_misled_while_the_others_come_anew_restores_nothing(count: int, moment: int) -> None:
    model = Model(count, "pid", [Fault("anew", node, 10, 12) for node in range(1, count)])
    model.fault("slow", *range(1, count), seconds=30)
    model.faults.append(Fault("misled", 0, 7 + moment * TICK))
    model.run(40)
    assert model.restored == []
    model.plant.restart(model.now())
    model.run(30)
    assert model.restored == [Cause.RESTARTED]


@pytest.mark.parametrize(("form", "twin"), [("pid", -500.0), ("uptime", -500.0), ("uptime", -9_000.0)])
def test_where_two_answered_by_turns_and_one_ended_whoever_is_left_alone_takes_the_other_for_restarted(
    form: str, twin: float
) -> None:
    """While a node is merely silent, it may read the one that was known. Whichever of them is the older, a cause is
    told."""
    model = Model(2, form, [Fault("misled", 0, 5)])
    model.plant.twin = twin
    model.run(30)
    model.fault("stopped", 1)
    model.run(120)
    assert model.restored == []
    model.record.said.end("1")
    model.run(10)
    assert model.restored == [Cause.RESTARTED]


@pytest.mark.parametrize("form", FORMS)
def test_a_node_whose_colleagues_are_dead_finds_a_restart_at_once(form: str) -> None:
    model = Model(3, form)
    model.fault("stopped", 1, 2)
    model.run(4)
    model.record.said.end("1", "2")
    model.plant.restart(model.now())
    model.run(8)
    assert model.restored == [Cause.RESTARTED]


@pytest.mark.parametrize("form", FORMS)
def test_a_node_whose_colleagues_are_silent_finds_a_restart_all_the_same(form: str) -> None:
    model = Model(3, form)
    model.fault("stopped", 1, 2)
    model.plant.restart(model.now())
    model.run(3 + 10 + 6)
    assert model.restored == [Cause.RESTARTED]


def test_a_restart_that_most_see_is_restored_though_the_known_process_is_the_misled_node_s() -> None:
    model = Model(3, "pid", [Fault("misled", 0, 5)])
    model.run(2)
    model.fault("anew", 1, 2, seconds=60)
    model.record.said.end("1", "2")
    model.run(60)
    assert model.record.servers[NAME].process_os_pid == "999"
    model.run(60)
    before = len(model.restored)
    for number in (1, 2):
        model.plant.restart(model.now())
        model.run(40)
        assert len(model.restored) == before + number


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_clock_that_was_set_is_no_restart_also_where_several_look(count: int) -> None:
    """All find the uptime of the same process another one."""
    model = Model(count, "uptime")
    model.run(10)
    model.plant.began = -1_000.0
    model.run(60)
    assert model.restored == []
    assert model.record.servers[NAME].disputed is None


@pytest.mark.parametrize("form", ["pid", "uptime"])
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("count", "kind"), [(2, ""), (3, "stopped"), (3, "silent"), (3, "anew"), (5, "stopped")]
)
def test_a_loss_is_found_though_a_node_goes_on_reading_the_process_that_it_is_misled_to(
    count: int, kind: str, lines: bool, form: str
) -> None:
    """Of the others all but one are not heard meanwhile."""
    model = Model(count, form, [Fault("misled", 0, 5)], lines=lines)
    model.run(30)
    if kind:
        model.fault(kind, *range(2, count), seconds=60)
        model.run(5)
    model.plant.kill()
    model.run(5 + 2 + 3 + 10)
    assert model.restored == [Cause.UNREACHABLE]
    model.run(60)
    assert model.restored == [Cause.UNREACHABLE], "it is not back"


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("count", [2, 3])
def test_that_the_process_of_a_misled_node_ends_says_nothing_of_the_known_one(
    count: int, seconds: int
) -> None:
    """Also while those who read the known one are stopped."""
    model = Model(count, "pid", [Fault("misled", 0, 5)])
    model.run(30)
    model.fault("stopped", *range(1, count), seconds=seconds)
    model.run(15)
    model.plant.twin = None
    model.run(90)
    assert model.restored == []


@pytest.mark.parametrize("form", ["pid", "uptime"])
@pytest.mark.parametrize("kind", ["", "anew"])
@pytest.mark.parametrize("count", [2, 3])
def test_behind_a_balancer_whoever_reaches_one_of_the_processes_reaches_the_server(
    count: int, kind: str, form: str
) -> None:
    """So a node that is cut off is outvoted, also where it has just been started and does not know of the balancer."""
    model = Model(count, form, [Fault("turns", node, 0) for node in range(count)])
    model.run(60)
    assert model.restored == []
    model.fault("cut", 0)
    if kind:
        model.fault(kind, 0, seconds=2)
    model.run(120)
    assert model.restored == []


@pytest.mark.parametrize("kind", ["silent", "stopped"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_node_that_alone_is_heard_waits_before_it_takes_a_server_for_lost_that_it_does_not_reach(
    count: int, kind: str
) -> None:
    """The way to the Chat Servers may be cut together with that to the others, or to the database."""
    model = Model(count, "pid")
    model.fault("cut", 0, seconds=60)
    model.fault(kind, *range(1, count), seconds=9)
    model.run(60)
    assert model.restored == []


@pytest.mark.parametrize("kind", ["silent", "stopped"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_node_that_alone_is_heard_restores_in_the_end_what_it_does_not_reach(count: int, kind: str) -> None:
    """Nobody else speaks for these chats. If they were well they are pinged once more than need be, and once when
    the others are back; else nobody would restore them."""
    model = Model(count, "pid")
    model.fault("cut", 0, seconds=90)
    model.fault(kind, *range(1, count), seconds=60)
    model.run(3 + 10 + 2)
    assert model.restored == [Cause.UNREACHABLE]
    model.run(120)
    assert model.restored == [Cause.UNREACHABLE, Cause.RETURNED]
    model.plant.kill()
    model.fault(kind, *range(1, count), seconds=60)
    model.run(3 + 10 + 2)
    assert model.restored == [Cause.UNREACHABLE, Cause.RETURNED, Cause.UNREACHABLE]


@pytest.mark.parametrize("count", [2, 3])
def test_who_has_been_alone_for_long_does_not_wait(count: int) -> None:
    model = Model(count, "pid")
    model.fault("stopped", *range(1, count))
    model.run(20)
    model.plant.kill()
    model.run(5 + 2 + 1)
    assert model.restored == [Cause.UNREACHABLE]


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("kind", ["misled", "cut"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_node_that_is_back_from_an_outage_is_missed_until_it_has_said_something(
    count: int, kind: str, moment: int
) -> None:
    """It has another number then. Who does not reach the server, or is led elsewhere, must not take it for gone."""
    model = Model(count, "pid", [Fault(kind, count - 1, 5, 200)])
    model.run(60)
    model.fault("silent", *range(count - 1), seconds=9 + moment * TICK)
    model.run(60)
    assert model.restored == []
