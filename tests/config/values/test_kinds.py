"""The kinds of value in the configuration file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from asyncchatd.config.values.addresses import Listen

from ..rig import problems, settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("6s", 6), ("30m", 1800), ("1.5h", 5400), ("2d", 172800), ("0.001ms", 0.000001)],
)
def test_durations_have_units(tmp_path: Path, text: str, seconds: float) -> None:
    assert settings(tmp_path, ping=f'interval = "{text}"').ping.interval == timedelta(seconds=seconds)


def test_a_duration_without_unit_is_told_to_get_one(tmp_path: Path) -> None:
    message = problems(tmp_path, ping="interval = 30")["ping.interval"]
    assert "duration with its unit" in message
    assert message.endswith("got 30")


@pytest.mark.parametrize(
    "text", ["", "5", "5 minutes", "-5s", "0s", "0.0000001ms", "1e3s", "nan", "9" * 400 + "d", "36501d"]
)
def test_what_is_no_duration_is_refused_with_what_came(tmp_path: Path, text: str) -> None:
    message = problems(tmp_path, ping=f'interval = "{text}"')["ping.interval"]
    assert message.startswith("expected a duration")
    assert f'got "{text[:20]}' in message


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("127.0.0.1:8091", "127.0.0.1", 8091, None),
        ("[::1]:8091", "::1", 8091, None),
        ("gms-facing.example:80", "gms-facing.example", 80, None),
        (":8091", None, 8091, None),
        ("127.0.0.1:0", "127.0.0.1", 0, None),
        ("unix:/run/asyncchatd/control.sock", None, None, "/run/asyncchatd/control.sock"),
    ],
)
def test_addresses_to_listen_on(text: str, host: str | None, port: int | None, path: str | None) -> None:
    listen = Listen.parse(text)
    assert (listen.host, listen.port, listen.path) == (host, port, path)
    assert str(listen) == text


@pytest.mark.parametrize(
    "text", ["8091", "host", "host:", "host:99999", "::1:8091", "unix:relative", "unix:/" + "x" * 120]
)
def test_what_is_no_address_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected" in problems(tmp_path, control=f'listen = "{text}"')["control.listen"]


@pytest.mark.parametrize("text", ["127.0.0.1:70000", "[::1]:65536", ":100000"])
def test_a_port_that_is_too_large_is_called_that(tmp_path: Path, text: str) -> None:
    message = problems(tmp_path, control=f'listen = "{text}"')["control.listen"]
    assert message == f'this port is too large: expected one of at most 65535; got "{text}"'
    assert Listen.parse("127.0.0.1:65535").port == 65535


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ('"256KiB"', 262144), ('"1MiB"', 1048576), ('"7B"', 7)]
)
def test_sizes_are_bytes_or_have_a_unit(tmp_path: Path, text: str, size: int) -> None:
    assert settings(tmp_path, receiver=f'secrets = ["s"]\nmax_body = {text}').receiver.max_body == size


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("gms:8080", "expected an address"),
        ("ftp://gms/", "expected an address"),
        ("http://", "expected an address"),
        ("http://gms:8080x/", "expected an address"),
        ("ftp://gms:99999/", "expected an address"),
        ("http://gms:99999/", "this port is too large"),
        ("http://gms:65536", "this port is too large"),
        ("http://[::1]:100000/", "this port is too large"),
        ("http://gms/a b", "expected an address"),
        ("http://u:p@gms/", "without user name"),
        ("http://gms/?a=b", "without ?query"),
        ("http://gms/#a", "without #fragment"),
    ],
)
def test_a_node_is_a_plain_base_address(tmp_path: Path, node: str, words: str) -> None:
    found = problems(tmp_path, gms=f'nodes = ["http://gms-1/", "{node}"]')
    assert words in found["gms.nodes[1]"]


def test_nodes_lose_their_trailing_slash(tmp_path: Path) -> None:
    loaded = settings(tmp_path, gms='nodes = ["http://gms-1:8080/genesys/", "https://gms-2"]')
    assert loaded.gms.nodes == ("http://gms-1:8080/genesys", "https://gms-2")


@pytest.mark.parametrize("service", ["", "a/b", "a b", "..", "a?b"])
def test_a_service_is_one_segment_of_a_path(tmp_path: Path, service: str) -> None:
    assert "gms.service" in problems(tmp_path, gms=f'nodes = ["http://a/"]\nservice = "{service}"')


def test_the_dbid_may_be_written_as_number_or_text(tmp_path: Path) -> None:
    servers = "".join(
        f'[[chat_server]]\nname = "chat-{index}"\nhealth_url = "http://h:{index}00/"\napp_dbid = {dbid}\n'
        for index, dbid in enumerate(["117", '"118"', "119.0"], start=1)
    )
    assert [server.app_dbid for server in settings(tmp_path, servers).chat_servers] == ["117", "118", "119"]
