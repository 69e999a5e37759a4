"""The health watcher: notices that a Chat Server is gone, and makes its sessions due.

Here are the loops, one for each Chat Server: they read pages, ask `judgement.step` what follows, and act on it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from asyncchatd.config import ChatServerSettings, Settings, WatcherSettings
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Cause, ChatServer, Clock, Loss, Ms, ServerState, replace
from asyncchatd.stores import STORE_PAUSE_SECONDS, Store, StoreError, tell_failure
from asyncchatd.stores import restoring as restoration
from asyncchatd.watcher.agreeing import Agreement, held_back
from asyncchatd.watcher.judgement import Step, Turn, Watch, contested, first_watch, pause, step, together
from asyncchatd.watcher.marking import mark_for_others
from asyncchatd.watcher.open_line import GIVEN_UP_SECONDS, OpenLine
from asyncchatd.watcher.page import HealthPages, Page, Seen, Unreachable, Unreadable, Unseen
from asyncchatd.watcher.record import forgetful, lasting, on_the_wall, shifted, tells_news, undisputed, who
from asyncchatd.watcher.votes import Heard

JITTER = 0.1
STALL_PAUSE_SECONDS = 0.1
ASSUME_SECONDS = 5.0
"""How often it is looked whose sessions a server had that is down and never said who it is."""

AGREE_SECONDS = 1.0
"""How often it is said what is seen here, where others watch the same servers."""

NOTED_AGAIN_MS = 10 * 60_000
"""How old the stored record of a server may become: a restart of the daemon goes on from there."""

SAY_WHO = "set app_dbid in its [[chat_server]], then reload"

log = get_logger()


class Watcher:
    """The watcher of all configured Chat Servers. Its root task is `run`, which holds one loop for each."""

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
        self._agreement = Agreement(store, clock, gms_answers)

    async def load(self) -> None:
        """Read what the store remembers of the Chat Servers. Before `run`."""
        self._remembered = {server.name: server for server in await self._store.servers()}
        self._noted = dict(self._remembered)
        for configured in self._configured.values():
            self._settings.gms.tls_for(configured.health_url)  # reads it now, and not when pushes come
            self._begin(configured)

    async def run(self) -> None:
        """Watch every configured Chat Server until cancelled."""
        async with HealthPages() as pages, asyncio.TaskGroup() as loops:
            loops.create_task(self._resume())
            loops.create_task(self._assume_aliases(), name="assume aliases")
            loops.create_task(self._agree(loops), name="agree with others")
            running: dict[str, asyncio.Task[None]] = {}
            while True:
                for name in self._configured:
                    if name not in running or running[name].done():
                        running[name] = loops.create_task(self._attend(pages, name), name=f"watch {name}")
                self._changed.clear()
                await self._changed.wait()

    def reload(self, settings: Settings) -> None:
        """Watch these servers, in this way, from now on; each is looked at soon. Servers that are described
        as before keep their standing, but for a dispute about who answers there. Another description is judged
        as after a start: the stored pair tells whether it is another process."""
        before = self._configured
        self._settings = settings
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
                self._agreement.forget(name)
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
        assumed = replace(before, server=replace(before.server, app_dbid=alias, assumed=True))
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
        """Read the page of this alias' Chat Server at once: something else hints that it is in trouble."""
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
        line, described, hurried = self._open_line(name), self._configured.get(name), 0
        try:
            while (configured := self._configured.get(name)) is not None:
                settings, hint = self._settings.watcher, self._look[name]
                if configured != described:
                    line.close()
                    line, described = self._open_line(name), configured
                hint.clear()
                began = self._clock.monotonic()
                if line.look_begins(settings.interval.total_seconds() * (1 - JITTER)):
                    hurried = settings.fall + settings.rise
                seconds = settings.timeout.total_seconds()
                self._look_by[name] = began + seconds
                watch = self._watches[name]
                seen = await pages.look(
                    configured, seconds, self._settings.gms.tls_for(configured.health_url)
                )
                if self._configured.get(name) != configured:
                    continue  # that was the page of another description
                self._agreement.saw(configured, seen, began=began)
                if isinstance(seen, Unreachable | Unseen) and self._stalled_at >= began:
                    log.warning(Event.SELF_SUSPECTED, server=name, cause="the daemon itself stood still")
                    await self._clock.sleep(STALL_PAUSE_SECONDS)
                    continue
                if line.is_unborne_by(seen):
                    for_ms, alias = round(GIVEN_UP_SECONDS * 1000), self._watches[name].alias
                    log.info(Event.SERVER_LINE_GIVEN_UP, server=name, alias=alias, for_ms=for_ms)
                    continue
                result = await self._judge(name, configured, watch, seen, settings)
                if result.lost:
                    line.told_the_truth()
                wait = pause(result.watch, settings, hurried=hurried > 0 and _came_at_once(seen))
                in_doubt = wait != settings.interval.total_seconds()
                hurried = hurried - 1 if in_doubt else 0
                wait *= random.uniform(1 - JITTER, 1 + JITTER)
                if self._configured.get(name) == configured:
                    self._look_by[name] = self._clock.monotonic() + wait
                    if not settings.idle_connection:
                        line.close()
                    elif isinstance(seen, Page | Unreadable):
                        line.keep(partial(pages.connect, configured, seconds))
                # In doubt already a hint must not turn `fall` reads into a moment.
                await self._clock.wait(line.ended if in_doubt else hint, wait)
        finally:
            line.close()

    def _open_line(self, name: str) -> OpenLine:
        def rang() -> None:
            with suppress(KeyError):  # it is configured no more
                self._look[name].set()

        return OpenLine(self._clock, rang)

    async def _judge(
        self, name: str, configured: ChatServerSettings, watch: Watch, seen: Seen, settings: WatcherSettings
    ) -> Step:
        """`watch`: what was known when the look began."""
        if self._watches[name] is not watch:
            # Another node has noted something since: this may be the page of a process that it found gone.
            return Step(self._watches[name])
        steady = self._steady()
        window = round((2 * settings.interval + settings.timeout).total_seconds() * 1000)
        read = partial(
            step,
            watch,
            seen,
            fall=settings.fall,
            rise=settings.rise,
            now=self._clock.now(),
            steady=steady,
            together=together(self._watches, name, within=window, steady=steady),
        )
        if contested(watch, seen, steady=steady):
            self._look_by.pop(name, None)
            result = read(heard=await self._heard(name, settings))
        else:
            result = read()
        if self._is_our_own_trouble(result):
            result = Step(replace(watch, server=replace(watch.server, checked_at=self._clock.now())))
        self._look_by.pop(name, None)  # what follows waits for the store, as long as a disk may be full
        ahead = self._clock.now() - self._steady()
        if not await self._agreement.holds(result, watch, self._watches, settings, ahead=ahead):
            result = Step(held_back(result.watch, watch))
        if self._watches.get(name) is not watch:
            return Step(
                watch
            )  # while the others were asked, one of them noted it, or another description came
        self._watches[name] = result.watch
        if result.watch.in_doubt and not watch.in_doubt:
            self._look_at_all()  # whether theirs ran backwards too
        try:
            await self._act(name, watch, result)
        except StoreError as error:
            tell_failure(error)
            self._unsee(name, configured, watch, result)
        return result

    async def _heard(self, name: str, settings: WatcherSettings) -> Heard | None:
        """What other nodes say of who answers at a server, by the steady clock; `None` while they cannot be asked."""
        heard = await self._agreement.heard(name, self._watches, settings)
        behind = self._steady() - self._clock.now()
        if heard is None:
            return None
        reads, missed = ([shifted(each, behind) for each in found] for found in (heard.reads, heard.missed))
        return Heard(reads, heard.silent, missed)

    def _steady(self) -> Ms:
        return self._steady_from + round(self._clock.monotonic() * 1000)

    def _unsee(self, name: str, configured: ChatServerSettings, before: Watch, result: Step) -> None:
        """What could not be put on record must be noticed again with the next read. If nothing was lost, the
        next record says it."""
        now = self._configured.get(name)
        unsaid = self._agreement.is_shared and Turn.DISPUTED in result.turns
        if now == configured and (result.lost or unsaid):
            self._watches[name] = before
        elif now is not None and now != configured and result.lost:
            self._watches[name] = first_watch(forgetful(before.server), now, self._clock.now())

    # -- where several nodes watch -------------------------------------------------------------------

    async def _agree(self, loops: asyncio.TaskGroup) -> None:
        """Say each second what is seen here, and follow what others have found. Ends at once where nobody shares the
        store."""
        marks: asyncio.Task[None] | None = None
        while True:
            self._agreement.news.clear()
            try:
                hints = await self._agreement.hints(self._watches, self._settings.watcher)
                if hints is None:
                    return
                # Apart from this: a view that is not renewed for as long as marking takes would not count.
                marks = marks or loops.create_task(mark_for_others(self._store, self._wakeup, self._clock))
                for name in hints & self._look.keys():
                    self._look[name].set()
                await self._follow()
            except StoreError as error:
                tell_failure(error)
            await self._clock.wait(self._agreement.news, AGREE_SECONDS)

    async def _follow(self) -> None:
        """What somebody else has noted of a server counts, as after a start."""
        for server in await self._store.servers():
            noted, configured = self._noted.get(server.name), self._configured.get(server.name)
            if configured is None or (noted is not None and server.epoch <= noted.epoch):
                continue
            self._noted[server.name] = server
            if not tells_news(server, noted):
                continue
            watch = self._watches[server.name]
            self._watches[server.name] = first_watch(server, configured, self._clock.now())
            if server.state is ServerState.DOWN and watch.server.state is not ServerState.DOWN:
                metrics.SERVER_UP.labels(server.name).set(False)
                log.error(
                    Event.SERVER_DOWN,
                    server=server.name,
                    alias=server.app_dbid,
                    cause=server.detail,
                    attempts=watch.failures,
                )
            self._look[server.name].set()

    async def _act(self, name: str, before: Watch, result: Step) -> None:
        server = result.watch.server
        metrics.SERVER_UP.labels(name).set(server.state in (ServerState.UP, ServerState.SUSPECT))
        # Of all nodes that find it, the one that puts a dispute on record tells of it.
        once = {Turn.DISPUTED} if self._agreement.is_shared else set()
        for turn in result.turns:
            if turn not in once:
                _log_turn(turn, before, result)
        losses = [
            lost
            for lost in result.lost
            if (lost.cause is not Cause.REPLACED and lost.alias == result.watch.alias)
            or not self._served_elsewhere(name, lost.alias)
        ]
        if not result.watch.owed:  # or nobody would know after a restart that its own were never made due
            server = replace(server, app_dbid=result.watch.alias)
        if (losses or self._worth_noting(server)) and await self._note(server, losses):
            for turn in once.intersection(result.turns):
                _log_turn(turn, before, result)

    def _worth_noting(self, server: ChatServer) -> bool:
        """Something changed but times, or the record is old."""
        noted = self._noted.get(server.name)
        if noted is None or abs(server.checked_at - noted.checked_at) >= NOTED_AGAIN_MS:
            return True
        if self._agreement.is_shared:
            return who(server) != who(noted)
        return lasting(server) != lasting(noted)

    async def _note(self, server: ChatServer, losses: Sequence[Loss] = ()) -> bool:
        """Put it on record how a server stands, together with what was lost by it: a crash finds the change
        once more or not at all. Whether it is: what somebody else has noted meanwhile counts more."""
        now = self._clock.now()
        server = on_the_wall(server, now - self._steady())
        before = self._noted.get(server.name)
        noted = await self._store.note(
            server, epoch=0 if before is None else before.epoch, losses=losses, now=now
        )
        if noted is None and _may_be_said_again(losses):
            stored = await self._no_news(server.name, before)
            if stored is not None:
                noted = await self._store.note(server, epoch=stored.epoch, losses=losses, now=now)
        if noted is None:
            await self._learn_anew(server.name)
            return False
        self._noted[server.name] = replace(server, epoch=noted.epoch)
        for begun in noted.restorations:
            await restoration.go_on(self._store, self._wakeup, self._clock, begun)
        return True

    async def _no_news(self, name: str, before: ChatServer | None) -> ChatServer | None:
        """The record of a server, when nothing was noted since it was as `before` that counts here."""
        stored = {server.name: server for server in await self._store.servers()}.get(name)
        return None if stored is None or tells_news(stored, before) else stored

    async def _learn_anew(self, name: str) -> None:
        """Somebody else has noted something of this server: that counts, as after a start. Perhaps we did, and were
        told that it failed: then what was lost is on record, and nobody marks it."""
        if not self._agreement.is_shared:  # else who began it marks it, or `mark_for_others` does
            await restoration.resume(self._store, self._wakeup, self._clock, server=name)
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


def _may_be_said_again(losses: Sequence[Loss]) -> bool:
    """Whether nobody else can have noted the same: that a server is down shows in its record."""
    return all(loss.cause is Cause.UNREACHABLE for loss in losses)


def _came_at_once(seen: Seen) -> bool:
    """It was answered, or refused, and did not run out of time."""
    return isinstance(seen, Page) or (
        isinstance(seen, Unreachable) and not isinstance(seen.error, TimeoutError)
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
