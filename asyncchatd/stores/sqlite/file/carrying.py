"""The way out of a database and into one, for copying it into another store: `stores/moving/`.

A new file is made beside its place, and takes it once it is whole. Its place may have an empty store, whose file is
replaced, and with it the note of which database lay there before (`witness.py`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.moving import TABLES, Kind, NotEmpty, Row, Table, moved_words, sealing_of
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sql.rows import LIVE
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file import witness
from asyncchatd.stores.sqlite.file.file import check, is_absent, lock, looks_like_sqlite
from asyncchatd.stores.sqlite.file.rescue import remove, sync, unfinished
from asyncchatd.stores.sqlite.transactions import schema

PORTION = 5_000
"""Rows in memory at once."""

ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "session": {"claim": "lease.claim", "held_until": "lease.until"},
    "restoration": {"begun": "restoration.cursor_active"},
    "marking": {
        "restoration": "restoration.id",
        "rank": "restoration.cursor_active",
        "session": "restoration.cursor_id",
    },
    "event": {"chat_id": "session.chat_id"},
    "store": {"last_event": "sqlite_sequence.seq", "last_restoration": "sqlite_sequence.seq"},
}
"""Columns of `stores/moving/rows.py` that stand in another table or under another name, by their tables."""

STORED_IN = {"store": "file"}
"""Tables of another name."""

LEFT = {
    "file.mark": "of the file alone: it counts its checkpoints",
    "file.at_work": "of the file alone: what is missing may stand in its log",
    "file.copied_at": "of the file alone: a backup is not copied before it was distrusted",
    "file.moved": "what is copied has not moved",
    "sealing.key_id": "the target's own key",
    "sealing.remains": "of the file alone: a new one has no free space",
    "lease.session": "the row's number is the session's",
    "sqlite_sequence.name": "SQLite's own",
}
"""Columns that stay behind, and why."""

_READ: Mapping[str, Mapping[str, str]] = {
    "restoration": {"begun": "restoration.marking AND restoration.cursor_active IS NOT NULL"},
    "event": {"chat_id": "coalesce(session.chat_id, '')"},
    "store": {
        each: f"coalesce((SELECT seq FROM sqlite_sequence WHERE name='{each.removeprefix('last_')}'), 0)"
        for each in ("last_event", "last_restoration")
    },
}
"""How columns are read that do not stand there as they are."""

_FROM = {
    "session": "session LEFT JOIN lease ON lease.session=session.id ORDER BY session.id",
    "event": "event LEFT JOIN session ON session.id=event.session ORDER BY event.id",
    "delivery": "delivery ORDER BY consumer, session, first",
    "ask": "ask ORDER BY session, event",
    "store": "file",
}

# In the order of `transactions/restorations.mark`, from behind the cursor.
_MARKING = f"""SELECT restoration.id, row_number() OVER (PARTITION BY restoration.id
        ORDER BY session.active_at DESC, session.id DESC), session.id
    FROM restoration JOIN session ON session.alias=restoration.alias AND session.state={LIVE}
        AND (session.active_at, session.id) < (restoration.cursor_active, restoration.cursor_id)
        AND session.active_at<restoration.started_at
    WHERE restoration.marking=1 ORDER BY 1, 2"""


class FileCarrier:
    """`moving.Carrier` of a file."""

    def __init__(self, path: Path, sealings: Sequence[Sealing]) -> None:
        self._file = path.resolve()
        self._sealings = sealings
        self.shown = str(self._file)

    @asynccontextmanager
    async def leaving(self) -> AsyncIterator[LeavingFile]:
        """The file, locked as by a daemon."""
        with _in_our_words(self.shown), self._open() as db:
            refuse_moved(db, self.shown)
            [[copied_at, key_id]] = db.execute("SELECT copied_at, key_id FROM file, sealing").fetchall()
            if copied_at is not None:
                raise StoreError(
                    f"{self.shown} is a backup of {witness.utc(copied_at)}: put it in the place of the database, run"
                    " asyncchatd store distrust (docs/backup.md), and copy it then"
                )
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            yield LeavingFile(db, sealing_of(key_id, self._sealings, self.shown))
            db.execute("COMMIT")

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[ArrivingFile]:
        """A new file, in the place of none or of an empty store."""
        with _in_our_words(self.shown):
            held, _ = lock(self._file)
            made = unfinished(self._file)
            try:
                self._refuse_full()
                os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                with closing(sqlite3.connect(made, isolation_level=None, factory=Db)) as db:
                    # Whole or removed: no journal is needed, and the disk is waited for once, at the end.
                    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
                        db.execute(f"PRAGMA {pragma}").fetchall()
                    schema.migrate(db, self.shown)
                    db.execute("BEGIN")
                    yield ArrivingFile(db, self._sealings[0])
                    noted = witness.seen_in(db)
                    db.execute("COMMIT")
                self._publish(made, noted, held)
            finally:
                remove(made)
                os.close(held)

    async def unused(self) -> None:
        """`Carrier.unused`."""
        with _in_our_words(self.shown):
            held, _ = lock(self._file)
            os.close(held)

    async def unmove(self) -> str | None:
        """`Carrier.unmove`."""
        with _in_our_words(self.shown), self._open() as db:
            [[moved]] = db.execute("SELECT moved FROM file").fetchall()
            db.execute("PRAGMA synchronous = FULL")
            db.execute("UPDATE file SET moved=NULL")
            return None if moved is None else str(moved)

    @contextmanager
    def _open(self) -> Iterator[Db]:
        """The file, which is a whole store of this version that nobody has."""
        if is_absent(self._file):
            raise StoreError(f"there is no database {self.shown}")
        if not looks_like_sqlite(self._file):
            raise StoreError(f"{self.shown} is no SQLite file")
        held, _ = lock(self._file)
        try:
            logged = Path(f"{self._file}-wal").exists()
            uri = f"{self._file.as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None, factory=Db)) as db:
                if schema.check_ours(db, self.shown) < len(schema.MIGRATIONS):
                    raise StoreError(
                        f"{self.shown} was written by an older asyncchatd; start this one once before"
                    )
                [[at_work]] = db.execute("SELECT at_work FROM file").fetchall()
                unjudged = any(Path(f"{self._file}.{each}").exists() for each in ("suspect", "choice"))
                if unjudged or (at_work and not logged):
                    raise StoreError(
                        f"{self.shown} may be damaged or lack its write-ahead log; start asyncchatd once, and look at"
                        " what it says of its store"
                    )
                check(db, thorough=True)
                yield db
        finally:
            os.close(held)

    def _publish(self, made: Path, noted: witness.Witness, held: int) -> None:
        """Let what was made take the file's place."""
        sync(made)
        for suffix in ("-wal", "-shm", "-journal"):
            Path(f"{self._file}{suffix}").unlink(missing_ok=True)
        witness.write(held, noted)
        made.replace(self._file)
        sync(self._file.parent)

    def _refuse_full(self) -> None:
        if is_absent(self._file):
            return
        if not looks_like_sqlite(self._file):
            raise StoreError(f"{self.shown} is no SQLite file, and was left alone; name another one")
        with closing(sqlite3.connect(f"{self._file.as_uri()}?mode=rw", uri=True)) as db:
            if schema.check_ours(db, self.shown) == 0:
                return
            for table in TABLES:
                if table.name not in ("store", "marking"):
                    with suppress(sqlite3.OperationalError):  # an older version's, without that table
                        [[count]] = db.execute(f"SELECT count(*) FROM {table.name}").fetchall()
                        if count:
                            raise NotEmpty(
                                f"{self.shown} is not empty: {count:,} rows of {table.name}. Nothing is copied over"
                                " what is there; move it away with its -wal file, or name another one"
                            )


class _RowsOfFile:
    """What is read of a file in a transaction."""

    def __init__(self, db: sqlite3.Connection, sealing: Sealing) -> None:
        self._db = db
        self.sealing = sealing

    async def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """`Leaving.rows`."""
        flags, texts = table.places(Kind.FLAG), table.places(Kind.TEXTS)
        cursor = self._db.execute(_MARKING if table.name == "marking" else _selecting(table))
        while portion := cursor.fetchmany(PORTION):
            yield [_read(row, flags, texts) for row in portion] if flags or texts else portion


class LeavingFile(_RowsOfFile):
    """`moving.Leaving` of a file."""

    async def moved(self, whither: str) -> None:
        """`Leaving.moved`."""
        self._db.execute("UPDATE file SET moved=?", (whither,))


class ArrivingFile(_RowsOfFile):
    """`moving.Arriving` of a file."""

    def __init__(self, db: sqlite3.Connection, sealing: Sealing) -> None:
        super().__init__(db, sealing)
        db.execute("UPDATE sealing SET key_id=?", (sealing.key_id,))
        self._indexes = db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type='index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in self._indexes:
            db.execute(f"DROP INDEX {name}")

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        """`Arriving.write`."""
        values = (
            [_written(row, table.places(Kind.TEXTS)) for row in rows] if table.name == "consumer" else rows
        )
        match table.name:
            case "session":
                self._insert("session", table, values, without=("claim", "held_until"))
                id, claim, until = map(table.place, ("id", "claim", "held_until"))
                self._db.executemany(
                    "INSERT INTO lease (session, claim, until) VALUES (?,?,?)",
                    [(row[id], row[claim], row[until]) for row in values if row[claim] is not None],
                )
            case "restoration":
                self._insert("restoration", table, values, without=("begun",))
                id, begun = map(table.place, ("id", "begun"))
                # Behind all, until the first row of `marking` says where.
                self._db.executemany(
                    "UPDATE restoration SET cursor_active=-1, cursor_id=0 WHERE id=?",
                    [(row[id],) for row in values if row[begun]],
                )
            case "marking":
                self._db.executemany(
                    "UPDATE restoration SET cursor_active=(SELECT active_at FROM session WHERE id=?), cursor_id=?"
                    " WHERE id=?",
                    [(session, session + 1, number) for number, rank, session in values if rank == 1],
                )
            case "store":
                names = [name for name in table.columns if not name.startswith("last_")]
                for row in values:
                    self._db.execute(
                        f"UPDATE file SET {', '.join(f'{name}=?' for name in names)}",
                        [_with_blanks(row[table.place(name)]) for name in names],
                    )
                    for name in ("event", "restoration"):
                        self._number(name, row[table.place(f"last_{name}")])
            case name:
                self._insert(name, table, values)

    def _insert(self, name: str, table: Table, rows: Sequence[Row], *, without: Sequence[str] = ()) -> None:
        names = [each for each in table.written if each not in without]
        if len(names) < len(table.columns):
            places = [table.place(each) for each in names]
            rows = [[row[place] for place in places] for row in rows]
        self._db.executemany(
            f"INSERT INTO {name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", rows
        )

    def _number(self, name: str, last: int) -> None:
        """The next row of a table has a higher number than any there ever was."""
        self._db.execute("DELETE FROM sqlite_sequence WHERE name=?", (name,))
        if last:
            self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?,?)", (name, last))

    async def complete(self) -> None:
        """`Arriving.complete`."""
        for _, sql in self._indexes:
            self._db.execute(sql)


def _selecting(table: Table) -> str:
    source = STORED_IN.get(table.name, table.name)
    elsewhere = {**ELSEWHERE.get(table.name, {}), **_READ.get(table.name, {})}
    columns = ", ".join(elsewhere.get(name, f"{source}.{name}") for name in table.columns)
    return f"SELECT {columns} FROM {_FROM.get(table.name, f'{source} ORDER BY 1')}"


def _read(row: Row, flags: Sequence[int], texts: Sequence[int]) -> Row:
    values = list(row)
    for place in flags:
        values[place] = bool(values[place])
    for place in texts:
        values[place] = _list(values[place])
    return values


def _list(text: str) -> list[str]:
    """Lists stand there as JSON, ids of keys with blanks between."""
    return [str(each) for each in orjson.loads(text)] if text.startswith("[") else text.split()


def _written(row: Row, texts: Sequence[int]) -> Sequence[Any]:
    values = list(row)
    for place in texts:
        values[place] = orjson.dumps(values[place]).decode()
    return values


def _with_blanks(value: object) -> object:
    return " ".join(value) if isinstance(value, list) else value


def refuse_moved(db: sqlite3.Connection, shown: str) -> None:
    """Raises `StoreError` where what was in the database is elsewhere now."""
    [[moved]] = db.execute("SELECT moved FROM file").fetchall()
    if moved is not None:
        raise StoreError(moved_words(shown, moved))


@contextmanager
def _in_our_words(shown: str) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise StoreError(
            f"{shown} does not take half a surrogate pair, which stands in a text: {error}"
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{shown}: {error}") from error
