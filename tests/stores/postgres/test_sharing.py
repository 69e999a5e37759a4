"""What those who share a database agree upon: who is there, what time it is, who sends when, who does what."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.gms import pacing
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import (
    ChatServer,
    Claim,
    Ms,
    Process,
    Reason,
    Settlement,
    TokenNews,
    Verdict,
    View,
    Views,
)
from asyncchatd.model.transcript import EventKind
from asyncchatd.model.values import replace
from asyncchatd.stores.answers import NotTaken, Registered, Taken
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore, sharing, wire
from asyncchatd.stores.postgres.clock import SharedClock
from asyncchatd.stores.postgres.failing import LostRace
from asyncchatd.stores.postgres.shared import nodes
from asyncchatd.stores.postgres.transactions import pushes, work
from asyncchatd.stores.postgres.wire import Connection, Tx, connect
from asyncchatd.wire import Push

from ..conftest import empty_schema
from ..desk import NOON, Desk, answered, push, registration
from ..waiting import SECONDS, until
from .server import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("events")]


@pytest.fixture
async def url(postgres: Server) -> str:
    return await empty_schema(postgres)


@asynccontextmanager
async def sharing_it(url: str, *names: str) -> AsyncIterator[list[PostgresStore]]:
    """Nodes of these names, open and alive."""
    opened = [PostgresStore(f"{url}&node={name}", directory=Path()) for name in names]
    for store in opened:
        await store.open()
    lives = [asyncio.create_task(store.watch()) for store in opened]
    try:
        yield opened
        assert not any(life.done() for life in lives)
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        for store in opened:
            await store.close()


class Wrong(SystemClock):
    """A host whose time of day is an hour off."""

    def now(self) -> Ms:
        return super().now() + 3_600_000


async def test_nodes_go_by_one_clock_however_wrong_their_own_are(url: str) -> None:
    async with sharing_it(url, "one", "two") as (one, two):
        first, second = one.clock(Wrong()), two.clock(SystemClock())
        assert abs(first.now() - second.now()) < 100
        assert abs(second.now() - SystemClock().now()) < 100, "the database runs on this machine"


async def test_a_node_shows_how_far_the_database_is_and_whose_clock_is_off(url: str) -> None:
    async with sharing_it(url, "one") as (one,):
        await one._measure()
        assert abs(shown("asyncchatd_database_clock_ahead_seconds")) < 0.1
        assert 0 < shown("asyncchatd_database_round_trip_seconds") < 1
        one.clock(Wrong())
        await one._measure()
        assert abs(shown("asyncchatd_database_clock_ahead_seconds") + 3_600) < 0.1


async def test_a_transaction_that_stays_open_is_shown_with_its_age(url: str) -> None:
    async with sharing_it(url, "one") as (one,):
        other = await connect(
            dataclasses.replace(one._place.address, settings={"application_name": "a report"})
        )
        await other.script("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        oldest = await one._reading(nodes.oldest_snapshot)
        assert oldest is not None
        assert (oldest.pid, oldest.application) == (await other.value("SELECT pg_backend_pid()"), "a report")
        await one._look_for_snapshots()
        assert oldest.seconds < shown("asyncchatd_database_oldest_snapshot_seconds") < SECONDS
        await other.script("ROLLBACK")
        async with asyncio.timeout(SECONDS):
            while shown("asyncchatd_database_oldest_snapshot_seconds"):  # the node's own take a moment each
                await one._look_for_snapshots()
        await other.close()


async def test_a_transaction_that_has_written_and_waits_for_its_client_keeps_as_much_as_a_snapshot(
    url: str,
) -> None:
    async with sharing_it(url, "one") as (one,):
        other = await connect(one._place.address)
        pid = await other.value("SELECT pg_backend_pid()")
        await other.script("CREATE TABLE anything (a int); BEGIN; INSERT INTO anything VALUES (1)")
        oldest = await one._reading(nodes.oldest_snapshot)
        assert oldest is not None
        assert oldest.pid == pid
        await other.close()


async def test_a_table_that_is_vacuumed_for_long_is_no_transaction_that_keeps_anything(url: str) -> None:
    async with sharing_it(url, "one") as (one,):
        other = await connect(one._place.address)
        await other.script("CREATE TABLE anything AS SELECT repeat('x', 500) FROM generate_series(1, 5000)")
        await other.script("SET vacuum_cost_delay=100; SET vacuum_cost_limit=1")
        pid = await other.value("SELECT pg_backend_pid()")
        vacuuming = asyncio.create_task(other.script("VACUUM anything"))
        async with asyncio.timeout(SECONDS):
            while not await one._reading(lambda tx: tx.value(_HAS_SNAPSHOT, pid)):
                assert not vacuuming.done()
        oldest = await one._reading(nodes.oldest_snapshot)
        assert oldest is None or oldest.pid != pid
        assert await one._reading(lambda tx: tx.value(_HAS_SNAPSHOT, pid))
        await one._reading(lambda tx: tx.value("SELECT pg_cancel_backend($1)", pid))
        with pytest.raises(StoreError):
            await vacuuming
        await other.close()


_HAS_SNAPSHOT = (
    "SELECT backend_xmin IS NOT NULL FROM pg_stat_progress_vacuum AS vacuum JOIN pg_stat_activity USING (pid)"
    " WHERE pid=$1"
)


async def test_what_was_measured_of_a_database_that_is_away_is_shown_no_more(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.01)
    for every in ("MEASURE_EVERY", "SNAPSHOT_EVERY"):
        monkeypatch.setattr(sharing, every, 1_000_000)
    names = [
        f"asyncchatd_database_{each}_seconds" for each in ("round_trip", "clock_ahead", "oldest_snapshot")
    ]
    async with sharing_it(url, "one") as (one,):
        assert not any(math.isnan(shown(name)) for name in names)
        connect_anew, is_away = one._connect, asyncio.Event()

        async def away(parameters: Mapping[str, str] | None = None) -> Connection:
            is_away.set()
            raise StoreUnwritable("away")

        monkeypatch.setattr(one, "_connect", away)
        assert one._present is not None
        one._present.terminate()
        await until(is_away.is_set)
        await until(lambda: all(math.isnan(shown(name)) for name in names))
        monkeypatch.setattr(one, "_connect", connect_anew)
        await until(lambda: not any(math.isnan(shown(name)) for name in names))


async def test_a_user_who_may_not_look_at_others_is_no_trouble_of_the_store(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(tx: Tx) -> None:
        raise StoreUnwritable("PostgreSQL: permission denied for view pg_stat_activity (42501)")

    monkeypatch.setattr(nodes, "oldest_snapshot", refused)
    async with sharing_it(url, "one") as (one,):
        await one._look_for_snapshots()
        assert math.isnan(shown("asyncchatd_database_oldest_snapshot_seconds"))
        assert one.trouble is None


async def test_whoever_waits_for_rows_of_a_node_that_was_cut_off_has_no_trouble(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one is in the middle of a transaction, and says nothing more. A tenth of the times in use."""
    for name in ("lock_timeout", "idle_in_transaction_session_timeout"):
        monkeypatch.setitem(wire.SETTINGS, name, f"{100 * int(wire.SETTINGS[name].removesuffix('s'))}ms")
    async with sharing_it(url, "one", "two") as (one, two):
        await Desk(one).register(registration(), spread_ms=0)
        cut_off = await two._connect()
        await cut_off.script("BEGIN; UPDATE session SET active_at=active_at; UPDATE work SET marks=marks")
        assert await Desk(one).register(registration(), spread_ms=0) == [Registered.UPDATED]
        assert one.trouble is None
        cut_off.terminate()


async def test_who_is_far_from_the_database_gets_moments_that_are_not_over_when_he_hears_of_them(
    url: str,
) -> None:
    async with sharing_it(url, "one") as (one,):
        for away in (0.0, 0.06, 0.2):
            one._shared.round_trip = away
            now = await one._looking(nodes.clock)
            turns = await one.turns(1, rate=1000.0)
            assert turns
            late = now + away / 2 - (turns[0] + one._shared._ahead)
            assert late <= pacing.VOID_SECONDS / 2


def shown(name: str) -> float:
    """A metric as it stands now."""
    value = metrics.REGISTRY.get_sample_value(name)
    assert value is not None
    return value


async def test_the_moments_at_which_nodes_send_are_as_far_apart_as_those_of_one(url: str) -> None:
    rate = 200.0
    given: list[float] = []

    async def send(store: PostgresStore) -> None:
        mine: list[float] = []
        async with asyncio.timeout(SECONDS):
            while len(mine) < 60:
                turns = await store.turns(5, rate=rate)
                assert turns is not None
                mine += turns
                if not turns:
                    await asyncio.sleep(0.005)
        given.extend(mine)

    async with sharing_it(url, "one", "two", "three") as stores:
        await asyncio.gather(*map(send, stores))
    given.sort()
    # The clocks of the three are measured anew meanwhile, which moves them by less than this.
    apart = [later - earlier for earlier, later in pairwise(given)]
    assert min(apart) > 0.5 / rate
    assert all(later - earlier > 0.99 for earlier, later in zip(given, given[round(rate) :], strict=False))


def test_one_process_and_several_leave_the_same_between_two_requests() -> None:
    """Neither knows the other."""
    assert sharing.STRETCH == pacing.STRETCH


async def test_moments_are_not_given_out_far_ahead(url: str) -> None:
    async with sharing_it(url, "one") as (one,):
        turns = await one.turns(1_000, rate=100)
        assert turns
        assert len(turns) <= nodes.AHEAD_SECONDS * 100
        assert len(turns) + len(await one.turns(1_000, rate=100) or ()) <= 2 * nodes.AHEAD_SECONDS * 100


async def test_less_than_one_request_a_second_is_a_rate_too(url: str) -> None:
    async with sharing_it(url, "one", "two") as (one, two):
        assert len(await one.turns(3, rate=0.5) or ()) == 1
        assert await two.turns(3, rate=0.5) == ()


async def test_a_duty_is_one_nodes_until_its_time_is_over(url: str) -> None:
    async with sharing_it(url, "one", "two") as (one, two):
        assert await one.duty("purge", seconds=60)
        assert not await two.duty("purge", seconds=60)
        assert await one.duty("purge", seconds=60)
        assert await two.duty("trim", seconds=60)
        assert await two.duty("brief", seconds=0)
        assert await one.duty("brief", seconds=0)


@asynccontextmanager
async def beside(url: str, name: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore, Ms]]:
    """A node that lives, and one of this name that does nothing of itself and ends in the course of a test; what time
    it is for both. There is one chat."""
    long = url.replace("hold=0s", "hold=90s")
    async with sharing_it(long, "lives") as (lives,):
        other = PostgresStore(f"{long}&node={name}", directory=Path())
        await other.open()
        now = lives.clock(SystemClock()).now()
        await other.register([registration()], now=now, spread_ms=1e9)
        yield lives, other, now
        await other.close()


def end(node: PostgresStore) -> None:
    """End its connection, as the system does with a process that was killed."""
    assert node._present is not None
    node._present.terminate()


async def leased_until(store: PostgresStore) -> Ms:
    session = await store.get("chat-1")
    assert session is not None
    return session.leased_until


async def test_what_a_dead_node_claimed_is_left_to_it_for_its_lease_and_no_longer(
    url: str, events: Events
) -> None:
    async with beside(url, "dies") as (lives, dies, now):
        await dies.make_due("chat-1", Reason.REQUEST, now=now)
        [_] = await dies.claim(now=now, limit=1, lease_ms=15_000)
        assert await leased_until(lives) - now == 90_000
        end(dies)
        await until(lambda: events.of(Event.NODE_GONE))
        said = events.one(Event.NODE_GONE)
        assert (said["peer"], said["sessions"]) == ("dies", 1)
        assert await leased_until(lives) - now == 15_000


async def test_what_a_dead_node_claimed_for_a_call_and_is_not_due_is_left_to_it_for_its_lease(
    url: str, events: Events
) -> None:
    async with beside(url, "dies") as (lives, dies, now):
        assert isinstance(await dies.seize("chat-1", now=now, lease_ms=15_000), Claim)
        end(dies)
        await until(lambda: events.of(Event.NODE_GONE))
        assert events.one(Event.NODE_GONE)["sessions"] == 1
        assert await leased_until(lives) - now == 15_000


async def test_what_a_node_could_not_settle_before_it_left_is_free_after_its_lease(url: str) -> None:
    async with beside(url, "leaves") as (lives, leaves, now):
        await leaves.make_due("chat-1", Reason.REQUEST, now=now)
        [_] = await leaves.claim(now=now, limit=1, lease_ms=15_000)
        await leaves.close()
        assert await leased_until(lives) - now == 15_000
        assert [each.name for each in await lives.nodes() or ()] == ["lives"]


async def test_what_a_dead_node_has_renewed_is_left_to_it_for_a_lease_from_then_on(
    url: str, events: Events
) -> None:
    async with beside(url, "dies") as (lives, dies, now):
        await dies.make_due("chat-1", Reason.REQUEST, now=now)
        claims = await dies.claim(now=now, limit=1, lease_ms=15_000)
        later = now + 12_000
        await dies.renew(claims, until=later + 15_000)
        assert await leased_until(lives) - later == 90_000
        end(dies)
        await until(lambda: events.of(Event.NODE_GONE))
        assert await leased_until(lives) - later == 15_000, "its request may have left just before"


async def test_a_node_whose_presence_ended_comes_back_with_what_it_held(url: str, events: Events) -> None:
    async with sharing_it(url.replace("hold=0s", "hold=90s"), "one", "two") as (one, two):
        now = one.clock(SystemClock()).now()
        await one.register([registration()], now=now, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=now)
        claims = await one.claim(now=now, limit=1, lease_ms=15_000)
        end(one)
        await until(lambda: events.of(Event.NODE_RETURNED))
        said = events.one(Event.NODE_RETURNED)
        assert (said["peer"], said["sessions"], said["lost"]) == ("one", 1, 0)
        assert await one.confirm(claims) == frozenset()
        # That of before has died, as the other one sees it, and nothing is left to it.
        await until(lambda: events.of(Event.NODE_GONE))
        assert events.one(Event.NODE_GONE)["sessions"] == 0
        assert await two.confirm(claims) != frozenset(), "it is not the other one's"


async def test_what_a_node_held_that_came_back_is_held_again_also_when_that_fails_at_first(
    url: str, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_again, tries = nodes.hold_again, 0

    async def fails_at_first(tx: Tx, node: int, claims: Sequence[Claim], until: int) -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreUnwritable("PostgreSQL did not answer within 5 s")
        return await hold_again(tx, node, claims, until)

    monkeypatch.setattr(nodes, "hold_again", fails_at_first)
    async with sharing_it(url.replace("hold=0s", "hold=90s"), "one", "two") as (one, _):
        now = one.clock(SystemClock()).now()
        await one.register([registration()], now=now, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=now)
        await one.claim(now=now, limit=1, lease_ms=15_000)
        end(one)
        await until(lambda: events.of(Event.NODE_RETURNED))
        assert events.one(Event.NODE_RETURNED)["sessions"] == 1
        await until(lambda: events.of(Event.NODE_GONE))
        assert events.one(Event.NODE_GONE)["sessions"] == 0, "the other one leaves it all of hold"


async def test_a_beat_that_fails_by_a_fault_is_told_once(
    url: str, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def fails(*_: object, **__: object) -> nodes.Beat | None:
        nonlocal tries
        tries += 1
        raise StoreError("PostgreSQL: syntax error at or near node (42601)")

    async with sharing_it(url, "one"):
        monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.01)
        monkeypatch.setattr(nodes, "beat", fails)
        await until(lambda: tries > 2)
        assert "near node" in str(events.one(Event.STORE_FAILED)["cause"])


async def test_a_claim_is_not_confirmed_once_another_node_was_told_something(url: str) -> None:
    async with sharing_it(url, "one", "two") as (one, two):
        await one.register([registration("chat-1"), registration("chat-2")], now=NOON, spread_ms=1e9)
        for chat in ("chat-1", "chat-2"):
            await one.make_due(chat, Reason.REQUEST, now=NOON)
        claims = await one.claim(now=NOON, limit=2, lease_ms=15_000)
        assert await one.confirm(claims) == frozenset()
        await two.register([registration("chat-2", key="another")], now=NOON + 1, spread_ms=1e9)
        assert {chat for _, chat in await one.confirm(claims)} == {"chat-2"}
        assert not one.superseded(claims[0]), "that only the database knows"


KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ([KEY], [], "are encrypted with the key .*, and none is set"),
        ([KEY], [OTHER], "is not in the file .*add its line below the others"),
    ],
)
async def test_who_has_another_key_does_not_join(
    url: str, first: list[bytes], then: list[bytes], said: str
) -> None:
    one, two = (PostgresStore(url, directory=Path(), keys=keys) for keys in (first, then))
    await one.open()
    await one.register([registration()], now=NOON, spread_ms=1e9)
    with pytest.raises(StoreError, match=rf"store\.keys_file: .*{said}"):
        await two.open()
    await one.close()
    again = PostgresStore(url, directory=Path(), keys=first)
    await again.open()
    session = await again.get("chat-1")
    assert session is not None
    assert session.secure_key == "key-of-chat-1"
    await again.close()


async def test_views_of_the_plant_are_heard_of_the_others_alone(url: str) -> None:
    read = Process("117", "1001", 2.5, 3.5, NOON - 1, NOON, settled=False)
    views = {
        "chat-a": View(NOON, 3, lost=True),
        "chat-b": View(NOON, 0, lost=False, read=read, by_turns=True),
    }
    seen = Views("", views, gms=False)
    async with sharing_it(url, "one", "two") as (one, two):
        assert await one.views(seen) == []
        assert await two.views(Views("", {}, gms=True)) == [Views("one", seen.servers, gms=False)]
        assert await one.views(seen) == [Views("two", {}, gms=True)]


async def test_whose_views_are_old_is_silent_unless_it_is_gone_or_was_started_anew(url: str) -> None:
    seen = Views("", {"chat-a": View(NOON, 3, lost=True)}, gms=True)
    async with sharing_it(url, "one", "two", "three") as (one, two, three):
        for each in (two, three):
            await each.views(seen)

        async def passes(seconds: float) -> None:
            await one._writing(lambda tx: tx.run("UPDATE node SET viewed_at=viewed_at - $1::float8", seconds))

        heard = Views("two", seen.servers, gms=True)
        await passes(nodes.VIEW_SECONDS)
        await three.views(seen)
        assert await one.views(seen) == [replace(heard, silent=True), replace(heard, peer="three")]
        async with sharing_it(url, "two") as (again,):
            assert await one.views(seen) == [replace(heard, silent=True), replace(heard, peer="three")], (
                "it has come anew, and has said nothing yet"
            )
            await again.views(replace(seen, servers={}))
            assert await one.views(seen) == [replace(heard, peer="three"), replace(heard, servers={})]
        await passes(nodes.KEPT_SECONDS)
        assert await one.views(seen) == []


@pytest.mark.parametrize(
    ("said", "view"),
    [
        ('3, true, null, true, "newer"', View(NOON, 3, lost=True, by_turns=True)),
        (
            '0, false, ["117", "1001", null, null, 1, 2, true, "newer"], false, "newer"',
            View(NOON, 0, lost=False, read=Process("117", "1001", first_seen=1, last_seen=2)),
        ),
        ("3, true", View(NOON, 3, lost=True)),
    ],
    ids=["newer", "newer, with a page", "older"],
)
async def test_what_a_node_of_another_version_says_is_understood_as_far_as_it_goes(
    url: str, said: str, view: View
) -> None:
    async with sharing_it(url, "known") as (known,):
        await known._writing(
            lambda tx: tx.run(
                "INSERT INTO node (name, version, started_at, seen_at, lease_ms, views, viewed_at) SELECT 'other',"
                f" '9', now, now, 15000, '[true, {{\"chat-a\": [{NOON}, {said}]}}]', now"
                f" FROM (SELECT {nodes.NOW} AS now) AS clock"
            )
        )
        assert await known.views(Views("", {}, gms=True)) == [Views("other", {"chat-a": view}, gms=True)]


async def test_what_a_newer_node_says_besides_is_passed_over(url: str) -> None:
    server = ChatServer("chat-a", "117", others=(Process("117", "1002"),))
    async with sharing_it(url, "old") as (old,):
        await old.note(server, epoch=0, losses=(), now=NOON)
        await old._writing(
            lambda tx: tx.run("UPDATE server SET others=replace(others, '{', '{\"newer\": 1, ')")
        )
        await old._writing(
            lambda tx: tx.run(
                "INSERT INTO node (name, version, started_at, seen_at, lease_ms, views, viewed_at) SELECT 'new', '9',"
                f' now, now, 15000, \'[true, {{"chat-a": [{NOON}, 3, true, null, false, "newer"]}}, "newer"]\', now'
                f" FROM (SELECT {nodes.NOW} AS now) AS clock"
            )
        )
        assert await old.views(Views("", {}, gms=True)) == [
            Views("new", {"chat-a": View(NOON, 3, lost=True)}, gms=True)
        ]
        assert [each.others for each in await old.servers()] == [server.others]


@pytest.mark.parametrize("another", [True, False], ids=["of a run that is over", "of this run"])
async def test_a_node_that_is_back_under_another_number_has_said_what_it_said_last(
    url: str, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """Until it says something: else nobody would miss it meanwhile. Those of this run are left to who reaps them."""
    seen = Views("", {"chat-a": View(NOON, 3, lost=True)}, gms=True)
    async with sharing_it(url, "one", "two") as (one, two):
        await two.views(seen)
        before = two._node
        await two._writing(lambda tx: tx.run("UPDATE node SET viewed_at=viewed_at-60 WHERE id=$1", before))
        if another:
            monkeypatch.setattr(nodes, "INCARNATION", "'another run'")
        await two._come_back()
        assert two._node != before
        silent = replace(seen, peer="two", silent=True)
        assert await one.views(seen) == [silent]
        await two._writing(lambda tx: tx.run("UPDATE node SET gone_at=1 WHERE id=$1", before))
        assert await one.views(seen) == [silent]
        await two.views(replace(seen, servers={}))
        assert await one.views(seen) == [replace(seen, peer="two", servers={})]


async def test_what_a_node_has_settled_and_the_database_has_forgotten_is_everybodys_when_it_comes_back(
    url: str,
) -> None:
    """A settlement may die with the database, and the claim before it not. What the node holds it keeps."""
    async with sharing_it(url, "one", "two") as (one, two):
        await one.register([registration("settled"), registration("held")], now=NOON, spread_ms=1e9)
        for chat_id in ("settled", "held"):
            await one.make_due(chat_id, Reason.REQUEST, now=NOON)
        claims = await one.claim(now=NOON, limit=2, lease_ms=15_000)
        assert sorted(claim.chat_id for claim in claims) == ["held", "settled"]
        [settled] = [claim for claim in claims if claim.chat_id == "settled"]
        one._held.let_go([Settlement(settled, Verdict.RELEASED, settled.due_at, settled_at=NOON)])
        assert await two.claim(now=NOON, limit=2, lease_ms=15_000) == []
        await one._come_back()
        assert [claim.chat_id for claim in await two.claim(now=NOON, limit=2, lease_ms=15_000)] == ["settled"]


async def test_a_claim_that_was_being_made_when_a_node_came_back_is_left_to_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is known by then what it is of, or is not."""
    async with sharing_it(url, "one", "two") as (one, two):
        await one.register([registration()], now=NOON, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=NOON)
        [claim] = await one.claim(now=NOON, limit=1, lease_ms=15_000)
        with monkeypatch.context() as patched:
            patched.setattr(one._held, "_held", {})
            with one._held.claiming():
                await one._come_back()
        assert await two.claim(now=NOON, limit=1, lease_ms=15_000) == []
        assert [each.chat_id for each in one._held.claims()] == [claim.chat_id]

        known = one._held.claims

        def late() -> list[Claim]:
            monkeypatch.setattr(one._held, "claims", known)
            return []

        monkeypatch.setattr(one._held, "claims", late)
        await one._come_back()
        assert await two.claim(now=NOON, limit=1, lease_ms=15_000) == []


async def test_another_run_of_the_database_is_waited_for_until_all_have_said_what_they_hold(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing_it(url, "one") as (one,):
        await one.register([registration()], now=NOON, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=NOON)
        monkeypatch.setattr(nodes, "INCARNATION", "'another run'")
        one._incarnation = "that of before"
        await one._come_back()
        assert await one.claim(now=NOON, limit=1, lease_ms=15_000) == []
        one._calm_until = time.monotonic()
        assert len(await one.claim(now=NOON, limit=1, lease_ms=15_000)) == 1
    assert sharing.CALM_SECONDS >= sharing.BEAT_SECONDS + 1


async def test_the_first_connection_to_another_run_of_the_database_claims_nothing_before_the_calm(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the presence may be the last to be made anew."""
    async with sharing_it(url, "one") as (one,):
        await one.register([registration()], now=NOON, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=NOON)

        async def another(_: Tx) -> str:
            return "another run"

        monkeypatch.setattr(nodes, "run", another)
        assert one._writer._connection is not None
        one._writer._connection.terminate()
        assert await one.claim(now=NOON, limit=1, lease_ms=15_000) == []
        assert await one.seize("chat-1", now=NOON, lease_ms=15_000) is NotTaken.IN_FLIGHT
        assert await one.turns(1, rate=10) == ()
        one._calm_until = time.monotonic()
        assert await one.claim(now=NOON, limit=1, lease_ms=15_000) == [], "it has not said what it holds"
        await one._hold_again()
        assert len(await one.claim(now=NOON, limit=1, lease_ms=15_000)) == 1


async def test_a_node_that_comes_back_claims_nothing_until_it_has_said_what_it_holds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive, goes_on = nodes.arrive, asyncio.Event()

    async def slowly(
        tx: Tx, name: str, version: str, lease_ms: int, key_ids: list[str], knows: int, *, present: bool
    ) -> int:
        number = await arrive(tx, name, version, lease_ms, key_ids, knows, present=present)
        await goes_on.wait()
        return number

    async with sharing_it(url, "one") as (one,):
        await one.register([registration()], now=NOON, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=NOON)
        monkeypatch.setattr(nodes, "arrive", slowly)
        end(one)
        await until(lambda: one._returns)
        assert await one.claim(now=NOON, limit=1, lease_ms=15_000) == []
        assert await one.turns(1, rate=10) == ()
        goes_on.set()
        await until(lambda: not one._returns)
        assert len(await one.claim(now=NOON, limit=1, lease_ms=15_000)) == 1


async def test_a_read_that_fails_is_told(url: str, events: Events) -> None:
    async with sharing_it(url, "one") as (one,):
        refused = StoreUnwritable("PostgreSQL: too many connections (53300)")

        async def fails(_: Tx) -> None:
            raise refused

        with pytest.raises(StoreUnwritable):
            await one._reading(fails)
        assert events.one(Event.STORE_UNWRITABLE)["cause"] == str(refused)
        assert one.trouble == str(refused)


async def test_pushes_that_lost_a_race_are_kept_all_the_same(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_pushes, tries = pushes.take_pushes, 0

    async def loses_at_first(tx: Tx, group: Sequence[tuple[Push, Ms]]) -> list[Taken]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise LostRace("PostgreSQL: deadlock detected (40P01)")
        return await take_pushes(tx, group)

    monkeypatch.setattr(pushes, "take_pushes", loses_at_first)
    async with sharing_it(url, "one") as (one,):
        await one.register([registration()], now=NOON, spread_ms=1e9)
        assert await one.take_push(push(), now=NOON) is Taken.KNOWN
        assert one.trouble is None


# -- what the database refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [frozenset[EventKind](), frozenset(EventKind)], ids=["unshown", "shown"])
async def test_an_answer_that_the_database_refuses_holds_no_other_back(
    url: str, events: Events, shown: frozenset[EventKind]
) -> None:
    async with sharing_it(url, "one") as (one,):
        await one.enrol([], now=NOON, shown=shown)
        desk = Desk(one)
        await desk.register(*(registration(f"chat-{number}") for number in range(5)), spread_ms=0)
        claims = await desk.claim()
        news = {claim.chat_id: TokenNews(secure_key=f"new-of-{claim.chat_id}") for claim in claims}
        settled = await one.settle(
            [
                answered(
                    claim,
                    sent_at=NOON,
                    settled_at=NOON + 1,
                    news=news[claim.chat_id],
                    next_position=1 << 70 if claim.chat_id == "chat-3" else 7,
                )
                for claim in claims
            ]
        )
        assert [(each.chat_id, each.tokens_changed) for each in settled] == [
            (claim.chat_id, True) for claim in claims
        ]
        for claim in claims:
            session = await desk.session(claim.chat_id)
            assert session.secure_key == f"new-of-{claim.chat_id}"
            assert session.leased_until == 0
            assert session.next_position == (3 if claim.chat_id == "chat-3" else 7)
        said = events.one(Event.ANSWER_SET_ASIDE)
        assert said["chat_id"] == "chat-3"
        assert str(said["cause"]) == "PostgreSQL: position is not what its column takes (not sent)"
        assert str(1 << 70) not in str(said)
        assert one.trouble is None


async def test_an_answer_of_which_nothing_can_be_written_is_tried_again_as_one_that_did_not_come(
    url: str, events: Events
) -> None:
    async with sharing_it(url, "one") as (one,):
        desk = Desk(one)
        await desk.register(registration(), spread_ms=0)
        claim = await desk.claim_one()
        beyond = answered(claim, sent_at=1 << 70, settled_at=NOON, news=TokenNews(secure_key="new"))
        [settled] = await one.settle([replace(beyond, settled_at=NOON)])
        assert not settled.tokens_changed
        assert events.of(Event.ANSWER_SET_ASIDE)
        session = await desk.session()
        assert (session.leased_until, session.secure_key, session.last_trouble) == (
            0,
            "key-of-chat-1",
            "not_written",
        )


# -- the clock ----------------------------------------------------------------------------------------


class Still(SystemClock):
    """A clock that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> Ms:
        return NOON

    def monotonic(self) -> float:
        return self.seconds


async def test_the_quickest_round_trip_says_best_what_time_it_is() -> None:
    local = Still()
    clock = SharedClock(local)
    trips = iter([0.5, 0.1, 0.3, 0.4, 0.2])

    async def ask() -> float:
        trip = next(trips)
        local.seconds += trip * 0.9  # the way there is longer than the way back
        said = local.seconds + 5_000
        local.seconds += trip * 0.1
        return said

    await clock.measure(ask)
    assert clock.round_trip == pytest.approx(0.1)
    assert clock.now() == pytest.approx((local.seconds + 5_000) * 1000, abs=50)


@pytest.mark.parametrize(("step", "made_up"), [(0.5, 0.05), (-0.5, -0.05), (2.0, 2.0), (-3_600.0, -3_600.0)])
async def test_a_small_difference_is_made_up_for_little_by_little_and_a_large_one_at_once(
    step: float, made_up: float
) -> None:
    local = Still()
    clock = SharedClock(local)
    ahead = 5_000.0

    async def ask() -> float:
        return local.seconds + ahead

    await clock.measure(ask)
    before = clock.now()
    ahead += step
    assert await clock.measure(ask) == pytest.approx(step)
    assert clock.now() - before == pytest.approx(made_up * 1000, abs=1)


async def test_who_reads_it_by_another_clock_of_the_process_reads_the_same() -> None:
    local, other = Still(), Still()
    other.seconds = 7.0
    clock = SharedClock(local)

    async def ask() -> float:
        return 5_000.0

    await clock.measure(ask)
    assert clock.read_by(other).now() == clock.now()
    assert clock.at(5_000.0) == local.seconds


async def test_what_was_claimed_by_an_answer_that_was_lost_is_nobodys(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, lost = work.claim, list[work.Claimed]()

    async def without_answer(tx: Tx, holder: work.Holder, looked: work.Looked) -> work.Claimed:
        lost.append(await claim(tx, holder, looked))
        raise StoreUnwritable(
            "PostgreSQL cannot be reached: connection was closed in the middle of operation"
        )

    async with sharing_it(url.replace("hold=0s", "hold=90s"), "one", "two") as (one, two):
        now = one.clock(SystemClock()).now()
        await one.register([registration()], now=now, spread_ms=1e9)
        await one.make_due("chat-1", Reason.REQUEST, now=now)
        with monkeypatch.context() as patch:
            patch.setattr(work, "claim", without_answer)
            with pytest.raises(StoreUnwritable):
                await one.claim(now=now, limit=1, lease_ms=15_000)
        assert [len(each.claims) for each in lost] == [1]
        await until(lambda: not one._unheard)
        later = two.clock(SystemClock()).now()
        assert [each.chat_id for each in await two.claim(now=later, limit=1, lease_ms=15_000)] == ["chat-1"]


async def test_a_claim_that_nobody_waits_for_any_more_is_free_when_its_node_leaves(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is told to end while the database makes a claim for it."""
    claim, begun, goes_on = work.claim, asyncio.Event(), asyncio.Event()

    async def slowly(tx: Tx, holder: work.Holder, looked: work.Looked) -> work.Claimed:
        made = await claim(tx, holder, looked)
        begun.set()
        await goes_on.wait()
        return made

    held = url.replace("hold=0s", "hold=90s")
    async with sharing_it(held, "two") as (two,):
        async with sharing_it(held, "one") as (one,):
            now = one.clock(SystemClock()).now()
            await one.register([registration()], now=now, spread_ms=1e9)
            await one.make_due("chat-1", Reason.REQUEST, now=now)
            monkeypatch.setattr(work, "claim", slowly)
            claiming = asyncio.create_task(one.claim(now=now, limit=1, lease_ms=15_000))
            await begun.wait()
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
            goes_on.set()
            monkeypatch.setattr(work, "claim", claim)
        later = two.clock(SystemClock()).now()
        assert [each.chat_id for each in await two.claim(now=later, limit=1, lease_ms=15_000)] == ["chat-1"]
