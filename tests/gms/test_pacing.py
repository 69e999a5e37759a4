"""How fast GMS may be asked: the rate is never passed, what was missed is not made up for in a burst, and
what is in flight follows what GMS can bear."""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import pytest
from conftest import Events, FakeClock, settle, soon
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.gms.pacing import (
    FAILED_AGAIN_SHARE,
    FAILED_FACTOR,
    FIRST_LIMIT,
    SLOW_FACTOR,
    SLOWER,
    TRIED_SHARE,
    VAIN_MEMORY_SECONDS,
    InFlight,
    Landing,
    Pacer,
    RetryBudget,
)
from asyncchatd.log.events import Event
from asyncchatd.stores import StoreError


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


class NotingClock(FakeClock):
    """A clock that knows how long it was asked to sleep."""

    def __init__(self) -> None:
        super().__init__(jumping=True)
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(seconds)


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


class Slots:
    """Turns that several daemons share, as a store hands them out: the next ones that nobody has."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._next = clock.monotonic()
        self.asked = 0
        self.ahead = 0.25
        """Nobody gets turns further away than so many seconds."""

    async def __call__(self, count: int, *, rate: float) -> Sequence[float]:
        self.asked += 1
        now = self._clock.monotonic()
        if self._next > now + self.ahead:
            return ()
        first = max(self._next, now)
        self._next = first + count / rate
        return [first + number / rate for number in range(count)]


async def test_two_that_share_a_rate_keep_it_together_and_use_it() -> None:
    clock = FakeClock()
    slots = Slots(clock)
    sending = [asyncio.create_task(take(Pacer(100, clock, slots), clock, 100)) for _ in range(2)]
    await clock.advance(2.1)
    assert all(task.done() for task in sending)
    grants = sorted(grant for task in sending for grant in task.result())
    assert busiest(grants) <= 100 + 1  # they come at their moments, one perhaps at each end of the second
    assert slots.asked < len(grants)


async def test_a_shared_turn_that_was_missed_is_lost_and_not_made_up_for() -> None:
    clock = FakeClock(jumping=True)
    pacer = Pacer(50, clock, Slots(clock))
    await pacer.turn()
    clock.stall(5)
    assert not pacer.try_turn()
    grants = await take(pacer, clock, 100)
    assert busiest(grants) <= 51


async def test_of_shared_turns_those_that_were_missed_are_lost_and_the_next_is_kept() -> None:
    clock = FakeClock()

    async def turns(count: int, *, rate: float) -> Sequence[float]:
        return (0.0, 1.0)

    pacer = Pacer(100, clock, turns)
    await pacer.opening()
    clock.stall(0.5)
    assert not pacer.try_turn()
    clock.stall(0.5)
    assert pacer.try_turn()


async def test_who_is_too_far_for_any_shared_turn_hears_that_none_came_in_time() -> None:
    """Each is void when it comes: another one may have it."""
    clock = FakeClock(jumping=True)

    async def turns(count: int, *, rate: float) -> Sequence[float]:
        moment = clock.monotonic()
        await clock.sleep(0.4)
        return [moment + place / rate for place in range(count)]

    pacer = Pacer(100, clock, turns)
    until = clock.monotonic() + 1.0
    assert not await soon(pacer.turn(until))
    assert until < clock.monotonic() <= until + 0.5


@pytest.mark.parametrize(("rate", "portion"), [(0.1, 1), (10, 1), (100, 2), (1000, 20)])
async def test_shared_turns_are_asked_for_a_fiftieth_of_a_second_at_once(rate: float, portion: int) -> None:
    clock = FakeClock(jumping=True)
    asked = []

    async def turns(count: int, *, rate: float) -> Sequence[float]:
        asked.append(count)
        return [clock.monotonic()] * count

    await Pacer(rate, clock, turns).turn()
    assert asked == [portion]


class FarSlots(Slots):
    """Turns of a store that takes its time, and gives none of a moment that is over then."""

    def __init__(self, clock: FakeClock, way: float) -> None:
        super().__init__(clock)
        self._way = way

    async def __call__(self, count: int, *, rate: float) -> Sequence[float]:
        await self._clock.sleep(self._way)
        return await super().__call__(count, rate=rate)


async def test_turns_that_are_used_one_by_one_are_asked_for_before_they_are_used_up() -> None:
    clock = FakeClock(jumping=True)
    slots = FarSlots(clock, way=0.008)
    grants = await take(Pacer(200, clock, slots), clock, 400)
    assert grants[-1] - grants[0] == pytest.approx(399 / 200, rel=0.02)
    assert slots.asked == pytest.approx(400 / 4, abs=2)


async def test_a_single_turn_now_and_then_asks_for_no_more() -> None:
    clock = FakeClock(jumping=True)
    slots = FarSlots(clock, way=0.008)
    pacer = Pacer(200, clock, slots)
    for asked in range(1, 5):
        await pacer.turn()
        await settle()
        assert slots.asked == asked
        clock.stall(5)


async def test_a_failure_to_get_the_next_turns_is_heard_by_who_waits_for_them_and_by_nobody_else() -> None:
    clock = FakeClock()
    slots, fails = Slots(clock), False

    async def turns(count: int, *, rate: float) -> Sequence[float]:
        if fails:
            await clock.sleep(0.001)
            raise StoreError("away")
        return await slots(count, rate=rate)

    pacer = Pacer(100, clock, turns)
    await soon(pacer.turn())
    fails = True
    second = asyncio.create_task(pacer.turn())
    await clock.advance(0.02)
    await soon(second)
    await clock.advance(0.1)
    fails = False
    third = asyncio.create_task(pacer.turn())
    await clock.advance(0.1)
    await soon(third)  # it had asked anew
    fails = True
    fourth = asyncio.create_task(pacer.turn())
    await clock.advance(0.1)
    with pytest.raises(StoreError):
        await soon(fourth)


async def test_a_daemon_that_shares_its_rate_with_nobody_asks_once() -> None:
    clock = FakeClock(jumping=True)
    asked = []

    async def nobody(count: int, *, rate: float) -> None:
        asked.append((count, rate))

    pacer = Pacer(100, clock, nobody)
    alone = Pacer(100, clock)
    assert await take(pacer, clock, 1) == await take(alone, clock, 1)
    grants = await take(pacer, clock, 300)
    assert asked == [(2, 100)]
    assert busiest(grants) <= 100


@pytest.mark.parametrize("shares", [False, True])
async def test_who_waits_for_an_opening_stands_in_nobodys_way(shares: bool) -> None:
    clock = FakeClock()
    pacer = Pacer(100, clock, Slots(clock) if shares else None)
    await soon(take(pacer, clock, 0 if shares else 1))
    taken: list[str] = []

    async def patient() -> None:
        while not pacer.try_turn():
            await pacer.opening()
        taken.append("patient")

    async def urgent() -> None:
        for _ in range(5):
            await pacer.turn()
            taken.append("urgent")

    waiting = asyncio.create_task(patient())
    await settle()
    hurrying = asyncio.create_task(urgent())
    await clock.advance(1)
    assert waiting.done()
    assert hurrying.done()
    assert sorted(taken) == ["patient", *["urgent"] * 5]
    if not shares:
        assert taken[-1] == "patient"


async def test_an_opening_asks_for_shared_turns_at_once_and_only_where_there_are_none() -> None:
    clock = FakeClock(jumping=True)
    slots = Slots(clock)
    pacer = Pacer(100, clock, slots)
    await pacer.opening()
    assert (clock.monotonic(), slots.asked) == (0, 1)
    assert pacer.try_turn()
    await pacer.opening()
    assert clock.monotonic() == pytest.approx(0.01)
    assert slots.asked == 1
    assert pacer.try_turn()


async def test_who_waits_for_an_opening_does_not_stand_in_the_line_of_those_who_get_none() -> None:
    clock = FakeClock()
    slots = Slots(clock)
    slots.ahead = -math.inf  # all taken
    pacer = Pacer(100, clock, slots)
    in_line = asyncio.create_task(pacer.turn())
    await settle()
    looking = asyncio.create_task(pacer.opening())
    await clock.advance(0.1)
    assert looking.done()
    in_line.cancel()


@pytest.mark.parametrize(("rate", "opens"), [(10, 0.1018), (0.01, 1.0)])
async def test_an_opening_is_when_the_next_turn_is_due_or_the_rate_may_be_another(
    rate: float, opens: float
) -> None:
    clock = FakeClock(jumping=True)
    clock.stall(3)
    pacer = Pacer(rate, clock)
    assert pacer.try_turn()
    await pacer.opening()
    assert clock.monotonic() == pytest.approx(3 + opens)


async def test_when_there_is_no_shared_turn_to_be_had_it_is_asked_again() -> None:
    clock = FakeClock()
    slots = Slots(clock)
    slots.ahead = -math.inf  # all taken
    waiting = asyncio.create_task(Pacer(100, clock, slots).turn())
    await clock.advance(1)
    assert not waiting.done()
    assert slots.asked > 1
    slots.ahead = 0.25
    await clock.advance(1)
    assert waiting.done()


@pytest.mark.slow
@given(
    rate=st.integers(min_value=1, max_value=400),
    lateness=st.lists(st.floats(min_value=0, max_value=2) | st.just(0.0), max_size=20),
)
def test_no_second_sees_more_than_the_rate_however_late_timers_are(rate: int, lateness: list[float]) -> None:
    clock = LateClock(lateness)
    grants = asyncio.run(take(Pacer(rate, clock), clock, rate * 2 + 5))
    assert busiest(grants) <= rate


@pytest.mark.slow
@given(
    rate=st.integers(min_value=1, max_value=300),
    idle=st.lists(st.floats(min_value=0, max_value=3), min_size=1, max_size=10),
)
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
    gaps = [later - earlier for earlier, later in pairwise(grants)]
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
    gaps = [later - earlier for earlier, later in pairwise(grants)]
    assert all(apart <= gap <= apart * 1.02 for gap in gaps)


@pytest.mark.parametrize(("rate", "seconds", "most"), [(2.5, 2, 5), (1.5, 2, 3), (12.25, 4, 49)])
async def test_a_broken_rate_holds_over_the_time_in_which_it_is_whole(
    rate: float, seconds: float, most: int
) -> None:
    clock = FakeClock(jumping=True)
    assert busiest(await take(Pacer(rate, clock), clock, most * 4), seconds) <= most


async def test_a_turn_is_slept_for_once_and_never_for_less_than_a_loop_can_count() -> None:
    """A wait cut into pieces, or one that returns at once, would keep a processor busy."""
    clock = NotingClock()
    await take(Pacer(2, clock), clock, 2)
    assert clock.slept == [pytest.approx(0.509)]
    quick = NotingClock()
    await take(Pacer(5000, quick), quick, 100)
    assert min(quick.slept) >= 0.001


async def test_a_lower_rate_holds_for_the_second_in_which_it_comes() -> None:
    clock = FakeClock(jumping=True)
    pacer = Pacer(100, clock)
    before = await take(pacer, clock, 50)
    pacer.reload(10)
    after = await take(pacer, clock, 20)
    assert busiest([*before[-10:], *after]) <= 10


async def test_another_rate_counts_from_the_last_turn() -> None:
    clock = FakeClock(jumping=True)
    pacer = Pacer(100, clock)
    grants = await take(pacer, clock, 5)
    pacer.reload(10)
    grants += await take(pacer, clock, 1)
    pacer.reload(0.5)
    grants += await take(pacer, clock, 2)
    assert [later - earlier for earlier, later in pairwise(grants[4:])] == [
        pytest.approx(1.018 / rate) for rate in (10, 0.5, 0.5)
    ]


async def test_who_waits_for_a_turn_hears_of_a_higher_rate_within_a_second(clock: FakeClock) -> None:
    pacer = Pacer(0.01, clock)
    assert pacer.try_turn()
    waiting = asyncio.create_task(pacer.turn())
    await settle()
    pacer.reload(100)
    await clock.advance(1.0)
    assert waiting.done()


def test_what_is_left_of_the_rate_is_what_nobody_took_in_the_last_second(clock: FakeClock) -> None:
    pacer = Pacer(4, clock)
    found = [pacer.left()]
    for takes in (True, True, False, False):
        assert not takes or pacer.try_turn()
        found.append(pacer.left())
        clock.stall(0.5)
    assert found == [4, 3, 2, 3, 4]
    slow = Pacer(0.5, clock)
    assert slow.try_turn()
    assert slow.left() == 0


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


async def test_a_turn_that_is_due_can_be_had_without_waiting(clock: FakeClock) -> None:
    pacer = Pacer(10, clock)
    assert pacer.try_turn()
    assert not pacer.try_turn()
    await clock.advance(0.102)
    assert pacer.try_turn()


async def test_nobody_takes_a_turn_past_those_who_wait(clock: FakeClock) -> None:
    pacer = Pacer(10, clock)
    assert pacer.try_turn()
    waiting = asyncio.create_task(pacer.turn())
    await settle()
    clock.stall(1)
    assert not pacer.try_turn()
    await clock.advance(0)
    assert waiting.done()


# -- in flight -------------------------------------------------------------------------------------------

ANSWERED, BUSY, FAILED, UNSENT = Landing.ANSWERED, Landing.BUSY, Landing.FAILED, Landing.UNSENT


def fly(
    in_flight: InFlight,
    clock: FakeClock,
    how: Landing = ANSWERED,
    took: float = 0.1,
    count: int | None = None,
) -> None:
    """As many as may be sent, and back they come after that time."""
    sent = [in_flight.sent() for _ in range(in_flight.free if count is None else count)]
    clock.stall(took)
    for at in sent:
        in_flight.landed(at, how)


def in_flight_limit(clock: FakeClock, ceiling: int = 100) -> InFlight:
    return InFlight(ceiling, 1.0, clock)


def test_what_is_free_is_the_limit_less_what_is_in_flight(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock, 3)
    assert (in_flight.limit, in_flight.free) == (3, 3)
    sent = [in_flight.sent() for _ in range(3)]
    assert (in_flight.count, in_flight.free) == (3, 0)
    in_flight.landed(sent[0], ANSWERED)
    assert in_flight.free == 1


def test_nothing_is_free_while_more_is_in_flight_than_the_limit_that_was_cut(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock)
    sent = [in_flight.sent() for _ in range(15)]
    assert in_flight.has_room()
    sent.append(in_flight.sent())
    assert not in_flight.has_room()
    clock.stall(0.1)
    for at in sent[:5]:
        in_flight.landed(at, FAILED)
    assert (in_flight.limit, in_flight.count, in_flight.free) == (8, 11, 0)


@pytest.mark.parametrize(
    ("lost", "how", "judged_at", "typical"),
    [(0, UNSENT, 12, 1800), (4, UNSENT, 9, 2000), (12, UNSENT, 3, 2400), (2, FAILED, 11, 1900)],
)
def test_a_round_is_judged_by_its_middle_once_three_quarters_of_what_is_answered_are_here(
    lost: int, how: Landing, judged_at: int, typical: int, clock: FakeClock, events: Events
) -> None:
    """Those that answer first are the quickest; what is not answered at all says nothing of how long answers take."""
    in_flight = in_flight_limit(clock)
    began = clock.monotonic()
    sent = [in_flight.sent() for _ in range(FIRST_LIMIT)]
    for at in sent[:lost]:
        in_flight.landed(at, how)
    for number, at in enumerate(sent[lost:], start=1):
        clock.stall(began + 1.0 + 0.1 * (number + lost - 1) - clock.monotonic())
        assert len(events.of(Event.GMS_SLOW)) == (number > judged_at)
        in_flight.landed(at, ANSWERED)
    assert events.one(Event.GMS_SLOW)["took_ms"] == typical


def test_what_leaves_in_the_moment_of_a_rounds_last_is_of_it_and_what_leaves_later_is_not(
    clock: FakeClock, events: Events
) -> None:
    in_flight = in_flight_limit(clock)
    sent = []
    for together in (10, 10, 20):
        sent += [in_flight.sent() for _ in range(together)]
        clock.stall(0.5)
    for at in sent[20:]:
        in_flight.landed(at, ANSWERED)
    for at in sent[:15]:
        assert not events.of(Event.GMS_SLOW)
        in_flight.landed(at, ANSWERED)
    assert events.one(Event.GMS_SLOW)["took_ms"] == 1500


def test_single_failures_far_apart_add_up_to_nothing(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock, FIRST_LIMIT)
    for _ in range(20):
        fly(in_flight, clock)
        fly(in_flight, clock, FAILED, count=1)
    assert in_flight.limit == FIRST_LIMIT


def test_the_limit_begins_low_and_doubles_with_each_round_of_good_answers(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock, 1000)
    assert in_flight.limit == FIRST_LIMIT
    for _ in range(3):
        before = in_flight.limit
        for _ in range(before):
            while in_flight.free:
                in_flight.sent()
            in_flight.landed(clock.monotonic(), ANSWERED)
        assert in_flight.limit == 2 * before


def test_answers_that_come_all_at_once_count_as_much_as_others(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock, 1000)
    for _ in range(3):
        before = in_flight.limit
        fly(in_flight, clock)
        assert in_flight.limit == 2 * before


def test_the_limit_never_passes_the_ceiling(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock, 20)
    for _ in range(30):
        fly(in_flight, clock)
    assert in_flight.limit == 20


def test_the_limit_does_not_grow_while_it_is_not_what_holds_us_back(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock)
    for _ in range(50):
        fly(in_flight, clock, count=1)
    assert in_flight.limit == FIRST_LIMIT


@pytest.mark.parametrize(
    ("how", "took", "count", "limit"),
    [
        (FAILED, 0.1, 5, 8),
        (FAILED, 10, 5, 8),
        (ANSWERED, 1.5, 16, 12),
        (BUSY, 1.5, 6, 16),
        (BUSY, 1.5, 7, 12),
        (BUSY, 0.1, 6, 16),
        (UNSENT, 0.1, 5, 16),
    ],
)
def test_the_limit_shrinks_when_gms_is_slow_or_does_not_answer(
    how: Landing, took: float, count: int, limit: int, clock: FakeClock
) -> None:
    in_flight = in_flight_limit(clock)
    fly(in_flight, clock, how, took, count)
    assert in_flight.limit == limit


@pytest.mark.parametrize(("how", "took"), [(FAILED, 0.1), (ANSWERED, 9.0)])
def test_two_bad_answers_are_no_setback(how: Landing, took: float, clock: FakeClock) -> None:
    """They have their own reasons: a session whose transcript is long, a node that was just replaced."""
    in_flight = in_flight_limit(clock, FIRST_LIMIT)
    fly(in_flight, clock)
    fly(in_flight, clock, how, took, count=2)
    fly(in_flight, clock)
    assert in_flight.limit == FIRST_LIMIT


def test_what_is_lost_counts_by_how_many_are_in_flight(clock: FakeClock) -> None:
    """Three of a hundred come together now and then. When GMS has too much, many of them do."""
    in_flight = in_flight_limit(clock, 100)
    while in_flight.limit < 100:
        fly(in_flight, clock)
    fly(in_flight, clock, FAILED, count=5)
    assert in_flight.limit == 100
    fly(in_flight, clock)
    fly(in_flight, clock, FAILED, count=15)
    assert in_flight.limit == 100 * FAILED_FACTOR


def test_a_node_that_cannot_be_reached_says_nothing_of_what_gms_can_bear(clock: FakeClock) -> None:
    """A connect time-out takes longer than any answer should."""
    in_flight = in_flight_limit(clock)
    fly(in_flight, clock, UNSENT, took=2.0, count=5)
    assert in_flight.limit == FIRST_LIMIT


def test_many_failures_at_once_are_one_setback_and_the_next_round_another(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock, 64)
    for _ in range(60):
        fly(in_flight, clock)
    assert in_flight.limit == 64
    fly(in_flight, clock, FAILED)
    assert in_flight.limit == 32
    fly(in_flight, clock, FAILED)
    assert in_flight.limit == 16


def test_after_a_setback_the_limit_grows_fast_and_then_by_about_one_for_each_round(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock)
    fly(in_flight, clock, FAILED)
    assert in_flight.limit == FIRST_LIMIT * FAILED_FACTOR
    fly(in_flight, clock)
    before = in_flight.limit
    assert before == FIRST_LIMIT * FAILED_AGAIN_SHARE
    for _ in range(before * 5):
        while in_flight.free:
            in_flight.sent()
        in_flight.landed(clock.monotonic(), ANSWERED)
    assert before + 2 <= in_flight.limit <= before + 5


def test_a_few_busy_answers_are_a_sessions_affair_and_many_are_gms(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock)
    for _ in range(10):
        fly(in_flight, clock, BUSY, count=1)
        fly(in_flight, clock, ANSWERED, count=9)
    assert in_flight.limit == FIRST_LIMIT
    for _ in range(40):
        fly(in_flight, clock, BUSY, count=1)
    assert in_flight.limit < FIRST_LIMIT


TIMEOUT = 10.0
"""Seconds; `target` is a tenth of it, as with the defaults."""


class Gms:
    """Answers a request after `itself` seconds at the earliest, and no more than `capacity` a second.

    What takes longer than TIMEOUT is given up, which it does not notice: its work is done all the same.
    """

    def __init__(
        self, in_flight: InFlight, clock: FakeClock, itself: float, capacity: float, lost: int = 0
    ) -> None:
        """Of so many answers one is `lost`, if any."""
        self.itself = itself
        self.capacity = capacity
        self.lost = lost
        self.starved = 0
        """So often, after the first seconds, it had nothing to do."""
        self.limits: list[int] = []
        self.answers = self.timeouts = self._came = 0
        self._in_flight = in_flight
        self._clock = clock
        self._queue: deque[tuple[float, float]] = deque()
        """When each was sent, and when it is answered."""
        self._free_at = clock.monotonic()

    def serve(self, seconds: float, spread: Sequence[float] = (1.0,)) -> list[int]:
        """Keep as many in flight as may be. The limits that were in force. `spread`: what `itself` is multiplied
        with, by turns."""
        end, limits = self._clock.monotonic() + seconds, []
        while self._clock.monotonic() < end:
            while self._in_flight.has_room():
                sent = self._in_flight.sent()
                self.starved += self.answers > 10 * self.capacity and sent > self._free_at + self.itself
                self._free_at = max(sent, self._free_at) + 1 / self.capacity
                itself = self.itself * spread[self.answers % len(spread)]
                self.answers += 1
                insort(self._queue, (min(sent + TIMEOUT, max(self._free_at, sent + itself)), sent))
            done, sent = self._queue.popleft()
            self._clock.stall(max(0.0, done - self._clock.monotonic()))
            self._came += 1
            given_up = done == sent + TIMEOUT
            self.timeouts += given_up
            lost = given_up or (self.lost and self._came % self.lost == 0)
            self._in_flight.landed(sent, FAILED if lost else ANSWERED)
            limits.append(self._in_flight.limit)
        return limits


@pytest.mark.parametrize("itself", [1.0, 1.1, 3.0, 6.0])
def test_answers_that_take_long_by_themselves_leave_the_limit_alone(
    itself: float, clock: FakeClock, events: Events
) -> None:
    gms = Gms(in_flight_limit(clock), clock, itself + 0.001, capacity=1e6)
    first = gms.serve(20 * itself)
    assert min(first) >= int(FIRST_LIMIT * TRIED_SHARE * SLOW_FACTOR)
    assert gms.serve(10 * itself)[-1] == 100
    assert set(gms.serve(20 * itself)) == {100}
    said = events.one(Event.GMS_SLOW_BY_ITSELF)
    assert (said["in_flight_limit"], said["took_ms"]) == (FIRST_LIMIT, pytest.approx(itself * 1000, rel=0.01))


@pytest.mark.parametrize("spread", [(0.8, 1.3, 1.0, 1.2, 0.9), (0.2,) * 30 + (1.6,), (1.0, 1.5, 2.0, 2.5)])
def test_answers_that_take_now_longer_now_shorter_leave_the_limit_alone(
    spread: Sequence[float], clock: FakeClock
) -> None:
    gms = Gms(in_flight_limit(clock), clock, 1.0, capacity=1e6)
    gms.serve(120, spread)
    assert min(gms.serve(60, spread)) >= 50


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize(
    ("median", "sigma"),
    [(0.5, 1.0), (1.0, 0.5), (1.5, 0.5), (1.5, 1.0)],
    ids=["very widely", "around the target", "slowly", "slowly, and some too slowly"],
)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_answers_whose_times_vary_widely_leave_the_limit_alone(
    median: float, sigma: float, seed: int, clock: FakeClock
) -> None:
    """Of each round the quickest come first: judged by these a limit that was cut seems to have helped."""
    chance = random.Random(seed)
    spread = [math.exp(chance.gauss(0, sigma)) for _ in range(4_999)]
    gms = Gms(in_flight_limit(clock), clock, median, capacity=1e6)
    gms.serve(100, spread)
    limits = gms.serve(200, spread)
    assert sum(limits) / len(limits) >= 80


@pytest.mark.usefixtures("events")
def test_a_round_goes_on_without_those_that_are_not_answered(clock: FakeClock) -> None:
    """Also when nobody is left of it: the next round is judged."""
    in_flight = in_flight_limit(clock, FIRST_LIMIT)
    fly(in_flight, clock)
    for came in (3, 0):
        sent = [in_flight.sent() for _ in range(FIRST_LIMIT)]
        clock.stall(1.5)
        for at in sent[:came]:
            in_flight.landed(at, ANSWERED)
        for at in sent[came:]:
            in_flight.landed(at, UNSENT)
    assert in_flight.limit == FIRST_LIMIT
    for _ in range(2):
        fly(in_flight, clock, took=1.5)
    assert in_flight.limit < FIRST_LIMIT


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize("lost", [100, 40], ids=["1 %", "2.5 %"])
def test_answers_that_are_lost_now_and_then_leave_the_limit_alone(lost: int, clock: FakeClock) -> None:
    gms = Gms(in_flight_limit(clock), clock, 0.95, capacity=1e6, lost=lost)
    gms.serve(100)
    limits = gms.serve(200)
    assert sum(limits) / len(limits) >= 70


@pytest.mark.usefixtures("events")
def test_a_limit_of_one_grows_again_when_answers_only_take_long_by_themselves(clock: FakeClock) -> None:
    in_flight = in_flight_limit(clock)
    for _ in range(6):
        fly(in_flight, clock, FAILED, count=1)
    assert in_flight.limit == 1
    assert Gms(in_flight, clock, 1.5, capacity=1e6).serve(60)[-1] > 15


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize(
    ("capacity", "itself"), [(5, 0.1), (20, 0.1), (20, 0.6), (40, 0.1), (40, 0.6), (10, 1.5)]
)
def test_a_gms_that_has_too_much_is_given_less(capacity: float, itself: float, clock: FakeClock) -> None:
    """Answers that wait for one another take about as long as they may, and no longer."""
    gms = Gms(in_flight_limit(clock), clock, itself, capacity)
    gms.serve(120)
    assert max(gms.serve(120)) <= 1.2 * capacity * max(1.0, SLOWER * itself) + 1
    assert gms.starved == 0, "so few were sent that it had nothing to do"


@pytest.mark.slow
@pytest.mark.usefixtures("events")
def test_a_brown_out_of_gms_is_seen_whatever_was_believed_before(clock: FakeClock) -> None:
    for itself, longest in ((0.1, 1.5), (1.2, 2.4)):
        gms = Gms(in_flight_limit(clock), clock, itself, capacity=1e6)
        assert gms.serve(60)[-1] == 100
        gms.capacity = 20.0
        gms.serve(60)
        assert max(gms.serve(60)) <= 20 * longest


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize("itself", [0.1, 0.6, 1.5])
def test_a_gms_that_comes_to_a_standstill_is_relieved_at_once_and_served_again(
    itself: float, clock: FakeClock
) -> None:
    """What is in flight then times out, and what took its place: no storm of time-outs follows."""
    gms = Gms(in_flight_limit(clock), clock, itself, capacity=150)
    gms.serve(120)
    gms.capacity = 5
    gms.serve(60)
    assert gms.timeouts <= 2.5 * 100
    before = gms.timeouts
    gms.serve(60)
    assert gms.timeouts == before
    gms.capacity = 150
    gms.serve(120)
    assert gms.serve(60)[-1] >= 50


@pytest.mark.usefixtures("events")
def test_what_is_believed_of_gms_is_found_out_again(clock: FakeClock) -> None:
    gms = Gms(in_flight_limit(clock), clock, 2.0, capacity=1e6)
    gms.serve(60)
    gms.itself, gms.capacity = 0.1, 20.0
    gms.serve(VAIN_MEMORY_SECONDS + 60)
    assert max(gms.serve(60)) <= 24


def test_a_cut_is_told_once_a_minute(clock: FakeClock, events: Events) -> None:
    gms = Gms(in_flight_limit(clock), clock, 0.1, capacity=20)
    gms.serve(59)
    took = events.one(Event.GMS_SLOW)["took_ms"]
    assert isinstance(took, int)
    assert took > 1000
    gms.serve(240)
    assert 2 <= len(events.of(Event.GMS_SLOW)) <= 5


@given(st.lists(st.tuples(st.sampled_from(Landing), st.floats(0, 12)), max_size=60), st.integers(1, 50))
def test_the_limit_stays_between_one_and_the_ceiling(
    story: list[tuple[Landing, float]], ceiling: int
) -> None:
    clock = FakeClock()
    in_flight = InFlight(ceiling, 1.0, clock)
    for how, took in story:
        fly(in_flight, clock, how, took)
        assert 1 <= in_flight.limit <= ceiling
        assert in_flight.count == 0


# -- retries -----------------------------------------------------------------------------------------------


def spendable(budget: RetryBudget) -> int:
    spent = 0
    while budget.spend():
        spent += 1
    return spent


def test_retries_are_paid_for_by_answers_and_first_tries(clock: FakeClock) -> None:
    budget = RetryBudget(50, clock)
    assert spendable(budget) == 50
    for _ in range(7):
        budget.earn()
    assert spendable(budget) == 7


def test_time_pays_for_a_trickle_of_retries(clock: FakeClock) -> None:
    """Otherwise nobody would notice that GMS is back."""
    budget = RetryBudget(50, clock)
    spendable(budget)
    clock.stall(2.01)
    assert spendable(budget) == 10


@pytest.mark.parametrize(("rate", "most"), [(50, 50), (0.5, 1)])
def test_no_more_is_saved_up_than_a_seconds_rate(rate: float, most: int, clock: FakeClock) -> None:
    budget = RetryBudget(rate, clock)
    for _ in range(1000):
        budget.earn()
    clock.stall(10_000)
    assert spendable(budget) == most
