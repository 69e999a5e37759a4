"""Chat Servers as `asyncchatd check --connect` finds them, by their health pages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

from asyncchatd.config import ChatServerSettings, Settings
from asyncchatd.listening import certificates
from asyncchatd.model import Finding, Ms, findings
from asyncchatd.preflight.connected.reaching import addresses, in_words, tls_error, unresolved
from asyncchatd.watcher import REDIRECTS, HealthPages, Page, Unreachable, Unreadable, Unseen, identity
from asyncchatd.wire import HealthPage

LOOKS = 6
"""At each health page: behind a balancer that picks one of two at random, another process answers one of the next five
times in 31 of 32."""

BALANCER = "make it the server's own address, not a balancer's: the loss of one may go unseen"
UNREADABLE = "check the path: the server counts as alive, but a restart goes unseen"


async def chat_server(
    settings: Settings, index: int, health: HealthPages, pages: dict[int, HealthPage]
) -> AsyncIterator[Finding]:
    """Whether a health page says what the watcher needs; a page that was read is put in `pages`."""
    server, key = settings.chat_servers[index], f"chat_server[{index}].health_url"
    limit = settings.watcher.timeout
    if (nowhere := await unresolved(key, server.health_url, limit)) is not None:
        yield nowhere
        return
    # As the watcher reads it.
    match await health.look(server, limit.total_seconds(), settings.gms.tls_for(server.health_url)):
        case Page(page):
            pages[index] = page
            for finding in _page_findings(index, server, page):
                yield finding
            if (other := await _another_process(settings, server, health, page)) is not None:
                pids = f"process_os_pid {page.process_os_pid or 'unknown'} and {other}"
                message = f"several processes answer as {server.name}, {pids}"
                yield findings.error(key, message, BALANCER)
            elif several := await addresses(server.health_url, limit):
                host = urlsplit(server.health_url).hostname
                message = f"{host} has the addresses {' and '.join(several)}: each may be another process"
                yield findings.warning(key, message, BALANCER)
        case (
            Unreachable(error=Exception() as error)
            | Unseen(error=Exception() as error)
            | Unreadable(error=Exception() as error)
        ):
            message = f"the health page of {server.name} cannot be reached: {in_words(error, limit)}"
            advice = "check that it runs, and the port with the id health in Chat Server's options"
            if (untrusted := tls_error(error)) is not None:
                advice = certificates.advice(untrusted, "gms.ca_file")
            yield findings.error(key, message, advice)
        case Unreadable(status=int() as status) if status in REDIRECTS:
            message = f"{server.name} redirects (status {status}) to where the watcher does not follow"
            yield findings.warning(key, message, "set health_url to where its health page is")
        case Unreadable(status=int() as status):
            message = f"{server.name} answers with status {status} instead of its health page"
            yield findings.warning(key, message, UNREADABLE)
        case Unreadable(why) | Unreachable(why) | Unseen(why):
            yield findings.warning(key, f"the page of {server.name} cannot be read: {why}", UNREADABLE)


async def _another_process(
    settings: Settings, server: ChatServerSettings, health: HealthPages, page: HealthPage
) -> str | None:
    """The process id of whoever else answers at the same address, in some more reads."""
    first = identity.observed(page, _now())
    for _ in range(LOOKS - 1):
        match await health.look(
            server, settings.watcher.timeout.total_seconds(), settings.gms.tls_for(server.health_url)
        ):
            case Page(page) if not identity.is_one(first, identity.observed(page, _now())):
                return page.process_os_pid or "unknown"
    return None


def _now() -> Ms:
    return round(time.monotonic() * 1000)


def _page_findings(index: int, server: ChatServerSettings, page: HealthPage) -> Iterator[Finding]:
    dbid = f"chat_server[{index}].app_dbid"
    identity = server.app_dbid or page.app_dbid
    if identity is None:
        message = f"the page of {server.name} does not say its app_dbid"
        yield findings.error(dbid, message, "set it to the server's DBID in the Genesys configuration")
    elif page.app_dbid is not None and page.app_dbid != identity:
        message = f"{identity} is configured, but the page of {server.name} says {page.app_dbid}"
        yield findings.warning(dbid, message, "remove it, or check that health_url is that of this server")
    if page.process_os_pid is None:
        message = f"the page of {server.name} does not say its process_os_pid"
        advice = "check the path; without it only an outage is noticed, not a quick restart"
        yield findings.warning(f"chat_server[{index}].health_url", message, advice)
    for setting, counter, value in (
        ("start_counter", server.start_counter, page.started),
        ("uptime_counter", server.uptime_counter, page.uptime),
    ):
        if counter and value is None:
            message = f"the page of {server.name} has no usable counter named {counter}"
            yield findings.warning(
                f"chat_server[{index}].{setting}", message, "check its spelling on the page"
            )
    message = (
        f"{server.name}: app_dbid {identity or 'unknown'}, process_os_pid {page.process_os_pid or 'unknown'}"
    )
    yield findings.ok(f"chat_server[{index}]", message)


def same_server(settings: Settings, pages: dict[int, HealthPage]) -> Iterator[Finding]:
    """Two entries that turn out to be one Chat Server: the loss of either would be taken for the other's."""
    first: dict[str, str] = {}
    for index, page in sorted(pages.items()):
        server = settings.chat_servers[index]
        identity = server.app_dbid or page.app_dbid
        if identity and first.setdefault(identity, server.name) != server.name:
            message = f"{server.name} has the app_dbid {identity}, as {first[identity]} has"
            advice = "give each entry the health page of its own Chat Server"
            yield findings.error(f"chat_server[{index}]", message, advice)
