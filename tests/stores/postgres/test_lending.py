"""A session that is left to the custom-chat-app by one node is left to it by all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest_asyncio

from asyncchatd.model import Batch, Consumer, EventKind, RawEvent, Reason, StoredEvent, replace
from asyncchatd.stores.answers import NotTaken, Take
from asyncchatd.stores.postgres import PostgresStore

from ..conftest import empty_schema
from ..desk import SECOND, SPREAD, Desk, answered, push
from ..kept import KeptConnections
from .server import Server

APP = Consumer("app", kinds=frozenset(EventKind), acknowledges_ms=10 * SECOND)
HOOK = Consumer("hook", kinds=frozenset({EventKind.CHAT}), pushes=True)


class Pair(NamedTuple):
    """Two nodes with one database, each with a live session `chat-1` for whom it is not the time yet."""

    one: Desk
    other: Desk

    def later(self, milliseconds: float) -> None:
        self.one.later(milliseconds)
        self.other.now = self.one.now


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(postgres: Server, kept: KeptConnections, tmp_path: Path) -> AsyncIterator[Pair]:
    url = await empty_schema(postgres, connect=kept.connect)
    async with AsyncExitStack() as stack:

        async def node() -> Desk:
            store = PostgresStore(url, directory=tmp_path)
            await store.open()
            stack.push_async_callback(store.close)
            return Desk(store)

        pair = Pair(await node(), await node())
        for each in pair:
            await each.store.enrol([APP, HOOK], now=each.now)
        await pair.one.live("chat-1")
        pair.later(0)
        yield pair
        await pair.one.check()


async def asked(pair: Pair) -> StoredEvent:
    """The event by which the first node asks for a Refresh."""
    return await pair.one.ask("app")


async def test_nobody_else_takes_what_is_taken(nodes: Pair) -> None:
    take = await nodes.one.take()
    assert await nodes.other.not_taken() is NotTaken.TAKEN
    await nodes.one.store.make_due("chat-1", Reason.REQUEST, now=nodes.one.now)
    assert await nodes.other.claim() == []
    assert await nodes.other.release(take)
    assert [claim.chat_id for claim in await nodes.one.claim()] == ["chat-1"]


async def test_of_several_that_take_at_once_one_does(nodes: Pair) -> None:
    now = nodes.one.now
    taken = await asyncio.gather(
        *(desk.store.take("chat-1", until=now + SECOND, now=now) for desk in nodes for _ in range(3))
    )
    assert sum(isinstance(each, Take) for each in taken) == 1
    assert {each for each in taken if isinstance(each, NotTaken)} == {NotTaken.TAKEN}


async def test_what_a_node_has_in_flight_is_not_taken_from_another(nodes: Pair) -> None:
    await nodes.one.push(push())
    claim = await nodes.one.claim_one()
    assert await nodes.other.not_taken() is NotTaken.IN_FLIGHT
    await nodes.one.answer(claim)
    nodes.later(0)
    assert await nodes.other.take()


async def test_a_push_that_another_node_took_is_waited_for(nodes: Pair) -> None:
    await nodes.one.store.take_push(push(key="newer"), now=nodes.one.now)
    assert await nodes.other.not_taken() is NotTaken.PUSHES


async def test_a_push_and_a_take_at_two_nodes_do_not_miss_each_other(nodes: Pair) -> None:
    for number in range(20):
        now = nodes.one.now
        taken, _ = await asyncio.gather(
            nodes.one.store.take("chat-1", until=now + SECOND, now=now),
            nodes.other.store.take_push(push(key=f"key-{number}"), now=now),
        )
        assert isinstance(taken, Take) or taken is NotTaken.PUSHES
        await nodes.other.store.absorb(10, now=now)
        if isinstance(taken, Take):
            assert taken.tokens.secure_key != f"key-{number}"
            assert await nodes.other.release(taken)
        nodes.later(SECOND)
        await nodes.one.answer(await nodes.one.claim_one())
        nodes.later(0)


async def test_a_refresh_that_one_node_asked_for_is_acknowledged_at_another(nodes: Pair) -> None:
    event = await asked(nodes)
    assert await nodes.other.claim() == []
    assert await nodes.other.not_taken() is NotTaken.TAKEN
    assert await nodes.other.store.acknowledge("chat-1", event.id, now=nodes.other.now, spread_ms=SPREAD)
    nodes.later(10 * SECOND)
    assert await nodes.one.claim() == []
    [state, _] = await nodes.one.store.consumers()
    assert (state.asked, state.acknowledged, state.ran_out) == (1, 1, 0)


async def test_a_refresh_that_was_not_sent_is_told_by_one_of_the_nodes(nodes: Pair) -> None:
    await asked(nodes)
    nodes.later(10 * SECOND)
    assert [claim.chat_id for claim in await nodes.other.claim()] == ["chat-1"]
    told = await asyncio.gather(*(desk.store.unacknowledged() for desk in nodes))
    assert [each.chat_id for some in told for each in some] == ["chat-1"]


async def test_an_acknowledgement_and_a_claim_at_two_nodes_agree(nodes: Pair) -> None:
    for _ in range(20):
        event = await asked(nodes)
        nodes.later(10 * SECOND)
        now = nodes.one.now
        done, claims = await asyncio.gather(
            nodes.one.store.acknowledge("chat-1", event.id, now=now, spread_ms=SPREAD), nodes.other.claim()
        )
        assert done == (claims == [])
        await nodes.other.answer(*claims)
        nodes.one.now = nodes.other.now


async def test_a_batch_is_delivered_wherever_it_was_made(nodes: Pair) -> None:
    await nodes.one.push(push())
    claim = await nodes.one.claim_one()
    events = tuple(RawEvent(index, b"{}", b"message %d" % index) for index in range(3, 6))
    settled = replace(answered(claim, sent_at=nodes.one.now, settled_at=nodes.one.now), events=events)
    await nodes.one.store.settle([settled])
    made = [await batches(desk) for desk in (*nodes, nodes.one)]
    assert [event.index for event in made[0][0].events] == [3, 4, 5]
    assert made == [made[0]] * 3
    await nodes.other.store.delivered(made[0], now=nodes.other.now)
    assert await batches(nodes.one) == []
    assert await nodes.one.store.next_batch("hook") is None


async def batches(desk: Desk) -> list[Batch]:
    return await desk.store.batches("hook", now=desk.now, limit=9, busy=(), most_events=9, most_bytes=9_999)
