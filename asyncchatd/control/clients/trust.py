"""How a client of the control API knows the daemon over TLS, and shows itself."""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path

from asyncchatd.config import Contact, tls_context
from asyncchatd.control.clients.calls import ClientError


def tls_of(contact: Contact) -> ssl.SSLContext | bytes | None:
    """How to know the daemon: by its very certificate where this user can read it and nothing else is
    configured, whose SHA-256 that is; `None` without TLS. Raises `ClientError`."""
    if contact.tls_certificate is None:
        return None
    if contact.tls_client_ca and not contact.client_certificate:
        raise ClientError("control.tls_client_ca asks for a certificate; set control.client_certificate")
    if contact.tls_ca is None and contact.client_certificate is None:
        try:
            return _fingerprint(contact.tls_certificate)
        except (OSError, ValueError):
            pass  # somebody else's file; the system's authorities may know the certificate
    try:
        context = tls_context(authorities=contact.tls_ca)
        if contact.client_certificate:
            context.load_cert_chain(contact.client_certificate, contact.client_key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ClientError(
            f"control.tls_ca, client_certificate or client_key cannot be used: {error}"
        ) from None
    return context


def _fingerprint(certificate: Path | None) -> bytes:
    found = re.search(
        "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----",
        certificate.read_text(encoding="ascii") if certificate else "",
        re.DOTALL,
    )
    if found is None:
        raise ValueError("no certificate")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest()
