"""How far back a claim looks, and by whose clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncchatd.model import Claim, Reason, Tokens, Verdict
from asyncchatd.model.clock import SystemClock
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres import floors as module
from asyncchatd.stores.postgres.floors import FULL_MS, MARGIN_MS, NONE, Floors
from asyncchatd.stores.rules import EVERY_REASON

from ..conftest import empty_schema
from ..desk import LEASE, NOON, SECOND, Desk, push, registration
from .server import Server

ACKNOWLEDGE, RESTORE, REQUEST, KEEPALIVE = EVERY_REASON


def claim(reason: Reason, due_at: float) -> Claim:
    tokens = Tokens("chat", "user", "key", "117")
    return Claim(
        "chat", "support", tokens, None, reason, due_at, attempts=0, restoration=None, claim_id=1, marks=0
    )


def test_below_what_is_noted_late_nothing_is_left_where_fewer_were_found_than_asked_for() -> None:
    floors = Floors()
    assert floors.of(EVERY_REASON, NOON) == [NONE] * 4
    floors.found([claim(KEEPALIVE, NOON - 9)], EVERY_REASON, NOON, 2)
    assert floors.of(EVERY_REASON, NOON + 1) == [float(NOON - MARGIN_MS)] * 4


def test_where_there_is_more_the_oldest_that_was_found_is_where_it_goes_on() -> None:
    floors = Floors()
    floors.of(EVERY_REASON, NOON)
    floors.found([claim(RESTORE, NOON - 90), claim(RESTORE, NOON - 80)], EVERY_REASON, NOON, 2)
    assert floors.of(EVERY_REASON, NOON + 1) == [NOON - MARGIN_MS, NOON - 90, NONE, NONE]


def test_all_is_looked_through_every_few_seconds_and_more_often_after_a_death() -> None:
    floors = Floors()
    for later in (FULL_MS, -1):
        floors.of(EVERY_REASON, NOON)
        floors.found([], EVERY_REASON, NOON, 2)
        assert NONE not in floors.of(EVERY_REASON, NOON + FULL_MS - 1)
        assert floors.of(EVERY_REASON, NOON + later) == [NONE] * 4
        floors = Floors()
    floors.of(EVERY_REASON, NOON)
    floors.found([], EVERY_REASON, NOON, 2)
    floors.hurry(NOON + 30 * SECOND)
    assert floors.of(EVERY_REASON, NOON + SECOND) == [NONE] * 4


def test_what_can_be_claimed_again_is_looked_for() -> None:
    floors = Floors()
    floors.of(EVERY_REASON, NOON)
    floors.found([], EVERY_REASON, NOON, 2)
    floors.lower(NOON - 60 * SECOND)
    assert floors.of(EVERY_REASON, NOON) == [NOON - 60 * SECOND] * 4


# -- in the database ----------------------------------------------------------------------------------


@pytest.fixture
async def desk(postgres: Server, tmp_path: Path) -> AsyncIterator[Desk]:
    """A node that goes by the clock of its store, with a session that was due a minute ago and nothing else."""
    store = PostgresStore(await empty_schema(postgres), directory=tmp_path)
    await store.open()
    now = store.clock(SystemClock()).now()
    at = Desk(store, now - 60 * SECOND)
    await at.register(registration(), spread_ms=0)
    at.now = now
    yield at
    await store.close()


async def test_what_was_given_back_is_claimed_again_at_once(desk: Desk) -> None:
    given = await desk.claim_one()
    assert await desk.claim() == []
    await desk.settle(given, Verdict.RELEASED, pause_ms=given.due_at - desk.now)
    assert [each.chat_id for each in await desk.claim()] == ["chat-1"]


async def test_what_a_push_makes_due_that_was_overdue_is_claimed_at_once(desk: Desk) -> None:
    await desk.store.take_push(push(), now=desk.now)
    assert await desk.claim() == [], "the push may tell other tokens"
    assert await desk.claim() == []
    await desk.store.absorb(10, now=desk.now)
    assert [each.reason for each in await desk.claim()] == [ACKNOWLEDGE]


async def test_what_another_node_gave_back_is_found_with_the_next_look_at_all(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = await desk.claim_one()
    assert await desk.claim() == []
    assert isinstance(desk.store, PostgresStore)
    floors, desk.store._floors = desk.store._floors, Floors()
    await desk.settle(given, Verdict.RELEASED, pause_ms=given.due_at - desk.now)
    desk.store._floors = floors
    assert await desk.claim() == []
    monkeypatch.setattr(module, "FULL_MS", 0)
    assert [each.chat_id for each in await desk.claim()] == ["chat-1"]


async def test_whose_clock_is_off_claims_nothing(desk: Desk) -> None:
    for off in (-3 * SECOND, 3 * SECOND):
        assert await desk.store.claim(now=desk.now + off, limit=1, lease_ms=LEASE) == []
    assert len(await desk.claim()) == 1
