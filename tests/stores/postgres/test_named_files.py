"""Files that the URL of a PostgreSQL store names: which one is of no use, and why, before and at a connection."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from conftest import Certificates, case

from asyncchatd.preflight.checks import check
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres.address import place_of
from asyncchatd.stores.postgres.wire import connect

URL = "postgresql://u@127.0.0.1:1/db?"
OPEN = "can be used by others than its owner, so it is not read: chmod 600"
OR = ", or sslpassword does not open it"
GONE = "cannot be read: No such file or directory"


def trouble(parameters: str, *, url: str = URL, password_file: Path | None = None) -> str | None:
    files = place_of(url + parameters, password_file).address.files
    assert files is not None
    return files.trouble()


def test_a_file_that_is_of_no_use_is_named_with_its_parameter(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.delenv("PGSSLMODE", raising=False)
    names = ("none", "junk", "passwords", "pipe", "bytes")
    none, junk, passwords, pipe, no_text = (tmp_path / name for name in names)
    os.mkfifo(pipe)
    no_text.write_bytes(b"*:*:*:*:\xff\n")
    no_text.chmod(0o600)
    junk.write_text("junk\n")
    passwords.write_text("*:*:*:*:pw\n")
    passwords.chmod(0o640)
    good, key, other = certificates.server, certificates.server_key, certificates.client_key
    for parameters, name, file, why in (
        (f"sslmode=verify-full&sslrootcert={none}", "sslrootcert", none, GONE),
        (f"sslmode=require&sslrootcert={junk}", "sslrootcert", junk, "holds no certificates in PEM"),
        (f"sslmode=verify-ca&sslcrl={none}", "sslcrl", none, GONE),
        (f"sslcert={none}&sslkey={key}", "sslcert", none, GONE),
        (f"sslcert={good}&sslkey={none}", "sslkey", none, GONE),
        (
            f"sslcert={good}&sslkey={other}",
            "sslkey",
            other,
            f"is not the key of {good}, or sslpassword does not open it",
        ),
        (f"sslcert={tmp_path}", "sslcert", tmp_path, "cannot be read: Is a directory"),
        (f"sslcert={pipe}", "sslcert", pipe, "is no file"),
        (f"passfile={pipe}", "passfile", pipe, "is no file"),
        (f"passfile={none}", "passfile", none, GONE),
        (f"passfile={passwords}", "passfile", passwords, OPEN),
        (f"passfile={no_text}", "passfile", no_text, "is not UTF-8 text"),
    ):
        with case(parameters):
            assert trouble(parameters) == f"store.url: {name}: {file} {why}"
            with pytest.raises(StoreError, match=f"store.url: {name}: "):
                PostgresStore(URL + parameters, directory=tmp_path)


def test_the_file_that_the_environment_names_is_looked_at_once_a_password_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable may be there for others, and no password be needed."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    none, passwords = tmp_path / "none", tmp_path / "passwords"
    passwords.write_text("*:*:*:*:pw\n")
    for file, mode, why in ((none, 0o600, GONE), (passwords, 0o640, OPEN), (passwords, 0o600, None)):
        monkeypatch.setenv("PGPASSFILE", str(file))
        passwords.chmod(mode)
        files = place_of(URL).address.files
        assert files is not None
        assert files.trouble() is None
        assert files.of_a_refusal() == (why and f"store.url: PGPASSFILE: {file} {why}")
    monkeypatch.setenv("PGPASSFILE", str(none))
    files = place_of("postgresql://u:pw@h/db").address.files
    assert files is not None
    assert files.of_a_refusal() is None


def test_a_file_that_the_driver_does_not_use_is_not_looked_at(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    none, passwords = tmp_path / "none", tmp_path / "passwords"
    passwords.write_text("*:*:*:*:pw\n")
    passwords.chmod(0o600)
    for parameters in (
        f"sslmode=disable&sslrootcert={none}&sslcert={none}",
        f"sslmode=prefer&sslrootcert={none}&sslcrl={none}",
        f"sslkey={none}",
        f"passfile={passwords}",
        f"passfile={none}&password=pw",
        f"sslmode=verify-full&sslrootcert={certificates.ca}&sslcert={certificates.client}"
        f"&sslkey={certificates.client_key}",
    ):
        with case(parameters):
            assert trouble(parameters) is None
    assert trouble(f"sslcert={none}", url="postgresql:///db?host=/run/postgresql&") is None
    assert trouble(f"passfile={none}", url="postgresql://u:pw@h/db?") is None
    assert trouble(f"passfile={none}", password_file=passwords) is None


def test_the_check_of_the_file_alone_names_it(tmp_path: Path) -> None:
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        '[receiver]\nsecrets = ["push-secret-of-this-host"]\n[gms]\nnodes = ["http://gms-1:8080/genesys"]\n'
        f'[store]\nurl = "{URL}sslmode=verify-full&sslrootcert={tmp_path}/none"\n'
    )
    [finding] = [each for each in check(config) if each.key == "store.url"]
    assert finding.message == f"sslrootcert: {tmp_path}/none {GONE}"


async def test_one_that_goes_away_while_the_daemon_runs_is_named_by_the_next_connection(
    tmp_path: Path, certificates: Certificates
) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(certificates.ca.read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = place_of(
            f"postgresql://u@127.0.0.1:{port}/db?sslmode=verify-full&sslrootcert={authority}"
        ).address
        authority.unlink()
        with pytest.raises(StoreUnwritable, match=rf"^store\.url: sslrootcert: {authority} {GONE}$"):
            await asyncio.wait_for(connect(address), 20)
