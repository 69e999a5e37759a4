"""The conversation with systemd, and the units that start it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from asyncchatd.config.sections.gateway import GatewaySettings
from asyncchatd.daemon import systemd, vitals

UNITS = Path(__file__).parents[2] / "systemd"


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
from asyncchatd.daemon import systemd
from asyncchatd.daemon import vitals
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


@pytest.mark.slow
def test_sockets_come_by_name_and_are_taken_once(listeners: list[socket.socket]) -> None:
    first, second, third = (listener.getsockname()[1] for listener in listeners)
    assert activated(listeners, "receiver:control:receiver") == [
        f"receiver [{first}, {third}] [False, False]",
        f"control [{second}] [False]",
        "[] {}",
    ]
    for listener in listeners:
        listener.close()


@pytest.mark.slow
def test_sockets_without_name_and_sockets_of_another_process(listeners: list[socket.socket]) -> None:
    ports = [listener.getsockname()[1] for listener in listeners]
    assert activated(listeners, "") == [f"unknown {ports} [False, False, False]", "[] {}"]
    assert activated(listeners, "receiver", pid_offset=1) == ["[] {}"]
    for listener in listeners:
        listener.close()


SERVICE, *SOCKETS = "asyncchatd.service", "asyncchatd.socket", "asyncchatd-control.socket"
GATEWAY = "asyncchatd-gateway.socket"
NEEDS_ANALYZE = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Sections, keys, and the values of each key in their order."""
    sections: dict[str, dict[str, list[str]]] = {}
    keys: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            keys = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            keys.setdefault(key, []).append(value)
    return sections


def test_the_service_is_no_root_and_fits_the_daemon() -> None:
    service = unit(SERVICE)["Service"]
    assert service["Type"] == ["notify"]
    assert service["DynamicUser"] == ["yes"]
    assert service["StateDirectory"] == service["RuntimeDirectory"] == service["User"] == ["asyncchatd"]
    assert service["LoadCredential"] == [
        f"{name}:/etc/asyncchatd/{name}" for name in ("push-secrets", "store-keys")
    ]
    assert service["Restart"] == ["on-failure"]
    assert service["ExecReload"] == ["/bin/sh -c 'kill -HUP $$MAINPID'"]
    assert int(service["WatchdogSec"][0]) >= 2 * max(
        vitals.LAG_SECONDS, vitals.STUCK_SECONDS, vitals.OVERDUE_SECONDS
    )
    assert service["ExecStart"] == [
        "/opt/asyncchatd/bin/asyncchatd run --config /etc/asyncchatd/asyncchatd.toml"
    ]


def test_the_sandbox_leaves_the_network_and_the_state_directory() -> None:
    service = unit(SERVICE)["Service"]
    for closed in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert service[closed] == [""]
    assert service["ProtectSystem"] == ["strict"]
    assert service["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
    assert service["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    for switch in (
        *("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateUsers", "PrivateMounts"),
        *("ProtectHostname", "ProtectClock", "ProtectKernelTunables", "ProtectKernelModules"),
        *("ProtectKernelLogs", "ProtectControlGroups", "RestrictNamespaces", "RestrictRealtime"),
        *("RestrictSUIDSGID", "RemoveIPC", "LockPersonality", "MemoryDenyWriteExecute"),
    ):
        assert service[switch] == ["yes"], switch
    assert "PrivateNetwork" not in service


def test_the_sockets_have_the_names_the_daemon_looks_for_and_come_with_it() -> None:
    receiver, control = (unit(name)["Socket"] for name in SOCKETS)
    assert receiver["FileDescriptorName"] == ["receiver"]
    assert control["FileDescriptorName"] == ["control"]
    assert control["Service"] == [SERVICE]
    assert unit(SERVICE)["Service"]["Sockets"] == [" ".join(SOCKETS)]


def test_the_socket_of_the_gateway_comes_with_the_service_only_where_it_says_so() -> None:
    """With a socket that the daemon has no section for it does not start."""
    gateway = unit(GATEWAY)["Socket"]
    assert (gateway["FileDescriptorName"], gateway["Service"]) == (["gateway"], [SERVICE])
    assert gateway["ListenStream"] == [str(GatewaySettings.model_fields["listen"].default)]
    assert f"\n#Sockets={GATEWAY}\n" in (UNITS / SERVICE).read_text()


def test_the_control_socket_is_for_its_group_alone_and_outlives_the_runtime_directory() -> None:
    control = unit("asyncchatd-control.socket")["Socket"]
    assert control["SocketMode"] == ["0660"]
    assert control["SocketGroup"] == ["asyncchatd-control"]
    [path] = control["ListenStream"]
    # systemd removes that directory with every stop of the service, and gives what is in it to its user.
    assert Path(path).parent == Path("/run")


def test_behind_a_proxy_the_port_is_closed() -> None:
    """Unless the list is emptied first, a drop-in adds to it."""
    listened = unit("asyncchatd.socket.d/behind-proxy.conf")["Socket"]["ListenStream"]
    assert listened == ["", "/run/asyncchatd-receiver.sock"]


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """The units, and their drop-ins, as on a host where there is such a program."""
    program = "/opt/asyncchatd/bin/asyncchatd"
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md"))
    path = tmp_path / SERVICE
    path.write_text(path.read_text().replace(program, sys.executable))
    return [str(tmp_path / name) for name in (SERVICE, *SOCKETS, GATEWAY)]


@NEEDS_ANALYZE
def test_systemd_accepts_the_units_and_their_drop_ins(installed: list[str]) -> None:
    result = subprocess.run(
        ["systemd-analyze", "verify", *installed], capture_output=True, text=True, check=False, timeout=60
    )
    directory = str(Path(installed[0]).parent)
    complaints = [line for line in result.stderr.splitlines() if directory in line or "asyncchatd" in line]
    assert (result.returncode, complaints) == (0, [])


@NEEDS_ANALYZE
def test_the_service_is_exposed_to_little() -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", UNITS / SERVICE],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found[1]) <= 1.2, result.stdout
