"""Commands that start without their imports: a process that has imported asyncchatd forks one for each.

Three quarters of what a short-lived daemon costs is Python reading its modules. The process here has read them once,
for all tests of a worker of pytest. What it forks is a process of its own, as one that exec started: with the
arguments, the environment, the directory, the standard streams and the signal dispositions that it is given, in the
process group of the test run, with a pid that signals reach, and an end that says how it came. It begins where the
script `asyncchatd` does, in `asyncchatd.__main__.command`.

What it does not show is the start itself: that the script is there, and that its imports are enough. Tests about
those, about sockets of systemd, and about what is told while Python reads its modules start the real command.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_LONGEST = 1 << 17
"""Bytes of a request: arguments and environment."""

PRELOADED = (
    "asyncchatd.cli.commands.preflight",
    "asyncchatd.cli.commands.running",
    "asyncchatd.stores.sqlite",
    "uvloop",
)
"""What `asyncchatd run` and `check` import, themselves or by an entry point."""

PATIENCE = 60.0
"""Seconds for the imports on a busy machine, and for a fork."""


class Forked:
    """A forked command: the part of `subprocess.Popen` that tests use, with the same meaning."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._line = line

    def poll(self) -> int | None:
        """The exit status, -N for an end by signal N; None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self._hear()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it ended; TimeoutExpired when that takes longer."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout or 0)
            self._hear()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended. Its pid is not another's: it is reaped when `poll` has told."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _hear(self) -> None:
        told = self._line.recv(64)
        self._line.close()  # its parent reaps it now, and ends
        assert told, f"the parent of the forked process {self.pid} ended before it did"
        self.returncode = int(told)


def forked(
    arguments: Sequence[str],
    *,
    directory: Path,
    env: Mapping[str, str],
    output: BinaryIO,
    complaints: BinaryIO | None = None,
) -> Forked:
    """The command `asyncchatd` with these arguments, in a process of its own. It reads nothing, and writes to `output`
    and to `complaints`, or both of its streams to `output`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps({"arguments": list(arguments), "directory": str(directory), "env": dict(env)})
    assert len(request) < _LONGEST
    with theirs:
        socket.send_fds(
            _server(), [request.encode()], [theirs.fileno(), output.fileno(), (complaints or output).fileno()]
        )
    assert select.select([ours], [], [], PATIENCE)[0], "no process was forked"
    told = ours.recv(64)
    assert told, "the process that forks ended; what it said stands above"
    return Forked(int(told), ours)


def ran_forked(
    *arguments: str, directory: Path, seconds: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """The command with these arguments, ended, with what it wrote; in the environment of the tests."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        process = forked(arguments, directory=directory, env=os.environ, output=output, complaints=complaints)
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
        output.seek(0)
        complaints.seek(0)
        said, complained = output.read().decode(), complaints.read().decode()
    return subprocess.CompletedProcess(["asyncchatd", *arguments], status, said, complained)


@functools.cache
def _server() -> socket.socket:
    """The way to the process that forks; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(number)], stdin=subprocess.DEVNULL, pass_fds=[number]
        )

    def end() -> None:
        ours.close()
        process.wait(PATIENCE)

    atexit.register(end)
    return ours


# -- in the process that forks ---------------------------------------------------------------------


def _serve(requests: socket.socket) -> None:
    """Fork for each request until nobody can ask any more. Returns in the forked command, too: to begin."""
    while True:
        request, fds, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not request:
            _reap_those_that_ended()
            raise SystemExit(0)
        parent = os.fork()
        if parent == 0:
            requests.close()
            _fork_one(json.loads(request), *fds)
            return
        for fd in fds:
            os.close(fd)
        _reap_those_that_ended()


def _reap_those_that_ended() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_one(request: Mapping[str, object], line_fd: int, output: int, complaints: int) -> None:
    """Fork the command; be its parent, who tells its pid and then its end, for as long as somebody listens."""
    os.dup2(output, 1)
    os.dup2(complaints, 2)
    os.close(output)
    os.close(complaints)
    pid = os.fork()
    if pid == 0:
        os.close(line_fd)
        _become(request)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command; its end is told all the same
    with socket.socket(fileno=line_fd) as line, suppress(ConnectionError):
        line.send(b"%d" % pid)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        line.send(b"%d" % status)
        line.recv(1)
    os.waitpid(pid, 0)
    os._exit(0)


def _become(request: Mapping[str, object]) -> None:
    """This process, as exec would have started it."""
    arguments, directory, env = request["arguments"], request["directory"], request["env"]
    assert isinstance(arguments, list)
    assert isinstance(directory, str)
    assert isinstance(env, dict)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.argv[:] = [str(Path(sys.executable).with_name("asyncchatd")), *arguments]


def _main() -> None:
    """Import, serve, and be the command in what was forked."""
    sys.path[:] = [place for place in sys.path if place != str(Path(__file__).parent)]
    for module in PRELOADED:
        __import__(module)
    from asyncchatd.__main__ import command

    try:
        _serve(socket.socket(fileno=int(sys.argv[1])))
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    command()


if __name__ == "__main__":
    _main()
