"""The calls of the control API, whichever way they are sent: their paths, and what an answer means.

`client` sends them within an event loop, `blocking` for a command that has nothing else to do meanwhile. Answers come
as JSON objects, which `--json` prints as they are; `read` makes one of `shapes` of them.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

import msgspec

from asyncchatd.config import Contact, Listen, content_of
from asyncchatd.control.shapes import Shape
from asyncchatd.lacks import system_words

TOKEN = "ASYNCCHATD_TOKEN"
TOKEN_FILE = "ASYNCCHATD_TOKEN_FILE"
TIMEOUT_SECONDS = 10.0
"""The longest silence of the daemon."""

VERBS = ("retry", "pause", "resume", "replay")
"""What can be done to a consumer."""

PAGE = 1_000
"""Sessions asked for at once."""

Json = dict[str, object]

A = TypeVar("A")
B = TypeVar("B")


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


class Calls(ABC, Generic[A, B]):
    """The control API at one address: `A` is an answer, or what comes to be one, `B` the body of a request.

    Every call raises `NoDaemon`, `DaemonError`, or `ClientError` for an answer that is none of the daemon's.
    """

    def __init__(self, listen: Listen, *, token: str | None = None) -> None:
        self._listen = listen
        self._token = token

    @abstractmethod
    def _call(self, method: str, path: str, body: B | None = None) -> A:
        """The answer to a request; `path` with its query."""

    def status(self) -> A:
        """How the daemon is."""
        return self._call("GET", "/v1/status")

    def accept_store(self) -> A:
        """Take the store as it is; whether something was to be accepted."""
        return self._call("POST", "/v1/store/accept")

    def servers(self) -> A:
        """The Chat Servers, with their live sessions."""
        return self._call("GET", "/v1/servers")

    def restorations(self, limit: int = 50) -> A:
        """The newest restorations."""
        return self._call("GET", f"/v1/restorations?limit={limit}")

    def session(self, chat_id: str) -> A:
        """One session."""
        return self._call("GET", f"/v1/sessions/{_quoted(chat_id)}")

    def ping(self, chat_id: str) -> A:
        """Make a session due now; the session as it stands then."""
        return self._call("POST", f"/v1/sessions/{_quoted(chat_id)}/ping")

    def restore(self, server: str) -> A:
        """Ping all sessions of a Chat Server as if it had been lost; the restoration that was begun."""
        return self._call("POST", f"/v1/servers/{_quoted(server)}/restore")

    def consumers(self) -> A:
        """Who is told of events, and how far each is."""
        return self._call("GET", "/v1/consumers")

    def steer(self, consumer: str, verb: str) -> A:
        """Do one of `VERBS` to a consumer; how it is then."""
        return self._call("POST", f"/v1/consumers/{_quoted(consumer)}/{verb}")

    def register(self, lines: B, *, service: str | None = None, device_id: str | None = None) -> A:
        """Register sessions, one JSON object on each line; how many were taken, and what was wrong. The service is
        that of those that name none, the device that of the only one."""
        query = _query(service=service, device_id=device_id)
        return self._call("POST", f"/v1/sessions{query}", lines)

    def end(self, chat_id: str) -> A:
        """Look after a session no more; an empty answer."""
        return self._call("DELETE", f"/v1/sessions/{_quoted(chat_id)}")

    def _address(self) -> tuple[str, int]:
        """The host and port to connect to, of an address that is no socket's path."""
        listen = self._listen
        if not listen.port:
            raise NoDaemon(
                f"control.listen is {listen}, a port the system chooses; set a fixed one, or a Unix socket"
            )
        # Listening everywhere is no address to connect to.
        return {None: "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
            listen.host, listen.host or ""
        ), listen.port

    def _understood(self, status: int, body: bytes) -> Json:
        if status == 204:
            return {}
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        if not isinstance(answer, dict):
            raise self._stranger()
        error = answer.get("error")
        if status == 401:
            raise DaemonError(status, "unauthorized", UNKNOWN_TOKEN if self._token else NO_TOKEN)
        if isinstance(error, dict):
            raise DaemonError(status, str(error.get("code")), str(error.get("message")))
        return answer

    def _stranger(self) -> ClientError:
        return ClientError(f"what answers at {self._listen} is not asyncchatd's control API")

    def _silent(self) -> NoDaemon:
        return NoDaemon(f"{self._listen} accepts connections but does not answer; look at the daemon's log")

    def _away(self, why: str) -> NoDaemon:
        return NoDaemon(f"no daemon answers at {self._listen}: {why}")


def session_pages(
    *, alias: str | None = None, state: str | None = None, limit: int = 100
) -> Generator[str, Json, Json]:
    """Up to `limit` sessions in the order of their chat ids; `next` is set when there are more. Yields the paths of
    their pages, and is sent these."""
    found: list[object] = []
    after: object = None
    while True:
        query = _query(alias=alias, state=state, limit=min(PAGE, limit - len(found)), after=after)
        page = yield f"/v1/sessions{query}"
        sessions, after = page.get("sessions"), page.get("next")
        found += sessions if isinstance(sessions, list) else []
        if after is None or len(found) >= limit:
            return {"sessions": found, "next": after}


SYSTEMD_RUNS = "/run/systemd/system"
"""There where systemd has started this host."""

ANOTHER_CERTIFICATE = (
    "it shows another certificate than the one in control.tls_certificate (a new one is shown after"
    " 10 s, unless the daemon's log says tls_refused)"
)


def untrusted(error: object) -> str:
    """Why a certificate is not taken, and what to do."""
    return f"its certificate is not trusted ({error}); set control.tls_ca"


def why_unreachable(error: BaseException) -> str:
    """Why there is no connection, and what to do."""
    match getattr(error, "errno", None):
        case errno.ECONNREFUSED | errno.ENOENT:
            see = "see systemctl status asyncchatd, or " if os.path.isdir(SYSTEMD_RUNS) else ""
            return f"it is not running, or this is not its configuration; {see}start it with asyncchatd run"
        case errno.EACCES | errno.EPERM:
            return "this user may not use the socket; be root, or in the daemon's group"
    return system_words(error) or str(error) or type(error).__name__


NO_TOKEN = (
    f"the daemon asks for a token: put one of its control.token_file into ${TOKEN}, or name a file with it in"
    f" ${TOKEN_FILE}"
)
UNKNOWN_TOKEN = (
    f"the daemon does not know the token that was sent: see ${TOKEN}, ${TOKEN_FILE}, and control.token_file in"
    " the configuration; after changing that file, reload the daemon, or restart it where the file is a"
    " credential"
)


def token_of(contact: Contact, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token to send: from the environment, else from the configuration. Raises `ClientError`."""
    if token := environ.get(TOKEN):
        if not (token.isascii() and token.isprintable()):
            raise ClientError(f"${TOKEN} holds no token: a token is ASCII text on one line")
        return token
    if not (file := environ.get(TOKEN_FILE)):
        return next(iter(contact.tokens), None)
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


def _query(**wanted: object) -> str:
    """The query that asks for this; what is nothing is left out."""
    parts = [f"{name}={_quoted(str(value))}" for name, value in wanted.items() if value]
    return "?" + "&".join(parts) if parts else ""


def _quoted(text: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise ClientError(f"expected a name or an id in UTF-8, not {text!r}") from None


S = TypeVar("S", bound=Shape)


def read(shape: type[S], answer: Mapping[str, object]) -> S:
    """The answer as the shape it should have. Raises `ClientError`."""
    try:
        return msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        raise ClientError(
            f"the daemon's answer is not understood ({error}); is it of this version?"
        ) from None
