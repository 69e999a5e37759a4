"""A database whose schema was copied is one that the migrations made."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from schemas import migrated

from asyncchatd.stores.sqlite.transactions import schema


def content(db: sqlite3.Connection) -> list[object]:
    """All that stands in it, and where, but for its epoch."""
    places = db.execute("SELECT name, rootpage FROM sqlite_schema ORDER BY rootpage").fetchall()
    settings = (
        "application_id",
        "user_version",
        "page_size",
        "page_count",
        "freelist_count",
        "auto_vacuum",
        "encoding",
    )
    values = [db.execute(f"PRAGMA {name}").fetchone() for name in settings]
    db.execute("UPDATE file SET epoch='epoch'")
    db.commit()
    return [places, values, *db.iterdump()]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_copy_is_what_the_migrations_make(tmp_path: Path, journal: str) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "copied.db", isolation_level=None)) as one,
        closing(sqlite3.connect(tmp_path / "migrated.db", isolation_level=None)) as other,
    ):
        for db in (one, other):
            db.execute(f"PRAGMA journal_mode = {journal}")
        assert schema.migrate(one, "copied.db") == len(schema.MIGRATIONS)
        with migrated():
            assert schema.migrate(other, "migrated.db") == len(schema.MIGRATIONS)
        assert content(one) == content(other)
        assert one.execute("PRAGMA journal_mode").fetchone() == (journal,)


def test_each_copy_has_an_epoch_of_its_own() -> None:
    epochs = set()
    for _ in range(2):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
            schema.migrate(db, "memory")
            epochs.add(db.execute("SELECT epoch FROM file").fetchone())
    assert len(epochs) == 2


def test_what_holds_something_already_is_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        schema.migrate(db, "memory")
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE further (one)"))
        assert schema.migrate(db, "memory") == 1
        assert db.execute("SELECT count(*) FROM further").fetchone() == (0,)
