"""Transactions about the store itself: the one row of `store`."""

from __future__ import annotations

from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.moving import moved_words
from asyncchatd.stores.postgres.wire import Tx


async def epoch(tx: Tx) -> str:
    """The name of this history of event ids."""
    return str(await tx.value("SELECT epoch FROM store"))


async def agree_on_key(tx: Tx, key_id: str | None) -> None:
    """All secure keys in the store are sealed under one key, or none is. Raises `StoreError` when this process would
    seal under another one: to those who have not got it the sessions would be without a key."""
    why = await disagreement(tx, key_id)
    if why is not None:
        raise StoreError(f"store.keys_file: {why}")
    await tx.run("UPDATE store SET key_id=$1 WHERE key_id IS DISTINCT FROM $1", key_id)


async def disagreement(tx: Tx, key_id: str | None) -> str | None:
    """Why nothing may be sealed under this key, if it may not."""
    [(known, holds_any)] = await tx.rows(_KEY)
    if known == key_id or not holds_any:
        return None
    if known is None:
        return "the secure keys in the database are in the clear, and a key is set; remove it, or name another schema"
    if key_id is None:
        return f"the secure keys in the database are encrypted with the key {known}, and none is set"
    return (
        f"the secure keys in the database are encrypted with the key {known}, and the first one set is {key_id};"
        " the keys of a database that nodes share cannot be changed: put that one first"
    )


_KEY = """SELECT key_id, EXISTS (SELECT 1 FROM session) OR EXISTS (SELECT 1 FROM journal)
    OR EXISTS (SELECT 1 FROM event) FROM store"""


async def refuse_moved(tx: Tx, shown: str) -> None:
    """Raises `StoreError` where what was in the store is elsewhere now. A node that runs hears of it as of a store that
    cannot be written to."""
    moved = await tx.value("SELECT moved FROM store")
    if moved is not None:
        raise StoreUnwritable(moved_words(shown, moved))


async def probe(tx: Tx) -> None:
    """Write something that changes nothing, to see whether writing works."""
    await tx.run("UPDATE store SET trimmed=trimmed")
