"""A client of a running daemon's control API, over TCP or its Unix socket, as the commands use it.

Answers come as JSON objects, which `--json` prints as they are; `read` makes one of `shapes` of them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import ssl
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import orjson
from yarl import URL

from asyncchatd.config import ControlSettings, Listen, content_of, tls_context
from asyncchatd.control.shapes import Shape
from asyncchatd.lacks import system_words

TOKEN = "ASYNCCHATD_TOKEN"
TOKEN_FILE = "ASYNCCHATD_TOKEN_FILE"
TIMEOUT_SECONDS = 10.0
VERBS = ("retry", "pause", "resume", "replay")
"""What can be done to a consumer."""

PAGE = 1_000
"""Sessions asked for at once."""

Json = dict[str, object]


class ClientError(Exception):
    """The daemon did not do what was asked; the text says why, and what to do where that is known."""


class NoDaemon(ClientError):
    """No daemon answers where the configuration says that it listens."""


class DaemonError(ClientError):
    """The daemon answered with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ControlClient:
    """The control API at one address, `async with ControlClient(listen) as control`.

    Every call raises `NoDaemon`, `DaemonError`, or `ClientError` for an answer that is none of the daemon's.
    """

    def __init__(
        self,
        listen: Listen,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | aiohttp.Fingerprint | None = None,
    ) -> None:
        """`tls` is how to know the daemon; without it there is no TLS."""
        self._listen = listen
        self._token = token
        self._tls = tls

    @classmethod
    def of(cls, control: ControlSettings, environ: Mapping[str, str] = os.environ) -> Self:
        """A client as the configuration says; a token from the environment goes before. Raises `ClientError`."""
        token = token_of(control, environ)
        return cls(control.listen, token=token, tls=tls_of(control) if control.tls_certificate else None)

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

    async def status(self) -> Json:
        """How the daemon is."""
        return await self._call("GET", "/v1/status")

    async def accept_store(self) -> Json:
        """Take the store as it is; whether something was to be accepted."""
        return await self._call("POST", "/v1/store/accept")

    async def servers(self) -> Json:
        """The Chat Servers, with their live sessions."""
        return await self._call("GET", "/v1/servers")

    async def restorations(self, limit: int = 50) -> Json:
        """The newest restorations."""
        return await self._call("GET", f"/v1/restorations?limit={limit}")

    async def sessions(self, *, alias: str | None = None, state: str | None = None, limit: int = 100) -> Json:
        """Up to `limit` sessions in the order of their chat ids; `next` is set when there are more."""
        found: list[object] = []
        after: object = None
        while True:
            query = _query(alias=alias, state=state, limit=min(PAGE, limit - len(found)), after=after)
            page = await self._call("GET", f"/v1/sessions{query}")
            sessions, after = page.get("sessions"), page.get("next")
            found += sessions if isinstance(sessions, list) else []
            if after is None or len(found) >= limit:
                return {"sessions": found, "next": after}

    async def session(self, chat_id: str) -> Json:
        """One session."""
        return await self._call("GET", f"/v1/sessions/{_quoted(chat_id)}")

    async def ping(self, chat_id: str) -> Json:
        """Make a session due now; the session as it stands then."""
        return await self._call("POST", f"/v1/sessions/{_quoted(chat_id)}/ping")

    async def restore(self, server: str) -> Json:
        """Ping all sessions of a Chat Server as if it had been lost; the restoration that was begun."""
        return await self._call("POST", f"/v1/servers/{_quoted(server)}/restore")

    async def consumers(self) -> Json:
        """Who is told of events, and how far each is."""
        return await self._call("GET", "/v1/consumers")

    async def steer(self, consumer: str, verb: str) -> Json:
        """Do one of `VERBS` to a consumer; how it is then."""
        return await self._call("POST", f"/v1/consumers/{_quoted(consumer)}/{verb}")

    async def register(
        self, lines: AsyncIterable[bytes], *, service: str | None = None, device_id: str | None = None
    ) -> Json:
        """Register sessions, one JSON object on each line; how many were taken, and what was wrong. The service is
        that of those that name none, the device that of the only one."""
        query = _query(service=service, device_id=device_id)
        return await self._call("POST", f"/v1/sessions{query}", lines)

    async def end(self, chat_id: str) -> None:
        """Look after a session no more."""
        await self._call("DELETE", f"/v1/sessions/{_quoted(chat_id)}")

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
            raise NoDaemon(
                f"{self._listen} accepts connections but does not answer; look at the daemon's log"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoDaemon(f"no daemon answers at {self._listen}: {_why_unreachable(error)}") from None

    def _origin(self) -> str:
        listen, scheme = self._listen, "http" if self._tls is None else "https"
        if listen.path is not None:
            return f"{scheme}://asyncchatd"
        if not listen.port:
            raise NoDaemon(
                f"control.listen is {listen}, a port the system chooses; set a fixed one, or a Unix socket"
            )
        # Listening everywhere is no address to connect to.
        host = {None: "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
        return f"{scheme}://{Listen(host=host, port=listen.port)}"

    def _understood(self, status: int, body: bytes) -> Json:
        if status == 204:
            return {}
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise ClientError(f"what answers at {self._listen} is not asyncchatd's control API")
        error = answer.get("error")
        if status == 401:
            raise DaemonError(status, "unauthorized", UNKNOWN_TOKEN if self._token else NO_TOKEN)
        if isinstance(error, dict):
            raise DaemonError(status, str(error.get("code")), str(error.get("message")))
        return answer


NO_TOKEN = (
    f"the daemon asks for a token: put one of its control.token_file into ${TOKEN}, or name a file with it in"
    f" ${TOKEN_FILE}"
)
UNKNOWN_TOKEN = (
    f"the daemon does not know the token that was sent: see ${TOKEN}, ${TOKEN_FILE}, and control.token_file in"
    " the configuration; after changing that file, reload the daemon, or restart it where the file is a"
    " credential"
)


def token_of(control: ControlSettings, environ: Mapping[str, str]) -> str | None:
    """The token to send: from the environment, else from the configuration. Raises `ClientError`."""
    if token := environ.get(TOKEN):
        if not (token.isascii() and token.isprintable()):
            raise ClientError(f"${TOKEN} holds no token: a token is ASCII text on one line")
        return token
    if not (file := environ.get(TOKEN_FILE)):
        return next(iter(control.tokens), None)
    try:
        lines = [line.strip() for line in content_of(Path(file)).decode("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ClientError(f"${TOKEN_FILE}: {file} is no UTF-8 text") from None
    except OSError as error:
        raise ClientError(f"${TOKEN_FILE}: {file} cannot be read: {error.strerror}") from None
    # Behind it stand its rights where the file is the daemon's own.
    tokens = [line.split()[0] for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ClientError(f"${TOKEN_FILE}: {file} holds no token")
    if not (tokens[0].isascii() and tokens[0].isprintable()):
        raise ClientError(f"${TOKEN_FILE}: {file} holds no token: a token is ASCII text on one line")
    return tokens[0]


def tls_of(control: ControlSettings) -> ssl.SSLContext | aiohttp.Fingerprint:
    """How to know the daemon: by its very certificate where this user can read it and nothing else is
    configured. Raises `ClientError`."""
    if control.tls_client_ca and not control.client_certificate:
        raise ClientError("control.tls_client_ca asks for a certificate; set control.client_certificate")
    if control.tls_ca is None and control.client_certificate is None:
        try:
            return _fingerprint(control.tls_certificate)
        except (OSError, ValueError):
            pass  # somebody else's file; the system's authorities may know the certificate
    try:
        context = tls_context(authorities=control.tls_ca)
        if control.client_certificate:
            context.load_cert_chain(control.client_certificate, control.client_key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ClientError(
            f"control.tls_ca, client_certificate or client_key cannot be used: {error}"
        ) from None
    return context


def _fingerprint(certificate: Path | None) -> aiohttp.Fingerprint:
    found = re.search(
        "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----",
        certificate.read_text(encoding="ascii") if certificate else "",
        re.DOTALL,
    )
    if found is None:
        raise ValueError("no certificate")
    return aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest())


def _query(**wanted: object) -> str:
    """The query that asks for this; what is nothing is left out."""
    parts = [f"{name}={_quoted(str(value))}" for name, value in wanted.items() if value]
    return "?" + "&".join(parts) if parts else ""


def _quoted(text: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise ClientError(f"expected a name or an id in UTF-8, not {text!r}") from None


def _why_unreachable(error: Exception) -> str:
    match error:
        case aiohttp.ServerFingerprintMismatch():
            return (
                "it shows another certificate than the one in control.tls_certificate (a new one is shown after"
                " 10 s, unless the daemon's log says tls_refused)"
            )
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not trusted ({error.certificate_error}); set control.tls_ca"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    match getattr(cause, "errno", None):
        case errno.ECONNREFUSED | errno.ENOENT:
            return (
                "it is not running, or this is not its configuration;"
                " see systemctl status asyncchatd, or start it with asyncchatd run"
            )
        case errno.EACCES | errno.EPERM:
            return "this user may not use the socket; be root, or in the daemon's group"
    return system_words(cause) or str(cause) or type(cause).__name__


S = TypeVar("S", bound=Shape)


def read(shape: type[S], answer: Mapping[str, object]) -> S:
    """The answer as the shape it should have. Raises `ClientError`."""
    try:
        return msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        raise ClientError(
            f"the daemon's answer is not understood ({error}); is it of this version?"
        ) from None
