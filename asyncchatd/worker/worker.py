"""The restoration worker: pings what is due.

It claims due sessions, most urgent reason first, sends one ping Refresh for each under the rate and
the in-flight limit, and settles the answers. Three loops share the work: one claims and sends, one
settles whatever was answered meanwhile in one transaction, one holds the leases of what is still
on its way. A Refresh in flight is never cancelled while its answer may come: it may carry a new
secure key that nobody will tell again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from asyncchatd.config import Settings
from asyncchatd.gms import (
    Answer,
    GmsClient,
    InFlight,
    Landing,
    Pacer,
    RetryBudget,
    Trouble,
)
from asyncchatd.log import Event, get_logger
from asyncchatd.model import (
    Claim,
    Clock,
    Reason,
    Settlement,
    Verdict,
    replace,
)
from asyncchatd.model import data as model
from asyncchatd.stores import (
    EVERY_REASON,
    Effect,
    Store,
    StoreError,
    is_repeatable,
    tell_failure,
)
from asyncchatd.wire import NodeTrouble
from asyncchatd.worker.judgement import ANSWERED, FAILED, Judge, landing
from asyncchatd.worker.suspects import Aliases
from asyncchatd.worker.telling import (
    PING_SECONDS,
    Crowds,
    is_usual,
    log_absorbed,
    log_announced,
    log_finished,
    log_ping,
    log_progress,
    note,
    tell_lost,
)

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

SETTLE_SECONDS = 0.05
"""Between two settlements: many answers then share one transaction. What must not be lost, new tokens
or an end, does not wait."""

LULL_SECONDS = 0.1
"""The shortest look-away when nothing is due: keepalives that fall due in it share one claim."""

IDLE_SECONDS = 1.0
"""The longest look-away: leases of a dead process run out without anybody being woken."""

FAVOURED = (Reason.RESTORE, Reason.RESTORE, Reason.REQUEST, Reason.RESTORE, Reason.RESTORE, Reason.KEEPALIVE)
FAIR_SHARE = 4
"""Every so many claims a less urgent reason goes first, in the turn of `FAVOURED`, so that none starves
in a long storm: pushes as fast as the rate would otherwise outlast a restoration's window."""

LOOK_AFTER_SECONDS = 5.0
"""How often restorations are looked after: told how far they are, and that they are finished; those made of
shutdown notices are closed."""

STORE_PAUSE_SECONDS = 1.0
"""Between two tries when the store cannot be written, a full disk for instance."""

STALE_SECONDS = 1.0
"""A claim that had to wait longer for GMS is given back: what came meanwhile may be more urgent, and a push
for it would cost a second ping."""

AT_WORK_SECONDS = 2.0
"""A push waits no longer for a request that may have been taken, unless GMS may be at work on that one still."""

PUT_OFF_MS = (500.0, 1_500.0)
"""How long a claim is put off that must not be sent now."""

log = get_logger()


class Worker:
    """Its root tasks are `lives`. Then `drain`."""

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
        """`suspect` is told of an alias whose Chat Server seems to be in trouble."""
        self._store = store
        self._gms = gms
        self._pacer = pacer
        self._in_flight = in_flight
        self._budget = RetryBudget(settings.restoration.max_rate, clock)
        self._aliases = Aliases(suspect, clock)
        self._crowds = Crowds(clock)
        self._clock = clock
        self._wakeup = wakeup
        self._held: dict[tuple[int, str], Claim] = {}
        self._renewed_at = clock.now()
        """No lease that is held is older, by the clock as it stood then."""
        self._pings: dict[int, asyncio.Task[None]] = {}
        self._judge = Judge(settings, clock)
        self._answered: list[Settlement] = []
        self._settling: list[Settlement] = []
        """Answers that are being written."""
        self._to_settle = asyncio.Event()
        self._precious = asyncio.Event()
        self._landed = asyncio.Event()
        self._let_go = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ahead: asyncio.Task[list[Claim]] | None = None
        self._limit = 0
        self._sent = 0
        self._trials = 0
        self._rounds = 0
        self._pace = _Pace(clock)
        self._stopping = False
        self._stopped = asyncio.Event()
        self._take(settings)

    def reload(self, settings: Settings) -> None:
        """Work by these settings from now on. What is in flight stays so, and so do due times."""
        limits = settings.restoration
        self._pacer.reload(limits.max_rate)
        self._in_flight.reload(limits.max_in_flight, settings.gms.slow_after.total_seconds())
        self._take(settings)

    def _take(self, settings: Settings) -> None:
        self._settings = settings
        self._lease_ms = round(settings.restoration.lease.total_seconds() * 1000)
        self._judge.reload(settings)
        self._budget.reload(settings.restoration.max_rate)
        self._wakeup.set()
        self._landed.set()

    # -- root tasks --------------------------------------------------------------------------------

    def lives(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Its root tasks by name, to be run side by side until cancelled; each from now on, once."""
        return {
            "settling": self.settle_answers(),
            "leases": self.hold_leases(),
            "worker": self.run(),
            "progress": self.report_progress(),
        }

    async def run(self) -> None:
        """Claim what is due and send it, until cancelled or told to stop."""
        self._idle.clear()
        try:
            while not self._stopping or self._ahead is not None:
                try:
                    await self._send_all(await self._next())
                except StoreError as error:
                    tell_failure(error)
                    await self._clock.sleep(STORE_PAUSE_SECONDS)
        finally:
            if self._ahead is not None:
                self._ahead.cancel()
                await asyncio.gather(self._ahead, return_exceptions=True)
            self._idle.set()

    async def settle_answers(self) -> None:
        """Write down answers as they come; those that came during one transaction share the next."""
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            self._precious.clear()
            batch = self._settling = [self._by_the_clock(each) for each in self._answered]
            self._answered = []
            try:
                settled = await self._store.settle(batch)
            except Exception as error:
                # An answer may hold a new secure key: it is kept until the store takes it.
                tell_failure(error)
                self._answered[:0] = batch
                self._settling = []
                await self._clock.sleep(STORE_PAUSE_SECONDS)
                self._to_settle.set()
                continue
            self._settling = []
            for settlement, one in zip(batch, settled, strict=True):
                self._held.pop((settlement.claim.claim_id, settlement.claim.chat_id), None)
                note(settlement, one)
            self._let_go.set()
            soon = self._clock.now() + IDLE_SECONDS * 1000
            if any(one.due_again for one in settled) or any(each.due_at < soon for each in batch):
                self._wakeup.set()
            if any(one.finished is not None for one in settled):
                await self._tell_finished()
            await self._clock.wait(self._precious, SETTLE_SECONDS)

    async def hold_leases(self) -> None:
        """While this process lives nobody else gets what it has claimed, however slow GMS is. The
        lease itself is short, so that a killed daemon's work is soon taken up again."""
        while True:
            await self._clock.sleep(self._lease_ms / 3000)
            with suppress(StoreError):  # told by the loops that write
                await self._renew()

    async def report_progress(self) -> None:
        """Say how far running restorations are, and tell of those made of shutdown notices, and close them."""
        before: dict[int, int] = {}
        looked_at = self._clock.monotonic()
        told = 0
        began = self._clock.now()
        while True:
            await self._clock.sleep(LOOK_AFTER_SECONDS)
            try:
                await self._store.finish_announced(now=self._clock.now())
                # Also those that no settlement finished: a later one took their sessions over, for instance.
                await self._tell_finished()
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
                log_progress(restoration, (done - before.get(restoration.id, 0)) / passed)
            before = {each.id: each.sessions - each.waiting for each in running}

    async def drain(self, grace: float) -> int:
        """Claim nothing more, wait for what is in flight, settle it. How many pings were cut off
        because `grace` seconds were over; their sessions become due when their leases run out.
        `settle_answers` must still be running."""
        self._stopping = True
        self._stopped.set()
        self._gms.closing = True
        self._wakeup.set()
        self._landed.set()
        self._precious.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
                while self._held:
                    self._let_go.clear()
                    await self._let_go.wait()
        tell_lost([*self._settling, *self._answered])
        return len(self._pings)

    @property
    def in_flight(self) -> int:
        """Pings sent and not answered."""
        return self._in_flight.count

    # -- claiming ------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        now = self._clock.now()
        await self._store.renew(list(self._held.values()), until=now + self._lease_ms)
        self._renewed_at = now

    async def _next(self) -> list[Claim]:
        """The batch that was claimed while the one before was sent, or else one claimed now."""
        ahead, self._ahead = self._ahead, None
        return await self._claim() if ahead is None else await ahead

    async def _claim(self) -> list[Claim]:
        """The next sessions to ping; waits when there are none."""
        self._wakeup.clear()
        for absorbed in await self._store.absorb(ABSORB):
            if absorbed.effect is Effect.CROWDED:
                self._crowds.note(absorbed.device_id)
                continue
            log_absorbed(absorbed)
            if absorbed.leaving and absorbed.alias is not None:
                self._aliases.suspect(absorbed.alias)
        if not self._has_slot():
            # No push can be acknowledged now, so none needs to wake us; they are durable where they are.
            self._landed.clear()
            if not self._stopping:
                await self._clock.wait(self._landed, min(ABSORB_SECONDS, self._gms.retry_in() + 0.001))
            return []
        now = self._clock.now()
        if abs(now - self._renewed_at) >= self._lease_ms / 2:
            # The clock was set, or we stood still: leases seem to have run out that have not.
            await self._renew()
        limit = self._limit = self._batch()
        claims = await self._store.claim(
            now=now, limit=limit, lease_ms=self._lease_ms, reasons=self._reasons()
        )
        # Leases that could not be renewed, on a full disk for instance, ran out while their pings were on
        # the way or their answers unsettled. These tell the key with which to ping next.
        still_held = {chat_id for _, chat_id in self._held}
        self._held.update(((claim.claim_id, claim.chat_id), claim) for claim in claims)
        for claim in claims:
            if claim.chat_id in still_held:
                self._put_off(claim)
        claims = [claim for claim in claims if claim.chat_id not in still_held]
        if not claims and not self._store.waiting():
            await self._clock.wait(self._wakeup, await self._pause())
        return claims

    def _batch(self) -> int:
        """What can be sent in `BATCH_SECONDS`: by the rate, and by what GMS lately let through."""
        rate = math.ceil(self._settings.restoration.max_rate * BATCH_SECONDS)
        lately = max(self._in_flight.limit, math.ceil(self._pace.per_second() * BATCH_SECONDS))
        return max(1, min(LARGEST_BATCH, rate, max(SMALLEST_BATCH, lately)))

    def _reasons(self) -> Sequence[Reason]:
        self._rounds += 1
        turn, rest = divmod(self._rounds, FAIR_SHARE)
        if rest:
            return EVERY_REASON
        first = FAVOURED[turn % len(FAVOURED)]
        return (first, *(reason for reason in EVERY_REASON if reason is not first))

    async def _pause(self) -> float:
        """How long there is nothing to do unless somebody wakes us: until a session falls due."""
        now = self._clock.now()
        due = await self._store.next_due(now=now)
        return IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(LULL_SECONDS, (due - now) / 1000))

    # -- sending ---------------------------------------------------------------------------------------

    async def _send_all(self, claims: Sequence[Claim]) -> None:
        """Send a batch, each as soon as it may."""
        stale = self._clock.monotonic() + STALE_SECONDS
        enough = len(claims) - min(len(claims) // 2, math.ceil(self._pacer.rate * AHEAD_SECONDS))
        for place, claim in enumerate(claims):
            if self._clock.monotonic() > stale:
                self._give_back(claim)
                continue
            if place == enough and len(claims) == self._limit and not self._stopping:
                self._ahead = asyncio.create_task(self._claim())  # a full batch: there is more
            if not self._pays(claim) or not self._aliases.has_room(claim.tokens.alias, self._in_flight.limit):
                self._put_off(claim)
                continue
            if not self._has_room():
                await self._room(stale)
            if self._clock.monotonic() > stale:
                self._give_back(claim)
                continue
            if not self._pacer.try_turn():
                await self._pacer.turn()
            self._send(claim)

    def _pays(self, claim: Claim) -> bool:
        """Take what a retry costs out of the budget; whether there was enough. A first try pays in."""
        if claim.attempts:
            return self._budget.spend()
        self._budget.earn()
        return True

    def _give_back(self, claim: Claim) -> None:
        """As if it had not been claimed."""
        self._settle(Settlement(claim, Verdict.RELEASED, claim.due_at, settled_at=self._clock.now()))

    def _put_off(self, claim: Claim) -> None:
        """It is given back, and due a little later."""
        now = self._clock.now()
        self._settle(Settlement(claim, Verdict.RELEASED, now + random.uniform(*PUT_OFF_MS), settled_at=now))

    async def _room(self, until: float) -> None:
        """Wait until one more may be in flight, no longer than until just after then."""
        while not self._has_room() and not self._stopping and self._clock.monotonic() <= until:
            self._landed.clear()
            rest = IDLE_SECONDS if self._gms.slots() is None else self._gms.retry_in()
            await self._clock.wait(self._landed, min(rest, until - self._clock.monotonic()) + 0.001)

    def _has_room(self) -> bool:
        return self._is_free() and self._has_slot()

    def _has_slot(self) -> bool:
        slots = self._gms.slots()
        return slots is None or slots > self._trials

    def _is_free(self) -> bool:
        in_flight = self._in_flight
        if in_flight.has_room() or in_flight.count >= in_flight.ceiling:
            return in_flight.has_room()
        return in_flight.count - self._aliases.stuck(in_flight.limit) < in_flight.limit

    def _send(self, claim: Claim) -> None:
        if self._store.superseded(claim) or self._stopping:
            self._give_back(claim)
            return
        trial = self._gms.slots() is not None
        self._trials += trial
        self._pace.sent()
        self._aliases.sent(claim.tokens.alias)
        self._sent += 1
        self._pings[self._sent] = asyncio.create_task(
            self._ping(claim, self._in_flight.sent(), trial, self._sent)
        )

    async def _ping(self, claim: Claim, sent_at: float, trial: bool, number: int) -> None:
        try:
            answer = await self._refresh(claim, sent_at, trial)
            PING_SECONDS(answer.took)
            settlement = self._judge.settlement(claim, answer)
            if not is_usual(settlement) or log.is_enabled_for(logging.DEBUG):
                log_ping(settlement, answer, self._clock.now())
            if answer.perhaps_taken:
                # GMS may be at work on it still. Nobody gets the session meanwhile, whatever makes it due.
                pause = min(self._settings.restoration.backoff.total_seconds() / 2, AT_WORK_SECONDS)
                await self._clock.wait(self._stopped, max(pause, answer.at_work))
            self._settle(settlement)
        finally:
            del self._pings[number]

    async def _refresh(self, claim: Claim, sent_at: float, trial: bool) -> Answer:
        how = FAILED
        try:
            position = self._judge.position(claim)
            answer = await self._gms.refresh(
                claim.service or self._settings.gms.service, claim.tokens, position
            )
            how = landing(answer)
        except Exception as error:
            # Whatever it is: a ping that is never settled would keep its lease, and its session be pinged
            # no more for as long as the daemon runs.
            log.error(Event.PING_FAILED, chat_id=claim.chat_id, cause=type(error).__name__, exc_info=error)
            answer = Answer(NodeTrouble(Trouble.OWN_FAULT), None, self._clock.now(), 0.0)
        finally:
            self._aliases.landed(claim.tokens.alias, how)
            answered = how is ANSWERED
            # What one Chat Server's sessions suffer while others' are answered says nothing of GMS.
            alone = not answered and self._aliases.is_alone(claim.tokens.alias)
            self._in_flight.landed(sent_at, Landing.UNSENT if alone else how)
            self._trials -= trial
            self._landed.set()
        if answered:
            self._budget.earn()
        return answer

    # -- settling --------------------------------------------------------------------------------------

    def _settle(self, settlement: Settlement) -> None:
        self._answered.append(settlement)
        self._to_settle.set()
        if self._stopping or not is_repeatable(settlement):
            self._precious.set()

    def _by_the_clock(self, each: Settlement) -> Settlement:
        """As if it were judged now, when the clock was set back since: nobody would look at its due time again."""
        ahead = each.settled_at - self._clock.now()
        if ahead <= 0:
            return each
        return replace(
            each,
            due_at=each.due_at - ahead,
            sent_at=each.sent_at - ahead,
            settled_at=each.settled_at - ahead,
        )

    async def _tell_finished(self) -> None:
        try:
            finished = await self._store.newly_finished()
        except StoreError as error:
            tell_failure(error)
            return
        for restoration in finished:
            log_finished(restoration)


class _Pace:
    """How many pings left lately, per second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._count = 0
        self._rate = 0.0

    def sent(self) -> None:
        self._count += 1

    def per_second(self) -> float:
        passed = self._clock.monotonic() - self._since
        if passed >= BATCH_SECONDS:
            self._rate = self._count / passed
            self._since, self._count = self._clock.monotonic(), 0
        return self._rate
