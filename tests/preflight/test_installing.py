"""`asyncchatd init`: what it writes is what the daemon takes, and nothing that is there is lost."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from asyncchatd.cli.commands import main
from asyncchatd.config.loading import load
from asyncchatd.config.settings import Settings
from asyncchatd.preflight import installing
from asyncchatd.preflight.installing import Choices, InitError, configuration, install, next_steps

ROOT = Path(__file__).parents[2]
NODES = ("http://gms-1:8080/genesys", "http://gms-2:8080/genesys")
SERVERS = (("chat-1", "http://chat-1:4001/"), ('chat "two"', "http://chat-2:4001/health"))


def chosen(directory: Path, *, systemd: bool = True, **more: object) -> Choices:
    program = "/opt/asyncchatd/bin/asyncchatd"
    return Choices(directory, program, systemd=systemd, **more)  # type: ignore[arg-type]


def read(choices: Choices, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The file as the service reads it."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(choices.directory))
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/asyncchatd")
    return load(choices.config)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_service_finds_everything_where_the_unit_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = chosen(tmp_path / "etc", nodes=NODES, service="support", chat_servers=SERVERS)
    install(choices)
    settings = read(choices, monkeypatch)
    assert settings.gms.nodes == NODES
    assert settings.gms.service == "support"
    assert tuple((each.name, each.health_url) for each in settings.chat_servers) == SERVERS
    assert settings.store_url == "sqlite:////var/lib/asyncchatd/asyncchatd.db"
    assert str(settings.control.listen) == f"unix:{installing.CONTROL_PATH}"
    [secret] = settings.receiver.secrets
    assert len(secret.get_secret_value()) >= 32
    assert choices.secrets.read_text() == f"{secret.get_secret_value()}\n"
    assert [len(key) for key in settings.store_keys] == [32]


def test_by_hand_everything_lies_beside_the_file(tmp_path: Path) -> None:
    choices = chosen(tmp_path, systemd=False, listen=":8091")
    assert install(choices) == [choices.config, choices.secrets, choices.keys]
    settings = load(choices.config)
    assert len(settings.store_keys) == 1
    assert settings.store_url == f"sqlite:///{tmp_path}/asyncchatd.db"
    assert (str(settings.receiver.listen), str(settings.control.listen)) == (":8091", "127.0.0.1:8092")
    # The example is no Chat Server of theirs: it would be called lost at once.
    assert settings.chat_servers == ()


def test_where_no_systemd_runs_nothing_is_advised_that_needs_it(tmp_path: Path) -> None:
    choices = Choices(tmp_path, "/usr/bin/asyncchatd", systemd=False)
    said = next_steps(choices, install(choices))
    assert "systemctl" not in said + choices.config.read_text()
    assert "\n# SIGHUP takes a changed file over while the daemon runs" in choices.config.read_text()


def test_a_service_has_an_address_for_prometheus_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control API is a Unix socket then, which Prometheus does not scrape."""
    monkeypatch.setattr(installing, "this_program", lambda: "/opt/asyncchatd/bin/asyncchatd")
    service = init("--dir", str(tmp_path / "a"), "--systemd", "--gms", NODES[0])
    assert service.exit_code == 0, service.output
    metrics = read(chosen(tmp_path / "a"), monkeypatch).metrics
    assert metrics is not None
    assert str(metrics.listen) == "127.0.0.1:8095"
    by_hand = init("--dir", str(tmp_path / "b"), "--no-systemd", "--gms", NODES[0])
    assert by_hand.exit_code == 0, by_hand.output
    assert load(tmp_path / "b" / "asyncchatd.toml").metrics is None
    chosen_address = init("--dir", str(tmp_path / "c"), "--no-systemd", "--metrics", "192.0.2.7:8095")
    assert chosen_address.exit_code == 0, chosen_address.output
    metrics = load(tmp_path / "c" / "asyncchatd.toml").metrics
    assert metrics is not None
    assert str(metrics.listen) == "192.0.2.7:8095"


def test_an_address_for_two_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    refused = init("--dir", str(tmp_path / "a"), "--systemd", "--listen", "127.0.0.1:8095")
    assert refused.exit_code == 1
    assert "metrics.listen: expected another address than receiver.listen" in refused.output
    assert not (tmp_path / "a").exists()


def test_the_configuration_keeps_its_comments(tmp_path: Path) -> None:
    shipped = (ROOT / "etc" / "asyncchatd.toml").read_text().splitlines()
    written = configuration(chosen(tmp_path, nodes=NODES, chat_servers=SERVERS[:1])).splitlines()
    assert len(written) == len(shipped)
    changed = [line for line, before in zip(written, shipped, strict=True) if line != before]
    assert len(changed) == 7


def test_the_secrets_are_for_their_owner_alone_and_the_configuration_for_all(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        install(chosen(tmp_path / "etc"))
    finally:
        os.umask(before)
    assert mode(tmp_path / "etc" / "push-secrets") == 0o600
    assert mode(tmp_path / "etc" / "store-keys") == 0o600
    # The user of the service does not exist yet, so the file cannot be given to it.
    assert mode(tmp_path / "etc" / "asyncchatd.toml") == 0o644
    assert mode(tmp_path / "etc") == 0o755


def test_the_units_have_the_paths_of_this_host(tmp_path: Path) -> None:
    odd = tmp_path / "100% odd"
    install(chosen(odd, listen="192.0.2.7:8443"))
    units = {path.name: path.read_text().splitlines() for path in (odd / "systemd").iterdir()}
    config = str(odd / "asyncchatd.toml").replace("%", "%%")
    assert f'ExecStart=/opt/asyncchatd/bin/asyncchatd run --config "{config}"' in units["asyncchatd.service"]
    for name in ("push-secrets", "store-keys"):
        credential = str(odd / name).replace("%", "%%")
        assert f"LoadCredential={name}:{credential}" in units["asyncchatd.service"]
    assert "ListenStream=192.0.2.7:8443" in units["asyncchatd.socket"]
    assert "ListenStream=/run/asyncchatd-control.sock" in units["asyncchatd-control.socket"]


@pytest.mark.parametrize(
    ("listen", "stream"),
    [
        (":8091", "8091"),
        ("[::1]:8091", "[::1]:8091"),
        ("unix:/run/receiver.sock", "/run/receiver.sock"),
    ],
)
def test_the_socket_unit_listens_where_the_daemon_would(tmp_path: Path, listen: str, stream: str) -> None:
    install(chosen(tmp_path, listen=listen))
    assert f"ListenStream={stream}\n" in (tmp_path / "systemd" / "asyncchatd.socket").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_units_it_writes(tmp_path: Path) -> None:
    directory = tmp_path / "with space"
    choices = Choices(directory, f"{sys.executable} -m asyncchatd", listen="[::1]:8091")
    units = [str(path) for path in install(choices) if path.parent.name == "systemd"]
    result = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, [line for line in result.stderr.splitlines() if "asyncchatd" in line]) == (
        0,
        [],
    )


def test_what_is_there_is_overwritten_only_when_told_and_the_secrets_never(tmp_path: Path) -> None:
    choices = chosen(tmp_path)
    install(choices)
    secret, key = choices.secrets.read_text(), choices.keys.read_text()
    choices.config.write_text("# mine\n")
    with pytest.raises(
        InitError, match=r"asyncchatd\.toml, .*already there; --force overwrites, also what you set"
    ) as refused:
        install(choices)
    assert "gateway" not in str(refused.value).rpartition("--dir")[2]
    with pytest.raises(InitError, match=r"docs/gateway\.md says how to add a gateway by hand$"):
        install(replace(choices, gateway="127.0.0.1:8090"))
    assert choices.config.read_text() == "# mine\n"
    written = install(choices, force=True)
    assert choices.config.read_text() != "# mine\n"
    assert (choices.secrets.read_text(), choices.keys.read_text()) == (secret, key)
    assert not {choices.secrets, choices.keys} & set(written)
    told = next_steps(choices, written)
    assert f"Kept as it is, because GMS knows it: {choices.secrets}" in told
    assert f"Kept as it is, because a database may be encrypted with it: {choices.keys}" in told


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choices:
    """What the Debian package has installed: units for this program, and the configuration without choices."""
    units = tmp_path / "lib"
    choices = chosen(tmp_path / "etc", packaged=True, metrics=installing.METRICS)
    install(replace(choices, directory=tmp_path / "built", packaged=False))
    units.mkdir()
    for path in (ROOT / "systemd").glob("asyncchatd*.s*"):
        if path.is_file():
            text = path.read_text().replace("/etc/asyncchatd/asyncchatd.toml", str(choices.config))
            (units / path.name).write_text(text)
    choices.directory.mkdir()
    shutil.copy(tmp_path / "built" / "asyncchatd.toml", choices.config)
    monkeypatch.setattr(installing, "INSTALLED_UNITS", units)
    return choices


def test_units_that_are_installed_for_this_program_and_configuration_are_known(package: Choices) -> None:
    assert installing.packaged(package.directory, package.program)
    assert not installing.packaged(package.directory, "/usr/local/bin/asyncchatd")
    assert not installing.packaged(package.directory.parent, package.program)


def test_units_of_the_package_get_drop_ins(package: Choices) -> None:
    written = install(replace(package, listen=":8091", gateway="192.0.2.7:443", nodes=NODES))
    units = package.directory / "systemd"
    drop_in = "asyncchatd-init.conf"
    assert sorted(path for path in written if path.is_relative_to(units)) == [
        units / "asyncchatd-gateway.socket.d" / drop_in,
        units / "asyncchatd.service.d" / drop_in,
        units / "asyncchatd.socket.d" / drop_in,
    ]
    socket = (units / "asyncchatd.socket.d" / drop_in).read_text()
    assert "ListenStream=\nListenStream=8091\n" in socket
    service = (units / "asyncchatd.service.d" / drop_in).read_text()
    assert f"LoadCredential=gateway-keys:{package.gateway_keys}\n" in service
    assert "Sockets=asyncchatd-gateway.socket\n" in service
    told = next_steps(package, written)
    assert f"cp -r {units}/. /etc/systemd/system/" in told
    assert "groupadd" not in told


def test_the_configuration_of_the_package_is_overwritten_until_something_was_set_in_it(
    package: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(replace(package, nodes=NODES))
    assert read(package, monkeypatch).gms.nodes == NODES
    shutil.rmtree(package.directory / "systemd")
    with pytest.raises(InitError, match=r"asyncchatd\.toml: already there"):
        install(package)
    assert read(package, monkeypatch).gms.nodes == NODES


def test_each_host_gets_secrets_of_its_own(tmp_path: Path) -> None:
    one, other = (chosen(tmp_path / name, systemd=False) for name in ("one", "other"))
    install(one)
    install(other)
    assert one.secrets.read_text() != other.secrets.read_text()
    assert one.keys.read_text() != other.keys.read_text()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"nodes": ("gms-1:8080",)}, r"gms\.nodes\[0\]: expected an address"),
        ({"service": "a/b"}, r"gms\.service: expected a service name"),
        (
            {"chat_servers": (("a", "http://a/"), ("a", "http://b/"))},
            r"chat_server\[1\]\.name: expected each",
        ),
        ({"listen": "8091"}, r"receiver\.listen: expected"),
        ({"listen": "gms-host:8091"}, "--listen: systemd takes no names"),
    ],
)
def test_choices_that_are_no_use_leave_nothing_behind(
    tmp_path: Path, wrong: dict[str, object], why: str
) -> None:
    with pytest.raises(InitError, match=why):
        install(replace(chosen(tmp_path / "etc"), **wrong))  # type: ignore[arg-type]
    assert not (tmp_path / "etc").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InitError, match=r"cannot be written: .*; be root, or name another directory"):
        install(chosen(tmp_path / "file" / "etc", systemd=False))


def init(*options: str) -> Result:
    return CliRunner().invoke(main, ["init", *options])


@pytest.fixture
def hidden() -> Iterator[Path]:
    """A directory that no service sees, wherever the files of tests are."""
    with tempfile.TemporaryDirectory(prefix="asyncchatd-", dir="/tmp") as name:
        yield Path(name)


def test_the_command_says_what_is_left_to_do_and_keeps_the_secrets(hidden: Path) -> None:
    done = init("--dir", str(hidden), "--systemd", "--gms", NODES[0], "--listen", ":8091")
    assert done.exit_code == 0, done.output
    for name in ("push-secrets", "store-keys"):
        assert (hidden / name).read_text().strip() not in done.output
    for words in (
        f"Keep a copy of {hidden}/store-keys: without it a backup of the database is of no use.",
        "gms.service, the name of your chat service",
        "a [[chat_server]] table",
        f"CREDENTIALS_DIRECTORY={hidden}",
        "systemctl enable --now asyncchatd.socket asyncchatd-control.socket asyncchatd.service",
        "customhttp.url    http://HOST:8091/push/SECRET",
        "GCTI_GMS_PushDeviceType=customhttp",
        f"Note: the service cannot read {hidden}: it sees neither home nor temporary directories.\n"
        "Do it again with another --dir",
    ):
        assert words in done.output
    assert "gms.nodes, the base addresses" not in done.output
    again = init("--dir", str(hidden), "--systemd")
    assert (again.exit_code, "already there" in again.output) == (1, True)


def test_the_command_refuses_a_chat_server_without_name(tmp_path: Path) -> None:
    done = init("--dir", str(tmp_path / "etc"), "--chat-server", "http://chat-1:4001/")
    assert done.exit_code == 2
    assert "expected NAME=URL" in done.output
    assert not (tmp_path / "etc").exists()


def test_the_program_is_the_command_or_its_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/pytest"])
    assert installing.this_program() == f"{Path(sys.executable).absolute()} -m asyncchatd"
    command = tmp_path / "asyncchatd"
    command.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(command)])
    assert installing.this_program() == str(command)
