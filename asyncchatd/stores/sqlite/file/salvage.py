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
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from asyncchatd.stores.sqlite.transactions import session_rows
from asyncchatd.stores.sqlite.transactions.schema import ADDED, migrate

Value = int | float | str | bytes | None
Row = tuple[Value, ...]

PAGE_SIZE = 4096
"""SQLite's own choice, where neither file nor log says it."""

TREE_NODE, TREE_LEAF = 0x05, 0x0D
"""How a page of a table begins."""

FIRST_TABLE = 2
"""The root page of `session`: it is made first, and SQLite gives a new database's pages out in their order."""

WHOLE_TABLES = ("server", "restoration", "journal")

_KEY_ID = re.compile(r"([0-9a-f]{16})?")
"""How a store key is named; not at all where there is none."""

_BAD_PAGE = (IndexError, ValueError, struct.error, OverflowError)


class Salvaged(NamedTuple):
    """What was read out of a damaged database."""

    sessions: int
    """All of them, the next ones included."""
    waiting: int
    """Those whose tokens cannot be relied on: not pinged until somebody tells them."""
    pushes: int
    """Acknowledged, and without effect yet."""


def salvage(damaged: Path, made: Path) -> Salvaged:
    """Write what can be read of a damaged database, and of the log beside it, into a new one. Nothing is left of
    a new one that fails, and the damaged one is only read.

    Raises `OSError` or `sqlite3.Error`.
    """
    os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with damaged.open("rb") as file, closing(sqlite3.connect(made, isolation_level=None)) as db:
            migrate(db, str(made))
            db.execute("BEGIN")
            salvaged = _Salvage(Pages(file.fileno(), Path(f"{damaged}-wal")), db).run()
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

    def __init__(self, pages: Pages, db: sqlite3.Connection) -> None:
        self._pages = pages
        self._db = db
        self._roots = _stated_roots(pages) or self._usual_roots()

    def run(self) -> Salvaged:
        """Copy all that can be read."""
        for table in WHOLE_TABLES:
            self._insert(table, self._hanging(table))
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
        self._insert_doubtful(doubtful)
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

    def _is_current(self) -> bool:
        """Whether file and log together are what was committed last: of a file that was in use, the log holds the
        newest keys."""
        at_work = [row[1] for _, row in self._hanging("file")]
        return self._pages.log_whole and (self._pages.log_there or at_work == [0])

    def _insert(self, table: str, rows: Iterable[tuple[int, Row]]) -> None:
        names = [column.name for column in _columns(self._db, table)]
        for number, row in rows:
            # A column that is the row's number is not in its record.
            values = (number, *row[1:]) if names[0] == "id" else row
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
            ended = row[place["state"]] == session_rows.ENDED
            return ended, max(float(at) for at in times if isinstance(at, int | float))

        for number, row in sorted(rows, key=newness, reverse=True):
            values = dict(zip(names, row, strict=False))
            if values["state"] != session_rows.ENDED:
                values |= dict.fromkeys(("user_id", "secure_key", "alias", "restoration"))
                values["state"] = session_rows.INCOMPLETE
            values["secure_key"] = None
            self._insert("session", [(number, tuple(values.values()))])

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


class Tree:
    """A table as its pages hang together."""

    def __init__(self, pages: Pages, root: int) -> None:
        self._pages = pages
        self._root = root
        self.whole = True
        """Whether no page of it was unreadable so far."""
        self.seen: set[int] = set()

    def rows(self) -> Iterator[tuple[int, Row]]:
        """The rows of all pages that hang in it, with their numbers."""
        waiting = [self._root]
        while waiting:
            number = waiting.pop()
            page = self._pages.read(number)
            if page is None or number in self.seen:
                self.whole = False
                continue
            start = 100 if number == 1 else 0
            try:
                children = _children(page, start) if page[start] == TREE_NODE else []
                rows = list(self._pages.rows(page, start)) if not children else []
            except _BAD_PAGE:
                self.whole = False
                continue
            self.seen.add(number)
            waiting += reversed(children)
            yield from rows


# -- pages -----------------------------------------------------------------------------------------------


class Pages:
    """The pages of a database, with those over them that its log has."""

    def __init__(self, file: int, log: Path) -> None:
        """`file` is a descriptor, used while this is."""
        self._file = file
        self._logged: dict[int, bytes] = {}
        size, self._logged, self.log_whole = _committed(log)
        self.log_there = log.exists()
        header = os.pread(file, 18, 0)
        said = int.from_bytes(header[16:18], "big")
        said = 65_536 if said == 1 else said
        plausible = header.startswith(b"SQLite") and said >= 512 and said & (said - 1) == 0
        self.size = size or (said if plausible else PAGE_SIZE)
        self.count = max(os.fstat(file).st_size // self.size, *self._logged, 0)

    def read(self, number: int) -> bytes | None:
        """A page, counted from 1; `None` where there is none."""
        if number < 1:
            return None
        page = self._logged.get(number) or os.pread(self._file, self.size, (number - 1) * self.size)
        return page if len(page) == self.size else None

    def loose(self, seen: set[int]) -> Iterator[tuple[int, Row]]:
        """What stands on all pages that look like a table's, without those that were seen."""
        for number in range(2, self.count + 1):
            page = None if number in seen else self.read(number)
            with suppress(*_BAD_PAGE):
                for cell in [] if page is None else _cells(page, 0):
                    with suppress(*_BAD_PAGE):
                        yield self._row(page or b"", cell)

    def rows(self, page: bytes, start: int) -> Iterator[tuple[int, Row]]:
        """The rows of a leaf. Raises one of `_BAD_PAGE`."""
        return (self._row(page, cell) for cell in _cells(page, start))

    def _row(self, page: bytes, cell: int) -> tuple[int, Row]:
        length, at = _varint(page, cell)
        number, at = _varint(page, at)
        return number, _record(self._payload(page, at, length))

    def _payload(self, page: bytes, at: int, length: int) -> bytes:
        """What does not fit into a page goes on in a chain of others."""
        if length > self.count * self.size:
            raise ValueError("longer than the file")
        most, least = self.size - 35, (self.size - 12) * 32 // 255 - 23
        if length <= most:
            return page[at : at + length]
        local = least + (length - least) % (self.size - 4)
        local = local if local <= most else least
        payload = page[at : at + local]
        following = int.from_bytes(page[at + local : at + local + 4], "big")
        while len(payload) < length:
            more = self.read(following)
            if more is None:
                raise ValueError("its end is missing")
            following = int.from_bytes(more[:4], "big")
            payload += more[4 : 4 + length - len(payload)]
        return payload


def _cells(page: bytes, start: int) -> tuple[int, ...]:
    """Where the cells of a table's page are. Raises `ValueError` for another page."""
    head = {TREE_NODE: 12, TREE_LEAF: 8}.get(page[start])
    if head is None:
        raise ValueError("no page of a table")
    [count] = struct.unpack_from(">H", page, start + 3)
    return struct.unpack_from(f">{count}H", page, start + head)


def _children(page: bytes, start: int) -> list[int]:
    cells = _cells(page, start)
    numbers = [struct.unpack_from(">I", page, cell)[0] for cell in cells]
    return [*numbers, struct.unpack_from(">I", page, start + 8)[0]]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for position in range(at, at + 8):
        byte = data[position]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + 1
    value = value << 8 | data[at + 8]
    return (value - (1 << 64) if value >> 63 else value), at + 9


def _record(payload: bytes) -> Row:
    head, at = _varint(payload, 0)
    kinds = []
    while at < head:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("no record")
    return tuple(values)


_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in (10, 11) or kind < 0:
        raise ValueError("no type of SQLite's")
    width = _INTEGERS.get(kind) or (8 if kind == 7 else (kind - 12) // 2)
    content = payload[at : at + width]
    if len(content) < width:
        raise ValueError("cut off")
    if kind < 7:
        return int.from_bytes(content, "big", signed=True), at + width
    if kind == 7:
        return float(struct.unpack(">d", content)[0]), at + width
    return content if kind % 2 == 0 else content.decode(), at + width


# -- the log ---------------------------------------------------------------------------------------------


class _Logged(NamedTuple):
    """What a log has."""

    page_size: int | None
    pages: dict[int, bytes]
    """At its last commit, as far as it is sound."""
    whole: bool
    """Whether no commit comes after something that is damaged."""


def _committed(log: Path) -> _Logged:
    committed: dict[int, bytes] = {}
    try:
        file = log.open("rb")
    except OSError:
        return _Logged(None, committed, True)
    with file:
        head = file.read(32)
        if len(head) < 32:
            return _Logged(None, committed, True)
        magic, _, size, _, *salts = struct.unpack(">6I", head[:24])
        order = ">" if magic & 1 else "<"
        sums = _summed(head[:24], (0, 0), order)
        if magic | 1 != 0x377F0683 or sums != struct.unpack(">2I", head[24:]):
            return _Logged(None, committed, False)
        open_: dict[int, bytes] = {}
        for frame in iter(partial(file.read, 24 + size), b""):
            if len(frame) < 24 + size:
                break
            number, pages, *said = struct.unpack(">6I", frame[:24])
            sums = _summed(frame[:8] + frame[24:], sums, order)
            if said != [*salts, *sums]:
                file.seek(-len(frame), os.SEEK_CUR)
                return _Logged(size, committed, not _commits_follow(file, head, size))
            open_[number] = frame[24:]
            if pages:
                committed |= open_
                open_ = {}
    return _Logged(size, committed, True)


def _commits_follow(file: BinaryIO, head: bytes, size: int) -> bool:
    """Whether commits of the same log stand behind this place in it."""
    return any(
        len(frame) == 24 + size and frame[8:16] == head[16:24] and any(frame[4:8])
        for frame in iter(partial(file.read, 24 + size), b"")
    )


def _summed(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(islice(words, 0, None, 2), islice(words, 1, None, 2), strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two


def broken_log(log: Path, index: Path) -> bool:
    """Whether SQLite left committed transactions of a log out because something before them is damaged. Asked once
    it has read the log: its index says how far. What a power loss left unfinished at the log's end is no damage."""
    try:
        with log.open("rb") as file, index.open("rb") as beside:
            head, header = file.read(32), beside.read(20)
            if len(head) < 32:
                return False
            size = int.from_bytes(head[8:12], "big")
            [used] = struct.unpack("=I", header[16:20])
            if size < 512 or size & (size - 1) or (not used and not _committed(log).whole):
                return True  # its own beginning is damaged
            file.seek(32 + used * (24 + size))
            return _commits_follow(file, head, size)
    except (OSError, struct.error):
        return False
