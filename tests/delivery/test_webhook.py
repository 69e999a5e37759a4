"""Webhooks to a chat application on loopback: what it gets, in what order, and what its answers come to."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from conftest import Certificates, Events, claimed_port, settle
from standardwebhooks.webhooks import Webhook as Verifier

from asyncchatd.log.events import Event
from asyncchatd.model.data import Registration, TokenNews, Tokens
from asyncchatd.model.values import replace

from .rig import EVERYTHING, OTHER_SECRET, SECRET, ChatApp, Rig, Says

PARK_AFTER = 3600.0


# -- order -----------------------------------------------------------------------------------------


async def test_what_an_agent_writes_comes_to_the_chat_application(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    async with rig.webhook():
        await rig.say("chat-1", "Hello, your parcel is here")
        await rig.noted(1)
    [got] = app.got
    assert got.chat_id == "chat-1"
    assert [event["kind"] for event in got.events] == ["chat"]
    assert got.texts == ["Hello, your parcel is here"]
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["User-Agent"].startswith("asyncchatd/")
    assert await rig.states() == (0, 0)


async def test_it_is_told_at_once_and_not_at_the_next_look(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    async with rig.webhook():
        for number in range(1, 4):
            await settle()
            await rig.say("chat-1", f"{number}")
            await rig.noted(number)  # time stands still: only the bell can have woken it
    assert app.texts() == ["1", "2", "3"]


async def test_one_request_of_a_chat_at_a_time_and_chats_beside_each_other(rig: Rig, app: ChatApp) -> None:
    names = [f"chat-{number}" for number in range(1, 5)]
    await rig.chats(*names)
    hold = asyncio.Event()
    app.always = {name: Says(when=hold) for name in names}
    async with rig.webhook():
        for name in names:
            await rig.say(name, "one")
        await rig.asked(4)
        for name in names:
            await rig.say(name, "two")
        await settle()
        assert len(app.got) == 4
        hold.set()
        await rig.noted(8)
    assert app.most_at_once == {"": 4, **dict.fromkeys(names, 1)}
    for name in names:
        assert app.texts(name) == ["one", "two"]


async def test_not_more_are_on_their_way_than_max_in_flight(rig: Rig, app: ChatApp) -> None:
    names = [f"chat-{number}" for number in range(1, 8)]
    await rig.chats(*names)
    hold = asyncio.Event()
    app.always = {name: Says(when=hold) for name in names}
    async with rig.webhook(max_in_flight=3):
        for name in names:
            await rig.say(name, "one")
        await rig.asked(3)
        await settle()
        assert len(app.got) == 3
        hold.set()
        await rig.noted(7)
    assert app.most_at_once[""] == 3


async def test_a_look_leaves_out_what_was_on_its_way_when_it_began(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1", "chat-2")
    hold = asyncio.Event()
    app.always["chat-1"] = Says(when=hold)
    async with rig.webhook():
        await rig.say("chat-1", "one")
        await rig.asked(1)
        await rig.say("chat-2", "one")
        await rig.noted(1)
        hold.set()
        await rig.noted(2)
    assert rig.store.busy, "chat-1 was on its way"
    assert all(rig.store.busy), "the store looks from a thread of its own, and must not see it change"


async def test_nobody_looks_again_and_again_while_a_request_is_on_its_way(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    hold = asyncio.Event()
    app.script.append(Says(when=hold))
    async with rig.webhook():
        await rig.say("chat-1", "one")
        await rig.asked(1)
        await settle()
        looks = rig.store.looks
        for _ in range(100):
            await asyncio.sleep(0)
        assert rig.store.looks == looks
        await rig.clock.advance(10)
        assert rig.store.looks <= looks + 11, "once a second, for what others wrote who share the store"
        hold.set()
        await rig.noted(1)


async def test_a_batch_holds_fifty_events_at_most(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    await rig.say("chat-1", *(f"{number}" for number in range(120)))
    async with rig.webhook():
        await rig.noted(3)
    assert [len(got.events) for got in app.got] == [50, 50, 20]
    assert app.texts() == [f"{number}" for number in range(120)]


# -- the signature ---------------------------------------------------------------------------------


async def test_the_public_package_verifies_what_comes_also_while_a_secret_is_replaced(
    rig: Rig, app: ChatApp
) -> None:
    await rig.chats("chat-1")
    await rig.say("chat-1", "Grüße")
    async with rig.webhook(OTHER_SECRET, SECRET):
        await rig.noted(1)
    [got] = app.got
    for secret in (SECRET, OTHER_SECRET):
        assert Verifier(secret).verify(got.body, dict(got.headers))


async def test_each_try_has_the_same_id_and_bytes_and_a_fresh_timestamp(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    app.script.extend([Says(500), Says(503), Says(429)])
    await rig.say("chat-1", "one")
    async with rig.webhook():
        for tries, pause in enumerate((1, 2, 4), start=1):
            await rig.noted(tries)
            await rig.say("chat-1", f"later {tries}")
            await rig.clock.advance(pause)
        await rig.noted(5)
    same = app.got[:4]
    assert len({(got.number, got.body) for got in same}) == 1
    stamps = [int(got.headers["webhook-timestamp"]) for got in same]
    assert [later - stamps[0] for later in stamps] == [0, 1, 3, 7]
    for got in app.got:
        Verifier(SECRET).verify(got.body, dict(got.headers))
    assert app.got[4].texts == ["later 1", "later 2", "later 3"]
    assert app.got[4].number != same[0].number


@pytest.mark.parametrize("what", ["epoch", "service"])
async def test_an_id_never_stands_for_other_bytes(rig: Rig, app: ChatApp, what: str) -> None:
    await rig.chats("chat-1")
    app.script.extend([Says(500), Says(500)])
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.noted(1)
        if what == "epoch":  # as of a backup that was put back
            await rig.store.distrust(before=0)
        else:
            told = Registration(Tokens("chat-1", "user-of-chat-1", "key-of-chat-1", "117"), "sales")
            await rig.store.register([told], now=rig.clock.now(), spread_ms=1e12)
        await rig.clock.advance(1)
        await rig.noted(2)
        await rig.clock.advance(2)
        await rig.noted(3 + (what == "epoch"))  # a new one begins with a gap
    first, second, third = (got for got in app.got if got.chat_id == "chat-1")
    assert first.body != second.body
    assert first.number != second.number
    assert (second.number, second.body) == (third.number, third.body)


# -- the endpoint fails ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 408, 429, 500, 503])
async def test_while_the_endpoint_fails_one_probe_at_a_time_goes_out(
    rig: Rig, app: ChatApp, status: int
) -> None:
    names = [f"chat-{number}" for number in range(1, 5)]
    await rig.chats(*names)
    for name in names:
        await rig.say(name, "one")
    app.script.extend([Says(status)] * 6)
    async with rig.webhook():
        await rig.noted(4)
        await rig.clock.advance(0.99)
        await rig.asked(4)
        await rig.clock.advance(0.01)
        await rig.noted(5)
        await rig.clock.advance(1.99)
        await rig.asked(5)
        await rig.clock.advance(0.01)
        await rig.noted(6)
        await rig.clock.advance(4)
        await rig.noted(10)
    probes = app.got[4:7]
    assert {probe.chat_id for probe in probes} == {"chat-1"}, "the oldest"
    assert {got.chat_id for got in app.got[7:]} == {"chat-2", "chat-3", "chat-4"}, "at once, after a success"
    assert await rig.states() == (0, 0)


async def test_retry_after_is_obeyed(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    app.script.append(Says(429, {"Retry-After": "120"}))
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.noted(1)
        await rig.clock.advance(119)
        await rig.asked(1)
        await rig.clock.advance(1)
        await rig.noted(2)


async def test_an_operator_need_not_wait_until_an_endpoint_that_is_down_is_probed(
    rig: Rig, app: ChatApp
) -> None:
    await rig.chats("chat-1")
    app.script.append(Says(503, {"Retry-After": "600"}))
    await rig.say("chat-1", "one")
    async with rig.webhook() as webhook:
        await rig.noted(1)
        await rig.say("chat-1", "two")
        await settle()
        await rig.asked(1)
        webhook.hurry()
        await rig.noted(3)  # without any time passing
    assert app.texts() == ["one", "one", "two"]


@pytest.mark.slow
async def test_a_late_success_opens_a_closed_endpoint_at_once(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1", "chat-2")
    hold = asyncio.Event()
    app.script.extend([Says(200, when=hold), Says(500)])
    await rig.say("chat-1", "one")
    await rig.say("chat-2", "one")
    async with rig.webhook():
        await rig.noted(1)
        await rig.asked(2)
        hold.set()
        await rig.noted(3)  # without any time passing
    assert [got.chat_id for got in app.got[2:]] == ["chat-2"]


@pytest.mark.slow
async def test_who_does_not_answer_in_time_is_down(rig: Rig, app: ChatApp, events: Events) -> None:
    await rig.chats("chat-1")
    never = asyncio.Event()
    app.script.append(Says(when=never))
    await rig.say("chat-1", "one")
    async with rig.webhook(timeout="400ms") as webhook:
        await rig.noted(1)
        assert events.one(Event.CONSUMER_DOWN)["cause"] == webhook.trouble == "no answer in time"
        await rig.clock.advance(1)
        await rig.noted(2)
        assert webhook.trouble is None
    assert app.texts() == ["one", "one"]
    assert events.one(Event.CONSUMER_UP)["consumer"] == "app"


async def test_who_is_not_there_is_down_until_he_is(rig: Rig, app: ChatApp, events: Events) -> None:
    await rig.chats("chat-1")
    with claimed_port() as claim:
        port: int = claim.getsockname()[1]
        await rig.say("chat-1", "one")
        async with rig.webhook(url=f"http://127.0.0.1:{port}/hook"):
            await rig.noted(1)
            assert events.one(Event.CONSUMER_DOWN)["cause"] == "connection refused"
            await app.stop()
            app.port = port
            await app.start()
            await rig.clock.advance(1)
            await rig.noted(2)
    assert app.texts() == ["one"]


async def test_one_whose_authorities_cannot_be_read_is_down_until_they_can(
    rig: Rig, tls_app: ChatApp, events: Events, tmp_path: Path, certificates: Certificates
) -> None:
    await rig.chats("chat-1")
    await rig.say("chat-1", "one")
    ca_file = tmp_path / "ca.pem"
    ca_file.touch()
    async with rig.webhook(url=tls_app.url, ca_file=str(ca_file)) as webhook:
        ca_file.unlink()
        await rig.until(lambda: webhook.trouble)
        assert not webhook.listens
        assert webhook.trouble == "ca_file: no such file or directory"
        shutil.copy(certificates.ca, ca_file)
        await rig.clock.advance(1)
        await rig.noted(1)
        assert webhook.listens
    assert tls_app.texts() == ["one"]
    assert events.one(Event.CONSUMER_DOWN)["cause"] == "ca_file: no such file or directory"
    assert events.one(Event.CONSUMER_UP)["consumer"] == "app"


async def test_one_whose_certificate_is_not_trusted_is_down(
    rig: Rig, tls_app: ChatApp, certificates: Certificates
) -> None:
    await rig.chats("chat-1")
    await rig.say("chat-1", "one")
    async with rig.webhook(url=tls_app.url, ca_file=str(certificates.client)) as webhook:
        await rig.noted(1)
        assert webhook.trouble == "SSLCertVerificationError"
    assert tls_app.got == []


async def test_what_breaks_off_after_its_status_was_taken(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    app.script.append(Says(200, body=b"x" * 10_000_000))
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.noted(1)
        await rig.say("chat-1", "two")
        await rig.noted(2)
    assert app.texts() == ["one", "two"]


async def test_a_delivery_says_which_part_of_the_transcript_it_was(
    rig: Rig, app: ChatApp, events: Events
) -> None:
    await rig.chats("chat-1")
    app.script.append(Says(503))
    await rig.say("chat-1", "one", "two")
    async with rig.webhook():
        await rig.noted(1)
        await rig.clock.advance(1)
        await rig.noted(2)
    line = events.one(Event.EVENTS_DELIVERED)
    assert (line["first_index"], line["last_index"], line["tries"]) == (1, 2, 2)


async def test_no_delivery_comes_before_its_event_where_the_clock_is_set_back(
    rig: Rig, app: ChatApp, events: Events
) -> None:
    await rig.chats("chat-1")
    await rig.say("chat-1", "one")
    rig.clock.set_wall(-10_000)
    async with rig.webhook():
        await rig.noted(1)
    assert events.one(Event.EVENTS_DELIVERED)["lag_ms"] == 0


# -- a batch is refused --------------------------------------------------------------------------------


async def until_parked(rig: Rig, events: Events) -> None:
    """Time passes until the batch of chat-1 is put aside; chat-2 says something each minute."""
    for minute in range(200):
        if events.of(Event.EVENTS_PARKED):
            return
        await rig.say("chat-2", f"minute {minute}")
        await rig.noted(rig.store.noted + 1)
        await rig.clock.advance(60)
        await rig.until(lambda: rig.at_rest)
    raise AssertionError("it is never parked")


@pytest.mark.slow
async def test_a_refused_batch_costs_others_nothing_is_parked_and_its_chat_goes_on(
    rig: Rig, app: ChatApp, events: Events
) -> None:
    await rig.chats("chat-1", "chat-2")
    app.always["chat-1"] = Says(400)
    await rig.say("chat-1", "bad")
    async with rig.webhook():
        await rig.noted(1)
        await rig.say("chat-1", "good")
        began = rig.clock.monotonic()
        await until_parked(rig, events)
        parked_after = rig.clock.monotonic() - began
        assert PARK_AFTER <= parked_after <= PARK_AFTER + 450
        assert not events.of(Event.CONSUMER_DOWN)
        refused = [got for got in app.got if got.chat_id == "chat-1" and got.texts == ["bad"]]
        assert len({(got.number, got.body) for got in refused}) == 1
        assert len(refused) < 30, "with a backoff"
        del app.always["chat-1"]
        await rig.until(lambda: "good" in app.texts())
        await rig.clock.advance(100)  # it may have been refused meanwhile
        await rig.until(lambda: rig.at_rest)
        assert await rig.states() == (1, 1)
        assert await rig.store.replay("app", parked=True) == 1
        await rig.until(lambda: app.got[-1].texts == ["bad"])
        assert app.got[-1].number == refused[0].number
        await rig.until(lambda: rig.at_rest)
        assert await rig.states() == (0, 0)
    assert events.one(Event.EVENTS_PARKED)["chat_id"] == "chat-1"
    assert len(events.of(Event.EVENTS_REFUSED)) <= 2, "once for each batch"
    assert "bad" not in events.text


async def test_an_outage_lengthens_no_pause_of_what_is_refused_after_it(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    pauses = (1, 2, 4, 8, 16, 32)
    app.script.extend([*[Says(503)] * len(pauses), Says(400)])
    await rig.say("chat-1", "one")
    async with rig.webhook():
        for tries, pause in enumerate(pauses, start=1):
            await rig.noted(tries)
            await rig.clock.advance(pause)
        await rig.noted(len(pauses) + 1)
        await rig.clock.advance(1.25)
        await rig.noted(len(pauses) + 2)


@pytest.mark.slow
async def test_while_all_are_refused_nothing_is_parked(rig: Rig, app: ChatApp, events: Events) -> None:
    await rig.chats("chat-1", "chat-2")
    app.always = {"chat-1": Says(401), "chat-2": Says(401)}
    await rig.say("chat-1", "one")
    await rig.say("chat-2", "one")
    async with rig.webhook():
        await rig.noted(2)
        for _ in range(100):
            await rig.clock.advance(120)
            await rig.until(lambda: rig.at_rest)
        assert rig.clock.monotonic() > 3 * PARK_AFTER
        assert not events.of(Event.EVENTS_PARKED)
        app.always.clear()
        await rig.clock.advance(400)
        await rig.until(lambda: rig.at_rest)
    assert await rig.states() == (0, 0)


@pytest.mark.slow
async def test_410_pauses_the_consumer_until_somebody_resumes_it(
    rig: Rig, app: ChatApp, events: Events
) -> None:
    await rig.chats("chat-1", "chat-2")
    app.script.append(Says(410))
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.until(lambda: events.of(Event.CONSUMER_GONE))
        await rig.say("chat-2", "two")
        await rig.clock.advance(3600)
        await rig.asked(1)
        await rig.store.pause("app", paused=False)
        await rig.noted(3)
    assert app.got[1].number == app.got[0].number
    assert app.texts("chat-2") == ["two"]


# -- what is not done -------------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    elsewhere = ChatApp()
    await elsewhere.setup()
    app.script.append(Says(307, {"Location": elsewhere.url}))
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.noted(1)
    await elsewhere.cleanup()
    assert elsewhere.got == []
    assert await rig.states() == (1, 0)


async def test_a_proxy_of_the_environment_is_not_asked(
    rig: Rig, app: ChatApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ChatApp()
    await proxy.setup()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    await rig.chats("chat-1")
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.noted(1)
    await proxy.cleanup()
    assert (len(app.got), proxy.got) == (1, [])


async def test_a_cookie_is_not_kept(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    app.script.append(Says(200, {"Set-Cookie": "session=1"}))
    async with rig.webhook():
        for number in (1, 2):
            await rig.say("chat-1", "one")
            await rig.noted(number)
    assert "Cookie" not in app.got[1].headers


# -- what happens meanwhile ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 400, 503])
async def test_a_chat_may_be_forgotten_while_its_batch_is_on_its_way(
    rig: Rig, app: ChatApp, status: int
) -> None:
    await rig.chats("chat-1", "chat-2")
    hold = asyncio.Event()
    app.script.append(Says(status, when=hold))
    await rig.say("chat-1", "bye")
    async with rig.webhook():
        await rig.asked(1)
        assert await rig.store.remove("chat-1", now=rig.clock.now())
        hold.set()
        await rig.noted(1)
        await rig.say("chat-2", "hello")
        await rig.clock.advance(1)
        await rig.noted(2)
    assert [got.chat_id for got in app.got] == ["chat-1", "chat-2"]
    assert await rig.states() == (0, 0)


async def test_who_stops_while_a_batch_is_on_its_way_tells_it_again(rig: Rig, app: ChatApp) -> None:
    await rig.chats("chat-1")
    never = asyncio.Event()
    app.script.append(Says(when=never))
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.asked(1)
    await rig.say("chat-1", "two")
    async with rig.webhook():
        await rig.noted(2)
    assert [got.texts for got in app.got] == [["one"], ["one"], ["two"]]
    assert (app.got[0].number, app.got[0].body) == (app.got[1].number, app.got[1].body)


async def test_what_a_full_disk_does_not_take_down_is_not_told_again_and_again(
    rig: Rig, app: ChatApp
) -> None:
    await rig.chats("chat-1")
    hold = asyncio.Event()
    app.script.append(Says(when=hold))
    await rig.say("chat-1", "one")
    async with rig.webhook():
        await rig.asked(1)
        rig.store.fill_disk()
        hold.set()
        await rig.until(lambda: not app.answering)
        for _ in range(20):
            await rig.clock.advance(1)
        rig.store.free_disk()
        await rig.clock.advance(1)
        await rig.noted(1)
        await rig.say("chat-1", "two")
        await rig.noted(2)
    assert app.texts() == ["one", "two"]


async def test_the_newest_tokens_go_to_who_may_have_them_and_to_nobody_else(rig: Rig, app: ChatApp) -> None:
    await rig.store.enrol([replace(EVERYTHING, send_keys=True)], now=rig.clock.now())
    await rig.chats("chat-1")
    await rig.say("chat-1", news=TokenNews("chat-1", None, "a-new-key", None))
    app.script.append(Says(500))
    async with rig.webhook(send_keys=True, kinds=["tokens"]):
        await rig.noted(1)
        await rig.say("chat-1", news=TokenNews("chat-1", None, "a-newer-key", None))
        await rig.clock.advance(1)
        await rig.noted(2)
    keys = [event["event"] for got in app.got for event in got.events]
    of_chat = {"user_id": "user-of-chat-1", "alias": "117"}
    assert keys == [of_chat | {"secure_key": key} for key in ("a-new-key", "a-newer-key")]
    app.got.clear()
    await rig.say("chat-1", news=TokenNews("chat-1", None, "the-newest-key", None))
    async with rig.webhook(kinds=["tokens"]):
        await rig.noted(3)
    [got] = app.got
    assert got.texts == ["tokens"]
    assert b"key" not in got.body
