"""The sending of requests for sessions, as worker and gateway share it: one rate, one limit, one judgement, and one
settlement of what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from asyncchatd.config import Settings
from asyncchatd.gms import Answer, GmsClient, InFlight, Pacer
from asyncchatd.log import metrics
from asyncchatd.model import Clock
from asyncchatd.sending.flight import Flight
from asyncchatd.sending.judgement import FAILED, Judge, landing
from asyncchatd.sending.settling import Settling
from asyncchatd.sending.suspects import Aliases
from asyncchatd.stores import Store

LOOK_SECONDS = 0.05
"""So often a call that waits for room looks whether it is still wanted."""

TURN_SECONDS = 0.01
"""So often one that waits for the rate of calls looks whether it may go."""

_CALLS_SENT = metrics.REQUESTS_SENT.labels(metrics.CALL).inc


class Sending:
    """What it takes to send a request for a session that is held. Its root tasks are `lives`."""

    def __init__(
        self,
        store: Store,
        gms: GmsClient,
        pacer: Pacer,
        in_flight: InFlight,
        settings: Settings,
        clock: Clock,
        wakeup: asyncio.Event,
        suspect: Callable[[str], None] = lambda alias: None,
    ) -> None:
        """`wakeup` is set when a session is due again, `suspect` is told of an alias whose Chat Server seems to be in
        trouble."""
        self._clock = clock
        self.wakeup = wakeup
        self.gms = gms
        self.pacer = pacer
        self.judge = Judge(settings, clock, lambda: store.told_kinds)
        self.settling = Settling(store, clock, wakeup, _lease_ms(settings))
        self.flight = Flight(gms, in_flight, Aliases(suspect, clock), self.settling.stood_still_since)
        self._settings = settings
        self._nodes = 1

    def reload(self, settings: Settings) -> None:
        """Send by these settings from now on. What is in flight stays so."""
        self._settings = settings
        self.pacer.reload(settings.restoration.max_rate)
        self._limit_flight()
        self.settling.lease_ms = _lease_ms(settings)
        self.judge.reload(settings)
        self.flight.changed.set()

    def share(self, nodes: int) -> None:
        """So many processes send from now on, with `restoration.max_in_flight` among them all."""
        if nodes != self._nodes:
            self._nodes = nodes
            self._limit_flight()
            self.flight.changed.set()

    def _limit_flight(self) -> None:
        most = math.ceil(self._settings.restoration.max_in_flight / self._nodes)
        self.flight.in_flight.reload(most, self._settings.gms.slow_after.total_seconds())

    def lives(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Its root tasks by name."""
        return {"settling": self.settling.settle_answers(), "leases": self.settling.hold_leases()}

    async def turn_for_call(self, is_over: Callable[[], bool], lane: Pacer | None = None) -> bool:
        """Wait until a call may leave, under the limit, the rate of `lane` and that of all. Whether it may: not when it
        `is_over` before. Raises what the shared rate raises."""
        while not self.flight.has_room_for_call():
            if is_over():
                return False
            self.flight.changed.clear()
            await self._clock.wait(self.flight.changed, LOOK_SECONDS)
        while lane is not None and not lane.try_turn():
            if is_over():
                return False
            await self._clock.sleep(TURN_SECONDS)
        while not (self.pacer.try_turn() or await self.pacer.turn(self._clock.monotonic() + LOOK_SECONDS)):
            if is_over():
                return False
        return not is_over()

    async def call(self, alias: str, request: Awaitable[Answer]) -> Answer:
        """Send a call that has its turn, for a session of this Chat Server."""
        departure = self.flight.left(alias, is_call=True)
        _CALLS_SENT()
        how = FAILED
        try:
            answer = await request
            how = landing(answer)
            return answer
        finally:
            self.flight.landed(departure, how)

    def hurry(self) -> None:
        """The daemon stops: no other node is asked any more, and each answer is written at once."""
        self.gms.closing = True
        self.flight.changed.set()
        self.settling.hurry()

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return self.flight.in_flight.count


def _lease_ms(settings: Settings) -> int:
    return round(settings.restoration.lease.total_seconds() * 1000)
