"""The files that the configuration names, and the secrets in them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from ..rig import problems, settings


def test_secrets_come_from_the_file_and_from_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "push-secrets").write_text("# the new one\nnew-secret\n\n  old-secret  \n")
    receiver = settings(tmp_path, receiver='secrets = ["inline"]\nsecrets_file = "push-secrets"').receiver
    assert [secret.get_secret_value() for secret in receiver.secrets] == [
        "inline",
        "new-secret",
        "old-secret",
    ]


def test_a_credential_is_found_where_systemd_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "push").write_text("from-systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    receiver = settings(tmp_path, receiver='secrets_file = "credential:push"').receiver
    assert [secret.get_secret_value() for secret in receiver.secrets] == ["from-systemd"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# none\n", "at least one secret"),
        ("ok\nwith space\n", "line 2"),
        ("..\n", "line 1"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_secrets_that_is_no_use_says_why(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "push-secrets").write_text(content)
    found = problems(tmp_path, receiver='secrets_file = "push-secrets"')
    assert set(found) == {"receiver.secrets_file"}
    assert words in found["receiver.secrets_file"]


def test_store_keys_are_read_in_base64_and_in_hexadecimal_the_first_one_first(tmp_path: Path) -> None:
    (tmp_path / "store-keys").write_text(
        f"# the new one\n{'ab' * 32}\n\n  {'A' * 43}=  \n{'_-' * 21}8=\n",
    )
    loaded = settings(tmp_path, store='keys_file = "store-keys"')
    assert loaded.store_keys == (b"\xab" * 32, bytes(32), base64.urlsafe_b64decode("_-" * 21 + "8="))
    assert {"ab" * 32, "A" * 43 + "="} <= set(loaded.secret_values())
    assert "abab" not in repr(loaded)
    assert settings(tmp_path).store_keys == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# none\n", "at least one key"),
        (f"{'ab' * 32}\n{'ab' * 16}\n", "line 2"),
        ("correct horse battery staple\n", "openssl rand -base64 32"),
        ("x" * 64 + "\n", "256 bits"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_store_keys_that_is_no_use_says_why(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "store-keys").write_text(content)
    found = problems(tmp_path, store='keys_file = "store-keys"')
    assert set(found) == {"store.keys_file"}
    assert words in found["store.keys_file"]
    assert not any(line in found["store.keys_file"] for line in (content or "").split("\n") if line)


def test_without_systemd_a_credential_says_how_to_get_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    found = problems(tmp_path, receiver='secrets_file = "credential:push"')
    assert "$CREDENTIALS_DIRECTORY is not set" in found["receiver.secrets_file"]
    assert "CREDENTIALS_DIRECTORY=/etc/asyncchatd" in found["receiver.secrets_file"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LOGS_DIRECTORY", "by hand give it yourself, LOGS_DIRECTORY=/var/log/asyncchatd)"),
        ("SOMEWHERE", "by hand give it yourself)"),
    ],
)
def test_a_variable_that_is_not_set_says_what_it_is_for_the_service(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    found = problems(tmp_path, log=f'file = "${{{name}}}/asyncchatd.log"')
    assert f"expected ${name} in the environment" in found["log.file"]
    assert words in found["log.file"]


@pytest.mark.parametrize("character", ["/", "%", "?", " ", "ä", ":", "+"])
def test_a_push_secret_must_fit_into_an_address(tmp_path: Path, character: str) -> None:
    found = problems(tmp_path, receiver=f'secrets = ["ok", "not{character}ok"]')
    assert "letters, digits" in found["receiver.secrets[1]"]


def test_what_the_environment_says_is_put_in_with_its_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOM", "/srv/10:30:00")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    for url, file in {
        "${ROOM}/a.db": "/srv/10:30:00/a.db",
        "${RUNTIME_DIRECTORY}/a.db": "/run/one/a.db",
    }.items():
        assert settings(tmp_path, store=f'url = "sqlite:///{url}"').store_url == f"sqlite:///{file}"
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "secrets").write_text("a-secret-of-some-length\n")
    monkeypatch.setenv("PLACE", f"{tmp_path}/a:b")
    receiver = settings(tmp_path, receiver='secrets_file = "${PLACE}/secrets"').receiver
    assert [secret.get_secret_value() for secret in receiver.secrets] == ["a-secret-of-some-length"]


@pytest.mark.parametrize(
    "form", ["${ROOM:-x}", "${ROOM:0:1}", "${}", "${ROOM", "${1}", "${a b}", "${credential:x}"]
)
def test_nothing_but_a_name_stands_in_the_braces(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOM", "/srv")
    assert "expected ${NAME}" in problems(tmp_path, store=f'url = "sqlite:///{form}/a.db"')["store.url"]
    assert (
        "expected ${NAME}"
        in problems(tmp_path, gms=f'nodes = ["http://h/"]\nca_file = "{form}/x"')["gms.ca_file"]
    )


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_a_file_of_the_configuration_is_a_file(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    assert (
        "cannot be read" in problems(tmp_path, receiver=f'secrets_file = "{path}"')["receiver.secrets_file"]
    )
