"""The control API: what it takes, what it tells, and what it never tells."""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import quote

import pytest

from .conftest import Start
from .plant import KEY_MARK, event, payload, push
from .rig import SECRETS, Answer, Json, Rig, eventually, never

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def test_a_session_is_registered_read_and_removed(rig: Rig) -> None:
    chat = rig.plant.chat()
    path = f"/v1/sessions/{chat.chat_id}"
    assert (await rig.api("PUT", path, chat.body())).status in {200, 201}
    seen = await rig.get(path)
    told = chat.body()
    del told["secure_key"]
    assert {name: seen[name] for name in told} == told
    assert seen["has_secure_key"] is True
    assert "secure_key" not in seen
    assert (await rig.api("DELETE", path)).status in {200, 204}
    after = await rig.api("GET", path)
    assert after.status == 404 or after.json["state"] == "ended"
    assert (await rig.push(push(chat, payload(chat)))).status == 200
    await never("a ping of the session removed", lambda: chat.refreshes, during=0.2)


async def test_a_body_without_the_chat_id_takes_it_from_the_path(rig: Rig) -> None:
    chat = rig.plant.chat()
    body = chat.body()
    del body["chat_id"]
    assert (await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", body)).status in {200, 201}
    await rig.pinged(chat)


async def test_a_session_without_a_service_gets_the_configured_one(rig: Rig) -> None:
    chat = rig.plant.chat()
    body = chat.body()
    del body["service"]
    await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", body)
    assert (await rig.pinged(chat)).service == "customer-support"


async def test_a_session_is_pinged_at_its_own_service(rig: Rig) -> None:
    chat = rig.plant.chat()
    chat.service = "other service/1"
    await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", chat.body())
    assert (await rig.pinged(chat)).service == "other service/1"


async def test_registering_again_replaces_the_tokens(rig: Rig) -> None:
    chat = rig.plant.chat()
    path = f"/v1/sessions/{chat.chat_id}"
    await rig.api("PUT", path, chat.body())
    await rig.pinged(chat)
    chat.secure_key, chat.alias = rig.plant.new_key(), rig.plant.servers[1].alias
    assert (await rig.api("PUT", path, chat.body())).status in {200, 201}
    await rig.pinged(chat)


async def test_a_session_registered_with_a_number_as_alias_is_pinged(rig: Rig) -> None:
    chat = rig.plant.chat()
    answer = await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", chat.body(alias=int(chat.alias)))
    if answer.status == 400:
        assert answer.error["field"] == "alias"
    else:
        await rig.pinged(chat)


async def test_tokens_are_opaque(rig: Rig) -> None:
    chat = rig.plant.chat()
    del rig.plant.chats[chat.chat_id]
    chat.chat_id = "chat 1/2?a=b&c#d%41+é€"
    chat.secure_key = f"{KEY_MARK}+&=% ;é€\"'\\"
    chat.user_id, chat.device_id = "user&x=1", "device/€ 1"
    rig.plant.chats[chat.chat_id] = chat
    await rig.register([chat])
    path = f"/v1/sessions/{quote(chat.chat_id, safe='')}"
    assert (await rig.get(path))["chat_id"] == chat.chat_id
    await rig.acknowledged(chat, push(chat, "dummy message"))
    assert (await rig.api("POST", f"{path}/ping")).status in {200, 202, 204}
    await eventually("the ping asked for", lambda: len(chat.refreshes) >= 2)
    assert (await rig.api("DELETE", path)).status in {200, 204}


async def test_many_lines_are_taken_and_the_bad_ones_are_told_by_number(rig: Rig) -> None:
    good = rig.plant.several(50)
    lines = [json.dumps(chat.body()) for chat in good]
    no_chat_id = good[0].body()
    del no_chat_id["chat_id"]
    bad = {
        3: "not json",
        10: "[]",
        11: '{"chat_id": "x"',
        20: json.dumps(good[0].body(chat_id="y", next_position="three")),
        33: json.dumps(no_chat_id),
    }
    for number in sorted(bad):
        lines.insert(number - 1, bad[number])
    answer = await rig.api("POST", "/v1/sessions", raw="\n".join(lines).encode())
    assert answer.status == 200
    told = answer.json
    assert told["taken"] == 50
    errors = {cast(int, each["line"]): cast(Json, each["error"]) for each in cast(list[Json], told["errors"])}
    assert set(errors) == set(bad)
    assert errors[20]["field"] == "next_position"
    assert errors[33]["field"] == "chat_id"
    for chat in good:
        assert (await rig.session(chat))["state"] == "live"


async def test_ten_thousand_lines_are_taken_in_one_request(rig: Rig) -> None:
    chats = rig.plant.several(10_000, alias="alias-of-many")
    answer = await rig.register(chats)
    assert answer.json["taken"] == len(chats)
    for chat in chats[::1999]:
        assert (await rig.session(chat))["state"] == "live"


async def test_the_list_is_read_page_by_page_and_filtered(rig: Rig) -> None:
    mine = {chat.chat_id for chat in await rig.registered(25, alias="alias-of-the-list")}
    found: list[str] = []
    after = ""
    for _ in range(20):
        page = await rig.get(f"/v1/sessions?alias=alias-of-the-list&state=live&limit=7{after}")
        sessions = cast(list[Json], page["sessions"])
        assert len(sessions) <= 7
        found += [str(one["chat_id"]) for one in sessions]
        if page["next"] is None:
            break
        after = f"&after={quote(str(page['next']), safe='')}"
    assert sorted(found) == sorted(mine)
    none = await rig.get("/v1/sessions?alias=alias-of-the-list&state=ended")
    assert none["sessions"] == []


WRONG: dict[str, tuple[str, str, object, str | None]] = {
    "not json": ("PUT", "/v1/sessions/x", b"{", None),
    "not an object": ("PUT", "/v1/sessions/x", [], None),
    "position is a text": ("PUT", "/v1/sessions/x", {"next_position": "three"}, "next_position"),
    "position is negative": ("PUT", "/v1/sessions/x", {"next_position": -5}, "next_position"),
    "position is a fraction": ("PUT", "/v1/sessions/x", {"next_position": 1.5}, "next_position"),
    "position is true": ("PUT", "/v1/sessions/x", {"next_position": True}, "next_position"),
    "key is an object": ("PUT", "/v1/sessions/x", {"secure_key": {"a": f"{KEY_MARK}1"}}, "secure_key"),
    "key is empty": ("PUT", "/v1/sessions/x", {"secure_key": ""}, "secure_key"),
    "alias is a list": ("PUT", "/v1/sessions/x", {"alias": ["1"]}, "alias"),
    "another chat id": ("PUT", "/v1/sessions/x", {"chat_id": "y"}, "chat_id"),
    "unknown session": ("GET", "/v1/sessions/nobody", None, None),
    "ping of an unknown session": ("POST", "/v1/sessions/nobody/ping", None, None),
    "removal of an unknown session": ("DELETE", "/v1/sessions/nobody", None, None),
    "limit is a text": ("GET", "/v1/sessions?limit=many", None, "limit"),
    "limit is nothing": ("GET", "/v1/sessions?limit=0", None, "limit"),
    "state is unknown": ("GET", "/v1/sessions?state=alive", None, "state"),
    "unknown server": ("POST", "/v1/servers/nobody/restore", None, None),
    "unknown path": ("GET", "/v2/sessions", None, None),
    "wrong method": ("PATCH", "/v1/sessions", {}, None),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
async def test_what_is_wrong_is_told_with_the_field(
    rig: Rig, case: tuple[str, str, object, str | None]
) -> None:
    method, path, body, name = case
    if isinstance(body, dict):
        body = rig.plant.chat().body(chat_id="x") | body
    raw = body if isinstance(body, bytes) else None
    answer = await rig.api(method, path, None if raw is not None else body, raw=raw)
    assert 400 <= answer.status < 500
    assert set(answer.error) == {"code", "message", "field"}
    assert answer.error["code"]
    assert answer.error["message"]
    if name is not None:
        assert answer.error["field"] == name
    assert KEY_MARK.encode() not in answer.body
    if method == "PUT":
        assert (await rig.api("GET", path)).status == 404


async def test_servers_and_status_and_health_are_told(rig: Rig) -> None:
    await rig.watching()
    servers = await rig.servers()
    assert set(servers) == {"chat-1", "chat-2"}
    one = servers["chat-1"]
    assert (one["state"], str(one["app_dbid"]), str(one["process_os_pid"])) == ("up", "111", "4001")
    assert (await rig.api("GET", "/healthz")).status == 200
    assert (await rig.api("GET", "/readyz")).status == 200
    assert (await rig.get("/v1/status"))["sessions"]
    assert b"# TYPE asyncchatd_" in (await rig.api("GET", "/metrics")).body


async def test_a_restoration_asked_for_pings_that_servers_sessions_only(rig: Rig) -> None:
    await rig.watching()
    mine = await rig.registered(10, alias="112")
    other = await rig.registered(10, alias="111")
    assert (await rig.api("POST", "/v1/servers/chat-2/restore")).status in {200, 202}
    await eventually("all pinged", lambda: all(chat.refreshes for chat in mine))
    await never("a ping of another server's", lambda: any(chat.refreshes for chat in other), during=0.1)
    listed = cast(list[Json], (await rig.get("/v1/restorations"))["restorations"])
    assert any(one["server"] == "chat-2" for one in listed)


async def test_no_secure_key_is_ever_told(rig: Rig) -> None:
    chat = (await rig.registered())[0]
    chat.answers.append({"secureKey": rig.plant.new_key()})
    await rig.pinged(chat)
    await rig.acknowledged(chat, push(chat, json.dumps(payload(chat, event()))))
    broken = [
        await rig.push(json.dumps(push(chat, payload(chat)))[:-1]),
        await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", chat.body(next_position="x")),
        await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", [chat.body()]),
        await rig.api("PUT", f"/v1/sessions/{chat.chat_id}", raw=json.dumps(chat.body())[:-1].encode()),
        await rig.api("POST", "/v1/sessions", raw=json.dumps(chat.body())[:-1].encode()),
        await rig.api("POST", "/v1/sessions", raw=json.dumps(chat.body(alias=[])).encode()),
        await rig.api("GET", f"/v1/sessions?secure_key={chat.secure_key}"),
        await rig.api("GET", f"/v1/sessions/{chat.secure_key}"),
    ]
    paths = [f"/v1/sessions/{chat.chat_id}", "/v1/sessions?limit=1000", "/v1/servers", "/v1/restorations"]
    paths += ["/v1/status", "/healthz", "/readyz", "/metrics", "/"]
    told: list[Answer] = [*broken, *[await rig.api("GET", path) for path in paths]]
    for answer in told:
        text = (answer.body + repr(dict(answer.headers)).encode()).decode()
        for secret in (KEY_MARK, *SECRETS):
            assert secret not in text, text[:500]


async def test_gms_is_given_its_credentials_and_nobody_else_is(start: Start) -> None:
    secrets = ("gmspassword-51c0", "apikeyvalue-77e2")
    rig = await start(
        gms=f'username = "daemon"\npassword = "{secrets[0]}"\nheaders = {{ apikey = "{secrets[1]}" }}'
    )
    (chat,) = await rig.registered()
    seen = await rig.pinged(chat)
    assert seen.headers["authorization"] == "Basic ZGFlbW9uOmdtc3Bhc3N3b3JkLTUxYzA="
    assert seen.headers["apikey"] == secrets[1]
    node = rig.plant.nodes[0]
    await node.listener.close()
    await rig.ask_ping(chat)
    await node.listener.open()
    await eventually("the ping", lambda: len(chat.refreshes) == 2)
    told = [(await rig.api("GET", path)).body.decode() for path in ("/v1/status", "/metrics", "/v1/sessions")]
    for text in (*told, rig.log_text()):
        for secret in (*secrets, "ZGFlbW9uOmdtc3Bhc3N3b3JkLTUxYzA"):
            assert secret not in text


async def test_a_restoration_of_no_sessions_does_not_reach_those_registered_later(start: Start) -> None:
    rig = await start()
    await rig.watching()
    (ended,) = await rig.registered()
    ended.answers.append({"statusCode": 0, "chatEnded": True})
    await rig.pinged(ended)
    assert (await rig.api("POST", "/v1/servers/chat-1/restore")).status in {200, 202}
    later = await rig.registered(10)
    await never("a ping at registration", lambda: any(chat.refreshes for chat in later), during=0.3)


async def test_a_finished_restoration_does_not_reach_those_registered_later(start: Start) -> None:
    rig = await start()
    await rig.watching()
    first = await rig.registered(10)
    assert (await rig.api("POST", "/v1/servers/chat-1/restore")).status in {200, 202}
    await eventually("all pinged", lambda: all(chat.refreshes for chat in first))
    await rig.settled()
    later = await rig.registered(10)
    await never("a ping at registration", lambda: any(chat.refreshes for chat in later), during=0.3)


async def test_whoever_opens_the_status_page_sees_what_was_sent_before_and_everybody_the_same(
    start: Start,
) -> None:
    rig = await start()
    await rig.watching()
    chats = await rig.registered(10)
    assert (await rig.api("POST", "/v1/servers/chat-1/restore")).status in {200, 202}
    await eventually("all pinged", lambda: all(chat.refreshes for chat in chats))

    done = await rig.get("/v1/status")

    async def is_past() -> bool:
        """Whether the second of the last ping is over, and the look at it too."""
        now = await rig.get("/v1/status")
        return cast(float, now["uptime_seconds"]) > cast(float, done["uptime_seconds"]) + 2.5

    await rig.eventually("the second of the restoration is over", is_past)
    first, again = await history(rig), await history(rig)
    assert sum(each["rates"]["restore"] * each["seconds"] for each in first) == pytest.approx(10, abs=0.1)
    assert again[: len(first)] == first
    assert {each["max_rate"] for each in first} == {cast(Any, done["pings"])["max_rate"]}
    ends = [each["uptime_seconds"] for each in first]
    assert ends == sorted(ends)


async def history(rig: Rig) -> list[dict[str, Any]]:
    """What comes first to who looks at the daemon."""
    async with rig.http.get(f"http://127.0.0.1:{rig.control_port}/v1/live") as response:
        assert response.status == 200
        while (await response.content.readline()).strip() != b"event: history":
            pass
        data = (await response.content.readline()).removeprefix(b"data: ")
    return cast(list[dict[str, Any]], json.loads(data))
