"""Nodes that write all that can be written, all at once, wait for each other and never in a circle."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from asyncchatd.model import Cause, ChatServer, Claim, Consumer, EventKind, Loss, Reason, TokenNews, Verdict
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import Bounds, Take
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres.shared import nodes as node_statements

from ..desk import LEASE, MINUTE, NOON, SPREAD, Desk, answered, complete_push, push, registration
from .server import Server, server
from .test_together import together

NODES = 3

ROUNDS = 20

ALIASES = ("117", "118", "119")

APP = Consumer("app", kinds=frozenset(EventKind), acknowledges_ms=10_000)
READER = Consumer("reader", kinds=frozenset(EventKind), acknowledges_ms=10_000)
HOOK = Consumer("hook", kinds=frozenset(EventKind), pushes=True)

BOUNDS = Bounds(max_events=2, max_bytes=1 << 20, max_total=1 << 30, keep_ms=MINUTE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server that takes whoever waits for a moment for one that waits in a circle, and looks."""
    with server(deadlock_timeout="5ms", log_lock_waits="off") as one:
        yield one


@pytest.fixture
async def nodes(
    impatient: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[PostgresStore]]:
    async with together(impatient, NODES, tmp_path, monkeypatch) as opened:
        yield opened


@pytest.mark.parametrize("consumers", [(), (APP, HOOK, READER)], ids=["untold", "told"])
async def test_writers_of_all_kinds_wait_for_each_other_and_never_in_a_circle(
    nodes: list[PostgresStore], impatient: Server, consumers: Sequence[Consumer]
) -> None:
    crowd = Crowd(consumers)
    for node in nodes:
        await node.enrol(consumers, now=NOON)
    await Desk(nodes[0]).register(*map(registration, crowd.chats))
    said = len(impatient.log)
    await asyncio.gather(*(crowd.again(act, node) for act in crowd.acts() for node in nodes))
    _, circle, told = impatient.log[said:].partition("deadlock detected")
    assert not circle, told[:4_000]
    assert await deadlocks(nodes[0]) == 0
    desk = Desk(nodes[0], crowd.now + SPREAD)
    await desk.store.finish_announced(now=desk.now)
    for begun in await desk.store.restorations(limit=1_000, unfinished=True):
        while begun.marking and await desk.store.mark(begun.id, limit=100, now=desk.now):
            pass
    await desk.check()


async def deadlocks(node: PostgresStore) -> int:
    found = await node._reading(
        lambda tx: tx.value("SELECT deadlocks FROM pg_stat_database WHERE datname=current_database()")
    )
    return int(found)


class Crowd:
    """Who writes, each what it is for, of chats that all of them write of."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self.consumers = consumers
        self.chats = [f"chat-{number}" for number in range(40)]
        self.chance = random.Random(1)
        self.now = NOON
        self.claims: list[Claim] = []
        self.takes: list[Take] = []

    def acts(self) -> list[Callable[[PostgresStore], Awaitable[None]]]:
        told = [self.take, self.give_back, self.tell, self.deliver, self.trim] if self.consumers else []
        return [
            *(self.register, self.register_new, self.push, self.push, self.absorb, self.work, self.work),
            *(
                self.seize,
                self.lose,
                self.note,
                self.mark,
                self.mark,
                self.house,
                self.nodes,
                self.remove,
                *told,
            ),
        ]

    async def again(self, act: Callable[[PostgresStore], Awaitable[None]], node: PostgresStore) -> None:
        """Whoever waited for too long for a lock, as on a busy machine, tries again: those who wait in a circle are
        found by the server long before."""
        for _ in range(ROUNDS):
            while True:
                try:
                    await act(node)
                    break
                except StoreUnwritable as error:
                    if "lock timeout" not in str(error):
                        raise
            self.now += 1

    def some(self, count: int = 10) -> list[str]:
        return self.chance.sample(self.chats, count)

    def alias(self) -> str:
        return self.chance.choice(ALIASES)

    async def register(self, node: PostgresStore) -> None:
        told = [registration(chat_id, alias=self.alias()) for chat_id in self.some()]
        told = [replace(each, ended=self.chance.random() < 0.02) for each in told]
        await node.register(told, now=self.now, spread_ms=SPREAD)

    async def register_new(self, node: PostgresStore) -> None:
        """New ones, which others make known at the same time."""
        names = [f"new-{self.now // 40}-{number}" for number in self.chance.sample(range(8), 6)]
        told = [registration(name, alias=self.alias()) for name in names]
        await asyncio.gather(
            node.register(told, now=self.now, spread_ms=SPREAD),
            *(node.take_push(complete_push(name, alias=self.alias()), now=self.now) for name in names),
        )
        self.chats += [name for name in names if name not in self.chats]

    async def push(self, node: PostgresStore) -> None:
        def one(chat_id: str) -> Awaitable[object]:
            device = self.chance.random() < 0.2
            said = push(
                None if device else chat_id,
                device_id=f"device-of-{chat_id}",
                alias=self.chance.choice((*ALIASES, None)),
                leaving=self.chance.random() < 0.2,
                utc_time=self.now,
            )
            return node.take_push(said, now=self.now)

        await asyncio.gather(*map(one, self.some()))

    async def absorb(self, node: PostgresStore) -> None:
        listening = [each.name for each in self.consumers]
        await node.absorb(30, now=self.now, listening=listening)

    async def work(self, node: PostgresStore) -> None:
        claims = await node.claim(now=self.now, limit=15, lease_ms=LEASE)
        await node.renew(claims, until=self.now + LEASE)
        self.chance.shuffle(claims)
        verdicts = (Verdict.ANSWERED,) * 6 + (Verdict.RETRY, Verdict.REFUSED, Verdict.LEARNED)
        await node.settle(
            [
                replace(
                    answered(
                        claim,
                        sent_at=self.now,
                        settled_at=self.now,
                        news=TokenNews(None, alias=self.chance.choice((*ALIASES, None))),
                    ),
                    verdict=self.chance.choice(verdicts),
                    due_at=self.now + self.chance.choice((1, SPREAD)),
                )
                for claim in claims
            ]
        )

    async def seize(self, node: PostgresStore) -> None:
        claim = await node.seize(self.some(1)[0], now=self.now, lease_ms=LEASE)
        if isinstance(claim, Claim):
            settled = answered(claim, sent_at=self.now, settled_at=self.now)
            await node.settle([replace(settled, verdict=Verdict.CALLED)])

    async def lose(self, node: PostgresStore) -> None:
        await node.begin_restoration(alias=self.alias(), server=None, cause=Cause.UNREACHABLE, now=self.now)

    async def note(self, node: PostgresStore) -> None:
        name = self.chance.choice(("a", "b"))
        known = {each.name: each.epoch for each in await node.servers()}
        losses = [Loss(alias, Cause.REPLACED) for alias in self.chance.sample(ALIASES, 2)]
        await node.note(ChatServer(name), epoch=known.get(name, 0), losses=losses, now=self.now)

    async def mark(self, node: PostgresStore) -> None:
        for begun in await node.restorations(limit=100, unfinished=True):
            if begun.marking and begun.cause is not Cause.ANNOUNCED:
                await node.mark(begun.id, limit=self.chance.choice((7, 50)), now=self.now)

    async def house(self, node: PostgresStore) -> None:
        await node.pull_in(now=self.now, spread_ms=self.chance.choice((1_000, SPREAD)))
        await node.finish_announced(now=self.now + self.chance.choice((0, MINUTE)))
        await node.newly_finished()
        await node.ran_out(now=self.now)
        await node.unacknowledged()
        await node.make_due(self.some(1)[0], Reason.REQUEST, now=self.now)
        await node.purge(ended_before=self.now - 20, limit=5)
        await node.distrust(before=NOON - 1)

    async def nodes(self, node: PostgresStore) -> None:
        """What one claimed that dies, and one that comes back."""
        dead = secrets.randbelow(1 << 40)
        await node._writing(
            lambda tx: tx.run(
                "INSERT INTO node (id, name, version, started_at, seen_at, lease_ms) OVERRIDING SYSTEM VALUE"
                " VALUES ($1, 'dead', '1', 0, 0, 1)",
                dead,
            )
        )
        claims = await node.claim(now=self.now, limit=10, lease_ms=LEASE)
        self.chance.shuffle(claims)
        await node._writing(lambda tx: node_statements.hold_again(tx, dead, claims, self.now + LEASE))
        await node._writing(lambda tx: node_statements.reap(tx, dead, 1, [claim.row for claim in claims]))

    async def remove(self, node: PostgresStore) -> None:
        if self.chance.random() < 0.2:
            chat_id = self.some(1)[0]
            await node.remove(chat_id, now=self.now)
            await node.register([registration(chat_id)], now=self.now, spread_ms=SPREAD)

    async def take(self, node: PostgresStore) -> None:
        taken = await node.take(self.some(1)[0], until=self.now + 50, now=self.now)
        if isinstance(taken, Take):
            self.takes.append(taken)

    async def give_back(self, node: PostgresStore) -> None:
        takes, self.takes = self.takes, []
        self.chance.shuffle(takes)
        await node.register(
            [
                replace(registration(each.tokens.chat_id, alias=self.alias()), take_id=each.take_id)
                for each in takes
            ],
            now=self.now,
            spread_ms=SPREAD,
        )

    async def tell(self, node: PostgresStore) -> None:
        for name in self.chance.sample(("app", "reader"), 2):
            portion = await node.fetch(name, after=None, limit=50, now=self.now)
            handed = await node.hand_out(name, portion.events, now=self.now)
            asked = [each for each in portion.events if each.id in handed.asked and each.chat_id]
            await node.register(
                [
                    replace(registration(each.chat_id or "", alias=self.alias()), acknowledged=each.id)
                    for each in asked[::2]
                ],
                now=self.now,
                spread_ms=SPREAD,
            )
            await node.withdraw(name, asked[1::2], now=self.now)
            if portion.events:
                await node.fetch(name, after=portion.cursor, limit=1, now=self.now)

    async def deliver(self, node: PostgresStore) -> None:
        made = await node.batches("hook", now=self.now, limit=9, busy=(), most_events=5, most_bytes=9_999)
        await node.delivered(made[::2], now=self.now)
        for batch in made[1::2]:
            await node.undelivered(batch, due_at=self.now + 5, failing_since=self.now, parked=False)

    async def trim(self, node: PostgresStore) -> None:
        await node.trim(BOUNDS, now=self.now)
