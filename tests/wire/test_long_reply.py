"""What is taken of a long reply while it streams past is what a reader of the whole would have taken."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections.abc import Iterable, Iterator

import orjson
import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.wire.chat_api.outcome import Alive, Ended, Outcome, classify
from asyncchatd.wire.chat_api.replies import raw_event, read_reply
from asyncchatd.wire.lenient_json import NotJson, read_json
from asyncchatd.wire.long_reply import KEPT, MAX_FIELDS, MAX_VALUE, MESSAGES_KEPT, LongReply

PLANTED = {
    "statusCode": 2,
    "chatEnded": True,
    "secureKey": "planted-key",
    "chatId": "planted-chat",
    "userId": "planted-user",
    "alias": "666",
    "nextPosition": 666,
    "errors": [{"code": 666}],
}
TOLD = {"chatId": "chat-1", "userId": "user-2", "secureKey": "key-2", "alias": "118", "nextPosition": 9}


def in_pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def short(data: bytes, sizes: Iterable[int] = ()) -> bytes:
    reply = LongReply()
    for piece in in_pieces(data, sizes):
        reply.feed(piece)
    assert not reply.too_large
    return reply.end()


def meaning(body: bytes, status: int = 200) -> object:
    """The outcome; of the events no more than the latest time."""
    outcome: Outcome = classify(status, body, chat_id="chat-1", secrets=("key-1",))
    if isinstance(outcome, Ended):
        return outcome.detail
    if not isinstance(outcome, Alive):
        return outcome
    reply = outcome.reply
    latest = max((event.utc_time for event in reply.events if event.utc_time is not None), default=None)
    return reply.status_code, reply.news, reply.next_position, reply.chat_ended, reply.errors, latest


def event(number: int, **other: object) -> dict[str, object]:
    sender = {"nickname": 'A, {B} ["C"]', "participantId": 1, "type": "Client"}
    return {
        "from": sender,
        "index": number,
        "type": "Message",
        "utcTime": 1000 + number,
        "text": 'é\\"',
        **other,
    }


MESSAGES = [event(number) for number in range(40)]
GOOD = {"statusCode": 0, **TOLD, "messages": MESSAGES}
REPLIES: dict[str, dict[str, object]] = {
    "success": GOOD,
    "key at the front": {"secureKey": "key-2", **GOOD},
    "key at the end": {"messages": MESSAGES, "statusCode": 0, **TOLD},
    "reversed": dict(reversed(GOOD.items())),
    "an end": {**GOOD, "chatEnded": True},
    "statusCode 1": {**GOOD, "statusCode": 1, "errors": [{"code": 4, "advice": "later"}]},
    "statusCode 2": {
        **GOOD,
        "statusCode": 2,
        "errors": [{"code": 249, "advice": "no, ] }", "message": "key-1"}],
    },
    "statusCode 2, an end": {**GOOD, "statusCode": 2, "chatEnded": True},
    "another chat's": {**GOOD, "chatId": "chat-9"},
    "no statusCode": {**TOLD, "messages": MESSAGES, "message": "servlet"},
    "odd types": {
        **GOOD,
        "alias": 118,
        "statusCode": "0",
        "chatId": ["chat-1"],
        "userId": {"a": 1},
        "secureKey": None,
    },
    "messages that are none": {**GOOD, "messages": [1, "2", None, [[]], {}, event(3)]},
    "no list of messages": {**GOOD, "messages": {"0": event(1)}},
    "nothing": {},
}


@pytest.mark.parametrize("size", [3, 50, 4000])
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_long_reply_means_what_the_whole_means(reply: dict[str, object], size: int) -> None:
    plain, indented = json.dumps(reply).encode(), json.dumps(reply, indent=1).encode()
    for body in (plain, indented, b"\xef\xbb\xbf" + plain + b" \n"):
        said = short(body, [size] * (len(body) // size))
        for status in (200, 404, 500):
            with case(status, body[:6]):
                assert meaning(said, status) == meaning(body, status)


LENIENT = {
    "a control character": rb'{"statusCode":0,"messages":[{"type":"a'
    + b"\x01\n"
    + rb'","utcTime":5}],"alias":"118"}',
    "bad UTF-8": b'{"statusCode":0,"messages":[{"type":"\xff\xe2","utcTime":5}],"alias":"118"}',
    "bad UTF-8 in a key": b'{"statusCode":0,"messages":[],"secureKey":"ab\xe2","alias":"118"}',
    "half a surrogate pair in a key": rb'{"statusCode":0,"messages":[],"secureKey":"ab\ud800cd","alias":"118"}',
    "an escaped name": rb'{"statusCode":0,"secure\u004bey":"key-2","messages":[],"a\"lias":"1","alias":"118"}',
    "a field twice": b'{"alias":"1","statusCode":0,"messages":[{"type":"a","utcTime":5}],"alias":"118","messages":[]}',
    "a field twice, the last no list": b'{"statusCode":0,"messages":[{"type":"a","utcTime":5}],"messages":null}',
    "a key twice, the last no key": b'{"statusCode":0,"secureKey":"key-1","secureKey":["key-2"],"messages":[]}',
    "big numbers": b'{"statusCode":0,"alias":'
    + b"9" * 5000
    + b',"nextPosition":1e999,"messages":[-0,1E400]}',
    "numbers that are none": b'{"statusCode":0,"messages":[NaN,-Infinity,Infinity],"nextPosition":NaN}',
}


@pytest.mark.parametrize("body", LENIENT.values(), ids=LENIENT)
def test_what_the_lenient_reader_takes_is_taken(body: bytes) -> None:
    assert isinstance(read_json(body), dict)
    for size in (3, 16, 1000):
        with case(size):
            assert meaning(short(body, [size] * (len(body) // size))) == meaning(body)


def depths(planted: dict[str, object]) -> Iterator[dict[str, object]]:
    text = json.dumps(planted)
    for value in (planted, text, json.dumps(text), f'"}}],{text[1:]}', f'\\"}}]}},{text}', f'"]}}{text}'):
        yield {"text": value}
        yield {"from": {"nickname": value}}
        yield {"eventAttributes": {"GCTI_SYSTEM": [value, {"deep": [[[value]]]}]}}
        yield {str(value): value}


@pytest.mark.parametrize("size", [7, 64, 1000])
@pytest.mark.parametrize("field", ["messages", "monitored", "userData"])
def test_what_participants_write_is_never_a_field_of_the_reply(field: str, size: int) -> None:
    """At no depth, however it is quoted and wherever the pieces are cut."""
    below = [event(number, **planted) for number, planted in enumerate(depths(PLANTED))]
    more = {"first": below[0], "second": [[each] for each in below]}
    reply = {"statusCode": 0, field: below, **more, **TOLD}
    for document in (reply, dict(reversed(reply.items()))):
        body = json.dumps(document).encode()
        said = short(body, [size] * (len(body) // size))
        assert meaning(said) == meaning(body)
        outside = {name: value for name, value in json.loads(said).items() if name != "messages"}
        assert not {"planted", "666"} & set(re.findall(r"planted|666", json.dumps(outside)))


@pytest.mark.parametrize("size", [7, 1000])
def test_the_events_of_a_long_reply_are_kept_with_all_their_fields(size: int) -> None:
    messages = [event(number, userData={"of": "the field"}) for number in range(1, 30)]
    body = json.dumps({**GOOD, "messages": messages}).encode()
    reply = read_reply(short(body, [size] * (len(body) // size)))
    assert list(reply.messages) == messages
    assert not reply.cut


def test_of_too_many_events_the_last_are_kept_and_the_rest_is_said_to_be_missing() -> None:
    messages = [event(number, text="x" * 10_000) for number in range(1, 61)]
    messages[0]["utcTime"] = 9_000
    body = json.dumps({**GOOD, "messages": messages}).encode()
    reply = read_reply(short(body, [1000] * (len(body) // 1000)))
    assert reply.cut
    assert list(reply.messages) == messages[-len(reply.messages) :]
    assert MESSAGES_KEPT * 0.9 < sum(len(json.dumps(each)) for each in reply.messages) <= MESSAGES_KEPT * 1.1
    assert max(each.utc_time or 0 for each in reply.events) == 9_000, (
        "the newest of all counts for the tokens"
    )


FEW = {**GOOD, "messages": MESSAGES[:6]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "reply", [FEW, dict(reversed(FEW.items()))], ids=["key at the front", "key at the end"]
)
def test_of_a_reply_that_is_cut_off_anywhere_nothing_is_believed(reply: dict[str, object]) -> None:
    body = json.dumps(reply).encode()
    for cut in range(3, len(body)):
        assert short(body[:cut], [64] * (cut // 64)) == b"{"


@pytest.mark.parametrize(
    "spoiled",
    [
        *(
            b"%s}",
            b"%s]",
            b"%s{}",
            b"%s x",
            b"%s\x00",
            b"x%s",
            b"[%s]",
            b"[%s",
            b"{%s",
            b'{"a":%s',
            b'{"a":[%s}',
        ),
        *(b'{"a":1,%s', b"\xef\xbb\xbf\xef\xbb\xbf%s"),
    ],
)
def test_of_what_is_no_object_nothing_is_believed(spoiled: bytes) -> None:
    said = short(spoiled % json.dumps(GOOD).encode())
    assert len(said) == 1
    assert not isinstance(meaning(said), tuple)


WRONG = [
    *(
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1,,2]",
        "[}",
        "[1}",
        "[01]",
        "[+1]",
        '["\\x"]',
        "[tru]",
        "[{]}",
        "[{},]",
        "[{}{}]",
    ),
    *(
        '[{"a":1,}]',
        "[[]]]",
        "[]]",
        "{]",
        "1 1",
        "",
        "-",
        '"',
        "[\ufeff1]",
        "\ufeff1",
        "[1:2]",
        ":",
        "nulll",
        "'a'",
    ),
]


@pytest.mark.parametrize("name", ["messages", "errors", "other", "alias"])
@pytest.mark.parametrize("size", [5, 1000])
def test_a_document_that_is_wrong_anywhere_is_not_believed(name: str, size: int) -> None:
    for value in WRONG:
        with case(value):
            body = f'{{"statusCode":0,"{name}":{value},"secureKey":"key-2"}}'.encode()
            with pytest.raises(NotJson):
                read_json(body)
            assert short(body, [size] * (len(body) // size)) == b"{"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from([*sorted(KEPT), "messages", "userData"])
FIELDS = st.dictionaries(
    NAMES, JSON | st.sampled_from(["0", 0, 1, 2, "chat-1", True, [event(1)], [event(2), 3]])
)


@pytest.mark.slow
@given(FIELDS, st.lists(st.integers(1, 30), max_size=20), st.data())
def test_any_document_however_it_is_cut(
    fields: dict[str, object], sizes: list[int], data: st.DataObject
) -> None:
    """And however a single byte of it is changed: where the whole is no object, nothing is believed."""
    body = bytearray(
        json.dumps(fields, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    )
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from(list(b'{}[]",:\\ 1a\x01\xff')))
    said = short(bytes(body), [3, *sizes])
    try:
        whole = read_json(bytes(body))
    except NotJson:
        whole = None
    if isinstance(whole, dict):
        assert meaning(said) == meaning(bytes(body))
    else:
        assert not isinstance(orjson_or_none(said), dict)


def orjson_or_none(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except ValueError:
        return None


# -- bounds ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_transcript() -> None:
    messages = orjson.dumps([event(number, text="x" * 200) for number in range(200)])[1:-1]
    reply = LongReply()
    tracemalloc.start()
    try:
        reply.feed(b'{"statusCode":0,"messages":[0')
        for _ in range(400):
            reply.feed(b"," + messages)
        reply.feed(b'],"secureKey":"key-2"}')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(messages) * 400 > 20_000_000
    assert peak < 2_000_000
    assert meaning(reply.end()) == meaning(
        b'{"statusCode":0,"messages":[{"index":1,"utcTime":1199}],"secureKey":"key-2"}'
    )


@pytest.mark.parametrize(
    "place", [b'{"a":"', b'{"messages":["', b'{"errors":["', b'{"messages":[{"text":"', b'{"']
)
def test_one_value_is_bounded(place: bytes) -> None:
    reply = LongReply()
    reply.feed(place)
    for _ in range(MAX_VALUE // 65536 + 1):
        reply.feed(b"x" * 65536)
    assert reply.too_large


def test_all_that_is_kept_is_bounded() -> None:
    reply = LongReply()
    reply.feed(b'{"z":0')
    for name in sorted(KEPT)[:2]:
        reply.feed(b',"%s":"%s"' % (name.encode(), b"x" * (MAX_VALUE * 2 // 3)))
    assert reply.too_large


@pytest.mark.slow
@pytest.mark.parametrize(
    "nested", [b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000]
)
def test_nesting_is_bounded(nested: bytes) -> None:
    for name in (b"messages", b"errors"):
        assert short(b'{"statusCode":0,"%s":[%s]}' % (name, nested), [1000] * 400) == b"{"


def test_fields_are_bounded() -> None:
    assert short(b"{%s}" % b",".join([b'"a":1'] * MAX_FIELDS)) == b"{}"
    assert short(b"{%s}" % b",".join([b'"a":1'] * (MAX_FIELDS + 1))) == b"{"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python writes whatever it can read")
def test_a_message_that_cannot_be_written_again_costs_nothing_but_itself() -> None:
    deep = b"[" * 1000 + b"]" * 1000
    body = json.dumps({**GOOD, "messages": [event(1), event(2, userData="deep"), event(3)]}).encode()
    body = body.replace(b'"deep"', deep)
    assert raw_event(read_reply(body).messages[1]) is None
    reply = read_reply(short(body, [64] * (len(body) // 64)))
    assert reply.news == read_reply(body).news
    assert reply.cut
