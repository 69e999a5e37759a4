"""Pushes on their way into the journal, with group commit.

Whatever came while the last statement ran goes into the next one, on a connection of its own; nobody waits for a
window. The statement touches no session's rows, so nothing else that is written holds a push up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

from asyncchatd.model import Ms
from asyncchatd.stores.answers import Taken
from asyncchatd.stores.errors import StoreError, StoreFull, StoreUnwritable
from asyncchatd.wire import Push

GROUP = 512
"""Pushes in one statement at the most, so that one commit stays short."""

Write = Callable[[Sequence[tuple[Push, Ms]]], Awaitable[list[Taken]]]


class _Waiting(NamedTuple):
    push: Push
    now: Ms
    done: asyncio.Future[Taken]


class Intake:
    """Pushes that are not in the journal yet, in the order in which they came."""

    def __init__(
        self, write: Write, *, queue: int, begin: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        """`write` puts a group into the journal. `begin` starts the task that does so until there is none left."""
        self._write = write
        self._bound = queue
        self._begin = begin
        self._waiting: deque[_Waiting] = deque()
        self._under_way: Sequence[_Waiting] = ()
        self._runs = False

    @property
    def depth(self) -> int:
        """Pushes that wait for those under way."""
        return len(self._waiting)

    @property
    def is_empty(self) -> bool:
        """Whether all that were taken are in the journal, or were refused."""
        return not self._runs

    def pushes(self) -> Iterator[Push]:
        """Those that may not be in the journal yet."""
        for group in (self._under_way, self._waiting):
            yield from (each.push for each in group)

    def take(self, push: Push, now: Ms) -> asyncio.Future[Taken]:
        """What the push is, once it is kept for good. Raises `StoreFull` when as many wait as the queue holds."""
        if len(self._waiting) >= self._bound:
            raise StoreFull(f"{self._bound} pushes are waiting for the database")
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(push, now, done))
        if not self._runs:
            self._runs = True
            self._begin(self._run())
        return done

    async def _run(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), GROUP)
                self._under_way = [self._waiting.popleft() for _ in range(count)]
                await self._keep(self._under_way)
                self._under_way = ()
        finally:
            self._runs = False
            for each in (*self._under_way, *self._waiting):  # it was ended by force
                _tell(each, StoreError("the store is closed"))
            self._under_way = ()
            self._waiting.clear()

    async def _keep(self, group: Sequence[_Waiting]) -> None:
        """Only the push that is at fault is told of it, unless nothing can be written."""
        try:
            taken = await self._write([(each.push, each.now) for each in group])
        except StoreError as error:
            if len(group) == 1 or isinstance(error, StoreUnwritable):
                for each in group:
                    _tell(each, error)
                return
        else:
            for each, one in zip(group, taken, strict=True):
                _tell(each, one)
            return
        for each in group:
            await self._keep([each])


def _tell(each: _Waiting, result: Taken | StoreError) -> None:
    if each.done.done():
        return  # nobody waits for it any more
    if isinstance(result, StoreError):
        each.done.set_exception(result)
    else:
        each.done.set_result(result)
