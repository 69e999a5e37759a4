"""The file of an SQLite store while it is open.

A damaged file is set aside, never deleted, and a new one begun with all that can be read of it (`salvage.py`); the
other sessions come back with their pushes and registrations. Where damage shows only in use, what is open takes the
damaged file's place. If that is not whole, the daemon ends (`watch`), and the next `open` looks at the whole file.
What reads and writes it meanwhile stands in `connections.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from asyncchatd.log import Event, get_logger
from asyncchatd.model import Finding, Ms
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.keys import sealings_of, tell_unsealed
from asyncchatd.stores.sqlite.file import witness
from asyncchatd.stores.sqlite.file.carrying import refuse_moved
from asyncchatd.stores.sqlite.file.checking import NEW_STORE, look
from asyncchatd.stores.sqlite.file.connections import FileConnections
from asyncchatd.stores.sqlite.file.file import (
    OURS,
    begin_work,
    check,
    end_work,
    find_room,
    is_absent,
    leave,
    lock,
    looks_like_sqlite,
    make_file,
    path_of,
)
from asyncchatd.stores.sqlite.file.pages import broken_log
from asyncchatd.stores.sqlite.file.rescue import (
    detach,
    put_back,
    replace_damaged,
    save,
    save_aside,
    set_aside,
    unfinished,
    unused,
)
from asyncchatd.stores.sqlite.file.resealing import clean, unseal
from asyncchatd.stores.sqlite.file.salvage import salvage
from asyncchatd.stores.sqlite.file.writer import Connection, Writer
from asyncchatd.stores.sqlite.log_file import Disk
from asyncchatd.stores.sqlite.place import Fate, Moved, Place
from asyncchatd.stores.sqlite.transactions import events, schema, session_rows
from asyncchatd.stores.trouble import StoreTrouble

PROBE_SECONDS = 1.0
"""How often writing is tried while the disk takes nothing."""

BREAK_SECONDS = 0.05
"""Between two tries to end what a cancelled opening still does."""

SAVE_AGAIN_SECONDS = 10.0
"""How long to wait before saving what is open is tried again; it may be large."""

T = TypeVar("T")

log = get_logger()


class OpenFile(FileConnections):
    """The file of an SQLite store from its opening to its closing: what writes to it and reads from it, and what is
    done when it is damaged or when something else lies at its path."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        """`keys` seal the secure keys: the first one from now on, all open what is there."""
        self._sealings = sealings_of(keys)
        super().__init__(path_of(url, directory), self._sealings[0], queue=queue)
        self._replaced: str | None = None
        self.set_aside: Path | None = None
        """Where a damaged file was moved at opening."""
        self.made: Path | None = None
        """The file, when opening made it."""
        self.rescued: Path | None = None
        """Where what was open is saved, once something else lay at its path."""
        self._abandoned = False
        """What is open is a damaged file that was set aside."""
        self.epoch = ""
        """Names the history of event ids."""
        self._copied_at: Ms | None = None
        """Of when what was opened is a backup, if it is one."""
        self._lock: int | None = None
        self._apart: set[asyncio.Task[Any]] = set()
        self._broken_off = threading.Event()
        """Nobody waits for the opening any more."""
        self._save_at = 0.0
        """When saving what is open is tried again."""

    # -- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._trouble = StoreTrouble(str(self.path))
        self._file = self.path.resolve()
        self.rescued = self.set_aside = self.made = None
        self._abandoned = self._reopening = False
        self._broken_off.clear()
        self._lock, ours = lock(self._file)
        try:
            new = is_absent(self._file) and self._unchosen() is None
            make_file(self._file)
            writing = await self._open_or_set_aside(ours)
            self.made = self.path if new else None
            found = await writing.visit(witness.seen_in)
            with suppress(OSError):  # the disk is full: next time
                os.pwrite(self._lock, OURS, 0)
            self._suspect.unlink(missing_ok=True)
            self._choice.unlink(missing_ok=True)
            await self._unseal(writing)
            self._writer = Writer(writing, queue=self._queue, trouble=self._trouble)
            await self._begin(writing)
            self._compare(found, ours)
            await self._note(writing)
            self._tell_opened()
        except BaseException as error:
            if not isinstance(error, Exception):
                await self._break_off()
            await self.close()
            raise

    async def _break_off(self) -> None:
        """End what an opening that was cancelled still does in threads: a file may be large. What was done by half is
        undone by SQLite, or was in a file of its own."""
        self._broken_off.set()
        while self._apart or any([await _is_busy(each) for each in self._connections]):
            for each in self._connections:
                await each.interrupt()
            await asyncio.sleep(BREAK_SECONDS)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        """Do something beside the connections, which `_break_off` waits for."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        self._apart.add(task)
        task.add_done_callback(self._is_done)
        return await asyncio.shield(task)

    def _is_done(self, task: asyncio.Task[Any]) -> None:
        self._apart.discard(task)
        _heard(task)

    def _compare(self, found: witness.Witness, ours: bool) -> None:
        """Whether what was `found` at opening is the database of before."""
        assert self._lock is not None
        noted = witness.read(self._lock)
        if self.set_aside is not None:  # what was damaged was made anew from it, and that is told
            self._replaced = noted.replaced if noted else None
        elif self.made is not None:
            self._replaced = f"{self.path} {witness.EMPTY}" if ours else None
        elif self._copied_at is not None:
            self._replaced = f"{self.path} is a backup of {witness.utc(self._copied_at)}"
        else:
            self._replaced = witness.judged(noted, found, self.path)

    async def _note(self, writing: Connection) -> None:
        if self._lock is not None:
            now = await writing.visit(witness.seen_in)
            with suppress(OSError):  # the disk is full: next time
                witness.write(self._lock, replace(now, replaced=self._replaced))

    async def accept(self) -> bool:
        if self._replaced is None or self._lock is None:
            return False
        witness.accept(self._lock, self.path)
        log.info(Event.STORE_ACCEPTED, store=str(self.path), cause=self._replaced)
        self._replaced = self.made = None
        return True

    def _tell_opened(self) -> None:
        if self._replaced is not None:
            log.warning(
                Event.STORE_REPLACED, store=str(self.path), cause=self._replaced, advice=witness.ACCEPT
            )
        if self.made is not None:
            log.warning(Event.STORE_NEW, store=str(self.path), advice=NEW_STORE)
        tell_unsealed(self._sealings[0], str(self.path))

    @property
    def replaced(self) -> str | None:
        return self._replaced

    @property
    def remark(self) -> str | None:
        if self.made is None:
            return None
        return f"{self.made} was not there and has been made anew, empty: {NEW_STORE}"

    async def check(self, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[Finding]:
        async for finding in look(self.path, self._sealings, answers):
            yield finding

    async def close(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.cancel()
            with suppress(asyncio.CancelledError):
                await self._checkpointing
            self._checkpointing = None
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
            if not self._reopening:
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
                    await self._mend()
            if self._trouble.damage is not None and not await self._replace_damaged():
                with suppress(OSError):
                    self._suspect.touch()
                raise self._trouble.damage
            if self._trouble.moved is None:
                with suppress(StoreError, OSError):
                    await asyncio.to_thread(find_room, Path(f"{self._file}.probe"))
                    await self._writing(session_rows.probe, large=True)  # when pushes would be taken
                    self._trouble.went_well()
            await asyncio.sleep(PROBE_SECONDS)

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
        await self._in_a_thread(self._begin_anew)
        return await self._open_writing()

    def _begin_anew(self) -> None:
        """Put a new database in the place of a damaged one, with all that can be read of it; or of what was saved
        when the file was overwritten in use, which nobody has chosen yet. Raises `StoreError`."""
        source = self._unchosen() or self._file
        made = unused(self._file, "partial")
        try:
            salvaged = salvage(source, made, self._broken_off.is_set)
            self.set_aside = set_aside(self._file)
            made.replace(self._file)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{self.path} is damaged, and what can be read of it could not be written anew: {error}"
            ) from error
        log.error(Event.STORE_CORRUPT, store=str(self.path), set_aside=str(self.set_aside), cause="damaged")
        log.error(
            Event.STORE_SALVAGED,
            store=str(self.path),
            source=str(self.set_aside if source == self._file else source),
            sessions=salvaged.sessions,
            distrusted=salvaged.waiting,
            pushes=salvaged.pushes,
        )

    async def _open_writing(self) -> Connection:
        make_file(self._file)
        place = self._place = Place(self.path, self._file)
        writing = await self._connect("PRAGMA wal_autocheckpoint = 0", "PRAGMA cache_size = -32768")
        await writing.visit(lambda db: setattr(db, "disk", Disk(self._file, place.reserve)))
        # Before anything is written to it.
        await writing.visit(lambda db: schema.check_ours(db, str(self.path)))
        await self._in_a_thread(self._look_at_log)
        thorough = self._suspect.exists()
        await writing.visit(lambda db: check(db, thorough))
        await writing.visit(lambda db: db.execute("PRAGMA journal_mode = WAL").fetchone())
        await self._upgrade(writing)
        await writing.visit(lambda db: refuse_moved(db, str(self.path)))
        return writing

    async def _upgrade(self, writing: Connection) -> None:
        """Bring the file of an older asyncchatd up to date. What it was is kept beside it, where there is room."""
        before = await writing.visit(lambda db: schema.check_ours(db, str(self.path)))
        known = len(schema.MIGRATIONS)
        copy, cause = None, None
        if 0 < before < known:
            copy, cause = await self._keep(writing, f"schema-{before}")
        await writing.visit(lambda db: schema.migrate(db, str(self.path)))
        if 0 < before < known:
            log.warning(
                Event.STORE_UPGRADED,
                store=str(self.path),
                before=before,
                schema=known,
                copy=None if copy is None else str(copy),
                cause=cause,
            )

    async def _keep(self, writing: Connection, what: str) -> tuple[Path | None, str | None]:
        """Where a copy of what is open lies now, and what is wrong with it, or why there is none."""
        file, now = unused(self._file, what), round(time.time() * 1000)
        try:
            made = unfinished(self._file.with_name(f"{self._file.name}.{what}"))
            saved = await writing.visit(
                lambda db: save(db, made, copied_at=now, broken_off=self._broken_off.is_set)
            )
            made.rename(file)
        except (OSError, sqlite3.Error) as error:
            return None, str(error)
        return file, saved.damage

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
        at_work, copied_at = await writing.visit(lambda db: begin_work(db, place))
        if at_work and not place.logged:
            log.error(Event.STORE_INCOMPLETE, store=str(self.path), advice=_ADVICE)
        self._copied_at = copied_at
        self.epoch = await writing.visit(lambda db: events.epoch(db, anew=copied_at is not None))
        if copied_at is not None:
            log.warning(
                Event.STORE_FROM_BACKUP,
                store=str(self.path),
                copied_at=witness.utc(copied_at),
                advice=_ADVICE,
            )
        self._reader = await self._connect("PRAGMA query_only = ON")
        checkpoints = await self._connect()
        self._checkpointing = asyncio.create_task(
            self._checkpoint(checkpoints, writing), name="store checkpoints"
        )

    # -- what is open is not what lies at its path -------------------------------------------------

    async def _mend(self) -> None:
        """A file that is gone is written to its path again, from what is open; beside what somebody put in its
        place it is saved. Then somebody has to choose."""
        if self._reopening:  # and it failed: what was open is written already
            if is_absent(self._file):  # an empty one in its place would be taken for the store
                self._trouble.explain(None, "and deleted again: put it or a backup there, docs/backup.md")
                return
            await self._reopen()
            return
        place, writing = self._place, self._connections[0]
        assert place is not None
        moved = await writing.visit(lambda _: place.fate())
        if moved is None:
            await writing.visit(lambda db: setattr(db, "copy", None))
            self._is_back()
            return
        self._trouble.heard(moved)
        if time.monotonic() < self._save_at:
            return
        match moved.fate:
            case Fate.GONE:
                if await self._save(writing, moved):
                    await self._reopen()
            case Fate.LOG_GONE:
                if await writing.visit(leave):
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

    async def _replace_damaged(self) -> bool:
        """Damage that shows in use: memory and log have pages that the file has no more. A copy of what is open takes
        the file's place. Whether it is sound, and the work goes on; what is not, the next opening salvages."""
        damage, file = self._trouble.damage, self._file
        if self._place is None or self._abandoned or self._reopening:
            return False
        writing = self._connections[0]
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
        except (StoreError, OSError, sqlite3.Error):
            return False
        self._trouble.mended()
        log.warning(Event.STORE_PUT_BACK, store=str(self.path), sessions=saved.sessions)
        return True

    async def _reopen(self) -> None:
        """Nothing is under way: whatever is to be written is refused meanwhile."""
        assert self._writer is not None
        assert self._checkpointing is not None
        self._reopening = True
        self._checkpointing.cancel()
        with suppress(asyncio.CancelledError):
            await self._checkpointing
        self._reader = None
        await self._release()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._lock, _ = lock(self._file)
        with suppress(OSError):
            os.pwrite(self._lock, OURS, 0)
        writing = await self._open_writing()
        self._writer.use(writing)
        await self._begin(writing)
        self._abandoned = self._reopening = False
        self._is_back()

    def _is_back(self) -> None:
        """What is open lies at its path again. What was saved of it meanwhile is no choice any more."""
        self.rescued = None
        with suppress(OSError):
            self._choice.unlink(missing_ok=True)
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
                await writing.visit(end_work)
                await self._note(writing)
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
        if sealed:
            took_ms = round((time.monotonic() - started) * 1000)
            log.info(Event.STORE_RESEALED, store=str(self.path), count=sealed, took_ms=took_ms)
        try:
            await writing.visit(clean)
        except sqlite3.Error as error:
            log.error(Event.STORE_REMAINS, store=str(self.path), cause=str(error))


_ADVICE = "keys in it may have been replaced: asyncchatd store distrust, docs/backup.md"


async def _is_busy(connection: Connection) -> bool:
    """Whether its thread does something, and goes on with it for a moment."""
    idle = asyncio.ensure_future(connection.visit(lambda _: None))
    idle.add_done_callback(_heard)
    done, _ = await asyncio.wait({idle}, timeout=BREAK_SECONDS)
    return not done


def _heard(done: asyncio.Future[Any]) -> None:
    """What went wrong is nobody's concern where nobody waits any more; asyncio would complain."""
    if not done.cancelled():
        done.exception()
