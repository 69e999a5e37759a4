"""The one reply form: what each client misses is there, what confuses one is not, and GMS' words stay its own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.gateway.replies import (
    FAILED,
    RETRY,
    SUCCESS,
    Names,
    call_reply,
    errors_of,
    notices_of,
    passed_on,
    poll_reply,
    wrong_key_reply,
)
from asyncchatd.wire import client_call

NAMES = Names("chat-1", "user-1", "key-1", "117")
ALWAYS = {"statusCode", "chatId", "userId", "secureKey", "alias", "messages", "chatEnded", "nextPosition"}

names = st.builds(Names, *[st.text(st.characters(exclude_categories=["Cs"]), max_size=9)] * 4)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('aß"\\ '),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc", min_size=1, max_size=3), values, max_size=3)


# -- polls ----------------------------------------------------------------------------------------------


def test_a_polls_reply_has_all_fields_and_the_events_as_they_came() -> None:
    events = [b'{"index":3,"text":"\xc3\xa4 \\u00e4","unknown":{"of":1.0}}', b'{ "index" : 5 }']
    body = poll_reply(NAMES.written(), events, next_position=6)
    assert b"[" + b",".join(events) + b"]" in body
    assert json.loads(body) == {
        "statusCode": 0,
        "chatId": "chat-1",
        "userId": "user-1",
        "secureKey": "key-1",
        "alias": "117",
        "messages": [{"index": 3, "text": "ä ä", "unknown": {"of": 1.0}}, {"index": 5}],
        "chatEnded": False,
        "nextPosition": 6,
    }


@given(names, st.lists(objects, max_size=3), st.integers(1, 2**53), st.booleans())
def test_any_polls_reply_is_json_with_these_fields_and_no_others(
    who: Names, events: list[dict[str, object]], position: int, ended: bool
) -> None:
    body = poll_reply(
        who.written(), [json.dumps(event).encode() for event in events], next_position=position, ended=ended
    )
    said = json.loads(body)
    assert set(said) == ALWAYS
    assert (said["chatId"], said["secureKey"], said["alias"]) == (who.chat_id, who.secure_key, who.alias)
    assert (said["messages"], said["nextPosition"], said["chatEnded"]) == (events, position, ended)
    assert said["statusCode"] == 0


def test_an_empty_reply_has_an_empty_list() -> None:
    assert json.loads(poll_reply(NAMES.written(), (), next_position=1))["messages"] == []


# -- calls ----------------------------------------------------------------------------------------------


@given(
    names, st.sampled_from([SUCCESS, RETRY, FAILED]), st.booleans(), st.lists(objects, max_size=2), objects
)
def test_any_reply_to_a_call_has_the_form(
    who: Names, status_code: int, ended: bool, listed: list[object], others: dict[str, object]
) -> None:
    body = call_reply(
        who,
        status_code=status_code,
        next_position=7,
        ended=ended,
        errors=listed,
        notices=listed,
        others=others,
    )
    said = json.loads(body)
    failed = status_code != SUCCESS and not ended
    assert set(said) == ALWAYS | set(others) | ({"errors"} if failed else set())
    assert said["statusCode"] == (status_code if failed else SUCCESS)
    assert (said["chatEnded"], said["messages"], said["nextPosition"]) == (ended, listed, 7)
    assert said.get("errors", listed) == listed


def test_an_end_is_status_0_without_errors() -> None:
    said = json.loads(poll_reply(NAMES.written(), (), next_position=6, ended=True))
    assert (said["statusCode"], said["chatEnded"], "errors" in said) == (0, True, False)
    said = json.loads(call_reply(NAMES, status_code=2, next_position=6, ended=True, errors=[{"code": 1}]))
    assert (said["statusCode"], said["chatEnded"], "errors" in said) == (0, True, False)


def test_a_wrong_key_is_told_so_and_nothing_else() -> None:
    said = json.loads(wrong_key_reply(NAMES))
    assert set(said) == ALWAYS
    assert (said["statusCode"], said["chatEnded"], said["messages"], said["nextPosition"]) == (2, True, [], 1)
    assert said["secureKey"] == "key-1", "it hears what it came with"


def test_a_client_that_tells_nothing_of_itself_misses_no_field() -> None:
    nobody = Names.of(client_call("s/chat-1/refresh", [("secureKey", "undefined")]))
    for body in (
        poll_reply(nobody.written(), (), next_position=1),
        call_reply(nobody, status_code=0, next_position=1),
        wrong_key_reply(nobody),
    ):
        said = json.loads(body)
        assert set(said) == ALWAYS
        assert (said["chatId"], said["userId"], said["secureKey"], said["alias"]) == ("chat-1", "", "", "")


def test_a_repr_shows_no_key() -> None:
    assert "key-1" not in repr(NAMES)


# -- what GMS said --------------------------------------------------------------------------------------


def told(body: bytes) -> bytes:
    return call_reply(
        NAMES,
        status_code=0,
        next_position=4,
        notices=notices_of(body),
        others=passed_on(body),
        errors=errors_of(body),
    )


def test_what_gms_says_besides_is_passed_on_as_it_came() -> None:
    besides = (
        b'"monitored" : true,"userData":{"n":1.50,"big":123456789012345678901234567890,"e":"\\u00e4","e":"2"}'
    )
    said = told(b'{"statusCode":0,"secureKey":"true-key",' + besides + b"}")
    for part in (
        b'"monitored":true',
        b'{"n":1.50,"big":123456789012345678901234567890,"e":"\\u00e4","e":"2"}',
    ):
        assert part in said
    assert set(json.loads(said)) == ALWAYS | {"monitored", "userData"}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "chatId",
            "userId",
            "secureKey",
            "alias",
            "nextPosition",
            "chatEnded",
            "messages",
            "errors",
            "statusCode",
        ),
        *("secure-key", "SecureKey", "secure_key", "session-id", "user-id", "app-dbid", "ALIAS"),
    ],
)
def test_the_tokens_of_gms_are_not_passed_on_however_they_are_spelled(name: str) -> None:
    body = json.dumps({name: "true-key", "statusCode": 0, "monitored": False}).encode()
    assert b"true-key" not in told(body)
    assert list(passed_on(body)) == ["monitored"]


@pytest.mark.parametrize("status_code", [b"1", b"2", b"3", b"null", b'"x"', b"[]"])
def test_of_a_reply_that_must_not_be_trusted_only_the_errors_are_told(status_code: bytes) -> None:
    body = (
        b'{"statusCode":%b,"monitored":true,"messages":[{"type":"Notice"}],"errors":[{"code": 249}]}'
        % status_code
    )
    assert (passed_on(body), notices_of(body)) == ({}, [])
    said = call_reply(NAMES, status_code=2, next_position=4, errors=errors_of(body))
    assert b'"errors":[{"code": 249}]' in said


def test_without_a_status_code_nothing_is_passed_on() -> None:
    assert passed_on(b'{"monitored":true}') == {}
    assert passed_on(b'{"statusCode":"0","monitored":true}') != {}


def test_notices_without_an_index_pass_as_they_came_and_events_do_not() -> None:
    limits = b'{"type": "Notice", "text": "file-client-cfg-get", "userData": {"upload-max-files": "10"}}'
    others = b'{"index":4,"type":"Message"},{"Index":"5","type":"Message"},7,null,{"text":"neither"}'
    said = told(b'{"statusCode":0,"messages":[' + others + b"," + limits + b"]}")
    assert b'"messages":[' + limits + b"]" in said


def test_an_event_whose_index_is_none_is_a_notice() -> None:
    for index in (b"null", b'"x"', b"1.5"):
        body = b'{"statusCode":0,"messages":[{"type":"Notice","index":%b}]}' % index
        assert len(notices_of(body)) == 1


@pytest.mark.parametrize(
    "body",
    [
        *(None, b"", b"<html>", b"[]", b"7", b'{"a":', b'{"errors": null, "messages": "x"}'),
        *(b'{"statusCode":0,"messages":{"type":"Notice"}}', b"[" * 100_000, b'{"a":' * 100_000),
    ],
)
def test_what_is_no_reply_says_nothing(body: bytes | None) -> None:
    assert (passed_on(body), errors_of(body), notices_of(body)) == ({}, [], [])


def test_errors_are_a_list_whatever_gms_makes_of_them() -> None:
    said = call_reply(NAMES, status_code=2, next_position=1, errors=errors_of(b'{"errors": {"code": 1}}'))
    assert json.loads(said)["errors"] == [{"code": 1}]
    assert (
        json.loads(call_reply(NAMES, status_code=1, next_position=1, errors=errors_of(b"{}")))["errors"] == []
    )


def test_what_is_no_proper_json_is_told_in_proper_json() -> None:
    said = json.loads(told(b'\xef\xbb\xbf{"statusCode":0,"note":"sch\xf6n","rate":NaN,"line":"a\nb"}'))
    assert said["note"] == "sch\ufffdn"
    assert said["line"] == "a\nb"


@given(st.binary(max_size=40) | st.builds(lambda value: json.dumps(value).encode(), objects))
def test_whatever_gms_says_the_client_gets_json(body: bytes) -> None:
    for whole in (
        body,
        b'{"statusCode":0,"x":' + body + b"}",
        b'{"statusCode":0,"messages":[' + body + b"]}",
    ):
        assert set(json.loads(told(whole))) >= ALWAYS
        said = call_reply(
            NAMES, status_code=2, next_position=1, errors=errors_of(b'{"errors":' + whole + b"}")
        )
        assert json.loads(said)["statusCode"] == 2
