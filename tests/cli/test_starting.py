"""What a command imports, which is most of the time it takes to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAVY = frozenset(
    {
        *("aiohttp", "pydantic", "prometheus_client", "structlog", "cryptography", "uvloop", "aiosqlite"),
        *("asyncio", "ssl", "http.client", "email", "hypothesis"),
        *("rich.progress", "rich.live", "rich.traceback", "pygments"),
    }
)
"""Modules that take longer to read than a command that asks a daemon takes for all it does. What imports one of them
again makes every such command slower: import it where it is needed."""

ASKING = ("status", "servers", "sessions", "restorations", "consumers")

ABSENT = "unix:/nowhere/control.sock"

DAEMON = f"""
[receiver]
listen = "127.0.0.1:0"
secrets = ["Nn8Zk1rT0v3qYw5xBc7d"]
[control]
listen = "{ABSENT}"
[gms]
nodes = ["http://127.0.0.1:9/genesys"]
[store]
url = "sqlite:///a.db"
"""


def imported(directory: Path, *words: str) -> set[str]:
    """The modules that a command has imported when it ends, and their packages."""
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('\\n'.join(['', *sys.modules]), file=sys.__stdout__))\n"
        f"sys.argv = ['asyncchatd', *{words!r}]\n"
        "from asyncchatd.__main__ import command\n"
        "command()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=directory, capture_output=True, text=True, timeout=60
    )
    modules = set(done.stdout.split())
    assert "asyncchatd.cli" in modules, done.stderr
    return modules


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    (tmp_path / "a.toml").write_text(f'[control]\nlisten = "{ABSENT}"\n')
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "--help",
        "help status",
        "completion bash",
        *(f"{command} --help" for command in (*ASKING, "ping", "restore", "register", "end", "logs")),
    ],
)
def test_a_command_that_only_speaks_imports_nothing_heavy(tmp_path: Path, words: str) -> None:
    assert imported(tmp_path, *words.split()) & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", ASKING)
def test_a_command_that_asks_a_daemon_imports_nothing_heavy(configured: Path, command: str) -> None:
    """Until it has to say why no daemon answers: whether that is a matter of TLS, it asks the module of TLS."""
    assert imported(configured, command, "--config", "a.toml") & HEAVY <= {"ssl"}


NOT_FOR_A_CHECK = frozenset(
    {
        *("aiohttp", "cryptography", "asyncpg", "uvloop", "rich.traceback", "rich.progress", "pygments"),
        *("asyncchatd.listening.tls", "asyncchatd.listening.listener", "asyncchatd.preflight.connecting"),
        *("asyncchatd.watcher", "asyncchatd.gms", "asyncchatd.delivery", "asyncchatd.stores.postgres"),
    }
)
"""Modules that a check of the file alone does not need, where no listener has TLS."""


@pytest.mark.slow
def test_a_check_of_the_file_imports_nothing_that_connects(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(DAEMON)
    modules = imported(tmp_path, "check", "--config", "a.toml")
    assert {"asyncchatd.preflight.doubts", "asyncchatd.stores.sqlite.store", "pydantic"} <= modules
    assert modules & NOT_FOR_A_CHECK == set()


NOT_FOR_THE_DAEMON = frozenset(
    {
        *("rich", "pygments", "cryptography", "asyncpg", "hypothesis", "unittest", "multiprocessing"),
        *("asyncchatd.gateway", "asyncchatd.stores.postgres", "asyncchatd.standin", "asyncchatd.rehearsing"),
        *(
            "asyncchatd.preflight.installing",
            "asyncchatd.preflight.first_push",
            "asyncchatd.terminal.screens",
        ),
    }
)
"""Modules that a daemon with an SQLite store, without TLS, keys and gateway, does not need. Nearly all of its start is
reading modules: import one of these where it is needed."""


@pytest.mark.slow
def test_the_daemon_imports_nothing_heavy_that_it_does_not_need(tmp_path: Path) -> None:
    """Until its start fails for a port that is not its own to have, which is after all of its parts are made."""
    (tmp_path / "a.toml").write_text(DAEMON)
    modules = imported(tmp_path, "run", "--config", "a.toml")
    assert {"asyncchatd.daemon.run", "asyncchatd.stores.sqlite.store", "uvloop"} <= modules
    assert modules & NOT_FOR_THE_DAEMON == set()
