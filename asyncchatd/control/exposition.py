"""The exposition of the metrics: `GET /metrics`, at the control API and at an address of its own.

The address of its own asks for no token and serves nothing else, so that what scrapes needs neither a right at the
control API nor its Unix socket. Nothing secret is in it: labels are names of the configuration, and addresses that
pushes came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from asyncchatd.control.answers import errors_as_json
from asyncchatd.listening import INSTANCE, go_on_later
from asyncchatd.log import metrics
from asyncchatd.model import ChatServer, Clock
from asyncchatd.stores import Store, StoreError

FRESH_SECONDS = 1.0
"""At the address without a token the store is counted at most so often, whoever asks how often."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """All metrics, with what the store knows counted when somebody asks."""

    def __init__(self, store: Store, clock: Clock, servers: Callable[[], list[ChatServer]]) -> None:
        self._store = store
        self._clock = clock
        self._servers = servers
        self._counting = asyncio.Lock()
        self._kept: tuple[float, bytes] | None = None
        """When it was made, and the page for those without a token."""

    def app(self, instance: str = "") -> web.Application:
        """The application of a listener that has this page and no other. Each answer, a refusal too, tells the
        `instance` of the daemon: nothing else is there by which `check --connect` could know it."""
        app = web.Application(middlewares=[errors_as_json])

        async def named(_: web.Request, response: web.StreamResponse) -> None:
            response.headers[INSTANCE] = instance

        if instance:
            app.on_response_prepare.append(named)
        route = web.get("/metrics", self.serve_anybody)
        route.kwargs["expect_handler"] = go_on_later
        route.register(app.router)
        return app

    async def serve(self, _: web.Request) -> web.Response:
        """The metrics as they are now. 200, text."""
        return _page(await self._text())

    async def serve_anybody(self, _: web.Request) -> web.Response:
        """The metrics as they are now or were within the last second. 200, text."""
        async with self._counting:
            now = self._clock.monotonic()
            if self._kept is None or now - self._kept[0] >= FRESH_SECONDS:
                self._kept = now, await self._text()
            return _page(self._kept[1])

    async def _text(self) -> bytes:
        try:
            await self._count()
        except StoreError:  # `asyncchatd_store_writable` and the rest are asked for now more than ever
            metrics.forget(self._servers())
        return generate_latest(metrics.REGISTRY)

    async def _count(self) -> None:
        """What the store knows goes into the metrics. Raises `StoreError`."""
        now = self._clock.now()
        counts = await self._store.counts(now=now)
        for state, count in counts.states.items():
            metrics.SESSIONS.labels(state.value).set(count)
        for reason, count in counts.due.items():
            metrics.DUE.labels(reason.word).set(count)
        metrics.GATEWAY_CHATS.set(counts.of_gateway)
        metrics.refresh(
            servers=self._servers(),
            by_alias=await self._store.counts_by_alias(),
            running=await self._store.restorations(unfinished=True),
            now=now,
        )
        metrics.refresh_nodes(await self._store.nodes())
        kept = await self._store.kept()
        metrics.refresh_consumers(await self._store.consumers(), events=kept.events, size=kept.size, now=now)


def _page(text: bytes) -> web.Response:
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})
