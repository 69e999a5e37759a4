"""Reading the log: files in any order, packed ones, rotation, pipes, the journal, and lines of others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.story import read
from asyncchatd.story.read import LogsError, Reading, parse

START = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


def written(second: float, event: str, **fields: object) -> bytes:
    when = (START + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")
    return json.dumps(
        {"time": when, "level": "info", "event": event, **fields}, separators=(",", ":")
    ).encode()


def in_journal(text: str, identifier: str = "asyncchatd", second: int = 0) -> bytes:
    at = str(int((START + timedelta(seconds=second)).timestamp() * 1e6))
    return json.dumps({"__REALTIME_TIMESTAMP": at, "SYSLOG_IDENTIFIER": identifier, "MESSAGE": text}).encode()


def events(raw: list[bytes]) -> list[str]:
    return [line.event for line in Reading().of(raw) if line is not None]


PUSH = written(1, "push_received", chat_id="A1", alias=None)


@pytest.mark.parametrize(
    "raw",
    [
        PUSH,
        b"Nov 22 14:00:01 host asyncchatd[7]: " + PUSH,
        in_journal(PUSH.decode()),
        json.dumps({"MESSAGE": list(PUSH)}).encode(),
    ],
    ids=["plain", "syslog", "journal", "journal, as numbers"],
)
def test_a_line_is_found_whatever_was_put_around_it(raw: bytes) -> None:
    reading = Reading()
    [line] = reading.of([raw])
    assert line is not None
    assert (line.event, line.time) == ("push_received", START + timedelta(seconds=1))
    assert line.fields == {"chat_id": "A1"}, "a field that does not apply is missing"
    assert (reading.lines, reading.foreign, reading.last) == (1, 0, line.time)


def test_lines_of_others_are_counted_and_passed_on() -> None:
    reading = Reading()
    systemd = in_journal("Main process exited, code=killed", "systemd", second=5)
    lines = list(
        reading.of([b"Traceback (most recent call last):", PUSH, b'{"no": "event"}', b"[1]", systemd])
    )
    assert [line.event for line in lines if line] == ["", "push_received", "", "", ""]
    assert reading.foreign == 4
    last = lines[-1]
    assert last is not None
    assert last.fields == {"message": "Main process exited, code=killed", "identifier": "systemd"}
    assert last.time == START + timedelta(seconds=5)


@given(st.binary(max_size=200))
def test_no_line_breaks_the_reading(raw: bytes) -> None:
    for line in (raw, PUSH + raw, raw + PUSH, PUSH[:-10] + raw):
        parse(line)
        list(Reading().of([line]))


def test_what_nobody_wants_is_skimmed_and_still_counts_as_read() -> None:
    reading = Reading()
    other = written(9, "push_received", chat_id="B2")
    found = list(reading.of([PUSH, other], lambda event, raw: b"A1" in raw))
    assert [line.fields["chat_id"] for line in found if line] == ["A1"]
    assert (reading.lines, reading.last) == (2, START + timedelta(seconds=9))


def test_a_start_knows_when_the_daemon_before_it_was_last_heard_of() -> None:
    *_, start = Reading().of(
        [
            PUSH,
            written(7, "push_received", chat_id="skimmed"),
            in_journal("Scheduled restart job", "systemd", second=28),
            written(29, "config_warning", key="gms.nodes"),
            written(30, "daemon_starting"),
        ],
        lambda event, raw: b"skimmed" not in raw,
    )
    assert start is not None
    assert start.before == START + timedelta(seconds=7)


def test_files_are_read_oldest_first_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(written(20, "server_up") + b"\n")
    (tmp_path / "log.1").write_bytes(b"not ours\n" + written(10, "server_down") + b"\n")
    with gzip.open(tmp_path / "log.2.gz", "wb") as old:
        old.write(PUSH + b"\n\n")
    paths = [tmp_path / name for name in ("log", "log.1", "log.2.gz")]
    assert events(list(read.files(paths))) == ["push_received", "", "server_down", "server_up"]


def test_the_logs_of_several_nodes_are_read_by_their_times(tmp_path: Path) -> None:
    north, south = tmp_path / "north", tmp_path / "south"
    north.write_bytes(b"\n".join((written(10, "server_down"), b"not ours", written(30, "server_up"))))
    south.write_bytes(written(20, "node_gone") + b"\n")
    assert events(list(read.files([south, north]))) == ["server_down", "", "node_gone", "server_up"]


def test_of_files_that_were_rotated_one_is_open_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may have kept more of them than a process may open."""
    paths = [tmp_path / f"log.{number}" for number in range(3)]
    for second, path in enumerate(paths):
        path.write_bytes(written(second, "push_received") + b"\n" + written(second + 0.5, "ping_ok") + b"\n")
    opened = list[IO[bytes]]()

    def noted(path: Path) -> IO[bytes]:
        opened.append(path.open("rb"))
        return opened[-1]

    monkeypatch.setattr(read, "_opened", noted)
    for _ in read.files(paths):
        assert sum(not file.closed for file in opened) <= 1


def test_a_file_that_cannot_be_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "broken.gz").write_bytes(gzip.compress(PUSH * 500)[:-20])
    for name, words in (
        ("none.log", "check its name"),
        (".", "name the files in it"),
        ("broken.gz", "zcat"),
    ):
        with pytest.raises(LogsError, match=words):
            list(read.files([tmp_path / name]))


def test_a_packed_file_is_known_by_what_it_begins_with(tmp_path: Path) -> None:
    (tmp_path / "log.2").write_bytes(gzip.compress(PUSH + b"\n"))
    assert events(list(read.files([tmp_path / "log.2"]))) == ["push_received"]


@pytest.mark.parametrize(
    ("packed", "unpack"),
    [
        (lzma.compress(PUSH), "xzcat"),
        (bz2.compress(PUSH), "bzcat"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "zstdcat"),
    ],
)
def test_a_file_that_is_packed_otherwise_is_told_with_what_unpacks_it(
    packed: bytes, unpack: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.1.packed"
    path.write_bytes(packed)
    for follow in (False, True):
        with pytest.raises(LogsError, match=f"{unpack} {path}"):
            list(read.files([path], follow=follow))


@pytest.mark.parametrize("name", ["old.gz", "old"])
def test_a_packed_file_is_not_followed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(PUSH))
    with pytest.raises(LogsError, match="leave --follow away"):
        list(read.files([path], follow=True))


def upcoming(lines: Iterator[bytes]) -> list[str]:
    """What comes until nothing more is there at the moment."""
    found: list[bytes] = []
    for raw in lines:
        if not raw:
            return events(found)
        found.append(raw)
    raise AssertionError("it ended")


def test_a_followed_file_is_followed_through_its_rotation(tmp_path: Path, quick: None) -> None:
    log = tmp_path / "log"
    log.write_bytes(PUSH + b"\n" + PUSH[:20])
    lines = read.files([log], follow=True)
    assert upcoming(lines) == ["push_received"], "half a line waits for its other half"
    with log.open("ab") as more:
        more.write(PUSH[20:] + b"\n")
    assert upcoming(lines) == ["push_received"]
    with log.open("ab") as more:
        more.write(written(2, "server_down") + b"\n")
    log.rename(tmp_path / "log.1")
    assert upcoming(lines) == ["server_down"], "what was written just before the rotation"
    log.write_bytes(written(3, "server_up") + b"\n")
    assert upcoming(lines) == ["server_up"]
    log.write_bytes(b"")  # copytruncate
    assert upcoming(lines) == []
    log.write_bytes(written(4, "ping_ok") + b"\n")
    assert upcoming(lines) == ["ping_ok"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "POLL_SECONDS", 0.001)


def test_a_followed_pipe_says_when_nothing_is_there(quick: None) -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reader, os.fdopen(into, "wb", buffering=0) as writer:
        lines = read.pipe(reader, follow=True)
        writer.write(PUSH + b"\n" + PUSH[:30])
        assert upcoming(lines) == ["push_received"]
        writer.write(PUSH[30:])
        writer.close()
        assert events([line for line in lines if line]) == ["push_received"]


# The journal, by a journalctl of the test's own.


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in front of the path; it notes how it was called and runs what the test writes to it."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    return program


def plays(program: Path, script: str) -> None:
    program.write_text(f'#!/bin/sh\necho "$@" > {program.parent}/called\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_the_journal_of_the_unit_is_read_from_a_time_on(journalctl: Path) -> None:
    plays(journalctl, f"cat <<'END'\n{in_journal(PUSH.decode()).decode()}\nEND")
    assert events(list(read.journal("chatd@1", since=START))) == ["push_received"]
    called = (journalctl.parent / "called").read_text()
    assert "-u chatd@1" in called
    assert f"--since @{START.timestamp():.6f}" in called
    assert "-f" not in called.split()


def test_the_journal_is_followed(journalctl: Path, quick: None) -> None:
    entry = in_journal(PUSH.decode()).decode()
    plays(journalctl, f"cat <<'END'\n{entry}\nEND\nexec sleep 60")
    lines = read.journal("asyncchatd", follow=True)
    assert events([next(line for line in lines if line)]) == ["push_received"]
    assert "-f -n all" in (journalctl.parent / "called").read_text()
    lines.close()  # type: ignore[attr-defined]


def test_a_journal_that_says_nothing_is_told_with_what_to_do(journalctl: Path) -> None:
    plays(journalctl, "echo 'Hint: you are not in the group' >&2")
    with pytest.raises(LogsError, match="the group; try with sudo"):
        list(read.journal("asyncchatd"))


def test_without_journalctl_a_file_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LogsError, match="asyncchatd logs FILE"):
        list(read.journal("asyncchatd"))


def test_a_journal_time_beyond_all_time_zones_is_none() -> None:
    late = int(datetime(9999, 12, 31, 23, 59, tzinfo=UTC).timestamp() * 1e6)
    line = parse(f'{{"MESSAGE":"hello","__REALTIME_TIMESTAMP":"{late}"}}'.encode())
    assert line.time is None
