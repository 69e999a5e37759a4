"""The plant's control port: JSON over HTTP. Every call is described in docs/standin.md.

It shows secure keys, because whoever rehearses must register its sessions; they open nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Protocol

from aiohttp import web

from asyncchatd.standin.control.commands import (
    BadCommand,
    Body,
    read_body,
    read_failing,
    read_flag,
    read_health_format,
    read_number,
    read_seconds_or_none,
    read_share,
    read_spoiling,
    read_text,
    read_whole,
)
from asyncchatd.standin.control.shown import chat_line, session_line, shown_chat, shown_node, shown_server
from asyncchatd.standin.files import Generated, PlantFile
from asyncchatd.standin.gms_node import GmsNode
from asyncchatd.standin.plant import Plant
from asyncchatd.standin.plant.parts import ChatSession, PlantError
from asyncchatd.standin.settings import SettingError
from asyncchatd.wire import error_body

LARGEST_FILE = 2**40

CHUNK = 500
"""Sessions handled in one turn of the loop: Chat API requests go on in between."""


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
            web.get("/chats", control.all_chats),
            web.get("/chats/{chat_id}", control.chat),
            web.post("/chats", control.chats),
            web.post("/join", control.join),
            web.post("/say", control.say),
            web.post("/type", control.type),
            web.post("/upload", control.upload),
            web.post("/notice", control.notice),
            web.post("/swallow", control.swallow),
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
                "servers": [
                    shown_server(server, health[server.name]) for server in self._plant.servers.values()
                ],
                "gms": [shown_node(n, node) for n, node in enumerate(self._standin.nodes, 1)],
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
        self._plant.change(await read_body(request))
        return web.json_response(self._plant.settings.shown())

    async def chats(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(
            request, "count", "service", "spread", "subscribe", "transcript", "tell_position"
        )
        transcript = read_whole(body, "transcript", 0)
        tell_position = read_flag(body, "tell_position", True)
        count = read_whole(body, "count", 1)
        service = read_text(body, "service", None)
        subscribe = read_flag(body, "subscribe", True)
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

        return await _lines(request, started(), session_line if tell_position else _without_position)

    async def all_chats(self, request: web.Request) -> web.StreamResponse:
        service = request.query.get("service")
        chats = [chat for chat in self._plant.sessions.values() if service in (None, chat.service)]
        return await _lines(request, _in_chunks(chats), chat_line)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        session = self._plant.chats.named(request.match_info["chat_id"])
        files = {file_id: await _digest(file) for file_id, file in (session.files or {}).items()}
        return web.json_response(shown_chat(session, files))

    async def join(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count")
        return await self._done("joined", body, self._plant.agents.join)

    async def say(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count", "text")
        text = read_text(body, "text", None) or "How may I help you?"
        return await self._done("said", body, lambda session: self._plant.agents.say(session, text))

    async def type(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count", "started")
        started = read_flag(body, "started", True)
        return await self._done(
            "typed", body, lambda session: self._plant.agents.type(session, started=started)
        )

    async def upload(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count", "name", "size", "seed", "text")
        name = read_text(body, "name", None) or "notes.txt"
        if (text := read_text(body, "text", None)) is not None:
            file = PlantFile(name, len(text.encode()), text.encode())
        else:
            size = read_whole(body, "size", 1024, most=LARGEST_FILE)
            file = PlantFile(name, size, Generated(read_whole(body, "seed", 0)))
        return await self._done("uploaded", body, lambda session: self._plant.agents.upload(session, file))

    async def notice(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count", "text", "attributes")
        text, attributes = read_text(body, "text", None), body.get("attributes")
        return await self._done(
            "noticed", body, lambda session: self._plant.agents.notice(session, text, attributes)
        )

    async def swallow(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count", "swallowed")
        swallowed = self._plant.swallow(self._meant(body), read_flag(body, "swallowed", True))
        return web.json_response({"sessions": swallowed})

    async def end(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count")
        return web.json_response({"ended": self._plant.end_chats(self._meant(body))})

    async def move(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count")
        return web.json_response({"moved": self._plant.move(self._meant(body))})

    async def rotate(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count", "announce")
        rotated = self._plant.rotate(self._meant(body), announce=read_flag(body, "announce", False))
        return web.json_response({"rotated": rotated})

    async def push_late(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "chat_id", "count")
        return web.json_response({"pushed": self._plant.push_late(self._meant(body))})

    async def servers(self, request: web.Request) -> web.StreamResponse:
        plant, name, verb = self._plant, request.match_info["name"], request.match_info["verb"]
        server = plant.servers.named(name)
        allowed = _SERVER_VERBS.get(verb)
        if allowed is None:
            raise BadCommand("verb", f"one of {', '.join(_SERVER_VERBS)}")
        body = await read_body(request, *allowed)
        match verb:
            case "kill":
                plant.servers.kill(name)
            case "start":
                plant.servers.start(
                    name, pid=server.process.pid if read_flag(body, "same_pid", False) else None
                )
            case "restart":
                plant.servers.restart(
                    name,
                    downtime=read_number(body, "seconds", 0.0),
                    same_pid=read_flag(body, "same_pid", False),
                )
            case "hang":
                plant.servers.hang(name)
            case "resume":
                plant.servers.resume(name)
            case "slow":
                plant.servers.slow(name, read_number(body, "seconds", 0.0))
            case "stop":
                plant.servers.stop(name, delay=read_number(body, "seconds", plant.settings.stop_delay))
            case "zero_counters":
                plant.servers.zero_counters(name)
            case "share_address":
                plant.servers.share_address(name, read_flag(body, "shared", True))
            case _:
                server.health = read_health_format(body)
        await self._standin.settled()
        return web.json_response(shown_server(server, self._standin.health_urls[name]))

    async def gms(self, request: web.Request) -> web.StreamResponse:
        number, verb = request.match_info["number"], request.match_info["verb"]
        nodes = self._standin.nodes
        if not number.isdecimal() or not 1 <= int(number) <= len(nodes):
            raise PlantError(f"no such GMS node; they count from 1 to {len(nodes)}")
        node = nodes[int(number) - 1]
        allowed = _GMS_VERBS.get(verb)
        if allowed is None:
            raise BadCommand("verb", f"one of {', '.join(_GMS_VERBS)}")
        body = await read_body(request, *allowed)
        match verb:
            case "kill":
                await node.kill()
            case "start":
                await node.start()
            case "hang":
                node.hang()
            case "slow":
                node.slow = read_number(body, "seconds", 0.0)
            case "fail":
                node.fail(read_failing(body), read_seconds_or_none(body))
            case "redeploy":
                node.redeploy(read_number(body, "seconds", 10.0))
            case "after_work":
                node.spoiling = read_spoiling(body)
            case "proxy":
                node.patience = read_seconds_or_none(body)
            case _:
                node.garbage_rate = read_share(body)
        return web.json_response(shown_node(int(number), node))

    async def _done(self, word: str, body: Body, do: Callable[[ChatSession], bool]) -> web.StreamResponse:
        """What agents do in the chats that are meant, one after the other; in how many it could be done."""
        done = undeliverable = 0
        for n, session in enumerate(self._meant(body), 1):
            if do(session):
                done += 1
            else:
                undeliverable += 1
            if n % CHUNK == 0:
                await asyncio.sleep(0)
        return web.json_response({word: done, "undeliverable": undeliverable})

    def _spread(self, body: Body) -> list[str]:
        spread = body.get("spread", "even")
        if spread == "even":
            return list(self._plant.servers)
        if not isinstance(spread, list) or not spread or not all(isinstance(name, str) for name in spread):
            raise BadCommand("spread", '"even" or a list of Chat Server names')
        return spread

    def _meant(self, body: Body) -> Iterable[ChatSession]:
        """The session with this id, or the next so many in turn."""
        if (chat_id := read_text(body, "chat_id", None)) is not None:
            return [self._plant.chats.named(chat_id)]
        return self._plant.chats.some(read_whole(body, "count", 1))


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
    request: web.Request,
    chunks: AsyncIterator[list[ChatSession]],
    line: Callable[[ChatSession], dict[str, object]] = session_line,
) -> web.StreamResponse:
    """Sessions as JSON lines. The first chunk comes before the status, so that its errors have one."""
    nothing: list[ChatSession] = []
    first = await anext(chunks, nothing)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    await response.write(_as_lines(first, line))
    async for chunk in chunks:
        await response.write(_as_lines(chunk, line))
    await response.write_eof()
    return response


def _as_lines(sessions: list[ChatSession], line: Callable[[ChatSession], dict[str, object]]) -> bytes:
    return "".join(json.dumps(line(session)) + "\n" for session in sessions).encode()


def _without_position(session: ChatSession) -> dict[str, object]:
    return session_line(session) | {"next_position": None}


async def _digest(file: PlantFile) -> str:
    """Read beside the loop: an agent's file may be of any size."""
    return await asyncio.to_thread(file.sha256)
