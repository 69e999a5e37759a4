"""Secure keys at rest: not in the files, not under another chat's row, not without the key."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from conftest import Events
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import aead
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.log.events import Event
from asyncchatd.model import EventKind
from asyncchatd.model.data import Cause, SessionState, TokenNews
from asyncchatd.stores import StoreError, make_store
from asyncchatd.stores.answers import Effect, Registered
from asyncchatd.stores.sealing import Sealed, SealError, event_mark
from asyncchatd.stores.sqlite import SqliteStore

from .desk import NOON, Desk, complete_push, push, registration

FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))
SECRETS = ("key-of-", "learned-key", "renewed-key")
"""What every secure key in these tests begins with."""

texts = st.text(min_size=1, max_size=40)
devices = st.none() | texts


@asynccontextmanager
async def opened(directory: Path, *keys: bytes) -> AsyncIterator[SqliteStore]:
    store = SqliteStore("sqlite:///chats.db", directory=directory, keys=keys)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def in_the_clear(directory: Path) -> list[str]:
    """Which secure keys can be read in which file of the store."""
    return [
        f"{secret} in {file.name}"
        for file in sorted(directory.glob("chats.db*"))
        for secret in SECRETS
        if secret.encode() in file.read_bytes()
    ]


def key_ids(directory: Path) -> list[object]:
    with closing(sqlite3.connect(directory / "chats.db")) as db:
        return [row[0] for row in db.execute("SELECT key_id FROM sealing")]


def change(directory: Path, statement: str) -> None:
    """Somebody with the file but without the key, and with an SQLite that does not overwrite what it deletes."""
    with closing(sqlite3.connect(directory / "chats.db", isolation_level=None)) as db:
        db.execute("PRAGMA secure_delete = OFF")
        assert db.execute(statement).rowcount > 0


async def live_through_everything(store: SqliteStore) -> None:
    """Every way on which a secure key comes into the store."""
    desk = Desk(store)
    await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
    await desk.push(complete_push("adopted"))
    await desk.push(push(None, key="key-of-device", device_id="device-of-late"))
    first, second, *_ = await desk.claim()
    await desk.answer(first, news=TokenNews(secure_key="renewed-key"))
    await desk.push(push(second.chat_id, key="learned-key", utc_time=desk.later(5_000)))
    await desk.answer(second, news=TokenNews(secure_key="renewed-key-2"))
    await store.take_push(complete_push("in-the-journal"), now=desk.now)


# -- the files ---------------------------------------------------------------------------------------


async def test_no_file_of_the_store_holds_a_secure_key(tmp_path: Path) -> None:
    async with opened(tmp_path, FIRST) as store:
        await live_through_everything(store)
        assert (tmp_path / "chats.db-wal").stat().st_size > 0
        assert in_the_clear(tmp_path) == []
    assert in_the_clear(tmp_path) == []


@pytest.mark.slow
async def test_without_a_key_the_files_do_hold_them(tmp_path: Path) -> None:
    """So that the test above can fail."""
    async with opened(tmp_path) as store:
        await live_through_everything(store)
        assert {found.split()[0] for found in in_the_clear(tmp_path)} == set(SECRETS)


@pytest.mark.slow
async def test_what_is_encrypted_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, FIRST) as store:
        await live_through_everything(store)
        before = await store.sessions()
    assert {session.secure_key for session in before} >= {"key-of-chat-2", "renewed-key", "key-of-device"}
    async with opened(tmp_path, FIRST) as store:
        assert await store.sessions() == before
        assert [each.effect for each in await store.absorb(10)] == [Effect.ADOPTED]
        assert await Desk(store).key("in-the-journal") == "key-of-in-the-journal"


@pytest.mark.slow
async def test_a_key_told_for_a_device_is_found_when_its_chat_is_known(tmp_path: Path) -> None:
    """It is bound to the device first, and to the chat from then on."""
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store)
        await desk.push(push(None, key="key-of-chat-1", user_id="user", alias="117", device_id="phone"))
        [completed] = await desk.push(push("chat-1", device_id="phone"))
        assert completed.effect is Effect.COMPLETED
        assert (await desk.claim_one()).tokens.secure_key == "key-of-chat-1"


@pytest.mark.slow
async def test_a_registration_with_an_old_key_completes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store)
        for key in ("key-of-old", "key-of-new"):
            await desk.push(push(None, key=key, alias="117", device_id="phone", utc_time=desk.later(5_000)))
        [told] = await desk.register(registration("chat-1", key="key-of-old", device_id="phone"))
        assert told is Registered.KEPT
        assert await desk.key("chat-1") == "key-of-new"


# -- keys come and go ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_store_written_in_the_clear_is_encrypted_at_the_next_start(
    tmp_path: Path, events: Events
) -> None:
    async with opened(tmp_path) as store:
        await live_through_everything(store)
        before = await store.sessions()
    async with opened(tmp_path, FIRST) as store:
        assert in_the_clear(tmp_path) == []
        assert await store.sessions() == before
        assert await store.absorb(10)
    assert events.one(Event.STORE_RESEALED)["count"] == len([s for s in before if s.secure_key]) + 1
    assert in_the_clear(tmp_path) == []


@pytest.mark.slow
async def test_what_was_deleted_before_does_not_stay_behind_either(tmp_path: Path) -> None:
    """SQLite may only mark as free what it deletes."""
    async with opened(tmp_path) as store:
        await Desk(store).register(*(registration(f"chat-{number}") for number in range(200)))
    change(tmp_path, "DELETE FROM session WHERE true")
    assert in_the_clear(tmp_path)
    async with opened(tmp_path, FIRST):
        pass
    assert in_the_clear(tmp_path) == []


@pytest.mark.slow
async def test_cleaning_up_that_fails_is_told_and_done_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    async with opened(tmp_path) as store:
        await Desk(store).register(*(registration(f"chat-{number}") for number in range(200)))
        before = [session for session in await store.sessions(limit=200) if str(session.chat_id) < "chat-2"]
    change(tmp_path, "DELETE FROM session WHERE chat_id >= 'chat-2'")

    def full(db: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("asyncchatd.stores.sqlite.file.opening.clean", full)
        async with opened(tmp_path, FIRST) as store:
            assert await store.sessions(limit=200) == before, "chats come first"
    assert events.one(Event.STORE_REMAINS)["cause"] == "database or disk is full"
    assert in_the_clear(tmp_path)
    async with opened(tmp_path, FIRST) as store:
        assert await store.sessions(limit=200) == before
    assert in_the_clear(tmp_path) == []


async def test_the_first_key_encrypts_and_the_old_one_may_go_after_one_start(
    tmp_path: Path, events: Events
) -> None:
    async with opened(tmp_path, FIRST) as store:
        await live_through_everything(store)
        before = await store.sessions()
    async with opened(tmp_path, SECOND, FIRST) as store:
        assert await store.sessions() == before
    async with opened(tmp_path, SECOND) as store:
        assert await store.sessions() == before
        assert await store.absorb(10)
        assert await Desk(store).claim()
    assert events.one(Event.STORE_RESEALED)["count"] == len(before) + 1  # one is in the journal
    assert key_ids(tmp_path) == [Sealed(SECOND).key_id]


async def test_the_same_keys_again_change_nothing(tmp_path: Path, events: Events) -> None:
    for _ in range(2):
        async with opened(tmp_path, FIRST, SECOND) as store:
            await Desk(store).register(registration())
    assert events.of(Event.STORE_RESEALED) == [], "nor had anything to be sealed anew when the file was made"


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [((), "store.keys_file is not set"), ((SECOND, THIRD), "not in store.keys_file")],
    ids=["without a key", "with other keys"],
)
async def test_an_encrypted_store_does_not_open_without_its_key_and_nothing_is_lost(
    tmp_path: Path, keys: Sequence[bytes], complaint: str
) -> None:
    async with opened(tmp_path, FIRST) as store:
        await live_through_everything(store)
        before = await store.sessions()
    content = (tmp_path / "chats.db").read_bytes()
    with pytest.raises(StoreError) as refused:
        async with opened(tmp_path, *keys):
            pass
    assert complaint in str(refused.value)
    assert Sealed(FIRST).key_id in str(refused.value)
    assert str(tmp_path / "chats.db") in str(refused.value)
    assert (tmp_path / "chats.db").read_bytes() == content
    assert not [name for name in os.listdir(tmp_path) if "damaged" in name]
    async with opened(tmp_path, FIRST) as store:
        assert await store.sessions() == before


# -- what somebody did to the file ---------------------------------------------------------------------


async def test_a_value_moved_to_another_row_does_not_open(tmp_path: Path, events: Events) -> None:
    """A request with another chat's key would end this one."""
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store)
        await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
        await desk.lose()
    change(
        tmp_path,
        "UPDATE session SET secure_key=(SELECT secure_key FROM session WHERE chat_id='chat-2')"
        " WHERE chat_id='chat-1'",
    )
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store, now=desk.now)
        assert await desk.key("chat-1") is None
        [claim] = await desk.claim()
        assert claim.tokens.secure_key == "key-of-chat-2"
        assert (await desk.session("chat-1")).state is SessionState.INCOMPLETE
        await desk.check()
        # Its registration brings it back.
        assert await desk.register(registration("chat-1")) == [Registered.COMPLETED]
        assert (await desk.claim_one()).tokens.secure_key == "key-of-chat-1"
    assert {line["chat_id"] for line in events.of(Event.SECURE_KEY_DAMAGED)} == {"chat-1"}


async def test_a_damaged_value_in_the_journal_teaches_nothing(tmp_path: Path, events: Events) -> None:
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store)
        await desk.register(registration("chat-1"))
        await store.take_push(push("chat-1", key="learned-key", utc_time=NOON + 60_000), now=NOON)
    change(tmp_path, "UPDATE journal SET secure_key='AAAA' || secure_key")
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store)
        await store.absorb(10)
        assert (await desk.claim_one()).tokens.secure_key == "key-of-chat-1"
    assert events.of(Event.SECURE_KEY_DAMAGED)


async def test_a_damaged_value_does_not_stop_the_turn_to_another_key(tmp_path: Path) -> None:
    async with opened(tmp_path, FIRST) as store:
        await Desk(store).register(registration("chat-1"), registration("chat-2"), spread_ms=0)
    change(tmp_path, "UPDATE session SET secure_key='no base64' WHERE chat_id='chat-1'")
    async with opened(tmp_path, SECOND, FIRST) as store:
        assert (await Desk(store).claim_one()).chat_id == "chat-2"
        assert (await Desk(store).session("chat-1")).state is SessionState.INCOMPLETE


async def test_a_lost_server_is_restored_with_the_encrypted_keys(tmp_path: Path) -> None:
    async with opened(tmp_path, FIRST) as store:
        desk = Desk(store)
        await desk.register(*(registration(f"chat-{number}") for number in range(20)))
        lost = await desk.lose(cause=Cause.RESTARTED)
        for claim in await desk.claim():
            assert claim.tokens.secure_key == f"key-of-{claim.chat_id}"
            [settled] = await desk.answer(claim, news=TokenNews(alias="118", secure_key="renewed-key"))
            assert settled.tokens_changed
        assert await desk.counts(lost.id) == {"sessions": 20, "restored": 20}


# -- sealing itself --------------------------------------------------------------------------------------


@given(key=texts, chat_id=texts, device_id=devices)
def test_what_is_sealed_opens_again_and_does_not_show(key: str, chat_id: str, device_id: str | None) -> None:
    sealing = Sealed(FIRST)
    sealed = sealing.seal(key, chat_id, device_id)
    assert sealed is not None
    assert sealing.open(sealed, chat_id) == key
    assert sealing.seal(key, chat_id) == sealed  # statements compare them
    assert len(key) < 8 or key not in sealed


@given(key=texts, mine=st.tuples(st.none() | texts, texts), yours=st.tuples(st.none() | texts, texts))
def test_a_sealed_key_opens_for_its_own_chat_alone(
    key: str, mine: tuple[str | None, str], yours: tuple[str | None, str]
) -> None:
    same = mine == yours or (mine[0] is not None and mine[0] == yours[0])
    sealed = Sealed(FIRST).seal(key, *mine)
    if same:
        assert Sealed(FIRST).open(sealed, *yours) == key
    else:
        with pytest.raises(SealError):
            Sealed(FIRST).open(sealed, *yours)


@given(key=texts, place=st.integers(min_value=0), bit=st.integers(0, 6))
def test_a_sealed_key_with_any_bit_changed_does_not_open(key: str, place: int, bit: int) -> None:
    sealed = Sealed(FIRST).seal(key, "chat-1")
    assert sealed is not None
    place %= len(sealed.rstrip("=")) - 1  # the last character's low bits may mean nothing
    changed = sealed[:place] + chr(ord(sealed[place]) ^ 1 << bit) + sealed[place + 1 :]
    with pytest.raises(SealError):
        Sealed(FIRST).open(changed, "chat-1")


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(SealError):
        Sealed(SECOND).open(Sealed(FIRST).seal("key-of-chat-1", "chat-1"), "chat-1")


def test_no_key_stays_no_key() -> None:
    assert Sealed(FIRST).seal(None, "chat-1") is None
    assert Sealed(FIRST).open(None, "chat-1") is None


def test_a_store_key_does_not_show() -> None:
    assert repr(FIRST)[2:-1] not in repr(vars(Sealed(FIRST)))
    with pytest.raises(ValueError, match="a store key has 32 bytes, not 16"):
        Sealed(bytes(16))


async def test_the_memory_store_takes_keys_and_needs_none(tmp_path: Path) -> None:
    store = make_store("memory:", directory=tmp_path, keys=(FIRST,))
    await store.open()
    try:
        desk = Desk(store)
        await desk.register(registration())
        assert await desk.key() == "key-of-chat-1"
    finally:
        await store.close()


@pytest.mark.parametrize("url", ["sqlite:///chats.db", "postgresql://asyncchatd@127.0.0.1/asyncchatd"])
def test_a_cipher_that_this_host_lacks_is_said_of_the_setting(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(key: bytes) -> None:
        raise UnsupportedAlgorithm("no such cipher")

    monkeypatch.setattr(aead, "AESGCMSIV", lacking)
    with pytest.raises(StoreError, match=r"^store\.keys_file: .*AES-GCM-SIV"):
        make_store(url, directory=tmp_path, keys=(FIRST,))


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[1]", b"{}"])
def test_a_damaged_event_has_no_mark(body: bytes) -> None:
    assert event_mark(Sealed(FIRST), EventKind.CHAT, body) is None
