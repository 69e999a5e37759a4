"""Pushes in every form GMS may give them: taken, and acknowledged by a Refresh (protocol section 3)."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable

import pytest
from conftest import case

from .plant import KEY_MARK, Body, Chat, event, now_ms, payload, push, tokens
from .rig import SECRETS, Rig, eventually, never

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

Write = Callable[[Chat], Body]

BODIES: dict[str, Write] = {
    "object": lambda c: push(c, {"sessionId": c.chat_id, "userId": c.user_id}),
    "json text": lambda c: push(c, json.dumps({"session-id": c.chat_id, "user-id": c.user_id})),
    "json text in json text": lambda c: push(c, json.dumps(json.dumps(tokens(c)))),
    "json text thrice": lambda c: push(c, json.dumps({"data": json.dumps({"data": json.dumps(tokens(c))})})),
    "plain text": lambda c: push(c, "dummy message"),
    "text that begins like json": lambda c: push(c, "{dummy message"),
    "empty text": lambda c: push(c, ""),
    "null": lambda c: push(c, None),
    "number": lambda c: push(c, 42),
    "list": lambda c: push(c, [tokens(c)]),
    "no message": lambda c: {"deviceId": c.device_id},
    "further properties": lambda c: push(c, "dummy message") | {"type": "customhttp", "provider": None},
    "hyphens": lambda c: push(c, tokens(c, "hyphen")),
    "underscores": lambda c: push(c, tokens(c, "underscore")),
    "camel case": lambda c: push(c, tokens(c, "camel")),
    "names of the chat api": lambda c: push(c, tokens(c, "api")),
    "deep": lambda c: push(c, {"data": {"channel": "/_genesys", "list": [1, {"x": {"tokens": tokens(c)}}]}}),
    "tokens beside the message": lambda c: push(c, "dummy message") | tokens(c),
    "app-dbid is a number": lambda c: push(c, tokens(c) | {"app-dbid": int(c.alias)}),
    "session id only": lambda c: {"deviceId": "never-seen-device", "message": {"session-id": c.chat_id}},
    "no device id": lambda c: {"message": tokens(c)},
    "payload": lambda c: push(c, payload(c)),
    "payload as text": lambda c: push(c, json.dumps(payload(c))),
    "payload without tokens": lambda c: push(
        c, {"messages": [event()], "chatId": c.chat_id, "nextPosition": 3}
    ),
    "push-url": lambda c: push(c, payload(c, event("push-url", text=None))),
    "PushUrl": lambda c: push(c, payload(c, event("PushUrl"))),
    "bare event": lambda c: push(c, event("push-url") | tokens(c)),
    "several events": lambda c: push(
        c, payload(c, event("ParticipantJoined"), event(), event("TypingStarted"), event("IdleAlert"))
    ),
    "unknown event": lambda c: push(c, payload(c, event("SomethingNew", extra={"deep": [None, True]}))),
    "event of odd types": lambda c: push(
        c, {"messages": [None, 7, {"type": 12, "utcTime": "soon", "from": "x"}]}
    ),
    "messages is a text": lambda c: push(c, {"messages": json.dumps([event()]), "sessionId": c.chat_id}),
    "says the chat has ended": lambda c: push(c, payload(c, chatEnded=True)),
    "says a status code": lambda c: push(c, payload(c, statusCode=2, chatEnded=True)),
    "a leave of the customer's": lambda c: push(
        c,
        payload(c, event("ParticipantLeft", eventAttributes={"GCTI_SYSTEM": {"quit-reason-code": 3}})),
    ),
    "byte order mark": lambda c: b"\xef\xbb\xbf" + json.dumps(push(c, "dummy message")).encode(),
    "white space about": lambda c: "\r\n " + json.dumps(push(c, "dummy message")) + "\n\n",
    "any text": lambda c: push(c, payload(c, event(text="\u0000 \ud83d\ude00 \u202e \\ \" '; DROP TABLE"))),
    "half a surrogate": lambda c: json.dumps(push(c, payload(c, event(text="@")))).replace("@", "\\ud83d"),
    "long": lambda c: push(c, payload(c, event(text="x" * 100_000))),
    "huge numbers": lambda c: push(
        c, payload(c, event(utcTime=10**40, index=-(10**30)), nextPosition=10**25)
    ),
    "nested fifty deep": lambda c: push(c, json.loads("[" * 50 + "]" * 50)),
}


async def test_every_body_is_acknowledged_by_a_refresh(rig: Rig) -> None:
    async def is_acknowledged(name: str, body: Write) -> None:
        with case(name):
            (chat,) = await rig.registered()
            await rig.acknowledged(chat, body(chat))
            await rig.pinged(chat)
            assert (await rig.session(chat))["state"] == "live"

    async with asyncio.TaskGroup() as all_at_once:
        for name, body in BODIES.items():
            all_at_once.create_task(is_acknowledged(name, body))


CONTENT_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=none",
    "application/json; charset=no-such-charset",
    "application/json; charset=utf-16",
    "text/html;;;=;",
    "nonsense",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
async def test_any_content_type_is_accepted(rig: Rig, content_type: str) -> None:
    (chat,) = await rig.registered()
    await rig.acknowledged(chat, push(chat, payload(chat)), headers={"Content-Type": content_type})


async def test_a_push_really_compressed_is_taken_or_refused_but_never_an_error(rig: Rig) -> None:
    (chat,) = await rig.registered()
    body = gzip.compress(json.dumps(push(chat, "dummy message")).encode())
    answer = await rig.push(body, headers={"Content-Encoding": "gzip"})
    assert answer.status in {200, 400, 415}


async def test_a_false_content_encoding_is_refused_with_400(rig: Rig) -> None:
    (chat,) = await rig.registered()
    for encoding in ("gzip", "deflate"):
        answer = await rig.push(push(chat, "dummy message"), headers={"Content-Encoding": encoding})
        assert answer.status == 400, encoding
    await rig.acknowledged(chat, push(chat, "dummy message"))


async def test_a_small_body_that_unpacks_to_a_huge_one_is_refused(rig: Rig) -> None:
    bomb = gzip.compress(b'{"deviceId": "' + b"x" * 30_000_000 + b'"}')
    answer = await rig.push(bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status in {400, 413, 415}
    assert (await rig.api("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"dummy message",
        b"[]",
        b"42",
        b"null",
        b'"text"',
        b'{"deviceId": "x"',
        b'{"deviceId": "\xff", "message": "x"}',
        b"\xff\xfe\x00",
        b"{" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda garbage: repr(garbage[:16]),
)
async def test_garbage_is_refused_with_400(rig: Rig, garbage: bytes) -> None:
    assert (await rig.push(garbage)).status == 400


async def test_a_body_too_large_is_refused_with_413(rig: Rig) -> None:
    (chat,) = await rig.registered()
    answer = await rig.push(push(chat, payload(chat, event(text="x" * 600_000))))
    assert answer.status == 413
    await never("a Refresh", lambda: chat.refreshes, during=0.15)


async def test_every_secret_is_valid(rig: Rig) -> None:
    for secret in SECRETS:
        (chat,) = await rig.registered()
        await rig.acknowledged(chat, push(chat, "dummy message"), secret=secret)


@pytest.mark.parametrize("path", [f"/push/{SECRETS[0]}/", f"//push/{SECRETS[0]}"])
async def test_slashes_too_many_in_the_configured_url_cost_no_push(rig: Rig, path: str) -> None:
    (chat,) = await rig.registered()
    body = json.dumps(push(chat, "dummy message")).encode()
    assert (await rig.api_on_push_port("POST", path, body)).status == 200
    await eventually("the Refresh", lambda: chat.refreshes)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "wrong",
        SECRETS[0][:-1],
        f"{SECRETS[0]}x",
        f"{SECRETS[0]}/more",
        f"..%2f{SECRETS[0]}",
        SECRETS[0].upper(),
        "%C3%A9",
        "%FF%FE",
        "%00",
        "x" * 4000,
    ],
    ids=lambda wrong: repr(wrong[:24]),
)
async def test_a_wrong_secret_changes_nothing_and_tells_nothing(rig: Rig, wrong: str) -> None:
    (chat,) = await rig.registered()
    stranger = rig.plant.chat()
    elsewhere = await rig.api_on_push_port("POST", "/nothing/here", b"{}")
    for body in (push(chat, payload(chat)), push(stranger, tokens(stranger)), b"garbage"):
        answer = await rig.push(body, secret=wrong)
        assert (answer.status, answer.body) == (404, b""), (answer.status, answer.body)
        assert {**answer.headers, "Date": ""} == {**elsewhere.headers, "Date": ""}
    await never("a Refresh", lambda: chat.refreshes or stranger.refreshes, during=0.1)
    assert (await rig.api("GET", f"/v1/sessions/{stranger.chat_id}")).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_another_method_tells_nothing_about_the_secret(rig: Rig, method: str) -> None:
    right = await rig.api_on_push_port(method, f"/push/{SECRETS[0]}", b"")
    wrong = await rig.api_on_push_port(method, "/push/wrong", b"")
    assert right.status in {404, 405}
    assert wrong.status in {404, 405}
    if right.status != wrong.status:
        pytest.fail(f"{method}: {right.status} with the right secret, {wrong.status} with a wrong one")


async def test_resends_are_taken_and_leave_the_session_well(rig: Rig) -> None:
    (chat,) = await rig.registered()
    body = push(chat, payload(chat, event("push-url")))
    for _ in range(5):
        assert (await rig.push(body)).status == 200
    await eventually("the Refresh", lambda: chat.refreshes)
    await rig.pinged(chat)


# Sessions nobody registered


@pytest.mark.parametrize("spelling", ["hyphen", "underscore", "camel", "api"])
async def test_an_unknown_session_with_all_tokens_is_adopted_and_pinged(rig: Rig, spelling: str) -> None:
    chat = rig.plant.chat()
    await rig.acknowledged_anywhere(chat, push(chat, tokens(chat, spelling)))
    await rig.settled()
    seen = await rig.session(chat)
    assert (seen["state"], seen["has_secure_key"], seen["alias"]) == ("live", True, chat.alias)


async def test_an_unknown_session_is_adopted_from_a_payload_with_its_position(rig: Rig) -> None:
    chat = rig.plant.chat()
    chat.moved_to(6)
    chat.positions = {"4"}  # of the event that it announces, which no reply has shown yet
    await rig.acknowledged(chat, push(chat, json.dumps(payload(chat, nextPosition=6))))


@pytest.mark.parametrize("missing", ["user-id", "secure-key", "app-dbid"])
async def test_an_unknown_session_without_all_tokens_is_kept_and_never_pinged(rig: Rig, missing: str) -> None:
    chat = rig.plant.chat()
    rig.plant.forget_position(chat)
    some = {name: value for name, value in tokens(chat).items() if name != missing}
    await rig.pushed(chat, some)
    await rig.kept(chat)
    seen = await rig.session(chat)
    assert seen["state"] == "incomplete"
    assert seen["has_secure_key"] is (missing != "secure-key")
    listed = (await rig.get("/v1/sessions?state=incomplete&limit=1000"))["sessions"]
    assert isinstance(listed, list)
    assert chat.chat_id in {one["chat_id"] for one in listed}
    answer = await rig.api("POST", f"/v1/sessions/{chat.chat_id}/ping")
    assert 400 <= answer.status < 500
    await never("a Refresh", lambda: chat.refreshes, during=0.3)
    await rig.pushed(chat, {"session-id": chat.chat_id, missing: tokens(chat)[missing]})
    await eventually("the Refresh of the session now complete", lambda: chat.refreshes)


async def test_default_push_content_does_not_make_a_session_complete(rig: Rig) -> None:
    chat = rig.plant.chat()
    await rig.pushed(chat, {"session-id": chat.chat_id, "user-id": chat.user_id})
    await rig.kept(chat)
    await rig.pushed(chat, "dummy message")
    await never("a Refresh", lambda: chat.refreshes, during=0.3)
    assert (await rig.session(chat))["state"] == "incomplete"


async def test_a_push_of_an_unknown_device_that_names_no_session_is_taken(rig: Rig) -> None:
    assert (await rig.push({"deviceId": "nobody", "message": "dummy message"})).status == 200


# What a push must not teach


def _own(chat: Chat, other: Chat) -> dict[str, object]:
    """What a customer could write into fields of their own, to harm themselves or another."""
    bad = f"{KEY_MARK}bad"
    return {"sessionId": other.chat_id, "secureKey": bad, "secure-key": bad, "userId": "bad", "alias": "999"}


TRAPS: dict[str, Callable[[Chat, Chat], object]] = {
    "userData of an event": lambda c, o: payload(c, event(userData=_own(c, o))),
    "userData of the notification": lambda c, o: payload(c, userData=_own(c, o)),
    "userData as json text": lambda c, o: payload(c, userData=json.dumps(_own(c, o))),
    "userData, default content": lambda c, o: {"session-id": c.chat_id, "userData": _own(c, o)},
    "userData without tokens elsewhere": lambda c, o: {"messages": [event(userData=_own(c, o))]},
    "user-data": lambda c, o: payload(c, event() | {"user-data": _own(c, o), "user_data": _own(c, o)}),
    "message text": lambda c, o: payload(c, event(text=json.dumps(_own(c, o)))),
    "message text, no tokens elsewhere": lambda c, o: {"messages": [event(text=json.dumps(_own(c, o)))]},
    "message text, bare event": lambda c, o: event(text=json.dumps(_own(c, o))),
    "nickname": lambda c, o: payload(c, event() | {"from": {"nickname": json.dumps(_own(c, o))}}),
    "new nickname": lambda c, o: payload(c, event("NicknameUpdated", nickname=json.dumps(_own(c, o)))),
    "attributes of a notice": lambda c, o: payload(c, event("CustomNotice", eventAttributes=_own(c, o))),
    "attributes as json text": lambda c, o: payload(
        c, event("CustomNotice", eventAttributes=json.dumps(_own(c, o)))
    ),
    "message of a notice": lambda c, o: payload(c, event("CustomNotice", message=json.dumps(_own(c, o)))),
    "description of a file": lambda c, o: payload(
        c, event("FileUploaded", userData={"file-id": "1", "file-description": json.dumps(_own(c, o))})
    ),
}


@pytest.mark.parametrize("of_other", [False, True], ids=["own session", "another session"])
async def test_what_a_customer_writes_teaches_nothing(rig: Rig, of_other: bool) -> None:
    async def teaches_nothing(name: str, message: Callable[[Chat, Chat], object]) -> None:
        with case(name):
            chat, other = await rig.registered(2)
            named = other if of_other else chat
            await rig.acknowledged(chat, push(chat, message(chat, named)))
            for one in (chat, other):
                await rig.pinged(one)
                seen = await rig.session(one)
                assert (seen["user_id"], seen["alias"]) == (one.user_id, one.alias)

    async with asyncio.TaskGroup() as all_at_once:
        for name, message in TRAPS.items():
            all_at_once.create_task(teaches_nothing(name, message))


async def test_a_customer_cannot_invent_a_session(rig: Rig) -> None:
    (chat,) = await rig.registered()
    own = {"sessionId": "invented", "secureKey": f"{KEY_MARK}bad", "userId": "bad", "alias": "999"}
    await rig.acknowledged(chat, push(chat, {"messages": [event(userData=own, text=json.dumps(own))]}))
    assert (await rig.api("GET", "/v1/sessions/invented")).status == 404


async def test_a_push_that_mixes_two_sessions_mixes_no_tokens(rig: Rig) -> None:
    one, other = await rig.registered(2)
    answer = await rig.push(push(one, tokens(other)))
    assert answer.status in {200, 400}
    for chat in (one, other):
        await rig.pinged(chat)


async def test_a_push_names_its_next_position(rig: Rig) -> None:
    (chat,) = await rig.registered()
    chat.positions.add("9")
    seen = await rig.acknowledged(chat, push(chat, payload(chat, event(index=8), nextPosition=9)))
    assert seen.position in {"3", "9"}


# Age


async def _rotated(rig: Rig, chat: Chat) -> str:
    """Let a reply give the session a new key; the old one."""
    old = chat.secure_key
    chat.answers.append({"secureKey": rig.plant.new_key()})
    await rig.pinged(chat)
    return old


def _with_key(chat: Chat, key: str) -> dict[str, object]:
    return tokens(chat) | {"secure-key": key}


async def test_an_old_key_in_a_push_without_a_time_does_not_come_back(rig: Rig) -> None:
    (chat,) = await rig.registered()
    first = await _rotated(rig, chat)
    second = await _rotated(rig, chat)
    for old in (first, second, first):
        await rig.acknowledged(chat, push(chat, _with_key(chat, old)))
        await rig.pinged(chat)


async def test_an_old_key_in_a_push_with_an_old_time_does_not_come_back(rig: Rig) -> None:
    (chat,) = await rig.registered()
    old = await _rotated(rig, chat)
    await rig.acknowledged(chat, push(chat, payload(chat, event(at=-30.0), secureKey=old)))
    await rig.pinged(chat)


async def test_an_old_key_does_not_come_back_even_with_a_fresh_time(rig: Rig) -> None:
    """A resend may be stamped anew; the key in it was replaced by a reply all the same."""
    (chat,) = await rig.registered()
    old = await _rotated(rig, chat)
    await rig.acknowledged(chat, push(chat, payload(chat, event("push-url"), secureKey=old)))
    await rig.pinged(chat)


@pytest.mark.parametrize("where", ["event", "notification", "bare event"])
async def test_a_key_never_seen_in_an_old_push_teaches_nothing(rig: Rig, where: str) -> None:
    """Between registration and the last reply the key may have changed twice; the push was of the time between."""
    (chat,) = await rig.registered()
    await rig.pinged(chat)
    between = rig.plant.new_key()
    messages = {
        "event": payload(chat, event(at=-30.0), secureKey=between, alias="999", userId="older"),
        "notification": _with_key(chat, between) | {"utcTime": now_ms(-30), "app-dbid": "999"},
        "bare event": event("push-url", at=-30.0) | _with_key(chat, between),
    }
    await rig.acknowledged(chat, push(chat, messages[where]))
    await rig.pinged(chat)


@pytest.mark.parametrize("timed", [True, False], ids=["with a fresh time", "without a time"])
async def test_a_new_key_in_a_fresh_push_is_used_for_the_next_ping(rig: Rig, timed: bool) -> None:
    (chat,) = await rig.registered()
    await rig.pinged(chat)
    key = rig.plant.rekey(chat)
    message = payload(chat, event()) if timed else tokens(chat)
    before = len(chat.refreshes)
    await rig.pushed(chat, message)
    rig.plant.told(chat)
    await eventually("the Refresh", lambda: len(chat.refreshes) > before)
    assert chat.refreshes[before].secure_key == key
    await rig.pinged(chat)


async def test_a_new_alias_and_user_in_a_fresh_push_are_used_for_the_next_ping(rig: Rig) -> None:
    (chat,) = await rig.registered()
    await rig.pinged(chat)
    chat.alias, chat.user_id = rig.plant.servers[1].alias, "052B0000000000FF"
    await rig.acknowledged(chat, push(chat, payload(chat)))


async def test_a_reply_on_its_way_does_not_undo_what_a_push_taught_meanwhile(rig: Rig) -> None:
    """The request left with the old key, the server answered with it, then gave a new key by push."""
    (chat,) = await rig.registered()
    old = chat.secure_key
    rig.plant.gate.clear()
    await rig.ask_ping(chat)
    await eventually("the request in flight", lambda: chat.in_flight)
    key = rig.plant.rekey(chat)
    await rig.pushed(chat, payload(chat, event()))
    rig.plant.told(chat)
    rig.plant.gate.set()
    await eventually("the Refresh that acknowledges", lambda: len(chat.refreshes) == 2)
    assert [seen.secure_key for seen in chat.refreshes] == [old, key]
    await rig.pinged(chat)


async def test_a_reply_on_its_way_does_not_undo_a_new_alias_and_user(rig: Rig) -> None:
    (chat,) = await rig.registered()
    rig.plant.gate.clear()
    await rig.ask_ping(chat)
    await eventually("the request in flight", lambda: chat.in_flight)
    chat.alias, chat.user_id = rig.plant.servers[1].alias, "052B0000000000FF"
    await rig.pushed(chat, payload(chat, event()))
    rig.plant.gate.set()
    await eventually("the Refresh that acknowledges", lambda: len(chat.refreshes) == 2)
    assert (chat.refreshes[1].alias, chat.refreshes[1].user_id) == (chat.alias, chat.user_id)


async def test_a_push_that_comes_during_a_refresh_does_not_undo_its_reply(rig: Rig) -> None:
    """The push is of a time before the request was sent, so that the key in the reply is the newer one."""
    (chat,) = await rig.registered()
    await rig.pinged(chat)
    rig.plant.rekey(chat)
    late = push(chat, payload(chat, event()))
    await asyncio.sleep(0.05)  # so that the push is older by more than the clock's grain
    rig.plant.gate.clear()
    chat.answers.append({"secureKey": rig.plant.new_key()})
    await rig.ask_ping(chat)
    await eventually("the request in flight", lambda: chat.in_flight)
    rig.plant.told(chat)
    assert (await rig.push(late)).status == 200
    rig.plant.gate.set()
    await eventually("the Refresh that acknowledges", lambda: len(chat.refreshes) == 3)
    await rig.pinged(chat)


async def test_a_push_during_a_refresh_is_acknowledged_by_a_later_one(rig: Rig) -> None:
    """The request in flight arrived before the push left, so that it acknowledges nothing."""
    (chat,) = await rig.registered()
    rig.plant.gate.clear()
    await rig.ask_ping(chat)
    await eventually("the request in flight", lambda: chat.in_flight)
    await rig.pushed(chat)
    rig.plant.gate.set()
    await eventually("the Refresh that acknowledges", lambda: len(chat.refreshes) == 2)
