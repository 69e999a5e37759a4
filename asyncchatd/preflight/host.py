"""This host as `asyncchatd check --connect` finds it: the store's directory, and the addresses to listen on."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import aiohttp

from asyncchatd.config import ControlSettings, Settings
from asyncchatd.listening import affordable_connections, bind_problem
from asyncchatd.preflight import findings
from asyncchatd.preflight.findings import Finding
from asyncchatd.stores import NEW_STORE, sealings
from asyncchatd.stores.sqlite import is_held, looks_like_sqlite

LITTLE_SPACE = 50_000_000
ENOUGH_SPACE = 1_000_000_000
"""Bytes free: below the first the store soon cannot be written."""


async def store(settings: Settings) -> AsyncIterator[Finding]:
    """Whether the store's file can be made or written. Other stores are left to their own first contact."""
    file = settings.store.file(settings.directory)
    if file is None:
        return
    key = "store.url"
    owner = "the user the daemon runs as"
    existing = next(directory for directory in file.parents if directory.exists())
    if existing != file.parent and os.access(existing, os.W_OK | os.X_OK):
        yield findings.ok(key, f"{file} and its directory will be made at the next start, empty: {NEW_STORE}")
    elif not file.parent.is_dir():
        message = f"the directory {file.parent} does not exist"
        yield findings.error(key, message, f"make it, owned by {owner}")
    elif not os.access(file.parent, os.W_OK | os.X_OK):
        message = f"the directory {file.parent} cannot be written to"
        yield findings.error(key, message, f"give it to {owner}, or run this check as that user")
    elif not file.exists():
        yield findings.ok(key, f"{file} will be made at the next start, empty: {NEW_STORE}")
    elif not file.is_file() or not os.access(file, os.R_OK | os.W_OK):
        message = f"{file} cannot be read and written"
        yield findings.error(key, message, f"give it to {owner}, or run this check as that user")
    elif not looks_like_sqlite(file):
        yield findings.error(key, f"{file} is no SQLite file", "name another one")
    elif lacking := _lacking_key(settings, file):
        message = f"the secure keys in {file} are encrypted with the key {lacking}, which is not given"
        yield findings.error("store.keys_file", message, "add its line to the file, or name another database")
    elif is_held(file) and not await _answers_as_daemon(settings.control):
        message = f"{file} is held by another process, which does not answer at control.listen"
        advice = "stop that asyncchatd, or name another database: fuser -v shows who has the file open"
        yield findings.warning(key, message, advice)
    elif is_held(file):
        yield findings.ok(key, f"{file} is held by the daemon that runs, {_size(_size_of_store(file))}")
    else:
        yield findings.ok(key, f"{file} can be written to, {_size(_size_of_store(file))}")
    if existing.is_dir():
        yield _free_space("store", existing, file)


def _lacking_key(settings: Settings, file: Path) -> str | None:
    """The id of the key a database is under, when the configuration has not got it."""
    try:
        # Immutable: not even the log beside it is touched, which a daemon may be writing.
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)) as db:
            [[key_id]] = db.execute("SELECT key_id FROM sealing").fetchall()
        given = {None, *(each.key_id for each in sealings(settings.store_keys))}
    except (sqlite3.Error, ValueError):
        return None  # what is wrong with it is told at the start
    return None if key_id in given else str(key_id)


def _free_space(key: str, directory: Path, file: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    message = f"{_size(free)} free on the disk of {file}"
    advice = "make room: when the disk is full pushes are answered with 503 and chats are not pinged"
    if free < LITTLE_SPACE:
        return findings.error(key, message, advice)
    # A store grows by the transactions since its last checkpoint, beside a copy made by a new version.
    if free < max(ENOUGH_SPACE, 2 * _size_of_store(file)):
        return findings.warning(key, message, advice)
    return findings.ok(key, message)


def _size_of_store(file: Path) -> int:
    parts = (file, file.with_name(f"{file.name}-wal"))
    return sum(part.stat().st_size for part in parts if part.is_file())


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def files(settings: Settings) -> Iterator[Finding]:
    """Whether the file descriptors suffice for the connections. Under systemd the unit's limit counts, not that of the
    shell in which this is asked."""
    for key, most in (
        ("receiver.max_connections", settings.receiver.max_connections),
        ("control.max_connections", settings.control.max_connections),
    ):
        affordable, message, advice = affordable_connections(most)
        if affordable < most:
            yield findings.warning(key, message, advice)


async def listening(settings: Settings) -> AsyncIterator[Finding]:
    """Whether the addresses are free, or in use by a daemon that runs already."""
    addresses = {"receiver.listen": settings.receiver.listen, "control.listen": settings.control.listen}
    problems = {key: await asyncio.to_thread(bind_problem, address) for key, address in addresses.items()}
    in_use = [key for key, number in problems.items() if number == errno.EADDRINUSE]
    running = "control.listen" in in_use and await _answers_as_daemon(settings.control)
    for key, address in addresses.items():
        match problems[key]:
            case None:
                yield findings.ok(key, f"{address} is free")
            case errno.EADDRINUSE if running:
                yield findings.ok(key, f"{address} is in use, and a daemon runs")
            case errno.EADDRINUSE:
                message = f"{address} is in use by something else"
                yield findings.error(
                    key, message, "see ss -ltnxp; asyncchatd.socket holds it while the daemon is stopped"
                )
            case errno.EADDRNOTAVAIL:
                message = f"{address} is not an address of this host"
                yield findings.error(
                    key, message, "use one that `ip address` shows, or :port for all of them"
                )
            case errno.EACCES:
                message = f"{address} may not be used by this user"
                yield findings.error(key, message, "use a port above 1023, or the systemd socket unit")
            case number:
                message = f"{address} cannot be listened on: {os.strerror(number)}"
                yield findings.error(key, message, "correct the address")


async def _answers_as_daemon(control: ControlSettings) -> bool:
    listen, scheme = control.listen, "https" if control.tls_certificate else "http"
    connector = aiohttp.UnixConnector(listen.path) if listen.path else aiohttp.TCPConnector()
    authority = str(listen) if listen.host else f"localhost:{listen.port or 80}"
    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            # Nothing secret is sent, so whose certificate it is does not matter.
            session.get(f"{scheme}://{authority}/healthz", allow_redirects=False, ssl=False) as response,
        ):
            return response.status in {200, 503}
    except (aiohttp.ClientError, OSError) as error:
        # Who asks for a certificate hangs up on us, but has shaken hands before.
        return control.tls_client_ca is not None and not isinstance(error, aiohttp.ClientConnectorError)
