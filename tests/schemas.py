"""The schema of a new SQLite database, made once for all tests of a process and copied from then on.

The migrations are some twenty scripts, and running them is most of what a new store costs. A copy is what they made,
page for page. Tests about the migrations have them run, by the fixture `migrating`; so has every process that a test
starts, and every database that holds something already.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from asyncchatd.stores.sqlite import store
from asyncchatd.stores.sqlite.file import salvage
from asyncchatd.stores.sqlite.transactions import schema

_run = schema.migrate

_ANEW = "UPDATE file SET epoch=lower(hex(randomblob(4)))"
"""What the migrations make different in each database."""


@contextmanager
def copied() -> Iterator[None]:
    """Meanwhile a new database is a copy."""
    with pytest.MonkeyPatch.context() as patch:
        _put(patch, _copy)
        yield


@contextmanager
def migrated() -> Iterator[None]:
    """Meanwhile a new database is made by the migrations, as everywhere but in tests."""
    with pytest.MonkeyPatch.context() as patch:
        _put(patch, _run)
        yield


def _put(patch: pytest.MonkeyPatch, migrate: object) -> None:
    for module in (schema, store, salvage):
        patch.setattr(module, "migrate", migrate)


def _copy(connection: sqlite3.Connection, name: str) -> int:
    if schema.check_ours(connection, name) or connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
        return _run(connection, name)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        made.deserialize(_made(schema.MIGRATIONS))
        made.backup(connection)
    connection.execute(_ANEW)
    connection.commit()
    return len(schema.MIGRATIONS)


@functools.cache
def _made(migrations: tuple[str, ...]) -> bytes:
    """What these migrations make of an empty database."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        _run(db, "memory")
        return db.serialize()
