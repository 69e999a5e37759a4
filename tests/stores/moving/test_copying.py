"""Copying a store into another one: all of it or nothing, and the one of before is not used any more."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import pytest_asyncio

from asyncchatd.model.data import Reason, SessionState
from asyncchatd.model.findings import Level
from asyncchatd.stores import Store, StoreError, copy_rows, make_store
from asyncchatd.stores.moving import Carrier, Row, Table
from asyncchatd.stores.postgres.carrying import ArrivingSchema
from asyncchatd.stores.sqlite import downgrade
from asyncchatd.stores.sqlite.file.carrying import ArrivingFile
from asyncchatd.stores.sqlite.transactions import schema

from ..conftest import empty_schema
from ..desk import MINUTE, SECOND, Desk, push, registration
from ..kept import KeptConnections
from ..postgres.server import Server
from ..sqlite import rig
from .filling import LONG, RARELY, TOLD, fill, lacking, rows

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


class Place:
    """A directory for files, and a PostgreSQL."""

    def __init__(self, directory: Path, postgres: Server) -> None:
        self.directory = directory
        self.postgres = postgres

    def store(self, name: str, *keys: bytes) -> Store:
        """A store that is not open: a file, or a schema of PostgreSQL."""
        url = f"sqlite:///{name}" if name.endswith(".db") else self.postgres.url(name, hold="0s")
        return make_store(url, directory=self.directory, keys=keys)


@pytest_asyncio.fixture(loop_scope="session")
async def place(tmp_path: Path, postgres: Server, kept: KeptConnections) -> Place:
    for name in ("target", "other"):
        await empty_schema(postgres, name, connect=kept.connect)
    return Place(tmp_path, postgres)


async def filled(store: Store) -> Desk:
    await store.open()
    try:
        return await fill(store)
    finally:
        await store.close()


def embellished(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.executescript(RARELY)


async def test_what_is_filled_says_something_in_every_column(place: Place) -> None:
    store = place.store("chats.db", KEY)
    await filled(store)
    embellished(place.directory / "chats.db")
    # The mark of an event follows from its body, and is left out where that is in the clear.
    assert lacking(await rows(store.carrier())) == {"event.likeness"}


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["clear", "sealed"])
@pytest.mark.parametrize("keys_then", [(), (KEY,), (OTHER,)], ids=["to clear", "to sealed", "to another key"])
async def test_there_and_back_everything_is_the_same(
    place: Place, keys: Sequence[bytes], keys_then: Sequence[bytes]
) -> None:
    first, there, back = (
        place.store("chats.db", *keys),
        place.store("target", *keys_then),
        place.store("back.db", *keys),
    )
    await filled(first)
    embellished(place.directory / "chats.db")
    before = await rows(first.carrier())
    copied = await copy_rows(first.carrier(), there.carrier())
    assert copied.counts == {name: len(found) for name, found in before.items()}
    assert copied.resealed == (keys != keys_then)
    assert await rows(there.carrier()) == before
    await copy_rows(there.carrier(), back.carrier())
    assert await rows(back.carrier()) == before
    assert content(place.directory / "back.db") == content(place.directory / "chats.db")


def content(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that stands in a file, but what is of the file itself and where a marking goes on."""
    tables = [name for (name,) in rig.rows(file, "SELECT name FROM sqlite_schema WHERE type='table'")]
    found = {}
    for table in tables:
        names = [str(row[1]) for row in rig.rows(file, f"PRAGMA table_info({table})")]
        own = {"mark", "at_work", "moved", "remains", "cursor_active", "cursor_id"}
        columns = ", ".join(f'"{name}"' for name in names if name not in own)
        found[str(table)] = sorted(rig.rows(file, f'SELECT {columns} FROM "{table}"'), key=repr)
    return found


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


NAMES = (
    ("chats.db", "target"),
    ("other", "back.db"),
    pytest.param("chats.db", "back.db", marks=pytest.mark.slow),
    pytest.param("other", "target", marks=pytest.mark.slow),
)
"""From SQLite to PostgreSQL, back, and each to its like."""


async def test_a_new_file_is_written_for_its_owner_alone_and_is_whole(place: Place) -> None:
    first, back = place.store("chats.db"), place.store("back.db")
    await filled(first)
    await copy_rows(first.carrier(), back.carrier())
    file = place.directory / "back.db"
    assert file.stat().st_mode & 0o777 == 0o600
    assert rig.rows(file, "PRAGMA integrity_check") == [("ok",)]
    indexes = "SELECT name FROM sqlite_schema WHERE type='index' ORDER BY name"
    assert rig.rows(file, indexes) == rig.rows(place.directory / "chats.db", indexes)
    assert not list(place.directory.glob("*.partial*"))
    async with opened(place.store("back.db")) as store:
        assert store.replaced is None, "it is the database that is expected there"


@pytest.mark.parametrize(("source", "target"), NAMES)
async def test_what_was_copied_goes_on(place: Place, source: str, target: str) -> None:
    desk = await filled(place.store(source, KEY))
    await copy_rows(place.store(source, KEY).carrier(), place.store(target, OTHER).carrier())
    async with opened(place.store(target, OTHER)) as store:
        there = Desk(store, desk.now)
        await store.enrol(TOLD, now=there.now)
        for chat_id in ("taken", "asked"):
            assert (await there.session(chat_id)).leased_until > there.now, "somebody has it still"
        assert set(await due(there)) >= {"said", "was-taken", "asked"}
        [begun] = [each for each in await store.restorations(unfinished=True) if each.alias == "118"]
        while await store.mark(begun.id, limit=2, now=there.now):
            await there.check()
        assert await there.counts(begun.id) == {"sessions": 6, "restored": 1, "waiting": 5}
        while await store.absorb(100, now=there.now):
            pass
        assert await there.key("pushed") == "newest"
        portion = await store.fetch("fetches", after=None, limit=100, now=there.now)
        assert [event.id for event in portion.events][:3] == [2, 3, 4], "behind what was acknowledged"
        assert len(await there.register(registration("new"))) == 1
        there.later(LONG)
        assert {claim.chat_id for claim in await there.claim()} >= {"taken", "new", "lost-1"}
        await there.check()


async def due(desk: Desk) -> list[str]:
    desk.later(MINUTE)
    claims = await desk.claim(reasons=[Reason.REQUEST, Reason.ACKNOWLEDGE])
    await desk.answer(*claims)
    return [claim.chat_id for claim in claims]


@pytest.mark.parametrize(("source", "target"), NAMES)
async def test_the_one_of_before_is_not_used_any_more_until_somebody_wants_it(
    place: Place, source: str, target: str
) -> None:
    await filled(place.store(source))
    before = await rows(place.store(source).carrier())
    to = place.store(target).carrier()
    await copy_rows(place.store(source).carrier(), to)
    with pytest.raises(StoreError, match="unmove") as told:
        await place.store(source).open()
    assert to.shown in str(told.value)
    with pytest.raises(StoreError, match="was copied to"):
        await copy_rows(place.store(source).carrier(), place.store("further.db").carrier())
    assert not (place.directory / "further.db").exists()
    assert to.shown in " ".join([found async for found in errors(place.store(source))])
    moved = await place.store(source).carrier().unmove()
    assert moved is not None
    assert moved.startswith(to.shown)
    assert await rows(place.store(source).carrier()) == before
    assert [found async for found in errors(place.store(source))] == []
    async with opened(place.store(source)) as store:
        assert (await store.counts(now=0)).states[SessionState.LIVE] > 10


async def errors(store: Store) -> AsyncIterator[str]:
    """What `asyncchatd check --connect` finds wrong with a store that nobody has."""

    async def nobody_answers() -> bool:
        return False

    async for finding in store.check(nobody_answers):
        if finding.level is Level.ERROR and "fsync" not in finding.message:
            yield finding.message


async def test_there_is_no_way_back_to_an_older_version_from_what_has_moved(place: Place) -> None:
    await filled(place.store("chats.db"))
    copy = place.directory / "old.db"
    with closing(sqlite3.connect(copy)) as db:
        db.executescript(
            f"{schema.MIGRATIONS[0]}; PRAGMA application_id={schema.APPLICATION_ID}; PRAGMA user_version=1"
        )
    await copy_rows(place.store("chats.db").carrier(), place.store("target").carrier())
    with pytest.raises(StoreError, match="was copied to"):
        downgrade("sqlite:///chats.db", place.directory, copy)


@pytest.mark.parametrize(("source", "target"), NAMES)
async def test_it_is_refused_while_a_daemon_has_either(place: Place, source: str, target: str) -> None:
    await filled(place.store(source))
    async with opened(place.store(source)):
        with pytest.raises(StoreError, match="in use by"):
            await copy_rows(place.store(source).carrier(), place.store(target).carrier())
    async with opened(place.store(target)):
        with pytest.raises(StoreError, match="in use by"):
            await copy_rows(place.store(source).carrier(), place.store(target).carrier())
    await copy_rows(place.store(source).carrier(), place.store(target).carrier())


@pytest.mark.parametrize(("source", "target"), NAMES)
async def test_nothing_is_copied_over_what_is_there(place: Place, source: str, target: str) -> None:
    await filled(place.store(source))
    async with opened(place.store(target)) as store:
        await Desk(store).register(registration("here"))
    with pytest.raises(StoreError, match="is not empty: 1 rows of session"):
        await copy_rows(place.store(source).carrier(), place.store(target).carrier())
    async with opened(place.store(target)) as store:
        assert [session.chat_id for session in await store.sessions()] == ["here"]
    async with opened(place.store(source)):
        pass


async def test_a_store_is_not_copied_into_itself_nor_what_is_no_store(place: Place) -> None:
    for name in ("chats.db", "other"):
        await filled(place.store(name))
        with pytest.raises(StoreError, match="into itself"):
            await copy_rows(place.store(name).carrier(), place.store(name).carrier())
    (place.directory / "text.db").write_text("hello")
    for name, words in (("text.db", "is no SQLite file"), ("none.db", "no database"), ("never", "no store")):
        with pytest.raises(StoreError, match=words):
            await copy_rows(place.store(name).carrier(), place.store("target").carrier())
    with pytest.raises(StoreError, match="was left alone"):
        await copy_rows(place.store("chats.db").carrier(), place.store("text.db").carrier())
    with pytest.raises(StoreError, match="nothing to copy"):
        make_store("memory:", directory=place.directory).carrier()


@pytest.mark.parametrize("name", ["chats.db", "other"])
async def test_without_the_key_nothing_is_copied(place: Place, name: str) -> None:
    await filled(place.store(name, KEY))
    with pytest.raises(StoreError, match="encrypted with the key"):
        await copy_rows(place.store(name, OTHER).carrier(), place.store("back.db").carrier())
    async with opened(place.store(name, KEY)):
        pass


@pytest.mark.parametrize(("source", "target"), NAMES)
@pytest.mark.parametrize("at", ["write", "complete", "compare"])
async def test_one_that_is_stopped_half_way_leaves_both_as_they_were(
    place: Place, source: str, target: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(place.store(source))
    before = await rows(place.store(source).carrier())

    async def stopped(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        if at == "compare":
            patched.setattr("asyncchatd.stores.moving.copying.Tally.compare", lost)
        else:
            for kind in (ArrivingFile, ArrivingSchema):
                patched.setattr(kind, at, stopped)
        with pytest.raises((asyncio.CancelledError, StoreError)):
            await copy_rows(place.store(source).carrier(), place.store(target).carrier())
    assert not list(place.directory.glob("*.partial*"))
    assert not (place.directory / "back.db").exists()
    assert await rows(place.store(source).carrier()) == before
    await copy_rows(place.store(source).carrier(), place.store(target).carrier())
    assert await rows(place.store(target).carrier()) == before


def lost(*_: object) -> None:
    raise StoreError("rows are missing")


@pytest.mark.parametrize(("source", "target"), NAMES)
async def test_one_that_was_killed_before_it_marked_the_source_marks_it_when_it_is_repeated(
    place: Place, source: str, target: str
) -> None:
    await filled(place.store(source, KEY))
    copied = await copy_rows(place.store(source, KEY).carrier(), place.store(target).carrier())
    await place.store(source, KEY).carrier().unmove()  # as if it had not come so far
    again = await copy_rows(place.store(source, KEY).carrier(), place.store(target).carrier())
    assert again == copied
    with pytest.raises(StoreError, match="was copied to"):
        await place.store(source, KEY).open()
    await place.store(source, KEY).carrier().unmove()
    async with opened(place.store(target)) as store:  # from here on it is another one
        await Desk(store).register(registration("since"))
    with pytest.raises(StoreError, match="is not empty"):
        await copy_rows(place.store(source, KEY).carrier(), place.store(target).carrier())


async def test_rows_that_are_not_those_that_were_written_are_found(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(place.store("chats.db"))
    write = ArrivingSchema._copy

    async def worse(
        self: ArrivingSchema, name: str, table: Table, found: Sequence[Row], names: Sequence[str]
    ) -> None:
        key = table.place("secure_key") if name == "session" else 0
        await write(
            self,
            name,
            table,
            [(*row[:key], "other", *row[key + 1 :]) for row in found] if key else found,
            names,
        )

    monkeypatch.setattr(ArrivingSchema, "_copy", worse)
    with pytest.raises(StoreError, match=r"the rows of session .* are not those that were written"):
        await copy_rows(place.store("chats.db").carrier(), place.store("target").carrier())
    assert await empty(place.store("target").carrier())


async def empty(carrier: Carrier) -> bool:
    found = await rows(carrier)
    return not any(found[name] for name in found if name != "store")


async def test_a_marking_goes_on_though_sessions_were_active_meanwhile(place: Place) -> None:
    async with opened(place.store("other")) as store:
        desk = await fill(store)
        await desk.push(push("lost-2", utc_time=desk.later(SECOND)))
    await copy_rows(place.store("other").carrier(), place.store("back.db").carrier())
    async with opened(place.store("back.db")) as store:
        there = Desk(store, desk.now)
        [begun] = [each for each in await store.restorations(unfinished=True) if each.alias == "118"]
        while await store.mark(begun.id, limit=1, now=there.now):
            pass
        assert (await there.restoration(begun.id)).sessions == 6
        await there.check()


async def test_a_backup_is_not_copied_before_it_is_distrusted(place: Place) -> None:
    await filled(place.store("chats.db"))
    with closing(sqlite3.connect(place.directory / "chats.db")) as db:
        db.execute("UPDATE file SET copied_at=1700000000000")
        db.commit()
    with pytest.raises(StoreError, match="is a backup of"):
        await copy_rows(place.store("chats.db").carrier(), place.store("target").carrier())
    assert await empty(place.store("target").carrier())
