"""A Chat Server is lost: how soon its sessions are due in PostgreSQL and in SQLite, and how long pushes wait.

Both stores are used as the daemon uses them: one portion of sessions is marked after the other, a worker claims what is
due and settles it, pushes come in and take effect. `python -m bench.nodes --lost`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from asyncchatd.model import Cause, Claim, Ms, Registration, Settlement, TokenNews, Verdict
from asyncchatd.stores import Store
from asyncchatd.stores.restoring import PORTION
from bench.growth import push
from bench.measure import median
from bench.restoration import tokens

ALIAS = "117"
PUSHES = 500
"""A second."""
AT_ONCE = 100
"""Sessions that the worker claims and settles, every `TURN_SECONDS`: 2,000 a second."""
TURN_SECONDS = 0.05
ABSORB_SECONDS = 0.02
"""Between two portions of pushes that take effect. It is a pace and waits for nothing; a daemon is woken by pushes."""
INTERVAL_MS = 1_800_000.0
CALM_SECONDS = 3.0


class Lost(NamedTuple):
    """What one loss came to."""

    first: float
    """Seconds until the first of its sessions could be claimed."""
    all: float
    """Seconds until all were marked."""
    calm: float
    """Milliseconds in which 99 of 100 pushes were kept before."""
    meanwhile: float
    """The same, until all were marked."""


WORDS = {
    "first": "the first is due after, s",
    "all": "all are due after, s",
    "calm": "pushes before, p99, ms",
    "meanwhile": "pushes meanwhile, p99, ms",
}


def told(one: Lost) -> list[str]:
    return [f"{WORDS[name]} {value:.2f}" for name, value in one._asdict().items()]


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


async def fill(store: Store, sessions: int, now: Ms) -> None:
    """So many sessions of the Chat Server that is lost."""
    for start in range(0, sessions, 500):
        portion = [
            Registration(tokens(each, ALIAS), "customer-support", f"device-{each}", 3)
            for each in range(start, start + 500)
        ]
        await store.register(portion, now=now, spread_ms=INTERVAL_MS)


async def lost(store: Store, sessions: int, now: Callable[[], Ms]) -> Lost:
    """Lose the Chat Server once."""
    took: list[tuple[float, float]] = []
    tasks = [
        asyncio.create_task(work)
        for work in (send(store, sessions, now, took), absorb(store, now), ping(store, now))
    ]
    try:
        await asyncio.sleep(CALM_SECONDS)
        began = time.perf_counter()
        begun = await store.begin_restoration(
            alias=ALIAS, server="chat-1", cause=Cause.UNREACHABLE, now=now()
        )
        portions = []
        more = True
        while more:
            more = await store.mark(begun.id, limit=PORTION, now=now())
            portions.append(time.perf_counter() - began)
        calm = [each for at, each in took if at + each < began]
        meanwhile = [each for at, each in took if at + each >= began]
        return Lost(portions[0], portions[-1], _p99(calm), _p99(meanwhile))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def send(store: Store, sessions: int, now: Callable[[], Ms], took: list[tuple[float, float]]) -> None:
    """Pushes at a steady rate, each timed."""

    async def one(number: int) -> None:
        sent = time.perf_counter()
        await store.take_push(push(number), now=now())
        took.append((sent, time.perf_counter() - sent))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for count in range(1_000_000):
            await asyncio.sleep(max(0.0, began + count / PUSHES - time.perf_counter()))
            group.create_task(one(random.randrange(sessions)))


async def absorb(store: Store, now: Callable[[], Ms]) -> None:
    while True:
        await store.absorb(500, now=now())
        await asyncio.sleep(ABSORB_SECONDS)


async def ping(store: Store, now: Callable[[], Ms]) -> None:
    """Claim and settle what is due, as fast as a rate of 2,000/s."""
    before: Sequence[Claim] = ()
    while True:
        turn = time.perf_counter()
        claims = await store.claim(now=now(), limit=AT_ONCE, lease_ms=15_000)
        if before:
            await store.settle([answered(claim, now()) for claim in before])
        before = claims
        await asyncio.sleep(max(0.0, turn + TURN_SECONDS - time.perf_counter()))


def answered(claim: Claim, now: Ms) -> Settlement:
    due = now + INTERVAL_MS * random.uniform(0.9, 1)
    return Settlement(claim, Verdict.ANSWERED, due, now, now, TokenNews(alias=claim.tokens.alias))


def _p99(took: Sequence[float]) -> float:
    return sorted(took)[len(took) * 99 // 100] * 1e3 if took else float("nan")
