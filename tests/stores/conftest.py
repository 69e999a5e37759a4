"""Every store there is, each in an empty directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncchatd.stores import Store, make_store

from .desk import Desk

EVERY_STORE = {"sqlite": "sqlite:///chats.db", "memory": "memory:"}
"""URLs of the stores that must keep the contract."""


@pytest.fixture(params=EVERY_STORE)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = make_store(EVERY_STORE[request.param], directory=tmp_path)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    """The store with short ways to use it. Afterwards everything in it must fit together."""
    at = Desk(store)
    yield at
    await at.check()
