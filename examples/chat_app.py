"""A small chat application: a page in the browser, GMS behind it, asyncchatd beside it.

    python examples/chat_app.py --gms http://127.0.0.1:8080/genesys --asyncchatd http://127.0.0.1:8092 \\
        --secret-file webhook-secret

The customer's page opens a chat: "request chat" at GMS, with the subscription that makes GMS push to asyncchatd, whose
reply is registered at asyncchatd at once. What agents write comes as signed webhooks to /asyncchatd and goes on to the
page as server-sent events. What the customer writes is sent to GMS with the newest tokens, and with no others. All is
in a SQLite file, so the application may be killed at any time. docs/chat-app.md says why each thing is done as it is.

asyncchatd needs this, and where its control API asks for a token, one with the right `register` in $ASYNCCHATD_TOKEN:

    [[consumer]]
    name = "chat-app"
    url = "http://127.0.0.1:8094/asyncchatd"
    secret_file = "webhook-secret"
    kinds = ["chat", "ended", "gap", "tokens"]
    send_keys = true
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

PAGE = Path(__file__).with_name("chat_app.html")
TOKENS = {"userId": "user_id", "secureKey": "secure_key", "alias": "alias"}
"""What identifies the customer to GMS, by the names of the Chat API and of asyncchatd."""

Json = Mapping[str, object]


class Memory:
    """What must not be forgotten: chats, their tokens, and what was said. Each method is one transaction."""

    def __init__(self, path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # there are keys in it
        self._db = sqlite3.connect(path)
        self._db.row_factory = sqlite3.Row
        self._db.executescript("""
            CREATE TABLE IF NOT EXISTS chat (chat_id TEXT PRIMARY KEY, browser TEXT UNIQUE, device_id TEXT,
                tokens TEXT, tokens_at INTEGER, untold TEXT, ended INTEGER DEFAULT 0);
            CREATE TABLE IF NOT EXISTS said (id INTEGER PRIMARY KEY, chat_id TEXT, event_id TEXT UNIQUE, line TEXT);
        """)

    def chats(self, where: str, *values: str) -> list[sqlite3.Row]:
        return self._db.execute(f"SELECT * FROM chat WHERE {where}", values).fetchall()

    def after(self, chat_id: str, last: int) -> list[tuple[int, str]]:
        rows = self._db.execute(
            "SELECT id, line FROM said WHERE chat_id=? AND id>? ORDER BY id", (chat_id, last)
        )
        return [(row["id"], row["line"]) for row in rows]

    def opened(self, browser: str, device_id: str, reply: Json) -> None:
        """GMS' reply to "request chat", of which asyncchatd is still to be told."""
        with self._db as db:
            new = "INSERT INTO chat (chat_id, browser, device_id) VALUES (?, ?, ?)"
            db.execute(new, (reply["chatId"], browser, device_id))
            self._keep(str(reply["chatId"]), {name: reply[name] for name in TOKENS}, reply)

    def sent(self, chat: sqlite3.Row, text: str, reply: Json) -> None:
        """What the customer said, and GMS' reply. Other tokens than before are the newest: asyncchatd is to be told."""
        known = json.loads(chat["tokens"])
        tokens = {name: reply.get(name) or known[name] for name in TOKENS}
        with self._db:
            self._say(chat["chat_id"], {"who": "You", "text": text})
            if tokens != known:
                self._keep(chat["chat_id"], tokens, reply)

    def told(self, chat: sqlite3.Row) -> None:
        """asyncchatd knows, unless there is news again."""
        with self._db as db:
            known = (chat["chat_id"], chat["untold"])
            db.execute("UPDATE chat SET untold=NULL WHERE chat_id=? AND untold=?", known)

    def delivered(self, event: dict[str, object]) -> None:
        """An event from asyncchatd. One that came before is known by its id."""
        chat_id, said = str(event["chat_id"]), event["event"]
        with self._db as db:
            if event["kind"] == "tokens" and isinstance(said, dict):
                # One that was on its way while a reply to us brought newer ones is older than these.
                tokens = json.dumps({name: said[column] for name, column in TOKENS.items()})
                newer = "UPDATE chat SET tokens=?, tokens_at=? WHERE chat_id=? AND tokens_at<?"
                db.execute(newer, (tokens, event["at"], chat_id, event["at"]))
            if event["kind"] == "ended":
                db.execute("UPDATE chat SET ended=1 WHERE chat_id=?", (chat_id,))
            if line := line_of(event):
                self._say(chat_id, line, str(event["id"]))

    def _keep(self, chat_id: str, tokens: Json, reply: Json) -> None:
        untold = json.dumps({**reply, "messages": []})  # asyncchatd needs no texts from us
        now = time.time_ns() // 1_000_000
        newest = "UPDATE chat SET tokens=?, tokens_at=?, untold=? WHERE chat_id=?"
        self._db.execute(newest, (json.dumps(tokens), now, untold, chat_id))

    def _say(self, chat_id: str, line: Json, event_id: str | None = None) -> None:
        new = "INSERT OR IGNORE INTO said (chat_id, event_id, line) VALUES (?, ?, ?)"
        self._db.execute(new, (chat_id, event_id, json.dumps(line)))


def line_of(event: Json) -> Json | None:
    """What the page shows of an event. The customer's own messages it has shown already."""
    said = event["event"]
    if event["kind"] in ("ended", "gap"):
        return {
            "note": "The chat is over." if event["kind"] == "ended" else "Some messages are missing here."
        }
    if event["kind"] == "chat" and isinstance(said, dict) and said.get("type") == "Message":
        sender = said.get("from", {})
        if sender.get("type") != "Client":
            return {"who": sender.get("nickname") or "Agent", "text": said.get("text", "")}
    return None


class ChatApp:
    """The application: its routes, and what it says to GMS and to asyncchatd."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._memory = Memory(options.database)
        self._secret = Webhook(Path(options.secret_file).read_text().split()[0])
        self._news: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._untold = asyncio.Event()

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Its connections, and the telling that goes on beside the requests."""
        token = os.environ.get("ASYNCCHATD_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = aiohttp.ClientTimeout(total=8)
        async with (
            aiohttp.ClientSession(timeout=timeout) as self._gms,
            aiohttp.ClientSession(timeout=timeout, headers=headers) as self._asyncchatd,
        ):
            telling = asyncio.create_task(self._tell())
            yield
            telling.cancel()

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE)

    async def open(self, request: web.Request) -> web.StreamResponse:
        """A new chat of this browser, which gets a name of our own for it: chat id and key stay here."""
        device_id = secrets.token_urlsafe(16)
        wishes = {
            "GCTI_Chat_PushSubscribe": "true",
            "GCTI_Chat_AsyncMode": "true",
            "GCTI_GMS_NodeGroup": self._options.node_group,
            "GCTI_GMS_PushDeviceId": device_id,
            "GCTI_GMS_PushDeviceType": "customhttp",
            "GCTI_GMS_PushResend": "true",
        }
        fields = {f"userData[{key}]": value for key, value in wishes.items()}
        reply = await self._ask("", {**fields, "nickname": str((await request.json())["name"])})
        if reply is None or reply.get("statusCode") != 0:
            raise web.HTTPBadGateway(text="No chat can be opened now.")
        browser = secrets.token_urlsafe(32)
        self._memory.opened(browser, device_id, reply)
        self._untold.set()
        response = web.Response(status=204)
        response.set_cookie("chat", browser, httponly=True, samesite="Strict")
        return response

    async def send(self, request: web.Request) -> web.StreamResponse:
        """A message of the customer's. One request of a chat at a time: its reply may bring another key."""
        chat_id, text = self._chat_of(request), str((await request.json())["text"])
        async with self._locks[chat_id]:
            [chat] = self._memory.chats("chat_id=?", chat_id)
            if chat["ended"]:
                raise web.HTTPGone(text="The chat is over.")
            path = f"/{quote(chat_id, safe='')}/send"
            reply = await self._ask(path, {**json.loads(chat["tokens"]), "message": text})
            if reply is None:  # it may have been taken, so it is not sent again by itself
                raise web.HTTPGatewayTimeout(text="Nobody knows whether this was sent.")
            if reply.get("statusCode") != 0:  # nothing else that it says may be believed, keys least of all
                raise web.HTTPBadGateway(text="This was not sent. Please try again.")
            self._memory.sent(chat, text, reply)
        self._untold.set()
        self._ring(chat_id)
        return web.Response(status=204)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """All that is said, to the page; one that comes back goes on behind the line it had last."""
        chat_id, last = self._chat_of(request), int(request.headers.get("Last-Event-ID", "0"))
        headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        while True:
            news = self._news[chat_id]
            for number, line in self._memory.after(chat_id, last):
                await response.write(f"id: {number}\ndata: {line}\n\n".encode())
                last = number
            try:
                await asyncio.wait_for(news.wait(), 15)
            except TimeoutError:
                await response.write(b":\n\n")  # keeps proxies patient, and fails when the page is gone

    async def webhook(self, request: web.Request) -> web.StreamResponse:
        """A batch of events of one chat. 2xx only when they are in the file: asyncchatd tells them no more then."""
        try:
            batch = self._secret.verify(await request.read(), dict(request.headers))
        except (WebhookVerificationError, ValueError):
            return web.Response(status=401)
        for event in batch["events"]:
            self._memory.delivered(event)
        self._ring(batch["chat_id"])
        return web.Response(status=204)

    async def _ask(self, path: str, fields: Mapping[str, str]) -> dict[str, object] | None:
        """GMS' reply, or none that can be understood."""
        url = f"{self._options.gms}/2/chat/{quote(self._options.service, safe='')}{path}"
        try:
            async with self._gms.post(url, data=fields) as response:
                reply = await response.json(content_type=None)
                return reply if response.status == 200 and isinstance(reply, dict) else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _tell(self) -> None:
        """Registers new chats and newer tokens at asyncchatd, again until it has taken them."""
        while True:
            self._untold.clear()
            for chat in self._memory.chats("untold IS NOT NULL"):
                url = f"{self._options.asyncchatd}/v1/sessions/{quote(chat['chat_id'], safe='')}"
                query = {"service": self._options.service, "device_id": chat["device_id"]}
                try:
                    async with self._asyncchatd.put(
                        url, params=query, json=json.loads(chat["untold"])
                    ) as answer:
                        if answer.status < 500:
                            self._memory.told(chat)
                except (aiohttp.ClientError, TimeoutError):
                    pass  # it stays untold
            pause = 1 if self._memory.chats("untold IS NOT NULL") else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._untold.wait(), pause)

    def _chat_of(self, request: web.Request) -> str:
        for chat in self._memory.chats("browser=?", request.cookies.get("chat", "")):
            return str(chat["chat_id"])
        raise web.HTTPUnauthorized(text="Open a chat first.")

    def _ring(self, chat_id: str) -> None:
        self._news.pop(chat_id, asyncio.Event()).set()


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--gms", required=True, help="base address of GMS, without /2/chat")
    parser.add_argument("--asyncchatd", required=True, help="control.listen of asyncchatd: http://HOST:PORT")
    parser.add_argument("--secret-file", required=True, help="secret_file of the consumer")
    parser.add_argument("--database", default="chat_app.db")
    parser.add_argument("--service", default="customer-support")
    parser.add_argument("--node-group", default="gms", help="name of the GMS cluster")
    parser.add_argument("--port", type=int, default=8094)
    options = parser.parse_args()
    app, chat_app = web.Application(), ChatApp(options)
    app.add_routes([web.get("/", chat_app.page), web.get("/events", chat_app.stream)])
    app.add_routes([web.post("/chat", chat_app.open), web.post("/messages", chat_app.send)])
    app.add_routes([web.post("/asyncchatd", chat_app.webhook)])
    app.cleanup_ctx.append(chat_app.run)
    web.run_app(app, host="127.0.0.1", port=options.port, shutdown_timeout=1)


if __name__ == "__main__":
    main()
