"""The one writer of an SQLite store: group commit, in which whoever is at fault fails alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncchatd.stores import StoreError, StoreFull
from asyncchatd.stores.answers import Taken
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file import writer
from asyncchatd.stores.sqlite.file.writer import Connection, Writer

from ...desk import NOON, Desk, push, registration
from ..rig import opened


@asynccontextmanager
async def writing(queue: int = 10_000) -> AsyncIterator[Writer]:
    connection = Connection(lambda: sqlite3.connect(":memory:", isolation_level=None, factory=Db), 64)
    await connection
    await connection.visit(lambda db: db.execute("CREATE TABLE told (what)"))
    write = Writer(connection, queue=queue)
    try:
        yield write
    finally:
        await write.close()
        await connection.close()


def tell(what: str) -> writer.Work[str]:
    def work(db: sqlite3.Connection) -> str:
        db.execute("INSERT INTO told VALUES (?)", (what,))
        if what == "bad":
            raise ValueError(what)
        if what == "worse":
            db.execute("INSERT INTO nowhere VALUES (1)")
        return what

    return work


def tell_together(db: Db, items: object) -> list[str]:
    assert isinstance(items, list)
    return [tell(item)(db) for item in items]


def told(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT what FROM told ORDER BY rowid")]


async def test_whatever_is_handed_in_together_shares_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = writer._commit

    def watched(connection: Db, group: list[object]) -> list[object]:
        groups.append(len(group))
        return commit(connection, group)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "_commit", watched)
    async with writing() as write:
        assert await asyncio.gather(*(write.submit(tell(what)) for what in "abc")) == ["a", "b", "c"]
    assert groups == [3]


async def test_one_faulty_member_of_a_group_fails_alone() -> None:
    async with writing() as write:
        submitted = [write.submit(tell(what)) for what in ("a", "bad", "b", "worse", "c")]
        a, bad, b, worse, c = await asyncio.gather(*submitted, return_exceptions=True)
        assert (a, b, c) == ("a", "b", "c")
        assert isinstance(bad, ValueError)
        assert isinstance(worse, StoreError)
        assert await write.submit(told) == ["a", "b", "c"]


async def test_one_faulty_item_of_a_portion_fails_alone() -> None:
    async with writing() as write:
        before = write.submit(tell("before"))
        gathered = [write.gather(tell_together, what) for what in ("a", "bad", "b")]
        after = write.submit(tell("after"))
        a, bad, b = await asyncio.gather(*gathered, return_exceptions=True)
        assert (await before, a, b, await after) == ("before", "a", "b", "after")
        assert isinstance(bad, ValueError)
        assert await write.submit(told) == ["before", "a", "b", "after"]


async def test_work_takes_effect_in_the_order_in_which_it_was_handed_in() -> None:
    async with writing() as write:
        write.gather(tell_together, "1")
        write.submit(tell("2"))
        write.gather(tell_together, "3")
        write.gather(tell_together, "4")
        write.submit(tell("5"))
        assert await write.submit(told) == ["1", "2", "3", "4", "5"]


async def test_closing_the_writer_finishes_what_is_queued() -> None:
    async with writing() as write:
        first = write.submit(tell("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = write.submit(tell("b"))  # while the first is being written
        await write.close()
        assert (first.done(), second.done()) == (True, True)
        with pytest.raises(StoreError, match="closed"):
            write.submit(tell("c"))
        with pytest.raises(StoreError, match="closed"):
            write.gather(tell_together, "c")


async def test_a_push_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        taken = await asyncio.gather(
            store.take_push(push("chat-1"), now=NOON),
            store.take_push(push("chat-\ud800"), now=NOON),
            store.take_push(push("chat-3"), now=NOON),
            return_exceptions=True,
        )
        assert (taken[0], taken[2]) == (Taken.UNKNOWN, Taken.UNKNOWN)
        assert isinstance(taken[1], Exception)
        assert [each.chat_id for each in await store.absorb(10)] == ["chat-1", "chat-3"]


async def test_when_the_queue_is_full_a_push_is_refused_and_nothing_of_it_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, queue=3) as store:
        desk = Desk(store)
        outcomes = await asyncio.gather(
            *(store.take_push(push(f"chat-{number}"), now=NOON) for number in range(8)),
            desk.register(registration("registered")),
            return_exceptions=True,
        )
        assert outcomes[:3] == [Taken.UNKNOWN] * 3
        assert all(isinstance(refused, StoreFull) for refused in outcomes[3:8])
        assert outcomes[8] == ["created"]  # the daemon's own work is always taken
        assert [each.chat_id for each in await store.absorb(10)] == ["chat-0", "chat-1", "chat-2"]
        assert store.depth == 0
        assert await store.take_push(push("chat-9"), now=NOON) is Taken.UNKNOWN


async def test_giving_up_the_wait_for_an_answer_does_not_break_the_writer(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        waiting = [
            asyncio.ensure_future(store.take_push(push("chat-1"), now=NOON)),
            asyncio.ensure_future(desk.register(registration("chat-2"), registration("chat-3"), spread_ms=0)),
            asyncio.ensure_future(desk.claim(1)),
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        gone = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in gone)
        # What was handed in happened all the same, and whoever comes next is served.
        async with asyncio.timeout(10):
            assert [each.chat_id for each in await store.absorb(10)] == ["chat-1"]
        assert len(await desk.claim()) == 1
        desk.later(15_000)
        assert len(await desk.claim()) == 2
