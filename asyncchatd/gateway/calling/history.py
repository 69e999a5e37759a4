"""History: what was said in a chat before its transcript begins here, which a client asks for as its page is loaded.

A registered chat began before asyncchatd heard of it, and of a long one the oldest events are not kept. Such a poll has
GMS asked for all events, as a call that takes the session like any other. What comes before the transcript stays in
memory beside the chat's other events, and is never written: consumers are told what happens, in its order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asyncchatd.gateway.calling.calls import Calls, Fate
from asyncchatd.gateway.watching.watched import Line, Watched, Watching
from asyncchatd.gms import Answer
from asyncchatd.model import Claim, Clock, replace
from asyncchatd.sending import Sending
from asyncchatd.wire import ALL_EVENTS, Alive, ClientCall, Reply, raw_event

ANSWERED_SECONDS = 600.0
"""So long a chat whose history came is not asked for it again, whatever its client asks for."""

FAILED_SECONDS = 60.0
"""The same where it could not be had."""


class History:
    """Has the histories of all clients' chats asked for."""

    def __init__(self, calls: Calls, watching: Watching, sending: Sending, clock: Clock) -> None:
        self._calls = calls
        self._watching = watching
        self._sending = sending
        self._clock = clock
        self._under_way: set[asyncio.Task[None]] = set()

    def show(self, call: ClientCall, chat: Watched) -> None:
        """Have the history asked for if a poll asks for more than is here. `Watched.looks_back` is set meanwhile."""
        now = self._clock.monotonic()
        if not chat.lacks(call.asked_from) or now < chat.not_back_before or chat.looks_back or chat.ended:
            return
        chat.looks_back = True
        task = asyncio.create_task(self._fetch(call, chat))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _fetch(self, call: ClientCall, chat: Watched) -> None:
        before: list[Line] = []

        async def send(_: ClientCall, claim: Claim) -> Answer:
            until = self._sending.settling.safe_until()
            request = self._sending.gms.refresh(claim.service, claim.tokens, ALL_EVENTS, until=until)
            answer = await self._sending.call(claim.tokens.alias, request)
            if not isinstance(answer.outcome, Alive):
                return answer
            reply = answer.outcome.reply
            position = ALL_EVENTS if claim.next_position is None else claim.next_position
            before.extend(_lines(reply.messages))
            return replace(answer, outcome=replace(answer.outcome, reply=_behind(reply, position)))

        seconds = FAILED_SECONDS
        try:
            outcome = await self._calls.answer(replace(call, pairs=()), chat, send=send)
            if outcome.fate is Fate.DONE:
                seconds = ANSWERED_SECONDS
                self._watching.put_before(chat, before)
        finally:
            chat.not_back_before = self._clock.monotonic() + seconds
            chat.looks_back = False
            chat.ring()


def _lines(messages: Sequence[dict[str, object]]) -> list[Line]:
    """The events of a reply that have an index."""
    events = [event for event in map(raw_event, messages) if event is not None]
    return [Line(0, event.index, event.body) for event in events if event.index is not None]


def _behind(reply: Reply, position: int) -> Reply:
    """The reply as it were to a poll from this position: what came before is not written once more."""
    return replace(
        reply,
        events=tuple(event for event in reply.events if event.index is None or event.index >= position),
        messages=tuple(
            message
            for message in reply.messages
            if (event := raw_event(message)) is not None and (event.index is None or event.index >= position)
        ),
    )
