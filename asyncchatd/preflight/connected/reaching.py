"""What keeps a check from reaching a host, in words: no address, TLS that is not trusted, no HTTP."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import timedelta
from urllib.parse import urlsplit

import aiohttp

from asyncchatd.model import Finding, durations, findings
from asyncchatd.preflight.wording import cause_of


async def unresolved(key: str, url: str, limit: timedelta) -> Finding | None:
    """A finding when the host of this address has no address."""
    host = urlsplit(url).hostname or ""
    lookup = asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(max(limit.total_seconds(), 2)):
            await lookup
    except TimeoutError:
        return findings.error(key, f"looking up {host} takes too long", "check the name servers of this host")
    except (OSError, UnicodeError) as error:  # a label that is empty or too long is not even asked for
        message = f"{host} cannot be resolved: {in_words(error)}"
        return findings.error(key, message, "check the name, and the name servers of this host")
    return None


async def addresses(url: str, limit: timedelta) -> list[str]:
    """The addresses of the host of this URL, when it has several of one family; else none."""
    host = urlsplit(url).hostname or ""
    try:
        async with asyncio.timeout(max(limit.total_seconds(), 2)):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (TimeoutError, OSError, UnicodeError):
        return []
    by_family = {
        family: sorted({str(where[0]) for of, _, _, _, where in found if of == family})
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    return next((several for several in by_family.values() if len(several) > 1), [])


def tls_error(error: Exception) -> ssl.SSLError | None:
    """What OpenSSL found wrong, when that is why there was no answer."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return error if isinstance(error, ssl.SSLError) else None


def in_words(error: Exception, limit: timedelta | None = None) -> str:
    """An error in words, without the address, which may carry more than should be printed."""
    if isinstance(error, TimeoutError):
        return f"no answer within {durations.text(limit)}" if limit else "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {error.certificate_error}"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and (isinstance(cause, ssl.SSLError) or cause.strerror):
        return cause_of(cause)
    return next((words for kinds, words in _OF_HTTP if isinstance(cause, kinds)), cause_of(cause))


_OF_HTTP: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (aiohttp.ClientPayloadError, "its answer is damaged or cut short"),
    (aiohttp.ClientResponseError, "what answers there does not speak HTTP"),
    ((aiohttp.ServerDisconnectedError, ConnectionError), "it hangs up without an answer"),
)
"""The errors that have no number of the system, in words."""
