"""Consumers seen and steered over the control API, and counted for monitoring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest
from conftest import Events, FakeClock, PromptStore
from stores.desk import MINUTE, Desk
from stores.test_transcript import EVERYTHING, message, refresh

from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.data import Ms
from asyncchatd.model.delivery import Consumer
from control.test_api import Api, Json, serving

APP = Consumer("app", EVERYTHING)
HOOK = Consumer("hook", EVERYTHING, pushes=True)
WAITED: Ms = 10 * MINUTE


@pytest.fixture
async def api(store: PromptStore, clock: FakeClock, events: Events) -> AsyncIterator[Api]:
    """Two consumers, for whom three events have waited for ten minutes; a webhook has refused its own."""
    desk = Desk(store, clock.now())
    await store.enrol([APP, HOOK], now=desk.now)
    await desk.live("chat-1")
    await refresh(desk, message(3, "one"), message(4, "two"), message(5, "three"))
    [batch] = await store.batches("hook", now=desk.now, limit=1, busy=(), most_events=9, most_bytes=1 << 20)
    await store.undelivered(batch, due_at=desk.now, failing_since=desk.now, parked=True)
    await clock.advance((desk.now - clock.now() + WAITED) / 1000)
    async with serving(store, clock) as api:
        yield api


async def consumers(api: Api, path: str = "/v1/consumers") -> dict[str, Json]:
    """The consumers by name."""
    status, answer = await api.call("GET", path)
    assert status == 200
    return {str(each["name"]): each for each in cast(list[Json], answer["consumers"])}


async def test_they_are_shown_with_how_far_each_is(api: Api) -> None:
    for path in ("/v1/consumers", "/v1/status"):
        found = await consumers(api, path)
        app, hook = found["app"], found["hook"]
        assert (app["how"], app["behind"], app["lag_seconds"], app["chats"]) == ("fetch", 3, WAITED / 1000, 0)
        assert (hook["how"], hook["chats"], hook["parked"], hook["paused"]) == ("webhook", 1, 1, False)
        assert str(app["oldest_at"]).endswith("Z")


async def test_one_that_fetches_and_acknowledges_is_behind_no_more(api: Api) -> None:
    _, answer = await api.call("GET", "/v1/events?consumer=app")
    assert (await consumers(api))["app"]["behind"] == 3
    await api.call("GET", f"/v1/events?consumer=app&after={answer['cursor']}")
    app = (await consumers(api))["app"]
    assert (app["behind"], app["lag_seconds"], app["oldest_at"]) == (0, 0.0, None)


async def test_a_paused_one_is_told_nothing_until_it_is_resumed(api: Api, events: Events) -> None:
    for _ in range(2):
        status, answer = await api.call("POST", "/v1/consumers/app/pause")
        assert (status, cast(Json, answer["consumer"])["paused"]) == (200, True)
    assert (await api.call("GET", "/v1/events?consumer=app"))[1]["events"] == []
    await api.call("POST", "/v1/consumers/app/resume")
    assert len(cast(list[Json], (await api.call("GET", "/v1/events?consumer=app"))[1]["events"])) == 3
    assert events.one(Event.CONSUMER_PAUSED)["consumer"] == "app"
    assert events.one(Event.CONSUMER_RESUMED)["consumer"] == "app"


async def test_parked_batches_are_replayed_when_somebody_says_so(api: Api, events: Events) -> None:
    assert (await api.call("POST", "/v1/consumers/hook/retry"))[1]["batches"] == 0
    assert api.hurried == ["hook"], "its endpoint may be down, and is asked all the same"
    status, answer = await api.call("POST", "/v1/consumers/hook/replay")
    assert (status, answer["batches"], cast(Json, answer["consumer"])["parked"]) == (200, 1, 0)
    assert [(line["parked"], line["count"]) for line in events.of(Event.CONSUMER_REPLAYED)] == [
        (False, 0),
        (True, 1),
    ]


async def test_what_cannot_be_done_is_refused(api: Api) -> None:
    for verb in ("retry", "pause", "resume", "replay"):
        assert await api.refused("POST", f"/v1/consumers/nobody/{verb}") == (404, "not_found", "name")
    for verb in ("retry", "replay"):
        assert await api.refused("POST", f"/v1/consumers/app/{verb}") == (409, "no_webhook", "name")


async def gauges(api: Api) -> dict[str, float]:
    """What monitoring sees of consumers and of what is kept."""
    text = (await (await api.raw("GET", "/metrics")).read()).decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {
        name.removeprefix("asyncchatd_"): float(value)
        for name, _, value in lines
        if name.startswith(("asyncchatd_consumer_", "asyncchatd_transcript_", "asyncchatd_events_told_total"))
    }


async def test_monitoring_sees_who_is_behind_and_how_much_is_kept(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    seen = await gauges(api)
    assert seen['consumer_lag_seconds{consumer="app"}'] == WAITED / 1000
    assert seen['consumer_behind{consumer="app"}'] == 3
    assert seen['consumer_parked{consumer="hook"}'] == 1
    assert (seen["transcript_events"], seen["transcript_bytes"] > 100) == (3, True)
    await api.call("POST", "/v1/consumers/app/pause")
    assert (await gauges(api))['consumer_paused{consumer="app"}'] == 1
    await store.enrol([HOOK], now=clock.now())
    assert not [name for name in await gauges(api) if 'consumer="app"' in name], "it is named no more"
    store.fill_disk()
    seen = await gauges(api)
    assert not [name for name in seen if name.startswith("consumer_")], (
        "an old count would be taken for a new one"
    )
    store.free_disk()


async def test_what_was_told_is_counted_by_kind(api: Api) -> None:
    before = metrics.EVENTS_TOLD.labels("chat", "fetched")._value.get()
    await api.call("GET", "/v1/events?consumer=app")
    assert metrics.EVENTS_TOLD.labels("chat", "fetched")._value.get() == before + 3
