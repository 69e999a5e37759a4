"""A forked command behaves as one that exec started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE, configuration
from forked import Forked, forked

Process = Forked | subprocess.Popen[bytes]
Begin = Callable[[Sequence[str], Path, Mapping[str, str], Path], Process]


def by_fork(arguments: Sequence[str], directory: Path, env: Mapping[str, str], said: Path) -> Process:
    with said.open("ab") as output:
        return forked(arguments, directory=directory, env=env, output=output)


def by_exec(arguments: Sequence[str], directory: Path, env: Mapping[str, str], said: Path) -> Process:
    command = [str(Path(sys.executable).with_name("asyncchatd")), *arguments]
    with said.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory, env=env
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["check"], 0),
        (["check", "--config", "nowhere.toml"], 1),
        (["run", "--config", "nowhere.toml"], 1),
        (["run", "--no-such-option"], 2),
    ],
)
def test_it_ends_and_says_the_same(tmp_path: Path, arguments: list[str], status: int) -> None:
    """The configuration is named by the environment, relative to the directory."""
    (tmp_path / "own.toml").write_text(configuration())
    (tmp_path / "own.toml").chmod(0o600)
    env = {"PATH": os.environ["PATH"], "ASYNCCHATD_CONFIG": "own.toml", "COLUMNS": "90"}

    def told(begin: Begin, said: Path) -> tuple[int, str]:
        ended = begin(arguments, tmp_path, env, said).wait(PATIENCE)
        return ended, re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+", "then", said.read_text())

    by_itself = told(by_exec, tmp_path / "executed")
    assert told(by_fork, tmp_path / "forked") == by_itself
    assert by_itself[0] == status
    assert by_itself[1]


@contextmanager
def running(begin: Begin, directory: Path) -> Iterator[tuple[Process, Path]]:
    """A daemon that is ready, and what it says; gone afterwards."""
    directory.mkdir()
    (directory / "own.toml").write_text(configuration())
    said = directory / "said"
    process = begin(["run", "--config", "own.toml"], directory, os.environ, said)
    try:
        until = time.monotonic() + PATIENCE
        while "daemon_ready" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.01)
        yield process, said
    finally:
        process.kill()
        process.wait(PATIENCE)


def seen_from_outside(pid: int) -> dict[str, object]:
    """What the kernel knows of a process: its signals, its group and session, its directory, what it has open.
    SQLite opens its files when it needs them."""
    status = dict(re.findall(r"(\w+):\s*(.*)", Path(f"/proc/{pid}/status").read_text()))
    opened = (link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir())
    return {
        **{name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "Umask")},
        "group": os.getpgid(pid),
        "session": os.getsid(pid),
        "directory": Path(f"/proc/{pid}/cwd").readlink().name,
        "open": Counter(re.sub(r"\d+", "N", name) for name in opened if not name.startswith("chats.db")),
    }


@pytest.mark.slow
def test_the_kernel_sees_no_difference(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        running(by_fork, tmp_path / "a" / "daemon") as (one, _),
        running(by_exec, tmp_path / "b" / "daemon") as (other, _),
    ):
        assert seen_from_outside(one.pid) == seen_from_outside(other.pid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_reach_it_and_its_end_is_told(tmp_path: Path, number: int, status: int) -> None:
    with running(by_fork, tmp_path / "daemon") as (process, said):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(PATIENCE) == status
        assert process.poll() == status
        assert ("daemon_stopped" in said.read_text()) == (status == 0)
        process.send_signal(signal.SIGKILL)  # it has ended: nothing is sent to whoever has its pid now
