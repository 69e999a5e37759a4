"""The chat application of the demo: it takes the webhooks of a consumer, and remembers what it was told and when.

It is judged by the plant's own transcripts: what agents wrote there has to have come here, in that order.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from asyncchatd.rehearsing.trial import Keys
from asyncchatd.standin import Plant

NAME = "chat-app"
SECRET_FILE = "webhook-secret"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How agents' messages came to the chat application, by the plant's word for what they wrote."""

    written: int
    delivered: int
    disordered: int
    """Chats whose messages came in another order than they were written."""
    twice: int
    """Events that came again, of whatever kind: the id says so."""
    unsigned: int
    """Requests that the daemon's secret did not sign."""
    p50: float | None
    """Seconds from an agent's writing to the chat application."""
    longest: float | None

    @property
    def complete(self) -> bool:
        """Whether each message came."""
        return self.written == self.delivered

    @property
    def kept(self) -> bool:
        """Whether each came, in order, and all of it was the daemon's."""
        return self.complete and self.written > 0 and not self.disordered and not self.unsigned


@dataclass(frozen=True, slots=True)
class Message:
    """A message of an agent's, as it came."""

    index: int
    """In the transcript."""
    text: str
    after: float
    """Seconds since the agent wrote it."""


class ChatApp:
    """The chat application on a loopback port. Use as `async with`."""

    def __init__(self, directory: Path) -> None:
        self._key = secrets.token_bytes(32)
        self._secret_file = directory / SECRET_FILE
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=1.0)
        self._known: set[str] = set()
        self._came = asyncio.Event()
        self.messages: dict[str, list[Message]] = {}
        """Of agents, by chat, in the order in which they came."""
        self.twice = 0
        self.unsigned = 0

    @property
    def consumer(self) -> Keys:
        """Its table in the daemon's configuration."""
        host, port = self._runner.addresses[0][:2]
        return {"name": NAME, "url": f"http://{host}:{port}/", "secret_file": str(self._secret_file)}

    async def shows(self, chat_id: str, text: str, seconds: float) -> Message | None:
        """The message with this text as soon as it is here; none when it is not within the time."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._came.clear()
                    for message in self.messages.get(chat_id, ()):
                        if message.text == text:
                            return message
                    await self._came.wait()
        except TimeoutError:
            return None

    def delivery(self, plant: Plant) -> Delivery:
        """How all that agents of this plant wrote came here."""
        written = {
            chat_id: {each.index for each in session.events if _is_message(each.type, each.participant_type)}
            for chat_id, session in plant.sessions.items()
        }
        came = {chat_id: [each.index for each in told] for chat_id, told in self.messages.items()}
        after = sorted(message.after for told in self.messages.values() for message in told)
        return Delivery(
            written=sum(map(len, written.values())),
            delivered=sum(
                len(indexes.intersection(came.get(chat_id, ()))) for chat_id, indexes in written.items()
            ),
            disordered=sum(told != sorted(told) for told in came.values()),
            twice=self.twice,
            unsigned=self.unsigned,
            p50=after[len(after) // 2] if after else None,
            longest=after[-1] if after else None,
        )

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if not self._signed(request, body):
            self.unsigned += 1
            return web.Response(status=401)
        for event in json.loads(body)["events"]:
            self._take(event)
        self._came.set()
        return web.Response(status=204)

    def _signed(self, request: web.BaseRequest, body: bytes) -> bool:
        """As Standard Webhooks has it. How old it may be does not matter here."""
        number, at = (request.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp"))
        content = b"%s.%s.%s" % (number.encode(), at.encode(), body)
        signature = "v1," + base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()
        return hmac.compare_digest(request.headers.get("webhook-signature", ""), signature)

    def _take(self, event: dict[str, Any]) -> None:
        """At least once: what is known by its id came twice."""
        if event["id"] in self._known:
            self.twice += 1
            return
        self._known.add(event["id"])
        said = event["event"] or {}
        if event["kind"] == "chat" and _is_message(said["type"], said["from"]["type"]):
            after = time.time() - said["utcTime"] / 1000
            message = Message(said["index"], said["text"], max(0.0, after))
            self.messages.setdefault(event["chat_id"], []).append(message)

    async def __aenter__(self) -> ChatApp:
        self._secret_file.touch(mode=0o600)
        self._secret_file.write_text(f"whsec_{base64.b64encode(self._key).decode()}\n")
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()


def _is_message(kind: str, by: str | None) -> bool:
    return kind == "Message" and by == "Agent"
