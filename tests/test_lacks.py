"""Network errors in words."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from asyncchatd.lacks import resolver_words, system_words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('192.0.2.1', 80)"),
            "Connection refused",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), None),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), None),
        (OSError("several addresses, and all failed"), None),
        (RuntimeError("no number"), None),
    ],
)
def test_only_a_number_of_the_system_has_words_of_the_system_and_never_an_address(
    error: BaseException, words: str | None
) -> None:
    assert system_words(error) == words


def test_what_the_resolver_says_is_in_small_letters_and_may_be_nothing() -> None:
    said = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert [resolver_words(said), resolver_words(UnicodeError("label too long"))] == [
        "name or service not known",
        "",
    ]
