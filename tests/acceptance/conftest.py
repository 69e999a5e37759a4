"""A rig for each test, or one for a whole file of quick ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol, Unpack

import pytest
import pytest_asyncio

from .rig import Rig, Scene, running


class Start(Protocol):
    """Start a plant and a daemon for this test."""

    async def __call__(self, **scene: Unpack[Scene]) -> Rig: ...


@pytest_asyncio.fixture(loop_scope="module")
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a plant and a daemon with the settings given; stops and judges them after the test."""
    async with AsyncExitStack() as stack:

        async def start_rig(**scene: Unpack[Scene]) -> Rig:
            return await stack.enter_async_context(running(tmp_path, **scene))

        yield start_rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """One rig for a file's quick tests, each with chats of its own. No keepalive comes due in its time."""
    async with running(tmp_path_factory.mktemp("shared")) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(shared: Rig) -> AsyncIterator[Rig]:
    """The shared rig, judged after each test."""
    yield shared
    broken, evidence = dict(shared.plant.breaches), list(shared.plant.evidence)
    shared.plant.breaches.clear()
    shared.plant.evidence.clear()
    assert not broken, f"{broken}: {evidence}"
