"""What `asyncchatd check --connect` says of a PostgreSQL database."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import configuration

from asyncchatd.cli.commands import main
from asyncchatd.model import Finding, Level
from asyncchatd.stores import StoreError
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore, checking
from asyncchatd.stores.postgres.address import place_of
from asyncchatd.stores.postgres.wire import Address, Connection, connect
from asyncchatd.stores.sealing import Sealed

from ..desk import NOON, registration
from .server import Server, server

PASSWORD = "s3cret%2Fword"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for passwords, listens on a port and has `fsync` on; with TLS where it can."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    directory = tmp_path_factory.mktemp("tls")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        (
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            *subject,
            "-keyout",
            "key",
            "-out",
            "crt",
        ),
        cwd=directory,
        check=True,
        capture_output=True,
    )
    with server(tls=True, listen_addresses="127.0.0.1", port=port, fsync="on", full_page_writes="on") as one:
        data = one.directory / "data"
        for name in ("key", "crt"):
            file = one.directory / name
            file.write_bytes((directory / name).read_bytes())
            file.chmod(0o600)
            os.chown(file, data.stat().st_uid, data.stat().st_gid)
        one.stop()
        (data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        before = (data / "postgresql.conf").read_text()
        keys = f"ssl_key_file='{one.directory}/key'\nssl_cert_file='{one.directory}/crt'"
        (data / "postgresql.conf").write_text(f"{before}\nssl=on\n{keys}\n")
        try:
            one.start()
        except RuntimeError as error:
            if "SSL is not supported by this build" not in str(error):
                raise
            (data / "postgresql.conf").write_text(before)
            one.start()
        yield one


@asynccontextmanager
async def admin(
    of: Server, connect: Callable[[Address], Awaitable[Connection]] = connect
) -> AsyncIterator[Connection]:
    port = of.settings.get("port", "5432")
    one = await connect(Address(f"postgresql://postgres@/postgres?host={of.directory}&port={port}"))
    try:
        yield one
    finally:
        await one.close()


async def found(
    url: str,
    tmp_path: Path,
    *,
    keys: Sequence[bytes] = (),
    password_file: Path | None = None,
    runs: bool = False,
) -> list[Finding]:
    async def answers() -> bool:
        return runs

    store = PostgresStore(url, directory=tmp_path, keys=keys, password_file=password_file)
    return [each async for each in store.check(answers)]


def said(findings: Sequence[Finding], words: str) -> Finding:
    """The finding with these words in it."""
    matching = [each for each in findings if words in each.message]
    assert len(matching) == 1, [each.message for each in findings]
    return matching[0]


async def test_a_database_that_is_fine_is_said_to_be_and_is_left_as_it_was(
    postgres: Server, tmp_path: Path
) -> None:
    url = postgres.url("checked")
    findings = await found(url, tmp_path)
    assert {each.level for each in findings} == {Level.OK, Level.WARNING}
    assert said(findings, "checked will be made at the next start").level is Level.OK
    assert said(findings, "fsync, full_page_writes: off").level is Level.WARNING
    assert said(findings, "a Unix socket").level is Level.OK
    assert said(findings, "connections are free").level is Level.OK
    assert said(findings, "no pooler").level is Level.OK
    assert said(findings, "a round trip takes")
    async with admin(postgres) as sql:
        assert await sql.value("SELECT to_regnamespace('checked')") is None


async def test_the_nodes_that_share_a_schema_are_named(postgres: Server, tmp_path: Path) -> None:
    url = postgres.url("shared", node="south")
    store = PostgresStore(url, directory=tmp_path)
    await store.open()
    try:
        findings = await found(url, tmp_path)
        assert "south" in said(findings, "nodes that share the schema").message
        assert not [each for each in findings if "have the name" in each.message]
        assert said(findings, "a node named south is there already").level is Level.WARNING
        assert not [each for each in await found(url, tmp_path, runs=True) if "named south" in each.message]
        twin = PostgresStore(url, directory=tmp_path)
        await twin.open()
        await store._beat()
        try:
            assert said(await found(url, tmp_path), "2 nodes that are there have the name south")
        finally:
            await twin.close()
        async with admin(postgres) as sql:
            assert not [each for each in findings if "nobody has heard" in each.message]
            await sql.run("UPDATE shared.node SET seen_at=seen_at-10 WHERE gone_at IS NULL")
            quiet = said(await found(url, tmp_path), "of south nobody has heard for 3 s")
            assert (quiet.level, "is heard within seconds" in quiet.message) == (Level.NOTE, True)
            await store._beat()
            await sql.run("UPDATE shared.node SET version='0.0.9'")
            old = said(await found(url, tmp_path), "nodes of another version")
            assert (old.level, "0.0.9" in old.message) == (Level.WARNING, True)
            await sql.run("UPDATE shared.schema_version SET version=99, oldest=98")
            newer = said(await found(url, tmp_path), "made by a newer asyncchatd")
            assert newer.level is Level.ERROR
    finally:
        await store.close()


async def test_keys_are_not_distrusted_while_a_node_lives(postgres: Server, tmp_path: Path) -> None:
    url = postgres.url("distrusted", node="south")
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        '[receiver]\nsecrets = ["push-secret-of-this-host"]\n[gms]\nnodes = ["http://gms-1:8080/genesys"]\n'
        f'[store]\nurl = "{url}"\n'
    )

    async def distrusted(*options: str) -> Result:
        command = ["store", "distrust", "--before", "now", "--config", str(config), *options]
        return await asyncio.to_thread(CliRunner().invoke, main, command)

    store = PostgresStore(url, directory=tmp_path)
    await store.open()
    try:
        await store.register([registration()], now=NOON, spread_ms=1e9)
        refused = await distrusted()
        assert refused.exit_code == 1
        assert "is in use by south; stop all nodes first" in refused.output
        assert "1 sessions would wait" in (await distrusted("--dry-run")).output
    finally:
        await store.close()
    done = await distrusted()
    assert (done.exit_code, "1 sessions wait" in done.output) == (0, True)


async def test_a_key_that_is_not_the_one_of_the_others_is_named(postgres: Server, tmp_path: Path) -> None:
    url = postgres.url("locked")
    store = PostgresStore(url, directory=tmp_path, keys=[bytes(range(32))])
    await store.open()
    await store.register([registration()], now=NOON, spread_ms=1e9)
    await store.close()
    lacking = said(await found(url, tmp_path, keys=[bytes(32)]), "add its line")
    assert (lacking.level, lacking.key) == (Level.ERROR, "store.keys_file")


async def test_it_is_said_how_far_a_change_of_the_store_key_is(postgres: Server, tmp_path: Path) -> None:
    old, new = bytes(range(32)), bytes(32)
    old_id, new_id = Sealed(old).key_id, Sealed(new).key_id
    one = PostgresStore(postgres.url("turned", node="one"), directory=tmp_path, keys=[old])
    await one.open()
    await one.register([registration()], now=NOON, spread_ms=1e9)

    async def of_keys(*keys: bytes) -> Finding:
        every = await found(postgres.url("turned"), tmp_path, keys=keys)
        [finding] = [each for each in every if each.key == "store.keys_file"]
        return finding

    assert (await of_keys(old)).message == f"all secure keys are under the first key, {old_id}"
    awaited = await of_keys(new, old)
    assert awaited.level is Level.NOTE
    assert f"{new_id}, is not in force yet, and waits for one (number 1)" in awaited.message
    await one.close()
    assert "once a node runs" in (await of_keys(new, old)).message
    two = PostgresStore(postgres.url("turned", node="two"), directory=tmp_path, keys=[new, old])
    await two.open()
    try:
        await two.turn_keys()
        assert (await of_keys(new, old)).message.endswith(f"{old_id}, is sealed anew: keep its line")
        async with admin(postgres) as sql:
            await sql.run("UPDATE turned.node SET seen_at=seen_at-60")
            assert (await of_keys(new, old)).message.endswith("it waits for two (number 2)")
            await sql.run("UPDATE turned.store SET turned_at=turned_at-60")
        await two._beat()
        await two.turn_keys()
        await two.turn_keys()
        assert (await of_keys(new, old)).message.endswith(f"{new_id}, no other line is needed")
        assert (await of_keys(new)).level is Level.OK
    finally:
        await two.close()


async def test_rights_that_are_lacking_are_told_with_what_gives_them(
    postgres: Server, tmp_path: Path
) -> None:
    url = postgres.url("owned")
    store = PostgresStore(url, directory=tmp_path)
    await store.open()
    await store.close()
    runner = url.replace("postgres@", "runner@")
    async with admin(postgres) as sql:
        await sql.script("CREATE ROLE runner LOGIN")
        missing = said(await found(runner, tmp_path), "the user runner may not use the schema owned")
        assert (missing.level, missing.advice[:48]) == (
            Level.ERROR,
            "run `asyncchatd store migrate URL --runner runne",
        )
        await sql.script(
            "GRANT USAGE ON SCHEMA owned TO runner; GRANT SELECT ON owned.schema_version TO runner"
        )
        assert said(await found(runner, tmp_path), "runner may not use ask, consumer, ").level is Level.ERROR
        await sql.script("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA owned TO runner")
        assert (
            said(await found(runner, tmp_path), "may not use journal_id_seq, node_id_seq, ").level
            is Level.ERROR
        )
        await sql.script("GRANT USAGE ON ALL SEQUENCES IN SCHEMA owned TO runner")
        findings = await found(runner, tmp_path)
        assert not [each for each in findings if each.level is Level.ERROR]
        assert said(findings, "GRANT pg_read_all_stats TO runner").level is Level.NOTE
        store = PostgresStore(runner, directory=tmp_path)  # who may only use what is there can run
        await store.open()
        await store.close()
        await sql.run("UPDATE owned.schema_version SET version=0")
        assert said(await found(runner, tmp_path), "does not own it").level is Level.ERROR
        await sql.script("ALTER ROLE runner CONNECTION LIMIT 7")
        assert said(await found(runner, tmp_path), "7 connections are free").level is Level.OK
        await sql.script("ALTER ROLE runner CONNECTION LIMIT 5")
        assert said(await found(runner, tmp_path), "5 connections are free").level is Level.ERROR
        assert said(await found(runner, tmp_path, runs=True), "5 connections are free").level is Level.OK
        await sql.script("ALTER ROLE runner SET default_transaction_read_only=on")
        assert said(await found(runner, tmp_path), "read-only").level is Level.ERROR
        await sql.script("ALTER ROLE runner RESET ALL; DROP OWNED BY runner; DROP ROLE runner")


def test_alerts_have_the_bounds_by_which_a_check_goes() -> None:
    file = Path(__file__).parents[3] / "etc" / "alerts.yml"
    rules = {
        rule["alert"]: rule["expr"]
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    }
    bounds = {
        "AsyncchatdDatabaseSlow": checking.SLOW_SECONDS,
        "AsyncchatdDatabaseClock": checking.OFF_SECONDS,
        "AsyncchatdOldSnapshot": checking.OLD_SNAPSHOT_SECONDS,
    }
    assert {name: float(rules[name].rpartition(">")[2]) for name in bounds} == bounds


async def test_a_transaction_that_is_open_for_long_is_named(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "OLD_SNAPSHOT_SECONDS", 0.0)
    async with admin(postgres) as old:
        await old.script("SET application_name='dump'; BEGIN ISOLATION LEVEL REPEATABLE READ")
        pid = await old.value("SELECT pg_backend_pid()")
        finding = said(await found(postgres.url("checked"), tmp_path), "a transaction is open for")
        assert finding.level is Level.WARNING
        assert f"pid {pid}, dump" in finding.message
        assert str(pid) in finding.advice


@pytest.mark.slow
async def test_why_a_database_is_not_reached_is_told_and_no_password(strict: Server, tmp_path: Path) -> None:
    port = strict.settings["port"]
    url = f"postgresql://chats:{PASSWORD}@127.0.0.1:{port}/postgres?schema=chats"
    async with admin(strict) as sql:
        await sql.script("CREATE ROLE chats LOGIN PASSWORD 's3cret/word'")
        await sql.script("GRANT CREATE ON DATABASE postgres TO chats")
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    cases = {
        url.replace(f":{port}", f":{closed}"): ("cannot be reached", "check the host"),
        url.replace("/postgres?", "/nothing?"): ("does not exist", "CREATE DATABASE"),
        url.replace(PASSWORD, "wr0ng"): ("password authentication failed", "PGPASSFILE"),
        url.replace("chats:", "nobody:"): ("authentication failed", "PGPASSFILE"),
        f"{url}&sslmode=verify-full": ("root.crt", "sslrootcert"),
        f"{url}&gsslib=none": ("gsslib", "parameters of the URL"),
        f"postgresql://chats@127.0.0.1:{port}/postgres?password={PASSWORD}x": (
            "authentication",
            "PGPASSFILE",
        ),
    }
    for where, (message, advice) in cases.items():
        [finding] = await found(where, tmp_path)
        assert finding.level is Level.ERROR
        assert message in finding.message
        assert advice in finding.advice
        for secret in (PASSWORD, "s3cret/word", "wr0ng"):
            assert secret not in f"{finding.message} {finding.advice}"


def test_what_the_driver_says_is_not_among_what_programs_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"postgresql://chats@127.0.0.1:{free.getsockname()[1]}/chats"
    config = tmp_path / "asyncchatd.toml"
    config.write_text(configuration(store=closed))
    command = [sys.executable, "-m", "asyncchatd", "check", "--connect", "--json", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    messages = [each["message"] for each in json.loads(done.stdout)]
    assert [each for each in messages if "PostgreSQL cannot be reached: Connection refused" in each]
    assert not done.stderr


@pytest.mark.slow
async def test_a_password_that_is_replaced_in_its_file_serves_the_next_connection(
    strict: Server, tmp_path: Path
) -> None:
    url = f"postgresql://turns@127.0.0.1:{strict.settings['port']}/postgres?schema=turns"
    file = tmp_path / "password"
    async with admin(strict) as sql:
        await sql.script("CREATE ROLE turns LOGIN PASSWORD 'fir/st'")
        await sql.script("GRANT CREATE ON DATABASE postgres TO turns")
        file.write_text("fir/st\n")
        store = PostgresStore(url, directory=tmp_path, password_file=file)
        await store.open()
        try:
            await sql.script("ALTER ROLE turns PASSWORD 'second'")
            await sql.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename='turns'")
            words = await refusal(store)
            while "authentication" not in words:  # it is told first that the connection was ended
                words = await refusal(store)
            assert "password authentication failed" in words
            assert "fir/st" not in words
            file.write_text("second\n")
            assert (await store.counts(now=NOON)).leased == 0
        finally:
            await store.close()


async def refusal(store: PostgresStore) -> str:
    with pytest.raises(StoreUnwritable) as refused:
        await store.counts(now=NOON)
    return str(refused.value)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "does not hold the password on its only line"),
        ("one\ntwo\n", "does not hold the password on its only line"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
async def test_a_file_without_a_password_is_named(
    written: str | bytes | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    if written is not None:
        file.write_bytes(written if isinstance(written, bytes) else written.encode())
    store = PostgresStore("postgresql://u@127.0.0.1/db", directory=tmp_path, password_file=file)
    with pytest.raises(StoreUnwritable, match=r"^store\.password_file: .*" + words):
        await store.open()
    [finding] = await found("postgresql://u@127.0.0.1/db", tmp_path, password_file=file)
    assert (finding.level, finding.key) == (Level.ERROR, "store.password_file")
    assert words in finding.message


@pytest.mark.parametrize("rest", ["chats@localhost/chats", "/chats@localhost/chats"])
def test_a_url_without_its_slashes_is_told_so(tmp_path: Path, rest: str) -> None:
    with pytest.raises(StoreError, match="two slashes are missing: postgresql://USER@HOST/DATABASE"):
        PostgresStore(f"postgresql:{rest}", directory=tmp_path)


@pytest.mark.parametrize("url", ["postgresql://u:pw@h/db", "postgresql://u@h/db?password=pw"])
def test_of_two_passwords_nobody_guesses_which_one_counts(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"store\.password_file: store\.url holds a password too"):
        place_of(url, tmp_path / "password")


@pytest.mark.slow
async def test_tls_is_seen_and_whether_the_certificate_was_checked(strict: Server, tmp_path: Path) -> None:
    url = f"postgresql://postgres@127.0.0.1:{strict.settings['port']}/postgres?schema=chats"
    async with admin(strict) as sql:
        if await sql.value("SELECT current_setting('ssl')") == "off":
            pytest.skip(
                "this PostgreSQL is built without TLS: install Debian's, or name one with ASYNCCHATD_POSTGRESQL"
            )
        await sql.script("ALTER ROLE postgres PASSWORD 'boss'")
    url = url.replace("postgres@", "postgres:boss@")
    assert said(await found(f"{url}&sslmode=disable", tmp_path), "stays on this host").level is Level.OK
    assert said(await found(f"{url}&sslmode=require", tmp_path), "was not checked").level is Level.WARNING
    checked = f"{url}&sslmode=verify-full&sslrootcert={strict.directory}/crt"
    findings = await found(checked, tmp_path)
    assert said(findings, "the certificate checked").level is Level.OK
    assert said(findings, "synchronous_commit are on").level is Level.OK


def test_a_text_with_the_password_of_the_address_is_shown_without() -> None:
    dsn = place_of("postgresql://u:p%40ss@h/db?password=other").address.dsn
    assert checking.without_secrets("p%40ss p@ss other", dsn) == "*** *** ***"


async def test_who_may_not_connect_is_told_the_right(postgres: Server, tmp_path: Path) -> None:
    async with admin(postgres) as sql:
        await sql.run("CREATE DATABASE closed")
        await sql.script("REVOKE CONNECT ON DATABASE closed FROM public; CREATE ROLE outside LOGIN")
        url = postgres.url("chats").replace("postgres@/postgres", "outside@/closed")
        [finding] = await found(url, tmp_path)
        await sql.script("DROP ROLE outside")
        await sql.run("DROP DATABASE closed")
    assert "permission denied for database" in finding.message
    assert finding.advice.startswith("GRANT CONNECT ON DATABASE")


async def test_who_says_that_there_is_a_pooler_where_there_is_none_is_told(
    postgres: Server, tmp_path: Path
) -> None:
    finding = said(await found(f"{postgres.url('checked')}&presence=off", tmp_path), "no pooler is between")
    assert finding.level is Level.WARNING


async def test_a_pooler_is_found_by_the_processes_that_serve_it(postgres: Server, tmp_path: Path) -> None:
    """Two connections that are served by whichever of two processes is free, as a pooler has it."""
    async with admin(postgres) as one, admin(postgres) as other:
        free = [one, other]

        class Pooled:
            def __init__(self) -> None:
                self._mine: Connection | None = None

            async def script(self, sql: str) -> None:
                if sql == "BEGIN":
                    self._mine = free.pop()
                await (self._mine or free[-1]).script(sql)
                if sql == "ROLLBACK":
                    assert self._mine is not None
                    free.append(self._mine)
                    self._mine = None

            async def value(self, sql: str) -> object:
                return await (self._mine or free[-1]).value(sql)

        url = postgres.url("checked")

        async def look(parameters: str) -> Finding:
            place = place_of(url + parameters)
            return await checking.pooler(cast(Connection, Pooled()), cast(Connection, Pooled()), place)

        for more, words in (
            ("", "&presence=off&statement_cache=off"),
            ("&presence=off", "add &statement_cache=off"),
        ):
            finding = await look(more)
            assert finding.level is Level.ERROR
            assert words in finding.advice
        for each in free:
            await each.script("SET enable_seqscan=on; SET lock_timeout=0")
        finding = await look("&presence=off&statement_cache=off")
        assert finding.level is Level.WARNING
        assert finding.message.endswith("has not got what it drops: lock_timeout, enable_seqscan")
        for each in free:
            await each.script("SET enable_seqscan=off; SET lock_timeout='2s'")
        assert (await look("&presence=off&statement_cache=off")).level is Level.OK


@pytest.mark.parametrize(
    ("parameters", "words"),
    [("schema=a-b", "schema=a-b"), ("hold=soon", "hold=soon"), ("presence=perhaps", "presence=perhaps")],
)
def test_a_parameter_that_is_wrong_is_named(parameters: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=words):
        PostgresStore(f"postgresql://h/db?{parameters}", directory=tmp_path)
