"""Transactions about the store itself: the one row of `store`, which also says under which keys secure keys are sealed.

One key is in force: all write under it. Parts may still be under those that were in force before, until all of it is
sealed anew. A key is named by its id; none, where secure keys stand in the clear, is named by an empty text in a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asyncchatd.stores.errors import StoreError, StoreMoved
from asyncchatd.stores.moving import moved_words
from asyncchatd.stores.postgres.shared import schema
from asyncchatd.stores.postgres.shared.nodes import KEPT_SECONDS, NOW, SILENT_SECONDS
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.sealing import Turning

HEARD_SECONDS = 10.0
"""So long after another key has come into force all who live write under it."""


class Keys(NamedTuple):
    """Under which keys a database is."""

    in_force: str | None
    former: Sequence[str | None]


async def epoch(tx: Tx) -> str:
    """The name of this history of event ids."""
    return str(await tx.value("SELECT epoch FROM store"))


async def agree_on_key(tx: Tx, sealing: Turning) -> None:
    """Write under the key that is in force from now on. In a database that holds nothing yet, and which nobody else
    uses, that is the first one. Raises `StoreError` when this process has not got a key that is in use."""
    if (why := await disagreement(tx, sealing)) is not None:
        raise StoreError(f"store.keys_file: {why}")
    await tx.run(
        f"UPDATE store SET key_id=$1, former_key_ids='{{}}' WHERE NOT ({_HOLDS_ANY}) AND NOT ({_IS_USED})",
        sealing.own[0],
    )
    sealing.follow(*await keys(tx))


async def keys(tx: Tx) -> Keys:
    """Under which keys the database is."""
    [(in_force, former)] = await tx.rows("SELECT key_id, former_key_ids FROM store")
    return Keys(in_force, [key or None for key in former])


async def disagreement(tx: Tx, sealing: Turning) -> str | None:
    """Why this process may not use the database with its keys, if it may not."""
    found = await keys(tx)
    lacking = sealing.lacks(*found)
    if not lacking or not await tx.value(f"SELECT {_HOLDS_ANY} OR {_IS_USED}"):
        return None
    if sealing.own == [None]:
        return f"the secure keys in the database are encrypted with the key {lacking[0]}, and none is set"
    return (
        f"the secure keys in the database are encrypted with the key {', '.join(lacking)}, which is not in the file"
        f" (there: {', '.join(map(str, sealing.own))}); add its line below the others"
    )


_HOLDS_ANY = (
    """EXISTS (SELECT 1 FROM session) OR EXISTS (SELECT 1 FROM journal) OR EXISTS (SELECT 1 FROM event)"""
)

_IS_USED = f"EXISTS (SELECT 1 FROM node WHERE gone_at IS NULL AND seen_at>{NOW} - {SILENT_SECONDS})"

_SILENT = f"""SELECT name, id FROM node WHERE gone_at IS NULL AND seen_at<{NOW} - {SILENT_SECONDS}
    AND seen_at>{NOW} - {KEPT_SECONDS}
    AND NOT EXISTS (SELECT 1 FROM node AS later WHERE later.name=node.name AND later.id>node.id)"""
"""Nodes that may live. One that was killed together with the database is not known to be gone, but it was started anew:
its name has a later number."""

_OTHERS = f"""SELECT name, id FROM node WHERE gone_at IS NULL AND key_ids[1] IS DISTINCT FROM coalesce($1::text, '')
    AND (seen_at>={NOW} - {SILENT_SECONDS} OR (name, id) IN ({_SILENT}))"""
"""Nodes that live, or may, and would write under another key first."""


async def turn(tx: Tx, key_id: str) -> bool:
    """Bring a key into force, once all nodes would write with it first."""
    turned = await tx.run(
        "UPDATE store SET former_key_ids=array_remove(former_key_ids || coalesce(key_id, ''), $1::text), key_id=$1,"
        f" turned_at={NOW} WHERE key_id IS DISTINCT FROM $1 AND NOT EXISTS ({_OTHERS})",
        key_id,
    )
    return turned > 0


async def without_first(tx: Tx, key_id: str | None) -> Sequence[tuple[str, int]]:
    """The nodes that live, or may, and would write under another key first: names and numbers."""
    return [(name, number) for name, number in await tx.rows(f"{_OTHERS} ORDER BY name, id", key_id)]


async def silent(tx: Tx) -> Sequence[tuple[str, int]]:
    """The nodes of which nobody knows whether they will go on under a key of before: names and numbers."""
    return [(name, number) for name, number in await tx.rows(f"{_SILENT} ORDER BY name, id")]


async def forget_former(tx: Tx, former: Sequence[str | None]) -> bool:
    """Nothing is under these keys any more, as it was looked through. Not while somebody may still write under one of
    them: who has not heard yet that another one is in force, or is stopped."""
    forgotten = await tx.run(
        "UPDATE store SET former_key_ids='{}'"
        f" WHERE former_key_ids=$1::text[] AND former_key_ids<>'{{}}' AND turned_at<{NOW} - {HEARD_SECONDS}"
        f" AND NOT EXISTS ({_SILENT})",
        [key or "" for key in former],
    )
    return forgotten > 0


async def heard(tx: Tx) -> bool:
    """Whether all who live have heard of the key in force."""
    return bool(await tx.value(f"SELECT turned_at<{NOW} - {HEARD_SECONDS} FROM store"))


async def refuse_moved(tx: Tx, shown: str) -> None:
    """Raises `StoreMoved` where what was in the store is elsewhere now."""
    moved = await tx.value("SELECT moved FROM store")
    if moved is not None:
        raise StoreMoved(moved_words(shown, moved))


async def refuse_outgrown(tx: Tx, name: str) -> None:
    """Raises `StoreMoved` where a newer asyncchatd has changed the schema `name` beyond what this one can work with."""
    why = schema.refusal(name, await schema.version_of(tx))
    if why is not None:
        raise StoreMoved(str(why))


async def probe(tx: Tx) -> None:
    """Write something that changes nothing, to see whether writing works."""
    await tx.run("UPDATE store SET trimmed=trimmed")
