"""The log's lines on their way out: where they go, from which level on, and who writes them.

Lines go to standard output, which under systemd is the journal, or to a file of their own. What libraries say
through `logging` goes the same way, from warnings upwards. A reader that stalls does not hold the daemon up
(`writer.py`).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import select
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, cast

from asyncchatd.lean import absent
from asyncchatd.log import metrics
from asyncchatd.log.events import Event, Level
from asyncchatd.log.rendering import Fields, remember, to_console, to_json
from asyncchatd.log.writer import LogWriter

with absent("rich"):  # as in `rendering`
    import structlog
    from structlog.typing import FilteringBoundLogger

LAST_LINES_SECONDS = 2.0
"""How long a reader may take for the last lines when the process ends."""

Format = Literal["auto", "json", "console"]


def configure(level: Level = "info", format: Format = "auto", output: BinaryIO | None = None) -> None:
    """Send events of at least this level to `output`, by default standard output.

    `auto` writes colours when the output is a terminal, and JSON lines otherwise. Calling it again
    redirects loggers already in use. The descriptor of `output` is used; it may be closed when this returns.
    """
    file = output or sys.stdout.buffer
    terminal = file.isatty()
    _output.open(file)
    as_json = format == "json" or (format == "auto" and not terminal)
    _processors[:] = [remember, to_json if as_json else to_console(terminal)]
    structlog.configure(
        processors=_processors,
        logger_factory=lambda *_: _output,
        cache_logger_on_first_use=True,
    )
    set_level(level)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _FromLibraries)]:
        root.removeHandler(handler)
    root.addHandler(_FromLibraries(logging.WARNING))


def open_file(path: Path) -> BinaryIO:
    """The file of a log, to be written at its end; it is made where it is not there. Raises `OSError`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return open(os.open(path, flags, 0o640), "ab")


def go_on_in(file: BinaryIO) -> None:
    """Write there from now on. The descriptor is used; `file` may be closed when this returns."""
    _output.go_on_in(file)


def set_level(level: Level) -> None:
    """From now on send events of at least this level, from loggers already in use, too."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    for logger in _loggers:
        # structlog keeps the logger of the first use, level included, in the place of this method.
        vars(logger).pop("bind", None)


def leave_if_nobody_reads() -> None:
    """The process fails, and what it has to say would wait for the reader of standard error for ever: end it."""
    flush(LAST_LINES_SECONDS)
    try:
        poll = select.poll()
        poll.register(sys.stderr.fileno(), select.POLLOUT)
        readable = bool(poll.poll(LAST_LINES_SECONDS * 1000))
    except (OSError, ValueError, AttributeError):
        return  # it is no file that could make anybody wait
    if not readable:
        os._exit(1)


def flush(seconds: float) -> None:
    """Write out what a reader that stalled has kept waiting, for so long at most."""
    _output.flush(seconds)


def get_logger() -> FilteringBoundLogger:
    """A logger; `log = get_logger()` may stand at the top of a module, before `configure` was called."""
    logger = cast(FilteringBoundLogger, structlog.get_logger())
    _loggers.add(logger)
    return logger


class _Output:
    """Where lines go: a `LogWriter`, so that nobody who reads them can stop the daemon.

    Lines that an event loop's turn brings are written together at its end, so that a hundred pushes cost
    one write; what is bad is written at once. Lines of other threads, which have no event loop, are written at
    once, too, with what waits.
    """

    def __init__(self) -> None:
        self._writer: LogWriter | None = None
        self._lines: list[bytes] = []
        self._turn: asyncio.AbstractEventLoop | None = None
        """The event loop at the end of whose turn they are written."""

    def open(self, file: BinaryIO) -> None:
        self.close()
        self._writer = LogWriter(file, lost=_count_lost, tell=_tell_lost)

    def go_on_in(self, file: BinaryIO) -> None:
        if self._writer is None:
            self.open(file)
        else:
            self.write()
            self._writer.use(file)

    def close(self) -> None:
        self.flush(LAST_LINES_SECONDS)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def soon(self, line: bytes) -> None:
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write()
            return
        if self._turn is not loop:
            self._turn = loop
            loop.call_soon(self.write)

    def now(self, line: bytes) -> None:
        self._lines.append(line)
        self.write(grave=True)

    debug = info = msg = soon
    warning = error = critical = now

    def write(self, *, grave: bool = False) -> None:
        self._turn = None
        waiting, writer = self._lines, self._writer
        if waiting and writer is not None:
            with writer.lock:  # who takes lines also writes them before anybody else
                lines = waiting[:]
                del waiting[: len(lines)]  # always the same list: a thread may be about to add to it
                writer.write(lines, grave=grave)

    def flush(self, seconds: float) -> None:
        self.write()
        if self._writer is not None:
            self._writer.flush(seconds)


def _count_lost(count: int) -> None:
    metrics.LOG_LINES_LOST.inc(count)


def _tell_lost(count: int) -> None:
    get_logger().warning(Event.LOG_LINES_LOST, count=count)


_output = _Output()
atexit.register(_output.close)  # an event loop that was closed in its last turn left some
_loggers: weakref.WeakSet[FilteringBoundLogger] = weakref.WeakSet()
_processors: list[Callable[[object, str, Fields], Fields | bytes]] = []


class _FromLibraries(logging.Handler):
    """Takes what libraries say through `logging` into our log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        level = max(record.levelno // 10 * 10, logging.WARNING)
        get_logger().log(
            level, Event.LIBRARY_MESSAGE, logger=record.name, message=message, exc_info=record.exc_info
        )
