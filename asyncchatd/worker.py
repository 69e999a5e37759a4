"""The restoration worker: pings what is due.

It claims due sessions, most urgent reason first, sends one ping Refresh for each under the rate and
the in-flight limit, and settles the answers. Three loops share the work: one claims and sends, one
settles whatever was answered meanwhile in one transaction, one holds the leases of what is still
on its way. A Refresh in flight is never cancelled while its answer may come: it may carry a new
secure key that nobody will tell again.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import suppress

from asyncchatd import metrics
from asyncchatd.clock import Clock
from asyncchatd.config import Settings
from asyncchatd.gms import NO_NODE, Answer, GmsClient
from asyncchatd.log import Event, get_logger
from asyncchatd.model import Claim, Reason, Restoration, Settled, Settlement, TokenNews, Verdict
from asyncchatd.pacing import InFlight, Pacer
from asyncchatd.stores import Store, StoreError
from asyncchatd.stores.base import EVERY_REASON, Absorbed, Effect
from asyncchatd.wire.chat_api import Alive, Cause, Ended, NodeTrouble, Refused, RetryLater

BATCH_SECONDS = 0.1
"""A claim takes what can be sent in this time, so that something more urgent waits no longer."""

LARGEST_BATCH = 256

ABSORB = 1_000
"""Pushes taken into effect between two claims."""

IDLE_SECONDS = 1.0
"""The longest look-away: leases of a dead process run out without anybody being woken."""

KEEPALIVE_JITTER = 0.1
"""A keepalive comes up to this share of the interval early, never late."""

FAIR_SHARE = 10
"""Every so many claims a less urgent reason goes first, so that none starves in a long storm."""

PROGRESS_SECONDS = 5.0

STORE_PAUSE_SECONDS = 1.0
"""Between two tries when the store cannot be written, a full disk for instance."""

log = get_logger()


class Worker:
    """Root tasks: `run`, `settle_answers`, `hold_leases`, `report_progress`. Then `drain`."""

    def __init__(
        self,
        store: Store,
        gms: GmsClient,
        pacer: Pacer,
        in_flight: InFlight,
        settings: Settings,
        clock: Clock,
        wakeup: asyncio.Event,
    ) -> None:
        self._store = store
        self._gms = gms
        self._pacer = pacer
        self._in_flight = in_flight
        self._settings = settings
        self._clock = clock
        self._wakeup = wakeup
        self._held: dict[tuple[int, str], Claim] = {}
        self._pings: set[asyncio.Task[None]] = set()
        self._answered: list[Settlement] = []
        self._to_settle = asyncio.Event()
        self._all_settled = asyncio.Event()
        self._sending = asyncio.Event()
        self._sending.set()
        self._rounds = 0
        self._stopping = False
        rate = settings.restoration.max_rate
        self._batch = min(LARGEST_BATCH, math.ceil(rate * BATCH_SECONDS))
        self._lease_ms = round(settings.restoration.lease.total_seconds() * 1000)
        self._interval_ms = settings.ping.interval.total_seconds() * 1000

    # -- root tasks --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim what is due and send it, until cancelled or told to stop."""
        self._sending.clear()
        try:
            while not self._stopping:
                self._wakeup.clear()
                try:
                    await self._round()
                except StoreError as error:
                    log.error(Event.STORE_FAILED, cause=str(error))
                    await self._clock.sleep(STORE_PAUSE_SECONDS)
        finally:
            self._sending.set()

    async def settle_answers(self) -> None:
        """Write down answers as they come; those that came during one transaction share the next."""
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            batch, self._answered = self._answered, []
            try:
                settled = await self._store.settle(batch)
            except StoreError as error:
                # An answer may hold a new secure key: it is kept until the disk takes it.
                log.error(Event.STORE_FAILED, cause=str(error))
                self._answered[:0] = batch
                await self._clock.sleep(STORE_PAUSE_SECONDS)
                self._to_settle.set()
                continue
            for settlement, one in zip(batch, settled, strict=True):
                self._held.pop((settlement.claim.claim_id, settlement.claim.chat_id), None)
                await self._note(settlement, one)
            self._wakeup.set()
            if not self._answered:
                self._all_settled.set()

    async def hold_leases(self) -> None:
        """While this process lives nobody else gets what it has claimed, however slow GMS is. The
        lease itself is short, so that a killed daemon's work is soon taken up again."""
        while True:
            await self._clock.sleep(self._lease_ms / 3000)
            with suppress(StoreError):  # told by the loops that write
                await self._store.renew(list(self._held.values()), until=self._clock.now() + self._lease_ms)

    async def report_progress(self) -> None:
        """Say how far running restorations are, and close those made of shutdown notices."""
        while True:
            await self._clock.sleep(PROGRESS_SECONDS)
            finished = await self._store.finish_announced(now=self._clock.now())
            for restoration in await self._store.restorations(limit=50):
                if restoration.id in finished:
                    _log_finished(restoration)
                elif restoration.finished_at is None and restoration.waiting:
                    _log_progress(restoration)

    async def drain(self, grace: float) -> int:
        """Claim nothing more, wait for what is in flight, settle it. How many pings were cut off
        because `grace` seconds were over; their sessions become due when their leases run out.
        `settle_answers` must still be running."""
        self._stopping = True
        self._wakeup.set()
        try:
            async with asyncio.timeout(grace):
                await self._sending.wait()
                if self._pings:
                    await asyncio.wait(self._pings)
                if self._answered or self._to_settle.is_set():
                    self._all_settled.clear()
                    await self._all_settled.wait()
        except TimeoutError:
            return len(self._pings)
        return 0

    @property
    def in_flight(self) -> int:
        """Pings sent and not answered."""
        return self._in_flight.count

    async def _round(self) -> None:
        for absorbed in await self._store.absorb(ABSORB):
            _log_absorbed(absorbed)
        claims = await self._claim()
        if not claims:
            await self._clock.wait(self._wakeup, await self._pause())
        for claim in claims:
            await self._pacer.turn()
            self._send(claim)

    # -- claiming ------------------------------------------------------------------------------------

    async def _claim(self) -> list[Claim]:
        slots = self._gms.slots()
        room = min(self._batch, self._in_flight.free, self._batch if slots is None else slots)
        if room == 0 or self._stopping:
            return []
        claims = await self._store.claim(
            now=self._clock.now(), limit=room, lease_ms=self._lease_ms, reasons=self._reasons()
        )
        self._held.update(((claim.claim_id, claim.chat_id), claim) for claim in claims)
        return claims

    def _reasons(self) -> Sequence[Reason]:
        self._rounds += 1
        favoured, rest = divmod(self._rounds, FAIR_SHARE)
        if rest:
            return EVERY_REASON
        first = EVERY_REASON[1 + favoured % (len(EVERY_REASON) - 1)]
        return (first, *(reason for reason in EVERY_REASON if reason is not first))

    async def _pause(self) -> float:
        """How long there is nothing to send unless somebody wakes us: until a session falls due, or
        a resting node may be tried. A ping that lands wakes us too."""
        if self._gms.slots() == 0:
            return min(IDLE_SECONDS, self._gms.retry_in() + 0.001)
        if self._in_flight.free == 0:
            return IDLE_SECONDS
        now = self._clock.now()
        due = await self._store.next_due(now=now)
        return IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(0.001, (due - now) / 1000))

    # -- one ping --------------------------------------------------------------------------------------

    def _send(self, claim: Claim) -> None:
        if self._store.superseded(claim) or self._stopping:
            self._settle(Settlement(claim, Verdict.RELEASED, claim.due_at, settled_at=self._clock.now()))
            return
        self._in_flight.count += 1
        ping = asyncio.create_task(self._ping(claim))
        self._pings.add(ping)
        ping.add_done_callback(self._pings.discard)

    async def _ping(self, claim: Claim) -> None:
        try:
            answer = await self._gms.refresh(
                claim.service or self._settings.gms.service, claim.tokens, claim.next_position
            )
        finally:
            self._in_flight.count -= 1
        metrics.PING_SECONDS.observe(answer.took)
        settlement = self._judge(claim, answer)
        self._settle(settlement)
        _log_ping(settlement, answer, self._clock.now())

    def _settle(self, settlement: Settlement) -> None:
        self._answered.append(settlement)
        self._to_settle.set()

    def _judge(self, claim: Claim, answer: Answer) -> Settlement:
        """What the answer means for the session."""
        now = self._clock.now()

        def verdict(
            what: Verdict, due_at: float, *, trouble: str | None = None, news: TokenNews | None = None
        ) -> Settlement:
            return Settlement(
                claim,
                what,
                due_at,
                sent_at=answer.sent_at,
                settled_at=now,
                news=news or TokenNews(),
                trouble=trouble,
            )

        match answer.outcome:
            case Alive(reply):
                times = [event.utc_time for event in reply.events if event.utc_time is not None]
                return Settlement(
                    claim,
                    Verdict.ANSWERED,
                    now + self._keepalive_ms(),
                    sent_at=answer.sent_at,
                    settled_at=now,
                    news=reply.news,
                    next_position=reply.next_position,
                    seen_utc=max(times, default=None),
                )
            case Ended():
                return verdict(Verdict.ENDED, now)
            case Refused(cause):
                return verdict(Verdict.REFUSED, now + self._keepalive_ms(), trouble=cause)
            case NodeTrouble(cause) if cause == NO_NODE:
                return verdict(Verdict.RELEASED, claim.due_at)
            case RetryLater(cause, retry_after) | NodeTrouble(cause, retry_after):
                pause = max(self._backoff_ms(claim.attempts), (retry_after or 0) * 1000)
                return verdict(Verdict.RETRY, now + pause, trouble=cause)

    def _keepalive_ms(self) -> float:
        return self._interval_ms * random.uniform(1 - KEEPALIVE_JITTER, 1)

    def _backoff_ms(self, attempts: int) -> float:
        """Full jitter: sessions that failed together do not come back together."""
        settings = self._settings.restoration
        ceiling = min(
            settings.backoff_max.total_seconds(), settings.backoff.total_seconds() * 2 ** min(attempts, 20)
        )
        return random.uniform(0, ceiling * 1000)

    async def _note(self, settlement: Settlement, settled: Settled) -> None:
        claim = settlement.claim
        if settlement.verdict is not Verdict.RELEASED:
            metrics.PINGS.labels(claim.reason.word, settlement.verdict.value).inc()
        if settlement.verdict is Verdict.ENDED and settled.lease_held:
            log.info(Event.SESSION_ENDED, chat_id=claim.chat_id, alias=claim.tokens.alias, cause="chat_ended")
        elif not settled.lease_held:
            log.warning(Event.LEASE_LOST, chat_id=claim.chat_id, reason=claim.reason.word)
        if settled.tokens_changed:
            log.info(
                Event.SESSION_TOKENS_CHANGED,
                chat_id=claim.chat_id,
                alias=settled.alias,
                previous_alias=claim.tokens.alias,
            )
        if settled.finished is not None:
            for restoration in await self._store.restorations(limit=50):
                if restoration.id == settled.finished:
                    _log_finished(restoration)


def _log_ping(settlement: Settlement, answer: Answer, now: int) -> None:
    claim = settlement.claim
    fields = {
        "chat_id": claim.chat_id,
        "alias": claim.tokens.alias,
        "reason": claim.reason.word,
        "restoration": claim.restoration,
        "node": answer.node,
    }
    match settlement.verdict:
        case Verdict.ANSWERED:
            log.debug(Event.PING_OK, **fields, took_ms=round(answer.took * 1000, 1))
        case Verdict.RETRY if settlement.trouble == Cause.FOREIGN_REPLY:
            log.error(Event.PING_FOREIGN_REPLY, **fields)
        case Verdict.RETRY:
            log.warning(
                Event.PING_RETRY,
                **fields,
                cause=settlement.trouble,
                attempt=claim.attempts + 1,
                next_ms=round(settlement.due_at - now),
            )
        case Verdict.REFUSED:
            log.error(Event.PING_REFUSED, **fields, cause=settlement.trouble)
        case _:
            pass


def _log_absorbed(absorbed: Absorbed) -> None:
    named = {"chat_id": absorbed.chat_id, "alias": absorbed.alias}
    match absorbed.effect:
        case Effect.ADOPTED:
            log.info(Event.PUSH_SESSION_ADOPTED, **named)
        case Effect.COMPLETED:
            log.info(Event.SESSION_COMPLETED, **named)
        case Effect.INCOMPLETE:
            log.warning(Event.PUSH_UNKNOWN_SESSION, **named, device_id=absorbed.device_id)
        case Effect.LEARNED:
            log.info(Event.SESSION_TOKENS_CHANGED, **named, cause="push")
        case Effect.STALE:
            log.info(Event.PUSH_TOKENS_IGNORED, **named, cause="older than what is known")
        case _:
            pass


def _log_progress(restoration: Restoration) -> None:
    log.info(
        Event.RESTORATION_PROGRESS,
        restoration=restoration.id,
        server=restoration.server,
        restored=restoration.restored,
        ended=restoration.ended,
        refused=restoration.refused,
        waiting=restoration.waiting,
    )


def _log_finished(restoration: Restoration) -> None:
    log.info(
        Event.RESTORATION_FINISHED,
        restoration=restoration.id,
        server=restoration.server,
        restored=restoration.restored,
        ended=restoration.ended,
        refused=restoration.refused,
        took_ms=(restoration.finished_at or restoration.started_at) - restoration.started_at,
    )
