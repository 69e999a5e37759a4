"""`asyncchatd init --with`: files beside the configuration, and nothing that is there is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import Certificates

from asyncchatd.cli.commands import main
from asyncchatd.preflight.extras import EXTRAS

ROOT = Path(__file__).parents[2]
EVERY = ",".join(EXTRAS)

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
"""Debian has servers in a directory that only root's PATH names."""
NGINX, HAPROXY = (shutil.which(name, path=PATH) for name in ("nginx", "haproxy"))


def init(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["init", "--dir", str(directory), *options])


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_file()}


def test_every_file_is_listed_and_is_one_of_the_project(tmp_path: Path) -> None:
    listed = init(tmp_path / "etc", "--list")
    assert listed.exit_code == 0
    for name, extra in EXTRAS.items():
        assert re.search(rf"^{name} ", listed.output, re.MULTILINE)
        for file in extra.files:
            assert file in listed.output
            shipped = ROOT / "asyncchatd" / "shipped" / file
            assert (
                shipped.read_text() == (ROOT / ("docs" if file == "runbook.md" else "etc") / file).read_text()
            )
    assert not (tmp_path / "etc").exists()
    assert f"`--with {EVERY}`" in (ROOT / "systemd" / "README.md").read_text()


def test_they_are_written_with_the_configuration_or_later_beside_it(tmp_path: Path) -> None:
    asked = {file for extra in EXTRAS.values() for file in extra.files}
    at_once = init(tmp_path / "a", "--no-systemd", "--with", EVERY)
    assert at_once.exit_code == 0, at_once.output
    assert asked | {"asyncchatd.toml", "push-secrets", "store-keys"} == files(tmp_path / "a")
    assert "127.0.0.1:8092" in (tmp_path / "a" / "prometheus.yml").read_text()  # the control API
    assert init(tmp_path / "b", "--systemd").exit_code == 0
    configured = (tmp_path / "b" / "asyncchatd.toml").read_text()
    later = init(tmp_path / "b", "--with", "alerts", "--with", "prometheus,lnav")
    assert later.exit_code == 0, later.output
    written = {"alerts.yml", "runbook.md", "prometheus.yml", "asyncchatd.lnav.json"}
    assert files(tmp_path / "b") == written | {"asyncchatd.toml", "push-secrets", "store-keys"}
    assert (tmp_path / "b" / "asyncchatd.toml").read_text() == configured
    assert "127.0.0.1:8095" in (tmp_path / "b" / "prometheus.yml").read_text()


def test_a_proxy_gets_the_addresses_of_the_configuration(tmp_path: Path) -> None:
    every = "nginx,haproxy,nginx-nodes,haproxy-nodes"
    options = ("--no-systemd", "--listen", "10.1.2.3:7001", "--gateway", ":7002")
    assert init(tmp_path / "a", *options, "--with", every).exit_code == 0
    assert init(tmp_path / "b", *options).exit_code == 0
    assert init(tmp_path / "b", "--with", every).exit_code == 0  # from the file
    for directory in (tmp_path / "a", tmp_path / "b"):
        texts = {
            file: (directory / file).read_text() for name in every.split(",") for file in EXTRAS[name].files
        }
        assert "    server asyncchatd 10.1.2.3:7001 check " in texts["haproxy.cfg"]
        assert "    server asyncchatd 127.0.0.1:7002 " in texts["haproxy.cfg"]
        assert "    server 10.1.2.3:7001; " in texts["nginx.conf"]
        assert "    server 127.0.0.1:7002; " in texts["nginx.conf"]
        assert "    server north 10.1.2.3:7001 port 8092 " in texts["haproxy-nodes.cfg"]
        assert "    server south 10.0.0.2:7001 port 8092\n" in texts["haproxy-nodes.cfg"]
        assert "    server north 10.0.0.1:7002 port 8092 " in texts["haproxy-nodes.cfg"]
        assert "    server 10.1.2.3:7001 max_fails" in texts["nginx-nodes.conf"]
        assert "    server 10.0.0.2:7002 max_fails" in texts["nginx-nodes.conf"]


def test_a_proxy_gets_what_the_file_says_of_sockets_ports_and_paths(tmp_path: Path) -> None:
    (tmp_path / "asyncchatd.toml").write_text(
        '[receiver]\nlisten = "unix:/run/r.sock"\n[gateway]\nlisten = "[2001:db8::1]:7002"\npath = "/shop/chat"\n'
        '[control]\nlisten = "10.1.2.3:7003"\n'
    )
    assert init(tmp_path, "--with", "nginx,haproxy,nginx-nodes,haproxy-nodes").exit_code == 0
    haproxy, nginx = ((tmp_path / file).read_text() for file in ("haproxy.cfg", "nginx.conf"))
    assert "    server asyncchatd unix@/run/r.sock check " in haproxy
    assert "    server unix:/run/r.sock; " in nginx
    assert 'trusted_proxies = ["unix"] in [receiver]' in haproxy
    assert "    server asyncchatd [2001:db8::1]:7002 " in haproxy
    assert "    location /shop/chat/2/chat/ {" in nginx
    nodes = (tmp_path / "haproxy-nodes.cfg").read_text()
    assert "    server north 10.0.0.1:8091 port 7003 " in nodes  # no other host reaches a socket
    assert "    server north [2001:db8::1]:7002 port 7003 " in nodes
    assert "    balance hash path,field(7,/) " in nodes
    assert "    location /shop/chat/2/chat/ {" in (tmp_path / "nginx-nodes.conf").read_text()


def test_logrotate_finds_a_daemon_that_was_started_by_hand(tmp_path: Path) -> None:
    assert init(tmp_path, "--no-systemd", "--with", "logrotate").exit_code == 0
    text = (tmp_path / "asyncchatd.logrotate").read_text()
    assert "systemctl" not in text
    [pattern] = re.findall(r"pkill -HUP -f -- '(.*)' \|\| true", text)
    command = f"/opt/asyncchatd/bin/asyncchatd run --config {tmp_path}/asyncchatd.toml"
    assert re.search(pattern, command)
    assert not re.search(pattern, text)  # nor the shell that runs this


def test_a_file_that_differs_stays_unless_asked(tmp_path: Path) -> None:
    assert init(tmp_path, "--no-systemd", "--with", "alerts,nginx").exit_code == 0
    (tmp_path / "nginx.conf").write_text("# mine\n")
    refused = init(tmp_path, "--with", "nginx,dashboard")
    assert refused.exit_code == 1
    assert f"{tmp_path}/nginx.conf: already there, and differs; --force overwrites" in refused.output
    assert not (tmp_path / "grafana-dashboard.json").exists()
    assert (tmp_path / "nginx.conf").read_text() == "# mine\n"
    same = init(tmp_path, "--with", "alerts")
    assert same.exit_code == 0
    assert "There already, as they should be:" in same.output
    config = (tmp_path / "asyncchatd.toml").read_text() + "# changed\n"
    (tmp_path / "asyncchatd.toml").write_text(config)
    assert init(tmp_path, "--with", "nginx", "--force").exit_code == 0
    assert (tmp_path / "nginx.conf").read_text() == (ROOT / "etc/nginx.conf").read_text()
    assert (tmp_path / "asyncchatd.toml").read_text() == config
    # Whoever says more means the configuration.
    assert init(tmp_path, "--with", "nginx", "--listen", ":8091").exit_code == 1


@pytest.mark.parametrize("options", [(), ("--with", "nginx")])
def test_a_runbook_without_the_alerts_that_link_to_it_is_a_wrong_option(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    refused = init(tmp_path / "etc", "--runbook", "https://wiki.example.com/asyncchatd", *options)
    assert (refused.exit_code, "expected --with alerts together with --runbook" in refused.output) == (
        2,
        True,
    )
    assert not (tmp_path / "etc").exists()


def test_an_unknown_name_is_refused_with_those_there_are(tmp_path: Path) -> None:
    refused = init(tmp_path, "--with", "alerts,grafana")
    assert refused.exit_code == 2
    assert "not grafana" in refused.output


@pytest.mark.parametrize("runbook", [None, "https://wiki.example.com/asyncchatd"])
def test_alerts_link_to_the_runbook_that_was_written_or_named(tmp_path: Path, runbook: str | None) -> None:
    options = ["--runbook", runbook] if runbook else []
    assert init(tmp_path, "--no-systemd", "--with", "alerts", *options).exit_code == 0
    base = runbook or f"file://{tmp_path}/runbook.md"
    rules = yaml.safe_load((tmp_path / "alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"{base}#{rule['alert'].lower()}"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
def test_prometheus_takes_what_is_written(tmp_path: Path) -> None:
    assert init(tmp_path, "--no-systemd", "--metrics", ":9999", "--with", "alerts,prometheus").exit_code == 0
    config = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9999"]}]
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "rules found" in checked.stdout


def proxied(directory: Path, name: str, certificates: Certificates) -> Path:
    """An example with a certificate that is there, and ports that are free."""
    assert init(directory, "--no-systemd", "--with", name).exit_code == 0
    both = directory / "both.pem"
    both.write_bytes(certificates.server.read_bytes() + certificates.server_key.read_bytes())
    [file] = EXTRAS[name].files
    text = re.sub(r"/etc/\S+\.(?:pem|key)(?=[;\s])", str(both), (directory / file).read_text())
    text = re.sub(r"listen (\d+) ", rf"listen unix:{directory}/\1.sock ", text)
    (directory / file).write_text(text)
    return directory / file


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="needs nginx")
@pytest.mark.parametrize("name", ["nginx", "nginx-nodes"])
def test_nginx_takes_its_example(name: str, tmp_path: Path, certificates: Certificates) -> None:
    assert NGINX is not None
    example = proxied(tmp_path, name, certificates)
    whole = tmp_path / "whole.conf"
    whole.write_text(
        f"pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\nhttp {{ access_log off; include {example}; }}\n"
    )
    checked = subprocess.run(
        [NGINX, "-t", "-p", str(tmp_path), "-c", str(whole)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
@pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")
@pytest.mark.parametrize("name", ["haproxy", "haproxy-nodes"])
def test_haproxy_takes_its_example(name: str, tmp_path: Path, certificates: Certificates) -> None:
    assert HAPROXY is not None
    example = proxied(tmp_path, name, certificates)
    checked = subprocess.run(
        [HAPROXY, "-c", "-f", str(example)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
