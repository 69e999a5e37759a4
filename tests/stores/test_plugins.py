"""A store from somebody else's package is found by its URL scheme."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import configuration

from asyncchatd import config
from asyncchatd.stores import StoreError, make_store, store_schemes
from asyncchatd.stores.sqlite import MemoryStore, SqliteStore

from .desk import Desk, registration

MODULE = '''
from asyncchatd.stores.sqlite import MemoryStore


class ShelfStore(MemoryStore):
    """Somebody's store."""

    def __init__(self, url, *, directory, queue):
        super().__init__("memory:", directory=directory, queue=queue)
        self.asked_for = (url, directory, queue)
'''


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution with a store, installed the way an installer leaves it: a directory on `sys.path`
    with a module and its `*.dist-info`. Gives its scheme."""
    site = tmp_path / "site-packages"
    information = site / "shelf_store-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-store\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[asyncchatd.stores]\nshelf = shelf_store:ShelfStore\nbroken = no_such_module_anywhere:Store\n"
    )
    (site / "shelf_store.py").write_text(MODULE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "shelf_store", raising=False)
    return "shelf"


async def test_an_installed_store_is_found_by_its_scheme_and_used(shelf: str, tmp_path: Path) -> None:
    url = f"{shelf}://host/chats?depth=3"
    store = make_store(url, directory=tmp_path, queue=7)
    assert type(store).__name__ == "ShelfStore"
    assert getattr(store, "asked_for") == (url, tmp_path, 7)  # noqa: B009 - the contract does not have it
    await store.open()
    try:
        assert await Desk(store).register(registration()) == ["created"]
    finally:
        await store.close()


def test_a_store_that_cannot_encrypt_does_not_pretend_to(shelf: str, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"\(shelf_store:ShelfStore\) does not encrypt: remove store.keys_file"
    ):
        make_store(f"{shelf}://host/chats", directory=tmp_path, queue=7, keys=[bytes(32)])


def test_a_store_that_asks_for_no_password_is_not_given_one(shelf: str, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError,
        match=r"store\.password_file: .*\(shelf_store:ShelfStore\) has no password; remove this key",
    ):
        make_store(f"{shelf}://host/chats", directory=tmp_path, queue=7, password_file=tmp_path / "password")


def test_the_configuration_takes_the_url_of_an_installed_store(shelf: str, tmp_path: Path) -> None:
    file = tmp_path / "asyncchatd.toml"
    file.write_text(configuration(store=f"{shelf}://host/chats"))
    settings = config.load(file)
    assert settings.store_url == f"{shelf}://host/chats"
    assert settings.store.scheme == shelf


def test_an_unknown_scheme_is_told_with_those_that_are_installed(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as refused:
        make_store("oracle://host/chats", directory=tmp_path)
    assert "no store for 'oracle'" in str(refused.value)
    assert "installed are: memory, postgres, postgresql, sqlite" in str(refused.value)
    assert "asyncchatd.stores" in str(refused.value)


def test_an_installed_store_is_among_those_named(shelf: str, tmp_path: Path) -> None:
    assert store_schemes() == ["broken", "memory", "postgres", "postgresql", shelf, "sqlite"]
    with pytest.raises(
        StoreError, match=r"installed are: broken, memory, postgres, postgresql, shelf, sqlite "
    ):
        make_store("oracle://host/chats", directory=tmp_path)


def test_a_url_without_a_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store for 'chats\.db'"):
        make_store("chats.db", directory=tmp_path)


@pytest.mark.usefixtures("shelf")
def test_a_store_that_cannot_be_imported_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"the store for broken \(no_such_module_anywhere:Store\) cannot be loaded"
    ):
        make_store("broken:", directory=tmp_path)


def test_what_the_driver_of_a_store_comes_with_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("asyncchatd.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreError, match="environment: pip install asyncpg"):
        make_store("postgresql://h/db", directory=tmp_path)


def test_our_own_stores_are_found_the_same_way(tmp_path: Path) -> None:
    assert type(make_store("sqlite:///chats.db", directory=tmp_path)) is SqliteStore
    assert type(make_store("memory:", directory=tmp_path)) is MemoryStore


@pytest.mark.parametrize("url", ["postgresql://chats@[::1/d", "sqlite://[a/b.db"])
def test_a_url_that_nobody_can_read_is_told_so(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^store\.url"):
        make_store(url, directory=tmp_path)
