"""Clocks of nodes that are set again and again: a fault of the soak of several nodes, and its judge."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

from asyncchatd.stores.rules import KEEPALIVE_JITTER

from .site import CLOCKS, Soak
from .witness import ClaimOf, DatabaseWitness, PlantWitness

STEPS = 120
STEP_SECONDS = 0.5
"""So long each wrong clock goes on."""

LONGEST_SECONDS = 7_200.0

EARLY_SECONDS = 0.1
"""No session is pinged sooner before it is due."""


async def clocks(soak: Soak) -> None:
    """a Chat Server is lost while the clocks of all nodes are set, by up to two hours and again and again

    No session is pinged before it is due: by the due time that a trigger in the database sees when it is claimed, and
    by the plant alone, where no push and no loss came between two of its requests.
    """
    seen = PlantWitness(soak.plant.plant)
    async with DatabaseWitness(soak.database).watching() as database, seen.watching():
        losing = asyncio.create_task(soak.lose_a_server())
        for _ in range(STEPS):
            soak.step(soak.chance.choice(soak.nodes), soak.chance.uniform(-LONGEST_SECONDS, LONGEST_SECONDS))
            await asyncio.sleep(STEP_SECONDS)
        await losing
        claims = await database.claims()
    for number, node in enumerate(soak.nodes):
        soak.step(node, CLOCKS[number % len(CLOCKS)])
    _judge_by_the_database(soak, seen, claims)
    _judge_by_the_plant(soak, seen)


def early(seen: PlantWitness, claims: Mapping[str, Sequence[ClaimOf]]) -> list[float]:
    """By how many seconds each request came before its session was due, as the claim before it had it; less than 0
    where it was due. What was claimed before anybody took it down is left out."""
    found: list[float] = []
    for chat_id, requests in seen.requests_of.items():
        made = claims.get(chat_id, ())
        times = [claim.at for claim in made]
        places = ((request, bisect_right(times, request)) for request in requests)
        found += [made[place - 1].due_at - request for request, place in places if place]
    return found


def gaps(seen: PlantWitness, shortest: float) -> list[float]:
    """The seconds between two requests of a chat, the later of which can only be a keepalive: it has lost no Chat
    Server, and no push came in between, nor so shortly before that it may have been late."""
    return [
        following - request
        for chat_id, requests in seen.requests_of.items()
        if chat_id not in seen.restored
        for request, following in pairwise(requests)
        if not any(request - shortest <= at <= following for at in seen.pushed_at[chat_id])
    ]


def _judge_by_the_database(soak: Soak, seen: PlantWitness, claims: Mapping[str, Sequence[ClaimOf]]) -> None:
    found = early(seen, claims)
    soak.figures |= {
        "requests_judged": len(found),
        "requests_not_judged": len(seen.requests) - len(found),
        "early_by": round(max(found), 3),
        "claimed_early_by": round(max(each.due_at - each.at for of in claims.values() for each in of), 3),
    }
    count = sum(each > EARLY_SECONDS for each in found)
    soak.broken += [f"{count} sessions were pinged up to {max(found):.2f} s before they were due"] * bool(
        count
    )


def _judge_by_the_plant(soak: Soak, seen: PlantWitness) -> None:
    """A keepalive is due a share of the interval before its end at the earliest, from the answer before."""
    shortest = soak.interval * (1 - KEEPALIVE_JITTER)
    found = gaps(seen, shortest)
    least = min(found, default=shortest)
    soak.figures |= {"keepalives_judged": len(found), "shortest_gap": round(least, 2)}
    count = sum(gap < shortest - EARLY_SECONDS for gap in found)
    soak.broken += [f"{count} keepalives came up to {shortest - least:.2f} s too soon"] * bool(count)
