"""Adopting: a chat that was begun without the gateway is taken over with the first request of its client.

The client's own tokens go to GMS once, in a Refresh for all events. A stranger's guess would go there too, so this is
off unless the operator wants it, bounded for each address, and never tried for a session that is known: with a wrong
key Chat Server throws the customer out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from asyncchatd.gateway.beginning.registering import Registering
from asyncchatd.gateway.watching.watched import Watched
from asyncchatd.gms import Answer, Trouble
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Clock, Registration, Tokens
from asyncchatd.sending import Sending
from asyncchatd.stores import Store
from asyncchatd.wire import ALL_EVENTS, Alive, ClientCall, Ended, NodeTrouble, Refused

REFUSED_SECONDS = 600.0
"""So long a chat that GMS knows under no such key is not tried again."""

FAILED_SECONDS = 10.0
"""The same where GMS said nothing of the chat, as a node that cannot serve just now."""

REMEMBERED = 10_000
"""Chats that could not be, and addresses that tried."""

log = get_logger()


class Adopting:
    """The taking over of chats that are not known."""

    def __init__(
        self,
        store: Store,
        sending: Sending,
        clock: Clock,
        wakeup: asyncio.Event,
        digest: Callable[[str, str], str],
    ) -> None:
        """`digest` makes what is kept of a chat id and its key, to know the key again."""
        self.most = 0
        """Chats per second that are tried for one address; 0: none is taken over."""
        self.patience = 2.5
        """Seconds that a client waits."""
        self._sending = sending
        self._clock = clock
        self._registering = Registering(store, clock, wakeup)
        self._stopping = False
        self._digest = digest
        self._not_before: dict[str, float] = {}
        self._tried: dict[str | None, deque[float]] = {}
        self._under_way: dict[str, asyncio.Task[bool]] = {}

    async def adopt(self, call: ClientCall, chat: Watched, client: str | None) -> bool:
        """Take a chat over with the tokens that its client tells. Whether it is registered now."""
        tokens = _tokens(call)
        if not self.most or chat.is_known or tokens is None:
            return False
        task = self._under_way.get(chat.chat_id)
        if task is None:
            if not self._may_try(chat.chat_id, client):
                return False
            # The client may leave: its key may be another one now, and nobody else hears of it.
            task = self._under_way[chat.chat_id] = asyncio.create_task(self._try(call, tokens))
            task.add_done_callback(lambda _: self._under_way.pop(tokens.chat_id, None))
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Send nothing more; return when all that left is answered and registered."""
        self._stopping = True
        while self._under_way:
            await asyncio.wait(set(self._under_way.values()))

    def _may_try(self, chat_id: str, client: str | None) -> bool:
        now = self._clock.monotonic()
        if now < self._not_before.get(chat_id, 0.0):
            return False
        tried = self._tried.setdefault(client, deque())
        while tried and now - tried[0] >= 1.0:
            tried.popleft()
        if len(tried) >= self.most:
            return False
        tried.append(now)
        if len(self._tried) > REMEMBERED:
            del self._tried[next(iter(self._tried))]
        return True

    async def _try(self, call: ClientCall, tokens: Tokens) -> bool:
        answer = await self._refresh(call.service, tokens)
        if answer.node is None:
            return False  # it was not sent, which says nothing of the chat
        if not isinstance(answer.outcome, Alive):
            said = isinstance(answer.outcome, Refused | Ended)
            pause = REFUSED_SECONDS if said else FAILED_SECONDS
            self._not_before[tokens.chat_id] = self._clock.monotonic() + pause
            if len(self._not_before) > REMEMBERED:
                del self._not_before[next(iter(self._not_before))]
            metrics.CHATS_OPENED.labels("not_adopted").inc()
            return False
        news = answer.outcome.reply.news
        newest = Tokens(
            tokens.chat_id,
            news.user_id or tokens.user_id,
            news.secure_key or tokens.secure_key,
            news.alias or tokens.alias,
        )
        came_with = self._digest(tokens.chat_id, tokens.secure_key)
        await self._registering.keep(Registration(newest, call.service, came_with=came_with))
        metrics.CHATS_OPENED.labels("adopted").inc()
        log.info(
            Event.CHAT_ADOPTED,
            chat_id=tokens.chat_id,
            alias=newest.alias,
            service=call.service,
            node=answer.node,
        )
        return True

    async def _refresh(self, service: str, tokens: Tokens) -> Answer:
        until = self._clock.monotonic() + self.patience
        if not await self._sending.turn_for_call(lambda: self._stopping or self._clock.monotonic() >= until):
            return Answer(NodeTrouble(Trouble.NO_NODE), None, self._clock.now(), 0.0)
        return await self._sending.call(tokens.alias, self._sending.gms.refresh(service, tokens, ALL_EVENTS))


def _tokens(call: ClientCall) -> Tokens | None:
    """All of them, or none: nothing is ever guessed."""
    if call.chat_id is None or call.user_id is None or call.secure_key is None or call.alias is None:
        return None
    return Tokens(call.chat_id, call.user_id, call.secure_key, call.alias)
