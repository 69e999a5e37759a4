"""Pushes without end while one node after the other is killed: what was answered 200 is in the database, and a request
follows it. A round of the soak of several nodes by itself.

Nothing else makes a chat be asked for: keepalives come once an hour, and Chat Server sends no push again. So a request
that comes between two pushes of a chat is that of the first one.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import aiohttp

from asyncchatd.rehearsing.trial import meanwhile
from asyncchatd.standin.plant.measure import percentiles
from asyncchatd.standin.pushes import SentPush

from .site import LEASE_SECONDS, Soak
from .witness import DatabaseWitness, PlantWitness

CHATS = 6_000
INTERVAL_SECONDS = 3_600.0
PUSHES = 100_000
SHARE = 0.6
"""So many pushes a second, of the rate, besides those of every round. A chat has its next one when the lease of a dead
node is long over."""

CONNECTIONS = 20
JSON = {"Content-Type": "application/json"}

MOST_UNANSWERED, MOST_UNASKED = 40, 300
"""Nothing more is pushed while so many pushes are not answered, and so many chats not asked for."""

PAUSE_SECONDS = 0.05
KILLS = 6
QUIET_SECONDS = 3.0
"""Every other time nothing is pushed for so long from the kill on: the others must find by themselves what is left."""

WITHIN_SECONDS = 2.0
"""The journal of a dead node is absorbed in this time, and what it held is pinged so soon after its lease."""

AWAY_SECONDS = LEASE_SECONDS + 2 * WITHIN_SECONDS


class _Gms:
    """What sends the pushes, to any node by chance: a balancer would take as long again as all the rest of the plant.
    Where a node cannot be reached another one gets the push."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._outbox: asyncio.Queue[SentPush] = asyncio.Queue()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """It takes the place of the plant's own meanwhile."""
        plant = self._soak.plant.plant
        before, plant.send_push = plant.send_push, self._outbox.put_nowait
        timeout = aiohttp.ClientTimeout(total=plant.settings.push_timeout)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            meanwhile(*(self._send(http) for _ in range(CONNECTIONS))),
        ):
            yield
        plant.send_push = before

    async def _send(self, http: aiohttp.ClientSession) -> None:
        while True:
            push = await self._outbox.get()
            self._soak.plant.plant.push_done(delivered=await self._is_taken(http, push), push=push)

    async def _is_taken(self, http: aiohttp.ClientSession, push: SentPush) -> bool:
        nodes = self._soak.chance.sample(self._soak.nodes, len(self._soak.nodes))
        for node in nodes:
            try:
                async with http.post(node.push_url, data=push.body, headers=JSON) as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError, OSError):
                return False
        return False


class _Agents:
    """Who writes; `quiet` while nobody does. No more than the plant gets out, and the nodes can ask for."""

    def __init__(self, soak: Soak, seen: PlantWitness) -> None:
        self._plant = soak.plant.plant
        self._seen = seen
        self._per_second = SHARE * soak.rate
        self.quiet = False

    async def write(self) -> None:
        """Until it is cancelled."""
        owed, at = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            now = time.monotonic()
            owed, at = owed + self._per_second * min(now - at, 2 * PAUSE_SECONDS), now
            if (
                self.quiet
                or self._seen.unanswered > MOST_UNANSWERED
                or len(self._seen.unasked) > MOST_UNASKED
            ):
                owed = 0.0
            for session in self._plant.chats.some(int(owed)):
                self._plant.say(session, "How may I help you?")
            owed -= int(owed)


async def pushes(soak: Soak, count: int = PUSHES) -> None:
    """a hundred thousand pushes are answered while one node after the other is killed"""
    plant = PlantWitness(soak.plant.plant)
    database = DatabaseWitness(soak.database)
    agents = _Agents(soak, plant)
    began = time.time()
    await soak.during.enter_async_context(database.watching())
    await soak.during.enter_async_context(_Gms(soak).sending())
    await soak.during.enter_async_context(plant.watching())
    async with meanwhile(agents.write()):
        for kill in range(KILLS):
            await _answered(plant, count * (kill + 0.5) / KILLS)
            await _kill(soak, plant, database, agents, quiet=bool(kill % 2))
        await _answered(plant, count)
    soak.figures["pushes_per_second"] = round(len(plant.pushes) / (time.time() - began))
    soak.afterwards.append(partial(_judge, soak, plant, database))


async def _answered(plant: PlantWitness, count: float) -> None:
    while len(plant.pushes) < count:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(PAUSE_SECONDS)


async def _kill(
    soak: Soak, plant: PlantWitness, database: DatabaseWitness, agents: _Agents, *, quiet: bool
) -> None:
    """A node is killed, and started again when the others have done what was left to it."""
    node = soak.chance.choice(soak.nodes)
    agents.quiet = quiet
    killed_at = time.time()
    await soak.kill(node)
    held = await database.held_by(node)
    await asyncio.sleep(QUIET_SECONDS)
    agents.quiet = False
    await asyncio.sleep(max(0.0, killed_at + AWAY_SECONDS - time.time()))
    await node.start()
    waited, absorbed_after = await database.absorbed_after(killed_at)
    pinged_after = max((plant.first_after(chat, killed_at) - killed_at for chat in held), default=0.0)
    late = 2 * soak.plant.plant.report().longest_pause_seconds
    soak.figures["held"] = soak.figures.get("held", 0) + len(held)
    soak.figures["in_the_journal"] = soak.figures.get("in_the_journal", 0) + waited
    for name, seconds, most in (
        ("absorbed_after", absorbed_after, WITHIN_SECONDS),
        ("pinged_after", pinged_after, LEASE_SECONDS + WITHIN_SECONDS),
    ):
        soak.figures[name] = round(max(soak.figures.get(name, 0.0), seconds), 2)
        soak.broken += [f"{name} {seconds:.1f} s, at most {most:g}"] * (seconds > most + late)


class Followed(NamedTuple):
    """What came after pushes that were answered 200."""

    without: int
    """So many no request followed,"""
    overtaken: int
    """and so many none before the chat's next push."""
    waited: Sequence[float]
    """Seconds from each answer to the request, 0 where that came before the answer was read."""


def followed(seen: PlantWitness) -> Followed:
    """What came after the pushes that were answered."""
    without = overtaken = 0
    waited = []
    for push in seen.pushes:
        request = seen.first_after(push.chat_id, push.sent_at)
        pushed = seen.pushed_at[push.chat_id]
        place = bisect_right(pushed, push.sent_at)
        if request == float("inf"):
            without += 1
            continue
        overtaken += place < len(pushed) and pushed[place] <= request
        waited.append(max(0.0, request - push.answered_at))
    return Followed(without, overtaken, waited)


async def _judge(soak: Soak, seen: PlantWitness, database: DatabaseWitness) -> None:
    missing = (Counter(push.digest for push in seen.pushes) - await database.journalled()).total()
    found = followed(seen)
    p50, p99, most = percentiles(found.waited, 0.5, 0.99, 1.0)
    soak.figures |= {
        "answered": len(seen.pushes),
        "missing": missing,
        "without_a_request": found.without,
        "overtaken": found.overtaken,
        "until_the_request_p50": round(p50 or 0.0, 2),
        "until_the_request_p99": round(p99 or 0.0, 2),
        "until_the_request_max": round(most or 0.0, 2),
    }
    for count, what in (
        (missing, "never came into the journal"),
        (found.without, "no request followed"),
        (found.overtaken, "no request followed before the chat's next one"),
    ):
        soak.broken += [f"{count} pushes were answered 200, and {what}"] * bool(count)
