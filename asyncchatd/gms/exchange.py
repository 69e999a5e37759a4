"""One request to a GMS node and what comes for it, until its deadline.

HTTP/1.1 has no number that ties an answer to its request: whether an answer is the one to its request is for the
caller to say, who can wait for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol, Self

from asyncchatd.gms.connection import IDLE, Connection
from asyncchatd.gms.http_reply import HttpReply, HttpReplyError, unpacked
from asyncchatd.gms.trouble import ExchangeError, Trouble, cause_of

PAUSED_SECONDS = 0.1
"""A time-out that comes so late was held up by a pause of the whole process: SIGSTOP, a VM that slept. The node
had no chance to be heard meanwhile, and gets its time once more."""

SHORTEST_SECONDS = 0.001
"""Event loops count in milliseconds; asked for less they return at once."""

LOOKS = 4
"""Turns of the event loop between a time-out and its effect: what has come by then is read. After a pause both
loops may run their timers before they look at sockets, and each hands over what came one turn later."""

MOST_REPLIES = 64
"""So many answers to one request, none of them the right one, are nonsense."""


class Pool(Protocol):
    """The pool that a connection goes back to, as an exchange knows it."""

    def end(self, connection: Connection, usable: bool) -> None:
        """Take a connection back whose request is done with. `usable`: another one may follow, if the node left it
        fit."""


class Exchange:
    """One request and what comes for it, for a `with`."""

    __slots__ = (
        *(
            "_alone",
            "_answer",
            "_asked",
            "_connection",
            "_deadlines",
            "_error",
            "_further",
            "_late",
            "_looking",
        ),
        *("_pool", "begun", "kept", "loop", "reusable", "sent_at"),
    )

    def __init__(self, pool: Pool, connection: Connection, request: bytes, deadlines: Deadlines) -> None:
        loop = self.loop = connection.loop
        self.kept = connection.state is IDLE
        """Whether the connection had served another request before: what comes over it may be that one's."""
        self.begun = False
        """Whether a byte of an answer has come."""
        self.reusable = True
        """For who reads the answer to unset: whether it is certain to be the one to this request."""
        self._pool = pool
        self._connection = connection
        self._answer: asyncio.Future[HttpReply] = loop.create_future()
        """The next that is waited for."""
        self._asked = 0
        self._alone = False
        """Whether one answer came and nothing else."""
        self._further: Sequence[HttpReply] = ()
        """Answers that nobody has asked for yet."""
        self._error: ExchangeError | None = None
        self._late = False
        """Whether it has its time for the second time."""
        self._looking: asyncio.Handle | None = None
        """Its time is over, and what has come by now is read first."""
        self._deadlines = deadlines
        # Not the event loop's clock: uvloop's is of whole milliseconds, and stands still for a turn.
        self.sent_at = time.monotonic()
        deadlines.begin(self, self.sent_at)
        connection.send(self, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._deadlines.end(self)
        if self._looking is not None:
            self._looking.cancel()
        connection, connection.exchange = self._connection, None
        answered = self._alone and failed is None
        if answered and not self.reusable:
            connection.leave_no_trace()
        self._pool.end(connection, answered and self.reusable)

    def reply(self) -> asyncio.Future[HttpReply]:
        """The answer; asked again, the next one. The future raises `ExchangeError`."""
        self._asked += 1
        if self._asked > 1:
            self._answer = self._next()
        return self._answer

    async def unpacked(self, reply: HttpReply) -> bytes:
        """The body of an answer that is `packed`. Raises `ExchangeError`."""
        try:
            return await asyncio.to_thread(unpacked, reply)
        except HttpReplyError as error:
            raise self._trouble(cause_of(error), str(error)) from error

    def note_keys(self, *keys: str | None) -> None:
        """Remember, for the requests that follow, the keys that this request and its answer had."""
        for key in keys:
            if key is not None:
                self._connection.keys.add(hash(key))

    def knows_key(self, key: str) -> bool:
        """Whether an earlier request over this connection, or its answer, had that key."""
        return hash(key) in self._connection.keys

    def _next(self) -> asyncio.Future[HttpReply]:
        answer = self.loop.create_future()
        self._alone = False
        if self._asked > MOST_REPLIES:
            self._further = ()
            self.fail(Trouble.PROTOCOL, f"more than {MOST_REPLIES} answers")
        if self._further:
            first, *self._further = self._further
            answer.set_result(first)
        elif self._error is not None:
            answer.set_exception(self._error)
        return answer

    # -- what the connection tells ----------------------------------------------------------------------

    def take(self, reply: HttpReply) -> None:
        """Bytes came for the request."""
        if self._answer.done():  # or whoever waited is cancelled
            self._further = (*self._further, reply)
            self._alone = False
        else:
            self._answer.set_result(reply)
            self._alone = self._asked < 2

    def fail(self, cause: Trouble, detail: str, *, stale: bool = False, refused: bool = False) -> None:
        """The connection brings nothing more. `refused`: nor was the request read."""
        if self._error is not None:
            return
        self._alone = False
        error = self._error = self._trouble(cause, detail)
        error.sent, error.stale = not refused, stale
        if not self._answer.done():
            self._answer.set_exception(error)

    def _trouble(self, cause: Trouble, detail: str) -> ExchangeError:
        error = ExchangeError(cause, detail)
        error.sent, error.kept, error.begun = True, self.kept, self.begun
        return error

    # -- what its deadline tells --------------------------------------------------------------------------

    def time_out(self) -> None:
        """The request's time is over."""
        now = time.monotonic()
        if not self._late and now > self.sent_at + self._deadlines.seconds + PAUSED_SECONDS:
            self._late = True
            self._deadlines.begin(self, now)
        else:
            self._look_again(LOOKS)

    def _look_again(self, looks: int) -> None:
        """Nobody waits any longer. The connection is of no more use: its answer may still come."""
        if looks:
            self._looking = self.loop.call_soon(self._look_again, looks - 1)
        else:
            self.fail(Trouble.TIMEOUT, "no answer in time")


class Deadlines:
    """The deadlines of the requests on their way to one node. All have the same time, so the one that was sent
    first has the first deadline, and one timer does for all: to set and cancel one for each takes longer than to write
    the request down."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[Exchange, float] = {}
        """With their deadlines, the first one first."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, exchange: Exchange, now: float) -> None:
        """Give an exchange its time from now on."""
        self._waiting[exchange] = now + self.seconds
        if self._timer is None:
            self._timer = exchange.loop.call_later(self.seconds, self._look)

    def end(self, exchange: Exchange) -> None:
        """Forget an exchange, which waits no longer."""
        self._waiting.pop(exchange, None)

    def _look(self) -> None:
        """Tell those whose time is over, and come again for the next one."""
        now = time.monotonic()
        late = list(takewhile(lambda each: self._waiting[each] <= now, self._waiting))
        for exchange in late:
            del self._waiting[exchange]
            exchange.time_out()
        self._timer = None
        if (first := next(iter(self._waiting), None)) is not None:
            wait = max(SHORTEST_SECONDS, self._waiting[first] - now)
            self._timer = first.loop.call_later(wait, self._look)
