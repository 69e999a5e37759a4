"""Looks: GMS is asked about a chat that is polled, in case its pushes have stopped.

A look is a ping like any other: the session is made due for `request`, and whoever pings has it under rate and lease.
"""

from __future__ import annotations

import asyncio

from asyncchatd.config import GatewaySettings
from asyncchatd.gateway.watching.pushes import PushJudge
from asyncchatd.gateway.watching.watched import Watched
from asyncchatd.gms import Pacer
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Clock, EventKind, Reason, SessionState, StoredEvent
from asyncchatd.stores import Store, StoreError, tell_failure
from asyncchatd.wire import ChatApiError, read_event, reply_object

TICK_SECONDS = 0.25
SHARE = 0.5
"""Of the requests that nobody else sends, so many are looks at most."""

log = get_logger()


class Looks:
    """Makes chats due that are to be looked at."""

    def __init__(
        self, store: Store, pacer: Pacer, settings: GatewaySettings, clock: Clock, wakeup: asyncio.Event
    ) -> None:
        self._store = store
        self._pacer = pacer
        self._clock = clock
        self._wakeup = wakeup
        self._judge = PushJudge(0, 0)
        self._allowance = 1.0
        self._told = False
        self._allowed_at = clock.monotonic()
        self._lately: list[float] = []
        """When looks began, in the last second."""
        self.reload(settings)
        metrics.PUSHES_MISSING.set_function(lambda: float(self._judge.missing))
        metrics.CHATS_WITHOUT_PUSHES.set_function(lambda: self._judge.failing)

    def reload(self, settings: GatewaySettings) -> None:
        """Look by these from now on."""
        self._judge.check_interval = settings.check_interval.total_seconds()
        self._judge.fallback_interval = settings.fallback_interval.total_seconds()

    @property
    def pushes_missing(self) -> bool:
        """Whether so many pushes are missing that none is relied on."""
        return self._judge.missing

    # -- what happens ------------------------------------------------------------------------------

    def polled(self, chat: Watched) -> None:
        """A client polls."""
        if chat.ended:
            self._judge.forget(chat.chat_id)
        else:
            self._judge.polled(chat.chat_id, self._clock.monotonic(), subscribed=chat.device_id is not None)

    def opened(self, chat_id: str) -> None:
        """A client asked for this chat, and has it."""
        self._judge.called(chat_id, self._clock.monotonic())

    def called(self, chat: Watched) -> None:
        """A client called."""
        if not chat.ended:
            self._judge.called(chat.chat_id, self._clock.monotonic())

    def heard(self, event: StoredEvent) -> None:
        """The store wrote an event."""
        if event.chat_id is None or not self._judge.minds(event.chat_id):
            return  # as with most: nobody polls it, and it need not be read
        now = self._clock.monotonic()
        if event.kind is EventKind.NOTIFIED:
            self._judge.pushed(event.chat_id, event.at, now)
        elif event.kind is EventKind.ENDED:
            self._judge.forget(event.chat_id)
        elif event.kind is EventKind.CHAT and _is_of_others(event):
            self._judge.came(event.chat_id, now)

    # -- looking -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at what is due, until cancelled."""
        while True:
            await self._clock.sleep(TICK_SECONDS)
            try:
                await self.look()
            except StoreError as error:
                tell_failure(error)

    async def look(self) -> None:
        """Look at the chats that are due, as far as the rate allows. Raises `StoreError`."""
        now = self._clock.monotonic()
        missed = self._judge.pass_on(now)
        if missed:
            metrics.LOOKS.labels("missed").inc(missed)
        self._allow(now)
        began = False
        while self._allowance >= 1 and (chat_id := self._judge.next(now)) is not None:
            began |= await self._look_at(chat_id, now)
        if began:
            self._wakeup.set()
        self._tell()

    async def _look_at(self, chat_id: str, now: float) -> bool:
        self._judge.put_off(chat_id, now)  # whatever fails below
        session = await self._store.get(chat_id)
        if session is None or session.state is SessionState.ENDED:
            self._judge.forget(chat_id)
            return False
        if not await self._store.make_due(chat_id, Reason.REQUEST, now=self._clock.now()):
            return False
        self._judge.looked(chat_id, now, session.answered_at or 0)
        self._allowance -= 1
        self._lately.append(now)
        metrics.LOOKS.labels("asked").inc()
        return True

    def _allow(self, now: float) -> None:
        self._lately = [at for at in self._lately if now - at < 1]
        left = self._pacer.left() + len(self._lately)
        rate = SHARE * min(left, self._pacer.rate)
        self._allowance = min(max(1.0, rate), self._allowance + rate * (now - self._allowed_at))
        self._allowed_at = now

    def _tell(self) -> None:
        if self._judge.missing is self._told:
            return
        self._told = self._judge.missing
        if self._told:
            log.error(Event.PUSHES_MISSING, looks=self._judge.looks, misses=self._judge.misses)
        else:
            log.info(Event.PUSHES_COMING, looks=self._judge.looks, misses=self._judge.misses)


_TYPING = frozenset({"typingstarted", "typingstopped"})
"""Nobody can tell whether these are pushed."""


def _is_of_others(event: StoredEvent) -> bool:
    try:
        found = read_event(reply_object(event.body or b""))
    except ChatApiError:
        return False
    return found is not None and found.participant_type != "Client" and found.kind not in _TYPING
