"""Only a reply ends a session, and an ended session is never pinged again (protocol section 2, dangers 1 and 2)."""

from __future__ import annotations

import json

import pytest

from .conftest import Start
from .plant import KEY_MARK, Reply, event, payload, push
from .rig import Rig, eventually, never

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("status_code", [0, 2])
async def test_chat_ended_stops_pings_for_ever(rig: Rig, status_code: int) -> None:
    (chat,) = await rig.registered()
    chat.answers.append({"statusCode": status_code, "chatEnded": True})
    await rig.pinged(chat)
    assert (await rig.session(chat))["state"] == "ended"
    answer = await rig.push(push(chat, payload(chat)))
    assert answer.status == 200
    again = await rig.api("POST", f"/v1/sessions/{chat.chat_id}/ping")
    assert again.status < 500
    await rig.api("POST", "/v1/servers/chat-1/restore")
    await never("a ping after the end", lambda: len(chat.refreshes) > 1, during=0.25)
    assert (await rig.session(chat))["state"] == "ended"


async def test_an_ended_session_is_not_revived_by_a_push_with_tokens(rig: Rig) -> None:
    (chat,) = await rig.registered()
    chat.answers.append({"statusCode": 0, "chatEnded": True})
    await rig.pinged(chat)
    for message in (payload(chat, secureKey=rig.plant.new_key()), payload(chat, event("push-url"))):
        await rig.pushed(chat, message)
    await never("a ping after the end", lambda: len(chat.refreshes) > 1, during=0.2)


async def test_status_code_2_without_chat_ended_is_not_the_end(rig: Rig) -> None:
    (chat,) = await rig.registered()
    chat.answers.extend({"statusCode": 2, "errors": [{"code": 249, "advice": "x"}]} for _ in range(2))
    await rig.pinged(chat)
    assert (await rig.session(chat))["state"] == "live"
    await rig.acknowledged(chat, push(chat, "dummy message"))
    assert (await rig.session(chat))["state"] == "live"
    await rig.pinged(chat)


async def test_status_code_2_with_chat_ended_false_is_not_the_end(rig: Rig) -> None:
    (chat,) = await rig.registered()
    chat.answers.append({"statusCode": 2, "chatEnded": False})
    await rig.pinged(chat)
    assert (await rig.session(chat))["state"] == "live"


async def test_status_code_1_is_retried_with_backoff_and_never_ends_the_session(rig: Rig) -> None:
    (chat,) = await rig.registered()
    chat.answers.extend({"statusCode": 1, "errors": [{"code": 100}]} for _ in range(6))
    await rig.ask_ping(chat)
    await eventually("the seventh, answered with 0", lambda: len(chat.refreshes) >= 7, within=8)
    times = [seen.at for seen in chat.refreshes[:7]]
    # Full jitter from 200 ms to 800 ms: six pauses of 0.1 to 0.4 s in the mean.
    assert times[-1] - times[0] >= 0.4, f"six retries within {times[-1] - times[0]:.2f} s"
    await rig.settled()
    assert (await rig.session(chat))["state"] == "live"
    seven = len(chat.refreshes)
    await never("a retry after the success", lambda: len(chat.refreshes) > seven, during=0.3)


async def test_nothing_in_a_reply_that_is_not_a_success_is_trusted(rig: Rig) -> None:
    (chat,) = await rig.registered()
    lies = {
        "secureKey": f"{KEY_MARK}bad",
        "userId": "bad",
        "alias": "999",
        "nextPosition": 77,
        "chatId": "bad",
    }
    for answer in ({"statusCode": 1, "chatEnded": True} | lies, {"statusCode": 2, "chatEnded": False} | lies):
        chat.answers.append(answer)
        await rig.pinged(chat)
        await rig.pinged(chat)
    assert (await rig.session(chat))["state"] == "live"


async def test_a_success_about_another_chat_teaches_nothing(rig: Rig) -> None:
    chat, other = await rig.registered(2)
    chat.answers.append(
        Reply(
            {"statusCode": 0, "chatId": other.chat_id, "secureKey": other.secure_key, "userId": other.user_id}
        )
    )
    await rig.ask_ping(chat)
    await eventually("the mixed-up answer", lambda: chat.refreshes)
    await rig.settled()
    for one in (chat, other):
        await rig.pinged(one)


GARBAGE: dict[str, Reply] = {
    "html": Reply("<html><body>Chat ended: true</body></html>", headers={"Content-Type": "text/html"}),
    "html 502": Reply("<h1>Bad Gateway</h1>", 502, headers={"Content-Type": "text/html"}),
    "forbidden": Reply("Forbidden", 403, headers={"Content-Type": "text/plain"}),
    "unauthorized": Reply("", 401),
    "not found": Reply('{"statusCode": 0}', 404),
    "bad request": Reply({"chatEnded": True, "message": "bad request"}, 400),
    "500 with json": Reply({"error": "internal", "chatEnded": True}, 500),
    "redirect": Reply("", 302, headers={"Location": "http://127.0.0.1:9/login"}),
    "no content": Reply("", 204),
    "empty": Reply(""),
    "truncated json": Reply('{"statusCode":0,"chatEnded":true,"secureKey":"' + KEY_MARK + "bad"),
    "cut in the middle": Reply({"statusCode": 2, "chatEnded": True}, cut=20),
    "list": Reply("[]"),
    "null": Reply("null"),
    "no status code": Reply({"chatEnded": True, "secureKey": f"{KEY_MARK}bad"}),
    "odd status code": Reply({"statusCode": "ok", "secureKey": f"{KEY_MARK}bad"}),
    "unknown status code": Reply({"statusCode": 3, "chatEnded": True, "secureKey": f"{KEY_MARK}bad"}),
    "huge status code": Reply('{"statusCode": 1e400, "chatEnded": true}'),
    "status code is true": Reply({"statusCode": True, "chatEnded": True}),
    "deep": Reply("[" * 200_000),
    "binary": Reply(bytes(range(256))),
    "false gzip": Reply({"statusCode": 0}, headers={"Content-Encoding": "gzip"}),
    "false charset": Reply(
        "{\udcff".encode("utf-8", "surrogateescape"), headers={"Content-Type": "a; charset=x"}
    ),
    "no farewell": Reply("", cut=0, headers={"Content-Length": "50"}),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_from_gms_neither_ends_a_session_nor_teaches_it_anything(
    rig: Rig, garbage: Reply
) -> None:
    (chat,) = await rig.registered()
    chat.answers.append(garbage)
    await rig.ask_ping(chat)
    await eventually("the garbage", lambda: chat.refreshes)
    await rig.settled()
    assert (await rig.session(chat))["state"] == "live"
    await rig.ask_ping(chat)
    await eventually("a later success", lambda: chat.refreshes[-1].status_code == 0, within=4)
    await rig.settled()
    await rig.pinged(chat)


ODD_SUCCESSES: dict[str, dict[str, object]] = {
    "alias is a number": {"alias": 112},
    "no tokens": {"secureKey": ..., "userId": ..., "alias": ..., "chatId": ..., "nextPosition": ...},
    "empty tokens": {"userId": "", "alias": ""},
    "null tokens": {
        "userId": None,
        "nextPosition": None,
        "messages": None,
        "chatEnded": None,
        "errors": None,
    },
    "status code as text": {"statusCode": 0, "nextPosition": 3},
    "unknown events": {"messages": [{"type": "Strange", "index": "x"}, 5, None, {"from": []}]},
    "many events": {"messages": [event() for _ in range(2000)]},
    "huge position": {"nextPosition": 10**30},
    "position is a text": {"nextPosition": "three"},
    "ended is a text": {"chatEnded": "false"},
}


@pytest.mark.parametrize("odd", ODD_SUCCESSES.values(), ids=ODD_SUCCESSES)
async def test_an_odd_success_is_a_success_all_the_same(rig: Rig, odd: dict[str, object]) -> None:
    (chat,) = await rig.registered()
    told = chat.body()
    chat.answers.append(odd)
    if odd.get("alias") in {"", ...}:
        chat.answers[-1] = Reply(
            {"statusCode": 0, "messages": []}
            | {name: value for name, value in odd.items() if value is not ...}
        )
    if odd.get("nextPosition") == 10**30:
        rig.plant.forget_position(chat)
    await rig.pinged(chat)
    await rig.pinged(chat)
    seen = await rig.session(chat)
    assert seen["state"] == "live"
    assert seen["user_id"] == told["user_id"]


async def test_a_session_that_gms_refuses_is_kept_and_tried_again(start: Start) -> None:
    rig = await start(interval="500ms")
    chats = await rig.registered(5)
    for chat in chats:
        chat.standing = {"statusCode": 2, "errors": [{"code": 249}]}
    await eventually("tried again and again", lambda: all(len(c.refreshes) >= 3 for c in chats), within=6)
    for chat in chats:
        chat.standing = None
        assert (await rig.session(chat))["state"] == "live"
    await eventually("answered", lambda: all(c.refreshes[-1].status_code == 0 for c in chats), within=3)


async def test_no_ending_is_forgotten_over_a_crash(start: Start) -> None:
    rig = await start(interval="300ms")
    chats = await rig.registered(10)
    for chat in chats:
        chat.answers.append({"statusCode": 2, "chatEnded": True})
    await eventually("all ended", lambda: all(chat.ended for chat in chats))
    for chat in chats:
        await rig.told_ended(chat)
    await rig.kill()
    await rig.start()
    for chat in chats:
        assert (await rig.session(chat))["state"] == "ended"
        assert json.dumps(await rig.session(chat)).count("plantedkey") == 0
    await never("a ping after the end", lambda: any(len(c.refreshes) > 1 for c in chats), during=0.6)
