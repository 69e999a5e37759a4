"""Consumers for operators: how far each is, and to pause it, go on, and try again what it did not take."""

from __future__ import annotations

from aiohttp import web

from asyncchatd.control import shapes
from asyncchatd.control.answers import json_answer
from asyncchatd.control.reading import BadRequest, no_consumer
from asyncchatd.control.shown import show_consumer
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Clock, ConsumerState
from asyncchatd.stores import Store

log = get_logger()


class Consumers:
    """The calls about consumers."""

    def __init__(self, store: Store, clock: Clock, around: Surroundings) -> None:
        self._store = store
        self._clock = clock
        self._hurry = around.hurry
        self._trouble = around.trouble

    def routes(self) -> list[web.RouteDef]:
        """Their routes."""
        return [
            web.get("/v1/consumers", self.list_consumers),
            web.post("/v1/consumers/{name}/retry", self.retry),
            web.post("/v1/consumers/{name}/pause", self.pause),
            web.post("/v1/consumers/{name}/resume", self.resume),
            web.post("/v1/consumers/{name}/replay", self.replay),
        ]

    async def list_consumers(self, _: web.Request) -> web.Response:
        """All that are configured. 200 `Consumers`."""
        now = self._clock.now()
        shown = [show_consumer(each, now, self._trouble(each.name)) for each in await self._store.consumers()]
        return json_answer(shapes.Consumers(consumers=shown))

    async def pause(self, request: web.Request) -> web.Response:
        """Tell a consumer nothing until it is resumed. 200 `Steered`, 404."""
        return await self._pause(request, paused=True)

    async def resume(self, request: web.Request) -> web.Response:
        """Go on telling a consumer. 200 `Steered`, 404."""
        return await self._pause(request, paused=False)

    async def _pause(self, request: web.Request, *, paused: bool) -> web.Response:
        before = await self._state(request)
        await self._store.pause(before.name, paused=paused)
        if before.paused is not paused:
            event = Event.CONSUMER_PAUSED if paused else Event.CONSUMER_RESUMED
            log.info(event, consumer=before.name)
        return await self._steered(request, changed=before.paused is not paused)

    async def retry(self, request: web.Request) -> web.Response:
        """Try at once what a webhook's consumer did not take and waits for its next try; while it is paused, as soon as
        it is resumed. 200 `Steered`, 404, 409."""
        return await self._again(request, parked=False)

    async def replay(self, request: web.Request) -> web.Response:
        """Try once more the batches of a webhook that were parked. 200 `Steered`, 404, 409."""
        return await self._again(request, parked=True)

    async def _again(self, request: web.Request, *, parked: bool) -> web.Response:
        state = await self._state(request)
        if not state.pushes:
            message = "this consumer fetches its events: what it did not acknowledge it gets again by itself"
            raise BadRequest("no_webhook", message, "name", 409)
        batches = await self._store.replay(state.name, parked=parked)
        self._hurry(state.name)
        log.info(Event.CONSUMER_REPLAYED, consumer=state.name, parked=parked, count=batches)
        return await self._steered(request, batches=batches, changed=batches > 0)

    async def _steered(self, request: web.Request, *, batches: int = 0, changed: bool) -> web.Response:
        state = await self._state(request)
        shown = show_consumer(state, self._clock.now(), self._trouble(state.name))
        return json_answer(shapes.Steered(consumer=shown, batches=batches, changed=changed))

    async def _state(self, request: web.Request) -> ConsumerState:
        name = request.match_info["name"]
        states = {state.name: state for state in await self._store.consumers()}
        if name not in states:
            raise no_consumer(name, states, "name")
        return states[name]
