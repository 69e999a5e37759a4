"""Beginning a restoration: on record first, then marked in portions, and taken up where it stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from conftest import Events, FakeClock, PromptStore, register

from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, Reason
from asyncchatd.stores import STORE_PAUSE_SECONDS, StoreError, restoring

pytestmark = pytest.mark.usefixtures("events")


@pytest.fixture
async def store() -> AsyncIterator[PromptStore]:
    """One that can have a full disk, instead of every store there is."""
    opened = PromptStore()
    await opened.open()
    yield opened
    await opened.close()


async def due(store: PromptStore, *chat_ids: str) -> list[str]:
    """Those of them that wait to be restored."""
    sessions = {chat_id: await store.get(chat_id) for chat_id in chat_ids}
    return [chat_id for chat_id, session in sessions.items() if session and session.reason is Reason.RESTORE]


async def test_every_session_of_the_alias_is_due_and_the_worker_hears_of_each_portion(
    store: PromptStore, clock: FakeClock, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "PORTION", 2)
    await register(store, "a", "b", "c", "d", "e", now=clock.now())
    await register(store, "elsewhere", now=clock.now(), alias="118")
    clock.stall(5)
    wakeup, woken = asyncio.Event(), list[bool]()
    mark = store.mark

    async def noted(restoration: int, *, limit: int, now: int) -> bool:
        woken.append(wakeup.is_set())
        wakeup.clear()
        clock.stall(0.25)
        return await mark(restoration, limit=limit, now=now)

    monkeypatch.setattr(store, "mark", noted)
    begun = await restoring.begin(store, wakeup, clock, alias="117", server="chat", cause=Cause.RESTARTED)
    assert (begun.sessions, begun.waiting, begun.marking) == (5, 5, False)
    assert await due(store, "a", "b", "c", "d", "e", "elsewhere") == ["a", "b", "c", "d", "e"]
    assert woken == [False, True, True]
    assert wakeup.is_set()
    told = events.one(Event.RESTORATION_STARTED)
    names = ("restoration", "server", "alias", "cause", "sessions", "took_ms")
    assert [told[name] for name in names] == [begun.id, "chat", "117", "restarted", 5, 750]


async def test_each_restoration_is_counted_once_by_its_cause_though_it_is_marked_in_several_goes(
    store: PromptStore, clock: FakeClock
) -> None:
    counted = metrics.RESTORATIONS.labels("restarted")._value
    before = counted.get()
    await register(store, "a", now=clock.now())
    await restoring.begin(store, asyncio.Event(), clock, alias="117", server="chat", cause=Cause.RESTARTED)
    assert counted.get() == before + 1
    begun = await store.begin_restoration(alias="117", server="chat", cause=Cause.RESTARTED, now=clock.now())
    store.fill_disk()
    going = asyncio.create_task(restoring.go_on(store, asyncio.Event(), clock, begun))
    await clock.advance(3 * STORE_PAUSE_SECONDS)
    store.free_disk()
    await clock.advance(STORE_PAUSE_SECONDS)
    await going
    assert counted.get() == before + 2


async def test_what_is_on_record_is_marked_when_the_store_can_be_written_again(
    store: PromptStore, clock: FakeClock
) -> None:
    await register(store, "a", now=clock.now())
    begun = await store.begin_restoration(
        alias="117", server="chat", cause=Cause.UNREACHABLE, now=clock.now()
    )
    store.fill_disk()
    going = asyncio.create_task(restoring.go_on(store, asyncio.Event(), clock, begun))
    await clock.advance(3 * STORE_PAUSE_SECONDS)
    assert not going.done()
    store.free_disk()
    await clock.advance(STORE_PAUSE_SECONDS)
    assert (await going).sessions == 1


async def test_what_cannot_be_put_on_record_was_not_begun(store: PromptStore, clock: FakeClock) -> None:
    store.fill_disk()
    with pytest.raises(StoreError):
        await restoring.begin(store, asyncio.Event(), clock, alias="117", server="chat", cause=Cause.OPERATOR)
    store.free_disk()
    assert await store.restorations() == []


@pytest.mark.parametrize(("server", "marked"), [(None, ["a", "b", "c"]), ("chat-b", ["b"]), ("chat-d", [])])
async def test_marking_that_was_cut_off_is_taken_up_but_for_what_servers_announce(
    server: str | None, marked: list[str], store: PromptStore, clock: FakeClock, events: Events
) -> None:
    """Whom a stopping Chat Server announces is due by its notices, one by one."""
    for name, cause in (
        ("a", Cause.UNREACHABLE),
        ("b", Cause.RESTARTED),
        ("c", Cause.OPERATOR),
        ("d", Cause.ANNOUNCED),
    ):
        await register(store, name, now=clock.now(), alias=name)
        await store.begin_restoration(alias=name, server=f"chat-{name}", cause=cause, now=clock.now())
    await register(store, "b2", now=clock.now(), alias="b")
    for _ in range(2):  # what is marked is not marked again
        await restoring.resume(store, asyncio.Event(), clock, server=server)
    told = sorted((line["alias"], line["sessions"]) for line in events.of(Event.RESTORATION_STARTED))
    assert told == [(name, 2 if name == "b" else 1) for name in marked]
    assert await due(store, "a", "b", "c", "d") == marked


async def test_marking_is_taken_up_of_every_server_that_was_lost_however_many_were(
    store: PromptStore, clock: FakeClock
) -> None:
    aliases = [f"alias-{number}" for number in range(60)]
    for alias in aliases:
        await register(store, alias, now=clock.now(), alias=alias)
        await store.begin_restoration(
            alias=alias, server=f"chat-{alias}", cause=Cause.UNREACHABLE, now=clock.now()
        )
    await restoring.resume(store, asyncio.Event(), clock)
    assert await due(store, *aliases) == aliases
