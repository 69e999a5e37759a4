"""How often the event loop is looked at."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncchatd.log import lag
from asyncchatd.log.lag import CALM_AFTER_SECONDS, LATE_SECONDS, Attention
from asyncchatd.log.metrics import CALM_CHECK_SECONDS, LAG_CHECK_SECONDS, LOOP_LAG

BEGAN = 1_000.0


def test_a_loop_that_was_never_late_for_a_while_is_looked_at_seldom() -> None:
    attention = Attention(BEGAN)
    assert attention.pause(0.0, BEGAN + CALM_AFTER_SECONDS - 1) == LAG_CHECK_SECONDS
    assert attention.pause(0.0, BEGAN + CALM_AFTER_SECONDS) == CALM_CHECK_SECONDS


def test_a_loop_that_was_late_is_looked_at_often_again() -> None:
    attention = Attention(BEGAN)
    late_at = BEGAN + 5 * CALM_AFTER_SECONDS
    assert attention.pause(LATE_SECONDS, late_at) == LAG_CHECK_SECONDS
    assert attention.pause(0.0, late_at + CALM_AFTER_SECONDS - 1) == LAG_CHECK_SECONDS
    assert attention.pause(0.0, late_at + CALM_AFTER_SECONDS) == CALM_CHECK_SECONDS


def test_the_turns_that_threads_take_are_no_stall() -> None:
    attention = Attention(BEGAN)
    now = BEGAN + CALM_AFTER_SECONDS
    assert attention.pause(LATE_SECONDS * 0.9, now) == CALM_CHECK_SECONDS


def test_a_stall_in_each_ten_seconds_finds_the_loop_looked_at_often() -> None:
    attention = Attention(BEGAN)
    for second in range(60):
        late = 0.5 if second % 10 == 0 else 0.0
        assert attention.pause(late, BEGAN + second) == LAG_CHECK_SECONDS


async def test_a_calm_loop_is_looked_at_seldom_and_each_look_stands_for_those_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = BEGAN
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def looks() -> tuple[float, float]:
        counts = [bucket.get() for bucket in LOOP_LAG._buckets]
        return sum(counts), counts[0]

    watch = lag._Watch(asyncio.get_running_loop())
    try:
        now += CALM_AFTER_SECONDS
        watch._due = now
        watch.timer.cancel()
        watch._look()
        assert watch._due - now == pytest.approx(CALM_CHECK_SECONDS)
        all_before, in_time_before = looks()
        now = watch._due + 0.5
        watch.timer.cancel()
        watch._look()
        assert watch._due - now == pytest.approx(LAG_CHECK_SECONDS), "it was late"
        all_after, in_time = looks()
        assert all_after - all_before == round(CALM_CHECK_SECONDS / LAG_CHECK_SECONDS) == 5
        assert in_time - in_time_before == 4
    finally:
        watch.timer.cancel()
