"""A client of a running daemon's control API, over TCP or its Unix socket, as the commands use it.

Answers come as JSON objects, which `--json` prints as they are. The views below name the fields of
these answers that people are shown.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from asyncchatd.config import Listen

TIMEOUT_SECONDS = 10.0
PAGE = 1_000
"""Sessions asked for at once."""

Json = dict[str, object]


class ClientError(Exception):
    """The daemon did not do what was asked; the text says why, and what to do where that is known."""


class Unreachable(ClientError):
    """No daemon answers where the configuration says that it listens."""


class Refused(ClientError):
    """The daemon answered with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ControlClient:
    """The control API at one address, `async with ControlClient(listen) as control`.

    Every call raises `Unreachable`, `Refused`, or `ClientError` for an answer that is none of the daemon's.
    """

    def __init__(self, listen: Listen) -> None:
        self._listen = listen

    async def __aenter__(self) -> Self:
        path = self._listen.path
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector() if path is None else aiohttp.UnixConnector(path),
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
            wanted = {
                "alias": alias,
                "state": state,
                "limit": min(PAGE, limit - len(found)),
                "after": after,
            }
            query = "&".join(f"{name}={_quoted(str(value))}" for name, value in wanted.items() if value)
            page = await self._call("GET", f"/v1/sessions?{query}")
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

    async def register(self, lines: AsyncIterable[bytes]) -> Json:
        """Register sessions, one JSON object on each line; how many were taken, and what was wrong."""
        return await self._call("POST", "/v1/sessions", lines)

    async def _call(self, method: str, path: str, body: AsyncIterable[bytes] | None = None) -> Json:
        url = URL(self._origin() + path, encoded=True)
        headers = {} if body is None else {"Content-Type": "application/x-ndjson"}
        try:
            async with self._http.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return self._understood(response.status, await response.read())
        except TimeoutError:
            raise Unreachable(
                f"{self._listen} accepts connections but does not answer; look at the daemon's log"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"no daemon answers at {self._listen}: {_why(error)}") from None

    def _origin(self) -> str:
        listen = self._listen
        if listen.path is not None:
            return "http://asyncchatd"
        if not listen.port:
            raise Unreachable(
                f"control.listen is {listen}, a port the system chooses; set a fixed one, or a Unix socket"
            )
        # Listening everywhere is no address to connect to.
        host = {None: "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
        return f"http://{Listen(host=host, port=listen.port)}"

    def _understood(self, status: int, body: bytes) -> Json:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise ClientError(f"what answers at {self._listen} is not asyncchatd's control API")
        error = answer.get("error")
        if isinstance(error, dict):
            raise Refused(status, str(error.get("code")), str(error.get("message")))
        return answer


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _why(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    match getattr(cause, "errno", None):
        case errno.ECONNREFUSED | errno.ENOENT:
            return (
                "it is not running, or this is not its configuration;"
                " see systemctl status asyncchatd, or start it with asyncchatd run"
            )
        case errno.EACCES | errno.EPERM:
            return "this user may not use the socket; be root, or in the daemon's group"
    return str(cause) or type(cause).__name__


# What people are shown of the answers.


class View(BaseModel):
    """An answer, or a part of one. A daemon of a later version may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> Self:
        """Raises `ClientError` when the answer has not the fields it should have."""
        try:
            return cls.model_validate(answer)
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise ClientError(
                f"the daemon's answer is not understood ({field}); is it of this version?"
            ) from None


class ServerView(View):
    """A Chat Server."""

    name: str
    state: str
    since: datetime | None
    app_dbid: str | None
    process_os_pid: str | None
    checked_at: datetime | None
    detail: str | None
    sessions: int | None = None


class ServersView(View):
    """All of them."""

    servers: list[ServerView]
    sessions_elsewhere: dict[str, int]
    """Live sessions whose alias is that of no configured Chat Server."""


class RestorationView(View):
    """A restoration."""

    id: int
    server: str | None
    alias: str
    cause: str
    started_at: datetime
    finished_at: datetime | None
    took_seconds: float | None
    sessions: int
    restored: int
    ended: int
    refused: int
    moved: int
    waiting: int


class RestorationsView(View):
    """The newest restorations, newest first."""

    restorations: list[RestorationView]


class SessionView(View):
    """A session."""

    chat_id: str | None
    service: str | None
    user_id: str | None
    has_secure_key: bool
    alias: str | None
    device_id: str | None
    next_position: int | None
    state: str
    reason: str | None
    due_at: datetime | None
    attempts: int
    restoration: int | None
    registered_at: datetime | None
    active_at: datetime | None
    answered_at: datetime | None
    ended_at: datetime | None
    end_cause: str | None
    last_trouble: str | None


class SessionsView(View):
    """Some sessions."""

    sessions: list[SessionView]
    next: str | None


class NodeView(View):
    """A GMS node."""

    node: str
    resting: bool
    cause: str | None


class PingsView(View):
    """What the worker does."""

    in_flight: int
    in_flight_limit: int
    max_rate: float
    gms_available: bool
    nodes: list[NodeView]


class StatusView(View):
    """How the daemon is."""

    ready: bool
    uptime_seconds: float
    sessions: dict[str, int]
    due: dict[str, int]
    pings: PingsView
    servers: list[ServerView]
    restorations: list[RestorationView]


class RegisteredView(View):
    """What became of many registrations."""

    taken: int
    refused: int
