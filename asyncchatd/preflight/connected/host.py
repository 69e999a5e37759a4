"""This host as `asyncchatd check --connect` finds it: the store, and the addresses to listen on."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from enum import Enum, auto

import aiohttp
import orjson

from asyncchatd.config import Listen, ListenerSettings, Settings, alike
from asyncchatd.listening import INSTANCE, affordable_connections, bind_problem
from asyncchatd.model import Finding, findings
from asyncchatd.preflight.connected import named_store
from asyncchatd.stores import StoreError


async def store(settings: Settings) -> AsyncIterator[Finding]:
    """What the store says of itself before it is opened."""
    try:
        named = named_store.unopened(settings)
    except StoreError as trouble:
        yield named_store.impossible(trouble)
        return
    named.declare(alike(settings))
    async for finding in named.check(lambda: is_running(settings)):
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
    """Whether the addresses are free, or in use by the daemon of this configuration, which runs already."""
    addresses = {name: its.listen for name, its in settings.listeners.items()}
    problems = {name: await asyncio.to_thread(bind_problem, address) for name, address in addresses.items()}
    in_use = [name for name, number in problems.items() if number == errno.EADDRINUSE]
    asked = [_holder(settings.listener(name), settings.instance) for name in in_use]
    holders = dict(zip(in_use, await asyncio.gather(*asked), strict=True))
    running = holders.get("control") in RUNNING
    for name, address in addresses.items():
        key = f"{name}.listen"
        match problems[name]:
            case None:
                yield findings.ok(key, f"{address} is free")
            case errno.EADDRINUSE:
                yield _in_use(key, address, holders[name], running)
            case errno.ENOTSOCK:
                message = f"what is at {address} is no socket"
                yield findings.error(key, message, "remove it, or name another path")
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


class Holder(Enum):
    """Who holds an address that is in use, as far as it says."""

    OURS = auto()
    """The daemon of this configuration."""
    SOME = auto()
    """A daemon that does not say of which configuration, as those of before did not."""
    ANOTHER = auto()
    """The daemon of another configuration."""
    STRANGE = auto()
    """It answers, and not as a daemon does."""
    SILENT = auto()
    """It does not answer us, or lets nobody of this host in."""


RUNNING = frozenset({Holder.OURS, Holder.SOME})


def _in_use(key: str, address: Listen, holder: Holder, running: bool) -> Finding:
    if holder is Holder.OURS or (running and holder in {Holder.SOME, Holder.SILENT}):
        return findings.ok(key, f"{address} is in use, and a daemon runs")
    if holder is Holder.ANOTHER:
        message = (
            f"{address} is in use by another asyncchatd, which has another configuration file than this one"
        )
        advice = "stop that one, which ss -ltnxp shows, or set another address here"
        return findings.error(key, message, advice)
    message = f"{address} is in use by something else"
    return findings.error(key, message, "see ss -ltnxp; its socket unit holds it while the daemon is stopped")


async def is_running(settings: Settings) -> bool:
    """Whether the daemon of this configuration answers at its control API."""
    return await _holder(settings.control, settings.instance) in RUNNING


async def _holder(its: ListenerSettings, instance: str) -> Holder:
    listen, scheme = its.listen, "https" if its.tls_certificate else "http"
    connector = aiohttp.UnixConnector(listen.path) if listen.path else aiohttp.TCPConnector()
    authority = str(listen) if listen.host else f"localhost:{listen.port or 80}"
    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            # Nothing secret is sent, so whose certificate it is does not matter.
            session.get(f"{scheme}://{authority}/healthz", allow_redirects=False, ssl=False) as response,
        ):
            told = response.headers.get(INSTANCE)
            if told is not None:  # the listener of the metrics has no such page, and says this all the same
                return Holder.OURS if told == instance else Holder.ANOTHER
            alive = response.status == 200 and await _says_alive(response)
            return Holder.SOME if alive else Holder.STRANGE
    except (aiohttp.ClientError, OSError) as error:
        # Who asks for a certificate hangs up on us, but has shaken hands before.
        shaken_hands = its.tls_client_ca is not None and not isinstance(error, aiohttp.ClientConnectorError)
        return Holder.SOME if shaken_hands else Holder.SILENT


async def _says_alive(response: aiohttp.ClientResponse) -> bool:
    try:
        said = orjson.loads(await response.content.read(LARGEST_ANSWER))
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and said.get("alive") is True


LARGEST_ANSWER = 1_024
"""Bytes of an answer to a probe that are read."""
