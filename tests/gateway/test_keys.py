"""The gateway's keys: each chat has its own, all of the gateway's are believed, and nothing tells them."""

from __future__ import annotations

import hmac
import pickle
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.gateway.keys import Keys

NEW, OLD, OLDEST, FOREIGN = (bytes([number]) * 32 for number in range(1, 5))
KEYS = Keys([NEW, OLD, OLDEST])

texts = st.text(max_size=9)


def test_a_key_is_made_of_service_and_chat_as_another_program_would() -> None:
    written = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (b"asyncchatd gateway client key 1", "Müller & Co".encode(), b"00048aAPEQJ8000U")
    )
    key = Keys([NEW]).of("Müller & Co", "00048aAPEQJ8000U")
    assert key == hmac.new(NEW, written, "sha256").hexdigest()[:40]
    assert key == "e748af2d7fccc746164260538f3113a5dc4e3c1d", (
        "another one would throw out every client that lives"
    )


@given(texts, texts)
def test_a_client_is_known_by_the_key_it_was_given(service: str, chat_id: str) -> None:
    for number, secret in enumerate((NEW, OLD, OLDEST)):
        key = Keys([secret]).of(service, chat_id)
        assert len(key) == 40
        assert set(key) <= set("0123456789abcdef")
        assert KEYS.which(service, chat_id, key) == number
        assert KEYS.which(service, chat_id, key.upper()) == number
    assert KEYS.of(service, chat_id) == Keys([NEW]).of(service, chat_id)


@given(st.tuples(texts, texts), st.tuples(texts, texts))
def test_no_two_chats_have_one_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (KEYS.of(*one) == KEYS.of(*other)) == (one == other)


def test_a_name_that_runs_into_the_next_makes_another_key() -> None:
    assert KEYS.of("ab", "c") != KEYS.of("a", "bc")
    assert KEYS.of("", "abc") != KEYS.of("abc", "")
    assert KEYS.which("ab", "c", KEYS.of("a", "bc")) is None


@given(st.none() | texts | st.binary(min_size=20, max_size=20).map(bytes.hex))
def test_what_nobody_gave_is_believed_by_none(told: str | None) -> None:
    assert KEYS.which("s", "c", told) is None


def test_a_key_of_another_gateway_or_cut_short_is_none() -> None:
    key = KEYS.of("s", "c")
    wrong = [
        Keys([FOREIGN]).of("s", "c"),
        key[:-1],
        key + "0",
        key + "\0",
        f" {key}",
        key[1:] + key[0],
        "\ud800",
    ]
    assert [KEYS.which("s", "c", each) for each in wrong] == [None] * len(wrong)


def test_all_keys_are_compared_and_in_constant_time_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", counted)
    assert KEYS.which("s", "c", KEYS.of("s", "c")) == 0
    assert KEYS.which("s", "c", "x") is None
    assert compared == [40, 40, 40, 1, 1, 1]


def test_a_session_is_known_by_the_key_it_came_with() -> None:
    digest = KEYS.digest("C1", "02f8e3936f763afffcce")
    for _ in range(2):  # the second time it is remembered
        assert KEYS.came_with(digest, "C1", "02f8e3936f763afffcce")
    assert not KEYS.came_with(digest, "C1", "02F8e3936f763afffcce"), (
        "of GMS' keys nothing is known, case neither"
    )
    assert not KEYS.came_with(digest, "C2", "02f8e3936f763afffcce")
    assert not KEYS.came_with(digest, "C1", None)
    assert not KEYS.came_with(digest, "C1", digest)


@given(st.text(), texts, texts)
def test_no_digest_is_believed_that_was_not_made(digest: str, chat_id: str, told: str) -> None:
    assert not KEYS.came_with(digest, chat_id, told)
    assert not KEYS.came_with(f"{KEYS.ids[0]}:{digest}", chat_id, told)


def test_a_digest_says_nothing_and_has_full_length() -> None:
    key_id, _, made = KEYS.digest("C1", "02f8e3936f763afffcce").partition(":")
    assert key_id == KEYS.ids[0]
    assert len(made) == 64
    assert KEYS.digest("C1", "a") != Keys([OLD, NEW]).digest("C1", "a")
    assert KEYS.of("C1", "a") not in KEYS.digest("C1", "a"), "what is made for one purpose fits nowhere else"


def test_a_rotated_key_knows_the_sessions_of_before_and_a_lost_one_none() -> None:
    digest = Keys([OLD]).digest("C1", "a key")
    assert Keys([NEW, OLD]).came_with(digest, "C1", "a key")
    assert not Keys([NEW]).came_with(digest, "C1", "a key")


def test_a_key_is_named_without_telling_it() -> None:
    assert len(set(KEYS.ids)) == 3
    assert Keys([OLD, NEW]).ids == (KEYS.ids[1], KEYS.ids[0])
    doubled = Keys([NEW, NEW, OLD])
    assert doubled.ids == KEYS.ids[:2], "one that stands there twice is one"
    assert [doubled.which("s", "c", Keys([each]).of("s", "c")) for each in (NEW, OLD)] == [0, 1]
    assert NEW.hex()[:8] not in "".join(KEYS.ids)


def test_nothing_shows_a_key_or_writes_it() -> None:
    assert repr(KEYS) == str(KEYS) == "Keys(3)"
    for write in (pickle.dumps, copy):
        with pytest.raises(TypeError, match="not written"):
            write(KEYS)


def test_without_a_key_there_is_no_gateway() -> None:
    with pytest.raises(ValueError, match="a key of the gateway"):
        Keys([])
