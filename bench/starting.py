"""What a command costs that is over as soon as it has said something: nearly all of it is its start.

    python -m bench.starting [--rounds 20] [--sessions 0] [--against CHECKOUT] [COMMAND ...]

Each round starts every command once, beside `python -c pass` by the same interpreter, against a daemon that runs; so
what else the machine does meets all of them. Medians of processor time and of wall time, and the ratio of the
processor times to that of `python -c pass`. `run` is the daemon itself, from its start until it is ready, with so many
sessions in its store. With `--against` the code of another checkout is started in turns with this one's.
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
from itertools import islice
from pathlib import Path

from bench.measure import median
from bench.sessions import cpu_seconds, lines

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

PORTION = 20_000
"""Sessions that are registered by one command."""


@dataclass(frozen=True)
class Start:
    """What one start took, in seconds."""

    wall: float
    cpu: float


def started(words: str, directory: Path, checkout: Path | None = None) -> Start:
    """Start a command and wait for its end; of the daemon, until it is ready. `checkout`: of other code than the one
    from here."""
    command = [sys.executable, "-c", "pass"]
    if words == DAEMON:
        with running(directory / "other", checkout) as until_ready:
            return until_ready
    if words != NOTHING:
        command = [sys.executable, "-m", "asyncchatd", *words.split()]
    env = _environment(checkout) | {"ASYNCCHATD_CONFIG": str(directory / "asyncchatd.toml")}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=directory, env=env, capture_output=True, timeout=PATIENCE, check=False)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Start(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _environment(checkout: Path | None) -> dict[str, str]:
    """Python finds the code there first."""
    code = Path(__file__).parents[1] if checkout is None else checkout.resolve()
    return {**os.environ, "PYTHONPATH": str(code)}


@contextmanager
def running(directory: Path, checkout: Path | None = None) -> Iterator[Start]:
    """A daemon that is ready, stopped afterwards; yields what this took."""
    directory.mkdir(exist_ok=True)
    config = directory / "asyncchatd.toml"
    config.write_text(CONFIG.format(directory=directory))
    begun = time.perf_counter()
    with (directory / "daemon.log").open("w+") as log:
        command = [sys.executable, "-m", "asyncchatd", "run", "--config", str(config)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory, env=_environment(checkout))
        try:
            while READY not in (directory / "daemon.log").read_text():
                if daemon.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    raise SystemExit("the daemon did not become ready; see what it says: asyncchatd run")
                time.sleep(0.005)
            yield Start(time.perf_counter() - begun, cpu_seconds(daemon.pid))
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(PATIENCE)


def fill(directory: Path, sessions: int) -> None:
    """Register so many sessions with a daemon that lives there, which is stopped again."""
    with running(directory):
        for first in range(0, sessions, PORTION):
            portion = directory / "chats.json"
            portion.write_bytes(b"".join(islice(lines(sessions), first, first + PORTION)))
            config = str(directory / "asyncchatd.toml")
            command = [sys.executable, "-m", "asyncchatd", "register", str(portion), "--config", config]
            subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)


def table(taken: dict[str, list[Start]], nothing: float) -> Iterator[str]:
    """The medians, a line for each command. `nothing`: what `python -c pass` takes, in seconds of the processor."""
    yield f"{'':22} {'processor':>10} {'wall':>8} {'ratio':>6}"
    for words, starts in taken.items():
        cpu, wall = median([start.cpu for start in starts]), median([start.wall for start in starts])
        yield f"{words:22} {cpu * 1e3:7.0f} ms {wall * 1e3:5.0f} ms {cpu / nothing:6.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=0, help="in the store of the daemon that is started")
    parser.add_argument("--against", type=Path, help="another checkout, in turns with this one")
    parser.add_argument("commands", nargs="*", default=list(COMMANDS))
    asked = parser.parse_args(arguments)
    sides: dict[str, Path | None] = (
        {"here": None} if asked.against is None else {"against": asked.against, "here": None}
    )
    taken: dict[str, dict[str, list[Start]]] = {
        side: {words: [] for words in (NOTHING, *asked.commands)} for side in sides
    }
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "chat.json").write_text(CHAT)
        if asked.sessions:
            fill(directory / "other", asked.sessions)
        with running(directory):
            for _ in range(asked.rounds):
                for side, checkout in sides.items():
                    for words, starts in taken[side].items():
                        starts.append(started(words, directory, checkout))
    nothing = median([start.cpu for starts in taken.values() for start in starts[NOTHING]])
    for side, its in taken.items():
        print("\n".join((f"{side}:", *table(its, nothing))))


if __name__ == "__main__":
    main()
