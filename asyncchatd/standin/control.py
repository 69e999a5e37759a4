"""The plant's control port: JSON over HTTP. Every call is described in docs/standin.md.

It shows secure keys, because whoever rehearses must register its sessions; they open nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Protocol, TypeVar

from aiohttp import web

from asyncchatd.standin.gms_node import ErrorPage, Failing, GmsNode
from asyncchatd.standin.health_page import HealthFormat
from asyncchatd.standin.plant import Plant
from asyncchatd.standin.plant.parts import ChatSession, PlantError, PlantServer
from asyncchatd.standin.settings import SettingError, SickPage
from asyncchatd.standin.spoiling import LATE_SECONDS, AfterWork, Over, Spoiling
from asyncchatd.wire import error_body

CHUNK = 500
"""Sessions handled in one turn of the loop: Chat API requests go on in between."""

Body = Mapping[str, object]


class BadCommand(Exception):
    """A command that cannot be understood; `field` is the property at fault."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field = field


def session_line(session: ChatSession) -> dict[str, object]:
    """A session as the daemon's `POST /v1/sessions` takes it."""
    return {
        "service": session.service,
        "chat_id": session.chat_id,
        "user_id": session.user_id,
        "secure_key": session.secure_key,
        "alias": session.alias,
        "device_id": session.device_id,
        "next_position": session.next_index,
    }


class OnSockets(Protocol):
    """A plant that is served on sockets, as its control port needs it."""

    plant: Plant
    nodes: list[GmsNode]

    @property
    def health_urls(self) -> dict[str, str]:
        """By the names of the Chat Servers."""

    async def settled(self) -> None:
        """Return when the sockets are as the plant is."""


def control_app(standin: OnSockets) -> web.Application:
    """The control port's application."""
    control = _Control(standin)
    app = web.Application(middlewares=[_errors])
    app.add_routes(
        [
            web.get("/report", control.report),
            web.post("/reset_report", control.reset_report),
            web.get("/timeline", control.timeline),
            web.get("/plant", control.plant),
            web.get("/sessions", control.sessions),
            web.get("/settings", control.settings),
            web.post("/settings", control.change_settings),
            web.post("/chats", control.chats),
            web.post("/say", control.say),
            web.post("/end", control.end),
            web.post("/move", control.move),
            web.post("/rotate", control.rotate),
            web.post("/push_late", control.push_late),
            web.post("/servers/{name}/{verb}", control.servers),
            web.post("/gms/{number}/{verb}", control.gms),
        ]
    )
    return app


class _Control:
    """The control port's calls, one method each."""

    def __init__(self, standin: OnSockets) -> None:
        self._standin = standin
        self._plant = standin.plant

    async def report(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(asdict(self._plant.report()))

    async def reset_report(self, request: web.Request) -> web.StreamResponse:
        self._plant.reset_report()
        return web.json_response({})

    async def timeline(self, request: web.Request) -> web.StreamResponse:
        rows = self._plant.timeline.rows(self._plant.now())
        return web.json_response({"columns": ["second", "requests", "restored"], "rows": rows})

    async def plant(self, request: web.Request) -> web.StreamResponse:
        health = self._standin.health_urls
        return web.json_response(
            {
                "servers": [_shown(server, health[server.name]) for server in self._plant.servers.values()],
                "gms": [_shown_node(n, node) for n, node in enumerate(self._standin.nodes, 1)],
            }
        )

    async def sessions(self, request: web.Request) -> web.StreamResponse:
        alias = request.query.get("alias")
        live = [
            session
            for session in self._plant.sessions.values()
            if session.ended is None and alias in (None, session.alias)
        ]
        return await _lines(request, _in_chunks(live))

    async def settings(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._plant.settings.shown())

    async def change_settings(self, request: web.Request) -> web.StreamResponse:
        self._plant.change(await _body(request))
        return web.json_response(self._plant.settings.shown())

    async def chats(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "count", "service", "spread", "subscribe", "transcript", "tell_position")
        transcript = _whole(body, "transcript", 0)
        tell_position = _flag(body, "tell_position", True)
        count = _whole(body, "count", 1)
        service = _text(body, "service", None)
        subscribe = _flag(body, "subscribe", True)
        servers = self._spread(body)

        async def started() -> AsyncIterator[list[ChatSession]]:
            # A multiple of the number of servers keeps the spread even over the chunks.
            step = CHUNK - CHUNK % len(servers) if len(servers) < CHUNK else len(servers)
            for begin in range(0, count, step):
                yield self._plant.start_chats(
                    min(step, count - begin),
                    service=service,
                    servers=servers,
                    subscribe=subscribe,
                    transcript=transcript,
                )
                await asyncio.sleep(0)

        return await _lines(request, started(), tell_position=tell_position)

    async def say(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "chat_id", "count", "text")
        text = _text(body, "text", None) or "How may I help you?"
        said = undeliverable = 0
        for n, session in enumerate(self._meant(body), 1):
            if self._plant.say(session, text):
                said += 1
            else:
                undeliverable += 1
            if n % CHUNK == 0:
                await asyncio.sleep(0)
        return web.json_response({"said": said, "undeliverable": undeliverable})

    async def end(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "chat_id", "count")
        return web.json_response({"ended": self._plant.end_chats(self._meant(body))})

    async def move(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "chat_id", "count")
        return web.json_response({"moved": self._plant.move(self._meant(body))})

    async def rotate(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "chat_id", "count", "announce")
        rotated = self._plant.rotate(self._meant(body), announce=_flag(body, "announce", False))
        return web.json_response({"rotated": rotated})

    async def push_late(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "chat_id", "count")
        return web.json_response({"pushed": self._plant.push_late(self._meant(body))})

    async def servers(self, request: web.Request) -> web.StreamResponse:
        plant, name, verb = self._plant, request.match_info["name"], request.match_info["verb"]
        server = plant.servers.named(name)
        allowed = _SERVER_VERBS.get(verb)
        if allowed is None:
            raise BadCommand("verb", f"one of {', '.join(_SERVER_VERBS)}")
        body = await _body(request, *allowed)
        match verb:
            case "kill":
                plant.servers.kill(name)
            case "start":
                plant.servers.start(name, pid=server.process.pid if _flag(body, "same_pid", False) else None)
            case "restart":
                plant.servers.restart(
                    name, downtime=_number(body, "seconds", 0.0), same_pid=_flag(body, "same_pid", False)
                )
            case "hang":
                plant.servers.hang(name)
            case "resume":
                plant.servers.resume(name)
            case "slow":
                plant.servers.slow(name, _number(body, "seconds", 0.0))
            case "stop":
                plant.servers.stop(name, delay=_number(body, "seconds", plant.settings.stop_delay))
            case "zero_counters":
                plant.servers.zero_counters(name)
            case "share_address":
                plant.servers.share_address(name, _flag(body, "shared", True))
            case _:
                server.health = _health_format(body)
        await self._standin.settled()
        return web.json_response(_shown(server, self._standin.health_urls[name]))

    async def gms(self, request: web.Request) -> web.StreamResponse:
        number, verb = request.match_info["number"], request.match_info["verb"]
        nodes = self._standin.nodes
        if not number.isdecimal() or not 1 <= int(number) <= len(nodes):
            raise PlantError(f"no such GMS node; they count from 1 to {len(nodes)}")
        node = nodes[int(number) - 1]
        allowed = _GMS_VERBS.get(verb)
        if allowed is None:
            raise BadCommand("verb", f"one of {', '.join(_GMS_VERBS)}")
        body = await _body(request, *allowed)
        match verb:
            case "kill":
                await node.kill()
            case "start":
                await node.start()
            case "hang":
                node.hang()
            case "slow":
                node.slow = _number(body, "seconds", 0.0)
            case "fail":
                node.fail(_failing(body), _seconds_or_none(body))
            case "redeploy":
                node.redeploy(_number(body, "seconds", 10.0))
            case "after_work":
                node.spoiling = _spoiling(body)
            case "proxy":
                node.patience = _seconds_or_none(body)
            case _:
                node.garbage_rate = _share(body)
        return web.json_response(_shown_node(int(number), node))

    def _spread(self, body: Body) -> list[str]:
        spread = body.get("spread", "even")
        if spread == "even":
            return list(self._plant.servers)
        if not isinstance(spread, list) or not spread or not all(isinstance(name, str) for name in spread):
            raise BadCommand("spread", '"even" or a list of Chat Server names')
        return spread

    def _meant(self, body: Body) -> Iterable[ChatSession]:
        """The session with this id, or the next so many in turn."""
        if (chat_id := _text(body, "chat_id", None)) is not None:
            return [self._plant.chats.named(chat_id)]
        return self._plant.chats.some(_whole(body, "count", 1))


_SERVER_VERBS: Mapping[str, tuple[str, ...]] = {
    "kill": (),
    "start": ("same_pid",),
    "restart": ("seconds", "same_pid"),
    "hang": (),
    "resume": (),
    "slow": ("seconds",),
    "stop": ("seconds",),
    "health": ("format",),
    "zero_counters": (),
    "share_address": ("shared",),
}
"""What can be done to a Chat Server, and with which properties."""

_GMS_VERBS: Mapping[str, tuple[str, ...]] = {
    "kill": (),
    "start": (),
    "hang": (),
    "slow": ("seconds",),
    "fail": ("status", "rate", "retry_after", "page", "seconds"),
    "redeploy": ("seconds",),
    "after_work": ("what", "rate", "over", "seconds"),
    "proxy": ("seconds",),
    "garbage": ("rate",),
}


def _shown(server: PlantServer, health_url: str) -> dict[str, object]:
    return {
        "name": server.name,
        "app_dbid": server.app_dbid,
        "process_os_pid": server.process.pid,
        "phase": server.phase.value,
        "sessions": len(server.process.sessions),
        "slow": server.slow,
        "health": server.health.value,
        "shares_address": server.twin is not None,
        "health_url": health_url,
    }


def _shown_node(number: int, node: GmsNode) -> dict[str, object]:
    return {
        "number": number,
        "url": node.url,
        "phase": node.phase.value,
        "requests": node.requests,
        "slow": node.slow,
        "failing": None if node.failing is None else asdict(node.failing),
        "garbage_rate": node.garbage_rate,
        "after_work": None if node.spoiling is None else asdict(node.spoiling),
        "proxy_patience": node.patience,
    }


# --- reading and answering ------------------------------------------------------------------


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadCommand as error:
        return _error(400, "bad_command", str(error), error.field)
    except SettingError as error:
        return _error(400, "bad_setting", str(error), error.field)
    except PlantError as error:
        return _error(409, "not_possible", str(error))
    except web.HTTPException as error:
        return _error(error.status, "http", error.reason)


def _error(status: int, code: str, message: str, field: str | None = None) -> web.Response:
    return web.json_response(error_body(code, message, field), status=status)


async def _in_chunks(sessions: list[ChatSession]) -> AsyncIterator[list[ChatSession]]:
    for begin in range(0, len(sessions), CHUNK):
        yield sessions[begin : begin + CHUNK]
        await asyncio.sleep(0)


async def _lines(
    request: web.Request, chunks: AsyncIterator[list[ChatSession]], *, tell_position: bool = True
) -> web.StreamResponse:
    """Sessions as JSON lines. The first chunk comes before the status, so that its errors have one."""
    nothing: list[ChatSession] = []
    first = await anext(chunks, nothing)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    await response.write(_as_lines(first, tell_position))
    async for chunk in chunks:
        await response.write(_as_lines(chunk, tell_position))
    await response.write_eof()
    return response


def _as_lines(sessions: list[ChatSession], tell_position: bool) -> bytes:
    unsaid = {} if tell_position else {"next_position": None}
    return "".join(json.dumps(session_line(session) | unsaid) + "\n" for session in sessions).encode()


async def _body(request: web.Request, *known: str) -> Body:
    """The JSON object in the body, or none. `known` names its properties, where they are few."""
    raw = await request.read()
    try:
        body = json.loads(raw) if raw.strip() else {}
    except ValueError:
        raise BadCommand("body", "a JSON object") from None
    if not isinstance(body, dict):
        raise BadCommand("body", "a JSON object")
    if request.path != "/settings" and (unknown := sorted(body.keys() - set(known))):
        raise BadCommand(unknown[0], f"only {', '.join(known) or 'no properties'} here")
    return body


def _whole(body: Body, name: str, default: int) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10_000_000:
        raise BadCommand(name, "a whole number, 0 or more")
    return value


def _number(body: Body, name: str, default: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadCommand(name, "a number of seconds, 0 or more")
    return float(value)


def _text(body: Body, name: str, default: str | None) -> str | None:
    value = body.get(name, default)
    if value is not None and not isinstance(value, str):
        raise BadCommand(name, "a text")
    return value


def _flag(body: Body, name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise BadCommand(name, "true or false")
    return value


def _share(body: Body) -> float:
    rate = body.get("rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise BadCommand("rate", "a share from 0 to 1")
    return float(rate)


def _failing(body: Body) -> Failing | None:
    status = _whole(body, "status", 503)
    if not 300 <= status <= 599:
        raise BadCommand("status", "an HTTP status from 300 to 599")
    retry_after = _whole(body, "retry_after", 0) if "retry_after" in body else None
    rate = _share(body)
    page = _word(body, "page", ErrorPage, ErrorPage.TEXT)
    return Failing(status, rate, retry_after, page) if rate else None


def _spoiling(body: Body) -> Spoiling | None:
    what = _word(body, "what", AfterWork, AfterWork.HANG_UP)
    over = _word(body, "over", Over, Over.ANY)
    rate = _share(body)
    seconds = _number(body, "seconds", LATE_SECONDS)
    return Spoiling(what, rate, over, seconds) if rate else None


def _seconds_or_none(body: Body) -> float | None:
    return None if body.get("seconds") is None else _number(body, "seconds", 0.0)


Word = TypeVar("Word", bound=StrEnum)


def _word(body: Body, name: str, words: type[Word], default: Word) -> Word:
    value = body.get(name, default.value)
    for word in words:
        if word.value == value:
            return word
    raise BadCommand(name, f"one of {', '.join(words)}")


def _health_format(body: Body) -> HealthFormat | SickPage:
    word = body.get("format")
    formats: dict[object, HealthFormat | SickPage] = {
        member.value: member for member in (*HealthFormat, *SickPage)
    }
    if word not in formats:
        raise BadCommand("format", f"one of {', '.join(map(str, formats))}")
    return formats[word]
