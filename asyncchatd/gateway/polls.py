"""Polls: what clients ask every few seconds is answered from what is known here, and never reaches GMS.

A poll that finds nothing new is held for `gateway.hold`, and one of a chat at a time: the next one of that chat takes
its place, so a client that asks twice does not get one event twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from asyncchatd.gateway.app import as_response
from asyncchatd.gateway.replies import Names, poll_reply
from asyncchatd.gateway.watched import Line, Watched
from asyncchatd.listening import has_left, heard_leaving
from asyncchatd.log import metrics
from asyncchatd.model import Clock
from asyncchatd.wire import ClientCall

MOST_BYTES = 4 * 1024 * 1024
"""Of one reply; the next poll brings the rest."""


class Polls:
    """The polls of all clients."""

    def __init__(self, clock: Clock) -> None:
        self.hold = 2.0
        """Seconds that a poll waits for news."""
        self._clock = clock
        self._held: dict[object, asyncio.Event] = {}
        """By chat the news of the poll that is held, the longest held first; others by themselves."""
        self.stopping = False

    @property
    def held(self) -> int:
        """How many are held."""
        return len(self._held)

    async def answer(self, call: ClientCall, chat: Watched, request: web.Request) -> web.Response:
        """The reply to a poll with a right key."""
        names = Names.of(call)
        lines = _here(chat, call.asked_from)
        if not lines and not chat.ended and not self.stopping:
            await self._hold(chat, request, lambda: bool(_here(chat, call.asked_from)) or chat.ended)
            lines = _here(chat, call.asked_from)
        if chat.looks_back_for(call.asked_from):
            metrics.POLLS.labels("empty").inc()
            return as_response(_not_yet(call))  # of which it would go on behind what it has not had
        metrics.POLLS.labels("ended" if chat.ended else "news" if lines else "empty").inc()
        return as_response(told(names, chat, lines))

    async def empty(self, call: ClientCall, request: web.Request) -> web.Response:
        """The reply to a poll of a chat of which nothing is known here, or of one who may not know."""
        await self._wait(object(), asyncio.Event(), request, lambda: False)
        metrics.POLLS.labels("empty").inc()
        return as_response(_not_yet(call))

    async def _hold(self, chat: Watched, request: web.Request, is_over: Callable[[], bool]) -> None:
        """Until there are news, another poll of the chat comes, or the time is over."""
        chat.news = asyncio.Event()
        self._let_go(chat.chat_id)
        await self._wait(chat.chat_id, chat.news, request, is_over)

    async def _wait(
        self, who: object, mine: asyncio.Event, request: web.Request, is_over: Callable[[], bool]
    ) -> None:
        self._held[who] = mine
        until = self._clock.monotonic() + self.hold
        try:
            with heard_leaving(request, mine):
                while not is_over() and self._held.get(who) is mine and not self.stopping:
                    mine.clear()
                    rest = until - self._clock.monotonic()
                    if rest <= 0 or has_left(request) or not await self._clock.wait(mine, rest):
                        return
        finally:
            if self._held.get(who) is mine:
                del self._held[who]

    def _let_go(self, who: object) -> bool:
        held = self._held.pop(who, None)
        if held is not None:
            held.set()
        return held is not None

    def answer_longest(self) -> bool:
        """Answer the poll that is held for longest. False when there is none."""
        return bool(self._held) and self._let_go(next(iter(self._held)))

    def stop(self) -> None:
        """Answer all that are held, and hold none from now on."""
        self.stopping = True
        for each in self._held.values():
            each.set()


def _here(chat: Watched, position: int) -> list[Line]:
    """What a poll is answered with; nothing while GMS is asked for what comes before it."""
    return [] if chat.looks_back_for(position) else chat.behind(position)


def _not_yet(call: ClientCall) -> bytes:
    """The reply without events that has its client ask the same once more."""
    return poll_reply(Names.of(call).written(), (), next_position=max(1, call.asked_from))


def told(names: Names, chat: Watched, lines: list[Line]) -> bytes:
    """The reply with these events, which count as given from then on."""
    size = count = 0
    for line in lines:
        size += len(line.body)
        if count and size > MOST_BYTES:
            break
        count += 1
    cut = count < len(lines)
    given = lines[:count]
    if given:
        chat.given = max(chat.given, given[-1].id)
    following = chat.position_given = given[-1].index + 1 if cut else chat.next_position
    return poll_reply(
        names.written(),
        (line.body for line in given),
        next_position=following,
        ended=chat.ended and not cut,
    )
