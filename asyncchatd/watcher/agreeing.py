"""The agreement of several nodes on whether a Chat Server is gone, where they share the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from asyncchatd.config import ChatServerSettings, WatcherSettings
from asyncchatd.log import Event, get_logger
from asyncchatd.model import ChatServer, Clock, Ms, Process, ServerState, View, Views, replace
from asyncchatd.stores import Store, StoreError, tell_failure
from asyncchatd.watcher import identity
from asyncchatd.watcher.judgement import Step, Watch
from asyncchatd.watcher.page import Page, Seen, Unreachable, Unseen
from asyncchatd.watcher.record import on_the_wall
from asyncchatd.watcher.votes import Heard, Known, Vote, doubted, hinted, returned, sights, vote

JITTERED = 1.1
"""A look comes no later than so many intervals after the one before."""

PATIENCE_SECONDS = 3.0
"""Until the views of others count no more that they had before the server was lost: so long nobody is told that they
say otherwise."""

RETURN_SECONDS = 3.0
"""After the store was away: so long its silence about others says nothing, for they are coming back too."""

SILENCE_SECONDS = 10.0
"""So long nobody is taken for another process while no more nodes are heard that read a server than are silent, or have
just come and read nobody yet: these, which are not known to be gone, may read the known one. Nor for lost, while no
more are heard that have looked than have not: these may reach it."""

TURNS_MS = 10 * 60_000
"""So long after a process was read again, behind another one, several are said to answer by turns."""

log = get_logger()


class Agreement:
    """What this node and the others say of the Chat Servers."""

    def __init__(self, store: Store, clock: Clock, gms_answers: Callable[[], bool]) -> None:
        self._store = store
        self._clock = clock
        self._gms_answers = gms_answers
        self.is_shared = False
        """Whether others may say something, as far as is known."""
        self.news = asyncio.Event()
        """Another process is read here than before, or one again: others hear of it at once."""
        self._read: dict[str, Process] = {}
        """The processes that the last pages spoke of, as `View.read`, however they were judged."""
        self._missed: set[str] = set()
        """The servers that the last looks did not reach, also where another node has noted something since."""
        self._away_at = float("-inf")
        """When the store could not be asked, the last time."""
        self._unheard_since: dict[str, float] = {}
        """Since when no more are heard that read a server than are not heard, by the monotonic clock."""
        self._unwatched_since: dict[str, float] = {}
        """Since when no more are heard that have looked at a server than are not heard, or have not."""
        self._former: dict[str, Process] = {}
        """The processes that were read before these."""
        self._turned_at: dict[str, Ms] = {}
        """When one of them was read again, the last time."""
        self._silent: Sequence[Views] = ()
        """What those said last that are not heard."""
        self._counters: dict[str, Mapping[str, float]] = {}
        """On the last pages, of processes of which nothing else tells."""
        self._outvoted: dict[str, float] = {}
        """Since when servers are not reached from here, but by others, or by most others not."""
        self._told: set[str] = set()
        """Those of them of which the log has told."""

    async def hints(self, watches: Mapping[str, Watch], settings: WatcherSettings) -> set[str] | None:
        """Say what is seen here. The servers that others have missed since; `None` where there are no others ever.
        Raises `StoreError`."""
        own = self._views(watches, settings)
        others = await self._others(own, settings)
        self.is_shared = others is not None
        if others is None:
            return None
        told = {name for name, watch in watches.items() if watch.server.disputed is not None}
        news = hinted(own.servers, others) | returned(own.servers, others)
        return news | (doubted(own.servers, others) - told)

    def saw(self, configured: ChatServerSettings, seen: Seen, *, began: float) -> None:
        """Remember whom a look read that began then, by the monotonic clock."""
        name, now = configured.name, self._clock.now()
        was_missed = name in self._missed
        if isinstance(seen, Unreachable):
            self._missed.add(name)
        elif not isinstance(seen, Unseen):
            self._missed.discard(name)
        if not isinstance(seen, Page):
            return  # a look that failed says nothing of who is there: the one before counts, until the server is lost
        before, read = self._read.get(name), identity.observed(seen.page, now)
        asked_at = now - round((self._clock.monotonic() - began) * 1000)
        read = replace(read, app_dbid=configured.app_dbid or read.app_dbid, last_seen=asked_at)
        fell = self._fell(name, read, seen.page.counters)
        if before is not None and identity.is_other(before, read):
            if name in self._former and identity.is_one(self._former[name], read):
                self._turned_at[name] = now
            self._former[name] = before
        if before is None or was_missed or identity.is_other(before, read) or fell:
            read = replace(read, settled=not fell)
            self.news.set()
        else:
            read = replace(read, first_seen=before.first_seen, settled=before.settled)
        self._read[name] = read

    def _fell(self, name: str, read: Process, counters: Mapping[str, float]) -> bool:
        """Whether counters ran backwards since the last page, of a process of which nothing else tells."""
        if not identity.counters_may_tell(read):
            return False
        before = self._counters.get(name, {})
        self._counters[name] = counters
        return identity.ran_backwards(before, counters) is not None

    def forget(self, name: str) -> None:
        """What was read there says nothing any more: its description is another one."""
        for of_before in (self._read, self._counters, self._former, self._turned_at):
            of_before.pop(name, None)
        self._missed.discard(name)

    async def heard(self, name: str, watches: Mapping[str, Watch], settings: WatcherSettings) -> Heard | None:
        """What other nodes say of who answers at a server, after it was said what is read here; `None` while they
        cannot be asked, or too few are heard."""
        own = self._views(watches, settings)
        try:
            others = await self._others(own, settings)
        except StoreError as error:
            tell_failure(error)
            return None
        if self._clock.monotonic() - self._away_at < RETURN_SECONDS or self._is_lately(
            self._unheard_since, name
        ):
            return None
        now, window = self._clock.now(), _long_window(settings)
        reads, missed = (
            sights(name, own, others or (), now=now, window=window, lost=lost) for lost in (False, True)
        )
        silent = _unheard(name, others or (), self._silent, since=now - window) > 0
        return Heard(reads, silent, missed)

    async def holds(
        self,
        result: Step,
        before: Watch,
        watches: Mapping[str, Watch],
        settings: WatcherSettings,
        *,
        ahead: Ms = 0,
    ) -> bool:
        """Whether what a read came to may be acted upon. Only that a server is lost, or is back, takes the others, and
        while they cannot be asked it is neither. `ahead`: by how much the wall clock is ahead of the steady one."""
        name = result.watch.server.name
        was_down, is_down = (each.server.state is ServerState.DOWN for each in (before, result.watch))
        if was_down == (result.watch.failures > 0):
            self._outvoted.pop(name, None)
            self._told.discard(name)
        if was_down == is_down:
            return True
        own = self._views({**watches, name: result.watch}, settings)
        try:
            others = await self._others(own, settings)
        except StoreError as error:
            tell_failure(error)
            return False
        if others is None:
            return True
        if self._clock.monotonic() - self._away_at < RETURN_SECONDS:
            return False
        if is_down and self._is_lately(self._unwatched_since, name):
            return False
        found = vote(
            name,
            own,
            others,
            now=self._clock.now(),
            window=_window(settings),
            known=_known(on_the_wall(before.server, ahead)),
            silent=self._silent,
        )
        if found.down == is_down:
            self._outvoted.pop(name, None)
        else:
            self._tell(name, result.watch.alias, found)
        return found.down == is_down

    async def _others(self, own: Views, settings: WatcherSettings) -> Sequence[Views] | None:
        """What those said who are heard."""
        try:
            said = await self._store.views(own)
        except StoreError:
            self._away_at = self._clock.monotonic()
            raise
        if said is None:
            return None
        heard = [each for each in said if not each.silent]
        self._silent = [each for each in said if each.silent]
        now, since = self._clock.monotonic(), self._clock.now() - _long_window(settings)
        unheard = {name for name in own.servers if _is_unheard(name, heard, self._silent, since=since)}
        self._unheard_since = {name: self._unheard_since.get(name, now) for name in unheard}
        looked_since = self._clock.now() - _window(settings)
        unwatched = {
            name for name in own.servers if _is_unwatched(name, heard, self._silent, since=looked_since)
        }
        self._unwatched_since = {name: self._unwatched_since.get(name, now) for name in unwatched}
        return heard

    def _is_lately(self, begun: Mapping[str, float], name: str) -> bool:
        """Whether something is so of a server, and that only lately."""
        since = begun.get(name)
        return since is not None and self._clock.monotonic() - since < SILENCE_SECONDS

    def _tell(self, name: str, alias: str | None, found: Vote) -> None:
        since = self._outvoted.setdefault(name, self._clock.monotonic())
        if name in self._told or self._clock.monotonic() - since < PATIENCE_SECONDS:
            return
        self._told.add(name)
        if found.down:
            cause = f"it is reached from here, but not by {', '.join(found.lost)}"
        elif found.down is None:
            cause = "its health_url leads to another process from here"
        elif found.reached:
            cause = f"it is not reached from here, but by {', '.join(found.reached)}"
        else:
            cause = "too few nodes have looked at it"
        log.warning(Event.SERVER_OUTVOTED, server=name, alias=alias, cause=cause)

    def _views(self, watches: Mapping[str, Watch], settings: WatcherSettings) -> Views:
        servers = {name: self._view(name, watch, settings.fall) for name, watch in watches.items()}
        return Views("", servers, self._gms_answers())

    def _view(self, name: str, watch: Watch, fall: int) -> View:
        is_down = watch.server.state is ServerState.DOWN
        failures = watch.failures or int(is_down and name in self._missed)
        lost = failures >= fall or (failures > 0 and is_down)
        turned_at = self._turned_at.get(name)
        by_turns = turned_at is not None and self._clock.now() - turned_at < TURNS_MS
        return View(watch.server.checked_at, failures, lost, self._read.get(name), by_turns)


def _known(server: ChatServer) -> Known:
    """Who is taken for a server, and who was there beside it when it was found out that there are several."""
    disputed = server.disputed
    beside = () if disputed is None else [each for each in server.others if each.first_seen <= disputed]
    return Known(identity.known(server), beside)


def _is_unwatched(name: str, heard: Sequence[Views], silent: Sequence[Views], *, since: Ms) -> bool:
    """Whether of those who look at a server, this one among them, no more are heard that have looked since then than
    are not heard, or have not."""
    views = [view for each in heard if (view := each.servers.get(name)) is not None]
    looked = sum(view.looked_at >= since for view in views)
    return len(views) - looked + sum(name in each.servers for each in silent) >= 1 + looked


def _is_unheard(name: str, heard: Sequence[Views], silent: Sequence[Views], *, since: Ms) -> bool:
    """Whether of those who look at a server, this one among them, no more are heard that read it than are not."""
    views = (each.servers.get(name) for each in heard)
    reading = sum(1 for view in views if view is not None and not view.lost and _has_read(view, since))
    return _unheard(name, heard, silent, since=since) > reading


def _unheard(name: str, heard: Sequence[Views], silent: Sequence[Views], *, since: Ms) -> int:
    """How many look at a server of whom nobody knows whom they read: they are silent, or have read nobody `since`."""
    views = (each.servers.get(name) for each in heard)
    new = sum(1 for view in views if view is not None and not view.lost and not _has_read(view, since))
    return new + sum(name in each.servers for each in silent)


def _has_read(view: View, since: Ms) -> bool:
    """Whether a page was read since then. One that goes on after it stood still says what it read before."""
    return view.read is not None and view.read.last_seen >= since


def _long_window(settings: WatcherSettings) -> Ms:
    """So long what a node read counts: the next page that it reads comes within it, also where some looks fail."""
    doubt = (settings.fall - 1) * (settings.fast_interval * JITTERED + settings.timeout)
    return _window(settings) + round(doubt.total_seconds() * 1000)


def _window(settings: WatcherSettings) -> Ms:
    """So long what a node saw counts: the next look of a node that is well comes within it."""
    window = settings.interval * JITTERED + settings.timeout + settings.fast_interval
    return round(window.total_seconds() * 1000)


def held_back(found: Watch, before: Watch) -> Watch:
    """A server that is lost as far as is seen here, while others reach it; or one that is back, while most others miss
    it."""
    if before.server.state is ServerState.DOWN:
        server = replace(before.server, checked_at=found.server.checked_at)
        return replace(before, server=server, failures=0, successes=0)
    state = ServerState.SUSPECT if before.server.state is ServerState.UP else before.server.state
    return replace(
        found,
        server=replace(
            before.server, state=state, checked_at=found.server.checked_at, detail=found.server.detail
        ),
    )
