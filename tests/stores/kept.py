"""Connections to PostgreSQL that a test leaves to the next one.

What a test of the contract costs is mostly its connections: the server forks a process for each, which reads the
catalogue and plans every statement anew. One that was reset, as poolers do it, holds nothing of the test before.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from asyncchatd.stores.postgres.wire import Address, Connection, connect


class KeptConnections:
    """A place of `connect`: the connections that were closed there are given again, to the same address with the same
    settings. For one event loop."""

    def __init__(self) -> None:
        self._free: defaultdict[str, list[Any]] = defaultdict(list)

    async def connect(self, address: Address) -> Connection:
        """As `asyncchatd.stores.postgres.wire.connect`."""
        free = self._free[f"{address.dsn} {address.schema} {address.settings}"]
        for _ in range(2):  # until the loop has seen which the server has ended
            await asyncio.sleep(0)
        while free:
            raw = free.pop()
            if not raw.is_closed():
                return _Kept(raw, free)
        return _Kept((await connect(address))._raw, free)

    async def close(self) -> None:
        """End all that are free."""
        for free in self._free.values():
            while free:
                free.pop().terminate()
        await asyncio.sleep(0)


class _Kept(Connection):
    def __init__(self, raw: Any, free: list[Any]) -> None:
        super().__init__(raw)
        self._free = free

    async def close(self) -> None:
        if not self.is_closed:
            await self._raw.reset()
            self._free.append(self._raw)
            self._raw = _GIVEN_BACK


class _GivenBack:
    def is_closed(self) -> bool:
        return True

    def terminate(self) -> None: ...


_GIVEN_BACK = _GivenBack()
