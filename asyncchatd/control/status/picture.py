"""What the daemon is doing, in one look: for `GET /v1/status`, and once a second for the status page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from asyncchatd import __version__
from asyncchatd.control import shapes
from asyncchatd.control.shown import (
    show_consumer,
    show_counted_server,
    show_node,
    show_pushes,
    show_restoration,
    show_server,
    show_time,
)
from asyncchatd.control.status.history import History
from asyncchatd.listening import Senders
from asyncchatd.log import Noted, recent_lines
from asyncchatd.model import ChatServer, Clock, SessionState, differences
from asyncchatd.stores import Counts, Store

RESTORATIONS = 20
WARNINGS = 40
ELSEWHERE = 20
"""Aliases of Chat Servers that are not configured: those with the most sessions."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What can be shown and asked of the running daemon beside its store."""

    servers: Callable[[], list[ChatServer]]
    pings: Callable[[], shapes.Pings]
    ready: Callable[[], bool]
    hurry: Callable[[str], None] = lambda _: None
    """The webhook of the consumer of this name is to be tried now, also where it is down."""
    trouble: Callable[[str], str | None] = lambda _: None
    """Why the webhook of this consumer did not take the last batch, if it did not."""
    gateway: Callable[[], list[str]] = list
    """Addresses where chat clients are served; none without a gateway."""
    configuration: Callable[[], shapes.Configuration | None] = lambda: None
    """Which configuration is in force, and whether the last reload was refused."""
    metrics: Callable[[], list[str]] = list
    """Addresses where metrics are scraped without a token; none without `[metrics]`."""
    forget: Callable[[str], Awaitable[None]] | None = None
    """Has the gateway show nothing more of a chat; none without a gateway."""
    digest: Callable[[str, str], str] | None = None
    """Makes what is kept of a chat id and the key its client has, so that the gateway knows it again; none without a
    gateway."""
    polls: Callable[[], int] = lambda: 0
    """Polls of chat clients that are held now."""
    streams: Callable[[], int] = lambda: 0
    """Streams of events that chat clients have open."""
    pushes_missing: Callable[[], bool] = lambda: False
    """Whether so many pushes are missing that GMS is asked about all chats that are polled."""
    want: Callable[[str], None] = lambda _: None
    """The session of this chat is wanted: whoever holds it with nothing on its way gives it back."""
    senders: Senders | None = None
    """Who sends pushes; `None` where no receiver runs."""


class Pictures:
    """Takes pictures of one daemon."""

    def __init__(self, store: Store, clock: Clock, around: Surroundings, history: History) -> None:
        self._store = store
        self._clock = clock
        self._around = around
        self._history = history
        self._started = clock.now()

    async def status(self) -> shapes.Status:
        """Sessions, what is due, GMS, Chat Servers, running restorations. Raises `StoreError`."""
        running = await self._store.restorations(unfinished=True)
        now = self._clock.now()
        return shapes.Status(
            **shapes.fields_of(await self._counts()),
            servers=[show_server(server) for server in self._around.servers()],
            restorations=[show_restoration(each, now) for each in running if each.finished_at is None],
        )

    async def take(self) -> shapes.Picture:
        """All that the status page shows. Raises `StoreError`."""
        counts = await self._counts()
        by_alias = dict(await self._store.counts_by_alias())
        restorations = await self._store.restorations(limit=RESTORATIONS)
        servers = [
            show_counted_server(server, by_alias.pop(server.app_dbid or "", 0))
            for server in self._around.servers()
        ]
        elsewhere = sorted(by_alias.items(), key=lambda item: -item[1])
        now = self._clock.now()
        return shapes.Picture(
            **shapes.fields_of(counts),
            time=show_time(now),
            version=__version__,
            rates=self._history.rates,
            servers=servers,
            sessions_elsewhere=dict(elsewhere[:ELSEWHERE]),
            restorations=[show_restoration(each, now) for each in restorations],
            warnings=[_shown(each) for each in recent_lines.noted(WARNINGS)],
        )

    async def _counts(self) -> shapes.Counts:
        now = self._clock.now()
        counts = await self._store.counts(now=now)
        nodes = await self._store.nodes() or ()
        return shapes.Counts(
            ready=self._around.ready(),
            store_trouble=self._store.trouble,
            store_note=self._note(counts),
            store_replaced=self._store.replaced,
            started_at=show_time(self._started),
            uptime_seconds=round(self._history.uptime, 1),
            sessions={state.value: count for state, count in counts.states.items()},
            due={reason.word: count for reason, count in counts.due.items()},
            pings=self._around.pings(),
            pushes=None if self._around.senders is None else pushes_of(self._around.senders),
            configuration=self._around.configuration(),
            metrics=self._around.metrics(),
            gateway=self._around.gateway(),
            gateway_chats=counts.of_gateway,
            gateway_polls=self._around.polls(),
            gateway_streams=self._around.streams(),
            pushes_missing=self._around.pushes_missing(),
            consumers=[
                show_consumer(each, now, self._around.trouble(each.name))
                for each in await self._store.consumers()
            ],
            nodes=[show_node(each) for each in nodes],
            differences=[
                shapes.Difference(key=each.key, values=dict(each.values)) for each in differences(nodes)
            ],
        )

    def _note(self, counts: Counts) -> str | None:
        """A new store is worth a word as long as nothing lives in it."""
        if counts.states.get(SessionState.LIVE) or self._store.replaced:
            return None
        return self._store.remark


def pushes_of(its: Senders) -> shapes.Pushes:
    """What the API shows of the senders of pushes."""
    return show_pushes(its.count, its.last_at, its.senders(), its.refusals())


def _shown(noted: Noted) -> shapes.Warning:
    return shapes.Warning(
        event=noted.event,
        level=noted.level,
        meaning=noted.meaning,
        count=noted.count,
        first_at=shapes.write_time(noted.first),
        last_at=shapes.write_time(noted.last),
        fields=noted.fields,
    )
