"""The change of store keys while several nodes use the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.model.data import Reason, TokenNews
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres.shared import nodes, settings
from asyncchatd.stores.postgres.wire import Connection
from asyncchatd.stores.sealing import Sealed

from ..conftest import empty_schema
from ..desk import NOON, Desk, push, registration
from ..kept import KeptConnections
from ..test_transcript import APP, message, refresh, said, told
from .server import Server
from .test_checking import admin

OLD, NEW, THIRD = bytes(32), bytes([1]) * 32, bytes([2]) * 32
CHATS = [f"chat-{number}" for number in range(1, 8)]


class Site:
    """Nodes on one database, each of which can be started again with other keys."""

    def __init__(self, url: str, sql: Connection) -> None:
        self._url = url
        self.sql = sql
        self.stores: dict[str, PostgresStore] = {}

    async def start(self, name: str, *keys: bytes) -> PostgresStore:
        """Start a node, or start it again."""
        await self.stop(name)
        store = PostgresStore(f"{self._url}&node={name}", directory=Path(), keys=keys)
        await store.open()
        self.stores[name] = store
        return store

    async def stop(self, name: str) -> None:
        if name in self.stores:
            await self.stores.pop(name).close()

    async def stop_all(self) -> None:
        for name in list(self.stores):
            await self.stop(name)

    async def beat(self) -> None:
        """All say that they are there, and hear the others."""
        for store in self.stores.values():
            await store._beat()

    async def turn(self) -> None:
        """All do what there is to do for a change of keys."""
        for store in self.stores.values():
            await store.turn_keys()
        await self.beat()

    async def later(self) -> None:
        """All have had the time to hear which key is in force."""
        await self.sql.run(f"UPDATE store SET turned_at=turned_at-{settings.HEARD_SECONDS + 1}")
        await self.beat()

    async def in_force(self) -> str | None:
        return (await settings.keys(self.sql)).in_force

    async def former(self) -> list[str | None]:
        return list((await settings.keys(self.sql)).former)

    async def under(self, key: bytes) -> int:
        """How many secure keys are sealed under a store key."""
        sealing, count = Sealed(key), 0
        for chat_id, sealed in await self.sql.rows("SELECT chat_id, secure_key FROM session"):
            try:
                count += sealing.open(sealed, chat_id) is not None
            except ValueError:
                continue
        return count


@pytest_asyncio.fixture(loop_scope="session")
async def site(postgres: Server, kept: KeptConnections) -> AsyncIterator[Site]:
    url = await empty_schema(postgres, connect=kept.connect)
    async with AsyncExitStack() as stack:
        sql = await stack.enter_async_context(admin(postgres, kept.connect))
        await sql.script("SET search_path=chats")
        site = Site(url, sql)
        stack.push_async_callback(site.stop_all)
        yield site


async def known_to(store: PostgresStore) -> dict[str, str | None]:
    """The secure keys, as a node reads them."""
    return {each.chat_id or "": each.secure_key for each in await store.sessions(limit=100)}


async def test_keys_are_changed_node_by_node_and_no_session_loses_its_own(site: Site, events: Events) -> None:
    for name in ("one", "two", "three"):
        store = await site.start(name, OLD)
    await Desk(store).register(*map(registration, CHATS))
    known = await known_to(store)
    for name in ("one", "two"):
        await site.start(name, NEW, OLD)
        await site.turn()
        assert await site.in_force() == Sealed(OLD).key_id, "the third one has not got the new one"
    await site.start("three", NEW, OLD)
    await site.turn()
    assert await site.in_force() == Sealed(NEW).key_id
    assert await site.former() == [Sealed(OLD).key_id]
    for store in site.stores.values():
        assert await known_to(store) == known
    await site.turn()
    assert await site.under(NEW) == len(CHATS)
    assert await site.former(), "one may still write under the old one, who has not heard"
    await site.later()
    await site.turn()
    assert await site.former() == []
    assert [line["count"] for line in events.of(Event.STORE_RESEALED)] == [len(CHATS)]
    for name in ("one", "two", "three"):
        store = await site.start(name, NEW)
    assert await known_to(store) == known


async def test_what_is_learned_meanwhile_is_kept(site: Site) -> None:
    """A node that has not heard yet writes under the old key: all open it, and it is sealed anew."""
    one, two = await site.start("one", OLD), await site.start("two", OLD)
    await Desk(one).register(*map(registration, CHATS))
    one, two = await site.start("one", NEW, OLD), await site.start("two", NEW, OLD)
    await one.turn_keys()
    await one._beat()
    assert (one._sealing.key_id, two._sealing.key_id) == (Sealed(NEW).key_id, Sealed(OLD).key_id)
    for store, key in (one, "told-to-one"), (two, "told-to-two"):
        desk = Desk(store)
        await store.make_due("chat-1", Reason.REQUEST, now=desk.now)
        await desk.answer(await desk.claim_one(), news=TokenNews(secure_key=key))
        assert (await known_to(one))["chat-1"] == (await known_to(two))["chat-1"] == key
    await Desk(two).push(
        push("chat-2", key="told-by-a-push", user_id="user-of-chat-2", alias="117", utc_time=NOON + 9_000)
    )
    assert (await known_to(one))["chat-2"] == "told-by-a-push"
    assert await site.under(OLD) > 0
    for _ in range(2):
        await site.later()
        await site.turn()
    assert await site.under(NEW) == len(CHATS)
    assert await site.former() == []


async def test_a_key_that_is_still_in_use_is_not_to_be_missing(site: Site) -> None:
    one = await site.start("one", OLD)
    await Desk(one).register(registration())
    with pytest.raises(StoreError, match=r"store\.keys_file: .* encrypted with the key .*add its line"):
        await site.start("two", NEW)
    await site.start("one", NEW, OLD)
    await site.turn()
    await site.turn()
    with pytest.raises(StoreError, match=Sealed(OLD).key_id):
        await site.start("two", NEW)
    with pytest.raises(StoreError, match="and none is set"):
        await site.start("two")
    await site.later()
    await site.turn()
    await site.start("two", NEW)


async def test_who_is_silent_may_write_under_the_old_key_when_he_comes_back(site: Site) -> None:
    one, two = await site.start("one", NEW, OLD), await site.start("two", NEW, OLD)
    await Desk(one).register(registration())
    await site.sql.run("UPDATE store SET key_id=$1", Sealed(OLD).key_id)
    await site.beat()
    await site.turn()
    await site.turn()
    await site.later()
    silent = nodes.SILENT_SECONDS + 1
    await site.sql.run("UPDATE node SET seen_at=seen_at-$1 WHERE name='two'", silent)
    await one.turn_keys()
    assert await site.former(), "he may be stopped"
    await two._beat()
    await one.turn_keys()
    assert not await site.former()


async def test_who_was_killed_together_with_the_database_and_started_anew_is_not_waited_for(
    site: Site,
) -> None:
    """Nobody knows that he is dead. His name says it, as soon as another one has it."""
    await site.start("one", OLD)
    await site.start("two", OLD)
    await site.sql.run(
        "INSERT INTO node (name, version, started_at, seen_at, lease_ms, presence, key_ids, knows)"
        " SELECT name, version, started_at, seen_at, lease_ms, 'another incarnation', key_ids, knows FROM node"
        " WHERE name='two'"
    )
    killed = await site.sql.value(
        "UPDATE node SET seen_at=seen_at-60 WHERE presence='another incarnation' RETURNING id"
    )
    await site.start("one", NEW, OLD)
    await site.turn()
    assert await settings.silent(site.sql) == [("two", killed)]
    await site.start("two", NEW, OLD)
    await site.turn()
    assert await site.in_force() == Sealed(NEW).key_id
    await site.later()
    await site.turn()
    assert await site.former() == []


async def test_the_numbers_of_before_the_database_restarted_hold_no_key_in_force(site: Site) -> None:
    one, two = await site.start("one", OLD), await site.start("two", OLD)
    await Desk(one).register(*map(registration, CHATS))
    await site.sql.run("UPDATE node SET presence='the run of before'")
    await one._come_back()
    await two._come_back()
    assert await site.sql.value("SELECT count(*) FROM node WHERE gone_at IS NULL") == 2
    for name in ("one", "two"):
        await site.start(name, NEW, OLD)
    await site.turn()
    assert await site.in_force() == Sealed(NEW).key_id
    await site.later()
    await site.turn()
    await site.turn()
    assert await site.former() == []


async def test_a_database_in_the_clear_is_sealed_once_all_have_a_key(site: Site) -> None:
    one = await site.start("one")
    await site.start("two")
    await Desk(one).register(*map(registration, CHATS))
    known = await known_to(one)
    one = await site.start("one", NEW)
    await site.turn()
    assert await site.in_force() is None
    assert await known_to(one) == known
    two = await site.start("two", NEW)
    await site.turn()
    await site.turn()
    assert await site.under(NEW) == len(CHATS)
    await site.later()
    await site.turn()
    assert await site.former() == []
    assert await known_to(one) == await known_to(two) == known


async def test_nodes_that_disagree_which_key_comes_first_change_nothing(site: Site) -> None:
    one = await site.start("one", OLD)
    await Desk(one).register(registration())
    await site.start("one", NEW, OLD)
    await site.start("two", OLD, NEW)
    await site.turn()
    assert await site.in_force() == Sealed(OLD).key_id


async def test_a_change_that_is_taken_back_half_way_loses_nothing(site: Site) -> None:
    one = await site.start("one", OLD)
    await Desk(one).register(*map(registration, CHATS))
    known = await known_to(one)
    await site.start("one", NEW, OLD)
    await site.turn()
    one = await site.start("one", OLD, NEW)
    await site.turn()
    assert await site.in_force() == Sealed(OLD).key_id
    assert await site.former() == [Sealed(NEW).key_id]
    for _ in range(2):
        await site.later()
        await site.turn()
    assert await site.former() == []
    assert await site.under(OLD) == len(CHATS)
    assert await known_to(one) == known


async def test_an_event_that_was_told_under_the_old_key_is_not_told_again(site: Site) -> None:
    one = await site.start("one", OLD)
    desk = Desk(one)
    await one.enrol([APP], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one"), message(4, "two"))
    desk.store = one = await site.start("one", NEW, OLD)
    await one.enrol([APP], now=desk.now)
    await site.turn()
    assert await site.in_force() == Sealed(NEW).key_id
    await refresh(desk, message(3, "one"), message(4, "two"), message(5, "three"))
    assert said(await told(desk)) == ["one", "two", "three"], "nothing is sealed anew yet"
    await site.turn()
    await refresh(desk, message(4, "two"), message(5, "three"), message(6, "four"))
    assert said(await told(desk)) == ["one", "two", "three", "four"]
    await site.later()
    await site.turn()
    desk.store = one = await site.start("one", NEW)
    await one.enrol([APP], now=desk.now)
    await refresh(desk, message(6, "four"), message(7, "five"))
    assert said(await told(desk)) == ["one", "two", "three", "four", "five"]


async def test_a_damaged_event_does_not_hold_a_change_up(site: Site) -> None:
    desk = Desk(await site.start("one"))
    await desk.store.enrol([APP], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one"))
    await site.sql.run("UPDATE event SET body='\\xff' WHERE body IS NOT NULL")
    await site.start("one", NEW)
    await site.turn()
    await site.later()
    for _ in range(2):
        await site.turn()
    assert (await site.in_force(), await site.former()) == (Sealed(NEW).key_id, [])


async def test_whoever_lacks_the_key_in_force_writes_no_secure_key(site: Site) -> None:
    one = await site.start("one", OLD)
    await Desk(one).register(registration())
    await site.sql.run("UPDATE store SET key_id=$1", Sealed(THIRD).key_id)
    await site.beat()
    with pytest.raises(StoreError, match=rf"store\.keys_file: .*{Sealed(THIRD).key_id}"):
        await one.register([registration("chat-2")], now=NOON, spread_ms=1.0)
