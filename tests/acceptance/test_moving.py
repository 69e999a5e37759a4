"""Chats go on in another store: `asyncchatd store copy` from SQLite to PostgreSQL and back, while chats live."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores.postgres.server import Server, server

from .conftest import Start
from .plant import Chat, push
from .rig import Rig, eventually
from .test_delivery import ChatApp, app, consumer

__all__ = ["app"]

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as one:
        yield one


def copied(source: Path, target: str) -> str:
    """What the command says on standard output, once it went well."""
    words = [sys.executable, "-m", "asyncchatd", "store", "copy", str(source), target]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def named(rig: Rig, url: str) -> None:
    """Another store in the configuration."""
    lines = rig.config.read_text().splitlines()
    rig.config.write_text(
        "\n".join(
            f'url = "{url}"' if "sqlite:///" in line or "postgresql:" in line else line for line in lines
        )
    )


async def ends_at_its_start(rig: Rig) -> str:
    """What a daemon says that does not start."""
    with pytest.raises(AssertionError, match="the daemon ended"):
        await rig.start()
    return rig.log_text()


async def all_answered(rig: Rig, chats: list[Chat]) -> None:
    for chat in chats:
        await rig.ask_ping(chat)
    for chat in chats:
        await rig.told_answered(chat)


async def test_chats_go_on_after_their_store_was_copied_to_postgresql_and_back(
    start: Start, app: ChatApp, tmp_path: Path, postgres: Server
) -> None:
    rig = await start(servers=3, consumer=consumer(app, tmp_path), lease="1500ms")
    chats = await rig.registered(10, alias="111")
    rig.plant.rotate = {"key"}
    await rig.watching()
    await all_answered(rig, chats)
    for there in (postgres.url("moved", hold="2s"), f"sqlite:///{tmp_path}/back.db"):
        await app.kill()
        for chat in chats[:3]:
            rig.plant.say(chat, f"nobody hears it before {there.partition(':')[0]}")
            await rig.acknowledged(chat, push(chat, "dummy message"))
        await rig.stop()
        assert "10 sessions" in copied(rig.config, there)
        assert "was copied to" in await ends_at_its_start(rig)
        named(rig, there)
        await app.start()
        await rig.start()
        await eventually(
            "what nobody heard is told", lambda: all(app.has(chat) for chat in chats[:3]), within=15
        )
        await all_answered(rig, chats)  # with the keys of before, which each answer replaces
        for chat in chats[3:6]:
            await rig.acknowledged(chat, push(chat, "dummy message"))
    rig.plant.rotate.clear()
    await rig.plant.kill(rig.plant.servers[0])
    await eventually("all restored", lambda: not rig.plant.unrestored(), within=15)
