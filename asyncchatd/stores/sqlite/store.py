"""The SQLite store: the contract, call by call.

What each call does inside its transaction stands in `transactions/`; what is open, and how long, in `file/opening.py`;
the calls that are the same over every database in `stores/sql`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar, cast

from asyncchatd.model import Claim, EventKind, Finding, Ms, Reason, Settled, Settlement
from asyncchatd.stores.answers import Absorbed, NotTaken, Taken
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.held import Told
from asyncchatd.stores.moving import Carrier
from asyncchatd.stores.rules import EVERY_REASON, PULL_IN_CHUNK, is_repeatable
from asyncchatd.stores.sql import SqlStore, Step
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file.carrying import FileCarrier
from asyncchatd.stores.sqlite.file.opening import OpenFile
from asyncchatd.stores.sqlite.file.writer import Connection, Work, Writer
from asyncchatd.stores.sqlite.transactions import (
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
from asyncchatd.stores.sqlite.transactions.schema import migrate
from asyncchatd.wire import Push

T = TypeVar("T")


class SqliteStore(OpenFile, SqlStore[Db]):
    """The store of `sqlite:///relative/path.db` or `sqlite:////absolute/path.db`. Keeps the contract of
    `asyncchatd.stores.base.Store`."""

    _sessions, _pushes, _work = sessions, pushes, work
    _events, _deliveries, _trimming = events, deliveries, trimming
    _takes, _asks, _restorations = takes, asks, restorations

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        OpenFile.__init__(self, url, directory=directory, queue=queue, keys=keys)
        SqlStore.__init__(self)
        self._journal = True
        self._taken = 0

    def _write(
        self, work: Callable[[Db], Step[T]], *, durable: bool = True, large: bool = False
    ) -> Awaitable[T]:
        return self._writing(cast("Work[T]", work), durable=durable, large=large)

    def _read(self, work: Callable[[Db], Step[T]]) -> Awaitable[T]:
        return self._reading(cast("Work[T]", work))

    def carrier(self) -> Carrier:
        return FileCarrier(self.path, self._sealings)

    async def seize(self, chat_id: str, *, now: Ms, lease_ms: int) -> Claim | NotTaken:
        why = await self._obstacle(chat_id, now)
        if why is not None:
            return why
        with self._held.claiming():
            seized = await self._writing(lambda db: work.seize(db, chat_id, now, lease_ms), durable=False)
            if isinstance(seized, NotTaken):
                return seized
            self._held.hold([seized])
        return seized[0]

    async def pull_in(self, *, now: Ms, spread_ms: float) -> int:
        changed = 0
        while True:
            chunk = await self._writing(lambda db: sessions.pull_in(db, now, spread_ms, PULL_IN_CHUNK))
            changed += chunk
            if chunk < PULL_IN_CHUNK:
                return changed

    async def distrust(self, *, before: Ms, dry_run: bool = False) -> int:
        copied_at = self._copied_at
        if dry_run and copied_at is not None:  # nothing was done: whoever opens it next is told
            await self._writing(lambda db: db.execute("UPDATE file SET copied_at=?", (copied_at,)))
        return await super().distrust(before=before, dry_run=dry_run)

    # -- pushes ----------------------------------------------------------------------------------

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        if self._writer is None:
            raise StoreError("the store is not open")
        taken = self._writer.gather(pushes.take_pushes, (push, now))
        self._journal = True
        self._taken += 1
        self._held.hear(Told.by_push(push))
        return await taken

    async def absorb(self, limit: int, *, now: Ms = 0, listening: Collection[str] = ()) -> list[Absorbed]:
        if not self._journal:
            return []
        before = self._taken
        asking = self._asking(listening, now)
        effects, empty = await self._writing(lambda db: pushes.absorb(db, limit, asking), durable=False)
        if self.told_kinds & {EventKind.NOTIFIED, EventKind.TOKENS}:
            self.bell.ring()
        if empty and before == self._taken:
            self._journal = False
        return effects

    def waiting(self) -> bool:
        return self._journal

    async def _begin(self, writing: Connection) -> None:
        await super()._begin(writing)
        if self.told_kinds:  # another file lies there than before
            told = list(self._enrolled.values())
            await writing.visit(lambda db: deliveries.enrol(db, told, self._shown, self._enrolled_at))

    # -- work ------------------------------------------------------------------------------------

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        journal = self._journal
        with self._held.claiming():
            claims = await self._writing(
                lambda db: work.claim(db, now, limit, lease_ms, reasons, journal), durable=False
            )
            self._held.hold(claims)
        return [claim for claim, _ in claims]

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        if claims:
            await self._writing(lambda db: work.renew(db, claims, until), durable=False)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self._held.hear_settlements(settlements)
        durable = not all(is_repeatable(each) for each in settlements)
        settled, told = await self._writing(
            lambda db: settling.settle(db, settlements), durable=durable, precious=True
        )
        self._held.let_go(settlements)
        if told:
            self.bell.ring()
        return settled


class MemoryStore(SqliteStore):
    """`memory:`: the same transactions on a database that is gone when it is closed. For tests and
    trials; a restart forgets every session."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        # Without `keys`: nothing comes to rest anywhere.
        super().__init__("sqlite:///memory", directory=directory, queue=queue)

    async def open(self) -> None:
        try:
            writing = await self._connect()
            await writing.visit(lambda db: migrate(db, "memory:"))
            self._reader = writing
            self._writer = Writer(writing, queue=self._queue, trouble=self._trouble)
            self.epoch = await writing.visit(lambda db: events.epoch(db, anew=False))
        except BaseException:
            await self.close()
            raise

    async def check(self, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[Finding]:
        return
        yield  # there is nothing to look at

    def carrier(self) -> Carrier:
        raise StoreError("what memory: keeps is gone with the daemon: there is nothing to copy")

    def _database(self) -> str:
        return ":memory:"
