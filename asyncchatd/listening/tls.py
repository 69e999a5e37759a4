"""TLS of a listener: its certificate, who may be a client, and new files taken over while it serves.

A certificate is renewed by replacing its files; nobody should have to restart a daemon for that. The
files are looked at every few seconds, and once they have changed and rest, connections from then on get
the new certificate. Those that are open keep theirs. A new pair that is no use is told once, and the old
one stays.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from asyncchatd.config import ListenerSettings, tls_context
from asyncchatd.lacks import system_words
from asyncchatd.listening import certificates
from asyncchatd.log import Event, get_logger, metrics

if TYPE_CHECKING:
    from cryptography import x509

Look = tuple[tuple[int, int, int] | None, ...]
"""What the files looked like: inode, time and size of each, `None` for one that is not there."""

log = get_logger()


class TlsError(Exception):
    """The TLS files cannot be used; the text names the key of the configuration and says why."""


class Certificates:
    """The TLS files of one listener: `context` is for connections from now on."""

    def __init__(self, settings: ListenerSettings, name: str) -> None:
        """Raises `TlsError`."""
        self._settings = settings
        self._name = name
        self._taken = self._seen = _look(settings)
        self.context = server_context(settings, name)
        self._show_end()

    def look(self) -> None:
        """Take changed files over, once they are the same at two looks: half a pair is not worth a word."""
        seen = _look(self._settings)
        rests, self._seen = seen == self._seen, seen
        if not rests or seen == self._taken:
            return
        self._taken = seen
        try:
            self.context = server_context(self._settings, self._name)
        except TlsError as error:
            log.error(Event.TLS_REFUSED, listener=self._name, cause=str(error))
        else:
            self._show_end()
            log.info(Event.TLS_RENEWED, listener=self._name)

    def _show_end(self) -> None:
        """When what is in use runs out: a new pair that was refused does not count."""
        assert self._settings.tls_certificate is not None
        with suppress(OSError, ValueError):  # gone since a moment ago: there will be another look
            end = certificates.of_file(self._settings.tls_certificate)
            metrics.CERTIFICATE_END.labels(f"{self._name}.tls_certificate").set(end.timestamp())


def server_context(settings: ListenerSettings, name: str) -> ssl.SSLContext:
    """How this listener speaks TLS, 1.2 at least. Raises `TlsError`."""
    certificate, client_ca = settings.tls_certificate, settings.tls_client_ca
    assert certificate is not None
    context = tls_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a callback OpenSSL would ask the terminal for the password of an encrypted key.
        context.load_cert_chain(certificate, settings.tls_key, password=lambda: "")
    except (OSError, ValueError) as error:
        keys = f"{name}.tls_certificate and tls_key" if settings.tls_key else f"{name}.tls_certificate"
        raise TlsError(f"{keys}: {_pair_problem(error)}") from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ValueError) as error:
            raise TlsError(
                f"{name}.tls_client_ca: expected a PEM file of certificates: {_tls_cause(error)}"
            ) from error
    return context


def doubts(
    settings: ListenerSettings, name: str, now: datetime | None = None
) -> Iterator[tuple[bool, str, str]]:
    """What is wrong with the TLS files: whether it hinders the listener, the key, and what in words."""
    if settings.tls_certificate is None:
        return
    try:
        server_context(settings, name)
    except TlsError as error:
        key, _, message = str(error).partition(": ")
        yield True, key.partition(" and ")[0], message
    for key in ("tls_certificate", "tls_client_ca"):
        file: Path | None = getattr(settings, key)
        for certificate in _certificates(file):
            if trouble := _age(certificate, now or datetime.now(UTC)):
                yield trouble[0], f"{name}.{key}", f"{_subject(certificate)} {trouble[1]}"


def _age(certificate: x509.Certificate, now: datetime) -> tuple[bool, str] | None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return True, f"is not valid before {begin:%Y-%m-%d %H:%M} UTC"
    trouble = certificates.trouble(end, now)
    return None if trouble is None else (now >= end, trouble)


def _certificates(file: Path | None) -> list[x509.Certificate]:
    """None when it cannot be read: that is told elsewhere."""
    from cryptography import x509  # dear, and most listeners have no TLS

    try:
        return x509.load_pem_x509_certificates(file.read_bytes()) if file else []
    except (OSError, ValueError):
        return []


def _subject(certificate: x509.Certificate) -> str:
    return f"the certificate of {certificate.subject.rfc4514_string() or 'nobody'}"


def _pair_problem(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return f"expected PEM files of a certificate and its key, without a password: {_tls_cause(error)}"


def _tls_cause(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not understood").lower().replace("_", " ")
    return system_words(error) or str(error) or type(error).__name__


def _look(settings: ListenerSettings) -> Look:
    return tuple(map(_stat, (settings.tls_certificate, settings.tls_key, settings.tls_client_ca)))


def _stat(file: Path | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file) if file else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if found else None
