"""The database as `asyncchatd check --connect` finds it, before a store is opened in it. Changes nothing."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from urllib.parse import parse_qsl, unquote, urlsplit

from asyncchatd import __version__
from asyncchatd.model import Finding, NodeState, durations, findings, living, shared_names
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.moving import has_moved
from asyncchatd.stores.postgres.address import Place
from asyncchatd.stores.postgres.clock import ROUND_TRIPS
from asyncchatd.stores.postgres.shared import nodes, schema, settings
from asyncchatd.stores.postgres.wire import BY_INDEX, SETTINGS, Connection, connect
from asyncchatd.stores.sealing import Sealing, Turning

KEY = "store.url"

OLDEST_VERSION = 14
CONNECTIONS = 6
"""Of one node."""

OLD_SNAPSHOT_SECONDS = 300.0
"""What a transaction sees that is open for so long keeps all that changed since from being cleared away."""

SLOW_SECONDS = 0.005
"""Round trips up to this were tried."""

OFF_SECONDS = 1.0
"""A smaller difference of clocks is nothing to speak of."""

NO_HOST = "check the host and the port, and that PostgreSQL listens there (listen_addresses, pg_hba.conf)"

ADVICE = {
    "28P01": "correct the user and the password: store.password_file, PGPASSFILE or the URL",
    "28000": "let this user and host in with a line of pg_hba.conf, or name another user",
    "42501": "GRANT CONNECT ON DATABASE ... to this user",
    "3D000": "create it with CREATE DATABASE, or name another one",
    "53300": "raise max_connections, or end connections that nobody needs",
    "57P03": "wait until it has started",
}
"""What to do about an error of the server, by its SQLSTATE."""

OWN_NAME = "give each its own: node=NAME in the URL, or another host name"

PARAMETERS = ", ".join(
    ["search_path", *sorted((SETTINGS | BY_INDEX).keys() - {"application_name", "timezone"})]
)
"""What a connection sets at its start, and a pooler does not know."""


async def look(
    place: Place, keys: Sequence[Sealing], alike: Mapping[str, str], answers: Callable[[], Awaitable[bool]]
) -> AsyncIterator[Finding]:
    """Whether a store can be opened there, and what is to be known of the database. `alike`: what must be the same for
    all nodes, as it is here. `answers`: whether a daemon of this configuration runs, which has connections already."""
    # A pooler would hand statements of this check to connections that do not know them.
    address = replace(place.address, statement_cache=False)
    try:
        connection = await connect(address)
    except StoreError as error:
        yield _unreachable(place, error)
        return
    try:
        second = None
        with suppress(StoreError):
            second = await connect(address)
        try:
            runs = await answers()
            async for finding in _findings(connection, second, place, keys, alike, runs):
                yield finding
        finally:
            if second is not None:
                await second.close()
    except StoreError as error:
        message = f"{place.shown} could not be looked at: {without_secrets(str(error), place.address.dsn)}"
        yield findings.error(KEY, message, "see the log of PostgreSQL")
    finally:
        await connection.close()


async def _findings(
    connection: Connection,
    second: Connection | None,
    place: Place,
    keys: Sequence[Sealing],
    alike: Mapping[str, str],
    runs: bool,
) -> AsyncIterator[Finding]:
    yield await _server(connection, place)
    yield await _encryption(connection, place)
    if (standing := await _standing(connection)) is not None:
        yield standing
    async for finding in _schema(connection, place, keys, alike, runs):
        yield finding
    for part in (_durability, _standbys, _vacuum, _snapshots):
        async for finding in part(connection):
            yield finding
    yield await _room(connection, runs)
    yield await pooler(connection, second, place)
    async for finding in _times(connection):
        yield finding


# -- the way there -------------------------------------------------------------------------------------


def _unreachable(place: Place, error: StoreError) -> Finding:
    cause = error.__cause__
    code = str(getattr(cause, "sqlstate", "") or "")
    words = without_secrets(str(error), place.address.dsn)
    key, named, rest = words.partition(": ")
    if named and key == "store.password_file":
        return findings.error(key, rest, "write the password there, and nothing else")
    if named and key == KEY:
        return findings.error(key, rest, "correct the file, or name another one")
    if code == "08P01" and "startup parameter" in words:
        advice = f"a pooler: ignore_startup_parameters = {PARAMETERS}; docs/nodes.md says what else it needs"
    elif code:
        advice = ADVICE.get(code, "see the log of PostgreSQL")
    elif isinstance(cause, ssl.SSLError) or any(word in words for word in _OF_TLS):
        advice = "correct sslmode and sslrootcert in the URL, or the certificate of the server"
    elif isinstance(cause, ValueError) and not isinstance(
        cause, OSError
    ):  # the driver does not understand the URL
        advice = "correct the parameters of the URL"
    elif isinstance(cause, FileNotFoundError):
        advice = "check that the directory of the socket (host) is there, and the files: sslrootcert, sslcert, sslkey"
    elif "password" in words:
        advice = ADVICE["28P01"]
    else:
        advice = NO_HOST
    return findings.error(KEY, f"{place.shown}: {words}", advice)


_OF_TLS = ("TLS", "SSL", "sslrootcert", "certificate")


def without_secrets(text: str, dsn: str) -> str:
    """A text without the password of this address, should it be in it."""
    given = dict(parse_qsl(urlsplit(dsn).query)).get("password")
    in_url = urlsplit(dsn).password
    for secret in filter(None, (given, in_url, unquote(in_url or ""))):
        text = text.replace(secret, "***")
    return text


async def _server(connection: Connection, place: Place) -> Finding:
    number = int(await connection.value("SELECT current_setting('server_version_num')::int"))
    version = f"{number // 10_000}.{number % 10_000}"
    if number < OLDEST_VERSION * 10_000:
        message = f"{place.shown} is PostgreSQL {version}"
        return findings.error(KEY, message, f"use PostgreSQL {OLDEST_VERSION} or later")
    return findings.ok(KEY, f"{place.shown} answers, PostgreSQL {version}")


async def _encryption(connection: Connection, place: Place) -> Finding:
    row = await connection.row(
        "SELECT host(inet_server_addr()), (SELECT version FROM pg_stat_ssl WHERE pid=pg_backend_pid() AND ssl)"
    )
    server, version = row or (None, None)
    if server is None:
        return findings.ok(KEY, "the connection is a Unix socket of this host")
    if version is None:
        message = f"the connection to {server} is not encrypted"
        if server == "::1" or server.startswith("127."):
            return findings.ok(KEY, f"{message}, and stays on this host")
        return findings.warning(KEY, message, "add &sslmode=verify-full&sslrootcert=FILE to the URL")
    checked = dict(parse_qsl(urlsplit(place.address.dsn).query)).get("sslmode") in (
        "verify-ca",
        "verify-full",
    )
    if not checked:
        message = f"the connection is encrypted ({version}), but whose it is was not checked"
        return findings.warning(KEY, message, "add &sslmode=verify-full&sslrootcert=FILE to the URL")
    return findings.ok(KEY, f"the connection is encrypted ({version}), and the certificate checked")


async def _standing(connection: Connection) -> Finding | None:
    row = await connection.row("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")
    standby, read_only = row or (False, "off")
    if standby:
        message = "this server is a standby: nothing can be written"
        return findings.error(KEY, message, "name all servers and add &target_session_attrs=read-write")
    if read_only == "on":
        message = "transactions of this user are read-only"
        return findings.error(
            KEY, message, "ALTER ROLE ... RESET default_transaction_read_only, or of the database"
        )
    return None


# -- the schema ----------------------------------------------------------------------------------------


async def _schema(
    connection: Connection, place: Place, keys: Sequence[Sealing], alike: Mapping[str, str], runs: bool
) -> AsyncIterator[Finding]:
    name = place.address.schema
    found = await schema.look_at(connection, name)
    if found.refusal is not None:
        yield findings.error(KEY, *found.refusal)
    elif not found.there:
        yield findings.ok(KEY, f"the schema {name} will be made at the next start, empty: {NEW_SCHEMA}")
    elif not found.made:
        yield findings.ok(
            KEY, f"the schema {name} is empty and will be filled at the next start: {NEW_SCHEMA}"
        )
    else:
        async for finding in _tables(connection, place, keys, alike, runs):
            yield finding


NEW_SCHEMA = "expected at the first start only; else the sessions of before are in another schema or database"


async def _tables(
    connection: Connection, place: Place, keys: Sequence[Sealing], alike: Mapping[str, str], runs: bool
) -> AsyncIterator[Finding]:
    name = place.address.schema
    version, known = (await schema.version_of(connection)).seen, len(schema.MIGRATIONS)
    if version < known:
        yield findings.ok(KEY, f"the schema {name} goes from version {version} to {known} at the next start")
    elif (moved := await connection.value("SELECT moved FROM store")) is not None:
        yield findings.error(KEY, *has_moved(f"the schema {name}", moved))
    else:
        yield findings.ok(KEY, f"the schema {name} has version {version}")
    if version == known:
        yield await _keys(connection, Turning(keys))
    async for finding in _peers(connection, alike, None if runs else place.node):
        yield finding


async def _keys(connection: Connection, sealing: Turning) -> Finding:
    """Whether all is under the first key, and what a change of it waits for."""
    key, first = "store.keys_file", sealing.own[0]
    if (why := await settings.disagreement(connection, sealing)) is not None:
        return findings.error(key, why, "give all nodes the same file: docs/nodes.md")
    found = await settings.keys(connection)
    if first is not None and first != found.in_force:
        waits = _named(await settings.without_first(connection, first))
        awaited = f"and waits for {waits}" if waits else "and will be once a node runs"
        return findings.note(key, f"the first key, {first}, is not in force yet, {awaited}")
    if found.former:
        former = ", ".join(each or "none" for each in found.former)
        waits = _named(await settings.silent(connection))
        awaited = f"; it waits for {waits}" if waits else ""
        return findings.note(
            key, f"what was under the key of before, {former}, is sealed anew: keep its line{awaited}"
        )
    if found.in_force is None:
        return findings.ok(key, "secure keys stand in the clear")
    rest = ", no other line is needed" if len(sealing.own) > 1 else ""
    return findings.ok(key, f"all secure keys are under the first key, {found.in_force}{rest}")


def _named(those: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} (number {number})" for name, number in those)


async def _peers(
    connection: Connection, alike: Mapping[str, str], to_come: str | None
) -> AsyncIterator[Finding]:
    """Who else is there. `to_come`: the name of this node, where it does not run yet."""
    there = await nodes.there(connection)
    words = ", ".join(f"{each.name} ({each.version}, number {each.number}, {each.state})" for each in there)
    yield findings.ok(KEY, f"nodes that share the schema: {words or 'none now'}")
    if silent := [each.name for each in there if each.state is NodeState.SILENT]:
        message = f"of {', '.join(silent)} nobody has heard for {nodes.SILENT_SECONDS:g} s"
        yield findings.note(KEY, f"{message}; one that is starting is heard within seconds: look again")
    present = {each.version for each in there if each.state is NodeState.PRESENT}
    if others := sorted(present - {__version__}):
        message = f"nodes of another version use the schema: {', '.join(others)}; this is {__version__}"
        yield findings.warning(KEY, message, "install one version on all of them")
    for name, count in shared_names(living(there)).items():
        message = f"{count} nodes that are there have the name {name}"
        yield findings.warning(KEY, message, OWN_NAME)
    if to_come in {each.name for each in there if each.state is NodeState.PRESENT}:
        message = f"a node named {to_come} is there already, and this one does not run"
        yield findings.warning(KEY, message, OWN_NAME)
    for each in there:
        if each.state is not NodeState.GONE:
            whose = (
                each.name if each.state is NodeState.PRESENT else f"{each.name}, which is {each.state} now"
            )
            for key in sorted(alike.keys() & each.settings.keys()):
                if alike[key] != each.settings[key]:
                    message = f"{alike[key]} here, {each.settings[key]} in the configuration of {whose}"
                    yield findings.error(key, message, "give all nodes the same")


# -- what the server does for durability, and to keep house ---------------------------------------------


async def _durability(connection: Connection) -> AsyncIterator[Finding]:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    values = [await connection.value("SELECT current_setting($1)", name) for name in names]
    wrong = [name for name, value in zip(names, values, strict=True) if value == "off"]
    if wrong:
        advice = "switch it on: else a crash of the server loses pushes that were answered, and keys"
        yield findings.warning(KEY, f"{', '.join(wrong)}: off in this server", advice)
    else:
        yield findings.ok(KEY, "fsync, full_page_writes and synchronous_commit are on")


async def _standbys(connection: Connection) -> AsyncIterator[Finding]:
    standbys = int(await connection.value("SELECT count(*) FROM pg_stat_replication"))
    names = await connection.value("SELECT current_setting('synchronous_standby_names')")
    commit = await connection.value("SELECT current_setting('synchronous_commit')")
    if standbys and (not names or commit == "local"):
        message = (
            f"{standbys} standby{'s follow' if standbys > 1 else ' follows'} this server, none synchronously"
        )
        advice = "set synchronous_standby_names: else a failover loses pushes that were answered, and keys"
        yield findings.warning(KEY, message, advice)
    elif standbys:
        yield findings.ok(KEY, f"standbys follow this server: {standbys}, with synchronous ones among them")


async def _vacuum(connection: Connection) -> AsyncIterator[Finding]:
    if await connection.value("SELECT current_setting('autovacuum')") == "off":
        message = "autovacuum is off in this server: tables and indexes grow, and claims get slow"
        yield findings.warning(KEY, message, "switch it on")


async def _snapshots(connection: Connection) -> AsyncIterator[Finding]:
    oldest = await nodes.oldest_snapshot(connection)
    if oldest is not None and oldest.seconds > OLD_SNAPSHOT_SECONDS:
        message = (
            f"a transaction is open for {durations.in_words(oldest.seconds)}: pid {oldest.pid},"
            f" {oldest.application or 'nameless'}; nothing that changed since is cleared away"
        )
        advice = f"end it, if nobody needs it: SELECT pg_terminate_backend({oldest.pid})"
        yield findings.warning(KEY, message, advice)
    row = await connection.row("SELECT pg_has_role('pg_read_all_stats', 'USAGE'), quote_ident(current_user)")
    sees, user = row or (True, "")
    if not sees:
        message = (
            "for how long others' transactions are open is not seen here, nor by alerts: GRANT pg_read_all_stats"
            f" TO {user}"
        )
        yield findings.note(KEY, message)


async def _room(connection: Connection, runs: bool) -> Finding:
    row = await connection.row(_ROOM)
    assert row is not None
    free = int(row[0])
    message = f"{max(free, 0)} connections are free, and a node has {CONNECTIONS}"
    if runs or free >= CONNECTIONS:
        return findings.ok(KEY, message)
    return findings.error(KEY, message, "raise max_connections, or the limit of the role or database")


# The two connections of this check are counted among those that are in use.
_ROOM = """SELECT 2 + least(
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
        - (SELECT count(*) FROM pg_stat_activity WHERE usesysid IS NOT NULL),
    (SELECT CASE WHEN rolconnlimit<0 THEN 1000000 ELSE rolconnlimit
        - (SELECT count(*) FROM pg_stat_activity WHERE usename=current_user) END
        FROM pg_roles WHERE rolname=current_user),
    (SELECT CASE WHEN datconnlimit<0 THEN 1000000 ELSE datconnlimit
        - (SELECT count(*) FROM pg_stat_activity WHERE datname=current_database()) END
        FROM pg_database WHERE datname=current_database()))"""


# -- between here and there ----------------------------------------------------------------------------


async def pooler(connection: Connection, second: Connection | None, place: Place) -> Finding:
    """Whether a transaction gets another connection than the one before. While another one runs, a pooler has given
    away what the first one had."""
    first = await _backend(connection)
    later = {first}
    if second is not None:
        await second.script("BEGIN")
        later.add(first if await _backend(second) != first else 0)
        later.add(await _backend(connection))
        await second.script("ROLLBACK")
    return _pooled(place, await connection.value(_DROPPED)) if len(later) > 1 else _direct(place)


async def _backend(connection: Connection) -> int:
    return int(await connection.value("SELECT pg_backend_pid()"))


# What the user has to have there, in the order of docs/nodes.md. As PostgreSQL has it by itself it is 0 or on.
_DROPPED = """SELECT string_agg(name, ', ' ORDER BY place) FROM pg_settings JOIN unnest(ARRAY['statement_timeout',
    'lock_timeout', 'idle_in_transaction_session_timeout', 'enable_seqscan', 'enable_bitmapscan', 'jit'])
    WITH ORDINALITY AS wanted(name, place) USING (name) WHERE setting IN ('0', 'on')"""


def _direct(place: Place) -> Finding:
    message = "each connection has a server process to itself, no pooler is between"
    if not place.presence:
        message = f"{message}; with presence=off what a killed node had claimed waits for hold all the same"
        return findings.warning(KEY, message, "take presence=off out of the URL, where there never is one")
    return findings.ok(KEY, message)


def _pooled(place: Place, dropped: str | None) -> Finding:
    lacking = "".join(
        f"&{name}=off"
        for name, on in (("presence", place.presence), ("statement_cache", place.address.statement_cache))
        if on
    )
    if lacking:
        message = "a pooler gives each transaction another connection"
        return findings.error(KEY, message, f"add {lacking} to the URL, or go around it")
    if dropped:
        message = f"a pooler is between, and this user has not got what it drops: {dropped}"
        return findings.warning(KEY, message, "ALTER ROLE ... SET each: docs/nodes.md, Behind a pooler")
    return findings.ok(KEY, "a pooler is between, and the URL says so")


async def _times(connection: Connection) -> AsyncIterator[Finding]:
    trip, off = float("inf"), 0.0
    for _ in range(ROUND_TRIPS):
        began, local = time.monotonic(), time.time()
        said = await nodes.clock(connection)
        took = time.monotonic() - began
        if took < trip:
            trip, off = took, local + took / 2 - said
    message = f"a round trip takes {trip * 1000:.1f} ms"
    if trip > SLOW_SECONDS:
        yield findings.note(KEY, f"{message}; more than {SLOW_SECONDS * 1000:.0f} ms was not tried")
    else:
        yield findings.ok(KEY, message)
    if abs(off) >= OFF_SECONDS:
        way = "ahead of" if off > 0 else "behind"
        far = f"{durations.in_words(abs(off))} {way}"
        yield findings.note(KEY, f"the clock of this host is {far} the database's, which all nodes go by")
