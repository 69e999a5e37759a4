"""The health watcher: notices that a Chat Server is gone, and makes its sessions due.

`step` is the whole judgement, a pure function of what was known and what was seen; the loop around
it only reads pages and acts on what `step` says. The words are HAProxy's: `fall` failed reads in a
row make a server down, `rise` good ones make it up again, and while in doubt it is read faster.

Who answered is stored (`identity.py` tells one process from another). A server that is another process than
before has lost its sessions, also when nobody was looking while it happened. When a process comes *back* there
are two of them behind one address, a balancer's: that is said, and no reason to restore anything, since whoever
answers next says nothing of the other. Each process that appears is the reason for one restoration at most.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto

from asyncchatd.config import ChatServerSettings, Settings, WatcherSettings
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Cause, ChatServer, Clock, Loss, Ms, Process, ServerState, Value, replace
from asyncchatd.stores import Store, StoreError, tell_failure
from asyncchatd.stores import restoring as restoration
from asyncchatd.watcher import identity
from asyncchatd.watcher.identity import Kin
from asyncchatd.watcher.page import HealthPages, Page, Seen, Unreachable, Unreadable, Unseen
from asyncchatd.wire import HealthPage

JITTER = 0.1
STALL_PAUSE_SECONDS = 0.1
ASSUME_SECONDS = 5.0
"""How often it is looked whose sessions a server had that is down and never said who it is."""

STORE_PAUSE_SECONDS = 1.0
"""Between two tries when the store cannot be written."""

STEADY_MS = 10 * 60_000
"""One process must answer alone for so long before an address where several did is believed again."""

BELIEVED_AGAIN_MS = 3_600_000
"""Counters alone tell of one restart an hour: two containers behind one address must not tell of one each time."""

TOLD_AGAIN_MS = 10 * 60_000
"""A server that nobody can look at is spoken of again: whatever becomes of it goes unseen."""

NOTED_AGAIN_MS = 10 * 60_000
"""How old the stored record of a server may become: a restart of the daemon goes on from there."""

DISPUTED = (
    "several processes answer at its health_url by turns: make it the server's own address, not a balancer's"
)

SAY_WHO = "set app_dbid in its [[chat_server]], then reload"

log = get_logger()


# -- the judgement -------------------------------------------------------------------------------


class Together(Enum):
    """Whether the counters of other servers ran backwards together with one's own."""

    ALONE = auto()
    UNKNOWN = auto()
    """Not all of them have been read since."""
    ALL = auto()


class Watch(Value, frozen=True):
    """What is known of one Chat Server between two reads."""

    server: ChatServer
    configured_alias: str | None = None
    failures: int = 0
    """Reads in a row that reached nobody."""
    successes: int = 0
    """Good reads in a row while down."""
    changed: Process | None = None
    """Another process than the known one, to be confirmed by one more read."""
    counters: Mapping[str, float] = {}
    in_doubt: bool = False
    """The counters ran backwards, to be confirmed by one more read."""
    fell_at: Ms | None = None
    """When counters last ran backwards."""
    believed_from: Ms = 0
    """Until then counters alone are not believed: nobody restarts a server that often."""
    ahead: Ms = 0
    """By how much the wall clock was ahead of the steady one at the last page."""
    away: int = 0
    """Pages in a row that were not of the known process."""
    answering: Process | None = None
    alone_since: Ms = 0
    """Since when nobody else has answered."""
    unreadable: bool = False
    unseen: bool = False
    """Nobody could look at it the last time."""
    told: tuple[str, Ms] = ("", 0)
    """Why it could not be looked at, as it was said last, and when by the steady clock."""
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
    UNSEEN = auto()
    IDENTITY = auto()
    DISPUTED = auto()
    COUNTERS = auto()


class Step(Value, frozen=True):
    """The result of one read."""

    watch: Watch
    turns: tuple[Turn, ...] = ()
    lost: tuple[Loss, ...] = ()
    """Their sessions must be pinged."""
    why: str | None = None


class Look(Value, frozen=True):
    """How one read is to be judged."""

    fall: int
    rise: int
    now: Ms
    """Wall clock, for people and the store."""
    steady: Ms
    """What is compared: never set."""
    together: Together


def first_watch(remembered: ChatServer | None, configured: ChatServerSettings, now: Ms) -> Watch:
    """Where watching starts. A server that was down when the daemon stopped is still down, its
    restoration is in the store; of any other it is open whether it still is what it was."""
    server = remembered or ChatServer(configured.name, since=now)
    # Down, but as whose nobody knew: the sessions that are now known to be its own were never made due.
    told = configured.app_dbid is not None and configured.app_dbid != server.app_dbid
    if server.state is not ServerState.DOWN or told:
        server = replace(server, state=ServerState.UNKNOWN, since=now)
    return Watch(server, configured.app_dbid)


def step(
    watch: Watch,
    seen: Seen,
    *,
    fall: int,
    rise: int,
    now: Ms,
    steady: Ms | None = None,
    together: Together = Together.ALONE,
) -> Step:
    """One read's consequences. `steady` is `now` as long as nobody sets the clock."""
    look = Look(fall, rise, now, now if steady is None else steady, together)
    if isinstance(seen, Unseen):
        return _unseen(watch, seen.why, look)
    watch = replace(watch, server=replace(watch.server, checked_at=now), unseen=False)
    match seen:
        case Unreachable(why):
            return _failed(watch, why, look)
        case Unreadable(why):
            return _unreadable(watch, why, look)
        case Page(page):
            return _read(watch, page, look)


def _failed(watch: Watch, why: str, look: Look) -> Step:
    state = watch.server.state
    watch = _calm(replace(watch, failures=watch.failures + 1, successes=0, unreadable=False))
    if state is ServerState.DOWN:
        return Step(_in_state(watch, state, look, why))
    if watch.failures < look.fall:
        turns = (Turn.SUSPECT,) if state is ServerState.UP else ()
        return Step(_in_state(watch, ServerState.SUSPECT, look, why), turns, why=why)
    lost = tuple(Loss(alias, Cause.UNREACHABLE) for alias in _aliases(watch))
    return Step(_in_state(watch, ServerState.DOWN, look, why), (Turn.DOWN,), lost, why)


def _unseen(watch: Watch, why: str, look: Look) -> Step:
    """Nobody could look: all stays as it was, and that is said."""
    before, at = watch.told
    tell = why != before or look.steady - at >= TOLD_AGAIN_MS
    watch = replace(watch, unseen=True, told=(why, look.steady) if tell else watch.told)
    return Step(_in_state(watch, watch.server.state, look, why), (Turn.UNSEEN,) if tell else (), why=why)


def _calm(watch: Watch) -> Watch:
    """Nothing waits to be confirmed."""
    return replace(watch, changed=None, in_doubt=False)


def _aliases(watch: Watch) -> list[str]:
    """Whose sessions are lost when nobody answers any more: of all who answered here by turns."""
    others = watch.server.others if watch.server.disputed else ()
    aliases = (watch.alias, *(other.app_dbid for other in others))
    return list(dict.fromkeys(alias for alias in aliases if alias is not None))


def _unreadable(watch: Watch, why: str, look: Look) -> Step:
    turns = () if watch.unreadable else (Turn.UNREADABLE,)
    watch = _calm(replace(watch, failures=0, unreadable=True))
    if watch.server.state is ServerState.DOWN:
        rising = _rising(watch, None, look)
        return replace(rising, turns=(*turns, *rising.turns), why=why)
    return Step(_in_state(watch, ServerState.UP, look, why), turns, why=why)


def _read(watch: Watch, page: HealthPage, look: Look) -> Step:
    otherwise = identity.differ(watch.configured_alias, page.app_dbid)
    told = (Turn.IDENTITY,) if otherwise and not watch.otherwise else ()
    others = identity.remembered(watch.server.others, now=look.steady)
    server = replace(watch.server, others=others)
    watch = replace(watch, server=server, failures=0, unreadable=False, otherwise=otherwise)
    process = identity.observed(page, look.steady)
    if watch.configured_alias is not None:
        process = replace(process, app_dbid=watch.configured_alias)
    result = _judge(_answered_by(watch, process), process, page, look)
    result = replace(result, watch=replace(result.watch, ahead=look.now - look.steady))
    if told:
        why = f"configured is {watch.configured_alias}, the page says {page.app_dbid}"
        return replace(result, turns=(*told, *result.turns), why=result.why or why)
    return result


def _answered_by(watch: Watch, process: Process) -> Watch:
    alone = watch.answering is not None and identity.is_one(watch.answering, process)
    since = watch.alone_since if alone else process.last_seen
    return replace(watch, answering=process, alone_since=since)


def _judge(watch: Watch, process: Process, page: HealthPage, look: Look) -> Step:
    server = watch.server
    if server.state is ServerState.DOWN:
        return _rising(watch, process, look)
    known, other = identity.known(server), identity.find(server.others, process)
    kin, why = _compared(watch, process, look)
    if kin is Kin.SAME and (other is None or identity.is_rather(process, known, other)):
        return _known(watch, process, page, look)
    if server.disputed is not None:
        return _by_turns(watch, process, other, why, look)
    if other is not None and identity.came_back(server, other):
        return _dispute(watch, process, other, look)
    if kin is Kin.ANOTHER or (other is not None and not other.settled):
        return _another(watch, process, other, why or "its uptime ran backwards", look)
    if kin is Kin.STEPPED:
        # No restart. But should it come back, there are two of them.
        watch = replace(watch, server=replace(server, others=(known, *server.others)))
    return _known(watch, process, page, look)


def _compared(watch: Watch, process: Process, look: Look) -> tuple[Kin, str]:
    ahead = look.now - look.steady
    return identity.compare(
        identity.known(watch.server),
        process,
        ahead=ahead / 1000,
        slept=max(0, ahead - watch.ahead) / 1000,
        any_dbid=watch.configured_alias is not None,
    )


def _known(watch: Watch, process: Process, page: HealthPage, look: Look) -> Step:
    """The known process answered."""
    watch = replace(watch, changed=None, away=0)
    if watch.server.disputed is not None:
        return _steady(_seen_again(replace(watch, counters={}), process), process, look)
    fell = identity.ran_backwards(watch.counters, page.counters)
    if fell is None:
        return _well(_learned(watch, process, page), look)
    why = f"its counter {fell} ran backwards"
    watch = watch if watch.in_doubt else replace(watch, fell_at=look.steady)
    telling = identity.counters_may_tell(identity.known(_seen_again(watch, process).server))
    all_did = watch.in_doubt and look.together is Together.ALL  # before, it speaks of the last time they fell
    if not telling or look.steady < watch.believed_from or all_did:
        # A documented option zeroes all cumulative counters, those of every server at once.
        well = _well(_learned(watch, process, page), look)
        return replace(well, turns=(*well.turns, Turn.COUNTERS), why=why)
    if not watch.in_doubt or look.together is Together.UNKNOWN:
        doubt = replace(_seen_again(watch, process), in_doubt=True)
        turns = () if watch.in_doubt else (Turn.SUSPECT,)
        return Step(_in_state(doubt, ServerState.SUSPECT, look, why), turns, why=why)
    after = _learned(replace(watch, believed_from=look.steady + BELIEVED_AGAIN_MS), process, page)
    after = replace(after, server=replace(after.server, first_seen=look.steady))
    return Step(_in_state(after, ServerState.UP, look, None), *_restarted(watch, after), why)


def _seen_again(watch: Watch, process: Process) -> Watch:
    before = watch.server
    wavers = identity.is_one(Process(started=before.started), Process(started=process.started))
    server = replace(
        identity.takes(before, process),
        app_dbid=watch.configured_alias or process.app_dbid or before.app_dbid,
        # Compared with the first, or it might wander away by rounding.
        started=before.started if wavers or process.started is None else process.started,
        began=before.began if process.began is None else process.began,
        first_seen=before.first_seen or process.first_seen,
    )
    return replace(watch, server=server)


def _learned(watch: Watch, process: Process, page: HealthPage) -> Watch:
    return replace(_seen_again(watch, process), counters=page.counters, in_doubt=False)


def _well(watch: Watch, look: Look) -> Step:
    turns = () if watch.server.state is ServerState.UP else (Turn.UP,)
    return Step(_in_state(watch, ServerState.UP, look, None), turns)


def _another(watch: Watch, process: Process, other: Process | None, why: str, look: Look) -> Step:
    """Another process answered. Once is a doubt, twice in a row a restart."""
    confirmed = watch.changed is not None and identity.is_one(watch.changed, process)
    if other is not None and confirmed:
        return _replaced(watch, process, other, why, look)
    watch = replace(_met(watch, process, other), changed=process, away=watch.away + 1)
    return Step(_in_state(watch, ServerState.SUSPECT, look, why), (Turn.SUSPECT,), why=why)


def _met(watch: Watch, process: Process, other: Process | None) -> Watch:
    """A process that is not the known one is remembered, and when it was seen."""
    if other is not None:
        process = replace(process, first_seen=other.first_seen, settled=other.settled)
    others = (process, *(each for each in watch.server.others if each is not other))
    return replace(watch, server=replace(watch.server, others=others[: identity.MOST_OTHERS]))


def _replaced(watch: Watch, process: Process, other: Process | None, why: str, look: Look) -> Step:
    """Another process has taken the place of the known one; its sessions are lost."""
    after = _in_state(_takes(watch, process, other), ServerState.UP, look, None)
    return Step(after, *_restarted(watch, after), why)


def _takes(watch: Watch, process: Process, other: Process | None) -> Watch:
    server, met = watch.server, other or process
    others = (identity.known(server), *(each for each in server.others if each is not other))
    server = replace(
        identity.takes(server, replace(process, first_seen=met.first_seen)),
        others=others[: identity.MOST_OTHERS],
    )
    return replace(watch, server=server, counters={}, changed=None, in_doubt=False, away=0)


def _restarted(watch: Watch, after: Watch) -> tuple[tuple[Turn, ...], tuple[Loss, ...]]:
    """What it means that another process answers than the known one."""
    several = {other.app_dbid for other in watch.server.others} if watch.server.disputed else set()
    if watch.alias is not None and watch.alias != after.alias and after.alias not in several:
        return (Turn.IDENTITY,), (Loss(watch.alias, Cause.REPLACED),)
    return (Turn.RESTARTED,), _lost(after.alias, Cause.RESTARTED)


def _lost(alias: str | None, cause: Cause) -> tuple[Loss, ...]:
    return () if alias is None else (Loss(alias, cause),)


def _dispute(watch: Watch, process: Process, other: Process, look: Look) -> Step:
    """A process came back after another had answered: there are two behind this address. Whichever answers
    next says nothing of the other, so from here on only a process never seen before is a restart."""
    watch = replace(_met(watch, process, other), changed=None, away=watch.away + 1)
    watch = replace(watch, server=replace(watch.server, disputed=look.steady))
    why = f"{_named(identity.known(watch.server))} and {_named(process)} answer by turns"
    return Step(_in_state(watch, ServerState.UP, look, None), (Turn.DISPUTED,), why=why)


def _named(process: Process) -> str:
    since = process.started or process.began
    born = ""
    if since is not None:
        with suppress(ValueError, OverflowError, OSError):  # an uptime in another unit, for instance: no date
            born = f" started {datetime.fromtimestamp(since, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"process_os_pid {process.process_os_pid} of app_dbid {process.app_dbid}{born}"


def _by_turns(watch: Watch, process: Process, other: Process | None, why: str, look: Look) -> Step:
    """Several processes are known to answer here, and it was not the one that is taken for this server."""
    watch = replace(_met(watch, process, other), away=watch.away + 1)
    met = watch.server.others[0]
    assert watch.server.disputed is not None
    twice = other is not None and not other.settled
    fresh = met.first_seen > watch.server.disputed
    full = len(watch.server.others) == identity.MOST_OTHERS
    if twice and not full and (fresh or watch.away >= look.fall):
        return _replaced(watch, process, met, why, look)
    return _steady(watch, process, look)


def _steady(watch: Watch, process: Process, look: Look) -> Step:
    """Nothing follows from who of several answers, until only one has been answering for long."""
    watch = _in_state(watch, ServerState.UP, look, None)
    since = max(watch.alone_since, watch.server.disputed or 0)
    if look.steady - since < STEADY_MS:
        return Step(watch)
    if not identity.is_one(identity.known(watch.server), process):
        watch = _takes(watch, process, identity.find(watch.server.others, process))
    watch = replace(watch, server=replace(watch.server, disputed=None))
    return Step(_in_state(watch, ServerState.UP, look, None), (Turn.UP,))


def _rising(watch: Watch, process: Process | None, look: Look) -> Step:
    """Back after having been down. Whether it is the same process or another, what its sessions
    went through meanwhile is uncertain, so they are pinged."""
    watch = replace(watch, successes=watch.successes + 1)
    if watch.successes < look.rise:
        return Step(watch)
    watch = replace(watch, successes=0, counters={}, in_doubt=False)
    if process is None:
        return _back(watch, watch, look)
    kin, why = _compared(watch, process, look)
    other = identity.find(watch.server.others, process)
    if kin is not Kin.ANOTHER:
        return _back(watch, _seen_again(watch, process), look)
    if other is not None and other.settled:
        return _back(watch, _takes(watch, process, other), look)
    return _replaced(watch, process, other, why, look)


def _back(watch: Watch, after: Watch, look: Look) -> Step:
    # A server that was never seen up tells only now whose sessions have been waiting.
    lost = _lost(after.alias, Cause.RETURNED)
    return Step(_in_state(after, ServerState.UP, look, None), (Turn.UP,), lost)


def _in_state(watch: Watch, state: ServerState, look: Look, detail: str | None) -> Watch:
    server = watch.server
    since = server.since if server.state is state else look.now
    if detail is None and server.disputed is not None:
        detail = DISPUTED
    return replace(watch, server=replace(server, state=state, since=since, detail=detail))


def forgetful(server: ChatServer) -> ChatServer:
    """Another description may name another counter for the start time: it would look like a restart."""
    return replace(undisputed(server), started=None, began=None)


def undisputed(server: ChatServer) -> ChatServer:
    """Whoever reloads the configuration says that one process answers there."""
    return replace(server, others=(), disputed=None)


def together(watches: Mapping[str, Watch], name: str, *, within: Ms, steady: Ms) -> Together:
    """Whether counters ran backwards on one server or, in the same moments, on at least half of the others."""
    began = watches[name].fell_at
    if began is None:
        return Together.ALONE

    def fell_too(each: Watch) -> bool:
        return each.fell_at is not None and abs(each.fell_at - began) <= within

    others = [
        each
        for other, each in watches.items()
        if other != name
        and not each.failures
        and (fell_too(each) or any(value > 0 for value in each.counters.values()))
    ]
    fell = [each for each in others if fell_too(each)]
    if fell and 2 * len(fell) >= len(others):
        return Together.ALL
    unread = any(each.server.last_seen < began for each in others)
    return Together.UNKNOWN if unread and steady - began <= within else Together.ALONE


def pause(watch: Watch, settings: WatcherSettings) -> float:
    """Seconds until the next read, before jitter: faster while in doubt."""
    doubtful = watch.failures > 0 and watch.server.state is not ServerState.DOWN
    doubtful = doubtful or watch.changed is not None or watch.in_doubt
    if doubtful or watch.successes > 0 or watch.unseen:
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
        self._steady_from = clock.now() - round(clock.monotonic() * 1000)
        self._configured = {server.name: server for server in settings.chat_servers}
        self._watches: dict[str, Watch] = {}
        self._remembered: dict[str, ChatServer] = {}
        """Servers that are in the store and not watched."""
        self._noted: dict[str, ChatServer] = {}
        """Watched servers as they are in the store."""
        self._look = {name: asyncio.Event() for name in self._configured}
        self._look_by: dict[str, float] = {}
        """When each server's page must be looked at, or its reading be over, at the latest."""
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the stored pairs. Before `run`."""
        self._remembered = {server.name: server for server in await self._store.servers()}
        self._noted = dict(self._remembered)
        for configured in self._configured.values():
            self._begin(configured)

    async def run(self) -> None:
        """Watch every configured Chat Server until cancelled."""
        async with HealthPages() as pages, asyncio.TaskGroup() as loops:
            loops.create_task(self._resume())
            loops.create_task(self._assume_aliases(), name="assume aliases")
            running: dict[str, asyncio.Task[None]] = {}
            while True:
                for name in self._configured:
                    if name not in running or running[name].done():
                        running[name] = loops.create_task(self._attend(pages, name), name=f"watch {name}")
                self._changed.clear()
                await self._changed.wait()

    def reload(self, settings: Settings, tls: ssl.SSLContext) -> None:
        """Watch these servers, in this way, from now on; each is looked at soon. Servers that are described
        as before keep their standing, but for a dispute about who answers there. Another description is judged
        as after a start: the stored pair tells whether it is another process."""
        before = self._configured
        self._settings, self._tls = settings, tls
        self._configured = {server.name: server for server in settings.chat_servers}
        self._watches = {
            name: replace(each, server=undisputed(each.server)) for name, each in self._watches.items()
        }
        for name in before.keys() - self._configured.keys():
            self._remembered[name] = self._watches.pop(name).server
            self._look_by.pop(name, None)
            self._look.pop(name).set()  # its loop ends
            with suppress(KeyError):  # it was never looked at
                metrics.SERVER_UP.remove(name)
        for name, configured in self._configured.items():
            if configured != before.get(name):
                if watch := self._watches.pop(name, None):
                    self._remembered[name] = forgetful(watch.server)
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

    async def _assume_aliases(self) -> None:
        """A server that was down from the first look on has never told its alias. When it is the only one that has
        not, the sessions of the only alias that is nobody's are its own, as far as anyone can know: at worst those of
        a server that is well and not configured get one ping each."""
        while True:
            await self._clock.sleep(ASSUME_SECONDS)
            name = self._nameless_and_down()
            try:
                if name is not None:
                    await self._assume_alias(name)
            except StoreError as error:
                tell_failure(error)

    def _nameless_and_down(self) -> str | None:
        nameless = [name for name, watch in self._watches.items() if watch.alias is None]
        down = len(nameless) == 1 and self._watches[nameless[0]].server.state is ServerState.DOWN
        return nameless[0] if down else None

    async def _assume_alias(self, name: str) -> None:
        counts = await self._store.counts_by_alias()
        known = {watch.alias for watch in self._watches.values()}
        known |= {server.app_dbid for server in self._remembered.values()}
        strangers = counts.keys() - known
        if len(strangers) != 1 or self._nameless_and_down() != name:
            return
        before, [alias] = self._watches[name], strangers
        assumed = replace(before, server=replace(before.server, app_dbid=alias))
        self._watches[name] = assumed
        log.warning(
            Event.SERVER_ALIAS_ASSUMED, server=name, alias=alias, sessions=counts[alias], advice=SAY_WHO
        )
        try:
            await self._note(assumed.server, [Loss(alias, Cause.UNREACHABLE)])
        except StoreError:
            if self._watches.get(name) is assumed:
                self._watches[name] = before
            raise

    def servers(self) -> list[ChatServer]:
        """All watched servers as they stand now."""
        return [replace(watch.server, app_dbid=watch.alias) for watch in self._watches.values()]

    def look_at(self, alias: str) -> None:
        """Something else hints that this Chat Server is in trouble: read its page at once."""
        for name, watch in self._watches.items():
            if watch.alias == alias:
                self._look[name].set()

    def _look_at_all(self) -> None:
        for hint in self._look.values():
            hint.set()

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
        while server.state is ServerState.DOWN and server.name not in self._configured:
            try:
                await self._note(replace(server, state=ServerState.UNKNOWN))
                return
            except StoreError as error:
                tell_failure(error)
                await self._clock.sleep(STORE_PAUSE_SECONDS)

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
            if isinstance(seen, Unreachable | Unseen) and self._stalled_at >= began:
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
        watch, steady = self._watches[name], self._steady()
        window = round((2 * settings.interval + settings.timeout).total_seconds() * 1000)
        result = step(
            watch,
            seen,
            fall=settings.fall,
            rise=settings.rise,
            now=self._clock.now(),
            steady=steady,
            together=together(self._watches, name, within=window, steady=steady),
        )
        if self._is_our_own_trouble(result):
            result = Step(replace(watch, server=replace(watch.server, checked_at=self._clock.now())))
        self._watches[name] = result.watch
        if result.watch.in_doubt and not watch.in_doubt:
            self._look_at_all()  # whether theirs ran backwards too
        self._look_by.pop(name, None)  # what follows waits for the store, as long as a disk may be full
        try:
            await self._act(name, watch, result)
        except StoreError as error:
            tell_failure(error)
            self._unsee(name, configured, watch, result)
        return result

    def _steady(self) -> Ms:
        return self._steady_from + round(self._clock.monotonic() * 1000)

    def _unsee(self, name: str, configured: ChatServerSettings, before: Watch, result: Step) -> None:
        """What could not be put on record must be noticed again with the next read. If nothing was lost, the
        next record says it."""
        now = self._configured.get(name)
        if now == configured and result.lost:
            self._watches[name] = before
        elif now is not None and now != configured and result.lost:
            self._watches[name] = first_watch(forgetful(before.server), now, self._clock.now())

    async def _act(self, name: str, before: Watch, result: Step) -> None:
        server = result.watch.server
        metrics.SERVER_UP.labels(name).set(server.state in (ServerState.UP, ServerState.SUSPECT))
        for turn in result.turns:
            _log_turn(turn, before, result)
        losses = [
            lost
            for lost in result.lost
            if (lost.cause is not Cause.REPLACED and lost.alias == result.watch.alias)
            or not self._served_elsewhere(name, lost.alias)
        ]
        server = replace(server, app_dbid=result.watch.alias)
        if losses or self._worth_noting(server):
            await self._note(server, losses)

    def _worth_noting(self, server: ChatServer) -> bool:
        """Something changed but times, or the record is old."""
        noted = self._noted.get(server.name)
        if noted is None or abs(server.checked_at - noted.checked_at) >= NOTED_AGAIN_MS:
            return True
        return _lasting(server) != _lasting(noted)

    async def _note(self, server: ChatServer, losses: Sequence[Loss] = ()) -> None:
        """Put it on record how a server stands, together with what was lost by it: a crash finds the change
        once more or not at all."""
        now = self._clock.now()
        before = self._noted.get(server.name)
        noted = await self._store.note(
            _on_the_wall(server, now - self._steady()),
            epoch=0 if before is None else before.epoch,
            losses=losses,
            now=now,
        )
        if noted is None:
            await self._learn_anew(server.name)
            return
        self._noted[server.name] = replace(server, epoch=noted.epoch)
        for begun in noted.restorations:
            await restoration.go_on(self._store, self._wakeup, self._clock, begun)

    async def _learn_anew(self, name: str) -> None:
        """Somebody else has noted something of this server: that counts, as after a start."""
        stored = {server.name: server for server in await self._store.servers()}.get(name)
        if stored is not None:
            self._noted[name] = stored
        if (configured := self._configured.get(name)) is not None:
            self._watches[name] = first_watch(stored, configured, self._clock.now())

    def _served_elsewhere(self, name: str, alias: str) -> bool:
        return any(
            other != name and watch.alias == alias and watch.server.state is ServerState.UP
            for other, watch in self._watches.items()
        )


def _lasting(server: ChatServer) -> ChatServer:
    """What of it does not change with each read."""
    others = frozenset(
        replace(other, started=None, began=None, last_seen=0, first_seen=0) for other in server.others
    )
    return replace(
        server,
        checked_at=0,
        last_seen=0,
        began=None,
        epoch=0,
        others=tuple(sorted(others, key=repr)),
    )


def _on_the_wall(server: ChatServer, ahead: Ms) -> ChatServer:
    """With the times that were taken by the steady clock as the wall clock would have shown them: a daemon that
    starts knows no other."""
    return replace(
        server,
        began=None if server.began is None else server.began + ahead / 1000,
        first_seen=server.first_seen and server.first_seen + ahead,
        last_seen=server.last_seen and server.last_seen + ahead,
        disputed=None if server.disputed is None else server.disputed + ahead,
        others=tuple(
            replace(
                other,
                began=None if other.began is None else other.began + ahead / 1000,
                first_seen=other.first_seen + ahead,
                last_seen=other.last_seen + ahead,
            )
            for other in server.others
        ),
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
        case Turn.UNSEEN:
            log.warning(Event.SELF_SUSPECTED, server=result.watch.server.name, cause=result.why)
        case Turn.IDENTITY:
            log.error(Event.SERVER_IDENTITY_CHANGED, **named, previous_alias=before.alias, cause=result.why)
        case Turn.DISPUTED:
            advice = "health_url must be the server's own address, not a balancer's; then reload"
            log.error(Event.SERVER_IDENTITY_DISPUTED, **named, cause=result.why, advice=advice)
        case Turn.COUNTERS:
            log.info(Event.SERVER_COUNTERS_RESET, **named, cause=result.why)
