"""The PostgreSQL store: the contract, call by call.

What each call does inside its transaction stands in `transactions/`; what is open, and how long, in `opening.py`.
Further calls: what those who share the database agree upon in `sharing.py`, the change of keys in `turning.py`, counts
in `tallying.py`, and those that are the same over every database in `stores/sql`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Claim, EventKind, Finding, Ms, Reason, Settled, Settlement, Verdict
from asyncchatd.stores.answers import Absorbed, NotTaken, Taken
from asyncchatd.stores.asking import Asking
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.held import HeldClaims, Told
from asyncchatd.stores.moving import Carrier
from asyncchatd.stores.postgres import checking
from asyncchatd.stores.postgres.address import place_of
from asyncchatd.stores.postgres.carrying import SchemaCarrier
from asyncchatd.stores.postgres.floors import NONE
from asyncchatd.stores.postgres.intake import Intake
from asyncchatd.stores.postgres.tallying import TallyingStore
from asyncchatd.stores.postgres.transactions import (
    asks,
    deliveries,
    events,
    pushes,
    restorations,
    sessions,
    settling,
    takes,
    trimming,
    work,
)
from asyncchatd.stores.postgres.turning import TurningStore
from asyncchatd.stores.postgres.wire import Connection, Tx
from asyncchatd.stores.rules import EVERY_REASON, PULL_IN_CHUNK, is_repeatable, without_extras
from asyncchatd.stores.sql import SqlStore, Step
from asyncchatd.wire import Push

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""How often is looked for pushes that another node took, and which has not let them take effect."""

log = get_logger()


class PostgresStore(TallyingStore, TurningStore, SqlStore[Tx]):
    """The store of `postgresql://user@host/database?schema=asyncchatd`. Keeps the contract of
    `asyncchatd.stores.base.Store`."""

    _sessions, _pushes, _work = sessions, pushes, work
    _events, _deliveries, _trimming = events, deliveries, trimming
    _takes, _asks, _restorations = takes, asks, restorations

    def __init__(
        self,
        url: str,
        *,
        directory: Path,
        queue: int = 10_000,
        keys: Sequence[bytes] = (),
        password_file: Path | None = None,
    ) -> None:
        """Raises `StoreError`, which names the parameter of the URL, and the file where it names one that is no use."""
        place = place_of(url, password_file)
        if place.address.files is not None and (why := place.address.files.trouble()) is not None:
            raise StoreError(why)
        TurningStore.__init__(self, place, keys, queue)
        SqlStore.__init__(self)
        self._pushed = Intake(self._keep, queue=queue, begin=self._begun)
        # Another connection reads what a claim takes, and may not see these yet.
        self._held = HeldClaims(lambda: map(Told.by_push, self._pushed.pushes()))
        self._journal = True
        """Whether pushes of this node may wait that have not taken effect."""
        self._taken = 0
        self._looked = 0.0

    def _write(
        self, work: Callable[[Tx], Step[T]], *, durable: bool = True, large: bool = False
    ) -> Awaitable[T]:
        async def run(tx: Tx) -> T:
            done = await cast("Callable[[Tx], Awaitable[T]]", work)(tx)
            self._floors.forget()  # before the next turn of who claims
            return done

        return self._writing(run, durable=durable)

    def _read(self, work: Callable[[Tx], Step[T]]) -> Awaitable[T]:
        return self._reading(cast("Callable[[Tx], Awaitable[T]]", work))

    async def _begin(self) -> None:
        await super()._begin()
        if self.told_kinds:  # it was open before, and another database may be there now
            await self.enrol(list(self._enrolled.values()), now=self._enrolled_at, shown=self._shown)

    async def check(self, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[Finding]:
        async for finding in checking.look(self._place, self._sealings, self._alike, answers):
            yield finding

    def carrier(self) -> Carrier:
        return SchemaCarrier(self._place, self._sealings)

    async def seize(self, chat_id: str, *, now: Ms, lease_ms: int) -> Claim | NotTaken:
        why = await self._obstacle(chat_id, now)
        if why is not None:
            return why
        if self._is_calm():
            return NotTaken.IN_FLIGHT
        holder = self._holder(now, lease_ms)
        with self._held.claiming(), self._heard_of(holder.claim_id):
            seized = await self._writing(lambda tx: work.seize(tx, holder, chat_id), durable=False)
            if isinstance(seized, NotTaken):
                return seized
            self._hold(seized)
        return seized.claims[0][0]

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

    # -- pushes ----------------------------------------------------------------------------------

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        if self._closed:
            raise StoreError("the store is not open")
        taken = self._pushed.take(push, now)
        self._journal = True
        self._taken += 1
        self._held.hear(Told.by_push(push))
        return await taken

    async def _keep(self, group: Sequence[tuple[Push, Ms]]) -> list[Taken]:
        async def run(connection: Connection) -> list[Taken]:
            with metrics.COMMIT_SECONDS.time():
                return await connection.alone(lambda tx: pushes.take_pushes(tx, group))

        return await self._accounted(self._intake, run)

    async def absorb(self, limit: int, *, now: Ms = 0, listening: Collection[str] = ()) -> list[Absorbed]:
        if not self._may_wait():
            return []
        before, self._looked = self._taken, time.monotonic()
        all_are_in = self._pushed.is_empty
        asking = self._asking(listening, now)
        effects, empty = await self._turn(lambda connection: self._absorb(connection, limit, asking))
        if self.told_kinds & {EventKind.NOTIFIED, EventKind.TOKENS}:
            self.bell.ring()
        if empty and all_are_in and before == self._taken:
            self._journal = False
        return effects

    async def _absorb(
        self, connection: Connection, limit: int, asking: Asking | None
    ) -> tuple[list[Absorbed], bool]:
        if EventKind.NOTIFIED not in connection.kinds:
            # The usual ones are one statement, and mostly all there is.
            looked_at, done, told, due_at = await connection.alone(lambda tx: pushes.absorb_usual(tx, limit))
            if due_at is not None:
                self._floors.lower(due_at)
            if done == looked_at:
                return told, looked_at < limit
        self._floors.forget()
        try:
            return await connection.transaction(lambda tx: pushes.absorb(tx, limit, asking), durable=False)
        except pushes.AbsorbedElsewhere:
            return [], False

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
        with self._held.claiming(), self._heard_of(holder.claim_id):
            claimed = await self._turn(lambda connection: self._claim(connection, holder, limit, reasons))
            self._hold(claimed)
        return [claim for claim, _ in claimed.claims]

    async def _claim(
        self, connection: Connection, holder: work.Holder, limit: int, reasons: Sequence[Reason]
    ) -> work.Claimed:
        if self._is_calm():  # the connection is a new one
            return work.Claimed([], [], [])
        floors = self._floors.of(reasons, holder.now) if self._guarded else [NONE] * len(reasons)
        looked = work.Looked(reasons, floors, limit, self._guarded)
        claimed = await connection.alone(lambda tx: work.claim(tx, holder, looked))
        if claimed.keyless:
            self._floors.forget()
            await connection.transaction(lambda tx: work.lack_keys(tx, claimed.keyless, holder.now))
        else:
            self._floors.found([claim for claim, _ in claimed.claims], reasons, holder.now, limit)
        return claimed

    def _holder(self, now: Ms, lease_ms: Ms) -> work.Holder:
        return work.Holder(self._node, now, now + self._hold_ms(lease_ms), work.new_claim())

    def _hold(self, claimed: work.Claimed) -> None:
        self._held.hold(claimed.claims)
        for (claim, _), version in zip(claimed.claims, claimed.versions, strict=True):
            self._versions[claim.claim_id, claim.chat_id] = version

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        if claims:
            now = until - self._lease_ms
            held_until = now + self._hold_ms(self._lease_ms)
            # Not behind a settlement: where this process stood still there may be little time.
            await self._reading(lambda tx: work.renew(tx, claims, held_until, now))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if not settlements:
            return []
        self._held.hear_settlements(settlements)
        settled, told = await self._written(settlements)
        self._held.let_go(settlements)
        for each in settlements:
            self._versions.pop((each.claim.claim_id, each.claim.chat_id), None)
        if told:
            self.bell.ring()
        return settled

    async def _written(self, settlements: Sequence[Settlement]) -> tuple[list[Settled], int]:
        """What became of each, and how many events were written. One that the database refuses goes by itself, without
        what it may be refused for."""
        try:
            return await self._settled(settlements)
        except StoreUnwritable:
            raise
        except StoreError as error:
            if self._closed:
                raise
            if len(settlements) > 1:
                done = [await self._written([each]) for each in settlements]
                return [one for settled, _ in done for one in settled], sum(told for _, told in done)
            return await self._set_aside(settlements[0], error)

    async def _settled(self, settlements: Sequence[Settlement]) -> tuple[list[Settled], int]:
        durable = not all(is_repeatable(each) for each in settlements)

        async def run(connection: Connection) -> tuple[list[Settled], int]:
            settled, told = await _settle(connection, settlements, durable)
            for each, one in zip(settlements, settled, strict=True):
                if one.due_again or each.verdict is not Verdict.ANSWERED:
                    self._floors.lower(min(each.due_at, each.claim.due_at))
            return settled, told

        return await self._turn(run)

    async def _set_aside(self, refused: Settlement, error: StoreError) -> tuple[list[Settled], int]:
        claim = refused.claim
        log.error(Event.ANSWER_SET_ASIDE, chat_id=claim.chat_id, reason=claim.reason.word, cause=str(error))
        for rest in without_extras(refused):
            try:
                return await self._settled([rest])
            except StoreUnwritable:
                raise
            except StoreError:
                continue
        return [Settled(claim.chat_id, lease_held=False, tokens_changed=False, alias=None)], 0


async def _settle(
    connection: Connection, settlements: Sequence[Settlement], durable: bool
) -> tuple[list[Settled], int]:
    if not connection.kinds and settling.may_be_alike(settlements):
        settled = await connection.alone(lambda tx: settling.settle_alike(tx, settlements, durable=durable))
        if settled is not None:
            return settled, 0
    return await connection.transaction(lambda tx: settling.settle(tx, settlements), durable=durable)
