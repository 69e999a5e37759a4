"""The one reply form: what each client misses is there, and what confuses one is not."""

from __future__ import annotations

import json

import pytest

from asyncchatd.gateway.replies import Names, call_reply, errors_of, notices_of, passed_on, poll_reply

NAMES = Names("chat-1", "user-1", "key-1", "117")
ALWAYS = {"statusCode", "chatId", "userId", "secureKey", "alias", "messages", "chatEnded", "nextPosition"}


def test_a_polls_reply_has_all_fields_and_the_events_as_they_came() -> None:
    events = [b'{"index":3,"text":"\xc3\xa4 \\u00e4","unknown":{"of":1.0}}', b'{"index":5}']
    body = poll_reply(NAMES.written(), events, next_position=6)
    assert set(json.loads(body)) == ALWAYS
    assert b",".join(events) in body
    said = json.loads(body)
    assert (said["secureKey"], said["nextPosition"], said["chatEnded"]) == ("key-1", 6, False)


def test_an_end_is_status_0_without_errors() -> None:
    said = json.loads(poll_reply(NAMES.written(), (), next_position=6, ended=True))
    assert (said["statusCode"], said["chatEnded"]) == (0, True)
    said = json.loads(call_reply(NAMES, status_code=2, next_position=6, ended=True, errors=[{"code": 1}]))
    assert (said["statusCode"], said["chatEnded"], "errors" in said) == (0, True, False)


def test_a_client_that_tells_nothing_of_itself_misses_no_field() -> None:
    nobody = Names("chat-1", None, None, None)
    assert set(json.loads(poll_reply(nobody.written(), (), next_position=1))) == ALWAYS
    assert set(json.loads(call_reply(nobody, status_code=0, next_position=1))) == ALWAYS


@pytest.mark.parametrize("code", [1, 2])
def test_errors_come_with_status_1_and_2_alone(code: int) -> None:
    errors = [{"code": 34, "advice": "no"}]
    assert json.loads(call_reply(NAMES, status_code=code, next_position=1, errors=errors))["errors"] == errors
    assert "errors" not in json.loads(call_reply(NAMES, status_code=0, next_position=1, errors=errors))


def test_what_gms_says_besides_is_passed_on_and_its_tokens_are_not() -> None:
    body = json.dumps(
        {"statusCode": 0, "secureKey": "true-key", "alias": "118", "monitored": True, "userData": {"a": "b"}}
    ).encode()
    assert passed_on(body) == {"monitored": True, "userData": {"a": "b"}}
    said = call_reply(NAMES, status_code=0, next_position=1, others=passed_on(body))
    assert b"true-key" not in said
    assert json.loads(said)["monitored"] is True


def test_notices_without_an_index_pass_and_events_do_not() -> None:
    limits = {"type": "Notice", "text": "file-client-cfg-get", "userData": {"upload-max-files": "10"}}
    body = json.dumps({"statusCode": 0, "messages": [{"index": 4, "type": "Message"}, limits, 5]}).encode()
    assert notices_of(body) == [limits]
    assert json.loads(call_reply(NAMES, status_code=0, next_position=1, notices=[limits]))["messages"] == [
        limits
    ]


@pytest.mark.parametrize("body", [None, b"", b"<html>", b"[]", b'{"errors": null, "messages": "x"}'])
def test_what_is_no_reply_says_nothing(body: bytes | None) -> None:
    assert (passed_on(body), errors_of(body), notices_of(body)) == ({}, [], [])


def test_errors_are_a_list_whatever_gms_makes_of_them() -> None:
    assert errors_of(b'{"errors": {"code": 1}}') == [{"code": 1}]
