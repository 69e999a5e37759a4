"""A round of the soak of several nodes: a fault, calm, and which promises were broken. The plant is the judge."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

from asyncchatd.control import shapes
from asyncchatd.control.clients.calls import ClientError, read
from asyncchatd.control.clients.client import ControlClient
from asyncchatd.rehearsing.trial import meanwhile, most_requests, rules
from asyncchatd.standin import Report

from .faults import Fault
from .site import Soak

CALM_SECONDS = 120.0
POLL_SECONDS = 0.05
MESSAGES = 0.1
"""That agents write, of the rate."""

WRITE_SECONDS = 0.1
MOST_SECONDS = 1.0
"""A statement may take so long at most, and a transaction be open."""

STOPPED_OPEN_SECONDS = 6.0
"""So long may the transaction be open of a node that stands still or is cut off in the middle of it: the server ends it
after 3 s, and where it does not the others do by then, or half a second later."""

LISTED = 500
"""Restorations that are asked for."""


class Restored(NamedTuple):
    """A restoration on record."""

    server: str | None
    cause: str


async def carry_out(soak: Soak, fault: Fault) -> tuple[dict[str, float], list[str]]:
    """One round: figures, and which promises were broken."""
    plant = soak.plant.plant
    plant.reset_report()
    soak.watch.begin()
    soak.losses.clear()
    soak.broken, soak.figures, soak.stands_still = [], {}, False
    soak.risked, soak.during, soak.afterwards = set(), AsyncExitStack(), []
    logs = {node: node.log.stat().st_size for node in soak.nodes}
    before = await _restorations(soak)
    began = time.monotonic()
    async with soak.during:
        async with meanwhile(agents_write(soak)):
            await fault(soak)
            await asyncio.sleep(2)
        is_calm = await calm(soak)
        for judge in soak.afterwards:
            await judge()
    report = plant.report()
    broken = [*soak.broken, *judged(soak, report, is_calm=is_calm), *_of_the_database(report, soak)]
    restorations = {
        number: found for number, found in (await _restorations(soak)).items() if number not in before
    }
    broken += _of_the_losses(list(restorations.values()), soak)
    for node in soak.nodes:
        for event in ("daemon_failed", "ping_failed"):
            broken += [f"{node.name} said {event}"] * bool(node.said(event, logs[node]))
        broken += [f"{node.name}: a traceback"] * (b"Traceback" in node.log.read_bytes()[logs[node] :])
    figures = {
        "seconds": round(time.monotonic() - began, 1),
        "requests": report.requests,
        "most_in_a_second": report.peak_requests_per_second,
        "pause": round(report.longest_pause_seconds, 2),
        "restored": report.restored,
        "restorations": len(restorations),
        "without_server_p95": round(report.without_server_seconds.p95 or 0, 2),
        "without_server_max": round(report.without_server_seconds.max or 0, 2),
        "pushes": report.pushes_sent,
        "pushes_failed": report.pushes_failed,
        "wrong_keys": report.wrong_key_requests,
        "forgiven": report.forgiven_key_requests,
        "slowest_statement": round(soak.watch.slowest, 2),
        "longest_transaction": round(soak.watch.longest_open, 2),
        **soak.figures,
    }
    if soak.risked:
        figures["thrown_out_of_a_stopped_node"] = _thrown_out(soak, soak.risked)
    return figures, broken


def judged(soak: Soak, report: Report, *, is_calm: bool) -> list[str]:
    """The promises that were broken by what the plant saw."""
    load = most_requests(report, soak.rate)
    unanswered = sum(
        session.push_taken and session.ended is None for session in soak.plant.plant.sessions.values()
    )
    broken = [f"{name}: {count}" for name, count in rules(report).items() if count]
    of_a_stopped_node = _thrown_out(soak, soak.risked)
    wrong, lost = (count - of_a_stopped_node for count in (report.wrong_key_requests, report.sessions_lost))
    broken += [f"wrong keys: {wrong}"] * bool(wrong)
    broken += [f"lost: {lost} ({report.lost_by_cause})"] * bool(lost)
    broken += [f"most in a second: {load}"] * (not load.kept)
    broken += ["not calm"] * (not is_calm)
    return broken + [f"{unanswered} pushes that were answered 200 and that no request followed"] * bool(
        unanswered
    )


def _thrown_out(soak: Soak, chats: Collection[str]) -> int:
    return sum(soak.plant.plant.sessions[chat_id].ended == "wrong_key" for chat_id in chats)


def _of_the_database(report: Report, soak: Soak) -> list[str]:
    watch = soak.watch
    most = MOST_SECONDS + 2 * report.longest_pause_seconds  # who stands still here stands still there
    broken = [f"{watch.deadlocks} deadlocks"] * bool(watch.deadlocks)
    longest = STOPPED_OPEN_SECONDS if soak.stands_still else most
    broken += [f"a transaction was open for {watch.longest_open:.1f} s ({watch.open})"] * (
        watch.longest_open > longest
    )
    if watch.slowest > most:
        broken += [f"a slow statement: {line}" for line in watch.slow[:5]]
    return broken


def _of_the_losses(restorations: list[Restored], soak: Soak) -> list[str]:
    """Each loss is the reason for one restoration, and the process that comes in its place for one more at most: who
    has not seen the loss sees that it is another one."""
    broken = []
    for name in sorted({each.server or "" for each in restorations} | soak.losses.keys()):
        causes = Counter(each.cause for each in restorations if each.server == name)
        lost = soak.losses[name]
        if not lost <= causes.total() or any(count > lost for count in causes.values()):
            broken.append(f"{name} was lost {lost} times, and there are restorations of it: {dict(causes)}")
    return broken


async def _restorations(soak: Soak) -> dict[int, Restored]:
    """Those on record."""
    for node in soak.nodes:
        with suppress(ClientError):
            async with ControlClient(node.control) as control:
                found = read(shapes.Restorations, await control.restorations(LISTED))
                return {each.id: Restored(each.server, each.cause) for each in found.restorations}
    return {}


async def agents_write(soak: Soak) -> None:
    """Agents write to customers, until it is cancelled."""
    owed = 0.0
    while True:
        await asyncio.sleep(WRITE_SECONDS)
        owed += MESSAGES * soak.rate * WRITE_SECONDS
        for session in soak.plant.plant.chats.some(int(owed)):
            soak.plant.plant.say(session, "How may I help you?")
        owed -= int(owed)


async def calm(soak: Soak) -> bool:
    """Until no session is without a Chat Server, each push is acknowledged, and each that was taken followed by a
    request. Whether it came to that. Without resends one that was not taken is not acknowledged either."""
    deadline = time.monotonic() + CALM_SECONDS
    plant = soak.plant.plant
    while time.monotonic() < deadline:
        report = plant.report()
        taken = any(session.push_taken and session.ended is None for session in plant.sessions.values())
        owing = plant.settings.resend and report.pushes_unacknowledged
        if not (report.sessions_without_server or owing or taken):
            return True
        await asyncio.sleep(POLL_SECONDS)
    return False
