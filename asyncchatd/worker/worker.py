"""The restoration worker: pings what is due.

It claims due sessions, most urgent reason first, sends one ping Refresh for each under the rate and
the in-flight limit, and settles the answers. Three loops share the work: one claims and sends, one
settles whatever was answered meanwhile in one transaction, one holds the leases of what is still
on its way. A fourth sends keepalives, as long as they are few (`keepalives.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from asyncchatd.config import Settings
from asyncchatd.log import Event, get_logger
from asyncchatd.model import (
    Claim,
    Clock,
    Reason,
)
from asyncchatd.model import data as model
from asyncchatd.sending import IDLE_SECONDS, Confirming, Sending
from asyncchatd.stores import (
    EVERY_REASON,
    Effect,
    Store,
    StoreError,
    pause_left,
    tell_failure,
)
from asyncchatd.worker.keepalives import LULL_SECONDS, Keepalives
from asyncchatd.worker.pinging import Pinging
from asyncchatd.worker.telling import Crowds, log_absorbed, log_announced, log_progress, log_unacknowledged

BATCH_SECONDS = 0.1
"""A claim takes what can be sent in this time, so that something more urgent waits no longer."""

AHEAD_SECONDS = 0.03
"""So long before a batch is sent the next one is claimed: a claim has to wait for the disk, and turns to
send that pass meanwhile are lost."""

LARGEST_BATCH = 256
SMALLEST_BATCH = 8

ABSORB = 500
"""Pushes taken into effect between two claims."""

ABSORB_SECONDS = 0.25
"""So often pushes take effect while GMS is away: faster than they can come, and not with each of them."""

FAVOUR_EVERY = 4
"""Every so many claims a less urgent reason goes first, so that none starves in a long storm: pushes as fast as the
rate would otherwise outlast a restoration's window."""

FAVOURED = (Reason.RESTORE, Reason.RESTORE, Reason.REQUEST, Reason.RESTORE, Reason.RESTORE, Reason.KEEPALIVE)
"""The reasons whose turn it is then, one after the other: restorations have a window that ends, the others wait."""

LOOK_AFTER_SECONDS = 5.0
"""How often restorations are looked after: told how far they are, and that they are finished; those made of
shutdown notices are closed. Takes that ran out are told then, too."""

STALE_SECONDS = 1.0
"""A claim that had to wait longer for GMS is given back: what came meanwhile may be more urgent, and a push
for it would cost a second ping."""

URGENT = tuple(reason for reason in Reason if reason is not Reason.KEEPALIVE)
"""What the loop claims while keepalives are sent evenly beside it."""

log = get_logger()


class Worker:
    """The worker that pings what is due. Its root tasks are `lives`; `drain` ends it."""

    def __init__(
        self,
        store: Store,
        sending: Sending,
        settings: Settings,
        clock: Clock,
        wakeup: asyncio.Event,
        listening: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`wakeup` is set when a session is due; `listening` names the consumers that hear at once what they are
        told."""
        self._listening = listening
        self._store = store
        self._gms = sending.gms
        self._pacer = sending.pacer
        self._flight = sending.flight
        self._settling = sending.settling
        self._sending = sending
        self._pinging = Pinging(sending, settings, clock)
        self._keepalives = Keepalives(store, sending, self._pinging, settings, clock)
        self._crowds = Crowds(clock)
        self._clock = clock
        self._wakeup = wakeup
        self._idle = asyncio.Event()
        self._idle.set()
        self._ahead: asyncio.Task[list[Claim]] | None = None
        self._limit = 0
        self._rounds = 0
        self._stopping = False
        self._settings = settings

    def reload(self, settings: Settings) -> None:
        """Work by these settings from now on. What is in flight stays so, and so do due times."""
        self._settings = settings
        self._pinging.reload(settings)
        self._keepalives.reload(settings)
        self._wakeup.set()

    # -- root tasks --------------------------------------------------------------------------------

    def lives(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Its root tasks by name, to be run side by side until cancelled; each from now on, once."""
        return {
            "worker": self.run(),
            "keepalives": self._keepalives.run(),
            "progress": self.report_progress(),
        }

    async def run(self) -> None:
        """Claim what is due and send it, until cancelled or told to stop."""
        self._idle.clear()
        try:
            while not self._stopping or self._ahead is not None:
                began = self._clock.monotonic()
                try:
                    await self._send_all(await self._next())
                except StoreError as error:
                    tell_failure(error)
                    await self._clock.sleep(pause_left(self._clock.monotonic() - began))
        finally:
            if self._ahead is not None:
                self._ahead.cancel()
                await asyncio.gather(self._ahead, return_exceptions=True)
            self._idle.set()

    async def report_progress(self) -> None:
        """Say how far running restorations are, and tell of those made of shutdown notices, and close them."""
        before: dict[int, int] = {}
        looked_at = self._clock.monotonic()
        told = 0
        began = self._clock.now()
        while True:
            await self._clock.sleep(LOOK_AFTER_SECONDS)
            try:
                if not await self._store.duty("restorations", seconds=LOOK_AFTER_SECONDS):
                    continue
                await self._store.finish_announced(now=self._clock.now())
                for each in await self._store.ran_out(now=self._clock.now()):
                    log.warning(Event.TAKE_RAN_OUT, chat_id=each.chat_id, alias=each.alias)
                log_unacknowledged(await self._store.unacknowledged())
                # Also those that no settlement finished: a later one took their sessions over, for instance.
                await self._settling.tell_finished()
                running = await self._store.restorations(unfinished=True)
            except StoreError as error:
                tell_failure(error)
                continue
            passed, looked_at = self._clock.monotonic() - looked_at, self._clock.monotonic()
            for restoration in sorted(running, key=lambda each: each.id):
                # Nobody began it, its first notice did. One of before the start was told then.
                new = restoration.id > told and restoration.started_at >= began
                if new and restoration.cause is model.Cause.ANNOUNCED:
                    told = restoration.id
                    log_announced(restoration)
                if not restoration.waiting:
                    continue  # one made of shutdown notices, kept open for those that may follow
                done = restoration.sessions - restoration.waiting
                # Of one that was not looked at before, all was done since it began.
                age = max(1, self._clock.now() - restoration.started_at) / 1000
                known = before.get(restoration.id)
                log_progress(restoration, done / age if known is None else (done - known) / passed)
            before = {each.id: each.sessions - each.waiting for each in running}

    async def drain(self, grace: float) -> int:
        """Claim nothing more, wait for what is in flight, settle it. How many pings were cut off
        because `grace` seconds were over; their sessions become due when their leases run out.
        The other root tasks must still be running."""
        self._stopping = True
        self._pinging.stopping.set()
        self._keepalives.calm.set()
        self._wakeup.set()
        self._sending.hurry()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
                await self._keepalives.idle.wait()
                await self._settling.settled()
        self._settling.tell_lost()
        return len(self._pinging)

    @property
    def in_flight(self) -> int:
        """Pings sent and not answered."""
        return self._sending.in_flight

    # -- claiming ------------------------------------------------------------------------------------

    async def _next(self) -> list[Claim]:
        """The batch that was claimed while the one before was sent, or else one claimed now."""
        ahead, self._ahead = self._ahead, None
        return await self._claim() if ahead is None else await ahead

    async def _claim(self) -> list[Claim]:
        """The next sessions to ping; waits when there are none."""
        if self._wakeup.is_set():
            self._wakeup.clear()
            self._settling.soon()
        told = self._store.waiting()
        if not self._flight.has_slot():
            await self._absorb()
            if not self._flight.has_slot():
                await self._wait_for_slot()
            return []
        await self._settling.renew_late()
        asked_at = self._clock.now()
        claims = await (self._absorb_and_take() if told else self._take())
        still_held = self._settling.hold(claims, asked_at)
        for claim in claims:
            if claim.chat_id in still_held:
                self._pinging.put_off(claim)
        claims = [claim for claim in claims if claim.chat_id not in still_held]
        if not claims:
            self._keepalives.quiet()
        # A store that others share may have claimed before it absorbed: then there may be more.
        if not claims and not told and not self._store.waiting():
            await self._clock.wait(self._wakeup, await self._pause())
        return claims

    async def _wait_for_slot(self) -> None:
        # No push can be acknowledged now, so none needs to wake us; they are durable where they are.
        self._flight.changed.clear()
        if not self._stopping:
            await self._clock.wait(self._flight.changed, min(ABSORB_SECONDS, self._gms.retry_in() + 0.001))

    async def _absorb_and_take(self) -> list[Claim]:
        """Both in one transaction of the store's, where its writer is free: each would wait for the disk by itself."""
        asked_at = self._clock.now()
        absorbing, taking = asyncio.ensure_future(self._absorb()), asyncio.ensure_future(self._take())
        await asyncio.gather(absorbing, taking, return_exceptions=True)  # and cancels both with this
        claims = taking.result()
        if (error := absorbing.exception()) is not None:
            self._settling.hold(claims, asked_at)
            for claim in claims:
                self._pinging.give_back(claim)
            raise error
        return claims

    async def _absorb(self) -> None:
        """Let pushes take effect, and tell what they did."""
        absorb = self._store.absorb(ABSORB, now=self._clock.now(), listening=self._listening())
        for absorbed in await absorb:
            if absorbed.chat_id is not None:
                self._settling.want(absorbed.chat_id)
            if absorbed.effect is Effect.CROWDED:
                self._crowds.note(absorbed.device_id)
                continue
            log_absorbed(absorbed)
            if absorbed.leaving and absorbed.alias is not None:
                self._flight.aliases.suspect(absorbed.alias)

    async def _take(self) -> list[Claim]:
        """Claim what can be sent in the next moments."""
        limit = self._limit = self._batch()
        reasons = self._reasons()
        claims = await self._store.claim(
            now=self._clock.now(), limit=limit, lease_ms=self._settling.lease_ms, reasons=reasons
        )
        if len(claims) >= limit:
            self._keepalives.swamp()
        elif Reason.KEEPALIVE in reasons:
            self._keepalives.resume()
        return claims

    def _batch(self) -> int:
        """What can be sent in `BATCH_SECONDS`: by the rate, and by what GMS lately let through."""
        rate = math.ceil(self._settings.restoration.max_rate * BATCH_SECONDS)
        lately = max(self._flight.in_flight.limit, math.ceil(self._pinging.per_second() * BATCH_SECONDS))
        return min(LARGEST_BATCH, rate, max(SMALLEST_BATCH, lately))

    def _reasons(self) -> Sequence[Reason]:
        if not self._keepalives.swamped:
            return URGENT
        self._rounds += 1
        turn, rest = divmod(self._rounds, FAVOUR_EVERY)
        if rest:
            return EVERY_REASON
        first = FAVOURED[turn % len(FAVOURED)]
        return (first, *(reason for reason in EVERY_REASON if reason is not first))

    async def _pause(self) -> float:
        """How long there is nothing to do unless somebody wakes us: until a session falls due."""
        now = self._clock.now()
        due = await self._store.next_due(
            now=now, reasons=EVERY_REASON if self._keepalives.swamped else URGENT
        )
        return IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(LULL_SECONDS, (due - now) / 1000))

    # -- sending ---------------------------------------------------------------------------------------

    async def _send_all(self, claims: Sequence[Claim]) -> None:
        """Send a batch, each as soon as it may."""
        if claims:
            self._keepalives.calm.clear()
        began = self._clock.monotonic()
        enough = len(claims) - min(len(claims) // 2, math.ceil(self._pacer.rate * AHEAD_SECONDS))
        confirming = Confirming(self._store, self._settling, claims, self._pacer.rate, self._clock)
        for place, claim in enumerate(claims):
            if self._is_stale(began):
                self._pinging.give_back(claim)
                continue
            if place == enough and len(claims) == self._limit and not self._stopping:
                self._ahead = asyncio.create_task(self._claim())  # a full batch: there is more
            if not self._pinging.may_go(claim):
                continue
            while not (self._flight.has_room() or self._stopping or self._is_stale(began)):
                await self._pinging.room(self._stale_at(began))
            if self._is_stale(began):
                self._pinging.give_back(claim)
                continue
            try:
                has_turn = self._pacer.try_turn() or await self._pacer.turn(self._stale_at(began))
                may_be_sent = has_turn and await confirming.may_send(place)
            except StoreError:
                for rest in claims[place:]:
                    self._pinging.give_back(rest)
                raise
            if may_be_sent and not self._stopping:
                self._pinging.send(claim)
            else:
                self._pinging.give_back(claim)
        if self._ahead is None:
            self._keepalives.quiet()

    def _is_stale(self, began: float) -> bool:
        return self._clock.monotonic() > self._stale_at(began)

    def _stale_at(self, began: float) -> float:
        """Until when a batch that was begun then may wait. While this process stood still it did not wait: nobody else
        has pinged what it holds, and that has been due for the longest time."""
        woke_at = self._clock.monotonic() if self._settling.is_late() else self._settling.woke_at
        return max(began, woke_at) + STALE_SECONDS
