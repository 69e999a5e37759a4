"""Registering as developers expect: GMS' reply as it came, names that are nearly right, and tokens that were old."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import orjson
import pytest
from conftest import NOON, FakeClock, PromptStore

from asyncchatd.control import registrations
from asyncchatd.model.data import Ms, Registration
from control.test_api import KEY, Api, body, reply, serving

pytestmark = pytest.mark.usefixtures("events")

ONE = "/v1/sessions/chat-1"
MANY = "/v1/sessions"


@pytest.fixture
async def api(store: PromptStore, clock: FakeClock) -> AsyncIterator[Api]:
    async with serving(store, clock) as api:
        yield api


SAID = {"chat_id": "chat-2", "next_position": 9, "acknowledged": "epoch-7"}
"""Another value than a text that fits everywhere, where the field wants one."""


def test_every_field_of_a_registration_is_read() -> None:
    none = registrations.beside_of({}, "support", "epoch")
    plain = registrations.registration_of(body("chat-1"), none)
    read = {
        name: registrations.registration_of(body("chat-1") | {name: SAID.get(name, "other")}, none)
        for name in registrations.FIELDS
    }
    assert [name for name, said in read.items() if said == plain] == []


def test_what_a_reply_lacks_is_read_beside_it_and_from_the_query() -> None:
    def read(query: Mapping[str, str], **said: object) -> Registration:
        beside = registrations.beside_of(query, "support", "epoch", "chat-1")
        return registrations.registration_of(reply(**said), beside)

    for name in (*registrations.BESIDE, registrations.TAKE_ID, registrations.ACKNOWLEDGED):
        value = str(SAID.get(name, "other"))
        assert read({}) != read({name: value}) == read({}, **{name: value}), name


async def message(api: Api, method: str, path: str, said: object) -> str:
    """What an error says to the developer."""
    _, answer = await api.call(method, path, said)
    error = answer["error"]
    assert isinstance(error, dict)
    return str(error["message"])


def shown(session: object) -> dict[str, object]:
    """What tells one registered session from another."""
    assert isinstance(session, dict)
    names = ("chat_id", "user_id", "alias", "service", "device_id", "next_position", "state")
    return {name: session[name] for name in names}


LOOKED_AFTER = {
    "chat_id": "chat-1",
    "user_id": "user-1",
    "alias": "117",
    "service": "customer-support",
    "device_id": None,
    "next_position": 2,
    "state": "live",
}


# -- GMS' own reply --------------------------------------------------------------------------------------


async def test_the_reply_to_request_chat_is_taken_as_it_is(api: Api, store: PromptStore) -> None:
    status, session = await api.call("PUT", ONE, reply())
    assert (status, shown(session)) == (201, LOOKED_AFTER)
    known = await store.get("chat-1")
    assert known is not None
    assert known.secure_key == KEY


@pytest.mark.parametrize("indent", [None, orjson.OPT_INDENT_2], ids=["one line", "several lines"])
async def test_a_posted_reply_is_one_session_however_it_is_written(api: Api, indent: int | None) -> None:
    status, told = await api.call("POST", MANY, orjson.dumps(reply(), option=indent) + b"\n")
    assert (status, told["taken"], told["refused"]) == (200, 1, 0)
    assert shown((await api.call("GET", ONE))[1]) == LOOKED_AFTER


async def test_replies_and_sessions_of_our_form_stand_beside_each_other_in_many_lines(api: Api) -> None:
    many = [
        reply(),
        body("chat-2", device_id="two"),
        reply(chatId="chat-3", device_id="three", service="sales"),
    ]
    _, told = await api.call("POST", MANY, b"\n".join(map(orjson.dumps, many)))
    assert (told["taken"], told["refused"]) == (3, 0)
    third = (await api.call("GET", "/v1/sessions/chat-3"))[1]
    assert (third["device_id"], third["service"]) == ("three", "sales")


async def test_what_a_reply_lacks_stands_beside_it_in_the_query(api: Api) -> None:
    for method, path in (("PUT", ONE), ("POST", MANY)):
        await api.call(method, f"{path}?service=sales&device_id=phone%204711", reply())
        session = (await api.call("GET", ONE))[1]
        assert (session["service"], session["device_id"]) == ("sales", "phone 4711")
        await api.raw("DELETE", ONE)


async def test_what_a_body_says_goes_before_the_query(api: Api) -> None:
    await api.call("PUT", f"{ONE}?service=sales&device_id=query", reply(service="support", device_id="body"))
    session = (await api.call("GET", ONE))[1]
    assert (session["service"], session["device_id"]) == ("support", "body")


async def test_the_service_in_the_query_is_that_of_all_lines_that_name_none(api: Api) -> None:
    many = [reply(), body("chat-2"), body("chat-3", service="support")]
    await api.call("POST", f"{MANY}?service=sales", b"\n".join(map(orjson.dumps, many)))
    listed = (await api.call("GET", MANY))[1]["sessions"]
    assert isinstance(listed, list)
    assert [each["service"] for each in listed] == ["sales", "sales", "support"]


async def test_a_device_in_the_query_is_that_of_one_session_and_not_of_two(api: Api) -> None:
    two = b"\n".join(map(orjson.dumps, (reply(), reply(chatId="chat-2"))))
    assert await api.refused("POST", f"{MANY}?device_id=phone", two) == (400, "several_sessions", "device_id")
    assert (await api.call("GET", MANY))[1]["sessions"] == []


async def test_a_reply_without_its_chat_id_takes_that_of_the_path(api: Api) -> None:
    assert (await api.call("PUT", ONE, reply(chatId=None)))[0] == 201


async def test_a_reply_of_another_chat_is_refused(api: Api) -> None:
    assert await api.refused("PUT", "/v1/sessions/chat-2", reply()) == (400, "mismatch", "chatId")


@pytest.mark.parametrize("status_code", [1, 2, "1", 2.0])
async def test_a_reply_with_an_error_teaches_nothing(api: Api, status_code: object) -> None:
    said = reply(statusCode=status_code)
    assert await api.refused("PUT", ONE, said) == (400, "not_a_success", "statusCode")
    status, told = await api.call("POST", MANY, said)
    assert (status, told["taken"], told["refused"]) == (400, 0, 1)
    assert (await api.call("GET", ONE))[0] == 404


@pytest.mark.parametrize("status_code", [3, -1, True, "ok", [0], 0.5])
async def test_a_status_code_of_no_reply_is_refused(api: Api, status_code: object) -> None:
    assert await api.refused("PUT", ONE, reply(statusCode=status_code)) == (400, "bad_value", "statusCode")


async def test_no_status_code_where_one_is_written_is_refused(api: Api) -> None:
    assert await api.refused("PUT", ONE, body() | {"statusCode": None}) == (400, "bad_value", "statusCode")


@pytest.mark.parametrize("ended", [True, "true"])
async def test_of_a_chat_that_is_over_there_is_nothing_to_look_after(api: Api, ended: object) -> None:
    assert await api.refused("PUT", ONE, reply(chatEnded=ended)) == (409, "session_ended", "chatEnded")
    _, told = await api.call("POST", MANY, reply(chatEnded=ended))
    assert (told["taken"], told["refused"]) == (0, 1)
    assert (await api.call("GET", ONE))[0] == 404


@pytest.mark.parametrize("status_code", [0, 2])
async def test_a_reply_that_says_that_a_known_chat_is_over_ends_it(api: Api, status_code: int) -> None:
    await api.call("PUT", ONE, reply())
    status, told = await api.call("PUT", ONE, {"statusCode": status_code, "chatEnded": True})
    assert (status, told["outcome"], told["state"], told["end_cause"]) == (200, "over", "ended", "chat_ended")
    assert (await api.call("PUT", ONE, {"statusCode": 0, "chatEnded": True}))[0] == 200
    assert await api.refused("PUT", ONE, reply()) == (409, "session_ended", "chat_id")


async def test_a_reply_without_tokens_ends_a_take_and_leaves_the_service_as_it_was(api: Api) -> None:
    _, before = await api.call("PUT", f"{ONE}?service=sales", reply())
    _, take = await api.call("POST", f"{ONE}/take", {"for": "10s"})
    status, told = await api.call(
        "PUT", f"{ONE}?take_id={take['take_id']}", {"statusCode": 0, "messages": []}
    )
    assert (status, told["outcome"], told["service"]) == (200, "updated", "sales")
    assert told["user_id"] == before["user_id"]
    assert await api.refused("PUT", ONE, {"statusCode": 0}) == (400, "missing", "userId")


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        ({"userId": None}, "missing", "userId"),
        ({"secureKey": ""}, "missing", "secureKey"),
        ({"secureKey": "undefined"}, "placeholder", "secureKey"),
        ({"alias": "****"}, "placeholder", "alias"),
        ({"alias": ["117"]}, "bad_type", "alias"),
        ({"device_id": {}}, "bad_type", "device_id"),
    ],
)
async def test_what_is_wrong_in_a_reply_is_named_as_gms_names_it(
    api: Api, more: dict[str, object], code: str, named: str
) -> None:
    assert await api.refused("PUT", ONE, reply(**more)) == (400, code, named)


@pytest.mark.parametrize("position", [0, -1, None, "later", [2]])
async def test_a_reply_whose_position_says_nothing_is_taken_without(api: Api, position: object) -> None:
    status, session = await api.call("PUT", ONE, reply(nextPosition=position))
    assert (status, session["next_position"]) == (201, None)


# -- unknown fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("secure_kye", "secure_key"),
        ("secureKey", "secure_key"),
        ("SECURE-KEY", "secure_key"),
        ("chatId", "chat_id"),
        ("userid", "user_id"),
        ("deviceId", "device_id"),
        ("device", "device_id"),
        ("nextPosition", "next_position"),
        ("services", "service"),
        ("statuscode", "statusCode"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_name(api: Api, name: str, meant: str) -> None:
    said = body() | {name: "x"}
    assert await api.refused("PUT", ONE, said) == (400, "unknown_field", name)
    assert f"unknown field {name}: did you mean {meant}?" in await message(api, "PUT", ONE, said)
    assert (await api.call("GET", ONE))[0] == 404


async def test_a_name_like_no_other_is_told_what_is_known(api: Api) -> None:
    text = await message(api, "PUT", ONE, body(comment="from the app"))
    assert text.startswith("unknown field comment: expected chat_id, ")


async def test_who_takes_the_status_code_off_a_reply_is_told_to_leave_it(api: Api) -> None:
    text = await message(api, "PUT", ONE, reply(statusCode=None, alias=None, messages=None))
    assert "GMS' own reply is taken as it is, with its statusCode" in text


async def test_a_name_that_may_be_a_secret_is_not_repeated(api: Api) -> None:
    assert await api.refused("PUT", ONE, body() | {KEY: "secure_key"}) == (400, "unknown_field", None)
    assert KEY not in await message(api, "PUT", ONE, body() | {f"secure_key={KEY}": ""})
    text = await message(api, "PUT", ONE, body() | {"secure_key7": ""})
    assert text == "unknown field: did you mean secure_key?"


@pytest.mark.parametrize(("method", "path"), [("PUT", ONE), ("POST", MANY)])
async def test_an_unknown_name_in_the_query_is_refused_too(api: Api, method: str, path: str) -> None:
    assert await api.refused(method, f"{path}?deviceid=phone", reply()) == (400, "unknown_field", "deviceid")
    assert "did you mean device_id?" in await message(api, method, f"{path}?deviceid=phone", reply())
    assert await api.refused(method, f"{path}?service=null", reply()) == (400, "placeholder", "service")
    assert (await api.call("GET", ONE))[0] == 404


async def test_unknown_fields_in_many_lines_cost_the_others_nothing(api: Api) -> None:
    many = [body("chat-1"), body("chat-2", secure_kye="x"), body("chat-3"), body("chat-4", extra=1)]
    status, told = await api.call("POST", MANY, b"\n".join(map(orjson.dumps, many)))
    assert (status, told["taken"], told["refused"]) == (200, 2, 2)
    errors = told["errors"]
    assert isinstance(errors, list)
    assert [(each["line"], each["error"]["field"]) for each in errors] == [(2, "secure_kye"), (4, "extra")]
    listed = (await api.call("GET", MANY))[1]["sessions"]
    assert isinstance(listed, list)
    assert [each["chat_id"] for each in listed] == ["chat-1", "chat-3"]


# -- old tokens ------------------------------------------------------------------------------------------


async def told_twice(api: Api) -> None:
    for key in ("first", "newer"):
        await api.call("PUT", ONE, body(secure_key=key))


async def test_who_registers_an_old_key_is_told_that_the_newer_one_is_kept(api: Api) -> None:
    await told_twice(api)
    status, session = await api.call("PUT", ONE, body(secure_key="first"))
    assert (status, session["outcome"], session["state"]) == (200, "kept", "live")
    assert "newer tokens that are known were kept" in str(session["note"])


async def test_who_registers_a_doubted_key_is_told_that_the_session_waits(
    api: Api, store: PromptStore
) -> None:
    await api.call("PUT", ONE, body())
    await store.distrust(before=Ms(NOON + 1))
    status, session = await api.call("PUT", ONE, body())
    assert (status, session["outcome"], session["state"]) == (200, "kept", "incomplete")
    assert "may be an old one" in str(session["note"])


async def test_the_newest_tokens_need_no_note(api: Api) -> None:
    await told_twice(api)
    assert (await api.call("PUT", ONE, body(secure_key="newest")))[1]["note"] is None


async def test_many_registrations_say_which_of_them_were_old(api: Api) -> None:
    await told_twice(api)
    many = [body("chat-2"), body("chat-1", secure_key="first")]
    _, told = await api.call("POST", MANY, b"\n".join(map(orjson.dumps, many)))
    assert (told["taken"], told["kept"]) == (2, 1)
    kept = told["kept_lines"]
    assert isinstance(kept, list)
    [line] = kept
    assert (line["line"], line["chat_id"], line["state"]) == (2, "chat-1", "live")
    assert "newer tokens that are known were kept" in line["note"]


async def test_of_many_old_ones_all_are_counted_and_the_first_are_named(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncchatd.control.api.KEPT_SHOWN", 2)
    for key in ("first", "newer", "first"):
        many = [body(f"chat-{number}", secure_key=key) for number in range(3)]
        _, told = await api.call("POST", MANY, b"\n".join(map(orjson.dumps, many)))
    kept = told["kept_lines"]
    assert isinstance(kept, list)
    assert (told["kept"], [each["line"] for each in kept]) == (3, [1, 2])
