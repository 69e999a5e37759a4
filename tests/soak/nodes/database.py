"""The database of several nodes, watched from outside: what its log says of them, and what stays open in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from asyncchatd.rehearsing.together.database import Server
from asyncchatd.rehearsing.trial import meanwhile
from asyncchatd.stores.postgres import StoreError, connect, place_of

LOOK_SECONDS = 0.2

OPEN = (
    "SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age, state, wait_event, query"
    " FROM pg_stat_activity WHERE application_name = 'asyncchatd' AND backend_type = 'client backend'"
    " AND xact_start IS NOT NULL AND NOT (state = 'active' AND wait_event = 'ClientRead')"
    " AND pid <> pg_backend_pid() ORDER BY age DESC LIMIT 1"
)

"""The transaction that is open the longest, but for one that waits in the middle of its first statement: that was
parsed, and not told its values yet, and holds nothing."""

SLOW = re.compile(r"duration: ([0-9.]+) ms")


class Watch:
    """A connection of its own that looks on."""

    def __init__(self, postgres: Server) -> None:
        self._postgres = postgres
        self._place = place_of(postgres.url("asyncchatd"))
        self.longest_open = 0.0
        """Seconds that a transaction was open, at most, since `begin`."""
        self.open = ""
        """What it was at then."""
        self._begins = 0

    def begin(self) -> None:
        """What was before is another round's."""
        self.longest_open = 0.0
        self._begins = len(self._postgres.log)

    @property
    def deadlocks(self) -> int:
        """Those that the server's log tells since `begin`."""
        return self._said.count("deadlock detected")

    @property
    def slowest(self) -> float:
        """Seconds that the slowest of the statements took that the log names: those above 1 s."""
        return max((float(found) / 1000 for found in SLOW.findall(self._said)), default=0.0)

    @property
    def slow(self) -> list[str]:
        """The lines of these statements, shortened."""
        return [line[:300] for line in self._said.splitlines() if SLOW.search(line)]

    @property
    def _said(self) -> str:
        return self._postgres.log[self._begins :]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """It looks meanwhile."""
        async with meanwhile(self._look()):
            yield

    async def _look(self) -> None:
        while True:
            with suppress(StoreError):  # the database is away
                connection = await connect(self._place.address)
                try:
                    while True:
                        row = await connection.row(OPEN)
                        if row is not None and row[0] > self.longest_open:
                            self.longest_open = row[0]
                            self.open = f"{row[1]}, {row[2]}: {' '.join(row[3].split())[:120]}"
                        await asyncio.sleep(LOOK_SECONDS)
                finally:
                    connection.terminate()
            await asyncio.sleep(LOOK_SECONDS)
