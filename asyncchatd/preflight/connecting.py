"""What `asyncchatd check --connect` finds out besides: the world that the file describes.

Names, health pages, GMS nodes, webhooks, the store's directory and the addresses to listen on. It changes nothing there
and touches no chat: a webhook is tried with a batch without events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from asyncchatd.config import Settings
from asyncchatd.model import Finding
from asyncchatd.preflight.connected import chat_servers, consumers, gms, host
from asyncchatd.watcher import HealthPages
from asyncchatd.wire import HealthPage


async def connect(settings: Settings) -> list[Finding]:
    """Everything that can be said of the hosts, directories and addresses the configuration names.

    Takes no longer than the time-outs of the configuration, a few servers at a time.
    """
    at_once = asyncio.Semaphore(20)

    async def collected(finding_by_finding: AsyncIterator[Finding]) -> list[Finding]:
        async with at_once:
            return [finding async for finding in finding_by_finding]

    pages: dict[int, HealthPage] = {}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session, HealthPages() as health:
        found = await asyncio.gather(
            collected(host.store(settings)),
            collected(host.listening(settings)),
            *(collected(gms.node(settings, index, session)) for index in range(len(settings.gms.nodes))),
            *(
                collected(chat_servers.chat_server(settings, index, health, pages))
                for index in range(len(settings.chat_servers))
            ),
            *(collected(consumers.consumer(settings, index)) for index in range(len(settings.consumers))),
        )
    found += [
        list(host.files(settings)),
        list(chat_servers.same_server(settings, pages)),
        list(gms.service(settings)),
    ]
    return [finding for part in found for finding in part]
