"""Chat API version 2: what is written is what GMS reads, and what any answer means."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.model.data import TokenNews, Tokens
from asyncchatd.standin.messages import write_event, write_reply
from asyncchatd.standin.requests import read_call
from asyncchatd.wire.chat_api.calls import FORM, ChatApiError, Operation, call, refresh
from asyncchatd.wire.chat_api.outcome import (
    MAX_DETAIL,
    MAX_RETRY_AFTER,
    Alive,
    Ended,
    NodeTrouble,
    Outcome,
    PingFault,
    Refused,
    RetryLater,
    classify,
    read_retry_after,
    weigh,
)
from asyncchatd.wire.chat_api.replies import ChatEvent, ReplyFault, event_kind, read_event, read_reply
from asyncchatd.wire.identifiers import is_token

TOKENS = Tokens("00048aAPEQJ8000U", "007555677B20000A", "4ee15d7e1c343c8e", "117")

JOINED = (
    b'{"statusCode":0,"alias":"117","userId":"007555677B20000A","secureKey":"4ee15d7e1c343c8e","messages":[{"from":'
    b'{"nickname":"First Last","participantId":1,"type":"Client"},"index":1,"type":"ParticipantJoined",'
    b'"utcTime":1432845088000}],"chatId":"00048aAPEQJ8000U"}'
)
QUIET = (
    b'{"messages":[],"chatEnded":false,"statusCode":0,"alias":"1323","secureKey":"02f8e3936f763afffcce",'
    b'"userId":"052B5F58EBCF069A","chatId":"0008TaFN3SE300QU","nextPosition":3}'
)
ENDED = (
    b'{"messages":[],"chatEnded":true,"statusCode":2,"alias":"1323","chatId":"0008TaFN3SE300RT","errors":'
    b'[{"code":249,"advice":"Media server was not able to execute request. referenceId[10016629]"}]}'
)


def outcome(status: int, body: bytes | dict[str, object], retry_after: str | None = None) -> Outcome:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(status, raw, chat_id=TOKENS.chat_id, retry_after=retry_after)


# --- strategies -------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
printable = st.characters(categories=["L", "N", "P", "S"], include_characters=" ")
token = st.text(printable, max_size=20).map(lambda value: f"{value}7c").filter(is_token)
tokens = st.builds(Tokens, token, token, token, token)
news = st.builds(TokenNews, *[st.none() | token] * 4)
whole = st.integers(0, 2**53)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
REPLY_NAMES = [
    *(
        "statusCode",
        "chatId",
        "userId",
        "secureKey",
        "alias",
        "nextPosition",
        "messages",
        "chatEnded",
        "errors",
    ),
    *("type", "index", "from", "utcTime", "eventAttributes", "code", "advice"),
]
reply_like = st.recursive(
    json_values | st.sampled_from([0, 1, 2, "0", 0.0, "true", True]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(REPLY_NAMES), inner, max_size=8)
    ),
    max_leaves=20,
)


@st.composite
def events(draw: st.DrawFn) -> ChatEvent:
    event_type = draw(st.sampled_from(["Message", "push-url", "ParticipantLeft", "Unheard-Of"]))
    leave = event_type == "ParticipantLeft"
    return ChatEvent(
        type=event_type,
        kind=event_kind(event_type),
        index=draw(st.none() | whole),
        utc_time=draw(st.none() | whole),
        participant_id=draw(st.none() | whole),
        participant_type=draw(st.none() | text),
        nickname=draw(st.none() | text),
        text=draw(st.none() | text),
        message_type=draw(st.none() | text),
        quit_reason_code=draw(st.none() | whole) if leave else None,
        quit_reason_advice=draw(st.none() | text) if leave else None,
    )


faults = st.builds(ReplyFault, st.none() | whole, st.none() | text, st.none() | text)


# --- requests ---------------------------------------------------------------------------------


def test_a_refresh_carries_the_whole_identity_triple_and_the_position() -> None:
    ping = refresh("customer-support", TOKENS, 3, "")
    assert ping.path == "customer-support/00048aAPEQJ8000U/refresh"
    assert ping.content_type == FORM
    assert parse_qs(ping.body.decode(), keep_blank_values=True) == {
        "userId": ["007555677B20000A"],
        "secureKey": ["4ee15d7e1c343c8e"],
        "alias": ["117"],
        "transcriptPosition": ["3"],
        "message": [""],
    }


def test_position_and_message_are_left_out_when_not_said() -> None:
    assert b"transcriptPosition" not in refresh("s", TOKENS, None).body
    assert b"message" not in refresh("s", TOKENS, None).body


def test_a_call_never_shows_the_secure_key() -> None:
    ping = refresh("customer-support", TOKENS, 3)
    assert TOKENS.secure_key not in repr(ping)
    assert TOKENS.secure_key not in repr(read_call(ping.path, ping.body))
    assert TOKENS.secure_key not in repr(read_reply(JOINED))


@given(token, tokens, st.none() | whole, st.none() | text)
def test_a_refresh_is_read_back(
    service: str, session: Tokens, position: int | None, preview: str | None
) -> None:
    ping = refresh(service, session, position, preview)
    received = read_call(ping.path, ping.body, ping.content_type)
    assert (received.service, received.operation) == (service, Operation.REFRESH)
    assert received.news == TokenNews(session.chat_id, session.user_id, session.secure_key, session.alias)
    assert received.fields.get("transcriptPosition") == (None if position is None else str(position))
    assert received.fields.get("message") == preview


@pytest.mark.slow
@given(
    st.sampled_from(Operation),
    token,
    tokens,
    token,
    st.dictionaries(text, text),
    st.dictionaries(token, text),
)
def test_every_operation_is_read_back(
    operation: Operation,
    service: str,
    session: Tokens,
    file_id: str,
    fields: dict[str, str],
    user_data: dict[str, str],
) -> None:
    def plain(name: str) -> bool:
        """Neither one of the triple, nor with what is escaped in a name, nor with blanks around it, which do not
        count."""
        reserved = name in ("userId", "secureKey", "alias") or name.startswith("userData")
        return not reserved and not set('%"\r\n;') & set(name) and name != "" and name == name.strip()

    fields = {name: value for name, value in fields.items() if plain(name)}
    user_data = {name: value for name, value in user_data.items() if plain(name)}
    pairs = [*fields.items(), *((f"userData[{name}]", value) for name, value in user_data.items())]
    upload = ("notes.txt", b"\r\n--\x00\xff") if operation is Operation.FILE_UPLOAD else None
    sent = call(operation, service, session, pairs, file_id, file=upload)
    received = read_call(sent.path, sent.body, sent.content_type)
    assert (received.service, received.operation) == (service, operation)
    assert (received.fields, received.user_data) == (fields, user_data)
    assert {name: (f.name, f.content) for name, f in received.files.items()} == (
        {"file": upload} if upload else {}
    )
    assert received.file_id == (file_id if "{fileId}" in operation else None)
    if operation is Operation.REQUEST_CHAT:
        assert received.news == TokenNews()
    else:
        assert received.news == TokenNews(session.chat_id, session.user_id, session.secure_key, session.alias)


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (Operation.REQUEST_CHAT, "s"),
        (Operation.SEND, "s/c/send"),
        (Operation.REFRESH, "s/c/refresh"),
        (Operation.START_TYPING, "s/c/startTyping"),
        (Operation.STOP_TYPING, "s/c/stopTyping"),
        (Operation.DISCONNECT, "s/c/disconnect"),
        (Operation.PUSH_URL, "s/c/pushUrl"),
        (Operation.UPDATE_NICKNAME, "s/c/updateNickname"),
        (Operation.CUSTOM_NOTICE, "s/c/customNotice"),
        (Operation.UPDATE_DATA, "s/c/updateData"),
        (Operation.READ_RECEIPT, "s/c/readReceipt"),
        (Operation.FILE_LIMITS, "s/c/file/limits"),
        (Operation.FILE_UPLOAD, "s/c/file"),
        (Operation.FILE_DOWNLOAD, "s/c/file/f/download"),
        (Operation.FILE_DELETE, "s/c/file/f/delete"),
    ],
)
def test_every_operation_has_its_documented_path(operation: Operation, path: str) -> None:
    session = Tokens("c", "u", "k", "1")
    assert call(operation, "s", session, file_id="f", file=("name", b"")).path == path


def test_the_widgets_request_chat_is_read() -> None:
    body = b"nickname=Jo+Doe&userId=&secureKey=&alias=&userData%5BGCTI_Chat_AsyncMode%5D=true"
    received = read_call("customer-support/", body)
    assert received.operation is Operation.REQUEST_CHAT
    assert received.chat_id is None
    assert received.news == TokenNews()
    assert received.fields == {"nickname": "Jo Doe"}
    assert received.user_data == {"GCTI_Chat_AsyncMode": "true"}


def test_a_multipart_request_chat_is_read() -> None:
    body = (
        b'--xx\r\nContent-Disposition: form-data; name="nickname"\r\n\r\nJo\r\n'
        b'--xx\r\ncontent-disposition: form-data; name="userData%5BGCTI_GMS_PushDeviceId%5D"\r\n\r\n'
        b"d-1\r\n--xx--\r\n"
    )
    received = read_call("/s/", body, 'multipart/form-data; boundary="xx"')
    assert received.fields == {"nickname": "Jo"}
    assert received.user_data == {"GCTI_GMS_PushDeviceId": "d-1"}


@pytest.mark.parametrize(
    ("path", "body", "content_type", "code"),
    [
        ("", b"", FORM, "unknown_operation"),
        ("s/c/unheard", b"", FORM, "unknown_operation"),
        ("s/c", b"", FORM, "unknown_operation"),
        ("s//refresh", b"", FORM, "unknown_operation"),
        ("s/c/refresh", b"a=&" * 5000, FORM, "bad_form"),
        ("s", b"--x", "multipart/form-data", "no_boundary"),
        ("s", b"--x\r\ncut off", "multipart/form-data; boundary=x", "bad_multipart"),
        ("s", b"--x\r\nno: name\r\n\r\nv\r\n--x--", "multipart/form-data; boundary=x", "bad_multipart"),
    ],
)
def test_a_call_that_cannot_be_read_says_why(path: str, body: bytes, content_type: str, code: str) -> None:
    with pytest.raises(ChatApiError) as caught:
        read_call(path, body, content_type)
    assert caught.value.code == code


@pytest.mark.parametrize("chat_id", ["", ".", "..", "\ud800"])
def test_a_chat_id_that_would_address_something_else_is_never_sent(chat_id: str) -> None:
    with pytest.raises(ChatApiError):
        refresh("s", Tokens(chat_id, "u", "k", "1"), None)


def test_an_error_about_a_secure_key_does_not_hold_it() -> None:
    with pytest.raises(ChatApiError) as caught:
        refresh("s", Tokens("c", "u", "hidden\udfff", "1"), None)
    assert "hidden" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_operations_on_a_session_need_its_tokens() -> None:
    with pytest.raises(ChatApiError, match="tokens"):
        call(Operation.SEND, "s", None, [("message", "hello")])
    with pytest.raises(ChatApiError, match="file id"):
        call(Operation.FILE_DELETE, "s", TOKENS)


@given(
    st.text(max_size=40),
    st.binary(max_size=200),
    st.sampled_from([FORM, "multipart/form-data; boundary=x", ""]),
)
def test_no_call_raises_anything_but_its_own_error(path: str, body: bytes, content_type: str) -> None:
    for candidate in (path, "s/c/send"):
        try:
            received = read_call(candidate, body, content_type)
        except ChatApiError:
            continue
        assert isinstance(received.operation, Operation)


# --- replies ----------------------------------------------------------------------------------


def test_a_joined_reply_is_read_whole() -> None:
    reply = read_reply(JOINED)
    assert reply.news == TokenNews("00048aAPEQJ8000U", "007555677B20000A", "4ee15d7e1c343c8e", "117")
    assert reply.events == (
        ChatEvent(
            type="ParticipantJoined",
            kind="participantjoined",
            index=1,
            utc_time=1432845088000,
            participant_id=1,
            participant_type="Client",
            nickname="First Last",
        ),
    )
    assert (reply.status_code, reply.next_position, reply.chat_ended) == (0, None, False)


def test_a_quiet_reply_gives_tokens_and_the_next_position() -> None:
    reply = read_reply(QUIET)
    assert reply.news == TokenNews("0008TaFN3SE300QU", "052B5F58EBCF069A", "02f8e3936f763afffcce", "1323")
    assert (reply.next_position, reply.events) == (3, ())


def test_an_ended_reply_keeps_the_end_and_the_fault_only() -> None:
    reply = read_reply(ENDED)
    assert reply.news == TokenNews()
    assert reply.chat_ended
    assert reply.errors == (
        ReplyFault(249, "Media server was not able to execute request. referenceId[10016629]"),
    )


@pytest.mark.parametrize("status_code", [1, 2])
def test_no_field_of_a_failed_reply_is_trusted(status_code: int) -> None:
    trusted = json.loads(JOINED) | {"statusCode": status_code, "nextPosition": 7}
    reply = read_reply(json.dumps(trusted).encode())
    assert (reply.news, reply.next_position, reply.events) == (TokenNews(), None, ())


@pytest.mark.parametrize("value", [0, 0.0, -0.0, "0", " 0 ", "0.0"])
def test_a_status_code_may_be_any_kind_of_zero(value: object) -> None:
    assert read_reply(json.dumps({"statusCode": value}).encode()).status_code == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("117", "117"),
        (117, "117"),
        (117.0, "117"),
        (2**64 - 1, str(2**64 - 1)),
        ("", None),
        (None, None),
        (True, None),
        (1.5, None),
        (1e300, None),
        (10**40, None),
        (float("inf"), None),
        (["117"], None),
        ({}, None),
        ("half \ud800 a key", None),
    ],
)
def test_tokens_are_strings_or_whole_numbers_or_not_said(value: object, expected: str | None) -> None:
    reply = read_reply(json.dumps({"statusCode": 0, "secureKey": value, "alias": value}).encode())
    assert (reply.news.secure_key, reply.news.alias) == (expected, expected)


def test_a_secure_key_damaged_on_its_way_is_not_taken_for_a_key() -> None:
    assert read_reply(b'{"statusCode":0,"secureKey":"4ee1\xff5d7e"}').news.secure_key is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        ("true", True),
        ("TRUE", True),
        (False, False),
        ("false", False),
        (1, False),
        (None, False),
    ],
)
def test_only_a_plain_true_ends_a_chat(value: object, expected: bool) -> None:
    assert read_reply(json.dumps({"statusCode": 0, "chatEnded": value}).encode()).chat_ended is expected


@pytest.mark.parametrize("value", [0, -1, "x", None, 10**30, 3.5, True])
def test_a_next_position_that_would_ask_for_nothing_is_not_said(value: object) -> None:
    assert read_reply(json.dumps({"statusCode": 0, "nextPosition": value}).encode()).next_position is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b" \r\n", "empty_body"),
        (b"<html><body>502</body></html>", "html"),
        (QUIET[:-20], "truncated"),
        (b"Forbidden", "not_json"),
        (b"\x00\xff\xfe", "not_json"),
        (b"[" * 100_000, "truncated"),
        (b"[]", "not_an_object"),
        (b"0", "not_an_object"),
        (b'"{}"', "not_an_object"),
        (b"{}", "no_status_code"),
        (b'{"statusCode":null}', "no_status_code"),
        (b'{"statusCode":3}', "unknown_status_code"),
        (b'{"statusCode":true}', "unknown_status_code"),
        (b'{"statusCode":NaN}', "unknown_status_code"),
        (b'{"statusCode":1e999}', "unknown_status_code"),
        (b'{"statusCode":' + b"9" * 6000 + b"}", "unknown_status_code"),
    ],
)
def test_a_body_that_is_no_reply_says_what_it_is_and_is_the_nodes_trouble(body: bytes, code: str) -> None:
    with pytest.raises(ChatApiError) as caught:
        read_reply(body)
    assert caught.value.code == code
    assert outcome(200, body) == NodeTrouble(code, None, f"HTTP 200, {code}")


def test_json_with_the_usual_flaws_is_still_read() -> None:
    assert read_reply(b'\xef\xbb\xbf{"statusCode":0,"x":NaN,"y":"line\nbreak"}').status_code == 0
    reply = read_reply(b'{"statusCode":0,"errors":[{"advice":"\\ud800!"}]}')
    assert reply.errors == (ReplyFault(advice="\ufffd!"),)


@pytest.mark.slow
@given(
    news,
    st.none() | st.integers(1, 2**53),
    st.booleans(),
    st.lists(events(), max_size=3),
    st.lists(faults, max_size=3),
)
def test_a_reply_is_read_back(
    said: TokenNews, position: int | None, over: bool, happened: list[ChatEvent], wrong: list[ReplyFault]
) -> None:
    body = write_reply(0, said, next_position=position, chat_ended=over, events=happened, errors=wrong)
    reply = read_reply(body)
    assert (reply.news, reply.next_position, reply.chat_ended) == (said, position, over)
    assert (reply.events, reply.errors) == (tuple(happened), tuple(wrong))


@given(events())
def test_an_event_is_read_back(event: ChatEvent) -> None:
    assert read_event(write_event(event)) == event


# --- events -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        {"eventAttributes": {"GCTI_SYSTEM": {"quit-reason-code": 3, "quit-reason-advice": "reconnect"}}},
        {"eventAttributes": {"GCTI_SYSTEM": '{"quit-reason-code":"3","quit-reason-advice":"reconnect"}'}},
        {"eventAttributes": '{"GCTI_SYSTEM":{"quit_reason_code":3,"quit_reason_advice":"reconnect"}}'},
        {"eventAttributes": {"gcti-system": {"quitReasonCode": 3.0, "quitReasonAdvice": "reconnect"}}},
        {"eventAttributes": {"quit-reason-code": 3, "quit-reason-advice": "reconnect"}},
        {"GCTI_SYSTEM": {"quit-reason-code": 3, "quit-reason-advice": "reconnect"}},
        {"quit-reason-code": 3, "quit-reason-advice": "reconnect"},
    ],
)
def test_a_quit_reason_is_found_wherever_chat_server_may_put_it(place: dict[str, object]) -> None:
    event = read_event({"type": "ParticipantLeft", "index": 4, **place})
    assert event is not None
    assert (event.quit_reason_code, event.quit_reason_advice) == (3, "reconnect")


@pytest.mark.parametrize("event_type", ["CustomNotice", "Message", "FileUploaded", "push-url", "Unheard-Of"])
def test_what_a_participant_puts_into_attributes_is_no_quit_reason(event_type: str) -> None:
    reason = {"quit-reason-code": 5, "quit-reason-advice": "reconnect"}
    attributes = {**reason, "GCTI_SYSTEM": reason}
    event = read_event({"type": event_type, "eventAttributes": attributes, "GCTI_SYSTEM": reason})
    assert event is not None
    assert (event.quit_reason_code, event.quit_reason_advice) == (None, None)


def test_the_participant_may_stand_on_the_event_itself() -> None:
    event = read_event({"type": "ParticipantLeft", "participantId": "1", "nickname": "Jo"})
    assert event is not None
    assert (event.participant_id, event.nickname, event.participant_type) == (1, "Jo", None)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"from": {}}, {"type": 5, "index": "x"}])
def test_what_is_no_event_reads_as_none(value: object) -> None:
    assert read_event(value) is None


def test_event_types_are_compared_without_case_and_hyphens() -> None:
    assert event_kind("push-url") == event_kind("PushUrl") == event_kind("PUSH_URL") == "pushurl"


# --- what an answer means ---------------------------------------------------------------------


def test_a_good_reply_means_alive() -> None:
    assert outcome(200, JOINED) == Alive(read_reply(JOINED))
    assert outcome(201, {"statusCode": 0}) == Alive(read_reply(b'{"statusCode":0}'))


def test_chat_ended_means_ended_under_any_status() -> None:
    expected = (
        "HTTP {}, statusCode 2, chatEnded, error 249: Media server was not able to execute request."
        " referenceId[10016629]"
    )
    for status in (200, 404, 500):
        assert classify(status, ENDED, chat_id="0008TaFN3SE300RT") == Ended(expected.format(status))
    assert outcome(200, {"statusCode": 0, "chatEnded": "true"}) == Ended("HTTP 200, statusCode 0, chatEnded")


def test_another_chats_reply_is_neither_an_end_nor_tokens() -> None:
    for body in (QUIET, ENDED, b'{"statusCode":0,"chatEnded":true,"chatId":"other"}'):
        result = outcome(200, body)
        assert isinstance(result, NodeTrouble)
        assert result.cause == PingFault.FOREIGN_REPLY


@pytest.mark.parametrize("status", [200, 404, 500])
def test_another_chats_refusal_refuses_nothing(status: int) -> None:
    for status_code in (1, 2):
        result = outcome(status, {"statusCode": status_code, "chatId": "other"})
        assert isinstance(result, NodeTrouble)
        assert result.cause == PingFault.FOREIGN_REPLY


@pytest.mark.parametrize(
    ("chat_id", "named"),
    [(TOKENS.chat_id, True), ("other", False), (117, False), (None, None), ("", None), (["c"], None)],
)
@pytest.mark.parametrize("status_code", [0, 1, 2])
def test_an_answer_names_its_chat_or_another_or_none(
    chat_id: object, named: bool | None, status_code: int
) -> None:
    raw = json.dumps({"statusCode": status_code, "chatId": chat_id}).encode()
    assert weigh(200, raw, chat_id=TOKENS.chat_id)[1] is named


def test_a_chat_id_that_came_as_a_number_names_its_chat() -> None:
    assert weigh(200, b'{"statusCode":0,"chatId":117}', chat_id="117")[1] is True


def test_an_answer_without_a_reply_says_in_its_detail_what_came_instead() -> None:
    servlet: dict[str, object] = {
        "exception": "com.example.NotFound",
        "message": "no service\nsupport",
        "path": "/2/chat/c",
    }
    assert _detail(outcome(404, servlet)) == (
        "HTTP 404, no_status_code: com.example.NotFound: no service support"
    )
    assert _detail(outcome(404, {"error": "Not Found", "message": "no service"})) == (
        "HTTP 404, no_status_code: Not Found: no service"
    )
    assert _detail(outcome(418, b"<html>teapot</html>")) == "HTTP 418, html"


def test_gms_own_error_stands_in_the_detail() -> None:
    error = {"code": 34, "advice": "Chat Server is failing over", "message": "try later\u202e"}
    for status_code in (1, 2):
        body: dict[str, object] = {"statusCode": status_code, "errors": [error, {"message": "and more"}]}
        result = outcome(200, body)
        assert _detail(result) == (
            f"HTTP 200, statusCode {status_code},"
            " error 34: Chat Server is failing over: try later, error: and more"
        )


def test_four_of_many_errors_stand_in_the_detail() -> None:
    body: dict[str, object] = {"statusCode": 2, "errors": [{"code": code} for code in range(1, 9)]}
    assert _detail(outcome(200, body)) == "HTTP 200, statusCode 2, error 1, error 2, error 3, error 4"


def test_a_long_text_in_which_there_is_nothing_to_hide_is_cut() -> None:
    detail = _detail(outcome(404, {"message": "x" * 5000}))
    assert detail == f"HTTP 404, no_status_code: {'x' * 5000}"[:MAX_DETAIL]


@pytest.mark.parametrize(
    ("secrets", "advice", "shown"),
    [
        (("4ee1",), "key 4EE1 is unknown", "key *** is unknown"),
        (("117",), "server 117 is failing over", "server 117 is failing over"),
        (("zzzz", "azzzzb"), "key azzzzb is unknown", "key *** is unknown"),
        (("half \ud800 a key",), "key is unknown", "key is unknown"),
    ],
)
def test_of_a_text_that_quotes_a_token_the_rest_is_shown(
    secrets: tuple[str, ...], advice: str, shown: str
) -> None:
    raw = json.dumps({"statusCode": 2, "errors": [{"advice": advice}]}).encode()
    result = classify(200, raw, chat_id=TOKENS.chat_id, secrets=secrets)
    assert _detail(result) == f"HTTP 200, statusCode 2, error: {shown}"


@pytest.mark.parametrize("name", ["userId", "secureKey"])
def test_a_token_that_came_with_a_refusal_does_not_show(name: str) -> None:
    refused: dict[str, object] = {"statusCode": 2, name: "came-now", "errors": [{"advice": "not came-now"}]}
    assert _detail(outcome(200, refused)) == "HTTP 200, statusCode 2, error: not ***"


def _detail(result: Outcome) -> str:
    assert not isinstance(result, Alive)
    return result.detail


def test_status_code_1_retries_and_never_ends() -> None:
    body: dict[str, object] = {"statusCode": 1, "chatEnded": True, "errors": [{"code": 7, "advice": "later"}]}
    assert outcome(200, body, "5") == RetryLater(
        "status_code_1", 5.0, "HTTP 200, statusCode 1, error 7: later", "error 7: later"
    )
    assert isinstance(outcome(503, body), RetryLater)


def test_status_code_2_without_an_end_is_refused() -> None:
    assert outcome(200, {"statusCode": 2}) == Refused("status_code_2", "HTTP 200, statusCode 2")
    assert outcome(403, {"statusCode": 2, "chatEnded": "false"}) == Refused(
        "status_code_2", "HTTP 403, statusCode 2"
    )


@pytest.mark.parametrize("status", [199, 400, 404, 500, 503])
def test_success_under_an_error_status_contradicts_itself(status: int) -> None:
    for body in (JOINED, b'{"statusCode":0,"chatEnded":true}'):
        result = outcome(status, body)
        assert isinstance(result, NodeTrouble)
        assert result.cause == PingFault.CONTRADICTORY


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308])
def test_a_redirect_is_no_answer_whatever_its_body(status: int) -> None:
    for body in (JOINED, ENDED, b""):
        assert outcome(status, body) == NodeTrouble("redirect", None, f"HTTP {status}")


@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (400, NodeTrouble, "bad_request"),
        (401, NodeTrouble, "unauthorized"),
        (403, NodeTrouble, "forbidden"),
        (404, NodeTrouble, "not_found"),
        (405, NodeTrouble, "method_not_allowed"),
        (407, NodeTrouble, "proxy_authentication"),
        (408, NodeTrouble, "request_timeout"),
        (409, NodeTrouble, "conflict"),
        (410, NodeTrouble, "gone"),
        (413, NodeTrouble, "body_too_large"),
        (414, NodeTrouble, "uri_too_long"),
        (415, NodeTrouble, "unsupported_media_type"),
        (418, NodeTrouble, "client_error"),
        (422, NodeTrouble, "unprocessable"),
        (429, RetryLater, "too_many_requests"),
        (500, NodeTrouble, "server_error"),
        (502, NodeTrouble, "bad_gateway"),
        (503, NodeTrouble, "unavailable"),
        (504, NodeTrouble, "gateway_timeout"),
        (599, NodeTrouble, "server_error"),
        (100, NodeTrouble, "odd_status"),
        (0, NodeTrouble, "odd_status"),
        (999, NodeTrouble, "odd_status"),
    ],
)
def test_without_a_reply_the_status_decides(
    status: int, kind: type[NodeTrouble | RetryLater], cause: str
) -> None:
    """And it never speaks of the session: whatever is no Chat API reply may come from a proxy, or from a
    servlet container without its application."""
    said_no_such = b'{"exception":"com.example.NotFound","message":"no such service"}'
    for body in (b"", b"Forbidden", b"<html></html>", b"{}", JOINED[:30], said_no_such):
        with case(body):
            result = outcome(status, body, "12")
            assert type(result) is kind
            assert isinstance(result, (NodeTrouble, RetryLater))
            assert (result.cause, result.retry_after) == (cause, 12.0)
            assert result.detail.startswith(f"HTTP {status}, ")


KEY, USER, NEW_KEY = "4ee15d7e1c/43c8e", "007555677B20000A", "02f8e3936f763afffcce"


@pytest.mark.parametrize("said", ["errors", "exception"])
@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("length", [0, 50, MAX_DETAIL, 3990, 4000, 5000])
def test_a_detail_never_holds_tokens_and_stays_short(length: int, status: int, said: str) -> None:
    """Neither those that were sent nor those that came, nor a part of one, whatever form they have."""
    quoted = f"{KEY} {USER.lower()} {NEW_KEY} secureKey={KEY.replace('/', '%2f')}\r\n"
    words = ("x" * length + quoted * 3)[: 4000 + length % 7]
    body = {
        "errors": {"statusCode": 2, "secureKey": NEW_KEY, "errors": [{"code": 1, "advice": words}] * 9},
        "exception": {"secureKey": NEW_KEY, "exception": words, "message": words},
    }[said]
    raw = json.dumps(body).encode()
    detail = _detail(classify(status, raw, chat_id=TOKENS.chat_id, secrets=(KEY, USER)))
    assert len(detail) <= MAX_DETAIL
    assert detail.isprintable()
    for token in (KEY, KEY.replace("/", "%2f"), USER, NEW_KEY):
        assert token[:6].lower() not in detail.lower()


def test_no_part_of_a_long_token_is_left_where_a_text_is_cut() -> None:
    key = "".join(f"{number:04x}" for number in range(75))
    body = {"statusCode": 2, "errors": [{"advice": f"{key} " * 20}]}
    result = classify(200, json.dumps(body).encode(), chat_id=TOKENS.chat_id, secrets=(key,))
    assert key[:4] not in _detail(result)


NOW = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 30 ", 30.0),
        ("1.5", 1.5),
        ("999999", MAX_RETRY_AFTER),
        ("9" * 64, MAX_RETRY_AFTER),
        ("9" * 65, None),
        ("Tue, 02 Jan 2024 03:04:35 GMT", 30.0),
        ("Tue, 02 Jan 2024 03:04:35 -0000", 30.0),
        ("Tue, 02 Jan 2024 04:04:35 +0100", 30.0),
        ("Tue, 02 Jan 2024 03:00:00 GMT", 0.0),
        ("Tue, 02 Jan 2024 03:04:35 +99999999999999999999", None),
        ("Tue, 02 Jan 99999999999999999999 03:04:35 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, now=NOW) == seconds


def test_a_date_to_wait_for_is_compared_with_the_time_it_is() -> None:
    assert read_retry_after("Fri, 31 Dec 9999 23:59:59 GMT") == MAX_RETRY_AFTER
    assert read_retry_after("Tue, 02 Jan 2024 03:04:35 GMT") == 0.0


@given(st.text(max_size=70))
def test_any_retry_after_is_a_bounded_wait_or_nothing(value: str) -> None:
    wait = read_retry_after(value, now=NOW)
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER


def check_any_answer(status: int, body: bytes) -> None:
    result = classify(status, body, chat_id="c", retry_after="1")
    if isinstance(result, Alive):
        assert 200 <= status < 300
        reply = result.reply
        said = reply.news
        assert said.chat_id in (None, "c")
        for value in (said.user_id, said.secure_key, said.alias, *(event.text for event in reply.events)):
            assert value is None or value.encode()
    elif isinstance(result, (RetryLater, NodeTrouble)):
        assert result.cause in set(PingFault)
        result.detail.encode()
    else:
        assert result.detail.startswith(f"HTTP {status}")


@given(st.integers(0, 700), st.binary(max_size=300))
def test_any_bytes_have_a_meaning(status: int, body: bytes) -> None:
    check_any_answer(status, body)


@pytest.mark.slow
@given(st.sampled_from([200, 302, 404, 429, 500]), reply_like)
def test_any_json_has_a_meaning(status: int, value: object) -> None:
    check_any_answer(status, json.dumps(value).encode())


@given(st.sampled_from([JOINED, QUIET, ENDED]), st.data())
def test_a_truncated_reply_is_never_an_answer(body: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(body) - 1))
    assert isinstance(outcome(200, body[:cut]), NodeTrouble)
