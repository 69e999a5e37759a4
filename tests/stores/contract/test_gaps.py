"""The contract of a store: whatever a consumer does not take and however often, each message is told, or counted in a
gap of its chat, or there is a gap of all chats."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind, StoredEvent
from asyncchatd.stores.answers import Bounds

from ..desk import MINUTE, Desk
from ..test_transcript import batches, message, refresh, told
from .rig import chats
from .test_consumers import CHAT, gap, trimmed

NAMES = chats(3)
FIRST = 3
"""The index of the first message of a chat."""


class Hearer:
    """A consumer that counts what it takes, each event once."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self.told: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.misses_any = False

    def take(self, events: Sequence[StoredEvent]) -> None:
        for event in events:
            if event.id in self._taken:
                continue
            self._taken.add(event.id)
            if event.chat_id is None:
                self.misses_any = True
            elif event.kind is EventKind.CHAT:
                self.told[event.chat_id] += 1
            else:
                missing = gap(event)["events"]
                assert isinstance(missing, int)
                self.missing[event.chat_id] += missing


class Scene:
    """Chats, one that fetches and one with a webhook, and what happens to them at random."""

    def __init__(self, desk: Desk, chance: random.Random) -> None:
        self._desk = desk
        self._chance = chance
        self._bounds = Bounds(chance.choice((4, 1_000)), 1 << 20, 1 << 30, MINUTE)
        self.said: Counter[str] = Counter()
        self.hearers = {"app": Hearer(), "hook": Hearer()}

    def consumer(self, name: str) -> Consumer:
        return Consumer(
            name,
            CHAT,
            pushes=name == "hook",
            keep_ms=self._chance.choice((5, 20, 1_000)) * MINUTE,
            max_backlog=self._chance.choice((3, 8, 1_000)),
        )

    async def step(self) -> None:
        """One thing happens."""
        await self._chance.choice((self.say, self.say, self.wait, self.trim, self.fetch, self.deliver))()

    async def say(self) -> None:
        name, count = self._chance.choice(NAMES), self._chance.randint(1, 3)
        await self._desk.answer(*await self._desk.claim())  # keepalives
        begin = FIRST + self.said[name]
        await refresh(
            self._desk, *(message(index, "x") for index in range(begin, begin + count)), chat_id=name
        )
        self.said[name] += count

    async def wait(self) -> None:
        self._desk.later(self._chance.choice((1, 4, 8)) * MINUTE)

    async def trim(self) -> None:
        await trimmed(self._desk, self._bounds)

    async def fetch(self) -> None:
        """One that fetches takes some of what there is, now and then."""
        found = await told(self._desk)
        if found and self._chance.random() < 0.3:
            some = found[: self._chance.randint(1, len(found))]
            self.hearers["app"].take(some)
            await told(self._desk, after=some[-1].id)

    async def deliver(self) -> None:
        """A webhook takes a batch, or is down, or refuses it for good; or an operator replays what it refused."""
        store, now = self._desk.store, self._desk.now
        for batch in await batches(self._desk):
            chance = self._chance.random()
            if chance < 0.3:
                self.hearers["hook"].take(batch.events)
                await store.delivered([batch], now=now)
            else:
                await store.undelivered(batch, due_at=now, failing_since=now, parked=chance < 0.6)
        if self._chance.random() < 0.2:
            await store.replay("hook", parked=True)

    async def take_all(self) -> None:
        """Both take all there is."""
        store = self._desk.store
        await store.replay("hook", parked=True)
        while found := await told(self._desk):
            self.hearers["app"].take(found)
            await told(self._desk, after=found[-1].id)
        while given := await batches(self._desk):
            for batch in given:
                self.hearers["hook"].take(batch.events)
            await store.delivered(given, now=self._desk.now)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed >= 3 else ()) for seed in range(12)]
)
async def test_each_message_is_told_or_missed(desk: Desk, seed: int) -> None:
    scene = Scene(desk, random.Random(seed))
    await desk.store.enrol([scene.consumer(name) for name in scene.hearers], now=desk.now)
    await desk.live(*NAMES)
    for _ in range(80):
        await scene.step()
    await scene.take_all()
    for name, hearer in scene.hearers.items():
        for chat_id in NAMES:
            heard = hearer.told[chat_id] + hearer.missing[chat_id]
            assert heard <= scene.said[chat_id], f"{name} is told of what was not said"
            assert heard == scene.said[chat_id] or hearer.misses_any, f"{name} misses messages in silence"
