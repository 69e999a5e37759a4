"""Lines that a flood does not multiply, and that tell all of it."""

from __future__ import annotations

import asyncio

from conftest import Events, FakeClock, soon

from asyncchatd.log import Event, Gathered


def add(gathered: Gathered, count: int, every: float) -> None:
    for number in range(count):
        gathered.add("silent", Event.CONNECTIONS_FULL, every, client=f"192.0.2.{number}")


async def test_the_rest_is_told_when_its_time_is_over_though_nothing_more_comes(events: Events) -> None:
    gathered = Gathered()
    add(gathered, 200, every=0.05)

    async def all_told() -> None:
        while len(events.of(Event.CONNECTIONS_FULL)) < 2:  # noqa: ASYNC110 - lines tell only those who ask
            await asyncio.sleep(0.01)

    await soon(all_told())
    first, rest = events.of(Event.CONNECTIONS_FULL)
    assert (first["count"], first["client"]) == (1, "192.0.2.0")
    assert (rest["count"], rest["client"]) == (199, "192.0.2.199")


async def test_the_rest_is_told_at_the_end(events: Events) -> None:
    gathered = Gathered(FakeClock())
    add(gathered, 5, every=3_600)
    gathered.tell_rest()
    gathered.tell_rest()
    assert [line["count"] for line in events.of(Event.CONNECTIONS_FULL)] == [1, 4]
