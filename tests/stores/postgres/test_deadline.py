"""A deadline that the process does not use up by standing still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from asyncchatd.gms import exchange
from asyncchatd.stores.postgres import deadline as deadlines
from asyncchatd.stores.postgres.deadline import Deadline

SECONDS = 0.001
"""In the event loop's time, which passes by itself. What the process makes of it says the clock of the test."""


class Watch:
    """The monotonic clock as the test says; told when a deadline reads it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads: list[Callable[[], object]] = []
        """What happens at the next times it is read, one after the other; then nothing does."""

    def monotonic(self) -> float:
        if self.reads:
            self.reads.pop(0)()
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def nothing() -> None:
    pass


def test_a_way_to_gms_and_one_to_the_database_know_a_pause_by_the_same() -> None:
    """Neither knows the other."""
    assert deadlines.PAUSED_SECONDS == exchange.PAUSED_SECONDS
    assert deadlines.LOOKS == exchange.LOOKS


async def test_what_does_not_come_in_time_is_given_up(watch: Watch) -> None:
    watch.reads = [nothing, lambda: watch.pass_by(SECONDS)]
    with pytest.raises(TimeoutError), Deadline(SECONDS) as deadline:
        await asyncio.get_running_loop().create_future()
    assert deadline.stood_still == 0.0


async def test_what_has_come_when_the_time_is_over_is_had(watch: Watch) -> None:
    """A timer may go off before the loop has looked at what came, which it hands over some turns later."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def in_turns(left: int) -> None:
        loop.call_soon(in_turns, left - 1) if left else answer.set_result("it came")

    def time_is_over() -> None:
        watch.pass_by(SECONDS)
        in_turns(deadlines.LOOKS - 2)

    watch.reads = [nothing, time_is_over]
    with Deadline(SECONDS):
        assert await answer == "it came"


async def test_whoever_stood_still_waits_for_the_whole_time_once_more(watch: Watch) -> None:
    answer = asyncio.get_running_loop().create_future()
    watch.reads = [nothing, lambda: watch.pass_by(60.0), nothing, lambda: answer.set_result("late")]
    with Deadline(SECONDS) as deadline:
        assert await answer == "late"
    assert deadline.stood_still == 60.0


async def test_whoever_stands_still_again_and_again_gives_up_at_last(watch: Watch) -> None:
    watch.reads = [nothing, lambda: watch.pass_by(60.0), nothing, lambda: watch.pass_by(30.0)]
    with pytest.raises(TimeoutError), Deadline(SECONDS) as deadline:
        await asyncio.get_running_loop().create_future()
    assert deadline.stood_still == 60.0


async def test_an_answer_that_is_read_before_the_timer_goes_off_tells_of_the_standstill_too(
    watch: Watch,
) -> None:
    with Deadline(5.0) as deadline:
        watch.pass_by(60.0)
    assert deadline.stood_still == 60.0


async def test_a_time_that_was_kept_is_no_standstill(watch: Watch) -> None:
    with Deadline(5.0) as deadline:
        watch.pass_by(5.0 + deadlines.PAUSED_SECONDS)
    assert deadline.stood_still == 0.0


async def test_whoever_is_cancelled_meanwhile_is_cancelled(watch: Watch) -> None:
    async def waits() -> None:
        with Deadline(60.0):
            await asyncio.get_running_loop().create_future()

    waiting = asyncio.create_task(waits())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_error_within_it_is_that_error(watch: Watch) -> None:
    with pytest.raises(KeyError), Deadline(60.0):
        raise KeyError
