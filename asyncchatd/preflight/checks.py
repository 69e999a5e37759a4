"""What `asyncchatd check` and `asyncchatd check --connect` find out, as plain results for the CLI to print.

`check` looks at the file alone: what is wrong in it, and what is valid but probably not meant. `connect`
looks at the world the file describes: names, health pages, GMS nodes, the store's directory and the
addresses to listen on. It changes nothing there and touches no chat. Every finding that is not fine says
what to do next.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import socket
import sqlite3
import ssl
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from asyncchatd.config import (
    HOURS,
    ChatServerSettings,
    ConfigError,
    ControlSettings,
    Listen,
    Settings,
    duration_text,
    load,
)
from asyncchatd.listening import certificates, tls
from asyncchatd.model import Ms
from asyncchatd.stores import sealings
from asyncchatd.stores.sqlite import looks_like_sqlite
from asyncchatd.watcher import REDIRECTS, HealthPages, Page, Unreachable, Unreadable, Unseen, identity
from asyncchatd.wire import HealthPage

LITTLE_SPACE = 50_000_000
ENOUGH_SPACE = 1_000_000_000
"""Bytes free: below the first the store soon cannot be written."""


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    WARNING = "warning"
    """The daemon runs, but probably not as meant."""
    ERROR = "error"
    """The daemon does not start, or cannot do its work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found out."""

    level: Level
    key: str
    """The setting it is about, `gms.nodes[0]`; empty when it is about the file as a whole."""
    message: str
    """What was found."""
    advice: str = ""
    """What to do next; empty when it is fine."""

    @property
    def area(self) -> str:
        """The heading it belongs under, in the order of `AREAS`."""
        section = re.split(r"[.\[]", self.key, maxsplit=1)[0]
        return AREAS.get(section, AREAS[""])


AREAS = {
    "": "Configuration",
    "receiver": "Listening",
    "control": "Listening",
    "store": "Store",
    "gms": "GMS",
    "chat_server": "Chat Servers",
}
"""Headings of a checklist, by section of the configuration."""


def check(path: Path) -> list[Finding]:
    """Everything that can be said of the configuration without leaving this host's files."""
    try:
        settings = load(path)
    except ConfigError as error:
        return [
            _error(
                problem.key,
                f"{path}: " * (not problem.key)
                + f"line {problem.line}: " * (problem.line is not None)
                + problem.message,
                f"did you mean {problem.nearest}?" if problem.nearest else "correct it and check again",
            )
            for problem in error.problems
        ]
    findings = list(_doubts(settings))
    if not any(finding.level is Level.ERROR for finding in findings):
        findings.insert(0, _ok("", f"{path} is valid"))
    return findings


async def connect(settings: Settings) -> list[Finding]:
    """Everything that can be said of the hosts, directories and addresses the configuration names.

    Takes no longer than the time-outs of the configuration, a few servers at a time.
    """
    at_once = asyncio.Semaphore(20)

    async def collected(findings: AsyncIterator[Finding]) -> list[Finding]:
        async with at_once:
            return [finding async for finding in findings]

    pages: dict[int, HealthPage] = {}
    async with aiohttp.ClientSession() as session, HealthPages() as health:
        found = await asyncio.gather(
            collected(_store(settings)),
            collected(_listening(settings)),
            *(collected(_node(settings, index, session)) for index in range(len(settings.gms.nodes))),
            *(
                collected(_chat_server(settings, index, health, pages))
                for index in range(len(settings.chat_servers))
            ),
        )
    return [finding for findings in found for finding in findings] + list(_same_server(settings, pages))


def _ok(key: str, message: str) -> Finding:
    return Finding(Level.OK, key, message)


def _warning(key: str, message: str, advice: str) -> Finding:
    return Finding(Level.WARNING, key, message, advice)


def _error(key: str, message: str, advice: str) -> Finding:
    return Finding(Level.ERROR, key, message, advice)


# What is valid but probably not meant.


def _doubts(settings: Settings) -> Iterator[Finding]:
    yield from _doubts_of_secrets(settings)
    yield from _doubts_of_gms(settings)
    lease, timeout = settings.restoration.lease, settings.gms.timeout
    if lease <= timeout:
        yield _warning(
            "restoration.lease",
            f"{duration_text(lease)} is over before gms.timeout, {duration_text(timeout)}",
            "make it longer than gms.timeout, else a session may be claimed again while its ping waits",
        )
    if settings.ping.interval > 12 * HOURS:
        yield _warning(
            "ping.interval",
            f"{duration_text(settings.ping.interval)} is near Chat Server's flex-push-timeout of, often, 24h",
            "make it far shorter than flex-push-timeout, such as 30m",
        )
    if settings.store.scheme == "memory":
        yield _warning(
            "store.url",
            "sessions are kept in memory only and are lost at every stop",
            "use sqlite:///asyncchatd.db for anything but trials",
        )
    yield from _doubts_of_listeners(settings)
    if not settings.chat_servers:
        yield _warning(
            "chat_server",
            "no Chat Server is watched, so a lost one is only noticed by what GMS answers",
            "add a [[chat_server]] table for each instance",
        )
    addresses = [server.health_url for server in settings.chat_servers]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
            yield _warning(
                f"chat_server[{index}].health_url",
                f"the same page as that of {settings.chat_servers[addresses.index(address)].name}",
                "give each Chat Server the address of its own health page",
            )


def _doubts_of_secrets(settings: Settings) -> Iterator[Finding]:
    for index, secret in enumerate(settings.receiver.secrets):
        if secret.get_secret_value() == "change-me" or len(secret.get_secret_value()) < 16:
            yield _warning(
                "receiver.secrets",
                f"number {index + 1} of the push secrets is easy to guess",
                "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'",
            )
    file = settings.receiver.secrets_file
    own = len(settings.receiver.secrets) > len(file.values if file else ())
    gms_file = settings.gms.password_file
    inline = own or settings.control.token or settings.gms.headers or (settings.gms.password and not gms_file)
    token_file = settings.control.token_file
    private = [
        ("", settings.path if inline else None),
        ("receiver.secrets_file", file and file.path),
        ("receiver.tls_key", settings.receiver.tls_key),
        ("control.token_file", token_file and token_file.path),
        ("control.tls_key", settings.control.tls_key),
        ("gms.password_file", gms_file and gms_file.path),
        ("gms.client_key", settings.gms.client_key),
        ("store.keys_file", settings.store.keys_file and settings.store.keys_file.path),
    ]
    for key, path in private:
        if path and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield _warning(
                key,
                f"{path} holds secrets and can be read by others than its owner",
                f"chmod go= {path}, or let systemd hand it over as a credential (credential:NAME)",
            )


def _doubts_of_listeners(settings: Settings) -> Iterator[Finding]:
    for name, listener in (("receiver", settings.receiver), ("control", settings.control)):
        for fatal, key, message in tls.doubts(listener, name):
            yield (_error if fatal else _warning)(
                key, message, "replace the file; a running daemon takes a new one over by itself"
            )
        if listener.listen.path is not None and listener.allow and not listener.trusted_proxies:
            message = f"{listener.listen} is a Unix socket, and allow says nothing of those"
            yield _warning(f"{name}.allow", message, "its permissions decide who may use it")
    control = settings.control
    if not (control.listen.local or control.tls_certificate):
        yield _warning(
            "control.listen",
            f"{control.listen} can be reached from other hosts, and the token goes there in the clear",
            "set control.tls_certificate, or listen on 127.0.0.1 behind a proxy that speaks TLS",
        )
    if any(len(token) < 16 for token in control.tokens):
        yield _warning(
            "control.token_file" if control.token_file else "control.token",
            "a token is easy to guess",
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'",
        )


def _doubts_of_gms(settings: Settings) -> Iterator[Finding]:
    gms = settings.gms
    secure = [node.startswith("https:") for node in gms.nodes]
    if "service" not in gms.model_fields_set:
        yield _warning(
            "gms.service",
            f"not set: sessions that come without a service are pinged as {gms.service}",
            "set it to the name of your chat service in GMS",
        )
    if (gms.username or gms.headers) and not all(secure):
        yield _warning(
            "gms.nodes",
            "the password or the extra headers go over the network in the clear",
            "use https:// addresses where GMS offers them",
        )
    if (gms.ca_file or gms.client_cert) and not any(secure):
        yield _warning(
            "gms.ca_file" if gms.ca_file else "gms.client_cert",
            "no node is addressed with https, so this is not used",
            "use https:// addresses in gms.nodes",
        )
    try:
        gms.tls()
        if gms.client_cert:
            until = certificates.of_file(gms.client_cert)
            finding = _good_until(
                "gms.client_cert", str(gms.client_cert), until, "renew it, and reload asyncchatd"
            )
            if finding.level is not Level.OK:
                yield finding
    except (OSError, ValueError) as error:
        yield _error(
            "gms.client_cert" if gms.client_cert else "gms.ca_file",
            f"the TLS files cannot be used: {_why(error)}",
            "they must be PEM files, the key without a password and belonging to the certificate",
        )


def _good_until(key: str, what: str, until: datetime, advice: str) -> Finding:
    trouble = certificates.trouble(until)
    if trouble is None:
        return _ok(key, f"{what} is good until {until:%Y-%m-%d}")
    return (_error if trouble.startswith("expired") else _warning)(key, f"{what} {trouble}", advice)


# What the world says.


async def _node(settings: Settings, index: int, session: aiohttp.ClientSession) -> AsyncIterator[Finding]:
    """Whether a GMS node answers at all, on its base address, where there is no chat to touch."""
    gms = settings.gms
    node, key = gms.nodes[index], f"gms.nodes[{index}]"
    if (unresolved := await _unresolved(key, node, gms.connect_timeout)) is not None:
        yield unresolved
        return
    timeout = aiohttp.ClientTimeout(
        total=gms.timeout.total_seconds(), sock_connect=gms.connect_timeout.total_seconds()
    )
    try:
        async with session.get(
            node, headers=gms.request_headers(), timeout=timeout, ssl=gms.tls(), allow_redirects=False
        ) as response:
            status = response.status
    except (aiohttp.ClientError, OSError, ValueError) as error:
        advice = "check the address and port, the firewall between, and that GMS runs"
        if (untrusted := _tls_error(error)) is not None:
            advice = certificates.advice(untrusted, "gms.ca_file")
        yield _error(key, f"{node} does not answer: {_why(error)}", advice)
        return
    if status in {401, 403, 407}:
        advice = "set gms.username and gms.password_file, or gms.headers, as GMS or its proxy asks"
        yield _warning(key, f"{node} answers, but with status {status}", advice)
    elif status >= 500:
        advice = "look whether GMS runs behind the proxy that answered"
        yield _warning(key, f"{node} answers, but with status {status}", advice)
    else:
        yield _ok(key, f"{node} answers (status {status} on its base address)")
    if node.startswith("https:"):
        until = await certificates.of_server(node, gms.tls(), gms.connect_timeout.total_seconds())
        if until is not None:
            yield _good_until(key, f"the certificate of {node}", until, "have it renewed on the server")


LOOKS = 3
"""At each health page: behind a balancer another process answers the second time, or the third."""

UNREADABLE = "check the path: the server counts as alive, but a restart goes unseen"


async def _chat_server(
    settings: Settings, index: int, health: HealthPages, pages: dict[int, HealthPage]
) -> AsyncIterator[Finding]:
    """Whether a health page says what the watcher needs; a page that was read is put in `pages`."""
    server, key = settings.chat_servers[index], f"chat_server[{index}].health_url"
    limit = settings.watcher.timeout
    if (unresolved := await _unresolved(key, server.health_url, limit)) is not None:
        yield unresolved
        return
    # As the watcher reads it.
    match await health.look(server, limit.total_seconds(), settings.gms.tls()):
        case Page(page):
            pages[index] = page
            for finding in _page_findings(index, server, page):
                yield finding
            if (other := await _another_process(settings, server, health, page)) is not None:
                pids = f"process_os_pid {page.process_os_pid or 'unknown'} and {other}"
                message = f"several processes answer as {server.name}, {pids}"
                advice = "make it the server's own address, not a balancer's: the loss of one may go unseen"
                yield _error(key, message, advice)
        case (
            Unreachable(error=Exception() as error)
            | Unseen(error=Exception() as error)
            | Unreadable(error=Exception() as error)
        ):
            message = f"the health page of {server.name} cannot be reached: {_why(error, limit)}"
            advice = "check that it runs, and the port with the id health in Chat Server's options"
            if (untrusted := _tls_error(error)) is not None:
                advice = certificates.advice(untrusted, "gms.ca_file")
            yield _error(key, message, advice)
        case Unreadable(status=int() as status) if status in REDIRECTS:
            message = f"{server.name} redirects (status {status}) to where the watcher does not follow"
            yield _warning(key, message, "set health_url to where its health page is")
        case Unreadable(status=int() as status):
            message = f"{server.name} answers with status {status} instead of its health page"
            yield _warning(key, message, UNREADABLE)
        case Unreadable(why) | Unreachable(why) | Unseen(why):
            yield _warning(key, f"the page of {server.name} cannot be read: {why}", UNREADABLE)


async def _another_process(
    settings: Settings, server: ChatServerSettings, health: HealthPages, page: HealthPage
) -> str | None:
    """The process id of whoever else answers at the same address, in some more reads."""
    first = identity.observed(page, _now())
    for _ in range(LOOKS - 1):
        match await health.look(server, settings.watcher.timeout.total_seconds(), settings.gms.tls()):
            case Page(page) if not identity.is_one(first, identity.observed(page, _now())):
                return page.process_os_pid or "unknown"
    return None


def _now() -> Ms:
    return round(time.monotonic() * 1000)


def _page_findings(index: int, server: ChatServerSettings, page: HealthPage) -> Iterator[Finding]:
    dbid = f"chat_server[{index}].app_dbid"
    identity = server.app_dbid or page.app_dbid
    if identity is None:
        message = f"the page of {server.name} does not say its app_dbid"
        yield _error(dbid, message, "set it to the server's DBID in the Genesys configuration")
    elif page.app_dbid is not None and page.app_dbid != identity:
        message = f"{identity} is configured, but the page of {server.name} says {page.app_dbid}"
        yield _warning(dbid, message, "remove it, or check that health_url is that of this server")
    if page.process_os_pid is None:
        message = f"the page of {server.name} does not say its process_os_pid"
        advice = "check the path; without it only an outage is noticed, not a quick restart"
        yield _warning(f"chat_server[{index}].health_url", message, advice)
    for setting, counter, value in (
        ("start_counter", server.start_counter, page.started),
        ("uptime_counter", server.uptime_counter, page.uptime),
    ):
        if counter and value is None:
            message = f"the page of {server.name} has no usable counter named {counter}"
            yield _warning(f"chat_server[{index}].{setting}", message, "check its spelling on the page")
    message = (
        f"{server.name}: app_dbid {identity or 'unknown'}, process_os_pid {page.process_os_pid or 'unknown'}"
    )
    yield _ok(f"chat_server[{index}]", message)


def _same_server(settings: Settings, pages: dict[int, HealthPage]) -> Iterator[Finding]:
    """Two entries that turn out to be one Chat Server: the loss of either would be taken for the other's."""
    first: dict[str, str] = {}
    for index, page in sorted(pages.items()):
        server = settings.chat_servers[index]
        identity = server.app_dbid or page.app_dbid
        if identity and first.setdefault(identity, server.name) != server.name:
            message = f"{server.name} has the app_dbid {identity}, as {first[identity]} has"
            advice = "give each entry the health page of its own Chat Server"
            yield _error(f"chat_server[{index}]", message, advice)


async def _store(settings: Settings) -> AsyncIterator[Finding]:
    """Whether the store's file can be made or written. Other stores are left to their own first contact."""
    file = settings.store.file(settings.directory)
    if file is None:
        return
    key = "store.url"
    owner = "the user the daemon runs as"
    existing = next(directory for directory in file.parents if directory.exists())
    if existing != file.parent and os.access(existing, os.W_OK | os.X_OK):
        yield _ok(key, f"{file} and its directory will be made at the first start")
    elif not file.parent.is_dir():
        message = f"the directory {file.parent} does not exist"
        yield _error(key, message, f"make it, owned by {owner}")
    elif not os.access(file.parent, os.W_OK | os.X_OK):
        message = f"the directory {file.parent} cannot be written to"
        yield _error(key, message, f"give it to {owner}, or run this check as that user")
    elif not file.exists():
        yield _ok(key, f"{file} will be made at the first start")
    elif not file.is_file() or not os.access(file, os.R_OK | os.W_OK):
        message = f"{file} cannot be read and written"
        yield _error(key, message, f"give it to {owner}, or run this check as that user")
    elif not looks_like_sqlite(file):
        yield _error(key, f"{file} is no SQLite file", "name another one")
    elif lacking := _lacking_key(settings, file):
        message = f"the secure keys in {file} are encrypted with the key {lacking}, which is not given"
        yield _error("store.keys_file", message, "add its line to the file, or name another database")
    else:
        yield _ok(key, f"{file} can be written to, {_size(_size_of_store(file))}")
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
        return _error(key, message, advice)
    # A store grows by the transactions since its last checkpoint, beside a copy made by a new version.
    if free < max(ENOUGH_SPACE, 2 * _size_of_store(file)):
        return _warning(key, message, advice)
    return _ok(key, message)


def _size_of_store(file: Path) -> int:
    parts = (file, file.with_name(f"{file.name}-wal"))
    return sum(part.stat().st_size for part in parts if part.is_file())


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


async def _listening(settings: Settings) -> AsyncIterator[Finding]:
    """Whether the addresses are free, or in use by a daemon that runs already."""
    addresses = {"receiver.listen": settings.receiver.listen, "control.listen": settings.control.listen}
    problems = {key: await asyncio.to_thread(_bind_problem, address) for key, address in addresses.items()}
    in_use = [key for key, number in problems.items() if number == errno.EADDRINUSE]
    running = "control.listen" in in_use and await _answers_as_daemon(settings.control)
    for key, address in addresses.items():
        match problems[key]:
            case None:
                yield _ok(key, f"{address} is free")
            case errno.EADDRINUSE if running:
                yield _ok(key, f"{address} is in use, and a daemon runs")
            case errno.EADDRINUSE:
                message = f"{address} is in use by something else"
                yield _error(
                    key, message, "see ss -ltnxp; asyncchatd.socket holds it while the daemon is stopped"
                )
            case errno.EADDRNOTAVAIL:
                message = f"{address} is not an address of this host"
                yield _error(key, message, "use one that `ip address` shows, or :port for all of them")
            case errno.EACCES:
                message = f"{address} may not be used by this user"
                yield _error(key, message, "use a port above 1023, or the systemd socket unit")
            case number:
                message = f"{address} cannot be listened on: {os.strerror(number)}"
                yield _error(key, message, "correct the address")


def _bind_problem(listen: Listen) -> int | None:
    """The error number of trying to listen there for a moment; `None` when it went well."""
    try:
        if listen.path is not None:
            return _unix_problem(Path(listen.path))
        host = listen.host or ""
        passive = socket.getaddrinfo(
            host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in passive:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    attempt.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                attempt.bind(address)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EIO
    return None


def _unix_problem(path: Path) -> int | None:
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
            attempt.settimeout(1)
            try:
                attempt.connect(str(path))
            except ConnectionRefusedError:
                return None  # left over by a daemon that was killed; the next one takes its place
            return errno.EADDRINUSE
    if not path.parent.is_dir():
        return errno.ENOENT
    return None if os.access(path.parent, os.W_OK | os.X_OK) else errno.EACCES


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


async def _unresolved(key: str, url: str, limit: timedelta) -> Finding | None:
    """A finding when the host of this address has no address."""
    host = urlsplit(url).hostname or ""
    lookup = asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(max(limit.total_seconds(), 2)):
            await lookup
    except TimeoutError:
        return _error(key, f"looking up {host} takes too long", "check the name servers of this host")
    except (OSError, UnicodeError) as error:  # a label that is empty or too long is not even asked for
        message = f"{host} cannot be resolved: {_why(error)}"
        return _error(key, message, "check the name, and the name servers of this host")
    return None


def _tls_error(error: Exception) -> ssl.SSLError | None:
    """What OpenSSL found wrong, when that is why there was no answer."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return error if isinstance(error, ssl.SSLError) else None


def _why(error: Exception, limit: timedelta | None = None) -> str:
    """An error in words, without the address, which may carry more than should be printed."""
    if isinstance(error, TimeoutError):
        return f"no answer within {duration_text(limit)}" if limit else "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {error.certificate_error}"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ssl.SSLError):  # its errno is OpenSSL's, not the system's
        return (cause.reason or type(cause).__name__).replace("_", " ").lower()
    if isinstance(cause, OSError) and cause.strerror:
        # asyncio puts the address into strerror; names that do not resolve have numbers below zero.
        return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
    return type(cause).__name__
