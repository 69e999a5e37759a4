"""Lines of the log, from files, a pipe or the journal, one at a time however long the log is.

A line of ours begins with its time and its event, so a line nobody asked for is skimmed, not parsed: that
is what makes a day's log of a large installation readable in seconds. Lines of others (systemd's, a
traceback's) are counted and passed on as they are.
"""

from __future__ import annotations

import gzip
import heapq
import io
import json
import os
import re
import select
import stat
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import IO

import orjson

from asyncchatd.log import Event

POLL_SECONDS = 0.25
"""How often a file that is followed is looked at."""

JOURNAL_FIELDS = "MESSAGE,SYSLOG_IDENTIFIER"
CHUNK = 1 << 16

LONGEST_LINE = 1 << 20
"""Bytes of a line that are read: ours are far shorter, and a file may be none of lines."""

OLDEST, NEWEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""No log of ours tells of a time outside: there the calendar ends for those who add to it or move its zone."""


class LogsError(Exception):
    """The log cannot be read; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line. One that is not ours has no event, and its text is the field `message`."""

    time: datetime | None
    level: str
    event: str
    fields: Mapping[str, object]
    before: datetime | None = None
    """When a daemon last wrote something before it: where a log without an end breaks off."""


@dataclass(slots=True)
class Reading:
    """What was read, counted while it goes."""

    lines: int = 0
    foreign: int = 0
    """Lines that are not asyncchatd's."""
    first: datetime | None = None
    last: datetime | None = None
    _alive: datetime | None = None

    def of(
        self, raw_lines: Iterable[bytes], wanted: Callable[[str, bytes], bool] = lambda event, raw: True
    ) -> Iterator[Line | None]:
        """The lines for which `wanted(event, raw line)` holds, and those of others.

        `None` means that nothing more is there at the moment.
        """
        for raw in raw_lines:
            if not raw:
                yield None
                continue
            self.lines += 1
            skimmed = _PLAIN.match(raw) or _WRAPPED.match(raw)
            if skimmed is not None and not wanted(event := skimmed["event"].decode(), raw):
                self._saw(_time(skimmed["time"].decode()), event)
                continue
            line, before = parse(raw), self._alive
            self.foreign += not line.event
            self._saw(line.time, line.event)
            yield replace(line, before=before)

    def _saw(self, when: datetime | None, event: str) -> None:
        if when is not None:
            self.first = self.first or when
            self.last = when
            if event and event not in _BEFORE_THE_START:
                self._alive = when


_BEFORE_THE_START = {Event.CONFIG_WARNING, Event.DAEMON_STARTING}
"""What a daemon writes first: no sign of life of the one before it."""

_PLAIN = re.compile(rb'\{"time":"(?P<time>[0-9T:.Z+-]+)","level":"[a-z]+","event":"(?P<event>[a-z0-9_]+)"')
"""A line of ours, as it was written."""

_WRAPPED = re.compile(
    rb'[^{]*\{(?:.*"MESSAGE"\s*:\s*"\{)?\\?"time\\?":\\?"(?P<time>[0-9T:.Z+-]+)\\?",'
    rb'\\?"level\\?":\\?"[a-z]+\\?",\\?"event\\?":\\?"(?P<event>[a-z0-9_]+)\\?"'
)
"""One after what syslog puts before it, or inside an entry of the journal."""


def parse(raw: bytes) -> Line:
    """A line of ours, or an entry of the journal around one, or anything else. Never raises."""
    found = _object(raw)
    if found is None and (start := raw.find(b'{"time":')) > 0:  # after "Nov 22 14:02:11 host asyncchatd[7]: "
        found = _object(raw[start:])
    if found is not None and "MESSAGE" in found:
        return _from_journal(found)
    return _ours(found) or Line(None, "", "", {"message": raw.decode(errors="replace").strip()})


def _from_journal(entry: Mapping[str, object]) -> Line:
    said = entry["MESSAGE"]
    # What is no UTF-8, or very long, the journal gives as a list of numbers.
    text = bytes(said) if isinstance(said, list) else str(said or "").encode()
    if (ours := _ours(_object(text))) is not None:
        return ours
    try:
        when = _sane(datetime.fromtimestamp(int(str(entry["__REALTIME_TIMESTAMP"])) / 1e6, UTC))
    except (KeyError, ValueError, OverflowError, OSError):
        when = None
    who = str(entry.get("SYSLOG_IDENTIFIER") or "")
    return Line(when, "", "", {"message": text.decode(errors="replace"), "identifier": who})


def _ours(found: Mapping[str, object] | None) -> Line | None:
    if found is None:
        return None
    when, event = found.get("time"), found.get("event")
    parsed = _time(when) if isinstance(when, str) else None
    if parsed is None or not isinstance(event, str):
        return None
    fields = {name: value for name, value in found.items() if name not in _HEAD and value is not None}
    return Line(parsed, str(found.get("level") or ""), event, fields)


_HEAD = {"time", "level", "event"}


def _object(raw: bytes) -> dict[str, object] | None:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            found = json.loads(raw)  # half a surrogate pair, a number beyond 64 bits
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return _sane(found if found.tzinfo else found.replace(tzinfo=UTC))


def _sane(found: datetime) -> datetime | None:
    """A time that can be shown in every time zone."""
    return found if OLDEST <= found <= NEWEST else None


# Where they come from. An empty line means that nothing more is there at the moment.


def files(paths: Sequence[Path], *, follow: bool = False) -> Iterator[bytes]:
    """The lines of files, `.gz` too, by their times: the oldest file first whatever their names are, and those of
    several nodes in one another. With `follow` the newest one is read on for ever, also when it is rotated."""
    ordered = [(_begins(path) if len(paths) > 1 else None, path) for path in paths]
    ordered.sort(key=lambda each: each[0] or NEWEST)
    whole = ordered[:-1] if follow else ordered
    if len(whole) == 1:
        yield from _whole(whole[0][1])
    else:
        timed = (_timed(path, begins) for begins, path in whole)
        yield from (raw for _, raw in heapq.merge(*timed, key=itemgetter(0)) if raw)
    if follow:
        yield from _followed(ordered[-1][1])


def pipe(file: IO[bytes], *, follow: bool = False) -> Iterator[bytes]:
    """The lines of a pipe; with `follow` it is said when no more are there at the moment."""
    descriptor, rest = file.fileno(), b""
    while True:
        if follow and not select.select([descriptor], [], [], 2 * POLL_SECONDS)[0]:
            yield b""
            continue
        chunk = os.read(descriptor, CHUNK)
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
        rest = rest[:LONGEST_LINE]
    if rest.strip():
        yield rest


def journal(unit: str, *, since: datetime | None = None, follow: bool = False) -> Iterator[bytes]:
    """The entries of a systemd unit, as `journalctl -o json` prints them."""
    command = ["journalctl", "--quiet", "--no-pager", "-o", "json", f"--output-fields={JOURNAL_FIELDS}"]
    command += ["-u", unit]
    if since is not None:
        command += ["--since", f"@{max(since.timestamp(), 0):.6f}"]
    if follow:
        command += ["-f", "-n", "all"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError:
        raise LogsError(
            "there is no journalctl on this host; name the log's file: asyncchatd logs FILE, or pipe it in"
        ) from None
    assert process.stdout is not None
    assert process.stderr is not None
    some = False
    with process:
        try:
            for line in pipe(process.stdout, follow=follow):
                some = some or bool(line)
                yield line
            said = process.stderr.read().decode(errors="replace").strip()
        finally:
            process.terminate()
    if not some:
        raise LogsError(
            f"the journal has nothing of the unit {unit} that this user may read"
            f"{': ' + said.splitlines()[-1] if said else ''}; try with sudo, or as a member of the group"
            " systemd-journal, or name another --unit or a file"
        )


def _opened(path: Path) -> IO[bytes]:
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
            raise LogsError(f"{path} cannot be read: it is a device or a socket; name a file, or pipe it in")
        file = path.open("rb")
        begins = file.peek(LONGEST_MAGIC) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise LogsError(f"{path} cannot be read: {error.strerror}; {_next(error)}") from None
    if path.suffix == ".gz" or begins.startswith(GZIP):
        file.close()
        return io.BufferedReader(gzip.open(path, "rb"))
    for magic, unpack in OTHERS:
        if begins.startswith(magic):
            file.close()
            raise LogsError(
                f"{path} is packed in a way that is not read: {unpack} {path} | asyncchatd logs ... -"
            )
    return file


GZIP = b"\x1f\x8b"
OTHERS = ((b"\xfd7zXZ\0", "xzcat"), (b"\x28\xb5\x2f\xfd", "zstdcat"), (b"BZh", "bzcat"))
"""What packed files begin with, and what unpacks them. Rotation may pack with any of these."""
LONGEST_MAGIC = 6


def _next(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "try with sudo, or as a user of its group"
    if isinstance(error, IsADirectoryError):
        return "name the files in it"
    return "check its name; without a file the journal is read"


def _whole(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        yield from _lines_of(file, path)


def _timed(path: Path, begins: datetime | None) -> Iterator[tuple[bytes, bytes]]:
    """The lines of a file, each with its time as it is written: all of ours are in UTC. A line of others comes with the
    one of ours before it, or with the first one. An empty one comes first, with the second in which the file begins."""
    # The file is opened only behind that one: of all that were rotated few may be open at once.
    yield b"" if begins is None else f"{begins:%Y-%m-%dT%H:%M:%S}".encode(), b""
    when, held = b"", list[bytes]()
    for raw in _whole(path):
        held.append(raw)
        if (skimmed := _PLAIN.match(raw) or _WRAPPED.match(raw)) is not None:
            when = skimmed["time"]
        if when or len(held) > NOT_OURS:
            when = when or _LATEST
            yield from ((when, each) for each in held)
            held.clear()
    yield from ((_LATEST, each) for each in held)


NOT_OURS = 1_000
"""A file that begins with so many lines of others is hardly a log of ours."""

_LATEST = b"\xff"


def _lines_of(file: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        begun = True
        while line := file.readline(LONGEST_LINE):
            if begun and line.strip():
                yield line
            begun = line.endswith(b"\n")  # what is too long is told by its beginning
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise LogsError(
            f"{path} breaks off or is damaged: {error}; copy it again, or unpack what there is with zcat"
        ) from None


def _begins(path: Path) -> datetime | None:
    """When the first line of ours in it was written. A pipe is not asked: what is read of it is gone."""
    if path.is_fifo():
        return None
    with _opened(path) as file:
        for number, raw in enumerate(_lines_of(file, path)):
            if (when := parse(raw).time) is not None:
                return when
            if number > NOT_OURS:
                break
    return None


@dataclass(slots=True)
class _Tail:
    """An open file and the line in it that is not whole yet."""

    file: IO[bytes]
    begun: bytes = field(default=b"")

    def lines(self) -> Iterator[bytes]:
        while chunk := self.file.read(CHUNK):
            *whole, self.begun = (self.begun + chunk).split(b"\n")
            yield from (line for line in whole if line.strip())
            self.begun = self.begun[:LONGEST_LINE]


def _followed(path: Path) -> Iterator[bytes]:
    tail = _Tail(_opened(path))
    try:
        if isinstance(getattr(tail.file, "raw", None), gzip.GzipFile):
            raise LogsError(f"{path} is an old, packed log and grows no more; leave --follow away")
        while True:
            yield from tail.lines()
            if _moved_on(path, tail.file):
                yield from tail.lines()  # written between the last look and the rotation
                tail.file.close()
                tail = _Tail(_opened(path))
                continue
            yield b""
            time.sleep(POLL_SECONDS)
    finally:
        tail.file.close()


def _moved_on(path: Path, file: IO[bytes]) -> bool:
    """Whether the name stands for another file now, or this one was emptied (copytruncate)."""
    try:
        there = path.stat()
    except OSError:
        return False  # between the renaming and the new file
    here = os.fstat(file.fileno())
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) or there.st_size < file.tell()
