"""Calls: what customers say and do, sent to GMS as pings are, with the session held meanwhile.

One request of a session is on its way at a time, whoever sends it; so a call waits for a ping, and a ping for a call.
It goes out once. What may have been taken is not sent again, and what became of it the Refresh that follows shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from asyncchatd.gateway.calling.waiting import with_call
from asyncchatd.gateway.watching.watched import Line, Watched
from asyncchatd.gms import Answer, Pacer, Trouble
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Claim, Clock, Hidden, Reason, Settlement, Value, Verdict, replace
from asyncchatd.sending import Confirming, Sending
from asyncchatd.stores import LASTING, NotTaken, Store, StoreError
from asyncchatd.wire import (
    ALL_EVENTS,
    Alive,
    ChatApiError,
    ClientCall,
    Ended,
    NodeTrouble,
    Operation,
    Refused,
    RetryLater,
    forwarded,
    read_event,
    reply_object,
)

LOOK_SECONDS = 0.05
"""A session that somebody else holds is asked for again after so long, if nothing is told before."""

QUIET = frozenset(
    {
        *(Operation.START_TYPING, Operation.STOP_TYPING, Operation.READ_RECEIPT),
        *(Operation.FILE_LIMITS, Operation.FILE_DOWNLOAD),
    }
)
"""Operations that leave no event in the transcript, or none that is kept (protocol section 2)."""

log = get_logger()


class Fate(StrEnum):
    """What became of a call."""

    DONE = "done"
    """GMS took it."""
    REFUSED = "refused"
    """GMS says that it will not do it, or not now."""
    ENDED = "ended"
    """The chat is over."""
    NOT_SENT = "not_sent"
    """It was not sent, or nobody took it: the client may send it again."""
    UNKNOWN = "unknown"
    """Nobody can know."""
    TOO_MANY = "too_many"
    """Too many calls of the chat wait already."""


class Outcome(Value, frozen=True):
    """How a call ended."""

    fate: Fate
    body: Hidden[bytes | None] = None
    """GMS' reply."""
    status_code: int = 0


class _Sent(NamedTuple):
    """A call that went out, and what its session was."""

    claim: Claim
    answer: Answer


Send = Callable[[ClientCall, Claim], Awaitable[Answer]]
"""How a call is sent for a session that is held. Raises `ChatApiError` for what cannot be written."""


@dataclass(eq=False, slots=True)
class _Errand:
    """A call on its way through here."""

    call: ClientCall
    send: Send | None = None
    sent: bool = False


class Calls:
    """The calls of all clients."""

    def __init__(
        self, store: Store, sending: Sending, lane: Pacer, clock: Clock, wakeup: asyncio.Event
    ) -> None:
        """`lane`: the rate of calls, within that of all requests."""
        self.lane = lane
        self.patience = 2.5
        """Seconds that a client waits for what came of its call."""
        self.max_waiting = 10
        """Calls of one chat that wait for their turn."""
        self.stopping = asyncio.Event()
        self._store = store
        self._sending = sending
        self._clock = clock
        self._wakeup = wakeup
        self._waiting: dict[str, list[ClientCall]] = {}
        self._under_way: set[asyncio.Task[Outcome]] = set()

    async def answer(
        self, call: ClientCall, chat: Watched, *, send: Send | None = None, patience: float | None = None
    ) -> Outcome:
        """Send a call with a right key; what came of it, within `patience` seconds. `send`: in another way than as a
        form. Never raises for what GMS does."""
        outcome = await self._answered(_Errand(call, send), chat, patience or self.patience)
        metrics.CALLS.labels(call.operation.name.lower(), outcome.fate.value).inc()
        if outcome.fate is Fate.UNKNOWN:
            log.warning(Event.CALL_UNKNOWN, chat_id=chat.chat_id, operation=call.operation.name.lower())
        return outcome

    async def _answered(self, errand: _Errand, chat: Watched, patience: float) -> Outcome:
        waiting = with_call(self._waiting.get(chat.chat_id, ()), errand.call)
        if waiting is None:
            return Outcome(Fate.DONE)  # one that waits says as much
        if len(waiting) > self.max_waiting:
            return Outcome(Fate.TOO_MANY)
        # Whoever waits with one whose place is taken finds it gone.
        self._waiting[chat.chat_id] = waiting
        task = asyncio.create_task(self._serve(errand, chat, self._clock.monotonic() + patience))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        over = asyncio.Event()
        task.add_done_callback(lambda _: over.set())
        if await self._clock.wait(over, patience) or task.done():  # both in one moment: it gave up by itself
            return task.result()
        # It goes on: a request that left is never cut off, its reply may carry a key.
        superseded = not errand.sent and not self._is_wanted(errand.call, chat)
        self._withdraw(errand.call, chat)
        return Outcome(Fate.UNKNOWN if errand.sent else Fate.DONE if superseded else Fate.NOT_SENT)

    async def drain(self) -> None:
        """Send nothing more; return when all that left is answered and settled."""
        self.stopping.set()
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    # -- one call ------------------------------------------------------------------------------------

    async def _serve(self, errand: _Errand, chat: Watched, until: float) -> Outcome:
        try:
            async with chat.turn:
                return await self._have_turn(errand, chat, until)
        finally:
            self._withdraw(errand.call, chat)

    async def _have_turn(self, errand: _Errand, chat: Watched, until: float) -> Outcome:
        call = errand.call
        began = self._clock.monotonic()
        if not self._is_wanted(call, chat):
            return Outcome(Fate.DONE)  # a newer one of its kind says what it said
        if chat.ended:
            return Outcome(Fate.ENDED)
        before = chat.lines[-1].id if chat.lines else 0
        try:
            sent = await self._send(errand, chat, until)
        except StoreError:
            return Outcome(Fate.NOT_SENT)
        if not isinstance(sent, _Sent):
            if sent is None and not self._is_wanted(call, chat):
                return Outcome(Fate.DONE)
            return Outcome(Fate.ENDED if sent is NotTaken.ENDED else Fate.NOT_SENT)
        outcome = await self._settle(call, sent)
        if outcome.fate is Fate.UNKNOWN:
            outcome = await self._what_the_refresh_shows(call, chat, before, until)
        log.info(
            Event.CALL_DONE,
            chat_id=chat.chat_id,
            alias=sent.claim.tokens.alias,
            operation=call.operation.name.lower(),
            outcome=outcome.fate.value,
            node=sent.answer.node,
            waited_ms=round((self._clock.monotonic() - began - sent.answer.took) * 1000),
            took_ms=round(sent.answer.took * 1000, 1),
        )
        return outcome

    def _is_wanted(self, call: ClientCall, chat: Watched) -> bool:
        return any(each is call for each in self._waiting.get(chat.chat_id, ()))

    def _withdraw(self, call: ClientCall, chat: Watched) -> None:
        waiting = self._waiting.get(chat.chat_id, [])
        waiting[:] = [each for each in waiting if each is not call]
        if not waiting:
            self._waiting.pop(chat.chat_id, None)

    async def _send(self, errand: _Errand, chat: Watched, until: float) -> _Sent | NotTaken | None:
        """What came of it; why the session cannot be had; None when it was not sent in time. Raises `StoreError`."""
        while (claim := await self._hold(chat.chat_id, until)) is not None:
            if isinstance(claim, NotTaken):
                return claim
            try:
                may_send = await self._may_send(claim, until)
            except StoreError:
                self._give_back(claim)  # or its lease were renewed for ever
                raise
            if may_send and self._is_wanted(errand.call, chat):
                errand.sent = True
                self._withdraw(errand.call, chat)
                return _Sent(claim, await self._ask(errand, claim))
            self._give_back(claim)
            if self._is_over(until) or not self._is_wanted(errand.call, chat):
                return None
        return None

    def _is_over(self, until: float) -> bool:
        return self.stopping.is_set() or self._clock.monotonic() >= until

    async def _hold(self, chat_id: str, until: float) -> Claim | NotTaken | None:
        """The session to itself."""
        hurried = False
        settling = self._sending.settling
        while not self._is_over(until):
            asked_at = self._clock.now()
            claim = await self._store.seize(chat_id, now=asked_at, lease_ms=settling.lease_ms)
            if isinstance(claim, Claim):
                settling.hold([claim], asked_at)
                return claim
            if claim in LASTING:
                return claim
            if claim is NotTaken.IN_FLIGHT:
                settling.want(chat_id)
            if claim in (NotTaken.RESTORING, NotTaken.RAN_OUT) and not hurried:
                hurried = True  # its Refresh goes before those of others
                await self._store.make_due(chat_id, Reason.ACKNOWLEDGE, now=self._clock.now())
            self._wakeup.set()
            rest = min(LOOK_SECONDS, until - self._clock.monotonic())
            await settling.let_go(max(0.001, rest))
        return None

    async def _may_send(self, claim: Claim, until: float) -> bool:
        """Wait for room and for a turn. Whether it may still be sent then."""
        if not await self._sending.turn_for_call(lambda: self._is_over(until), self.lane):
            return False
        look = Confirming(self._store, self._sending.settling, [claim], self._sending.pacer.rate, self._clock)
        return await look.may_send(0) and not self._is_over(until)

    async def _ask(self, errand: _Errand, claim: Claim) -> Answer:
        answer = Answer(NodeTrouble(Trouble.OWN_FAULT), None, self._clock.now(), 0.0)
        try:
            return await (errand.send or self._as_form)(errand.call, claim)
        except ChatApiError as error:
            return replace(answer, outcome=Refused(error.code, str(error)))
        except Exception as error:
            # Whatever it is: a call that is never settled would keep its session from everybody.
            log.error(Event.PING_FAILED, chat_id=claim.chat_id, cause=type(error).__name__, exc_info=error)
            return replace(answer, perhaps_taken=True)

    async def _as_form(self, call: ClientCall, claim: Claim) -> Answer:
        position = ALL_EVENTS if claim.next_position is None else claim.next_position
        written = forwarded(call, claim.service, claim.tokens, position)
        request = self._sending.gms.call(written, claim.tokens, until=self._sending.settling.safe_until())
        return await self._sending.call(claim.tokens.alias, request)

    async def _settle(self, call: ClientCall, sent: _Sent) -> Outcome:
        claim, answer = sent
        settlement, outcome = self._judged(call, claim, answer)
        if answer.perhaps_taken:
            await self._clock.wait(self.stopping, self._sending.judge.held_for(answer))
            settlement = replace(settlement, due_at=self._clock.now(), settled_at=self._clock.now())
        self._sending.settling.settle(settlement)
        return outcome

    def _judged(self, call: ClientCall, claim: Claim, answer: Answer) -> tuple[Settlement, Outcome]:
        now = self._clock.now()
        judge = self._sending.judge

        def called(due_at: float) -> Settlement:
            return Settlement(claim, Verdict.CALLED, due_at, answer.sent_at, now)

        match answer.outcome:
            case Alive():
                shown = judge.settlement(claim, answer)
                complete = _shows_all(shown, call)
                settlement = replace(
                    shown,
                    verdict=Verdict.CALLED,
                    next_position=shown.next_position if complete else None,
                    due_at=claim.due_at if complete else now,
                )
                return settlement, Outcome(Fate.DONE, answer.body)
            case Ended():
                return judge.settlement(claim, answer), Outcome(Fate.ENDED, answer.body)
            case Refused():
                return called(claim.due_at), Outcome(Fate.REFUSED, answer.body, 2)
            case RetryLater():
                return called(claim.due_at), Outcome(Fate.REFUSED, answer.body, 1)
            case _:
                # A Refresh shows whether it was taken.
                due_at = now if answer.perhaps_taken else claim.due_at
                return called(due_at), Outcome(Fate.UNKNOWN if answer.perhaps_taken else Fate.NOT_SENT)

    def _give_back(self, claim: Claim) -> None:
        self._sending.settling.settle(
            Settlement(claim, Verdict.RELEASED, claim.due_at, settled_at=self._clock.now())
        )

    async def _what_the_refresh_shows(
        self, call: ClientCall, chat: Watched, before: int, until: float
    ) -> Outcome:
        """Whether the customer's own event stands in the transcript now."""
        if call.operation is not Operation.SEND:
            return Outcome(Fate.UNKNOWN)
        while not self._is_over(until):
            if any(_says(line, call.message) for line in chat.lines if line.id > before):
                return Outcome(Fate.DONE)
            rest = min(LOOK_SECONDS, until - self._clock.monotonic())
            await self._sending.settling.let_go(max(0.001, rest))
        return Outcome(Fate.UNKNOWN)


def _shows_all(shown: Settlement, call: ClientCall) -> bool:
    """Whether the reply to a call left no event of the transcript out: its events reach its position. Of what says
    nothing, a reply that moves no position."""
    if call.operation is Operation.REFRESH:
        return True  # a preview: it asks for all from our position, as a ping does
    highest = max((event.index or 0 for event in shown.events), default=None)
    if shown.next_position is None:
        return call.operation in QUIET
    if highest is None:
        return shown.next_position == (shown.claim.next_position or ALL_EVENTS)
    return highest + 1 == shown.next_position


def _says(line: Line, text: str | None) -> bool:
    """Whether an event is the customer's, with this text."""
    try:
        event = read_event(reply_object(line.body))
    except ChatApiError:
        return False
    return event is not None and event.participant_type == "Client" and event.text == text
