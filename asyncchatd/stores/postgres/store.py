"""The PostgreSQL store: the contract, call by call.

What each call does inside its transaction stands in `transactions/`; what is open, and how long, in `opening.py`.
Further calls: those who are told in `telling.py`, sessions that are left to the custom-chat-app in `lending.py`, Chat
Servers in `restoring.py`, and what those who share the database agree upon in `sharing.py`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from asyncchatd.log import metrics
from asyncchatd.model import (
    Claim,
    EventKind,
    Finding,
    Ms,
    Reason,
    Registration,
    Session,
    SessionState,
    Settled,
    Settlement,
    TokenNews,
    Verdict,
)
from asyncchatd.stores.answers import Absorbed, Counts, NotTaken, Registered, Taken
from asyncchatd.stores.asking import Asking
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.held import HeldClaims, Told
from asyncchatd.stores.postgres import checking
from asyncchatd.stores.postgres.intake import Intake
from asyncchatd.stores.postgres.lending import LendingStore
from asyncchatd.stores.postgres.restoring import RestoringStore
from asyncchatd.stores.postgres.sharing import SharingStore
from asyncchatd.stores.postgres.transactions import (
    events,
    pushes,
    sessions,
    takes,
    work,
)
from asyncchatd.stores.postgres.wire import Connection
from asyncchatd.stores.rules import EVERY_REASON, is_repeatable
from asyncchatd.wire import Push

ABSORB_CHUNK = 1_000

PULL_IN_CHUNK = 5_000

LOOK_SECONDS = 1.0
"""How often is looked for pushes that another node took, and which has not let them take effect."""


class PostgresStore(LendingStore, RestoringStore, SharingStore):
    """The store of `postgresql://user@host/database?schema=asyncchatd`. Keeps the contract of
    `asyncchatd.stores.base.Store`."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        super().__init__(url, directory=directory, queue=queue, keys=keys)
        self._pushed = Intake(self._keep, queue=queue, begin=self._begun)
        # Another connection reads what a claim takes, and may not see these yet.
        self._held = HeldClaims(lambda: map(_told, self._pushed.pushes()))
        self._journal = True
        """Whether pushes of this node may wait that have not taken effect."""
        self._pushes = 0
        self._looked = 0.0

    async def check(self, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[Finding]:
        async for finding in checking.look(self._place, self._sealings, answers):
            yield finding

    # -- sessions --------------------------------------------------------------------------------

    async def register(
        self, registrations: Sequence[Registration], *, now: Ms, spread_ms: float
    ) -> list[Registered]:
        for registration in registrations:
            said = registration.tokens
            news = TokenNews(said.chat_id, said.user_id, said.secure_key, said.alias)
            self._held.hear(Told(said.chat_id, registration.device_id, news))
        told = EventKind.CHAT in self.told_kinds
        done = await self._writing(lambda tx: sessions.register(tx, registrations, now, spread_ms, told=told))
        if Registered.OVER in done:
            self.bell.ring()
        return done

    async def get(self, chat_id: str) -> Session | None:
        return await self._reading(lambda tx: sessions.get(tx, chat_id))

    async def sessions(
        self,
        *,
        alias: str | None = None,
        state: SessionState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Session]:
        return await self._reading(lambda tx: sessions.listed(tx, alias, state, limit, after))

    async def remove(self, chat_id: str, *, now: Ms) -> bool:
        return await self._writing(lambda tx: sessions.remove(tx, chat_id, now))

    async def make_due(self, chat_id: str, reason: Reason, *, now: Ms) -> bool:
        return await self._writing(lambda tx: sessions.make_due(tx, chat_id, reason, now))

    async def gateway_keys(self, ids: Sequence[str]) -> bool:
        return await self._writing(lambda tx: sessions.gateway_keys(tx, ids))

    async def seize(self, chat_id: str, *, now: Ms, lease_ms: int) -> Claim | NotTaken:
        if self._held.holds(chat_id):
            return NotTaken.IN_FLIGHT
        why = await self._reading(lambda tx: takes.obstacle(tx, chat_id, now))
        if why is not None:
            return why
        holder = self._holder(now, lease_ms)
        with self._held.claiming():
            seized = await self._writing(lambda tx: work.seize(tx, holder, chat_id), durable=False)
            if isinstance(seized, NotTaken):
                return seized
            self._hold(seized)
        return seized.claims[0][0]

    async def counts(self, *, now: Ms) -> Counts:
        return await self._reading(lambda tx: sessions.counts(tx, now, len(self._held)))

    async def counts_by_alias(self) -> Mapping[str, int]:
        return await self._reading(sessions.counts_by_alias)

    async def purge(self, *, ended_before: Ms, limit: int) -> int:
        return await self._writing(lambda tx: sessions.purge(tx, ended_before, limit))

    async def pull_in(self, *, now: Ms, spread_ms: float) -> int:
        await self._writing(lambda tx: sessions.cut(tx, now))
        changed = 0
        for reason in Reason:
            pull_in = partial(
                sessions.pull_in, reason=reason, now=now, spread_ms=spread_ms, limit=PULL_IN_CHUNK
            )
            chunk = PULL_IN_CHUNK
            while chunk == PULL_IN_CHUNK:
                chunk = await self._writing(pull_in)
                changed += chunk
        return changed

    async def distrust(self, *, before: Ms, dry_run: bool = False) -> int:
        if not dry_run:
            await self._absorb_all()  # what waits there is as old
        count = await self._writing(lambda tx: sessions.distrust(tx, before, dry_run))
        if not dry_run:
            self.epoch = await self._writing(lambda tx: events.epoch(tx, anew=True))
        return count

    async def _absorb_all(self) -> None:
        """Let every push that waits take effect."""
        empty = False
        while not empty:
            _, empty = await self._writing(lambda tx: pushes.absorb(tx, ABSORB_CHUNK))

    # -- pushes ----------------------------------------------------------------------------------

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        if self._closed:
            raise StoreError("the store is not open")
        taken = self._pushed.take(push, now)
        self._journal = True
        self._pushes += 1
        self._held.hear(_told(push))
        return await taken

    async def _keep(self, group: Sequence[tuple[Push, Ms]]) -> list[Taken]:
        async def run(connection: Connection) -> list[Taken]:
            with metrics.COMMIT_SECONDS.time():
                return await pushes.take_pushes(connection, group)

        return await self._accounted(self._intake, run)

    async def absorb(self, limit: int, *, now: Ms = 0, listening: Collection[str] = ()) -> list[Absorbed]:
        if not self._may_wait():
            return []
        before, self._looked = self._pushes, time.monotonic()
        all_are_in = self._pushed.is_empty
        asking = self._asking(listening, now)
        effects, empty = await self._turn(lambda connection: self._absorb(connection, limit, asking))
        if self.told_kinds & {EventKind.NOTIFIED, EventKind.TOKENS}:
            self.bell.ring()
        if empty and all_are_in and before == self._pushes:
            self._journal = False
        return effects

    async def _absorb(
        self, connection: Connection, limit: int, asking: Asking | None
    ) -> tuple[list[Absorbed], bool]:
        if EventKind.NOTIFIED not in connection.kinds:
            # The usual ones are one statement, and mostly all there is.
            looked_at, done, told = await connection.alone(lambda tx: pushes.absorb_usual(tx, limit))
            if done == looked_at:
                return told, looked_at < limit
        return await connection.transaction(lambda tx: pushes.absorb(tx, limit, asking), durable=False)

    def waiting(self) -> bool:
        return self._journal

    def _may_wait(self) -> bool:
        return self._journal or time.monotonic() - self._looked >= LOOK_SECONDS

    @property
    def depth(self) -> int:
        return super().depth + self._pushed.depth

    # -- work ------------------------------------------------------------------------------------

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        self._lease_ms = lease_ms
        if self._is_calm():
            return []
        holder = self._holder(now, lease_ms)
        with self._held.claiming():
            claimed = await self._turn(lambda connection: _claim(connection, holder, limit, reasons))
            self._hold(claimed)
        return [claim for claim, _ in claimed.claims]

    def _holder(self, now: Ms, lease_ms: Ms) -> work.Holder:
        return work.Holder(self._node, now, now + self._hold_ms(lease_ms))

    def _hold(self, claimed: work.Claimed) -> None:
        self._held.hold(claimed.claims)
        for (claim, _), version in zip(claimed.claims, claimed.versions, strict=True):
            self._versions[claim.claim_id, claim.chat_id] = version

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        if claims:
            now = until - self._lease_ms
            held_until = now + self._hold_ms(self._lease_ms)
            await self._turn(
                lambda connection: connection.alone(lambda tx: work.renew(tx, claims, held_until, now))
            )

    def superseded(self, claim: Claim) -> bool:
        return self._held.superseded(claim)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if not settlements:
            return []
        with_news = (Verdict.ANSWERED, Verdict.LEARNED, Verdict.CALLED)
        for each in settlements:
            if each.verdict in with_news:
                # A lease was lost, and somebody holds the session with the tokens before these.
                self._held.hear(Told(each.claim.chat_id, None, each.news))
        durable = not all(is_repeatable(each) for each in settlements)
        settled, told = await self._turn(lambda connection: _settle(connection, settlements, durable))
        self._held.let_go(settlements)
        for each in settlements:
            self._versions.pop((each.claim.claim_id, each.claim.chat_id), None)
        if told:
            self.bell.ring()
        return settled

    async def next_due(self, *, now: Ms, reasons: Sequence[Reason] = EVERY_REASON) -> float | None:
        return await self._reading(lambda tx: work.next_due(tx, now, reasons))


async def _claim(
    connection: Connection, holder: work.Holder, limit: int, reasons: Sequence[Reason]
) -> work.Claimed:
    claimed = await connection.alone(lambda tx: work.claim(tx, holder, limit, reasons))
    if claimed.keyless:
        await connection.transaction(lambda tx: work.lack_keys(tx, claimed.keyless, holder.now))
    return claimed


async def _settle(
    connection: Connection, settlements: Sequence[Settlement], durable: bool
) -> tuple[list[Settled], int]:
    if not connection.kinds and work.may_be_alike(settlements):
        settled = await connection.alone(lambda tx: work.settle_alike(tx, settlements, durable=durable))
        if settled is not None:
            return settled, 0
    return await connection.transaction(lambda tx: work.settle(tx, settlements), durable=durable)


def _told(push: Push) -> Told:
    return Told(push.news.chat_id, push.device_id, push.news, pushed=True)
