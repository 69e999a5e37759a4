"""The findings of a check: under which heading each stands, and what certificates and errors come to."""

from __future__ import annotations

import re
import ssl
from datetime import datetime

from asyncchatd.lacks import system_words
from asyncchatd.listening import certificates
from asyncchatd.model import Finding, findings

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


def cause_of(error: Exception) -> str:
    """An error of the system or of TLS in words, without a file's name or an address."""
    if isinstance(error, ssl.SSLError):  # its errno is OpenSSL's, not the system's
        return (error.reason or type(error).__name__).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return system_words(error) or error.strerror
    return type(error).__name__
