"""Push notifications: every nesting GMS may use, and nothing that a participant wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import TokenSpelling, write_event, write_push, write_reply, write_tokens
from asyncchatd.wire.chat_api.replies import ChatEvent, event_kind
from asyncchatd.wire.identifiers import is_token
from asyncchatd.wire.push import MAX_DEPTH, MAX_NAMES, MAX_TEXTS, Push, PushError, read_push

CHAT, USER, KEY, ALIAS = "00048aAPEQJ8000U", "007555677B20000A", "4ee15d7e1c343c8e", "117"
NEWS = TokenNews(CHAT, USER, KEY, ALIAS)
POISON = {
    **{"sessionId": "evil-chat", "userId": "evil-user", "secureKey": "evil-key", "alias": "666"},
    **{
        "deviceId": "evil-device",
        "nextPosition": 999,
        "utcTime": 9999999999999,
        "quit-reason-advice": "reconnect",
    },
}
"""Another chat's tokens, and what else would harm if it were believed."""


def pushed(message: object, **beside: object) -> Push:
    """What a push for device `d` with this message says."""
    return read_push(json.dumps({"deviceId": "d", "message": message, **beside}).encode())


# --- where tokens are found -------------------------------------------------------------------


@pytest.mark.parametrize("spelling", TokenSpelling)
@pytest.mark.parametrize("quoting", [0, 1, 2, 3, 4])
def test_tokens_are_found_in_objects_and_in_json_texts(spelling: TokenSpelling, quoting: int) -> None:
    push = read_push(write_push("d", write_tokens(NEWS, spelling), quoting=quoting))
    assert (push.device_id, push.news, push.text, push.conflicts) == ("d", NEWS, False, ())


@pytest.mark.parametrize(
    "names",
    [
        ("session-id", "user-id", "secure-key", "app-dbid"),
        ("session_id", "user_id", "secure_key", "app_dbid"),
        ("SessionID", "UserId", "SecureKey", "AppDBID"),
        ("chatId", "userId", "secureKey", "alias"),
        ("chat-session-id", "USER-ID", "Secure_Key", "app-DBID"),
    ],
)
def test_tokens_are_found_in_any_spelling(names: tuple[str, ...]) -> None:
    assert pushed(dict(zip(names, (CHAT, USER, KEY, ALIAS), strict=True))).news == NEWS


TOKENS = write_tokens(NEWS)
EVENT = {"index": 3, "type": "push-url", "utcTime": 1432845088000}


@pytest.mark.parametrize(
    "message",
    [
        TOKENS,
        [TOKENS],
        {"data": {"data": {"content": TOKENS}}},
        {"statusCode": 0, "messages": [], **TOKENS},
        {"messages": [{**EVENT, **TOKENS}]},
        [{**EVENT, **TOKENS}],
        {**EVENT, **TOKENS},
        {"type": "Message", "text": "hello", "utcTime": 1432845088000, **TOKENS},
        {"type": "Unheard-Of", **TOKENS},
        {"messages": [{"type": "ParticipantLeft", **TOKENS}]},
        {"messages": json.dumps([{**EVENT, **TOKENS}])},
        {"data": {"messages": [{"index": 3, "type": "Message", "text": "hello"}], **TOKENS}, "channel": "/a"},
        {"channel": "/service", "data": json.dumps({"message": json.dumps(TOKENS)})},
        [json.dumps({"statusCode": 0, **TOKENS})],
    ],
)
def test_tokens_are_found_at_any_depth(message: object) -> None:
    assert pushed(message).news == NEWS


@pytest.mark.parametrize("name", ["message", "data", "content", "payload", "body", "notification"])
def test_tokens_are_found_in_a_text_under_a_name_that_wraps(name: str) -> None:
    assert pushed({name: json.dumps(TOKENS)}).news == NEWS
    assert pushed({name: {name: json.dumps(TOKENS)}}).news == NEWS


@pytest.mark.parametrize(
    "kind", ["ParticipantJoined", "ParticipantLeft", "PushUrl", "IdleAlert", "IdleClose"]
)
def test_tokens_on_an_event_that_chat_server_writes_are_its_own(kind: str) -> None:
    assert pushed([{"type": kind, **TOKENS}]).news == NEWS
    assert pushed({"messages": [{"type": kind, **TOKENS}]}).news == NEWS


def test_tokens_may_stand_beside_a_plain_text() -> None:
    push = read_push(write_push("d", "dummy message", beside=TOKENS))
    assert (push.news, push.text) == (NEWS, True)


def test_numbers_are_tokens_too_and_empty_ones_are_not_said() -> None:
    assert pushed({"app-dbid": 117, "user-id": "", "secure-key": None}).news == TokenNews(alias="117")
    assert pushed({"alias": 117.0}).news == TokenNews(alias="117")


@pytest.mark.parametrize(
    "raw", [b"1e400", b"NaN", b"-Infinity", b"9" * 6000, b"1.5", b"true", b"[]", b'"\\ud800"']
)
def test_a_value_that_cannot_be_a_token_is_not_said(raw: bytes) -> None:
    push = read_push(b'{"deviceId":"d","message":{"secureKey":%s,"index":%s,"utcTime":%s}}' % (raw, raw, raw))
    assert (push.news, push.position, push.utc_time) == (TokenNews(), None, None)


@pytest.mark.parametrize("message", [None, "dummy message", "", "42", "{broken", '{"a":}', 7, False])
def test_a_push_without_payload_is_text(message: object) -> None:
    push = pushed(message)
    assert (push.device_id, push.text, push.news, push.events) == ("d", True, TokenNews(), ())


def test_a_push_may_lack_its_device_or_its_message() -> None:
    assert read_push(b'{"deviceId":"d"}').text
    push = read_push(b'{"message":{"session-id":"c"}}')
    assert (push.device_id, push.news.chat_id) == (None, "c")


def test_a_body_may_be_a_list_of_one_or_a_json_text() -> None:
    assert read_push(b'[{"device-id":"d"}]').device_id == "d"
    assert read_push(json.dumps('{"deviceId":"d"}').encode()).device_id == "d"


# --- what participants write teaches nothing --------------------------------------------------

WRITTEN = json.dumps(POISON)
NOTICE = {"type": "CustomNotice", "eventAttributes": {"GCTI_SYSTEM": POISON}, "text": WRITTEN}


def planted(kind: str, *names: str) -> Iterator[dict[str, object]]:
    """An event of this kind with the poison under each name, as an object, as a text, and one level lower."""
    for name in names:
        for content in (POISON, WRITTEN, {"GCTI_SYSTEM": POISON}, {"GCTI_SYSTEM": WRITTEN}, [POISON], NOTICE):
            yield {"index": 1, "type": kind, name: content}


PLANTED: tuple[dict[str, object], ...] = (
    *planted(
        "Message", "text", "message", "messageType", "userData", "content", "eventAttributes", "GCTI_SYSTEM"
    ),
    *planted("push-url", "text", "message", "url", "pushUrl", "notice", "eventAttributes", "GCTI_SYSTEM"),
    *planted("ParticipantJoined", "userData", "user-data", "subject", "nickname", "eventAttributes", "data"),
    *planted("FileUploaded", "text", "file", "userData", "eventAttributes", "message"),
    *planted("FileDeleted", "text", "userData", "eventAttributes"),
    *planted("NicknameUpdated", "nickname", "from", "eventAttributes"),
    *planted("TypingStarted", "message", "text", "eventAttributes"),
    *planted("CustomNotice", "message", "text", "userData", "eventAttributes", "GCTI_SYSTEM", "data"),
    *planted("Notice", "message", "eventAttributes", "data"),
    *planted("External", "message", "eventAttributes", "data"),
    *planted(
        "Unheard-Of", "anything", "message", "text", "userData", "eventAttributes", "GCTI_SYSTEM", "data"
    ),
    {"type": "Message", "text": WRITTEN, "from": {"participantId": 2}},
    {"type": "custom-notice", "eventAttributes": POISON},
    {"type": "CUSTOM_NOTICE", "eventAttributes": WRITTEN},
    {"type": "Unheard-Of", "data": POISON},
    {"type": "Unheard-Of", "message": {"data": WRITTEN}},
    {"index": 1, "type": "Message", "text": json.dumps(WRITTEN)},
    {"index": 1, "type": "ParticipantLeft", "message": WRITTEN, "userData": POISON, "text": WRITTEN},
    {"index": 1, "type": "ParticipantLeft", "from": {"nickname": WRITTEN, "participantId": 1}},
    {"index": 1, "type": "ParticipantJoined", "eventAttributes": {"userData": POISON, "text": WRITTEN}},
    {"errors": [{"code": 1, "advice": WRITTEN, "message": WRITTEN}]},
    {"monitored": POISON},
    {"monitored": WRITTEN, "chatEnded": False},
    {"lastText": WRITTEN},
    {"texts": [WRITTEN]},
)

NESTINGS: dict[str, Callable[[dict[str, object]], object]] = {
    "alone": lambda event: event,
    "text": json.dumps,
    "text in text": lambda event: json.dumps(json.dumps(event)),
    "list": lambda event: [event],
    "text of a list": lambda event: json.dumps([event]),
    "reply": lambda event: {"statusCode": 0, "userData": POISON, "monitored": POISON, "messages": [event]},
    "text of a reply": lambda event: json.dumps({"messages": [event], "monitored": WRITTEN}),
    "reply of texts": lambda event: {"messages": [json.dumps(event)]},
    "many": lambda event: {"messages": [{"index": 1, "type": "Message", "text": "hi"}, event]},
    "CometD": lambda event: {"channel": "/service", "data": {"messages": [event]}},
    "CometD text": lambda event: {"channel": "/service", "data": json.dumps({"messages": [event]})},
    "push-url around it": lambda event: {"index": 1, "type": "push-url", "message": event},
    "push-url with it": lambda event: {"index": 1, "type": "push-url", "eventAttributes": {"notice": event}},
    "push-url over a list": lambda event: {"index": 1, "type": "push-url", "messages": [event]},
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_what_a_participant_wrote_teaches_nothing(nesting: str) -> None:
    for event in PLANTED:
        push = pushed(NESTINGS[nesting](event))
        assert (push.news, push.device_id, push.conflicts) == (TokenNews(), "d", ()), event
        assert (push.leaving, push.next_position, push.position in (None, 1)) == (False, None, True), event


@pytest.mark.parametrize("nesting", NESTINGS)
def test_what_a_participant_wrote_does_not_disturb_the_tokens_beside_it(nesting: str) -> None:
    for event in PLANTED:
        nested = NESTINGS[nesting](event)
        assert (push := pushed(nested, **TOKENS)).news == NEWS, event
        assert push.conflicts == (), event
        if isinstance(nested, dict):
            assert pushed({**nested, **TOKENS}).news == NEWS, event


def test_in_a_list_only_events_that_chat_server_writes_may_hold_tokens() -> None:
    for kind in ("Message", "CustomNotice", "FileUploaded", "External", "Unheard-Of"):
        event = {"index": 1, "type": kind, **POISON}
        for message in ([event], {"messages": [event]}, {"messages": [POISON]}, json.dumps([event])):
            assert pushed(message).news == TokenNews(), message


FOREIGN = {"sessionId": "evil-chat", "userId": "evil-user", "secureKey": "evil-key", "alias": "666"}
"""Another chat's tokens, and nothing that only an event or a reply has."""


@pytest.mark.parametrize(
    "mark",
    [
        *({"type": kind} for kind in ("Message", "TypingStarted", "TypingStopped", "NicknameUpdated")),
        *({"type": kind} for kind in ("FileUploaded", "FileDeleted", "CustomNotice", "Notice", "External")),
        *({"index": 1}, {"utcTime": 1432845088000}, {"from": {"participantId": 2}}, {"eventAttributes": {}}),
        *({"GCTI_SYSTEM": {}}, {"quit-reason-code": 3}, {"quit-reason-advice": "leave"}),
    ],
    ids=str,
)
def test_one_property_that_only_an_event_has_makes_it_one(mark: dict[str, object]) -> None:
    for message in ([{**mark, **FOREIGN}], {**mark, "more": FOREIGN}, {**mark, "message": FOREIGN}):
        assert pushed(message).news == TokenNews(), message
    assert pushed("hello", **mark, more=FOREIGN).news == TokenNews()
    assert pushed({**mark, **TOKENS}).news == NEWS


@pytest.mark.parametrize(
    "mark",
    [{"statusCode": 0}, {"messages": []}, {"chatEnded": False}, {"nextPosition": 5}, {"idleTimeRExpire": 60}],
    ids=str,
)
def test_below_a_reply_nothing_teaches_but_its_events(mark: dict[str, object]) -> None:
    for name in ("more", "message", "data"):
        assert pushed({**mark, name: FOREIGN}).news == TokenNews()
    assert pushed({**mark, **TOKENS}).news == NEWS


def test_what_stands_in_a_transcript_and_is_no_event_teaches_nothing() -> None:
    for item in ({"more": FOREIGN}, [FOREIGN], {"messages": [FOREIGN]}, json.dumps({"more": FOREIGN})):
        assert pushed({"messages": [item]}).news == TokenNews(), item


def test_the_message_of_a_push_is_gms_own_whatever_event_stands_beside_it() -> None:
    assert pushed(TOKENS, type="push-url").news == NEWS
    assert pushed(TOKENS, index=3).news == NEWS
    for kind in ("CustomNotice", "Notice", "External"):
        assert pushed(FOREIGN, type=kind).news == TokenNews()
    left = {"type": "ParticipantLeft", **FOREIGN}
    assert pushed("hello", type="Message", messages=[left]).news == TokenNews()


def test_a_poisoned_message_does_not_disturb_the_tokens_beside_it() -> None:
    message = {"type": "Message", "index": 2, "text": WRITTEN, "userData": POISON}
    assert pushed({"statusCode": 0, **TOKENS, "messages": [message]}).news == NEWS


@pytest.mark.parametrize(
    "name",
    [
        *(
            "userData",
            "user_data",
            "attachedData",
            "text",
            "messageType",
            "nickname",
            "firstName",
            "lastName",
        ),
        *("emailAddress", "subject", "from", "url", "pushUrl", "errors", "advice", "monitored"),
    ],
)
def test_what_bears_the_name_of_something_participants_write_teaches_nothing(name: str) -> None:
    plain = {"sessionId": "evil-chat", "userId": "evil-user", "secureKey": "evil-key", "alias": "666"}
    for content in (POISON, plain, WRITTEN, [plain], {"more": plain}):
        for push in (
            pushed("hello", **{name: content}),
            pushed({name: content}),
            pushed({"data": {name: content}}),
        ):
            assert (push.news, push.device_id, push.leaving) == (TokenNews(), "d", False), content


@pytest.mark.parametrize("status_code", [1, 2, "1", 3, "x", True])
def test_an_embedded_failed_reply_teaches_nothing(status_code: object) -> None:
    reply = {
        "statusCode": status_code,
        **POISON,
        "nextPosition": 9,
        "messages": [{"index": 5, "type": "Message"}],
    }
    push = pushed(reply)
    assert (push.news, push.next_position, push.events) == (TokenNews(), None, ())
    assert pushed(json.dumps(reply), **TOKENS).news == NEWS
    assert (push := read_push(json.dumps({**reply, "deviceId": "d"}).encode())).device_id == "d"
    assert push.news == TokenNews()


# --- several values ---------------------------------------------------------------------------


def test_the_value_nearest_to_the_surface_counts() -> None:
    push = pushed({"secure-key": "shallow", "deeper": {"secure-key": "deep", "app-dbid": ALIAS}})
    assert push.news == TokenNews(secure_key="shallow", alias=ALIAS)
    assert push.conflicts == ()


def test_the_position_nearest_to_the_surface_counts() -> None:
    assert pushed([{"nextPosition": 5}, {"nextPosition": 9}]).next_position == 5
    assert pushed({"nextPosition": 9}, nextPosition=4).next_position == 4


def test_two_values_at_one_depth_cancel_each_other() -> None:
    push = pushed([{**TOKENS, "secure-key": "one"}, {**TOKENS, "secure-key": "two"}])
    assert push.news == TokenNews(CHAT, USER, None, ALIAS)
    assert push.conflicts == ("secure_key",)


def test_two_spellings_that_disagree_cancel_each_other() -> None:
    push = pushed({"app-dbid": "1", "alias": "2", "user-id": "u", "userId": "u"})
    assert (push.news, push.conflicts) == (TokenNews(user_id="u"), ("alias",))


def test_without_an_undisputed_chat_no_token_is_taken() -> None:
    push = pushed([{"session-id": "a", "secure-key": "key of a"}, {"session-id": "b"}])
    assert (push.news, push.conflicts) == (TokenNews(), ("chat_id",))
    push = pushed([{"session-id": "a"}, {"session-id": "b"}], **{"secure-key": "of whom?"})
    assert (push.news, push.conflicts) == (TokenNews(), ("chat_id",))


def test_tokens_under_another_chats_id_are_left_alone() -> None:
    other = {"session-id": "other", "secure-key": "key of other", "more": {"app-dbid": "9"}}
    push = pushed({"session-id": CHAT, "user-id": USER, "linked": [other]})
    assert (push.news, push.conflicts) == (TokenNews(CHAT, USER), ())


def test_tokens_that_stand_above_the_chats_id_are_the_chats() -> None:
    push = pushed({"secure-key": KEY, "more": {"session-id": CHAT}})
    assert push.news == TokenNews(CHAT, secure_key=KEY)


def test_two_device_ids_are_no_device_id() -> None:
    push = read_push(b'{"deviceId":"d","device-id":"e","message":{"chatId":"c"}}')
    assert (push.device_id, push.conflicts) == (None, ("device_id",))


# --- events -----------------------------------------------------------------------------------


def event(event_type: str, index: int, **more: object) -> dict[str, object]:
    return {"type": event_type, "index": index, "utcTime": 1432845088000 + index, **more}


@pytest.mark.parametrize("quoting", [0, 1, 2])
def test_every_event_of_an_embedded_reply_is_read(quoting: int) -> None:
    events = [
        ChatEvent(type="Message", kind="message", index=4, utc_time=40, participant_id=2, text="hi"),
        ChatEvent(type="TypingStarted", kind="typingstarted", utc_time=50),
        ChatEvent(type="Message", kind="message", index=3, utc_time=30, participant_id=1),
    ]
    reply = json.loads(write_reply(0, NEWS, next_position=5, events=events))
    push = read_push(write_push("d", reply, quoting=quoting))
    assert push.events == tuple(events)
    assert (push.news, push.next_position, push.position, push.utc_time) == (NEWS, 5, 4, 50)
    assert (push.leaving, push.resend, push.text) == (False, False, False)


@pytest.mark.parametrize(
    "message",
    [event("Unheard-Of", 7), [event("Message", 6), event("Message", 7)], {"messages": [event("message", 7)]}],
)
def test_events_come_alone_in_a_list_or_in_a_reply(message: object) -> None:
    push = pushed(message)
    assert (push.position, push.utc_time) == (7, 1432845088007)


@pytest.mark.parametrize("event_type", ["push-url", "PushUrl", "PUSH-URL", "pushurl", "push_url"])
def test_a_push_url_is_chat_server_resending(event_type: str) -> None:
    assert pushed({"type": event_type, "session-id": CHAT}).resend
    assert pushed({"messages": [event(event_type, 1)]}).resend
    assert read_push(write_push("d", "dummy", beside={"type": event_type})).resend


def test_a_resend_may_carry_other_events_too() -> None:
    assert pushed({"messages": [event("Message", 1), event("push-url", 2)]}).resend


def test_other_events_are_no_resend() -> None:
    assert not pushed(event("Message", 1)).resend
    assert not pushed("dummy").resend


ADVICE = {"quit-reason-advice": "reconnect"}


@pytest.mark.parametrize(
    "message",
    [
        event(
            "ParticipantLeft", 1, **{"from": {"participantId": 1}}, eventAttributes={"GCTI_SYSTEM": ADVICE}
        ),
        event("ParticipantLeft", 1, participantId=1, **ADVICE),
        event("participant-left", 1, participantId="1", eventAttributes=json.dumps(ADVICE)),
        {"type": "ParticipantLeft", "eventAttributes": {"GCTI_SYSTEM": json.dumps(ADVICE)}},
        {"type": "push-url", "quitReasonAdvice": " Reconnect "},
        {"messages": [{"type": "ParticipantLeft", "eventAttributes": {"GCTI_SYSTEM": ADVICE}}]},
        {"participantId": 1, **ADVICE},
        {"eventAttributes": {"GCTI_SYSTEM": ADVICE}},
        {"GCTI_SYSTEM": ADVICE},
        {"messages": [event("Message", 1), event("ParticipantLeft", 2, GCTI_SYSTEM=ADVICE)]},
        ADVICE,
    ],
)
@pytest.mark.parametrize("quoted", [False, True])
def test_a_planned_stop_is_recognised_wherever_it_is_said(message: object, quoted: bool) -> None:
    push = pushed(json.dumps(message) if quoted else message)
    assert push.leaving
    assert not push.text


def test_a_planned_stop_may_stand_beside_the_message() -> None:
    beside = {"type": "ParticipantLeft", "participantId": 1, **ADVICE}
    push = read_push(write_push("d", "dummy", beside=beside))
    assert (push.leaving, push.text) == (True, False)


@pytest.mark.parametrize(
    "message",
    [
        event("ParticipantLeft", 1, participantId=2, **ADVICE),
        event(
            "ParticipantLeft", 1, **{"from": {"participantId": 3}}, eventAttributes={"GCTI_SYSTEM": ADVICE}
        ),
        event(
            "ParticipantLeft", 1, participantId=1, eventAttributes={"GCTI_SYSTEM": {"quit-reason-code": 3}}
        ),
        event("ParticipantLeft", 1, **{"quit-reason-advice": "leave"}),
        event("CustomNotice", 1, eventAttributes={"GCTI_SYSTEM": ADVICE}),
        event("Message", 1, eventAttributes={"GCTI_SYSTEM": ADVICE}),
        event("Message", 1, **ADVICE),
        event("push-url", 1, eventAttributes={"GCTI_SYSTEM": ADVICE}),
        event("Unheard-Of", 1, GCTI_SYSTEM=ADVICE),
        event("Message", 1, text=json.dumps(ADVICE)),
        event("ParticipantLeft", 1, userData=ADVICE),
    ],
)
def test_other_leaves_are_no_planned_stop(message: object) -> None:
    assert not pushed(message).leaving


# --- refusals and bounds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"deviceId=d&message=x", "not_json"),
        (b'{"deviceId":"d"', "not_json"),
        (b"\xff\xfe\x00", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"7", "not_an_object"),
        (b"[]", "not_an_object"),
        (b'[{"deviceId":"d"},{"deviceId":"e"}]', "not_an_object"),
        (b"{}", "no_identity"),
        (b'{"deviceId":"","message":"x"}', "no_identity"),
        (b'{"message":{"user-id":"u","secure-key":"hidden"}}', "no_identity"),
        (b'{"message":{"statusCode":2,"chatId":"c"}}', "no_identity"),
        (b'{"message":{"statusCode":2,"deviceId":"e"}}', "no_identity"),
        (b'{"message":[{"type":"Message","deviceId":"e"}]}', "no_identity"),
    ],
)
def test_a_body_that_is_no_push_is_refused_with_its_reason(body: bytes, code: str) -> None:
    with pytest.raises(PushError) as caught:
        read_push(body)
    assert caught.value.code == code
    assert caught.value.field == ("deviceId" if code == "no_identity" else None)
    assert "hidden" not in str(caught.value)


def nested(depth: int) -> bytes:
    return b'{"message":' + b'{"a":' * depth + b'{"chatId":"c"}' + b"}" * depth + b"}"


def test_the_search_ends_at_its_depth() -> None:
    assert read_push(nested(MAX_DEPTH - 3)).news.chat_id == "c"
    with pytest.raises(PushError) as caught:
        read_push(nested(MAX_DEPTH))
    assert (caught.value.code, caught.value.field) == ("too_deep", "deviceId")


def test_the_search_ends_after_so_many_names_and_texts() -> None:
    assert pushed([*["{broken}"] * (MAX_TEXTS - 1), ' {"chatId":"c"}']).news.chat_id == "c"
    crowd = {str(number): number for number in range(MAX_NAMES)}
    texts = ["{broken}"] * MAX_TEXTS
    for body in ({"message": {**crowd, "chatId": "c"}}, {"message": [*texts, '{"chatId":"c"}']}):
        with pytest.raises(PushError) as caught:
            read_push(json.dumps(body).encode())
        assert caught.value.code == "too_deep"
    assert pushed(crowd).device_id == "d"


def test_texts_that_are_plainly_no_json_are_not_counted() -> None:
    push = pushed([*["hello"] * (MAX_TEXTS + 1), '{"chatId":"c"}'])
    assert push.news.chat_id == "c"


def test_the_digest_tells_a_repeated_body_from_another() -> None:
    body = write_push("d", "dummy message")
    assert read_push(body).digest == read_push(bytes(body)).digest
    assert read_push(body).digest != read_push(write_push("e", "dummy message")).digest


def test_secure_keys_do_not_show() -> None:
    assert KEY not in repr(pushed(TOKENS))


# --- properties -------------------------------------------------------------------------------

NAMES = [
    *("deviceId", "message", "messages", "session-id", "userId", "secure_key", "app-dbid", "alias", "chatId"),
    *("type", "index", "from", "utcTime", "text", "userData", "eventAttributes", "GCTI_SYSTEM", "statusCode"),
    *("nextPosition", "quit-reason-advice", "participantId"),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a", "b", 0, 1, "reconnect", "push-url", "CustomNotice", "Message", '{"chatId":"t"}']),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
        | inner.map(json.dumps)
    ),
    max_leaves=20,
)


def check_any_body(body: bytes) -> None:
    try:
        push = read_push(body)
    except PushError:
        return
    assert push.device_id or push.news.chat_id
    for value in (
        push.device_id,
        push.news.chat_id,
        push.news.user_id,
        push.news.secure_key,
        push.news.alias,
    ):
        assert value is None or value.encode()
    for number in (push.next_position, push.position, push.utc_time):
        assert number is None or (isinstance(number, int) and math.isfinite(number))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    check_any_body(body)


@pytest.mark.slow
@given(trees, trees)
def test_any_json_is_read_or_refused(message: object, whole: object) -> None:
    check_any_body(json.dumps({"deviceId": "d", "message": message}).encode())
    check_any_body(json.dumps(whole).encode())


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
printable = st.characters(categories=["L", "N", "P", "S"], include_characters=" ")
token = st.text(printable, max_size=20).map(lambda value: f"{value}7c").filter(is_token)


@given(
    token,
    st.builds(TokenNews, *[st.none() | token] * 4),
    st.sampled_from(TokenSpelling),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(1, 2**53), st.integers(0, 2**53), text), max_size=3),
)
def test_a_push_is_read_back(
    device_id: str,
    news: TokenNews,
    spelling: TokenSpelling,
    quoting: int,
    happened: list[tuple[int, int, str]],
) -> None:
    events = [
        ChatEvent(type="Message", kind=event_kind("Message"), index=index, utc_time=at, text=said)
        for index, at, said in happened
    ]
    message = {**write_tokens(news, spelling), "messages": [write_event(event) for event in events]}
    push = read_push(write_push(device_id, message, quoting=quoting))
    assert (push.device_id, push.news, push.events) == (device_id, news, tuple(events))
    assert push.position == max((index for index, _, _ in happened), default=None)


@given(trees, st.sampled_from(sorted(NESTINGS)))
def test_nothing_a_participant_writes_is_ever_a_token(written: object, nesting: str) -> None:
    names = ("text", "userData", "message", "eventAttributes", "from", "nickname", "GCTI_SYSTEM", "data")
    for content in (written, json.dumps(written)):
        for kind in ("Message", "CustomNotice", "ParticipantJoined", "FileUploaded", "push-url", "Later"):
            event = {"type": kind, "index": 1, **dict.fromkeys(names, content)}
            assert pushed(NESTINGS[nesting](event)).news == TokenNews()


def test_a_token_with_a_nul_is_no_token() -> None:
    """What keeps it as text may cut it there, and half a secure key is a wrong one."""
    push = read_push(b'{"deviceId":"d","message":{"session-id":"c","secure-key":"abc\\u0000def"}}')
    assert push.news == TokenNews(chat_id="c")
