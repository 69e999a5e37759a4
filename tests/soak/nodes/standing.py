"""A node that stands still in the middle of a restoration, for shorter than `hold` and for longer.

Faults of the soak of several nodes, and their judge."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Set
from contextlib import suppress
from typing import NamedTuple

from asyncchatd.rehearsing.together.node import Node
from asyncchatd.rehearsing.trial import until

from .site import HOLD_SECONDS, Soak
from .witness import DatabaseWitness, PlantWitness

LONG_STOPPED_SECONDS = 60.0
PAST_HOLD_SECONDS = HOLD_SECONDS + 30.0

TIMES = 3

IDEAL = 1.10
"""In so many times the shortest time possible the others restore what the stopped node does not hold."""

LONG_ENOUGH_SECONDS = 5.0
"""A restoration that takes less is over before it can be told how it went."""

BEGUN = 0.1
"""The node is stopped when this share of the Chat Server's chats is restored, or up to three times as much."""

NOTICE_SECONDS = 10.0
WOKEN_SECONDS = 15.0
"""So long a node is looked at that goes on: all that it held is settled, or was given back."""

IN_SOCKETS_SECONDS = 10.0
LONG_PATIENCE_SECONDS = 300.0
LATENCY_SECONDS = 0.1
"""Of GMS: so a node has requests on their way when it is stopped."""

LEASE_LOST = "lease_lost"
OF_ITSELF = ("loop_stalled", "self_suspected", "store_unwritable", "node_returned")
"""What a node tells of its own standing still; the rest would be of chats, of GMS or of Chat Servers."""


async def stopped_long(soak: Soak) -> None:
    """three times a Chat Server is lost, and a node stands still for a minute in the middle of it

    The others restore what it does not hold as fast as the rate allows. What it holds waits for it.
    """
    ratios = []
    for _ in range(TIMES):
        async with PlantWitness(soak.plant.plant).watching() as seen:
            ratios.append(await _in_a_restoration(soak, seen, LONG_STOPPED_SECONDS))
    soak.figures["of_the_ideal_time"] = round(max(ratios), 3)


async def stopped_past_hold(soak: Soak) -> None:
    """a Chat Server is lost, and a node stands still in the middle of it for longer than `hold`

    What it holds the others ping then, with the keys that they know: whose new key lies in a socket of the node is
    thrown out. When it goes on it tells that it has lost what it held, and nothing else is amiss.
    """
    plant = soak.plant.plant
    before = {"restoration_window": plant.settings.restoration_window, "latency": plant.settings.latency}
    plant.change({"restoration_window": LONG_PATIENCE_SECONDS, "latency": LATENCY_SECONDS})
    async with PlantWitness(plant).watching() as seen:
        await _in_a_restoration(soak, seen, PAST_HOLD_SECONDS)
    plant.change(before)


async def _in_a_restoration(soak: Soak, seen: PlantWitness, seconds: float) -> float:
    """A Chat Server is lost, and a node stands still in the middle. In how many times the shortest time possible all
    was restored that it did not hold."""
    plant = soak.plant.plant
    chats, before = _most_chats(soak), plant.report().restored
    begun = chats * BEGUN * soak.chance.uniform(1.0, 3.0)
    losing = asyncio.create_task(soak.lose_a_server())
    await until(lambda: plant.report().restored - before >= begun, NOTICE_SECONDS)
    node = soak.chance.choice(soak.nodes)
    begins = node.log.stat().st_size
    soak.pause(node)
    paused = time.time()
    held = await DatabaseWitness(soak.database).held_by(node)
    await asyncio.sleep(max(0.0, paused + seconds - time.time()))
    node.go_on()
    in_sockets = paused + IN_SOCKETS_SECONDS  # until then the plant has read what the node had sent
    asked = {chat for chat, claimed_at in held.items() if seen.first_after(chat, claimed_at) < in_sockets}
    soak.figures["held"] = max(soak.figures.get("held", 0), len(held))
    soak.figures["asked_for"] = max(soak.figures.get("asked_for", 0), len(asked))
    is_past_hold = seconds > HOLD_SECONDS
    if is_past_hold:
        soak.risked |= asked
    ratio = _of_the_ideal(soak, seen, held.keys())
    await losing
    if is_past_hold:
        await asyncio.sleep(WOKEN_SECONDS)
        _judge_what_it_says(soak, node, begins, held.keys())
    return ratio


def _most_chats(soak: Soak) -> int:
    chats = Counter(
        session.process.server.name for session in soak.plant.plant.sessions.values() if session.ended is None
    )
    return min(count for _, count in chats.most_common(2))


class Restoring(NamedTuple):
    """A restoration, but for what a stopped node held."""

    seconds: float
    requests: int
    """All that came meanwhile, whatever for."""


def restoring(seen: PlantWitness, held: Set[str]) -> Restoring:
    """From the first request that restored a chat until the last of one that the stopped node did not hold."""
    others = [at for chat_id, at in seen.restored.items() if chat_id not in held]
    begin, end = min(others, default=0.0), max(others, default=0.0)
    return Restoring(end - begin, seen.count(begin, end))


def _of_the_ideal(soak: Soak, seen: PlantWitness, held: Set[str]) -> float:
    """As many requests as came in that time can come in less."""
    found = restoring(seen, held)
    ideal = max(found.requests, 1) / soak.rate
    ratio = found.seconds / ideal
    soak.figures["restoring_seconds"] = round(max(soak.figures.get("restoring_seconds", 0), found.seconds), 1)
    late = 2 * soak.plant.plant.report().longest_pause_seconds / ideal
    soak.broken += [f"restored in {ratio:.2f} of the ideal time of {ideal:.1f} s"] * (
        ideal >= LONG_ENOUGH_SECONDS and ratio > IDEAL + late
    )
    return ratio


def _judge_what_it_says(soak: Soak, node: Node, begins: int, held: Set[str]) -> None:
    lost, others = [], Counter[str]()
    for line in node.log.read_bytes()[begins:].splitlines():
        with suppress(ValueError):
            said = json.loads(line)
            if said["event"] == LEASE_LOST:
                lost.append(said["chat_id"])
            elif said["level"] not in ("debug", "info") and said["event"] not in OF_ITSELF:
                others[said["event"]] += 1
    soak.figures["leases_lost"] = len(lost)
    soak.broken += [f"{node.name} said besides {LEASE_LOST}: {dict(others)}"] * bool(others)
    strange = set(lost) - held
    soak.broken += [f"{len(strange)} leases were lost of what it did not hold"] * bool(strange)
