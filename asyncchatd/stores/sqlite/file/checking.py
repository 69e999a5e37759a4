"""The database's file as `asyncchatd check --connect` finds it, before anything opens it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from asyncchatd.model import Finding, findings
from asyncchatd.stores.moving import has_moved
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file.file import is_absent, looks_like_sqlite
from asyncchatd.stores.sqlite.file.witness import ACCEPT, judged, read, seen_in, utc
from asyncchatd.stores.sqlite.place import is_held, is_nobodys

NEW_STORE = (
    "expected at the first start only; else stop asyncchatd and put back the database with the sessions of before"
    " (docs/backup.md)"
)
"""What an operator does about a store that was made at this start."""

LITTLE_SPACE = 50_000_000
ENOUGH_SPACE = 1_000_000_000
"""Bytes free: below the first the store soon cannot be written."""


async def look(
    file: Path, keys: Sequence[Sealing], answers: Callable[[], Awaitable[bool]]
) -> AsyncIterator[Finding]:
    """Whether the file can be made or written, and opened with these keys. `answers`: whether a daemon of this
    configuration runs, which then should hold it."""
    runs = await answers()
    strange = is_held(file) and not runs
    for finding in await asyncio.to_thread(lambda: list(_findings(file, keys, strange))):
        yield finding
    if runs and is_nobodys(file):
        message = f"the daemon that answers at control.listen does not hold {file}"
        advice = "restart it, if store.url was changed since its start; else stop the asyncchatd that answers there"
        yield findings.warning("store.url", message, advice)


def _findings(file: Path, keys: Sequence[Sealing], strange: bool) -> Iterator[Finding]:
    """`strange`: another process holds the file."""
    key = "store.url"
    owner = "the user the daemon runs as"
    existing = next(directory for directory in file.parents if directory.exists())
    if existing != file.parent and os.access(existing, os.W_OK | os.X_OK):
        yield findings.ok(key, f"{file} and its directory will be made at the next start, empty: {NEW_STORE}")
    elif not file.parent.is_dir():
        message = f"the directory {file.parent} does not exist"
        yield findings.error(key, message, f"make it, owned by {owner}")
    elif not os.access(file.parent, os.W_OK | os.X_OK):
        message = f"the directory {file.parent} cannot be written to"
        yield findings.error(key, message, f"give it to {owner}, or run this check as that user")
    elif file.exists() and (not file.is_file() or not os.access(file, os.R_OK | os.W_OK)):
        message = f"{file} cannot be read and written"
        yield findings.error(key, message, f"give it to {owner}, or run this check as that user")
    elif is_absent(file):
        yield findings.ok(key, f"{file} will be made at the next start, empty: {NEW_STORE}")
    elif not looks_like_sqlite(file):
        yield findings.error(key, f"{file} is no SQLite file", "name another one")
    elif lacking := _lacking_key(file, keys):
        message = f"the secure keys in {file} are encrypted with the key {lacking}, which is not given"
        yield findings.error("store.keys_file", message, "add its line to the file, or name another database")
    elif moved := _moved(file):
        yield findings.error(key, *has_moved(str(file), moved))
    elif strange:
        message = f"{file} is held by another process, which does not answer at control.listen"
        advice = "stop that asyncchatd, or name another database: fuser -v shows who has the file open"
        yield findings.warning(key, message, advice)
    elif is_held(file):
        yield findings.ok(key, f"{file} is held by the daemon that runs, {_size(_size_of_store(file))}")
    else:
        yield findings.ok(key, f"{file} can be written to, {_size(_size_of_store(file))}")
    if (replaced := _replaced(file)) is not None:
        yield findings.warning(key, replaced, ACCEPT)
    if existing.is_dir():
        yield _free_space("store", existing, file)


def _replaced(file: Path) -> str | None:
    """What lies in the place of the database of before, if something does that no operator has accepted."""
    lock = file.with_name(f"{file.name}.lock")
    try:
        with lock.open("rb") as beside:
            noted = read(beside.fileno())
            if is_absent(file):
                lacks = "is empty" if file.exists() else "is not there"
                was_used = os.fstat(beside.fileno()).st_size > 0
                return f"{file} {lacks}, and a database was used there before" if was_used else None
    except OSError:
        return None  # the first start, or not for this user
    if is_held(file):
        return noted.replaced if noted else None
    try:
        with closing(_unread(file)) as db:
            found = seen_in(db)
            [[copied_at]] = db.execute("SELECT copied_at FROM file").fetchall()
    except (sqlite3.Error, ValueError):
        return None  # an older version's, or damaged: the start tells
    if copied_at is not None:
        return f"{file} is a backup of {utc(copied_at)}"
    if noted and _size_of_store(file) > file.stat().st_size:
        noted = replace(noted, number=0)  # the mark of now stands in the log, which is not read here
    return judged(noted, found, file)


def _unread(file: Path) -> Db:
    """The file alone. Immutable: not even the log beside it is touched, which a daemon may be writing."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True, factory=Db)


def _lacking_key(file: Path, keys: Sequence[Sealing]) -> str | None:
    """The id of the key a database is under, when the configuration has not got it."""
    try:
        with closing(_unread(file)) as db:
            [[key_id]] = db.execute("SELECT key_id FROM sealing").fetchall()
        given = {None, *(each.key_id for each in keys)}
    except (sqlite3.Error, ValueError):
        return None  # what is wrong with it is told at the start
    return None if key_id in given else str(key_id)


def _moved(file: Path) -> str | None:
    """Where all of it was copied, and is used now."""
    with suppress(sqlite3.Error), closing(_unread(file)) as db:  # an older version's, or damaged
        [[moved]] = db.execute("SELECT moved FROM file").fetchall()
        return None if moved is None else str(moved)
    return None


def _free_space(key: str, directory: Path, file: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    message = f"{_size(free)} free on the disk of {file}"
    advice = "make room: when the disk is full pushes are answered with 503 and chats are not pinged"
    if free < LITTLE_SPACE:
        return findings.error(key, message, advice)
    # A store grows by the transactions since its last checkpoint, beside a copy made by a new version.
    if free < max(ENOUGH_SPACE, 2 * _size_of_store(file)):
        return findings.warning(key, message, advice)
    return findings.ok(key, message)


def _size_of_store(file: Path) -> int:
    parts = (file, file.with_name(f"{file.name}-wal"))
    return sum(part.stat().st_size for part in parts if part.is_file())


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
