"""A worker with its loops, and GMS in the words of a test."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from conftest import FakeClock, MakeSettings, PromptStore, settle

from asyncchatd.gms.client import Answer, GmsClient
from asyncchatd.gms.pacing import InFlight, Pacer, Turns
from asyncchatd.gms.trouble import Trouble
from asyncchatd.model.data import Cause, Ms, Restoration, Tokens
from asyncchatd.sending.sending import Sending
from asyncchatd.standin.messages import write_push
from asyncchatd.wire.chat_api.outcome import Alive, NodeTrouble, Outcome
from asyncchatd.wire.chat_api.replies import Reply
from asyncchatd.wire.push import read_push
from asyncchatd.worker.worker import Worker

LEASE_SECONDS = 15
TARGET_SECONDS = 1.0
INTERVAL_MS = 30 * 60 * 1000
KEPT = Alive(Reply(0))
"""The session lives and nothing is new."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping Refresh as GMS saw it."""

    at: float
    service: str
    tokens: Tokens
    position: int | None

    @property
    def chat_id(self) -> str:
        return self.tokens.chat_id


class FakeGms:
    """Stands in for `GmsClient`. Answers at once, or with `holding` when told to."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.pings: list[Ping] = []
        self.outcomes: dict[str, Outcome] = {}
        """By chat id; all others live."""
        self.holding = False
        self.closing = False
        self.hang_seconds: dict[str, float] = {}
        """By chat id: how long its answers take."""
        self.perhaps_taken = False
        """Whether those without an answer may have been taken."""
        self.at_work = 0.0
        """Seconds for which they may be worked on still."""
        self.free_slots: int | None = None
        self.rests = 0.0
        self.most_at_once: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._held: list[tuple[str, asyncio.Future[None]]] = []

    def slots(self) -> int | None:
        return self.free_slots

    def retry_in(self) -> float:
        return self.rests

    async def refresh(
        self, service: str, tokens: Tokens, position: int | None, *, until: float = math.inf
    ) -> Answer:
        sent_at, started, chat_id = self.clock.now(), self.clock.monotonic(), tokens.chat_id
        if started > until:
            return Answer(NodeTrouble(Trouble.TOO_LATE), "http://gms-1", sent_at, 0.0)
        self.pings.append(Ping(started, service, tokens, position))
        self._now[chat_id] += 1
        self.most_at_once[chat_id] = max(self.most_at_once[chat_id], self._now[chat_id])
        if self.holding:
            answer = asyncio.get_running_loop().create_future()
            self._held.append((chat_id, answer))
            await answer
        if (seconds := self.hang_seconds.get(chat_id)) is not None:
            await self.clock.sleep(seconds)
        self._now[chat_id] -= 1
        outcome = self.outcomes.get(chat_id, KEPT)
        took = self.clock.monotonic() - started
        return Answer(outcome, "http://gms-1", sent_at, took, self.perhaps_taken, self.at_work)

    def release(self, count: int | None = None) -> None:
        """Answer the oldest held requests, or all of them."""
        answered, self._held = self._held[:count], self._held[len(self._held[:count]) :]
        for _, answer in answered:
            answer.set_result(None)

    @property
    def held(self) -> int:
        return len(self._held)

    def asked(self) -> list[str]:
        """Chat ids in the order in which they were pinged."""
        return [ping.chat_id for ping in self.pings]


@dataclass
class Rig:
    """A worker with its loops, and everything around it."""

    worker: Worker
    store: PromptStore
    gms: FakeGms
    clock: FakeClock
    wakeup: asyncio.Event
    loops: dict[str, asyncio.Task[None]]
    suspected: list[str]
    """Aliases whose Chat Servers the worker has doubts about."""

    async def push(self, chat_id: str, *, secure_key: str | None = None, now: Ms | None = None) -> None:
        """A push notification from GMS, with the newest tokens when a key is given."""
        message: dict[str, object] = {"session-id": chat_id}
        now = self.clock.now() if now is None else now
        if secure_key is not None:
            message |= {"secure-key": secure_key, "user-id": f"user-of-{chat_id}", "app-dbid": "117"}
            message |= {"messages": [{"index": 4, "type": "Message", "utcTime": now + 1}]}
        await self.store.take_push(read_push(write_push(f"device-of-{chat_id}", message)), now=now)
        self.wakeup.set()

    async def restore(self, alias: str = "117") -> Restoration:
        begun = await self.store.begin_restoration(
            alias=alias, server="chat-a", cause=Cause.UNREACHABLE, now=self.clock.now()
        )
        while await self.store.mark(begun.id, limit=500, now=self.clock.now()):
            pass
        self.wakeup.set()
        return begun

    async def restoration(self, number: int) -> Restoration:
        [found] = [each for each in await self.store.restorations() if each.id == number]
        return found


@asynccontextmanager
async def running(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    *,
    gms: FakeGms | None = None,
    rate: float = 200.0,
    max_in_flight: int = 100,
    listening: Callable[[], Collection[str]] = tuple,
    is_started: bool = True,
    shared: Turns | None = None,
    **restoration: object,
) -> AsyncIterator[Rig]:
    """A worker at work, once it is started. Begin with the sessions registered: what is due is pinged at once. `shared`
    gives turns."""
    settings = make_settings(
        restoration={"max_rate": rate, "max_in_flight": max_in_flight, **restoration},
        ping={"interval": "30m"},
    )
    wakeup = asyncio.Event()
    gms = gms or FakeGms(clock)
    suspected: list[str] = []
    sending = Sending(
        store,
        cast(GmsClient, gms),
        Pacer(rate, clock, shared),
        InFlight(max_in_flight, TARGET_SECONDS, clock),
        settings,
        clock,
        wakeup,
        suspected.append,
    )
    worker = Worker(store, sending, settings, clock, wakeup, listening)
    lives = {**sending.lives(), **worker.lives()} if is_started else {}
    loops = {name: asyncio.create_task(life) for name, life in lives.items()}
    await settle()
    try:
        yield Rig(worker, store, gms, clock, wakeup, loops, suspected)
    finally:
        gms.holding = False
        gms.release()
        await settle()
        failed = [task for task in loops.values() if task.done()]
        for task in loops.values():
            task.cancel()
        await asyncio.gather(*loops.values(), return_exceptions=True)
        # A loop that ended by itself is a daemon that died; drained ones have returned.
        for task in failed:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
