"""The history: a moment each second, whoever looks, by a clock that nobody sets, and no bar above a limit that held."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from conftest import FakeClock, settle

from asyncchatd.control.shapes import SENT, Moment
from asyncchatd.control.status.history import KEPT, History, counted
from asyncchatd.gms import Pacer


@dataclass
class Counts:
    """What was done so far, as the metrics would say, and the limit."""

    limit: float = 200.0
    done: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*SENT, "pushes", "told"), 0.0))

    def history(self, clock: FakeClock) -> History:
        return History(clock, lambda: self.limit, lambda: self.done)


@pytest.fixture
def counts() -> Counts:
    return Counts()


def test_what_the_metrics_count_has_the_names_that_the_api_tells() -> None:
    assert list(counted()) == [*SENT, "pushes", "told"]


def sent(moment: Moment) -> float:
    return sum(moment.rates[name] or 0.0 for name in SENT)


async def test_it_takes_a_moment_each_second_and_keeps_a_quarter_of_an_hour(
    counts: Counts, clock: FakeClock
) -> None:
    history = counts.history(clock)
    task = asyncio.create_task(history.run())
    await clock.advance(KEPT + 20)
    moments, taken = history.after(0)
    assert [each.uptime_seconds for each in moments] == list(range(21, KEPT + 21))
    assert {each.seconds for each in moments} == {1.0}
    assert taken == KEPT + 20
    counts.done["restore"] += 50
    await clock.advance(1)
    [newest], taken = history.after(taken)
    assert (newest.rates["restore"], newest.max_rate) == (50.0, 200.0)
    assert history.after(taken) == ([], taken)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_stall_is_one_moment_of_its_length_and_the_next_ends_on_a_whole_second(
    counts: Counts, clock: FakeClock
) -> None:
    history = counts.history(clock)
    task = asyncio.create_task(history.run())
    await clock.advance(2)
    counts.done["keepalive"] += 32
    clock.stall(3.2)
    await clock.advance(0)
    await clock.advance(2)
    moments, _ = history.after(0)
    assert [(each.uptime_seconds, each.seconds) for each in moments] == [
        (1, 1),
        (2, 1),
        (5.2, 3.2),
        (6, 0.8),
        (7, 1),
    ]
    assert moments[2].rates["keepalive"] == 10.0
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_who_sets_the_clock_moves_no_moment(counts: Counts, clock: FakeClock) -> None:
    history = counts.history(clock)
    for step in (0, -3_600_000, 7_200_000):
        clock.set_wall(step)
        await clock.advance(1)
        history.take()
    moments, _ = history.after(0)
    assert [each.uptime_seconds for each in moments] == [1, 2, 3]
    assert [each.seconds for each in moments] == [1, 1, 1]


async def test_each_moment_has_the_limit_that_was_in_force(counts: Counts, clock: FakeClock) -> None:
    history = counts.history(clock)
    for limit, done in ((200, 190), (50, 180), (50, 50), (100, 90)):
        counts.limit = limit
        counts.done["restore"] += done
        await clock.advance(1)
        history.take()
    moments, _ = history.after(0)
    assert [each.max_rate for each in moments] == [200, 200, 50, 100], (
        "in the second of the change the higher one was"
    )
    assert all(sent(each) <= each.max_rate for each in moments)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 3.0, 7.5, 200.0])
async def test_nothing_stands_above_a_limit_that_the_pacer_kept(
    counts: Counts, clock: FakeClock, rate: float
) -> None:
    """However late the look is: requests at the full rate fill the moments to the limit and no further."""
    counts.limit = rate
    history, pacer = counts.history(clock), Pacer(rate, clock)

    async def send() -> None:
        while True:
            await pacer.turn()
            counts.done["restore"] += 1

    sending = asyncio.create_task(send())
    await settle()
    late = random.Random(7)
    for _ in range(60):
        await clock.advance(1 + late.uniform(-0.05, 0.05))
        history.take()
    moments, _ = history.after(0)
    assert all(sent(each) <= rate + 0.01 for each in moments)
    shown = sum(sent(each) * each.seconds for each in moments)
    assert counts.done["restore"] - 1 <= shown + 0.5
    assert shown <= counts.done["restore"] + 0.5
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending


async def test_what_was_above_the_limit_is_shown_above_it(counts: Counts, clock: FakeClock) -> None:
    history = counts.history(clock)
    counts.done["restore"] += 300
    await clock.advance(1)
    history.take()
    [moment], _ = history.after(0)
    assert moment.rates["restore"] == 300.0


async def test_its_memory_is_bounded(counts: Counts, clock: FakeClock) -> None:
    history = counts.history(clock)

    async def pass_by() -> None:
        for _ in range(KEPT):
            await clock.advance(1.0001)
            counts.done = {name: count + random.uniform(0, 9) for name, count in counts.done.items()}
            history.take()

    tracemalloc.start()
    try:
        await pass_by()
        first, _ = tracemalloc.get_traced_memory()
        await pass_by()
        second, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(first, second) < 600_000, "bytes, as said where KEPT is"
    assert len(history.after(0)[0]) == KEPT
