"""Opening: a client asks for a chat, and the session is looked after from its first moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from asyncchatd.config import GatewaySettings
from asyncchatd.gateway.beginning.registering import Registering
from asyncchatd.gateway.subscription import new_device_id, subscribed
from asyncchatd.gms import Answer, Trouble
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Clock, Registration, Tokens, replace
from asyncchatd.sending import Sending
from asyncchatd.stores import Store
from asyncchatd.wire import (
    Alive,
    ChatApiError,
    ClientCall,
    NodeTrouble,
    Operation,
    Refused,
    RetryLater,
    chat_api,
)

NO_ALIAS = ""
"""A chat that is only asked for has no Chat Server yet."""

log = get_logger()


class Opened(NamedTuple):
    """What came of it."""

    tokens: Tokens | None = None
    """Those of GMS; None when there is no chat."""
    status_code: int = 1
    body: bytes | None = None
    """GMS' reply."""
    too_many: bool = False
    with_its_key: bool = False
    """The client gets the key of GMS, and keeps it."""


class Opening:
    """The opening of chats."""

    def __init__(
        self,
        store: Store,
        sending: Sending,
        settings: GatewaySettings,
        clock: Clock,
        wakeup: asyncio.Event,
        *,
        digest: Callable[[str, str], str],
    ) -> None:
        """`digest` makes what is kept of a chat id and its key, to know the key again."""
        self._digest = digest
        self._store = store
        self._sending = sending
        self._clock = clock
        self._registering = Registering(store, clock, wakeup)
        self._stopping = False
        self._under_way: set[asyncio.Task[Opened]] = set()
        self._begun: list[float] = []
        self.settings = settings

    async def open(self, call: ClientCall) -> Opened:
        """Ask GMS for a chat, and register it."""
        if not self._has_room():
            metrics.CHATS_OPENED.labels("too_many").inc()
            return Opened(too_many=True)
        if self._store.trouble is not None:
            metrics.CHATS_OPENED.labels("failed").inc()
            return Opened()  # a chat that cannot be written down would be nobody's
        task = asyncio.create_task(self._open(call))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)  # the client may leave, the chat is there

    async def drain(self) -> None:
        """Send nothing more; return when all that left is answered and registered."""
        self._stopping = True
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    def _has_room(self) -> bool:
        now = self._clock.monotonic()
        self._begun = [at for at in self._begun if at > now - 1]
        if len(self._begun) >= self.settings.max_new_chats:
            return False
        self._begun.append(now)
        return True

    async def _open(self, call: ClientCall) -> Opened:
        device_id = new_device_id()
        answer = await self._ask(call, device_id)
        match answer.outcome:
            case Alive(reply) if reply.news.complete():
                news = reply.news
                tokens = Tokens(
                    news.chat_id or "", news.user_id or "", news.secure_key or "", news.alias or ""
                )
                passthrough = self.settings.passthrough
                came_with = self._digest(tokens.chat_id, tokens.secure_key) if passthrough else None
                await self._registering.keep(
                    Registration(tokens, call.service, device_id, of_gateway=True, came_with=came_with)
                )
                metrics.CHATS_OPENED.labels("opened").inc()
                log.info(
                    Event.CHAT_OPENED,
                    chat_id=tokens.chat_id,
                    alias=tokens.alias,
                    service=call.service,
                    node=answer.node,
                    took_ms=round(answer.took * 1000, 1),
                )
                return Opened(tokens, 0, answer.body, with_its_key=passthrough)
            case Refused():
                metrics.CHATS_OPENED.labels("refused").inc()
                return Opened(None, 2, answer.body)
            case RetryLater():
                metrics.CHATS_OPENED.labels("refused").inc()
                return Opened(None, 1, answer.body)
            case _:
                lost = answer.perhaps_taken or isinstance(answer.outcome, Alive)
                metrics.CHATS_OPENED.labels("orphaned" if lost else "failed").inc()
                if lost:
                    log.error(Event.CHAT_ORPHANED, service=call.service, node=answer.node)
                return Opened()

    async def _ask(self, call: ClientCall, device_id: str) -> Answer:
        until = self._clock.monotonic() + self.settings.patience.total_seconds()
        unsent = Answer(NodeTrouble(Trouble.NO_NODE), None, self._clock.now(), 0.0)
        try:
            fields = subscribed(call.pairs, self.settings, device_id)
            written = chat_api.call(Operation.REQUEST_CHAT, call.service, None, fields)
        except ChatApiError as error:
            return replace(unsent, outcome=Refused(error.code, str(error)))
        # Nobody waits for it any longer: the chat would be nobody's.
        if not await self._sending.turn_for_call(lambda: self._stopping or self._clock.monotonic() >= until):
            return unsent
        return await self._sending.call(NO_ALIAS, self._sending.gms.begin(written))
