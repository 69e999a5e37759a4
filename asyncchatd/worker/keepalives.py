"""Keepalives, which have room of minutes: those of about a second are claimed together and sent evenly over the next.

Each claim and each settlement is a transaction, whose cost a keepalive would else bear alone. What is more urgent
never waits for them: they leave when nothing else does, and whoever wants the session of one that has not been sent
has it at once. When there are more than can be sent evenly, the loop of all reasons takes them, as in a storm.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from asyncchatd.config import Settings
from asyncchatd.model import Claim, Clock, Reason
from asyncchatd.sending import IDLE_SECONDS, Confirming, Sending, together_seconds
from asyncchatd.stores import Store, StoreError, pause_left, tell_failure
from asyncchatd.worker.pinging import Pinging

LARGEST_PORTION = 256
"""Where so many fall due in that time it is shorter, and half of this is aimed at: pushes wait for the transaction."""

FEWEST = 16
"""Of fewer it cannot be told how thick they come."""

LULL_SECONDS = 0.1
"""The shortest look-away when nothing is due."""

BESIDE_SECONDS = 0.02
"""Those whose moments come within this leave with the one before, as far as the pacer lets them: to wake for each
costs as much as to send it."""

LATE_SECONDS = 1.0
"""One that could not be sent within so long after its moment is given back, and those behind it."""

_KEEPALIVE = (Reason.KEEPALIVE,)


class Keepalives:
    """The loop that sends keepalives evenly, beside the worker's loop for all reasons."""

    def __init__(
        self, store: Store, sending: Sending, pinging: Pinging, settings: Settings, clock: Clock
    ) -> None:
        self.calm = asyncio.Event()
        """Set while nothing more urgent waits for its turn, and the other loop leaves keepalives to this one."""
        self.idle = asyncio.Event()
        """Set when it claims nothing more, and holds nothing that was not sent."""
        self.idle.set()
        self._store = store
        self._gms = sending.gms
        self._pacer = sending.pacer
        self._flight = sending.flight
        self._settling = sending.settling
        self._pinging = pinging
        self._stopping = pinging.stopping
        self._clock = clock
        self._wakeup = sending.wakeup
        self._seconds = LULL_SECONDS
        """For so long the next portion is sent. It gets longer while few come."""
        self._swamped = True
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Go by this interval from now on."""
        self._longest = max(LULL_SECONDS, together_seconds(settings.ping.interval.total_seconds()))

    @property
    def swamped(self) -> bool:
        """Whether there are more than can be sent evenly, and the other loop has to take them. So it is at the start:
        that loop finds out how many there are."""
        return self._swamped or self._gms.slots() is not None

    def swamp(self) -> None:
        """Leave keepalives to the other loop."""
        self._swamped = True
        self.calm.clear()

    def resume(self) -> None:
        """Take them again: the other loop has found no more than it could send."""
        self._swamped = False

    def quiet(self) -> None:
        """Go on: nothing more urgent waits for its turn."""
        if not self.swamped:
            self.calm.set()

    async def run(self) -> None:
        """Send keepalives, until cancelled or told to stop."""
        self.idle.clear()
        try:
            while not self._stopping.is_set():
                began = self._clock.monotonic()
                try:
                    await self._round()
                except StoreError as error:
                    tell_failure(error)
                    await self._clock.wait(self._stopping, pause_left(self._clock.monotonic() - began))
        finally:
            self.idle.set()

    async def _round(self) -> None:
        if not self.calm.is_set() or self.swamped:
            await self._clock.wait(self._stopping if self.calm.is_set() else self.calm, IDLE_SECONDS)
            return
        limit = min(LARGEST_PORTION, math.ceil(self._pacer.rate * self._seconds))
        claims = await self._claim(limit)
        began = self._clock.monotonic()
        self._seconds = self._next_seconds(claims)
        if not claims:
            await self._clock.wait(self._stopping, await self._pause())
            return
        is_full = len(claims) >= limit
        seconds = len(claims) / self._pacer.rate if is_full else self._seconds
        sent = await self._send_evenly(claims, seconds)
        if is_full or not sent:
            self.swamp()
            self._wakeup.set()
        elif (rest := began + seconds - self._clock.monotonic()) > 0:
            await self._clock.wait(self._stopping, rest)

    def _next_seconds(self, claims: Sequence[Claim]) -> float:
        """The time in which half of a portion falls due, as thick as these did; at most twice as long as before."""
        dues = [claim.due_at for claim in claims]
        longest = min(self._longest, self._seconds * 2)
        if len(dues) < FEWEST:
            return longest
        apart = (max(dues) - min(dues)) / 1000 / (len(dues) - 1)
        return min(longest, max(LULL_SECONDS, apart * LARGEST_PORTION / 2))

    async def _claim(self, limit: int) -> list[Claim]:
        await self._settling.renew_late()
        asked_at = self._clock.now()
        claims = await self._store.claim(
            now=asked_at, limit=limit, lease_ms=self._settling.lease_ms, reasons=_KEEPALIVE
        )
        still_held = self._settling.hold(claims, asked_at)
        for claim in claims:
            if claim.chat_id in still_held:
                self._pinging.put_off(claim)
        claims = [claim for claim in claims if claim.chat_id not in still_held]
        self._settling.plan(claims)
        return claims

    async def _pause(self) -> float:
        now = self._clock.now()
        due = await self._store.next_due(now=now, reasons=_KEEPALIVE)
        return self._longest if due is None else min(self._longest, max(LULL_SECONDS, (due - now) / 1000))

    async def _send_evenly(self, claims: Sequence[Claim], seconds: float) -> bool:
        """Whether all of them could be sent in time."""
        confirming = Confirming(self._store, self._settling, claims, len(claims) / seconds, self._clock)
        began, spacing = self._clock.monotonic(), seconds / len(claims)
        for place, claim in enumerate(claims):
            try:
                has_turn = await self._turn(claim, began + place * spacing)
                may_be_sent = has_turn and await confirming.may_send(place)
            except StoreError:
                self._give_back(claims[place:])
                raise
            if not self._settling.is_planned(claim):
                continue  # somebody wanted it
            if not has_turn:
                self._give_back(claims[place:])
                return False
            self._settling.leave(claim)
            if not may_be_sent or self._stopping.is_set():
                self._pinging.give_back(claim)
            elif self._pinging.may_go(claim):
                self._pinging.send(claim)
        return True

    async def _turn(self, claim: Claim, at: float) -> bool:
        """Wait for its moment, and then until nothing else takes the turn. False when it comes too late, when the
        daemon stops and when somebody wants the session."""
        late = at + LATE_SECONDS
        while self._settling.is_planned(claim) and not self._stopping.is_set():
            now = self._clock.monotonic()
            if now > late:
                return False
            if at - now > BESIDE_SECONDS:
                await self._until(at - now)
            elif not self.calm.is_set():
                await self._clock.wait(self.calm, late - now + 0.001)
            elif not self._flight.has_room():
                await self._pinging.room(late)
            elif self._pacer.try_turn():
                return True
            else:
                await self._pacer.opening()
        return False

    async def _until(self, seconds: float) -> None:
        if seconds <= LULL_SECONDS:
            await self._clock.sleep(
                seconds
            )  # a wait that also hears of a stop costs the loop several times as much
        else:
            await self._clock.wait(self._stopping, seconds)

    def _give_back(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if self._settling.is_planned(claim):
                self._settling.leave(claim)
                self._pinging.give_back(claim)
