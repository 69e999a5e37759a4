"""What the worker has claimed, until it is settled: leases that are held, answers that are to be written."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress

from asyncchatd.model import Claim, Clock, Ms, Reason, Settlement, Verdict, replace
from asyncchatd.sending.telling import log_finished, note, tell_lost
from asyncchatd.stores import Store, StoreError, is_repeatable, pause_left, tell_failure

SETTLE_SECONDS = 0.05
"""Between two settlements: many answers then share one transaction. What must not be lost, new tokens
or an end, does not wait."""

PATIENT_SECONDS = 1.0
"""The same where nothing waits for it: for keepalives that were answered as usual."""

INTERVAL_SHARE = 1 / 60
"""Keepalives go together for no longer than this share of the interval, which is shorter than that for a second only
where somebody tries things out."""

TOGETHER = 200
"""So many of these are written at once, however soon they came: pushes wait for the transaction."""

STILL_SECONDS = 0.75
"""Whoever comes round four times a second and was not heard for so long stood still."""

IDLE_SECONDS = 1.0
"""The longest look-away of the loop that claims: leases of a dead process run out without anybody being woken. It is
woken for a due time within this."""


class Settling:
    """The claims a worker holds and the answers it has not written yet. `settle_answers` and `hold_leases` run from
    its start to its end."""

    def __init__(self, store: Store, clock: Clock, wakeup: asyncio.Event, lease_ms: int) -> None:
        """`wakeup` is set when a session is due again. `lease_ms` may be changed at any time."""
        self.lease_ms = lease_ms
        self._store = store
        self._clock = clock
        self._wakeup = wakeup
        self._held: dict[tuple[int, str], Claim] = {}
        self._renewed_at = clock.now()
        """No lease that is held is older, by the clock as it stood then."""
        self._claimed_at: Ms | None = None
        """When what was claimed since a renewal began was asked for, the oldest of it: it is not renewed."""
        self._renewing = asyncio.Lock()
        self.woke_at = float("-inf")
        """When this process was last found to have stood still, by the monotonic clock in seconds, or its clock to have
        been set."""
        self._round_at = float("inf")
        """When the event loop came round last, as far as somebody tells."""
        self._still_until = float("-inf")
        """When it did so last after it had stood still."""
        self._answered: list[Settlement] = []
        self._under_way: list[Settlement] = []
        """Answers that are being written."""
        self._planned: dict[str, Claim] = {}
        """Claims that wait for their moment, and can be given back at once, by chat id."""
        self._patient: set[str] = set()
        """Chat ids of answers for which nothing waits."""
        self._come = asyncio.Event()
        self._to_settle = asyncio.Event()
        self._precious = asyncio.Event()
        self._let_go = asyncio.Event()
        self._hurried = False

    # -- leases ------------------------------------------------------------------------------------

    def hold(self, claims: Sequence[Claim], asked_at: Ms) -> Collection[str]:
        """Hold these leases from now on, which were asked for then: they run since, also where this process stood still
        before it read of them. Returns the chat ids of those sessions that were held already: leases that
        could not be renewed, on a full disk for instance, ran out while their pings were on the way or their answers
        unsettled. These tell the key with which to ping next."""
        still_held = {chat_id for _, chat_id in self._held}
        if claims:
            self._renewed_at = min(self._renewed_at, asked_at)
            self._claimed_at = asked_at if self._claimed_at is None else min(self._claimed_at, asked_at)
        self._held.update(((claim.claim_id, claim.chat_id), claim) for claim in claims)
        return still_held.intersection(claim.chat_id for claim in claims)

    async def hold_leases(self) -> None:
        """While this process lives nobody else gets what it has claimed, however slow GMS is. The
        lease itself is short, so that a killed daemon's work is soon taken up again."""
        while True:
            await self._clock.sleep(self.lease_ms / 3000)
            with suppress(StoreError):  # told by the loops that write
                async with self._renewing:
                    await self._renew()

    def is_late(self) -> bool:
        """Whether the clock was set or the process stood still, and the leases were not renewed since: they seem to
        have run out and may have."""
        return abs(self._clock.now() - self._renewed_at) >= self.lease_ms / 2

    def safe_until(self) -> float:
        """Until when nobody else can have what is held, by the monotonic clock in seconds."""
        return self._clock.monotonic() + (self._renewed_at + self.lease_ms - self._clock.now()) / 1000

    def come_round(self) -> None:
        """Note that the event loop runs, four times a second: by the leases only a long standstill shows."""
        now = self._clock.monotonic()
        if now - self._round_at >= STILL_SECONDS:
            self._still_until = now
        self._round_at = now

    def stood_still_since(self, at: float) -> bool:
        """Whether this process stood still after that, or its clock was set, by the monotonic clock in seconds."""
        unheard = self._clock.monotonic() - self._round_at
        return unheard >= STILL_SECONDS or max(self.woke_at, self._still_until) >= at or self.is_late()

    async def renew_late(self) -> None:
        """Renew the leases if it `is_late`. Nothing that is held may be sent before. Raises `StoreError`."""
        if self.is_late():
            async with self._renewing:
                if self.is_late():  # who renews them anyway may have been quicker
                    await self._renew()

    async def _renew(self) -> None:
        now = self._clock.now()
        if self.is_late():
            self.woke_at = self._clock.monotonic()
        self._claimed_at = None
        await self._store.renew(list(self._held.values()), until=now + self.lease_ms)
        self._renewed_at = now if self._claimed_at is None else min(now, self._claimed_at)

    # -- claims that can wait --------------------------------------------------------------------------

    def plan(self, claims: Sequence[Claim]) -> None:
        """Let these, which are held, wait for their moment: whoever wants one of their sessions has it at once."""
        self._planned.update((claim.chat_id, claim) for claim in claims)

    def is_planned(self, claim: Claim) -> bool:
        """Whether this one still waits, and was not given back."""
        return self._planned.get(claim.chat_id) is claim

    def leave(self, claim: Claim) -> None:
        """Have this one wait no longer: its request is sent, or it is given back."""
        del self._planned[claim.chat_id]

    def want(self, chat_id: str) -> None:
        """Give the session back at once, if nothing but patience keeps it: its request has not been sent, or its answer
        is only to be written."""
        claim = self._planned.pop(chat_id, None)
        if claim is not None:
            self.settle(Settlement(claim, Verdict.RELEASED, claim.due_at, settled_at=self._clock.now()))
            self._precious.set()
        elif chat_id in self._patient:
            self._to_settle.set()
            self._precious.set()

    def soon(self) -> None:
        """Write down what was answered within `SETTLE_SECONDS`: somebody was told of something that is due."""
        if self._patient:
            self._to_settle.set()

    # -- answers -----------------------------------------------------------------------------------

    def settle(self, settlement: Settlement) -> None:
        """Have an answer written soon, and at once what nobody will say again."""
        self._answered.append(settlement)
        self._come.set()
        if self._hurried or not is_repeatable(settlement):
            self._precious.set()
        elif _can_wait(settlement):
            self._patient.add(settlement.claim.chat_id)
            if len(self._patient) < TOGETHER:
                return
        self._to_settle.set()

    async def settle_answers(self) -> None:
        """Write down answers as they come; those that came during one transaction share the next."""
        while True:
            await self._come.wait()
            if not self._to_settle.is_set():
                await self._clock.wait(self._to_settle, PATIENT_SECONDS)
            self._come.clear()
            self._to_settle.clear()
            self._precious.clear()
            batch = self._under_way = [self._by_the_clock(each) for each in self._answered]
            self._answered = []
            self._patient.clear()
            began = self._clock.monotonic()
            try:
                await self.renew_late()  # should it stand still once more before they are settled
                settled = await self._store.settle(batch)
            except Exception as error:
                # An answer may hold a new secure key: it is kept until the store takes it.
                tell_failure(error)
                self._answered[:0] = batch
                self._under_way = []
                await self._clock.sleep(pause_left(self._clock.monotonic() - began))
                self._come.set()
                self._to_settle.set()
                continue
            self._under_way = []
            for settlement, one in zip(batch, settled, strict=True):
                self._held.pop((settlement.claim.claim_id, settlement.claim.chat_id), None)
                note(settlement, one)
            self._let_go.set()
            soon = self._clock.now() + IDLE_SECONDS * 1000
            if any(one.due_again for one in settled) or any(each.due_at < soon for each in batch):
                self._wakeup.set()
            if any(one.finished is not None for one in settled):
                await self.tell_finished()
            await self._clock.wait(self._precious, SETTLE_SECONDS)

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

    async def tell_finished(self) -> None:
        """Log the restorations that are finished and have not been told yet."""
        try:
            finished = await self._store.newly_finished()
        except StoreError as error:
            tell_failure(error)
            return
        for restoration in finished:
            log_finished(restoration)

    # -- the end -----------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Write each answer at once from now on."""
        self._hurried = True
        self._to_settle.set()
        self._precious.set()

    async def let_go(self, seconds: float) -> None:
        """Return when some session was given back, or when the time is over."""
        self._let_go.clear()
        await self._clock.wait(self._let_go, seconds)

    async def settled(self) -> None:
        """Wait until no claim is held."""
        while self._held:
            self._let_go.clear()
            await self._let_go.wait()

    def tell_lost(self) -> None:
        """Log the answers that are not written and that nobody will say again."""
        tell_lost([*self._under_way, *self._answered])


def _can_wait(each: Settlement) -> bool:
    """Whether nothing waits for this answer, which is repeatable, to be written: a keepalive that was answered,
    restored nothing and is not soon due again."""
    claim = each.claim
    return (
        each.verdict is Verdict.ANSWERED
        and claim.reason is Reason.KEEPALIVE
        and claim.restoration is None
        and each.due_at - each.settled_at > 2 * PATIENT_SECONDS * 1000
    )


def together_seconds(interval_seconds: float) -> float:
    """For how long keepalives that fall due are claimed together, at this interval. Each then comes at most twice as
    late."""
    return min(PATIENT_SECONDS, interval_seconds * INTERVAL_SHARE)
