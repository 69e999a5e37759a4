"""Sessions read out of a damaged database, page by page.

SQLite refuses a file whose first page is damaged, and gives up a table at its first bad page. Here the pages are
read without it, as https://www.sqlite.org/fileformat2.html describes them, with the committed pages of the
write-ahead log over those of the file. What still hangs in its table's tree is what it was at the last commit,
and is taken as it is. Of sessions whose page hangs in no tree any more nobody knows whether the page is an old one:
a wrong key throws a customer out, so these are kept without tokens, unpinged, until a push or a registration tells
them, as after `asyncchatd store distrust`.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from asyncchatd.model import EventKind
from asyncchatd.stores.sql.rows import ENDED, INCOMPLETE
from asyncchatd.stores.sqlite.file.pages import IndexTree, Pages, Row, Tree, Value
from asyncchatd.stores.sqlite.transactions.schema import ADDED, migrate
from asyncchatd.stores.transcripts import OF_ALL

FIRST_TABLE = 2
"""The root page of `session`: it is made first, and SQLite gives a new database's pages out in their order."""

OF_FILE = ("copied_at", "gateway_keys", "moved")
"""Columns of the table `file`: that it is a backup; with which keys the gateway made its clients' ones, which no other
gateway may come in the place of; and where all of it was copied, as what went on there must not go on here as well."""

WHOLE_TABLES = ("server", "restoration", "journal")

HELD = ("take", "lease")
"""Who has a session; the number of a row is that of its session."""

_KEY_ID = re.compile(r"([0-9a-f]{16})?")
"""How a store key is named; not at all where there is none."""


class Salvaged(NamedTuple):
    """What was read out of a damaged database."""

    sessions: int
    """All of them, the next ones included."""
    waiting: int
    """Those whose tokens cannot be relied on: not pinged until somebody tells them."""
    pushes: int
    """Acknowledged, and without effect yet."""


def salvage(damaged: Path, made: Path, broken_off: Callable[[], bool] = lambda: False) -> Salvaged:
    """Write what can be read of a damaged database, and of the log beside it, into a new one. Nothing is left of
    a new one that fails, and the damaged one is only read. It fails once it is `broken_off`.

    Raises `OSError` or `sqlite3.Error`.
    """
    os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with damaged.open("rb") as file, closing(sqlite3.connect(made, isolation_level=None)) as db:
            migrate(db, str(made))
            db.execute("BEGIN")
            salvaged = _Salvage(Pages(file.fileno(), Path(f"{damaged}-wal")), db, broken_off).run()
            db.execute("COMMIT")
        descriptor = os.open(made, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        for suffix in ("", "-journal"):
            Path(f"{made}{suffix}").unlink(missing_ok=True)
        raise
    return salvaged


class _Salvage:
    """One run, into the open transaction of a new database."""

    def __init__(self, pages: Pages, db: sqlite3.Connection, broken_off: Callable[[], bool]) -> None:
        self._pages = pages
        self._broken_off = broken_off
        self._db = db
        self._roots = _stated_roots(pages) or self._usual_roots()

    def run(self) -> Salvaged:
        """Copy all that can be read."""
        for table in WHOLE_TABLES:
            self._insert(table, self._hanging(table))
        self._copy_of_file()
        sealed = self._copy_sealing()
        current = self._is_current()
        if not current:  # they may have taken effect, and newer ones after them
            self._db.execute("UPDATE journal SET user_id=NULL, secure_key=NULL, alias=NULL")
        session = Tree(self._pages, self._roots.get("session", FIRST_TABLE))
        hanging = _fitting(session.rows(), _columns(self._db, "session"))
        if sealed and current:
            self._insert("session", hanging)
            doubtful: Iterable[tuple[int, Row]] = ()
        else:
            doubtful = list(hanging)
        trusted = self._count("session")
        if not session.whole:
            loose = self._pages.loose(session.seen)
            doubtful = [*doubtful, *_fitting(loose, _columns(self._db, "session"))]
        if trusted:
            # Whoever has taken a chat, or whose answer was under way, may know another key.
            for table in HELD:
                self._copy_whole(table, Tree)
                self._db.execute(f"DELETE FROM {table} WHERE session NOT IN (SELECT id FROM session)")
        self._insert_doubtful(doubtful)
        self._copy_transcripts(trusted=sealed and current)
        self._balance()
        sessions = self._count("session")
        return Salvaged(sessions, sessions - trusted, self._count("journal"))

    def _sealing(self, roots: Mapping[str, int]) -> Row | None:
        rows = [row for _, row in self._hanging("sealing", roots)]
        if len(rows) != 1 or rows[0][1] not in (0, 1) or not _KEY_ID.fullmatch(str(rows[0][0] or "")):
            return None
        return rows[0]

    def _usual_roots(self) -> dict[str, int]:
        """As a new database has them, or one that was written anew for another store key: the one that puts the
        table with a single row of its own where it is. Nothing where the database grew by migrations."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as usual:
            migrate(usual, "memory")
            for vacuumed in (False, True):
                if vacuumed:
                    usual.execute("VACUUM")
                found = "SELECT name, rootpage FROM sqlite_schema WHERE type='table'"
                roots = dict(usual.execute(found).fetchall())
                if self._sealing(roots) is not None:
                    return roots
        return {}

    def _hanging(self, table: str, roots: Mapping[str, int] | None = None) -> Iterator[tuple[int, Row]]:
        root = (self._roots if roots is None else roots).get(table)
        tree = () if root is None else Tree(self._pages, root).rows()
        return _fitting(tree, _columns(self._db, table))

    def _copy_sealing(self) -> bool:
        """Under which store key the secure keys stand. Whether that could be read."""
        said = self._sealing(self._roots)
        if said is not None:
            self._db.execute("UPDATE sealing SET key_id=?, remains=?", said)
            return True
        self._db.execute("DELETE FROM journal")  # nobody can open what they say
        return False

    def _copy_of_file(self) -> None:
        """What stands in the file of itself and holds for what was read out of it."""
        names = [column.name for column in _columns(self._db, "file")]
        for _, row in self._hanging("file"):
            said = {name: value for name, value in zip(names, row, strict=False) if name in OF_FILE}
            self._db.execute(f"UPDATE file SET {', '.join(f'{name}=?' for name in said)}", [*said.values()])

    def _is_current(self) -> bool:
        """Whether file and log together are what was committed last: of a file that was in use, the log holds the
        newest keys."""
        at_work = [row[1] for _, row in self._hanging("file")]
        return self._pages.log_whole and (self._pages.log_there or at_work == [0])

    def _insert(self, table: str, rows: Iterable[tuple[int, Row]]) -> None:
        names = [column.name for column in _columns(self._db, table)]
        for number, row in rows:
            if self._broken_off():
                raise InterruptedError("broken off")
            # A column that is the row's number is not in its record.
            values = (number, *row[1:]) if names[0] == "id" or table in HELD else row
            marks = ",".join("?" * len(values))
            self._db.execute(
                f"INSERT OR IGNORE INTO {table} ({', '.join(names[: len(values)])}) VALUES ({marks})", values
            )

    def _insert_doubtful(self, rows: Iterable[tuple[int, Row]]) -> None:
        """The newest of each first: of one session several versions may be found. It knows the keys that were
        replaced before; its own counts again once it is registered, as nobody else could tell it of a silent chat."""
        names = [column.name for column in _columns(self._db, "session")]
        place = {name: position for position, name in enumerate(names)}

        def newness(found: tuple[int, Row]) -> tuple[bool, float]:
            row = found[1]
            times = (row[place[name]] for name in ("active_at", "answered_at", "sent_at", "ended_at"))
            ended = row[place["state"]] == ENDED
            return ended, max(float(at) for at in times if isinstance(at, int | float))

        for number, row in sorted(rows, key=newness, reverse=True):
            values = dict(zip(names, row, strict=False))
            if values["state"] != ENDED:
                values |= dict.fromkeys(("user_id", "secure_key", "alias", "restoration"))
                values["state"] = INCOMPLETE
            values["secure_key"] = None
            self._insert("session", [(number, tuple(values.values()))])

    def _copy_transcripts(self, *, trusted: bool) -> None:
        """Events, and how far each consumer is. Only what hangs in its tree: what was erased must not come back. Where
        not all of it is there, or may be of before, consumers are told a gap."""
        whole = self._copy_whole("consumer", Tree)
        if trusted:
            whole &= self._copy_whole("event", Tree) & self._copy_whole("delivery", IndexTree)
        for table in ("event", "delivery"):
            self._db.execute(
                f"DELETE FROM {table} WHERE session<>{OF_ALL} AND session NOT IN (SELECT id FROM session)"
            )
        # No event may have the number of one that somebody has been told.
        self._db.execute(
            "INSERT INTO event (id, session, numbering, kind, at) SELECT 1 + max("
            " (SELECT coalesce(max(id), 0) FROM event), (SELECT coalesce(max(max(cursor, given)), 0) FROM consumer),"
            f" (SELECT coalesce(max(max(first, coalesce(until, 0))), 0) FROM delivery)), {OF_ALL}, 0, ?, ?",
            (EventKind.GAP, round(time.time() * 1000)),
        )
        if trusted and whole:
            self._db.execute("DELETE FROM event WHERE id=(SELECT max(id) FROM event)")
        else:
            self._db.execute("UPDATE file SET gap=(SELECT max(id) FROM event)")

    def _copy_whole(self, table: str, kind: type[Tree]) -> bool:
        """Whether all pages of the table could be read."""
        root = self._roots.get(table)
        if root is None:
            return False
        tree = kind(self._pages, root)
        self._insert(table, _fitting(tree.rows(), _columns(self._db, table)))
        return tree.whole

    def _balance(self) -> None:
        """A restoration waits for the sessions that are still there."""
        done = "restored+ended+refused+moved"
        self._db.execute(
            "UPDATE session SET restoration=NULL WHERE restoration NOT IN (SELECT id FROM restoration)"
        )
        self._db.execute(
            f"UPDATE restoration SET sessions={done}"
            " + (SELECT count(*) FROM session WHERE session.restoration=restoration.id)"
            " WHERE finished_at IS NULL"
        )
        self._db.execute(
            f"UPDATE restoration SET finished_at=? WHERE finished_at IS NULL AND marking=0 AND sessions={done}",
            (round(time.time() * 1000),),
        )

    def _count(self, table: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# -- tables ----------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column of a table of ours."""

    name: str
    type: str
    required: bool

    def takes(self, value: Value) -> bool:
        """Whether it may hold such a value."""
        if value is None:
            return not self.required
        return isinstance(value, _TYPES[self.type])


_TYPES: dict[str, tuple[type, ...]] = {
    "INTEGER": (int,),
    "REAL": (int, float),
    "TEXT": (str,),
    "BLOB": (bytes,),
}


def _columns(db: sqlite3.Connection, table: str) -> list[_Column]:
    found = db.execute(f"PRAGMA table_info({table})").fetchall()
    return [_Column(name, kind, bool(required)) for _, name, kind, required, _, _ in found]


def _fitting(rows: Iterable[tuple[int, Row]], columns: Sequence[_Column]) -> Iterator[tuple[int, Row]]:
    """Those that may be rows of a table with such columns; columns that were added later may be missing."""
    least = len(columns)
    while least and columns[least - 1].name in ADDED:
        least -= 1
    for number, row in rows:
        if least <= len(row) <= len(columns) and all(map(_Column.takes, columns, row)):
            yield number, row


def _stated_roots(pages: Pages) -> dict[str, int]:
    """The root page of each table, as the schema on the first page says; of one that cannot be read nothing."""
    found: dict[str, int] = {}
    for _, row in Tree(pages, 1).rows():
        if len(row) == 5 and row[0] == "table" and isinstance(row[1], str) and isinstance(row[3], int):
            found[row[1]] = row[3]
    return found
