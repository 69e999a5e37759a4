"""Takes over the control API: a chat application has a session to itself, with its newest tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from aiohttp import web
from conftest import NOON, PATIENCE, Events, FakeClock, PromptStore, soon

from asyncchatd.control import shapes, takes
from asyncchatd.control.shown import show_time
from asyncchatd.listening import has_left
from asyncchatd.log.events import Event
from asyncchatd.model.clock import Clock
from asyncchatd.model.data import Ms, Reason, Settlement, TokenNews, Verdict
from asyncchatd.stores.answers import NotTaken, Take
from asyncchatd.stores.base import Store
from control.test_api import KEY, Api, Json, body, end, reply, serving

pytestmark = pytest.mark.usefixtures("events")

ONE = "/v1/sessions/chat-1"
TAKE = f"{ONE}/take"
RELEASE = f"{ONE}/release"
NEWER = "5ff26e8f2d454d9f"


@pytest.fixture
async def api(store: PromptStore, clock: FakeClock) -> AsyncIterator[Api]:
    async with serving(store, clock) as api:
        await api.call("PUT", ONE, body(next_position=3))
        api.wakeup.clear()
        yield api


async def take(api: Api, **more: object) -> Json:
    """A take that is had."""
    status, taken = await api.call("POST", TAKE, {"for": "10s", "wait": "0s", **more})
    assert status == 200, taken
    return taken


async def test_a_take_is_answered_with_all_that_a_request_needs(api: Api, events: Events) -> None:
    response = await api.raw("POST", TAKE, {"for": "10s"})
    assert (response.status, response.headers["Cache-Control"]) == (200, "no-store")
    taken = await response.json()
    assert len(taken.pop("take_id")) >= 16
    assert taken == {
        "until": show_time(NOON + 10_000),
        "chat_id": "chat-1",
        "user_id": "user-1",
        "secure_key": KEY,
        "alias": "117",
        "service": "customer-support",
        "next_position": 3,
    }
    told = events.one(Event.SESSION_TAKEN)
    assert (told["chat_id"], told["alias"], told["for_ms"]) == ("chat-1", "117", 10_000)
    assert KEY not in events.text


async def test_a_taken_session_is_not_pinged_until_it_is_put_back(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    taken = await take(api)
    await api.call("POST", f"{ONE}/ping")
    assert await store.claim(now=clock.now(), limit=10, lease_ms=15_000) == []
    api.wakeup.clear()
    status, session = await api.call("PUT", ONE, body(secure_key=NEWER, take_id=taken["take_id"]))
    assert (status, session["outcome"]) == (200, "updated")
    assert api.wakeup.is_set()
    [claim] = await store.claim(now=clock.now(), limit=10, lease_ms=15_000)
    assert (claim.tokens.secure_key, claim.reason) == (NEWER, Reason.REQUEST)


async def test_what_gms_replied_is_put_back_as_it_came(api: Api, store: PromptStore, events: Events) -> None:
    taken = await take(api)
    status, _ = await api.call("PUT", f"{ONE}?take_id={taken['take_id']}", reply(secureKey=NEWER))
    assert status == 200
    known = await store.get("chat-1")
    assert known is not None
    assert (known.secure_key, known.leased_until) == (NEWER, 0)
    assert [each["cause"] for each in events.of(Event.SESSION_RELEASED)] == ["registration"]


async def test_a_release_ends_a_take(api: Api, store: PromptStore, clock: FakeClock, events: Events) -> None:
    taken = await take(api)
    assert (await api.raw("POST", RELEASE, {"take_id": taken["take_id"]})).status == 204
    assert api.wakeup.is_set()
    assert len(await store.claim(now=clock.now(), limit=10, lease_ms=15_000)) == 1
    assert [each["cause"] for each in events.of(Event.SESSION_RELEASED)] == ["release"]


async def test_another_take_id_ends_nothing(api: Api) -> None:
    await take(api)
    assert await api.refused("POST", RELEASE, {"take_id": "another"}) == (409, "not_taken", "take_id")
    assert await api.refused("PUT", f"{ONE}?take_id=another", body()) == (409, "not_taken", "take_id")
    _, told = await api.call("POST", "/v1/sessions", body(take_id="another"))
    assert told["refused"] == 1
    assert (await api.refused("POST", TAKE, {"for": "1s", "wait": "0s"}))[:2] == (409, "taken")


async def test_a_take_waits_for_the_request_that_is_on_its_way(
    api: Api, store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = asyncio.Event()
    take = store.take

    async def watched(chat_id: str, *, until: Ms, now: Ms, notified: int | None) -> Take | NotTaken:
        why = await take(chat_id, until=until, now=now)
        refused.set()
        return why

    monkeypatch.setattr(store, "take", watched)
    await api.call("POST", f"{ONE}/ping")
    [claim] = await store.claim(now=clock.now(), limit=10, lease_ms=15_000)
    asked = asyncio.create_task(api.call("POST", TAKE, {"for": "10s"}))
    await soon(refused.wait())
    answer = Settlement(
        claim,
        Verdict.ANSWERED,
        NOON + 1_800_000,
        sent_at=clock.now(),
        settled_at=clock.now(),
        news=TokenNews(secure_key=NEWER),
    )
    await store.settle([answer])
    await clock.advance(0.05)
    status, taken = await soon(asked)
    assert (status, taken["secure_key"]) == (200, NEWER)


async def test_a_take_asks_for_a_session_that_is_held(api: Api, store: PromptStore, clock: FakeClock) -> None:
    """A keepalive that was not sent gives it back."""
    await api.call("POST", f"{ONE}/ping")
    assert await store.claim(now=clock.now(), limit=10, lease_ms=15_000)
    assert await api.refused("POST", TAKE, {"for": "10s", "wait": "0s"}) == (409, "in_flight", "chat_id")
    assert api.wanted == ["chat-1"]


async def test_a_take_for_which_nobody_waits_any_more_is_not_had(
    api: Api, store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[web.Request] = []
    refused = asyncio.Event()
    take_it, take_now = takes.take, store.take

    async def watched(
        store: Store, clock: Clock, request: web.Request, how: takes.Wanted, want: Callable[[str], None]
    ) -> Take:
        requests.append(request)
        return await take_it(store, clock, request, how, want)

    async def watched_now(chat_id: str, *, until: Ms, now: Ms, notified: int | None) -> Take | NotTaken:
        why = await take_now(chat_id, until=until, now=now)
        refused.set()
        return why

    monkeypatch.setattr(takes, "take", watched)
    monkeypatch.setattr(store, "take", watched_now)
    await api.call("POST", f"{ONE}/ping")
    [claim] = await store.claim(now=clock.now(), limit=10, lease_ms=15_000)
    waiting = asyncio.create_task(api.call("POST", TAKE, {"for": "10s", "wait": "10s"}))
    await soon(refused.wait())
    waiting.cancel()
    async with asyncio.timeout(PATIENCE):
        while not has_left(requests[0]):  # noqa: ASYNC110 - each turn of the loop looks at the sockets
            await asyncio.sleep(0)
    await store.settle([Settlement(claim, Verdict.RETRY, NOON + 60_000, settled_at=clock.now())])
    await clock.advance(10)
    known = await store.get("chat-1")
    assert known is not None
    assert known.leased_until == 0


async def test_a_take_that_cannot_be_had_in_time_says_why_and_when_to_come_again(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    await api.call("POST", f"{ONE}/ping")
    await store.claim(now=clock.now(), limit=10, lease_ms=15_000)
    response = await api.raw("POST", TAKE, {"for": "10s", "wait": "0s"})
    assert (response.status, response.headers["Retry-After"]) == (409, "1")
    assert (await response.json())["error"]["code"] == "in_flight"


async def test_what_does_not_pass_by_waiting_is_told_at_once(
    api: Api, store: PromptStore, clock: FakeClock
) -> None:
    want = {"for": "10s", "wait": "10s"}
    assert await api.refused("POST", "/v1/sessions/nobody/take", want) == (404, "not_found", "chat_id")
    await end(api, store, clock, "chat-1")
    assert await api.refused("POST", TAKE, want) == (409, "session_ended", "chat_id")


@pytest.mark.parametrize(
    ("said", "code", "field"),
    [
        ({}, "missing", "for"),
        ({"for": 10}, "bad_type", "for"),
        ({"for": "10"}, "bad_value", "for"),
        ({"for": "999ms"}, "bad_value", "for"),
        ({"for": "61s"}, "bad_value", "for"),
        ({"for": "1s", "wait": "11s"}, "bad_value", "wait"),
        ({"for": "1s", "wait": None}, "bad_type", "wait"),
        ({"for": "1s", "notified": 7}, "bad_type", "notified"),
        ({"for": "1s", "notified": "seven"}, "bad_value", "notified"),
        ({"for": "1s", "wiat": "1s"}, "unknown_field", "wiat"),
    ],
)
async def test_a_take_that_is_asked_for_wrongly_names_the_field(
    api: Api, said: object, code: str, field: str
) -> None:
    assert await api.refused("POST", TAKE, said) == (400, code, field)


async def test_what_comes_in_the_place_of_a_duration_is_named(api: Api) -> None:
    for said, kind in ((None, "null"), (10, "a number"), ({}, "an object"), (True, "true or false")):
        _, answer = await api.call("POST", TAKE, {"for": said})
        assert cast(Json, answer["error"])["message"] == (
            f'expected for, a duration from 1s to 1m, such as "10s", got {kind}'
        )


@pytest.mark.parametrize(
    ("said", "code"), [({}, "missing"), ({"take_id": ""}, "missing"), ({"take_id": 7}, "bad_type")]
)
async def test_a_release_names_a_take(api: Api, said: object, code: str) -> None:
    assert await api.refused("POST", RELEASE, said) == (400, code, "take_id")


async def test_a_release_of_a_session_nobody_knows_is_a_404(api: Api) -> None:
    assert (await api.refused("POST", "/v1/sessions/nobody/release", {"take_id": "one"}))[0] == 404


def test_a_take_that_is_printed_shows_no_key() -> None:
    taken = shapes.Take(
        take_id="one",
        until="2026-11-22T14:30:10.000Z",
        chat_id="chat-1",
        user_id="user-1",
        secure_key=KEY,
        alias="117",
        service="support",
        next_position=None,
    )
    assert KEY not in f"{taken} {taken!r}"
