"""What is a token and what is none, the same for pushes, replies and registrations."""

from __future__ import annotations

import json

import pytest
from conftest import case

from asyncchatd.control.reading import BadRequest
from asyncchatd.control.registrations import Beside, read_registration
from asyncchatd.model.data import TokenNews
from asyncchatd.wire.chat_api.outcome import Alive, classify
from asyncchatd.wire.identifiers import LARGEST_ID, as_token
from asyncchatd.wire.push import PushError, read_push

TOKENS = [
    *("00048aAPEQJ8000U", "007555677B20000A", "4ee15d7e1c343c8e", "02f8e3936f763afffcce", "117", "0", "1"),
    *(
        "111",
        "2222",
        "-1",
        "c",
        "aaaa",
        "nullify",
        "none-of-them",
        "chat-1",
        "a b",
        " padded ",
        "日本",
        "{42}",
    ),
    *(
        "dGhlIGtleSBvZiBhIENvbWV0RCBzZXNzaW9u+/==",
        "550e8400-e29b-41d4-a716-446655440000",
        *("null-1", "undefined-chat", "-1-", "2-2-2-2", "null-" * 13),
        "a..b",
        "xx",
        "x" + "1" * 9,
    ),
    "a1" * (LARGEST_ID // 2),
]

NO_TOKENS = [
    *(
        "",
        " ",
        "\t",
        "null",
        "NULL",
        " null ",
        "(null)",
        *("undefined-undefined", "NULL--null-", "secure-key", "--", "not-set", "0-0-0-0-0-0-0-0", "x-x-x"),
        *("null,null", "undefined undefined", "undefined.undefined", "not set", "not_available", "no key"),
        "<null>",
        "undefined",
        "Undefined",
        "None",
        "nil",
        "NaN",
    ),
    *(
        "[object Object]",
        "string",
        "n/a",
        "N/A",
        "NA",
        "unknown",
        "redacted",
        "[REDACTED]",
        "{secureKey}",
        "${alias}",
    ),
    *("<user-id>", "%SECURE_KEY%", "securekey", "true", "false", "'undefined'", '"null"'),
    *(
        "*",
        "****",
        "********",
        "-",
        "----",
        "?",
        "...",
        ".",
        "..",
        "/",
        "•••••",
        "____",
        "###",
        "xxx",
        "XXXX",
        "xxxx-xxxx",
    ),
    *(
        "00000000",
        "00000000-0000-0000-0000-000000000000",
        "aaaaaaaaaaaa",
        "4ee1****8c8e",
        "4ee15d7e...",
        "4ee15d7e…",
    ),
    *(
        "a\x00b",
        "a\nb",
        "\x1b[31mred",
        "a\u202eb",
        "a\ufffdb",
        "a\u200bb",
        "\ud800a",
        "\xa0",
        "a" + "1" * LARGEST_ID,
    ),
]

NAMED = {"chat_id": "chatId", "user_id": "userId", "secure_key": "secureKey", "alias": "alias"}


def test_ids_are_opaque() -> None:
    assert [as_token(text) for text in TOKENS] == TOKENS


def test_a_placeholder_a_mask_or_a_damaged_text_is_no_token() -> None:
    assert [text for text in NO_TOKENS if as_token(text) is not None] == []


def test_a_number_is_its_text() -> None:
    assert [as_token(value) for value in (117, 117.0, -1, 0, 2**63)] == ["117", "117", "-1", "0", str(2**63)]
    others: list[object] = [1.5, True, None, [], {}, float("nan"), 1e300, 2**70]
    assert [as_token(value) for value in others] == [None] * len(others)


@pytest.mark.parametrize("name", NAMED.values())
def test_a_push_does_not_say_what_is_no_token(name: str) -> None:
    known = {"chatId": "chat-1", "userId": "user-1", "secureKey": "key-1", "alias": "117"}
    others = TokenNews(**{ours: None if wire == name else known[wire] for ours, wire in NAMED.items()})
    for text in NO_TOKENS:
        with case(text):
            body = {"deviceId": "d", "message": {**known, name: text}}
            assert read_push(json.dumps(body).encode()).news == others


def test_a_push_without_the_id_of_a_device_is_refused() -> None:
    for text in NO_TOKENS:
        with case(text), pytest.raises(PushError, match="deviceId"):
            read_push(json.dumps({"deviceId": text, "message": "dummy"}).encode())


def test_a_reply_does_not_say_what_is_no_token() -> None:
    for text in NO_TOKENS:
        with case(text):
            body = {"statusCode": 0, "nextPosition": 3, **dict.fromkeys(NAMED.values(), text)}
            outcome = classify(200, json.dumps(body).encode(), chat_id="chat-1")
            assert isinstance(outcome, Alive)
            assert outcome.reply.news == TokenNews()


@pytest.mark.parametrize("field", [*NAMED, "service", "device_id"])
def test_a_registration_with_something_else_is_refused_and_its_field_named(field: str) -> None:
    for text in NO_TOKENS:
        if not text and field not in NAMED:
            continue  # as good as left out
        with case(text):
            said = {**dict.fromkeys(NAMED, "fine-7"), field: text}
            with pytest.raises(BadRequest) as caught:
                read_registration(json.dumps(said).encode(), Beside("support"))
            if "\ud800" not in text:  # which no JSON can say
                assert caught.value.field == field
            assert "4ee1" not in str(caught.value), "a masked key still shows some of it"


def test_a_registration_takes_every_token() -> None:
    for text in TOKENS:
        with case(text):
            said = dict.fromkeys((*NAMED, "service", "device_id"), text)
            taken = read_registration(json.dumps(said).encode(), Beside("support"))
            assert taken.tokens.secure_key == text
