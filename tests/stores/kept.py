"""Connections to PostgreSQL that a test leaves to the next one.

What a test of the contract costs is mostly its connections: the server forks a process for each, which reads the
catalogue and plans every statement anew. One that was reset, as poolers do it, holds nothing of the test before.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from asyncchatd.stores.postgres import carrying, opening
from asyncchatd.stores.postgres.wire import (
    COPY_SECONDS,
    STATEMENT_SECONDS,
    Address,
    Connection,
    connect,
)

MOST = 12
"""So many are kept of one kind: the server takes 60."""


class KeptConnections:
    """A place of `connect`: the connections that were closed there are given again, to the same address with the same
    settings. For one event loop."""

    def __init__(self) -> None:
        self._free: defaultdict[str, list[Any]] = defaultdict(list)

    def lend_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have stores and copies use them meanwhile."""
        for module in (opening, carrying):
            monkeypatch.setattr(module, "connect", self.connect)

    async def connect(self, address: Address, *, for_copies: bool = False) -> Connection:
        """As `asyncchatd.stores.postgres.wire.connect`."""
        free = self._free[f"{address.dsn} {address.schema} {address.settings} {for_copies}"]
        for _ in range(2):  # until the loop has seen which the server has ended
            await asyncio.sleep(0)
        while free:
            raw = free.pop()
            if not raw.is_closed():
                return _Kept(raw, free, for_copies)
        return _Kept((await connect(address, for_copies=for_copies))._raw, free, for_copies)

    async def close(self) -> None:
        """End all that are free."""
        for free in self._free.values():
            while free:
                free.pop().terminate()
        await asyncio.sleep(0)


class _Kept(Connection):
    def __init__(self, raw: Any, free: list[Any], for_copies: bool) -> None:
        super().__init__(raw, COPY_SECONDS if for_copies else STATEMENT_SECONDS)
        self._free = free

    async def close(self) -> None:
        if not self.is_closed and len(self._free) < MOST:
            await self._raw.reset()
            self._free.append(self._raw)
            self._raw = _GIVEN_BACK
        else:
            await super().close()


class _GivenBack:
    def is_closed(self) -> bool:
        return True

    def terminate(self) -> None: ...


_GIVEN_BACK = _GivenBack()
