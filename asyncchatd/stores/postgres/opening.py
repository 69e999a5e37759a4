"""The database of a PostgreSQL store while it is open: its connections, who has which, and what is done without one.

Each kind of work has a connection to itself and takes turns on it, in the order in which it was handed in. A connection
that ended is made anew by whoever needs it next; while that fails nothing can be written, and `watch` tries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from asyncchatd.log import get_logger, metrics
from asyncchatd.model import EventKind, durations
from asyncchatd.stores.answers import Migrated
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.keys import sealings_of, tell_unsealed
from asyncchatd.stores.postgres.address import Place
from asyncchatd.stores.postgres.shared import roles, schema, settings
from asyncchatd.stores.postgres.transactions import pushes
from asyncchatd.stores.postgres.wire import BY_INDEX, Connection, Tx, connect
from asyncchatd.stores.sealing import Turning
from asyncchatd.stores.trouble import StoreTrouble

T = TypeVar("T")

PROBE_SECONDS = 1.0
"""How often writing is tried while it does not work."""

READY_SECONDS = 3.0
"""Nothing may have failed for so long before a node is ready again. Its trouble is mostly its way to the database,
which is there or not, and less often a full disk."""

LOOK_SECONDS = 2.0
"""How often it is looked besides whether a push could be kept: where none come nobody else finds out."""

PLANS_SECONDS = 10.0
"""How long a connection keeps the plans of its statements, which were made for tables of another size."""

READERS = 2

log = get_logger()


class Line:
    """A connection that is used in turns and made anew when it ended."""

    def __init__(self, make: Callable[[], Awaitable[Connection]], *, plans_anew: bool = False) -> None:
        """`plans_anew`: its statements' plans are kept for `PLANS_SECONDS` alone."""
        self._make = make
        self._plans_anew = plans_anew
        self._planned_at = 0.0
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self.waiting = 0

    async def use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do something with the connection, after whoever came before."""
        self.waiting += 1
        try:
            async with self._turn:
                if self._connection is None or self._connection.is_closed:
                    self._connection = await self._make()
                    self._planned_at = time.monotonic()
                elif self._plans_anew and time.monotonic() - self._planned_at >= PLANS_SECONDS:
                    await self._connection.script("DISCARD PLANS")
                    self._planned_at = time.monotonic()
                return await work(self._connection)
        finally:
            self.waiting -= 1

    async def close(self) -> None:
        """Give the connection back, once nobody uses it."""
        async with self._turn:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None


class OpenDatabase:
    """What is open of a PostgreSQL store."""

    told_kinds: frozenset[EventKind]
    _shown: frozenset[EventKind]

    def __init__(self, place: Place, keys: Sequence[bytes], queue: int) -> None:
        """`keys` seal the secure keys: the first one from now on, all open what is there. `queue`: so many pushes may
        wait."""
        self._place = place
        self._sealings = sealings_of(keys)
        self._sealing = Turning(self._sealings)
        self._queue = queue
        self._trouble = StoreTrouble(self._place.shown, calm=READY_SECONDS)
        self._owing_since: float | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = True
        self.epoch = ""

    # -- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._trouble = StoreTrouble(self._place.shown, calm=READY_SECONDS)
        self._writer, self._intake, self._looker = (self._line_by_index() for _ in range(3))
        self._readers = [Line(self._connect) for _ in range(READERS)]
        self._closed = False
        try:
            await self._writer.use(
                lambda connection: connection.transaction(
                    lambda tx: schema.migrate(tx, self._place.address.schema, hold=self._place.hold_ms / 1000)
                )
            )
            await self._begin()
        except BaseException as error:
            if not isinstance(error, Exception):  # nobody waits for what is under way
                for each in self._under_way:
                    each.cancel()
            await self.close()
            raise
        tell_unsealed(self._sealings[0], self._place.shown)

    async def migrate(self, *, runner: str | None = None, reader: str | None = None) -> Migrated:
        """`Store.migrate`."""
        name = self._place.address.schema

        async def run(tx: Tx) -> Migrated:
            count = await schema.migrate(tx, name, hold=self._place.hold_ms / 1000)
            if runner is not None:
                await roles.let_run(tx, name, runner)
            if reader is not None:
                await roles.let_read(tx, name, reader)
            now = (await schema.version_of(tx)).seen
            return Migrated(now - count, now)

        # A change of a large table takes its time.
        patient = replace(self._place.address, settings={"lock_timeout": "1min"})
        connection = await connect(patient, for_copies=True)
        try:
            return await connection.transaction(run)
        finally:
            await connection.close()

    async def _begin(self) -> None:
        """What there is to do before anybody else uses it."""
        await self._writing(lambda tx: settings.refuse_moved(tx, self._place.shown))
        await self._writing(lambda tx: settings.agree_on_key(tx, self._sealing))
        self.epoch = await self._writing(settings.epoch)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        while self._under_way:
            await asyncio.wait(self._under_way)
        await self._reconnect()

    async def _reconnect(self) -> None:
        """Whoever needs a connection next makes it anew, after whoever has it now."""
        for line in (self._writer, self._intake, self._looker, *self._readers):
            await line.close()

    async def _connect(self, parameters: Mapping[str, str] | None = None) -> Connection:
        if self._closed:
            raise StoreError("the store is closed")
        address = self._place.address
        connection = await connect(
            replace(address, settings={**(address.settings or {}), **(parameters or {})})
        )
        connection.sealing = self._sealing
        return connection

    def _line_by_index(self) -> Line:
        return Line(self._connect_by_index, plans_anew=self._place.address.statement_cache)

    async def _connect_by_index(self) -> Connection:
        return await self._connect(BY_INDEX)

    async def watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._trouble.begun.wait()
            with suppress(StoreError):
                await self._probe()
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self) -> None:
        """See whether a push could be kept, by the statement that keeps them: of none while all is well. Only one that
        would be kept, and that something else can be written, say that trouble is over: on other connections, with
        other rights, and of other sizes much may go well meanwhile."""
        if not self._trouble.begun.is_set():
            await self._accounted(self._intake, lambda connection: pushes.take_pushes(connection, ()))
            return
        await self._accounted(self._intake, lambda connection: connection.undone(pushes.probe))
        await self._writing(settings.probe)
        self._trouble.went_well()

    def stuck_for(self) -> float:
        if self._owing_since is None or self._trouble.cause is not None:
            return 0.0  # the database is away: that is no fault of this process
        return time.monotonic() - self._owing_since

    @property
    def trouble(self) -> str | None:
        return self._trouble.cause

    @property
    def depth(self) -> int:
        return 0 if self._closed else self._writer.waiting + self._intake.waiting

    # -- turns -----------------------------------------------------------------------------------

    async def _writing(self, work: Callable[[Tx], Awaitable[T]], *, durable: bool = True) -> T:
        """Run `work` in a transaction, after what was handed in before. Whoever gives up waiting does not stop it."""
        return await self._turn(lambda connection: connection.transaction(work, durable=durable))

    async def _turn(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Let `work` have the connection that writes, for a transaction as `_writing` does or for several."""

        async def run(connection: Connection) -> T:
            connection.kinds, connection.shown = self.told_kinds, bool(self._shown)
            with metrics.COMMIT_SECONDS.time():
                return await work(connection)

        return await self._to_its_end(self._accounted(self._writer, run))

    async def _reading(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Run `work`, single statements that wait for nothing else that is written, on whichever reading connection has
        less to do."""
        if self._closed:
            raise StoreError("the store is closed")
        line = min(self._readers, key=lambda each: each.waiting)
        try:
            return await self._to_its_end(line.use(work))
        except StoreError as error:
            self._trouble.heard(error)
            if isinstance(error, StoreUnwritable) and self._trouble.cause is not None:
                error.outage = _outage(self._trouble.lasts())
            raise

    async def _looking(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Run `work`, single statements that whoever is about to send waits for."""
        return await self._to_its_end(self._accounted(self._looker, work))

    async def _accounted(self, line: Line, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Use a connection that writes, and keep account of what goes wrong."""
        if self._owing_since is None:
            self._owing_since = time.monotonic()
        try:
            return await line.use(work)
        except StoreUnwritable as error:
            self._trouble.heard(error)
            raise
        finally:
            self._owing_since = time.monotonic() if self.depth else None

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what goes on also when nobody waits any more: half of it done would end the connection."""
        if self._closed:
            work.close()
            raise StoreError("the store is closed")
        task = self._begun(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_heard)
            raise

    def _begun(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that a closing store waits for."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task


def _outage(seconds: float) -> str:
    since = datetime.fromtimestamp(time.time() - seconds, UTC)
    return (
        f"so it is since {since:%Y-%m-%d %H:%M:%S} UTC, for {durations.in_words(seconds)}; pushes that"
        " cannot be kept are answered with 503"
    )


def _heard(task: asyncio.Task[Any]) -> None:
    """Nobody waits for it any more; its error was told by the account of the store."""
    if not task.cancelled():
        task.exception()
