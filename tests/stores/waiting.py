"""Waiting for what only those hear of who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SECONDS = 20.0


async def until(true: Callable[[], object]) -> None:
    """Until it is true; an error when that takes longer than anything does."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - a file or a database tells only those who ask
            await asyncio.sleep(0.01)
