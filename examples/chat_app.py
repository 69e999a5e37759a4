"""A small chat application: a page in the browser, GMS behind it, asyncchatd beside it.

    python examples/chat_app.py --gms http://127.0.0.1:8080/genesys --asyncchatd http://127.0.0.1:8092 \\
        --secret-file webhook-secret

A page opens a chat: "request chat" at GMS, with the subscription that makes GMS push to asyncchatd, where the reply is
registered at once. What agents write comes as signed webhooks to /asyncchatd and goes on to the page as server-sent
events. To send what the customer writes the chat is taken from asyncchatd, with its newest key, which is kept nowhere.
The rest is in a SQLite file, so the application may be killed at any time. docs/chat-app.md says why it is so.

asyncchatd needs this, and a token in control.token_file with the rights `register keys`, here in $ASYNCCHATD_TOKEN:

    [[consumer]]
    name = "chat-app"
    url = "http://127.0.0.1:8094/asyncchatd"
    secret_file = "webhook-secret"
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sqlite3
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

PAGE = Path(__file__).with_name("chat_app.html")
TOKENS = {"userId": "user_id", "secureKey": "secure_key", "alias": "alias"}  # at GMS, and at asyncchatd
TIMEOUT, TAKE = 8, {"for": "15s", "wait": "5s"}  # a chat is taken for longer than GMS may take to answer
NOTES = {"ended": "The chat is over.", "gap": "Some messages are missing here."}


class Memory:
    """What must not be forgotten: chats, what was said, and what asyncchatd is still to be told."""

    def __init__(self, path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # what is not told yet has a key
        self._db = sqlite3.connect(path)
        self._db.row_factory = sqlite3.Row
        self._db.executescript("""PRAGMA secure_delete=ON;
            CREATE TABLE IF NOT EXISTS chat (chat_id TEXT PRIMARY KEY, browser TEXT UNIQUE, untold TEXT);
            CREATE TABLE IF NOT EXISTS said (id INTEGER PRIMARY KEY, chat_id TEXT, event_id TEXT UNIQUE, line TEXT);
        """)

    def chats(self, where: str, *values: str) -> list[sqlite3.Row]:
        return self._db.execute(f"SELECT * FROM chat WHERE {where}", values).fetchall()

    def after(self, chat_id: str, last: int) -> list[sqlite3.Row]:
        lines = "SELECT id, line FROM said WHERE chat_id=? AND id>? ORDER BY id"
        return self._db.execute(lines, (chat_id, last)).fetchall()

    def register(
        self, chat_id: str, reply: Mapping[str, Any], *, browser: str | None = None, text: str | None = None
    ) -> None:
        """GMS' reply, which asyncchatd is to be told: a browser has opened a chat, or the customer has said this. The
        events in it come back from there."""
        with self._db as db:
            if browser is not None:
                db.execute("INSERT INTO chat (chat_id, browser) VALUES (?, ?)", (chat_id, browser))
            if text is not None:
                self._say(chat_id, {"who": "You", "text": text})
            untold = json.dumps({**reply, "messages": []})
            db.execute("UPDATE chat SET untold=? WHERE chat_id=?", (untold, chat_id))

    def told(self, chat: sqlite3.Row) -> None:
        """asyncchatd knows, unless there is news again."""
        done = "UPDATE chat SET untold=NULL WHERE chat_id=? AND untold=?"
        with self._db:
            self._db.execute(done, (chat["chat_id"], chat["untold"]))

    def delivered(self, chat_id: str | None, events: list[dict[str, str]]) -> list[str]:
        """A batch from asyncchatd, of one chat or of all there are: which. What came before is known by its id."""
        chats = [str(chat["chat_id"]) for chat in self.chats("TRUE")] if chat_id is None else [chat_id]
        with self._db:
            for event in events:
                if line := line_of(event):
                    for each in chats:
                        self._say(each, line, f"{event['id']} {each}")
        return chats

    def _say(self, chat_id: str, line: Mapping[str, Any], event_id: str | None = None) -> None:
        new = "INSERT OR IGNORE INTO said (chat_id, event_id, line) VALUES (?, ?, ?)"
        self._db.execute(new, (chat_id, event_id, json.dumps(line)))


def line_of(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the page shows of an event. The customer's own messages it has shown already."""
    said = event["event"]
    if note := NOTES.get(event["kind"]):
        return {"note": note}
    if event["kind"] == "chat" and isinstance(said, dict) and said.get("type") == "Message":
        sender = said.get("from", {})
        if sender.get("type") != "Client":
            return {"who": sender.get("nickname") or "Agent", "text": said.get("text", "")}
    return None


class ChatApp:
    """The application: its routes, and what it says to GMS and to asyncchatd."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._memory = Memory(options.database)
        self._secret = Webhook(Path(options.secret_file).read_text().split()[0])
        self._news: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Its connection, and the telling of what asyncchatd did not take at once."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
            telling = asyncio.create_task(self._tell(every=1))
            yield
            telling.cancel()

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE)

    async def open(self, request: web.Request) -> web.StreamResponse:
        """A new chat of this browser, which gets a name of our own for it: chat id and key stay here."""
        device_id, browser = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        wishes = {
            "GCTI_Chat_PushSubscribe": "true",
            "GCTI_Chat_AsyncMode": "true",
            "GCTI_GMS_NodeGroup": self._options.node_group,
            "GCTI_GMS_PushDeviceId": device_id,
            "GCTI_GMS_PushDeviceType": "customhttp",
            "GCTI_GMS_PushResend": "true",
        }
        fields = {f"userData[{key}]": value for key, value in wishes.items()}
        reply = await self._ask_gms("", {**fields, "nickname": str((await request.json())["name"])})
        if reply is None or reply.get("statusCode") != 0:
            raise web.HTTPBadGateway(text="No chat can be opened now.")
        beside = {"device_id": device_id, "service": self._options.service}  # which the reply lacks
        self._memory.register(str(reply["chatId"]), {**reply, **beside}, browser=browser)
        await self._tell()
        response = web.Response(status=204)
        response.set_cookie("chat", browser, httponly=True, samesite="Strict")
        return response

    async def send(self, request: web.Request) -> web.StreamResponse:
        """A message of the customer's. While the chat is taken nobody else asks GMS for it, we ourselves included."""
        chat_id, text = self._chat_of(request), str((await request.json())["text"])
        status, take = await self._call("POST", chat_id, "/take", TAKE)
        if status != 200:
            raise web.HTTPServiceUnavailable(text="This was not sent. Please try again in a moment.")
        tokens = {said: take[name] for said, name in TOKENS.items()}
        reply = await self._ask_gms(f"/{quote(chat_id, safe='')}/send", {**tokens, "message": text})
        if reply is None:  # it may have been taken: not sent again. The take ends by itself, with a ping.
            raise web.HTTPGatewayTimeout(text="Nobody knows whether this was sent.")
        is_taken = reply.get("statusCode") == 0
        is_over = reply.get("statusCode") == 2 and reply.get("chatEnded")
        if not is_taken and not is_over:  # nothing else that it says may be believed, keys least of all
            await self._call("POST", chat_id, "/release", {"take_id": take["take_id"]})
            raise web.HTTPBadGateway(text="This was not sent.")
        told = {**reply, "take_id": take["take_id"]}
        self._memory.register(chat_id, told, text=text if is_taken else None)
        self._news.pop(chat_id, asyncio.Event()).set()
        await self._tell()
        if is_over:
            raise web.HTTPConflict(text="This was not sent: the chat is over.")
        return web.Response(status=204)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """All that is said, to the page; one that comes back goes on behind the line it had last."""
        chat_id, last = self._chat_of(request), int(request.headers.get("Last-Event-ID", "0"))
        response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        with suppress(ConnectionResetError):  # the page is gone
            while True:
                news = self._news[chat_id]
                for number, line in self._memory.after(chat_id, last):
                    await response.write(f"id: {number}\ndata: {line}\n\n".encode())
                    last = number
                try:
                    await asyncio.wait_for(news.wait(), 15)
                except TimeoutError:
                    await response.write(b":\n\n")  # keeps proxies patient, and fails when the page is gone
        return response

    async def webhook(self, request: web.Request) -> web.StreamResponse:
        """A batch of events of one chat. 2xx only when they are in the file: asyncchatd tells them no more then.
        The one with which `asyncchatd check --connect` tries this address has no chat and no events."""
        try:
            batch = self._secret.verify(await request.read(), dict(request.headers))
        except (WebhookVerificationError, ValueError):
            return web.Response(status=401)
        for chat_id in self._memory.delivered(batch["chat_id"], batch["events"]):
            self._news.pop(chat_id, asyncio.Event()).set()
        return web.Response(status=204)

    async def _ask_gms(self, path: str, fields: Mapping[str, str]) -> dict[str, Any] | None:
        """GMS' reply, or none that can be understood."""
        url = f"{self._options.gms}/2/chat/{quote(self._options.service, safe='')}{path}"
        try:
            async with self._http.post(url, data=fields) as response:
                reply = await response.json(content_type=None)
                return reply if response.status == 200 and isinstance(reply, dict) else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _call(
        self, method: str, chat_id: str, call: str, body: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """asyncchatd's status and answer; status 0 without one."""
        url = f"{self._options.asyncchatd}/v1/sessions/{quote(chat_id, safe='')}{call}"
        headers = {"Authorization": f"Bearer {os.environ.get('ASYNCCHATD_TOKEN')}"}
        try:
            async with self._http.request(method, url, json=body, headers=headers) as answer:
                return answer.status, await answer.json(content_type=None) or {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 0, {}

    async def _tell(self, every: float = 0) -> None:
        """Tell asyncchatd new chats, and the tokens that end a take; what it did not take is told again."""
        for chat in self._memory.chats("untold IS NOT NULL"):
            status, _ = await self._call("PUT", chat["chat_id"], "", json.loads(chat["untold"]))
            if status in (200, 201, 409):
                self._memory.told(chat)
            else:
                logging.error("asyncchatd did not take the registration of %s: %d", chat["chat_id"], status)
        while every:
            await asyncio.sleep(every)
            await self._tell()

    def _chat_of(self, request: web.Request) -> str:
        for chat in self._memory.chats("browser=?", request.cookies.get("chat", "")):
            return str(chat["chat_id"])
        raise web.HTTPUnauthorized(text="Open a chat first.")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--gms", required=True, help="base address of GMS, without /2/chat")
    parser.add_argument("--asyncchatd", required=True, help="control.listen of asyncchatd: http://HOST:PORT")
    parser.add_argument("--secret-file", required=True, help="secret_file of the consumer")
    parser.add_argument("--database", default="chat_app.db")
    parser.add_argument("--service", default="customer-support")
    parser.add_argument("--node-group", default="gms", help="name of the GMS cluster")
    parser.add_argument("--port", type=int, default=8094)
    options = parser.parse_args()
    app, chat_app = web.Application(), ChatApp(options)
    app.router.add_get("/", chat_app.page)
    app.router.add_get("/events", chat_app.stream)
    app.router.add_post("/chat", chat_app.open)
    app.router.add_post("/messages", chat_app.send)
    app.router.add_post("/asyncchatd", chat_app.webhook)
    app.cleanup_ctx.append(chat_app.run)
    web.run_app(app, host="127.0.0.1", port=options.port, shutdown_timeout=1)


if __name__ == "__main__":
    main()
