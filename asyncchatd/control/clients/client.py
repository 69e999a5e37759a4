"""A client of a running daemon's control API within an event loop, over TCP or its Unix socket."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

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
from asyncchatd.control.clients.trust import tls_of


class ControlClient(Calls[Coroutine[Any, Any, Json], AsyncIterable[bytes]]):
    """The control API at one address, `async with ControlClient(listen) as control`."""

    def __init__(
        self, listen: Listen, *, token: str | None = None, tls: ssl.SSLContext | bytes | None = None
    ) -> None:
        """`tls` is how to know the daemon: a context, or the SHA-256 of its certificate; without it there is no TLS."""
        super().__init__(listen, token=token)
        self._tls = aiohttp.Fingerprint(tls) if isinstance(tls, bytes) else tls

    @classmethod
    def of(cls, contact: Contact, environ: Mapping[str, str] = os.environ) -> Self:
        """A client as the configuration says; a token from the environment goes before. Raises `ClientError`."""
        return cls(contact.listen, token=token_of(contact, environ), tls=tls_of(contact))

    async def __aenter__(self) -> Self:
        path = self._listen.path
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector() if path is None else aiohttp.UnixConnector(path),
            headers={} if self._token is None else {"Authorization": f"Bearer {self._token}"},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.close()

    async def sessions(self, *, alias: str | None = None, state: str | None = None, limit: int = 100) -> Json:
        """Up to `limit` sessions in the order of their chat ids; `next` is set when there are more."""
        pages = session_pages(alias=alias, state=state, limit=limit)
        path = next(pages)
        while True:
            page = await self._call("GET", path)
            try:
                path = pages.send(page)
            except StopIteration as all_of_them:
                found: Json = all_of_them.value
                return found

    async def _call(self, method: str, path: str, body: AsyncIterable[bytes] | None = None) -> Json:
        url = URL(self._origin() + path, encoded=True)
        headers = {} if body is None else {"Content-Type": "application/x-ndjson"}
        tls = True if self._tls is None else self._tls
        try:
            async with self._http.request(
                method, url, data=body, headers=headers, allow_redirects=False, ssl=tls
            ) as response:
                return self._understood(response.status, await response.read())
        except TimeoutError:
            raise self._silent() from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._away(_why(error)) from None

    def _origin(self) -> str:
        scheme = "http" if self._tls is None else "https"
        if self._listen.path is not None:
            return f"{scheme}://asyncchatd"
        host, port = self._address()
        return f"{scheme}://{Listen(host=host, port=port)}"


def _why(error: Exception) -> str:
    match error:
        case aiohttp.ServerFingerprintMismatch():
            return ANOTHER_CERTIFICATE
        case aiohttp.ClientConnectorCertificateError():
            return untrusted(error.certificate_error)
    return why_unreachable(error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error)
