"""A client of a running daemon's control API for a command, which has nothing else to do until the answer is there.

It needs neither an event loop nor aiohttp: importing these two takes three times as long as all that such a command
does. Each call has a connection of its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import httptools

from asyncchatd.config import Contact, Listen
from asyncchatd.control.clients.calls import (
    ANOTHER_CERTIFICATE,
    TIMEOUT_SECONDS,
    Calls,
    Json,
    session_pages,
    token_of,
    untrusted,
    why_unreachable,
)

if TYPE_CHECKING:
    import ssl

PIECE = 64 * 1024
"""Bytes sent or taken at once. The daemon registers what has come while the rest is under way."""


class BlockingClient(Calls[Json, bytes]):
    """The control API at one address."""

    def __init__(
        self, listen: Listen, *, token: str | None = None, tls: ssl.SSLContext | bytes | None = None
    ) -> None:
        """`tls` is how to know the daemon: a context, or the SHA-256 of its certificate; without it there is no TLS."""
        super().__init__(listen, token=token)
        self._tls = tls

    @classmethod
    def of(cls, contact: Contact, environ: Mapping[str, str] = os.environ) -> Self:
        """A client as the configuration says; a token from the environment goes before. Raises `ClientError`."""
        token = token_of(contact, environ)
        if contact.tls_certificate is None:
            return cls(contact.listen, token=token)
        from asyncchatd.control.clients.trust import tls_of

        return cls(contact.listen, token=token, tls=tls_of(contact))

    def sessions(self, *, alias: str | None = None, state: str | None = None, limit: int = 100) -> Json:
        """Up to `limit` sessions in the order of their chat ids; `next` is set when there are more."""
        pages = session_pages(alias=alias, state=state, limit=limit)
        path = next(pages)
        while True:
            page = self._call("GET", path)
            try:
                path = pages.send(page)
            except StopIteration as all_of_them:
                found: Json = all_of_them.value
                return found

    def _call(self, method: str, path: str, body: bytes | None = None) -> Json:
        try:
            with self._connected() as connection:
                status, answer = _exchanged(connection, self._head(method, path, body), body or b"")
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise self._away(_why(error)) from None
        except httptools.HttpParserError:
            raise self._stranger() from None
        return self._understood(status, answer)

    def _head(self, method: str, path: str, body: bytes | None) -> bytes:
        host = "asyncchatd" if self._listen.path is not None else str(Listen(*self._address()))
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept: */*", "Connection: close"]
        if self._token is not None:
            lines.append(f"Authorization: Bearer {self._token}")
        if body is not None:
            lines.append("Content-Type: application/x-ndjson")
        if method != "GET":
            lines.append(f"Content-Length: {len(body or b'')}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def _connected(self) -> socket.socket:
        if self._listen.path is None:
            host, port = self._address()
            plain = socket.create_connection((host, port), TIMEOUT_SECONDS)
        else:
            host, plain = "asyncchatd", socket.socket(socket.AF_UNIX)
        try:
            if self._listen.path is not None:
                plain.settimeout(TIMEOUT_SECONDS)
                plain.connect(self._listen.path)
            return plain if self._tls is None else _secured(plain, host, self._tls)
        except BaseException:
            plain.close()
            raise


class _AnotherCertificate(OSError):
    """The daemon shows another certificate than the one it is known by."""


def _secured(plain: socket.socket, host: str, tls: ssl.SSLContext | bytes) -> socket.socket:
    """TLS on a connection, once it is known who is at its other end."""
    import hashlib
    import ssl

    if not isinstance(tls, bytes):
        return tls.wrap_socket(plain, server_hostname=host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is known by its very certificate
    secured = context.wrap_socket(plain, server_hostname=host)
    if hashlib.sha256(secured.getpeercert(binary_form=True) or b"").digest() != tls:
        secured.close()
        raise _AnotherCertificate
    return secured


class _Answer:
    """An answer as it comes, in the words of httptools."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.complete = True


def _exchanged(connection: socket.socket, head: bytes, body: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer to a request. Raises `OSError` and `httptools.HttpParserError`."""
    with suppress(BrokenPipeError, ConnectionResetError):  # what was answered before all was sent can be read
        connection.sendall(head)
        for start in range(0, len(body), PIECE):
            connection.sendall(body[start : start + PIECE])
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.complete:
        if not (piece := connection.recv(PIECE)):
            raise ConnectionError("it closed the connection without a whole answer")
        parser.feed_data(piece)
    return parser.get_status_code(), bytes(answer.body)


def _why(error: OSError) -> str:
    if isinstance(error, _AnotherCertificate):
        return ANOTHER_CERTIFICATE
    if hasattr(error, "verify_message"):  # ssl.SSLCertVerificationError
        return untrusted(error)
    return why_unreachable(error)
