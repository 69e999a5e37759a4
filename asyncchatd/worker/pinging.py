"""Sending one ping: whether a claim may leave now, the Refresh, and what becomes of its answer.

A Refresh in flight is never cancelled while its answer may come: it may carry a new secure key that nobody will tell
again.
"""

from __future__ import annotations

import asyncio
import logging
import random

from asyncchatd.config import Settings
from asyncchatd.gms import Answer, RetryBudget, Trouble
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Claim, Clock, Reason, Settlement, Verdict
from asyncchatd.sending import ANSWERED, FAILED, IDLE_SECONDS, Departure, Sending, is_usual, landing, log_ping
from asyncchatd.wire import NodeTrouble

PUT_OFF_MS = (500.0, 1_500.0)
"""How long a claim is put off that must not be sent now."""

PACE_SECONDS = 0.1
"""For so long is counted what `Pinging.per_second` tells."""

log = get_logger()

_SENT = {reason: metrics.REQUESTS_SENT.labels(reason.word).inc for reason in Reason}


class Pinging:
    """The pings of the worker, whichever of its loops sends them."""

    def __init__(self, sending: Sending, settings: Settings, clock: Clock) -> None:
        self.stopping = asyncio.Event()
        """Set when nothing more may be sent."""
        self._gms = sending.gms
        self._flight = sending.flight
        self._judge = sending.judge
        self._settling = sending.settling
        self._budget = RetryBudget(settings.restoration.max_rate, clock)
        self._clock = clock
        self._pings: dict[int, asyncio.Task[None]] = {}
        self._sent = 0
        self._pace = _Pace(clock)
        self._settings = settings

    def __len__(self) -> int:
        """Pings sent and not settled."""
        return len(self._pings)

    def reload(self, settings: Settings) -> None:
        """Ping by these settings from now on."""
        self._settings = settings
        self._budget.reload(settings.restoration.max_rate)

    def per_second(self) -> float:
        """How many pings left lately, per second."""
        return self._pace.per_second()

    def may_go(self, claim: Claim) -> bool:
        """Whether a claim may be pinged at all: its Chat Server has room, and a retry is paid for. One that may not is
        put off."""
        if self._pays(claim) and self._flight.takes(claim.tokens.alias):
            return True
        self.put_off(claim)
        return False

    def _pays(self, claim: Claim) -> bool:
        """Take what a retry costs out of the budget; whether there was enough. A first try pays in."""
        if claim.attempts:
            return self._budget.spend()
        self._budget.earn()
        return True

    def give_back(self, claim: Claim) -> None:
        """As if it had not been claimed."""
        self._settling.settle(Settlement(claim, Verdict.RELEASED, claim.due_at, settled_at=self._clock.now()))

    def put_off(self, claim: Claim) -> None:
        """It is given back, and due a little later."""
        now = self._clock.now()
        self._settling.settle(
            Settlement(claim, Verdict.RELEASED, now + random.uniform(*PUT_OFF_MS), settled_at=now)
        )

    async def room(self, until: float) -> None:
        """Wait until one more may be in flight, no longer than until just after then."""
        while not self._flight.has_room() and not self.stopping.is_set():
            left = until - self._clock.monotonic()
            if left < 0:
                return
            self._flight.changed.clear()
            rest = IDLE_SECONDS if self._gms.slots() is None else self._gms.retry_in()
            await self._clock.wait(self._flight.changed, min(rest, left) + 0.001)

    def send(self, claim: Claim) -> None:
        """Send the ping Refresh of a claim that has its turn; its answer is settled when it comes."""
        self._pace.sent()
        self._sent += 1
        _SENT[claim.reason]()
        departure = self._flight.left(claim.tokens.alias)
        until = self._settling.safe_until()
        self._pings[self._sent] = asyncio.create_task(self._ping(claim, departure, until, self._sent))

    async def _ping(self, claim: Claim, departure: Departure, until: float, number: int) -> None:
        try:
            answer = await self._refresh(claim, departure, until)
            metrics.PING_SECONDS.observe(answer.took)
            settlement = self._judged(claim, answer)
            if not is_usual(settlement) or log.is_enabled_for(logging.DEBUG):
                log_ping(settlement, answer, self._clock.now())
            if answer.perhaps_taken:
                await self._clock.wait(self.stopping, self._judge.held_for(answer))
            self._settling.settle(settlement)
        finally:
            del self._pings[number]

    def _judged(self, claim: Claim, answer: Answer) -> Settlement:
        try:
            return self._judge.settlement(claim, answer)
        except Exception as error:  # as in `_refresh`
            log.error(Event.PING_FAILED, chat_id=claim.chat_id, cause=type(error).__name__, exc_info=error)
            own_fault = Answer(NodeTrouble(Trouble.OWN_FAULT), answer.node, answer.sent_at, answer.took)
            return self._judge.settlement(claim, own_fault)

    async def _refresh(self, claim: Claim, departure: Departure, until: float) -> Answer:
        how = FAILED
        try:
            position = self._judge.position(claim)
            answer = await self._gms.refresh(
                claim.service or self._settings.gms.service, claim.tokens, position, until=until
            )
            how = landing(answer)
        except Exception as error:
            # Whatever it is: a ping that is never settled would keep its lease, and its session be pinged
            # no more for as long as the daemon runs.
            log.error(Event.PING_FAILED, chat_id=claim.chat_id, cause=type(error).__name__, exc_info=error)
            answer = Answer(NodeTrouble(Trouble.OWN_FAULT), None, self._clock.now(), 0.0)
        finally:
            self._flight.landed(departure, how)
        if how is ANSWERED:
            self._budget.earn()
        return answer


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
        if passed >= PACE_SECONDS:
            self._rate = self._count / passed
            self._since, self._count = self._clock.monotonic(), 0
        return self._rate
