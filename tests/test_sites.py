"""Servers of aiohttp that a test stops: what becomes of those who come meanwhile."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
from aiohttp import web
from conftest import case, soon


async def _answer(_: web.BaseRequest) -> web.Response:
    return web.Response()


@pytest.mark.slow
async def test_who_comes_while_a_site_is_stopped_leaves_no_socket() -> None:
    """A socket that nobody closes warns when it is collected, which fails the test."""
    for turns in range(5):
        runner = web.ServerRunner(web.Server(_answer, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with case(turns, "turns of the loop after it came"), socket.create_connection(runner.addresses[0]):
            for _ in range(turns):
                await asyncio.sleep(0)
            await soon(runner.cleanup())
            gc.collect()
