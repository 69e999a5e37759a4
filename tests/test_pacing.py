"""How fast GMS may be asked: the rate is never passed, and what was missed is not made up for in a burst."""

from __future__ import annotations

import asyncio
from bisect import bisect_left

import pytest
from conftest import FakeClock, settle
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asyncchatd.pacing import InFlight, Pacer


class LateClock(FakeClock):
    """A clock whose sleeps take longer than asked for, as timers do under load."""

    def __init__(self, lateness: list[float]) -> None:
        super().__init__(jumping=True)
        self._lateness = lateness
        self._sleeps = 0

    async def sleep(self, seconds: float) -> None:
        late = self._lateness[self._sleeps % len(self._lateness)] if self._lateness else 0.0
        self._sleeps += 1
        await super().sleep(seconds + late)


def busiest(grants: list[float], seconds: float = 1.0) -> int:
    """The most grants in any window of that length."""
    return max(bisect_left(grants, grant + seconds) - index for index, grant in enumerate(grants))


async def take(pacer: Pacer, clock: FakeClock, count: int) -> list[float]:
    grants = []
    for _ in range(count):
        await pacer.turn()
        grants.append(clock.monotonic())
    return grants


@pytest.mark.parametrize("rate", [1, 3, 7, 55, 200, 1000])
async def test_no_second_sees_more_than_the_rate(rate: float) -> None:
    clock = FakeClock(jumping=True)
    grants = await take(Pacer(rate, clock), clock, int(rate * 3) + 2)
    assert busiest(grants) <= rate


@given(
    rate=st.integers(min_value=1, max_value=400),
    lateness=st.lists(st.floats(min_value=0, max_value=2) | st.just(0.0), max_size=20),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_no_second_sees_more_than_the_rate_however_late_timers_are(rate: int, lateness: list[float]) -> None:
    clock = LateClock(lateness)
    grants = asyncio.run(take(Pacer(rate, clock), clock, rate * 2 + 5))
    assert busiest(grants) <= rate


@given(
    rate=st.integers(min_value=1, max_value=300),
    idle=st.lists(st.floats(min_value=0, max_value=3), min_size=1, max_size=10),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_idle_time_saves_nothing_up_for_a_burst(rate: int, idle: list[float]) -> None:
    async def bursts() -> list[float]:
        clock = FakeClock(jumping=True)
        pacer = Pacer(rate, clock)
        grants = []
        for pause in idle:
            grants += await take(pacer, clock, rate)
            await clock.sleep(pause)
        return grants

    assert busiest(asyncio.run(bursts())) <= rate


@pytest.mark.parametrize("rate", [2, 10, 55, 200])
async def test_turns_are_spaced_evenly(rate: float) -> None:
    clock = FakeClock(jumping=True)
    grants = await take(Pacer(rate, clock), clock, int(rate) * 2)
    gaps = [later - earlier for earlier, later in zip(grants, grants[1:], strict=False)]
    assert min(gaps) >= 1 / rate
    assert max(gaps) <= 1.02 / rate


@pytest.mark.parametrize("rate", [20, 200, 1000])
async def test_the_rate_is_used_up(rate: float) -> None:
    """A pacer that hands out much less than it may makes every restoration longer."""
    clock = FakeClock(jumping=True)
    grants = await take(Pacer(rate, clock), clock, int(rate) * 3 + 1)
    assert grants[-1] - grants[0] <= 3 * 1.02


async def test_a_late_turn_is_made_up_for_by_a_hundredth_of_a_second_at_most() -> None:
    clock = FakeClock(jumping=True)
    pacer = Pacer(200, clock)
    await take(pacer, clock, 50)
    await clock.sleep(5.0)  # the process stood still
    grants = await take(pacer, clock, 20)
    assert busiest(grants, 0.0001) <= 1 + 0.01 * 200
    even = (len(grants) - 1) / 200
    assert grants[-1] - grants[0] >= even - 0.01 - 1e-9


async def test_small_delays_do_not_lower_the_rate() -> None:
    clock = LateClock([0.001])
    grants = await take(Pacer(200, clock), clock, 601)
    assert grants[-1] - grants[0] <= 3 * 1.02


@pytest.mark.parametrize(("rate", "apart"), [(0.5, 2.0), (0.1, 10.0), (0.01, 100.0)])
async def test_a_rate_below_one_means_seconds_between_two_turns(rate: float, apart: float) -> None:
    clock = FakeClock(jumping=True)
    grants = await take(Pacer(rate, clock), clock, 4)
    gaps = [later - earlier for earlier, later in zip(grants, grants[1:], strict=False)]
    assert all(apart <= gap <= apart * 1.02 for gap in gaps)


@pytest.mark.parametrize(("rate", "seconds", "most"), [(2.5, 2, 5), (1.5, 2, 3), (12.25, 4, 49)])
async def test_a_broken_rate_holds_over_the_time_in_which_it_is_whole(
    rate: float, seconds: float, most: int
) -> None:
    clock = FakeClock(jumping=True)
    assert busiest(await take(Pacer(rate, clock), clock, most * 4), seconds) <= most


async def test_the_first_turn_is_at_once(clock: FakeClock) -> None:
    await Pacer(0.01, clock).turn()
    assert clock.monotonic() == 0


async def test_turns_are_first_come_first_served(clock: FakeClock) -> None:
    pacer = Pacer(10, clock)
    served: list[int] = []

    async def one(number: int) -> None:
        await pacer.turn()
        served.append(number)

    waiting = [asyncio.create_task(one(number)) for number in range(5)]
    await clock.advance(0.25)
    assert served == [0, 1, 2]
    await clock.advance(1)
    assert served == [0, 1, 2, 3, 4]
    await asyncio.gather(*waiting)


async def test_one_who_gives_up_waiting_does_not_hold_up_the_others(clock: FakeClock) -> None:
    pacer = Pacer(1, clock)
    await pacer.turn()
    impatient, patient = asyncio.create_task(pacer.turn()), asyncio.create_task(pacer.turn())
    await settle()
    impatient.cancel()
    await clock.advance(1.02)
    assert patient.done()
    assert impatient.cancelled()


