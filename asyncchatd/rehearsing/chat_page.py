"""A chat page as there are many: nobody wrote it for asyncchatd, and it knows of nothing but the Chat API.

It asks for a chat, polls, and sends what its customer says (protocol section 2). It comes with the user id, the key and
the alias that it was given first, for ever, as most pages do, and stops when it is told that the chat is over.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

PAUSE_SECONDS = 1.0
"""Between two polls."""

CALL_SECONDS = 3.0
"""So long a page waits for the answer to a request, as Genesys' widgets do."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """A message as it stands on the page."""

    index: int
    """In the transcript."""
    by: str
    """`Agent` or `Client`."""
    text: str


class ChatPage:
    """The page of one customer. `begin` first; then `live` beside whatever else goes on."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        chat_api: str,
        *,
        pause: float = PAUSE_SECONDS,
        patience: float = CALL_SECONDS,
    ) -> None:
        """`chat_api` is the URL of a chat service at GMS, or at what stands in its place: `…/2/chat/SERVICE`. `pause`
        are the seconds between two polls, `patience` those for which it waits for an answer."""
        self.shown: list[Json] = []
        """The events of the transcript, in the order in which they came."""
        self.polls = 0
        self.ended = False
        """Whether it was told that the chat is over."""
        self.chat_id = ""
        self._http = http
        self._url = chat_api
        self._pause = pause
        self._timeout = aiohttp.ClientTimeout(total=patience)
        self.triple: dict[str, str] = {}
        """User id, key and alias that it was given first."""
        self.position = 1
        """From which it asks next."""

    @property
    def messages(self) -> list[Shown]:
        """What was said, as far as it is on the page."""
        return [
            Shown(event["index"], event["from"]["type"], event.get("text") or "")
            for event in self.shown
            if event["type"] == "Message"
        ]

    async def begin(self, nickname: str) -> bool:
        """Ask for a chat. Whether there is one."""
        reply = await self._post("", {"nickname": nickname})
        if reply is None or reply.get("statusCode") != 0:
            return False
        self.chat_id = reply.get("chatId") or ""
        self.triple = {name: reply.get(name) or "" for name in ("userId", "secureKey", "alias")}
        return bool(self.chat_id)

    async def live(self) -> None:
        """Poll until the chat is over."""
        while not self.ended:
            await self.poll()
            await asyncio.sleep(self._pause)

    async def poll(self) -> None:
        """Ask for news once, and show them."""
        self.polls += 1
        reply = await self.call("refresh", {"transcriptPosition": str(self.position)})
        if reply is not None:
            self.take(reply)

    def take(self, reply: Json) -> None:
        """What a poll was answered."""
        self.ended = reply.get("chatEnded") is True
        if reply.get("statusCode") == 0:
            self.shown += reply.get("messages") or ()
            self.position = reply.get("nextPosition") or self.position

    async def say(self, text: str) -> bool:
        """Send what the customer says. Whether the answer was that it is taken."""
        reply = await self.call("send", {"message": text})
        return reply is not None and reply.get("statusCode") == 0

    async def call(self, operation: str, said: Mapping[str, str]) -> Json | None:
        """A call for its chat; the reply, none where nothing came that is one."""
        return await self._post(f"/{self.chat_id}/{operation}", {**self.triple, **said})

    def failed(self, cause: str) -> None:
        """A request of its got no reply, for this cause. It makes nothing of that."""

    async def _post(self, path: str, said: Mapping[str, str]) -> Json | None:
        try:
            async with self._http.post(self._url + path, data=said, timeout=self._timeout) as response:
                if response.status != 200:
                    self.failed(f"HTTP {response.status}")
                    return None
                reply = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.failed("no answer")
            return None
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            self.failed("no reply")
            return None
        return reply
