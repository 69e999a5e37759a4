"""The configuration of who may use a listener."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from asyncchatd.config.loading import load, load_control
from asyncchatd.config.sections.listeners import ControlSettings
from asyncchatd.config.settings import Settings
from asyncchatd.config.sources.problems import ConfigError
from asyncchatd.config.values.addresses import Listen
from asyncchatd.config.values.rights import ORDINARY_RIGHTS, Right, Rights
from asyncchatd.control.status.live import LISTENERS

TOKEN = "a-token-that-nobody-guesses"


def write(directory: Path, control: str = "", receiver: str = "") -> Path:
    path = directory / "asyncchatd.toml"
    path.write_text(
        f'[receiver]\nsecrets = ["x9PbqvT2mVn4Rz7K"]\n{receiver}\n[control]\n{control}\n'
        '[gms]\nnodes = ["http://gms-1/genesys"]\n'
    )
    return path


def problem(path: Path) -> tuple[str, str]:
    """The key and the words of the only problem."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    [found] = caught.value.problems
    return found.key, found.message


def control_of(path: Path) -> ControlSettings:
    return load(path).control


# -- a control API that others reach ---------------------------------------------------------------------


@pytest.mark.parametrize("listen", [":8092", "0.0.0.0:8092", "10.1.2.3:8092", "[::]:8092", "chat-host:8092"])
def test_a_control_api_that_others_reach_needs_a_token(tmp_path: Path, listen: str) -> None:
    key, message = problem(write(tmp_path, f'listen = "{listen}"'))
    assert key == "control.token"
    assert all(word in message for word in (listen, "control.token_file", "127.0.0.1", "Unix socket"))
    (tmp_path / "tokens").write_text(TOKEN)
    for protection in (f'token = "{TOKEN}"', 'token_file = "tokens"'):
        assert control_of(write(tmp_path, f'listen = "{listen}"\n{protection}')).tokens == (TOKEN,)


def test_clients_with_certificates_need_no_token(tmp_path: Path) -> None:
    (tmp_path / "x.pem").touch()
    tls = 'tls_certificate = "x.pem"\ntls_client_ca = "x.pem"'
    assert control_of(write(tmp_path, f'listen = ":8092"\n{tls}')).tokens == ()


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1", "unix:/run/c.sock"]
)
def test_on_this_host_none_is_needed(tmp_path: Path, listen: str) -> None:
    assert Listen.parse(listen).local
    assert control_of(write(tmp_path, f'listen = "{listen}"')).tokens == ()


# -- tokens ------------------------------------------------------------------------------------------------


def test_tokens_come_from_the_file_and_the_key_and_are_secret(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# two\nfirst-token\n\nsecond+token/==\n{TOKEN}\n")
    settings = load(write(tmp_path, f'token_file = "tokens"\ntoken = "{TOKEN}"'))
    assert settings.control.tokens == ("first-token", "second+token/==", TOKEN)
    assert set(settings.control.tokens) <= set(settings.secret_values())
    for shown in (repr(settings), str(settings.control), settings.model_dump_json()):
        assert not any(token in shown for token in settings.control.tokens)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "at least one token"),
        ("# only this\n", "at least one token"),
        ("ok\nnot ok\n", "line 2 of this file"),
    ],
)
def test_a_token_file_that_is_no_use(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tokens").write_text(content)
    key, message = problem(write(tmp_path, 'token_file = "tokens"'))
    assert key == "control.token_file"
    assert words in message


# -- rights ------------------------------------------------------------------------------------------------


def rights_in(tmp_path: Path, content: str, control: str = "") -> dict[str, Rights]:
    """By token, as the file is read."""
    (tmp_path / "tokens").write_text(content)
    grants = control_of(write(tmp_path, f'token_file = "tokens"\n{control}')).grants
    return {grant.token.get_secret_value(): grant.rights for grant in grants}


def test_rights_stand_behind_a_token_and_a_bare_one_keeps_those_it_had(tmp_path: Path) -> None:
    found = rights_in(
        tmp_path,
        "# a comment\nbare\n  looks read\nboth\t operate   read read\n"
        f"all events keys operate register read\n{TOKEN}\n",
        f'token = "{TOKEN}"',
    )
    assert found == {
        "bare": Rights((Right.READ, Right.REGISTER, Right.OPERATE)),
        "looks": Rights((Right.READ,)),
        "both": Rights((Right.READ, Right.OPERATE)),
        "all": Rights(tuple(Right)),
        TOKEN: ORDINARY_RIGHTS,
    }


def test_events_are_of_named_consumers_or_of_all(tmp_path: Path) -> None:
    found = rights_in(
        tmp_path,
        "one events:app\ntwo events:web-1,app\nboth events:app events:web-1 read\nall events:app events\nnone read\n",
    )
    assert {token: rights.consumers for token, rights in found.items()} == {
        "one": ("app",),
        "two": ("app", "web-1"),
        "both": ("app", "web-1"),
        "all": None,
        "none": None,
    }
    assert found["both"].allow(Right.EVENTS, ["web-1"])
    assert not found["both"].allow(Right.EVENTS, ["web-1", "web-2"])
    assert not found["none"].allow(Right.EVENTS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Zq7-token raed", "word 1 behind the token; did you mean read?"),
        ("Zq7-token read Operate", "word 2 behind the token; did you mean operate?"),
        ("Zq7-token key", "did you mean keys?"),
        ("Zq7-token read,register", "as word 1 behind the token"),
        ("Zq7-token event:app", "did you mean events?"),
        ("Zq7-token keys:app", "did you mean keys?"),
        ("Zq7-token # Grafana", "a comment needs a line of its own"),
        ("Zq7-token Zq7-other-token", "read, register, operate, keys, events or events:NAME"),
        ("Zq7-token events:", "names of consumers in word 1 behind the token"),
        ("Zq7-token events:app, web", "without blanks"),
        ("Zq7-token read events:a,,b", "names of consumers in word 2"),
        ("Zq7-token events:*", "names of consumers"),
        ("first read register", "the same rights as in line 1"),
        ("first", "the same rights as in line 1"),
    ],
)
def test_what_is_no_right_is_told_with_its_line_and_without_the_token(
    tmp_path: Path, line: str, words: str
) -> None:
    """Nor is the word repeated: it may be another token."""
    (tmp_path / "tokens").write_text(f"first read\n# a comment\n\n{line}\n")
    key, message = problem(write(tmp_path, 'token_file = "tokens"'))
    assert key == "control.token_file"
    assert message.startswith("line 4 of this file: expected ")
    assert words in message
    assert "Zq7" not in message


def test_a_token_stands_in_both_places_only_with_the_same_rights(tmp_path: Path) -> None:
    for rights in ("", "read register operate"):
        assert rights_in(tmp_path, f"{TOKEN} {rights}", f'token = "{TOKEN}"') == {TOKEN: ORDINARY_RIGHTS}
    (tmp_path / "tokens").write_text(f"{TOKEN} read\n")
    key, message = problem(write(tmp_path, f'token_file = "tokens"\ntoken = "{TOKEN}"'))
    assert key == "control.token"
    assert "other rights in control.token_file" in message
    assert TOKEN not in message


def test_a_socket_alone_can_be_trusted(tmp_path: Path) -> None:
    socket = 'listen = "unix:/run/c.sock"'
    assert control_of(write(tmp_path, f"{socket}\ntrust_socket = true")).trust_socket
    for keys, words in (
        ("trust_socket = true", "expected a Unix socket with control.trust_socket"),
        ('listen = "127.0.0.1:1"\ntrust_socket = true', "127.0.0.1:1"),
        (f'{socket}\ntrust_socket = true\ntrusted_proxies = ["10.0.0.1", "unix"]', "through that proxy"),
        (f'{socket}\ntrust_socket = "yes"', "expected true or false"),
        (f"{socket}\ntrust_socket = 1", "expected true or false"),
    ):
        key, message = problem(write(tmp_path, keys))
        assert key == "control.trust_socket"
        assert words in message


def test_a_socket_from_systemd_that_others_reach_is_not_trusted(tmp_path: Path) -> None:
    control = control_of(write(tmp_path, 'listen = "unix:/run/c.sock"\ntrust_socket = true'))
    assert "control.trust_socket" in (control.objection(Listen.parse("127.0.0.1:8092")) or "")
    assert control.objection(Listen.parse("unix:/run/other.sock")) is None


def test_a_bad_token_is_not_repeated(tmp_path: Path) -> None:
    key, message = problem(write(tmp_path, 'token = "Zq7 not here"'))
    assert key == "control.token"
    assert "Zq7" not in message


def test_a_token_may_be_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert control_of(write(tmp_path, 'token_file = "credential:control"')).tokens == (TOKEN,)


def test_a_command_gets_along_without_the_daemons_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows that there are tokens and TLS, and has to be given its own."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = write(
        tmp_path,
        'listen = ":8092"\ntoken_file = "credential:tokens"\ntls_certificate = "${NOT_SET}/c.pem"\n'
        'tls_key = "credential:key"',
    )
    control = load_control(path)
    assert control.tokens == ()
    assert control.tls_certificate is not None
    assert problem_keys(path) == {"control.token_file", "control.tls_certificate", "control.tls_key"}


def problem_keys(path: Path) -> set[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return {found.key for found in caught.value.problems}


# -- networks, proxies, certificates ----------------------------------------------------------------------


def receiver_of(tmp_path: Path, keys: str) -> Settings:
    return load(write(tmp_path, receiver=keys))


def test_networks_are_addresses_and_ranges_of_both_families(tmp_path: Path) -> None:
    receiver = receiver_of(tmp_path, 'allow = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::1"]').receiver
    assert [str(network) for network in receiver.allow] == [
        *("10.0.0.0/8", "192.0.2.1/32"),
        *("2001:db8::/32", "::1/128"),
    ]
    receiver = receiver_of(tmp_path, 'trusted_proxies = ["unix", "192.0.2.1"]').receiver
    assert receiver.trusted_proxies == ("unix", ipaddress.ip_network("192.0.2.1"))


def test_a_network_of_ipv4_written_as_ipv6_is_that_of_ipv4(tmp_path: Path) -> None:
    """Clients' addresses are compared as IPv4 on every socket: as it is written it would match nobody."""
    networks = '["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::ffff:0:0/96", "::/0"]'
    receiver = receiver_of(tmp_path, f"allow = {networks}\ntrusted_proxies = {networks}").receiver
    expected = ["10.0.0.0/8", "192.0.2.1/32", "0.0.0.0/0", "::/0"]
    assert [str(network) for network in receiver.allow] == expected
    assert [str(network) for network in receiver.trusted_proxies] == expected


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ('allow = ["10.0.0.7/8"]', "receiver.allow[0]", '"10.0.0.0/8"'),
        ('allow = ["::1", "gms-1"]', "receiver.allow[1]", '"gms-1"'),
        ('allow = ["unix"]', "receiver.allow[0]", "expected a network"),
        ("allow = [10]", "receiver.allow[0]", "expected a network"),
        ('allow = "10.0.0.0/8"', "receiver.allow", "expected a list"),
        ('trusted_proxies = ["proxy"]', "receiver.trusted_proxies[0]", "expected a network"),
        ("max_connections = 7", "receiver.max_connections", "at least 8"),
        ('tls_certificate = "none.pem"', "receiver.tls_certificate", "cannot be read"),
        ('tls_key = "x.pem"', "receiver.tls_key", "tls_certificate together with it"),
        ('tls_client_ca = "x.pem"', "receiver.tls_client_ca", "tls_certificate together with it"),
    ],
)
def test_what_is_wrong_is_said_in_words(tmp_path: Path, keys: str, key: str, words: str) -> None:
    (tmp_path / "x.pem").touch()
    found, message = problem(write(tmp_path, receiver=keys))
    assert found == key
    assert words in message


def test_those_who_look_at_the_status_page_leave_room_for_others(tmp_path: Path) -> None:
    key, message = problem(write(tmp_path, "max_connections = 31"))
    assert key == "control.max_connections"
    assert "at least 32" in message
    assert control_of(write(tmp_path, "max_connections = 32")).max_connections >= 2 * LISTENERS


def test_a_clients_key_goes_with_its_certificate(tmp_path: Path) -> None:
    (tmp_path / "x.pem").touch()
    key, message = problem(write(tmp_path, 'client_key = "x.pem"'))
    assert key == "control.client_key"
    assert "control.client_certificate" in message
