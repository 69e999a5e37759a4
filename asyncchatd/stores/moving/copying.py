"""Copying one store into another, wholly or not at all.

Nobody else has either store meanwhile, and both are open in one transaction each. That of the target ends when all that
it holds has been read back and compared; that of the source, which only marks it as moved, ends after it. Between the
two nothing is done: whoever is killed just there has two equal stores, and copying once more marks the source.
"""

from __future__ import annotations

import asyncio
import hashlib
import marshal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from asyncchatd.log import get_logger
from asyncchatd.model import EventKind
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.keys import opened
from asyncchatd.stores.moving.rows import EVENT, JOURNAL, SESSION, TABLES, Row, Table
from asyncchatd.stores.sealing import Clear, SealError, Sealing, event_mark

log = get_logger()


class NotEmpty(StoreError):
    """Something stands in the store that is to be filled."""


class Leaving(Protocol):
    """A store that is being left, open, in a transaction that only `moved` changes something in."""

    sealing: Sealing
    """What its secure keys stand under."""

    def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """The rows of a table, in portions, always in the same order."""

    async def moved(self, whither: str) -> None:
        """Mark it as moved."""


class Arriving(Protocol):
    """An empty store, open, in a transaction that fills it."""

    sealing: Sealing
    """What its secure keys are to stand under."""

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows of a table, the next ones."""

    async def complete(self) -> None:
        """Make whole what was written, so that it can be read back."""

    def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """As `Leaving.rows`."""


class Carrier(Protocol):
    """The ways in and out of a store that is not open. Each raises `StoreError`. What is done in either is kept, also
    over a power cut, once the context ends without an error, and else undone."""

    shown: str
    """As people call it, without a password."""

    def leaving(self) -> AbstractAsyncContextManager[Leaving]:
        """The store, for as long as nobody else has it. Refused while a daemon runs, and once it has moved."""

    def arriving(self) -> AbstractAsyncContextManager[Arriving]:
        """The store to be filled; made, where there is none. Refused while a daemon runs, and where it is not empty:
        `NotEmpty`."""

    async def unused(self) -> None:
        """See that nobody uses it. Refused while a daemon runs."""

    async def unmove(self) -> str | None:
        """Let it be used again, after it was marked as moved. Where it had moved, if it had."""


@dataclass(frozen=True)
class Copied:
    """What was copied and found equal afterwards."""

    counts: dict[str, int]
    """Rows of each table."""
    digest: str
    """Of all of them, the secure keys in the clear."""
    resealed: bool
    """Whether the secure keys stand under another key than before."""


async def copy_rows(
    source: Carrier, target: Carrier, *, told: Callable[[str, int], None] = lambda table, count: None
) -> Copied:
    """Copy all of a store into another one, which is empty, and mark it as moved. `told` is told how many rows of which
    table there are by now. Raises `StoreError`, and both are as they were then."""
    if source.shown == target.shown:
        raise StoreError(f"{source.shown} cannot be copied into itself")
    try:
        return await _copy(source, target, told)
    except NotEmpty:
        copied = await _finish(source, target)
        if copied is None:
            raise
        return copied


async def _copy(source: Carrier, target: Carrier, told: Callable[[str, int], None]) -> Copied:
    async with source.leaving() as leaving, target.arriving() as arriving:
        reseals = leaving.sealing.key_id != arriving.sealing.key_id
        read, found = Tally(), Tally()
        for table in TABLES:
            async for portion in leaving.rows(table):
                plain, sealed = portion, portion
                if reseals:
                    plain = list(opened_rows(table, portion, leaving.sealing))
                    sealed = list(_sealed(table, plain, arriving.sealing))
                read.add(table, plain)
                await arriving.write(table, sealed)
                await asyncio.sleep(0)  # whoever stops it is heard between two portions
                told(table.name, read.counts[table.name])
        await arriving.complete()
        for table in TABLES:
            async for portion in arriving.rows(table):
                found.add(table, list(opened_rows(table, portion, arriving.sealing)) if reseals else portion)
        read.compare(found, target.shown)
        await leaving.moved(_whither(target))
        # The target's transaction ends first.
    return read.copied(reseals=reseals)


async def _finish(source: Carrier, target: Carrier) -> Copied | None:
    """Mark the source of a copy that is whole, and after which it was not marked any more. `None` where what stands in
    the target is something else."""
    async with source.leaving() as leaving, target.leaving() as there:
        reseals = leaving.sealing.key_id != there.sealing.key_id
        read, found = Tally(), Tally()
        for tally, side in ((found, there), (read, leaving)):
            for table in reversed(TABLES):  # the store's own row first: nearly always it is another's
                async for portion in side.rows(table):
                    tally.add(table, list(opened_rows(table, portion, side.sealing)) if reseals else portion)
                if tally is read and not read.agrees(found, table):
                    return None
        await leaving.moved(_whither(target))
    return read.copied(reseals=reseals)


def _whither(target: Carrier) -> str:
    return f"{target.shown} on {datetime.now(UTC):%Y-%m-%d at %H:%M:%SZ}"


@dataclass
class Tally:
    """How many rows there are, and their digest."""

    counts: Counter[str] = field(default_factory=Counter)
    _digests: dict[str, Any] = field(default_factory=dict)

    def add(self, table: Table, rows: Sequence[Row]) -> None:
        """Count rows in, in their order."""
        self.counts[table.name] += len(rows)
        digest = self._digests.setdefault(table.name, hashlib.blake2b(digest_size=16))
        for row in rows:
            # Version 2, in which equal values are equal bytes: a later one refers to what it wrote before.
            digest.update(marshal.dumps(tuple(row), 2))

    @property
    def digest(self) -> str:
        """Of all tables that are compared."""
        whole = hashlib.blake2b(digest_size=16)
        for table in _COMPARED:
            whole.update(self._of(table))
        return whole.hexdigest()

    def copied(self, *, reseals: bool) -> Copied:
        """What was copied."""
        return Copied({table.name: self.counts[table.name] for table in TABLES}, self.digest, reseals)

    def agrees(self, other: Tally, table: Table) -> bool:
        """Whether the same was found in a table."""
        return table.follows or (
            self.counts[table.name] == other.counts[table.name] and self._of(table) == other._of(table)
        )

    def compare(self, found: Tally, shown: str) -> None:
        """Raises `StoreError` when something else was found than what was read."""
        for table in _COMPARED:
            if self.counts[table.name] != found.counts[table.name]:
                raise StoreError(
                    f"{shown} has {found.counts[table.name]:,} rows of {table.name} and not the"
                    f" {self.counts[table.name]:,} that were written: nothing was copied"
                )
            if not self.agrees(found, table):
                raise StoreError(
                    f"the rows of {table.name} in {shown} are not those that were written: nothing was copied"
                )

    def _of(self, table: Table) -> bytes:
        digest = self._digests.get(table.name)
        return b"" if digest is None else bytes(digest.digest())


_COMPARED = tuple(table for table in TABLES if not table.follows)


def has_moved(shown: str, moved: str) -> tuple[str, str]:
    """The same for `asyncchatd check`: what is found, and the advice."""
    return (
        f"all that was in {shown} was copied to {moved}, and goes on there",
        "name that one; to use this one all the same: asyncchatd store unmove, docs/nodes.md",
    )


def moved_words(shown: str, moved: str) -> str:
    """Why a store that was copied is not used any more, and what to do."""
    return (
        f"all that was in {shown} was copied to {moved}, and goes on there: name that one in store.url. What is here is"
        " as of then; to use it all the same, where nothing has used the copy: asyncchatd store unmove, docs/nodes.md"
    )


# -- secure keys and events, from one key to another ---------------------------------------------------


def sealing_of(key_id: str | None, sealings: Sequence[Sealing], shown: str) -> Sealing:
    """What a store is under now, of those that are given. Raises `StoreError`."""
    if key_id is None:
        return Clear()
    for sealing in sealings:
        if sealing.key_id == key_id:
            return sealing
    given = ", ".join(str(each.key_id) for each in sealings if each.key_id is not None) or "none"
    raise StoreError(
        f"the secure keys in {shown} are encrypted with the key {key_id}, which is not among those given: {given}"
    )


def opened_rows(table: Table, rows: Sequence[Row], sealing: Sealing) -> Iterator[Row]:
    """Rows with what is sealed in them in the clear."""
    return _changed(table, rows, partial(opened, sealing), partial(_opened_event, sealing=sealing))


def _sealed(table: Table, rows: Sequence[Row], sealing: Sealing) -> Iterator[Row]:
    """Rows in the clear, sealed."""
    return _changed(table, rows, sealing.seal, partial(_sealed_event, sealing=sealing))


def _changed(
    table: Table,
    rows: Sequence[Row],
    key_of: Callable[[str | None, str | None, str | None], str | None],
    event_of: Callable[[Row], Row],
) -> Iterator[Row]:
    """Rows with another secure key, made of it, the chat and the device, or as other events."""
    if table is EVENT:
        yield from map(event_of, rows)
    elif table in (SESSION, JOURNAL):
        key, chat, device = map(table.place, ("secure_key", "chat_id", "device_id"))
        for row in rows:
            yield _with(row, key, key_of(row[key], row[chat], row[device]))
    else:
        yield from rows


def _opened_event(row: Row, sealing: Sealing) -> Row:
    """Without its mark, which follows from the body. One that does not open becomes what it is told as, a gap."""
    body, likeness = EVENT.place("body"), EVENT.place("likeness")
    if row[body] is None:
        return row
    try:
        plain = sealing.open_event(row[body], row[EVENT.place("chat_id")])
    except SealError:
        return _with(_with(row, body, None), EVENT.place("kind"), EventKind.GAP.value)
    return _with(_with(row, body, plain), likeness, None)


def _sealed_event(row: Row, sealing: Sealing) -> Row:
    body, likeness, kind = map(EVENT.place, ("body", "likeness", "kind"))
    if row[body] is None:
        return row
    sealed = _with(row, body, sealing.seal_event(row[body], row[EVENT.place("chat_id")]))
    return _with(sealed, likeness, event_mark(sealing, row[kind], row[body]))


def _with(row: Row, place: int, value: object) -> Row:
    return (*row[:place], value, *row[place + 1 :])
