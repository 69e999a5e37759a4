"""The findings of a check: under which heading each stands, and what certificates and errors come to."""

from __future__ import annotations

import re
import ssl
from datetime import datetime, timedelta

import aiohttp

from asyncchatd.lacks import system_words
from asyncchatd.listening import certificates
from asyncchatd.model import Finding, durations, findings

AREAS = {
    "": "Configuration",
    "receiver": "Listening",
    "control": "Listening",
    "metrics": "Listening",
    "gateway": "Listening",
    "store": "Store",
    "gms": "GMS",
    "chat_server": "Chat Servers",
    "consumer": "Consumers",
    "push": "First push",
}
"""Headings of a checklist, by section of the configuration."""


def area(finding: Finding) -> str:
    """The heading a finding belongs under, in the order of `AREAS`."""
    section = re.split(r"[.\[]", finding.key, maxsplit=1)[0]
    return AREAS.get(section, AREAS[""])


def good_until(key: str, what: str, until: datetime, advice: str) -> Finding:
    trouble = certificates.trouble(until)
    if trouble is None:
        return findings.ok(key, f"{what} is good until {until:%Y-%m-%d}")
    return (findings.error if trouble.startswith("expired") else findings.warning)(
        key, f"{what} {trouble}", advice
    )


def in_words(error: Exception, limit: timedelta | None = None) -> str:
    """An error in words, without the address, which may carry more than should be printed."""
    if isinstance(error, TimeoutError):
        return f"no answer within {durations.text(limit)}" if limit else "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {error.certificate_error}"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ssl.SSLError):  # its errno is OpenSSL's, not the system's
        return (cause.reason or type(cause).__name__).replace("_", " ").lower()
    if isinstance(cause, OSError) and cause.strerror:
        return system_words(cause) or cause.strerror
    for kinds, words in _OF_HTTP:
        if isinstance(cause, kinds):
            return words
    return type(cause).__name__


_OF_HTTP: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (aiohttp.ClientPayloadError, "its answer is damaged or cut short"),
    (aiohttp.ClientResponseError, "what answers there does not speak HTTP"),
    ((aiohttp.ServerDisconnectedError, ConnectionError), "it hangs up without an answer"),
)
"""The errors that have no number of the system, in words."""
