"""A node that is killed, as the plant sees it: what it was answered in its last moments nobody else can know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncchatd.model import Ms
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.standin import Plant

UNSETTLED_MS: Ms = 1_000
"""So long before its death a node may have had an answer that is not in the database yet."""

IN_SOCKETS_SECONDS = 0.1
"""In which the plant has read what the node sent before it died."""


@asynccontextmanager
async def answers_lost(plant: Plant) -> AsyncIterator[None]:
    """Meanwhile, and in the last moments before, answers may come to a node that nobody can ask any more. Until the
    others show that they know the newest key of such a chat, the one before is good: no client could know it."""
    plant.client_died()
    since = plant.wall_ms() - UNSETTLED_MS
    try:
        yield
        await asyncio.sleep(IN_SOCKETS_SECONDS)
        plant.replies_lost(since)
    finally:
        plant.client_starts()


async def kill(node: Node, plant: Plant) -> int:
    """Kill it. Returns how many chats there are of which it alone may have been told the newest key."""
    async with answers_lost(plant):
        await node.kill()
    return sum(bool(session.doubtful) and session.ended is None for session in plant.sessions.values())
