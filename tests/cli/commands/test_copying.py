"""`asyncchatd store copy` and `store unmove`: stores by their URLs or configurations, and the keys of each."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import pytest
from click.testing import CliRunner, Result
from conftest import configuration

from asyncchatd.cli.commands import main
from asyncchatd.model.data import Registration, Tokens
from asyncchatd.stores import StoreError, make_store

KEYS = {"old": bytes(range(32)), "new": bytes(range(1, 33))}


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """A directory with configurations of two stores, and a file with a key for each."""
    for name, key in KEYS.items():
        (tmp_path / f"{name}.keys").write_text(key.hex() + "\n")
        (tmp_path / f"{name}.toml").write_text(
            configuration(f'keys_file = "{name}.keys"', store=f"sqlite:///{name}.db")
        )
    return tmp_path


def asked(*words: object) -> Result:
    return CliRunner().invoke(main, ["store", *map(str, words)])


def registered(at: Path) -> None:
    asyncio.run(_registered(at))


async def _registered(at: Path) -> None:
    store = make_store("sqlite:///old.db", directory=at, keys=[KEYS["old"]])
    await store.open()
    tokens = Tokens("chat-1", "user", "its-key", "117")
    await store.register([Registration(tokens, "support", None, None)], now=1, spread_ms=0)
    await store.close()


def key_in(at: Path, name: str, *keys: bytes) -> str | None:
    return asyncio.run(_key_in(at, name, *keys))


async def _key_in(at: Path, name: str, *keys: bytes) -> str | None:
    store = make_store(f"sqlite:///{name}.db", directory=at, keys=keys)
    await store.open()
    try:
        session = await store.get("chat-1")
        return None if session is None else session.secure_key
    finally:
        await store.close()


def written_key(at: Path, name: str) -> str:
    with closing(connect(at / f"{name}.db")) as db:
        [[key]] = db.execute("SELECT secure_key FROM session").fetchall()
    return str(key)


def test_from_one_configuration_to_another(at: Path) -> None:
    registered(at)
    done = asked("copy", at / "old.toml", at / "new.toml", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["from"], told["to"]) == (str(at / "old.db"), str(at / "new.db"))
    assert told["rows"]["session"] == 1
    assert key_in(at, "new", KEYS["new"]) == "its-key"
    with pytest.raises(StoreError, match="was copied to"):
        key_in(at, "old", KEYS["old"])
    back = asked("unmove", at / "old.toml")
    assert back.exit_code == 0
    assert "may be used again" in back.output
    assert key_in(at, "old", KEYS["old"]) == "its-key"
    assert "was not marked" in asked("unmove", at / "old.toml").output


@pytest.mark.parametrize(
    ("options", "key"),
    [((), KEYS["old"]), (("--to-keys", "new.keys"), KEYS["new"]), (("--in-the-clear",), None)],
    ids=["as before", "another key", "in the clear"],
)
def test_to_a_url_with_keys_as_they_are_named(
    at: Path, options: tuple[str, ...], key: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(at)
    registered(at)
    done = asked("copy", "sqlite:///old.db", "sqlite:///new.db", "--from-keys", "old.keys", *options)
    assert done.exit_code == 0, done.output
    assert "1 sessions" in done.output
    assert key_in(at, "new", *([key] if key else [])) == "its-key"
    assert (written_key(at, "new") == "its-key") == (key is None), "nobody reads it there"


def test_what_is_wrong_is_said_in_a_line(at: Path) -> None:
    registered(at)
    url = f"sqlite:///{at}/further.db"
    for words, said in (
        (("copy", f"sqlite:///{at}/old.db", url), "encrypted with the key"),
        (("copy", at / "old.toml", "nonsense://x"), "no store for"),
        (("copy", at / "old.toml", "memory:"), "memory:"),
        (("copy", at / "old.toml", url, "--to-keys", at / "none.keys"), "cannot be read"),
        (
            ("copy", at / "old.toml", url, "--to-keys", at / "new.keys", "--in-the-clear"),
            "do not go together",
        ),
        (("copy", at / "old.toml", at / "new.toml", "--in-the-clear"), "is for a URL"),
        (("unmove", url), "there is no database"),
    ):
        done = asked(*words)
        assert done.exit_code in (1, 2)
        assert said in done.output
        assert "Traceback" not in done.output
    assert not (at / "further.db").exists()
    assert key_in(at, "old", KEYS["old"]) == "its-key"
