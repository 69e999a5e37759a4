"""The conversation with systemd, and the units that start it."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from asyncchatd import systemd

UNITS = Path(__file__).parent.parent / "systemd"


@pytest.fixture(autouse=True)
def _started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_what_is_notified(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"@asyncchatd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert systemd.notify("READY=1\nSTATUS=100 sessions")
        assert manager.recv(1000) == b"READY=1\nSTATUS=100 sessions"


@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all", "vsock:2:1"])
def test_without_systemd_nobody_is_notified(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


def test_the_watchdog_says_how_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval() == timedelta(seconds=30)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval() == timedelta(seconds=30)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_interval() is None


@pytest.mark.parametrize("text", ["", "0", "-5", "soon"])
def test_a_watchdog_that_is_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", text)
    assert systemd.watchdog_interval() is None


ACTIVATED = """
import os, sys
from asyncchatd import systemd
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
for name, sockets in systemd.listen_fds().items():
    open_to_others = [each.get_inheritable() or each.getblocking() for each in sockets]
    print(name, [each.getsockname()[1] for each in sockets], open_to_others)
print(sorted(name for name in os.environ if name.startswith("LISTEN_")), systemd.listen_fds())
"""


def activated(listeners: list[socket.socket], names: str, pid_offset: int = 0) -> list[str]:
    """What a process says that was started with these sockets, as systemd starts one: numbered from 3."""
    fds = [listener.fileno() for listener in listeners]
    redirections = " ".join(f"{number}<&{fd}" for number, fd in enumerate(fds, start=3))
    command = f'exec "$0" -c "$1" "$2" {redirections}'
    environment = {**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
    environment["PYTHONPATH"] = str(UNITS.parent)
    result = subprocess.run(
        ["bash", "-c", command, sys.executable, ACTIVATED, str(pid_offset)],
        env=environment, pass_fds=fds, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return result.stdout.splitlines()


@pytest.fixture
def listeners() -> list[socket.socket]:
    return [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]


def test_sockets_come_by_name_and_are_taken_once(listeners: list[socket.socket]) -> None:
    first, second, third = (listener.getsockname()[1] for listener in listeners)
    assert activated(listeners, "receiver:control:receiver") == [
        f"receiver [{first}, {third}] [False, False]",
        f"control [{second}] [False]",
        "[] {}",
    ]
    for listener in listeners:
        listener.close()


def test_sockets_without_name_and_sockets_of_another_process(listeners: list[socket.socket]) -> None:
    ports = [listener.getsockname()[1] for listener in listeners]
    assert activated(listeners, "") == [f"unknown {ports} [False, False, False]", "[] {}"]
    assert activated(listeners, "receiver", pid_offset=1) == ["[] {}"]
    for listener in listeners:
        listener.close()


def test_credentials_are_files_of_the_directory_systemd_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match="CREDENTIALS_DIRECTORY is not set"):
        systemd.credential("push-secrets")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert systemd.credential("push-secrets") == tmp_path / "push-secrets"
    for name in ("", "..", "../shadow", "/etc/shadow"):
        with pytest.raises(LookupError, match="not the name of a credential"):
            systemd.credential(name)


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def test_the_service_is_no_root_and_fits_the_daemon() -> None:
    service = unit("asyncchatd.service")["Service"]
    assert service["Type"] == "notify"
    assert service["User"] not in {"", "root", "0"}
    assert service["StateDirectory"] == "asyncchatd"
    assert service["LoadCredential"].startswith("push-secrets:")
    assert service["Restart"] == "on-failure"
    assert "/asyncchatd run --config " in service["ExecStart"]


def test_the_socket_has_the_name_the_daemon_looks_for() -> None:
    parser = unit("asyncchatd.socket")
    assert parser["Socket"]["FileDescriptorName"] == "receiver"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in ("asyncchatd.service", "asyncchatd.socket"):
        text = (UNITS / name).read_text().replace("/opt/asyncchatd/bin/asyncchatd", sys.executable)
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("asyncchatd.service", "asyncchatd.socket")]
    result = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False, timeout=60
    )
    complaints = [line for line in result.stderr.splitlines() if str(tmp_path) in line]
    assert (result.returncode, complaints) == (0, [])
