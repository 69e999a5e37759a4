"""Counts that take long serve all nodes for a while."""

from __future__ import annotations

import pytest

from asyncchatd.model import Reason, SessionState
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres.shared import tallies
from asyncchatd.stores.postgres.wire import Connection

from ..desk import NOON, Desk, registration
from .test_nodes import north, south, sql

__all__ = ["north", "south", "sql"]


async def live(store: PostgresStore) -> int:
    return (await store.counts(now=NOON)).states[SessionState.LIVE]


@pytest.mark.parametrize("limits", [{"MANY": 1, "DEAR_SECONDS": 60.0}, {"DEAR_SECONDS": 0.0}])
async def test_a_count_that_is_quick_or_of_few_is_made_anew_each_time(
    limits: dict[str, float], north: PostgresStore, south: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(tallies, name, value)
    for number in range(1, 4):
        await Desk(north).register(registration(f"chat-{number}"))
        assert await live(south) == number
        assert await south.counts_by_alias() == {"117": number}


async def test_a_count_that_took_long_serves_all_for_a_while(
    north: PostgresStore, south: PostgresStore, sql: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "DEAR_SECONDS", 0.0)
    monkeypatch.setattr(tallies, "MANY", 1)
    monkeypatch.setattr(tallies, "SHARE", 1_000_000)
    await Desk(north).register(registration("chat-1"))
    await north.make_due("chat-1", Reason.REQUEST, now=NOON)
    first = await north.counts(now=NOON)
    assert (first.states[SessionState.LIVE], first.due[Reason.REQUEST]) == (1, 1)
    assert await north.counts_by_alias() == {"117": 1}
    await Desk(north).register(registration("chat-2"))
    assert await south.counts(now=NOON) == first
    assert await south.counts_by_alias() == {"117": 1}
    await sql.run("UPDATE tally SET counted_at=counted_at-$1", tallies.LONGEST_SECONDS)
    assert await live(south) == 2
    assert await south.counts_by_alias() == {"117": 2}


async def test_a_count_of_a_time_that_is_yet_to_come_is_not_believed(
    north: PostgresStore, sql: Connection
) -> None:
    """The database's clock was set back."""
    await Desk(north).register(registration("chat-1"))
    await sql.run(
        "INSERT INTO tally SELECT 'by_alias', '{\"9\": 9}', 60, extract(epoch FROM clock_timestamp()) + 3600"
    )
    assert await north.counts_by_alias() == {"117": 1}


async def test_what_is_leased_is_of_this_node_alone(
    north: PostgresStore, south: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "DEAR_SECONDS", 0.0)
    monkeypatch.setattr(tallies, "MANY", 1)
    monkeypatch.setattr(tallies, "SHARE", 1_000_000)
    desk = Desk(north)
    await desk.register(registration("chat-1"))
    await north.make_due("chat-1", Reason.REQUEST, now=NOON)
    await desk.claim_one()
    assert (await north.counts(now=NOON)).leased == 1
    assert (await south.counts(now=NOON)).leased == 0
