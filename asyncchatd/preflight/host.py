"""This host as `asyncchatd check --connect` finds it: the store, and the addresses to listen on."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator

import aiohttp

from asyncchatd.config import ControlSettings, Settings
from asyncchatd.listening import affordable_connections, bind_problem
from asyncchatd.model import Finding, findings
from asyncchatd.stores import StoreError, make_store


async def store(settings: Settings) -> AsyncIterator[Finding]:
    """What the store says of itself before it is opened."""
    try:
        unopened = make_store(settings.store_url, directory=settings.directory, keys=settings.store_keys)
    except StoreError as trouble:
        yield findings.error("store.url", str(trouble), "install it, or name another store")
        return
    async for finding in unopened.check(lambda: _answers_as_daemon(settings.control)):
        yield finding


def files(settings: Settings) -> Iterator[Finding]:
    """Whether the file descriptors suffice for the connections. Under systemd the unit's limit counts, not that of the
    shell in which this is asked."""
    for name, its in settings.listeners.items():
        most = its.max_connections
        affordable, message, advice = affordable_connections(most, settings.connections_beside(name))
        if affordable < most:
            yield findings.warning(f"{name}.max_connections", message, advice)


async def listening(settings: Settings) -> AsyncIterator[Finding]:
    """Whether the addresses are free, or in use by a daemon that runs already."""
    addresses = {f"{name}.listen": its.listen for name, its in settings.listeners.items()}
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
                    key, message, "see ss -ltnxp; its socket unit holds it while the daemon is stopped"
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
