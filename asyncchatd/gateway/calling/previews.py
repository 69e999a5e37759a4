"""Previews: what a customer types, which agents may see before it is sent, comes with polls (protocol section 2)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from asyncchatd.gateway.calling.calls import Calls, Fate
from asyncchatd.gateway.subscription import unsubscribed
from asyncchatd.gateway.watching.watched import Watched
from asyncchatd.model import Clock
from asyncchatd.wire import ClientCall

PAUSE_SECONDS = 2.0
"""Between two previews of one chat."""

REMEMBERED = 10_000
"""Chats whose last preview is known. Of one that is forgotten the same one may go out once more."""


class Previews:
    """Sends the previews of all clients as calls, each once."""

    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """By chat a digest of the last one and when it went out."""
        self._under_way: set[asyncio.Task[None]] = set()

    def show(self, call: ClientCall, chat: Watched) -> None:
        """Send the preview that a poll brings, if it is another one. The poll does not wait for it."""
        if not call.message or chat.ended or self._calls.stopping.is_set():
            return
        now, digest = self._clock.monotonic(), hash(call.message)
        before, at = self._sent.get(chat.chat_id, (None, 0.0))
        if before is not None and (digest == before or now - at < PAUSE_SECONDS):
            return
        self._sent[chat.chat_id] = digest, now
        self._sent.move_to_end(chat.chat_id)
        if len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)
        task = asyncio.create_task(self._send(call, chat, (digest, now)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _send(self, call: ClientCall, chat: Watched, sent: tuple[int, float]) -> None:
        outcome = await self._calls.answer(unsubscribed(call), chat)
        if outcome.fate in (Fate.NOT_SENT, Fate.TOO_MANY) and self._sent.get(chat.chat_id) == sent:
            del self._sent[chat.chat_id]  # the next poll brings it again
