"""Transactions about the store itself: the one row of `store`."""

from __future__ import annotations

from asyncchatd.stores.postgres.wire import Tx


async def epoch(tx: Tx) -> str:
    """The name of this history of event ids."""
    return str(await tx.value("SELECT epoch FROM store"))


async def probe(tx: Tx) -> None:
    """Write something that changes nothing, to see whether writing works."""
    await tx.run("UPDATE store SET trimmed=trimmed")
