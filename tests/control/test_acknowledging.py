"""Acknowledgements over the control API: a chat application says that it sent the Refresh it was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest
from conftest import Events, FakeClock, PromptStore
from stores.desk import Desk, push

from asyncchatd.log.events import Event
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from control.test_api import KEY, Api, Json, body, reply, serving

pytestmark = pytest.mark.usefixtures("events")

ONE = "/v1/sessions/chat-1"
ACKNOWLEDGED = f"{ONE}/acknowledged"
FETCH = "/v1/events?consumer=app&wait=25s"
NEWER = "5ff26e8f2d454d9f"
APP = Consumer("app", frozenset((EventKind.NOTIFIED,)), acknowledges_ms=5_000)


@pytest.fixture
async def api(store: PromptStore, clock: FakeClock) -> AsyncIterator[Api]:
    async with serving(store, clock) as api:
        await store.enrol([APP], now=clock.now())
        await api.call("PUT", ONE, body(next_position=3))
        api.wakeup.clear()
        yield api


@pytest.fixture
async def event(api: Api, store: PromptStore, clock: FakeClock) -> str:
    """The id of the event that asks, once the application has fetched it."""
    await Desk(store, clock.now()).push(push(), listening=["app"])
    status, answer = await api.call("GET", FETCH)
    assert status == 200
    [told] = cast(list[Json], answer["events"])
    assert told["event"] == {"refresh": True, "for_ms": 5_000}
    return str(told["id"])


def error(answer: Json) -> tuple[object, object]:
    """The code and the field."""
    said = cast(Json, answer["error"])
    return said["code"], said["field"]


async def is_pinged(store: PromptStore, clock: FakeClock) -> bool:
    return bool(await store.claim(now=clock.now(), limit=10, lease_ms=15_000))


async def test_what_was_sent_needs_no_ping(
    api: Api, store: PromptStore, clock: FakeClock, event: str, events: Events
) -> None:
    assert (await api.raw("POST", ACKNOWLEDGED, {"id": event})).status == 204
    assert (await api.raw("POST", ACKNOWLEDGED, {"id": event})).status == 204, "repeated without harm"
    await clock.advance(6)
    assert not await is_pinged(store, clock)
    assert events.of(Event.ACKNOWLEDGEMENT_CAME)[0]["cause"] == "request"
    _, answer = await api.call("GET", "/v1/consumers")
    [shown] = cast(list[Json], answer["consumers"])
    assert [shown[name] for name in ("acknowledges", "asked", "acknowledged", "ran_out")] == [True, 1, 1, 0]


@pytest.mark.parametrize("place", ["query", "body", "reply"])
async def test_gms_reply_to_it_is_told_with_the_event(
    api: Api, store: PromptStore, clock: FakeClock, event: str, events: Events, place: str
) -> None:
    path, said = {
        "query": (f"{ONE}?acknowledged={event}", reply(secureKey=NEWER)),
        "body": (ONE, body(secure_key=NEWER, acknowledged=event)),
        "reply": (ONE, reply(secureKey=NEWER) | {"acknowledged": event}),
    }[place]
    status, answer = await api.call("PUT", path, said)
    assert (status, answer["outcome"]) == (200, "updated")
    await clock.advance(6)
    assert not await is_pinged(store, clock)
    known = await store.get("chat-1")
    assert known is not None
    assert known.secure_key == NEWER
    assert events.one(Event.ACKNOWLEDGEMENT_CAME)["cause"] == "registration"


async def test_after_its_time_it_is_told_that_the_daemon_pings(
    api: Api, store: PromptStore, clock: FakeClock, event: str, events: Events
) -> None:
    await clock.advance(5)
    assert await is_pinged(store, clock)
    status, answer = await api.call("POST", ACKNOWLEDGED, {"id": event})
    assert (status, *error(answer)) == (409, "not_asked", "id")
    status, answer = await api.call("PUT", f"{ONE}?acknowledged={event}", body())
    assert status == 200
    assert events.of(Event.ACKNOWLEDGEMENT_CAME) == []


@pytest.mark.usefixtures("event")
@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ({}, 400, "missing"),
        ({"id": 7}, 400, "bad_type"),
        ({"id": "seven"}, 400, "bad_value"),
        ({"id": "0-7"}, 409, "not_asked"),
        ({"event": "0-7"}, 400, "unknown_field"),
    ],
)
async def test_what_names_no_event_that_asked_is_refused(
    api: Api, said: object, status: int, code: str
) -> None:
    answered, answer = await api.call("POST", ACKNOWLEDGED, said)
    assert (answered, error(answer)[0]) == (status, code)


async def test_a_registration_that_names_none_is_refused_and_changes_nothing(
    api: Api, store: PromptStore
) -> None:
    for named, status in (("seven", 400), (f"{store.epoch}-7", 409)):
        answered, answer = await api.call("PUT", f"{ONE}?acknowledged={named}", body(secure_key=NEWER))
        assert (answered, error(answer)[1]) == (status, "acknowledged")
    known = await store.get("chat-1")
    assert known is not None
    assert known.secure_key == KEY


async def test_who_fetches_takes_the_tokens_for_it_and_others_wait(
    api: Api, store: PromptStore, clock: FakeClock, event: str
) -> None:
    take = f"{ONE}/take"
    status, answer = await api.call("POST", take, {"for": "10s", "wait": "0s"})
    assert (status, error(answer)[0]) == (409, "taken")
    status, answer = await api.call("POST", take, {"for": "10s", "notified": "0-7"})
    assert (status, error(answer)[0]) == (409, "not_asked")
    status, taken = await api.call("POST", take, {"for": "10s", "notified": event})
    assert (status, taken["secure_key"]) == (200, KEY)
    path = f"{ONE}?take_id={taken['take_id']}&acknowledged={event}"
    assert (await api.call("PUT", path, reply(secureKey=NEWER)))[0] == 200
    await clock.advance(11)
    assert not await is_pinged(store, clock)
