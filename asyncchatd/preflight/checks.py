"""What `asyncchatd check` and `asyncchatd check --connect` find out, as plain results for the CLI to print.

`check` looks at the file alone: what is wrong in it, and what is valid but probably not meant. `connect`
looks at the world the file describes: names, health pages, GMS nodes, webhooks, the store's directory and the
addresses to listen on. It changes nothing there and touches no chat: a webhook is tried with a batch without events.
Every finding that is not fine says what to do next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from asyncchatd.config import ConfigError, Settings, load
from asyncchatd.model import Finding, Level, findings
from asyncchatd.preflight import chat_servers, consumers, gms, host
from asyncchatd.preflight.doubts import doubts
from asyncchatd.stores import StoreError
from asyncchatd.watcher import HealthPages
from asyncchatd.wire import HealthPage


def check(path: Path) -> list[Finding]:
    """Everything that can be said of the configuration without leaving this host's files."""
    try:
        settings = load(path)
    except ConfigError as error:
        return [
            findings.error(
                problem.key,
                f"{path}: " * (not problem.key)
                + f"line {problem.line}: " * (problem.line is not None)
                + problem.message,
                f"did you mean {problem.nearest}?" if problem.nearest else "correct it and check again",
            )
            for problem in error.problems
        ]
    found = remarks(settings)
    if not any(finding.level is Level.ERROR for finding in found):
        found.insert(0, findings.ok("", f"{path} is valid"))
    return found


def remarks(settings: Settings) -> list[Finding]:
    """What can be said of a configuration that is valid, from this host's files alone."""
    found = list(doubts(settings))
    try:
        host.unopened(settings)
    except StoreError as trouble:
        found.append(host.impossible(trouble))
    return found


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
