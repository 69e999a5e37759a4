"""Several nodes with one database: what one of them does holds for all, also at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from asyncchatd.model import Cause, Claim, EventKind, Ms, Reason, Settled, Settlement, TokenNews
from asyncchatd.stores import Store
from asyncchatd.stores.answers import Absorbed, Effect, Registered, Taken
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres import store as store_module
from asyncchatd.stores.postgres.transactions import pushes, restorations
from asyncchatd.stores.postgres.transactions.restorations import ABSORBING
from asyncchatd.stores.postgres.wire import Address, Connection, Tx, connect
from asyncchatd.wire import Push

from ..conftest import empty_schema
from ..contract.test_together import Walk
from ..desk import LEASE, NOON, SECOND, SPREAD, Desk, answered, complete_push, push, registration
from ..kept import KeptConnections
from .server import Server

NODES = 2


@asynccontextmanager
async def together(
    server: Server,
    count: int,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Address], Awaitable[Connection]] = connect,
) -> AsyncIterator[list[PostgresStore]]:
    """Nodes with one database, empty before, which look for each other's pushes whenever they are asked."""
    monkeypatch.setattr(store_module, "LOOK_SECONDS", 0.0)
    url = await empty_schema(server, connect=connect)
    async with AsyncExitStack() as stack:
        opened = [PostgresStore(url, directory=directory) for _ in range(count)]
        for each in opened:
            await each.open()
            stack.push_async_callback(each.close)
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(
    postgres: Server, kept: KeptConnections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[PostgresStore]]:
    async with together(postgres, NODES, tmp_path, monkeypatch, kept.connect) as opened:
        yield opened
        await Desk(opened[0]).check()


# -- one after the other ---------------------------------------------------------------------------


class Whichever:
    """A store whose calls go to any of several nodes. A claim is settled by the node that has it."""

    def __init__(self, nodes: Sequence[PostgresStore], chance: random.Random) -> None:
        self._nodes = nodes
        self._chance = chance
        self._has: dict[int, PostgresStore] = {}
        self.in_question: list[Claim] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chance.choice(self._nodes), name)

    async def claim(self, **how: Any) -> list[Claim]:
        node = self._chance.choice(self._nodes)
        claims = await node.claim(**how)
        self._has.update((claim.claim_id, node) for claim in claims)
        return claims

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return [one for each in settlements for one in await self._has[each.claim.claim_id].settle([each])]

    def superseded(self, claim: Claim) -> bool:
        """Known at once where the tokens were told, and at the node that has the claim once it asks."""
        self.in_question.append(claim)
        return True

    async def confirm(self) -> None:
        claims, self.in_question = self.in_question, []
        for claim in claims:
            node = self._has[claim.claim_id]
            assert node.superseded(claim) or (claim.claim_id, claim.chat_id) in await node.confirm([claim])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_whichever_node_is_asked_nothing_is_lost_held_twice_or_given_an_old_key(
    nodes: list[PostgresStore], seed: int
) -> None:
    of_any = Whichever(nodes, random.Random(seed))
    walk = Walk(cast(Store, of_any), seed)
    for _ in range(120):
        await walk.step()
        await of_any.confirm()
        await walk.check()


# -- at once ---------------------------------------------------------------------------------------


async def test_pushes_take_effect_once_however_many_nodes_let_them(nodes: list[PostgresStore]) -> None:
    chats = [f"chat-{number}" for number in range(40)]
    await asyncio.gather(
        *(
            node.take_push(complete_push(chat_id), now=NOON)
            for chat_id, node in zip(chats, nodes * 20, strict=True)
        )
    )
    effects: list[Absorbed] = []
    while len(effects) < len(chats):
        for some in await asyncio.gather(*(node.absorb(15) for node in nodes)):
            effects += some
    assert Counter(each.chat_id for each in effects) == Counter(chats)
    assert {each.effect for each in effects} == {Effect.ADOPTED}


async def test_usual_pushes_are_counted_once_however_many_nodes_let_them_take_effect(
    nodes: list[PostgresStore],
) -> None:
    one, other = nodes
    await Desk(one).register(*(registration(f"chat-{number}") for number in range(30)))
    for turn in range(1, 6):
        for number in range(30):
            await one.take_push(push(f"chat-{number}"), now=NOON)
        while any(
            [*await asyncio.gather(*(node.absorb(10) for node in nodes)), one.waiting(), other.waiting()]
        ):
            pass
        claims = await one.claim(now=NOON + turn * LEASE, limit=100, lease_ms=LEASE)
        assert [claim.marks for claim in claims] == [turn] * 30


async def test_a_push_that_was_being_kept_while_others_took_effect_takes_effect_with_the_next(
    nodes: list[PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = nodes
    monkeypatch.setattr(store_module, "LOOK_SECONDS", 60.0)
    await Desk(one).register(registration())
    take_pushes, goes_on = pushes.take_pushes, asyncio.Event()

    async def slowly(tx: Tx, group: Sequence[tuple[Push, Ms]]) -> list[Taken]:
        await goes_on.wait()
        return await take_pushes(tx, group)

    monkeypatch.setattr(pushes, "take_pushes", slowly)
    kept = asyncio.create_task(one.take_push(push(), now=NOON))
    await asyncio.sleep(0)
    assert await one.absorb(10) == []
    goes_on.set()
    assert await kept is Taken.KNOWN
    assert one.waiting()
    await one.absorb(10)
    assert [claim.marks for claim in await one.claim(now=NOON + 1, limit=1, lease_ms=LEASE)] == [1]


async def test_a_crowd_of_pushes_that_take_effect_one_by_one_is_no_long_transaction(
    nodes: list[PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chats that nobody registered; the others wait for the rows of a transaction."""
    one, _ = nodes
    monkeypatch.setattr(pushes, "SINGLY", 20)
    chats = [f"chat-{number}" for number in range(45)]
    for chat_id in chats:
        await one.take_push(complete_push(chat_id), now=NOON)
    portions = []
    while one.waiting():
        portions.append([absorbed.chat_id for absorbed in await one.absorb(500)])
    assert portions == [chats[:20], chats[20:40], chats[40:]]


async def test_whoever_waits_too_long_for_another_that_lets_pushes_take_effect_has_no_trouble(
    nodes: list[PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its balancer would take it out, and refuse pushes, while nothing is amiss."""
    one, other = nodes
    impatient = replace(one._place.address, settings={"lock_timeout": "50ms"})
    monkeypatch.setattr(one, "_place", replace(one._place, address=impatient))
    await one._reconnect()
    await one.take_push(complete_push(), now=NOON)
    busy = await other._connect()
    try:
        async with busy.in_transaction():
            await busy.run("SELECT pg_advisory_xact_lock($1)", ABSORBING)
            assert await one.absorb(10) == []
            assert (one.trouble, one.waiting()) == (None, True)
    finally:
        await busy.close()
    [absorbed] = await one.absorb(10)
    assert absorbed.effect is Effect.ADOPTED


async def test_a_session_is_claimed_by_one_node(nodes: list[PostgresStore]) -> None:
    chats = [f"chat-{number}" for number in range(200)]
    await Desk(nodes[0]).register(*map(registration, chats), spread_ms=0)
    given: list[str] = []
    while len(given) < len(chats):
        for claims in await asyncio.gather(
            *(node.claim(now=NOON + 1, limit=7, lease_ms=LEASE) for node in nodes * 2)
        ):
            given += [claim.chat_id for claim in claims]
    assert Counter(given) == Counter(chats)


async def test_a_chat_that_two_nodes_register_at_once_is_created_once(nodes: list[PostgresStore]) -> None:
    for number in range(20):
        told = registration(f"chat-{number}")
        done = await asyncio.gather(*(Desk(node).register(told) for node in nodes))
        assert sorted(one for [one] in done) == [Registered.CREATED, Registered.UPDATED]


async def test_a_chat_is_known_once_that_one_node_registers_and_a_push_at_another_tells(
    nodes: list[PostgresStore],
) -> None:
    one, other = nodes
    for number in range(20):
        chat_id = f"chat-{number}"
        await other.take_push(complete_push(chat_id), now=NOON)
        await asyncio.gather(Desk(one).register(registration(chat_id)), other.absorb(100))
    assert len(await one.sessions()) == 20


async def test_tokens_that_another_node_was_told_stop_a_claim(nodes: list[PostgresStore]) -> None:
    one, other = nodes
    await Desk(one).register(registration("chat-1"), spread_ms=0)
    [claim] = await one.claim(now=NOON + 1, limit=1, lease_ms=LEASE)
    assert not await one.confirm([claim])
    await other.take_push(push("chat-1", key="newer", utc_time=NOON + SECOND), now=NOON + SECOND)
    assert await one.confirm([claim]) == {(claim.claim_id, "chat-1")}
    await other.absorb(100)
    assert await one.confirm([claim]) == {(claim.claim_id, "chat-1")}


async def test_a_late_settlement_teaches_its_tokens_and_leaves_the_session_to_the_node_that_has_it(
    nodes: list[PostgresStore],
) -> None:
    one, other = nodes
    await Desk(one).register(registration("chat-1"), spread_ms=0)
    [late] = await one.claim(now=NOON + 1, limit=1, lease_ms=LEASE)
    [claim] = await other.claim(now=NOON + 2 * LEASE, limit=1, lease_ms=LEASE)
    news = TokenNews("chat-1", secure_key="newer")
    [settled] = await one.settle([answered(late, sent_at=NOON + 1, settled_at=NOON + 2 * LEASE, news=news)])
    assert (settled.lease_held, settled.tokens_changed) == (False, True)
    assert await other.confirm([claim]) == {(claim.claim_id, "chat-1")}


# -- all of it at once -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [frozenset[EventKind](), frozenset(EventKind)], ids=["untold", "told"])
@pytest.mark.parametrize("losing", [False, True], ids=["calm", "losing"])
async def test_all_at_once_no_push_is_lost_and_no_session_is_given_twice(
    nodes: list[PostgresStore], postgres: Server, kinds: frozenset[EventKind], losing: bool
) -> None:
    """Whatever was pushed is claimed after it, and what is held is given to nobody else. Nodes do not get in each
    other's way, also where both begin restorations all the time."""
    said = len(postgres.log)
    storm = Storm(nodes, losing=losing)
    for node in nodes:
        await node.enrol([], now=NOON, shown=kinds)
    await Desk(nodes[0]).register(*map(registration, storm.chats))
    await asyncio.gather(*storm.tasks())
    storm.now += SPREAD
    for _ in range(100):
        await storm.absorb(nodes[0])
        await storm.work(nodes[0])
    assert not storm.unseen
    assert "ERROR" not in postgres.log[said:]


class Storm:
    """Nodes that take pushes, let them take effect, claim and settle, lose Chat Servers and register, all at once."""

    ROUNDS = 25

    def __init__(self, nodes: Sequence[PostgresStore], *, losing: bool) -> None:
        self.nodes = nodes
        self.losing = losing
        self.chats = [f"chat-{number}" for number in range(60)]
        self.chance = random.Random(1)
        self.now = NOON
        self.held: set[str] = set()
        self.unseen: set[str] = set()
        """Pushed, and not claimed since."""

    def tasks(self) -> list[Any]:
        acts = [self.push, self.push, self.absorb, self.work, self.work, self.register, self.house]
        if self.losing:
            acts.append(self.lose)
        return [self.again(act, node) for act in acts for node in self.nodes]

    async def again(self, act: Any, node: PostgresStore) -> None:
        for _ in range(self.ROUNDS):
            await act(node)
            self.now += 1

    async def push(self, node: PostgresStore) -> None:
        chosen = self.chance.sample(self.chats, 10)
        leaving = self.losing and self.chance.random() < 0.2
        await asyncio.gather(
            *(
                node.take_push(
                    push(
                        chat_id, alias=self.chance.choice(("117", "118")), leaving=leaving, utc_time=self.now
                    ),
                    now=self.now,
                )
                for chat_id in chosen
            )
        )
        self.unseen.update(chosen)

    async def absorb(self, node: PostgresStore) -> None:
        await node.absorb(30, now=self.now)

    async def work(self, node: PostgresStore) -> None:
        seen = set(self.unseen)
        claims = await node.claim(now=self.now, limit=20, lease_ms=500 * SECOND)
        names = {claim.chat_id for claim in claims}
        assert not names & self.held
        self.held |= names
        self.unseen -= names & seen
        await asyncio.sleep(0)
        self.held -= names
        news = TokenNews(None, alias=self.chance.choice(("117", "118", None)))
        await node.settle(
            [answered(claim, sent_at=self.now, settled_at=self.now, news=news) for claim in claims]
        )

    async def lose(self, node: PostgresStore) -> None:
        begun = await node.begin_restoration(
            alias=self.chance.choice(("117", "118")), server=None, cause=Cause.UNREACHABLE, now=self.now
        )
        while await node.mark(begun.id, limit=15, now=self.now):
            pass

    async def register(self, node: PostgresStore) -> None:
        chosen = self.chance.sample(self.chats, 8)
        alias = self.chance.choice(("117", "118"))
        await node.register(
            [registration(chat_id, alias=alias) for chat_id in chosen], now=self.now, spread_ms=SPREAD
        )
        await node.make_due(chosen[0], Reason.REQUEST, now=self.now)

    async def house(self, node: PostgresStore) -> None:
        await node.pull_in(now=self.now, spread_ms=SPREAD)
        await node.finish_announced(now=self.now)


@pytest.mark.slow
async def test_who_stands_still_in_a_settlement_keeps_the_others_from_a_restoration_for_a_second(
    nodes: list[PostgresStore],
) -> None:
    one, other = nodes
    number = await one._writing(lambda tx: tx.value(_A_RESTORATION, Cause.OPERATOR, NOON))
    credits = Counter[tuple[int | None, str]]({(number, name): 1 for name in ("sessions", "restored")})
    stopped = await one._connect()

    async def settle_and_stand_still() -> None:
        async with stopped.in_transaction():
            await restorations.credit(stopped, credits, NOON)
            await other._writing(lambda tx: restorations.credit(tx, credits, NOON))

    with pytest.raises(StoreError):  # the server has ended it
        await settle_and_stand_still()
    assert await one._reading(lambda tx: tx.value("SELECT restored FROM restoration")) == 1


_A_RESTORATION = """INSERT INTO restoration (alias, cause, started_at, marking, marked_at)
    VALUES ('117', $1, $2, true, $2) RETURNING id"""
