"""What a command costs that is over as soon as it has said something: nearly all of it is its start.

    python -m bench.starting [--rounds 20] [COMMAND ...]

Each round starts every command once, beside `python -c pass` by the same interpreter, against a daemon that runs; so
what else the machine does meets all of them. Medians of processor time and of wall time, and the ratio of the
processor times to that of `python -c pass`. `run` is the daemon itself, from its start until it is ready, with an empty
store; its processor time has its end in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import median

CONFIG = """
[receiver]
listen = "127.0.0.1:0"
secrets = ["bench-secret"]
[control]
listen = "unix:{directory}/control.sock"
[gms]
nodes = ["http://127.0.0.1:9/genesys"]
[store]
url = "sqlite:///bench.db"
"""

NOTHING = "python -c pass"
DAEMON = "run"
COMMANDS = (
    *("--version", "--help", "status", "status --json", "servers", "sessions", "restorations", "consumers"),
    *("end nobody", "register chat.json", "logs daemon.log", "check", DAEMON),
)

CHAT = '{"chat_id": "chat-1", "user_id": "u", "secure_key": "0123456789abcdef", "alias": "117"}\n'
READY = "daemon_ready"
PATIENCE = 60.0


@dataclass(frozen=True)
class Start:
    """What one start took, in seconds."""

    wall: float
    cpu: float


def started(words: str, directory: Path) -> Start:
    """Start a command and wait for its end; of the daemon, until it is ready."""
    command = [sys.executable, "-c", "pass"]
    if words != NOTHING:
        command = [sys.executable, "-m", "asyncchatd", *words.split()]
    env = {**os.environ, "ASYNCCHATD_CONFIG": str(directory / "asyncchatd.toml")}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if words == DAEMON:
        with running(directory / "other") as until_ready:
            wall = until_ready
    else:
        subprocess.run(command, cwd=directory, env=env, capture_output=True, timeout=PATIENCE, check=False)
        wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Start(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@contextmanager
def running(directory: Path) -> Iterator[float]:
    """A daemon that is ready, stopped afterwards; yields the seconds that this took."""
    directory.mkdir(exist_ok=True)
    config = directory / "asyncchatd.toml"
    config.write_text(CONFIG.format(directory=directory))
    begun = time.perf_counter()
    with (directory / "daemon.log").open("w+") as log:
        command = [sys.executable, "-m", "asyncchatd", "run", "--config", str(config)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        try:
            while READY not in (directory / "daemon.log").read_text():
                if daemon.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    raise SystemExit("the daemon did not become ready; see what it says: asyncchatd run")
                time.sleep(0.005)
            yield time.perf_counter() - begun
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(PATIENCE)


def table(taken: dict[str, list[Start]]) -> Iterator[str]:
    """The medians, a line for each command."""
    nothing = median([start.cpu for start in taken[NOTHING]])
    yield f"{'':22} {'processor':>10} {'wall':>8} {'ratio':>6}"
    for words, starts in taken.items():
        cpu, wall = median([start.cpu for start in starts]), median([start.wall for start in starts])
        yield f"{words:22} {cpu * 1e3:7.0f} ms {wall * 1e3:5.0f} ms {cpu / nothing:6.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS))
    asked = parser.parse_args(arguments)
    taken: dict[str, list[Start]] = {words: [] for words in (NOTHING, *asked.commands)}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "chat.json").write_text(CHAT)
        with running(directory):
            for _ in range(asked.rounds):
                for words, starts in taken.items():
                    starts.append(started(words, directory))
    print("\n".join(table(taken)))


if __name__ == "__main__":
    main()
