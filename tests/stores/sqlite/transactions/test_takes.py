"""Takes in a file."""

from __future__ import annotations

from pathlib import Path

from asyncchatd.model.data import Reason
from asyncchatd.stores import make_store
from asyncchatd.stores.answers import Registered

from ...desk import Desk


async def test_a_take_outlives_the_process(tmp_path: Path) -> None:
    first = Desk(make_store("sqlite:///chats.db", directory=tmp_path))
    await first.store.open()
    await first.live("chat-1")
    take = await first.take()
    await first.store.close()
    desk = Desk(make_store("sqlite:///chats.db", directory=tmp_path), first.now)
    await desk.store.open()
    assert await desk.store.make_due("chat-1", Reason.REQUEST, now=desk.now)
    assert await desk.claim() == []
    assert await desk.put_back(take, "key-2") is Registered.UPDATED
    assert (await desk.claim_one()).tokens.secure_key == "key-2"
    await desk.store.close()
