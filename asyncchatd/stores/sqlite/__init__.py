"""The SQLite store: one file, durable before it answers.

One connection writes (`writer.py`), another reads, a third moves the write-ahead log into the file
on a timer, away from the hot path. What is written lives in `transactions.py`, the tables in
`schema.py`. A damaged file is set aside, never deleted, and a new one begun with all that can be read of it
(`salvage.py`); the other sessions come back with their pushes and registrations. Where damage shows only in use, what
is open takes the damaged file's place. If that is not whole, the daemon ends (`watch`), and the next `open` looks at
the whole file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import (
    Cause,
    ChatServer,
    Claim,
    EndCause,
    Loss,
    Ms,
    Reason,
    Registration,
    Restoration,
    Session,
    SessionState,
    Settled,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
    is_unlike,
)
from asyncchatd.stores.base import (
    EVERY_REASON,
    Absorbed,
    Counts,
    Noted,
    Registered,
    StoreDamaged,
    StoreError,
    StoreUnwritable,
    Taken,
    is_repeatable,
)
from asyncchatd.stores.sealing import SealError, Sealing, sealings
from asyncchatd.stores.sqlite import transactions
from asyncchatd.stores.sqlite.database import Db, opened
from asyncchatd.stores.sqlite.log_file import BUSY_TIMEOUT_MS, ROOM, Disk, empty, measure, move
from asyncchatd.stores.sqlite.place import Fate, Moved, Place
from asyncchatd.stores.sqlite.rescue import (
    detach,
    put_back,
    replace_damaged,
    save_aside,
    set_aside,
    unused,
)
from asyncchatd.stores.sqlite.resealing import clean, unseal
from asyncchatd.stores.sqlite.salvage import broken_log, salvage
from asyncchatd.stores.sqlite.schema import check_ours, migrate
from asyncchatd.stores.sqlite.writer import Connection, Work, Writer, in_our_words
from asyncchatd.stores.trouble import Trouble
from asyncchatd.wire import Push

T = TypeVar("T")

CHECKPOINT_SECONDS = 1.0
"""How often the write-ahead log is moved into the file. SQLite would do it inside a commit."""

HELD_TURNS = 3
"""So many checkpoints in a row must have found the large log in another program's hand before it is told:
our own readers are done with it sooner."""

QUICK_CHECK_SECONDS = 1.0
"""How long opening may take for looking at the file for damage; a large file is not read through, unless
damage was found in it while it was in use."""

QUICK_CHECK_STEPS = 100_000
"""Instructions of SQLite between two looks at the clock."""

PROBE_SECONDS = 1.0
"""How often writing is tried while the disk takes nothing."""

SAVE_AGAIN_SECONDS = 10.0
"""How long to wait before saving what is open is tried again; it may be large."""

ABSORB_CHUNK = 1_000
PULL_IN_CHUNK = 5_000

log = get_logger()

MAGIC = b"SQLite format 3\0"
"""How every SQLite file begins."""

OURS = b"asyncchatd\n"
"""In the lock beside a file that was opened as a store, and so is one even when its beginning is damaged."""

_STATES = {
    transactions.INCOMPLETE: SessionState.INCOMPLETE,
    transactions.LIVE: SessionState.LIVE,
    transactions.ENDED: SessionState.ENDED,
}
_STATES_COUNTED = (
    "SELECT 1, count(*) FROM session INDEXED BY session_due WHERE state=1 UNION ALL"
    " SELECT state, count(*) FROM session INDEXED BY session_over WHERE state<>1 GROUP BY state"
)
"""By the indices alone: somebody looks every second, and a scan of the rows takes several times as long."""
_STATE_NUMBERS = {state: number for number, state in _STATES.items()}


class _Told(NamedTuple):
    """Tokens that a push, a registration or a reply told."""

    chat_id: str | None
    device_id: str | None
    news: TokenNews
    pushed: bool = False

    def concerns(self, known: Tokens) -> bool:
        """Whether a request with the tokens that are known may have to wait for these. As `tokens.from_push`
        will judge them, and at a flood of pushes that teach nothing no ping waits."""
        said = self.news
        if self.chat_id is None and said.user_id not in (None, known.user_id):
            return False
        alone = self.pushed and None in (said.user_id, said.alias)
        return said.alias not in (None, known.alias) or (
            said.secure_key not in (None, known.secure_key)
            and not (alone and is_unlike(known.secure_key, said.secure_key))
        )


class SqliteStore:
    """`sqlite:///relative/path.db` or `sqlite:////absolute/path.db`. Keeps the contract of
    `asyncchatd.stores.base.Store`."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        """`keys` seal the secure keys: the first one from now on, all open what is there."""
        self.path = path_of(url, directory)
        self._file = self.path
        """What it leads to; beside that lie log, lock and copies."""
        self._place: Place | None = None
        self._sealings = _sealings(keys)
        self._trouble = Trouble(str(self.path))
        self.set_aside: Path | None = None
        """Where a damaged file was moved at opening, for the operator to be told."""
        self.rescued: Path | None = None
        """Where what was open is saved, once something else lay at its path."""
        self._abandoned = False
        """What is open is a damaged file that was set aside."""
        self._copied_at: Ms | None = None
        """Of when what was opened is a backup, if it is one."""
        self._queue = queue
        self._connections: list[Connection] = []
        self._write: Writer | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self._save_at = 0.0
        """When saving what is open is tried again."""
        self._read: Connection | None = None
        self._journal = True
        self._pushes = 0
        self._claimed: dict[str, tuple[Claim, str | None]] = {}
        """By chat id, with the device id."""
        self._claiming = 0
        self._told: list[_Told] = []
        """What was told since the oldest claim that is still waiting for its transaction."""
        self._superseded: set[tuple[int, str]] = set()
        self._marking = asyncio.Lock()

    # -- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._trouble = Trouble(str(self.path))
        self._file = self.path.resolve()
        self.rescued = self.set_aside = None
        self._abandoned = False
        self._lock, ours = _lock(self._file)
        try:
            _make_file(self._file)
            writing = await self._open_or_set_aside(ours)
            with suppress(OSError):  # the disk is full: next time
                os.pwrite(self._lock, OURS, 0)
            self._suspect.unlink(missing_ok=True)
            self._choice.unlink(missing_ok=True)
            await self._unseal(writing)
            self._write = Writer(writing, queue=self._queue, trouble=self._trouble)
            await self._begin(writing)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.cancel()
            with suppress(asyncio.CancelledError):
                await self._checkpointing
            self._checkpointing = None
        if self._write is not None:
            await self._write.close()
            self._write = None
            await self._leave(self._connections[0])
        await self._release()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def watch(self) -> None:
        while True:
            await self._trouble.begun.wait()
            if self._trouble.moved is not None:
                with suppress(StoreError, OSError, sqlite3.Error):
                    await self._mend(self._connections[0])
            if self._trouble.damage is not None and not await self._replace_damaged(self._connections[0]):
                with suppress(OSError):
                    self._suspect.touch()
                raise self._trouble.damage
            if self._trouble.moved is None:
                with suppress(StoreError, OSError):
                    await asyncio.to_thread(_find_room, Path(f"{self._file}.probe"))
                    await self._writing(transactions.probe, large=True)  # when pushes would be taken
                    self._trouble.went_well()
            await asyncio.sleep(PROBE_SECONDS)

    @property
    def trouble(self) -> str | None:
        return str(self._trouble.damage) if self._trouble.damage is not None else self._trouble.cause

    @property
    def depth(self) -> int:
        """Pieces of work waiting for the disk."""
        return self._write.depth if self._write is not None else 0

    def stuck_for(self) -> float:
        return self._write.stuck_for() if self._write is not None else 0.0

    @property
    def _suspect(self) -> Path:
        """There while damage that was found in use has not been looked at."""
        return Path(f"{self._file}.suspect")

    @property
    def _choice(self) -> Path:
        """Names the copy that was saved, while nobody has chosen between it and what lies at the path."""
        return Path(f"{self._file}.choice")

    def _unchosen(self) -> Path | None:
        """The copy that was saved, if there is one to be chosen."""
        with suppress(OSError):
            saved = self._file.with_name(self._choice.read_text().strip())
            if saved.name.startswith(f"{self._file.name}.rescued-") and saved.is_file():
                return saved
        return None

    async def _open_or_set_aside(self, ours: bool) -> Connection:
        """`ours`: an asyncchatd has used the file before, so that it is a store whatever stands in it."""
        if not ours and not looks_like_sqlite(self._file):
            raise StoreError(
                f"{self.path} is no SQLite file, and was left alone; name another one in store.url"
            )
        if self._unchosen() is None or self._file.stat().st_size:
            try:
                return await self._open_writing()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise StoreError(f"cannot open {self.path}: {error}") from error
            await self._release()
        await asyncio.to_thread(self._begin_anew)
        return await self._open_writing()

    def _begin_anew(self) -> None:
        """Put a new database in the place of a damaged one, with all that can be read of it; or of what was saved
        when the file was overwritten in use, which nobody has chosen yet. Raises `StoreError`."""
        source = self._unchosen() or self._file
        made = unused(self._file, "partial")
        try:
            salvaged = salvage(source, made)
            self.set_aside = set_aside(self._file)
            made.replace(self._file)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{self.path} is damaged, and what can be read of it could not be written anew: {error}"
            ) from error
        log.error(
            Event.STORE_SALVAGED,
            store=str(self.path),
            source=str(self.set_aside if source == self._file else source),
            sessions=salvaged.sessions,
            distrusted=salvaged.waiting,
            pushes=salvaged.pushes,
        )

    async def _open_writing(self) -> Connection:
        _make_file(self._file)
        place = self._place = Place(self.path, self._file)
        writing = await self._connect("PRAGMA wal_autocheckpoint = 0", "PRAGMA cache_size = -32768")
        await writing.visit(lambda db: setattr(db, "disk", Disk(self._file, place.reserve)))
        await writing.visit(lambda db: check_ours(db, str(self.path)))  # before anything is written to it
        await asyncio.to_thread(self._look_at_log)
        thorough = self._suspect.exists()
        await writing.visit(lambda db: _check(db, thorough))
        await writing.visit(lambda db: db.execute("PRAGMA journal_mode = WAL").fetchone())
        await writing.visit(lambda db: migrate(db, str(self.path)))
        return writing

    def _look_at_log(self) -> None:
        """SQLite reads a log up to the first thing that is damaged, and says nothing of the rest."""
        log_file = Path(f"{self._file}-wal")
        if not broken_log(log_file, Path(f"{self._file}-shm")):
            return
        kept = Path(f"{unused(self._file, 'damaged')}.log")
        with suppress(OSError):
            shutil.copyfile(log_file, kept)
            kept.chmod(0o600)
        log.error(Event.STORE_INCOMPLETE, store=str(self.path), set_aside=str(kept), advice=_ADVICE)

    async def _begin(self, writing: Connection) -> None:
        """What runs beside the connection that writes."""
        place = self._place
        assert place is not None
        at_work, copied_at = await writing.visit(lambda db: _begin_work(db, place))
        if at_work and not place.logged:
            log.error(Event.STORE_INCOMPLETE, store=str(self.path), advice=_ADVICE)
        self._copied_at = copied_at
        if copied_at is not None:
            log.warning(
                Event.STORE_FROM_BACKUP, store=str(self.path), copied_at=_utc(copied_at), advice=_ADVICE
            )
        self._read = await self._connect("PRAGMA query_only = ON")
        checkpoints = await self._connect()
        self._checkpointing = asyncio.create_task(
            self._checkpoint(checkpoints, writing), name="store checkpoints"
        )

    async def _release(self) -> None:
        # An unclosed connection keeps its thread, and that keeps the interpreter from exiting.
        # The writer was opened first and is closed last, which empties the log into the file.
        while self._connections:
            await self._connections.pop().close()
        if self._place is not None:
            self._place.close()
            self._place = None

    # -- what is open is not what lies at its path -------------------------------------------------

    async def _mend(self, writing: Connection) -> None:
        """A file that is gone is written to its path again, from what is open; beside what somebody put in its
        place it is saved. Then somebody has to choose."""
        place = self._place
        assert place is not None
        moved = await writing.visit(lambda _: place.fate())
        if moved is None:
            self._trouble.back()
            return
        self._trouble.heard(moved)
        if time.monotonic() < self._save_at:
            return
        match moved.fate:
            case Fate.GONE:
                if await self._save(writing, moved):
                    await self._reopen()
            case Fate.LOG_GONE:
                if await writing.visit(_end_work):
                    for each in place.foreign():
                        each.rename(unused(each, "foreign"))
                    await self._reopen()
            case Fate.REPLACED | Fate.OVERWRITTEN:
                await self._save(writing, moved)
            case Fate.AWAY:
                pass  # it comes back, or somebody looks where it lies now

    async def _save(self, writing: Connection, moved: Moved) -> bool:
        """Whether it lies at its path again."""
        place = self._place
        assert place is not None
        if self.rescued is not None:
            self._trouble.explain(self.rescued)
            return False
        gone = moved.fate is Fate.GONE
        try:
            if gone:
                saved = await writing.visit(lambda db: put_back(db, place, self._file))
            else:
                overwritten = moved.fate is Fate.OVERWRITTEN
                saved = await writing.visit(
                    lambda db: save_aside(db, place, self._file, overwritten=overwritten)
                )
        except (OSError, sqlite3.Error) as error:
            self._trouble.explain(None, f"it could not be saved: {error}; do not stop asyncchatd")
            self._save_at = time.monotonic() + SAVE_AGAIN_SECONDS
            return False
        if gone and saved.file == self._file:
            log.warning(Event.STORE_PUT_BACK, store=str(self.path), sessions=saved.sessions)
            return True
        self.rescued = saved.file
        with suppress(OSError):
            self._choice.write_text(saved.file.name)
        self._trouble.explain(saved.file)
        log.error(
            Event.STORE_RESCUED,
            store=str(self.path),
            rescued=str(saved.file),
            sessions=saved.sessions,
            cause=str(moved),
            damage=saved.damage,
        )
        return False

    async def _replace_damaged(self, writing: Connection) -> bool:
        """Damage that shows in use: memory and log have pages that the file has no more. A copy of what is open takes
        the file's place. Whether it is sound, and the work goes on; what is not, the next opening salvages."""
        damage, file = self._trouble.damage, self._file
        if self._place is None or self._abandoned:
            return False
        try:
            saved, self.set_aside = await writing.visit(lambda db: replace_damaged(db, file))
        except (OSError, sqlite3.Error):
            return False
        self._abandoned = True
        log.error(Event.STORE_CORRUPT, store=str(self.path), set_aside=str(self.set_aside), cause=str(damage))
        if saved.damage is not None:
            return False
        try:
            await self._reopen()
        except (StoreError, sqlite3.Error):
            return False
        self._trouble.mended()
        log.warning(Event.STORE_PUT_BACK, store=str(self.path), sessions=saved.sessions)
        return True

    async def _reopen(self) -> None:
        """Nothing is under way: whatever is to be written is refused meanwhile."""
        assert self._write is not None
        assert self._checkpointing is not None
        self._checkpointing.cancel()
        with suppress(asyncio.CancelledError):
            await self._checkpointing
        self._read = None
        await self._release()
        if self._lock is not None:
            os.close(self._lock)
        self._lock, _ = _lock(self._file)
        with suppress(OSError):
            os.pwrite(self._lock, OURS, 0)
        writing = await self._open_writing()
        self._write.use(writing)
        await self._begin(writing)
        self._abandoned = False
        self._trouble.back()

    async def _leave(self, writing: Connection) -> None:
        """Before the last connection is closed, also for what nobody has noticed yet: it would die with it."""
        place = self._place
        if place is None or self._abandoned:
            return
        moved = await writing.visit(lambda _: place.fate())
        if moved is not None:
            self._trouble.heard(moved)
        if moved is None or moved.fate is Fate.LOG_GONE:
            with suppress(sqlite3.Error):
                await writing.visit(_end_work)
            return
        if moved.fate is not Fate.AWAY:
            await self._save(writing, moved)
        if moved.fate is Fate.OVERWRITTEN and self.rescued is not None:
            await asyncio.to_thread(detach, Path(f"{self.rescued}.log"))

    async def _unseal(self, writing: Connection) -> None:
        started = time.monotonic()
        try:
            sealed = await writing.visit(lambda db: unseal(db, self._sealings, str(self.path)))
        except sqlite3.Error as error:
            raise StoreError(f"cannot encrypt {self.path}: {error}") from error
        if sealed is not None:
            took_ms = round((time.monotonic() - started) * 1000)
            log.info(Event.STORE_RESEALED, store=str(self.path), count=sealed, took_ms=took_ms)
        try:
            await writing.visit(clean)
        except sqlite3.Error as error:
            log.error(Event.STORE_REMAINS, store=str(self.path), cause=str(error))

    async def _connect(self, *pragmas: str) -> Connection:
        def connect() -> Db:
            db = sqlite3.connect(
                self._database(), isolation_level=None, uri=True, cached_statements=256, factory=Db
            )
            db.sealing, db.place = self._sealings[0], self._place
            return db

        connection = Connection(connect, iter_chunk_size=64)
        await connection
        self._connections.append(connection)
        await connection.visit(
            lambda db: [
                db.execute(pragma) for pragma in (f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}", *pragmas)
            ]
        )
        return connection

    def _database(self) -> str:
        return self._file.absolute().as_uri()

    async def _checkpoint(self, connection: Connection, writing: Connection) -> None:
        log_file = Path(f"{self._file}-wal")
        account = _LogAccount(str(self.path))
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            try:
                moved = await self._moved(connection, writing)
                size = measure(log_file)
                # Under steady load moving never catches the end of the log, and the log would grow.
                emptied = moved and size.large and await writing.visit(empty)
                account.see(0 if emptied else size.used, held=size.large and not emptied)
            except Moved as error:
                self._trouble.heard(error)
            except sqlite3.Error as error:
                told = in_our_words(error, "written")
                if isinstance(told, StoreDamaged):
                    self._trouble.heard(told)
                # Else it is busy, or the disk is full: the log only grows meanwhile.
            except OSError:
                pass  # it cannot be measured

    async def _moved(self, connection: Connection, writing: Connection) -> bool:
        """Move the log, unless that were into another file. Whether that was all of it."""
        place = self._place
        assert place is not None
        await writing.visit(lambda _: place.look(at=2))
        stamped = await writing.visit(place.stamp)
        moved = await connection.visit(move)
        if moved:
            place.checkpointed = stamped
        return moved

    def _writing(self, work: Work[T], *, durable: bool = True, large: bool = False) -> asyncio.Future[T]:
        if self._write is None:
            raise StoreError("the store is not open")
        return self._write.submit(work, durable=durable, large=large)

    async def _reading(self, work: Work[T]) -> T:
        if self._write is None:
            raise StoreError("the store is not open")
        if self._read is None:
            raise StoreUnwritable("the store is just being opened anew")
        if isinstance(self._trouble.moved, Moved) and self._trouble.moved.fate is Fate.OVERWRITTEN:
            raise self._unreadable()  # what a reader finds there is not what was stored
        try:
            return await self._read.visit(work)
        except sqlite3.Error as error:
            told = await self._moved_away() or in_our_words(error, "read")
            self._trouble.heard(told)
            raise told from error

    async def _moved_away(self) -> StoreUnwritable | None:
        """What looks damaged to a reader may be another file, or lack its log: what the writer has of it in memory
        is sound."""
        place = self._place
        if place is None:
            return None
        if self._trouble.moved is None:
            moved = await self._connections[0].visit(lambda _: place.fate())
            if moved is None:
                return None
            self._trouble.heard(moved)
        return self._unreadable()

    def _unreadable(self) -> StoreUnwritable:
        return StoreUnwritable(self._trouble.cause or str(self._trouble.moved))

    # -- sessions --------------------------------------------------------------------------------

    async def register(
        self, registrations: Sequence[Registration], *, now: Ms, spread_ms: float
    ) -> list[Registered]:
        for registration in registrations:
            said = registration.tokens
            news = TokenNews(said.chat_id, said.user_id, said.secure_key, said.alias)
            self._hear(_Told(said.chat_id, registration.device_id, news))
        return await self._writing(
            lambda db: transactions.register(db, registrations, now, spread_ms), large=True
        )

    async def get(self, chat_id: str) -> Session | None:
        rows = await self._reading(
            lambda db: _sessions(db, f"SELECT {_SESSION} FROM session WHERE chat_id=?", chat_id)
        )
        return rows[0] if rows else None

    async def sessions(
        self,
        *,
        alias: str | None = None,
        state: SessionState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Session]:
        conditions = {
            "alias=?": alias,
            "state=?": None if state is None else _STATE_NUMBERS[state],
            "chat_id>?": after or "",
        }
        wanted = {clause: value for clause, value in conditions.items() if value is not None}

        def find(db: Db) -> list[Session]:
            query = f"SELECT {_SESSION} FROM session WHERE {' AND '.join(wanted)} ORDER BY chat_id LIMIT ?"
            rows = _sessions(db, query, *wanted.values(), limit)
            if len(rows) < limit and state in (None, SessionState.INCOMPLETE) and alias is None:
                # Two statements, because an order that puts NULL last could not use the index.
                query = f"SELECT {_SESSION} FROM session WHERE chat_id IS NULL ORDER BY id LIMIT ?"
                rows += _sessions(db, query, limit - len(rows))
            return rows

        return await self._reading(find)

    async def remove(self, chat_id: str, *, now: Ms) -> bool:
        return await self._writing(lambda db: transactions.remove(db, chat_id, now))

    async def make_due(self, chat_id: str, reason: Reason, *, now: Ms) -> bool:
        return await self._writing(lambda db: transactions.make_due(db, chat_id, reason, now))

    async def counts(self, *, now: Ms) -> Counts:
        def count(db: Db) -> Counts:
            states = dict(db.execute(_STATES_COUNTED).fetchall())
            due = {
                reason: db.execute(
                    "SELECT count(*) FROM session INDEXED BY session_due WHERE state=1 AND reason=? AND due_at<=?",
                    (reason, now),
                ).fetchone()[0]
                for reason in Reason
            }
            return Counts(
                {state: states.get(number, 0) for number, state in _STATES.items()}, due, len(self._claimed)
            )

        return await self._reading(count)

    async def counts_by_alias(self) -> Mapping[str, int]:
        return await self._reading(
            lambda db: dict(
                db.execute(
                    "SELECT alias, count(*) FROM session INDEXED BY session_alias WHERE state=1 GROUP BY alias"
                ).fetchall()
            )
        )

    async def purge(self, *, ended_before: Ms, limit: int) -> int:
        return await self._writing(lambda db: transactions.purge(db, ended_before, limit))

    async def pull_in(self, *, now: Ms, spread_ms: float) -> int:
        changed = 0
        while True:
            chunk = await self._writing(lambda db: transactions.pull_in(db, now, spread_ms, PULL_IN_CHUNK))
            changed += chunk
            if chunk < PULL_IN_CHUNK:
                return changed

    async def distrust(self, *, before: Ms, dry_run: bool = False) -> int:
        while not dry_run and (await self._writing(lambda db: transactions.absorb(db, ABSORB_CHUNK)))[0]:
            pass  # what waits there is as old
        copied_at = self._copied_at
        if dry_run and copied_at is not None:  # nothing was done: whoever opens it next is told
            await self._writing(lambda db: db.execute("UPDATE file SET copied_at=?", (copied_at,)))
        return await self._writing(lambda db: transactions.distrust(db, before, dry_run))

    # -- pushes ----------------------------------------------------------------------------------

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        if self._write is None:
            raise StoreError("the store is not open")
        taken = self._write.gather(transactions.take_pushes, (push, now))
        self._journal = True
        self._pushes += 1
        self._hear(_Told(push.news.chat_id, push.device_id, push.news, pushed=True))
        return await taken

    async def absorb(self, limit: int) -> list[Absorbed]:
        if not self._journal:
            return []
        pushes = self._pushes
        effects, empty = await self._writing(lambda db: transactions.absorb(db, limit), durable=False)
        if empty and pushes == self._pushes:
            self._journal = False
        return effects

    def waiting(self) -> bool:
        return self._journal

    def _hear(self, told: _Told) -> None:
        """Somebody told tokens: pings that carry others must not be sent any more."""
        if told.news.secure_key is None and told.news.alias is None:
            return
        if self._claiming:
            self._told.append(told)
        self._supersede(told)

    def _supersede(self, told: _Told) -> None:
        if told.chat_id is not None:
            held = [self._claimed[told.chat_id]] if told.chat_id in self._claimed else []
        else:
            held = [each for each in self._claimed.values() if each[1] == told.device_id]
        for claim, _ in held:
            if told.concerns(claim.tokens):
                self._superseded.add((claim.claim_id, claim.chat_id))

    # -- work ------------------------------------------------------------------------------------

    async def claim(
        self, *, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason] = EVERY_REASON
    ) -> list[Claim]:
        journal = self._journal
        self._claiming += 1
        try:
            claims = await self._writing(
                lambda db: transactions.claim(db, now, limit, lease_ms, reasons, journal), durable=False
            )
            self._claimed.update((claim.chat_id, (claim, device)) for claim, device in claims)
            # What was told while the claim waited for its turn and its transaction.
            for told in self._told:
                self._supersede(told)
        finally:
            self._claiming -= 1
            if not self._claiming:
                self._told.clear()
        return [claim for claim, _ in claims]

    async def renew(self, claims: Sequence[Claim], *, until: Ms) -> None:
        if claims:
            await self._writing(lambda db: transactions.renew(db, claims, until), durable=False)

    def superseded(self, claim: Claim) -> bool:
        return (claim.claim_id, claim.chat_id) in self._superseded

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        for each in settlements:
            if each.verdict in (Verdict.ANSWERED, Verdict.LEARNED):
                # A lease was lost, and somebody holds the session with the tokens before these.
                self._hear(_Told(each.claim.chat_id, None, each.news))
        durable = not all(is_repeatable(each) for each in settlements)
        settled = await self._writing(lambda db: transactions.settle(db, settlements), durable=durable)
        for each in settlements:
            held = self._claimed.get(each.claim.chat_id)
            if held is not None and held[0].claim_id == each.claim.claim_id:
                del self._claimed[each.claim.chat_id]
            self._superseded.discard((each.claim.claim_id, each.claim.chat_id))
        return settled

    async def next_due(self, *, now: Ms) -> float | None:
        def find(db: Db) -> float | None:
            first = [
                db.execute(
                    "SELECT min(due_at) FROM session INDEXED BY session_due WHERE state=1 AND reason=? AND due_at>?",
                    (reason, now),
                ).fetchone()[0]
                for reason in Reason
            ]
            return min((due for due in first if due is not None), default=None)

        return await self._reading(find)

    # -- Chat Servers and restorations -------------------------------------------------------------

    async def servers(self) -> list[ChatServer]:
        return await self._reading(transactions.servers)

    async def note(self, server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        begun = await self._writing(lambda db: transactions.note(db, server, epoch, losses, now))
        if begun is None:
            return None
        restorations = (
            _begun(number, loss.alias, server.name, loss.cause, now)
            for number, loss in zip(begun, losses, strict=True)
        )
        return Noted(epoch + 1, tuple(restorations))

    async def begin_restoration(
        self, *, alias: str, server: str | None, cause: Cause, now: Ms
    ) -> Restoration:
        number = await self._writing(lambda db: transactions.begin_restoration(db, alias, server, cause, now))
        return _begun(number, alias, server, cause, now)

    async def mark(self, restoration: int, *, limit: int, now: Ms) -> bool:
        # One portion at a time, or pushes would wait for those of several lost servers together. Without its
        # own fsync: the record of the restoration is durable, and says how far this went.
        async with self._marking:
            return await self._writing(
                lambda db: transactions.mark(db, restoration, limit, now), durable=False
            )

    async def restorations(self, *, limit: int = 50, unfinished: bool = False) -> list[Restoration]:
        where = f"WHERE {transactions.OPEN}" if unfinished else ""
        rows = await self._reading(
            lambda db: db.execute(
                f"SELECT {transactions.RESTORATION} FROM restoration {where} ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        )
        return [_restoration(row) for row in rows]

    async def newly_finished(self) -> list[Restoration]:
        untold = f"SELECT EXISTS (SELECT 1 FROM restoration WHERE {transactions.UNTOLD})"
        if not await self._reading(lambda db: db.execute(untold).fetchone()[0]):
            return []  # as nearly always, and without a turn at the disk
        return [_restoration(row) for row in await self._writing(transactions.newly_finished)]

    async def finish_announced(self, *, now: Ms) -> list[int]:
        return await self._writing(lambda db: transactions.finish_announced(db, now))


class _LogAccount:
    """Tells of a large log that another program holds, once when it begins and once when it is over."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._turns = 0

    def see(self, size: int, *, held: bool) -> None:
        metrics.STORE_LOG_BYTES.set(size)
        if held:
            self._turns += 1
            if self._turns == HELD_TURNS:
                log.warning(Event.STORE_LOG_HELD, store=self._store, bytes=size)
        else:
            if self._turns >= HELD_TURNS:
                log.info(Event.STORE_LOG_RELEASED, store=self._store, bytes=size)
            self._turns = 0


class MemoryStore(SqliteStore):
    """`memory:`: the same transactions on a database that is gone when it is closed. For tests and
    trials; a restart forgets every session."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        # Without `keys`: nothing comes to rest anywhere.
        super().__init__("sqlite:///memory", directory=directory, queue=queue)

    async def open(self) -> None:
        writing = await self._connect()
        await writing.visit(lambda db: migrate(db, "memory:"))
        self._read = writing
        self._write = Writer(writing, queue=self._queue, trouble=self._trouble)

    def _database(self) -> str:
        return ":memory:"


_SESSION_COLUMNS = {name: name for name in Session.__struct_fields__} | {
    "leased_until": "coalesce((SELECT until FROM lease WHERE lease.session=session.id), 0)"
}
_SESSION = ", ".join(_SESSION_COLUMNS.values())


def _sessions(db: Db, query: str, *parameters: object) -> list[Session]:
    return [_session(db, row) for row in db.execute(query, parameters).fetchall()]


def _session(db: Db, row: Sequence[Any]) -> Session:
    """From the columns of `_SESSION`."""
    values = dict(zip(_SESSION_COLUMNS, row, strict=True))
    values["secure_key"] = opened(db, values["secure_key"], values["chat_id"], values["device_id"])
    values["state"] = _STATES[values["state"]]
    values["reason"] = Reason(values["reason"])
    values["end_cause"] = None if values["end_cause"] is None else EndCause(values["end_cause"])
    return Session(**values)


def _begun(number: int, alias: str, server: str | None, cause: Cause, now: Ms) -> Restoration:
    return Restoration(number, alias, server, cause, now, True, 0, 0, 0, 0, 0, None)


def _restoration(row: Sequence[Any]) -> Restoration:
    """From the columns of `transactions.RESTORATION`."""
    return Restoration(
        id=row[0],
        alias=row[1],
        server=row[2],
        cause=Cause(row[3]),
        started_at=row[4],
        marking=bool(row[5]),
        sessions=row[6],
        restored=row[7],
        ended=row[8],
        refused=row[9],
        moved=row[10],
        finished_at=row[11],
    )


def _sealings(keys: Sequence[bytes]) -> Sequence[Sealing]:
    try:
        return sealings(keys)
    except SealError as error:
        raise StoreError(f"store.keys_file: {error}") from error


def path_of(url: str, directory: Path) -> Path:
    """The file that a URL names. Raises `StoreError`."""
    path = unquote(urlsplit(url).path)
    if not path.startswith("/") or len(path) < 2:
        raise StoreError(
            f"store.url {url!r}: expected sqlite:///relative/path.db or sqlite:////absolute/path.db"
        )
    return directory / path[1:]


def looks_like_sqlite(path: Path) -> bool:
    """Whether it may be opened as a database; an empty file may."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) in (b"", MAGIC)


def _find_room(probe: Path) -> None:
    """Raises `OSError` when the disk takes nothing."""
    try:
        with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _make_file(path: Path) -> None:
    """The file holds what authenticates customers: for the daemon's user alone."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot open {path}: {error.strerror}; does the daemon's user own the directory?")


def _lock(path: Path) -> tuple[int, bool]:
    """The lock, and whether it stands beside a store: two daemons on one file would ping every session twice."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{path} is in use by another asyncchatd; stop it or name another file") from None
    return descriptor, os.fstat(descriptor).st_size > 0


def _check(db: Db, thorough: bool) -> None:
    """Raises `sqlite3.DatabaseError` for a damaged file."""
    verdict = _whole_check(db) if thorough else _quick_check(db)
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"damaged: {verdict}")


def _whole_check(db: Db) -> str:
    return str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])


def _quick_check(db: Db) -> str:
    deadline = time.monotonic() + QUICK_CHECK_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > deadline, QUICK_CHECK_STEPS)
    try:
        return str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return "ok"  # as far as it was read
    finally:
        db.set_progress_handler(None, 0)


def _begin_work(db: Db, place: Place) -> tuple[bool, Ms | None]:
    """Write into the file itself that it is in use, so that a copy without its log is known for one. Whether that
    stood there already, and of when the file is a backup."""
    [[at_work, copied_at]] = db.execute("SELECT at_work, copied_at FROM file").fetchall()
    with suppress(sqlite3.OperationalError):  # the disk is full: next time
        db.execute("UPDATE file SET at_work=1, copied_at=NULL")
    place.settle(db)
    with suppress(sqlite3.OperationalError):
        stamped = place.stamp(db)
        if empty(db):
            place.checkpointed = stamped
    return bool(at_work), copied_at


def _end_work(db: Db) -> bool:
    """The file has all of it, or what is missing stands in the log beside it. Whether the former."""
    db.execute("UPDATE file SET at_work=0")
    return move(db)


def _utc(at: Ms) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")


_ADVICE = "keys in it may have been replaced: asyncchatd store distrust, docs/backup.md"
