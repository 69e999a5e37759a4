"""The gateway with everything around it: plain clients chat, and ride through the loss of their Chat Server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from conftest import Events, FakeClock, PromptStore, settings_of, settle, soon
from prometheus_client.metrics import MetricWrapperBase
from stores.desk import registration

from asyncchatd.gateway.beginning.opening import Opened
from asyncchatd.gateway.calling.calls import Fate, Outcome
from asyncchatd.gateway.watching.watched import A_CHAT, Watched
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model import replace
from asyncchatd.model.data import Session, Tokens
from asyncchatd.standin.settings import PlantSettings, Rotation
from asyncchatd.stores import StoreError
from asyncchatd.wire import ClientCall

from .hall import KEY, Hall, Json, hall
from .rig import Client, Shop, shop
from .test_kept_keys import rotate

pytestmark = pytest.mark.usefixtures("events")


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    """One shop, whose plant must not have suffered."""
    async with shop(tmp_path) as opened:
        yield opened
        assert opened.wrong() == {}


async def test_a_chat_begins_with_a_key_of_the_gateways(here: Shop) -> None:
    client = await here.open(subject="parcel")
    assert set(client.opened) >= {
        *("statusCode", "chatId", "userId", "secureKey", "alias", "messages", "chatEnded", "nextPosition")
    }
    assert client.opened["secureKey"] != here.chat(client).secure_key
    assert (client.opened["messages"], client.opened["nextPosition"]) == ([], 1)


@pytest.mark.slow
async def test_what_both_sides_say_is_shown_once_and_in_order(here: Shop) -> None:
    client = await here.open()
    await client.call("send", message="Hello & bye")
    here.plant.plant.say(here.chat(client), "How can I help?")
    await client.until(lambda: len(client.texts) == 2)
    await client.call("send", message="Where is my parcel?")
    here.plant.plant.say(here.chat(client), "On its way")
    await client.until(lambda: len(client.texts) == 4)
    assert client.texts == ["Hello & bye", "How can I help?", "Where is my parcel?", "On its way"]
    await client.poll()
    assert len(client.texts) == 4


@pytest.mark.slow
async def test_what_a_page_was_told_first_is_logged(here: Shop, events: Events) -> None:
    client = await here.open()
    await client.begins()
    says, again = here.plant.plant.say, Client(here, client.opened)
    says(here.chat(client), "Hello")
    await client.hears(1)
    await again.hears(1)
    told = [(line["chat_id"], line["last_index"]) for line in events.of(Event.EVENTS_SHOWN)]
    assert told == [(client.chat_id, client.shown[0]["index"]), (client.chat_id, client.position - 1)]
    assert all(line["lag_ms"] in range(30_000) for line in events.of(Event.EVENTS_SHOWN))


@pytest.mark.slow
async def test_polls_do_not_reach_gms(here: Shop) -> None:
    client = await here.open()
    await client.begins()
    before = here.requests("refresh")
    for _ in range(5):
        assert (await client.poll())["messages"] == []
    assert here.requests("refresh") == before


@pytest.mark.slow
async def test_a_held_poll_is_answered_when_the_agent_writes(here: Shop, tmp_path: Path) -> None:
    async with shop(tmp_path, hold="8s") as patient:
        client = await patient.open()
        await client.begins()
        poll = asyncio.create_task(client.poll())
        await patient.held(1)
        began = time.monotonic()
        patient.plant.plant.say(patient.chat(client), "Hello")
        await soon(poll)
        assert client.texts == ["Hello"]
        assert time.monotonic() - began < 5


@pytest.mark.slow
async def test_a_second_poll_takes_the_place_of_the_one_that_is_held(tmp_path: Path) -> None:
    async with shop(tmp_path, hold="5s") as patient:
        client = await patient.open()
        await client.begins()
        first = asyncio.create_task(client.poll())
        await patient.held(1)
        second = asyncio.create_task(client.poll())
        assert (await soon(first))["messages"] == []
        patient.plant.plant.say(patient.chat(client), "Hello")
        assert len((await soon(second))["messages"]) == 1


@pytest.mark.slow
async def test_a_client_that_keeps_its_first_key_rides_through_the_loss_of_its_chat_server(
    here: Shop,
) -> None:
    client = await here.open()
    await client.call("send", message="before")
    await client.until(lambda: client.texts)
    key = here.chat(client).secure_key
    for name in list(here.plant.health_urls):
        here.plant.plant.servers.restart(name)
    await client.until(lambda: here.chat(client).secure_key != key)
    for _ in range(50):
        if (await client.call("send", message="after"))["statusCode"] == 0:
            break
    await client.until(lambda: len(client.texts) == 2)
    here.plant.plant.say(here.chat(client), "I am back")
    await client.until(lambda: len(client.texts) == 3)
    assert client.texts == ["before", "after", "I am back"]
    assert not client.ended


async def test_a_wrong_key_never_reaches_gms(here: Shop) -> None:
    client = await here.open()
    other = await here.open()
    for each in (client, other):
        await each.begins()
    before = here.plant.plant.report().requests
    for key in ("", "deadbeef", other.opened["secureKey"], here.chat(client).secure_key):
        for operation in ("refresh", "send", "disconnect"):
            pairs = {**client.triple, "secureKey": key, "message": "x"}
            _, reply = await here.post(f"/{client.chat_id}/{operation}", pairs)
            assert (reply["statusCode"], reply["chatEnded"], "errors" in reply) == (2, True, False)
    assert here.plant.plant.report().requests == before


async def test_a_poll_that_cannot_be_read_gets_no_http_error_and_a_call_does(here: Shop) -> None:
    client = await here.open()
    json = {"Content-Type": "application/json"}
    status, reply = await here.post(f"/{client.chat_id}/refresh", b"{}", **json)
    assert (status, reply["statusCode"], reply["chatEnded"]) == (200, 2, True)
    status, reply = await here.post(f"/{client.chat_id}/send", b"{}", **json)
    assert (status, reply["errors"][0]["advice"]) == (
        400,
        "expected a form, as the Chat API has it, not JSON",
    )
    assert here.requests("send") == 0


async def test_parts_are_read_as_a_form_is(here: Shop) -> None:
    client = await here.open()
    said = {**client.triple, "message": "sent in parts"}
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in said.items()
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    _, reply = await here.post(f"/{client.chat_id}/send", f"{parts}--x--\r\n".encode(), **headers)
    assert reply["statusCode"] == 0
    await client.until(lambda: client.texts == ["sent in parts"])


async def test_a_chat_that_nobody_knows_is_never_said_to_have_ended(here: Shop) -> None:
    client = await here.open()
    async with here.http.delete(f"{here.control}/v1/sessions/{client.chat_id}"):
        pass
    stranger = Client(here, {**client.opened, "chatId": "another"})
    _, reply = await here.post("/another/refresh", stranger.triple)
    assert reply["statusCode"] == 2  # its key is another chat's


@pytest.mark.slow
async def test_the_end_is_told_with_the_last_words_and_without_errors(here: Shop) -> None:
    client = await here.open()
    await client.call("send", message="Hello")
    here.plant.plant.say(here.chat(client), "Bye")
    here.plant.plant.end_chats([here.chat(client)])
    await client.call("startTyping")
    await client.until(lambda: client.ended)
    last = await client.poll()
    assert (last["statusCode"], last["chatEnded"], "errors" in last) == (0, True, False)
    after = await client.call("send", message="too late")
    assert (after["statusCode"], after["chatEnded"], "errors" in after) == (0, True, False)


async def test_replies_to_calls_carry_no_events_and_the_polls_position(here: Shop) -> None:
    client = await here.open()
    await client.begins()
    reply = await client.call("send", message="Hello", transcriptPosition="1")
    assert (reply["messages"], reply["nextPosition"]) == ([], client.position)
    assert reply["secureKey"] == client.opened["secureKey"]


async def test_a_clients_own_subscription_is_dropped_and_ours_is_there(here: Shop) -> None:
    pairs = (
        b"&nickname=Ann&userData%5BGCTI_GMS_PushDeviceId%5D=theirs&userData[%22gcti_chat_pushsubscribe%22]=false"
        b"&userData[color]=red&secureKey=&userId=&alias="
    )
    _, reply = await here.post("/", pairs)
    chat = here.plant.plant.sessions[reply["chatId"]]
    assert chat.device_id not in (None, "theirs")
    assert len(chat.device_id or "") == 32
    async with here.http.get(f"{here.control}/v1/sessions/{reply['chatId']}") as response:
        session = await response.json()
    assert session["device_id"] == chat.device_id


async def test_many_calls_at_once_go_one_after_the_other(here: Shop) -> None:
    client = await here.open()
    said = [f"line {number}" for number in range(8)]
    replies = await asyncio.gather(*(client.call("send", message=text) for text in said))
    assert [reply["statusCode"] for reply in replies] == [0] * 8
    await client.until(lambda: len(client.texts) == 8)
    assert client.texts == said


@pytest.mark.slow
async def test_too_many_waiting_calls_are_told_so(tmp_path: Path) -> None:
    plant = PlantSettings(rotate=Rotation.RESTORE, latency=0.2)
    async with shop(tmp_path, plant=plant, max_waiting=2) as slow:
        client = await slow.open()
        asked = [slow.post(f"/{client.chat_id}/send", {**client.triple, "message": str(n)}) for n in range(6)]
        answers = await soon(asyncio.gather(*asked))
        assert {status for status, _ in answers} == {200, 429}
        assert all(reply["statusCode"] == 1 for status, reply in answers if status == 429)


async def test_too_many_new_chats_in_a_second_are_told_so(tmp_path: Path) -> None:
    async with shop(tmp_path, max_new_chats=2) as small:
        answers = await asyncio.gather(*(small.post("", {"nickname": "Ann"}) for _ in range(4)))
        assert sorted(status for status, _ in answers) == [200, 200, 429, 429]


async def test_a_page_that_is_reloaded_gets_all_again(here: Shop) -> None:
    client = await here.open()
    await client.call("send", message="Hello")
    await client.until(lambda: client.texts)
    for position in ("1", "undefined", ""):
        again = await client.poll(position)
        assert [event.get("text") for event in again["messages"]] == [None, "Hello"]
    assert (await client.poll("0"))["messages"] == []
    assert [event["text"] for event in (await client.poll("-1"))["messages"]] == ["Hello"]


async def test_a_restart_of_the_daemon_is_not_noticed(tmp_path: Path) -> None:
    async with shop(tmp_path, store="sqlite:///chats.db") as first:
        client = await first.open()
        await client.call("send", message="Hello")
        await client.until(lambda: client.texts)
        sessions = first.plant.plant.sessions
        assert client.chat_id in sessions
    async with shop(tmp_path, store="sqlite:///chats.db") as second:
        again = Client(second, client.opened)
        reply = await again.poll("1")
        assert [event.get("text") for event in reply["messages"]] == [None, "Hello"]


async def test_what_is_no_call_of_the_chat_api_is_404(here: Shop) -> None:
    client = await here.open()
    status, reply = await here.post(f"/{client.chat_id}/sing", client.triple)
    assert (status, reply["statusCode"]) == (404, 2)


@pytest.mark.slow
async def test_a_poll_whose_client_has_left_leaves_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path, hold="60s") as patient:
        client = await patient.open()
        await client.begins()
        for _ in range(20):
            poll = asyncio.create_task(client.poll())
            await patient.held(1)
            poll.cancel()
            await patient.held(0)
        await soon(client.call("send", message="Hello"))
        await client.until(lambda: client.texts)


async def test_a_stop_answers_the_polls_that_are_held_at_once(tmp_path: Path) -> None:
    async with shop(tmp_path, hold="60s") as patient:
        client = await patient.open()
        await client.begins()
        poll = asyncio.create_task(client.poll())
        await patient.held(1)
        patient.stop.set()
        assert (await soon(poll))["messages"] == []


async def test_where_all_places_are_held_the_longest_held_poll_is_answered(tmp_path: Path) -> None:
    async with shop(tmp_path, hold="60s", max_connections=8) as small:
        clients = [await small.open() for _ in range(10)]
        for client in clients:
            await client.begins()
        polls = []
        for count, client in enumerate(clients, start=1):
            polls.append(asyncio.create_task(client.poll()))
            if count > 8:
                assert (await soon(polls[count - 9]))["messages"] == []
            await small.held(min(count, 8))
        for poll in polls[2:]:
            poll.cancel()


@pytest.mark.slow
async def test_a_chat_that_gms_cannot_begin_in_time_is_not_begun_later(tmp_path: Path) -> None:
    """Nobody waits for it any longer: it would be nobody's."""
    async with shop(tmp_path, patience="300ms") as here:
        for node in here.plant.nodes:
            await node.kill()
        replies = [(await soon(here.post("", {"nickname": "Ann"})))[1] for _ in range(3)]
        assert [reply["statusCode"] for reply in replies] == [1, 1, 1]
        for node in here.plant.nodes:
            await node.start()
        assert here.requests("requestChat") == 0


async def test_what_was_said_is_gone_with_its_session(here: Shop) -> None:
    client = await here.open()
    await client.call("send", message="Hello")
    await client.hears(1)
    poll = asyncio.create_task(client.call("refresh", transcriptPosition=str(client.position), wait="20"))
    await here.held(1)
    async with here.http.delete(f"{here.control}/v1/sessions/{client.chat_id}") as response:
        assert response.status == 204
    assert (await soon(poll))["messages"] == []
    reply = await client.poll(1)
    assert (reply["messages"], reply["statusCode"], reply["chatEnded"]) == ([], 0, True)


@pytest.mark.slow
async def test_a_client_misses_nothing_though_its_events_are_counted_anew_again_and_again(
    tmp_path: Path,
) -> None:
    plant = PlantSettings(rotate=Rotation.RESTORE, renumber=True)
    async with shop(tmp_path, plant=plant) as here:
        client = await here.open()
        said: list[str] = []

        async def talk() -> None:
            for _ in range(2):
                said.append(f"customer {len(said)}")
                await client.call("startTyping")
                await client.call("send", message=said[-1])
                said.append(f"agent {len(said)}")
                here.plant.plant.say(here.chat(client), said[-1])
                await client.hears(len(said))

        await talk()
        for _ in range(2):
            await rotate(here, client)
            await talk()
        assert client.texts == said


# -- what cannot be served now ---------------------------------------------------------------------------


@pytest.mark.parametrize(("position", "following"), [("7", 7), ("1", 1), ("0", 1), ("-1", 1)])
async def test_a_call_of_a_chat_that_is_not_known_here_is_told_to_come_again(
    position: str, following: int, tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock) as here:
        form = here.form("another", message="Hello", transcriptPosition=position)
        status, reply = await soon(here.post("send", form, "another"))
        assert (status, reply["statusCode"], reply["nextPosition"]) == (200, 1, following)
        assert [error["code"] for error in reply["errors"]] == [503]
        assert not reply["chatEnded"]


async def test_while_the_store_fails_a_call_and_a_stream_are_told_to_come_again(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock) as here:
        store.fill_disk()
        _, reply = await soon(here.post("send", here.form(message="Hello")))
        assert (reply["statusCode"], [error["code"] for error in reply["errors"]]) == (1, [503])
        async with here.http.post(here.url("events"), data=here.form()) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
        store.free_disk()
        reader = await here.stream(3)
        await here.said("Hello")
        await reader.hears("Hello")


async def upload(here: Hall, chat: str = "chat-1") -> aiohttp.ClientResponse:
    """A file that a client of this chat sends."""
    form = aiohttp.FormData(here.form(chat))
    form.add_field("file", b"x", filename="a.bin")
    return await soon(here.http.post(here.url("file", chat), data=form))


async def test_a_file_of_a_chat_that_is_not_known_here_is_told_to_come_again(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock) as here:
        async with await upload(here, "another") as response:
            reply = await response.json()
        assert (response.status, reply["statusCode"], reply["chatEnded"]) == (200, 1, False)
        assert [error["code"] for error in reply["errors"]] == [503]


async def test_while_the_store_fails_a_file_is_told_to_come_again(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock) as here:
        store.fill_disk()
        async with await upload(here) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
        store.free_disk()


async def test_each_request_for_which_the_store_fails_is_told(
    tmp_path: Path, store: PromptStore, clock: FakeClock, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(chat_id: str) -> Session | None:
        raise StoreError(f"{chat_id} cannot be read")

    async with hall(tmp_path, store, clock) as here:
        monkeypatch.setattr(store, "get", fails)
        await soon(here.post("send", here.form("one", message="Hello"), "one"))
        async with here.http.post(here.url("events", "two"), data=here.form("two")) as response:
            assert response.status == 503
        async with await upload(here, "three") as response:
            assert response.status == 503
    told = [line["cause"] for line in events.of(Event.STORE_FAILED)]
    assert told == [f"{chat_id} cannot be read" for chat_id in ("one", "two", "three")]


# -- what became of a call ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status", "told", "is_looked_for"),
    [
        (Outcome(Fate.DONE, b"{}"), 200, (0, False, []), True),
        (Outcome(Fate.UNKNOWN), 200, (1, False, [503]), True),
        (Outcome(Fate.NOT_SENT), 200, (1, False, [503]), False),
        (Outcome(Fate.TOO_MANY), 429, (1, False, [503]), False),
        (Outcome(Fate.ENDED), 200, (0, True, []), False),
        (Outcome(Fate.REFUSED, b'{"errors":[{"code":261,"advice":"no"}]}', 2), 200, (2, False, [261]), False),
    ],
    ids=lambda each: str(each.fate) if isinstance(each, Outcome) else "",
)
async def test_a_client_is_told_what_became_of_its_call_and_what_others_may_answer_is_looked_for(
    outcome: Outcome,
    status: int,
    told: tuple[int, bool, list[int]],
    is_looked_for: bool,
    tmp_path: Path,
    store: PromptStore,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answered(call: ClientCall, chat: Watched) -> Outcome:
        return outcome

    looked_for = list[str]()
    async with hall(tmp_path, store, clock) as here:
        monkeypatch.setattr(here.chats._calls, "answer", answered)
        monkeypatch.setattr(here.chats._looks, "called", lambda chat: looked_for.append(chat.chat_id))
        form = here.form(message="Hello", transcriptPosition="0")
        got, reply = await soon(here.post("send", form))
    errors = [error["code"] for error in reply.get("errors", [])]
    assert got == status
    assert (reply["statusCode"], reply["chatEnded"], errors) == told
    assert reply["nextPosition"] == 1
    assert looked_for == ["chat-1"] * is_looked_for


BEGUN = Tokens("chat-7", "user-7", "key-of-gms", "117")


async def begins(
    opened: Opened,
    directory: Path,
    store: PromptStore,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[int, Json, list[str]]:
    """What a client is told whose chat was begun like this: the status, the reply, and the chats that are looked at."""

    async def begun(call: ClientCall) -> Opened:
        return opened

    looked_at = list[str]()
    async with hall(directory, store, clock) as here:
        monkeypatch.setattr(here.chats._opening, "open", begun)
        monkeypatch.setattr(here.chats._looks, "opened", looked_at.append)
        async with here.http.post(here.base, data={"nickname": "Ann"}) as response:
            return response.status, await response.json(), looked_at


@pytest.mark.parametrize(
    ("opened", "status", "status_code", "code"),
    [
        (Opened(), 200, 1, 503),
        (Opened(too_many=True), 429, 1, 503),
        (Opened(status_code=2, body=b'{"errors":[{"code":261,"advice":"no"}]}'), 200, 2, 261),
    ],
)
async def test_a_client_whose_chat_does_not_begin_is_told_why(
    opened: Opened,
    status: int,
    status_code: int,
    code: int,
    tmp_path: Path,
    store: PromptStore,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got, reply, looked_at = await begins(opened, tmp_path, store, clock, monkeypatch)
    assert (got, reply["statusCode"], reply["nextPosition"]) == (status, status_code, 1)
    assert ([error["code"] for error in reply["errors"]], looked_at) == ([code], [])


@pytest.mark.parametrize("with_its_key", [True, False])
async def test_a_client_whose_chat_begins_is_told_the_key_that_was_registered(
    with_its_key: bool, tmp_path: Path, store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(BEGUN, 0, b"{}", with_its_key=with_its_key)
    got, reply, looked_at = await begins(opened, tmp_path, store, clock, monkeypatch)
    assert (got, reply["statusCode"], reply["nextPosition"]) == (200, 0, 1)
    assert [reply[name] for name in ("chatId", "userId", "alias")] == ["chat-7", "user-7", "117"]
    assert (reply["secureKey"] == "key-of-gms") == with_its_key
    assert looked_at == ["chat-7"]


# -- the end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["_calls", "_opening", "_adopting"])
async def test_a_stop_waits_for_what_was_sent_and_not_for_longer_than_the_grace(
    part: str, tmp_path: Path, store: PromptStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = asyncio.Event()
    async with hall(tmp_path, store, clock) as here:
        monkeypatch.setattr(getattr(here.chats, part), "drain", answered.wait)
        await soon(here.chats.drain(0.01))
        drained = asyncio.create_task(here.chats.drain(60))
        await settle()
        assert not drained.done()
        answered.set()
        await soon(drained)


# -- other settings --------------------------------------------------------------------------------------


async def test_settings_that_are_reloaded_hold_for_every_part(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock) as here:
        more = {"hold": "1s", "patience": "4s", "max_waiting": 3, "max_adoptions": 7, "max_rate": 5}
        looks = {"check_interval": "5m", "fallback_interval": "20s"}
        here.reload(adopt=True, **more, **looks)
        calls, adopting, judge = here.chats._calls, here.chats._adopting, here.chats._looks._judge
        assert here.chats._polls.hold == 1
        assert (calls.patience, calls.max_waiting, calls.lane.rate) == (4, 3, 5)
        assert (adopting.patience, adopting.most) == (4, 7)
        assert here.chats._opening.settings.max_adoptions == 7
        assert (judge.check_interval, judge.fallback_interval) == (300, 20)
        here.reload(max_adoptions=7, patience="5s")
        assert adopting.most == 0  # nobody is taken over any more
        here.chats.reload(settings_of(tmp_path))  # a gateway is not ended by a reload
        assert calls.patience == 5


# -- what is told of all of them -------------------------------------------------------------------------


def gauge(metric: MetricWrapperBase) -> float:
    return next(iter(metric.collect())).samples[0].value


async def test_the_metrics_tell_what_is_held_and_what_is_watched(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock) as here:
        told = (metrics.POLLS_HELD, metrics.STREAMS_OPEN, metrics.CHATS_WATCHED, metrics.CHATS_WATCHED_BYTES)
        assert [gauge(each) for each in told] == [0, 0, 0, 0]
        await here.chat("chat-2")
        poll = here.poll(3, wait="25")
        streams = [await here.stream(3, chat="chat-2") for _ in range(2)]
        await here.held(polls=1, streams=2)
        assert [gauge(each) for each in told] == [1, 2, 2, 2 * A_CHAT]
        for each in streams:
            each.response.close()
        await here.said("Hello")
        await soon(poll)
        await here.held()
        held, open_streams, watched, size = (gauge(each) for each in told)
        assert (held, open_streams, watched) == (0, 0, 2)
        assert size > 2 * A_CHAT


async def test_each_request_is_counted_by_the_key_that_it_came_with(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    def counted() -> list[float]:
        kinds = ("newest", "older", "came_with", "wrong")
        return [metrics.GATEWAY_KEYS.labels(kind)._value.get() for kind in kinds]

    async with hall(tmp_path, store, clock) as here:

        async def asks(form: dict[str, str], chat: str = "chat-1") -> list[float]:
            before = counted()
            await soon(here.post("events/ticket", form, chat))
            return [now - then for now, then in zip(counted(), before, strict=True)]

        assert await asks(here.form()) == [1, 0, 0, 0]
        assert await asks(here.form(secureKey="deadbeef")) == [0, 0, 0, 1]
        came_with = here.chats.digest("chat-2", "key-2")
        await here.desk.register(replace(registration("chat-2"), came_with=came_with))
        assert await asks(here.form("chat-2", secureKey="key-2"), "chat-2") == [0, 0, 1, 0]
        (tmp_path / "two-keys").write_text(f"{'7a' * 32}\n{KEY}")
        here.reload(key_file="two-keys")
        assert await asks(here.form()) == [0, 1, 0, 0]
