"""A node that is killed, as the plant sees it: what it was answered in its last moments nobody else can know."""

from __future__ import annotations

import asyncio

from asyncchatd.model import Ms
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.standin import Plant

UNSETTLED_MS: Ms = 1_000
"""So long before its death a node may have had an answer that is not in the database yet."""

IN_SOCKETS_SECONDS = 0.1
"""In which the plant has read what the node sent before it died."""


async def kill(node: Node, plant: Plant) -> int:
    """Kill it. Until the others show that they know the newest key of a chat, the one before is good, where an answer
    to the dead node may have told the newest: no client could know it. Returns how many chats that concerns."""
    plant.client_died()
    since = plant.wall_ms() - UNSETTLED_MS
    try:
        await node.kill()
        await asyncio.sleep(IN_SOCKETS_SECONDS)
        return plant.replies_lost(since)
    finally:
        plant.client_starts()
