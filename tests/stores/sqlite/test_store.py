"""What an SQLite store promises beyond the contract: what it answered is on disk, and a restart finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncchatd.model.data import Reason, TokenNews
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file import writer

from ..desk import NOON, Desk, complete_push, push, registration
from .rig import opened, rows, survivors


async def test_a_push_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.take_push(complete_push(), now=NOON)
        saved = survivors(tmp_path, tmp_path / "saved")
        assert rows(tmp_path / "chats.db", "SELECT chat_id, alias FROM journal") == [("chat-1", "117")]
    async with opened(saved) as store:
        desk = Desk(store)
        await store.absorb(10)
        assert (await desk.claim_one()).tokens.secure_key == "key-of-chat-1"


async def test_what_was_learned_settled_and_begun_is_on_disk_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
        claims = await desk.claim(1)
        await desk.answer(*claims, news=TokenNews(secure_key="key-2"))
        lost = await desk.lose()
        saved = survivors(tmp_path, tmp_path / "saved")
    async with opened(saved) as store:
        desk = Desk(store, now=desk.now)
        assert await desk.key(claims[0].chat_id) == "key-2"
        assert await desk.counts(lost.id) == {"sessions": 2, "waiting": 2}
        assert len(await desk.claim(reasons=[Reason.RESTORE])) == 2
        await desk.check()


async def test_what_may_not_be_forgotten_is_synced_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    transaction = writer._transaction

    def watched(connection: Db, group: object, durable: bool, looks: bool) -> list[object]:
        results = transaction(connection, group, durable, looks)  # type: ignore[arg-type]
        said.append({1: "normal", 2: "full"}[connection.execute("PRAGMA synchronous").fetchone()[0]])
        return results

    async with opened(tmp_path) as store:
        monkeypatch.setattr(writer, "_transaction", watched)
        desk = Desk(store)
        await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
        await store.take_push(push(), now=NOON)
        await store.absorb(10)
        first, second = await desk.claim()
        await store.renew([first], until=NOON)
        await desk.answer(first)
        await desk.answer(second, news=TokenNews(secure_key="key-2"))
        await store.remove("chat-1", now=NOON)
    full = {0: "register", 1: "take_push", 6: "settle", 7: "remove"}
    assert said == ["full" if number in full else "normal" for number in range(8)]


async def test_counting_reads_no_session(tmp_path: Path) -> None:
    """Somebody looks at the status page every second, however many sessions there are."""
    asked: list[str] = []
    async with opened(tmp_path) as store:
        await store._connections[1].visit(lambda db: db.set_trace_callback(asked.append))
        await store.counts(now=NOON)
        await store.counts_by_alias()
    plans = [
        str(row[3]) for each in asked for row in rows(tmp_path / "chats.db", f"EXPLAIN QUERY PLAN {each}")
    ]
    assert len(plans) > 2
    for plan in plans:
        assert " session" not in plan or " INDEX " in plan


async def test_open_restorations_are_found_without_reading_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        asked: list[str] = []
        await store._connections[1].visit(lambda db: db.set_trace_callback(asked.append))
        await store.restorations(unfinished=True)
    [query] = asked
    [plan] = rows(tmp_path / "chats.db", f"EXPLAIN QUERY PLAN {query}")
    assert "restoration_open" in str(plan[3])


async def test_after_a_restart_everything_is_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.live("chat-1", "chat-2")
        await desk.push(push("chat-3", alias="117"))
        await store.take_push(push("chat-1", key="key-2"), now=desk.now)
        before = await store.sessions()
    async with opened(tmp_path) as store:
        desk = Desk(store, now=desk.now)
        assert await store.sessions() == before
        await store.absorb(10)
        assert (await desk.claim_one()).tokens.secure_key == "key-2"


async def test_what_a_dead_daemon_had_claimed_is_due_when_its_lease_runs_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.register(registration(), spread_ms=0)
        await desk.claim_one()
        saved = survivors(tmp_path, tmp_path / "saved")
    async with opened(saved) as store:
        desk = Desk(store)
        assert await desk.claim() == []
        desk.later(15_000)
        await desk.claim_one()
