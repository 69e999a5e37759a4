"""The customers' pages rehearsed before they come: will this host carry their polls?

A stand-in plant, a real `asyncchatd run` with a gateway, and so many chat pages in a process of their own: each polls
over its own connection, as pages do that nobody wrote for asyncchatd. Agents write, and a Chat Server is killed
half-way. How soon polls were answered and messages seen, how many polls reached GMS, and what the daemon took of the
host is measured and judged.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asyncchatd.config import ControlSettings, ReceiverSettings
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.listening import affordable_connections
from asyncchatd.model import durations
from asyncchatd.rehearsing.pages import SPOKEN, Asked, PageOf, Polled
from asyncchatd.rehearsing.trial import (
    Daemon,
    Keys,
    Story,
    TrialError,
    meanwhile,
    register,
    rules,
    running_daemon,
)
from asyncchatd.rehearsing.tuning import Tuned, of_gateway
from asyncchatd.standin import PlantSettings, Report, StandIn, chat_servers, percentiles
from asyncchatd.terminal.screens import Screen, show

QUIET_SECONDS = 3.0
"""After the last message, for the pages to see it."""

WRITING_PAUSE_SECONDS = 0.05

A_MESSAGE_EVERY = 300.0
"""Seconds between two messages of an agent in one chat, unless somebody says otherwise."""

AIMED_AT_GMS = 0.006
"""Share of the polls that may reach GMS."""

AIMED_LATE = 0.05
"""Seconds by which an answer may be late, of 99 in 100."""

BUSY = 0.85
"""Of a processor: a process that takes more has nothing left for the next moment."""

COMFORTABLE = 0.6
"""Of a processor: so much a day's busiest hour may take."""


@dataclass(frozen=True, slots=True)
class PollersPlan:
    """What is rehearsed. Durations are seconds."""

    pages: int = 20_000
    pause: float = 3.0
    """Between an answer and the next poll of a page, as Genesys' widgets have it."""
    seconds: float = 30.0
    """How long is measured."""
    messages_per_second: float | None = None
    """Agents' messages; `None` is one for each chat in five minutes."""
    servers: int = 4
    tuned: Tuned = field(default_factory=Tuned)
    gateway: Keys = field(default_factory=lambda: of_gateway(None))
    """The settings of `[gateway]` that polls go by, as a file has them."""

    @property
    def hold(self) -> float:
        """For how long a poll without news is held."""
        return durations.parse(str(self.gateway["hold"])).total_seconds()

    @property
    def max_connections(self) -> int:
        """How many pages the gateway has room for."""
        return int(str(self.gateway["max_connections"]))

    @property
    def messages(self) -> float:
        """Agents' messages per second."""
        return self.pages / A_MESSAGE_EVERY if self.messages_per_second is None else self.messages_per_second


class Limit(StrEnum):
    """What held the pages up."""

    NONE = "none"
    PROCESSOR = "processor"
    PAGES = "pages"
    CONNECTIONS = "connections"
    PUSHES = "pushes"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured. Durations are seconds, shares are of 1."""

    pages: int
    seconds: float
    polls: int
    late_p50: float | None
    late_p99: float | None
    """How much later than its hold a poll without news was answered."""
    messages: int
    seen: int
    seen_p50: float | None
    seen_p95: float | None
    seen_max: float | None
    """How old an agent's message was when its page had it."""
    at_gms: int
    """Refreshes that acknowledge no push, and restore nothing."""
    failed: int
    cut: int
    ended: int
    processor: float | None
    """Share of one that the daemon took."""
    memory: int | None
    """Bytes that it has."""
    grown: int | None
    """Bytes that it has more than before there were pages."""
    own_processor: float
    own_lag: float

    @property
    def share_at_gms(self) -> float:
        """Of all polls."""
        return self.at_gms / self.polls if self.polls else 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """What the pages come to."""

    limit: Limit
    why: str
    advice: str


def judge(seen: Seen) -> Judged:
    """What held the pages up, and what to do."""
    polls = f"{seen.polls / seen.seconds:,.0f} polls/s"
    if seen.cut or seen.failed or seen.ended:
        return Judged(
            Limit.CONNECTIONS,
            f"{seen.cut:,} connections were closed under a page, {seen.failed:,} answers were none, and"
            f" {seen.ended:,} pages were told that their chat is over.",
            "The log of the daemon says why (--keep); gateway.max_connections, and LimitNOFILE= of its unit, come"
            " first.",
        )
    if seen.own_processor >= BUSY and (seen.processor is None or seen.processor < BUSY):
        return Judged(
            Limit.PAGES,
            f"The pages' own process took {seen.own_processor * 100:.0f} % of a processor for {polls}: it is what was"
            " slow, not the daemon.",
            "Rehearse with fewer pages, or on a larger machine; this says nothing against the host.",
        )
    if seen.processor is not None and seen.processor >= BUSY:
        return Judged(
            Limit.PROCESSOR,
            f"The daemon took {seen.processor * 100:.0f} % of a processor for {polls}: it has one, and no more.",
            f"Let pages ask more rarely, or set gateway.hold higher: about {_carried(seen):,} pages that ask as these"
            " do leave it room.",
        )
    if seen.share_at_gms > AIMED_AT_GMS:
        return Judged(
            Limit.PUSHES,
            f"{seen.at_gms:,} Refreshes reached GMS that acknowledge no push, {seen.share_at_gms * 100:.2f} % of the"
            " polls.",
            "gateway.check_interval says how often a chat is looked at whose page is open.",
        )
    if seen.late_p99 is not None and seen.late_p99 > AIMED_LATE:
        return Judged(
            Limit.MACHINE,
            f"One poll in a hundred was {durations.measured(seen.late_p99)} late though no process was busy.",
            "Daemon, plant and pages share this machine: rehearse on a larger one.",
        )
    room = f", and has room for about {_carried(seen):,}" if seen.processor else ""
    took = f" with {seen.processor * 100:.0f} % of a processor" if seen.processor is not None else ""
    return Judged(
        Limit.NONE, f"The daemon answered {polls}{took}.", f"This host carries {seen.pages:,} pages{room}."
    )


def _carried(seen: Seen) -> int:
    """About how many pages leave the daemon room, in round numbers."""
    assert seen.processor
    pages = round(seen.pages * COMFORTABLE / seen.processor)
    digits = int("1".ljust(len(str(pages)) - 1, "0"))
    return pages // digits * digits


@dataclass(frozen=True, slots=True)
class PollersResult:
    """What came of it."""

    plan: PollersPlan
    seen: Seen
    report: Report
    exit_status: int

    @property
    def verdict(self) -> Judged:
        """What held the pages up."""
        return judge(self.seen)

    @property
    def broken(self) -> int:
        """Requests that break a rule of the Chat API."""
        return self.report.wrong_key_requests + sum(rules(self.report).values())

    @property
    def well(self) -> bool:
        """Whether nothing held the pages up, each message was seen, and no customer was lost."""
        lost = self.report.sessions_lost + self.broken + self.seen.messages - self.seen.seen
        return self.verdict.limit is Limit.NONE and not lost and self.exit_status == 0

    def shown(self) -> dict[str, object]:
        """For programs."""
        plan = {name: value for name, value in asdict(self.plan).items() if name not in ("tuned", "gateway")}
        return {
            "well": self.well,
            "verdict": asdict(self.verdict),
            "plan": plan,
            "settings": {**self.plan.tuned.sections(), "gateway": dict(self.plan.gateway)},
            "seen": asdict(self.seen),
            "report": asdict(self.report),
            "exit_status": self.exit_status,
        }


def check_room(plan: PollersPlan) -> None:
    """Raises `TrialError` where so many pages cannot be: too few open files, ports, or connections allowed."""
    if plan.pages > plan.max_connections:
        raise TrialError(
            f"gateway.max_connections is {plan.max_connections:,}: with {plan.pages:,} pages connections would be"
            " closed again and again. Set it higher in the configuration, or rehearse with fewer --pollers"
        )
    beside = [each.model_fields["max_connections"].default for each in (ReceiverSettings, ControlSettings)]
    affordable, why, _ = affordable_connections(plan.max_connections, beside)
    if plan.pages > affordable:
        raise TrialError(
            f"{plan.pages:,} pages do not fit: gateway.max_connections is {why}. Allow more open files (ulimit -Hn), or"
            " rehearse with fewer --pollers"
        )
    ports = _ports()
    if ports is not None and plan.pages > ports:
        raise TrialError(
            f"{plan.pages:,} pages need a port each on this host, which has {ports:,}: widen"
            " net.ipv4.ip_local_port_range for the rehearsal, or rehearse with fewer --pollers"
        )


def _ports() -> int | None:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except (OSError, ValueError):
        return None
    return int(high) - int(low)


async def rehearse(plan: PollersPlan, console: Screen, directory: Path) -> PollersResult:
    """Play it through and show what came of it; configuration, database and log go to `directory`. `check_room` first.

    Raises `TrialError` when the daemon does not start or dies. Leaves no process behind, also when cancelled.
    """
    story = Story(console)
    sections = {**plan.tuned.sections(), "gateway": {"node_group": "rehearsal", **plan.gateway}}
    async with StandIn(PlantSettings(servers=chat_servers(plan.servers))) as plant:
        plant.plant.start_chats(plan.pages)
        story.tells(f"A stand-in plant is up: {plan.servers} Chat Servers with {plan.pages:,} chats.")
        async with running_daemon(plant, sections, directory) as daemon:
            story.tells(f"asyncchatd runs, process {daemon.pid}, with a gateway at {daemon.gateway}.")
            async with ControlClient(daemon.control) as control:
                await register(story, control, plant)
            seen, report = await _poll(story, plan, plant, daemon)
        result = PollersResult(plan, seen, report, daemon.exit_status)
    show(console, shown(result))
    return result


async def _poll(story: Story, plan: PollersPlan, plant: StandIn, daemon: Daemon) -> tuple[Seen, Report]:
    service = plant.plant.settings.service
    url = urlsplit(daemon.gateway)
    assert url.hostname is not None
    assert url.port is not None
    sessions = list(plant.plant.sessions.values())
    asked = Asked(
        host=url.hostname,
        port=url.port,
        path=f"{url.path}/2/chat/{service}",
        pause=plan.pause,
        hold=plan.hold,
        pages=[
            PageOf(each.chat_id, each.user_id, each.secure_key, each.alias, each.next_index)
            for each in sessions
        ],
    )
    before = _memory(daemon.pid)
    async with _pages(asked) as pages:
        await pages.ask(b"begin")
        story.tells(f"{plan.pages:,} pages are open, and poll every {plan.pause:g} s.")
        await asyncio.sleep(plan.pause + plan.hold + 1)  # each has asked for the first time
        daemon.check()
        plant.plant.reset_report()
        await pages.ask(b"begin")
        began, worked = time.monotonic(), _processor(daemon.pid)
        written = await _agents_and_a_loss(story, plan, plant, daemon)
        told = await pages.ask(b"end")
        seconds = time.monotonic() - began
        after = _processor(daemon.pid)
        memory = _memory(daemon.pid)
    report = plant.plant.report()
    worked_share = None if worked is None or after is None else (after - worked) / seconds
    return _seen(plan, told, report, written, seconds, worked_share, (before, memory)), report


async def _agents_and_a_loss(story: Story, plan: PollersPlan, plant: StandIn, daemon: Daemon) -> int:
    """Agents write, and half-way a Chat Server is killed. How many messages there were."""
    written = 0

    async def write() -> None:
        nonlocal written
        owed = 0.0
        while True:
            owed += plan.messages * WRITING_PAUSE_SECONDS
            for session in plant.plant.chats.some(int(owed)):
                written += plant.plant.say(session, f"{SPOKEN}{time.monotonic():.6f}")
            owed -= int(owed)
            await asyncio.sleep(WRITING_PAUSE_SECONDS)

    async with meanwhile(write()):
        await asyncio.sleep(plan.seconds / 2)
        [lost, *_] = plant.health_urls
        concerned = len(plant.plant.servers[lost].process.sessions)
        plant.plant.servers.kill(lost)
        story.tells(f"Killed: {lost}, with the chats of {concerned:,} pages.", style="bold red")
        await asyncio.sleep(plan.seconds / 2)
        daemon.check()
    await asyncio.sleep(plan.pause + plan.hold + QUIET_SECONDS)
    return written


def _seen(
    plan: PollersPlan,
    told: Polled,
    report: Report,
    written: int,
    seconds: float,
    processor: float | None,
    memory: tuple[int | None, int | None],
) -> Seen:
    before, after = memory
    refreshes = report.requests_by_operation.get("refresh", 0)
    late_p50, late_p99 = percentiles(told.late, 0.5, 0.99)
    seen_p50, seen_p95, seen_max = percentiles(told.seen, 0.5, 0.95, 1.0)
    return Seen(
        pages=plan.pages,
        seconds=round(seconds, 3),
        polls=told.answered,
        late_p50=late_p50,
        late_p99=late_p99,
        messages=written,
        seen=len(told.seen),
        seen_p50=seen_p50,
        seen_p95=seen_p95,
        seen_max=seen_max,
        at_gms=max(0, refreshes - report.acknowledged - report.restored),
        failed=told.failed,
        cut=told.cut,
        ended=told.ended,
        processor=None if processor is None else round(processor, 3),
        memory=after,
        grown=None if before is None or after is None else after - before,
        own_processor=round(told.processor / seconds, 3),
        own_lag=round(told.lag, 3),
    )


# -- processes -------------------------------------------------------------------------------------


class _Pages:
    """The process with the pages."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, word: bytes) -> Polled:
        """Tell it this, and what it saw since."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + b"\n")
        try:
            line = await self._process.stdout.readline()
            return msgspec.json.decode(line, type=Polled)
        except (ValueError, OSError):
            raise TrialError("the process with the pages ended by itself") from None


@asynccontextmanager
async def _pages(asked: Asked) -> AsyncIterator[_Pages]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from asyncchatd.rehearsing.pages import run; run()"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 30,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(asked) + b"\n")
        yield _Pages(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _processor(pid: int) -> float | None:
    """Seconds of a processor that a process has taken; `None` where that is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int | None:
    """Bytes of memory that a process has; `None` where that is not told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


# -- the end ---------------------------------------------------------------------------------------


def shown(result: PollersResult) -> Group:
    """Table and verdict."""
    verdict = result.verdict
    said = Text.assemble(
        (f"Bottleneck: {verdict.limit.value}\n", "bold"),
        f"{verdict.why}\n",
        (verdict.advice, "bold green" if result.well else "bold yellow"),
    )
    return Group(Text(), _table(result), Text(), said)


def _table(result: PollersResult) -> Table:
    seen = result.seen
    took = "not known" if seen.processor is None else f"{seen.processor * 100:.0f} % of a processor"
    if seen.memory is not None and seen.grown is not None:
        took += f", {seen.memory / 1e6:,.0f} MB, {max(0, seen.grown) / seen.pages / 1000:.1f} KB a page"
    rows: Mapping[str, str] = {
        "pages": f"{seen.pages:,}",
        "polls answered": f"{seen.polls:,}, {seen.polls / seen.seconds:,.0f} a second",
        "later than held (p50, p99)": _all(seen.late_p50, seen.late_p99),
        "agents' messages on their pages": f"{seen.seen:,} of {seen.messages:,}",
        "after (p50, p95, last)": _all(seen.seen_p50, seen.seen_p95, seen.seen_max),
        "polls that reached GMS": f"{seen.at_gms:,}, {seen.share_at_gms * 100:.2f} %",
        "chats restored": f"{result.report.restored:,}",
        "chats lost": f"{result.report.sessions_lost:,}",
        "requests that break a rule": f"{result.broken:,}",
        "answers that were none, connections closed": f"{seen.failed:,}, {seen.cut:,}",
        "the daemon took": took,
        "the pages' own process took": f"{seen.own_processor * 100:.0f} % of a processor",
    }
    table = Table(
        title="What customers, GMS and this host would see", title_justify="left", title_style="bold"
    )
    table.add_column("")
    table.add_column("", justify="right")
    for what, how in rows.items():
        table.add_row(what, how)
    table.show_header = False
    return table


def _all(*values: float | None) -> str:
    return ", ".join(durations.measured(each) for each in values)
