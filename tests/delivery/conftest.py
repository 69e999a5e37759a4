"""The rig of the tests of webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from conftest import Certificates, server_tls

from .rig import EVERYTHING, ChatApp, NotedStore, Rig, real_time


@pytest.fixture
async def app() -> AsyncIterator[ChatApp]:
    running = ChatApp()
    await running.setup()
    yield running
    await running.cleanup()


@pytest.fixture
async def tls_app(certificates: Certificates) -> AsyncIterator[ChatApp]:
    """One that is reached by TLS."""
    running = ChatApp(server_tls(certificates))
    await running.setup()
    yield running
    await running.cleanup()


@pytest.fixture
async def rig(app: ChatApp) -> AsyncIterator[Rig]:
    store = NotedStore()
    await store.open()
    clock = real_time()
    await store.enrol([EVERYTHING], now=clock.now())
    yield Rig(store, app, clock)
    store.free_disk()
    await store.close()
