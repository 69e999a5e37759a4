"""The one reader of JSON from senders nobody controls: a value, `None` or `NotJson`, whatever comes."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.wire.identifiers import as_token
from asyncchatd.wire.lenient_json import (
    MAX_TEXT_NESTING,
    NotJson,
    as_flag,
    as_object,
    as_text,
    as_whole,
    folded,
    opened_text,
    read_json,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def check_encodable(root: object) -> None:
    """Every text in it, names included, can be written as UTF-8."""
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_and_any_text_are_json_or_not(data: bytes | str) -> None:
    try:
        value = read_json(data)
    except NotJson:
        return
    check_encodable(value)


@pytest.mark.slow
@given(values)
def test_what_json_can_say_is_read_as_it_was_said(value: object) -> None:
    text = json.dumps(value)
    read = read_json(text)
    check_encodable(read)
    if "\\ud" not in text and "Infinity" not in text and "NaN" not in text:
        assert json.dumps(read) == text or not all_exact(value)


def all_exact(value: object) -> bool:
    """Whether its numbers and names are those that every reader keeps: no number beyond 64 bits."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if isinstance(value, dict):
        return all(map(all_exact, value.values()))
    return all(map(all_exact, value)) if isinstance(value, list) else True


@pytest.mark.parametrize("piece", ["[", '{"a":', '[{"a":', '["', "-", "1", '"\\', "\ufeff", "[1,", "\ud800"])
def test_a_hundred_thousand_of_anything_are_json_or_not(piece: str) -> None:
    for data in (piece * 100_000, (piece * 100_000).encode("utf-8", "surrogatepass")):
        with suppress(NotJson):
            check_encodable(read_json(data))


@given(values, st.integers(0, MAX_TEXT_NESTING))
def test_a_text_in_a_text_is_opened_as_often_as_is_sensible(value: object, quoted: int) -> None:
    text = json.dumps(value)
    for _ in range(min(quoted, 5)):
        text = json.dumps(text)
    opened = opened_text(text)
    assert (opened is not None) == (isinstance(value, (dict, list)) or inner(value))


def inner(value: object) -> bool:
    """A text may itself be the text of an object or list."""
    return isinstance(value, str) and opened_text(value) is not None


@given(st.text(max_size=60))
def test_any_text_is_opened_or_not(text: str) -> None:
    opened = opened_text(text)
    assert opened is None or isinstance(opened, (dict, list))


@given(values)
def test_any_value_is_narrowed_or_none(value: object) -> None:
    token, whole, flag = as_token(value), as_whole(value), as_flag(value)
    assert token is None or (token and "\0" not in token and "\ufffd" not in token)
    assert whole is None or abs(whole) < 2**63
    assert flag in (None, True, False)
    assert as_object(value) is None or isinstance(as_object(value), dict)
    assert as_text(value) is None or as_text(value) == value


@given(st.text(max_size=100))
def test_a_folded_name_stays_what_it_is(name: str) -> None:
    assert folded(folded(name)) == folded(name) or len(name) > 64
