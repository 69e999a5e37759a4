"""What `check` says of a gateway, and how `init` writes one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Certificates

from asyncchatd.config.loading import load
from asyncchatd.model.findings import Level
from asyncchatd.preflight.checks import check
from asyncchatd.preflight.connecting import connect
from asyncchatd.preflight.installing import Choices, InitError, install, next_steps
from asyncchatd.preflight.wording import area

from .test_checks import SERVER, doubts, write
from .test_installing import NODES, SERVERS, chosen, init, mode, read

SHOP = "https://shop.example"
GOOD = f'key_file = "gateway-keys"\nnode_group = "gms"\norigins = ["{SHOP}"]'


def written(directory: Path, more: str = "", gateway: str = GOOD, **sections: str) -> Path:
    """A configuration with a gateway, and its keys."""
    for name, content in (("gateway-keys", "ab" * 32), ("apikeys", "an-apikey")):
        (directory / name).write_text(content)
        (directory / name).chmod(0o600)
    return write(directory, SERVER, gateway=f"{gateway}\n{more}", **sections)


# -- check -------------------------------------------------------------------------------------------------


def test_a_gateway_without_doubts_is_just_valid(tmp_path: Path) -> None:
    assert doubts(written(tmp_path, 'apikeys_file = "apikeys"')) == {}


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ('listen = ":8090"', "gateway.listen", "keys and texts go there in the clear"),
        ("adopt = true", "gateway.adopt", "a stranger's guess"),
        ('hold = "3s"', "gateway.hold", "not below the 3s that widgets give"),
        ('patience = "1m"', "gateway.patience", "1m is not below the 3s"),
        (
            'keepalive_timeout = "31s"',
            "gateway.keepalive_timeout",
            "near the longest pause between two polls",
        ),
        ("max_rate = 500", "gateway.max_rate", "500 is above restoration.max_rate, 200"),
        ('listen = "unix:/g"\nallow = ["10.0.0.0/8"]', "gateway.allow", "Unix socket"),
        ('listen = "127.0.0.1:9"', "gms.nodes[0]", "where the gateway itself listens"),
        ('listen = "localhost:9"', "gms.nodes[0]", "where the gateway itself listens"),
    ],
)
def test_what_is_valid_but_hardly_meant(tmp_path: Path, more: str, key: str, words: str) -> None:
    found = doubts(written(tmp_path, more))
    assert set(found) == {key}
    assert words in found[key]


def test_a_gateway_that_serves_no_page_is_doubtful(tmp_path: Path) -> None:
    found = doubts(written(tmp_path, gateway=GOOD.replace(f'"{SHOP}"', "")))
    assert set(found) == {"gateway.origins"}


@pytest.mark.parametrize(("name", "key"), [("gateway-keys", "key_file"), ("apikeys", "apikeys_file")])
def test_files_that_others_can_read_are_told(tmp_path: Path, name: str, key: str) -> None:
    path = written(tmp_path, 'apikeys_file = "apikeys"')
    (tmp_path / name).chmod(0o640)
    found = doubts(path)
    assert set(found) == {f"gateway.{key}"}
    assert "can be read by others" in found[f"gateway.{key}"]


def test_one_key_for_two_things_is_doubtful(tmp_path: Path) -> None:
    path = written(tmp_path, store='keys_file = "gateway-keys"')
    assert doubts(path) == {"gateway.key_file": "a key in it is one of store.keys_file too"}


def test_its_tls_files_are_tried(certificates: Certificates, tmp_path: Path) -> None:
    path = written(
        tmp_path, f'tls_certificate = "{certificates.server}"\ntls_key = "{certificates.client_key}"'
    )
    errors = [finding for finding in check(path) if finding.level is Level.ERROR]
    assert [finding.key for finding in errors] == ["gateway.tls_certificate"]
    assert "does not belong" in errors[0].message


async def test_its_address_is_looked_at(tmp_path: Path) -> None:
    settings = load(written(tmp_path, 'listen = "192.0.2.1:8090"'))
    [finding] = [each for each in await connect(settings) if each.key == "gateway.listen"]
    assert (finding.level, area(finding)) == (Level.ERROR, "Listening")
    assert "not an address of this host" in finding.message
    free = load(written(tmp_path, f'listen = "unix:{tmp_path}/gateway.sock"'))
    assert any(each.message.endswith("gateway.sock is free") for each in await connect(free))


def test_an_origin_that_is_none_is_an_error_with_its_key(tmp_path: Path) -> None:
    [finding] = check(written(tmp_path, gateway=GOOD.replace(SHOP, f"{SHOP}/")))
    assert (finding.level, finding.key) == (Level.ERROR, "gateway.origins[0]")


# -- init --------------------------------------------------------------------------------------------------


def choices(directory: Path, *, systemd: bool = True, **more: object) -> Choices:
    its: dict[str, object] = {"gateway": "127.0.0.1:8090", "origins": (SHOP,), "node_group": "gms", **more}
    return chosen(directory, systemd=systemd, nodes=NODES, service="support", chat_servers=SERVERS, **its)


def test_a_service_with_a_gateway_finds_its_keys_and_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = choices(tmp_path / "etc", gateway=":8090")
    files = install(made)
    its = read(made, monkeypatch).gateway
    assert its is not None
    assert (str(its.listen), its.origins, its.node_group) == (":8090", (SHOP,), "gms")
    assert [len(key) for key in its.keys] == [32]
    assert its.keys != read(made, monkeypatch).store_keys
    assert mode(made.gateway_keys) == 0o600
    assert made.gateway_keys in files
    units = {path.name: path.read_text().splitlines() for path in (tmp_path / "etc" / "systemd").iterdir()}
    assert "ListenStream=8090" in units["asyncchatd-gateway.socket"]
    assert "Sockets=asyncchatd-gateway.socket" in units["asyncchatd.service"]
    assert f"LoadCredential=gateway-keys:{made.gateway_keys}" in units["asyncchatd.service"]
    told = next_steps(made, files)
    assert "asyncchatd-control.socket asyncchatd-gateway.socket asyncchatd.service" in told
    assert "base address      http://HOST:8090/genesys" in told
    assert f"Keep a copy of {made.gateway_keys}" in told
    assert "gateway.node_group, the name" not in told
    told = next_steps(replace(made, gateway="127.0.0.1:8090"), files)
    assert "that of the proxy with TLS in front, as only this host reaches 127.0.0.1:8090" in told
    assert "HOST:8090" not in told


def test_without_one_nothing_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chosen(tmp_path / "etc")
    files = install(made)
    assert read(made, monkeypatch).gateway is None
    assert not any("gateway" in path.name for path in files)
    service = (tmp_path / "etc" / "systemd" / "asyncchatd.service").read_text()
    assert not [line for line in service.splitlines() if "gateway" in line and not line.startswith("#")]
    assert "gateway" not in next_steps(made, files).replace("without the gateway", "")


def test_by_hand_the_keys_lie_beside_the_file_and_what_is_left_is_told(tmp_path: Path) -> None:
    made = choices(tmp_path, systemd=False, origins=(), node_group=None)
    files = install(made)
    its = load(made.config).gateway
    assert its is not None
    assert (its.key_file.path, its.origins) == (tmp_path / "gateway-keys", ())
    told = next_steps(made, files)
    assert "gateway.node_group, the name of the GMS cluster" in told
    assert "gateway.origins, of the pages" in told


def test_the_keys_that_clients_hold_are_never_overwritten(tmp_path: Path) -> None:
    made = choices(tmp_path)
    install(made)
    key = made.gateway_keys.read_text()
    files = install(made, force=True)
    assert made.gateway_keys.read_text() == key
    assert f"Kept as it is, because chat clients hold keys made with it: {made.gateway_keys}" in next_steps(
        made, files
    )
    assert key.strip() not in next_steps(made, files)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"origins": ("shop.example",)}, r"gateway\.origins\[0\]: expected the origin of a page"),
        ({"gateway": "8090"}, r"gateway\.listen: expected"),
        ({"gateway": "shop-host:8090"}, "--gateway: systemd takes no names"),
        ({"gateway": "127.0.0.1:8091"}, r"gateway\.listen: expected another address than receiver\.listen"),
    ],
)
def test_choices_that_are_no_use_leave_nothing_behind(
    tmp_path: Path, wrong: dict[str, Any], why: str
) -> None:
    with pytest.raises(InitError, match=why):
        install(choices(tmp_path / "etc", **wrong))
    assert not (tmp_path / "etc").exists()


def test_the_command_takes_a_gateway(tmp_path: Path) -> None:
    options = ("--gateway", "127.0.0.1:8090", "--origin", SHOP, "--node-group", "gms")
    done = init("--dir", str(tmp_path), "--no-systemd", *options)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "gateway-keys").read_text().strip() not in done.output
    assert load(tmp_path / "asyncchatd.toml").gateway is not None
    alone = init("--dir", str(tmp_path / "other"), "--no-systemd", "--origin", SHOP)
    assert (alone.exit_code, "expected --gateway together" in alone.output) == (2, True)
