"""How long certificates are good for: those shown to GMS and to clients, and what a server shows.

A certificate that runs out is the outage that could have been in a calendar, so `asyncchatd check` says it
weeks before.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

SOON = timedelta(days=21)
"""What renews by itself has done so by then, usually 30 days before the end; elsewhere it takes people, forms
and a maintenance window."""

MISMATCHES = {62, 64}
"""OpenSSL's codes for a certificate that is another name's or address's."""

EXPIRED = 10


def of_file(path: Path) -> datetime:
    """When the first of the certificates in a PEM file runs out. Raises `ValueError` when there is
    none, `OSError` when it cannot be read."""
    from cryptography import x509  # dear, and needed for TLS alone

    found = x509.load_pem_x509_certificates(path.read_bytes())
    return min(each.not_valid_after_utc for each in found)


async def of_server(url: str, context: ssl.SSLContext, seconds: float) -> datetime | None:
    """When the certificate that is shown at an `https` address runs out; `None` when nothing is shown."""
    from cryptography import x509

    parts = urlsplit(url)
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 443, ssl=context)
    except (OSError, TimeoutError, ValueError):
        return None
    secured: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
    shown = secured.getpeercert(binary_form=True) if secured else None
    writer.transport.abort()
    return x509.load_der_x509_certificate(shown).not_valid_after_utc if shown else None


def trouble(until: datetime, now: datetime | None = None) -> str | None:
    """What is to be said of a certificate that is good until then; `None` when it is fine."""
    left = until - (now or datetime.now(UTC))
    if left <= timedelta():
        return f"expired on {until:%Y-%m-%d}"
    if left < SOON:
        return f"expires on {until:%Y-%m-%d}, in {left.days} days"
    return None


def advice(error: ssl.SSLError, ca_key: str) -> str:
    """What to do about a connection that was not trusted. `ca_key` names the setting with the authorities."""
    code = getattr(error, "verify_code", None)
    if code in MISMATCHES:
        return "use the name the certificate was made for, or have one made for this name"
    if code == EXPIRED:
        return "have it renewed on the server; also look whether this host's clock is right"
    return f"set {ca_key} to the authority that signed the certificate; is it an https address at all?"
