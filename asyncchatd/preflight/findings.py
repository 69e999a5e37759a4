"""A finding of a check: how good it is, what it is about, and what to do next."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import aiohttp

from asyncchatd.lacks import system_words
from asyncchatd.listening import certificates
from asyncchatd.model import durations


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


def ok(key: str, message: str) -> Finding:
    return Finding(Level.OK, key, message)


def warning(key: str, message: str, advice: str) -> Finding:
    return Finding(Level.WARNING, key, message, advice)


def error(key: str, message: str, advice: str) -> Finding:
    return Finding(Level.ERROR, key, message, advice)


def good_until(key: str, what: str, until: datetime, advice: str) -> Finding:
    trouble = certificates.trouble(until)
    if trouble is None:
        return ok(key, f"{what} is good until {until:%Y-%m-%d}")
    return (error if trouble.startswith("expired") else warning)(key, f"{what} {trouble}", advice)


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
    return type(cause).__name__
