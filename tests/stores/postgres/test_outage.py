"""What whoever asks a node is told while the database is away."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncchatd.stores import in_full
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore

from ..desk import NOON, push
from .server import server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("events")]


async def test_whoever_asks_is_told_since_when_the_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as own:
        url = own.url("asyncchatd").replace("postgres@", "postgres:hunter2@")
        store = PostgresStore(url, directory=tmp_path)
        await store.open()
        try:
            own.stop()
            with pytest.raises(StoreUnwritable):
                await store.take_push(push(), now=NOON)
            later = store._trouble._monotonic() + 240.0
            monkeypatch.setattr(store._trouble, "_monotonic", lambda: later)
            for asked in (store.counts(now=NOON), store.nodes()):
                with pytest.raises(StoreUnwritable) as away:
                    await asked
            with pytest.raises(StoreUnwritable) as refused:  # as a push is, then answered with 503
                await store.take_push(push(), now=NOON)
            assert refused.value.outage == ""
            told = in_full(away.value)
            assert re.search(
                r"^PostgreSQL\b.+; so it is since 2\d{3}-\S+ \S+ UTC, for 4 min; pushes that"
                " cannot be kept are answered with 503",
                told,
            )
            assert "hunter2" not in told
            assert "so it is" not in str(store.trouble)
        finally:
            await store.close()
