"""The note beside a database, in its lock: which database it was and how far, so that an empty, another or an older one
in its place is known for that at the next start.

A database carries the name of its history and a mark that grows with each checkpoint. A copy of before has a smaller
mark, and another database another name. What was found stands in the note until an operator has accepted it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from asyncchatd.model import Ms
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file.file import OURS
from asyncchatd.stores.sqlite.place import mark_number

LONGEST_NOTE = 4_096


@dataclass(frozen=True, slots=True)
class Witness:
    """What is noted of a database, or what one says of itself."""

    epoch: str
    number: int
    """The mark, which grows."""
    replaced: str | None = None
    """What an operator has yet to accept."""


def seen_in(db: Db) -> Witness:
    """What a database says of itself."""
    [[epoch, mark]] = db.execute("SELECT epoch, mark FROM file").fetchall()
    return Witness(epoch, mark_number(mark))


def read(lock: int) -> Witness | None:
    """The note; `None` where there is none, as beside a database that an older asyncchatd used last."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(os.pread(lock, LONGEST_NOTE, len(OURS)))
        return Witness(str(noted["epoch"]), int(noted["mark"]), noted.get("replaced"))
    return None


def write(lock: int, witness: Witness) -> None:
    """Put the note down. Raises `OSError`."""
    noted = {"epoch": witness.epoch, "mark": witness.number, "replaced": witness.replaced}
    content = OURS + json.dumps(noted).encode() + b"\n"
    os.pwrite(lock, content, 0)
    os.ftruncate(lock, len(content))
    os.fsync(lock)


def accept(lock: int, path: Path) -> None:
    """Note that an operator has accepted what is there. Raises `StoreError`."""
    noted = read(lock)
    if noted is None:
        return
    try:
        write(lock, replace(noted, replaced=None))
    except OSError as error:
        raise StoreError(f"{path}.lock cannot be written: {error.strerror}") from error


def judged(noted: Witness | None, found: Witness, path: Path) -> str | None:
    """What has taken the place of the database of before, if something has that nobody has accepted."""
    if noted is None:
        return None
    if found.epoch != noted.epoch:
        return f"{path} is another database than at the last start"
    if found.number < noted.number:
        return f"{path} is an older copy of the database of the last start"
    return noted.replaced


def utc(at: Ms) -> str:
    """The time of a backup, for people."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")


EMPTY = "was not there and has been made anew, empty: a database was used there before"

ACCEPT = (
    "if this is as it should be: asyncchatd store accept; else put the right database back, and look whether keys in"
    " this one may be old: docs/backup.md"
)
"""What an operator does about it."""
