"""How an endpoint fares, by its answers alone."""

from __future__ import annotations

import pytest
from conftest import FakeClock

from asyncchatd.delivery.endpoint import Endpoint, Fate, backoff_ms, fate_of


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (None, Fate.FAILED),
        *((status, Fate.TAKEN) for status in (200, 201, 202, 204, 299)),
        *((status, Fate.FAILED) for status in (100, 300, 301, 302, 307, 308, 408, 425, 429)),
        *((status, Fate.REFUSED) for status in (400, 401, 403, 404, 409, 413, 422, 451, 499)),
        (410, Fate.GONE),
        *((status, Fate.FAILED) for status in (500, 502, 503, 504, 599)),
    ],
)
def test_what_a_status_says(status: int | None, fate: Fate) -> None:
    assert fate_of(status) is fate


@pytest.fixture
def endpoint(clock: FakeClock) -> Endpoint:
    return Endpoint(clock)


async def fail(endpoint: Endpoint, clock: FakeClock, **headers: str) -> float:
    """It fails again, right after its pause; how long the next one is."""
    await clock.advance(endpoint.wait() + 0.001)
    endpoint.failed(headers, clock.monotonic())
    return endpoint.wait()


async def test_pauses_are_doubled_up_to_a_minute(endpoint: Endpoint, clock: FakeClock) -> None:
    pauses = [await fail(endpoint, clock) for _ in range(9)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert endpoint.is_down


async def test_an_answer_opens_it_at_once(endpoint: Endpoint, clock: FakeClock) -> None:
    for _ in range(5):
        await fail(endpoint, clock)
    endpoint.answered(clock.monotonic())
    assert (endpoint.is_down, endpoint.wait()) == (False, 0)
    assert await fail(endpoint, clock) == pytest.approx(1)


async def test_those_that_fail_together_are_one_failure(endpoint: Endpoint, clock: FakeClock) -> None:
    sent_at = clock.monotonic()
    for _ in range(20):
        await clock.advance(0.01)
        endpoint.failed({}, sent_at)
    assert endpoint.failures == 1
    assert endpoint.wait() < 1


@pytest.mark.parametrize(
    ("said", "pause"), [("7", 7), ("600", 600), ("86400", 600), ("0", 1), ("soon", 1), ("-3", 1)]
)
async def test_retry_after_is_obeyed_within_reason(
    endpoint: Endpoint, clock: FakeClock, said: str, pause: float
) -> None:
    headers = {"Retry-After": said}
    endpoint.failed(headers, clock.monotonic())
    assert endpoint.wait() == pytest.approx(pause)


async def test_a_later_answer_of_those_together_can_ask_for_more_time(
    endpoint: Endpoint, clock: FakeClock
) -> None:
    endpoint.failed({}, clock.monotonic())
    endpoint.failed({"Retry-After": "30"}, clock.monotonic())
    assert endpoint.wait() == pytest.approx(30)
    assert endpoint.failures == 1


async def test_a_pause_that_it_asked_for_outlasts_the_answers_to_what_was_sent_before(
    endpoint: Endpoint, clock: FakeClock
) -> None:
    sent_at = clock.monotonic()
    await clock.advance(1)
    endpoint.failed({"Retry-After": "30"}, sent_at)
    await clock.advance(1)
    endpoint.answered(sent_at)
    assert not endpoint.is_down
    assert endpoint.wait() == pytest.approx(29)
    endpoint.hurry()
    endpoint.answered(sent_at)
    assert endpoint.wait() == 0
    endpoint.failed({"Retry-After": "30"}, clock.monotonic())
    await clock.advance(1)
    endpoint.answered(clock.monotonic())
    assert endpoint.wait() == 0


@pytest.mark.parametrize(
    ("refused", "middle"), [(-9, 1), (0, 1), (0.9, 1), (2, 2), (32, 32), (300, 300), (86_400, 300)]
)
def test_a_refused_batch_waits_as_long_again_within_bounds(refused: float, middle: float) -> None:
    pauses = {backoff_ms(round(refused * 1000)) for _ in range(50)}
    assert 750 * middle <= min(pauses) <= max(pauses) <= 1250 * middle
    assert len(pauses) > 1, "no two alike"
