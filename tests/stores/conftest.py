"""Every store there is, each in an empty directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncchatd.stores import Store, make_store

from .desk import Desk

EVERY_STORE: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "sqlite": ("sqlite:///chats.db", ()),
    "sealed": ("sqlite:///chats.db", (bytes(range(32)),)),
    "memory": ("memory:", ()),
}
"""URLs of the stores that must keep the contract, and the keys they encrypt with."""


@pytest.fixture(params=EVERY_STORE)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url, keys = EVERY_STORE[request.param]
    opened = make_store(url, directory=tmp_path, keys=keys)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    """The store with short ways to use it. Afterwards everything in it must fit together."""
    at = Desk(store)
    yield at
    await at.check()
