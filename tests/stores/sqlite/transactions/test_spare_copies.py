"""Updates of many sessions copy no page aside before they change it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from asyncchatd.model.data import Cause, Reason
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import pushes, restorations, schema, sessions, settling, work
from asyncchatd.stores.sqlite.transactions.rows import LARGEST

from ...desk import LEASE, MINUTE, NOON, SECOND, SPREAD, answered, push, registration

pytestmark = pytest.mark.slow

CHATS = 3_000
"""So many sessions fill far more pages than SQLite copies in memory."""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Db]:
    """A database in a file with many sessions of Chat Server 117."""
    with closing(sqlite3.connect(tmp_path / "chats.db", isolation_level=None, factory=Db)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        schema.migrate(db, "chats.db")
        chats = [registration(f"chat-{number}") for number in range(CHATS)]
        with transaction(db):
            sessions.register(db, chats, NOON, SPREAD)
        yield db


@contextmanager
def transaction(db: Db) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT")


def copies() -> list[str]:
    """The temporary files that SQLite has open; one with copies stays open until its transaction ends."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [name for name in names if "etilqs_" in name]


def test_a_statement_that_can_be_undone_by_itself_copies_pages(db: Db) -> None:
    """So `copies` would see it."""
    with transaction(db):
        db.execute("UPDATE session SET due_at=max(due_at, ?)", (NOON + 2 * SPREAD,))
        assert copies()


def test_marking(db: Db) -> None:
    begun = restorations.begin_restoration(db, "117", "chat-1", Cause.UNREACHABLE, NOON)
    with transaction(db):
        restorations.mark(db, begun, CHATS, NOON)
        assert not copies()
    [restoration] = restorations.restorations(db, 10, unfinished=True)
    assert restoration.sessions == CHATS


def test_absorbing(db: Db) -> None:
    with transaction(db):
        pushes.take_pushes(db, [(push(f"chat-{number * 7 % CHATS}"), NOON) for number in range(500)])
    with transaction(db):
        pushes.absorb(db, 500)
        assert not copies()
    due = work.claim(db, NOON + MINUTE, CHATS, LEASE, [Reason.ACKNOWLEDGE], journal=False)
    assert len(due) == 500


def test_settling(db: Db) -> None:
    """Keepalives fall due in an order that is not that of the rows."""
    now = NOON + SPREAD
    with transaction(db):
        claims = [claim for claim, _ in work.claim(db, now, LARGEST, LEASE, EVERY_REASON, journal=False)]
    with transaction(db):
        answers = [answered(claim, sent_at=now, settled_at=now + SECOND) for claim in claims]
        settled, _ = settling.settle(db, answers)
        assert not copies()
    assert [one.lease_held for one in settled] == [True] * LARGEST
