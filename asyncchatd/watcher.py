"""The health watcher: notices that a Chat Server is gone, and makes its sessions due.

`step` is the whole judgement, a pure function of what was known and what was seen; the loop around
it only reads pages and acts on what `step` says. The words are HAProxy's: `fall` failed reads in a
row make a server down, `rise` good ones make it up again, and while in doubt it is read faster.

The pair (`app_dbid`, `process_os_pid`) is stored. A server that is another process than before has
lost its sessions, also when nobody was looking while it happened.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from asyncchatd import metrics, restoration
from asyncchatd.clock import Clock
from asyncchatd.config import ChatServerSettings, Settings, WatcherSettings
from asyncchatd.health import HealthPages, Page, Seen, Unreachable, Unreadable
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Cause, ChatServer, Ms, ServerState
from asyncchatd.stores import Store, StoreError, tell_failure
from asyncchatd.wire.health import HealthPage

JITTER = 0.1
START_TOLERANCE_SECONDS = 3.0
"""A start time wavers by rounding; a restart moves it further."""
UPTIME_TOLERANCE_SECONDS = 60.0
"""A start time computed from an uptime wavers by the uptime's unit, which may be minutes."""
STALL_PAUSE_SECONDS = 0.1
STORE_PAUSE_SECONDS = 1.0
"""Between two tries when the store cannot be written."""

log = get_logger()


# -- the judgement -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of one Chat Server between two reads."""

    server: ChatServer
    configured_alias: str | None = None
    failures: int = 0
    """Reads in a row that reached nobody."""
    successes: int = 0
    """Good reads in a row while down."""
    changed: HealthPage | None = None
    """A page of another process than the known one, to be confirmed by one more read."""
    uptime: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    unreadable: bool = False
    otherwise: bool = False
    """The page says another `app_dbid` than is configured, which is what counts."""

    @property
    def alias(self) -> str | None:
        """Whose sessions are concerned."""
        return self.configured_alias or self.server.app_dbid


class Turn(Enum):
    """What happened between two reads, for the log."""

    UP = auto()
    SUSPECT = auto()
    DOWN = auto()
    RESTARTED = auto()
    UNREADABLE = auto()
    IDENTITY = auto()


@dataclass(frozen=True, slots=True)
class Lost:
    """The sessions of this alias must be pinged."""

    alias: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one read."""

    watch: Watch
    turns: tuple[Turn, ...] = ()
    lost: tuple[Lost, ...] = ()
    why: str | None = None


def first_watch(remembered: ChatServer | None, configured: ChatServerSettings, now: Ms) -> Watch:
    """Where watching starts. A server that was down when the daemon stopped is still down, its
    restoration is in the store; of any other it is open whether it still is what it was."""
    server = remembered or ChatServer(configured.name, since=now)
    if server.state is not ServerState.DOWN:
        server = replace(server, state=ServerState.UNKNOWN, since=now)
    return Watch(server, configured.app_dbid)


def step(watch: Watch, seen: Seen, *, fall: int, rise: int, now: Ms) -> Step:
    """One read's consequences."""
    watch = replace(watch, server=replace(watch.server, checked_at=now))
    match seen:
        case Unreachable(why):
            return _failed(watch, why, fall, now)
        case Unreadable(why):
            return _unreadable(watch, why, rise, now)
        case Page(page):
            return _read(watch, page, rise, now)


def _failed(watch: Watch, why: str, fall: int, now: Ms) -> Step:
    state = watch.server.state
    watch = replace(watch, failures=watch.failures + 1, successes=0, changed=None, unreadable=False)
    if state is ServerState.DOWN:
        return Step(_in_state(watch, state, now, why))
    if watch.failures < fall:
        turns = (Turn.SUSPECT,) if state is ServerState.UP else ()
        return Step(_in_state(watch, ServerState.SUSPECT, now, why), turns, why=why)
    lost = _lost(watch.alias, Cause.UNREACHABLE)
    return Step(_in_state(watch, ServerState.DOWN, now, why), (Turn.DOWN,), lost, why)


def _unreadable(watch: Watch, why: str, rise: int, now: Ms) -> Step:
    turns = () if watch.unreadable else (Turn.UNREADABLE,)
    watch = replace(watch, failures=0, changed=None, unreadable=True)
    if watch.server.state is ServerState.DOWN:
        rising = _rising(watch, None, rise, now)
        return replace(rising, turns=(*turns, *rising.turns), why=why)
    return Step(_in_state(watch, ServerState.UP, now, why), turns, why=why)


def _read(watch: Watch, page: HealthPage, rise: int, now: Ms) -> Step:
    otherwise = _differ(watch.configured_alias, page.app_dbid)
    told = (Turn.IDENTITY,) if otherwise and not watch.otherwise else ()
    watch = replace(watch, failures=0, unreadable=False, otherwise=otherwise)
    result = _judge(watch, page, rise, now)
    if told:
        why = f"configured is {watch.configured_alias}, the page says {page.app_dbid}"
        return replace(result, turns=(*told, *result.turns), why=result.why or why)
    return result


def _judge(watch: Watch, page: HealthPage, rise: int, now: Ms) -> Step:
    if watch.server.state is ServerState.DOWN:
        return _rising(watch, page, rise, now)
    why = _another_process(watch, page)
    if why is None:
        turns = () if watch.server.state is ServerState.UP else (Turn.UP,)
        return Step(_in_state(_learned(replace(watch, changed=None), page), ServerState.UP, now, None), turns)
    if watch.changed is None or _another_page(watch.changed, page):
        return Step(
            _in_state(replace(watch, changed=page), ServerState.SUSPECT, now, why), (Turn.SUSPECT,), why=why
        )
    return _restarted(watch, page, why, now)


def _restarted(watch: Watch, page: HealthPage, why: str, now: Ms) -> Step:
    after = _in_state(_learned(replace(watch, changed=None), page, another=True), ServerState.UP, now, None)
    return Step(after, *_another(watch, after), why)


def _another(watch: Watch, after: Watch) -> tuple[tuple[Turn, ...], tuple[Lost, ...]]:
    """What it means that another process answers than the known one."""
    if watch.alias is not None and watch.alias != after.alias:
        return (Turn.IDENTITY,), (Lost(watch.alias, Cause.REPLACED),)
    return (Turn.RESTARTED,), _lost(after.alias, Cause.RESTARTED)


def _lost(alias: str | None, cause: Cause) -> tuple[Lost, ...]:
    return () if alias is None else (Lost(alias, cause),)


def _rising(watch: Watch, page: HealthPage | None, rise: int, now: Ms) -> Step:
    """Back after having been down. Whether it is the same process or another, what its sessions
    went through meanwhile is uncertain, so they are pinged."""
    watch = replace(watch, successes=watch.successes + 1)
    if watch.successes < rise:
        return Step(watch)
    why = None if page is None else _another_process(watch, page)
    after = watch if page is None else _learned(watch, page, another=why is not None)
    after = _in_state(replace(after, successes=0), ServerState.UP, now, None)
    if why is not None:
        return Step(after, *_another(watch, after), why)
    # A server that was never seen up tells only now whose sessions have been waiting.
    return Step(after, (Turn.UP,), _lost(after.alias, Cause.RETURNED))


def _another_process(watch: Watch, page: HealthPage) -> str | None:
    """Why this page is not of the process known so far; `None` when it may well be."""
    known = watch.server
    if watch.configured_alias is None and _differ(known.app_dbid, page.app_dbid):
        return f"app_dbid {known.app_dbid} became {page.app_dbid}"
    if _differ(known.process_os_pid, page.process_os_pid):
        return f"process_os_pid {known.process_os_pid} became {page.process_os_pid}"
    # Containers always have the same process id; then the page's own times and counters tell.
    if watch.uptime is not None and page.uptime is not None and page.uptime < watch.uptime:
        return "its uptime ran backwards"
    started, tolerance = _start(page, known.checked_at)
    if known.started is not None and started is not None and started > known.started + tolerance:
        return "its start time is a later one"
    for name, value in page.counters.items():
        if value < watch.counters.get(name, value):
            return f"its counter {name} ran backwards"
    return None


def _start(page: HealthPage, now: Ms) -> tuple[float | None, float]:
    """When the process began, epoch seconds, and how far that may waver."""
    if page.started is not None:
        return page.started, START_TOLERANCE_SECONDS
    if page.uptime is not None:
        return now / 1000 - page.uptime, UPTIME_TOLERANCE_SECONDS
    return None, 0.0


def _another_page(one: HealthPage, other: HealthPage) -> bool:
    return (one.app_dbid, one.process_os_pid) != (other.app_dbid, other.process_os_pid)


def _differ(known: str | None, said: str | None) -> bool:
    return known is not None and said is not None and known != said


def _learned(watch: Watch, page: HealthPage, *, another: bool = False) -> Watch:
    started, _ = _start(page, watch.server.checked_at)
    server = replace(
        watch.server,
        app_dbid=watch.configured_alias or page.app_dbid or watch.server.app_dbid,
        process_os_pid=page.process_os_pid or watch.server.process_os_pid,
        started=started if watch.server.started is None or another else watch.server.started,
    )
    return replace(watch, server=server, uptime=page.uptime, counters=page.counters)


def _in_state(watch: Watch, state: ServerState, now: Ms, detail: str | None) -> Watch:
    since = watch.server.since if watch.server.state is state else now
    return replace(watch, server=replace(watch.server, state=state, since=since, detail=detail))


def _without_times(server: ChatServer) -> ChatServer:
    """Another description may name another counter for the start time: it would look like a restart."""
    return replace(server, started=None)


def pause(watch: Watch, settings: WatcherSettings) -> float:
    """Seconds until the next read, before jitter: faster while in doubt."""
    doubtful = watch.failures > 0 and watch.server.state is not ServerState.DOWN
    if doubtful or watch.successes > 0 or watch.changed is not None:
        return settings.fast_interval.total_seconds()
    return settings.interval.total_seconds()


# -- the loops -----------------------------------------------------------------------------------


class Watcher:
    """Root task: `run`, which holds one loop per Chat Server."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Clock,
        wakeup: asyncio.Event,
        gms_answers: Callable[[], bool] = lambda: True,
    ) -> None:
        """`gms_answers` says whether any GMS node is in good standing."""
        self._gms_answers = gms_answers
        self._stalled_at = float("-inf")
        self._suspected = False
        self._store = store
        self._settings = settings
        self._clock = clock
        self._wakeup = wakeup
        self._tls = settings.gms.tls()
        self._configured = {server.name: server for server in settings.chat_servers}
        self._watches: dict[str, Watch] = {}
        self._remembered: dict[str, ChatServer] = {}
        """Servers that are in the store and not watched."""
        self._look = {name: asyncio.Event() for name in self._configured}
        self._look_by: dict[str, float] = {}
        """When each server's page must be looked at, or its reading be over, at the latest."""
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the stored pairs. Before `run`."""
        self._remembered = {server.name: server for server in await self._store.servers()}
        for configured in self._configured.values():
            self._begin(configured)

    async def run(self) -> None:
        """Watch every configured Chat Server until cancelled."""
        async with HealthPages() as pages, asyncio.TaskGroup() as loops:
            loops.create_task(self._resume())
            running: dict[str, asyncio.Task[None]] = {}
            while True:
                for name in self._configured:
                    if name not in running or running[name].done():
                        running[name] = loops.create_task(self._attend(pages, name), name=f"watch {name}")
                self._changed.clear()
                await self._changed.wait()

    def reload(self, settings: Settings, tls: ssl.SSLContext) -> None:
        """Watch these servers, in this way, from now on; each is looked at soon. Servers that are described
        as before keep their standing. Another description is judged as after a start: the stored pair
        tells whether it is another process."""
        before = self._configured
        self._settings, self._tls = settings, tls
        self._configured = {server.name: server for server in settings.chat_servers}
        for name in before.keys() - self._configured.keys():
            self._remembered[name] = self._watches.pop(name).server
            self._look_by.pop(name, None)
            self._look.pop(name).set()  # its loop ends
            with suppress(KeyError):  # it was never looked at
                metrics.SERVER_UP.remove(name)
        for name, configured in self._configured.items():
            if configured != before.get(name):
                if watch := self._watches.pop(name, None):
                    self._remembered[name] = _without_times(watch.server)
                self._begin(configured)
            self._look.setdefault(name, asyncio.Event()).set()
        self._watches = {name: self._watches[name] for name in self._configured}
        self._changed.set()

    def _begin(self, configured: ChatServerSettings) -> None:
        remembered = self._remembered.pop(configured.name, None)
        self._watches[configured.name] = first_watch(remembered, configured, self._clock.now())

    def overdue(self) -> float:
        """Seconds by which the tardiest look at a Chat Server is late; 0 while all keep their times."""
        now = self._clock.monotonic()
        return max((now - by for by in self._look_by.values()), default=0.0)

    async def _resume(self) -> None:
        for server in list(self._remembered.values()):
            await self._disown(server)
        while True:
            try:
                return await restoration.resume(self._store, self._wakeup, self._clock)
            except StoreError as error:
                tell_failure(error)
                await self._clock.sleep(STORE_PAUSE_SECONDS)

    def servers(self) -> list[ChatServer]:
        """All watched servers as they stand now."""
        return [replace(watch.server, app_dbid=watch.alias) for watch in self._watches.values()]

    def look_at(self, alias: str) -> None:
        """Something else hints that this Chat Server is in trouble: read its page at once."""
        for name, watch in self._watches.items():
            if watch.alias == alias:
                self._look[name].set()

    def stalled(self) -> None:
        """The daemon itself stood still: what a read saw meanwhile is not held against anybody."""
        self._stalled_at = self._clock.monotonic()

    def _is_our_own_trouble(self, result: Step) -> bool:
        """More than half of the servers gone in one window, and GMS with them: that is our network.
        Judgement waits until either comes back. Without GMS nobody could be restored anyway."""
        if Turn.DOWN not in result.turns:
            return False
        name = result.watch.server.name
        failing = {other for other, watch in self._watches.items() if watch.failures > 0} | {name}
        ours = len(failing) > 1 and 2 * len(failing) > len(self._watches) and not self._gms_answers()
        if ours and not self._suspected:
            cause = f"{len(failing)} of {len(self._watches)} Chat Servers and GMS are unreachable"
            log.warning(Event.SELF_SUSPECTED, server=name, cause=cause)
        self._suspected = ours
        return ours

    async def _attend(self, pages: HealthPages, name: str) -> None:
        """Until it is configured no more."""
        while name in self._configured:
            await self._watch(pages, name)
            if (server := self._remembered.get(name)) is not None:
                await self._disown(server)

    async def _disown(self, server: ChatServer) -> None:
        """Nobody looks at it any more. If it stayed down in the store, every session that comes to its alias
        would be taken for lost for ever, also when it only has another name now."""
        if server.state is ServerState.DOWN and server.name not in self._configured:
            await self._save(replace(server, state=ServerState.UNKNOWN))

    async def _watch(self, pages: HealthPages, name: str) -> None:
        while (configured := self._configured.get(name)) is not None:
            settings, hint = self._settings.watcher, self._look[name]
            hint.clear()
            began = self._clock.monotonic()
            seconds = settings.timeout.total_seconds()
            self._look_by[name] = began + seconds
            seen = await pages.look(configured, seconds, self._tls)
            if self._configured.get(name) != configured:
                continue  # that was the page of another description
            if isinstance(seen, Unreachable) and self._stalled_at >= began:
                log.warning(Event.SELF_SUSPECTED, server=name, cause="the daemon itself stood still")
                await self._clock.sleep(STALL_PAUSE_SECONDS)
                continue
            result = await self._judge(name, configured, seen, settings)
            wait = pause(result.watch, settings) * random.uniform(1 - JITTER, 1 + JITTER)
            if self._configured.get(name) == configured:
                self._look_by[name] = self._clock.monotonic() + wait
            if pause(result.watch, settings) == settings.interval.total_seconds():
                await self._clock.wait(hint, wait)
            else:
                # In doubt already: a hint must not turn `fall` reads into a moment.
                await self._clock.sleep(wait)

    async def _judge(
        self, name: str, configured: ChatServerSettings, seen: Seen, settings: WatcherSettings
    ) -> Step:
        watch = self._watches[name]
        result = step(watch, seen, fall=settings.fall, rise=settings.rise, now=self._clock.now())
        if self._is_our_own_trouble(result):
            result = Step(replace(watch, server=replace(watch.server, checked_at=self._clock.now())))
        self._watches[name] = result.watch
        self._look_by.pop(name, None)  # what follows waits for the store, as long as a disk may be full
        try:
            await self._act(name, watch, result)
        except StoreError as error:
            tell_failure(error)
            self._unsee(name, configured, watch)
        return result

    def _unsee(self, name: str, configured: ChatServerSettings, before: Watch) -> None:
        """A loss that could not be put on record must be noticed again with the next read."""
        now = self._configured.get(name)
        if now == configured:
            self._watches[name] = before
        elif now is not None:
            self._watches[name] = first_watch(_without_times(before.server), now, self._clock.now())

    async def _act(self, name: str, before: Watch, result: Step) -> None:
        """The record of what was lost comes before the new pair: a crash in between finds the
        change once more instead of never."""
        server = result.watch.server
        metrics.SERVER_UP.labels(name).set(server.state in (ServerState.UP, ServerState.SUSPECT))
        for turn in result.turns:
            _log_turn(turn, before, result)
        for lost in result.lost:
            if lost.cause is Cause.REPLACED and self._served_elsewhere(name, lost.alias):
                continue
            await restoration.begin(
                self._store, self._wakeup, self._clock, alias=lost.alias, server=name, cause=lost.cause
            )
        if replace(server, checked_at=before.server.checked_at) != before.server:
            await self._save(replace(server, app_dbid=result.watch.alias))

    async def _save(self, server: ChatServer) -> None:
        """Until it is written: a loss that is on record must not be noticed a second time for it."""
        while True:
            try:
                return await self._store.save_server(server)
            except StoreError as error:
                tell_failure(error)
                await self._clock.sleep(STORE_PAUSE_SECONDS)

    def _served_elsewhere(self, name: str, alias: str) -> bool:
        return any(
            other != name and watch.alias == alias and watch.server.state is ServerState.UP
            for other, watch in self._watches.items()
        )


def _log_turn(turn: Turn, before: Watch, result: Step) -> None:
    named = {"server": result.watch.server.name, "alias": result.watch.alias}
    match turn:
        case Turn.UP:
            log.info(Event.SERVER_UP, **named, process_os_pid=result.watch.server.process_os_pid)
        case Turn.SUSPECT:
            log.warning(Event.SERVER_SUSPECT, **named, cause=result.why)
        case Turn.DOWN:
            log.error(Event.SERVER_DOWN, **named, cause=result.why, attempts=result.watch.failures)
        case Turn.RESTARTED:
            log.error(
                Event.SERVER_RESTARTED,
                **named,
                process_os_pid=result.watch.server.process_os_pid,
                previous_pid=before.server.process_os_pid,
                cause=result.why,
            )
        case Turn.UNREADABLE:
            log.warning(Event.SERVER_UNREADABLE, **named, cause=result.why)
        case Turn.IDENTITY:
            log.error(Event.SERVER_IDENTITY_CHANGED, **named, previous_alias=before.alias, cause=result.why)
