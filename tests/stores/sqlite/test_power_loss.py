"""A power cut at a random moment under load: whatever was acknowledged is there afterwards.

A process writes as fast as it can and says what it was told is durable. It is frozen at random moments, and
its files are copied as a disk might hold them after a power cut: all that was synced, and of what was only
written any part. So the log is cut off somewhere behind its last synced frame or has rubbish there, and of
the pages a checkpoint was just moving, some are the old ones.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import PATIENCE

from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from asyncchatd.stores.sqlite import SqliteStore

from ..storm import FETCHES, HOOK, KEY

ROOT = Path(__file__).parents[3]
FREEZES = 16
LINES = (20, 400)
"""How many acknowledgements to wait for before the next freeze, at least and at most."""

LOG_HEADER = 32
FRAME_HEADER = 24
INDEX_SALTS, INDEX_MOVING = 32, 128
"""Where the log's index has the salts, and how many frames a checkpoint set out to move into the database
(`nBackfillAttempted`, https://www.sqlite.org/walformat.html)."""


class Synced(NamedTuple):
    """How far the log is on disk for certain."""

    salts: tuple[int, int]
    frames: int


NOTHING = Synced((0, 0), 0)


@dataclass
class Promises:
    """What was acknowledged."""

    pushes: set[str] = field(default_factory=set)
    keys: dict[str, int] = field(default_factory=dict)
    """The newest key by chat."""
    written: Counter[str] = field(default_factory=Counter)
    """How many events of replies were settled, by chat."""
    told: dict[int, str] = field(default_factory=dict)
    """The chats of events that somebody was told, by their ids."""
    synced: Synced = NOTHING

    def hear(self, line: str) -> None:
        *synced, kind, chat_id = line.split()[:5]
        self.synced = Synced((int(synced[0]), int(synced[1])), int(synced[2]))
        if kind == "push":
            self.pushes.add(chat_id)
        elif kind == "told":
            self.told[int(line.split()[5])] = chat_id
        elif kind == "event":
            self.written[chat_id] += 1
        else:
            self.keys[chat_id] = int(line.split()[5])


class Storm:
    """The process, and what it promised so far."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.storm", str(directory)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._said = self._output.fileno()
        fcntl.fcntl(self._said, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._rest = b""
        self.promises = Promises()

    def wait_for(self, lines: int) -> None:
        while lines > 0:
            lines -= self._read()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        os.set_blocking(self._said, False)
        while self._read():  # all it said before
            pass
        os.set_blocking(self._said, True)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._output.close()

    def _read(self) -> int:
        """How many lines came."""
        try:
            said = os.read(self._said, 1 << 16)
        except BlockingIOError:
            return 0
        assert said, "the storm is over too soon"
        *lines, self._rest = (self._rest + said).split(b"\n")
        for line in lines:
            self.promises.hear(line.decode())
        return max(1, len(lines))


class Files(NamedTuple):
    database: bytes
    log: bytes
    log_index: bytes

    @property
    def salts(self) -> tuple[int, int]:
        """They change whenever the log is begun anew."""
        return struct.unpack_from(">II", self.log, 16) if len(self.log) >= LOG_HEADER else (0, 0)

    @property
    def page(self) -> int:
        return int(struct.unpack_from(">I", self.log, 8)[0])

    @property
    def moving(self) -> int:
        """How many frames a checkpoint may have moved: it syncs them in the log before it moves one."""
        if struct.unpack_from(">II", self.log_index, INDEX_SALTS) != self.salts:
            return 0
        return int(struct.unpack_from("=I", self.log_index, INDEX_MOVING)[0])


def copied(directory: Path) -> Files:
    return Files(*((directory / f"chats.db{part}").read_bytes() for part in ("", "-wal", "-shm")))


def after_a_power_cut(now: Files, before: Files | None, synced: Synced, chance: random.Random) -> Files:
    """What the disk may hold. `before` is what it held some time earlier."""
    database = now.database
    if before is not None and before.salts == now.salts:
        # The log was not begun anew since, so all that was moved out of it may not be synced.
        database = _torn(now.database, before.database, now.page, chance)
    frames = max(now.moving, synced.frames if synced.salts == now.salts else 0)
    certain = min(len(now.log), LOG_HEADER + frames * (FRAME_HEADER + now.page) if now.log else 0)
    cut = chance.randint(certain, len(now.log))
    rubbish = chance.choice([b"", bytes(4096), chance.randbytes(4096)])
    return now._replace(database=database, log=now.log[:cut] + rubbish)


def _torn(new: bytes, old: bytes, page: int, chance: random.Random) -> bytes:
    return b"".join(
        (old if chance.random() < 0.5 and at + page <= len(old) else new)[at : at + page]
        for at in range(0, len(new), page)
    )


@pytest.fixture
def storm(tmp_path: Path) -> Iterator[Storm]:
    (tmp_path / "disk").mkdir()
    raging = Storm(tmp_path / "disk")
    yield raging
    raging.stop()


@pytest.mark.slow
async def test_whatever_was_acknowledged_survives_a_power_cut(tmp_path: Path, storm: Storm) -> None:
    chance = random.Random(4711)
    before: Files | None = None
    for number in range(FREEZES):
        storm.wait_for(chance.randint(*LINES))
        with storm.frozen():
            now = copied(tmp_path / "disk")
            promises = storm.promises
            for variant in range(3):
                left = after_a_power_cut(now, before, promises.synced, chance)
                await check(write(tmp_path / f"left-{number}-{variant}", left), promises)
        before = now
    assert len(storm.promises.pushes) > 100
    assert max(storm.promises.keys.values()) > 1
    assert len(storm.promises.told) > 100


@pytest.mark.parametrize(("told", "moving", "certain"), [(3, 7, 7), (7, 3, 7), (0, 0, 0)])
def test_what_a_checkpoint_may_have_moved_is_never_missing_in_the_log(
    told: int, moving: int, certain: int
) -> None:
    page, salts = 512, (7, 9)
    log = struct.pack(">IIIIIIII", 0, 0, page, 0, *salts, 0, 0) + bytes(10 * (FRAME_HEADER + page))
    index = bytes(INDEX_SALTS) + struct.pack(">II", *salts) + bytes(INDEX_MOVING - INDEX_SALTS - 8)
    now = Files(b"", log, index + struct.pack("=I", moving))
    kept = LOG_HEADER + certain * (FRAME_HEADER + page)
    for seed in range(50):
        left = after_a_power_cut(now, None, Synced(salts, told), random.Random(seed))
        assert left.log.startswith(log[:kept])


def write(directory: Path, left: Files) -> Path:
    directory.mkdir()
    (directory / "chats.db").write_bytes(left.database)
    (directory / "chats.db-wal").write_bytes(left.log)
    return directory


async def check(directory: Path, promises: Promises) -> None:
    store = SqliteStore("sqlite:///chats.db", directory=directory, keys=[KEY])
    await store.open()
    reader = Consumer("reader", frozenset((EventKind.CHAT,)), from_oldest=True)
    await store.enrol([HOOK, FETCHES, reader], now=1)
    try:
        assert store.set_aside is None
        while await store.absorb(10_000):
            pass
        found = {
            session.chat_id: session.secure_key or "" for session in await store.sessions(limit=1_000_000)
        }
        events = await every_event(store)
    finally:
        await store.close()
    assert {number: chat for number, chat in promises.told.items() if events.get(number) != chat} == {}
    kept = Counter(events.values())
    assert {chat: count for chat, count in promises.written.items() if kept[chat] < count} == {}
    assert promises.pushes - found.keys() == set()
    behind = {
        chat_id: (found.get(chat_id), number)
        for chat_id, number in promises.keys.items()
        if int(found.get(chat_id, "-1").rpartition("-")[2] or -1) < number
    }
    assert behind == {}


async def every_event(store: SqliteStore) -> dict[int, str]:
    """The chats of all events, by their ids."""
    found: dict[int, str] = {}
    after: int | None = None
    while True:
        portion = await store.fetch("reader", after=after, limit=10_000, now=1)
        found |= {event.id: event.chat_id or "" for event in portion.events}
        if not portion.events:
            return found
        after = portion.cursor
