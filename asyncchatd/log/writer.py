"""Lines to a file, a pipe, a terminal or the journal, without ever waiting for who reads them.

A reader that stalls (a journal that waits for its disk, a pager, a terminal after Ctrl-S) fills its pipe, and
the next write waits for it. So what could wait is written through a descriptor of our own that does not: to
make the inherited one such would change it for all who share it. What is not taken at once is kept, up to a
bound, and a thread writes it when the reader goes on; until then the event loop has one deque to append to. A
reader that keeps up costs one write and no thread.

What does not fit is dropped and counted, the newest first, so that the story stays whole up to the gap; what
is grave has some room of its own. Lines keep their order and are never cut.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol

MOST_WAITING = 8 * 1024 * 1024
"""Bytes that are kept for a reader that stalls: some seconds of a storm, hours of quiet."""

GRAVE_RESERVE = 1024 * 1024
"""More of them, for warnings and errors."""

PORTION = 64 * 1024
"""Written at once: what a pipe takes."""

LINE_COST = 64
"""Bytes a line takes in memory beyond its own."""

LOOK_SECONDS = 1.0
"""Between two looks of the thread whether anybody still wants its lines."""


class LogWriter:
    """The lines of one destination. Any thread may write."""

    def __init__(self, file: BinaryIO, *, lost: Callable[[int], None], tell: Callable[[int], None]) -> None:
        """`lost` counts lines that were dropped, as they are. `tell` says it in the log once the reader is back;
        what it writes may come back here."""
        self._to = _destination(file)
        self._lost = lost
        self._tell = tell
        self.lock = threading.RLock()  # a finalizer may log in the middle of anything
        """Who holds it writes without anybody between."""
        self._changed = threading.Condition(self.lock)
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        """What they take, in bytes."""
        self._portion = b""
        """What is being written."""
        self._behind = False
        """A thread writes them."""
        self._full = self._failing = False
        self._torn = self._to.is_torn()
        """Half a line is out."""
        self._dropped = 0
        """Since the last one that was told."""

    def write(self, lines: Sequence[bytes], *, grave: bool = False) -> None:
        """Lines without their ends, the last of which may be `grave`. It takes the time of a write that does not
        wait, or less."""
        if not lines:
            return
        with self.lock:
            if self._behind or self._portion or self._lines:
                self._keep_all(lines, grave)
            else:
                if self._dropped:
                    self._tell_the_gap()
                self._add(lines)
            if self._behind:
                return
            if not self._to.may_wait:
                self._write_on()
            if self._portion or self._lines:
                self._start_thread()

    def flush(self, seconds: float) -> bool:
        """Write out what is kept, for so long at most; whether all of it is written."""
        until = time.monotonic() + seconds
        with self._changed:
            while (self._portion or self._lines) and (left := until - time.monotonic()) > 0:
                if self._behind:
                    self._changed.wait(left)
                elif self._to.may_wait:
                    break  # there could be no thread
                else:
                    self._write_on()
                    if self._portion:
                        self._to.wait(left)
            return not (self._portion or self._lines)

    def use(self, file: BinaryIO) -> None:
        """Write there from now on, also what is kept."""
        with self._changed:
            if not self._behind:
                self._to.close()
            self._to, self._behind = _destination(file), False
            self._torn = self._to.is_torn()
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is written, and nobody waits for it."""
        with self._changed:
            self._lines.clear()
            self._portion = b""
            if not self._behind:
                self._to.close()
            self._to, self._behind = _Nowhere(), False
            self._changed.notify_all()

    # Under the lock.

    def _keep_all(self, lines: Sequence[bytes], grave: bool) -> None:
        last = len(lines) - 1
        for number, line in enumerate(lines):
            self._keep(line, grave and number == last)
        if self._to.may_wait:
            self._changed.notify_all()

    def _keep(self, line: bytes, grave: bool) -> None:
        if self._full and self._waiting <= MOST_WAITING // 2:
            self._full = False
        self._tell_the_gap()
        cost = len(line) + LINE_COST
        room = MOST_WAITING - self._waiting
        if grave:
            room += GRAVE_RESERVE
        elif self._full:
            room = 0
        if cost > room:
            self._full = True
            self._drop(1)
        else:
            self._lines.append(line)
            self._waiting += cost

    def _tell_the_gap(self) -> None:
        if self._dropped and not (self._full or self._failing):
            dropped, self._dropped = self._dropped, 0
            self._tell(dropped)

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._lost(count)

    def _write_on(self) -> None:
        """What the reader takes now."""
        while self._portion or self._next():
            try:
                written = self._to.write(self._portion)
            except BlockingIOError:
                return
            except (OSError, ValueError):
                self._fail()
            else:
                self._wrote(written)

    def _next(self) -> bool:
        taken, size = [], 0
        while self._lines and size < PORTION:
            line = self._lines.popleft()
            taken.append(line)
            size += len(line)
            self._waiting -= len(line) + LINE_COST
        self._add(taken)
        return bool(taken)

    def _add(self, lines: Sequence[bytes]) -> None:
        if lines:
            if self._torn and not self._portion:
                self._portion = b"\n"  # half a line is out: this one must not be glued to it
            self._portion += b"\n".join(lines) + b"\n"

    def _wrote(self, count: int) -> None:
        self._failing = False
        self._torn = self._portion[count - 1 : count] != b"\n"
        self._portion = self._portion[count:]

    def _fail(self) -> None:
        """A reader that is gone, or a disk that is full: the daemon goes on."""
        self._failing = True
        self._drop(self._portion.lstrip(b"\n").count(b"\n"))
        self._portion = b""

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._catch_up, name="log", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            pass  # none to be had, or Python ends: the next line tries again
        else:
            self._behind = True

    # In the thread.

    def _catch_up(self) -> None:
        to = self._to
        while (portion := self._wanted(to)) is not None:
            if not portion:
                continue
            try:
                written = to.write(portion)
            except BlockingIOError:
                to.wait(LOOK_SECONDS)
                continue
            except (OSError, ValueError):
                written = -1
            with self.lock:
                if self._to is not to:
                    continue
                if written < 0:
                    self._fail()
                else:
                    self._wrote(written)
        if self._to is not to:
            to.close()

    def _wanted(self, to: _Destination) -> bytes | None:
        """What is to be written next; `None` when the thread is needed no more."""
        with self._changed:
            if self._to is not to:
                return None
            if not (self._portion or self._next()):
                self._full = False
                self._tell_the_gap()
            if self._portion or self._next():
                return self._portion
            self._changed.notify_all()
            if to.may_wait:
                self._changed.wait()
                return b""
            self._behind = False
            return None


class _Destination(Protocol):
    """Where bytes go."""

    may_wait: bool
    """A write may wait for the reader, so that only a thread should."""

    def write(self, data: bytes) -> int:
        """Write some of it, and say how much. Raises `BlockingIOError` when that would take waiting."""

    def wait(self, seconds: float) -> None:
        """Until more may be written."""

    def is_torn(self) -> bool:
        """Whether what is there ends in the middle of a line: whoever wrote it was killed, or the disk was full."""

    def close(self) -> None:
        """Give back what was opened for it."""


def _destination(file: BinaryIO) -> _Destination:
    try:
        descriptor = file.fileno()
        file.flush()
        kind = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        return _File(file)  # one in memory, or one that is closed
    try:
        if stat.S_ISREG(kind):
            return _Regular(descriptor)
        return _Socket(descriptor) if stat.S_ISSOCK(kind) else _Own(descriptor)
    except OSError:
        return _Shared(descriptor)


class _File:
    may_wait = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._file.flush()
        return len(data)

    def wait(self, seconds: float) -> None:
        """It never has to."""

    def is_torn(self) -> bool:
        return False

    def close(self) -> None:
        """It is somebody else's."""


class _Nowhere(_File):
    def __init__(self) -> None:
        """Without a file."""

    def write(self, data: bytes) -> int:
        return len(data)


class _Shared:
    """Others have it too, and no second way there is to be had: a terminal of another user, for instance."""

    may_wait = True

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)

    def write(self, data: bytes) -> int:
        return os.write(self._descriptor, data)

    def wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(seconds * 1000)

    def is_torn(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self._descriptor)


class _Regular(_Shared):
    """The kernel takes it, and nobody has to read it."""

    may_wait = False

    def is_torn(self) -> bool:
        try:
            with open(f"/proc/self/fd/{self._descriptor}", "rb") as file:
                return file.seek(0, os.SEEK_END) > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        except OSError:
            return False  # it may be written and not read


class _Own(_Shared):
    """The same pipe or terminal, opened once more: this time it does not wait."""

    may_wait = False

    def __init__(self, descriptor: int) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)


class _Socket(_Shared):
    """The journal's, as a rule."""

    may_wait = False

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._socket = socket.socket(fileno=self._descriptor)

    def write(self, data: bytes) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._socket.close()
