"""The agreement of several nodes on whether a Chat Server is gone, where they share the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from asyncchatd.config import WatcherSettings
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Clock, ServerState, View, Views, replace
from asyncchatd.stores import Store, StoreError, tell_failure
from asyncchatd.watcher.judgement import Step, Watch
from asyncchatd.watcher.votes import Vote, hinted, vote

JITTERED = 1.1
"""A look comes no later than so many intervals after the one before."""

PATIENCE_SECONDS = 3.0
"""Until the views of others count no more that they had before the server was lost: so long nobody is told that they
say otherwise."""

log = get_logger()


class Agreement:
    """What this node and the others say of the Chat Servers."""

    def __init__(self, store: Store, clock: Clock, gms_answers: Callable[[], bool]) -> None:
        self._store = store
        self._clock = clock
        self._gms_answers = gms_answers
        self.is_shared = False
        """Whether others may say something, as far as is known."""
        self._outvoted: dict[str, float] = {}
        """Since when servers are not reached from here, but by others."""
        self._told: set[str] = set()
        """Those of them of which the log has told."""

    async def hints(self, watches: Mapping[str, Watch], settings: WatcherSettings) -> set[str] | None:
        """Say what is seen here. The servers that others have missed since; `None` where there are no others ever.
        Raises `StoreError`."""
        own = self._views(watches, settings)
        others = await self._store.views(own)
        self.is_shared = others is not None
        return None if others is None else hinted(own.servers, others)

    async def holds(
        self, result: Step, before: Watch, watches: Mapping[str, Watch], settings: WatcherSettings
    ) -> bool:
        """Whether what a read came to may be acted upon. Only that a server is lost takes the others, and while they
        cannot be asked it is not."""
        name = result.watch.server.name
        if not result.watch.failures:
            self._outvoted.pop(name, None)
            self._told.discard(name)
        if before.server.state is ServerState.DOWN or result.watch.server.state is not ServerState.DOWN:
            return True
        own = self._views({**watches, name: result.watch}, settings)
        try:
            others = await self._store.views(own)
        except StoreError as error:
            tell_failure(error)
            return False
        if others is None:
            return True
        window = settings.interval * JITTERED + settings.timeout + settings.fast_interval
        found = vote(name, own, others, now=self._clock.now(), window=round(window.total_seconds() * 1000))
        if found.down:
            self._outvoted.pop(name, None)
        else:
            self._tell(name, result.watch.alias, found)
        return found.down

    def _tell(self, name: str, alias: str | None, found: Vote) -> None:
        since = self._outvoted.setdefault(name, self._clock.monotonic())
        if name in self._told or self._clock.monotonic() - since < PATIENCE_SECONDS:
            return
        self._told.add(name)
        peers = ", ".join(found.against)
        cause = f"it is not reached from here, but by {peers}" if peers else "too few nodes have looked at it"
        log.warning(Event.SERVER_OUTVOTED, server=name, alias=alias, cause=cause)

    def _views(self, watches: Mapping[str, Watch], settings: WatcherSettings) -> Views:
        servers = {
            name: View(
                watch.server.checked_at,
                watch.failures,
                watch.failures >= settings.fall
                or (watch.failures > 0 and watch.server.state is ServerState.DOWN),
            )
            for name, watch in watches.items()
        }
        return Views("", servers, self._gms_answers())


def held_back(found: Watch, before: Watch) -> Watch:
    """A server that is lost as far as is seen here, while others reach it."""
    state = ServerState.SUSPECT if before.server.state is ServerState.UP else before.server.state
    return replace(
        found,
        server=replace(
            before.server, state=state, checked_at=found.server.checked_at, detail=found.server.detail
        ),
    )
