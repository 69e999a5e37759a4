"""An independent plant: GMS nodes and Chat Servers on loopback, written from the protocol alone.

The daemon's own stand-in and the daemon could share a misunderstanding; this plant shares nothing with either. It
keeps a book of everything a client of GMS can do wrong (`Plant.breaches`), and a list of every request with its time
of arrival, so that a test can say what the plant suffered rather than what the daemon believes it did.

The HTTP beneath is a few lines over asyncio, not a library: a plant must be able to hang, to cut an answer in the
middle, to close connections under a client and to die without a farewell.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import random
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote

KEY_MARK = "plantedkey"
"""Every secure key begins with this, so that one search finds any key that leaks."""

ON_THE_WAY = 0.1
"""Seconds a request sent before may need to arrive."""


Body = bytes | str | Mapping[str, object]


# The plant


@dataclass
class Reply:
    """One answer, with every way it can go wrong."""

    body: Body = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds until it is sent; the request counts as in flight meanwhile."""
    cut: int | None = None
    """Send only so many bytes of the body, then drop the connection."""
    close: bool = False
    """Drop the connection after this answer without having said so."""
    never: bool = False
    """Do not answer at all."""
    hang_up: Literal["fin", "rst"] | None = None
    """Close the connection without a byte."""
    behind: Reply | None = None
    """What comes behind this answer though nobody asked for it."""
    behind_after: float = 0.0
    """Seconds until it does; with none both are one piece."""

    def raw(self) -> bytes:
        """All of it as it goes to the socket."""
        body = encoded(self.body)
        headers = {
            "Content-Type": "application/json;charset=UTF-8",
            "Content-Length": str(len(body)),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} X\r\n{lines}\r\n".encode() + body[: self.cut]


Spoil = Callable[[Reply], Reply]
"""What becomes of a good answer on its way back."""


def hung_up(how: Literal["fin", "rst"] = "fin") -> Spoil:
    return lambda reply: Reply(hang_up=how)


def replaced(by: Reply) -> Spoil:
    return lambda reply: by


def half_body(reply: Reply) -> Reply:
    whole = encoded(reply.body)
    return Reply(whole, cut=len(whole) // 2)


def damaged_gzip(reply: Reply) -> Reply:
    packed = gzip.compress(encoded(reply.body))
    return Reply(packed[:20] + bytes(len(packed) - 20), headers={"Content-Encoding": "gzip"})


def under(status: int) -> Spoil:
    """The answer itself, under a status that says it failed."""
    return lambda reply: Reply(reply.body, status)


def too_large(reply: Reply) -> Reply:
    """With a message that nobody can keep."""
    assert isinstance(reply.body, Mapping)
    return Reply({**reply.body, "messages": [{"index": 3, "type": "Message", "text": "x" * 5 * 2**20}]})


def twice(after: float = 0.0, *, without: Sequence[str] = (), **other: object) -> Spoil:
    """It comes again, so much later, without some of its properties and with others."""

    def spoil(reply: Reply) -> Reply:
        assert isinstance(reply.body, Mapping)
        again = {name: value for name, value in reply.body.items() if name not in without} | other
        return Reply(reply.body, behind=Reply(again), behind_after=after)

    return spoil


def farewell(after: float) -> Spoil:
    """The node has waited long enough for the next request."""
    last = Reply("", 408, headers={"Connection": "close"}, close=True)
    return lambda reply: Reply(reply.body, behind=last, behind_after=after)


AT_ONCE = 0.1
"""A request that comes again so soon after a hang-up was sent at once."""


@dataclass
class Refresh:
    """One ping Refresh, as it arrived."""

    at: float
    node: int
    chat_id: str
    service: str
    user_id: str
    secure_key: str
    alias: str
    position: str | None
    headers: Mapping[str, str]
    answered: float | None = None
    given_up: bool = False
    """The client dropped the connection before its answer."""
    status_code: int | None = None
    lost: bool = False
    """Whether its answer never reached the client, or not as an answer."""
    cut_off: float | None = None
    """When a proxy hung up on the client, though Chat Server still worked."""


@dataclass
class Chat:
    """One session as Chat Server sees it, with the only tokens that are right."""

    chat_id: str
    user_id: str
    secure_key: str
    alias: str
    device_id: str
    next_position: int = 3
    service: str = "customer-support"
    ended: bool = False
    hosted: bool = True
    """False from the moment its Chat Server is gone until a Refresh restores it."""
    restored_at: float | None = None
    in_flight: int = 0
    answers: deque[Reply | Mapping[str, object]] = field(default_factory=deque)
    """Answers for the next requests: a Reply as it is, a mapping over what a success would say."""
    lost: deque[Spoil] = field(default_factory=deque)
    """What becomes of its next answers, once the work is done."""
    standing: Reply | Mapping[str, object] | None = None
    """The answer to every request while it is set."""
    also_valid: dict[str, float] = field(default_factory=dict)
    """Older keys that no client can yet know to be old, until this moment."""
    unheard: set[str] = field(default_factory=set)
    """User ids and aliases that only an answer replaced which never came."""
    end_unheard: bool = False
    working: list[Refresh] = field(default_factory=list)
    positions: set[str] = field(default_factory=set)
    refreshes: list[Refresh] = field(default_factory=list)
    said: list[Mapping[str, object]] = field(default_factory=list)
    """The messages of its agent, which each reply shows from the asked position on."""

    def body(self, **other: object) -> dict[str, object]:
        """The session as the control API takes it."""
        return {
            "service": self.service,
            "chat_id": self.chat_id,
            "user_id": self.user_id,
            "secure_key": self.secure_key,
            "alias": self.alias,
            "device_id": self.device_id,
            "next_position": self.next_position,
        } | other

    def shown(self, position: str | None) -> list[Mapping[str, object]]:
        """What a reply shows that was asked with this position: none is all, -1 the last event, n those from n on."""
        if position == "-1":
            return self.said[-1:]
        return [event for event in self.said if int(str(event["index"])) >= int(position or 1)]

    def moved_to(self, position: int) -> None:
        """The client was told this next position, by a reply or by a push."""
        self.next_position = position
        self.positions.add(str(position))


class Plant:
    """GMS nodes, Chat Servers, the chats they hold, and the book of what a client did to them."""

    def __init__(self, *, servers: int = 2, nodes: int = 1) -> None:
        self.chats: dict[str, Chat] = {}
        self.servers = [ChatServer(f"chat-{n}", str(110 + n), pid=4000 + n) for n in range(1, servers + 1)]
        self.nodes = [GmsNode(self, n) for n in range(nodes)]
        self.refreshes: list[Refresh] = []
        self.breaches: Counter[str] = Counter()
        self.evidence: list[str] = []
        self.rotate: set[Literal["key", "alias", "user", "position"]] = set()
        self.rotate_on_restore: set[Literal["key", "user"]] = set()
        self.delay = 0.0
        self.gate = asyncio.Event()
        """While it is clear, no answer leaves."""
        self.gate.set()
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        for listener in self.listeners:
            await listener.open()

    async def stop(self) -> None:
        self.gate.set()
        for node in self.nodes:
            node.stop_work()
        for listener in self.listeners:
            await listener.close()

    @property
    def listeners(self) -> list[Listener]:
        return [*(node.listener for node in self.nodes), *(server.listener for server in self.servers)]

    # Chats

    def chat(self, alias: str | None = None) -> Chat:
        """A new chat on a Chat Server."""
        n = next(self._numbers)
        chat = Chat(
            chat_id=f"0008TaFN{n:08X}",
            user_id=f"052B{int(time.time()) % 2**32:08X}{n:04X}",
            secure_key=self.new_key(),
            alias=alias or (self.servers[0].alias if self.servers else "117"),
            device_id=f"device-{n:06d}-{n * 7919 % 100003:05d}",
        )
        chat.positions.add(str(chat.next_position))
        self.chats[chat.chat_id] = chat
        return chat

    def several(self, count: int, alias: str | None = None) -> list[Chat]:
        return [self.chat(alias) for _ in range(count)]

    def say(self, chat: Chat, text: str) -> None:
        """An agent writes. The next reply shows it; to push is the test's part."""
        chat.said.append(
            {
                "index": chat.next_position,
                "type": "Message",
                "utcTime": int(time.time() * 1000),
                "text": text,
                "from": {"participantId": 2, "nickname": "Agent", "type": "Agent"},
            }
        )
        chat.next_position += 1

    def new_key(self) -> str:
        n = next(self._numbers)
        return f"{KEY_MARK}{n:06x}{n * 2654435761 % 2**32:08x}"

    def rekey(self, chat: Chat) -> str:
        """Chat Server gives the session a new key outside any reply; the client learns it from a push.

        The old key stays good until `told` is called, as no client can know better before that push is answered.
        """
        chat.also_valid[chat.secure_key] = float("inf")
        chat.secure_key = self.new_key()
        return chat.secure_key

    def told(self, chat: Chat) -> None:
        """The client knows the newest key: every older one is wrong, but for requests already on their way."""
        chat.also_valid = {key: time.monotonic() + ON_THE_WAY for key in chat.also_valid}

    def forget_position(self, chat: Chat) -> None:
        """Nobody told the client a position: any will do but 0, which may neither acknowledge nor restore."""
        chat.positions.clear()

    # Servers

    def server(self, alias: str) -> ChatServer:
        return next(server for server in self.servers if server.alias == alias)

    async def kill(self, server: ChatServer) -> None:
        """The process is gone, and what it held with it."""
        self.lose(server)
        server.up = False
        await server.listener.close()

    async def revive(self, server: ChatServer, *, pid: int | None = None) -> None:
        server.up = True
        server.restart(pid)
        await server.listener.open()

    def lose(self, server: ChatServer) -> None:
        """Its sessions are in no Chat Server's memory until a Refresh comes for each."""
        for chat in self.chats.values():
            if chat.alias == server.alias and not chat.ended:
                chat.hosted = False
                chat.restored_at = None

    def unrestored(self) -> list[Chat]:
        return [chat for chat in self.chats.values() if not chat.hosted and not chat.ended]

    # The book

    def breach(self, kind: str, detail: str) -> None:
        self.breaches[kind] += 1
        if len(self.evidence) < 20:
            self.evidence.append(f"{kind}: {detail}")

    def since(self, when: float, chats: Iterable[Chat] | None = None) -> list[Refresh]:
        wanted = None if chats is None else {chat.chat_id for chat in chats}
        return [r for r in self.refreshes if r.at >= when and (wanted is None or r.chat_id in wanted)]

    def peak(self, window: float, *, since: float = 0.0) -> int:
        """The most requests that arrived within any window of so many seconds."""
        times = [r.at for r in self.refreshes if r.at >= since]
        most = first = 0
        for last, at in enumerate(times):
            while at - times[first] >= window:
                first += 1
            most = max(most, last - first + 1)
        return most

    # A Refresh

    async def refresh(self, seen: Refresh, triple_was_whole: bool) -> Reply:
        self.refreshes.append(seen)
        if not triple_was_whole:
            self.breach("incomplete", f"{seen.chat_id} came with an incomplete triple")
        chat = self.chats.get(seen.chat_id)
        if chat is None:
            self.breach("unknown_chat", f"{seen.chat_id} was never opened here")
            return Reply({"statusCode": 2, "chatEnded": True, "errors": [{"code": 249}]})
        chat.refreshes.append(seen)
        if chat.in_flight:
            risky = all(r.cut_off is not None and seen.at - r.cut_off > AT_ONCE for r in chat.working)
            kind = "overlapping_later" if risky else "overlapping"
            self.breach(kind, f"{chat.chat_id} has a request in flight already")
        chat.in_flight += 1
        chat.working.append(seen)
        try:
            reply = self._judge(chat, seen)
            await asyncio.sleep(reply.delay or self.delay)
            await self.gate.wait()
            if reply.never:
                await asyncio.Event().wait()
            return reply
        except asyncio.CancelledError:
            seen.given_up = True
            raise
        finally:
            chat.in_flight -= 1
            chat.working.remove(seen)
            if not seen.given_up:
                seen.answered = time.monotonic()

    def unheard(self, seen: Refresh) -> None:
        """Its answer never came. What it told no client can know: what the client said stays good until an
        answer comes."""
        chat = self.chats[seen.chat_id]
        if seen.secure_key != chat.secure_key:
            chat.also_valid[seen.secure_key] = float("inf")
        chat.unheard |= {seen.user_id, seen.alias}
        chat.positions |= {
            seen.position or "",
            "-1",
        }  # the latter asks for the last event, to learn the next position
        chat.end_unheard = chat.ended
        seen.lost = True

    def _judge(self, chat: Chat, seen: Refresh) -> Reply:
        if chat.ended and chat.end_unheard:
            chat.end_unheard = False
            return Reply({"statusCode": 2, "chatEnded": True, "chatId": chat.chat_id})
        if chat.ended:
            self.breach("after_end", f"{chat.chat_id} has ended")
            return Reply({"statusCode": 2, "chatEnded": True, "chatId": chat.chat_id})
        if seen.secure_key != chat.secure_key and seen.at > chat.also_valid.get(seen.secure_key, 0.0):
            self.breach("wrong_key", f"{chat.chat_id} has {chat.secure_key}, not {seen.secure_key}")
            chat.ended = True
            return Reply({"statusCode": 2, "chatEnded": True, "chatId": chat.chat_id})
        if seen.user_id != chat.user_id and seen.user_id not in chat.unheard:
            self.breach("wrong_user", f"{chat.chat_id} has user {chat.user_id}, not {seen.user_id}")
        if seen.alias != chat.alias and seen.alias not in chat.unheard:
            self.breach("stale_alias", f"{chat.chat_id} has alias {chat.alias}, not {seen.alias}")
        if seen.service != chat.service:
            self.breach("wrong_service", f"{chat.chat_id} is of {chat.service}, not {seen.service}")
        if (chat.positions and seen.position not in chat.positions) or seen.position == "0":
            self.breach(
                "wrong_position", f"{chat.chat_id} is at {sorted(chat.positions)}, not {seen.position}"
            )
        chosen = chat.answers.popleft() if chat.answers else chat.standing
        if isinstance(chosen, Reply):
            return chosen
        server = next((s for s in self.servers if s.alias == chat.alias), None)
        if server is not None and server.mode == "hang" and chosen is None:
            seen.status_code = 1
            return Reply({"statusCode": 1, "errors": [{"code": 100, "message": "no Chat Server"}]})
        over = dict(chosen or {})
        if over.get("statusCode", 0) != 0:
            seen.status_code = int(str(over["statusCode"]))
            chat.ended = chat.ended or (over["statusCode"] == 2 and over.get("chatEnded") is True)
            return Reply({"chatId": chat.chat_id, "messages": []} | over)
        return Reply(self._success(chat, seen) | over) if not over else self._told_otherwise(chat, seen, over)

    def _success(self, chat: Chat, seen: Refresh) -> dict[str, object]:
        living = [server for server in self.servers if server.up and server.mode != "hang"]
        # Two new keys at the same moment, one by push and one in a reply, could be told apart by nobody.
        rotate = self.rotate if seen.secure_key == chat.secure_key else set()
        if not chat.hosted:
            if not living:
                seen.status_code = 1
                return {"statusCode": 1, "errors": [{"code": 100, "message": "no Chat Server"}]}
            chat.hosted = True
            chat.restored_at = seen.at
            others = [server for server in living if server.alias != chat.alias] or living
            chat.alias = others[len(chat.refreshes) % len(others)].alias
            if "key" in self.rotate_on_restore:
                chat.secure_key = self.new_key()
            if "user" in self.rotate_on_restore:
                chat.user_id = f"052B{next(self._numbers):012X}"
        if "key" in rotate:
            chat.secure_key = self.new_key()
        if "user" in self.rotate:
            chat.user_id = f"052B{next(self._numbers):012X}"
        if "alias" in self.rotate:
            chat.alias = living[len(chat.refreshes) % len(living)].alias
        chat.also_valid.clear()
        chat.unheard.clear()
        if chat.said:
            chat.positions.add(str(chat.next_position))
        if "position" in self.rotate:
            chat.positions.clear()
            chat.moved_to(chat.next_position + 2)
        seen.status_code = 0
        return {
            "messages": chat.shown(seen.position),
            "chatEnded": False,
            "statusCode": 0,
            "alias": chat.alias,
            "secureKey": chat.secure_key,
            "userId": chat.user_id,
            "chatId": chat.chat_id,
            "nextPosition": chat.next_position,
        }

    def _told_otherwise(self, chat: Chat, seen: Refresh, over: Mapping[str, object]) -> Reply:
        """A success that says something of its own; what it says of the tokens is true from now on."""
        if over.get("chatEnded") is True:
            chat.ended = True
        if isinstance(key := over.get("secureKey"), str):
            chat.secure_key = key
        if (alias := over.get("alias")) is not None:
            chat.alias = str(alias)
        if isinstance(position := over.get("nextPosition"), int) and position < 2**31:
            chat.positions.clear()
            chat.moved_to(position)
        seen.status_code = 0
        told = self._success(chat, seen) | dict(over)
        return Reply({name: value for name, value in told.items() if value is not ...})


class GmsNode:
    """One node of the GMS cluster: `POST {base}/2/chat/{service}/{chatId}/refresh`."""

    def __init__(self, plant: Plant, number: int) -> None:
        self.plant = plant
        self.number = number
        self.base = ("/genesys", "/chat/gms-b/genesys", "")[number % 3]
        self.fault: Reply | None = None
        """Its answer to everything while it is set: no work is done."""
        self.after_work: Spoil | None = None
        """What becomes of its answers once the work is done."""
        self.loses_answers = True
        """Whether what `after_work` makes of them tells a client nothing."""
        self.patience: float | None = None
        """Seconds after which a proxy in front of it hangs up, whatever Chat Server still works on."""
        self.door: int | None = None
        """The port of a proxy in front of it, where clients ask one."""
        self.requests: list[float] = []
        self.listener = Listener(self._answer)
        self._behind: set[asyncio.Task[Reply]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.door or self.listener.port}{self.base}"

    def spoil(self, spoil: Spoil | None, *, loses_answers: bool = True) -> None:
        """From now on, each answer after its work."""
        self.after_work, self.loses_answers = spoil, loses_answers

    async def _answer(self, request: Request) -> Reply:
        self.requests.append(request.at)
        if self.fault is not None:
            await asyncio.sleep(self.fault.delay)
            return self.fault
        path = request.path.partition("?")[0]
        parts = path.removeprefix(self.base).split("/")
        if (request.method, path) == ("GET", f"{self.base}/1/admin/node/status"):  # `asyncchatd check` asks
            return Reply(b"ONLINE", headers={"Content-Type": "text/plain;charset=ISO-8859-1"})
        if request.method != "POST" or not path.startswith(self.base) or parts[1:3] != ["2", "chat"]:
            self.plant.breach("misfit", f"{request.method} {request.path}")
            return Reply("Not Found", 404)
        if len(parts) != 6 or parts[5] != "refresh":
            self.plant.breach("misfit", f"{request.method} {request.path}")
            return Reply("Not Found", 404)
        if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            self.plant.breach("misfit", f"Content-Type {request.headers.get('content-type')}")
        form = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
        seen = Refresh(
            at=request.at,
            node=self.number,
            service=unquote(parts[3]),
            chat_id=unquote(parts[4]),
            user_id=form.get("userId", ""),
            secure_key=form.get("secureKey", ""),
            alias=form.get("alias", ""),
            position=form.get("transcriptPosition"),
            headers=request.headers,
        )
        whole = all(form.get(name) for name in ("userId", "secureKey", "alias"))
        if self.patience is None:
            return self._spoilt(seen, await self.plant.refresh(seen, whole))
        work = asyncio.ensure_future(self.plant.refresh(seen, whole))
        self._behind.add(work)
        work.add_done_callback(self._behind.discard)
        await asyncio.wait({work}, timeout=self.patience)
        if work.done():
            return self._spoilt(seen, work.result())
        seen.cut_off = time.monotonic()
        self.plant.unheard(seen)
        return Reply(hang_up="fin")

    def _spoilt(self, seen: Refresh, reply: Reply) -> Reply:
        chat = self.plant.chats.get(seen.chat_id)
        if chat is not None and chat.lost:
            self.plant.unheard(seen)
            return chat.lost.popleft()(reply)
        if self.after_work is None or chat is None:
            return reply
        if self.loses_answers:
            self.plant.unheard(seen)
        return self.after_work(reply)

    def stop_work(self) -> None:
        """Whatever goes on behind a proxy."""
        for work in list(self._behind):
            work.cancel()


class ChatServer:
    """One Chat Server instance, as its health page and its sessions show it."""

    def __init__(self, name: str, alias: str, *, pid: int) -> None:
        self.name = name
        self.alias = alias
        self.pid = pid
        self.page: Callable[[ChatServer], Reply] = json_page
        self.mode: Literal["ok", "hang"] = "ok"
        self.up = True
        self.started = time.time()
        self.polls: list[float] = []
        self.fault: Reply | None = None
        """Its health page's answer while it is set."""
        self.listener = Listener(self._answer)

    @property
    def health_url(self) -> str:
        return f"http://127.0.0.1:{self.listener.port}/health"

    def restart(self, pid: int | None = None) -> None:
        self.pid = self.pid + 1000 if pid is None else pid
        self.started = time.time()

    async def _answer(self, request: Request) -> Reply:
        self.polls.append(request.at)
        if self.mode == "hang":
            return Reply(never=True)
        return self.fault or self.page(self)


# Health pages: the documentation names two counters and no format


def json_page(server: ChatServer) -> Reply:
    body = {"app_dbid": int(server.alias), "process_os_pid": server.pid, "sessions_current": 12}
    return Reply(body, headers={"Content-Type": "application/json"})


def nested_json_page(server: ChatServer) -> Reply:
    kpi = {"app_dbid": server.alias, "process_os_pid": f"{server.pid}.0"}
    depth = {"health": {"counters": [{"group": "flex", "n": 0}, {"group": "process", "kpi": kpi}]}}
    return Reply(depth, headers={"Content-Type": "text/plain"})


def equals_page(server: ChatServer) -> Reply:
    text = f"# KPI\napp_dbid={server.alias}\nprocess_os_pid={server.pid}\nflex_sessions=7\n"
    return Reply(text, headers={"Content-Type": "text/html"})


def colon_page(server: ChatServer) -> Reply:
    text = f"version: 8.5.315.12\r\napp_dbid: {server.alias}\r\nprocess_os_pid: {server.pid}\r\n"
    return Reply(text, headers={"Content-Type": "application/octet-stream"})


def xml_attributes_page(server: ChatServer) -> Reply:
    text = (
        f'<?xml version="1.0"?><kpi><process app_dbid="{server.alias}" process_os_pid="{server.pid}"/></kpi>'
    )
    return Reply(text, headers={"Content-Type": "text/xml"})


def xml_elements_page(server: ChatServer) -> Reply:
    inner = f"<app_dbid>{server.alias}</app_dbid><os><process_os_pid> {server.pid} </process_os_pid></os>"
    return Reply(f"<health>{inner}</health>")


def prometheus_page(server: ChatServer) -> Reply:
    text = (
        "# HELP process_os_pid id of the process\n# TYPE process_os_pid gauge\n"
        f"process_os_pid {server.pid}.0\n# TYPE app_dbid gauge\n"
        f'app_dbid{{host="a",app="cs"}} {server.alias}\nflex_sessions{{kind="async"}} 4.2e1\n'
    )
    return Reply(text, headers={"Content-Type": "text/plain; version=0.0.4"})


def no_dbid_page(server: ChatServer) -> Reply:
    return Reply({"process_os_pid": server.pid})


def start_time_page(server: ChatServer) -> Reply:
    """A container: its process id is always 1."""
    return Reply(
        {"app_dbid": int(server.alias), "process_os_pid": 1, "start_time": int(server.started * 1000)}
    )


def uptime_page(server: ChatServer) -> Reply:
    """A container whose page says how long it has been running."""
    uptime = round(time.time() - server.started + 0.001, 3)
    return Reply({"app_dbid": int(server.alias), "process_os_pid": 1, "uptime": uptime})


# HTTP, as badly as needed


@dataclass
class Request:
    at: float
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Listener:
    """A port that can be opened, closed at once with all its connections, and opened again."""

    def __init__(self, answer: Callable[[Request], Awaitable[Reply]]) -> None:
        self.answer = answer
        self.port = free_port()
        self.connections: set[_Connection] = set()
        self.accepted = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await stop_listening(server)
        self.drop()
        # The transports close on the next rounds of the loop; a port still in use cannot be opened again.
        for _ in range(3):
            await asyncio.sleep(0)

    def drop(self) -> None:
        """Close every connection, answered or not."""
        for connection in list(self.connections):
            connection.abort()

    def drop_idle(self) -> None:
        """Close every connection on which no request waits, as a node does that stops in good order."""
        for connection in list(self.connections):
            if connection.idle:
                connection.abort()


async def stop_listening(server: asyncio.Server) -> None:
    """End a server. asyncio drops, with its socket open, a connection that was accepted and is not made yet when its
    server closes; two turns of the loop make it."""
    for each in server.sockets:
        asyncio.get_running_loop().remove_reader(each.fileno())
    for _ in range(2):
        await asyncio.sleep(0)
    server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._listener.connections.add(self)
        self._listener.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    @property
    def idle(self) -> bool:
        return self._task is None and not self._buffer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next()

    def _next(self) -> None:
        head, split, rest = self._buffer.partition(b"\r\n\r\n")
        if not split:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        request = Request(time.monotonic(), method, path, headers, rest[:length])
        self._task = asyncio.get_running_loop().create_task(self._serve(request))
        self._task.add_done_callback(self._served)

    async def _serve(self, request: Request) -> None:
        reply = await self._listener.answer(request)
        if reply.never:
            await asyncio.Event().wait()
        if self._transport is None:
            return
        if reply.hang_up == "rst":
            linger = struct.pack("ii", 1, 0)  # for no time: the kernel sends an RST
            same = self._transport.get_extra_info("socket")
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if reply.hang_up is not None:
            self._transport.close()
            return
        behind = reply.behind
        glued = behind.raw() if behind is not None and not reply.behind_after else b""
        self._transport.write(reply.raw() + glued)
        if reply.cut is not None or reply.close:
            self._transport.close()
        elif behind is not None and reply.behind_after:
            asyncio.get_running_loop().call_later(reply.behind_after, self._say, behind)

    def _say(self, reply: Reply) -> None:
        """Unasked. No node takes its leave while it works."""
        if self._transport is not None and (self.idle or not reply.close):
            self._transport.write(reply.raw())
            if reply.close:
                self._transport.close()

    def _served(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.result()
            if self._transport is not None and self._buffer:
                self._next()


def encoded(body: Body) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


# Pushes, as GMS would post them


def now_ms(offset: float = 0.0) -> int:
    """Chat Server's `utcTime`: epoch milliseconds, so many seconds from now."""
    return int((time.time() + offset) * 1000)


def tokens(chat: Chat, spelling: str = "hyphen") -> dict[str, object]:
    """The four tokens flex-push-content may name, in one of the spellings met."""
    names = {
        "hyphen": ("session-id", "user-id", "secure-key", "app-dbid"),
        "underscore": ("session_id", "user_id", "secure_key", "app_dbid"),
        "camel": ("sessionId", "userId", "secureKey", "appDbid"),
        "api": ("chatId", "userId", "secureKey", "alias"),
    }[spelling]
    return dict(zip(names, (chat.chat_id, chat.user_id, chat.secure_key, chat.alias), strict=True))


def event(kind: str = "Message", *, at: float = 0.0, **other: object) -> dict[str, object]:
    """One event of an agent's, `at` seconds from now."""
    base: dict[str, object] = {
        "from": {"nickname": "Agent", "participantId": 2, "type": "Agent"},
        "index": 4,
        "type": kind,
        "utcTime": now_ms(at),
    }
    if kind == "Message":
        base["text"] = "Good morning"
    return base | other


def push(chat: Chat, message: object) -> dict[str, object]:
    """The body GMS posts: `deviceId` and `message`."""
    return {"deviceId": chat.device_id, "message": message}


def payload(chat: Chat, *events: Mapping[str, object], **other: object) -> dict[str, object]:
    """A notification with its payload: the content of a CometD notification, that is a reply object."""
    return {
        "statusCode": 0,
        "chatId": chat.chat_id,
        "userId": chat.user_id,
        "secureKey": chat.secure_key,
        "alias": chat.alias,
        "chatEnded": False,
        "messages": list(events) or [event()],
    } | other


# Ports


SHARE = 2_000
"""Ports for each process that runs tests beside others."""


def _ports() -> Iterator[int]:
    """All of this process's share, from anywhere in it, again and again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first, begin = 10_000 + worker % 11 * SHARE, random.randrange(SHARE)
    return (first + (begin + step) % SHARE for step in itertools.count())


_next_port = _ports()


def free_port() -> int:
    """A port that is free now, and that nobody is given again soon. It lies below those the system gives to
    outgoing connections: one of these could take it while a part of the plant, or the daemon, is down and
    about to come back to it."""
    for port in _next_port:
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no end of ports")
