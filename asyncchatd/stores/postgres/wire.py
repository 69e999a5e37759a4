"""The wire to PostgreSQL: one connection that runs statements within a time of its own.

With `failing.py`, which says what its errors mean, the only module that knows the driver. A server whose host is gone
is no error but a wait, so nothing is waited for without an end; a connection on which something did not come in time
is given up, and never used again: nobody knows what it would answer next.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import asyncpg

from asyncchatd.log import Event, get_logger
from asyncchatd.model import EventKind, durations
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.postgres.deadline import Deadline
from asyncchatd.stores.postgres.failing import DRIVERS, LostRace, ends, in_our_words, own_words
from asyncchatd.stores.postgres.named_files import NamedFiles
from asyncchatd.stores.sealing import Clear, Sealing

T = TypeVar("T")

log = get_logger()

CONNECT_SECONDS = 5.0
"""Until somebody answers."""

STATEMENT_SECONDS = 5.0
"""Until a statement is done. The server gives up on its own after twice that."""

BRIEF_SECONDS = 0.3
"""So long the server waits for the next statement of a transaction for which all nodes wait."""

AGAIN = 5
"""So often is a transaction tried that lost against another one (deadlock, serialization, both made the same row)."""

SETTINGS = {
    "application_name": "asyncchatd",
    "statement_timeout": "10s",
    "lock_timeout": "4s",
    # A node that is stopped in the middle of a transaction holds its rows no longer. Shorter than others wait for them:
    # else these would seem to have trouble.
    "idle_in_transaction_session_timeout": "3s",
    "timezone": "UTC",
    # What is looked for stands in an index in the order in which it is wanted: the first few of what may be a million
    # rows. They seem few while nothing of the table has been counted, and all of them would be read, and sorted.
    "enable_bitmapscan": "off",
    "jit": "off",
}

BY_INDEX = {"enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
"""Of a connection whose statements are for some rows each, and find all of them by an index. PostgreSQL plans such a
statement once: planning it takes longer than running it (of the CPU time for a push that takes effect, three quarters).
The plan is kept while the tables grow, so that it must not be one for small ones; and not for long, since the join of
two tables is still planned for what was in them (`Line`)."""

COPY_SECONDS = 600.0
"""Until a statement over all rows is done, an index made for instance."""

FOR_COPIES = {
    "statement_timeout": "11min",
    "idle_in_transaction_session_timeout": "1min",
    "enable_bitmapscan": "on",
    "maintenance_work_mem": "256MB",
}
"""Of a connection that reads or writes all there is."""

Row = Sequence[Any]


class StoodStill(StoreUnwritable):
    """This process stood still, and the server has ended the connection meanwhile."""

    stood_still = True


class Tx(Protocol):
    """What a transaction's statements are run with. Each raises `StoreError`."""

    sealing: Sealing
    kinds: frozenset[EventKind]
    """Of which events somebody is told, or shown."""
    shown: bool
    """Whether transcripts are read besides by who is no consumer."""

    async def rows(self, sql: str, *values: object) -> Sequence[Row]:
        """All rows that a statement gives."""

    async def row(self, sql: str, *values: object) -> Row | None:
        """Its first row, if there is one."""

    async def value(self, sql: str, *values: object) -> Any:
        """The first column of its first row, `None` where there is none."""

    async def run(self, sql: str, *values: object) -> int:
        """How many rows a statement changed."""

    async def script(self, sql: str) -> None:
        """Run several statements without values."""


@dataclass(frozen=True)
class Address:
    """Where the database is, and how it is talked to."""

    dsn: str
    """As the driver reads it; may hold the password."""
    schema: str = "asyncchatd"
    statement_cache: bool = True
    """Off for a pooler that gives each transaction another connection."""
    settings: Mapping[str, str] | None = None
    """Of the server, for this connection alone, besides `SETTINGS`."""
    password: Callable[[], Awaitable[str]] | None = None
    """Asked with each connection."""
    files: NamedFiles | None = None
    """Those that the DSN names."""

    def __repr__(self) -> str:
        return f"Address(schema={self.schema!r})"


class Connection:
    """One connection. One thing at a time: whoever uses it takes turns (`opening.py`)."""

    def __init__(self, raw: Any, seconds: float = STATEMENT_SECONDS) -> None:
        self._raw = raw
        self._seconds = seconds
        self.sealing: Sealing = Clear()
        self.kinds: frozenset[EventKind] = frozenset()
        self.shown = False
        self._stood_still: float | None = None
        """For so many seconds this process did in the middle of the transaction that is open, if there is one."""
        self._heard_at = 0.0
        """When the server answered last in that transaction, by the monotonic clock."""

    @property
    def is_closed(self) -> bool:
        return bool(self._raw.is_closed())

    async def rows(self, sql: str, *values: object) -> Sequence[Row]:
        found: Sequence[Row] = await self._within(self._raw.fetch(sql, *values))
        return found

    async def row(self, sql: str, *values: object) -> Row | None:
        found: Row | None = await self._within(self._raw.fetchrow(sql, *values))
        return found

    async def value(self, sql: str, *values: object) -> Any:
        return await self._within(self._raw.fetchval(sql, *values))

    async def run(self, sql: str, *values: object) -> int:
        done: str = await self._within(self._raw.execute(sql, *values))
        count = done.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def script(self, sql: str) -> None:
        await self._within(self._raw.execute(sql))

    async def copy_in(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Write rows into a table with COPY, the fastest way for many. Only on a connection
        `for_copies`."""
        await self._within(self._raw.copy_records_to_table(table, records=rows, columns=columns))

    async def transaction(self, work: Callable[[Tx], Awaitable[T]], *, durable: bool = True) -> T:
        """Run `work` in one transaction, once more where it lost against another one. Raises `StoreError`."""

        async def run() -> T:
            async with self.in_transaction(durable=durable):
                return await work(self)

        return await _again(run)

    async def alone(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Run `work`, which is one statement and so a transaction of its own, once more where it lost against another
        one. Nothing is held while this process is paused. Raises `StoreError`."""
        return await _again(lambda: work(self))

    @asynccontextmanager
    async def in_transaction(self, *, durable: bool = True) -> AsyncIterator[None]:
        """What is done meanwhile is one transaction, tried once. Raises `StoreError`."""
        self._stood_still, self._heard_at = 0.0, time.monotonic()
        try:
            await self.script("BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit=off")
            yield
            await self.script("COMMIT")
        except BaseException as error:
            await self._roll_back(error)
            raise
        finally:
            self._stood_still = None

    async def undone(self, work: Callable[[Tx], Awaitable[object]]) -> None:
        """Run `work` in a transaction, and keep nothing of it. Raises `StoreError`."""
        await self.script("BEGIN")
        try:
            await work(self)
        except BaseException as error:
            await self._roll_back(error)
            raise
        await self.script("ROLLBACK")

    async def _roll_back(self, error: BaseException) -> None:
        if self.is_closed:
            return
        if not isinstance(error, Exception):  # cancelled: a statement may still be under way
            self.terminate()
            return
        with suppress(StoreError):
            await self.script("ROLLBACK")

    async def _within(self, work: Awaitable[Any]) -> Any:
        deadline = Deadline(self._seconds)
        try:
            with deadline:
                return await work
        except TimeoutError as error:
            self.terminate()
            raise StoreUnwritable(_too_late(self._seconds, deadline)) from error
        except (OSError, *DRIVERS) as error:
            log.debug(Event.STORE_DRIVER_SAID, **own_words(error))
            told = in_our_words(error)
            if isinstance(told, StoreUnwritable) and ends(error):
                self.terminate()
                self._note(deadline)
                if seconds := self._stood_still or deadline.stood_still:
                    told = StoodStill(f"{_stood_still(seconds)}; {told}")
            raise told from error
        finally:
            self._note(deadline)

    def _note(self, deadline: Deadline) -> None:
        """Note for how long this process stood still in the transaction that is open. It may have also where nothing
        was heard for as long as the server waits: between two statements nobody is waited for."""
        if self._stood_still is not None:
            now = time.monotonic()
            unheard = now - self._heard_at
            still = unheard if unheard >= min(self._seconds, BRIEF_SECONDS) else 0.0
            self._stood_still, self._heard_at = max(self._stood_still, deadline.stood_still, still), now

    def terminate(self) -> None:
        """Give it up at once, without a word to the server, which may not be there."""
        self._raw.terminate()

    async def close(self) -> None:
        """Take leave of the server; not longer than a moment."""
        with suppress(OSError, TimeoutError, *DRIVERS):
            async with asyncio.timeout(1.0):
                await self._raw.close()
        self.terminate()


def _too_late(seconds: float, deadline: Deadline) -> str:
    late = f"PostgreSQL did not answer within {seconds:g} s"
    return f"{_stood_still(deadline.stood_still)}, and then {late}" if deadline.stood_still else late


def _stood_still(seconds: float) -> str:
    return f"asyncchatd stood still for {durations.in_words(seconds)}"


async def _again(run: Callable[[], Awaitable[T]]) -> T:
    for again in range(AGAIN):
        try:
            return await run()
        except LostRace:
            if again == AGAIN - 1:
                raise
            await asyncio.sleep(0)
    raise AssertionError


async def connect(address: Address, *, for_copies: bool = False) -> Connection:
    """A new connection, with the schema's tables in reach. `for_copies`: for few statements over all there is. Raises
    `StoreError`."""
    own = FOR_COPIES if for_copies else {}
    settings = {**SETTINGS, "search_path": f'"{address.schema}"', **own, **(address.settings or {})}
    cache = {} if address.statement_cache else {"statement_cache_size": 0}
    deadline = Deadline(CONNECT_SECONDS)
    try:
        with deadline:
            password = {} if address.password is None else {"password": await address.password()}
            raw = await asyncpg.connect(address.dsn, server_settings=settings, **cache, **password)
            try:
                coder = _IN_COPIES if for_copies else {"encoder": escaped, "decoder": unescaped}
                for name in ("text", "varchar"):
                    await raw.set_type_codec(name, schema="pg_catalog", **coder)
            except BaseException:
                raw.terminate()
                raise
    except TimeoutError as error:
        raise StoreUnwritable(_too_late(CONNECT_SECONDS, deadline)) from error
    except (OSError, ValueError, *DRIVERS) as error:
        log.debug(Event.STORE_DRIVER_SAID, **own_words(error))
        if address.files is not None and (why := _of_a_file(address.files, error)) is not None:
            raise StoreUnwritable(why) from error
        raise in_our_words(error, connecting=True) from error
    return Connection(raw, COPY_SECONDS if for_copies else STATEMENT_SECONDS)


def _of_a_file(files: NamedFiles, error: Exception) -> str | None:
    """The file of the address that an error may come of. The driver does not name it."""
    if str(getattr(error, "sqlstate", "") or "").startswith("28"):  # no password, or a wrong one
        return files.of_a_refusal()
    return files.of_tls() if isinstance(error, OSError) else None


# -- text that PostgreSQL does not take ----------------------------------------------------------------

_ESCAPE = "\x1a"
_REFUSED = re.compile(f"[\x00{_ESCAPE}\ud800-\udfff]")
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{4}})")


def escaped(text: str) -> str:
    """A text as it is written. PostgreSQL takes neither NUL nor half a surrogate pair, which the wire lets through:
    each stands there as four digits behind a sign of its own, and so does that sign."""
    return _REFUSED.sub(lambda found: f"{_ESCAPE}{ord(found[0]):04x}", text)


def unescaped(text: str) -> str:
    """A text as it was before it was `escaped`."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


_IN_COPIES = {
    "encoder": lambda text: escaped(text).encode(),
    "decoder": lambda text: unescaped(bytes(text).decode()),
    "format": "binary",  # as COPY has it
}
