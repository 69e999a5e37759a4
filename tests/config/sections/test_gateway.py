"""The configuration of the gateway: there where it is written, and nowhere else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from asyncchatd.config.sections.gateway import GatewaySettings
from asyncchatd.config.settings import Settings

from ..rig import problems, settings

KEYS = ("ab" * 32, "cd" * 32)


def lines(directory: Path, more: str = "") -> str:
    """The section with what it needs, and its file of keys."""
    (directory / "gateway-keys").write_text("\n".join(KEYS))
    return f'key_file = "gateway-keys"\nnode_group = "gms"\n{more}'


def loaded(directory: Path, more: str = "", **sections: str) -> Settings:
    return settings(directory, gateway=lines(directory, more), **sections)


def gateway(directory: Path, more: str = "") -> GatewaySettings:
    found = loaded(directory, more).gateway
    assert found is not None
    return found


def wrong(directory: Path, more: str) -> tuple[str, str]:
    """The key and the words of the only problem."""
    [(key, words)] = problems(directory, gateway=lines(directory, more)).items()
    return key, words


def test_without_the_section_there_is_no_gateway(tmp_path: Path) -> None:
    without = settings(tmp_path)
    assert without.gateway is None
    assert list(without.listeners) == ["receiver", "control"]


def test_with_the_section_there_is_one(tmp_path: Path) -> None:
    whole = loaded(tmp_path)
    assert list(whole.listeners) == ["receiver", "control", "gateway"]
    its = gateway(tmp_path)
    assert whole.listener("gateway") == its
    assert (str(its.listen), its.path, its.origins, its.services) == ("127.0.0.1:8090", "/genesys", (), ())
    assert (its.hold, its.patience) == (timedelta(seconds=2), timedelta(seconds=2.5))
    assert its.keepalive_timeout >= timedelta(seconds=75), "widgets poll every 30 s at the slowest"


def test_what_it_needs_is_said_where_it_stands(tmp_path: Path) -> None:
    found = problems(tmp_path, gateway="adopt = true")
    assert found == dict.fromkeys(("gateway.key_file", "gateway.node_group"), "required, but missing")


def test_a_misspelt_key_is_shown_the_nearest(tmp_path: Path) -> None:
    found = problems(tmp_path, gateway=lines(tmp_path, 'orgins = ["https://a.example"]'))
    assert found == {"gateway.orgins": "unknown key"}


def test_no_two_listeners_have_one_address(tmp_path: Path) -> None:
    for other in ("receiver", "control"):
        address = {"receiver": "127.0.0.1:8091", "control": "127.0.0.1:8092"}[other]
        key, words = wrong(tmp_path, f'listen = "{address}"')
        assert (key, words) == ("gateway.listen", f"expected another address than {other}.listen")


def test_the_keys_are_read_the_one_for_new_chats_first_and_are_secret(tmp_path: Path) -> None:
    (tmp_path / "apikeys").write_text("# of the shop\nshop-apikey-1\n\nshop/apikey=2\n")
    whole = loaded(tmp_path, 'apikeys_file = "apikeys"')
    its = whole.gateway
    assert its is not None
    assert its.keys == (b"\xab" * 32, b"\xcd" * 32)
    assert its.apikeys == ("shop-apikey-1", "shop/apikey=2")
    assert {*KEYS, *its.apikeys} <= set(whole.secret_values())
    shown = repr(whole) + str(its) + whole.model_dump_json()
    assert not any(secret in shown for secret in (*KEYS, *its.apikeys))


@pytest.mark.parametrize("content", ["", "too short\n", f"{KEYS[0]}\n{KEYS[1][:40]}\n"])
def test_a_key_file_that_is_no_use_is_told_without_what_is_in_it(tmp_path: Path, content: str) -> None:
    section = lines(tmp_path)
    (tmp_path / "gateway-keys").write_text(content)
    [(key, words)] = problems(tmp_path, gateway=section).items()
    assert key == "gateway.key_file"
    assert not any(line in words for line in content.splitlines())


def test_an_apikey_that_no_header_carries_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "apikeys").write_text("good-one\nZq7 not here\n")
    key, words = wrong(tmp_path, 'apikeys_file = "apikeys"')
    assert key == "gateway.apikeys_file"
    assert words.startswith("line 2 of this file: expected an apikey")
    assert "Zq7" not in words


@pytest.mark.parametrize(
    ("written", "path"),
    [("/genesys", "/genesys"), ("/genesys/", "/genesys"), ("/", ""), ("", ""), ("/a/b-1.x/~", "/a/b-1.x/~")],
)
def test_the_base_path_ends_without_a_slash(tmp_path: Path, written: str, path: str) -> None:
    assert gateway(tmp_path, f'path = "{written}"').path == path


@pytest.mark.parametrize(
    "path", ["genesys", "/a//b", "/a?b", "/a/../b", "/.", "/a%20b", "https://host/genesys"]
)
def test_what_is_no_base_path_is_refused(tmp_path: Path, path: str) -> None:
    key, words = wrong(tmp_path, f'path = "{path}"')
    assert key == "gateway.path"
    assert words.startswith("expected the path of a base address")


@pytest.mark.parametrize(
    "origin",
    [
        "https://www.example.com",
        "https://www.example.com:8443",
        "http://localhost:3000",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "https://xn--bcher-kva.example",
        "capacitor://localhost",
        "chrome-extension://abcdefgh",
    ],
)
def test_an_origin_is_as_browsers_write_it(tmp_path: Path, origin: str) -> None:
    assert gateway(tmp_path, f'origins = ["{origin}", "{origin}"]').origins == (origin,)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("*", "the origin of a page"),
        ("null", "the origin of a page"),
        ("https://*.example.com", "the origin of a page"),
        ("www.example.com", "the origin of a page"),
        ("https://", "the origin of a page"),
        ("https://a b", "the origin of a page"),
        ("https://a:0", "the origin of a page"),
        ("https://a:99999", "the origin of a page"),
        ("https://[::1", "the origin of a page"),
        ("https://WWW.example.com", '"https://www.example.com"'),
        ("https://www.example.com/", '"https://www.example.com"'),
        ("https://www.example.com/shop?x", '"https://www.example.com"'),
        ("https://www.example.com:443", '"https://www.example.com"'),
        ("http://www.example.com:80", '"http://www.example.com"'),
        ("https://user@www.example.com", '"https://www.example.com"'),
        ("https://bücher.example", '"https://xn--bcher-kva.example"'),
    ],
)
def test_what_no_browser_says_is_refused(tmp_path: Path, origin: str, words: str) -> None:
    key, message = wrong(tmp_path, f'origins = ["https://ok.example", "{origin}"]')
    assert key == "gateway.origins[1]"
    assert message.startswith("expected ")
    assert words in message.partition("; got")[0]


@pytest.mark.parametrize(
    "key",
    ["GCTI_Chat_PushSubscribe", "gcti_gms_PushDeviceId", "GCTI_GMS_NodeGroup", "GCTI_Chat_AsyncMode"],
)
def test_user_data_is_not_what_the_gateway_sets_itself(tmp_path: Path, key: str) -> None:
    where, words = wrong(tmp_path, f'user_data = {{ {key} = "x" }}')
    assert where == "gateway.user_data"
    assert f"expected no {key}: the gateway sets it itself" in words


def test_user_data_is_names_with_texts(tmp_path: Path) -> None:
    data = gateway(tmp_path, 'user_data = { Channel = "web", "GCTI_Chat_Other" = "" }').user_data
    assert data == {"Channel": "web", "GCTI_Chat_Other": ""}
    for wrong_one, words in (("Channel = 1", "text in quotes"), ('"a]b" = "x"', "keys of userData")):
        key, message = wrong(tmp_path, f"user_data = {{ {wrong_one} }}")
        assert key.startswith("gateway.user_data")
        assert words in message


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        ('services = ["a/b"]', "gateway.services[0]", "a service name"),
        ("adopt = 1", "gateway.adopt", "true or false"),
        ('passthrough = "yes"', "gateway.passthrough", "true or false"),
        ("hold = 2", "gateway.hold", "with its unit"),
        ('max_upload = "20MB"', "gateway.max_upload", "a size above zero"),
        ("max_rate = 0.0", "gateway.max_rate", "above 0"),
        ("max_new_chats = 0", "gateway.max_new_chats", "at least 1"),
        ("max_connections = 7", "gateway.max_connections", "at least 8"),
        ('tls_key = "asyncchatd.toml"', "gateway.tls_key", "tls_certificate together"),
    ],
)
def test_values_that_cannot_be_meant(tmp_path: Path, line: str, key: str, words: str) -> None:
    where, message = wrong(tmp_path, line)
    assert where == key
    assert words in message


def test_calls_have_half_of_the_rate_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert gateway(tmp_path).rate(200.0) == 100.0
    assert gateway(tmp_path, "max_rate = 30.0").rate(200.0) == 30.0
    assert gateway(tmp_path, "max_rate = 300.0").rate(200.0) == 200.0
