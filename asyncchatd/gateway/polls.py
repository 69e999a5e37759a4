"""Polls: what clients ask every few seconds is answered from what is known here, and never reaches GMS.

A poll that finds nothing new is held for `gateway.hold`, and one of a chat at a time: the next one of that chat takes
its place, so a client that asks twice does not get one event twice. A client that says for how long it waits, as those
do that were written for it, has several held beside each other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from asyncchatd.gateway.app import as_response
from asyncchatd.gateway.replies import Names, poll_reply
from asyncchatd.gateway.watching.places import Place
from asyncchatd.gateway.watching.watched import Line, Watched
from asyncchatd.listening import has_left, heard_leaving
from asyncchatd.log import metrics
from asyncchatd.model import Clock, Ms
from asyncchatd.wire import ClientCall

MOST_BYTES = 4 * 1024 * 1024
"""Of one reply; the next poll brings the rest."""


LONGEST_WAIT = 30
"""Seconds that a client may have its poll held, whatever it asks for: what stands between may end it after 60."""

MOST_BESIDE = 4
"""Long polls and streams of one chat that are held beside each other: pages of one customer."""

CROWDED_SECONDS = 1.0
"""One more is answered after so long: a client that asks again at once would do so without end."""

# Looked up by its label a counter costs three times as much, and that each poll.
_ENDED, _NEWS, _EMPTY = map(metrics.POLLS.labels, ("ended", "news", "empty"))


Look = Callable[[], list[Line] | None]
"""What a poll is answered with as it is now; None while it is not here, or GMS is asked for what comes before it."""


class Beside:
    """The long polls and streams of each chat that are held beside each other."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def place(self, chat_id: str) -> Iterator[bool]:
        """Whether there is a place for one more, which it has meanwhile."""
        has_place = self._held[chat_id] < MOST_BESIDE
        self._held[chat_id] += has_place  # one that has none keeps none from others
        try:
            yield has_place
        finally:
            self._held[chat_id] -= has_place
            if not self._held[chat_id]:
                del self._held[chat_id]


class Polls:
    """The polls of all clients."""

    def __init__(self, beside: Beside, clock: Clock) -> None:
        self.hold: float
        """Seconds that a poll waits for news. Whoever makes it sets it before the first one comes."""
        self._beside = beside
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
        look = _behind(call, chat) if call.wait is None else _in_place(call, chat)
        lines = look()
        if not self._is_answered(chat, lines):
            lines = await self._hold(call, chat, request, look)
        if lines is None:
            _EMPTY.inc()
            return as_response(_not_yet(call))  # of which it would go on behind what it has not had
        (_ENDED if chat.ended else _NEWS if lines else _EMPTY).inc()
        return as_response(told(Names.of(call), chat, lines, self._clock.now()))

    async def empty(self, call: ClientCall, request: web.Request) -> web.Response:
        """The reply to a poll of a chat of which nothing is known here, or of one who may not know."""
        await self._wait(object(), asyncio.Event(), request, lambda _: False, self.hold)
        _EMPTY.inc()
        return as_response(_not_yet(call))

    def _is_answered(self, chat: Watched, lines: list[Line] | None) -> bool:
        return bool(lines) or (chat.ended and chat.followed)

    async def _hold(
        self, call: ClientCall, chat: Watched, request: web.Request, look: Look
    ) -> list[Line] | None:
        """What there is once there are news, another poll of the chat comes, or the time is over."""
        lines: list[Line] | None = None

        def is_over(rung: bool) -> bool:
            nonlocal lines
            lines = look()
            return self._is_answered(chat, lines) or (rung and not chat.followed)

        mine = asyncio.Event()
        with chat.heard_by(mine):
            if call.wait is None:
                self._let_go(chat.chat_id)
                await self._wait(chat.chat_id, mine, request, is_over, self.hold)
            else:
                with self._beside.place(chat.chat_id) as has_place:
                    seconds = min(call.wait, LONGEST_WAIT if has_place else CROWDED_SECONDS)
                    await self._wait(mine, mine, request, is_over, seconds)
        return lines or look()

    async def _wait(
        self,
        who: object,
        mine: asyncio.Event,
        request: web.Request,
        is_over: Callable[[bool], bool],
        seconds: float,
    ) -> None:
        """`is_over` is told whether something has happened in the chat since it was held."""
        self._held[who] = mine
        until = self._clock.monotonic() + seconds
        rung = False
        try:
            with heard_leaving(request, mine):
                while not is_over(rung) and self._held.get(who) is mine and not self.stopping:
                    mine.clear()
                    rest = until - self._clock.monotonic()
                    if rest <= 0 or has_left(request) or not await self._clock.wait(mine, rest):
                        return
                    rung = True
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


def _behind(call: ClientCall, chat: Watched) -> Look:
    """What a client in the field asks for, which may go by a position of before, or by none."""
    position = call.asked_from
    return lambda: chat.behind(position) if chat.followed and not chat.looks_back_for(position) else None


def _in_place(call: ClientCall, chat: Watched) -> Look:
    place = Place(call.asked_from)
    return lambda: place.take(chat)


def _not_yet(call: ClientCall) -> bytes:
    """The reply without events that has its client ask the same once more."""
    return poll_reply(Names.of(call).written(), (), next_position=max(1, call.asked_from))


def told(names: Names, chat: Watched, lines: list[Line], now: Ms) -> bytes:
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
        chat.gave(given, now)
    following = chat.position_given = given[-1].index + 1 if cut else chat.next_position
    return poll_reply(
        names.written(),
        (line.body for line in given),
        next_position=following,
        ended=chat.ended and not cut,
    )
