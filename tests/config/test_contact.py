"""Where a daemon is reached, read without what validates a whole configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncchatd.config.contact import Contact, LocalContact, load_contact, local_contact
from asyncchatd.config.loading import load_control
from asyncchatd.config.sources.problems import ConfigError
from asyncchatd.config.values.addresses import Listen

PARTS = (
    "listen",
    "tokens",
    "tls_certificate",
    "tls_client_ca",
    "tls_ca",
    "client_certificate",
    "client_key",
)

USUAL = [
    "",
    "[control]\n",
    '[control]\nlisten = "127.0.0.1:8092"\n',
    '[control]\nlisten = "localhost:1"\n',
    '[control]\nlisten = "[::1]:8092"\n',
    '[control]\nlisten = "unix:/run/asyncchatd/control.sock"\n',
]
"""Sections that need no more than an address."""

FURTHER = [
    '[control]\nlisten = "127.0.0.1:8092"\ntoken = "a-token-that-nobody-guesses"\n',
    '[control]\nlisten = ":8092"\ntoken = "a-token-that-nobody-guesses"\n',
    '[control]\nlisten = "unix:/run/control.sock"\ntrust_socket = true\n',
    "[control]\nmax_connections = 100\n",
]
"""Right ones that say more."""

WRONG = [
    "control = 3\n",
    "[control]\nlisten = 8092\n",
    '[control]\nlisten = "here"\n',
    '[control]\nlisten = "unix:relative"\n',
    '[control]\nlisten = "127.0.0.1:70000"\n',
    '[control]\nlisten = ":8092"\n',
    '[control]\nlisten = "10.1.2.3:8092"\n',
    "[control]\nlisn = 3\n",
    "[control]\nmax_connections = 1\n",
    "[control\n",
]


def parts(contact: Contact) -> dict[str, object]:
    return {name: getattr(contact, name) for name in PARTS}


def written(directory: Path, text: str) -> Path:
    path = directory / "asyncchatd.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [*USUAL, *FURTHER])
def test_it_is_what_the_whole_reading_finds(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    found = load_contact(path)
    assert parts(found) == parts(load_control(path))
    assert isinstance(found, LocalContact) is (text in USUAL)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_as_the_whole_reading_tells_it(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as whole:
        load_control(path)
    with pytest.raises(ConfigError) as caught:
        load_contact(path)
    assert str(caught.value) == str(whole.value)


def test_an_address_that_others_reach_is_left_to_the_whole_reading() -> None:
    """Which asks for a token there."""
    assert local_contact({"listen": "192.0.2.1:8092"}) is None
    assert local_contact({"listen": ":8092"}) is None
    assert local_contact({"listen": "localhost:8092"}) == LocalContact(Listen(host="localhost", port=8092))
